//! What the contract needs of a port and of whoever stands at the other end of its cable.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "every test binary uses its own part")]

pub mod kernel;
pub mod mem;
pub mod one_way;
pub mod pcap;

use std::time::{Duration, Instant};

use shunt_engine::mempool::PoolConfig;
use shunt_engine::port::{Port, QueuePair};
use shunt_engine::{Burst, Mempool};

/// A port under test with its peer.
pub trait Harness: Sized + Send {
    /// Queues the contract opens the port with.
    const QUEUES: u16;
    /// Buffers of the pool that an open queue keeps to itself (a device's fill queue).
    const BUFFERS_KEPT: usize = 0;

    /// Opens the port with `queues` queues; its buffers will come from `pool`.
    fn open(queues: u16, pool: &Mempool) -> Self;

    /// The port.
    fn port(&mut self) -> &mut dyn Port;

    /// Puts frames on the cable to the port, in order. Returns when all of them are there.
    fn send(&mut self, frames: &[Vec<u8>]);

    /// The next frame that the port has sent, if one has arrived.
    fn recv(&mut self) -> Option<Vec<u8>>;

    /// Puts a frame that is longer than the MTU allows on the cable to the port, if there can be one.
    fn send_oversize(&mut self) -> bool;

    /// Makes the port unable to send. False for one that always can.
    fn jam(&mut self) -> bool;

    /// Ends it.
    fn unjam(&mut self);
}

/// A port with all its queues taken, its peer and its buffers.
pub struct Lab<H> {
    pub queues: Vec<QueuePair>,
    pub harness: H,
    pub pool: Mempool,
}

impl<H: Harness> Lab<H> {
    pub fn new(queues: u16) -> Self {
        let pool = Mempool::single(POOL).unwrap();
        let mut harness = H::open(queues, &pool);
        let queues = (0..queues).map(|queue| harness.port().take_queue(queue).unwrap()).collect();
        let mut lab = Self { queues, harness, pool };
        // A device takes its stock of buffers when its queue is first looked at.
        assert_eq!(lab.receive(0), []);
        lab
    }

    /// Everything received on all queues until `count` frames are there, with their queues.
    pub fn receive(&mut self, count: usize) -> Vec<(usize, Vec<u8>)> {
        let mut seen = Vec::with_capacity(count);
        until("frames to be received", || {
            let mut burst = Burst::new();
            for (queue, (rx, tx)) in self.queues.iter_mut().enumerate() {
                tx.reclaim(&mut self.pool);
                let received = rx.rx_burst(&mut self.pool, &mut burst);
                assert_eq!(received, burst.len());
                seen.extend(burst.iter().map(|frame| (queue, frame.data().to_vec())));
                self.pool.free_all(burst.drain(..));
            }
            seen.len() >= count
        });
        assert_eq!(seen.len(), count, "nothing but what was sent is received");
        seen
    }

    /// Sends frames on `queue`; returns when the port has taken all of them.
    pub fn transmit(&mut self, queue: usize, frames: &[Vec<u8>]) {
        let tx = &mut self.queues[queue].1;
        for frames in frames.chunks(shunt_engine::BURST) {
            let mut burst = load(&mut self.pool, frames);
            until("frames to be sent", || {
                tx.tx_burst(&mut self.pool, &mut burst);
                tx.reclaim(&mut self.pool);
                burst.is_empty()
            });
        }
    }

    /// What the peer gets, until it has `count` frames.
    pub fn collect(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut seen = Vec::with_capacity(count);
        until("frames to arrive at the peer", || {
            seen.extend(std::iter::from_fn(|| self.harness.recv()));
            for (_, tx) in &mut self.queues {
                let mut nothing = Burst::new();
                tx.tx_burst(&mut self.pool, &mut nothing);
                tx.reclaim(&mut self.pool);
            }
            seen.len() >= count
        });
        assert_eq!(seen.len(), count, "nothing but what was sent arrives");
        seen
    }

    /// Takes buffers back until `available` are in the pool.
    pub fn settle(&mut self, available: usize) {
        until("buffers to come back", || {
            for (rx, tx) in &mut self.queues {
                let mut burst = Burst::new();
                rx.rx_burst(&mut self.pool, &mut burst);
                self.pool.free_all(burst);
                tx.tx_burst(&mut self.pool, &mut Burst::new());
                tx.reclaim(&mut self.pool);
            }
            self.pool.available() == available
        });
    }
}

/// A burst with these frames in it.
pub fn load(pool: &mut Mempool, frames: &[Vec<u8>]) -> Burst {
    let fill = |bytes: &Vec<u8>| {
        let mut frame = pool.alloc().expect("the pool has a buffer");
        assert!(frame.fill(bytes), "{} bytes fit a buffer", bytes.len());
        frame
    };
    frames.iter().map(fill).collect()
}

/// Repeats `step` until it says that it is done.
///
/// # Panics
/// After half a minute: whatever is waited for takes milliseconds.
pub fn until(what: &str, mut step: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !step() {
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        std::thread::yield_now();
    }
}

/// A UDP packet of `len` bytes to the port, all of them depending on `number`; at least 50 bytes carry the number.
pub fn to_port(number: u64, len: usize) -> Vec<u8> {
    frame(PORT_MAC, PEER_MAC, number, len)
}

/// A UDP packet of `len` bytes from the port.
pub fn from_port(number: u64, len: usize) -> Vec<u8> {
    frame(PEER_MAC, PORT_MAC, number, len)
}

/// The number that [`to_port`] and [`from_port`] wrote.
pub fn number(frame: &[u8]) -> u64 {
    u64::from_be_bytes(frame[42..50].try_into().unwrap())
}

/// Puts an 802.1Q tag into a frame.
pub fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &tci.to_be_bytes(), &frame[12..]].concat()
}

fn frame(to: [u8; 6], from: [u8; 6], number: u64, len: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(len);
    frame.extend(to);
    frame.extend(from);
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((len as u16 - 14).to_be_bytes());
    frame.extend((number as u16).to_be_bytes());
    frame.extend([0x40, 0, 64, 17, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1]);
    let header = frame[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = header.sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    // 64 flows, so that a hash finds every queue.
    frame.extend((10_000 + number as u16 % 64).to_be_bytes());
    frame.extend(UDP_PORT.to_be_bytes());
    frame.extend((len as u16 - 34).to_be_bytes());
    frame.extend([0, 0]);
    let body = number.to_be_bytes().into_iter().chain((0u64..).map(|at| (number + at * 7) as u8));
    frame.extend(body.take(len - 42));
    frame
}

pub const POOL: PoolConfig = PoolConfig { chunk_size: 2048, chunks: 8192 };
pub const PORT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const UDP_PORT: u16 = 4000;
pub const MTU: u16 = 1500;
/// Frames that are on the way at once: no ring or socket buffer of any port overflows.
pub const WINDOW: usize = 256;
