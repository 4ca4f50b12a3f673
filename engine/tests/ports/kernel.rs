//! Ports on a veth interface, with a packet socket at the peer.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{TcpListener, TcpStream};

use shunt_engine::port::af_packet::{AfPacket, AfPacketConfig};
use shunt_engine::port::af_xdp::{AfXdp, AfXdpConfig, Mode};
use shunt_engine::port::{Port, QueuePair};
use shunt_engine::steer::{Prefix, Rule, Side};
use shunt_engine::{BURST, Burst, Mempool};

use super::{Harness, MTU, PEER_MAC, POOL, PORT_MAC, UDP_PORT, load, until};
use crate::common::{Netns, Veth, veth_pair};

/// Two namespaces with a veth pair between them: `near` is the port's end, `far` its peer's.
pub struct Cable {
    pub near: Netns,
    pub far: Netns,
}

impl Cable {
    pub fn new(label: &str, queues: u16) -> Self {
        let cable = Self { near: Netns::new(label), far: Netns::new("peer") };
        let near = Veth { netns: &cable.near, name: NEAR, mac: PORT_MAC };
        let far = Veth { netns: &cable.far, name: FAR, mac: PEER_MAC };
        veth_pair(near, far, MTU, queues);
        cable
    }

    /// Gives both kernels an address, connects a TCP client in `far` to a server in `near`, and returns both ends.
    pub fn tcp(&self) -> (TcpStream, TcpStream) {
        self.near.ip("address add 192.0.2.1/24 dev near");
        self.far.ip("address add 192.0.2.2/24 dev far");
        let listener = self.near.enter(|| TcpListener::bind("192.0.2.1:4000")).unwrap();
        let client = self.far.enter(|| TcpStream::connect("192.0.2.1:4000")).unwrap();
        (client, listener.accept().unwrap().0)
    }
}

/// A packet socket at the far end.
pub struct Peer {
    queue: QueuePair,
    pool: Mempool,
    inbox: VecDeque<Vec<u8>>,
}

impl Peer {
    pub fn open(cable: &Cable) -> Self {
        let mut port = cable.far.enter(|| open_af_packet(FAR, 1));
        let queue = port.take_queue(0).unwrap();
        Self { queue, pool: Mempool::single(POOL).unwrap(), inbox: VecDeque::new() }
    }

    pub fn send(&mut self, frames: &[Vec<u8>]) {
        for frames in frames.chunks(BURST) {
            let mut burst = load(&mut self.pool, frames);
            until("the peer to send", || {
                self.queue.1.tx_burst(&mut self.pool, &mut burst);
                burst.is_empty()
            });
        }
        let stats = self.queue.1.stats();
        assert_eq!((stats.oversize, stats.errors), (0, 0), "the peer can send");
    }

    pub fn recv(&mut self) -> Option<Vec<u8>> {
        if self.inbox.is_empty() {
            let mut burst = Burst::new();
            self.queue.0.rx_burst(&mut self.pool, &mut burst);
            self.inbox.extend(burst.iter().map(|frame| frame.data().to_vec()));
            self.pool.free_all(burst);
        }
        self.inbox.pop_front()
    }
}

pub struct AfPacketHarness {
    port: AfPacket,
    peer: Peer,
    pub cable: Cable,
}

impl Harness for AfPacketHarness {
    const QUEUES: u16 = 2;

    fn open(queues: u16, _pool: &Mempool) -> Self {
        let cable = Cable::new("afpacket", 2);
        let port = cable.near.enter(|| open_af_packet(NEAR, queues));
        let peer = Peer::open(&cable);
        Self { port, peer, cable }
    }

    fn port(&mut self) -> &mut dyn Port {
        &mut self.port
    }

    fn send(&mut self, frames: &[Vec<u8>]) {
        self.peer.send(frames);
    }

    fn recv(&mut self) -> Option<Vec<u8>> {
        self.peer.recv()
    }

    fn send_oversize(&mut self) -> bool {
        // The peer's stack leaves segmentation to a device that, being veth, leaves it to us.
        let (mut client, _server) = self.cable.tcp();
        // No more than fits the socket: nobody may be there to acknowledge it.
        client.write_all(&[0; 60_000]).unwrap();
        true
    }

    fn jam(&mut self) -> bool {
        self.cable.far.ip("link set far down");
        true
    }

    fn unjam(&mut self) {
        self.cable.far.ip("link set far up");
    }
}

/// AF_XDP with the program in the driver, or in the kernel's stack.
pub struct AfXdpHarness<const NATIVE: bool> {
    port: AfXdp,
    peer: Peer,
    cable: Cable,
}

impl<const NATIVE: bool> Harness for AfXdpHarness<NATIVE> {
    const QUEUES: u16 = 2;
    const BUFFERS_KEPT: usize = 1024;

    fn open(queues: u16, pool: &Mempool) -> Self {
        let cable = Cable::new("afxdp", queues);
        let mode = if NATIVE { Mode::Native } else { Mode::Generic };
        let config = AfXdpConfig { mode, queues: Some(queues), ..AfXdpConfig::new(NEAR) };
        let mut port = cable.near.enter(|| AfXdp::open(&config, pool.region())).unwrap();
        port.steer(&[rule(UDP)]).unwrap();
        let peer = Peer::open(&cable);
        Self { port, peer, cable }
    }

    fn port(&mut self) -> &mut dyn Port {
        &mut self.port
    }

    fn send(&mut self, frames: &[Vec<u8>]) {
        self.peer.send(frames);
    }

    fn recv(&mut self) -> Option<Vec<u8>> {
        self.peer.recv()
    }

    fn send_oversize(&mut self) -> bool {
        if NATIVE {
            // With XDP in its driver, veth does not let the peer leave segmentation to it.
            return false;
        }
        let (mut client, _server) = self.cable.tcp();
        self.port.steer(&[rule(UDP), rule(TCP)]).unwrap();
        // No more than fits the socket: nobody may be there to acknowledge it.
        client.write_all(&[0; 60_000]).unwrap();
        true
    }

    fn jam(&mut self) -> bool {
        self.cable.far.ip("link set far down");
        true
    }

    fn unjam(&mut self) {
        self.cable.far.ip("link set far up");
    }
}

/// What is sent to the port's address and UDP or TCP port.
fn rule(protocol: u8) -> Rule {
    let prefix = Prefix::host("192.0.2.1".parse().unwrap());
    Rule { side: Side::Destination, prefix, protocol, ports: UDP_PORT..=UDP_PORT }
}

fn open_af_packet(interface: &str, queues: u16) -> AfPacket {
    let config = AfPacketConfig { interface: interface.to_owned(), queues, frame_len_max: 1792 };
    AfPacket::open(config).unwrap()
}

pub const NEAR: &str = "near";
pub const FAR: &str = "far";
const UDP: u8 = 17;
const TCP: u8 = 6;
