//! What a frame is: its headers are read once, here, into a small [`Meta`], and "is it ours?" is answered.
//!
//! "Ours" is decided by the link address, the IP addresses and the ports alone, in the very order in which the XDP
//! program decides it (engine's steering rules, made by [`Snapshot::steering`]): lengths and checksums are judged
//! after that, so that a broken packet of ours is a counted drop and a broken packet of somebody else's is theirs.
//! Later fragments and ICMP errors carry no ports: for our addresses they are ours until their flow is looked up.

use crate::service::ServiceId;
use crate::snapshot::Snapshot;
use crate::tuple::{Address, Endpoint, Protocol, Tuple, V4};
use crate::verdict::DropReason;
use crate::wire::checksum;
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
    /// Whether the sender forbids fragmentation.
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

/// What names a fragmented packet (RFC 791: source, destination, protocol, identification).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Identification; 32 bits in IPv6.
    pub id: u32,
    /// IP protocol number.
    pub protocol: u8,
}

/// A TCP or UDP packet of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// By which of our tables it is ours.
    pub role: Role,
    /// Its addresses and ports (for a later fragment: those of its first).
    pub tuple: Tuple<A>,
    /// Its headers.
    pub meta: Meta,
}

impl<A> Packet<A> {
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
    /// TCP or UDP, with ports, by one of our tables.
    Flow(Packet<V4>),
    /// A later fragment from or to one of our addresses.
    Fragment(FragmentKey<V4>, Meta),
    /// An ICMP error from or to one of our addresses.
    IcmpError(Meta),
    /// The kernel's.
    NotOurs,
    /// Ours, and broken.
    Drop(DropReason),
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ICMP: u8 = 1;
/// Destination unreachable, source quench, time exceeded, parameter problem.
const ICMP_ERRORS: [u8; 4] = [3, 4, 11, 12];

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
        ETHERTYPE_IPV4 => ipv4(frame, l3, snapshot),
        _ => Class::NotOurs,
    }
}

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

/// By what a packet is ours.
enum Ours {
    /// Ports, by one of our tables.
    Ports(Role, Tuple<V4>),
    /// The address of a later fragment.
    Fragment,
    /// The address of an ICMP error.
    IcmpError,
}

/// Built once, at the end and field by field: a class that is copied while it is still being written costs more than
/// all of its checks.
#[inline(always)]
fn ipv4(frame: &[u8], l3: usize, snapshot: &Snapshot) -> Class {
    let Some(ip) = Ipv4::read(&frame[l3..]) else { return Class::NotOurs };
    let l4 = l3 + ip.header_len;
    let fragment = ip.fragmentation();
    let Some(ours) = ours(frame, l4, &ip, fragment, snapshot) else { return Class::NotOurs };
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
    match ours {
        Ours::Ports(role, tuple) => {
            match check_transport(&frame[l4..l3 + ip.total_len], tuple.protocol, fragment) {
                Ok(tcp_flags) => Class::Flow(Packet { role, tuple, meta: meta(tcp_flags) }),
                Err(reason) => Class::Drop(reason),
            }
        }
        Ours::Fragment => {
            let key = FragmentKey { src: ip.src, dst: ip.dst, id: ip.id.into(), protocol: ip.protocol };
            Class::Fragment(key, meta(0))
        }
        Ours::IcmpError => Class::IcmpError(meta(0)),
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
fn ours(frame: &[u8], l4: usize, ip: &Ipv4, fragment: Fragmentation, snapshot: &Snapshot) -> Option<Ours> {
    if fragment == Fragmentation::Later {
        return by_address(ip, snapshot).then_some(Ours::Fragment);
    }
    if ip.protocol == ICMP {
        let is_error = frame.get(l4).is_some_and(|kind| ICMP_ERRORS.contains(kind));
        return (is_error && by_address(ip, snapshot)).then_some(Ours::IcmpError);
    }
    let protocol = Protocol::from_number(ip.protocol)?;
    let &[s0, s1, d0, d1] = frame[l4..].first_chunk::<4>()?;
    let src = Endpoint::new(ip.src, u16::from_be_bytes([s0, s1]));
    let dst = Endpoint::new(ip.dst, u16::from_be_bytes([d0, d1]));
    let tuple = Tuple { src, dst, protocol };
    role(&tuple, snapshot).map(|role| Ours::Ports(role, tuple))
}

/// Whether an address of the packet is one that steering names.
fn by_address(ip: &Ipv4, snapshot: &Snapshot) -> bool {
    let (src, dst) = (ip.src.to_ip(), ip.dst.to_ip());
    snapshot.index().has_address(dst)
        || snapshot.locals().has_address(dst)
        || snapshot.nat_servers().has_address(src)
}

/// Which of our tables a tuple is in. Services come first, then local addresses, then NAT servers.
#[inline]
pub fn role<A: Address>(tuple: &Tuple<A>, snapshot: &Snapshot) -> Option<Role> {
    let dst = tuple.dst.address.to_ip();
    if let Some(service) = snapshot.index().lookup(dst, tuple.dst.port, tuple.protocol) {
        return Some(Role::Request(service));
    }
    if snapshot.locals().contains(dst, tuple.protocol, tuple.dst.port) {
        return Some(Role::LocalReply);
    }
    let from_server =
        snapshot.nat_servers().contains(tuple.src.address.to_ip(), tuple.protocol, tuple.src.port);
    from_server.then_some(Role::ServerReply)
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
