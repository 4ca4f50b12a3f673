//! ICMP errors of IPv6: RFC 4443 (§2.4 says when not to, and how much to quote); in Linux `net/ipv6/icmp.c`.

use shunt_engine::Frame;

use super::{Error, QUOTED_MIN, Quoted};
use crate::classify::Meta;
use crate::emit::{TTL, is_host_v6};
use crate::tuple::{Endpoint, Protocol, Tuple, V6};
use crate::wire::extension::walk;
use crate::wire::icmpv6::{CHECKSUM, HEADER_LEN, is_error, kind, unreachable};
use crate::wire::{checksum, get_u16, ipv6, put_u16, put_u32};

/// Type, code and rest of the ICMP header.
const fn type_code_rest(error: Error) -> (u8, u8, u32) {
    match error {
        Error::TimeExceeded => (kind::TIME_EXCEEDED, 0, 0),
        Error::TooBig { mtu } => (kind::TOO_BIG, 0, mtu as u32),
        Error::PortUnreachable => (kind::UNREACHABLE, unreachable::PORT, 0),
    }
}

/// Longest ICMP error, IPv6 header included: what every link carries (RFC 4443 §2.4 (c)).
const ERROR_LEN_MAX: usize = 1280;

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
    let Ok(ip) = ipv6::Packet::new_checked(packet) else { return false };
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
    if !is_error(kind) || quote.first()? >> 4 != 6 {
        return None;
    }
    let upper = walk(quote).ok()?;
    let protocol = Protocol::from_number(upper.protocol)?;
    let header = quote.get(upper.at..).filter(|header| header.len() >= QUOTED_MIN)?;
    if upper.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return None;
    }
    let (src, dst) = ipv6::addresses(quote);
    let tuple = Tuple {
        src: Endpoint::new(src, get_u16(header, 0)),
        dst: Endpoint::new(dst, get_u16(header, 2)),
        protocol,
    };
    Some(Quoted { tuple, l3: l4 + HEADER_LEN, l4: l4 + HEADER_LEN + upper.at })
}
