//! One packet of one flow: find its connection, or open one, or say why not; then send it on.

use shunt_engine::{Emit, Frame, Instant, Origin};

use crate::classify::{Fragmentation, Meta, Packet, Role};
use crate::conn::{Conn, ConnFlags, ConnId, Direction, Hand, Hash, Hit, State, Table, Ticks, View};
use crate::counters::{Event, ServerField, WorkerCounters};
use crate::drain::Sweep;
use crate::end::let_go;
use crate::home::Home;
use crate::icmp::{Quoted, Tunnelled};
use crate::ip::Ip;
use crate::laddr::LocalPorts;
use crate::persist::Held;
use crate::pipeline::Config;
use crate::server::{Mode, Server};
use crate::service::{OutOfState, ServerGone};
use crate::shared::Shared;
use crate::snapshot::Snapshot;
use crate::strays::Strays;
use crate::transmit;
use crate::tuple::{Address, Protocol, Tuple};
use crate::verdict::{Decision, DropReason};
use crate::wire::tcp::flags;

/// What every step of a burst needs besides the packet.
#[derive(Debug)]
pub struct Context<'a, 'b> {
    /// Time of the burst.
    pub now: Instant,
    /// The same, coarse.
    pub ticks: Ticks,
    /// How the burst came here.
    pub origin: Origin,
    /// What control published.
    pub snapshot: &'a Snapshot,
    /// What happened.
    pub counters: &'a mut WorkerCounters,
    /// What the worker keeps for both IP versions.
    pub shared: &'a mut Shared,
    /// For frames we originate.
    pub emit: &'a mut Emit<'b>,
}

impl<'a, 'b> Context<'a, 'b> {
    /// The context of one burst.
    pub fn new(
        now: Instant,
        origin: Origin,
        snapshot: &'a Snapshot,
        counters: &'a mut WorkerCounters,
        shared: &'a mut Shared,
        emit: &'a mut Emit<'b>,
    ) -> Self {
        Self { now, ticks: Ticks::at(now), origin, snapshot, counters, shared, emit }
    }

    /// Counts what became of a packet.
    #[inline]
    pub fn count(&mut self, decision: Decision) {
        match decision {
            Decision::Forward(_) | Decision::Replaced => self.counters.event(Event::Forwarded),
            Decision::Punt => self.counters.event(Event::NotOurs),
            Decision::Handoff(_) => self.counters.event(Event::HandedOff),
            Decision::Drop(reason) => self.counters.drop(reason),
            Decision::Hold => {}
        }
    }
}

/// The search for a packet's flow under way, a stage at a time over a whole burst, so that cache misses overlap.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Search {
    hash: Hash,
    candidate: Option<Hit>,
}

impl Search {
    /// What the flow's tuple hashes to, the same on all workers.
    #[inline]
    pub(crate) fn hash(&self) -> Hash {
        self.hash
    }

    /// What is probably the flow's connection.
    #[inline]
    pub(crate) fn candidate(&self) -> Option<Hit> {
        self.candidate
    }
}

/// One worker's connections of one IP version.
#[derive(Debug)]
pub struct Flows<A: Address> {
    pub(crate) table: Table<A>,
    pub(crate) local_ports: LocalPorts<A>,
    pub(crate) hand: Hand,
    pub(crate) sweep: Sweep,
    pub(crate) held: Held,
    pub(crate) strays: Strays,
    pub(crate) next_expiry: Ticks,
}

impl<A: Ip> Flows<A> {
    pub(crate) fn new(config: Config, home: &Home) -> std::io::Result<Self> {
        Ok(Self {
            table: Table::new(config.max_connections as usize, config.secret)?,
            held: Held::new(config.max_connections as usize)?,
            strays: Strays::new(config.workers),
            local_ports: LocalPorts::new(config.worker, home, config.seed()),
            hand: Hand::default(),
            sweep: Sweep::default(),
            next_expiry: Ticks(0),
        })
    }

    /// The connections.
    pub fn table(&self) -> &Table<A> {
        &self.table
    }

    /// Whether the flow lives here although its headers name another home (see [`Conn::moved_to`]).
    pub(crate) fn is_here(&self, tuple: &Tuple<A>) -> bool {
        let hit = self.table.lookup(tuple, self.table.hash(tuple));
        hit.is_some_and(|hit| self.table.get(hit.id).moved_to().is_none())
    }

    /// Whether there is a record of the flow, be it one of where it lives.
    pub(crate) fn knows(&self, tuple: &Tuple<A>) -> bool {
        self.table.lookup(tuple, self.table.hash(tuple)).is_some()
    }

    /// Begins to look for the flow of a packet: its bucket is fetched.
    #[inline]
    pub(crate) fn seek(&self, tuple: &Tuple<A>) -> Search {
        self.seek_by(self.table.hash(tuple))
    }

    /// Begins to look for the flow whose tuple hashes to `hash`.
    #[inline]
    pub(crate) fn seek_by(&self, hash: Hash) -> Search {
        self.table.prefetch_bucket(hash);
        Search { hash, candidate: None }
    }

    /// Goes on, the bucket being there by now: the record is fetched.
    #[inline]
    pub(crate) fn narrow(&self, search: &mut Search, generation: u32) {
        search.candidate = self.table.candidate(search.hash);
        match search.candidate {
            Some(hit) => self.table.prefetch_record(hit.id),
            None => self.strays.prefetch(search.hash, generation),
        }
    }

    /// [`Self::narrow`] for one packet after the other: those of one flow often come together.
    #[inline]
    pub(crate) fn narrow_next(&self, search: &mut Search, last: &mut Search, generation: u32) {
        if search.hash == last.hash {
            search.candidate = last.candidate;
        } else {
            self.narrow(search, generation);
            *last = *search;
        }
    }

    /// A packet whose flow lives here.
    #[inline]
    pub(crate) fn packet(
        &mut self,
        cx: &mut Context<'_, '_>,
        packet: &Packet<A>,
        search: Search,
        frame: &mut Frame,
    ) -> Decision {
        match self.table.lookup_from(search.candidate, &packet.tuple, search.hash) {
            Some(hit) => self.known(cx, hit, packet, frame),
            None => self.unknown(cx, packet, frame),
        }
    }

    #[inline]
    fn known(
        &mut self,
        cx: &mut Context<'_, '_>,
        hit: Hit,
        packet: &Packet<A>,
        frame: &mut Frame,
    ) -> Decision {
        let conn = self.table.get(hit.id);
        if conn.flags.has(ConnFlags::MOVED | ConnFlags::PARKED | ConnFlags::DRAINED) {
            return self.unusual(cx, hit, packet, frame);
        }
        let server = cx.snapshot.server(conn.server_id).filter(|server| !leaves(conn, hit.direction, server));
        let Some(server) = server else {
            self.close(cx, hit.id);
            return self.server_gone(cx, packet, frame);
        };
        if hit.direction == Direction::Request && packet.opens() && may_be_replaced(conn, server, cx.ticks) {
            return match packet.tuple.protocol {
                Protocol::Tcp => self.replace(cx, hit.id, packet, frame),
                Protocol::Udp => self.beside(cx, hit, server, packet, frame),
            };
        }
        // Who repeats a SYN has not been answered.
        if packet.tuple.protocol == Protocol::Udp || !packet.opens() {
            self.table.get_mut(hit.id).flags.set(ConnFlags::AGAIN, true);
        }
        self.pass(cx, hit, server, &packet.meta, frame)
    }

    /// A packet of a record that stands for a flow elsewhere, whose client has a new connection, or that is being reset.
    #[cold]
    fn unusual(
        &mut self,
        cx: &mut Context<'_, '_>,
        hit: Hit,
        packet: &Packet<A>,
        frame: &mut Frame,
    ) -> Decision {
        let conn = self.table.get(hit.id);
        if let Some(worker) = conn.moved_to() {
            return Decision::Handoff(worker);
        }
        if conn.flags.has(ConnFlags::PARKED) {
            // Its server does not know yet that it is over.
            return self.refuse(cx, OutOfState::Reset, DropReason::OutOfState, packet, frame);
        }
        let Some(server) = cx.snapshot.server(conn.server_id) else {
            self.close(cx, hit.id);
            return self.server_gone(cx, packet, frame);
        };
        if hit.direction == Direction::Request && packet.opens() {
            return self.replace(cx, hit.id, packet, frame);
        }
        self.drained(cx, hit, server, packet, frame)
    }

    /// A datagram where one in pieces has left a record, for its fragments only: with one_packet each is scheduled alone.
    #[cold]
    fn beside(
        &mut self,
        cx: &mut Context<'_, '_>,
        hit: Hit,
        server: &Server,
        packet: &Packet<A>,
        frame: &mut Frame,
    ) -> Decision {
        let alone = cx.snapshot.service(server.service).is_some_and(|service| service.one_packet);
        if alone && packet.meta.fragment != Fragmentation::Whole {
            return self.pass(cx, hit, server, &packet.meta, frame);
        }
        if !alone {
            self.close(cx, hit.id);
        }
        self.unknown(cx, packet, frame)
    }

    /// A first SYN takes the place of a connection that is over. In FULLNAT the new one has another local port: at the
    /// old one the server may still be in TIME_WAIT.
    fn replace(
        &mut self,
        cx: &mut Context<'_, '_>,
        id: ConnId,
        packet: &Packet<A>,
        frame: &mut Frame,
    ) -> Decision {
        let conn = self.table.get(id);
        let half_open = matches!(State::from_number(conn.state), State::None | State::SynRecv);
        match conn.mode() {
            Mode::Fullnat if !half_open => self.table.park(id),
            Mode::Fullnat | Mode::Nat | Mode::Dr | Mode::Tun => self.close(cx, id),
        }
        cx.counters.event(Event::ConnectionsReused);
        self.unknown(cx, packet, frame)
    }

    /// A packet without connection.
    fn unknown(&mut self, cx: &mut Context<'_, '_>, packet: &Packet<A>, frame: &mut Frame) -> Decision {
        let service = match packet.role {
            // The director's own traffic with a server, or the end of a flow that is gone: the kernel knows.
            Role::ServerReply => return Decision::Punt,
            Role::LocalReply => None,
            Role::Request(id) => cx.snapshot.service(id),
        };
        let Some(service) = service else {
            return self.refuse(cx, OutOfState::Reset, DropReason::OutOfState, packet, frame);
        };
        // A later fragment says nothing about itself, and the service its first named may be another by now.
        let schedule = service.out_of_state == OutOfState::Schedule
            && packet.meta.tcp_flags & flags::RST == 0
            && packet.meta.fragment != Fragmentation::Later;
        if packet.opens() || schedule {
            self.open(cx, service, packet, frame)
        } else {
            self.refuse(cx, service.out_of_state, DropReason::OutOfState, packet, frame)
        }
    }

    /// The connection's server has left the configuration: a packet that can open a connection opens one, and any may
    /// where the service says so.
    fn server_gone(&mut self, cx: &mut Context<'_, '_>, packet: &Packet<A>, frame: &mut Frame) -> Decision {
        let service = match packet.role {
            Role::Request(id) => cx.snapshot.service(id),
            Role::LocalReply | Role::ServerReply => None,
        };
        let may_open =
            packet.meta.tcp_flags & flags::RST == 0 && packet.meta.fragment != Fragmentation::Later;
        let policy = match (service, packet.role) {
            (Some(service), _)
                if packet.opens() || service.server_gone == ServerGone::Reschedule && may_open =>
            {
                cx.counters.event(Event::ConnectionsRescheduled);
                return self.open(cx, service, packet, frame);
            }
            (Some(service), _) if service.server_gone == ServerGone::Reset => OutOfState::Reset,
            (None, Role::LocalReply) => OutOfState::Reset,
            (Some(_), _) | (None, Role::Request(_) | Role::ServerReply) => OutOfState::Drop,
        };
        self.refuse(cx, policy, DropReason::ServerGone, packet, frame)
    }

    /// Drops a packet for `reason`, answering with a RST where `policy` says so.
    fn refuse(
        &mut self,
        cx: &mut Context<'_, '_>,
        policy: OutOfState,
        reason: DropReason,
        packet: &Packet<A>,
        frame: &Frame,
    ) -> Decision {
        if policy == OutOfState::Reset
            && packet.tuple.protocol == Protocol::Tcp
            && packet.meta.fragment != Fragmentation::Later
        {
            transmit::reset::<A>(cx, &packet.meta, frame);
        }
        Decision::Drop(reason)
    }

    /// A packet of a live connection: moves its state and clock on, counts it, sends it.
    #[inline]
    pub(crate) fn pass(
        &mut self,
        cx: &mut Context<'_, '_>,
        hit: Hit,
        server: &Server,
        meta: &Meta,
        frame: &mut Frame,
    ) -> Decision {
        self.advance(cx, hit, server, meta);
        let to_server = hit.direction == Direction::Request;
        cx.counters.server_packet(server.id, to_server, meta.l3_len().into());
        let conn = self.table.get_mut(hit.id);
        match hit.direction {
            Direction::Request => transmit::request(cx, conn, server, meta, frame),
            Direction::Reply => transmit::reply(cx, conn, meta, frame),
        }
    }

    /// Moves the connection's state and clock on by one packet.
    #[inline]
    fn advance(&mut self, cx: &mut Context<'_, '_>, hit: Hit, server: &Server, meta: &Meta) {
        let conn = self.table.get_mut(hit.id);
        conn.last_seen = cx.ticks;
        let old = State::from_number(conn.state);
        let new = match conn.protocol() {
            Protocol::Udp => old,
            Protocol::Tcp if meta.fragment == Fragmentation::Later => old,
            Protocol::Tcp => old.next(view(conn.mode(), hit.direction), meta.tcp_flags),
        };
        if new != old {
            if new == State::Close && hit.direction == Direction::Reply && old.is_half_open() {
                cx.counters.server_add(server.id, ServerField::Failures, 1);
            }
            self.enter(cx, hit.id, server, new);
        } else if old.is_over() {
            self.table.set_state(hit.id, old);
        }
    }

    /// Moves a connection to another state, with its timeout and its place in its server's load.
    pub(crate) fn enter(&mut self, cx: &mut Context<'_, '_>, id: ConnId, server: &Server, new: State) {
        let conn = self.table.get(id);
        if conn.flags.has(ConnFlags::TEMPLATE)
            && new == State::Close
            && State::from_number(conn.state).is_half_open()
        {
            self.forget_client(cx, id);
        }
        self.table.set_state(id, new);
        let conn = self.table.get_mut(id);
        let (was_active, is_active) = (conn.flags.has(ConnFlags::ACTIVE), new.is_active());
        conn.flags.set(ConnFlags::ACTIVE, is_active);
        if let Some(service) = cx.snapshot.service(server.service) {
            self.table.set_timeout(id, service.timeouts.ticks(new));
        }
        if was_active != is_active {
            let (gains, loses) = load_fields(is_active);
            cx.counters.server_add(server.id, gains, 1);
            cx.counters.server_sub(server.id, loses, 1);
            cx.shared.schedulers.changed(server.id, is_active);
        }
    }

    /// A handshake was refused: its client is not remembered for it.
    #[cold]
    fn forget_client(&mut self, cx: &mut Context<'_, '_>, id: ConnId) {
        let Some(template) = self.held.template(id, self.table.get(id)) else { return };
        let conn = self.table.get_mut(id);
        conn.flags.set(ConnFlags::TEMPLATE, false);
        let_go(conn, template, false, cx.ticks, cx.snapshot, cx.shared);
    }

    /// An ICMP error about a flow that lives here; `tuple` is what the quoted packet's receiver would answer.
    pub(crate) fn icmp_error(
        &mut self,
        cx: &mut Context<'_, '_>,
        tuple: &Tuple<A>,
        quoted: &Quoted<A>,
        meta: &Meta,
        frame: &mut Frame,
    ) -> Decision {
        let Some(hit) = self.table.lookup(tuple, self.table.hash(tuple)) else { return Decision::Punt };
        let conn = self.table.get_mut(hit.id);
        if let Some(worker) = conn.moved_to() {
            return Decision::Handoff(worker);
        }
        if conn.flags.has(ConnFlags::PARKED) {
            return Decision::Punt;
        }
        let Some(server) = cx.snapshot.server(conn.server_id) else {
            return Decision::Drop(DropReason::ServerGone);
        };
        let decision = match hit.direction {
            Direction::Request => transmit::icmp_to_server(cx, conn, server, quoted, meta, frame),
            Direction::Reply => {
                let unreachable = frame.data().get(usize::from(meta.l4)) == Some(&A::ICMP_UNREACHABLE);
                if unreachable && conn.protocol() == Protocol::Udp {
                    cx.counters.server_add(server.id, ServerField::Failures, 1);
                }
                transmit::icmp_to_client(cx, conn, quoted, meta, frame)
            }
        };
        if matches!(decision, Decision::Forward(_) | Decision::Replaced) {
            cx.counters.event(Event::IcmpForwarded);
        }
        decision
    }

    /// An ICMP error from the way to a TUN server, about a packet of a flow that lives here.
    pub(crate) fn tunnel_error(
        &mut self,
        cx: &mut Context<'_, '_>,
        tunnelled: &Tunnelled<A>,
        meta: &Meta,
        frame: &Frame,
    ) -> Decision {
        let tuple = &tunnelled.tuple;
        let Some(hit) = self.table.lookup(tuple, self.table.hash(tuple)) else { return Decision::Punt };
        let conn = self.table.get_mut(hit.id);
        if let Some(worker) = conn.moved_to() {
            return Decision::Handoff(worker);
        }
        if conn.mode() != Mode::Tun || { conn.server.address } != tunnelled.server {
            return Decision::Punt;
        }
        let decision = transmit::tunnel_error(cx, conn, tunnelled, meta, frame);
        if decision == Decision::Replaced {
            cx.counters.event(Event::IcmpForwarded);
        }
        decision
    }
}

/// Whether a connection leaves its server with this packet: UDP flows leave one that is found dead. A TCP connection
/// stays, for the server may be back before its client gives up.
fn leaves<A: Ip>(conn: &Conn<A>, direction: Direction, server: &Server) -> bool {
    server.down && direction == Direction::Request && conn.protocol() == Protocol::Udp
}

/// Where a connection is counted, and where it is not.
pub(crate) const fn load_fields(active: bool) -> (ServerField, ServerField) {
    if active {
        (ServerField::Active, ServerField::Inactive)
    } else {
        (ServerField::Inactive, ServerField::Active)
    }
}

/// Whether a first SYN on this connection's tuple is a new connection (LVS: conn_reuse_mode, without its delay).
///
/// Of a half-closed one as well, when nothing has passed for a second: its client has forgotten it, or would not open
/// anew. While data still flows a forged SYN must not end it. A handshake that its server has not finished goes to
/// another one when that server takes no more. A record without state of a datagram in pieces ([`Flows::beside`]) is
/// no other datagram's.
fn may_be_replaced<A: Ip>(conn: &Conn<A>, server: &Server, now: Ticks) -> bool {
    const SECOND: Ticks = Ticks::from_nanos(1_000_000_000);
    match State::from_number(conn.state) {
        State::TimeWait | State::Close | State::LastAck => true,
        State::FinWait | State::CloseWait => {
            !conn.mode().sees_replies() || now.since(conn.last_seen) >= SECOND.0
        }
        State::None if conn.protocol() == Protocol::Udp => true,
        State::None | State::SynRecv => server.weight == 0,
        State::Established | State::SynSent | State::Listen | State::SynAck | State::Udp => false,
    }
}

/// Which side of the state tables a packet is looked up in.
pub(crate) const fn view(mode: Mode, direction: Direction) -> View {
    match direction {
        Direction::Reply => View::Output,
        Direction::Request if mode.sees_replies() => View::Input,
        Direction::Request => View::InputOnly,
    }
}
