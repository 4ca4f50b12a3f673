//! Flows: bytes, `now` and a snapshot in, verdicts out. No socket, file, clock or thread.
//!
//! One packet's way through the files: [`pipeline`] is one worker's program and `burst` the stages of a burst. The usual
//! packet of an established connection goes the short way, `fast`. Any other goes the long one: [`classify`] reads its
//! headers once, [`home`] says which worker it belongs to, [`flow`] finds its connection in [`conn`] or opens one by
//! [`service`], [`scheduler`] and [`laddr`], [`transmit`] finds the next hop ([`route`], [`neigh`]) and has [`forward`]
//! edit it. [`snapshot`] is what control publishes; [`counters`] and [`verdict`] name everything that can happen.

mod adoption;
pub mod agreed;
mod burst;
mod choose;
pub mod classify;
pub mod conn;
pub mod counters;
mod drain;
pub mod dump;
pub mod emit;
mod end;
mod fast;
pub mod flow;
pub mod forward;
pub mod fragment;
pub mod hash;
pub mod home;
pub mod icmp;
pub mod ip;
pub mod laddr;
pub mod neigh;
mod open;
mod path_mtu;
pub mod persist;
pub mod pipeline;
mod room;
pub mod route;
pub mod scheduler;
pub mod server;
pub mod service;
pub mod shared;
pub mod snapshot;
mod solve;
pub mod spread;
mod stages;
mod strays;
mod sync;
pub mod thresholds;
pub mod transmit;
pub mod tuple;
pub mod verdict;
mod way;
pub mod wire;
