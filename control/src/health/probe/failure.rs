//! Why a server did not pass.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

/// What a server did instead of answering as it should: one short sentence, for status and logs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No way to its address: no route, no neighbour, or an ICMP error said so.
    #[error("unreachable: {}", words(*.0))]
    Unreachable(Errno),
    /// Nothing listens on the port: RST, or ICMP port unreachable.
    #[error("connection refused")]
    Refused,
    /// Neither yes nor no to a SYN.
    #[error("no connection within {0:?}")]
    NoConnection(Duration),
    /// The director itself could not ask (no file descriptor, no permission): this says nothing about the server.
    #[error("cannot ask: {}", words(*.0))]
    CannotAsk(Errno),
}

/// What is still true of a server that failed: everything below the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// The director's own machine: nothing was learnt about the server.
    Local,
    /// The address cannot be reached.
    L3,
    /// The address can be reached, the port cannot.
    L4,
    /// There was a connection, or an answer, and not the right one.
    L7,
}

impl Failure {
    /// The layer that failed.
    pub fn layer(&self) -> Layer {
        match self {
            Self::CannotAsk(_) => Layer::Local,
            Self::Unreachable(_) => Layer::L3,
            Self::Refused | Self::NoConnection(_) => Layer::L4,
        }
    }

    /// What an error of connecting says; `timeout` is the time that the whole probe has.
    pub(super) fn connecting(error: &io::Error, timeout: Duration) -> Self {
        let errno = errno(error);
        match errno {
            Errno::CONNREFUSED | Errno::CONNRESET => Self::Refused,
            Errno::TIMEDOUT => Self::NoConnection(timeout),
            Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::HOSTDOWN | Errno::NETDOWN | Errno::NONET => {
                Self::Unreachable(errno)
            }
            _ => Self::CannotAsk(errno),
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The kernel's words for a number, without the number.
fn words(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_connecting_has_the_layer_that_failed() {
        let of = |errno: Errno| Failure::connecting(&errno.into(), Duration::from_secs(3));
        let said = |errno| (of(errno).layer(), of(errno).to_string());
        assert_eq!(said(Errno::CONNREFUSED), (Layer::L4, "connection refused".into()));
        assert_eq!(said(Errno::TIMEDOUT), (Layer::L4, "no connection within 3s".into()));
        assert_eq!(said(Errno::HOSTUNREACH), (Layer::L3, "unreachable: no route to host".into()));
        assert_eq!(said(Errno::NETUNREACH), (Layer::L3, "unreachable: network is unreachable".into()));
        assert_eq!(said(Errno::MFILE), (Layer::Local, "cannot ask: too many open files".into()));
    }
}
