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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::builder::PacketBuilder;
    use crate::wire::ipv4::{DONT_FRAGMENT, MORE_FRAGMENTS};

    fn wrapped() -> Vec<u8> {
        let packet = PacketBuilder::udp("198.51.100.7:40000", "203.0.113.10:53").tos(0x2e).ttl(17);
        let packet = packet.dont_fragment().payload(*b"query").build_ip();
        let outer = outer(&Packet::new_checked(&packet).unwrap(), V4(1), V4(2), 99);
        [&outer.emit()[..], &packet].concat()
    }

    #[test]
    fn the_outer_header_takes_after_the_inner_one() {
        let bytes = wrapped();
        let packet = Packet::new_checked(&bytes).unwrap();
        assert_eq!((packet.src(), packet.dst(), packet.id()), (V4(1), V4(2), 99));
        assert_eq!((packet.tos(), packet.ttl(), packet.flags_offset()), (0x2e, 17, DONT_FRAGMENT));
        assert_eq!((packet.protocol(), packet.total_len()), (4, 20 + 20 + 8 + 5));
        assert!(packet.checksum_is_right());
    }

    #[test]
    fn the_inner_packet_comes_out_as_it_went_in() {
        let bytes = wrapped();
        let outer = Packet::new_checked(&bytes).unwrap();
        let inner = inner(&outer).unwrap();
        assert_eq!((inner.protocol(), inner.payload().len()), (17, 13));
    }

    #[test]
    fn what_is_no_tunnel_packet_has_no_inner_one() {
        let refuse = |at: usize, value: u8| {
            let mut bytes = wrapped();
            bytes[at] = value;
            inner(&Packet::new_header(&bytes).unwrap()).map(|_| ()).unwrap_err()
        };
        assert_eq!(refuse(9, 17), WireError::Version);
        assert_eq!(refuse(6, (MORE_FRAGMENTS >> 8) as u8), WireError::Length);
        assert_eq!(refuse(20, 0x65), WireError::Version);
        assert_eq!(refuse(3, 30), WireError::Truncated);
    }
}
