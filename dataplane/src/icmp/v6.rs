//! ICMP errors of IPv6: RFC 4443 (§2.4 says when not to, and how much to quote); in Linux `net/ipv6/icmp.c`.

use shunt_engine::Frame;

use super::{Error, QUOTED_MIN, Quoted, Tunnelled};
use crate::classify::Meta;
use crate::emit::{TTL, is_host_v6};
use crate::tuple::{Endpoint, Protocol, Tuple, V6};
use crate::wire::extension::walk;
use crate::wire::icmpv6::{CHECKSUM, HEADER_LEN, is_error, kind, unreachable};
use crate::wire::{checksum, get_u16, get_u32, ipv6, put_u16, put_u32};

/// Type, code and rest of the ICMP header.
const fn type_code_rest(error: Error) -> (u8, u8, u32) {
    match error {
        Error::TimeExceeded => (kind::TIME_EXCEEDED, 0, 0),
        Error::TooBig { mtu } => (kind::TOO_BIG, 0, mtu as u32),
        Error::PortUnreachable => (kind::UNREACHABLE, unreachable::PORT, 0),
        Error::HostUnreachable => (kind::UNREACHABLE, unreachable::ADDRESS, 0),
    }
}

/// Bytes of a packet that every link carries whole (RFC 8200 §5).
pub const MTU_MIN: u16 = 1280;
/// Longest ICMP error, IPv6 header included (RFC 4443 §2.4 (c)).
const ERROR_LEN_MAX: usize = MTU_MIN as usize;

/// Whether an ICMP error may be sent about `packet` (an IPv6 packet without link header), RFC 4443 §2.4 (e): never about
/// an ICMP error or redirect, or a packet that is not from one host to one host; nor about a later fragment, as in IPv4.
pub fn may_answer(packet: &[u8]) -> bool {
    let Ok(ip) = ipv6::Packet::new_checked(packet) else { return false };
    let Ok(upper) = walk(packet) else { return false };
    if upper.fragment.is_some_and(|fragment| fragment.offset != 0)
        || !is_host_v6(ip.src())
        || !is_host_v6(ip.dst())
    {
        return false;
    }
    if upper.protocol != ipv6::protocol::ICMPV6 {
        return true;
    }
    packet.get(upper.at).is_some_and(|&number| !is_error(number) && number != kind::REDIRECT)
}

/// Writes an ICMP error from `source` about `packet` (an IPv6 packet without link header) into an empty frame, without
/// link header. Returns false when it does not fit or `packet` is none.
#[must_use]
pub fn error(out: &mut Frame, error: Error, source: V6, packet: &[u8]) -> bool {
    const HEADERS: usize = ipv6::HEADER_LEN + HEADER_LEN;
    let Ok(ip) = ipv6::Packet::new_header(packet) else { return false };
    let end = (ipv6::HEADER_LEN + ip.payload().len()).min(ERROR_LEN_MAX - HEADERS);
    let quote = &packet[..end];
    if !out.set_len(HEADERS + quote.len()) {
        return false;
    }
    let ip_header = ipv6::Repr {
        traffic_class: 0,
        flow_label: 0,
        payload_len: (HEADER_LEN + quote.len()) as u16,
        next_header: ipv6::protocol::ICMPV6,
        hop_limit: TTL,
        src: source,
        dst: ip.src(),
    };
    let (head, body) = out.data_mut().split_at_mut(ipv6::HEADER_LEN);
    head.copy_from_slice(&ip_header.emit());
    body[HEADER_LEN..].copy_from_slice(quote);
    let (kind, code, rest) = type_code_rest(error);
    body[..4].copy_from_slice(&[kind, code, 0, 0]);
    put_u32(body, 4, rest);
    let sum = checksum::transport(ip_header.src, ip_header.dst, ipv6::protocol::ICMPV6, body);
    put_u16(body, CHECKSUM, sum);
    true
}

/// Reads the packet that the ICMP error in `frame` is about. `None` when that is not TCP or UDP, is a later fragment, or
/// is not quoted far enough to tell.
pub fn quoted(frame: &[u8], meta: &Meta) -> Option<Quoted<V6>> {
    let (l4, end) = (usize::from(meta.l4), usize::from(meta.end));
    let message = frame.get(l4..end)?;
    let (&kind, quote) = (message.first()?, message.get(HEADER_LEN..)?);
    let (tuple, transport) = tuple(quote).filter(|_| is_error(kind))?;
    Some(Quoted { tuple, l3: l4 + HEADER_LEN, l4: l4 + HEADER_LEN + transport })
}

/// Addresses and ports of the beginning of a packet, and the offset of its transport header.
fn tuple(packet: &[u8]) -> Option<(Tuple<V6>, usize)> {
    let ip = ipv6::Packet::new_header(packet).ok()?;
    let upper = walk(packet).ok()?;
    let protocol = Protocol::from_number(upper.protocol)?;
    let header = packet.get(upper.at..).filter(|header| header.len() >= QUOTED_MIN)?;
    if upper.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return None;
    }
    let tuple = Tuple {
        src: Endpoint::new(ip.src(), get_u16(header, 0)),
        dst: Endpoint::new(ip.dst(), get_u16(header, 2)),
        protocol,
    };
    Some((tuple, upper.at))
}

/// Reads the packet in a tunnel that the ICMP error in `frame` is about. `None` when it is about none, or quotes too
/// little of it, or says nothing that concerns the packet's sender. Our tunnels have no extension headers.
pub fn tunnelled(frame: &[u8], meta: &Meta) -> Option<Tunnelled<V6>> {
    let (l4, end) = (usize::from(meta.l4), usize::from(meta.end));
    let message = frame.get(l4..end)?;
    let quote = message.get(HEADER_LEN..)?;
    let outer = ipv6::Packet::new_header(quote).ok()?;
    if outer.next_header() != ipv6::protocol::IPV6 {
        return None;
    }
    let (tuple, _) = tuple(&quote[ipv6::HEADER_LEN..])?;
    let mut narrow = None;
    let error = match message[0] {
        kind::TOO_BIG => {
            let (mtu, overhead) = (get_u32(message, 4), ipv6::HEADER_LEN as u32);
            // RFC 8201 §4: no estimate goes below what every link carries, nor by a packet that would have fitted.
            let way = u16::try_from(mtu).unwrap_or(u16::MAX).max(MTU_MIN);
            let was_longer = ipv6::HEADER_LEN + usize::from(get_u16(quote, 4)) > usize::from(way);
            narrow = (was_longer && way < MTU_MIN + ipv6::HEADER_LEN as u16).then_some(way);
            let inside = u16::try_from(mtu.saturating_sub(overhead)).unwrap_or(u16::MAX);
            Error::TooBig { mtu: inside.max(MTU_MIN) }
        }
        kind::UNREACHABLE | kind::TIME_EXCEEDED => Error::HostUnreachable,
        _ => return None,
    };
    let at = l4 + HEADER_LEN + ipv6::HEADER_LEN;
    Some(Tunnelled { server: outer.dst(), tuple, at, error, from: outer.src(), narrow })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::tests::frame;
    use crate::forward::{dr, fullnat, nat};
    use crate::icmp::{Outer, translate};
    use crate::wire::builder::PacketBuilder;
    use crate::wire::{Family, extension, tcp, udp};
    use proptest::prelude::*;

    const CLIENT: Endpoint<V6> = Endpoint::new(V6([0x2001_0db8, 0x0064_0000, 0, 7]), 40_000);
    const VIP: Endpoint<V6> = Endpoint::new(V6([0x2001_0db8, 0x00cb_0000, 0, 0x10]), 80);
    const LOCAL: Endpoint<V6> = Endpoint::new(V6([0xfd00_0000, 0, 0, 0x200]), 50_001);
    const SERVER: Endpoint<V6> = Endpoint::new(V6([0xfd00_0000, 0, 0, 0x11]), 8080);
    const ROUTER: V6 = V6([0xfd00_0000, 0, 0, 0x99]);

    fn written(error: Error, packet: &[u8]) -> Option<Vec<u8>> {
        let (mut frame, mut pool) = frame(&[]);
        let fits = super::error(&mut frame, error, ROUTER, packet);
        let bytes = frame.data().to_vec();
        pool.free(frame);
        fits.then_some(bytes)
    }

    fn text(address: V6) -> String {
        format!("{address:?}")
    }

    /// An ICMP error in an Ethernet frame, quoting the first `quote` bytes of `packet`, with what classify says of it.
    fn about(packet: &[u8], src: V6, dst: V6, quote: usize) -> (Vec<u8>, Meta) {
        let quote = &packet[..packet.len().min(quote)];
        let frame = PacketBuilder::icmp(&text(src), &text(dst), 1, 0).payload(quote).ttl(60).build();
        let meta = Meta { l3: 14, l4: 54, end: frame.len() as u16, ..Meta::default() };
        (frame, meta)
    }

    fn packet(protocol: Protocol, src: Endpoint<V6>, dst: Endpoint<V6>) -> PacketBuilder {
        PacketBuilder::tuple(&Tuple { src, dst, protocol }).payload(*b"some data that is long enough")
    }

    fn checksum_is_right(packet: &[u8]) -> bool {
        let (src, dst) = (V6::get(packet, 8), V6::get(packet, 24));
        checksum::transport(src, dst, ipv6::protocol::ICMPV6, &packet[ipv6::HEADER_LEN..]) == 0
    }

    #[test]
    fn an_error_tells_type_code_and_mtu_and_quotes_the_packet() {
        let packet = packet(Protocol::Tcp, CLIENT, VIP).ttl(1).build_ip();
        for (error, kind, code, rest) in [
            (Error::TimeExceeded, 3, 0, 0),
            (Error::TooBig { mtu: 1460 }, 2, 0, 1460),
            (Error::PortUnreachable, 1, 4, 0),
            (Error::HostUnreachable, 1, 3, 0),
        ] {
            let expected = PacketBuilder::icmp(&text(ROUTER), &text(CLIENT.address), kind, code);
            assert_eq!(
                written(error, &packet).unwrap(),
                expected.icmp_rest(rest).payload(&packet[..]).build_ip()
            );
        }
    }

    #[test]
    fn a_long_packet_is_quoted_as_far_as_1280_bytes_go_and_padding_is_not() {
        let mut packet = packet(Protocol::Udp, CLIENT, VIP).payload(vec![7; 1400]).build_ip();
        let bytes = written(Error::TimeExceeded, &packet).unwrap();
        assert_eq!((bytes.len(), &bytes[48..]), (1280, &packet[..1232]));
        assert!(checksum_is_right(&bytes));
        packet.truncate(60);
        put_u16(&mut packet, 4, 20);
        packet.extend([0xee; 9]);
        assert_eq!(written(Error::TimeExceeded, &packet).unwrap().len(), 48 + 60);
    }

    #[test]
    fn errors_are_about_single_hosts_first_fragments_and_no_errors() {
        let udp = |src: &str, dst: &str| PacketBuilder::udp(src, dst).payload(*b"x").build_ip();
        assert!(may_answer(&udp("[2001:db8::1]:1", "[2001:db8::2]:2")));
        for other in ["[::]:1", "[::1]:1", "[ff02::1]:1", "[::ffff:192.0.2.1]:1"] {
            assert!(!may_answer(&udp(other, "[2001:db8::2]:2")), "from {other}");
            assert!(!may_answer(&udp("[2001:db8::1]:1", other)), "to {other}");
        }
        let fragment = |offset_more: u8| {
            let header = [0, 0, offset_more, 0, 0, 0, 7];
            packet(Protocol::Udp, CLIENT, VIP).extension(extension::kind::FRAGMENT, header).build_ip()
        };
        assert!(may_answer(&fragment(1)), "a first fragment");
        assert!(!may_answer(&fragment(8)), "a later fragment");
        let icmp = |kind| PacketBuilder::icmp("2001:db8::1", "2001:db8::2", kind, 0).build_ip();
        assert!([0, 1, 2, 3, 4, 100, 127, 137].iter().all(|&kind| !may_answer(&icmp(kind))));
        assert!([128, 129, 135, 136].iter().all(|&kind| may_answer(&icmp(kind))));
        assert!(!may_answer(b"no packet"));
    }

    #[test]
    fn a_quote_without_ports_is_none() {
        let whole = packet(Protocol::Tcp, CLIENT, VIP).extension(60, [0; 7]).build_ip();
        let read = |packet: &[u8], quote| {
            let (frame, meta) = about(packet, ROUTER, CLIENT.address, quote);
            quoted(&frame, &meta).map(|quoted| quoted.tuple)
        };
        assert_eq!(read(&whole, 56), Some(Tuple { src: CLIENT, dst: VIP, protocol: Protocol::Tcp }));
        (0..56).for_each(|quote| assert!(read(&whole, quote).is_none(), "{quote} bytes"));
        let later = packet(Protocol::Udp, CLIENT, VIP).extension(44, [0, 0, 8, 0, 0, 0, 7]).build_ip();
        assert!(read(&later, 80).is_none(), "a later fragment");
        let echo = PacketBuilder::icmp("2001:db8::1", "2001:db8::2", 128, 0).payload(whole).build();
        let meta = Meta { l3: 14, l4: 54, end: echo.len() as u16, ..Meta::default() };
        assert!(quoted(&echo, &meta).is_none(), "no error");
    }

    #[test]
    fn of_an_error_about_a_tunnel_the_packet_inside_is_read() {
        let inside = packet(Protocol::Tcp, CLIENT, VIP).build_ip();
        let outer =
            PacketBuilder::raw("fd00::1", &text(SERVER.address), 41).payload(inside.clone()).build_ip();
        let read = |kind, mtu, quote: usize| {
            let message = PacketBuilder::icmp("fd00::99", "fd00::1", kind, 0).icmp_rest(mtu);
            let frame = message.payload(&outer[..quote]).build();
            let meta = Meta { l3: 14, l4: 54, end: frame.len() as u16, ..Meta::default() };
            tunnelled(&frame, &meta).map(|found| {
                let tuple = Tuple { src: CLIENT, dst: VIP, protocol: Protocol::Tcp };
                assert_eq!((found.server, found.tuple), (SERVER.address, tuple));
                assert!(inside.starts_with(&frame[found.at..]));
                found.error
            })
        };
        assert_eq!(read(2, 1400, outer.len()), Some(Error::TooBig { mtu: 1360 }));
        assert_eq!(
            read(2, 1280, outer.len()),
            Some(Error::TooBig { mtu: 1280 }),
            "no less than every link carries"
        );
        assert_eq!(read(2, 100_000, outer.len()), Some(Error::TooBig { mtu: 65_535 }));
        assert_eq!(read(1, 0, outer.len()), Some(Error::HostUnreachable));
        assert_eq!(read(3, 0, 40 + 40 + 8), Some(Error::HostUnreachable), "no more than ports are needed");
        assert_eq!(read(4, 0, outer.len()), None, "our header, not the client's");
        (0..88).for_each(|quote| assert_eq!(read(1, 0, quote), None, "{quote} bytes"));
    }

    proptest! {
        #[test]
        fn an_error_about_a_forwarded_packet_becomes_one_about_the_packet_that_was_sent(
            udp: bool, quote in 56usize..120, masquerade: bool, to_client: bool, from_router: bool,
        ) {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            // Half a quoted TCP checksum cannot be made to follow, and nobody can check it.
            prop_assume!(udp || quote != 8 + 40 + tcp::CHECKSUM + 1);
            let peer = if masquerade { CLIENT } else { LOCAL };
            let (src, dst) = if to_client { (SERVER, peer) } else { (CLIENT, VIP) };
            let sent = |ttl| packet(protocol, src, dst).extension(60, [0; 7]).ttl(ttl).build_ip();
            let mut forwarded = sent(9);
            let l4 = 48;
            match (to_client, masquerade) {
                (true, false) => fullnat::reply(&mut forwarded, 0, l4, protocol, VIP, CLIENT),
                (true, true) => nat::reply(&mut forwarded, 0, l4, protocol, VIP),
                (false, false) => fullnat::request(&mut forwarded, 0, l4, protocol, LOCAL, SERVER),
                (false, true) => nat::request(&mut forwarded, 0, l4, protocol, SERVER),
            }
            let (was_src, was_dst) = (V6::get(&forwarded, 8), V6::get(&forwarded, 24));
            let (mut frame, meta) = about(&forwarded, if from_router { ROUTER } else { was_dst }, was_src, quote);
            let quoted = quoted(&frame, &meta).unwrap();
            let outer = Outer { src: (!from_router).then_some(dst.address), dst: src.address };
            translate(&mut frame, &meta, &quoted, outer, src, dst);

            let expected_src = if from_router { ROUTER } else { dst.address };
            let (mut expected, _) = about(&sent(8), expected_src, src.address, quote);
            dr::request::<V6>(&mut expected, 14);
            // A quote too short for its checksum keeps the right one's absence, and the message's sum follows.
            prop_assert_eq!(&frame, &expected);
            prop_assert!(checksum_is_right(&frame[14..]));
        }

        #[test]
        fn a_wrong_checksum_stays_wrong(wrong: u16, udp: bool) {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let (mut frame, meta) = about(&packet(protocol, LOCAL, SERVER).build_ip(), ROUTER, LOCAL.address, 90);
            let field = 54 + CHECKSUM;
            prop_assume!(wrong % 0xffff != get_u16(&frame, field) % 0xffff);
            put_u16(&mut frame, field, wrong);
            let quoted = quoted(&frame, &meta).unwrap();
            translate(&mut frame, &meta, &quoted, Outer { src: None, dst: CLIENT.address }, CLIENT, VIP);
            prop_assert!(!checksum_is_right(&frame[14..]));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..160), l4 in 0u16..100) {
            let mut bytes = bytes;
            if let Some(first) = bytes.get_mut(usize::from(l4) + HEADER_LEN) {
                *first = 0x60;
            }
            let meta = Meta { l4, end: bytes.len() as u16, ..Meta::default() };
            let _ = (quoted(&bytes, &meta), tunnelled(&bytes, &meta));
            let _ = (may_answer(&bytes), written(Error::TimeExceeded, &bytes));
        }
    }

    #[test]
    fn a_quoted_udp_checksum_that_becomes_zero_is_written_as_ones() {
        let datagram = packet(Protocol::Udp, LOCAL, SERVER).build_ip();
        let field = 40 + udp::CHECKSUM;
        let hits = (0..=u16::MAX).filter(|&port| {
            let (mut frame, meta) = about(&datagram, ROUTER, LOCAL.address, 80);
            let quoted = quoted(&frame, &meta).unwrap();
            let client = Endpoint::new(CLIENT.address, port);
            translate(&mut frame, &meta, &quoted, Outer { src: None, dst: client.address }, client, VIP);
            let quoted_checksum = get_u16(&frame, 54 + HEADER_LEN + field);
            assert_ne!(quoted_checksum, 0, "zero would mean none, which IPv6 forbids");
            quoted_checksum == 0xffff
        });
        assert!(hits.count() > 0);
    }
}
