//! The atomics of this crate's hand-made protocols, behind one name so that loom can replace them:
//! `RUSTFLAGS="--cfg loom" cargo test -p shunt-engine --lib loom`.

#[cfg(not(loom))]
pub(crate) use arc_swap::ArcSwap;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Stands in for arc-swap's, into which loom cannot look. It orders nothing: a reader may get any value that the memory
/// model allows, so that whatever holds is the work of the caller's own atomics.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct ArcSwap<T> {
    newest: AtomicU64,
    /// Not loom's mutex: that one would order.
    values: std::sync::Mutex<Vec<std::sync::Arc<T>>>,
}

#[cfg(loom)]
impl<T> ArcSwap<T> {
    pub(crate) fn new(value: std::sync::Arc<T>) -> Self {
        Self { newest: AtomicU64::new(0), values: std::sync::Mutex::new(vec![value]) }
    }

    pub(crate) fn load_full(&self) -> std::sync::Arc<T> {
        let newest = self.newest.load(Ordering::Relaxed) as usize;
        self.values.lock().expect("nobody panics with it")[newest].clone()
    }

    pub(crate) fn swap(&self, value: std::sync::Arc<T>) -> std::sync::Arc<T> {
        let old = self.load_full();
        let newest = {
            let mut values = self.values.lock().expect("nobody panics with it");
            values.push(value);
            values.len() - 1
        };
        self.newest.store(newest as u64, Ordering::Relaxed);
        old
    }
}
