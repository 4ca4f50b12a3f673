//! IPv4 in IPv4, RFC 2003.

use super::WireError;
use super::ipv4::{self, HEADER_LEN, Packet, Repr};
use crate::tuple::V4;

/// Bytes that a tunnel adds.
pub const OVERHEAD: u16 = HEADER_LEN as u16;

/// The header to put in front of `inner`: TOS, TTL and "don't fragment" are the inner packet's (RFC 2003 §3.1; Linux
/// does so unless a tunnel says otherwise).
///
/// ```text
/// +---------------------------+
/// |      Outer IP Header      |  protocol 4
/// +---------------------------+
/// |         IP Header         |
/// +---------------------------+
/// |         IP Payload        |
/// +---------------------------+
/// ```
#[inline]
pub fn outer<T: AsRef<[u8]>>(inner: &Packet<T>, src: V4, dst: V4, id: u16) -> Repr {
    Repr {
        tos: inner.tos(),
        payload_len: inner.total_len(),
        id,
        dont_fragment: inner.dont_fragment(),
        ttl: inner.ttl(),
        protocol: ipv4::protocol::IPIP,
        src,
        dst,
    }
}

/// The packet inside `outer`.
///
/// # Errors
/// [`WireError::Version`] when `outer` is no tunnel's; [`WireError::Length`] when it is a fragment, of which the inner
/// packet cannot be told; otherwise as [`Packet::new_checked`] of the inner packet.
pub fn inner<T: AsRef<[u8]>>(outer: &Packet<T>) -> Result<Packet<&[u8]>, WireError> {
    if outer.protocol() != ipv4::protocol::IPIP {
        return Err(WireError::Version);
    }
    if outer.flags_offset() & (ipv4::OFFSET_MASK | ipv4::MORE_FRAGMENTS) != 0 {
        return Err(WireError::Length);
    }
    Packet::new_checked(outer.payload())
}
