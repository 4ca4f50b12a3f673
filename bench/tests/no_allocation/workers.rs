//! Engine's workers on threads of their own, each telling how often its thread has called the allocator.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use shunt_bench::alloc;
use shunt_dataplane::agreed::Agreed;
use shunt_dataplane::counters;
use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::snapshot::Snapshot;
use shunt_engine::assign::{TxShare, assign};
use shunt_engine::clock::Clock;
use shunt_engine::counters::Published;
use shunt_engine::idle::IdleConfig;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::outbox::{PuntSink, TxPort, TxRoute};
use shunt_engine::port::Port;
use shunt_engine::port::mem::{MemConfig, MemPort, Wire};
use shunt_engine::program::Verdicts;
use shunt_engine::publish::{self, Publisher};
use shunt_engine::report::WorkerCounter;
use shunt_engine::worker::{RxPort, Setup, Worker};
use shunt_engine::{Burst, Duration, Emit, Frame, Instant, Mempool, Origin, PortId, Program};
use shunt_engine::{lcore, ring};

use crate::world::{self, US, WORKERS};

/// Queues of the one port: the last worker has none, it gets what others hand to it and sends through them.
const QUEUES: u16 = WORKERS - 1;
/// Frames on the way at once: none of the rings they may come through overflows.
pub(crate) const SLICE: usize = 192;

/// The workers, and the thread of whoever calls this as their control and as the network.
pub(crate) struct Workers {
    running: lcore::Workers<Watched>,
    seen: Vec<Arc<Seen>>,
    counts: Vec<Published>,
    publisher: Publisher<Snapshot>,
    generation: u32,
    wire: Wire,
    clock: Clock,
    /// Frames put on the wire.
    fed: u64,
}

/// What a worker's thread shows while it runs.
#[derive(Debug, Default)]
struct Seen {
    /// Calls of the allocator by this thread, as of the turn's begin.
    calls: AtomicU64,
    turns: AtomicU64,
    /// Frames that came from the wire.
    received: AtomicU64,
    /// Those, and frames that other workers have handed over.
    decided: AtomicU64,
    /// Set to have the next burst allocate something.
    provoke: AtomicBool,
}

/// The pipeline, watched.
struct Watched {
    pipeline: Pipeline,
    seen: Arc<Seen>,
}

impl Program for Watched {
    fn refresh(&mut self, now: Instant) {
        self.seen.calls.store(alloc::calls(), Ordering::Relaxed);
        self.seen.turns.fetch_add(1, Ordering::Release);
        self.pipeline.refresh(now);
    }

    fn on_burst(
        &mut self,
        now: Instant,
        origin: Origin,
        frames: &mut Burst,
        verdicts: &mut Verdicts,
        emit: &mut Emit<'_>,
    ) {
        self.pipeline.on_burst(now, origin, frames, verdicts, emit);
        let Seen { received, decided, provoke, .. } = &*self.seen;
        let count = verdicts.len() as u64;
        decided.fetch_add(count, Ordering::Relaxed);
        if origin == Origin::Port {
            received.fetch_add(count, Ordering::Relaxed);
        }
        if provoke.swap(false, Ordering::Relaxed) {
            drop(std::hint::black_box(Box::new(1)));
        }
    }

    fn tick(&mut self, now: Instant, emit: &mut Emit<'_>) -> Option<Instant> {
        self.pipeline.tick(now, emit)
    }

    fn close(&mut self, pool: &mut Mempool) {
        self.pipeline.close(pool);
    }
}

/// Takes what is the kernel's.
struct Kernel;

impl PuntSink for Kernel {
    fn punt(&mut self, _frame: &Frame) -> bool {
        true
    }
}

impl Workers {
    /// Starts them on generation 0 of the world.
    pub(crate) fn start() -> Self {
        let config = MemConfig { mac: US, queues: QUEUES, depth: 1024, ..MemConfig::default() };
        let (mut port, wire) = MemPort::open(config).unwrap();
        let clock = Clock::manual(Instant::from_nanos(1_000_000_000_000));
        let (publisher, readers) = publish::channel(world::snapshot(0, clock.now()), usize::from(WORKERS));
        let first = world::config(0);
        let agreed = Agreed::new(4096, first.max_servers, first.secret);
        let mut programs: Vec<_> = readers
            .into_iter()
            .zip(0..)
            .map(|(r, id)| Pipeline::new(world::config(id), agreed.clone(), r).unwrap())
            .collect();
        let counts: Vec<_> = programs.iter().map(Pipeline::counters).collect();
        for (own, program) in programs.iter_mut().enumerate() {
            let others = (0..counts.len()).filter(|&other| other != own);
            program.set_peers(others.map(|other| counts[other].clone()).collect());
        }
        let seen: Vec<Arc<Seen>> = programs.iter().map(|_| Arc::default()).collect();
        let pool = PoolConfig { chunks: 4096, ..PoolConfig::default() };
        let pools = Mempool::split(pool, usize::from(WORKERS)).unwrap();
        let parts = programs.into_iter().zip(pools).zip(ring::mesh(WORKERS).unwrap());
        let mut workers = Vec::new();
        for ((((pipeline, pool), links), share), seen) in
            parts.zip(assign(&[QUEUES], WORKERS)).zip(seen.iter().cloned())
        {
            let (rx, route) = match share.tx[0] {
                TxShare::Via(other) => (Vec::new(), TxRoute::Via(other)),
                TxShare::Own(queue) => {
                    let (rx, tx) = port.take_queue(queue).unwrap();
                    (vec![RxPort { port: PortId(0), queue, rx }], TxRoute::Own { queue, tx })
                }
            };
            workers.push(Worker::new(Setup {
                program: Watched { pipeline, seen },
                clock: clock.clone(),
                pool,
                links,
                rx,
                ports: vec![TxPort { kernel_sees_all: false, route }],
                punt: Some(Box::new(Kernel)),
                // Sleeps whenever there is nothing to do: that way is the worker's, too.
                idle: IdleConfig::Adaptive { spin: Duration::ZERO },
            }));
        }
        let running = lcore::Workers::start(workers, None).unwrap();
        Self { running, seen, counts, publisher, generation: 0, wire, clock, fed: 0 }
    }

    /// Has the workers work off `frames`; returns what leaves, one frame for each.
    pub(crate) fn exchange(&mut self, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut out = Vec::with_capacity(frames.len());
        for slice in frames.chunks(SLICE) {
            self.feed(slice);
            self.finish(|frame| out.push(frame.to_vec()));
        }
        assert_eq!(out.len(), frames.len(), "one frame leaves for each");
        out
    }

    /// Puts at most a slice on the wire.
    pub(crate) fn feed(&mut self, frames: &[Vec<u8>]) {
        assert!(frames.len() <= SLICE);
        for (frame, queue) in frames.iter().zip((0..QUEUES).cycle()) {
            assert!(self.wire.send_to(queue, frame), "queue {queue} has room for a slice");
        }
        self.fed += frames.len() as u64;
    }

    /// Waits until every frame on the wire is decided for good, and shows what leaves.
    pub(crate) fn finish(&mut self, mut look: impl FnMut(&[u8])) {
        let total = |workers: &Self, count: fn(&Seen) -> &AtomicU64| {
            workers.seen.iter().map(|seen| count(seen).load(Ordering::Relaxed)).sum::<u64>()
        };
        self.until("every frame to be received", |workers| {
            workers.drain(&mut look);
            total(workers, |seen| &seen.received) == workers.fed
        });
        // What a worker hands over in one round of turns another decides in the next: two in which nothing is decided
        // come after the last.
        let (mut decided, mut quiet) = (0, 0);
        while quiet < 2 {
            self.turn_round();
            self.drain(&mut look);
            let before = std::mem::replace(&mut decided, total(self, |seen| &seen.decided));
            quiet = if decided == before { quiet + 1 } else { 0 };
        }
    }

    fn drain(&mut self, look: &mut impl FnMut(&[u8])) {
        for queue in 0..QUEUES {
            while self.wire.recv_with(queue, &mut *look).is_some() {}
        }
    }

    /// Waits until every worker has gone through a whole turn of its loop.
    fn turn_round(&mut self) {
        let turns = |seen: &Arc<Seen>| seen.turns.load(Ordering::Acquire);
        let before: Vec<_> = self.seen.iter().map(turns).collect();
        self.until("every worker to turn", |workers| {
            workers.running.wakers().wake_all();
            workers.seen.iter().zip(&before).all(|(seen, before)| turns(seen) >= before + 2)
        });
    }

    /// Lets time pass.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.clock.advance(by);
        self.running.wakers().wake_all();
    }

    /// Publishes the next generation. Whoever still works with an older one keeps it.
    pub(crate) fn publish(&mut self) {
        self.generation += 1;
        self.publisher.publish(world::snapshot(self.generation, self.clock.now()));
        self.publisher.reclaim();
        self.running.wakers().wake_all();
    }

    /// Waits until all workers work with what was published last. Returns how often it has called the allocator to get
    /// rid of what nobody holds any more.
    pub(crate) fn in_force(&mut self) -> u64 {
        let newest = publish::Generation(u64::from(self.generation) + 1);
        self.until("a generation to be in force", |workers| workers.publisher.in_force() == newest);
        let before = alloc::calls();
        // Workers that adopt servers piece by piece compare with those before a little longer.
        self.until("nobody to hold an old generation", |workers| workers.publisher.reclaim() == 0);
        alloc::calls() - before
    }

    /// Waits until all that was counted is published, then tells how often each worker's thread has called the allocator.
    pub(crate) fn calls(&mut self) -> Vec<u64> {
        for _ in 0..4 {
            self.advance(Duration::from_millis(5));
            self.turn_round();
        }
        self.seen.iter().map(|seen| seen.calls.load(Ordering::Relaxed)).collect()
    }

    /// Has the next burst of `worker` allocate something and give it back.
    pub(crate) fn provoke(&self, worker: usize) {
        self.seen[worker].provoke.store(true, Ordering::Relaxed);
    }

    /// One of the pipeline's counters, over all workers.
    pub(crate) fn count(&self, index: usize) -> u64 {
        self.counts.iter().map(|counts| counts.get(index)).sum()
    }

    /// One of the pipeline's counters for a server, over all workers.
    pub(crate) fn server(&self, slot: u32, field: counters::ServerField) -> u64 {
        self.count(counters::server(slot, field))
    }

    /// One of the engine's counters, for each worker.
    pub(crate) fn engine(&self, counter: WorkerCounter) -> Vec<u64> {
        self.running.views().iter().map(|view| view.get(counter)).collect()
    }

    /// Repeats `look` until it is true.
    ///
    /// # Panics
    /// When a worker has panicked, or after 20 seconds: what is waited for takes milliseconds.
    fn until(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> bool) {
        let start = std::time::Instant::now();
        while !look(self) {
            assert_eq!(self.running.failed(), None, "while waiting for {what}");
            assert!(start.elapsed().as_secs() < 20, "gave up waiting for {what}: {:?}", self.seen);
            std::thread::yield_now();
        }
    }
}
