//! Cuts a packet into fragments for a next hop with a smaller MTU.
//!
//! In IPv4 any packet whose sender allows it, RFC 791 §3.2 "Fragmentation". It may be a fragment itself: offsets and the
//! more-fragments flag go on from its own. In TUN mode the inner packet is cut, for an MTU less the tunnel's overhead,
//! and each part is encapsulated. In IPv6 only what is ours: the packet around a tunnelled one, RFC 2473 §7.1.

use shunt_engine::Frame;

use crate::wire::ipv4::{DONT_FRAGMENT, HEADER_LEN, HEADER_LEN_MAX, MORE_FRAGMENTS, OFFSET_MASK, Packet};
use crate::wire::{extension, ipv6, put_u16, put_u32};

/// The fragments of `packet` (an IPv4 packet without link header and padding) that fit `mtu`, in order. `None` when it
/// must not be cut, cannot be cut (an MTU without room for 8 bytes of data, offsets beyond 65 535), or is no packet.
pub fn fragments(packet: &[u8], mtu: u16) -> Option<Fragments<'_>> {
    let whole = Packet::new_checked(packet).ok()?;
    let first = Header::new(whole.header());
    let later = first.for_later_fragments();
    let room = |header: &Header| usize::from(mtu).checked_sub(header.len).map(|room| room & !7);
    let payload = &packet[whole.header_len()..whole.total_len().into()];
    let end = usize::from(whole.fragment_offset()) + payload.len();
    if whole.dont_fragment() || room(&first)? == 0 || end > usize::from(u16::MAX) {
        return None;
    }
    Some(Fragments {
        first,
        later,
        mtu: usize::from(mtu),
        flags_offset: whole.flags_offset(),
        payload,
        at: 0,
    })
}

/// The fragments that fit `mtu` of `packet`, an IPv6 packet of our own around a tunnelled one, in order; `id` tells them
/// from those of others. `None` when it is no such packet, or the MTU has no room for 8 bytes of data.
pub fn tunnel_fragments(packet: &[u8], mtu: u16, id: u32) -> Option<Fragments<'_>> {
    let whole = ipv6::Packet::new_checked(packet).ok()?;
    let header = Header::before_tunnel_fragment(&packet[..ipv6::HEADER_LEN], id);
    let room = usize::from(mtu).checked_sub(header.len)?;
    (whole.next_header() == ipv6::protocol::IPV6 && room >= 8).then(|| Fragments {
        first: header.clone(),
        later: header,
        mtu: usize::from(mtu),
        flags_offset: 0,
        payload: &packet[ipv6::HEADER_LEN..ipv6::HEADER_LEN + whole.payload().len()],
        at: 0,
    })
}

/// What is left to cut.
#[derive(Clone, Debug)]
pub struct Fragments<'a> {
    first: Header,
    later: Header,
    mtu: usize,
    flags_offset: u16,
    payload: &'a [u8],
    at: usize,
}

/// One fragment, not yet written anywhere.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    header: Header,
    payload: &'a [u8],
}

impl<'a> Iterator for Fragments<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let rest = self.payload.get(self.at..).filter(|rest| !rest.is_empty())?;
        let mut header = if self.at == 0 { self.first.clone() } else { self.later.clone() };
        let fits = rest.len() <= self.mtu - header.len;
        let len = if fits { rest.len() } else { (self.mtu - header.len) & !7 };
        let more = if fits { self.flags_offset & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
        // `fragments` has checked that the last offset fits.
        let offset = (self.flags_offset & OFFSET_MASK) + (self.at / 8) as u16;
        header.finish(more | offset, len);
        self.at += len;
        Some(Part { header, payload: &rest[..len] })
    }
}

impl Part<'_> {
    /// Bytes of the fragment.
    #[expect(clippy::len_without_is_empty, reason = "a fragment is never empty")]
    pub fn len(&self) -> usize {
        self.header.len + self.payload.len()
    }

    /// Writes the fragment, without link header, into an empty frame. Returns false when it does not fit.
    #[must_use]
    pub fn write(&self, frame: &mut Frame) -> bool {
        if !frame.set_len(self.len()) {
            return false;
        }
        let (header, payload) = frame.data_mut().split_at_mut(self.header.len);
        header.copy_from_slice(&self.header.bytes[..self.header.len]);
        payload.copy_from_slice(self.payload);
        true
    }
}

/// An IPv4 header with its options, or an IPv6 header with a fragment header.
#[derive(Clone, Debug)]
struct Header {
    bytes: [u8; HEADER_LEN_MAX],
    len: usize,
}

/// Option kinds without a length (RFC 791 §3.1).
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
/// The bit of an option's kind that says "copied on fragmentation".
const COPIED: u8 = 0x80;

impl Header {
    fn new(header: &[u8]) -> Self {
        let mut bytes = [0; HEADER_LEN_MAX];
        bytes[..header.len()].copy_from_slice(header);
        Self { bytes, len: header.len() }
    }

    /// An IPv6 header with a fragment header (RFC 8200 §4.5) between it and the packet inside.
    fn before_tunnel_fragment(header: &[u8], id: u32) -> Self {
        let mut outer = Self::new(header);
        outer.bytes[6] = extension::kind::FRAGMENT;
        outer.bytes[outer.len] = ipv6::protocol::IPV6;
        put_u32(&mut outer.bytes, outer.len + 4, id);
        outer.len += extension::HEADER_LEN;
        outer
    }

    /// The header with only those options that every fragment carries.
    fn for_later_fragments(&self) -> Self {
        let mut later = Self::new(&self.bytes[..HEADER_LEN]);
        let mut options = &self.bytes[HEADER_LEN..self.len];
        while let Some(&kind) = options.first() {
            let len = match kind {
                END_OF_OPTIONS => break,
                NO_OPERATION => 1,
                // A length that lies ends the options: what follows cannot be told apart.
                _ => match options.get(1) {
                    Some(&len) if len >= 2 && usize::from(len) <= options.len() => usize::from(len),
                    _ => break,
                },
            };
            let (option, rest) = options.split_at(len);
            if kind & COPIED != 0 {
                later.bytes[later.len..later.len + len].copy_from_slice(option);
                later.len += len;
            }
            options = rest;
        }
        // Padded with end-of-options, which is zero like the rest of the array.
        later.len = later.len.next_multiple_of(4);
        later
    }

    /// Sets what differs from fragment to fragment. `flags_offset` is as IPv4 has it.
    fn finish(&mut self, flags_offset: u16, payload_len: usize) {
        debug_assert!(flags_offset & DONT_FRAGMENT == 0);
        if self.bytes[0] >> 4 == 6 {
            let more = u16::from(flags_offset & MORE_FRAGMENTS != 0);
            put_u16(&mut self.bytes, ipv6::HEADER_LEN + 2, (flags_offset & OFFSET_MASK) << 3 | more);
            return put_u16(&mut self.bytes, 4, (self.len - ipv6::HEADER_LEN + payload_len) as u16);
        }
        self.bytes[0] = 0x40 | (self.len / 4) as u8;
        let total_len = ((self.len + payload_len) as u16).to_be_bytes();
        self.bytes[2..4].copy_from_slice(&total_len);
        self.bytes[6..8].copy_from_slice(&flags_offset.to_be_bytes());
        let mut packet =
            Packet::new_header(&mut self.bytes[..self.len]).expect("version and length were just set");
        packet.fill_checksum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::tests::frame;
    use crate::wire::builder::PacketBuilder;
    use proptest::prelude::*;

    fn cut(packet: &[u8], mtu: u16) -> Option<Vec<Vec<u8>>> {
        fragments(packet, mtu).map(written)
    }

    fn cut_tunnel(packet: &[u8], mtu: u16) -> Option<Vec<Vec<u8>>> {
        tunnel_fragments(packet, mtu, 0x0102_0304).map(written)
    }

    /// The fragments' bytes, each written to a frame.
    fn written(parts: Fragments<'_>) -> Vec<Vec<u8>> {
        let (empty, mut pool) = frame(&[]);
        pool.free(empty);
        let mut one = |part: Part<'_>| {
            let mut frame = pool.alloc().unwrap();
            assert!(part.write(&mut frame));
            assert_eq!(part.len(), frame.len());
            let bytes = frame.data().to_vec();
            pool.free(frame);
            bytes
        };
        parts.map(&mut one).collect()
    }

    /// Puts fragments back together by their offsets: offset of the first byte, the bytes, and whether more follow.
    fn reassemble(parts: &[Vec<u8>]) -> (usize, Vec<u8>, bool) {
        let start = usize::from(Packet::new_checked(&parts[0]).unwrap().fragment_offset());
        let mut bytes = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            let ip = Packet::new_checked(part).unwrap();
            assert_eq!(usize::from(ip.fragment_offset()), start + bytes.len());
            assert_eq!(usize::from(ip.total_len()), part.len());
            assert!(ip.checksum_is_right());
            if number + 1 < parts.len() {
                assert!(ip.more_fragments() && ip.payload().len() % 8 == 0 && !ip.payload().is_empty());
            }
            bytes.extend(ip.payload());
        }
        let more = Packet::new_checked(parts.last().unwrap()).unwrap().more_fragments();
        (start, bytes, more)
    }

    proptest! {
        #[test]
        fn fragments_fit_and_give_the_packet_back(
            payload in prop::collection::vec(any::<u8>(), 1..1400), mtu in 68u16..1500,
            offset in 0u16..4000, more: bool, options in 0usize..10,
        ) {
            let mut payload = payload;
            if more {
                payload.resize(payload.len().next_multiple_of(8), 0);
            }
            let packet = PacketBuilder::raw("192.0.2.1", "192.0.2.2", 17).fragment_offset(offset * 8).id(0xbeef);
            let packet = packet.ip_options(&vec![1; options * 4]).payload(payload.clone()).tos(9).ttl(8);
            let packet = if more { packet.more_fragments() } else { packet }.build_ip();
            let parts = cut(&packet, mtu).unwrap();
            prop_assert!(parts.iter().all(|part| part.len() <= usize::from(mtu)));
            prop_assert_eq!(reassemble(&parts), (usize::from(offset) * 8, payload, more));
            for part in &parts {
                let ip = Packet::new_checked(part).unwrap();
                prop_assert_eq!((ip.id(), ip.tos(), ip.ttl(), ip.protocol()), (0xbeef, 9, 8, 17));
            }
            prop_assert!(packet.len() > usize::from(mtu) || parts == [packet]);
        }

        #[test]
        fn any_bytes_are_cut_or_refused_without_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200), mtu: u16, sane: bool,
        ) {
            let mut bytes = bytes;
            if sane && bytes.len() > 20 {
                let len = (bytes.len() as u16).to_be_bytes();
                bytes[0] = 0x40 | (bytes[0] & 15);
                bytes[2..4].copy_from_slice(&len);
            }
            if let Some(parts) = cut(&bytes, mtu) {
                prop_assert!(parts.iter().all(|part| part.len() <= usize::from(mtu)));
            }
            if sane && bytes.len() > 40 {
                bytes[0] = 0x60;
                bytes[6] = 41;
            }
            if let Some(parts) = cut_tunnel(&bytes, mtu) {
                prop_assert!(parts.iter().all(|part| part.len() <= usize::from(mtu)));
            }
        }

        #[test]
        fn a_tunnels_fragments_fit_and_give_the_packet_inside_back(
            inner in prop::collection::vec(any::<u8>(), 1..1400), mtu in 56u16..1500,
        ) {
            let packet = PacketBuilder::raw("2001:db8::1", "2001:db8::2", 41).payload(inner.clone()).ttl(9).build_ip();
            let parts = cut_tunnel(&packet, mtu).unwrap();
            prop_assert!(parts.iter().all(|part| part.len() <= usize::from(mtu)));
            let mut back: Vec<u8> = Vec::new();
            for (number, part) in parts.iter().enumerate() {
                let (ip, upper) = (ipv6::Packet::new_checked(part).unwrap(), extension::walk(part).unwrap());
                let fragment = upper.fragment.unwrap();
                prop_assert_eq!((ip.hop_limit(), fragment.next_header, fragment.id), (9, 41, 0x0102_0304));
                prop_assert_eq!((usize::from(fragment.offset), ip.payload().len() + 40), (back.len(), part.len()));
                prop_assert_eq!(fragment.more, number + 1 < parts.len());
                prop_assert!(!fragment.more || part[48..].len() % 8 == 0);
                back.extend(&part[48..]);
            }
            prop_assert_eq!(back, inner);
        }
    }

    #[test]
    fn options_with_the_copied_flag_are_in_every_fragment_and_others_in_the_first() {
        // Record route (not copied), router alert (copied), no operation, strict source route (copied).
        let options = [7, 3, 4, 0x94, 4, 0, 0, 1, 0x89, 3, 4];
        let packet = PacketBuilder::udp("192.0.2.1:1", "192.0.2.2:2").ip_options(&options);
        let parts = cut(&packet.payload([1; 100]).build_ip(), 68).unwrap();
        let seen: Vec<_> =
            parts.iter().map(|part| Packet::new_checked(part).unwrap().options().to_vec()).collect();
        assert_eq!(seen[0], [7, 3, 4, 0x94, 4, 0, 0, 1, 0x89, 3, 4, 0]);
        assert!(seen.len() > 2);
        assert!(seen[1..].iter().all(|options| options == &[0x94, 4, 0, 0, 0x89, 3, 4, 0]));
    }

    #[test]
    fn options_whose_lengths_lie_end_there() {
        for options in [[0x94, 0, 1, 1], [0x94, 1, 1, 1], [0x94, 5, 1, 1], [1, 1, 1, 0x94]] {
            let packet = PacketBuilder::udp("192.0.2.1:1", "192.0.2.2:2").ip_options(&options);
            let parts = cut(&packet.payload([1; 100]).build_ip(), 68).unwrap();
            assert!(Packet::new_checked(&parts[1]).unwrap().options().is_empty());
        }
    }

    #[test]
    fn what_must_not_or_cannot_be_cut_is_refused() {
        let packet = PacketBuilder::udp("192.0.2.1:1", "192.0.2.2:2").payload([1; 100]);
        assert!(cut(&packet.clone().dont_fragment().build_ip(), 68).is_none());
        assert!(cut(&packet.build_ip(), 27).is_none());
        assert!(cut(&packet.build_ip(), 0).is_none());
        assert_eq!(cut(&packet.build_ip(), 28).unwrap().len(), 14);
        let last = PacketBuilder::raw("192.0.2.1", "192.0.2.2", 17).payload([1; 100]).fragment_offset(65_528);
        assert!(cut(&last.build_ip(), 68).is_none(), "an offset beyond 65535");
        assert!(cut(b"no packet", 68).is_none());
        let tunnel = PacketBuilder::raw("2001:db8::1", "2001:db8::2", 41).payload([1; 100]).build_ip();
        assert_eq!(cut_tunnel(&tunnel, 56).unwrap().len(), 13);
        assert!(cut_tunnel(&tunnel, 55).is_none() && cut_tunnel(&tunnel, 0).is_none());
        assert!(cut_tunnel(&tunnel[..50], 1280).is_none() && cut_tunnel(&packet.build_ip(), 1280).is_none());
        let passing = PacketBuilder::udp("[2001:db8::1]:1", "[2001:db8::2]:2").payload([1; 100]).build_ip();
        assert!(cut_tunnel(&passing, 100).is_none(), "somebody else's packet");
    }

    #[test]
    fn a_part_that_does_not_fit_its_frame_says_so() {
        let packet = PacketBuilder::udp("192.0.2.1:1", "192.0.2.2:2").payload(vec![1; 4000]).build_ip();
        let (mut frame, mut pool) = frame(&[]);
        assert!(!fragments(&packet, 4000).unwrap().next().unwrap().write(&mut frame));
        assert!(frame.is_empty());
        pool.free(frame);
    }
}
