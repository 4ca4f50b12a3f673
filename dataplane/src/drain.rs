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
use crate::end::Tick;
use crate::flow::{Context, Flows};
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

    /// There is a new snapshot: its deadlines may be other ones. A walk under way goes on, or the end of a big table
    /// might never be reached; it sees to no deadline, so that another one follows.
    pub(crate) fn restart(&mut self) {
        (self.began, self.done) = (Instant::ZERO, Instant::ZERO);
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
            let conn = self.table.get_mut(hit.id);
            conn.last_seen = cx.ticks;
            let state = State::from_number(conn.state);
            self.table.set_state(hit.id, state);
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

#[cfg(test)]
mod tests {
    use shunt_engine::mempool::PoolConfig;
    use shunt_engine::program::EmitBuffer;
    use shunt_engine::{Emit, Mempool, Origin, WorkerId};
    use zerocopy::FromZeros;

    use super::*;
    use crate::agreed::Agreed;
    use crate::conn::{Conn, Ticks, Timeouts};
    use crate::counters::WorkerCounters;
    use crate::pipeline::Config;
    use crate::scheduler::SchedulerKind;
    use crate::server::{Mode, ServerId};
    use crate::service::{OutOfState, ServerGone, Service, ServiceId};
    use crate::shared::Shared;
    use crate::snapshot::Builder;
    use crate::tuple::{Endpoint, V4};

    const ID: ServerId = ServerId { slot: 0, generation: 1 };

    /// One server, whose time to drain is over.
    fn snapshot() -> Snapshot {
        let service = Service {
            id: ServiceId(0),
            name: "dns".into(),
            protocol: Protocol::Udp,
            listen: Vec::new(),
            scheduler: SchedulerKind::Rr.into(),
            locals: Vec::new(),
            out_of_state: OutOfState::Drop,
            timeouts: Timeouts::default(),
            persistence: None,
            one_packet: false,
            server_gone: ServerGone::Reset,
        };
        let server = Server {
            id: ID,
            service: service.id,
            address: "10.0.0.11".parse().unwrap(),
            port: None,
            mode: Mode::Dr,
            weight: 0,
            drain_at: Some(Instant::from_nanos(1)),
            down: false,
            thresholds: None,
            hop: None,
        };
        let mut builder = Builder::new();
        builder.service(service, vec![server]);
        builder.build()
    }

    fn flow(number: u32) -> Conn<V4> {
        let client = Endpoint::new(V4(0x0a00_0000 + number), 40_000);
        Conn {
            client,
            peer: client,
            vip: Endpoint::new(V4(0xcb00_710a), 53),
            server_id: ID,
            timeout: Ticks(1 << 20),
            mode: Mode::Dr as u8,
            protocol: Protocol::Udp.number(),
            state: State::Udp as u8,
            ..Conn::new_zeroed()
        }
    }

    #[test]
    fn snapshots_that_come_faster_than_a_walk_neither_hold_it_up_nor_are_missed_by_it() {
        const STEPS: u32 = 3;
        let config = Config {
            worker: WorkerId(0),
            workers: 1,
            secret: [1, 2],
            max_connections: STEPS * Sweep::RECORDS,
            max_services: 1,
            max_servers: 1,
        };
        let (snapshot, mut counters) = (snapshot(), WorkerCounters::new(1));
        let mut shared = Shared::new(config, Agreed::new(0, 1, [1, 2]));
        let mut flows = Flows::<V4>::new(config, shared.home()).unwrap();
        for number in 0..config.max_connections {
            flows.table.insert(flow(number), Ticks(0)).unwrap();
        }
        let mut pool = Mempool::single(PoolConfig { chunks: 128, ..PoolConfig::default() }).unwrap();
        let mut now = Instant::from_nanos(1 << 40);
        let mut step = |flows: &mut Flows<V4>| {
            let mut staged = EmitBuffer::new();
            let emit = &mut Emit::new(&mut pool, &mut staged);
            flows.drain(&mut Context::new(now, Origin::Port, &snapshot, &mut counters, &mut shared, emit));
            now += Sweep::STEP;
        };
        for left in (0..STEPS).rev() {
            step(&mut flows);
            assert_eq!(flows.table.len() as u32, left * Sweep::RECORDS, "every step gets further");
            flows.sweep.restart();
        }
        // What is new where the walk under way has been already is found by another one.
        (0..config.max_connections).for_each(|i| _ = flows.table.insert(flow(i), Ticks(0)).unwrap());
        step(&mut flows);
        flows.table.insert(flow(config.max_connections), Ticks(0)).unwrap();
        flows.sweep.restart();
        (0..2 * STEPS).for_each(|_| step(&mut flows));
        assert!(flows.table.is_empty());
        assert_eq!(flows.sweep.due(&snapshot), None);
    }
}
