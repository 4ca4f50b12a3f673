//! Completes partial checksums.
//!
//! A stack on the same host (veth, tap, virtio) leaves the TCP or UDP checksum to the device: the field holds the
//! folded sum of the pseudo header only (`CHECKSUM_PARTIAL` in Linux's `include/linux/skbuff.h`), and a device without
//! that offload, or AF_XDP, shows it as it is. Forwarding such a frame with incremental updates (RFC 1624) would keep
//! it wrong for ever, so ports complete it before anybody else sees the frame.
//!
//! The price for every other frame is the sum of the pseudo header and one comparison. A frame whose *correct*
//! checksum happens to equal that sum gets the correct checksum written again; one whose wrong checksum happens to
//! (1 in 65 535 of broken frames) is mended.

use std::ops::Range;

const ETHERNET_LEN: usize = 14;
const VLAN_TAG_LEN: usize = 4;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const IPV6_LEN: usize = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// More-fragments flag and fragment offset.
const FRAGMENT_MASK: u16 = 0x3fff;

/// Writes the full TCP or UDP checksum if the field of `frame` holds the sum of the pseudo header alone.
/// Returns whether it did.
///
/// Looks at Ethernet with at most one 802.1Q tag, IPv4 or IPv6 without extension headers, and only at packets that
/// are whole: no fragment, no length beyond the frame. Anything else is left alone.
#[inline]
pub fn complete_partial(frame: &mut [u8]) -> bool {
    let Some(segment) = Segment::find(frame) else { return false };
    let field = segment.field;
    if u16::from_ne_bytes([frame[field], frame[field + 1]]) != segment.pseudo_sum {
        return false;
    }
    // The field itself holds the pseudo header's share of the sum.
    let mut checksum = !fold(sum(&frame[segment.bytes]));
    if segment.protocol == UDP && checksum == 0 {
        // RFC 768: all zeros would mean "no checksum".
        checksum = 0xffff;
    }
    frame[field..field + 2].copy_from_slice(&checksum.to_ne_bytes());
    true
}

/// A TCP or UDP segment with its checksum field.
struct Segment {
    protocol: u8,
    bytes: Range<usize>,
    field: usize,
    /// In the byte order of memory, as the field is.
    pseudo_sum: u16,
}

impl Segment {
    #[inline]
    fn find(frame: &[u8]) -> Option<Self> {
        let mut packet = ETHERNET_LEN;
        let mut ethertype = word(frame, packet - 2)?;
        if ethertype == ETHERTYPE_VLAN {
            packet += VLAN_TAG_LEN;
            ethertype = word(frame, packet - 2)?;
        }
        match ethertype {
            ETHERTYPE_IPV4 => Self::in_ipv4(frame, packet),
            ETHERTYPE_IPV6 => Self::in_ipv6(frame, packet),
            _ => None,
        }
    }

    #[inline]
    fn in_ipv4(frame: &[u8], packet: usize) -> Option<Self> {
        let header = frame.get(packet..packet + 20)?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let is_fragment = word(header, 6)? & FRAGMENT_MASK != 0;
        if header[0] >> 4 != 4 || header_len < 20 || is_fragment {
            return None;
        }
        let total_len = usize::from(word(header, 2)?);
        Self::new(frame, header[9], packet + header_len..packet + total_len, &header[12..20])
    }

    #[inline]
    fn in_ipv6(frame: &[u8], packet: usize) -> Option<Self> {
        let header = frame.get(packet..packet + IPV6_LEN)?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let payload = packet + IPV6_LEN;
        let payload_len = usize::from(word(header, 4)?);
        Self::new(frame, header[6], payload..payload + payload_len, &header[8..40])
    }

    #[inline]
    fn new(frame: &[u8], protocol: u8, bytes: Range<usize>, addresses: &[u8]) -> Option<Self> {
        let (field_at, header_len) = match protocol {
            TCP => (16, 20),
            UDP => (6, 8),
            _ => return None,
        };
        if bytes.end > frame.len() || bytes.end < bytes.start + header_len {
            return None;
        }
        let len = (bytes.len() as u16).to_be();
        let pseudo_sum = fold(sum(addresses) + u64::from(u16::from(protocol).to_be()) + u64::from(len));
        Some(Self { protocol, field: bytes.start + field_at, bytes, pseudo_sum })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// The one's complement sum of 16-bit words (RFC 1071), unfolded, in the byte order of memory. Cannot overflow below
/// 16 GiB.
#[inline]
fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let mut sum: u64 =
        words.by_ref().map(|word| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))).sum();
    let mut tail = [0; 4];
    let rest = words.remainder();
    tail[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_ne_bytes(tail));
    sum
}

/// Folds to 16 bits. Only a sum of nothing but zeros folds to 0, so equal sums have equal folds.
#[inline]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, TcpHeader};
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    struct Shape {
        v6: bool,
        vlan: bool,
        udp: bool,
        options: bool,
    }

    /// A frame with a correct checksum made by somebody else's code, and where its checksum field is.
    fn frame(shape: Shape, payload: &[u8]) -> (Vec<u8>, usize) {
        let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let vlan = |yes: bool| yes.then(|| etherparse::VlanId::try_new(7).unwrap());
        let mut ipv4 = etherparse::Ipv4Header::new(0, 64, 6.into(), [10, 1, 2, 3], [192, 0, 2, 9]).unwrap();
        if shape.options {
            ipv4.options = [1; 8].into();
        }
        let ipv6 = etherparse::Ipv6Header {
            hop_limit: 64,
            source: [0x20; 16],
            destination: [0xfd; 16],
            ..Default::default()
        };
        let net = match shape.v6 {
            true => etherparse::IpHeaders::Ipv6(ipv6, Default::default()),
            false => etherparse::IpHeaders::Ipv4(ipv4, Default::default()),
        };
        let step = match vlan(shape.vlan) {
            Some(id) => link.single_vlan(id).ip(net),
            None => link.ip(net),
        };
        let mut bytes = Vec::new();
        if shape.udp {
            step.udp(1234, 80).write(&mut bytes, payload).unwrap();
        } else {
            step.tcp_header(TcpHeader::new(1234, 80, 99, 500)).write(&mut bytes, payload).unwrap();
        }
        let packet = if shape.vlan { 18 } else { 14 };
        let header = if shape.v6 {
            40
        } else if shape.options {
            28
        } else {
            20
        };
        (bytes, packet + header + if shape.udp { 6 } else { 16 })
    }

    /// What the kernel's `~csum_tcpudp_magic()` leaves in the field, computed the slow way.
    fn pseudo_sum(shape: Shape, frame: &[u8]) -> u16 {
        let packet = if shape.vlan { 18 } else { 14 };
        let (addresses, segment) = match (shape.v6, shape.options) {
            (true, _) => (packet + 8..packet + 40, packet + 40),
            (false, true) => (packet + 12..packet + 20, packet + 28),
            (false, false) => (packet + 12..packet + 20, packet + 20),
        };
        let words = frame[addresses].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let mut sum = words.sum::<u32>() + if shape.udp { 17 } else { 6 } + (frame.len() - segment) as u32;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        any::<(bool, bool, bool, bool)>().prop_map(|(v6, vlan, udp, options)| Shape {
            v6,
            vlan,
            udp,
            options,
        })
    }

    proptest! {
        #[test]
        fn a_partial_checksum_becomes_the_full_one(
            shape in shapes(),
            payload in prop::collection::vec(any::<u8>(), 0..200),
            padding in 0usize..20,
        ) {
            let (right, field) = frame(shape, &payload);
            let mut partial = right.clone();
            partial[field..field + 2].copy_from_slice(&pseudo_sum(shape, &right).to_be_bytes());
            partial.extend(std::iter::repeat_n(0xa5, padding));
            prop_assert!(complete_partial(&mut partial));
            prop_assert_eq!(&partial[..right.len()], &right[..]);
            prop_assert!(partial[right.len()..].iter().all(|&byte| byte == 0xa5));
        }

        #[test]
        fn any_other_checksum_is_left_alone(shape in shapes(), value: u16, payload: [u8; 9]) {
            let (mut bytes, field) = frame(shape, &payload);
            prop_assume!(value != pseudo_sum(shape, &bytes));
            bytes[field..field + 2].copy_from_slice(&value.to_be_bytes());
            let before = bytes.clone();
            prop_assert!(!complete_partial(&mut bytes));
            prop_assert_eq!(bytes, before);
        }

        #[test]
        #[cfg_attr(miri, ignore = "thousands of frames, and no unsafe code")]
    fn a_correct_checksum_that_equals_the_pseudo_sum_keeps_its_value(shape in shapes(), payload: [u8; 8]) {
            // Two bytes of payload are chosen so that the correct checksum is the pseudo header's sum.
            let chosen = (0..=u16::MAX).find_map(|word| {
                let mut payload = payload;
                payload[..2].copy_from_slice(&word.to_be_bytes());
                let (bytes, field) = frame(shape, &payload);
                let sum = pseudo_sum(shape, &bytes);
                (bytes[field..field + 2] == sum.to_be_bytes()).then_some(bytes)
            });
            let before = chosen.expect("one of 65536 payload words makes any checksum");
            let mut bytes = before.clone();
            prop_assert!(complete_partial(&mut bytes));
            prop_assert_eq!(bytes, before);
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80), cut in 0usize..120, shape in shapes()) {
            complete_partial(&mut bytes);
            let (mut real, _) = frame(shape, &bytes);
            real.truncate(cut);
            complete_partial(&mut real);
        }
    }

    const UDP4: Shape = Shape { v6: false, vlan: false, udp: true, options: false };

    #[test]
    fn udp_without_checksum_stays_without() {
        let (mut bytes, field) = frame(UDP4, b"payload");
        bytes[field..field + 2].fill(0);
        assert!(!complete_partial(&mut bytes));
        assert_eq!(bytes[field..field + 2], [0, 0]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of frames, and no unsafe code")]
    fn a_computed_zero_is_sent_as_all_ones_for_udp() {
        let found = (0..=u16::MAX).find_map(|word| {
            let (bytes, field) = frame(UDP4, &word.to_be_bytes());
            (bytes[field..field + 2] == [0xff, 0xff]).then_some((bytes, field))
        });
        let (right, field) = found.unwrap();
        let mut partial = right.clone();
        partial[field..field + 2].copy_from_slice(&pseudo_sum(UDP4, &right).to_be_bytes());
        assert!(complete_partial(&mut partial));
        assert_eq!(partial, right);
    }

    #[test]
    fn first_and_later_fragments_and_lengths_beyond_the_frame_are_left_alone() {
        let (mut bytes, field) = frame(UDP4, b"payload");
        let sum = pseudo_sum(UDP4, &bytes);
        bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        for flags in [0x2000u16, 0x2001, 0x0001] {
            let mut fragment = bytes.clone();
            fragment[20..22].copy_from_slice(&flags.to_be_bytes());
            assert!(!complete_partial(&mut fragment), "{flags:04x}");
        }
        let mut do_not_fragment = bytes.clone();
        do_not_fragment[20] = 0x40;
        assert!(complete_partial(&mut do_not_fragment));
        bytes.pop();
        assert!(!complete_partial(&mut bytes));
    }
}
