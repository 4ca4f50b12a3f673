//! ICMP errors: those we originate, and those that others send about our flows.
//!
//! RFC 792, RFC 1122 §3.2.2 (when not to), RFC 1812 §4.3 (how much to quote), RFC 1191 §4 (the MTU in them), and for
//! the translation RFC 5508 §4; in Linux `net/ipv4/icmp.c` and `ip_vs_nat_icmp` in `net/netfilter/ipvs/ip_vs_core.c`.

use shunt_engine::Frame;

use crate::classify::Meta;
use crate::emit::{TTL, is_host};
use crate::forward::{rewrite_addresses, set_addresses, set_ports};
use crate::tuple::{Endpoint, Protocol, Tuple, V4};
use crate::wire::checksum::Delta;
use crate::wire::icmpv4::{self, CHECKSUM, kind, unreachable};
use crate::wire::{get_u16, ipv4, put_u16, tcp, udp};

/// Why a packet went no further, as told to its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Its TTL ran out.
    TimeExceeded,
    /// It is bigger than the next hop's `mtu`, and not to be fragmented.
    FragmentationNeeded {
        /// Largest IP packet that would fit, in bytes.
        mtu: u16,
    },
    /// The host cannot be reached.
    HostUnreachable,
    /// Nobody listens.
    PortUnreachable,
}

impl Error {
    /// Type, code and rest of the ICMP header.
    const fn header(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (kind::TIME_EXCEEDED, 0, 0),
            Self::FragmentationNeeded { mtu } => {
                (kind::UNREACHABLE, unreachable::FRAGMENTATION_NEEDED, mtu as u32)
            }
            Self::HostUnreachable => (kind::UNREACHABLE, unreachable::HOST, 0),
            Self::PortUnreachable => (kind::UNREACHABLE, unreachable::PORT, 0),
        }
    }
}

/// Longest ICMP error, IP header included (RFC 1812 §4.3.2.3).
const ERROR_LEN_MAX: usize = 576;
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
    let (kind, code, rest) = error.header();
    message.set_kind(kind, code);
    message.set_rest(rest);
    message.fill_checksum();
    true
}

/// The packet that an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Addresses and ports as they are in the quoted headers.
    pub tuple: Tuple<V4>,
    /// Offset of the quoted IP header in the frame.
    l3: usize,
    /// Offset of the quoted transport header.
    l4: usize,
}

/// Bytes of the transport header that every error quotes (RFC 792).
const QUOTED_MIN: usize = 8;

/// Reads the packet that the ICMP error in `frame` is about. `None` when that is not TCP or UDP, is a later fragment, or
/// is not quoted far enough to tell.
pub fn quoted(frame: &[u8], meta: &Meta) -> Option<Quoted> {
    let (l4, end) = (usize::from(meta.l4), usize::from(meta.end));
    let message = icmpv4::Packet::new_checked(frame.get(l4..end)?).ok()?;
    if !icmpv4::is_error(message.kind()) {
        return None;
    }
    let ip = ipv4::Packet::new_header(message.payload()).ok()?;
    let protocol = Protocol::from_number(ip.protocol())?;
    let inner_l3 = l4 + icmpv4::HEADER_LEN;
    let inner_l4 = inner_l3 + ip.header_len();
    let header = frame.get(inner_l4..end).filter(|header| header.len() >= QUOTED_MIN)?;
    if ip.fragment_offset() != 0 {
        return None;
    }
    let tuple = Tuple {
        src: Endpoint::new(ip.src(), get_u16(header, 0)),
        dst: Endpoint::new(ip.dst(), get_u16(header, 2)),
        protocol,
    };
    Some(Quoted { tuple, l3: inner_l3, l4: inner_l4 })
}

/// The new outer addresses of a translated ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Source; `None` leaves it, as is right for an error from a router on the way.
    pub src: Option<V4>,
    /// Destination.
    pub dst: V4,
}

/// Translates the ICMP error in `frame` about a translated packet: the outer addresses, and the quoted packet's, which
/// becomes what its sender knows. The outer TTL loses one. All checksums follow by what changed; the quoted transport
/// checksum too, when it is quoted.
pub fn translate(
    frame: &mut [u8],
    meta: &Meta,
    quoted: &Quoted,
    outer: Outer,
    src: Endpoint<V4>,
    dst: Endpoint<V4>,
) {
    // ICMP has no pseudo header: the outer addresses do not count in its checksum.
    rewrite_addresses(frame, meta.l3.into(), outer.src, Some(outer.dst));
    let addresses = set_addresses(&mut frame[quoted.l3..], Some(src.address), Some(dst.address));
    let ports = set_ports(&mut frame[quoted.l4..], Some(src.port), Some(dst.port));
    let both = addresses.and(ports);
    let header = update_quoted(frame, quoted.l3 + 10, |field| addresses.apply(field));
    let (at, is_udp) = match quoted.tuple.protocol {
        Protocol::Tcp => (quoted.l4 + tcp::CHECKSUM, false),
        Protocol::Udp => (quoted.l4 + udp::CHECKSUM, true),
    };
    let transport = if at + 2 <= usize::from(meta.end) {
        update_quoted(frame, at, |field| if is_udp { both.apply_udp(field) } else { both.apply(field) })
    } else {
        Delta::default()
    };
    let field = usize::from(meta.l4) + CHECKSUM;
    put_u16(frame, field, both.and(header).and(transport).apply(get_u16(frame, field)));
}

/// Changes a checksum inside the quote. Returns what that changes about the checksum around the quote.
fn update_quoted(frame: &mut [u8], at: usize, update: impl Fn(u16) -> u16) -> Delta {
    let (old, new) = (get_u16(frame, at), update(get_u16(frame, at)));
    put_u16(frame, at, new);
    Delta::default().word(old, new)
}
