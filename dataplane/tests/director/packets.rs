//! Cutting packets up, putting them together again, and looking into them.

use shunt_dataplane::conn::Conn;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Endpoint, Protocol, Tuple, V4};
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::{checksum, ipip, ipv4, tcp, udp};

use crate::lab::{Out, SERVERS, To, packet_in, server_address, server_mac};

/// Some bytes that are not all the same.
pub(crate) fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

/// A packet with a payload from `src` to `dst`.
pub(crate) fn data(protocol: Protocol, src: Endpoint<V4>, dst: Endpoint<V4>, len: usize) -> PacketBuilder {
    PacketBuilder::tuple(&Tuple { src, dst, protocol }).payload(payload(len))
}

/// Cuts an IPv4 packet without options into parts of at most `size` bytes of payload each, a multiple of 8.
pub(crate) fn cut(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let whole = ipv4::Packet::new_checked(packet).unwrap();
    let count = whole.payload().len().div_ceil(size);
    let part = |(index, payload): (usize, &[u8])| {
        let mut part = [whole.header(), payload].concat();
        let len = part.len() as u16;
        let mut header = ipv4::Packet::new_header(&mut part).unwrap();
        header.set_total_len(len);
        let more = if index + 1 < count { ipv4::MORE_FRAGMENTS } else { 0 };
        header.set_flags_offset(more | (index * size / 8) as u16);
        header.fill_checksum();
        part
    };
    whole.payload().chunks(size).enumerate().map(part).collect()
}

/// Puts fragments, in any order, together. All headers must be right, and alike but for offset, length and checksum.
pub(crate) fn reassembled(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut parts: Vec<_> = parts.iter().map(|part| ipv4::Packet::new_checked(&part[..]).unwrap()).collect();
    parts.sort_by_key(|part| part.fragment_offset());
    let mut whole = parts[0].header().to_vec();
    let mut payload: Vec<u8> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        assert!(part.checksum_is_right(), "{part}");
        assert_eq!(usize::from(part.fragment_offset()), payload.len(), "a hole or an overlap at {part}");
        assert_eq!(part.more_fragments(), index + 1 < parts.len(), "{part}");
        let same = |part: &ipv4::Packet<&[u8]>| {
            (part.src(), part.dst(), part.id(), part.ttl(), part.tos(), part.protocol())
        };
        assert_eq!(same(part), same(&parts[0]));
        payload.extend(part.payload());
    }
    let len = (whole.len() + payload.len()) as u16;
    let mut header = ipv4::Packet::new_header(&mut whole).unwrap();
    header.set_total_len(len);
    header.set_flags_offset(0);
    header.fill_checksum();
    whole.extend(payload);
    check(&whole);
    whole
}

/// Asserts that a whole packet's checksums are right, those of what it carries included.
pub(crate) fn check(packet: &[u8]) {
    let ip = ipv4::Packet::new_checked(packet).unwrap();
    assert!(ip.checksum_is_right(), "{ip}");
    let (src, dst, body) = (ip.src(), ip.dst(), ip.payload());
    match ip.protocol() {
        1 => assert_eq!(checksum::of(body), 0, "{ip}"),
        4 => check(body),
        6 => assert!(tcp::Packet::new_checked(body).unwrap().checksum_is_right(src, dst), "{ip}"),
        17 => assert!(udp::Packet::new_checked(body).unwrap().checksum_is_right(src, dst), "{ip}"),
        other => panic!("protocol {other}"),
    }
}

/// The packets that went to the server of `conn`, out of their tunnel if it has one.
pub(crate) fn at_server(out: &[Out], conn: &Conn<V4>, mtu: u16) -> Vec<Vec<u8>> {
    let slot = conn.server_id.slot as usize;
    let packet = |out: &Out| {
        assert_eq!((out.to, &out.bytes[..6]), (To::Port(SERVERS), &server_mac(slot).0[..]));
        let packet = packet_in(&out.bytes);
        assert!(packet.len() <= usize::from(mtu), "{} bytes do not fit {mtu}", packet.len());
        if conn.mode() != Mode::Tun {
            return packet.to_vec();
        }
        let outer = ipv4::Packet::new_checked(packet).unwrap();
        assert_eq!((outer.dst(), outer.checksum_is_right()), (server_address(slot), true));
        let inner = &ipip::inner(&outer).unwrap();
        packet[20..][..usize::from(inner.total_len())].to_vec()
    };
    out.iter().map(packet).collect()
}

/// What a client's packet looks like to the server of `conn`, and the reverse: source and destination.
pub(crate) fn ends_at_server(conn: &Conn<V4>) -> (Endpoint<V4>, Endpoint<V4>) {
    match conn.mode() {
        Mode::Fullnat | Mode::Nat => (conn.peer, conn.server),
        Mode::Dr | Mode::Tun => (conn.client, conn.vip),
    }
}
