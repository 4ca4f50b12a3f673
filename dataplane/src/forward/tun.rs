//! `mode = "tun"`: the packet goes to the server inside another one (IP in IP, RFC 2003; IPv6 in IPv6, RFC 2473), over any number of hops. The
//! server has the VIP on its tunnel device and answers the client directly.

use shunt_engine::Frame;

use super::NoHeadroom;
use crate::tuple::{V4, V6};
use crate::wire::ipv4::Packet;
use crate::wire::{ipip, ipv6};

/// Puts an IPv4 header from `src` to `dst` in front of the IPv4 packet behind `l2_len` bytes of link header, which go;
/// so does Ethernet padding behind the packet. TTL (already decremented), TOS and "don't fragment" are the inner
/// packet's. `id` is to be unique for a while, since the outer packet may be fragmented when the inner one allows it.
///
/// # Errors
/// [`NoHeadroom`], also for bytes that are no IPv4 packet; the frame is then unchanged.
#[inline]
pub fn encapsulate(frame: &mut Frame, l2_len: usize, src: V4, dst: V4, id: u16) -> Result<(), NoHeadroom> {
    let inner = frame.data().get(l2_len..).ok_or(NoHeadroom)?;
    let inner = Packet::new_checked(inner).map_err(|_| NoHeadroom)?;
    let len = usize::from(inner.total_len());
    let outer = ipip::outer(&inner, src, dst, id).emit();
    put_in_front(frame, l2_len, len, &outer)
}

/// Puts an IPv6 header from `src` to `dst` in front of the IPv6 packet behind `l2_len` bytes of link header, as
/// [`encapsulate`] does for IPv4 (RFC 2473 §3.1). Hop limit (already decremented), traffic class and flow label are the
/// inner packet's, so that routers that balance by the label keep a flow together. There is no option that limits
/// further encapsulation.
///
/// # Errors
/// [`NoHeadroom`], also for bytes that are no IPv6 packet; the frame is then unchanged.
#[inline]
pub fn encapsulate_v6(frame: &mut Frame, l2_len: usize, src: V6, dst: V6) -> Result<(), NoHeadroom> {
    let inner = frame.data().get(l2_len..).ok_or(NoHeadroom)?;
    let inner = ipv6::Packet::new_checked(inner).map_err(|_| NoHeadroom)?;
    let len = ipv6::HEADER_LEN + inner.payload().len();
    let outer = ipv6::Repr {
        traffic_class: inner.traffic_class(),
        flow_label: inner.flow_label(),
        payload_len: u16::try_from(len).map_err(|_| NoHeadroom)?,
        next_header: ipv6::protocol::IPV6,
        hop_limit: inner.hop_limit(),
        src,
        dst,
    };
    put_in_front(frame, l2_len, len, &outer.emit())
}

/// Replaces the link header in front of a packet of `len` bytes by `outer`, and cuts what follows the packet.
#[inline]
fn put_in_front<const N: usize>(
    frame: &mut Frame,
    l2_len: usize,
    len: usize,
    outer: &[u8; N],
) -> Result<(), NoHeadroom> {
    if frame.headroom() + l2_len < N || !frame.set_len(l2_len + len) {
        return Err(NoHeadroom);
    }
    frame.pull_front(l2_len);
    if !frame.push_front(N) {
        return Err(NoHeadroom);
    }
    frame.data_mut()[..N].copy_from_slice(outer);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::tests::{checksums_are_right, frame};
    use crate::wire::builder::PacketBuilder;

    const SRC: V4 = V4(0x0a00_0001);
    const DST: V4 = V4(0x0a00_000b);

    #[test]
    fn the_packet_travels_whole_inside_another_without_link_header_and_padding() {
        let packet = PacketBuilder::tcp("198.51.100.7:40000", "203.0.113.10:80").ttl(33).tos(0x2e);
        for packet in [packet.clone(), packet.clone().dont_fragment(), packet.vlan(5)] {
            let inner = packet.build_ip();
            let bytes = packet.padded().build();
            let l2_len = if bytes[12] == 0x81 { 18 } else { 14 };
            assert_eq!(bytes.len(), 60, "the frame has padding");
            let (mut frame, mut pool) = frame(&bytes);
            encapsulate(&mut frame, l2_len, SRC, DST, 77).unwrap();
            let outer = Packet::new_checked(frame.data()).unwrap();
            assert_eq!(outer.payload(), inner);
            let whole = Packet::new_checked(&inner).unwrap();
            assert_eq!((outer.src(), outer.dst(), outer.id()), (SRC, DST, 77));
            assert_eq!((outer.ttl(), outer.tos()), (33, 0x2e));
            assert_eq!(outer.flags_offset(), whole.flags_offset());
            assert_eq!(usize::from(outer.total_len()), frame.len());
            assert!(outer.checksum_is_right());
            assert_eq!(checksums_are_right(outer.payload()), (true, true));
            pool.free(frame);
        }
    }

    #[test]
    fn an_ipv6_packet_travels_in_ipv6_with_its_class_label_and_hop_limit() {
        let packet = PacketBuilder::tcp("[2001:db8:64::7]:40000", "[2001:db8:cb::10]:80").ttl(33).tos(0x2e);
        let (src, dst) = (V6([0xfd00_0000, 0, 0, 1]), V6([0xfd00_0000, 0, 0, 0x14]));
        for packet in [packet.clone(), packet.vlan(5).extension(44, [0, 0, 1, 0, 0, 0, 7])] {
            let mut bytes = packet.build();
            let l2_len = if bytes[12] == 0x81 { 18 } else { 14 };
            let mut inner = packet.build_ip();
            for packet in [&mut bytes[l2_len..], &mut inner[..]] {
                ipv6::Packet::new_checked(packet).unwrap().set_class_and_label(0x2e, 0xabcde);
            }
            bytes.extend([0; 7]);
            let (mut frame, mut pool) = frame(&bytes);
            encapsulate_v6(&mut frame, l2_len, src, dst).unwrap();
            let outer = ipv6::Packet::new_checked(frame.data()).unwrap();
            assert_eq!((outer.src(), outer.dst(), outer.next_header()), (src, dst, 41));
            assert_eq!((outer.hop_limit(), outer.traffic_class(), outer.flow_label()), (33, 0x2e, 0xabcde));
            assert_eq!((outer.payload(), frame.len()), (&inner[..], 40 + inner.len()));
            pool.free(frame);
        }
    }

    #[test]
    fn an_ipv6_packet_without_room_for_another_header_is_unchanged() {
        let bytes = PacketBuilder::udp("[2001:db8::1]:1", "[2001:db8::2]:2").build();
        let (mut frame, mut pool) = frame(&bytes);
        let room = frame.headroom();
        assert!(frame.push_front(room - 25) && frame.set_len(bytes.len()));
        frame.data_mut().copy_from_slice(&bytes);
        assert_eq!(encapsulate_v6(&mut frame, 14, V6([1; 4]), V6([2; 4])), Err(NoHeadroom));
        assert_eq!(
            encapsulate_v6(&mut frame, 30, V6([1; 4]), V6([2; 4])),
            Err(NoHeadroom),
            "no packet there"
        );
        assert_eq!(frame.data(), bytes);
        pool.free(frame);
    }

    #[test]
    fn what_is_no_packet_is_refused_and_unchanged() {
        let mut bytes = PacketBuilder::udp("192.0.2.1:1", "192.0.2.2:2").build();
        bytes[14] = 0x65;
        let (mut frame, mut pool) = frame(&bytes);
        for l2_len in [14, 30, 4000] {
            assert_eq!(encapsulate(&mut frame, l2_len, SRC, DST, 0), Err(NoHeadroom));
        }
        assert_eq!(frame.data(), bytes);
        pool.free(frame);
    }
}
