//! AF_XDP on real interfaces: veth pairs in namespaces of their own. Needs root.

mod common;
#[path = "common/raw.rs"]
mod raw;

use std::time::{Duration, Instant};

use common::{Netns, Veth, veth_pair};
use etherparse::PacketBuilder;
use raw::RawSocket;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::port::af_xdp::{AfXdp, AfXdpConfig, Mode};
use shunt_engine::port::{Port, PortError, QueuePair};
use shunt_engine::steer::{Prefix, Rule, Side};
use shunt_engine::{Burst, Mempool};

const NEAR: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FAR: [u8; 6] = [2, 0, 0, 0, 0, 2];
const VIP: [u8; 4] = [10, 0, 0, 1];
const CLIENT: [u8; 4] = [10, 0, 0, 2];
const BOTH: [Mode; 2] = [Mode::Native, Mode::Generic];
/// Nothing here takes longer unless it is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// `port` in one namespace, `peer` in another.
struct Lab {
    near: Netns,
    far: Netns,
}

impl Lab {
    fn new(mtu: u16, queues: u16) -> Self {
        let lab = Self { near: Netns::new("near"), far: Netns::new("far") };
        let near = Veth { netns: &lab.near, name: "port", mac: NEAR };
        let far = Veth { netns: &lab.far, name: "peer", mac: FAR };
        veth_pair(near, far, mtu, queues);
        lab
    }

    fn open(&self, mode: Mode, pool: &Mempool) -> AfXdp {
        self.try_open(mode, pool).unwrap()
    }

    fn try_open(&self, mode: Mode, pool: &Mempool) -> Result<AfXdp, PortError> {
        let config = AfXdpConfig { mode, port_sets: 8, ..AfXdpConfig::new("port") };
        self.near.enter(|| AfXdp::open(&config, pool.region()))
    }

    fn peer(&self) -> RawSocket {
        self.far.enter(|| RawSocket::open("peer"))
    }
}

fn pool(chunks: u32) -> Mempool {
    Mempool::single(PoolConfig { chunks, ..PoolConfig::default() }).unwrap()
}

fn udp_rule(port: u16) -> Rule {
    Rule { side: Side::Destination, prefix: Prefix::host(VIP.into()), protocol: 17, ports: port..=port }
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(FAR, NEAR).ipv4(CLIENT, VIP, 64).udp(4000, port);
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// Polls the queue until `count` frames are there.
fn receive(queue: &mut QueuePair, pool: &mut Mempool, count: usize) -> Vec<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut frames = Vec::new();
    while frames.len() < count {
        assert!(Instant::now() < until, "{} of {count} frames came, {:?}", frames.len(), queue.0.stats());
        frames.extend(poll_once(queue, pool));
    }
    frames
}

fn poll_once(queue: &mut QueuePair, pool: &mut Mempool) -> Vec<Vec<u8>> {
    let mut burst = Burst::new();
    queue.0.rx_burst(pool, &mut burst);
    let frames = burst.iter().map(|frame| frame.data().to_vec()).collect();
    pool.free_all(burst.drain(..));
    frames
}

#[test]
fn frames_are_received_and_sent_in_order_in_both_modes() {
    for mode in BOTH {
        let lab = Lab::new(1500, 1);
        let mut pool = pool(4096);
        let mut port = lab.open(mode, &pool);
        let kind = if mode == Mode::Native { "af_xdp native" } else { "af_xdp generic" };
        assert_eq!((port.caps().kind, port.caps().queues, port.caps().mtu), (kind, 1, 1500));
        assert_eq!(port.caps().mac.0, NEAR);
        let mut queue = port.take_queue(0).unwrap();
        assert!(matches!(port.take_queue(0), Err(PortError::NoSuchQueue { queue: 0, .. })));
        assert!(matches!(port.take_queue(1), Err(PortError::NoSuchQueue { queue: 1, .. })));
        port.steer(&[udp_rule(53)]).unwrap();
        assert!(poll_once(&mut queue, &mut pool).is_empty());

        let peer = lab.peer();
        let sent: Vec<_> = (0..500u32).map(|n| udp(53, &n.to_be_bytes())).collect();
        sent.iter().for_each(|frame| peer.send(frame));
        let received = receive(&mut queue, &mut pool, sent.len());
        assert_eq!(received, sent, "{kind}");
        assert_eq!(queue.0.stats().packets, 500);

        for chunk in sent.chunks(32) {
            let mut burst = Burst::new();
            for bytes in chunk {
                let mut frame = pool.alloc().unwrap();
                assert!(frame.fill(bytes));
                burst.push(frame);
            }
            let until = Instant::now() + PATIENCE;
            while !burst.is_empty() {
                queue.1.tx_burst(&mut pool, &mut burst);
                assert!(Instant::now() < until, "{kind}: {} frames are stuck", burst.len());
            }
            // Chunk by chunk: the peer's socket buffer is small.
            for frame in chunk {
                assert_eq!(peer.receive(PATIENCE).as_ref(), Some(frame), "{kind}");
            }
        }
        assert_eq!(queue.1.stats().packets, 500);
    }
}
