//! IPv6: RFC 8200. Extension headers are walked as far as the XDP program walks them, [`HEADERS_MAX`]; each of them
//! lies in the frame, whatever the packet's own length says.
//!
//! A packet whose routing header has ways to go is the kernel's: its destination is a station of the way, and no
//! service is meant. An atomic fragment (RFC 6946) is a whole packet.

use shunt_engine::steer::HEADERS_MAX;

use super::{
    By, Class, FragmentKey, Fragmentation, Meta, Ours, Packet, by_address, by_ports, check_transport,
    to_server, tunnelled,
};
use crate::snapshot::Snapshot;
use crate::tuple::{Protocol, V6};
use crate::verdict::DropReason;
use crate::wire::ipv6::{HEADER_LEN, addresses, protocol};
use crate::wire::{Family, get_u16, get_u32, icmpv6};

/// Numbers of extension headers (RFC 8200 §4, RFC 4302).
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
}

const ICMPV6: u8 = 58;
/// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443 §2.1).
const ICMPV6_ERRORS: std::ops::RangeInclusive<u8> = 1..=4;

/// What comes behind the extension headers.
struct Chain {
    /// Number of the header at `l4`.
    protocol: u8,
    /// Offset of the first header that is not an extension, or that was not walked any more.
    l4: usize,
    fragment: Fragmentation,
    /// Identification of the fragmented packet.
    id: u32,
    /// Whether more headers follow than are walked, or more than one fragment header was among them: nobody sends
    /// such packets.
    excessive: bool,
}

/// Walks the extension headers behind the IPv6 header at `l3`, of which the first is `next`. `None` where the frame
/// ends too early or the packet has further ways to go.
#[inline(always)]
fn walk(frame: &[u8], l3: usize, next: u8) -> Option<Chain> {
    let fragment = Fragmentation::Whole;
    let mut chain = Chain { protocol: next, l4: l3 + HEADER_LEN, fragment, id: 0, excessive: false };
    if matches!(next, 6 | 17 | ICMPV6) {
        return Some(chain);
    }
    let mut fragments = 0;
    for _ in 0..HEADERS_MAX {
        if !is_extension(chain.protocol) {
            return Some(chain);
        }
        let header: &[u8; 8] = frame.get(chain.l4..)?.first_chunk()?;
        let len = match chain.protocol {
            extension::FRAGMENT => {
                chain.fragment = fragmentation(get_u16(header, 2));
                chain.id = get_u32(header, 4);
                fragments += 1;
                8
            }
            extension::ROUTING if header[3] != 0 => return None,
            extension::AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        chain.protocol = header[0];
        chain.l4 += len;
        chain.excessive = fragments > 1;
        if chain.l4 > frame.len() {
            return None;
        }
        if chain.fragment == Fragmentation::Later {
            return Some(chain);
        }
    }
    chain.excessive |= is_extension(chain.protocol);
    Some(chain)
}

fn is_extension(number: u8) -> bool {
    use extension::{AUTHENTICATION, DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
    matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

/// From offset and flag of a fragment header: 13 bits, two reserved ones, "more fragments".
fn fragmentation(offset_flags: u16) -> Fragmentation {
    match (offset_flags >> 3, offset_flags & 1) {
        (0, 0) => Fragmentation::Whole,
        (0, _) => Fragmentation::First,
        _ => Fragmentation::Later,
    }
}

#[inline(always)]
pub(super) fn classify(frame: &[u8], l3: usize, snapshot: &Snapshot) -> Class {
    let Some(header) = frame[l3..].first_chunk::<HEADER_LEN>() else { return Class::NotOurs };
    if header[0] >> 4 != 6 {
        return Class::NotOurs;
    }
    let (src, dst) = (V6::get(header, V6::SOURCE), V6::get(header, V6::SOURCE + V6::LEN));
    let Some(chain) = walk(frame, l3, header[6]) else { return Class::NotOurs };
    let Some(by) = by(frame, src, dst, &chain, snapshot) else { return Class::NotOurs };
    let end = l3 + HEADER_LEN + usize::from(get_u16(header, 4));
    if end > frame.len() || chain.l4 > end {
        return Class::Drop(DropReason::BadLength);
    }
    if chain.excessive {
        return Class::Drop(DropReason::TooManyHeaders);
    }
    let meta = |tcp_flags| Meta {
        l3: l3 as u16,
        l4: chain.l4 as u16,
        end: end.min(usize::from(u16::MAX)) as u16,
        ttl: header[7],
        tcp_flags,
        dont_fragment: true,
        fragment: chain.fragment,
    };
    match by {
        By::Ports(role, tuple) => {
            match check_transport(&frame[chain.l4..end], tuple.protocol, chain.fragment) {
                Ok(tcp_flags) => Class::V6(Ours::Flow(Packet { role, tuple, meta: meta(tcp_flags) })),
                Err(reason) => Class::Drop(reason),
            }
        }
        By::Fragment => {
            // What follows a fragment header may differ between fragments of a packet, so it is not in its name.
            let protocol = match chain.protocol {
                6 | 17 => 0,
                number if is_extension(number) => 0,
                number => number,
            };
            Class::V6(Ours::Fragment(FragmentKey { src, dst, id: chain.id, protocol }, meta(0)))
        }
        By::IcmpError => Class::V6(Ours::IcmpError(meta(0))),
    }
}

#[inline(always)]
fn by(frame: &[u8], src: V6, dst: V6, chain: &Chain, snapshot: &Snapshot) -> Option<By<V6>> {
    let by_address = || by_address(src, dst, snapshot);
    if chain.fragment == Fragmentation::Later || is_extension(chain.protocol) {
        return by_address().then_some(By::Fragment);
    }
    if chain.protocol == ICMPV6 {
        let message = &frame[chain.l4..];
        let is_error = message.first().is_some_and(|kind| ICMPV6_ERRORS.contains(kind));
        return (is_error && (by_address() || by_quote(message, snapshot))).then_some(By::IcmpError);
    }
    by_ports(src, dst, Protocol::from_number(chain.protocol)?, &frame[chain.l4..], snapshot)
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
