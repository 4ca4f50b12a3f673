//! ICMP errors (RFC 792): those about our flows are translated and passed on, and a few are our own.

use shunt_engine::Frame;

use crate::classify::Meta;
use crate::tuple::{Endpoint, Protocol, Tuple, V4};
use crate::wire::checksum::{self, Delta};

const ICMP: u8 = 1;
const HEADER: usize = 8;
/// An ICMP error carries as much of the packet as fits 576 bytes (RFC 1812 §4.3.2.3).
const ERROR_LEN_MAX: usize = 576;

/// The packet that an ICMP error is about, as its quote shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Its addresses and ports.
    pub tuple: Tuple<V4>,
    /// Offset of its IP header in the frame.
    l3: usize,
    /// Offset of its transport header in the frame.
    l4: usize,
}

/// Reads the quote of the ICMP error in `frame`. `None` when it has no ports: cut off, a later fragment, or of a
/// protocol without.
pub fn quoted(frame: &[u8], meta: &Meta) -> Option<Quoted> {
    let l3 = usize::from(meta.l4) + HEADER;
    let packet = frame.get(l3..usize::from(meta.end))?;
    let header = packet.first_chunk::<20>()?;
    let header_len = usize::from(header[0] & 15) * 4;
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if header[0] >> 4 != 4 || header_len < 20 || fragment_offset != 0 {
        return None;
    }
    let protocol = Protocol::from_number(header[9])?;
    let &[s0, s1, d0, d1] = packet.get(header_len..)?.first_chunk::<4>()?;
    let address =
        |at: usize| V4(u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
    let src = Endpoint::new(address(12), u16::from_be_bytes([s0, s1]));
    let dst = Endpoint::new(address(16), u16::from_be_bytes([d0, d1]));
    Some(Quoted { tuple: Tuple { src, dst, protocol }, l3, l4: l3 + header_len })
}

/// New addresses of the packet that carries the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Source; `None` leaves it.
    pub src: Option<V4>,
    /// Destination.
    pub dst: V4,
}

/// Rewrites an ICMP error so that its receiver recognises the packet it sent: the carrier's addresses, and the quoted
/// packet's endpoints. Every checksum follows by difference. Takes one off the TTL.
pub fn translate(
    frame: &mut [u8],
    meta: &Meta,
    quoted: &Quoted,
    outer: Outer,
    src: Endpoint<V4>,
    dst: Endpoint<V4>,
) {
    let icmp_at = usize::from(meta.l4);
    let end = usize::from(meta.end);
    // The quoted IP header.
    let addresses = Delta::NONE.address(quoted.tuple.src.address, src.address);
    let addresses = addresses.address(quoted.tuple.dst.address, dst.address);
    let ports = Delta::NONE.word(quoted.tuple.src.port, src.port).word(quoted.tuple.dst.port, dst.port);
    put_address(frame, quoted.l3 + 12, src.address);
    put_address(frame, quoted.l3 + 16, dst.address);
    put(frame, quoted.l4, src.port);
    put(frame, quoted.l4 + 2, dst.port);
    let mut covered = addresses.plus(ports);
    covered = covered.plus(update(frame, quoted.l3 + 10, addresses));
    // The quoted transport checksum, where the quote reaches that far.
    let at = match quoted.tuple.protocol {
        Protocol::Tcp => quoted.l4 + 16,
        Protocol::Udp => quoted.l4 + 6,
    };
    if at + 2 <= end && !(quoted.tuple.protocol == Protocol::Udp && word(frame, at) == 0) {
        covered = covered.plus(update(frame, at, addresses.plus(ports)));
    }
    update(frame, icmp_at + 2, covered);
    carry(frame, usize::from(meta.l3), outer);
}

/// Rewrites the carrier's header.
fn carry(frame: &mut [u8], l3: usize, outer: Outer) {
    let mut delta = Delta::NONE;
    for (at, new) in [(l3 + 12, outer.src), (l3 + 16, Some(outer.dst))] {
        if let Some(new) = new {
            delta = delta.address(address(frame, at), new);
            put_address(frame, at, new);
        }
    }
    let ttl = word(frame, l3 + 8);
    put(frame, l3 + 8, ttl.wrapping_sub(0x0100));
    update(frame, l3 + 10, delta.word(ttl, ttl.wrapping_sub(0x0100)));
}

/// An ICMP error of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The TTL ran out (type 11, code 0).
    TimeExceeded,
    /// Too big for the next hop and not to be fragmented (type 3, code 4; RFC 1191).
    FragmentationNeeded {
        /// What would fit.
        mtu: u16,
    },
}

/// Whether an error about `packet` (IPv4) may be sent at all: not about errors, later fragments, and what came from or
/// went to no single station (RFC 1122 §3.2.2).
pub fn may_answer(packet: &[u8]) -> bool {
    let header_len = usize::from(packet[0] & 15) * 4;
    let later = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    let about_error = packet[9] == ICMP && packet.get(header_len).is_none_or(|kind| !matches!(kind, 0 | 8));
    let single = |address: V4| !matches!(address.0 >> 24, 0 | 127 | 224..=255);
    !later && !about_error && single(address(packet, 12)) && single(address(packet, 16))
}

/// Writes an error about `packet` from `source` to its sender into an empty frame, without link header. False when it
/// does not fit.
pub fn error(out: &mut Frame, error: Error, source: V4, packet: &[u8]) -> bool {
    let quote = &packet[..packet.len().min(ERROR_LEN_MAX - 20 - HEADER)];
    let total = 20 + HEADER + quote.len();
    if !out.set_len(total) {
        return false;
    }
    let (kind, code, rest) = match error {
        Error::TimeExceeded => (11, 0, [0; 4]),
        Error::FragmentationNeeded { mtu } => {
            let [high, low] = mtu.to_be_bytes();
            (3, 4, [0, 0, high, low])
        }
    };
    let (header, icmp) = out.data_mut().split_at_mut(20);
    crate::emit::ipv4_header(header, total as u16, ICMP, source, address(packet, 12));
    icmp[..4].copy_from_slice(&[kind, code, 0, 0]);
    icmp[4..8].copy_from_slice(&rest);
    icmp[8..].copy_from_slice(quote);
    let sum = checksum::of(icmp);
    put(icmp, 2, sum);
    true
}

/// Applies `delta` to the checksum at `at`, and says how that changes a checksum over it.
fn update(frame: &mut [u8], at: usize, delta: Delta) -> Delta {
    let old = word(frame, at);
    let new = delta.apply(old);
    put(frame, at, new);
    Delta::NONE.word(old, new)
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn address(bytes: &[u8], at: usize) -> V4 {
    V4(u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

fn put_address(bytes: &mut [u8], at: usize, value: V4) {
    bytes[at..at + 4].copy_from_slice(&value.0.to_be_bytes());
}
