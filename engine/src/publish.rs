//! One writer publishes immutable values, each worker adopts the newest with one atomic load per burst.
//!
//! The writer keeps every old value until no reader holds it ([`Publisher::reclaim`]), so that a big value is never
//! torn down on a worker.

use std::sync::Arc;

use crossbeam_utils::CachePadded;

use crate::sync::{ArcSwap, AtomicU64, Ordering};

/// The running number of a published value; the first is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

#[derive(Debug)]
struct Shared<T> {
    current: ArcSwap<T>,
    generation: CachePadded<AtomicU64>,
    /// What each reader has adopted; written by that reader only.
    adopted: Box<[CachePadded<AtomicU64>]>,
}

/// The writing side.
#[derive(Debug)]
pub struct Publisher<T> {
    shared: Arc<Shared<T>>,
    old: Vec<Arc<T>>,
}

/// The reading side of one worker.
#[derive(Debug)]
pub struct Reader<T> {
    shared: Arc<Shared<T>>,
    index: usize,
    generation: Generation,
    value: Arc<T>,
}

/// Publishes `first` as generation 1 to `readers` readers.
pub fn channel<T>(first: T, readers: usize) -> (Publisher<T>, Vec<Reader<T>>) {
    let value = Arc::new(first);
    let shared = Arc::new(Shared {
        current: ArcSwap::new(value.clone()),
        generation: CachePadded::new(AtomicU64::new(1)),
        adopted: (0..readers).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
    });
    let reader =
        |index| Reader { shared: shared.clone(), index, generation: Generation(0), value: value.clone() };
    let readers = (0..readers).map(reader).collect();
    (Publisher { shared, old: Vec::new() }, readers)
}

impl<T> Publisher<T> {
    /// Makes `value` the current one and returns its generation. Readers adopt it at their next refresh.
    pub fn publish(&mut self, value: T) -> Generation {
        self.old.push(self.shared.current.swap(Arc::new(value)));
        // Release: a reader that sees the new number sees the new value.
        Generation(self.shared.generation.fetch_add(1, Ordering::Release) + 1)
    }

    /// The newest generation that every reader works with; 0 before they all started.
    pub fn in_force(&self) -> Generation {
        let adopted = self.shared.adopted.iter().map(|seen| seen.load(Ordering::Acquire)).min();
        Generation(adopted.unwrap_or_else(|| self.shared.generation.load(Ordering::Relaxed)))
    }

    /// The current value.
    pub fn current(&self) -> Arc<T> {
        self.shared.current.load_full()
    }

    /// Drops old values that no reader holds any more. Returns how many are still held.
    pub fn reclaim(&mut self) -> usize {
        self.old.retain(|value| Arc::strong_count(value) > 1);
        self.old.len()
    }
}

impl<T> Reader<T> {
    /// Adopts the current value. Returns whether it is a new one. One atomic load when it is not.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        let newest = self.shared.generation.load(Ordering::Acquire);
        if newest == self.generation.0 {
            return false;
        }
        self.value = self.shared.current.load_full();
        self.generation = Generation(newest);
        self.shared.adopted[self.index].store(newest, Ordering::Release);
        true
    }

    /// Whether a value newer than the adopted one waits.
    pub fn is_stale(&self) -> bool {
        self.shared.generation.load(Ordering::Acquire) != self.generation.0
    }

    /// The adopted value.
    #[inline]
    pub fn get(&self) -> &T {
        &self.value
    }

    /// A handle of its own on the adopted value.
    pub fn handle(&self) -> Arc<T> {
        self.value.clone()
    }

    /// The adopted generation; 0 before the first refresh.
    pub fn generation(&self) -> Generation {
        self.generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_in_force_when_the_last_reader_adopted_it() {
        let (mut publisher, mut readers) = channel("first", 2);
        assert_eq!(publisher.in_force(), Generation(0));
        assert!(readers.iter_mut().all(Reader::refresh));
        assert_eq!(publisher.in_force(), Generation(1));
        let second = publisher.publish("second");
        assert!(readers[0].is_stale() && readers[0].refresh() && !readers[0].refresh());
        assert_eq!((*readers[0].get(), *readers[1].get()), ("second", "first"));
        assert_eq!(publisher.in_force(), Generation(1));
        readers[1].refresh();
        assert_eq!(publisher.in_force(), second);
    }

    #[test]
    fn the_writer_outlives_every_reader_of_an_old_value() {
        let (mut publisher, mut readers) = channel(vec![1], 1);
        readers[0].refresh();
        publisher.publish(vec![2]);
        assert_eq!(publisher.reclaim(), 1);
        readers[0].refresh();
        assert_eq!(publisher.reclaim(), 0);
    }

    #[test]
    fn readers_on_other_threads_end_with_the_last_value() {
        const LAST: u64 = if cfg!(miri) { 50 } else { 1000 };
        let (mut publisher, readers) = channel(0u64, 4);
        std::thread::scope(|scope| {
            for mut reader in readers {
                scope.spawn(move || {
                    let mut last = 0;
                    while reader.generation() < Generation(LAST + 1) {
                        reader.refresh();
                        assert!(*reader.get() >= last, "values never go back");
                        last = *reader.get();
                    }
                    assert_eq!(last, LAST);
                });
            }
            for value in 1..=LAST {
                publisher.publish(value);
            }
        });
        assert_eq!(publisher.in_force(), Generation(LAST + 1));
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use loom::thread;

    use super::*;

    #[test]
    fn loom_a_generation_comes_with_its_value_or_a_newer_one() {
        loom::model(|| {
            let (mut publisher, mut readers) = channel(1, 1);
            let mut reader = readers.remove(0);
            let worker = thread::spawn(move || {
                for _ in 0..2 {
                    reader.refresh();
                    assert!(*reader.get() >= reader.generation().0, "{} is too old", reader.get());
                }
            });
            publisher.publish(2);
            publisher.publish(3);
            worker.join().expect("the worker does not panic");
        });
    }

    #[test]
    fn loom_when_a_generation_is_in_force_nobody_works_with_an_older_one() {
        loom::model(|| {
            let (mut publisher, mut readers) = channel("old", 1);
            let mut reader = readers.remove(0);
            let used = loom::sync::Arc::new(AtomicU64::new(0));
            let worker = thread::spawn({
                let used = used.clone();
                move || {
                    reader.refresh();
                    if *reader.get() == "old" {
                        used.store(1, Ordering::Relaxed);
                    }
                    reader.refresh();
                }
            });
            let second = publisher.publish("new");
            let in_force = publisher.in_force() >= second;
            let before = used.load(Ordering::Relaxed);
            worker.join().expect("the worker does not panic");
            if in_force {
                assert_eq!(used.load(Ordering::Relaxed), before, "the old one was used since");
            }
        });
    }
}
