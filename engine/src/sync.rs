//! The atomics of this crate's hand-made protocols, behind one name so that loom can replace them:
//! `RUSTFLAGS="--cfg loom" cargo test -p shunt-engine --lib loom`.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, Ordering, fence};
