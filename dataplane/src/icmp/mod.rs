//! ICMP errors: those we originate, those that others send us about our tunnels, and those that others send about our flows. One file per IP version;
//! the translation is the same for both (RFC 5508 §4; in Linux `ip_vs_nat_icmp` and `ip_vs_nat_icmp_v6` in
//! `net/netfilter/ipvs/ip_vs_core.c`).

pub mod v4;
pub mod v6;

use crate::classify::Meta;
use crate::forward::{rewrite_addresses, set_addresses, set_ports};
use crate::ip::Ip;
use crate::tuple::{Address, Endpoint, Protocol, Tuple};
use crate::wire::checksum::Delta;
use crate::wire::icmpv4::CHECKSUM;
use crate::wire::{get_u16, put_u16, tcp, udp};

/// Why a packet went no further, as told to its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Its TTL ran out.
    TimeExceeded,
    /// It is bigger than the next hop's `mtu`, and not to be fragmented.
    TooBig {
        /// Largest IP packet that would fit, in bytes.
        mtu: u16,
    },
    /// Nobody listens.
    PortUnreachable,
    /// The way to its receiver is broken, or too long.
    HostUnreachable,
}

/// The packet that an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted<A: Address> {
    /// Addresses and ports as they are in the quoted headers.
    pub tuple: Tuple<A>,
    /// Offset of the quoted IP header in the frame.
    l3: usize,
    /// Offset of the quoted transport header.
    l4: usize,
}

/// Bytes of the transport header that every error quotes (RFC 792).
const QUOTED_MIN: usize = 8;

/// A packet of ours in a tunnel that an ICMP error is about: a router between us and the server sent it to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnelled<A: Address> {
    /// Where the tunnel ends.
    pub server: A,
    /// Addresses and ports of the packet inside.
    pub tuple: Tuple<A>,
    /// Its offset in the frame.
    pub at: usize,
    /// What its sender is to hear (RFC 2003 §4, RFC 2473 §8).
    pub error: Error,
    /// Where the tunnel begins.
    pub from: A,
    /// The MTU of the tunnel's way, if it has no room for what every link carries; see [`crate::path_mtu`].
    pub narrow: Option<u16>,
}

/// The new outer addresses of a translated ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer<A> {
    /// Source; `None` leaves it, as is right for an error from a router on the way.
    pub src: Option<A>,
    /// Destination.
    pub dst: A,
}

/// Translates the ICMP error in `frame` about a translated packet: the outer addresses, and the quoted packet's, which
/// becomes what its sender knows. The outer TTL loses one. All checksums follow by what changed; the quoted transport
/// checksum too, when it is quoted.
pub fn translate<A: Ip>(
    frame: &mut [u8],
    meta: &Meta,
    quoted: &Quoted<A>,
    outer: Outer<A>,
    src: Endpoint<A>,
    dst: Endpoint<A>,
) {
    let around = rewrite_addresses(frame, meta.l3.into(), outer.src, Some(outer.dst));
    let addresses = set_addresses(&mut frame[quoted.l3..], Some(src.address), Some(dst.address));
    let ports = set_ports(&mut frame[quoted.l4..], Some(src.port), Some(dst.port));
    let both = addresses.and(ports);
    let mut message = both;
    if A::ICMP_COVERS_ADDRESSES {
        message = message.and(around);
    }
    if let Some(at) = A::CHECKSUM {
        message = message.and(update_quoted(frame, quoted.l3 + at, |field| addresses.apply(field)));
    }
    let (at, is_udp) = match quoted.tuple.protocol {
        Protocol::Tcp => (quoted.l4 + tcp::CHECKSUM, false),
        Protocol::Udp => (quoted.l4 + udp::CHECKSUM, true),
    };
    if at + 2 <= usize::from(meta.end) {
        let update = |field| if is_udp { both.apply_udp(field) } else { both.apply(field) };
        message = message.and(update_quoted(frame, at, update));
    }
    let field = usize::from(meta.l4) + CHECKSUM;
    put_u16(frame, field, message.apply(get_u16(frame, field)));
}

/// Changes a checksum inside the quote. Returns what that changes about the checksum around the quote.
fn update_quoted(frame: &mut [u8], at: usize, update: impl Fn(u16) -> u16) -> Delta {
    let (old, new) = (get_u16(frame, at), update(get_u16(frame, at)));
    put_u16(frame, at, new);
    Delta::default().word(old, new)
}
