//! Counters in two copies: a worker adds to plain private ones and publishes them now and then; anybody reads the
//! published copy. Nothing on the packet path is shared, and nothing is lost or counted twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A worker's private counters, indexed by the owner's own numbering.
#[derive(Debug)]
pub struct Counters {
    private: Box<[u64]>,
    public: Published,
}

/// The published copy: readable from any thread, as old as the last publication.
#[derive(Clone, Debug)]
pub struct Published(Arc<[AtomicU64]>);

impl Counters {
    /// `len` counters at zero.
    pub fn new(len: usize) -> Self {
        Self {
            private: vec![0; len].into_boxed_slice(),
            public: Published((0..len).map(|_| AtomicU64::new(0)).collect()),
        }
    }

    /// A handle on the published copy.
    pub fn published(&self) -> Published {
        self.public.clone()
    }

    /// Adds one.
    #[inline]
    pub fn bump(&mut self, index: usize) {
        self.add(index, 1);
    }

    /// Adds `amount`.
    #[inline]
    pub fn add(&mut self, index: usize, amount: u64) {
        self.private[index] = self.private[index].wrapping_add(amount);
    }

    /// Adds to a counter and to the one behind it.
    #[inline]
    pub fn add_pair(&mut self, index: usize, amounts: [u64; 2]) {
        let pair = &mut self.private[index..index + 2];
        pair[0] = pair[0].wrapping_add(amounts[0]);
        pair[1] = pair[1].wrapping_add(amounts[1]);
    }

    /// Takes `amount` off: for gauges such as live connections.
    #[inline]
    pub fn sub(&mut self, index: usize, amount: u64) {
        self.private[index] = self.private[index].wrapping_sub(amount);
    }

    /// Sets a counter that somebody else counts.
    #[inline]
    pub fn set(&mut self, index: usize, value: u64) {
        self.private[index] = value;
    }

    /// The private value.
    #[inline]
    pub fn get(&self, index: usize) -> u64 {
        self.private[index]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.private.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.private.is_empty()
    }

    /// Makes the counters `range` visible to readers.
    pub fn publish(&self, range: std::ops::Range<usize>) {
        for (private, public) in self.private[range.clone()].iter().zip(&self.public.0[range]) {
            public.store(*private, Ordering::Relaxed);
        }
    }

    /// Makes all counters visible to readers.
    pub fn publish_all(&self) {
        self.publish(0..self.len());
    }
}

impl Published {
    /// The value at the last publication.
    pub fn get(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::Relaxed)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_see_what_was_published_and_nothing_newer() {
        let mut counters = Counters::new(2);
        let seen = counters.published();
        counters.bump(0);
        counters.add(1, 10);
        counters.sub(1, 3);
        assert_eq!((seen.get(0), seen.get(1)), (0, 0));
        counters.publish_all();
        assert_eq!((seen.get(0), seen.get(1)), (1, 7));
        counters.bump(0);
        assert_eq!((seen.get(0), counters.get(0)), (1, 2));
    }
}
