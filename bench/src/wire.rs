//! The in-memory port: a source that writes a frame's headers each time, and a sink that keeps frames as a transmit
//! ring does, so that buffers rotate.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use shunt_dataplane::tuple::{Endpoint, Protocol, Tuple, V4};
use shunt_engine::port::{RxQueue, RxStats, TxQueue, TxStats};
use shunt_engine::{Burst, Frame, Mempool};

/// Length of a benchmark's frames in memory, from the destination link address to the last byte of payload. The frame
/// check sequence is not there: on the wire it would be 68.
pub const FRAME_BYTES: usize = 64;

/// Frames the sink keeps before their buffers go back to the pool: fewer than these are never in rotation.
pub const ROTATION: usize = 8192;

/// What distinguishes one flow's frames from another's: addresses, ports and the two checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    ip_checksum_and_addresses: [u8; 10],
    ports: [u8; 4],
    tcp_checksum: [u8; 2],
}

impl Header {
    const IP_CHECKSUM: usize = 24;
    const PORTS: usize = 34;
    const TCP_CHECKSUM: usize = 50;

    /// The header of a frame: IPv4 without options and TCP, untagged.
    pub fn of(frame: &[u8; FRAME_BYTES]) -> Self {
        let field = |at: usize| std::array::from_fn(|byte| frame[at + byte]);
        Self {
            ip_checksum_and_addresses: std::array::from_fn(|byte| frame[Self::IP_CHECKSUM + byte]),
            ports: std::array::from_fn(|byte| frame[Self::PORTS + byte]),
            tcp_checksum: field(Self::TCP_CHECKSUM),
        }
    }

    #[inline]
    fn write(&self, frame: &mut [u8; FRAME_BYTES]) {
        frame[Self::IP_CHECKSUM..][..10].copy_from_slice(&self.ip_checksum_and_addresses);
        frame[Self::PORTS..][..4].copy_from_slice(&self.ports);
        frame[Self::TCP_CHECKSUM..][..2].copy_from_slice(&self.tcp_checksum);
    }
}

/// What the source sends, over and over, in this order.
#[derive(Clone, Debug)]
pub enum Feed {
    /// Frames that differ by their headers only.
    Headers {
        /// What they have in common.
        base: [u8; FRAME_BYTES],
        /// One per frame.
        headers: Arc<[Header]>,
    },
    /// Frames of any kind.
    Frames(Arc<[Vec<u8>]>),
}

impl Feed {
    /// Frames until the feed begins again.
    pub fn len(&self) -> usize {
        match self {
            Self::Headers { headers, .. } => headers.len(),
            Self::Frames(frames) => frames.len(),
        }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes frame number `index` and the next ones into `frames`, none of them beyond the end.
    #[inline]
    fn write(&self, index: usize, frames: &mut [Frame]) {
        match self {
            Self::Headers { base, headers } => {
                for (frame, header) in frames.iter_mut().zip(&headers[index..]) {
                    assert!(frame.fill(base), "frames fit their buffers");
                    header.write(frame.data_mut().first_chunk_mut().expect("it was just filled"));
                }
            }
            Self::Frames(bytes) => {
                for (frame, bytes) in frames.iter_mut().zip(&bytes[index..]) {
                    assert!(frame.fill(bytes), "frames fit their buffers");
                }
            }
        }
    }
}

/// The far side of the port.
#[derive(Debug)]
pub struct Wire {
    feed: Mutex<Queue>,
    sent: AtomicU64,
    seen: Mutex<Option<Vec<Tuple<V4>>>>,
    closing: AtomicBool,
}

#[derive(Debug)]
struct Queue {
    feed: Feed,
    next: usize,
    remaining: u64,
}

impl Wire {
    /// A wire with nothing on it, and the queues of the port it leads to.
    pub fn new() -> (Arc<Self>, Source, Sink) {
        let wire = Arc::new(Self {
            feed: Mutex::new(Queue { feed: Feed::Frames(Arc::new([])), next: 0, remaining: 0 }),
            sent: AtomicU64::new(0),
            seen: Mutex::new(None),
            closing: AtomicBool::new(false),
        });
        let source = Source { wire: wire.clone(), stats: RxStats::default() };
        let sink = Sink {
            wire: wire.clone(),
            in_flight: VecDeque::with_capacity(ROTATION),
            stats: TxStats::default(),
        };
        (wire, source, sink)
    }

    /// Lets the source send `feed` from its beginning.
    pub fn feed(&self, feed: Feed) {
        *self.queue() = Queue { feed, next: 0, remaining: 0 };
    }

    /// Lets the source send `packets` more.
    pub fn allow(&self, packets: u64) {
        let mut queue = self.queue();
        assert!(!queue.feed.is_empty(), "a feed has frames");
        queue.remaining += packets;
    }

    /// Frames that reached the sink so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// From now on the sink notes the addresses and ports of what it gets, up to `limit` frames.
    pub fn watch(&self, limit: usize) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::with_capacity(limit));
    }

    /// What the sink noted since [`Self::watch`], in order; it stops noting.
    pub fn seen(&self) -> Vec<Tuple<V4>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
    }

    /// The sink keeps no frame from its next call on.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receive queue.
#[derive(Debug)]
pub struct Source {
    wire: Arc<Wire>,
    stats: RxStats,
}

impl RxQueue for Source {
    fn rx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        let mut queue = self.wire.queue();
        let before = burst.len();
        let room = burst.remaining_capacity().min(usize::try_from(queue.remaining).unwrap_or(usize::MAX));
        for _ in 0..room {
            let Some(frame) = pool.alloc() else { break };
            frame.prefetch();
            burst.push(frame);
        }
        let received = burst.len() - before;
        let Queue { feed, next, remaining } = &mut *queue;
        let mut frames = &mut burst[before..];
        while !frames.is_empty() {
            let (now, later) = frames.split_at_mut(frames.len().min(feed.len() - *next));
            feed.write(*next, now);
            *next = (*next + now.len()) % feed.len();
            self.stats.bytes += now.iter().map(|frame| frame.len() as u64).sum::<u64>();
            frames = later;
        }
        *remaining -= received as u64;
        self.stats.packets += received as u64;
        received
    }

    fn stats(&self) -> RxStats {
        self.stats
    }
}

/// The transmit queue.
#[derive(Debug)]
pub struct Sink {
    wire: Arc<Wire>,
    in_flight: VecDeque<Frame>,
    stats: TxStats,
}

impl TxQueue for Sink {
    fn tx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        let count = burst.len();
        if let Some(seen) = self.wire.seen.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let room = seen.capacity() - seen.len();
            seen.extend(burst.iter().take(room).filter_map(|frame| tuple(frame.data())));
        }
        for frame in burst.drain(..) {
            self.stats.bytes += frame.len() as u64;
            if self.in_flight.len() == ROTATION
                && let Some(oldest) = self.in_flight.pop_front()
            {
                pool.free(oldest);
            }
            self.in_flight.push_back(frame);
        }
        self.stats.packets += count as u64;
        self.wire.sent.store(self.stats.packets, Ordering::Relaxed);
        count
    }

    fn reclaim(&mut self, pool: &mut Mempool) {
        if self.wire.closing.load(Ordering::Relaxed) {
            pool.free_all(self.in_flight.drain(..));
        }
    }

    fn stats(&self) -> TxStats {
        self.stats
    }
}

/// Addresses and ports of an untagged IPv4 frame; for a tunnelled one those of the outer header and no ports.
fn tuple(frame: &[u8]) -> Option<Tuple<V4>> {
    let bytes = frame.first_chunk::<38>()?;
    let address =
        |at: usize| V4(u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
    let protocol = Protocol::from_number(bytes[23]);
    let port = |at: usize| match protocol {
        Some(_) => u16::from_be_bytes([bytes[at], bytes[at + 1]]),
        None => 0,
    };
    Some(Tuple {
        src: Endpoint::new(address(26), port(34)),
        dst: Endpoint::new(address(30), port(36)),
        protocol: protocol.unwrap_or(Protocol::Tcp),
    })
}
