//! What a check asks a server, one file per kind. A probe asks once and answers; how often it is asked, and what becomes
//! of the answer, is none of its business.
//!
//! Every probe may be dropped at any moment and leaves nothing behind: its sockets are closed.

mod failure;
mod tcp;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

pub use failure::{Failure, Layer};

/// What one check asks of one server. Equal probes of one target need to be asked only once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// Whether a TCP connection can be opened.
    Tcp,
}

/// Where a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Address and port. Kinds that know no port ask the address alone.
    pub address: SocketAddr,
}

/// A server answered as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// How long the whole took.
    pub latency: Duration,
    /// The weight that the server is to have, when the check says so.
    pub weight: Option<u16>,
}

impl Probe {
    /// The word of this kind in the configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
        }
    }

    /// Asks `target`; the answer, whatever it is, comes within `timeout`, connecting and all.
    ///
    /// # Errors
    /// When the server does not answer as it should, with what it did instead.
    pub async fn run(&self, target: &Target, timeout: Duration) -> Result<Passed, Failure> {
        let started = Instant::now();
        let deadline = started + timeout;
        match self {
            Self::Tcp => drop(tcp::connect(target.address, deadline, timeout).await?),
        }
        Ok(Passed { latency: started.elapsed(), weight: None })
    }
}
