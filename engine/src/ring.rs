//! The mesh between workers: for every ordered pair a bounded ring of frames handed over, and one of buffers that
//! come home.
//!
//! Frames are handed over in bursts, and their order is kept per pair. Every ring has one producer and one consumer,
//! so nothing is locked. A ring that is full refuses: frames are given back to the caller, buffers wait with the
//! worker that freed them. Since buffers come home, traffic that is handed one way only drains no pool.

use rtrb::{Consumer, Producer, RingBuffer};

use crate::burst::{BURST, Burst};
use crate::frame::{Chunk, Frame};
use crate::mempool::Mempool;
use crate::port::PortId;
use crate::program::WorkerId;
use crate::waker::{Waker, Wakers};

/// Frames a ring between two workers holds: 32 bursts.
pub const RING_FRAMES: usize = 32 * BURST;

/// Buffers that may be on their way home between two workers.
const RING_CHUNKS: usize = 2 * RING_FRAMES;

/// Why a frame was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    /// The receiver's program decides.
    Decide,
    /// All is decided: the receiver transmits, because the sender has no queue on this port.
    Transmit(PortId),
}

/// A worker's ends of all its rings, and the means to be woken by the other ends.
#[derive(Debug)]
pub struct Links {
    id: WorkerId,
    waker: Waker,
    peers: Vec<Peer>,
}

/// The four rings to and from one other worker.
#[derive(Debug)]
pub(crate) struct Peer {
    id: WorkerId,
    waker: Waker,
    /// Whether something was handed over since the last look at the peer's sleep.
    unannounced: bool,
    frames_out: Producer<(Errand, Frame)>,
    frames_in: Consumer<(Errand, Frame)>,
    chunks_out: Producer<Chunk>,
    chunks_in: Consumer<Chunk>,
}

/// Connects `workers` workers, each with each: the links of worker 0, 1, ….
///
/// # Errors
/// When the process has no file descriptor left for the wakers.
pub fn mesh(workers: u16) -> std::io::Result<Vec<Links>> {
    let links = |id| Ok(Links { id: WorkerId(id), waker: Waker::new()?, peers: Vec::new() });
    let mut mesh = (0..workers).map(links).collect::<std::io::Result<Vec<_>>>()?;
    for right in 1..mesh.len() {
        for left in 0..right {
            let (right_out, left_in) = RingBuffer::new(RING_FRAMES);
            let (left_out, right_in) = RingBuffer::new(RING_FRAMES);
            let (right_home, left_home) = RingBuffer::new(RING_CHUNKS);
            let (left_home_out, right_home_in) = RingBuffer::new(RING_CHUNKS);
            let at_left = Peer {
                id: mesh[right].id,
                waker: mesh[right].waker.clone(),
                unannounced: false,
                frames_out: left_out,
                frames_in: left_in,
                chunks_out: left_home_out,
                chunks_in: left_home,
            };
            let at_right = Peer {
                id: mesh[left].id,
                waker: mesh[left].waker.clone(),
                unannounced: false,
                frames_out: right_out,
                frames_in: right_in,
                chunks_out: right_home,
                chunks_in: right_home_in,
            };
            mesh[left].peers.push(at_left);
            mesh[right].peers.push(at_right);
        }
    }
    Ok(mesh)
}

impl Links {
    /// Whose ends these are.
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// Wakes this worker.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Wakes every worker of the mesh.
    pub fn wakers(&self) -> Wakers {
        Wakers::new(std::iter::once(&self.waker).chain(self.peers.iter().map(|peer| &peer.waker)).cloned())
    }

    /// How many other workers there are.
    pub(crate) fn peers(&self) -> usize {
        self.peers.len()
    }

    /// Peers are in order of their numbers with a gap at our own.
    fn index_of(&self, worker: WorkerId) -> Option<usize> {
        let index = usize::from(worker.0).checked_sub(usize::from(worker > self.id))?;
        (worker != self.id && index < self.peers.len()).then_some(index)
    }

    /// The ends of the rings to and from `worker`, if there is such another one.
    #[inline]
    pub(crate) fn peer(&mut self, worker: WorkerId) -> Option<&mut Peer> {
        self.index_of(worker).map(|index| &mut self.peers[index])
    }

    /// Wakes receivers of what was handed over that sleep.
    pub(crate) fn announce(&mut self) {
        self.peers.iter_mut().for_each(Peer::announce);
    }

    /// Appends frames handed over by peer `index`, in order, as long as they come on the same errand, which is
    /// returned, and `burst` has room.
    #[inline]
    pub(crate) fn receive(&mut self, index: usize, burst: &mut Burst) -> Option<(WorkerId, Errand)> {
        let Peer { id, frames_in, .. } = &mut self.peers[index];
        let first = frames_in.peek().ok()?.0;
        let room = burst.remaining_capacity().min(frames_in.slots());
        let waiting = frames_in.read_chunk(room).expect("that many were counted just now");
        let (head, tail) = waiting.as_slices();
        let alike = head.iter().chain(tail).take_while(|(errand, _)| *errand == first).count();
        let alike = frames_in.read_chunk(alike).expect("that many were counted just now");
        burst.extend(alike.into_iter().map(|(_, frame)| frame));
        Some((*id, first))
    }

    /// Puts buffers that came home into `pool`.
    pub(crate) fn welcome_home(&mut self, pool: &mut Mempool) {
        for peer in &mut self.peers {
            if peer.chunks_in.is_empty() {
                continue;
            }
            let waiting = peer.chunks_in.slots();
            let chunks = peer.chunks_in.read_chunk(waiting).expect("that many were counted just now");
            pool.put_home(chunks.into_iter());
        }
    }

    /// Sends buffers of other pools home; those that find their ring full stay in `pool` for the next time. Nobody is
    /// woken for them: a worker that runs out of buffers does not sleep long.
    pub(crate) fn send_home(&mut self, pool: &mut Mempool) {
        if !pool.has_away() {
            return;
        }
        for peer in &mut self.peers {
            let room = peer.chunks_out.slots();
            let home = usize::from(peer.id.0);
            let chunks =
                peer.chunks_out.write_chunk_uninit(room).expect("that much room was counted just now");
            chunks.fill_from_iter(std::iter::from_fn(|| pool.take_away(home)));
        }
    }

    /// Frees into `pool` whatever is on the way to us: for the end, when no worker runs any more.
    pub(crate) fn drain(&mut self, pool: &mut Mempool) {
        self.welcome_home(pool);
        for peer in &mut self.peers {
            while let Ok((_, frame)) = peer.frames_in.pop() {
                pool.free(frame);
            }
        }
    }
}

impl Peer {
    /// Hands over as many of `frames` as fit the ring, in order, and leaves the others. To be announced.
    #[inline]
    pub(crate) fn hand(&mut self, errand: Errand, frames: &mut impl ExactSizeIterator<Item = Frame>) {
        let fitting = self.frames_out.slots().min(frames.len());
        let ring = self.frames_out.write_chunk_uninit(fitting).expect("that much room was counted just now");
        ring.fill_from_iter(frames.take(fitting).map(|frame| (errand, frame)));
        self.unannounced = true;
    }

    #[inline]
    fn announce(&mut self) {
        if std::mem::take(&mut self.unannounced) {
            self.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mempool::PoolConfig;

    fn pair(chunks: u32) -> ([Links; 2], [Mempool; 2]) {
        let config = PoolConfig { chunks, ..PoolConfig::default() };
        let pools = Mempool::split(config, 2).unwrap();
        (mesh(2).unwrap().try_into().unwrap(), pools.try_into().unwrap())
    }

    #[test]
    fn every_worker_reaches_every_other_and_not_itself() {
        let mut links = mesh(4).unwrap();
        let mut pools = Mempool::split(PoolConfig { chunks: 16, ..PoolConfig::default() }, 4).unwrap();
        for from in 0..4u16 {
            for to in 0..5u16 {
                let (link, pool) = (&mut links[usize::from(from)], &mut pools[usize::from(from)]);
                let frame = pool.alloc().unwrap();
                match link.peer(WorkerId(to)) {
                    Some(peer) => peer.hand(Errand::Decide, &mut std::iter::once(frame)),
                    None => {
                        assert!(to == from || to == 4);
                        pool.free(frame);
                    }
                }
            }
        }
        for to in 0..4 {
            let mut from = Vec::new();
            let mut burst = Burst::new();
            for peer in 0..links[to].peers() {
                from.push(usize::from(links[to].receive(peer, &mut burst).unwrap().0.0));
            }
            assert_eq!(from, (0..4).filter(|&other| other != to).collect::<Vec<_>>());
            pools[to].free_all(burst.drain(..));
        }
    }

    #[test]
    fn order_is_kept_and_a_burst_has_one_errand() {
        let ([mut left, mut right], [mut pool, mut other]) = pair(16);
        let errands = [Errand::Decide, Errand::Decide, Errand::Transmit(PortId(1)), Errand::Decide];
        for (mark, errand) in errands.into_iter().enumerate() {
            let mut frame = pool.alloc().unwrap();
            assert!(frame.fill(&[mark as u8]));
            left.peer(WorkerId(1)).unwrap().hand(errand, &mut std::iter::once(frame));
        }
        let mut burst = Burst::new();
        let mut seen = Vec::new();
        while let Some((from, errand)) = right.receive(0, &mut burst) {
            assert_eq!(from, WorkerId(0));
            for frame in burst.drain(..) {
                seen.push((errand, frame.data()[0]));
                other.free(frame);
            }
        }
        assert_eq!(seen, errands.into_iter().zip(0..).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_ring_leaves_what_does_not_fit() {
        let ([mut left, mut right], [mut pool, mut other]) = pair(RING_FRAMES as u32 + 100);
        let frames: Vec<_> = (0..RING_FRAMES + 100).map(|_| pool.alloc().unwrap()).collect();
        let mut frames = frames.into_iter();
        left.peer(WorkerId(1)).unwrap().hand(Errand::Decide, &mut frames);
        assert_eq!(frames.len(), 100);
        pool.free_all(frames);
        right.drain(&mut other);
        right.send_home(&mut other);
        left.welcome_home(&mut pool);
        assert_eq!(pool.available(), RING_FRAMES + 100);
    }

    #[test]
    fn buffers_that_find_the_return_ring_full_wait_and_come_home_later() {
        let total = RING_CHUNKS + 10;
        let ([mut left, mut right], [mut pool, mut other]) = pair(total as u32);
        let frames: Vec<_> = (0..total).map(|_| pool.alloc().unwrap()).collect();
        other.free_all(frames);
        right.send_home(&mut other);
        assert!(other.has_away());
        left.welcome_home(&mut pool);
        assert_eq!(pool.available(), RING_CHUNKS);
        right.send_home(&mut other);
        left.welcome_home(&mut pool);
        assert_eq!((pool.available(), other.has_away()), (total, false));
    }

    #[test]
    fn ten_million_frames_handed_one_way_drain_no_pool() {
        const FRAMES: u64 = if cfg!(miri) {
            5_000
        } else if cfg!(tsan) {
            500_000
        } else {
            10_000_000
        };
        let ([mut left, mut right], [mut pool, mut other]) = pair(4096);
        let receiver = std::thread::spawn(move || {
            let (mut next, mut burst) = (0u64, Burst::new());
            while next < FRAMES {
                if right.receive(0, &mut burst).is_none() {
                    std::thread::yield_now();
                }
                for frame in burst.drain(..) {
                    assert_eq!(frame.data(), next.to_ne_bytes(), "order is kept");
                    next += 1;
                    other.free(frame);
                }
                right.send_home(&mut other);
            }
            while other.has_away() {
                right.send_home(&mut other);
                std::thread::yield_now();
            }
        });
        let mut sent = 0u64;
        while sent < FRAMES {
            left.welcome_home(&mut pool);
            let room = left.peers[0].frames_out.slots().min(pool.available()) as u64;
            if room == 0 {
                std::thread::yield_now();
            }
            let end = FRAMES.min(sent + room);
            for mark in sent..end {
                let mut frame = pool.alloc().expect("the pool is not drained");
                assert!(frame.fill(&mark.to_ne_bytes()));
                let mut frames = std::iter::once(frame);
                left.peer(WorkerId(1)).unwrap().hand(Errand::Decide, &mut frames);
                assert_eq!(frames.len(), 0);
            }
            sent = end;
        }
        while pool.available() < 4096 && !receiver.is_finished() {
            left.welcome_home(&mut pool);
            std::thread::yield_now();
        }
        receiver.join().unwrap();
        left.welcome_home(&mut pool);
        assert_eq!(pool.available(), 4096);
    }
}
