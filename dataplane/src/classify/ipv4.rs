//! IPv4: RFC 791.

use super::{
    By, Class, FragmentKey, Fragmentation, Meta, Ours, Packet, by_address, by_ports, check_transport,
    to_server, tunnelled,
};
use crate::snapshot::Snapshot;
use crate::tuple::{Protocol, V4};
use crate::verdict::DropReason;
use crate::wire::checksum;
use crate::wire::icmpv4;
use crate::wire::ipv4::protocol;

/// Destination unreachable, source quench, time exceeded, parameter problem.
const ICMP_ERRORS: [u8; 4] = [3, 4, 11, 12];

/// The fields of an IPv4 header that matter here (RFC 791 §3.1).
struct Ipv4 {
    header_len: usize,
    total_len: usize,
    id: u16,
    flags_offset: u16,
    ttl: u8,
    protocol: u8,
    src: V4,
    dst: V4,
}

impl Ipv4 {
    const MORE_FRAGMENTS: u16 = 0x2000;
    const DONT_FRAGMENT: u16 = 0x4000;
    const OFFSET: u16 = 0x1fff;

    #[inline(always)]
    fn read(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<20>()?;
        let header_len = usize::from(header[0] & 15) * 4;
        let sane = header[0] >> 4 == 4 && header_len >= 20 && header_len <= bytes.len();
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        sane.then(|| Self {
            header_len,
            total_len: usize::from(u16::from_be_bytes([header[2], header[3]])),
            id: u16::from_be_bytes([header[4], header[5]]),
            flags_offset: u16::from_be_bytes([header[6], header[7]]),
            ttl: header[8],
            protocol: header[9],
            src: V4(word(12)),
            dst: V4(word(16)),
        })
    }

    fn fragmentation(&self) -> Fragmentation {
        match (self.flags_offset & Self::OFFSET, self.flags_offset & Self::MORE_FRAGMENTS) {
            (0, 0) => Fragmentation::Whole,
            (0, _) => Fragmentation::First,
            _ => Fragmentation::Later,
        }
    }
}

/// Built once, at the end and field by field: a class that is copied while it is still being written costs more than
/// all of its checks.
#[inline(always)]
pub(super) fn classify(frame: &[u8], l3: usize, snapshot: &Snapshot) -> Class {
    let Some(ip) = Ipv4::read(&frame[l3..]) else { return Class::NotOurs };
    let l4 = l3 + ip.header_len;
    let fragment = ip.fragmentation();
    let Some(by) = by(frame, l4, &ip, fragment, snapshot) else { return Class::NotOurs };
    if ip.total_len < ip.header_len || l3 + ip.total_len > frame.len() {
        return Class::Drop(DropReason::BadLength);
    }
    if !header_sums_up(&frame[l3..l4]) {
        return Class::Drop(DropReason::BadIpChecksum);
    }
    let meta = |tcp_flags| Meta {
        l3: l3 as u16,
        l4: l4 as u16,
        end: (l3 + ip.total_len).min(usize::from(u16::MAX)) as u16,
        ttl: ip.ttl,
        tcp_flags,
        dont_fragment: ip.flags_offset & Ipv4::DONT_FRAGMENT != 0,
        fragment,
    };
    match by {
        By::Ports(role, tuple) => {
            match check_transport(&frame[l4..l3 + ip.total_len], tuple.protocol, fragment) {
                Ok(tcp_flags) => Class::V4(Ours::Flow(Packet { role, tuple, meta: meta(tcp_flags) })),
                Err(reason) => Class::Drop(reason),
            }
        }
        By::Fragment(key) => Class::V4(Ours::Fragment(key, meta(0))),
        By::IcmpError => Class::V4(Ours::IcmpError(meta(0))),
    }
}

/// Whether the checksum of an IPv4 header is right.
#[inline(always)]
fn header_sums_up(header: &[u8]) -> bool {
    match <&[u8; 20]>::try_from(header) {
        // Nearly all headers: a fixed length needs no loop.
        Ok(header) => checksum::of(header) == 0,
        Err(_) => checksum::of(header) == 0,
    }
}

#[inline(always)]
fn by(frame: &[u8], l4: usize, ip: &Ipv4, fragment: Fragmentation, snapshot: &Snapshot) -> Option<By<V4>> {
    if fragment == Fragmentation::Later {
        let key = FragmentKey { src: ip.src, dst: ip.dst, id: ip.id.into(), protocol: ip.protocol };
        return by_address(ip.src, ip.dst, snapshot).then_some(By::Fragment(key));
    }
    if ip.protocol == protocol::ICMP {
        let message = &frame[l4..];
        let is_error = message.first().is_some_and(|kind| ICMP_ERRORS.contains(kind));
        let ours = is_error && (by_address(ip.src, ip.dst, snapshot) || by_quote(message, snapshot));
        return ours.then_some(By::IcmpError);
    }
    by_ports(ip.src, ip.dst, Protocol::from_number(ip.protocol)?, &frame[l4..], snapshot)
}

/// Whether the packet that an ICMP error is about was going to a NAT server, or is one of ours in a tunnel.
#[cold]
fn by_quote(message: &[u8], snapshot: &Snapshot) -> bool {
    let quoted = |bytes| {
        let ip = Ipv4::read(bytes).filter(|ip| ip.fragmentation() != Fragmentation::Later)?;
        let behind = &bytes[ip.header_len..];
        Some((ip, behind))
    };
    match message.get(icmpv4::HEADER_LEN..).and_then(quoted) {
        Some((ip, inside)) if ip.protocol == protocol::IPIP => quoted(inside)
            .is_some_and(|(ip, behind)| tunnelled(ip.src, ip.dst, ip.protocol, behind, snapshot)),
        Some((ip, behind)) => to_server(ip.dst, ip.protocol, behind, snapshot),
        None => false,
    }
}
