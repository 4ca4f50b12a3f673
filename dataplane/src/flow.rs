//! One packet of one flow: find its connection, or open one, or say why not; then send it on.

use shunt_engine::counters::Published;
use shunt_engine::{Duration, Emit, Frame, Instant, Origin, WorkerId};

use crate::classify::{FragmentKey, Fragmentation, Meta, Packet, Role};
use crate::conn::{Conn, ConnFlags, ConnId, Direction, Hash, Hit, InsertError, State, Table, Ticks, View};
use crate::counters::{self, Event, ServerField, WorkerCounters};
use crate::emit::is_host;
use crate::home::Home;
use crate::icmp::Quoted;
use crate::laddr::LocalPorts;
use crate::pipeline::Config;
use crate::scheduler::{Load, SchedulerState};
use crate::server::{Mode, Server};
use crate::service::{OutOfState, Service};
use crate::snapshot::Snapshot;
use crate::transmit::Transmit;
use crate::tuple::{Address, Endpoint, Protocol, Tuple, V4};
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
        emit: &'a mut Emit<'b>,
    ) -> Self {
        Self { now, ticks: Ticks::at(now), origin, snapshot, counters, emit }
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search {
    hash: Hash,
    candidate: Option<Hit>,
}

/// What a tick did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Connections that went.
    pub expired: usize,
    /// When the next tick is due.
    pub next: Option<Instant>,
}

/// One worker's connections, with all that changes when packets pass.
#[derive(Debug)]
pub struct Flows {
    pub(crate) worker: WorkerId,
    home: Home,
    pub(crate) table: Table<V4>,
    schedulers: SchedulerState,
    local_ports: LocalPorts,
    transmit: Transmit,
    peers: Vec<Published>,
    next_expiry: Ticks,
    next_loads: Instant,
    /// The server slot whose load elsewhere is looked up next.
    loads_cursor: usize,
}

impl Flows {
    /// How often the other workers' loads are looked at, and how many servers at a time.
    const LOADS_INTERVAL: Duration = Duration::from_millis(4);
    const LOADS_BUDGET: usize = 256;
    /// Records looked at per tick for expiry.
    const EXPIRE_BUDGET: usize = 256;

    pub(crate) fn new(config: Config) -> std::io::Result<Self> {
        let seed = config.secret[0] ^ u64::from(config.worker.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Ok(Self {
            worker: config.worker,
            home: Home::new(config.workers, config.secret),
            table: Table::new(config.max_connections as usize, config.secret)?,
            schedulers: SchedulerState::new(config.max_services as usize, config.max_servers as usize, seed),
            local_ports: LocalPorts::new(config.worker, config.workers, seed),
            transmit: Transmit::default(),
            peers: Vec::new(),
            next_expiry: Ticks(0),
            next_loads: Instant::ZERO,
            loads_cursor: 0,
        })
    }

    /// The connections.
    pub fn table(&self) -> &Table<V4> {
        &self.table
    }

    pub(crate) fn set_peers(&mut self, peers: Vec<Published>) {
        self.peers = peers;
    }

    /// The worker a flow lives on, by the packet's headers alone.
    #[inline]
    pub(crate) fn home_of(&self, role: Role, tuple: &Tuple<V4>) -> WorkerId {
        match role {
            Role::Request(_) => self.home.of_client(tuple.src, tuple.protocol),
            Role::LocalReply => self.home.of_local_port(tuple.dst.port),
            Role::ServerReply => self.home.of_client(tuple.dst, tuple.protocol),
        }
    }

    /// The worker on which the fragments of a packet meet.
    pub(crate) fn fragment_home(&self, key: &FragmentKey<V4>, protocol: Protocol) -> WorkerId {
        self.home.of_fragment(key.src, key.dst, key.id, protocol)
    }

    /// Whether the flow lives here although its headers name another home (see [`Conn::moved_to`]).
    pub(crate) fn is_here(&self, tuple: &Tuple<V4>) -> bool {
        let hit = self.table.lookup(tuple, self.table.hash(tuple));
        hit.is_some_and(|hit| self.table.get(hit.id).moved_to().is_none())
    }

    /// Begins to look for the flow of a packet: its bucket is fetched.
    #[inline]
    pub(crate) fn seek(&self, tuple: &Tuple<V4>) -> Search {
        let hash = self.table.hash(tuple);
        self.table.prefetch_bucket(hash);
        Search { hash, candidate: None }
    }

    /// Goes on, the bucket being there by now: the record is fetched.
    #[inline]
    pub(crate) fn narrow(&self, search: &mut Search) {
        search.candidate = self.table.candidate(search.hash);
        if let Some(hit) = search.candidate {
            self.table.prefetch_record(hit.id);
        }
    }

    /// A packet whose flow lives here.
    #[inline]
    pub(crate) fn packet(
        &mut self,
        cx: &mut Context<'_, '_>,
        packet: &Packet<V4>,
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
        packet: &Packet<V4>,
        frame: &mut Frame,
    ) -> Decision {
        let conn = self.table.get(hit.id);
        if let Some(worker) = conn.moved_to() {
            return Decision::Handoff(worker);
        }
        let Some(server) = cx.snapshot.server(conn.server_id) else {
            self.close(cx, hit.id);
            return self.server_gone(cx, packet, frame);
        };
        if hit.direction == Direction::Request && packet.opens() && may_be_replaced(conn) {
            self.close(cx, hit.id);
            cx.counters.event(Event::ConnectionsReused);
            return self.unknown(cx, packet, frame);
        }
        self.pass(cx, hit, server, &packet.meta, frame)
    }

    /// A packet without connection.
    fn unknown(&mut self, cx: &mut Context<'_, '_>, packet: &Packet<V4>, frame: &mut Frame) -> Decision {
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

    /// The connection's server has left the configuration: a packet that can open a connection opens one.
    fn server_gone(&mut self, cx: &mut Context<'_, '_>, packet: &Packet<V4>, frame: &mut Frame) -> Decision {
        let policy = match packet.role {
            Role::Request(_) if packet.opens() => return self.unknown(cx, packet, frame),
            Role::Request(id) => {
                cx.snapshot.service(id).map_or(OutOfState::Drop, |service| service.out_of_state)
            }
            Role::LocalReply => OutOfState::Reset,
            Role::ServerReply => OutOfState::Drop,
        };
        self.refuse(cx, policy, DropReason::ServerGone, packet, frame)
    }

    /// Drops a packet for `reason`, answering with a RST where `policy` says so.
    fn refuse(
        &mut self,
        cx: &mut Context<'_, '_>,
        policy: OutOfState,
        reason: DropReason,
        packet: &Packet<V4>,
        frame: &Frame,
    ) -> Decision {
        if policy == OutOfState::Reset
            && packet.tuple.protocol == Protocol::Tcp
            && packet.meta.fragment != Fragmentation::Later
        {
            self.transmit.reset(cx, &packet.meta, frame);
        }
        Decision::Drop(reason)
    }

    fn open(
        &mut self,
        cx: &mut Context<'_, '_>,
        service: &Service,
        packet: &Packet<V4>,
        frame: &mut Frame,
    ) -> Decision {
        if !may_be_client(packet.tuple.src.address, cx.snapshot) {
            return Decision::Drop(DropReason::BadSource);
        }
        let picked = self.schedulers.pick(service.id, service.scheduler, &service.candidates);
        let Some(server) = picked.and_then(|index| cx.snapshot.server(service.candidates[index].id)) else {
            self.transmit.unreachable(cx, &packet.meta, frame);
            return Decision::Drop(DropReason::NoServer);
        };
        let conn = match self.new_conn(cx, service, server, &packet.tuple) {
            Ok(conn) => conn,
            Err(reason) => return Decision::Drop(reason),
        };
        let id = match self.table.insert(conn, cx.ticks) {
            Ok(id) => id,
            Err(InsertError::Full) => return Decision::Drop(DropReason::TableFull),
            Err(InsertError::Exists) => return Decision::Drop(DropReason::TupleTaken),
        };
        cx.counters.tenant(server.id);
        cx.counters.event(Event::ConnectionsOpened);
        cx.counters.server_add(server.id, ServerField::Connections, 1);
        cx.counters.server_add(server.id, ServerField::Inactive, 1);
        self.schedulers.opened(server.id, false);
        self.pass(cx, Hit { id, direction: Direction::Request }, server, &packet.meta, frame)
    }

    fn new_conn(
        &mut self,
        cx: &mut Context<'_, '_>,
        service: &Service,
        server: &Server,
        tuple: &Tuple<V4>,
    ) -> Result<Conn<V4>, DropReason> {
        let address = V4::from_ip(server.address).ok_or(DropReason::NoServer)?;
        let target = Endpoint::new(address, server.port.unwrap_or(tuple.dst.port));
        let peer = match server.mode {
            Mode::Fullnat => {
                let table = &self.table;
                let taken = |reply: &Tuple<V4>| table.contains(reply);
                let found = self.local_ports.choose(&service.locals, target, tuple.protocol, taken);
                cx.counters.events(Event::PortProbes, found.tries.saturating_sub(1).into());
                found.endpoint.ok_or(DropReason::NoLocalPort)?
            }
            Mode::Nat | Mode::Dr | Mode::Tun => tuple.src,
        };
        let state = match tuple.protocol {
            Protocol::Tcp => State::None,
            Protocol::Udp => State::Udp,
        };
        Ok(Conn {
            client: tuple.src,
            vip: tuple.dst,
            server: target,
            peer,
            server_id: server.id,
            last_seen: cx.ticks,
            timeout: service.timeouts.ticks(state),
            client_hop: Conn::<V4>::NO_HOP,
            routes: 0,
            client_mac: [0; 6],
            state: state as u8,
            mode: server.mode as u8,
            protocol: tuple.protocol.number(),
            flags: ConnFlags::default(),
            reserved: [0; 2],
        })
    }

    /// A packet of a live connection: moves its state and clock on, counts it, sends it.
    #[inline]
    fn pass(
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
            Direction::Request => self.transmit.request(cx, conn, server, meta, frame),
            Direction::Reply => self.transmit.reply(cx, conn, meta, frame),
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
        if new == old {
            return;
        }
        conn.state = new as u8;
        let (was_active, is_active) = (conn.flags.has(ConnFlags::ACTIVE), new.is_active());
        conn.flags.set(ConnFlags::ACTIVE, is_active);
        if let Some(service) = cx.snapshot.service(server.service) {
            self.table.set_timeout(hit.id, service.timeouts.ticks(new));
        }
        if was_active != is_active {
            let (gains, loses) = load_fields(is_active);
            cx.counters.server_add(server.id, gains, 1);
            cx.counters.server_sub(server.id, loses, 1);
            self.schedulers.changed(server.id, is_active);
        }
    }

    /// An ICMP error about a flow that lives here; `tuple` is what the quoted packet's receiver would answer.
    pub(crate) fn icmp_error(
        &mut self,
        cx: &mut Context<'_, '_>,
        tuple: &Tuple<V4>,
        quoted: &Quoted,
        meta: &Meta,
        frame: &mut Frame,
    ) -> Decision {
        let Some(hit) = self.table.lookup(tuple, self.table.hash(tuple)) else { return Decision::Punt };
        let conn = self.table.get_mut(hit.id);
        if let Some(worker) = conn.moved_to() {
            return Decision::Handoff(worker);
        }
        let Some(server) = cx.snapshot.server(conn.server_id) else {
            return Decision::Drop(DropReason::ServerGone);
        };
        let decision = match hit.direction {
            Direction::Request => self.transmit.icmp_to_server(cx, conn, server, quoted, meta, frame),
            Direction::Reply => self.transmit.icmp_to_client(cx, conn, quoted, meta, frame),
        };
        if matches!(decision, Decision::Forward(_) | Decision::Replaced) {
            cx.counters.event(Event::IcmpForwarded);
        }
        decision
    }

    /// Removes a connection and its share of the server's load.
    fn close(&mut self, cx: &mut Context<'_, '_>, id: ConnId) {
        let conn = self.table.remove(id);
        forget(&conn, cx.counters, &mut self.schedulers);
    }

    /// Removes idle connections, a bounded number, and looks at the other workers' loads.
    pub(crate) fn tick(&mut self, now: Instant, snapshot: &Snapshot, counters: &mut WorkerCounters) -> Tick {
        if !self.peers.is_empty() && now >= self.next_loads {
            self.refresh_loads(snapshot);
            self.next_loads = now + Self::LOADS_INTERVAL;
        }
        let ticks = Ticks::at(now);
        let mut expired = 0;
        if self.next_expiry <= ticks {
            let schedulers = &mut self.schedulers;
            let done = self.table.expire(ticks, Self::EXPIRE_BUDGET, |conn| {
                counters.event(Event::ConnectionsExpired);
                forget(conn, counters, schedulers);
            });
            expired = done.removed;
            if done.visited < Self::EXPIRE_BUDGET {
                self.next_expiry = Ticks(ticks.0 + 1);
            }
        }
        let next = Instant::from_nanos(u64::from(self.next_expiry.0) << Ticks::SHIFT);
        Tick { expired, next: (!self.table.is_empty()).then_some(next.max(now)) }
    }
}

impl Flows {
    /// Tells the schedulers what the other workers' connections weigh, for a bounded number of servers.
    fn refresh_loads(&mut self, snapshot: &Snapshot) {
        let slots = snapshot.server_slots();
        for _ in 0..slots.min(Self::LOADS_BUDGET) {
            self.loads_cursor = if self.loads_cursor + 1 < slots { self.loads_cursor + 1 } else { 0 };
            let Some(server) = snapshot.server_in(self.loads_cursor) else { continue };
            let sum =
                |field| self.peers.iter().map(|peer| peer.get(counters::server(server.id.slot, field))).sum();
            let (active, inactive): (u64, u64) = (sum(ServerField::Active), sum(ServerField::Inactive));
            self.schedulers.set_others(server.id, Load { active: active as u32, inactive: inactive as u32 });
        }
    }
}

/// Takes a connection that went off its server's load.
fn forget(conn: &Conn<V4>, counters: &mut WorkerCounters, schedulers: &mut SchedulerState) {
    if conn.moved_to().is_none() {
        let active = conn.flags.has(ConnFlags::ACTIVE);
        let (counted, _) = load_fields(active);
        counters.server_sub(conn.server_id, counted, 1);
        schedulers.closed(conn.server_id, active);
    }
}

/// Where a connection is counted, and where it is not.
const fn load_fields(active: bool) -> (ServerField, ServerField) {
    if active {
        (ServerField::Active, ServerField::Inactive)
    } else {
        (ServerField::Inactive, ServerField::Active)
    }
}

/// Whether an address may be a client's. Linux drops the others as martians; here answers to them would go in circles.
fn may_be_client(address: V4, snapshot: &Snapshot) -> bool {
    let ip = address.to_ip();
    is_host(address) && !snapshot.index().has_address(ip) && !snapshot.locals().has_address(ip)
}

/// Whether a first SYN on this connection's tuple is a new connection (LVS: conn_reuse_mode, without its delay).
fn may_be_replaced(conn: &Conn<V4>) -> bool {
    match State::from_number(conn.state) {
        State::TimeWait | State::Close | State::LastAck => true,
        State::FinWait => !conn.mode().sees_replies(),
        _ => false,
    }
}

/// Which side of the state tables a packet is looked up in.
const fn view(mode: Mode, direction: Direction) -> View {
    match direction {
        Direction::Reply => View::Output,
        Direction::Request if mode.sees_replies() => View::Input,
        Direction::Request => View::InputOnly,
    }
}
