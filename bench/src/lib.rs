//! Benchmarks of the packet path, and the rig they share with tests: the real worker loop between a source and a sink
//! in memory.
//!
//! Read in this order: [`director`] (what is configured), [`wire`] (where frames come from and go), [`rig`] (the loop
//! between them), [`connections`] (how flows are opened), [`pipeline`] and [`connect`] (what is measured), [`crew`] and [`scale`] (several
//! workers), [`loops`] and [`latency`] (how long a turn takes), [`world`] and [`reload`] (the daemon's part), [`count`] and [`gate`] (instructions instead of time), [`table`] (the connection table alone), [`schedule`]
//! (schedulers alone), [`report`] (what is said).

pub mod alloc;
pub mod baseline;
pub mod connect;
pub mod connections;
pub mod count;
pub mod crew;
pub mod director;
pub mod family;
pub mod gate;
pub mod latency;
pub mod loops;
pub mod machine;
pub mod pipeline;
pub mod progress;
pub mod reload;
pub mod report;
pub mod rig;
pub mod scale;
pub mod schedule;
pub mod size;
pub mod table;
pub mod wire;
pub mod world;
