//! What a worker runs over the frames it receives: the trait [`Program`] and the words it speaks.

use crate::burst::{BURST, Burst};
use crate::clock::Instant;
use crate::frame::Frame;
use crate::mempool::Mempool;
use crate::port::PortId;

/// The number of a worker, 0 … workers − 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u16);

/// How a burst came to this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Received from a queue of a port (each frame knows which).
    Port,
    /// Handed over by another worker's program.
    Handoff(WorkerId),
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it out of this port.
    Forward(PortId),
    /// It is not ours: give it to the kernel's stack, unless that has a copy already.
    Punt,
    /// Another worker's program decides.
    Handoff(WorkerId),
    /// The program has taken the frame (see [`Emit::hold`]) and will emit or free it later.
    Hold,
    /// Free it. The program has counted why.
    Drop,
}

/// The code of a worker. One value per worker; never called from two threads at once.
///
/// Nothing in here may allocate, lock, log or read a clock per packet.
pub trait Program: Send {
    /// Adopts what has been published since, if anything. Called once per burst and once per idle loop.
    fn refresh(&mut self, now: Instant);

    /// Decides every frame of a burst, editing the frames in place. Pushes exactly one verdict per frame, in order.
    /// Frames the program originates go through `emit`, and leave before the burst's own.
    fn on_burst(
        &mut self,
        now: Instant,
        origin: Origin,
        frames: &mut Burst,
        verdicts: &mut Verdicts,
        emit: &mut Emit<'_>,
    );

    /// Does bounded work that time makes due. Called once per loop; returns when it wants to be called at the latest.
    fn tick(&mut self, now: Instant, emit: &mut Emit<'_>) -> Option<Instant>;

    /// Frees every frame the program kept. Called once, when its worker ends.
    fn close(&mut self, _pool: &mut Mempool) {}
}

/// One verdict per frame of a burst.
pub type Verdicts = arrayvec::ArrayVec<Verdict, BURST>;

/// Lets a program originate frames (ICMP errors, resets, fragments) and keep or release held ones.
///
/// Bounded: at most [`EMIT_MAX`] frames per call of `on_burst` or `tick`.
#[derive(Debug)]
pub struct Emit<'a> {
    pool: &'a mut Mempool,
    staged: &'a mut EmitBuffer,
}

/// Frames a program may originate per call: a burst of frames, each fragmented in two, and then some.
pub const EMIT_MAX: usize = 4 * BURST;

/// Where originated and released frames wait for the worker to carry out their verdicts.
pub type EmitBuffer = arrayvec::ArrayVec<(Verdict, Frame), EMIT_MAX>;

impl<'a> Emit<'a> {
    /// Originated frames go to `staged`; buffers come from `pool`.
    pub fn new(pool: &'a mut Mempool, staged: &'a mut EmitBuffer) -> Self {
        Self { pool, staged }
    }

    /// How many more frames can be sent in this call.
    pub fn room(&self) -> usize {
        self.staged.remaining_capacity()
    }

    /// How many frames can be originated and sent in this call, as things are: [`Self::room`] and free buffers.
    pub fn available(&self) -> usize {
        self.room().min(self.pool.available())
    }

    /// An empty frame, or `None` when the pool is empty or the call's bound is reached.
    pub fn alloc(&mut self) -> Option<Frame> {
        if self.staged.is_full() { None } else { self.pool.alloc() }
    }

    /// Sends `frame` out of `port`. When the call's bound is reached the frame is freed and false returned.
    pub fn send(&mut self, port: PortId, frame: Frame) -> bool {
        self.release(Verdict::Forward(port), frame)
    }

    /// Lets `frame`, which the program had kept, go as `verdict` says. When the call's bound is reached the frame is
    /// freed and false returned.
    pub fn release(&mut self, verdict: Verdict, frame: Frame) -> bool {
        match self.staged.try_push((verdict, frame)) {
            Ok(()) => true,
            Err(refused) => {
                self.pool.free(refused.element().1);
                false
            }
        }
    }

    /// Takes `frame`'s place in a burst with an empty frame, so that the program can keep the original
    /// ([`Verdict::Hold`]). `None` when the pool is empty.
    pub fn hold(&mut self, frame: &mut Frame) -> Option<Frame> {
        let empty = self.pool.alloc()?;
        Some(std::mem::replace(frame, empty))
    }

    /// Frees a frame the program kept.
    pub fn free(&mut self, frame: Frame) {
        self.pool.free(frame);
    }
}
