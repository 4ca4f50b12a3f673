//! The network around the director: clients on one port, servers on another, and workers that hand frames to each other.
//!
//! ```text
//! 198.51.100.0/24 clients ─┐                                 ┌─ 10.1.0.10 … two servers per service
//!                          ├─ port 0 [ director ] port 1 ────┤
//! anywhere else ── router ─┘   203.0.113.10 (VIP)            └─ 10.1.0.200 (local address)
//! ```

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use shunt_dataplane::agreed::Agreed;
use shunt_dataplane::conn::{Conn, Timeouts};
use shunt_dataplane::counters::{self, Event, Gauge, ServerField};
use shunt_dataplane::neigh::{HopId, NextHop};
use shunt_dataplane::pipeline::{Config, Pipeline};
use shunt_dataplane::route::Hops;
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::{Mode, Server, ServerId};
use shunt_dataplane::service::{Listen, Local, OutOfState, ServerGone, Service, ServiceId};
use shunt_dataplane::snapshot::{Builder, PortInfo, Snapshot};
use shunt_dataplane::spread::Spread;
use shunt_dataplane::tuple::{Address, Endpoint, Protocol, V4, V6};
use shunt_dataplane::verdict::DropReason;
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::tcp::flags;
use shunt_engine::assign::owner;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::port::MacAddr;
use shunt_engine::program::{EmitBuffer, Verdicts};
use shunt_engine::publish::{self, Publisher};
use shunt_engine::rss::Rss;
use shunt_engine::steer::Prefix;
use shunt_engine::{
    BURST, Burst, Duration, Emit, Instant, Mempool, Origin, PortId, Program, Verdict, WorkerId,
};

pub(crate) const CLIENTS: PortId = PortId(0);
pub(crate) const SERVERS: PortId = PortId(1);
/// Our link address on each port.
pub(crate) const US: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];
pub(crate) const CLIENT_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 7]);
pub(crate) const ROUTER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 254]);
/// Our own address on each port.
pub(crate) const OWN: [V4; 2] = [V4(0xc633_6401), V4(0x0a01_0001)];
pub(crate) const VIP: V4 = V4(0xcb00_710a);
pub(crate) const LOCAL: V4 = V4(0x0a01_00c8);
/// Servers of each service.
pub(crate) const PER_SERVICE: usize = 2;
/// Every mode for each protocol.
pub(crate) const SERVICES: usize = 8;
const SLOTS: usize = SERVICES * PER_SERVICE;

/// The configuration.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) workers: u16,
    /// MTU of each port.
    pub(crate) mtu: [u16; 2],
    pub(crate) out_of_state: OutOfState,
    pub(crate) server_gone: ServerGone,
    /// Generation of the server in each slot, if there is one.
    pub(crate) servers: [Option<u32>; SLOTS],
    /// VLAN of the clients' network.
    pub(crate) clients_vid: Option<u16>,
    /// Whether the servers have another mode than their service's name says.
    pub(crate) other_modes: bool,
    /// Whether the clients' network is behind the router.
    pub(crate) clients_routed: bool,
    /// Whether every address is the IPv6 one that [`six`] makes of it.
    pub(crate) ipv6: bool,
    /// Which of two ways there are to clients and to servers, if they are behind such; see [`way_mac`].
    pub(crate) ways: &'static [u8],
    /// Buffers per worker.
    pub(crate) chunks: u32,
    pub(crate) scheduler: SchedulerKind,
    /// Leading bits of the VIP that every service listens on.
    pub(crate) vip_len: u8,
    /// How NICs spread frames over their queues, as far as the workers know.
    pub(crate) rss: Option<Rss>,
    /// Connections per worker.
    pub(crate) max_connections: u32,
}

impl Default for World {
    fn default() -> Self {
        Self {
            workers: 3,
            mtu: [1500; 2],
            out_of_state: OutOfState::Reset,
            server_gone: ServerGone::Reset,
            servers: [Some(1); SLOTS],
            clients_vid: None,
            other_modes: false,
            clients_routed: false,
            ipv6: false,
            ways: &[],
            chunks: 512,
            scheduler: SchedulerKind::Wlc,
            vip_len: 32,
            rss: None,
            max_connections: 16,
        }
    }
}

/// Where a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Port(PortId),
    Kernel,
}

/// A frame that left a worker for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Out {
    pub(crate) worker: usize,
    pub(crate) to: To,
    pub(crate) bytes: Vec<u8>,
}

/// The director.
pub(crate) struct Lab {
    pub(crate) now: Instant,
    pub(crate) world: World,
    pipelines: Vec<Pipeline>,
    pools: Vec<Mempool>,
    publisher: Publisher<Snapshot>,
    /// Frames that workers were given to decide.
    decided: u64,
}

pub(crate) fn number(mode: Mode, protocol: Protocol) -> usize {
    mode as usize * 2 + usize::from(protocol == Protocol::Udp)
}

pub(crate) fn vip(mode: Mode, protocol: Protocol) -> Endpoint<V4> {
    Endpoint::new(VIP, 8000 + number(mode, protocol) as u16)
}

pub(crate) fn client(port: u16) -> Endpoint<V4> {
    Endpoint::new(V4(0xc633_6407), port)
}

pub(crate) fn server_address(slot: usize) -> V4 {
    V4(0x0a01_000a + slot as u32)
}

pub(crate) fn server_mac(slot: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 2, slot as u8])
}

/// The router on one of two ways.
pub(crate) fn way_mac(way: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 3, way])
}

/// The address of the same station in a world of IPv6.
pub(crate) fn six(address: V4) -> V6 {
    V6([0x2001_0db8, 0, 0, address.0])
}

impl World {
    fn ip(&self, address: V4) -> IpAddr {
        if self.ipv6 { six(address).to_ip() } else { address.to_ip() }
    }

    fn prefix(&self, address: V4, len: u8) -> Prefix {
        let len = if self.ipv6 { 96 + len } else { len };
        Prefix::new(self.ip(address), len).unwrap()
    }

    pub(crate) fn id(&self, slot: usize) -> ServerId {
        ServerId { slot: slot as u32, generation: self.servers[slot].unwrap() }
    }

    pub(crate) fn agreed(&self) -> Agreed {
        let config = self.config(0);
        let spread =
            self.rss.as_ref().and_then(|rss| Spread::new(rss, self.workers, |queue| self.owner(queue)));
        Agreed { spread: spread.map(Arc::new), ..Agreed::new(64, config.max_servers, config.secret) }
    }

    /// The worker of a queue.
    pub(crate) const fn owner(&self, queue: u16) -> WorkerId {
        owner(queue, self.workers)
    }

    pub(crate) fn config(&self, worker: u16) -> Config {
        Config {
            worker: WorkerId(worker),
            workers: self.workers,
            secret: [5, 7],
            max_connections: self.max_connections,
            max_services: SERVICES as u32,
            max_servers: SLOTS as u32,
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.snapshot_after(&Snapshot::default())
    }

    fn snapshot_after(&self, before: &Snapshot) -> Snapshot {
        let mut builder = Builder::after(before);
        for (name, mac) in ["clients", "servers"].into_iter().zip(US) {
            builder.port(PortInfo { name: name.into(), mac });
        }
        let hop = |port: PortId, destination: Option<MacAddr>| NextHop {
            port,
            vid: self.clients_vid.filter(|_| port == CLIENTS),
            source: US[usize::from(port.0)],
            destination,
            attached: destination.is_none(),
            mtu: self.mtu[usize::from(port.0)],
            address: Some(self.ip(OWN[usize::from(port.0)])),
        };
        let prefix = |address, len| self.prefix(address, len);
        if !self.ways.is_empty() {
            let number = |port: PortId, way: u8| HopId(100 + 10 * u16::from(port.0) + u16::from(way));
            let hops = |port| -> Hops { self.ways.iter().map(|&way| (number(port, way), 1)).collect() };
            for port in [CLIENTS, SERVERS] {
                for &way in self.ways {
                    builder.hop(number(port, way), hop(port, Some(way_mac(way))));
                }
            }
            builder.route(prefix(V4(0xc633_6400), 24), hops(CLIENTS));
            (0..SLOTS).for_each(|slot| {
                builder.route(Prefix::host(self.ip(server_address(slot))), hops(SERVERS));
            });
        }
        let clients = HopId(u16::from(self.clients_routed));
        builder.hop(HopId(0), hop(CLIENTS, None)).route(prefix(V4(0xc633_6400), 24), clients);
        builder.hop(HopId(1), hop(CLIENTS, Some(ROUTER_MAC))).route(prefix(V4(0), 0), HopId(1));
        for slot in 0..SLOTS {
            let id = HopId(slot as u16 + 10);
            let station = hop(SERVERS, Some(server_mac(slot)));
            builder.hop(id, station).route(Prefix::host(self.ip(server_address(slot))), id);
        }
        for (mode, protocol) in every() {
            let (service, servers) = self.service(mode, protocol);
            builder.service(service, servers);
        }
        builder.build()
    }

    fn service(&self, mode: Mode, protocol: Protocol) -> (Service, Vec<Server>) {
        let number = number(mode, protocol);
        let slots = number * PER_SERVICE..(number + 1) * PER_SERVICE;
        let server = |slot: usize| Server {
            id: self.id(slot),
            service: ServiceId(number as u32),
            address: self.ip(server_address(slot)),
            port: mode.sees_replies().then_some(9000),
            mode: if self.other_modes { Mode::ALL[(mode as usize + 1) % 4] } else { mode },
            weight: 1,
            drain_at: None,
            down: false,
            thresholds: None,
            hop: None,
        };
        let servers: Vec<_> = slots.filter(|&slot| self.servers[slot].is_some()).map(server).collect();
        let port = vip(mode, protocol).port;
        let service = Service {
            id: ServiceId(number as u32),
            name: format!("{}-{protocol}", mode.name()),
            protocol,
            listen: vec![Listen { prefix: self.prefix(VIP, self.vip_len), ports: port..=port }],
            scheduler: self.scheduler.into(),
            locals: match mode {
                Mode::Fullnat => vec![Local { address: self.ip(LOCAL), ports: 20_000..=20_999 }],
                Mode::Nat | Mode::Dr | Mode::Tun => Vec::new(),
            },
            out_of_state: self.out_of_state,
            timeouts: Timeouts::default(),
            persistence: None,
            one_packet: false,
            server_gone: self.server_gone,
        };
        (service, servers)
    }
}

/// All modes with all protocols.
pub(crate) fn every() -> impl Iterator<Item = (Mode, Protocol)> {
    Mode::ALL.into_iter().flat_map(|mode| [(mode, Protocol::Tcp), (mode, Protocol::Udp)])
}

impl Lab {
    pub(crate) fn new(world: World) -> Self {
        let workers = usize::from(world.workers);
        let agreed = world.agreed();
        let (publisher, readers) = publish::channel(world.snapshot(), workers);
        let mut pipelines: Vec<_> = (0..)
            .zip(readers)
            .map(|(worker, reader)| Pipeline::new(world.config(worker), agreed.clone(), reader).unwrap())
            .collect();
        let published: Vec<_> = pipelines.iter().map(Pipeline::counters).collect();
        for (worker, pipeline) in pipelines.iter_mut().enumerate() {
            let others = published.iter().enumerate().filter(|(other, _)| *other != worker);
            pipeline.set_peers(others.map(|(_, counters)| counters.clone()).collect());
        }
        let pool = PoolConfig { chunks: world.chunks, ..PoolConfig::default() };
        let pools = Mempool::split(pool, workers).unwrap();
        let now = Instant::from_nanos(1_000_000_000_000);
        Self { now, world, pipelines, pools, publisher, decided: 0 }
    }

    pub(crate) fn reload(&mut self, change: impl FnOnce(&mut World)) {
        change(&mut self.world);
        let next = self.world.snapshot_after(&self.publisher.current());
        self.publisher.publish(next);
    }

    /// Worker `worker` receives `frames` from `port`, in bursts; returns what leaves, once all handed on is decided too.
    pub(crate) fn deliver(&mut self, worker: usize, port: PortId, frames: &[Vec<u8>]) -> Vec<Out> {
        let mut out = Vec::new();
        let bursts = frames.chunks(BURST);
        let mut waiting: VecDeque<_> = bursts
            .map(|frames| {
                (worker, Origin::Port, frames.iter().map(|bytes| (port, bytes.clone())).collect(), 0)
            })
            .collect();
        while let Some((worker, origin, frames, handoffs)) = waiting.pop_front() {
            assert!(handoffs <= 3, "a frame goes round among workers");
            for (verdict, port, bytes) in self.decide(worker, origin, frames) {
                match verdict {
                    Verdict::Forward(port) => out.push(Out { worker, to: To::Port(port), bytes }),
                    Verdict::Punt => out.push(Out { worker, to: To::Kernel, bytes }),
                    Verdict::Handoff(next) => {
                        let (next, origin) = (usize::from(next.0), Origin::Handoff(WorkerId(worker as u16)));
                        assert!(next != worker, "handed to oneself");
                        waiting.push_back((next, origin, vec![(port, bytes)], handoffs + 1));
                    }
                    Verdict::Hold | Verdict::Drop => {}
                }
            }
        }
        out
    }

    /// One burst of one worker: every frame that came of it with its verdict, those it originated first.
    fn decide(
        &mut self,
        worker: usize,
        origin: Origin,
        frames: Vec<(PortId, Vec<u8>)>,
    ) -> Vec<(Verdict, PortId, Vec<u8>)> {
        let (pipeline, pool) = (&mut self.pipelines[worker], &mut self.pools[worker]);
        let (mut burst, mut verdicts, mut staged) = (Burst::new(), Verdicts::new(), EmitBuffer::new());
        for (port, bytes) in frames {
            let mut frame = pool.alloc().expect("a buffer is free");
            assert!(frame.fill(&bytes));
            frame.set_source(port, 0);
            burst.push(frame);
        }
        let count = burst.len();
        self.decided += count as u64;
        pipeline.refresh(self.now);
        pipeline.on_burst(self.now, origin, &mut burst, &mut verdicts, &mut Emit::new(pool, &mut staged));
        assert_eq!((burst.len(), verdicts.len()), (count, count), "one verdict per frame");
        let decided = staged.drain(..).chain(verdicts.drain(..).zip(burst.drain(..)));
        let mut gone = Vec::new();
        for (verdict, frame) in decided {
            gone.push((verdict, frame.port(), frame.data().to_vec()));
            pool.free(frame);
        }
        gone
    }

    /// Lets `duration` pass; returns what leaves by itself. Nothing is left to be handed on.
    pub(crate) fn pass(&mut self, duration: Duration) -> Vec<Out> {
        self.now += duration;
        let mut out = Vec::new();
        for (worker, (pipeline, pool)) in self.pipelines.iter_mut().zip(&mut self.pools).enumerate() {
            let mut staged = EmitBuffer::new();
            pipeline.refresh(self.now);
            pipeline.tick(self.now, &mut Emit::new(pool, &mut staged));
            for (verdict, frame) in staged.drain(..) {
                let to = match verdict {
                    Verdict::Punt => To::Kernel,
                    Verdict::Forward(port) => To::Port(port),
                    other => panic!("{other:?} from a tick"),
                };
                out.push(Out { worker, to, bytes: frame.data().to_vec() });
                pool.free(frame);
            }
        }
        out
    }

    /// Lets some milliseconds pass, in which nothing happens but that counters are published.
    fn publish(&mut self) {
        for _ in 0..3 {
            assert_eq!(self.pass(Duration::from_millis(1)), []);
        }
    }

    /// An event, counted over all workers.
    pub(crate) fn count(&mut self, event: Event) -> u64 {
        self.publish();
        self.sum(counters::event(event))
    }

    /// Drops for a reason, counted over all workers.
    pub(crate) fn dropped(&mut self, reason: DropReason) -> u64 {
        self.publish();
        self.sum(counters::drop_reason(reason))
    }

    /// What every worker counts at a server slot.
    pub(crate) fn server(&mut self, slot: usize, field: ServerField) -> Vec<u64> {
        self.publish();
        let index = counters::server(slot as u32, field);
        self.pipelines.iter().map(|pipeline| pipeline.counters().get(index)).collect()
    }

    fn sum(&self, index: usize) -> u64 {
        self.pipelines.iter().map(|pipeline| pipeline.counters().get(index)).sum()
    }

    /// All connections with their worker.
    pub(crate) fn connections(&self) -> Vec<(usize, Conn<V4>)> {
        let mut found = Vec::new();
        for (worker, pipeline) in self.pipelines.iter().enumerate() {
            pipeline.flows_v4().table().scan(0, u32::MAX, |_, conn| found.push((worker, *conn)));
        }
        found
    }

    /// All IPv6 connections.
    pub(crate) fn connections_v6(&self) -> Vec<Conn<V6>> {
        let mut found = Vec::new();
        for pipeline in &self.pipelines {
            pipeline.flows_v6().table().scan(0, u32::MAX, |_, conn| found.push(*conn));
        }
        found
    }

    /// The connection of a client with a service.
    pub(crate) fn conn(&self, from: Endpoint<V4>, to: Endpoint<V4>) -> Option<(usize, Conn<V4>)> {
        self.connections().into_iter().find(|(_, conn)| (conn.client, conn.vip) == (from, to))
    }

    /// Opens a connection by a first packet that worker `worker` receives.
    pub(crate) fn open(&mut self, worker: usize, from: u16, mode: Mode, protocol: Protocol) -> Conn<V4> {
        let (from, to) = (client(from), vip(mode, protocol));
        let packet = match protocol {
            Protocol::Tcp => PacketBuilder::tcp(from, to).flags(flags::SYN),
            Protocol::Udp => PacketBuilder::udp(from, to),
        };
        let packet = packet.link(CLIENT_MAC, US[0]);
        let packet = self.world.clients_vid.map_or(packet.clone(), |vid| packet.vlan(vid));
        assert_eq!(self.deliver(worker, CLIENTS, &[packet.build()]).len(), 1);
        self.conn(from, to).unwrap().1
    }

    /// The end: what waits goes, every buffer is back, and every decision was counted once.
    pub(crate) fn finish(&mut self) {
        while !self.pass(Duration::from_millis(50)).is_empty() {}
        self.publish();
        for pool in &self.pools {
            assert_eq!(pool.available(), self.world.chunks as usize, "a buffer is lost");
        }
        let events = [Event::Forwarded, Event::NotOurs, Event::HandedOff, Event::FragmentsUnknown]
            .map(counters::event);
        let reasons = DropReason::ALL.iter().map(|&reason| counters::drop_reason(reason));
        let counted: u64 = events.into_iter().chain(reasons).map(|index| self.sum(index)).sum();
        assert_eq!(counted, self.decided, "a decision was not counted once");
        let used = [Gauge::ConnectionsV4, Gauge::ConnectionsV6].map(|which| self.sum(counters::gauge(which)));
        let live = [self.connections().len(), self.connections_v6().len()];
        assert_eq!(used, live.map(|live| live as u64), "records in use");
        for slot in 0..SLOTS {
            self.check_load(slot);
        }
    }

    /// Counts of live connections are those of the table.
    fn check_load(&mut self, slot: usize) {
        let Some(generation) = self.world.servers[slot] else { return };
        let id = ServerId { slot: slot as u32, generation };
        let of_v4 = self.connections().iter().filter(|(_, conn)| conn.server_id == id).count();
        let of_v6 = self.connections_v6().iter().filter(|conn| conn.server_id == id).count();
        let live = (of_v4 + of_v6) as u64;
        let loads =
            [ServerField::Active, ServerField::Inactive].map(|field| counters::server(id.slot, field));
        assert_eq!(loads.map(|index| self.sum(index)).iter().sum::<u64>(), live, "slot {slot}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (pipeline, pool) in self.pipelines.iter_mut().zip(&mut self.pools) {
            pipeline.close(pool);
        }
    }
}

/// Bytes of `frame` behind its link header.
pub(crate) fn packet_in(frame: &[u8]) -> &[u8] {
    if frame[12..14] == [0x81, 0] { &frame[18..] } else { &frame[14..] }
}

/// A frame with `packet` in it.
pub(crate) fn framed(from: MacAddr, to: MacAddr, packet: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &[8, 0], packet].concat()
}
