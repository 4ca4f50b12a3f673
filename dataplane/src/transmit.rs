//! The last stage: next hop, size, rewrite, link header. And what goes back when a packet cannot go on.

use shunt_engine::{Frame, PortId, WorkerId};

use crate::classify::{Fragmentation, Meta};
use crate::conn::Conn;
use crate::counters::Event;
use crate::emit::{Bare, RateLimit};
use crate::flow::Context;
use crate::forward::{self, dr, fullnat, nat};
use crate::icmp::{self, Quoted, Tunnelled};
use crate::ip::Ip;
use crate::neigh::{HopId, NextHop};
use crate::server::{Mode, Server};
use crate::verdict::{Decision, DropReason};
use crate::way;
use crate::wire::ethernet::ethertype;

/// What one worker originates: its share of what is rate-limited, and of identifications.
#[derive(Debug, Default)]
pub struct Originated {
    icmp: RateLimit,
    resets: RateLimit,
    /// Identification of the last outer IPv4 header.
    ip_id: u16,
    /// Identification of the last IPv6 packet that was cut: the worker's number, and a count.
    fragment_id: u32,
}

impl Originated {
    /// What `worker` originates. `seed` says where its identifications begin: nobody else shall guess them (RFC 7739).
    pub(crate) fn new(worker: WorkerId, seed: u64) -> Self {
        let fragment_id = u32::from(worker.0) << Self::COUNT_BITS | seed as u32 & Self::COUNT;
        Self { fragment_id, ..Self::default() }
    }

    /// At a million cut packets a second the same identification comes back after a minute, when the fragments of its
    /// last packet are gone (RFC 8200 §4.5).
    const COUNT_BITS: u32 = 26;
    const COUNT: u32 = (1 << Self::COUNT_BITS) - 1;

    /// The identification of another outer IPv4 header.
    #[inline]
    pub(crate) fn next_ip_id(&mut self) -> u16 {
        self.ip_id = self.ip_id.wrapping_add(1);
        self.ip_id
    }

    fn next_fragment_id(&mut self) -> u32 {
        self.fragment_id = self.fragment_id & !Self::COUNT | self.fragment_id.wrapping_add(1) & Self::COUNT;
        self.fragment_id
    }
}

/// A resolved next hop.
#[derive(Clone, Copy, Debug)]
struct Link<'a> {
    hop: &'a NextHop,
    destination: shunt_engine::port::MacAddr,
    /// Largest packet, in bytes: the hop's, or less where the way is known to be narrow.
    mtu: u16,
}

/// A client's packet, on to the server.
#[inline]
pub fn request<A: Ip>(
    cx: &mut Context<'_, '_>,
    conn: &mut Conn<A>,
    server: &Server,
    meta: &Meta,
    frame: &mut Frame,
) -> Decision {
    learn_client(conn, cx, frame);
    let link = match to_server(cx, conn, server) {
        Ok(link) => link,
        Err(reason) => return Decision::Drop(reason),
    };
    let overhead = overhead::<A>(conn.mode());
    let fits = match check::<A>(cx, &link, overhead, meta, frame) {
        Ok(fits) => fits,
        Err(reason) => return Decision::Drop(reason),
    };
    let later = meta.fragment == Fragmentation::Later;
    let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    match conn.mode() {
        Mode::Fullnat if later => {
            fullnat::later(frame.data_mut(), l3, conn.peer.address, conn.server.address)
        }
        Mode::Fullnat => fullnat::request(frame.data_mut(), l3, l4, conn.protocol(), conn.peer, conn.server),
        Mode::Nat if later => nat::later_request(frame.data_mut(), l3, conn.server.address),
        Mode::Nat => nat::request(frame.data_mut(), l3, l4, conn.protocol(), conn.server),
        Mode::Dr | Mode::Tun => dr::request::<A>(frame.data_mut(), l3),
    }
    let encapsulate = (conn.mode() == Mode::Tun).then(|| tunnel_ends(&link, conn));
    leave(cx, &link, encapsulate, fits, meta, frame)
}

/// A server's packet, back to the client.
#[inline]
pub fn reply<A: Ip>(
    cx: &mut Context<'_, '_>,
    conn: &mut Conn<A>,
    meta: &Meta,
    frame: &mut Frame,
) -> Decision {
    let link = match to_client(cx, conn) {
        Ok(link) => link,
        Err(reason) => return Decision::Drop(reason),
    };
    let fits = match check::<A>(cx, &link, 0, meta, frame) {
        Ok(fits) => fits,
        Err(reason) => return Decision::Drop(reason),
    };
    let later = meta.fragment == Fragmentation::Later;
    let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    match conn.mode() {
        Mode::Fullnat if later => fullnat::later(frame.data_mut(), l3, conn.vip.address, conn.client.address),
        Mode::Fullnat => fullnat::reply(frame.data_mut(), l3, l4, conn.protocol(), conn.vip, conn.client),
        Mode::Nat if later => nat::later_reply(frame.data_mut(), l3, conn.vip.address),
        Mode::Nat => nat::reply(frame.data_mut(), l3, l4, conn.protocol(), conn.vip),
        // No reply tuple is in the table for these modes, so no packet gets here.
        Mode::Dr | Mode::Tun => return Decision::Punt,
    }
    leave::<A>(cx, &link, None, fits, meta, frame)
}

/// Whether the packet may travel on: its TTL lasts, and it fits (or may be cut). Answers with ICMP if not.
#[inline]
fn check<A: Ip>(
    cx: &mut Context<'_, '_>,
    link: &Link<'_>,
    overhead: u16,
    meta: &Meta,
    frame: &Frame,
) -> Result<bool, DropReason> {
    if meta.ttl <= 1 {
        icmp_back::<A>(cx, icmp::Error::TimeExceeded, meta, frame);
        return Err(DropReason::TtlExceeded);
    }
    let room = link.mtu.saturating_sub(overhead);
    let fits = meta.l3_len() <= room;
    let carried = overhead > 0 && meta.l3_len() <= A::TUNNEL_CARRIES;
    if !fits && meta.dont_fragment && !carried {
        icmp_back::<A>(cx, icmp::Error::TooBig { mtu: room.max(A::MTU_MIN) }, meta, frame);
        return Err(DropReason::MtuExceeded);
    }
    Ok(fits)
}

/// Encapsulates, cuts if need be, and gives the packet its new link header.
#[inline]
fn leave<A: Ip>(
    cx: &mut Context<'_, '_>,
    link: &Link<'_>,
    tunnel: Option<(A, A)>,
    fits: bool,
    meta: &Meta,
    frame: &mut Frame,
) -> Decision {
    if !fits {
        return leave_in_parts(cx, link, tunnel, meta, frame);
    }
    match dress(cx, link, tunnel, usize::from(meta.l3), frame) {
        Ok(()) => Decision::Forward(link.hop.port),
        Err(reason) => Decision::Drop(reason),
    }
}

/// Outer header if the packet is to be tunnelled, and the link header instead of the one of `l2_len` bytes.
#[inline(always)]
fn dress<A: Ip>(
    cx: &mut Context<'_, '_>,
    link: &Link<'_>,
    tunnel: Option<(A, A)>,
    mut l2_len: usize,
    frame: &mut Frame,
) -> Result<(), DropReason> {
    if let Some((src, dst)) = tunnel {
        A::encapsulate(frame, l2_len, src, dst, cx.shared.originated.next_ip_id())
            .map_err(|_| DropReason::NoHeadroom)?;
        l2_len = 0;
    }
    forward::set_link(frame, l2_len, link.hop.source, link.destination, link.hop.vid)
        .map_err(|_| DropReason::NoHeadroom)
}

#[cold]
fn leave_in_parts<A: Ip>(
    cx: &mut Context<'_, '_>,
    link: &Link<'_>,
    mut tunnel: Option<(A, A)>,
    meta: &Meta,
    frame: &mut Frame,
) -> Decision {
    let (mut start, mut end, mut mtu) = (usize::from(meta.l3), usize::from(meta.end), link.mtu);
    match tunnel {
        Some((src, dst)) if A::TUNNEL_CARRIES > 0 => {
            if A::encapsulate(frame, start, src, dst, 0).is_err() {
                return Decision::Drop(DropReason::NoHeadroom);
            }
            (start, end, tunnel) = (0, frame.len(), None);
        }
        Some(_) => mtu = mtu.saturating_sub(A::TUNNEL_OVERHEAD),
        None => {}
    }
    let id = cx.shared.originated.next_fragment_id();
    let Some(parts) = A::fragments(&frame.data()[start..end], mtu, id) else {
        return Decision::Drop(DropReason::MtuExceeded);
    };
    // All parts or none: a receiver can do nothing with some.
    if parts.clone().count() > cx.emit.available() {
        return Decision::Drop(DropReason::NoBuffer);
    }
    for part in parts {
        let Some(mut out) = cx.emit.alloc() else { return Decision::Drop(DropReason::NoBuffer) };
        if !part.write(&mut out) || dress(cx, link, tunnel, 0, &mut out).is_err() {
            cx.emit.free(out);
            return Decision::Drop(DropReason::NoHeadroom);
        }
        cx.emit.send(link.hop.port, out);
        cx.counters.event(Event::FragmentsSent);
    }
    cx.counters.event(Event::PacketsFragmented);
    Decision::Replaced
}

/// An ICMP error that a client's side sent about a packet from the VIP: on to the server that wrote it.
pub fn icmp_to_server<A: Ip>(
    cx: &mut Context<'_, '_>,
    conn: &Conn<A>,
    server: &Server,
    quoted: &Quoted<A>,
    meta: &Meta,
    frame: &mut Frame,
) -> Decision {
    let link = match to_server(cx, conn, server) {
        Ok(link) => link,
        Err(reason) => return Decision::Drop(reason),
    };
    let fits = match check_error(&link, overhead::<A>(conn.mode()), meta) {
        Ok(fits) => fits,
        Err(reason) => return Decision::Drop(reason),
    };
    match conn.mode() {
        Mode::Fullnat => {
            let outer = icmp::Outer { src: Some(conn.peer.address), dst: conn.server.address };
            icmp::translate(frame.data_mut(), meta, quoted, outer, conn.server, conn.peer);
        }
        Mode::Nat => {
            let outer = icmp::Outer { src: None, dst: conn.server.address };
            icmp::translate(frame.data_mut(), meta, quoted, outer, conn.server, conn.client);
        }
        Mode::Dr | Mode::Tun => dr::request::<A>(frame.data_mut(), usize::from(meta.l3)),
    }
    let encapsulate = (conn.mode() == Mode::Tun).then(|| tunnel_ends(&link, conn));
    leave(cx, &link, encapsulate, fits, meta, frame)
}

/// An ICMP error that the server's side sent about a client's packet: on to the client.
pub fn icmp_to_client<A: Ip>(
    cx: &mut Context<'_, '_>,
    conn: &mut Conn<A>,
    quoted: &Quoted<A>,
    meta: &Meta,
    frame: &mut Frame,
) -> Decision {
    let link = match to_client(cx, conn) {
        Ok(link) => link,
        Err(reason) => return Decision::Drop(reason),
    };
    let fits = match check_error(&link, 0, meta) {
        Ok(fits) => fits,
        Err(reason) => return Decision::Drop(reason),
    };
    // The VIP speaks for everything behind it, as in LVS: inner addresses stay inside.
    let outer = icmp::Outer { src: Some(conn.vip.address), dst: conn.client.address };
    icmp::translate(frame.data_mut(), meta, quoted, outer, conn.client, conn.vip);
    leave::<A>(cx, &link, None, fits, meta, frame)
}

/// Tells the client what the ICMP error in `frame` says about its packet in our tunnel.
pub fn tunnel_error<A: Ip>(
    cx: &mut Context<'_, '_>,
    conn: &mut Conn<A>,
    tunnelled: &Tunnelled<A>,
    meta: &Meta,
    frame: &Frame,
) -> Decision {
    learn_path_mtu(cx, conn, tunnelled);
    let link = match to_client(cx, conn) {
        Ok(link) => link,
        Err(reason) => return Decision::Drop(reason),
    };
    let packet = &frame.data()[tunnelled.at..usize::from(meta.end)];
    let source = own_address(cx, packet);
    let Some(mut out) = cx.emit.alloc() else { return Decision::Drop(DropReason::NoBuffer) };
    if !A::icmp_error(&mut out, tunnelled.error, source, packet)
        || dress(cx, &link, None::<(A, A)>, 0, &mut out).is_err()
    {
        cx.emit.free(out);
        return Decision::Drop(DropReason::NoHeadroom);
    }
    cx.emit.send(link.hop.port, out);
    Decision::Replaced
}

/// Remembers that the way of the tunnel of `conn` is narrow, if the error is about a packet from our end of it. The
/// connection's way is worked out anew.
fn learn_path_mtu<A: Ip>(cx: &mut Context<'_, '_>, conn: &mut Conn<A>, tunnelled: &Tunnelled<A>) {
    let Some(mtu) = tunnelled.narrow else { return };
    let Some(server) = cx.snapshot.server(conn.server_id) else { return };
    let from = to_server(cx, conn, server).map(|link| tunnel_ends(&link, conn).0);
    if from == Ok(tunnelled.from) {
        cx.shared.path_mtus.learn(conn.server_id, mtu, cx.ticks);
        cx.counters.event(Event::PathMtusLearnt);
        way::unsettle(conn);
    }
}

/// Answers a TCP segment with a RST, back the way it came.
pub fn reset<A: Ip>(cx: &mut Context<'_, '_>, meta: &Meta, frame: &Frame) {
    if meta.tcp_flags & crate::wire::tcp::flags::RST != 0 {
        return;
    }
    if !cx.shared.originated.resets.allow(cx.now) {
        cx.counters.event(Event::ResetsSuppressed);
        return;
    }
    let packet = &frame.data()[usize::from(meta.l3)..usize::from(meta.end)];
    let sent = send_back(cx, meta, frame, |out| A::reset(out, packet));
    cx.counters.event(if sent { Event::ResetsSent } else { Event::ResetsSuppressed });
}

/// Sends a TCP segment of our own to a connection's client, as the service. Returns whether it left.
pub(crate) fn tell_client<A: Ip>(cx: &mut Context<'_, '_>, conn: &mut Conn<A>, segment: Bare) -> bool {
    let Ok(link) = to_client(cx, conn) else { return false };
    tell::<A>(cx, &link, None, |out| segment.write(out, conn.vip, conn.client))
}

/// Sends a TCP segment of our own to a connection's server, as the client. Returns whether it left.
pub(crate) fn tell_server<A: Ip>(
    cx: &mut Context<'_, '_>,
    conn: &Conn<A>,
    server: &Server,
    segment: Bare,
) -> bool {
    let Ok(link) = to_server(cx, conn, server) else { return false };
    let target = if conn.mode().sees_replies() { conn.server } else { conn.vip };
    let tunnel = (conn.mode() == Mode::Tun).then(|| tunnel_ends(&link, conn));
    tell(cx, &link, tunnel, |out| segment.write(out, conn.peer, target))
}

fn tell<A: Ip>(
    cx: &mut Context<'_, '_>,
    link: &Link<'_>,
    tunnel: Option<(A, A)>,
    write: impl FnOnce(&mut Frame) -> bool,
) -> bool {
    let Some(mut out) = cx.emit.alloc() else { return false };
    if !write(&mut out) || dress(cx, link, tunnel, 0, &mut out).is_err() {
        cx.emit.free(out);
        return false;
    }
    cx.emit.send(link.hop.port, out)
}

/// Tells a client that nobody serves it, as LVS does: with an ICMP port unreachable, back the way it came.
pub fn unreachable<A: Ip>(cx: &mut Context<'_, '_>, meta: &Meta, frame: &Frame) {
    icmp_back::<A>(cx, icmp::Error::PortUnreachable, meta, frame);
}

#[cold]
fn icmp_back<A: Ip>(cx: &mut Context<'_, '_>, error: icmp::Error, meta: &Meta, frame: &Frame) {
    let packet = &frame.data()[usize::from(meta.l3)..usize::from(meta.end)];
    if !A::may_answer(packet) {
        return;
    }
    if !cx.shared.originated.icmp.allow(cx.now) {
        cx.counters.event(Event::IcmpSuppressed);
        return;
    }
    let source = own_address(cx, packet);
    let sent = send_back(cx, meta, frame, |out| A::icmp_error(out, error, source, packet));
    cx.counters.event(if sent { Event::IcmpSent } else { Event::IcmpSuppressed });
}

/// Whether an ICMP error may travel on, and fits. If not it goes silently, as later when it cannot be cut: nothing
/// answers an ICMP error.
fn check_error(link: &Link<'_>, overhead: u16, meta: &Meta) -> Result<bool, DropReason> {
    if meta.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    Ok(meta.l3_len() <= link.mtu.saturating_sub(overhead))
}

/// What `mode` adds to a packet, in bytes.
const fn overhead<A: Ip>(mode: Mode) -> u16 {
    match mode {
        Mode::Tun => A::TUNNEL_OVERHEAD,
        Mode::Fullnat | Mode::Nat | Mode::Dr => 0,
    }
}

/// The address we speak from to a packet's sender: our own on the way there, else the one it called.
fn own_address<A: Ip>(cx: &Context<'_, '_>, packet: &[u8]) -> A {
    let (src, dst) = (A::get(packet, A::SOURCE), A::get(packet, A::SOURCE + A::LEN));
    let hop = cx.snapshot.route(src.to_ip()).and_then(|id| cx.snapshot.hop(id));
    hop.and_then(|hop| hop.address).and_then(A::from_ip).unwrap_or(dst)
}

/// Emits a packet that `write` makes to the station `frame` came from, by the port it came in by. Returns false when
/// there is nothing to say, no buffer, or no single station to say it to.
fn send_back(
    cx: &mut Context<'_, '_>,
    meta: &Meta,
    frame: &Frame,
    write: impl FnOnce(&mut Frame) -> bool,
) -> bool {
    let header = &frame.data()[..usize::from(meta.l3)];
    if header[6] & 1 != 0 {
        return false;
    }
    let Some(mut out) = cx.emit.alloc() else { return false };
    if !write(&mut out) || !out.push_front(header.len()) {
        cx.emit.free(out);
        return false;
    }
    let (to, from) = (&header[6..12], &header[..6]);
    let data = out.data_mut();
    data[..6].copy_from_slice(to);
    data[6..12].copy_from_slice(from);
    data[12..header.len()].copy_from_slice(&header[12..]);
    let port: PortId = frame.port();
    cx.emit.send(port, out)
}

/// Keeps the station that the client's packets come from, if that is on the client's own network. On another it is a
/// router, whose link address means nothing on the client's.
#[inline]
fn learn_client<A: Ip>(conn: &mut Conn<A>, cx: &Context<'_, '_>, frame: &Frame) {
    way::settle(conn, cx);
    let Some(hop) = cx.snapshot.hop(HopId(conn.client_hop)).filter(|hop| hop.attached) else { return };
    if hop.port == frame.port()
        && let Some(&[.., s0, s1, s2, s3, s4, s5, t0, t1, v0, v1]) = frame.data().first_chunk::<16>()
        // A group address is no station's.
        && s0 & 1 == 0
    {
        let tag = u16::from_be_bytes([v0, v1]) & 0x0fff;
        let vid = if [t0, t1] == ethertype::VLAN.to_be_bytes() { tag } else { 0 };
        if vid == hop.vid.unwrap_or(0) {
            conn.client_mac = [s0, s1, s2, s3, s4, s5];
        }
    }
    if conn.client_mac == [0; 6] {
        way::unsettle(conn);
    }
}

#[inline]
fn to_server<'a, A: Ip>(
    cx: &Context<'a, '_>,
    conn: &Conn<A>,
    server: &Server,
) -> Result<Link<'a>, DropReason> {
    let hops = server.hop.as_ref().ok_or(DropReason::NoRoute)?;
    let hop = cx.snapshot.hop(hops.of(|| cx.shared.path_of(conn))).ok_or(DropReason::NoRoute)?;
    let destination = hop.destination.ok_or(DropReason::NoNeighbour)?;
    Ok(Link { hop, destination, mtu: path_mtu(cx, conn).map_or(hop.mtu, |mtu| mtu.min(hop.mtu)) })
}

#[inline]
fn to_client<'a, A: Ip>(cx: &Context<'a, '_>, conn: &mut Conn<A>) -> Result<Link<'a>, DropReason> {
    way::settle(conn, cx);
    let hop = cx.snapshot.hop(HopId(conn.client_hop)).ok_or(DropReason::NoRoute)?;
    let learnt = shunt_engine::port::MacAddr(conn.client_mac);
    let attached = (hop.attached && !learnt.is_zero()).then_some(learnt);
    let destination = hop.destination.or(attached).ok_or(DropReason::NoNeighbour)?;
    Ok(Link { hop, destination, mtu: hop.mtu })
}

/// The MTU of the way to the server of `conn`, if that is known to be too narrow for a tunnel.
#[inline]
pub(crate) fn path_mtu<A: Ip>(cx: &Context<'_, '_>, conn: &Conn<A>) -> Option<u16> {
    if A::TUNNEL_CARRIES == 0 || conn.mode() != Mode::Tun {
        return None;
    }
    cx.shared.path_mtus.of(conn.server_id, cx.ticks)
}

/// Outer source and destination: our address towards the server (the VIP where we have none), and the server.
#[inline]
fn tunnel_ends<A: Ip>(link: &Link<'_>, conn: &Conn<A>) -> (A, A) {
    let own = link.hop.address.and_then(A::from_ip).unwrap_or(conn.vip.address);
    (own, conn.server.address)
}
