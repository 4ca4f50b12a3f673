//! The atomics of what workers share, behind one name so that loom can replace them:
//! `RUSTFLAGS="--cfg loom" cargo test -p shunt-dataplane --lib loom`.

#[cfg(loom)]
pub(crate) use loom::{
    sync::atomic::{AtomicU64, Ordering},
    thread::yield_now as spin_loop,
};
#[cfg(not(loom))]
pub(crate) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicU64, Ordering},
};
