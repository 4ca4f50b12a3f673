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
    let ports = set_ports(&mut frame[l4..], src.map(port), dst.map(port));
    update_transport(&mut frame[l4..], protocol, addresses.and(ports));
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
    let header = &mut frame[l3..];
    let addresses = set_addresses(header, src, dst);
    // The checksum sees 16-bit words: the TTL with its neighbour.
    let word = A::TTL & !1;
    let old = get_u16(header, word);
    header[A::TTL] = header[A::TTL].saturating_sub(1);
    update_header::<A>(header, addresses.word(old, get_u16(header, word)));
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
