//! Values by slot, in pages that one snapshot shares with the next: what differs little from what was there before costs
//! little, be there ever so much of it.

use std::sync::Arc;

/// Values by slot.
#[derive(Clone, Debug)]
pub(super) struct Paged<T> {
    pages: Vec<Arc<Page<T>>>,
}

type Page<T> = [Option<T>; PAGE];

/// Slots of a page.
pub(super) const PAGE: usize = 64;

impl<T> Default for Paged<T> {
    fn default() -> Self {
        Self { pages: Vec::new() }
    }
}

impl<T> Paged<T> {
    /// Slots in use are below this.
    pub(super) fn slots(&self) -> usize {
        self.pages.len() * PAGE
    }

    #[inline]
    pub(super) fn get(&self, slot: usize) -> Option<&T> {
        self.pages.get(slot / PAGE)?[slot % PAGE].as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flat_map(|page| page.iter().flatten())
    }

    /// Whether the slots of page number `page` are the very same in both.
    pub(super) fn shares(&self, other: &Self, page: usize) -> bool {
        match (self.pages.get(page), other.pages.get(page)) {
            (Some(page), Some(other)) => Arc::ptr_eq(page, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Whether `same` holds for all slots of both. It is not asked about what they share.
    pub(super) fn same(&self, other: &Self, same: impl Fn(&Option<T>, &Option<T>) -> bool) -> bool {
        let pages = || self.pages.iter().zip(&other.pages).filter(|(page, other)| !Arc::ptr_eq(page, other));
        self.pages.len() == other.pages.len()
            && pages().all(|(page, other)| page.iter().zip(other.iter()).all(|(a, b)| same(a, b)))
    }
}

impl<T: Clone + PartialEq> Paged<T> {
    /// Puts `value` into `slot`, unless just that is there.
    pub(super) fn put(&mut self, slot: usize, value: Option<T>) {
        if self.get(slot) == value.as_ref() {
            return;
        }
        while self.pages.len() <= slot / PAGE {
            self.pages.push(Arc::new([const { None }; PAGE]));
        }
        Arc::make_mut(&mut self.pages[slot / PAGE])[slot % PAGE] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shares_all_pages_but_those_in_which_something_differs() {
        let mut first = Paged::default();
        (0..3 * PAGE).for_each(|slot| first.put(slot, Some(slot)));
        let mut second = first.clone();
        second.put(PAGE, Some(PAGE));
        assert!((0..3).all(|page| second.shares(&first, page)));
        second.put(PAGE, None);
        second.put(4 * PAGE + 1, Some(7));
        assert_eq!((first.get(PAGE), second.get(PAGE)), (Some(&PAGE), None));
        assert_eq!(
            (second.get(4 * PAGE + 1), second.get(4 * PAGE), second.get(5 * PAGE)),
            (Some(&7), None, None)
        );
        assert_eq!([0, 1, 2, 4, 6].map(|page| second.shares(&first, page)), [true, false, true, false, true]);
        assert_eq!((second.slots(), second.iter().count()), (5 * PAGE, 3 * PAGE));
    }

    #[test]
    fn what_is_shared_is_not_compared() {
        let mut first = Paged::default();
        (0..2 * PAGE).for_each(|slot| first.put(slot, Some(slot)));
        let mut second = first.clone();
        second.put(0, Some(9));
        let asked = std::cell::Cell::new(0);
        let same = |_: &Option<usize>, _: &Option<usize>| {
            asked.set(asked.get() + 1);
            true
        };
        assert!(second.same(&first, same));
        assert_eq!(asked.get(), PAGE);
        assert!(!second.same(&first, |a, b| a == b));
        second.put(2 * PAGE, Some(1));
        assert!(!second.same(&first, |_, _| true), "one has more slots");
    }
}
