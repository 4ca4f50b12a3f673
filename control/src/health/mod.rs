//! Whether servers can take connections: [`probe`] asks them, [`check`] judges the answers to one question, [`server`]
//! all checks of a server, [`service`] all servers of a service, [`watch`] holds them together, and [`driver`] gives them
//! time and sockets. Only the driver and the probes do any I/O.
//!
//! What comes of it is a [`Standing`] for every server, which goes the way of all changes: into the configuration in
//! force, and with it to the workers.

pub mod check;
pub mod driver;
pub mod passive;
pub mod probe;
pub mod server;
pub mod service;
mod shown;
#[cfg(test)]
mod simulation;
pub mod watch;

use shunt_engine::Instant;

/// What a server has to do with new connections, and with those that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It takes connections, as many as its own weight says.
    #[default]
    Whole,
    /// It takes connections, as many as this weight says.
    Weighing(u32),
    /// It takes none and keeps those it has: others take them for now.
    Aside,
    /// It takes none, for its checks did not pass; since when.
    Out(Instant),
}
