//! ICMP errors of IPv4: RFC 792, RFC 1122 §3.2.2 (when not to), RFC 1812 §4.3 (how much to quote), RFC 1191 §4 (the MTU
//! in them); in Linux `net/ipv4/icmp.c`.

use shunt_engine::Frame;

use super::{Error, QUOTED_MIN, Quoted, Tunnelled};
use crate::classify::Meta;
use crate::emit::{TTL, is_host};
use crate::tuple::{Endpoint, Protocol, Tuple, V4};
use crate::wire::icmpv4::{self, kind, unreachable};
use crate::wire::{get_u16, ipip, ipv4};

/// Type, code and rest of the ICMP header.
const fn type_code_rest(error: Error) -> (u8, u8, u32) {
    match error {
        Error::TimeExceeded => (kind::TIME_EXCEEDED, 0, 0),
        Error::TooBig { mtu } => (kind::UNREACHABLE, unreachable::FRAGMENTATION_NEEDED, mtu as u32),
        Error::PortUnreachable => (kind::UNREACHABLE, unreachable::PORT, 0),
        Error::HostUnreachable => (kind::UNREACHABLE, unreachable::HOST, 0),
    }
}

/// Longest ICMP error, IP header included (RFC 1812 §4.3.2.3).
const ERROR_LEN_MAX: usize = 576;
/// Bytes of a packet that every link carries whole (RFC 791 §3.2).
pub const MTU_MIN: u16 = 68;
/// Internetwork control, as Linux marks its errors (RFC 1812 §4.3.2.5).
const TOS: u8 = 0xc0;

/// Whether an ICMP error may be sent about `packet` (an IPv4 packet without link header), RFC 1122 §3.2.2: never about
/// an ICMP error, a later fragment, or a packet that is not from one host to one host.
pub fn may_answer(packet: &[u8]) -> bool {
    let Ok(ip) = ipv4::Packet::new_header(packet) else { return false };
    if ip.fragment_offset() != 0 || !is_host(ip.src()) || !is_host(ip.dst()) {
        return false;
    }
    if ip.protocol() != ipv4::protocol::ICMP {
        return true;
    }
    ip.payload().first().is_some_and(|&kind| !icmpv4::is_error(kind))
}

/// Writes an ICMP error from `source` about `packet` (an IPv4 packet without link header) into an empty frame, without
/// link header. Returns false when it does not fit or `packet` is none.
#[must_use]
pub fn error(out: &mut Frame, error: Error, source: V4, packet: &[u8]) -> bool {
    const HEADERS: usize = ipv4::HEADER_LEN + icmpv4::HEADER_LEN;
    let Ok(ip) = ipv4::Packet::new_header(packet) else { return false };
    let end = packet.len().min(usize::from(ip.total_len())).min(ERROR_LEN_MAX - HEADERS);
    let quote = &packet[..end];
    if !out.set_len(HEADERS + quote.len()) {
        return false;
    }
    let header = ipv4::Repr {
        tos: TOS,
        payload_len: (icmpv4::HEADER_LEN + quote.len()) as u16,
        id: 0,
        dont_fragment: true,
        ttl: TTL,
        protocol: ipv4::protocol::ICMP,
        src: source,
        dst: ip.src(),
    };
    let (head, body) = out.data_mut().split_at_mut(ipv4::HEADER_LEN);
    head.copy_from_slice(&header.emit());
    body[icmpv4::HEADER_LEN..].copy_from_slice(quote);
    let mut message = icmpv4::Packet::new_checked(body).expect("the frame was just made that long");
    let (kind, code, rest) = type_code_rest(error);
    message.set_kind(kind, code);
    message.set_rest(rest);
    message.fill_checksum();
    true
}

/// Reads the packet that the ICMP error in `frame` is about. `None` when that is not TCP or UDP, is a later fragment, or
/// is not quoted far enough to tell.
pub fn quoted(frame: &[u8], meta: &Meta) -> Option<Quoted<V4>> {
    let (l4, end) = (usize::from(meta.l4), usize::from(meta.end));
    let message = icmpv4::Packet::new_checked(frame.get(l4..end)?).ok()?;
    if !icmpv4::is_error(message.kind()) {
        return None;
    }
    let (tuple, header_len) = tuple(message.payload())?;
    let inner_l3 = l4 + icmpv4::HEADER_LEN;
    Some(Quoted { tuple, l3: inner_l3, l4: inner_l3 + header_len })
}

/// Addresses and ports of the beginning of a packet, and the length of its IP header.
fn tuple(packet: &[u8]) -> Option<(Tuple<V4>, usize)> {
    let ip = ipv4::Packet::new_header(packet).ok()?;
    let protocol = Protocol::from_number(ip.protocol())?;
    let header = packet.get(ip.header_len()..).filter(|header| header.len() >= QUOTED_MIN)?;
    if ip.fragment_offset() != 0 {
        return None;
    }
    let tuple = Tuple {
        src: Endpoint::new(ip.src(), get_u16(header, 0)),
        dst: Endpoint::new(ip.dst(), get_u16(header, 2)),
        protocol,
    };
    Some((tuple, ip.header_len()))
}

/// Reads the packet in a tunnel that the ICMP error in `frame` is about. `None` when it is about none, or quotes too
/// little of it, or says nothing that concerns the packet's sender.
pub fn tunnelled(frame: &[u8], meta: &Meta) -> Option<Tunnelled<V4>> {
    let (l4, end) = (usize::from(meta.l4), usize::from(meta.end));
    let message = icmpv4::Packet::new_checked(frame.get(l4..end)?).ok()?;
    let outer = ipv4::Packet::new_header(message.payload()).ok()?;
    if outer.protocol() != ipv4::protocol::IPIP || outer.fragment_offset() != 0 {
        return None;
    }
    let (tuple, _) = tuple(message.payload().get(outer.header_len()..)?)?;
    let error = match (message.kind(), message.code()) {
        (kind::UNREACHABLE, unreachable::FRAGMENTATION_NEEDED) => {
            // The upper half of the field is unused. Routers older than RFC 1191 leave it all zero.
            let mtu = (message.rest() as u16).checked_sub(ipip::OVERHEAD).filter(|&mtu| mtu >= MTU_MIN)?;
            Error::TooBig { mtu }
        }
        (kind::UNREACHABLE | kind::TIME_EXCEEDED, _) => Error::HostUnreachable,
        _ => return None,
    };
    let at = l4 + icmpv4::HEADER_LEN + outer.header_len();
    Some(Tunnelled { server: outer.dst(), tuple, at, error, from: outer.src(), narrow: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::tests::{checksums_are_right, frame};
    use crate::forward::{fullnat, nat};
    use crate::icmp::{Outer, translate};
    use crate::wire::builder::PacketBuilder;
    use crate::wire::put_u16;
    use proptest::prelude::*;

    const CLIENT: Endpoint<V4> = Endpoint::new(V4(0xc633_6407), 40_000);
    const VIP: Endpoint<V4> = Endpoint::new(V4(0xcb00_710a), 80);
    const LOCAL: Endpoint<V4> = Endpoint::new(V4(0x0a00_00c8), 50_001);
    const SERVER: Endpoint<V4> = Endpoint::new(V4(0x0a00_000b), 8080);
    const ROUTER: V4 = V4(0xc0a8_0101);

    fn written(error: Error, packet: &[u8]) -> Option<Vec<u8>> {
        let (mut frame, mut pool) = frame(&[]);
        let fits = super::error(&mut frame, error, ROUTER, packet);
        let bytes = frame.data().to_vec();
        pool.free(frame);
        fits.then_some(bytes)
    }

    fn text(address: V4) -> String {
        format!("{address:?}")
    }

    /// An ICMP error in an Ethernet frame, quoting the first `quote` bytes of `packet`, with what classify says of it.
    fn about(packet: &[u8], src: V4, dst: V4, quote: usize) -> (Vec<u8>, Meta) {
        let quote = &packet[..packet.len().min(quote)];
        let error = PacketBuilder::icmp(&text(src), &text(dst), 3, 1).payload(quote);
        let frame = error.ttl(60).build();
        let meta = Meta { l3: 14, l4: 34, end: frame.len() as u16, ..Meta::default() };
        (frame, meta)
    }

    fn data(protocol: Protocol, src: Endpoint<V4>, dst: Endpoint<V4>, ttl: u8) -> Vec<u8> {
        let packet = PacketBuilder::tuple(&Tuple { src, dst, protocol });
        packet.payload(*b"some data that is long enough").ttl(ttl).build_ip()
    }

    #[test]
    fn an_error_tells_type_code_and_mtu_and_quotes_the_packet() {
        let packet = data(Protocol::Tcp, CLIENT, VIP, 1);
        for (error, kind, code, rest) in [
            (Error::TimeExceeded, 11, 0, 0),
            (Error::TooBig { mtu: 1480 }, 3, 4, 1480),
            (Error::PortUnreachable, 3, 3, 0),
            (Error::HostUnreachable, 3, 1, 0),
        ] {
            let expected = PacketBuilder::icmp(&text(ROUTER), &text(CLIENT.address), kind, code);
            let expected = expected.icmp_rest(rest).tos(0xc0).id(0).dont_fragment().payload(&packet[..]);
            assert_eq!(written(error, &packet).unwrap(), expected.build_ip());
        }
    }

    #[test]
    fn a_long_packet_is_quoted_as_far_as_576_bytes_go() {
        let packet = PacketBuilder::udp("198.51.100.7:1", "203.0.113.10:2").payload(vec![7; 1400]).build_ip();
        let bytes = written(Error::TimeExceeded, &packet).unwrap();
        assert_eq!((bytes.len(), &bytes[28..]), (576, &packet[..548]));
        assert_eq!(checksums_are_right(&bytes), (true, true));
    }

    #[test]
    fn padding_behind_the_packet_is_not_quoted() {
        let mut packet = data(Protocol::Udp, CLIENT, VIP, 1);
        let len = packet.len();
        packet.extend([0xee; 9]);
        assert_eq!(written(Error::TimeExceeded, &packet).unwrap().len(), 28 + len);
    }

    #[test]
    fn errors_are_about_single_hosts_first_fragments_and_no_errors() {
        let packet = |src, dst| PacketBuilder::udp(src, dst).payload(*b"x");
        let usual = packet("198.51.100.7:1", "203.0.113.10:2");
        assert!(may_answer(&usual.build_ip()));
        assert!(may_answer(&usual.clone().more_fragments().build_ip()));
        assert!(!may_answer(&usual.fragment_offset(8).build_ip()), "a later fragment");
        for source in ["0.0.0.0:1", "127.0.0.1:1", "224.0.0.1:1", "255.255.255.255:1", "240.0.0.1:1"] {
            assert!(!may_answer(&packet(source, "203.0.113.10:2").build_ip()), "from {source}");
            assert!(!may_answer(&packet("198.51.100.7:1", source).build_ip()), "to {source}");
        }
        let icmp = |kind| PacketBuilder::icmp("198.51.100.7", "203.0.113.10", kind, 0).build_ip();
        let answered: Vec<u8> = (0..20).filter(|&kind| may_answer(&icmp(kind))).collect();
        assert!([3, 4, 5, 11, 12].iter().all(|kind| !answered.contains(kind)));
        assert!(answered.contains(&8));
        assert!(!may_answer(&icmp(8)[..20]), "an ICMP message of unknown type");
        assert!(!may_answer(b"no packet"));
    }

    #[test]
    fn the_quoted_packet_is_read_as_it_was_sent() {
        let options = PacketBuilder::udp("198.51.100.7:40000", "203.0.113.10:80").ip_options(&[1; 4]);
        for (packet, protocol) in [
            (data(Protocol::Tcp, CLIENT, VIP, 1), Protocol::Tcp),
            (data(Protocol::Udp, CLIENT, VIP, 1), Protocol::Udp),
            (options.build_ip(), Protocol::Udp),
        ] {
            let (frame, meta) = about(&packet, ROUTER, CLIENT.address, 32);
            let tuple = quoted(&frame, &meta).unwrap().tuple;
            assert_eq!(tuple, Tuple { src: CLIENT, dst: VIP, protocol });
        }
    }

    #[test]
    fn of_an_error_about_a_tunnel_the_packet_inside_is_read() {
        let inside = data(Protocol::Tcp, CLIENT, VIP, 60);
        let outer = PacketBuilder::raw("10.0.0.1", "10.0.0.14", 4).payload(inside.clone());
        let read = |outer: &PacketBuilder, (kind, code, mtu), quote: usize| {
            let message = PacketBuilder::icmp("10.0.0.99", "10.0.0.1", kind, code).icmp_rest(mtu);
            let frame = message.payload(&outer.build_ip()[..quote]).build();
            let meta = Meta { l3: 14, l4: 34, end: frame.len() as u16, ..Meta::default() };
            tunnelled(&frame, &meta).map(|found| {
                let tuple = Tuple { src: CLIENT, dst: VIP, protocol: Protocol::Tcp };
                assert_eq!((found.server, found.tuple), (V4(0x0a00_000e), tuple));
                assert!(inside.starts_with(&frame[found.at..]));
                found.error
            })
        };
        assert_eq!(read(&outer, (3, 4, 1400), 60), Some(Error::TooBig { mtu: 1380 }));
        assert_eq!(read(&outer, (3, 4, 0xffff_0000 | 1400), 60), Some(Error::TooBig { mtu: 1380 }));
        assert_eq!(read(&outer, (3, 4, 0), 60), None, "a router that does not say what fits");
        assert_eq!(read(&outer, (3, 4, 87), 60), None, "less than every link carries");
        assert_eq!(read(&outer, (3, 2, 0), 60), Some(Error::HostUnreachable), "the server has no tunnel");
        assert_eq!(
            read(&outer, (11, 0, 0), 48),
            Some(Error::HostUnreachable),
            "no more than ports are needed"
        );
        assert_eq!(read(&outer, (12, 0, 0), 60), None, "our header, not the client's");
        (0..48).for_each(|quote| assert_eq!(read(&outer, (3, 1, 0), quote), None, "{quote} bytes"));
        let later = outer.clone().fragment_offset(8);
        assert_eq!(read(&later, (3, 1, 0), 60), None, "a later fragment of the tunnel's");
        let other = PacketBuilder::raw("10.0.0.1", "10.0.0.14", 47).payload(inside.clone());
        assert_eq!(read(&other, (3, 1, 0), 60), None, "another kind of tunnel");
    }

    #[test]
    fn a_quote_without_ports_is_none() {
        let read = |packet: &PacketBuilder, quote| {
            let (frame, meta) = about(&packet.build_ip(), ROUTER, CLIENT.address, quote);
            quoted(&frame, &meta)
        };
        let packet = PacketBuilder::tcp("198.51.100.7:40000", "203.0.113.10:80");
        assert!(read(&packet, 28).is_some());
        (0..28).for_each(|quote| assert!(read(&packet, quote).is_none(), "{quote} bytes"));
        assert!(read(&packet.clone().fragment_offset(8), 40).is_none());
        assert!(read(&PacketBuilder::icmp("198.51.100.7", "203.0.113.10", 8, 0), 28).is_none());
        let echo = PacketBuilder::icmp("192.0.2.1", "192.0.2.2", 8, 0).payload(packet.build_ip()).build();
        let meta = Meta { l3: 14, l4: 34, end: echo.len() as u16, ..Meta::default() };
        assert!(quoted(&echo, &meta).is_none(), "no error");
    }

    proptest! {
        #[test]
        fn an_error_about_a_forwarded_packet_becomes_one_about_the_packet_that_was_sent(
            udp: bool, quote in 28usize..80, mode in 0u8..2, to_client: bool, from_router: bool,
        ) {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            // Half a quoted TCP checksum cannot be made to follow, and nobody can check it.
            prop_assume!(udp || quote != 37);
            // What was sent by whom, and how it looked after us; the TTL in a quote is that on the way.
            let (sent, src, dst) = if to_client { (SERVER, SERVER, LOCAL) } else { (CLIENT, CLIENT, VIP) };
            let seen_by_sender = match (to_client, mode) {
                (true, 1) => data(protocol, SERVER, CLIENT, 9),
                _ => data(protocol, src, dst, 9),
            };
            let mut forwarded = seen_by_sender.clone();
            match (to_client, mode) {
                (true, 0) => fullnat::reply(&mut forwarded, 0, 20, protocol, VIP, CLIENT),
                (true, _) => nat::reply(&mut forwarded, 0, 20, protocol, VIP),
                (false, 0) => fullnat::request(&mut forwarded, 0, 20, protocol, LOCAL, SERVER),
                (false, _) => nat::request(&mut forwarded, 0, 20, protocol, SERVER),
            }
            let was = ipv4::Packet::new_checked(&forwarded).unwrap();
            let (was_src, was_dst) = (was.src(), was.dst());
            let outer_src = if from_router { ROUTER } else { was_dst };
            let (mut frame, meta) = about(&forwarded, outer_src, was_src, quote);
            let quoted = quoted(&frame, &meta).unwrap();
            let (new_src, new_dst) = match (to_client, mode) {
                (true, 1) => (SERVER, CLIENT),
                _ => (src, dst),
            };
            let new_outer = Outer { src: (!from_router).then_some(new_dst.address), dst: sent.address };
            translate(&mut frame, &meta, &quoted, new_outer, new_src, new_dst);

            let mut expected_quote = seen_by_sender;
            expected_quote[8] -= 1;
            ipv4::Packet::new_checked(&mut expected_quote).unwrap().fill_checksum();
            let expected_src = if from_router { ROUTER } else { new_dst.address };
            let (mut expected, _) = about(&expected_quote, expected_src, sent.address, quote);
            crate::forward::dr::request::<V4>(&mut expected, 14);
            prop_assert_eq!(frame, expected);
        }

        #[test]
        fn a_wrong_icmp_checksum_stays_wrong(wrong: u16, udp: bool) {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let (mut frame, meta) = about(&data(protocol, LOCAL, SERVER, 9), ROUTER, LOCAL.address, 64);
            prop_assume!(wrong % 0xffff != get_u16(&frame, 36) % 0xffff);
            put_u16(&mut frame, 36, wrong);
            let quoted = quoted(&frame, &meta).unwrap();
            translate(&mut frame, &meta, &quoted, Outer { src: None, dst: CLIENT.address }, CLIENT, VIP);
            prop_assert_eq!(checksums_are_right(&frame[14..]), (true, false));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), l4 in 0u16..60) {
            let meta = Meta { l4, end: bytes.len() as u16, ..Meta::default() };
            let _ = quoted(&bytes, &meta);
            let _ = may_answer(&bytes);
            let _ = written(Error::TimeExceeded, &bytes);
        }
    }
}
