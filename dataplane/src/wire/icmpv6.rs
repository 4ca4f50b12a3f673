//! ICMPv6 headers, RFC 4443. The layout is ICMP's (see [`super::icmpv4`]); the checksum includes a pseudo header.

pub use super::icmpv4::{CHECKSUM, HEADER_LEN};

/// Message types.
pub mod kind {
    /// Destination unreachable; see [`super::unreachable`].
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big; the header's rest holds the next hop's MTU (RFC 4443 §3.2).
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Redirect (RFC 4861 §4.5).
    pub const REDIRECT: u8 = 137;
}

/// Codes of [`kind::UNREACHABLE`].
pub mod unreachable {
    /// Address unreachable.
    pub const ADDRESS: u8 = 3;
    /// Port unreachable.
    pub const PORT: u8 = 4;
}

/// Whether messages of this type report an error, and so quote a packet and are never answered.
#[inline]
pub const fn is_error(kind: u8) -> bool {
    kind < 128
}
