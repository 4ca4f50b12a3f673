//! A director of one or more workers without threads: real pipelines, frames delivered and handed on by the test.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use shunt_dataplane::conn::{Conn, Timeouts};
use shunt_dataplane::counters::{self, ServerField};
use shunt_dataplane::neigh::{HopId, NextHop};
use shunt_dataplane::pipeline::{Config, Pipeline};
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::{Mode, Server, ServerId};
use shunt_dataplane::service::{Listen, Local, OutOfState, Service, ServiceId};
use shunt_dataplane::snapshot::{Builder, PortInfo, Snapshot};
use shunt_dataplane::tuple::{Endpoint, Protocol, Tuple, V4};
use shunt_dataplane::verdict::DropReason;
use shunt_engine::counters::Published;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::port::MacAddr;
use shunt_engine::program::{EmitBuffer, Verdicts};
use shunt_engine::publish::{self, Publisher};
use shunt_engine::steer::Prefix;
use shunt_engine::{Burst, Duration, Emit, Instant, Mempool, Origin, PortId, Program, Verdict, WorkerId};

/// Servers of each service.
pub(crate) const SERVERS: usize = 3;
/// Services: what they are, in the order of their numbers.
pub(crate) const SERVICES: [(Protocol, Mode, OutOfState); 6] = [
    (Protocol::Tcp, Mode::Fullnat, OutOfState::Reset),
    (Protocol::Tcp, Mode::Nat, OutOfState::Reset),
    (Protocol::Tcp, Mode::Dr, OutOfState::Schedule),
    (Protocol::Tcp, Mode::Tun, OutOfState::Drop),
    (Protocol::Udp, Mode::Fullnat, OutOfState::Reset),
    (Protocol::Udp, Mode::Nat, OutOfState::Drop),
];
/// Connections a worker can hold: so few that tables fill.
pub(crate) const CAPACITY: usize = 12;
/// Local ports of a FULLNAT service, of all workers: so few that they run out.
pub(crate) const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 30_001..=30_003;
/// The virtual address.
pub(crate) const VIP: V4 = V4(0xcb00_710a);

const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const CLIENT: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const CHUNKS: u32 = 96;

/// One server slot of the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) present: bool,
    pub(crate) generation: u32,
    pub(crate) weight: u32,
    pub(crate) drain_at: Option<Instant>,
}

/// The configuration: what a reload changes.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) schedulers: [SchedulerKind; SERVICES.len()],
    pub(crate) slots: [Slot; SERVICES.len() * SERVERS],
}

/// The director.
pub(crate) struct Lab {
    pub(crate) now: Instant,
    pipelines: Vec<Pipeline>,
    pools: Vec<Mempool>,
    publisher: Publisher<Snapshot>,
    published: Vec<Published>,
}

/// What became of a frame.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The worker that decided.
    pub(crate) worker: usize,
    pub(crate) verdict: Verdict,
    pub(crate) frame: Vec<u8>,
    /// Frames the director originated.
    pub(crate) emitted: usize,
    /// Why it was dropped, if it was.
    pub(crate) reason: Option<DropReason>,
}

impl Setup {
    pub(crate) fn id(&self, slot: usize) -> ServerId {
        ServerId { slot: slot as u32, generation: self.slots[slot].generation }
    }

    /// Whether the server is configured.
    pub(crate) fn has(&self, id: ServerId) -> bool {
        let slot = &self.slots[id.slot as usize];
        slot.present && slot.generation == id.generation
    }

    /// Slots of a service's servers that may get connections.
    pub(crate) fn eligible(&self, service: usize) -> impl Iterator<Item = usize> + '_ {
        let slots = service * SERVERS..(service + 1) * SERVERS;
        slots.filter(|&slot| self.slots[slot].present && self.slots[slot].weight > 0)
    }

    fn snapshot(&self) -> Snapshot {
        let mut builder = Builder::new();
        builder.port(PortInfo { name: "port0".into(), mac: US }).routes_generation(1);
        let hop = |destination: Option<MacAddr>| NextHop {
            port: PortId(0),
            vid: None,
            source: US,
            destination,
            attached: destination.is_none(),
            mtu: 1500,
            address: Some("10.0.0.1".parse().unwrap()),
        };
        builder.hop(HopId(0), hop(None)).route(Prefix::new("0.0.0.0".parse().unwrap(), 0).unwrap(), HopId(0));
        for slot in 0..self.slots.len() {
            let id = HopId(slot as u16 + 1);
            builder.hop(id, hop(Some(server_mac(slot)))).route(Prefix::host(ip(server_address(slot))), id);
        }
        for (number, (protocol, mode, out_of_state)) in SERVICES.into_iter().enumerate() {
            let slots = number * SERVERS..(number + 1) * SERVERS;
            let server = |slot: usize| Server {
                id: self.id(slot),
                service: ServiceId(number as u32),
                address: ip(server_address(slot)),
                port: mode.sees_replies().then_some(9000),
                mode,
                weight: self.slots[slot].weight,
                drain_at: self.slots[slot].drain_at,
                hop: None,
            };
            let servers: Vec<_> = slots.filter(|&slot| self.slots[slot].present).map(server).collect();
            let service = Service {
                id: ServiceId(number as u32),
                name: format!("service{number}"),
                protocol,
                listen: vec![Listen {
                    prefix: Prefix::host(ip(VIP)),
                    ports: vip(number).port..=vip(number).port,
                }],
                scheduler: self.schedulers[number].into(),
                locals: vec![Local { address: ip(local_address(number)), ports: LOCAL_PORTS }],
                out_of_state,
                timeouts: Timeouts::default(),
            };
            builder.service(service, servers);
        }
        builder.build()
    }
}

impl Lab {
    pub(crate) fn new(setup: &Setup, workers: u16) -> Self {
        let (publisher, readers) = publish::channel(setup.snapshot(), usize::from(workers));
        let config = |worker| Config {
            worker: WorkerId(worker),
            workers,
            secret: [17, 23],
            max_connections: CAPACITY as u32,
            max_services: SERVICES.len() as u32,
            max_servers: (SERVICES.len() * SERVERS) as u32,
        };
        let pipelines: Vec<_> = (0..)
            .zip(readers)
            .map(|(worker, reader)| Pipeline::new(config(worker), reader).unwrap())
            .collect();
        let pool = PoolConfig { chunks: CHUNKS, ..PoolConfig::default() };
        Self {
            now: Instant::from_nanos(123_456_789_012),
            published: pipelines.iter().map(Pipeline::counters).collect(),
            pools: Mempool::split(pool, pipelines.len()).unwrap(),
            pipelines,
            publisher,
        }
    }

    pub(crate) fn reload(&mut self, setup: &Setup) {
        self.publisher.publish(setup.snapshot());
    }

    /// Receives `frame` on the queue of worker `queue` and hands it on as the workers say.
    pub(crate) fn deliver(&mut self, queue: usize, frame: &[u8]) -> Outcome {
        let before: Vec<_> = self.drops().collect();
        let (mut worker, mut origin) = (queue % self.pipelines.len(), Origin::Port);
        let mut outcome = self.receive(worker, origin, frame);
        for _ in 0..2 {
            let Verdict::Handoff(next) = outcome.verdict else { break };
            assert_eq!(outcome.frame, frame, "a frame was changed before it was handed on");
            origin = Origin::Handoff(WorkerId(worker as u16));
            worker = usize::from(next.0);
            outcome = self.receive(worker, origin, frame);
        }
        assert!(!matches!(outcome.verdict, Verdict::Handoff(_) | Verdict::Hold), "{outcome:?}");
        self.settle();
        let mut reasons = DropReason::ALL.iter().zip(before).zip(self.drops());
        outcome.reason = reasons.find_map(|((&reason, before), after)| (after > before).then_some(reason));
        assert_eq!(outcome.reason.is_some(), outcome.verdict == Verdict::Drop, "{outcome:?}");
        outcome
    }

    /// Lets `duration` pass and the workers do what is due.
    pub(crate) fn pass(&mut self, duration: Duration) {
        self.now += duration;
        self.settle();
    }

    /// All connections with their worker.
    pub(crate) fn connections(&self) -> Vec<(usize, Conn<V4>)> {
        let mut connections = Vec::new();
        for (worker, pipeline) in self.pipelines.iter().enumerate() {
            let table = pipeline.flows_v4().table();
            let before = connections.len();
            assert_eq!(table.scan(0, u32::MAX, |_, conn| connections.push((worker, *conn))), None);
            assert_eq!(connections.len() - before, table.len());
        }
        connections
    }

    /// Connections that `worker` counts at a server slot: active, inactive, opened so far.
    pub(crate) fn load(&self, worker: usize, slot: usize) -> [u64; 3] {
        [ServerField::Active, ServerField::Inactive, ServerField::Connections]
            .map(|field| self.published[worker].get(counters::server(slot as u32, field)))
    }

    fn receive(&mut self, worker: usize, origin: Origin, bytes: &[u8]) -> Outcome {
        let (pipeline, pool) = (&mut self.pipelines[worker], &mut self.pools[worker]);
        let mut frame = pool.alloc().expect("every frame comes back");
        assert!(frame.fill(bytes));
        let (mut burst, mut verdicts, mut staged) = (Burst::new(), Verdicts::new(), EmitBuffer::new());
        burst.push(frame);
        pipeline.refresh(self.now);
        pipeline.on_burst(self.now, origin, &mut burst, &mut verdicts, &mut Emit::new(pool, &mut staged));
        let frame = burst.pop().expect("frames stay in their burst");
        let outcome = Outcome {
            worker,
            verdict: verdicts[0],
            frame: frame.data().to_vec(),
            emitted: staged.len(),
            reason: None,
        };
        pool.free(frame);
        pool.free_all(staged.drain(..).map(|(_, frame)| frame));
        assert_eq!(pool.available(), CHUNKS as usize);
        outcome
    }

    /// Ticks until every counter is published.
    fn settle(&mut self) {
        for _ in 0..3 {
            for (pipeline, pool) in self.pipelines.iter_mut().zip(&mut self.pools) {
                let mut staged = EmitBuffer::new();
                pipeline.refresh(self.now);
                pipeline.tick(self.now, &mut Emit::new(pool, &mut staged));
                // What drained connections are asked. Their resets are counted where a frame comes in.
                pool.free_all(staged.drain(..).map(|(_, frame)| frame));
            }
            self.now += Duration::from_millis(1);
        }
    }

    fn drops(&self) -> impl Iterator<Item = u64> {
        let sum =
            |&reason| self.published.iter().map(|of| of.get(counters::drop_reason(reason))).sum::<u64>();
        DropReason::ALL.iter().map(sum).collect::<Vec<_>>().into_iter()
    }
}

/// A frame from a client or a server with `tuple` in its headers and, for TCP, `flags`.
pub(crate) fn frame(from: MacAddr, tuple: &Tuple<V4>, flags: u8) -> Vec<u8> {
    let (src, dst) = (tuple.src.address.0.to_be_bytes(), tuple.dst.address.0.to_be_bytes());
    let builder = PacketBuilder::ethernet2(from.0, US.0).ipv4(src, dst, 64);
    let mut bytes = Vec::new();
    match tuple.protocol {
        Protocol::Tcp => {
            let mut header = etherparse::TcpHeader::new(tuple.src.port, tuple.dst.port, 1, 1000);
            header.fin = flags & 0x01 != 0;
            header.syn = flags & 0x02 != 0;
            header.rst = flags & 0x04 != 0;
            header.ack = flags & 0x10 != 0;
            builder.tcp_header(header).write(&mut bytes, b"data").unwrap();
        }
        Protocol::Udp => builder.udp(tuple.src.port, tuple.dst.port).write(&mut bytes, b"data").unwrap(),
    }
    bytes
}

pub(crate) fn client_frame(tuple: &Tuple<V4>, flags: u8) -> Vec<u8> {
    frame(CLIENT, tuple, flags)
}

/// The destination station, the tuple and, in a tunnel, the outer destination of a frame that left. All its checksums
/// are right, or this panics.
pub(crate) fn parse(bytes: &[u8]) -> (MacAddr, Tuple<V4>, Option<V4>) {
    let mac = MacAddr(bytes[..6].try_into().unwrap());
    let outer = SlicedPacket::from_ethernet(bytes).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &outer.net else { panic!("no IPv4: {bytes:?}") };
    assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
    if ip.header().protocol() == etherparse::IpNumber::IPV4 {
        let (_, tuple, _) = parse(&[&bytes[..14], ip.payload().payload].concat());
        return (mac, tuple, Some(V4(u32::from_be_bytes(ip.header().destination()))));
    }
    let (src, dst) = (ip.header().source(), ip.header().destination());
    let (ports, protocol) = match &outer.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            assert_eq!(tcp.calc_checksum_ipv4(src, dst).unwrap(), tcp.checksum());
            ((tcp.source_port(), tcp.destination_port()), Protocol::Tcp)
        }
        Some(TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            assert_eq!(header.calc_checksum_ipv4_raw(src, dst, udp.payload()).unwrap(), header.checksum);
            ((udp.source_port(), udp.destination_port()), Protocol::Udp)
        }
        other => panic!("{other:?}"),
    };
    let endpoint = |address, port| Endpoint::new(V4(u32::from_be_bytes(address)), port);
    (mac, Tuple { src: endpoint(src, ports.0), dst: endpoint(dst, ports.1), protocol }, None)
}

pub(crate) fn vip(service: usize) -> Endpoint<V4> {
    Endpoint::new(VIP, 8000 + service as u16)
}

pub(crate) fn client_mac() -> MacAddr {
    CLIENT
}

pub(crate) fn server_mac(slot: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, slot as u8])
}

pub(crate) fn server_address(slot: usize) -> V4 {
    V4(0x0a01_0000 + slot as u32)
}

pub(crate) fn local_address(service: usize) -> V4 {
    V4(0x0a00_00c8 + service as u32)
}

fn ip(address: V4) -> std::net::IpAddr {
    std::net::Ipv4Addr::from_bits(address.0).into()
}
