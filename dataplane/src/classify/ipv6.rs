//! IPv6: RFC 8200. Extension headers are walked as far as the XDP program walks them, [`HEADERS_MAX`]; each of them
//! lies in the frame, whatever the packet's own length says.
//!
//! A packet whose routing header has segments left is the kernel's: its destination is a station of the way, and no
//! service is meant. An atomic fragment (RFC 6946) is a whole packet.
//!
//! [`HEADERS_MAX`]: shunt_engine::steer::HEADERS_MAX

use super::{
    By, Class, FragmentKey, Fragmentation, Meta, Ours, Packet, by_address, by_ports, check_transport,
    to_server, tunnelled,
};
use crate::snapshot::Snapshot;
use crate::tuple::{Protocol, V6};
use crate::verdict::DropReason;
use crate::wire::extension::{Broken, Fragment, Upper, is_extension, walk};
use crate::wire::ipv6::{HEADER_LEN, addresses, protocol};
use crate::wire::{get_u16, icmpv6};

/// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443 §2.1).
const ICMPV6_ERRORS: std::ops::RangeInclusive<u8> = 1..=4;

/// What names the packet from `src` to `dst` of which this is a fragment. The fragments of one packet may disagree about
/// what follows their fragment headers (RFC 8200 §4.5), so that is in the name only where it cannot lead to TCP or UDP.
pub(crate) fn fragment_key(src: V6, dst: V6, fragment: &Fragment) -> FragmentKey<V6> {
    let protocol = match fragment.next_header {
        6 | 17 => 0,
        number if is_extension(number) => 0,
        number => number,
    };
    FragmentKey { src, dst, id: fragment.id, protocol }
}

fn fragmentation(upper: &Upper) -> Fragmentation {
    match upper.fragment {
        Some(Fragment { offset: 0, more: true, .. }) => Fragmentation::First,
        None | Some(Fragment { offset: 0, more: false, .. }) => Fragmentation::Whole,
        Some(_) => Fragmentation::Later,
    }
}

/// Not inlined: in one function with that of IPv4 both get slower.
#[inline(never)]
pub(super) fn classify(frame: &[u8], l3: usize, snapshot: &Snapshot) -> Class {
    let packet = &frame[l3..];
    let Some(header) = packet.first_chunk::<HEADER_LEN>() else { return Class::NotOurs };
    if header[0] >> 4 != 6 {
        return Class::NotOurs;
    }
    let (src, dst) = addresses(header);
    let upper = match walk(packet) {
        Ok(upper) => upper,
        Err(Broken::TooMany) if by_address(src, dst, snapshot) => {
            return Class::Drop(DropReason::TooManyHeaders);
        }
        Err(Broken::TooMany | Broken::Truncated | Broken::Underway) => return Class::NotOurs,
    };
    let Some(by) = by(packet, src, dst, &upper, snapshot) else { return Class::NotOurs };
    let end = HEADER_LEN + usize::from(get_u16(header, 4));
    if end > packet.len() || upper.at > end {
        return Class::Drop(DropReason::BadLength);
    }
    let fragment = fragmentation(&upper);
    let meta = |tcp_flags| Meta {
        l3: l3 as u16,
        l4: (l3 + upper.at) as u16,
        end: (l3 + end).min(usize::from(u16::MAX)) as u16,
        ttl: header[7],
        tcp_flags,
        dont_fragment: true,
        fragment,
    };
    match by {
        By::Ports(role, tuple) => match check_transport(&packet[upper.at..end], tuple.protocol, fragment) {
            Ok(tcp_flags) => Class::V6(Ours::Flow(Packet { role, tuple, meta: meta(tcp_flags) })),
            Err(reason) => Class::Drop(reason),
        },
        By::Fragment(key) => Class::V6(Ours::Fragment(key, meta(0))),
        By::IcmpError => Class::V6(Ours::IcmpError(meta(0))),
    }
}

#[inline(always)]
fn by(packet: &[u8], src: V6, dst: V6, upper: &Upper, snapshot: &Snapshot) -> Option<By<V6>> {
    let by_address = || by_address(src, dst, snapshot);
    if let Some(fragment) = upper.fragment.filter(|fragment| fragment.offset != 0) {
        return by_address().then(|| By::Fragment(fragment_key(src, dst, &fragment)));
    }
    if upper.protocol == protocol::ICMPV6 {
        let message = &packet[upper.at..];
        let is_error = message.first().is_some_and(|kind| ICMPV6_ERRORS.contains(kind));
        return (is_error && (by_address() || by_quote(message, snapshot))).then_some(By::IcmpError);
    }
    by_ports(src, dst, Protocol::from_number(upper.protocol)?, &packet[upper.at..], snapshot)
}

/// Whether the packet that an ICMPv6 error is about was going to a NAT server, or is one of ours in a tunnel. Its TCP or
/// UDP header follows its IPv6 header, as the XDP program wants it.
#[cold]
fn by_quote(message: &[u8], snapshot: &Snapshot) -> bool {
    fn quoted(bytes: &[u8]) -> Option<(&[u8; HEADER_LEN], &[u8])> {
        bytes.split_first_chunk().filter(|(header, _): &(&[u8; HEADER_LEN], _)| header[0] >> 4 == 6)
    }
    match message.get(icmpv6::HEADER_LEN..).and_then(quoted) {
        Some((outer, inside)) if outer[6] == protocol::IPV6 => {
            quoted(inside).is_some_and(|(header, behind)| {
                let (src, dst) = addresses(header);
                tunnelled(src, dst, header[6], behind, snapshot)
            })
        }
        Some((header, behind)) => to_server(addresses(header).1, header[6], behind, snapshot),
        None => false,
    }
}
