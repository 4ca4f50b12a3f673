//! Why a server did not pass.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use super::{dns, exec, file, http, smtp, tls, udp};

/// What a server did instead of answering as it should: one short sentence, for status and logs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The director itself could not ask (no file descriptor, no permission): this says nothing about the server.
    #[error("cannot ask: {0}")]
    CannotAsk(String),
    /// No way to its address: no route, no neighbour, or an ICMP error said so.
    #[error("unreachable: {}", words(&(*.0).into()))]
    Unreachable(Errno),
    /// Nothing listens on the port: RST, or ICMP port unreachable.
    #[error("connection refused")]
    Refused,
    /// Neither yes nor no to a SYN.
    #[error("no connection within {0:?}")]
    NoConnection(Duration),
    /// Nothing came, or not all of it; with the layer that is to blame.
    #[error("no answer within {1:?}")]
    NoAnswer(Layer, Duration),
    /// A connection was open and ended before there was an answer.
    #[error("connection lost: {0}")]
    Lost(String),
    /// No TLS, or a certificate that is not good.
    #[error(transparent)]
    Tls(#[from] tls::Wrong),
    /// Not the datagram that was expected.
    #[error(transparent)]
    Udp(#[from] udp::Wrong),
    /// Not the response that was expected.
    #[error(transparent)]
    Http(#[from] http::Wrong),
    /// Not the DNS answer that was expected.
    #[error(transparent)]
    Dns(#[from] dns::Wrong),
    /// Not what a mail server says.
    #[error(transparent)]
    Smtp(#[from] smtp::Wrong),
    /// The program says no.
    #[error(transparent)]
    Exec(#[from] exec::Wrong),
    /// The file says no.
    #[error(transparent)]
    File(#[from] file::Wrong),
}

/// The layer that failed. What is below it is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// The director's own machine: nothing was learnt about the server.
    Local,
    /// None: a program or a file says so, and the server itself was not asked.
    Told,
    /// The address cannot be reached.
    L3,
    /// The port gives no connection, or no answer at all.
    L4,
    /// There was a connection or an answer, and not the right one.
    L7,
}

impl Failure {
    /// The layer that failed.
    pub fn layer(&self) -> Layer {
        match self {
            Self::CannotAsk(_) => Layer::Local,
            Self::Unreachable(_) => Layer::L3,
            Self::Refused | Self::NoConnection(_) => Layer::L4,
            Self::NoAnswer(layer, _) => *layer,
            Self::Exec(_) | Self::File(_) => Layer::Told,
            Self::Lost(_) | Self::Tls(_) | Self::Udp(_) | Self::Http(_) | Self::Dns(_) | Self::Smtp(_) => {
                Layer::L7
            }
        }
    }

    /// The director could not ask.
    pub(super) fn local(error: io::Error) -> Self {
        Self::CannotAsk(words(&error))
    }

    /// What an error of connecting, or of a socket that knows no connections, says; `timeout` is the time that the whole
    /// probe has.
    pub(super) fn connecting(error: &io::Error, timeout: Duration) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::CONNREFUSED | Errno::CONNRESET) => Self::Refused,
            Some(Errno::TIMEDOUT) => Self::NoConnection(timeout),
            Some(errno) if is_unreachable(errno) => Self::Unreachable(errno),
            _ => Self::CannotAsk(words(error)),
        }
    }

    /// What an error on an open connection says.
    pub(super) fn lost(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(errno) if is_unreachable(errno) => Self::Unreachable(errno),
            _ => Self::Lost(words(error)),
        }
    }
}

/// What ICMP errors and a missing neighbour become (net/ipv4/icmp.c, icmp_err_convert).
fn is_unreachable(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::HOSTUNREACH
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::NETDOWN
            | Errno::NONET
            | Errno::NOPROTOOPT
    )
}

/// The kernel's words for an error, without its number.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
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

    #[test]
    fn an_error_of_a_connection_is_not_a_refusal() {
        let failure = Failure::lost(&Errno::CONNRESET.into());
        assert_eq!(
            (failure.layer(), failure.to_string()),
            (Layer::L7, "connection lost: connection reset by peer".into())
        );
        assert_eq!(Failure::lost(&Errno::HOSTUNREACH.into()).layer(), Layer::L3);
    }
}
