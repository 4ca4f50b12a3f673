//! Packet I/O and per-core poll-mode workers. Engine knows frames: it has no word for what a frame is for.
//!
//! Read in this order: [`frame`] and [`mempool`] (who owns a buffer), [`port`] (where frames come from and go),
//! [`program`] (what a worker runs), [`worker`] (the loop), [`outbox`] and [`ring`] (where frames go from there),
//! [`idle`] and [`waker`] (what happens when there are none), [`lcore`] (threads), [`publish`], [`counters`] and
//! [`report`] (how a worker hears from and tells the rest of the process).
//!
//! All `unsafe` of the product is in this crate, in the files that lift the lint at their head.

pub mod assign;
pub mod burst;
pub mod clock;
pub mod counters;
pub mod frame;
pub mod idle;
pub mod lcore;
pub mod mem;
pub mod mempool;
pub mod outbox;
pub mod port;
pub mod program;
pub mod publish;
pub mod punt;
pub mod report;
pub mod ring;
pub mod rss;
pub mod steer;
mod sync;
pub mod turn_times;
pub mod waker;
pub mod worker;

pub use burst::{BURST, Burst};
pub use clock::{Duration, Instant};
pub use frame::{Frame, HEADROOM, Note};
pub use mempool::Mempool;
pub use port::PortId;
pub use program::{Emit, Origin, Program, Verdict, WorkerId};
