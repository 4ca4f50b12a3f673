//! The in-memory port: a source that writes a frame's headers each time, and a sink that keeps frames as a transmit
//! ring does, so that buffers rotate.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use shunt_engine::port::{RxQueue, RxStats, TxQueue, TxStats};
use shunt_engine::{BURST, Burst, Frame, Mempool};

use crate::family::HEAD_BYTES;
use crate::size::Size;

/// Frames the sink keeps before their buffers go back to the pool: fewer than these are never in rotation.
pub const ROTATION: usize = 8192;

/// What distinguishes one flow's frames from another's: addresses, ports and checksums.
pub trait Header: Copy + std::fmt::Debug + Send + Sync {
    /// The bytes that the source writes of each frame: all headers, and of IPv4 what else is in the shortest frame.
    type Head: Copy + std::fmt::Debug + Send + Sync + AsRef<[u8]> + for<'a> TryFrom<&'a [u8]>;

    /// The header of an untagged TCP frame without options.
    fn of(head: &Self::Head) -> Self;

    /// Makes it the header of a frame.
    fn write(&self, head: &mut [u8]);
}

/// A flow in a frame of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderV4 {
    ip_checksum_and_addresses: [u8; 10],
    ports: [u8; 4],
    tcp_checksum: [u8; 2],
}

impl Header for HeaderV4 {
    type Head = [u8; 64];

    fn of(head: &[u8; 64]) -> Self {
        Self {
            ip_checksum_and_addresses: copy(head, 24),
            ports: copy(head, 34),
            tcp_checksum: copy(head, 50),
        }
    }

    #[inline]
    fn write(&self, head: &mut [u8]) {
        let head = head.first_chunk_mut::<64>().expect("no frame is shorter");
        head[24..34].copy_from_slice(&self.ip_checksum_and_addresses);
        head[34..38].copy_from_slice(&self.ports);
        head[50..52].copy_from_slice(&self.tcp_checksum);
    }
}

/// A flow in a frame of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderV6 {
    addresses: [u8; 32],
    ports: [u8; 4],
    tcp_checksum: [u8; 2],
}

impl Header for HeaderV6 {
    type Head = [u8; 74];

    fn of(head: &[u8; 74]) -> Self {
        Self { addresses: copy(head, 22), ports: copy(head, 54), tcp_checksum: copy(head, 70) }
    }

    #[inline]
    fn write(&self, head: &mut [u8]) {
        let head = head.first_chunk_mut::<74>().expect("no frame is shorter");
        head[22..54].copy_from_slice(&self.addresses);
        head[54..58].copy_from_slice(&self.ports);
        head[70..72].copy_from_slice(&self.tcp_checksum);
    }
}

fn copy<const FROM: usize, const N: usize>(head: &[u8; FROM], at: usize) -> [u8; N] {
    std::array::from_fn(|byte| head[at + byte])
}

/// What frames of one length have in common. Only the head is written for each: what follows is zero in every buffer and
/// stays so, as a NIC's payload would lie there without the processor's doing.
#[derive(Clone, Copy, Debug)]
struct Base<H: Header> {
    head: H::Head,
    bytes: usize,
}

/// Frames that differ by their headers and their lengths only.
#[derive(Clone, Debug)]
pub struct Series<H: Header> {
    /// Frame number `i` is one of `bases[i % bases.len()]`.
    bases: Arc<[Base<H>]>,
    headers: Arc<[H]>,
}

impl<H: Header> Series<H> {
    /// What to send so that `frame(i, bytes)` for each `i` below `count` comes along, `bytes` long, as `size` says. The
    /// frames have no payload but zeros.
    ///
    /// # Panics
    /// Without any frame, and when one is shorter than its headers.
    pub fn new(count: usize, size: Size, frame: impl Fn(usize, usize) -> Vec<u8>) -> Self {
        assert!(count > 0, "a series has frames");
        let head = |frame: &[u8]| {
            let head = frame.get(..size_of::<H::Head>()).and_then(|head| H::Head::try_from(head).ok());
            head.expect("no frame is shorter than its headers")
        };
        let bytes = |number: usize| {
            let pattern = size.pattern();
            usize::from(pattern[number % pattern.len()]).max(size_of::<H::Head>())
        };
        // Every length comes along, however few the flows are.
        let bases = (0..size.pattern().len()).map(|number| {
            let frame = frame(number % count, bytes(number));
            Base { head: head(&frame), bytes: frame.len() }
        });
        let headers = (0..count.max(size.pattern().len()))
            .map(|number| H::of(&head(&frame(number % count, bytes(number)))));
        Self { bases: bases.collect(), headers: headers.collect() }
    }

    fn bytes_mean(&self) -> f64 {
        mean(self.bases.iter().map(|base| base.bytes))
    }

    /// The same over and over until it is long enough not to begin again in the middle of a burst all the time.
    fn lengthened(self) -> Self {
        const LEN_MIN: usize = 32 * BURST;
        if self.headers.len() >= LEN_MIN || !self.headers.len().is_multiple_of(self.bases.len()) {
            return self;
        }
        let headers = self.headers.repeat(LEN_MIN.div_ceil(self.headers.len()));
        Self { headers: headers.into(), ..self }
    }

    #[inline]
    fn write(&self, index: usize, frames: &mut [Frame]) {
        let headers = &self.headers[index..];
        match &*self.bases {
            [base] => frames.iter_mut().zip(headers).for_each(|(frame, header)| base.write(header, frame)),
            bases => {
                let bases = bases.iter().cycle().skip(index % bases.len());
                for ((frame, header), base) in frames.iter_mut().zip(headers).zip(bases) {
                    base.write(header, frame);
                }
            }
        }
    }
}

impl<H: Header> Base<H> {
    #[inline]
    fn write(&self, header: &H, frame: &mut Frame) {
        assert!(frame.set_len(self.bytes), "frames fit their buffers");
        let data = &mut frame.data_mut()[..size_of::<H::Head>()];
        data.copy_from_slice(self.head.as_ref());
        header.write(data);
    }
}

fn mean(lengths: impl ExactSizeIterator<Item = usize>) -> f64 {
    let count = lengths.len();
    lengths.sum::<usize>() as f64 / count as f64
}

/// What the source sends, over and over, in this order.
#[derive(Clone, Debug)]
pub enum Feed {
    /// TCP in IPv4.
    V4(Series<HeaderV4>),
    /// TCP in IPv6.
    V6(Series<HeaderV6>),
    /// Frames of any kind.
    Frames(Arc<[Vec<u8>]>),
}

impl Feed {
    /// Frames until the feed begins again.
    pub fn len(&self) -> usize {
        match self {
            Self::V4(series) => series.headers.len(),
            Self::V6(series) => series.headers.len(),
            Self::Frames(frames) => frames.len(),
        }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a frame, on average.
    pub fn bytes_mean(&self) -> f64 {
        match self {
            Self::V4(series) => series.bytes_mean(),
            Self::V6(series) => series.bytes_mean(),
            Self::Frames(frames) => mean(frames.iter().map(Vec::len)),
        }
    }

    /// Writes frame number `index` and the next ones into `frames`, none of them beyond the end.
    #[inline]
    pub(crate) fn write(&self, index: usize, frames: &mut [Frame]) {
        match self {
            Self::V4(series) => series.write(index, frames),
            Self::V6(series) => series.write(index, frames),
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
    seen: Mutex<Option<Vec<[u8; HEAD_BYTES]>>>,
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
            in_flight: Vec::with_capacity(ROTATION),
            oldest: 0,
            stats: TxStats::default(),
        };
        (wire, source, sink)
    }

    /// Lets the source send `feed` from its beginning.
    pub fn feed(&self, feed: Feed) {
        let feed = match feed {
            Feed::V4(series) => Feed::V4(series.lengthened()),
            Feed::V6(series) => Feed::V6(series.lengthened()),
            Feed::Frames(_) => feed,
        };
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

    /// From now on the sink notes the heads of the frames it gets, up to `limit` of them.
    pub fn watch(&self, limit: usize) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::with_capacity(limit));
    }

    /// What the sink noted since [`Self::watch`], in order; it stops noting.
    pub fn seen(&self) -> Vec<[u8; HEAD_BYTES]> {
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
            *next += now.len();
            if *next == feed.len() {
                *next = 0;
            }
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
    /// A ring, once it is full.
    in_flight: Vec<Frame>,
    oldest: usize,
    stats: TxStats,
}

impl TxQueue for Sink {
    fn tx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        let count = burst.len();
        if let Some(seen) = self.wire.seen.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let room = seen.capacity() - seen.len();
            seen.extend(burst.iter().take(room).filter_map(|frame| frame.data().first_chunk()));
        }
        for frame in burst.drain(..) {
            self.stats.bytes += frame.len() as u64;
            match self.in_flight.get_mut(self.oldest) {
                Some(oldest) => pool.free(std::mem::replace(oldest, frame)),
                None => self.in_flight.push(frame),
            }
            self.oldest = (self.oldest + 1) % ROTATION;
        }
        self.stats.packets += count as u64;
        self.wire.sent.store(self.stats.packets, Ordering::Relaxed);
        count
    }

    fn reclaim(&mut self, pool: &mut Mempool) {
        if self.wire.closing.load(Ordering::Relaxed) {
            pool.free_all(self.in_flight.drain(..));
            self.oldest = 0;
        }
    }

    fn stats(&self) -> TxStats {
        self.stats
    }
}
