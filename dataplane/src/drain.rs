//! The end of draining: when a server's time is over, what is left of its connections is reset on both sides.
//!
//! A receiver takes a RST at once only if its sequence number is exactly the one it expects next (RFC 5961 §3.2), and
//! records do not follow sequence numbers. They need not: a segment that one side sends says what that side expects
//! (its acknowledgement) and what the other side expects (its own number, when all before it has arrived). So at the
//! deadline connections are only marked. From then on every segment is dropped, answered with a RST, and reported to
//! the other side with another. What was lost or overtaken on the way makes a receiver answer with an ACK instead, and
//! that is a segment like any other.
//!
//! Silent sides are asked: a bare ACK with numbers out of nowhere is outside of every window but one in some thousands,
//! and RFC 9293 §3.10.7.4 has it answered with an ACK. (Linux does so at most every 500 ms per connection,
//! net.ipv4.tcp_invalid_ratelimit, and has no limit for all together as for challenge ACKs.) It is repeated with
//! numbers half the space away. A side without the connection answers with a RST of its own, and is left in peace.
//!
//! In DR and TUN only the client can be asked, and its segments alone tell the numbers for both sides. Datagrams have
//! nobody to tell: their flows end, and the next datagram goes to another server.

use arrayvec::ArrayVec;
use shunt_engine::{Duration, Frame, Instant};

use crate::classify::{Fragmentation, Packet};
use crate::conn::{ConnFlags, ConnId, Direction, Hit, State};
use crate::counters::Event;
use crate::emit::Bare;
use crate::flow::{Context, Flows, Tick};
use crate::ip::Ip;
use crate::server::Server;
use crate::snapshot::Snapshot;
use crate::transmit;
use crate::tuple::Protocol;
use crate::verdict::{Decision, DropReason};
use crate::wire::tcp::{self, flags};

/// The walk over the table that follows a deadline.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sweep {
    /// The record looked at next, while a walk is under way.
    at: Option<u32>,
    /// When the walk under way began.
    began: Instant,
    /// Deadlines up to this one have been seen to.
    done: Instant,
    /// When the next step, or the next walk, is due at the earliest.
    next: Instant,
    /// Whether the walk under way has met sides that have not answered yet.
    waits: bool,
    /// Walks so far.
    number: u32,
}

impl Sweep {
    /// A step every millisecond: so many records, of which so many are asked.
    const STEP: Duration = Duration::from_millis(1);
    const RECORDS: u32 = 2048;
    const PIECE: u32 = 32;
    /// How often silent sides are asked.
    const AGAIN: Duration = Duration::from_secs(1);

    /// There is a new snapshot: its deadlines may be other ones.
    pub(crate) fn restart(&mut self) {
        self.done = Instant::ZERO;
        self.at = self.at.map(|_| 0);
    }

    /// When there is something to do next.
    pub(crate) fn due(&self, snapshot: &Snapshot) -> Option<Instant> {
        if self.at.is_some() {
            return Some(self.next);
        }
        let again = self.waits.then_some(self.next);
        [again, snapshot.next_drain(self.done)].into_iter().flatten().min()
    }
}

impl<A: Ip> Flows<A> {
    /// Does a bounded piece of what is due.
    #[inline]
    pub(crate) fn drain(&mut self, cx: &mut Context<'_, '_>) -> Tick {
        match self.sweep.due(cx.snapshot) {
            Some(due) if due <= cx.now => self.step(cx),
            next => Tick { removed: 0, next },
        }
    }

    #[cold]
    fn step(&mut self, cx: &mut Context<'_, '_>) -> Tick {
        let mut removed = 0;
        let mut at = self.sweep.at.unwrap_or_else(|| {
            (self.sweep.began, self.sweep.waits) = (cx.now, false);
            self.sweep.number = self.sweep.number.wrapping_add(1);
            0
        });
        let mut left = Sweep::RECORDS / Sweep::PIECE;
        while left > 0 && cx.emit.available() >= 2 * Sweep::PIECE as usize {
            left -= 1;
            let mut found: ArrayVec<ConnId, { Sweep::PIECE as usize }> = ArrayVec::new();
            let next = self.table.scan(at, Sweep::PIECE, |id, conn| {
                let server = cx.snapshot.server(conn.server_id);
                if server.is_some_and(|server| server.has_drained(cx.now)) {
                    found.push(id);
                }
            });
            removed += found.len();
            for id in found {
                self.end(cx, id);
            }
            let Some(next) = next else {
                self.sweep.at = None;
                self.sweep.done = self.sweep.began;
                self.sweep.next = cx.now + Sweep::AGAIN;
                return Tick { removed, next: self.sweep.due(cx.snapshot) };
            };
            at = next;
        }
        (self.sweep.at, self.sweep.next) = (Some(at), cx.now + Sweep::STEP);
        Tick { removed, next: Some(self.sweep.next) }
    }

    /// Ends one connection of a server whose time is over, or asks its silent sides once more.
    fn end(&mut self, cx: &mut Context<'_, '_>, id: ConnId) {
        let conn = self.table.get(id);
        if conn.flags.has(ConnFlags::MOVED | ConnFlags::PARKED) {
            return;
        }
        let Some(server) = cx.snapshot.server(conn.server_id) else { return };
        if !conn.flags.has(ConnFlags::DRAINED) {
            if matches!(State::from_number(conn.state), State::TimeWait | State::Close) {
                return;
            }
            cx.counters.event(Event::ConnectionsDrained);
            if conn.protocol() == Protocol::Udp {
                return self.close(cx, id);
            }
            self.enter(cx, id, server, State::Close);
            let conn = self.table.get_mut(id);
            conn.last_seen = cx.ticks;
            conn.flags.set(ConnFlags::DRAINED, true);
        }
        self.ask(cx, id, server);
    }

    /// Makes the sides that have not said that they are gone send a segment.
    fn ask(&mut self, cx: &mut Context<'_, '_>, id: ConnId, server: &Server) {
        let half = (self.sweep.number % 2) << 31;
        let ack = Bare { flags: flags::ACK, seq: half, ack: half };
        let conn = self.table.get_mut(id);
        let mut asked = 0;
        if !conn.flags.has(ConnFlags::CLIENT_GONE) {
            asked += u64::from(transmit::tell_client(cx, conn, ack));
        }
        if conn.mode().sees_replies() && !conn.flags.has(ConnFlags::SERVER_GONE) {
            asked += u64::from(transmit::tell_server(cx, conn, server, ack));
        }
        cx.counters.events(Event::DrainProbes, asked);
        self.sweep.waits = true;
    }

    /// A packet of a connection that is being reset.
    #[cold]
    pub(crate) fn drained(
        &mut self,
        cx: &mut Context<'_, '_>,
        hit: Hit,
        server: &Server,
        packet: &Packet<A>,
        frame: &Frame,
    ) -> Decision {
        let meta = &packet.meta;
        let bytes = &frame.data()[usize::from(meta.l4)..usize::from(meta.end)];
        if meta.fragment != Fragmentation::Later
            && let Ok(segment) = tcp::Packet::new_checked(bytes)
        {
            self.table.get_mut(hit.id).last_seen = cx.ticks;
            self.reset_sides(cx, hit, server, &segment);
        }
        Decision::Drop(DropReason::Drained)
    }

    /// Resets both sides of a connection by what one of them has said.
    fn reset_sides(
        &mut self,
        cx: &mut Context<'_, '_>,
        hit: Hit,
        server: &Server,
        segment: &tcp::Packet<&[u8]>,
    ) {
        let conn = self.table.get_mut(hit.id);
        let (gone, other_gone) = match hit.direction {
            Direction::Request => (ConnFlags::CLIENT_GONE, ConnFlags::SERVER_GONE),
            Direction::Reply => (ConnFlags::SERVER_GONE, ConnFlags::CLIENT_GONE),
        };
        let (is_reset, acks) = (segment.flags() & flags::RST != 0, segment.flags() & flags::ACK != 0);
        let to_other = Bare { flags: flags::RST, seq: segment.seq(), ack: 0 };
        let to_sender = Bare { flags: flags::RST, seq: segment.ack(), ack: 0 };
        let mut wanted: ArrayVec<(Direction, Bare), 2> = ArrayVec::new();
        // Where no connection is, a RST without ACK is the answer to a question of ours, with the number it had.
        if (!is_reset || acks) && !conn.flags.has(other_gone) {
            wanted.push((hit.direction, to_other));
        }
        if is_reset {
            conn.flags.set(gone, true);
        } else if acks {
            wanted.push((opposite(hit.direction), to_sender));
        }
        for (towards, reset) in wanted {
            let sent = match towards {
                Direction::Request => transmit::tell_server(cx, conn, server, reset),
                Direction::Reply => transmit::tell_client(cx, conn, reset),
            };
            cx.counters.event(if sent { Event::ResetsSent } else { Event::ResetsSuppressed });
        }
        if conn.flags.has(ConnFlags::CLIENT_GONE) && conn.flags.has(ConnFlags::SERVER_GONE) {
            self.close(cx, hit.id);
        }
    }
}

const fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Request => Direction::Reply,
        Direction::Reply => Direction::Request,
    }
}
