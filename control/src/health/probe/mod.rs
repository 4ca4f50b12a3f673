//! What a check asks a server, one file per kind. A probe asks once and answers; how often it is asked, and what becomes
//! of the answer, is none of its business.
//!
//! Every probe may be dropped at any moment and leaves nothing behind: its sockets are closed, its program is killed.

pub mod dns;
pub mod exec;
mod failure;
pub mod file;
pub mod http;
mod icmp;
pub mod pattern;
mod ping;
pub mod smtp;
mod tcp;
pub mod tls;
pub mod udp;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

pub use failure::{Failure, Layer};

/// What one check asks of one server. Equal probes of one target need to be asked only once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// Whether the address answers an ICMP echo.
    Ping,
    /// Whether a TCP connection can be opened.
    Tcp,
    /// Whether a datagram is answered, or at least not refused.
    Udp(udp::Udp),
    /// Whether HTTP requests are answered as they should be, with TLS or without.
    Http(http::Http),
    /// Whether a DNS query is answered as it should be.
    Dns(dns::Dns),
    /// Whether a mail server greets.
    Smtp(smtp::Smtp),
    /// What a program says.
    Exec(exec::Exec),
    /// What a file says.
    File(file::File),
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

/// How long a probe has.
#[derive(Clone, Copy, Debug)]
struct Limit {
    /// When it is over.
    deadline: Instant,
    /// How long it was, for messages.
    timeout: Duration,
}

impl Probe {
    /// The word of this kind in the configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Tcp => "tcp",
            Self::Udp(_) => "udp",
            Self::Http(http) if http.tls.is_some() => "https",
            Self::Http(_) => "http",
            Self::Dns(_) => "dns",
            Self::Smtp(_) => "smtp",
            Self::Exec(_) => "exec",
            Self::File(_) => "file",
        }
    }

    /// Whether it asks a port, and not the address alone.
    pub fn needs_port(&self) -> bool {
        match self {
            Self::Tcp | Self::Udp(_) | Self::Http(_) | Self::Dns(_) | Self::Smtp(_) => true,
            Self::Ping | Self::Exec(_) | Self::File(_) => false,
        }
    }

    /// The layer that works when it passes, with those below.
    pub fn layer(&self) -> Layer {
        match self {
            Self::Exec(_) | Self::File(_) => Layer::Told,
            Self::Ping => Layer::L3,
            Self::Tcp | Self::Udp(_) => Layer::L4,
            Self::Http(_) | Self::Dns(_) | Self::Smtp(_) => Layer::L7,
        }
    }

    /// Asks `target`; the answer, whatever it is, comes within `timeout`, connecting and all.
    ///
    /// # Errors
    /// When the server does not answer as it should, with what it did instead.
    pub async fn run(&self, target: &Target, timeout: Duration) -> Result<Passed, Failure> {
        let started = Instant::now();
        let limit = Limit { deadline: started + timeout, timeout };
        let address = target.address;
        let mut weight = None;
        match self {
            Self::Ping => limit.answer(Layer::L3, ping::ask(address.ip())).await?,
            Self::Tcp => drop(tcp::connect(address, limit).await?),
            Self::Udp(udp) => udp.ask(address, limit).await?,
            Self::Http(http) => limit.answer(Layer::L7, http.ask(address, limit)).await?,
            // Whether a server that keeps silent has the port at all is not known.
            Self::Dns(dns) => limit.answer(Layer::L4, dns.ask(address, limit)).await?,
            Self::Smtp(smtp) => limit.answer(Layer::L7, smtp.ask(address, limit)).await?,
            Self::Exec(exec) => weight = limit.answer(Layer::Told, exec.ask(*target)).await?,
            Self::File(file) => weight = limit.answer(Layer::Local, file.ask()).await?,
        }
        Ok(Passed { latency: started.elapsed(), weight })
    }
}

impl Limit {
    /// What `asking` comes to, or that there was no answer in time on `layer`.
    async fn answer<T>(
        self,
        layer: Layer,
        asking: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match timeout_at(self.deadline, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::NoAnswer(layer, self.timeout)),
        }
    }
}
