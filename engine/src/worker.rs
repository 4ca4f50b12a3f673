//! A worker: one thread's share of all queues, and THE LOOP ([`Worker::turn`]) that moves frames between them.
//!
//! To assemble workers: deal the queues out with [`crate::assign::assign`], split the buffers with
//! [`Mempool::split`], connect the workers with [`crate::ring::mesh`], make one [`Worker::new`] of each share, and
//! hand them all to [`crate::lcore::Workers::start`].

use std::sync::atomic::{AtomicBool, Ordering};

use crate::burst::Burst;
use crate::clock::{Clock, Instant};
use crate::idle::{Idle, IdleConfig, Next, Turn};
use crate::mempool::Mempool;
use crate::outbox::{Outbox, PuntSink, TxPort, TxRoute};
use crate::port::{PortId, RxQueue};
use crate::program::{Emit, EmitBuffer, Origin, Program, Verdicts, WorkerId};
use crate::report::{WorkerCounter, WorkerReport, WorkerView};
use crate::ring::{Errand, Links};
use crate::waker::{Waker, Wakers};

/// A receive queue that a worker polls.
pub struct RxPort {
    /// The port.
    pub port: PortId,
    /// The number of the queue.
    pub queue: u16,
    /// The queue.
    pub rx: Box<dyn RxQueue>,
}

/// What a worker is made of.
pub struct Setup<P> {
    /// What it runs.
    pub program: P,
    /// Its time.
    pub clock: Clock,
    /// Its buffers: the pool with the number of `links.id()`.
    pub pool: Mempool,
    /// Its connections to the other workers; they say which number it has.
    pub links: Links,
    /// The receive queues it polls.
    pub rx: Vec<RxPort>,
    /// How it transmits, indexed by [`PortId`]: one entry for every port of the process.
    pub ports: Vec<TxPort>,
    /// What takes frames for the kernel's stack; without, they are refused, except those the kernel has already.
    pub punt: Option<Box<dyn PuntSink>>,
    /// What it does when there is nothing to do.
    pub idle: IdleConfig,
}

/// One worker. It runs on whatever thread calls [`Self::run`]; see [`crate::lcore`] for pinned threads.
///
/// On drop it frees every frame it holds or that is on its way to it. Drop workers only after all of them stopped:
/// a frame handed to a worker that is gone is lost to its pool.
pub struct Worker<P: Program> {
    clock: Clock,
    idle: Idle,
    rx: Vec<RxPort>,
    desk: Desk<P>,
    out: Outbox,
    last: Option<Turn>,
}

impl<P: Program> Worker<P> {
    /// A worker of the parts in `setup`. Everything it will ever need is allocated here.
    pub fn new(setup: Setup<P>) -> Self {
        let Setup { program, clock, pool, links, rx, ports, punt, idle } = setup;
        let polled = rx.iter().map(|port| (port.port, port.queue)).collect();
        let owned = ports.iter().zip(0..).filter_map(|(port, number)| match port.route {
            TxRoute::Own { queue, .. } => Some((PortId(number), queue)),
            TxRoute::Via(_) => None,
        });
        let report = WorkerReport::new(links.id(), polled, owned.collect());
        Self {
            clock,
            idle: Idle::new(idle, links.waker().clone()),
            rx,
            desk: Desk::new(program),
            out: Outbox::new(pool, links, report, ports, punt),
            last: None,
        }
    }

    /// The number of this worker.
    pub fn id(&self) -> WorkerId {
        self.out.links.id()
    }

    /// What the worker counts, for other threads to read.
    pub fn view(&self) -> WorkerView {
        self.out.report.view()
    }

    /// Wakes this worker.
    pub fn waker(&self) -> &Waker {
        self.out.links.waker()
    }

    /// Wakes all workers of the mesh.
    pub fn wakers(&self) -> Wakers {
        self.out.links.wakers()
    }

    /// What the worker runs.
    pub fn program(&self) -> &P {
        &self.desk.program
    }

    /// Buffers free in the worker's pool.
    pub fn pool_available(&self) -> usize {
        self.out.pool.available()
    }

    /// Runs until `stop` is set; wake the worker after setting it. Publishes its counts a last time.
    pub fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let turn = self.turn();
            match self.idle.after(&turn) {
                Next::Turn => {}
                Next::LastLook => self.publish(turn.now),
                Next::Sleep => self.sleep(&turn),
            }
        }
        self.idle.retract();
        let now = self.clock.now();
        self.publish(now);
    }

    /// THE LOOP, once round: receive, decide, hand on, send.
    pub fn turn(&mut self) -> Turn {
        let Self { desk, out, rx, .. } = self;
        let now = self.clock.now();
        desk.program.refresh(now);
        out.begin_loop();
        let mut moved = 0;
        for RxPort { port, queue, rx } in rx {
            let received = rx.rx_burst(&mut out.pool, &mut desk.burst);
            if received > 0 {
                desk.burst.iter_mut().for_each(|frame| frame.set_source(*port, *queue));
                out.report.received(received);
                desk.decide(now, Origin::Port, out);
                moved += received;
            }
        }
        for peer in 0..out.links.peers() {
            moved += desk.receive_from(peer, now, out);
        }
        let (deadline, emitted) = desk.tick(now, out);
        moved += emitted + out.flush();
        let turn = Turn { now, moved, deadline };
        self.account(turn);
        turn
    }

    fn account(&mut self, turn: Turn) {
        self.out.report.bump(WorkerCounter::Loops);
        if let Some(last) = self.last.replace(turn)
            && last.moved > 0
        {
            self.out.report.busy(turn.now.since(last.now));
        }
        if self.out.report.is_due(turn.now) {
            self.publish(turn.now);
        }
    }

    fn sleep(&mut self, turn: &Turn) {
        let queues = self.rx.iter().map(|port| port.rx.pollable());
        let woken = self.idle.sleep(turn, self.out.is_waiting(), queues);
        self.out.report.bump(WorkerCounter::Sleeps);
        self.out.report.add(WorkerCounter::Wakes, usize::from(woken));
    }

    fn publish(&mut self, now: Instant) {
        self.out.publish(now, self.rx.iter().map(|port| port.rx.stats()));
    }
}

impl<P: Program> Drop for Worker<P> {
    fn drop(&mut self) {
        self.desk.close(&mut self.out.pool);
        self.out.drain();
    }
}

/// The program, and the batch that lies before it.
struct Desk<P> {
    program: P,
    burst: Burst,
    verdicts: Verdicts,
    emitted: EmitBuffer,
}

impl<P: Program> Desk<P> {
    fn new(program: P) -> Self {
        Self { program, burst: Burst::new(), verdicts: Verdicts::new(), emitted: EmitBuffer::new() }
    }

    /// Has the program decide the burst, and sends every frame where it belongs; those it originates go first.
    #[inline]
    fn decide(&mut self, now: Instant, origin: Origin, out: &mut Outbox) {
        let mut emit = Emit::new(&mut out.pool, &mut self.emitted);
        self.verdicts.clear();
        self.program.on_burst(now, origin, &mut self.burst, &mut self.verdicts, &mut emit);
        out.emit(&mut self.emitted);
        out.dispatch(&mut self.burst, &self.verdicts);
    }

    /// Takes at most a ring's worth of what another worker handed over, so that no peer starves the others.
    #[inline]
    fn receive_from(&mut self, peer: usize, now: Instant, out: &mut Outbox) -> usize {
        let mut received = 0;
        while received < crate::BURST
            && let Some((worker, errand)) = out.links.receive(peer, &mut self.burst)
        {
            received += self.burst.len();
            match errand {
                Errand::Decide => {
                    out.report.add(WorkerCounter::HandoffIn, self.burst.len());
                    self.decide(now, Origin::Handoff(worker), out);
                }
                Errand::Transmit(port) => out.transmit_for_other(port, &mut self.burst),
            }
        }
        received
    }

    fn tick(&mut self, now: Instant, out: &mut Outbox) -> (Option<Instant>, usize) {
        let deadline = self.program.tick(now, &mut Emit::new(&mut out.pool, &mut self.emitted));
        (deadline, out.emit(&mut self.emitted))
    }

    /// Frees every frame on the desk and in the program.
    fn close(&mut self, pool: &mut Mempool) {
        self.program.close(pool);
        pool.free_all(self.burst.drain(..));
        pool.free_all(self.emitted.drain(..).map(|(_, frame)| frame));
    }
}
