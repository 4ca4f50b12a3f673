//! A director of one or more workers without threads: real pipelines, frames delivered and handed on by the test.

use std::net::IpAddr;

use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use shunt_dataplane::agreed::Agreed;
use shunt_dataplane::conn::{Conn, Ticks, Timeouts};
use shunt_dataplane::counters::{self, ServerField};
use shunt_dataplane::neigh::{HopId, NextHop};
use shunt_dataplane::persist::{Key, Persistence};
use shunt_dataplane::pipeline::{Config, Pipeline};
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::{Mode, Server, ServerId};
use shunt_dataplane::service::{Listen, Local, OutOfState, ServerGone, Service, ServiceId};
use shunt_dataplane::snapshot::{Builder, PortInfo, Snapshot};
use shunt_dataplane::thresholds::Thresholds;
use shunt_dataplane::tuple::{Address, Endpoint, Protocol, Tuple, V4, V6};
use shunt_dataplane::verdict::DropReason;
use shunt_engine::counters::Published;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::port::MacAddr;
use shunt_engine::program::{EmitBuffer, Verdicts};
use shunt_engine::publish::{self, Publisher};
use shunt_engine::steer::Prefix;
use shunt_engine::{Burst, Duration, Emit, Instant, Mempool, Origin, PortId, Program, Verdict, WorkerId};
use zerocopy::FromZeros;

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
/// What services do with packets whose server is gone.
pub(crate) const GONE: [ServerGone; SERVICES.len()] = [
    ServerGone::Reset,
    ServerGone::Drop,
    ServerGone::Reschedule,
    ServerGone::Drop,
    ServerGone::Reschedule,
    ServerGone::Reschedule,
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

/// How a service remembers its clients.
pub(crate) fn persistence(service: usize) -> Option<Persistence> {
    let mask_v4 = match service {
        0 | 4 => 32,
        2 => 31,
        _ => return None,
    };
    Some(Persistence { timeout: Duration::from_secs(100), mask_v4, mask_v6: mask_v4 + 96 })
}

/// One server slot of the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) present: bool,
    pub(crate) generation: u32,
    pub(crate) weight: u32,
    pub(crate) drain_at: Option<Instant>,
    /// Most connections; once full, new clients again below three quarters.
    pub(crate) max: Option<u32>,
}

/// The configuration: what a reload changes.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) schedulers: [SchedulerKind; SERVICES.len()],
    pub(crate) slots: [Slot; SERVICES.len() * SERVERS],
    /// Whether everybody speaks IPv6. The model thinks in IPv4; here it is translated, there and back.
    pub(crate) ipv6: bool,
}

/// The director.
pub(crate) struct Lab {
    pub(crate) now: Instant,
    ipv6: bool,
    pipelines: Vec<Pipeline>,
    pools: Vec<Mempool>,
    publisher: Publisher<Snapshot>,
    published: Vec<Published>,
    agreed: Agreed,
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

    fn ip(&self, address: V4) -> IpAddr {
        if self.ipv6 { six(address).to_ip() } else { address.to_ip() }
    }

    pub(crate) fn thresholds(&self, slot: usize) -> Option<Thresholds> {
        self.slots[slot].max.map(|upper| Thresholds { upper, lower: upper - upper / 4 })
    }

    fn snapshot(&self) -> Snapshot {
        let mut builder = Builder::new();
        builder.port(PortInfo { name: "port0".into(), mac: US });
        let hop = |destination: Option<MacAddr>| NextHop {
            port: PortId(0),
            vid: None,
            source: US,
            destination,
            attached: destination.is_none(),
            mtu: 1500,
            address: Some(self.ip(V4(0x0a00_0001))),
        };
        builder.hop(HopId(0), hop(None)).route(Prefix::new(self.ip(V4(0)), 0).unwrap(), HopId(0));
        for slot in 0..self.slots.len() {
            let id = HopId(slot as u16 + 1);
            builder
                .hop(id, hop(Some(server_mac(slot))))
                .route(Prefix::host(self.ip(server_address(slot))), id);
        }
        for (number, (protocol, mode, out_of_state)) in SERVICES.into_iter().enumerate() {
            let slots = number * SERVERS..(number + 1) * SERVERS;
            let server = |slot: usize| Server {
                id: self.id(slot),
                service: ServiceId(number as u32),
                address: self.ip(server_address(slot)),
                port: mode.sees_replies().then_some(9000),
                mode,
                weight: self.slots[slot].weight,
                drain_at: self.slots[slot].drain_at,
                down: false,
                thresholds: self.thresholds(slot),
                hop: None,
            };
            let servers: Vec<_> = slots.filter(|&slot| self.slots[slot].present).map(server).collect();
            let service = Service {
                id: ServiceId(number as u32),
                name: format!("service{number}"),
                protocol,
                listen: vec![Listen {
                    prefix: Prefix::host(self.ip(VIP)),
                    ports: vip(number).port..=vip(number).port,
                }],
                scheduler: self.schedulers[number].into(),
                locals: vec![Local { address: self.ip(local_address(number)), ports: LOCAL_PORTS }],
                out_of_state,
                timeouts: Timeouts::default(),
                persistence: persistence(number),
                one_packet: false,
                server_gone: GONE[number],
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
        let agreed = Agreed::new(64, config(0).max_servers, config(0).secret);
        let pipelines: Vec<_> = (0..)
            .zip(readers)
            .map(|(worker, reader)| Pipeline::new(config(worker), agreed.clone(), reader).unwrap())
            .collect();
        let pool = PoolConfig { chunks: CHUNKS, ..PoolConfig::default() };
        Self {
            now: Instant::from_nanos(123_456_789_012),
            ipv6: setup.ipv6,
            published: pipelines.iter().map(Pipeline::counters).collect(),
            pools: Mempool::split(pool, pipelines.len()).unwrap(),
            pipelines,
            publisher,
            agreed,
        }
    }

    pub(crate) fn reload(&mut self, setup: &Setup) {
        self.publisher.publish(setup.snapshot());
    }

    /// A frame from a client or a server with `tuple` in its headers and, for TCP, `flags`.
    pub(crate) fn frame(&self, from: MacAddr, tuple: &Tuple<V4>, flags: u8) -> Vec<u8> {
        frame(from, tuple, flags, self.ipv6)
    }

    pub(crate) fn client_frame(&self, tuple: &Tuple<V4>, flags: u8) -> Vec<u8> {
        self.frame(CLIENT, tuple, flags)
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
            let (v4, v6) = (pipeline.flows_v4().table(), pipeline.flows_v6().table());
            let before = connections.len();
            assert_eq!(v4.scan(0, u32::MAX, |_, conn| connections.push((worker, *conn))), None);
            assert_eq!(v6.scan(0, u32::MAX, |_, conn| connections.push((worker, in_ipv4(conn)))), None);
            assert_eq!(connections.len() - before, v4.len() + v6.len());
            assert_eq!(if self.ipv6 { v4.len() } else { v6.len() }, 0);
        }
        connections
    }

    /// Connections that `worker` counts at a server slot: active, inactive, opened so far.
    pub(crate) fn load(&self, worker: usize, slot: usize) -> [u64; 3] {
        [ServerField::Active, ServerField::Inactive, ServerField::Connections]
            .map(|field| self.published[worker].get(counters::server(slot as u32, field)))
    }

    /// The server that a service remembers for a client.
    pub(crate) fn remembered(&self, service: usize, client: V4) -> Option<ServerId> {
        let client = if self.ipv6 { six(client).to_ip() } else { client.to_ip() };
        let key = Key::new(ServiceId(service as u32), client, &persistence(service)?);
        self.agreed.templates.remembered(&key, Ticks::at(self.now))
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

/// An IPv6 connection as the model has it.
fn in_ipv4(conn: &Conn<V6>) -> Conn<V4> {
    let end = |of: Endpoint<V6>| Endpoint::new(four(of.address), of.port);
    let &Conn { server_id, last_seen, timeout, state, mode, protocol, flags, .. } = conn;
    let (client, vip) = (end(conn.client), end(conn.vip));
    let (server, peer) = (end(conn.server), end(conn.peer));
    let rest = Conn::new_zeroed();
    Conn { client, vip, server, peer, server_id, last_seen, timeout, state, mode, protocol, flags, ..rest }
}

/// A frame from a client or a server with `tuple` in its headers and, for TCP, `flags`.
fn frame(from: MacAddr, tuple: &Tuple<V4>, flags: u8, ipv6: bool) -> Vec<u8> {
    let (src, dst) = (tuple.src.address, tuple.dst.address);
    let builder = PacketBuilder::ethernet2(from.0, US.0);
    let builder = match (src.to_ip(), dst.to_ip(), six(src).to_ip(), six(dst).to_ip()) {
        (_, _, IpAddr::V6(src), IpAddr::V6(dst)) if ipv6 => builder.ipv6(src.octets(), dst.octets(), 64),
        (IpAddr::V4(src), IpAddr::V4(dst), ..) => builder.ipv4(src.octets(), dst.octets(), 64),
        _ => unreachable!("addresses are of their families"),
    };
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

/// The destination station, the tuple and, in a tunnel, the outer destination of a frame that left. All its checksums
/// are right, or this panics.
pub(crate) fn parse(bytes: &[u8]) -> (MacAddr, Tuple<V4>, Option<V4>) {
    let mac = MacAddr(bytes[..6].try_into().unwrap());
    let packet = SlicedPacket::from_ethernet(bytes).unwrap();
    let (src, dst, tunnelled) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
            let inner = (header.protocol() == IpNumber::IPV4).then_some(ip.payload().payload);
            (IpAddr::from(header.source()), IpAddr::from(header.destination()), inner)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let inner = (header.next_header() == IpNumber::IPV6).then_some(ip.payload().payload);
            (IpAddr::from(header.source()), IpAddr::from(header.destination()), inner)
        }
        _ => panic!("no IP: {bytes:?}"),
    };
    let address = |ip| V4::from_ip(ip).or_else(|| V6::from_ip(ip).map(four)).unwrap();
    if let Some(inner) = tunnelled {
        let (_, tuple, _) = parse(&[&bytes[..14], inner].concat());
        return (mac, tuple, Some(address(dst)));
    }
    let (ports, protocol, checksum) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let right = match (src, dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => tcp.calc_checksum_ipv4(src.octets(), dst.octets()),
                (src, dst) => tcp.calc_checksum_ipv6(octets(src), octets(dst)),
            };
            let ports = (tcp.source_port(), tcp.destination_port());
            (ports, Protocol::Tcp, (tcp.checksum(), right.unwrap()))
        }
        Some(TransportSlice::Udp(udp)) => {
            let (header, payload) = (udp.to_header(), udp.payload());
            let right = match (src, dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
                }
                (src, dst) => header.calc_checksum_ipv6_raw(octets(src), octets(dst), payload),
            };
            let ports = (udp.source_port(), udp.destination_port());
            (ports, Protocol::Udp, (header.checksum, right.unwrap()))
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(checksum.0, checksum.1);
    let endpoint = |ip, port| Endpoint::new(address(ip), port);
    (mac, Tuple { src: endpoint(src, ports.0), dst: endpoint(dst, ports.1), protocol }, None)
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => panic!("{v4} among IPv6 addresses"),
    }
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

/// The address of the same station in IPv6.
fn six(address: V4) -> V6 {
    V6([0x2001_0db8, 0, 0, address.0])
}

/// And in IPv4 again; a record in quarantine has forgotten some.
fn four(address: V6) -> V4 {
    assert!(address == V6::default() || address == six(V4(address.0[3])));
    V4(address.0[3])
}
