//! A port without a device: the other end of the cable is a [`Wire`] in the same process.
//!
//! It spreads frames over its queues as a NIC with [`Rss`] does, has bounded queues, and wakes a sleeping worker.
//! Nothing on the worker's side allocates: the buffers that travel between port and wire are made when the port is
//! opened and go round between a ring of full and a ring of empty ones.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use rtrb::{Consumer, Producer, RingBuffer};
use rustix::event::{EventfdFlags, eventfd};

use crate::burst::Burst;
use crate::mempool::Mempool;
use crate::port::{
    FRAME_OVERHEAD, MacAddr, Port, PortCaps, PortError, QueuePair, RxQueue, RxStats, TxQueue, TxStats,
};
use crate::rss::{Rss, Unknown};
use crate::steer::Rule;

/// What a [`MemPort`] is like.
#[derive(Clone, Debug)]
pub struct MemConfig {
    /// A label.
    pub name: String,
    /// The station address.
    pub mac: MacAddr,
    /// Largest layer-3 packet in bytes.
    pub mtu: u16,
    /// Queue pairs.
    pub queues: u16,
    /// How frames from the wire are spread over the queues; without it all arrive on the first one.
    pub rss: Option<Rss>,
    /// Frames per queue and direction. What comes from the wire to a full queue is lost, and counted as missed.
    pub depth: usize,
}

impl Default for MemConfig {
    fn default() -> Self {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        Self { name: "mem".to_owned(), mac, mtu: 1500, queues: 1, rss: None, depth: 1024 }
    }
}

/// An in-memory port.
#[derive(Debug)]
pub struct MemPort {
    caps: PortCaps,
    queues: Vec<Option<(MemRx, MemTx)>>,
}

/// What the port is plugged into: sends to its receive queues and receives what it transmits.
#[derive(Debug)]
pub struct Wire {
    rss: Option<Rss>,
    queues: Vec<WireQueue>,
}

impl MemPort {
    /// A port and the other end of its cable.
    ///
    /// # Errors
    /// [`PortError::Other`] without queues or depth, [`PortError::Io`] when the process has no descriptors left.
    pub fn open(config: MemConfig) -> Result<(Self, Wire), PortError> {
        let MemConfig { name, mac, mtu, queues, rss, depth } = config;
        if queues == 0 || depth == 0 {
            return Err(PortError::Other {
                name,
                reason: "a port needs a queue, and a queue a depth".into(),
            });
        }
        let frame_len_max = usize::from(mtu) + FRAME_OVERHEAD;
        let mut port_ends = Vec::with_capacity(usize::from(queues));
        let mut wire_ends = Vec::with_capacity(usize::from(queues));
        for _ in 0..queues {
            let signal = Signal::new().map_err(|source| PortError::Io {
                name: name.clone(),
                action: "making an eventfd",
                source,
            })?;
            let signal = Arc::new(signal);
            let (to_port, from_wire) = lane(depth, frame_len_max);
            let (to_wire, from_port) = lane(depth, frame_len_max);
            wire_ends.push(WireQueue { to_port, from_port, signal: signal.clone() });
            let rx = MemRx { from_wire, signal, frame_len_max, stats: RxStats::default() };
            let tx = MemTx { to_wire, frame_len_max, stats: TxStats::default() };
            port_ends.push(Some((rx, tx)));
        }
        let known = rss.clone().ok_or(Unknown::NotTold);
        let wire = Wire { rss, queues: wire_ends };
        let caps = PortCaps { name, kind: "mem", mac, mtu, queues, rss: known, kernel_sees_all: false };
        Ok((Self { caps, queues: port_ends }, wire))
    }
}

impl Port for MemPort {
    fn caps(&self) -> &PortCaps {
        &self.caps
    }

    fn take_queue(&mut self, index: u16) -> Result<QueuePair, PortError> {
        let slot = self.queues.get_mut(usize::from(index));
        let (rx, tx) = slot.and_then(Option::take).ok_or_else(|| self.caps.no_such_queue(index))?;
        Ok((Box::new(rx), Box::new(tx)))
    }

    /// Does nothing: the port receives whatever is on the wire.
    fn steer(&mut self, _rules: &[Rule]) -> Result<(), PortError> {
        Ok(())
    }
}

impl Wire {
    /// Puts a frame on the queue that RSS names for it. Returns false when that queue is full, which the port counts
    /// as missed.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        let queue = self.rss.as_ref().map_or(0, |rss| rss.queue_of_frame(frame));
        self.send_to(queue, frame)
    }

    /// Puts a frame on a queue of one's choice, as a NIC without or with other RSS might. A queue that the port does
    /// not have loses it.
    pub fn send_to(&mut self, queue: u16, frame: &[u8]) -> bool {
        let Some(queue) = self.queues.get_mut(usize::from(queue)) else { return false };
        let sent = queue.to_port.send(frame);
        if sent {
            queue.signal.raise();
        } else {
            queue.signal.missed.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    /// The next frame the port sent on any queue. Frames of one queue come in order.
    pub fn recv(&mut self) -> Option<Vec<u8>> {
        self.queues.iter_mut().find_map(|queue| queue.from_port.next(<[u8]>::to_vec))
    }

    /// The next frame the port sent on `queue`.
    pub fn recv_from(&mut self, queue: u16) -> Option<Vec<u8>> {
        self.recv_with(queue, <[u8]>::to_vec)
    }

    /// Shows the next frame the port sent on `queue`, without allocating.
    pub fn recv_with<R>(&mut self, queue: u16, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.queues.get_mut(usize::from(queue))?.from_port.next(look)
    }

    /// Carries everything this port has sent to the port behind `other`, as a cable between the two would. Returns
    /// how many frames arrived; the others found a full queue.
    pub fn carry_to(&mut self, other: &mut Self) -> usize {
        let mut arrived = 0;
        for queue in &mut self.queues {
            while let Some(sent) = queue.from_port.next(|frame| other.send(frame)) {
                arrived += usize::from(sent);
            }
        }
        arrived
    }
}

#[derive(Debug)]
struct WireQueue {
    to_port: LaneIn,
    from_port: LaneOut,
    signal: Arc<Signal>,
}

#[derive(Debug)]
struct MemRx {
    from_wire: LaneOut,
    signal: Arc<Signal>,
    frame_len_max: usize,
    stats: RxStats,
}

impl MemRx {
    fn receive(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        let before = burst.len();
        while !burst.is_full() && !self.from_wire.is_empty() {
            let Some(mut frame) = pool.alloc() else {
                // The frame waits in its queue; when that is full the wire counts what it loses.
                self.stats.no_buffer += 1;
                break;
            };
            let (limit, len_seen) = (self.frame_len_max, &mut 0);
            let fits = self.from_wire.next(|bytes| {
                *len_seen = bytes.len();
                bytes.len() <= limit && frame.fill(bytes)
            });
            if fits == Some(true) {
                self.stats.packets += 1;
                self.stats.bytes += *len_seen as u64;
                burst.push(frame);
            } else {
                self.stats.oversize += 1;
                pool.free(frame);
            }
        }
        burst.len() - before
    }
}

impl RxQueue for MemRx {
    fn rx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        let received = self.receive(pool, burst);
        // Only a queue that was found empty lowers its signal: a busy one makes no system call.
        if received == 0 && self.signal.lower() { self.receive(pool, burst) } else { received }
    }

    fn pollable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.signal.event.as_fd())
    }

    fn stats(&self) -> RxStats {
        RxStats { missed: self.signal.missed.load(Ordering::Relaxed), ..self.stats }
    }
}

#[derive(Debug)]
struct MemTx {
    to_wire: LaneIn,
    frame_len_max: usize,
    stats: TxStats,
}

impl TxQueue for MemTx {
    fn tx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        let mut left = 0;
        for frame in burst.iter() {
            if frame.len() > self.frame_len_max {
                self.stats.oversize += 1;
            } else if self.to_wire.send(frame.data()) {
                self.stats.packets += 1;
                self.stats.bytes += frame.len() as u64;
            } else {
                break;
            }
            left += 1;
        }
        pool.free_all(burst.drain(..left));
        left
    }

    fn stats(&self) -> TxStats {
        self.stats
    }
}

/// One direction of one queue: buffers go round between a ring of full and a ring of empty ones.
fn lane(depth: usize, frame_len_max: usize) -> (LaneIn, LaneOut) {
    let (full_in, full_out) = RingBuffer::new(depth);
    let (mut empty_in, empty_out) = RingBuffer::new(depth);
    while empty_in.push(Vec::with_capacity(frame_len_max)).is_ok() {}
    (LaneIn { full: full_in, empty: empty_out }, LaneOut { full: full_out, empty: empty_in })
}

#[derive(Debug)]
struct LaneIn {
    full: Producer<Vec<u8>>,
    empty: Consumer<Vec<u8>>,
}

impl LaneIn {
    /// Copies `frame` into an empty buffer; false when there is none. Allocates only for a frame above the MTU, which
    /// only the wire side sends.
    fn send(&mut self, frame: &[u8]) -> bool {
        let Ok(mut buffer) = self.empty.pop() else { return false };
        buffer.clear();
        buffer.extend_from_slice(frame);
        self.full.push(buffer).expect("both rings have room for every buffer");
        true
    }
}

#[derive(Debug)]
struct LaneOut {
    full: Consumer<Vec<u8>>,
    empty: Producer<Vec<u8>>,
}

impl LaneOut {
    fn is_empty(&self) -> bool {
        self.full.is_empty()
    }

    fn next<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let buffer = self.full.pop().ok()?;
        let seen = look(&buffer);
        self.empty.push(buffer).expect("both rings have room for every buffer");
        Some(seen)
    }
}

/// Wakes a worker that sleeps on an empty queue.
#[derive(Debug)]
struct Signal {
    event: OwnedFd,
    /// Whether `event` is (about to be) readable. The wire sets it only after writing, so a flag that is up always
    /// has something to read under it.
    raised: AtomicBool,
    missed: AtomicU64,
}

impl Signal {
    fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { event, raised: AtomicBool::new(false), missed: AtomicU64::new(0) })
    }

    /// The wire's side, after it has put a frame on the queue.
    fn raise(&self) {
        // Pairs with the fence in `lower`: either the worker sees the frame or we see the flag down.
        fence(Ordering::SeqCst);
        if !self.raised.load(Ordering::Relaxed) {
            // It fails only when the count is at its limit, and then it is readable anyway.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
            self.raised.store(true, Ordering::Release);
        }
    }

    /// The worker's side, on an empty queue. Returns whether the queue must be looked at once more.
    fn lower(&self) -> bool {
        if !self.raised.load(Ordering::Acquire) {
            return false;
        }
        self.raised.store(false, Ordering::Relaxed);
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        fence(Ordering::SeqCst);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mempool::PoolConfig;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn pool() -> Mempool {
        Mempool::single(PoolConfig { chunks: 64, ..PoolConfig::default() }).unwrap()
    }

    fn readable(rx: &dyn RxQueue, millis: i64) -> bool {
        let fd = rx.pollable().unwrap();
        let timeout = Timespec { tv_sec: millis / 1000, tv_nsec: millis % 1000 * 1_000_000 };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
    }

    fn udp(source_port: u16) -> Vec<u8> {
        let mut frame = vec![0; 60];
        frame[12] = 8;
        frame[14] = 0x45;
        frame[23] = 17;
        frame[34..36].copy_from_slice(&source_port.to_be_bytes());
        frame
    }

    #[test]
    fn frames_arrive_on_the_queue_that_rss_names() {
        let rss = Rss::even(4);
        let config = MemConfig { queues: 4, rss: Some(rss.clone()), ..MemConfig::default() };
        let (mut port, mut wire) = MemPort::open(config).unwrap();
        let (mut pool, mut seen) = (pool(), [0; 4]);
        for source_port in 0..40 {
            assert!(wire.send(&udp(source_port)));
        }
        for queue in 0..4 {
            let (mut rx, _tx) = port.take_queue(queue).unwrap();
            let mut burst = Burst::new();
            rx.rx_burst(&mut pool, &mut burst);
            for frame in burst {
                assert_eq!(rss.queue_of_frame(frame.data()), queue);
                seen[usize::from(queue)] += 1;
                pool.free(frame);
            }
        }
        assert_eq!(seen.iter().sum::<usize>(), 40);
        assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "miri cannot poll")]
    fn a_sleeping_worker_is_woken_and_an_empty_queue_lets_it_sleep_again() {
        let (mut port, mut wire) = MemPort::open(MemConfig::default()).unwrap();
        let (mut rx, _tx) = port.take_queue(0).unwrap();
        let (mut pool, mut burst) = (pool(), Burst::new());
        for _ in 0..3 {
            assert!(!readable(&*rx, 0));
            std::thread::scope(|scope| {
                scope.spawn(|| assert!(wire.send(&udp(1)) && wire.send(&udp(2))));
                assert!(readable(&*rx, 10_000));
            });
            assert_eq!(rx.rx_burst(&mut pool, &mut burst), 2);
            assert_eq!(rx.rx_burst(&mut pool, &mut burst), 0);
            pool.free_all(burst.drain(..));
        }
        assert!(!readable(&*rx, 0));
    }

    #[test]
    #[cfg_attr(miri, ignore = "miri cannot poll")]
    fn no_wake_up_is_lost_between_two_threads() {
        const FRAMES: usize = 50_000;
        let (mut port, mut wire) = MemPort::open(MemConfig { depth: 8, ..MemConfig::default() }).unwrap();
        let (mut rx, _tx) = port.take_queue(0).unwrap();
        let (mut pool, mut burst) = (pool(), Burst::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..FRAMES {
                    while !wire.send(&udp(1)) {
                        std::thread::yield_now();
                    }
                }
            });
            let mut received = 0;
            while received < FRAMES {
                match rx.rx_burst(&mut pool, &mut burst) {
                    0 => assert!(readable(&*rx, 10_000), "asleep with {received} of {FRAMES}"),
                    count => received += count,
                }
                pool.free_all(burst.drain(..));
            }
        });
    }

    #[test]
    fn a_full_queue_loses_frames_and_counts_them_as_missed() {
        let (mut port, mut wire) = MemPort::open(MemConfig { depth: 2, ..MemConfig::default() }).unwrap();
        let (rx, _tx) = port.take_queue(0).unwrap();
        assert!(wire.send(&udp(1)) && wire.send(&udp(2)));
        assert!(!wire.send(&udp(3)));
        assert_eq!(rx.stats().missed, 1);
    }

    #[test]
    fn without_buffers_frames_wait_in_their_queue() {
        let (mut port, mut wire) = MemPort::open(MemConfig::default()).unwrap();
        let (mut rx, _tx) = port.take_queue(0).unwrap();
        let mut pool = Mempool::single(PoolConfig { chunks: 1, ..PoolConfig::default() }).unwrap();
        let mut burst = Burst::new();
        assert!(wire.send(&udp(1)) && wire.send(&udp(2)));
        assert_eq!((rx.rx_burst(&mut pool, &mut burst), rx.stats().no_buffer), (1, 1));
        pool.free_all(burst.drain(..));
        assert_eq!(rx.rx_burst(&mut pool, &mut burst), 1);
        assert_eq!(burst[0].data(), udp(2));
        pool.free_all(burst.drain(..));
    }

    #[test]
    fn a_cable_carries_frames_from_port_to_port() {
        let (mut near, mut near_wire) = MemPort::open(MemConfig::default()).unwrap();
        let (mut far, mut far_wire) = MemPort::open(MemConfig::default()).unwrap();
        let (_, mut tx) = near.take_queue(0).unwrap();
        let (mut rx, _) = far.take_queue(0).unwrap();
        let (mut pool, mut burst) = (pool(), Burst::new());
        let mut frame = pool.alloc().unwrap();
        assert!(frame.fill(b"over the cable"));
        burst.push(frame);
        assert_eq!(tx.tx_burst(&mut pool, &mut burst), 1);
        assert_eq!(near_wire.carry_to(&mut far_wire), 1);
        assert_eq!(rx.rx_burst(&mut pool, &mut burst), 1);
        assert_eq!(burst[0].data(), b"over the cable");
        pool.free_all(burst.drain(..));
        assert_eq!(pool.available(), 64);
    }

    #[test]
    fn a_port_without_queues_is_refused() {
        let error = MemPort::open(MemConfig { queues: 0, ..MemConfig::default() }).unwrap_err();
        assert_eq!(error.to_string(), "mem: a port needs a queue, and a queue a depth");
    }
}
