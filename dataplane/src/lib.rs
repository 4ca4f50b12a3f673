//! Flows: bytes, `now` and a snapshot in, verdicts out. No socket, file, clock or thread.
//!
//! One packet's way through the files: classify reads its headers once, [`home`] says which worker it belongs to,
//! [`conn`] finds its connection, [`service`] and [`scheduler`] open one where there is none, [`laddr`] finds a local
//! port, forward edits it, [`route`] and [`neigh`] say where it goes. pipeline calls them in that order over a
//! burst. [`snapshot`] is what control publishes; [`counters`] and [`verdict`] name everything that can happen.

pub mod conn;
pub mod counters;
pub mod hash;
pub mod home;
pub mod laddr;
pub mod neigh;
pub mod route;
pub mod scheduler;
pub mod server;
pub mod service;
pub mod snapshot;
pub mod tuple;
pub mod verdict;
