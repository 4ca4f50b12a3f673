//! Neighbour advertisements of IPv6, RFC 4861 §4.4.

use shunt_engine::port::MacAddr;

use super::ethernet::{self, ethertype};
use super::{Family, checksum, ipv6, put_u16, put_u32};
use crate::tuple::V6;

/// Bytes of a frame with an advertisement.
pub const FRAME_LEN: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN + MESSAGE_LEN;

/// The message with the option that carries the link address.
const MESSAGE_LEN: usize = 24 + 8;
const ICMPV6: u8 = 58;
const ADVERTISEMENT: u8 = 136;
/// "Override": receivers replace the link address that they know.
const OVERRIDE: u32 = 1 << 29;
/// The option "target link-layer address", one unit of eight bytes long.
const TARGET_LINK_ADDRESS: [u8; 2] = [2, 1];
/// All nodes, ff02::1, and its link address (RFC 2464 §7).
const ALL_NODES: V6 = V6([0xff02_0000, 0, 0, 1]);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

/// A frame that tells all nodes of the link, unasked, that `target` is at `mac` from now on.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |     Type      |     Code      |          Checksum             |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |R|S|O|                     Reserved                            |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                       Target Address (16 bytes)               |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
pub fn advertisement(target: V6, mac: MacAddr) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&ALL_NODES_MAC.0);
    frame[6..12].copy_from_slice(&mac.0);
    put_u16(&mut frame, 12, ethertype::IPV6);
    let (header, message) = frame[ethernet::HEADER_LEN..].split_at_mut(ipv6::HEADER_LEN);
    header[0] = 6 << 4;
    put_u16(header, 4, MESSAGE_LEN as u16);
    // Receivers take nothing less than 255: it cannot have come from another link.
    (header[6], header[7]) = (ICMPV6, 255);
    target.put(header, V6::SOURCE);
    ALL_NODES.put(header, V6::SOURCE + V6::LEN);
    message[0] = ADVERTISEMENT;
    put_u32(message, 4, OVERRIDE);
    target.put(message, 8);
    message[24..26].copy_from_slice(&TARGET_LINK_ADDRESS);
    message[26..].copy_from_slice(&mac.0);
    let sum = checksum::transport(target, ALL_NODES, ICMPV6, message);
    put_u16(message, 2, sum);
    frame
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;
    use crate::tuple::Address;

    #[test]
    fn an_advertisement_is_what_another_library_reads() {
        let (target, mac) = (V6([0x2001_0db8, 0, 0, 0x10]), MacAddr([2, 0, 0, 0, 0, 7]));
        let frame = advertisement(target, mac);
        let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv6(ip)) = sliced.net else { panic!("IPv6") };
        let header = ip.header();
        assert_eq!(std::net::IpAddr::V6(header.source_addr()), target.to_ip());
        assert_eq!(header.destination_addr(), std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
        assert_eq!(header.hop_limit(), 255);
        let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("ICMPv6") };
        assert!(icmp.is_checksum_valid(header.source(), header.destination()));
        assert_eq!((icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8()), (136, 0, [0x20, 0, 0, 0]));
        assert_eq!(icmp.payload()[..16], header.source());
        assert_eq!(icmp.payload()[16..], [2, 1, 2, 0, 0, 0, 0, 7]);
    }
}
