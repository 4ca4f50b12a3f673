//! What a frame is: its headers are read once, here, into a small [`Meta`], and "is it ours?" is answered. One file
//! per family says how it is read; what both have in common is here.
//!
//! "Ours" is decided by the link address, the IP addresses and the ports alone, in the very order in which the XDP
//! program decides it (engine's steering rules, made by [`Snapshot::steering`]): lengths and checksums are judged
//! after that, so that a broken packet of ours is a counted drop and a broken packet of somebody else's is theirs.
//! Later fragments and ICMP errors carry no ports: for our addresses they are ours until their flow is looked up. So is
//! an ICMP error about a packet to a NAT server, which a router on the way sends to the client, and one about our tunnel,
//! which is sent to us.

mod ipv4;
pub(crate) mod ipv6;

use crate::service::ServiceId;
use crate::snapshot::Snapshot;
use crate::tuple::{Address, Endpoint, Protocol, Tuple, V4, V6};
use crate::verdict::DropReason;
use crate::wire::tcp::flags;

/// Where things are in a frame, and what later stages need of its headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Offset of the IP header: 14, or 18 behind an 802.1Q tag.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Offset behind the last byte of the IP packet; what follows is Ethernet padding.
    pub end: u16,
    /// TTL or hop limit, as received.
    pub ttl: u8,
    /// TCP flags byte; 0 for anything but TCP.
    pub tcp_flags: u8,
    /// Whether routers must not fragment the packet: as its sender says in IPv4, always in IPv6.
    pub dont_fragment: bool,
    /// Part of a fragmented packet?
    pub fragment: Fragmentation,
}

impl Meta {
    /// Length of the IP packet in bytes.
    #[inline]
    pub const fn l3_len(&self) -> u16 {
        self.end - self.l3
    }
}

/// Whether a packet is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragmentation {
    /// Not fragmented.
    #[default]
    Whole,
    /// The first fragment: it has the transport header.
    First,
    /// A later fragment: it has no transport header.
    Later,
}

/// Which of our tables a packet's addresses and ports are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A client's packet to a service.
    Request(ServiceId),
    /// A packet to a local address: a FULLNAT server's answer.
    LocalReply,
    /// A packet from a NAT server: an answer, unless it has no connection.
    ServerReply,
}

/// What names a fragmented packet (RFC 791: source, destination, protocol, identification; RFC 8200 §4.5: without the
/// protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Identification; 32 bits in IPv6.
    pub id: u32,
    /// IP protocol number. In IPv6 0 where TCP, UDP or an extension header may follow: the fragments of one packet may
    /// disagree about that.
    pub protocol: u8,
}

/// A TCP or UDP packet of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A: Address> {
    /// By which of our tables it is ours.
    pub role: Role,
    /// Its addresses and ports (for a later fragment: those of its first).
    pub tuple: Tuple<A>,
    /// Its headers.
    pub meta: Meta,
}

impl<A: Address> Packet<A> {
    /// Whether the packet can open a connection by itself: a first SYN, or any datagram (its first fragment).
    #[inline]
    pub fn opens(&self) -> bool {
        match self.tuple.protocol {
            Protocol::Tcp => self.meta.tcp_flags & (flags::SYN | flags::RST | flags::ACK) == flags::SYN,
            Protocol::Udp => self.meta.fragment != Fragmentation::Later,
        }
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Ours, in IPv4.
    V4(Ours<V4>),
    /// Ours, in IPv6.
    V6(Ours<V6>),
    /// The kernel's.
    NotOurs,
    /// Ours, and broken.
    Drop(DropReason),
}

/// What a packet of ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ours<A: Address> {
    /// TCP or UDP, with ports, by one of our tables.
    Flow(Packet<A>),
    /// A later fragment from or to one of our addresses.
    Fragment(FragmentKey<A>, Meta),
    /// An ICMP error from or to one of our addresses.
    IcmpError(Meta),
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;

/// Says what `frame` is. Pure, bounded and without panic for any bytes.
#[inline(always)]
pub fn classify(frame: &[u8], snapshot: &Snapshot) -> Class {
    let Some(&[m0, m1, m2, m3, m4, m5, _, _, _, _, _, _, t0, t1]) = frame.first_chunk::<14>() else {
        return Class::NotOurs;
    };
    if !snapshot.macs().iter().any(|mac| mac.0 == [m0, m1, m2, m3, m4, m5]) {
        return Class::NotOurs;
    }
    let (l3, ethertype) = match u16::from_be_bytes([t0, t1]) {
        ETHERTYPE_VLAN => match frame.get(16..18) {
            Some(inner) => (18, u16::from_be_bytes([inner[0], inner[1]])),
            None => return Class::NotOurs,
        },
        ethertype => (14, ethertype),
    };
    match ethertype {
        ETHERTYPE_IPV4 => ipv4::classify(frame, l3, snapshot),
        ETHERTYPE_IPV6 => ipv6::classify(frame, l3, snapshot),
        _ => Class::NotOurs,
    }
}

/// By what a packet is ours.
enum By<A: Address> {
    /// Ports, by one of our tables.
    Ports(Role, Tuple<A>),
    /// The address of a later fragment.
    Fragment(FragmentKey<A>),
    /// The address of an ICMP error, or whom it is about.
    IcmpError,
}

/// Whether a packet with these ports, which an ICMP error quotes, was going to a NAT server.
fn to_server<A: Address>(dst: A, protocol: u8, transport: &[u8], snapshot: &Snapshot) -> bool {
    let (Some(protocol), Some(&[_, _, d0, d1])) = (Protocol::from_number(protocol), transport.first_chunk())
    else {
        return false;
    };
    snapshot.nat_servers().contains(dst.to_ip(), protocol, u16::from_be_bytes([d0, d1]))
}

/// Whether a packet in a tunnel, which an ICMP error quotes, is one of ours.
fn tunnelled<A: Address>(src: A, dst: A, protocol: u8, transport: &[u8], snapshot: &Snapshot) -> bool {
    let protocol = Protocol::from_number(protocol);
    protocol.is_some_and(|protocol| by_ports(src, dst, protocol, transport, snapshot).is_some())
}

/// The table that the ports at the head of `transport` are in.
#[inline(always)]
fn by_ports<A: Address>(
    src: A,
    dst: A,
    protocol: Protocol,
    transport: &[u8],
    snapshot: &Snapshot,
) -> Option<By<A>> {
    let &[s0, s1, d0, d1] = transport.first_chunk::<4>()?;
    let src = Endpoint::new(src, u16::from_be_bytes([s0, s1]));
    let dst = Endpoint::new(dst, u16::from_be_bytes([d0, d1]));
    let tuple = Tuple { src, dst, protocol };
    role(&tuple, snapshot).map(|role| By::Ports(role, tuple))
}

/// Whether an address of a packet is one that steering names.
fn by_address<A: Address>(src: A, dst: A, snapshot: &Snapshot) -> bool {
    let (src, dst) = (src.to_ip(), dst.to_ip());
    snapshot.names(src, dst) || snapshot.index().has_address(dst)
}

/// Which of our tables a tuple is in. Services on single addresses come first, then local addresses, then NAT servers;
/// services on prefixes last, for what passes through them is not theirs when it is an answer.
#[inline]
pub fn role<A: Address>(tuple: &Tuple<A>, snapshot: &Snapshot) -> Option<Role> {
    let Tuple { src, dst, protocol } = *tuple;
    let to = dst.address.to_ip();
    if let Some(service) = snapshot.index().lookup(to, dst.port, protocol) {
        return Some(Role::Request(service));
    }
    if snapshot.locals().contains(to, protocol, dst.port) {
        return Some(Role::LocalReply);
    }
    if snapshot.nat_servers().contains(src.address.to_ip(), protocol, src.port) {
        return Some(Role::ServerReply);
    }
    snapshot.index().lookup_prefix(to, dst.port, protocol).map(Role::Request)
}

/// Checks the transport header's own lengths. Returns the TCP flags, 0 for UDP.
#[inline]
fn check_transport(bytes: &[u8], protocol: Protocol, fragment: Fragmentation) -> Result<u8, DropReason> {
    match protocol {
        Protocol::Tcp => {
            let header = bytes.first_chunk::<20>().ok_or(DropReason::Truncated)?;
            let header_len = usize::from(header[12] >> 4) * 4;
            if header_len < 20 {
                return Err(DropReason::BadLength);
            }
            if header_len > bytes.len() {
                return Err(DropReason::Truncated);
            }
            Ok(header[13])
        }
        Protocol::Udp => {
            let header = bytes.first_chunk::<8>().ok_or(DropReason::Truncated)?;
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            // The length is that of the whole datagram: a first fragment holds only its beginning.
            if len < 8 || (fragment == Fragmentation::Whole && len > bytes.len()) {
                return Err(DropReason::BadLength);
            }
            Ok(0)
        }
    }
}
