//! The director on engine's own workers, turned by hand: frames that are handed over, held, cut and originated leave by
//! the right port, and every buffer comes home.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Endpoint, Protocol};
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::ipv4;
use shunt_dataplane::wire::tcp::flags;
use shunt_engine::assign::{TxShare, assign};
use shunt_engine::clock::Clock;
use shunt_engine::frame::frames_lost;
use shunt_engine::idle::IdleConfig;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::outbox::{PuntSink, TxPort, TxRoute};
use shunt_engine::port::mem::{MemConfig, MemPort, Wire};
use shunt_engine::port::{Port, QueuePair};
use shunt_engine::report::WorkerCounter;
use shunt_engine::worker::{RxPort, Setup, Worker};
use shunt_engine::{Duration, Frame, Instant, Mempool, publish, ring};

use crate::lab::{CLIENT_MAC, US, VIP, World, client, every, framed, packet_in, vip};
use crate::packets::{check, cut, data, reassembled};

const CHUNKS: u32 = 256;
/// The clients' port has a queue for two of the three workers, the servers' for one.
const QUEUES: [u16; 2] = [2, 1];

pub(crate) struct Bench {
    pub(crate) workers: Vec<Worker<Pipeline>>,
    pub(crate) wires: Vec<Wire>,
    queues: [u16; 2],
    clock: Clock,
    punted: Arc<AtomicU64>,
}

struct Kernel(Arc<AtomicU64>);

impl PuntSink for Kernel {
    fn punt(&mut self, _frame: &Frame) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }
}

impl Bench {
    /// Workers that share `queues` queues of each port.
    pub(crate) fn new(world: &World, queues: [u16; 2]) -> Self {
        let (mut wires, mut pairs): (Vec<Wire>, Vec<Vec<Option<QueuePair>>>) = (Vec::new(), Vec::new());
        for (queues, mac) in queues.into_iter().zip(US) {
            let rss = world.rss.clone();
            let config = MemConfig { mac, queues, rss, ..MemConfig::default() };
            let (mut port, wire) = MemPort::open(config).unwrap();
            wires.push(wire);
            pairs.push((0..queues).map(|queue| Some(port.take_queue(queue).unwrap())).collect());
        }
        let clock = Clock::manual(Instant::from_nanos(1_000_000_000_000));
        let (_, readers) = publish::channel(world.snapshot(), usize::from(world.workers));
        let pool = PoolConfig { chunks: CHUNKS, ..PoolConfig::default() };
        let pools = Mempool::split(pool, usize::from(world.workers)).unwrap();
        let punted = Arc::new(AtomicU64::new(0));
        let agreed = world.agreed();
        let shares = assign(&queues, world.workers);
        let parts =
            readers.into_iter().zip(pools).zip(ring::mesh(world.workers).unwrap()).zip(shares).zip(0..);
        let mut worker = |((((reader, pool), links), share), id)| {
            let share: shunt_engine::assign::Share = share;
            let (mut rx, mut ports) = (Vec::new(), Vec::new());
            for (port, route) in share.tx.iter().enumerate() {
                let route = match *route {
                    TxShare::Via(other) => TxRoute::Via(other),
                    TxShare::Own(queue) => {
                        let (receiver, tx) = pairs[port][usize::from(queue)].take().unwrap();
                        rx.push(RxPort { port: shunt_engine::PortId(port as u8), queue, rx: receiver });
                        TxRoute::Own { queue, tx }
                    }
                };
                ports.push(TxPort { kernel_sees_all: false, route });
            }
            Worker::new(Setup {
                program: Pipeline::new(world.config(id), agreed.clone(), reader).unwrap(),
                clock: clock.clone(),
                pool,
                links,
                rx,
                ports,
                punt: Some(Box::new(Kernel(punted.clone()))),
                idle: IdleConfig::Spin,
            })
        };
        let workers = parts.map(&mut worker).collect();
        Self { workers, wires, queues, clock, punted }
    }

    /// Puts frames on the queues of a port in turn, and returns what leaves by the `to` port.
    fn carry(&mut self, from: usize, frames: &[Vec<u8>], to: usize) -> Vec<Vec<u8>> {
        for (frame, queue) in frames.iter().zip((0..self.queues[from]).cycle()) {
            assert!(self.wires[from].send_to(queue, frame));
            self.turn(1);
        }
        self.turn(5);
        let out = std::iter::from_fn(|| self.wires[to].recv()).collect();
        assert_eq!(self.wires[1 - to].recv(), None, "by the other port");
        out
    }

    pub(crate) fn turn(&mut self, times: usize) {
        for _ in 0..times {
            for worker in &mut self.workers {
                worker.turn();
            }
        }
    }

    pub(crate) fn count(&mut self, counter: WorkerCounter) -> u64 {
        for _ in 0..2 {
            self.clock.advance(Duration::from_secs(1));
            self.turn(1);
        }
        self.workers.iter().map(|worker| worker.view().get(counter)).sum()
    }

    pub(crate) fn finish(mut self) {
        assert_eq!(self.count(WorkerCounter::HandoffOut), self.count(WorkerCounter::HandoffIn));
        assert_eq!(self.count(WorkerCounter::TxViaOther), self.count(WorkerCounter::TxForOther));
        assert_eq!((self.count(WorkerCounter::Misrouted), self.count(WorkerCounter::HandoffFull)), (0, 0));
        self.turn(5);
        for worker in &self.workers {
            assert_eq!(worker.pool_available(), CHUNKS as usize, "a buffer is not home");
        }
        assert_eq!(frames_lost(), 0);
    }
}

#[test]
fn fragments_from_two_queues_leave_by_the_third_workers_way_and_buffers_come_home() {
    let mut bench = Bench::new(&World { mtu: [1500, 600], ..World::default() }, QUEUES);
    let mut handed = 0;
    for (case, (mode, protocol)) in (0..3).flat_map(|_| every()).enumerate() {
        let (src, dst) = (client(40_000 + case as u16 / 8), vip(mode, protocol));
        if protocol == Protocol::Tcp {
            let syn = PacketBuilder::tcp(src, dst).flags(flags::SYN).link(CLIENT_MAC, US[0]);
            assert_eq!(bench.carry(0, &[syn.build()], 1).len(), 1);
        }
        let parts = cut(&data(protocol, src, dst, 4000).id(case as u16).build_ip(), 1480);
        let order = [[0, 1, 2], [2, 1, 0], [1, 0, 2]][case % 3];
        let frames = order.map(|part| framed(CLIENT_MAC, US[0], &parts[part]));
        let inner = |frame: &Vec<u8>| {
            let packet = packet_in(frame);
            assert!(packet.len() <= 600);
            packet[if packet[9] == 4 { 20 } else { 0 }..].to_vec()
        };
        let got: Vec<_> = bench.carry(0, &frames, 1).iter().map(inner).collect();
        let whole = reassembled(&got);
        check(&whole);
        assert_eq!(whole.len(), usize::from(ipv4::Packet::new_checked(&whole[..]).unwrap().total_len()));
        assert!(whole.ends_with(&crate::packets::payload(4000)), "{mode:?} {protocol}");
        handed = bench.count(WorkerCounter::HandoffOut);
    }
    assert!(handed > 0 && bench.count(WorkerCounter::TxViaOther) > 0 && bench.count(WorkerCounter::Held) > 0);
    bench.finish();
}

#[test]
fn answers_of_our_own_leave_by_the_port_the_packet_came_in_by_whoever_decided() {
    let mut bench = Bench::new(&World::default(), QUEUES);
    for port in 40_000..40_030 {
        let stray = PacketBuilder::tcp(client(port), vip(Mode::Nat, Protocol::Tcp)).link(CLIENT_MAC, US[0]);
        let out = bench.carry(0, &[stray.clone().build(), stray.build()], 0);
        assert_eq!(out.len(), 2, "a RST for each");
        assert!(out.iter().all(|frame| frame[..6] == CLIENT_MAC.0));
    }
    bench.finish();
}

#[test]
fn what_waited_in_vain_is_punted_and_what_waits_at_the_end_is_freed() {
    let mut bench = Bench::new(&World::default(), QUEUES);
    let packet = data(Protocol::Udp, client(40_000), Endpoint::new(VIP, 53), 4000).build_ip();
    let later: Vec<_> = cut(&packet, 1480)[1..].iter().map(|part| framed(CLIENT_MAC, US[0], part)).collect();
    assert_eq!(bench.carry(0, &later, 0), Vec::<Vec<u8>>::new());
    assert_eq!(bench.punted.load(Ordering::Relaxed), 0);
    bench.clock.advance(Duration::from_millis(20));
    bench.turn(1);
    assert_eq!(bench.punted.load(Ordering::Relaxed), 2);
    assert_eq!(bench.carry(0, &later, 0), Vec::<Vec<u8>>::new());
    drop(bench);
    assert_eq!(frames_lost(), 0);
}
