//! One worker's program: what it keeps between bursts, and what becomes due with time. What happens to the packets of a
//! burst is in [`crate::burst`].

use shunt_engine::counters::Published;
use shunt_engine::program::Verdicts;
use shunt_engine::publish::Reader;
use shunt_engine::{Burst, Duration, Emit, Instant, Mempool, Origin, Program, WorkerId};

use crate::adoption::Adoption;
use crate::agreed::Agreed;
use crate::burst;
use crate::conn::Ticks;
use crate::counters::{self, Event, Gauge, WorkerCounters};
use crate::dump::{self, Dumps, Inquiry};
use crate::flow::{Context, Flows};
use crate::shared::Shared;
use crate::snapshot::Snapshot;
use crate::stages::Stages;
use crate::tuple::{V4, V6};

/// What is fixed when a worker starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// This worker.
    pub worker: WorkerId,
    /// How many there are.
    pub workers: u16,
    /// Keys the hashes; the same on every worker of a process, unknown outside.
    pub secret: [u64; 2],
    /// Connections of each IP version that this worker can hold. Address space is taken at start for both tables, memory
    /// when a connection first needs it, so that a version nobody uses costs none (but for reserved huge pages, which
    /// are always taken whole).
    pub max_connections: u32,
    /// Service slots.
    pub max_services: u32,
    /// Server slots, over all services.
    pub max_servers: u32,
}

impl Config {
    /// Where this worker's sequences start: another place on every worker and after every start.
    pub(crate) fn seed(&self) -> u64 {
        self.secret[0] ^ u64::from(self.worker.0).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// One worker's program: connection tables, scheduler state and counters, over the published [`Snapshot`].
#[derive(Debug)]
pub struct Pipeline {
    snapshot: Reader<Snapshot>,
    v4: Stages<V4>,
    v6: Stages<V6>,
    shared: Shared,
    counters: WorkerCounters,
    publication: Publication,
    dumps: Dumps,
    adoption: Adoption,
    agenda: Agenda,
}

/// When a tick has something to do, so that most of them need not look.
#[derive(Clone, Copy, Debug, Default)]
struct Agenda {
    /// At the earliest, while packets come.
    due: Instant,
    /// At the latest, if none comes; what a worker may sleep until.
    deadline: Option<Instant>,
}

impl Pipeline {
    /// A worker's program over the snapshots that `snapshot` delivers; `agreed` is the same for all workers.
    ///
    /// # Errors
    /// When the kernel has no memory for the tables.
    pub fn new(config: Config, agreed: Agreed, snapshot: Reader<Snapshot>) -> std::io::Result<Self> {
        let shared = Shared::new(config, agreed);
        Ok(Self {
            snapshot,
            v4: Stages::new(config, shared.home())?,
            v6: Stages::new(config, shared.home())?,
            shared,
            counters: WorkerCounters::new(config.max_servers as usize),
            publication: Publication::default(),
            dumps: Dumps::default(),
            adoption: Adoption::default(),
            agenda: Agenda::default(),
        })
    }

    /// The published counters, in the numbering of [`crate::counters`].
    pub fn counters(&self) -> Published {
        self.counters.raw().published()
    }

    /// Lets schedulers see the loads of the other workers.
    pub fn set_peers(&mut self, peers: Vec<Published>) {
        self.shared.set_peers(peers);
    }

    /// The askers' ends of the worker's dumps. To be called once, before the worker starts.
    pub fn inquiries(&mut self) -> Vec<Inquiry> {
        self.dumps.open()
    }

    /// The worker's IPv4 connections, for tests.
    pub fn flows_v4(&self) -> &Flows<V4> {
        &self.v4.flows
    }

    /// The worker's IPv6 connections, for tests.
    pub fn flows_v6(&self) -> &Flows<V6> {
        &self.v6.flows
    }
}

impl Program for Pipeline {
    fn refresh(&mut self, _now: Instant) {
        if self.snapshot.refresh() {
            self.adoption.begin(self.snapshot.get());
            self.shared.adopt(self.snapshot.get());
            self.v4.flows.sweep.restart();
            self.v6.flows.sweep.restart();
            self.agenda.due = Instant::ZERO;
        }
        if self.adoption.is_pending() {
            let Self { adoption, snapshot, counters, shared, .. } = self;
            adoption.run(snapshot.get(), || snapshot.handle(), counters, shared);
            self.publication.request(&self.counters);
            self.agenda.due = Instant::ZERO;
        }
    }

    fn on_burst(
        &mut self,
        now: Instant,
        origin: Origin,
        frames: &mut Burst,
        verdicts: &mut Verdicts,
        emit: &mut Emit<'_>,
    ) {
        let Self { snapshot, v4, v6, shared, counters, publication, agenda, .. } = self;
        let snapshot = snapshot.get();
        let mut cx = Context::new(now, origin, snapshot, counters, shared, emit);
        if !burst::run(v4, v6, &mut cx, frames, verdicts) {
            agenda.due = Instant::ZERO;
        }
        publication.request(counters);
        agenda.due = agenda.due.min(publication.next);
    }

    fn tick(&mut self, now: Instant, emit: &mut Emit<'_>) -> Option<Instant> {
        let Self { snapshot, v4, v6, shared, counters, publication, dumps, adoption, agenda } = self;
        if now < agenda.due && !dumps.is_asked() {
            return agenda.deadline.into_iter().chain(publication.due()).min();
        }
        let loads = shared.tick(now, snapshot.get());
        counters.events(Event::DestinationsEvicted, shared.schedulers.take_evicted());
        let mut cx = Context::new(now, Origin::Port, snapshot.get(), counters, shared, emit);
        let next = [v4.tick(&mut cx), v6.tick(&mut cx)];
        if next.iter().any(|tick| tick.removed > 0) {
            publication.request(counters);
        }
        counters.gauge(Gauge::ConnectionsV4, v4.flows.table().len());
        counters.gauge(Gauge::ConnectionsV6, v6.flows.table().len());
        let publication = publication.run(now, counters);
        let (tables, ticks) = ((v4.flows.table(), v6.flows.table()), Ticks::at(now));
        let dumping = dumps.work(|from, limit, found| dump::scan(tables, from, limit, ticks, found));
        let dump = dumping.then_some(now);
        let adoption = adoption.is_pending().then_some(now);
        let next = next.iter().map(|tick| tick.next).chain([publication, dump, adoption]);
        agenda.deadline = next.flatten().min();
        agenda.due = agenda.deadline.into_iter().chain(loads).min().unwrap_or(Instant::MAX);
        agenda.deadline
    }

    fn close(&mut self, pool: &mut Mempool) {
        pool.free_all(self.v4.fragments.drain().map(|held| held.frame));
        pool.free_all(self.v6.fragments.drain().map(|held| held.frame));
    }
}

/// Publishes counters piece by piece, so that many servers do not make one tick long.
#[derive(Debug, Default)]
struct Publication {
    next: Instant,
    cursor: usize,
    /// Pieces to go until everything counted so far is visible.
    pending: usize,
}

impl Publication {
    const INTERVAL: Duration = Duration::from_millis(1);
    const PIECE: usize = 4096;

    /// Something has been counted.
    #[inline]
    fn request(&mut self, counters: &WorkerCounters) {
        // One more than there are: the piece under way may have been passed already.
        self.pending = counters.in_use().div_ceil(Self::PIECE) + 1;
    }

    /// Publishes a piece when it is time. Returns when the next is due.
    fn run(&mut self, now: Instant, counters: &WorkerCounters) -> Option<Instant> {
        if self.pending > 0 && now >= self.next {
            let len = counters.in_use();
            let end = (self.cursor + Self::PIECE).min(len);
            counters.raw().publish(self.cursor..end);
            if self.cursor > 0 {
                counters.raw().publish(0..counters::GLOBAL);
            }
            self.cursor = if end == len { 0 } else { end };
            self.pending -= 1;
            self.next = now + Self::INTERVAL;
        }
        self.due()
    }

    /// When the next piece is due.
    #[inline]
    fn due(&self) -> Option<Instant> {
        (self.pending > 0).then_some(self.next)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use shunt_engine::mempool::PoolConfig;
    use shunt_engine::port::MacAddr;
    use shunt_engine::program::EmitBuffer;
    use shunt_engine::steer::Prefix;
    use shunt_engine::{PortId, Verdict, publish};

    use super::*;
    use crate::conn::{Conn, ConnFlags, Timeouts};
    use crate::neigh::{HopId, NextHop};
    use crate::scheduler::SchedulerKind;
    use crate::server::{Mode, Server, ServerId};
    use crate::service::{Listen, Local, OutOfState, ServerGone, Service, ServiceId};
    use crate::snapshot::{Builder, PortInfo};
    use crate::tuple::{Endpoint, Protocol, Tuple};
    use crate::verdict::DropReason;
    use crate::wire::builder::PacketBuilder;
    use crate::wire::tcp::flags;

    const WORKERS: usize = 3;
    const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const CLIENT: Endpoint<V4> = Endpoint::new(V4(0xc633_6407), 40_000);
    const VIP: Endpoint<V4> = Endpoint::new(V4(0xcb00_710a), 80);
    const SERVER: Endpoint<V4> = Endpoint::new(V4(0x0a00_000b), 8080);
    const LOCAL: V4 = V4(0x0a00_00c8);

    fn ip(address: V4) -> IpAddr {
        Ipv4Addr::from_bits(address.0).into()
    }

    fn snapshot(mode: Mode) -> Snapshot {
        let mut builder = Builder::new();
        let hop = NextHop {
            port: PortId(0),
            vid: None,
            source: US,
            destination: Some(MacAddr([2, 0, 0, 0, 0, 2])),
            attached: false,
            mtu: 1500,
            address: None,
        };
        builder.port(PortInfo { name: "port".into(), mac: US }).hop(HopId(0), hop);
        builder.route(Prefix::new(ip(V4(0)), 0).unwrap(), HopId(0));
        let (id, service) = (ServerId::default(), ServiceId(0));
        let port = mode.sees_replies().then_some(SERVER.port);
        let server = Server {
            id,
            service,
            address: ip(SERVER.address),
            port,
            mode,
            weight: 1,
            drain_at: None,
            down: false,
            thresholds: None,
            hop: None,
        };
        let service = Service {
            id: service,
            name: "web".into(),
            protocol: Protocol::Tcp,
            listen: vec![Listen { prefix: Prefix::host(ip(VIP.address)), ports: VIP.port..=VIP.port }],
            scheduler: SchedulerKind::Rr.into(),
            locals: vec![Local { address: ip(LOCAL), ports: 1024..=2047 }],
            out_of_state: OutOfState::Reset,
            timeouts: Timeouts::default(),
            persistence: None,
            one_packet: false,
            server_gone: ServerGone::Reset,
        };
        builder.service(service, vec![server]);
        builder.build()
    }

    struct Workers {
        pipelines: Vec<Pipeline>,
        pool: Mempool,
        now: Instant,
    }

    impl Workers {
        fn new(mode: Mode) -> Self {
            let (_, readers) = publish::channel(snapshot(mode), WORKERS);
            let config = |worker| Config {
                worker: WorkerId(worker),
                workers: WORKERS as u16,
                secret: [1, 2],
                max_connections: 4,
                max_services: 1,
                max_servers: 1,
            };
            let pipelines = readers.into_iter().zip(0..);
            let agreed = Agreed::new(64, 1, [1, 2]);
            let pipelines = pipelines
                .map(|(reader, worker)| Pipeline::new(config(worker), agreed.clone(), reader).unwrap());
            let pool = Mempool::single(PoolConfig { chunks: 8, ..PoolConfig::default() }).unwrap();
            Self { pipelines: pipelines.collect(), pool, now: Instant::from_nanos(1 << 40) }
        }

        /// The way of a packet that worker `worker` receives: the workers it visits, and what the last one says.
        fn way(&mut self, worker: usize, packet: &PacketBuilder) -> (Vec<usize>, Verdict) {
            let bytes = packet.clone().link(MacAddr([2, 0, 0, 0, 0, 3]), US).build();
            let (mut way, mut origin) = (vec![worker], Origin::Port);
            loop {
                let here = *way.last().unwrap();
                let mut frame = self.pool.alloc().unwrap();
                assert!(frame.fill(&bytes));
                let (mut burst, mut verdicts, mut staged) =
                    (Burst::new(), Verdicts::new(), EmitBuffer::new());
                burst.push(frame);
                let emit = &mut Emit::new(&mut self.pool, &mut staged);
                self.pipelines[here].refresh(self.now);
                self.pipelines[here].on_burst(self.now, origin, &mut burst, &mut verdicts, emit);
                self.pool.free_all(burst.drain(..).chain(staged.drain(..).map(|(_, frame)| frame)));
                match verdicts[0] {
                    Verdict::Handoff(next) => way.push(usize::from(next.0)),
                    verdict => return (way, verdict),
                }
                assert!(way.len() <= 5, "round and round: {way:?}");
                origin = Origin::Handoff(WorkerId(here as u16));
            }
        }

        /// Opens a connection, and moves it from its home to the next worker as a change of homes would leave it.
        fn moved(&mut self) -> (Conn<V4>, usize, usize) {
            let (way, verdict) = self.way(0, &PacketBuilder::tcp(CLIENT, VIP).flags(flags::SYN));
            assert_eq!(verdict, Verdict::Forward(PortId(0)));
            let home = *way.last().unwrap();
            let there = (home + 1) % WORKERS;
            let tuple = Tuple { src: CLIENT, dst: VIP, protocol: Protocol::Tcp };
            let table = &mut self.pipelines[home].v4.flows.table;
            let hit = table.lookup(&tuple, table.hash(&tuple)).unwrap();
            let conn = table.remove(hit.id);
            let mut pointer = Conn { client_hop: there as u16, ..conn };
            pointer.flags.set(ConnFlags::MOVED, true);
            table.insert(pointer, Ticks::at(self.now)).unwrap();
            self.pipelines[there].v4.flows.table.insert(conn, Ticks::at(self.now)).unwrap();
            (conn, home, there)
        }
    }

    #[test]
    fn packets_of_a_moved_flow_are_handed_on_from_its_home_to_where_it_lives() {
        for mode in Mode::ALL {
            let mut workers = Workers::new(mode);
            let (conn, home, there) = workers.moved();
            let request = PacketBuilder::tcp(conn.client, conn.vip);
            let quoted = PacketBuilder::tcp(conn.vip, conn.client).build_ip();
            let error = PacketBuilder::icmp("198.51.100.7", "203.0.113.10", 3, 1).payload(quoted);
            let fragment = PacketBuilder::tcp(conn.client, conn.vip).more_fragments().payload([0; 20]);
            let later =
                PacketBuilder::raw("198.51.100.7", "203.0.113.10", 6).fragment_offset(40).payload([0; 8]);
            let mut packets = vec![request, error, fragment, later];
            if mode == Mode::Nat {
                packets.push(PacketBuilder::tcp(conn.server, conn.peer));
            }
            for (worker, packet) in (0..WORKERS).flat_map(|worker| packets.iter().map(move |p| (worker, p))) {
                let (way, verdict) = workers.way(worker, packet);
                assert_eq!(verdict, Verdict::Forward(PortId(0)), "{mode:?} {way:?} {packet:?}");
                assert_eq!(*way.last().unwrap(), there, "from {home}: {way:?}");
            }
            assert_eq!(workers.pipelines[there].flows_v4().table().len(), 1);
            assert_eq!(workers.pool.available(), 8);
        }
    }

    #[test]
    fn a_moved_flow_that_is_not_there_any_more_does_not_send_packets_in_circles() {
        let mut workers = Workers::new(Mode::Nat);
        let (conn, home, there) = workers.moved();
        let table = &mut workers.pipelines[there].v4.flows.table;
        let tuple = conn.request();
        let hit = table.lookup(&tuple, table.hash(&tuple)).unwrap();
        table.remove(hit.id);
        let (way, verdict) = workers.way(home, &PacketBuilder::tcp(conn.client, conn.vip));
        assert_eq!((way, verdict), (vec![home, there], Verdict::Drop));
        let drops = counters::drop_reason(DropReason::HandoffLoop);
        assert_eq!(workers.pipelines[there].counters.raw().get(drops), 1);
    }

    #[test]
    fn many_servers_are_adopted_piece_by_piece_and_the_worker_does_not_sleep_meanwhile() {
        const SERVERS: u32 = (2 * Adoption::PIECE * Snapshot::PAGE) as u32 + 1;
        let (service, server) = {
            let snapshot = snapshot(Mode::Dr);
            (snapshot.service(ServiceId(0)).unwrap().clone(), snapshot.server_in(0).unwrap().clone())
        };
        let generation = |generation| {
            let id = |slot| ServerId { slot, generation };
            let mut builder = Builder::new();
            let servers = (0..SERVERS).map(|slot| Server { id: id(slot), ..server.clone() }).collect();
            builder.service(service.clone(), servers);
            builder.build()
        };
        let (mut publisher, mut readers) = publish::channel(generation(1), 1);
        let config = Config {
            worker: WorkerId(0),
            workers: 1,
            secret: [1, 2],
            max_connections: 4,
            max_services: 1,
            max_servers: SERVERS + 1000,
        };
        let agreed = Agreed::new(64, config.max_servers, config.secret);
        let mut pipeline = Pipeline::new(config, agreed, readers.remove(0)).unwrap();
        let mut pool = Mempool::single(PoolConfig { chunks: 8, ..PoolConfig::default() }).unwrap();
        let mut staged = EmitBuffer::new();
        let mut now = Instant::from_nanos(1 << 40);
        let mut turn = |pipeline: &mut Pipeline, now| {
            pipeline.refresh(now);
            pipeline.tick(now, &mut Emit::new(&mut pool, &mut staged))
        };
        // What the older tenant of the last slot leaves is visible until the newer one is adopted.
        let last = counters::server(SERVERS - 1, counters::ServerField::Connections);
        for number in 1..=2 {
            if number == 2 {
                pipeline.counters.server_add(
                    ServerId { slot: SERVERS - 1, generation: 1 },
                    counters::ServerField::Connections,
                    7,
                );
                publisher.publish(generation(2));
            }
            for _ in 0..2 {
                assert_eq!(turn(&mut pipeline, now), Some(now));
                assert!(pipeline.adoption.is_pending());
            }
            assert_eq!(pipeline.counters.raw().get(last), if number == 2 { 7 } else { 0 });
            assert!(turn(&mut pipeline, now) > Some(now));
            assert_eq!(pipeline.counters.raw().get(last), 0);
            now += Duration::from_secs(1);
        }
        assert_eq!(pipeline.counters.in_use(), counters::len(SERVERS as usize), "not those of empty slots");
    }

    #[test]
    fn a_moved_record_that_expires_takes_nothing_off_its_server() {
        let mut workers = Workers::new(Mode::Dr);
        let (conn, home, _) = workers.moved();
        let load = |workers: &Workers| {
            let of = |field| workers.pipelines[home].counters.raw().get(counters::server(0, field));
            (of(counters::ServerField::Active), of(counters::ServerField::Inactive))
        };
        let before = load(&workers);
        workers.now += Duration::from_secs(1000);
        let mut staged = EmitBuffer::new();
        workers.pipelines[home].tick(workers.now, &mut Emit::new(&mut workers.pool, &mut staged));
        assert!(workers.pipelines[home].flows_v4().table().is_empty(), "{:?} is gone", conn.request());
        assert_eq!(load(&workers), before);
    }
}
