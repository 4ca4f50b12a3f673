//! Edits that send a packet on, in place, one file per mode.
//!
//! Offsets (`l3` of the IP header, `l4` of the transport header, both from the start of the frame) come from classify,
//! which has checked that the headers are there; with offsets that lie outside the frame these functions panic.
//! Checksums follow by what changed (RFC 1624). The TTL loses one in every mode, as in Linux: it must be 2 or more.
//!
//! A first fragment has a transport header and is edited like a whole packet. A later one has none: only its addresses
//! change (`later…`).

pub mod dr;
pub mod fullnat;
pub mod nat;
pub mod split;
pub mod tun;

use shunt_engine::Frame;
use shunt_engine::port::MacAddr;

use crate::tuple::{Endpoint, Protocol};
use crate::wire::checksum::Delta;
use crate::wire::{Family, ethernet, ethernet::ethertype, get_u16, put_u16, tcp, udp, vlan};

/// There is no room in front of the packet for what has to go there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoHeadroom;

/// Replaces the link header of `l2_len` bytes by one from `source` to `destination`, with an 802.1Q tag if there is a
/// `vid`. The EtherType follows from the IP version.
///
/// # Errors
/// [`NoHeadroom`]; the frame is then unchanged.
#[inline]
pub fn set_link(
    frame: &mut Frame,
    l2_len: usize,
    source: MacAddr,
    destination: MacAddr,
    vid: Option<u16>,
) -> Result<(), NoHeadroom> {
    let len = if vid.is_some() { ethernet::HEADER_LEN + vlan::TAG_LEN } else { ethernet::HEADER_LEN };
    if len > l2_len {
        if !frame.push_front(len - l2_len) {
            return Err(NoHeadroom);
        }
    } else {
        frame.pull_front(l2_len - len);
    }
    let data = frame.data_mut();
    let kind = if data[len] >> 4 == 6 { ethertype::IPV6 } else { ethertype::IPV4 };
    data[..6].copy_from_slice(&destination.0);
    data[6..12].copy_from_slice(&source.0);
    if let Some(vid) = vid {
        put_u16(data, 12, ethertype::VLAN);
        put_u16(data, 14, vid & 0x0fff);
    }
    put_u16(data, len - 2, kind);
    Ok(())
}

/// Gives the packet at `l3` new endpoints, where there are any.
#[inline(always)]
fn rewrite<A: Family>(
    frame: &mut [u8],
    l3: usize,
    l4: usize,
    protocol: Protocol,
    src: Option<Endpoint<A>>,
    dst: Option<Endpoint<A>>,
) {
    let (address, port) = (|e: Endpoint<A>| e.address, |e: Endpoint<A>| e.port);
    let addresses = rewrite_addresses(frame, l3, src.map(address), dst.map(address));
    // Slices of known lengths: one bounds check each.
    let header = match protocol {
        Protocol::Tcp => &mut frame[l4..l4 + tcp::CHECKSUM + 2],
        Protocol::Udp => &mut frame[l4..l4 + udp::CHECKSUM + 2],
    };
    let ports = set_ports(header, src.map(port), dst.map(port));
    update_transport(header, protocol, addresses.and(ports));
}

/// Gives the IP header at `l3` new addresses, where there are any, and takes one from its TTL. Returns what the
/// addresses change about the transport checksum.
#[inline(always)]
pub(crate) fn rewrite_addresses<A: Family>(
    frame: &mut [u8],
    l3: usize,
    src: Option<A>,
    dst: Option<A>,
) -> Delta {
    let header = &mut frame[l3..l3 + A::SOURCE + 2 * A::LEN];
    let addresses = set_addresses(header, src, dst);
    let old = header[A::TTL];
    let new = old.saturating_sub(1);
    header[A::TTL] = new;
    // Half a word: its neighbour does not change, and so does not count. (Read back as a whole it would be slow, having
    // just been written in part.)
    let half = |value: u8| u16::from(value) << if A::TTL % 2 == 0 { 8 } else { 0 };
    update_header::<A>(header, addresses.word(half(old), half(new)));
    addresses
}

/// Writes new addresses, where there are any, into an IP header. Its checksum is the caller's business.
#[inline(always)]
pub(crate) fn set_addresses<A: Family>(header: &mut [u8], src: Option<A>, dst: Option<A>) -> Delta {
    let mut delta = Delta::default();
    for (at, new) in [(A::SOURCE, src), (A::SOURCE + A::LEN, dst)] {
        if let Some(new) = new {
            delta = delta.address(A::get(header, at), new);
            new.put(header, at);
        }
    }
    delta
}

/// Writes new ports, where there are any, into a TCP or UDP header. Its checksum is the caller's business.
#[inline(always)]
pub(crate) fn set_ports(header: &mut [u8], src: Option<u16>, dst: Option<u16>) -> Delta {
    let mut delta = Delta::default();
    for (at, new) in [(0, src), (2, dst)] {
        if let Some(new) = new {
            delta = delta.word(get_u16(header, at), new);
            put_u16(header, at, new);
        }
    }
    delta
}

/// Brings the checksum of an IP header up to date, if the family has one.
#[inline(always)]
pub(crate) fn update_header<A: Family>(header: &mut [u8], delta: Delta) {
    if let Some(at) = A::CHECKSUM {
        put_u16(header, at, delta.apply(get_u16(header, at)));
    }
}

/// Brings the checksum of a TCP or UDP header up to date.
#[inline(always)]
pub(crate) fn update_transport(header: &mut [u8], protocol: Protocol, delta: Delta) {
    match protocol {
        Protocol::Tcp => put_u16(header, tcp::CHECKSUM, delta.apply(get_u16(header, tcp::CHECKSUM))),
        Protocol::Udp => put_u16(header, udp::CHECKSUM, delta.apply_udp(get_u16(header, udp::CHECKSUM))),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tuple::{Address, V4, V6};
    use crate::wire::builder::PacketBuilder;
    use crate::wire::{checksum, ipv4, ipv6};
    use proptest::prelude::*;
    use shunt_engine::Mempool;
    use shunt_engine::mempool::PoolConfig;

    /// A frame that holds `bytes`, with its pool.
    pub(crate) fn frame(bytes: &[u8]) -> (Frame, Mempool) {
        let mut pool = Mempool::single(PoolConfig { chunks: 64, ..PoolConfig::default() }).unwrap();
        let mut frame = pool.alloc().unwrap();
        assert!(frame.fill(bytes));
        (frame, pool)
    }

    /// Whether the IPv4 packet's header checksum, and the transport checksum behind it, are right.
    pub(crate) fn checksums_are_right(packet: &[u8]) -> (bool, bool) {
        let ip = ipv4::Packet::new_checked(packet).unwrap();
        let transport = match ip.protocol() {
            1 => checksum::of(ip.payload()) == 0,
            17 => udp::Packet::new_checked(ip.payload()).unwrap().checksum_is_right(ip.src(), ip.dst()),
            protocol => checksum::transport(ip.src(), ip.dst(), protocol, ip.payload()) == 0,
        };
        (ip.checksum_is_right(), transport)
    }

    fn packet<A: Address>(protocol: Protocol, src: Endpoint<A>, dst: Endpoint<A>) -> PacketBuilder {
        PacketBuilder::tuple(&crate::tuple::Tuple { src, dst, protocol })
    }

    fn protocols() -> impl Strategy<Value = Protocol> {
        prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
    }

    prop_compose! {
        fn endpoint()(address: u32, port: u16) -> Endpoint<V4> {
            Endpoint::new(V4(address), port)
        }
    }

    prop_compose! {
        fn endpoint_v6()(address: [u32; 4], port: u16) -> Endpoint<V6> {
            Endpoint::new(V6(address), port)
        }
    }

    proptest! {
        #[test]
        fn a_rewritten_packet_is_the_one_that_would_have_been_built(
            protocol in protocols(),
            ends in any::<[(u32, u16); 4]>(),
            payload in prop::collection::vec(any::<u8>(), 0..200),
            options in prop::collection::vec(1u8..=1, 0..8),
            ttl in 3u8..,
        ) {
            let [src, dst, new_src, new_dst] = ends.map(|(address, port)| Endpoint::new(V4(address), port));
            let built = |src, dst, ttl| {
                packet(protocol, src, dst).payload(payload.clone()).ip_options(&options).ttl(ttl).build()
            };
            let l4 = 14 + 20 + options.len().next_multiple_of(4);
            let before = built(src, dst, ttl);

            let mut frame = before.clone();
            fullnat::request(&mut frame, 14, l4, protocol, new_src, new_dst);
            prop_assert_eq!(&frame, &built(new_src, new_dst, ttl - 1));
            fullnat::reply(&mut frame, 14, l4, protocol, src, dst);
            prop_assert_eq!(&frame, &built(src, dst, ttl - 2), "back and forth changes the TTL alone");

            let mut frame = before.clone();
            nat::request(&mut frame, 14, l4, protocol, new_dst);
            prop_assert_eq!(&frame, &built(src, new_dst, ttl - 1));

            let mut frame = before.clone();
            nat::reply(&mut frame, 14, l4, protocol, new_src);
            prop_assert_eq!(&frame, &built(new_src, dst, ttl - 1));

            let mut frame = before;
            dr::request::<V4>(&mut frame, 14);
            prop_assert_eq!(&frame, &built(src, dst, ttl - 1));
        }

        #[test]
        fn so_is_a_rewritten_ipv6_packet(
            protocol in protocols(),
            ends in (endpoint_v6(), endpoint_v6(), endpoint_v6(), endpoint_v6()),
            payload in prop::collection::vec(any::<u8>(), 0..100),
            ttl in 2u8..,
        ) {
            let built = |src, dst, ttl| packet(protocol, src, dst).payload(payload.clone()).ttl(ttl).build();
            let (src, dst, new_src, new_dst) = ends;
            let mut frame = built(src, dst, ttl);
            fullnat::request(&mut frame, 14, 54, protocol, new_src, new_dst);
            prop_assert_eq!(&frame, &built(new_src, new_dst, ttl - 1));
            nat::request(&mut frame, 14, 54, protocol, dst);
            nat::reply(&mut frame, 14, 54, protocol, src);
            prop_assert_eq!(&frame[22..], &built(src, dst, 0)[22..]);
        }

        #[test]
        fn a_wrong_transport_checksum_stays_wrong(
            protocol in protocols(), ends in (endpoint(), endpoint(), endpoint(), endpoint()), error in 1u16..,
        ) {
            let (src, dst, new_src, new_dst) = ends;
            let good = packet(protocol, src, dst).payload(*b"data").build();
            let at = 34 + if protocol == Protocol::Tcp { tcp::CHECKSUM } else { udp::CHECKSUM };
            let bad = get_u16(&good, at).wrapping_add(error);
            // 0 is no UDP checksum, and 0 and 0xffff are the same number.
            prop_assume!(bad != 0 && bad % 0xffff != get_u16(&good, at) % 0xffff);
            let mut frame = packet(protocol, src, dst).payload(*b"data").l4_checksum(bad).build();
            fullnat::request(&mut frame, 14, 34, protocol, new_src, new_dst);
            prop_assert_eq!(checksums_are_right(&frame[14..]), (true, false));
        }

        #[test]
        fn a_missing_udp_checksum_stays_missing(ends in (endpoint(), endpoint(), endpoint(), endpoint())) {
            let (src, dst, local, server) = ends;
            let built = |src, dst, ttl| packet(Protocol::Udp, src, dst).payload(*b"data").l4_checksum(0).ttl(ttl).build();
            let mut frame = built(src, dst, 9);
            fullnat::request(&mut frame, 14, 34, Protocol::Udp, local, server);
            prop_assert_eq!(frame, built(local, server, 8));
        }
    }

    #[test]
    fn of_a_later_fragment_only_the_addresses_change() {
        let built = |src, dst, ttl| {
            let packet = PacketBuilder::raw(src, dst, 6).fragment_offset(1480).ttl(ttl);
            packet.payload([7; 40]).build()
        };
        let client_to_vip = || built("198.51.100.7", "203.0.113.10", 64);
        let v4 = |text: &str| V4::from_ip(text.parse().unwrap()).unwrap();

        let mut frame = client_to_vip();
        fullnat::later(&mut frame, 14, v4("10.0.0.200"), v4("10.0.0.11"));
        assert_eq!(frame, built("10.0.0.200", "10.0.0.11", 63));

        let mut frame = client_to_vip();
        nat::later_request(&mut frame, 14, v4("10.0.0.11"));
        assert_eq!(frame, built("198.51.100.7", "10.0.0.11", 63));
        nat::later_reply(&mut frame, 14, v4("203.0.113.10"));
        assert_eq!(frame, built("203.0.113.10", "10.0.0.11", 62));
    }

    #[test]
    fn a_link_header_changes_into_any_other() {
        let (source, destination) = (MacAddr([2, 1, 1, 1, 1, 1]), MacAddr([2, 2, 2, 2, 2, 2]));
        let bare = PacketBuilder::udp("192.0.2.1:1", "192.0.2.2:2").payload(*b"data");
        let six = PacketBuilder::udp("[2001:db8::1]:1", "[2001:db8::2]:2");
        for packet in [bare, six] {
            for (from, l2_len) in [(None, 14), (Some(7), 18)] {
                for to in [None, Some(7), Some(4094)] {
                    let tagged = |vid: Option<u16>| match vid {
                        Some(vid) => packet.clone().vlan(vid),
                        None => packet.clone(),
                    };
                    let (mut frame, mut pool) = frame(&tagged(from).build());
                    set_link(&mut frame, l2_len, source, destination, to).unwrap();
                    assert_eq!(frame.data(), tagged(to).link(source, destination).build());
                    pool.free(frame);
                }
            }
        }
    }

    #[test]
    fn a_packet_without_link_header_gets_one_with_twelve_bits_of_vlan() {
        let packet = PacketBuilder::udp("192.0.2.1:1", "192.0.2.2:2").payload(*b"data");
        let (mut frame, mut pool) = frame(&packet.build_ip());
        let (source, destination) = (PacketBuilder::SOURCE, PacketBuilder::DESTINATION);
        set_link(&mut frame, 0, source, destination, Some(0xf009)).unwrap();
        assert_eq!(frame.data(), packet.vlan(9).build());
        pool.free(frame);
    }

    #[test]
    fn without_headroom_a_tag_is_refused_and_the_frame_unchanged() {
        let bytes = PacketBuilder::udp("192.0.2.1:1", "192.0.2.2:2").build();
        let (mut frame, mut pool) = frame(&bytes);
        let room = frame.headroom();
        assert!(frame.push_front(room));
        frame.data_mut()[..bytes.len()].copy_from_slice(&bytes);
        assert!(frame.set_len(bytes.len()));
        let mac = MacAddr([2; 6]);
        assert_eq!(set_link(&mut frame, 14, mac, mac, Some(1)), Err(NoHeadroom));
        assert_eq!(tun::encapsulate(&mut frame, 14, V4(1), V4(2), 0), Err(NoHeadroom));
        assert_eq!(frame.data(), bytes);
        pool.free(frame);
    }

    #[test]
    fn ipv6_headers_have_no_checksum_to_follow() {
        let bytes = PacketBuilder::tcp("[2001:db8::1]:1", "[2001:db8::2]:2").ttl(9).build();
        let mut frame = bytes.clone();
        dr::request::<V6>(&mut frame, 14);
        assert_eq!(ipv6::Packet::new_checked(&frame[14..]).unwrap().hop_limit(), 8);
        frame[14 + V6::TTL] = 9;
        assert_eq!(frame, bytes);
    }
}
