//! The short way of the usual packet: whole, without options, of an established connection whose way is known.
//!
//! Nearly all packets are such. Nothing asks whose they are, for their connection knows; nothing is looked up that the
//! record has; no step depends on the one before but through the cache. What is unusual in any respect goes the long way
//! ([`crate::classify`], [`crate::stages`]), which would do the same to a usual packet, more slowly; a test compares them.

use shunt_engine::port::MacAddr;
use shunt_engine::{Frame, Origin, PortId, WorkerId};

use crate::classify;
use crate::conn::{Conn, ConnFlags, Direction, State};
use crate::flow::{Context, Flows, Search};
use crate::ip::Ip;
use crate::neigh::{Exit, HopId};
use crate::server::Mode;
use crate::tuple::{Endpoint, Protocol, Tuple, V4, V6};
use crate::wire::checksum::{self, Delta, Sum};
use crate::wire::ethernet::ethertype;
use crate::wire::tcp::{self, flags};
use crate::wire::{Family, get_u16, ipip, ipv4, ipv6, put_u16, udp};

/// Which IP version a frame's packet is by its link header, and where it begins. `None` for frames to other stations.
#[inline(always)]
pub(crate) fn link(frame: &[u8], macs: &[MacAddr]) -> Option<(u16, usize)> {
    let head = frame.first_chunk::<18>()?;
    let ours = |mac: &MacAddr| mac.0 == [head[0], head[1], head[2], head[3], head[4], head[5]];
    if !macs.iter().any(ours) {
        return None;
    }
    match get_u16(head, 12) {
        ethertype::VLAN => Some((get_u16(head, 16), 18)),
        ethertype => Some((ethertype, 14)),
    }
}

/// Headroom of a usual frame: for a tunnel's header and a tag.
const ROOM: usize = 64;

/// How usual packets look in one IP version.
pub trait Usual: Ip {
    /// Where the header says which transport protocol follows.
    const PROTOCOL: usize;
    /// IP header and the first 20 bytes behind it, which are looked at as one.
    const HEADERS: usize = Self::HEADER_LEN + 20;

    /// Length of the packet that the IP header in `headers` begins.
    fn len(headers: &[u8]) -> usize;

    /// Whether the IP header is as usual: right, of a whole packet, without options, and with hops left.
    fn is_usual(headers: &[u8]) -> bool;

    /// What a link header says of this version.
    const ETHERTYPE: u16;

    /// Writes a tunnel's header, from `src` to `dst`, at the head of `packet`; the packet in the tunnel is behind it. As
    /// [`Ip::encapsulate`] does.
    fn wrap(packet: &mut [u8], src: Self, dst: Self, id: u16);
}

impl Usual for V4 {
    const PROTOCOL: usize = 9;

    #[inline(always)]
    fn len(headers: &[u8]) -> usize {
        get_u16(headers, 2).into()
    }

    #[inline(always)]
    fn is_usual(headers: &[u8]) -> bool {
        let header: &[u8; 20] = headers.first_chunk().expect("headers are longer");
        let is_whole = get_u16(header, 6) & 0x3fff == 0;
        (header[0] == 0x45) & is_whole & (header[8] > 1) & Sum::is_right(header)
    }

    const ETHERTYPE: u16 = ethertype::IPV4;

    #[inline(always)]
    fn wrap(packet: &mut [u8], src: Self, dst: Self, id: u16) {
        let (outer, inner) = packet.split_first_chunk_mut::<{ ipv4::HEADER_LEN }>().expect("room was made");
        let version_and_tos = 0x4500 | u16::from(inner[1]);
        let len = get_u16(inner, 2) + ipip::OVERHEAD;
        let dont_fragment = get_u16(inner, 6) & ipv4::DONT_FRAGMENT;
        let ttl = u16::from(inner[8]) << 8;
        let sum = checksum::pseudo_header(src, dst, ipv4::protocol::IPIP, len.into());
        let sum = sum.word(version_and_tos).word(id).word(dont_fragment).word(ttl);
        put_u16(outer, 0, version_and_tos);
        put_u16(outer, 2, len);
        put_u16(outer, 4, id);
        put_u16(outer, 6, dont_fragment);
        put_u16(outer, 8, ttl | u16::from(ipv4::protocol::IPIP));
        put_u16(outer, 10, sum.checksum());
        src.put(outer, Self::SOURCE);
        dst.put(outer, Self::SOURCE + Self::LEN);
    }
}

impl Usual for V6 {
    const PROTOCOL: usize = 6;

    #[inline(always)]
    fn len(headers: &[u8]) -> usize {
        Self::HEADER_LEN + usize::from(get_u16(headers, 4))
    }

    #[inline(always)]
    fn is_usual(headers: &[u8]) -> bool {
        (headers[0] >> 4 == 6) & (headers[7] > 1)
    }

    const ETHERTYPE: u16 = ethertype::IPV6;

    #[inline(always)]
    fn wrap(packet: &mut [u8], src: Self, dst: Self, _id: u16) {
        let (outer, inner) = packet.split_first_chunk_mut::<{ ipv6::HEADER_LEN }>().expect("room was made");
        // Version, traffic class and flow label.
        outer[..4].copy_from_slice(&inner[..4]);
        put_u16(outer, 4, get_u16(inner, 4) + ipv6::HEADER_LEN as u16);
        outer[6] = ipv6::protocol::IPV6;
        outer[7] = inner[7];
        src.put(outer, Self::SOURCE);
        dst.put(outer, Self::SOURCE + Self::LEN);
    }
}

/// Whether a transport header of `len` bytes with its payload is as usual: right, and neither opening nor closing.
#[inline(always)]
fn transport_is_usual(protocol: u8, header: &[u8], len: usize) -> bool {
    if protocol == Protocol::Tcp.number() {
        let header_len = usize::from(header[12] >> 4) * 4;
        let steady = header[13] & (flags::SYN | flags::FIN | flags::RST | flags::ACK) == flags::ACK;
        (header_len >= 20) & (header_len <= len) & steady
    } else {
        let udp_len = usize::from(get_u16(header, 4));
        (protocol == Protocol::Udp.number()) & (udp_len >= 8) & (udp_len <= len)
    }
}

#[inline(always)]
fn tuple<A: Usual>(headers: &[u8]) -> Tuple<A> {
    let end = |address: usize, port: usize| {
        Endpoint::new(A::get(headers, address), get_u16(headers, A::HEADER_LEN + port))
    };
    let protocol = if headers[A::PROTOCOL] == 6 { Protocol::Tcp } else { Protocol::Udp };
    Tuple { src: end(A::SOURCE, 0), dst: end(A::SOURCE + A::LEN, 2), protocol }
}

impl<A: Usual> Flows<A> {
    /// Begins the search for the connection of the packet at `l3`, if it is a usual one.
    #[inline(always)]
    pub(crate) fn usual(&self, frame: &[u8], l3: usize) -> Option<Search> {
        let headers = frame.get(l3..)?.get(..A::HEADERS)?;
        let len = A::len(headers);
        let room = len.wrapping_sub(A::HEADER_LEN);
        let usual = A::is_usual(headers) & (len >= A::HEADER_LEN) & (l3 + len <= frame.len());
        let transport = transport_is_usual(headers[A::PROTOCOL], &headers[A::HEADER_LEN..], room);
        (usual & transport).then(|| self.seek(&tuple(headers)))
    }

    /// Sends the usual packet at `l3` on. `None` if it has to go the long way; nothing has changed then.
    #[inline(always)]
    pub(crate) fn forward(
        &mut self,
        cx: &mut Context<'_, '_>,
        search: &Search,
        l3: usize,
        frame: &mut Frame,
    ) -> Option<PortId> {
        let candidate = search.candidate()?;
        let headers = frame.data().get(l3..)?.get(..A::HEADERS)?;
        let len = A::len(headers);
        let (conn, direction) = self.table.candidate_mut(candidate, &tuple(headers))?;
        let exit = exit(conn, direction, cx)?;
        let is_tunnel = conn.mode == Mode::Tun as u8;
        let overhead = if is_tunnel { A::TUNNEL_OVERHEAD } else { 0 };
        let fits = len + usize::from(overhead) <= usize::from(exit.mtu);
        let has_headroom = frame.headroom() >= ROOM;
        if !(fits & has_headroom) || !knows_client(conn, direction, frame, cx) {
            return None;
        }
        conn.last_seen = cx.ticks;
        cx.counters.packet_of_known(conn.server_id, direction == Direction::Request, len as u64);
        let headers = &mut frame.data_mut()[l3..l3 + A::HEADERS];
        if conn.mode().sees_replies() {
            rewrite(headers, conn, direction);
        } else {
            lose_hop::<A>(headers, Delta::default());
        }
        if is_tunnel {
            through_tunnel(cx, conn, exit, l3, len, frame);
        } else if l3 == exit.link_len() {
            exit.write(frame.data_mut(), conn.client_mac);
        } else {
            behind_another_header(exit, l3, conn.client_mac, frame);
        }
        Some(exit.port)
    }
}

impl<A: Usual> Flows<A> {
    /// The worker that the usual packet at `l3` is handed to, since it is at home there and unknown here. `None` if it has
    /// to go the long way.
    #[inline]
    pub(crate) fn stray(
        &mut self,
        cx: &Context<'_, '_>,
        search: &Search,
        l3: usize,
        frame: &Frame,
    ) -> Option<WorkerId> {
        if !self.strays.is_possible() || search.candidate().is_some() || cx.origin != Origin::Port {
            return None;
        }
        self.strays
            .find(search.hash(), cx.snapshot.generation())
            .or_else(|| self.find_home(cx, search, l3, frame))
    }

    #[inline(never)]
    fn find_home(
        &mut self,
        cx: &Context<'_, '_>,
        search: &Search,
        l3: usize,
        frame: &Frame,
    ) -> Option<WorkerId> {
        let tuple = tuple::<A>(frame.data().get(l3..)?.get(..A::HEADERS)?);
        let role = classify::role(&tuple, cx.snapshot)?;
        let home = cx.shared.home_of(cx.snapshot, role, &tuple);
        if home == cx.shared.worker || cx.shared.earlier_home_of(cx.snapshot, role, &tuple).is_some() {
            return None;
        }
        self.strays.note(search.hash(), cx.snapshot.generation(), home);
        Some(home)
    }
}

/// The way out of a packet of `conn`, if the connection goes on as it has.
#[inline(always)]
fn exit<'a, A: Ip>(conn: &Conn<A>, direction: Direction, cx: &Context<'a, '_>) -> Option<&'a Exit> {
    const UNUSUAL: u8 = ConnFlags::MOVED | ConnFlags::PARKED | ConnFlags::DRAINED;
    let goes_on = conn.flags.0 & (UNUSUAL | ConnFlags::AGAIN) == ConnFlags::AGAIN;
    let is_steady = (conn.state == State::Established as u8) | (conn.state == State::Udp as u8);
    let is_known = conn.generation == cx.snapshot.generation();
    let hop = match direction {
        Direction::Request => conn.server_hop,
        Direction::Reply => conn.client_hop,
    };
    if goes_on & is_steady & is_known { cx.snapshot.exit(HopId(hop)) } else { None }
}

/// Whether a packet tells nothing new about where its client is: a reply, or a request from the station on record or from
/// a router, which is not kept.
#[inline(always)]
fn knows_client<A: Ip>(conn: &Conn<A>, direction: Direction, frame: &Frame, cx: &Context<'_, '_>) -> bool {
    direction == Direction::Reply
        || conn.client_mac == [0; 6]
        || frame.data().get(6..12) == Some(&conn.client_mac)
        || cx.snapshot.exit(HopId(conn.client_hop)).is_none_or(|exit| !exit.attached)
}

/// Gives a packet the addresses and ports that its connection has on the other side.
#[inline(always)]
fn rewrite<A: Usual>(headers: &mut [u8], conn: &Conn<A>, direction: Direction) {
    let (src, dst, undone) = match direction {
        Direction::Request => (&conn.peer, &conn.server, false),
        Direction::Reply => (&conn.vip, &conn.client, true),
    };
    { src.address }.put(headers, A::SOURCE);
    { dst.address }.put(headers, A::SOURCE + A::LEN);
    put_u16(headers, A::HEADER_LEN, src.port);
    put_u16(headers, A::HEADER_LEN + 2, dst.port);
    let delta = Delta::folded(conn.deltas.endpoints, undone);
    if conn.protocol == Protocol::Tcp.number() {
        let at = A::HEADER_LEN + tcp::CHECKSUM;
        put_u16(headers, at, delta.apply(get_u16(headers, at)));
    } else {
        let at = A::HEADER_LEN + udp::CHECKSUM;
        put_u16(headers, at, delta.apply_udp(get_u16(headers, at)));
    }
    lose_hop::<A>(headers, Delta::folded(conn.deltas.addresses, undone));
}

/// Takes one from the TTL, and brings the header's checksum up to date with it and with `delta`.
#[inline(always)]
fn lose_hop<A: Usual>(headers: &mut [u8], delta: Delta) {
    headers[A::TTL] -= 1;
    if let Some(at) = A::CHECKSUM {
        put_u16(headers, at, delta.word(0x0100, 0).apply(get_u16(headers, at)));
    }
}

/// Puts the packet of `len` bytes at `l3` into another one to its server.
#[inline(always)]
fn through_tunnel<A: Usual>(
    cx: &mut Context<'_, '_>,
    conn: &Conn<A>,
    exit: &Exit,
    l3: usize,
    len: usize,
    frame: &mut Frame,
) {
    let own = exit.address.and_then(A::from_ip).unwrap_or(conn.vip.address);
    let id = cx.shared.originated.next_ip_id();
    // What is behind the packet stays behind.
    let fits = frame.set_len(l3 + len) && frame.push_front(exit.link_len() + A::HEADER_LEN - l3);
    debug_assert!(fits, "the frame has {ROOM} bytes of headroom");
    let data = frame.data_mut();
    exit.write_typed(data, A::ETHERTYPE, conn.client_mac);
    A::wrap(&mut data[exit.link_len()..], own, conn.server.address, id);
}

/// Gives the packet at `l3` a link header of another length.
#[inline(never)]
fn behind_another_header(exit: &Exit, l3: usize, client: [u8; 6], frame: &mut Frame) {
    let ethertype = get_u16(frame.data(), l3 - 2);
    frame.pull_front(l3);
    let fits = frame.push_front(exit.link_len());
    debug_assert!(fits, "the frame has {ROOM} bytes of headroom");
    exit.write_typed(frame.data_mut(), ethertype, client);
}
