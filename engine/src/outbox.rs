//! Where frames go when they leave a worker: out of a port, to another worker, to the kernel's stack, back to the pool.
//!
//! Frames for a port are staged in order and sent in bursts. What a port does not take now waits in a bounded backlog.

use std::collections::VecDeque;

use crate::burst::{BURST, Burst};
use crate::clock::Instant;
use crate::frame::Frame;
use crate::mempool::Mempool;
use crate::port::{PortId, RxStats, TxQueue};
use crate::program::{EmitBuffer, Verdict, WorkerId};
use crate::report::{WorkerCounter, WorkerReport};
use crate::ring::{Errand, Links};

/// Frames per port and worker that wait when the port does not keep up; more are dropped and counted.
pub const TX_BACKLOG: usize = 512;

/// Takes frames that are for the kernel's stack of this machine.
pub trait PuntSink: Send {
    /// Called once per turn of the loop, before the first frame: the place to renew a budget.
    fn begin_loop(&mut self) {}

    /// Gives a copy of `frame` to the kernel. Returns false when it was refused; the caller keeps the frame either
    /// way. Never blocks.
    fn punt(&mut self, frame: &Frame) -> bool;
}

/// How a worker transmits on a port.
pub enum TxRoute {
    /// By a transmit queue of its own.
    Own {
        /// The number of the queue, for people.
        queue: u16,
        /// The queue.
        tx: Box<dyn TxQueue>,
    },
    /// By handing frames to a worker that has a queue of its own there.
    Via(WorkerId),
}

impl std::fmt::Debug for TxRoute {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Own { queue, .. } => write!(out, "Own({queue})"),
            Self::Via(worker) => write!(out, "Via({worker:?})"),
        }
    }
}

/// What a worker needs to know of a port that frames may go to.
#[derive(Debug)]
pub struct TxPort {
    /// The port's `caps().kernel_sees_all`: frames from it that are for the kernel are there already.
    pub kernel_sees_all: bool,
    /// How this worker transmits on it.
    pub route: TxRoute,
}

/// All ways out of one worker, its pool and its counts.
pub(crate) struct Outbox {
    pub(crate) pool: Mempool,
    pub(crate) links: Links,
    pub(crate) report: WorkerReport,
    ports: Vec<Outlet>,
    punt: Option<Box<dyn PuntSink>>,
}

struct Outlet {
    kernel_sees_all: bool,
    way: Way,
}

enum Way {
    Line(Box<Line>),
    Via(WorkerId),
}

/// A transmit queue and what waits for it: first `front`, then `backlog`.
struct Line {
    tx: Box<dyn TxQueue>,
    front: Burst,
    backlog: VecDeque<Frame>,
    sent: usize,
}

impl Outbox {
    /// `ports` are indexed by [`PortId`].
    pub(crate) fn new(
        pool: Mempool,
        links: Links,
        report: WorkerReport,
        ports: Vec<TxPort>,
        punt: Option<Box<dyn PuntSink>>,
    ) -> Self {
        let outlet = |port: TxPort| Outlet {
            kernel_sees_all: port.kernel_sees_all,
            way: match port.route {
                TxRoute::Own { tx, .. } => Way::Line(Box::new(Line::new(tx))),
                TxRoute::Via(worker) => Way::Via(worker),
            },
        };
        Self { pool, links, report, ports: ports.into_iter().map(outlet).collect(), punt }
    }

    /// The start of a turn: buffers come home, the punt budget is renewed.
    pub(crate) fn begin_loop(&mut self) {
        self.links.welcome_home(&mut self.pool);
        if let Some(punt) = &mut self.punt {
            punt.begin_loop();
        }
    }

    /// Sends every frame of a burst where its verdict says. A frame without verdict is dropped.
    pub(crate) fn dispatch(&mut self, burst: &mut Burst, verdicts: &[Verdict]) {
        debug_assert_eq!(burst.len(), verdicts.len(), "one verdict per frame");
        if let Some(&Verdict::Forward(port)) = verdicts.first()
            && burst.len() > BURST / 2
            && verdicts.iter().all(|&verdict| verdict == Verdict::Forward(port))
        {
            self.forward_all(port, burst);
        }
        let (mut verdicts, mut frames) = (verdicts, burst.drain(..));
        while frames.len() > 0 {
            let verdict = *verdicts.first().unwrap_or(&Verdict::Drop);
            let run = verdicts.iter().take_while(|&&other| other == verdict).count().max(1);
            self.carry_out(verdict, frames.by_ref().take(run));
            verdicts = verdicts.get(run..).unwrap_or_default();
        }
    }

    /// Sends frames that the program originated or released where their verdicts say. Returns how many.
    pub(crate) fn emit(&mut self, emitted: &mut EmitBuffer) -> usize {
        let count = emitted.len();
        if count > 0 {
            self.report.add(WorkerCounter::Emitted, count);
            emitted.drain(..).for_each(|(verdict, frame)| self.carry_out(verdict, std::iter::once(frame)));
        }
        count
    }

    #[inline(always)]
    fn carry_out(&mut self, verdict: Verdict, frames: impl ExactSizeIterator<Item = Frame>) {
        match verdict {
            Verdict::Forward(port) => self.forward(port, frames),
            Verdict::Punt => frames.for_each(|frame| self.punt(frame)),
            Verdict::Handoff(worker) => {
                self.report.add(WorkerCounter::HandoffOut, frames.len());
                self.hand(worker, Errand::Decide, frames);
            }
            Verdict::Hold => {
                self.report.add(WorkerCounter::Held, frames.len());
                self.pool.free_all(frames);
            }
            Verdict::Drop => {
                self.report.add(WorkerCounter::ProgramDrops, frames.len());
                self.pool.free_all(frames);
            }
        }
    }

    /// Stages frames that another worker cannot transmit itself.
    pub(crate) fn transmit_for_other(&mut self, port: PortId, burst: &mut Burst) {
        self.report.add(WorkerCounter::TxForOther, burst.len());
        for frame in burst.drain(..) {
            match self.ports.get_mut(usize::from(port.0)).map(|outlet| &mut outlet.way) {
                Some(Way::Line(line)) => line.stage(frame, &mut self.pool, &mut self.report),
                // Handing it on could go round for ever.
                Some(Way::Via(_)) | None => self.misrouted(&mut std::iter::once(frame)),
            }
        }
    }

    /// The end of a turn: staged frames leave, sent buffers come back, foreign ones go home. Returns how many frames
    /// left by this worker's queues.
    pub(crate) fn flush(&mut self) -> usize {
        let mut sent = 0;
        for outlet in &mut self.ports {
            if let Way::Line(line) = &mut outlet.way {
                line.send(&mut self.pool);
                line.tx.reclaim(&mut self.pool);
                sent += std::mem::take(&mut line.sent);
            }
        }
        self.report.add(WorkerCounter::TxPackets, sent);
        self.links.announce();
        self.links.send_home(&mut self.pool);
        sent
    }

    /// Whether something waits that no descriptor announces: room in a transmit queue, buffers that come home.
    pub(crate) fn is_waiting(&self) -> bool {
        let waits = |outlet: &Outlet| matches!(&outlet.way, Way::Line(line) if !line.front.is_empty());
        self.pool.available() == 0 || self.pool.has_away() || self.ports.iter().any(waits)
    }

    /// Makes the counts visible to other threads.
    pub(crate) fn publish(&mut self, now: Instant, rx: impl Iterator<Item = RxStats>) {
        self.report.set(WorkerCounter::PoolFree, self.pool.available() as u64);
        self.report.set(WorkerCounter::PoolEmpty, self.pool.alloc_failed());
        let tx = self.ports.iter().filter_map(|outlet| match &outlet.way {
            Way::Line(line) => Some(line.tx.stats()),
            Way::Via(_) => None,
        });
        self.report.publish(now, rx, tx);
    }

    /// Frees everything staged here and everything on its way here: for the end, when no worker runs any more.
    pub(crate) fn drain(&mut self) {
        for outlet in &mut self.ports {
            if let Way::Line(line) = &mut outlet.way {
                line.tx.reclaim(&mut self.pool);
                self.pool.free_all(line.front.drain(..));
                self.pool.free_all(line.backlog.drain(..));
            }
        }
        self.links.drain(&mut self.pool);
    }

    #[inline]
    fn forward(&mut self, port: PortId, mut frames: impl ExactSizeIterator<Item = Frame>) {
        match self.ports.get_mut(usize::from(port.0)).map(|outlet| &mut outlet.way) {
            Some(Way::Line(line)) => {
                frames.for_each(|frame| line.stage(frame, &mut self.pool, &mut self.report));
            }
            Some(&mut Way::Via(worker)) => {
                self.report.add(WorkerCounter::TxViaOther, frames.len());
                self.hand(worker, Errand::Transmit(port), frames);
            }
            None => self.misrouted(&mut frames),
        }
    }

    /// Sends a burst that all goes the same way at once, if nothing waits there; what the queue does not take stays.
    /// Small ones are better collected: a device is told once per call.
    #[inline]
    fn forward_all(&mut self, port: PortId, burst: &mut Burst) {
        if let Some(Way::Line(line)) = self.ports.get_mut(usize::from(port.0)).map(|outlet| &mut outlet.way)
            && line.front.is_empty()
            && line.backlog.is_empty()
        {
            line.sent += line.tx.tx_burst(&mut self.pool, burst);
        }
    }

    #[inline]
    fn hand(&mut self, worker: WorkerId, errand: Errand, mut frames: impl ExactSizeIterator<Item = Frame>) {
        let Some(peer) = self.links.peer(worker) else { return self.misrouted(&mut frames) };
        peer.hand(errand, &mut frames);
        if frames.len() > 0 {
            self.report.add(WorkerCounter::HandoffFull, frames.len());
            self.pool.free_all(frames);
        }
    }

    fn punt(&mut self, frame: Frame) {
        let from = self.ports.get(usize::from(frame.port().0));
        let outcome = if from.is_some_and(|outlet| outlet.kernel_sees_all) {
            WorkerCounter::PuntSeen
        } else if self.punt.as_mut().is_some_and(|sink| sink.punt(&frame)) {
            WorkerCounter::Punted
        } else {
            WorkerCounter::PuntRefused
        };
        self.report.bump(outcome);
        self.pool.free(frame);
    }

    #[cold]
    fn misrouted(&mut self, frames: &mut dyn ExactSizeIterator<Item = Frame>) {
        self.report.add(WorkerCounter::Misrouted, frames.len());
        self.pool.free_all(frames);
    }
}

impl Line {
    fn new(tx: Box<dyn TxQueue>) -> Self {
        Self { tx, front: Burst::new(), backlog: VecDeque::with_capacity(TX_BACKLOG), sent: 0 }
    }

    /// Queues `frame` behind what waits already; sends when a burst is full.
    #[inline]
    fn stage(&mut self, frame: Frame, pool: &mut Mempool, report: &mut WorkerReport) {
        // While there is a backlog the queue is known to be full: it is tried once per turn, not once per frame.
        if self.front.is_full() && self.backlog.is_empty() {
            self.send(pool);
        }
        if self.backlog.is_empty() && !self.front.is_full() {
            self.front.push(frame);
        } else if self.backlog.len() < TX_BACKLOG {
            self.backlog.push_back(frame);
        } else {
            report.bump(WorkerCounter::TxFull);
            pool.free(frame);
        }
    }

    /// Sends until nothing waits or the queue takes no more.
    fn send(&mut self, pool: &mut Mempool) {
        loop {
            let room = self.front.remaining_capacity().min(self.backlog.len());
            self.front.extend(self.backlog.drain(..room));
            if self.front.is_empty() {
                return;
            }
            self.sent += self.tx.tx_burst(pool, &mut self.front);
            if !self.front.is_empty() {
                return;
            }
        }
    }
}
