//! Queues of plain bytes, and a program that does what the first byte of a frame says.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use shunt_engine::assign::{TxShare, assign};
use shunt_engine::clock::Clock;
use shunt_engine::idle::IdleConfig;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::outbox::{PuntSink, TxPort, TxRoute};
use shunt_engine::port::{RxQueue, RxStats, TxQueue, TxStats};
use shunt_engine::program::Verdicts;
use shunt_engine::publish::Reader;
use shunt_engine::ring::mesh;
use shunt_engine::worker::{RxPort, Setup, Worker};
use shunt_engine::{Burst, Emit, Frame, Instant, Mempool, Origin, PortId, Program, Verdict, WorkerId};

/// Chunks per worker in these tests.
pub(crate) const CHUNKS: u32 = 2_048;

/// One queue pair: what the worker shall receive, and what it sent.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) input: Arc<Mutex<VecDeque<Vec<u8>>>>,
    pub(crate) output: Arc<Mutex<Vec<Vec<u8>>>>,
    /// How many more frames the transmit queue takes.
    pub(crate) room: Arc<AtomicUsize>,
    /// Readable while `input` may have frames, if the queue can be polled.
    bell: Option<Arc<OwnedFd>>,
}

impl Wire {
    pub(crate) fn new(pollable: bool) -> Self {
        use rustix::event::{EventfdFlags, eventfd};
        let bell = pollable.then(|| Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap()));
        let room = Arc::new(AtomicUsize::new(usize::MAX / 2));
        Self { input: Arc::default(), output: Arc::default(), room, bell }
    }

    pub(crate) fn feed(&self, frame: &[u8]) {
        self.input.lock().unwrap().push_back(frame.to_vec());
        if let Some(bell) = &self.bell {
            rustix::io::write(bell, &1u64.to_ne_bytes()).unwrap();
        }
    }

    pub(crate) fn sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.output.lock().unwrap())
    }
}

impl RxQueue for Wire {
    fn rx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        if let Some(bell) = &self.bell {
            let _ = rustix::io::read(bell, &mut [0u8; 8]);
        }
        let (mut input, before) = (self.input.lock().unwrap(), burst.len());
        while !burst.is_full() && !input.is_empty() {
            let Some(mut frame) = pool.alloc() else { break };
            assert!(frame.fill(&input.pop_front().unwrap()));
            burst.push(frame);
        }
        if let Some(bell) = &self.bell
            && !input.is_empty()
        {
            rustix::io::write(bell, &1u64.to_ne_bytes()).unwrap();
        }
        burst.len() - before
    }

    fn pollable(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(|bell| bell.as_fd())
    }

    fn stats(&self) -> RxStats {
        RxStats::default()
    }
}

impl TxQueue for Wire {
    fn tx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        let count = burst.len().min(self.room.load(Ordering::Relaxed));
        self.room.fetch_sub(count, Ordering::Relaxed);
        let mut output = self.output.lock().unwrap();
        for frame in burst.drain(..count) {
            output.push(frame.data().to_vec());
            pool.free(frame);
        }
        count
    }

    fn stats(&self) -> TxStats {
        TxStats { packets: self.output.lock().unwrap().len() as u64, ..TxStats::default() }
    }
}

/// A kernel that takes `room` frames.
pub(crate) struct Kernel {
    pub(crate) got: Arc<Mutex<Vec<Vec<u8>>>>,
    pub(crate) room: usize,
}

impl PuntSink for Kernel {
    fn punt(&mut self, frame: &Frame) -> bool {
        let takes = self.room > 0;
        if takes {
            self.room -= 1;
            self.got.lock().unwrap().push(frame.data().to_vec());
        }
        takes
    }
}

/// Does what a frame's first byte says: `F p` forward to port p, `H w p` hand to worker w who forwards to p,
/// `E p` forward to p and emit `e p` there too, `P` punt, `K p` keep until the next tick and then forward to p,
/// `D` drop, `!` panic.
#[derive(Default)]
pub(crate) struct Obey {
    pub(crate) kept: Vec<(PortId, Frame)>,
    /// Whether kept frames are released in `tick`.
    pub(crate) releases: bool,
    pub(crate) news: Option<Reader<u64>>,
    /// Asks to be called this often.
    pub(crate) every: Option<shunt_engine::Duration>,
    pub(crate) called: Arc<AtomicU64>,
    /// CPU time of the thread, in nanoseconds, at the last tick.
    pub(crate) cpu: Arc<AtomicU64>,
    pub(crate) next: Instant,
}

impl Obey {
    fn obey(&mut self, origin: Origin, frame: &mut Frame, emit: &mut Emit<'_>) -> Verdict {
        let at = |index: usize| PortId(frame.data()[index]);
        match (frame.data()[0], origin) {
            (b'F', _) => Verdict::Forward(at(1)),
            (b'H', Origin::Port) => Verdict::Handoff(WorkerId(frame.data()[1].into())),
            (b'H', Origin::Handoff(_)) => Verdict::Forward(at(2)),
            (b'E', _) => {
                let port = at(1);
                let mut own = emit.alloc().unwrap();
                assert!(own.fill(&[b'e', port.0]));
                assert!(emit.send(port, own));
                Verdict::Forward(port)
            }
            (b'P', _) => Verdict::Punt,
            (b'K', _) => {
                let port = at(1);
                self.kept.push((port, emit.hold(frame).unwrap()));
                Verdict::Hold
            }
            (b'D', _) => Verdict::Drop,
            (other, _) => panic!("no such order: {other}"),
        }
    }
}

impl Program for Obey {
    fn refresh(&mut self, _now: Instant) {
        if let Some(news) = &mut self.news {
            news.refresh();
        }
    }

    fn on_burst(
        &mut self,
        _now: Instant,
        origin: Origin,
        frames: &mut Burst,
        verdicts: &mut Verdicts,
        emit: &mut Emit<'_>,
    ) {
        for frame in frames {
            verdicts.push(self.obey(origin, frame, emit));
        }
    }

    fn tick(&mut self, now: Instant, emit: &mut Emit<'_>) -> Option<Instant> {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        self.cpu.store(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64, Ordering::Relaxed);
        while self.releases
            && let Some((port, frame)) = self.kept.pop()
        {
            emit.release(Verdict::Forward(port), frame);
        }
        let every = self.every?;
        if now >= self.next {
            self.called.fetch_add(1, Ordering::Relaxed);
            self.next = now + every;
        }
        Some(self.next)
    }

    fn close(&mut self, pool: &mut Mempool) {
        pool.free_all(self.kept.drain(..).map(|(_, frame)| frame));
    }
}

/// Workers over ports of `wires[port][queue]`, with a program each.
pub(crate) struct Bench {
    pub(crate) wires: Vec<Vec<Wire>>,
    pub(crate) clock: Clock,
    pub(crate) idle: IdleConfig,
    pub(crate) kernel_sees_all: bool,
    pub(crate) punt: Option<Kernel>,
}

impl Bench {
    pub(crate) fn new(queues: &[usize], pollable: bool) -> Self {
        let wire = |_| Wire::new(pollable);
        Self {
            wires: queues.iter().map(|&count| (0..count).map(wire).collect()).collect(),
            clock: Clock::System,
            idle: IdleConfig::default(),
            kernel_sees_all: false,
            punt: None,
        }
    }

    pub(crate) fn workers(&mut self, programs: Vec<Obey>) -> Vec<Worker<Obey>> {
        let count = programs.len() as u16;
        let queues: Vec<u16> = self.wires.iter().map(|wires| wires.len() as u16).collect();
        let config = PoolConfig { chunks: CHUNKS, ..PoolConfig::default() };
        let pools = Mempool::split(config, count.into()).unwrap();
        let parts = assign(&queues, count).into_iter().zip(pools).zip(mesh(count).unwrap()).zip(programs);
        parts
            .map(|(((share, pool), links), program)| {
                let wire = |port: PortId, queue: u16| {
                    Box::new(self.wires[usize::from(port.0)][usize::from(queue)].clone())
                };
                let rx = |(port, queue)| RxPort { port, queue, rx: wire(port, queue) };
                let tx = |(port, share)| {
                    let route = match share {
                        TxShare::Own(queue) => TxRoute::Own { queue, tx: wire(PortId(port), queue) },
                        TxShare::Via(worker) => TxRoute::Via(worker),
                    };
                    TxPort { kernel_sees_all: self.kernel_sees_all, route }
                };
                Worker::new(Setup {
                    program,
                    clock: self.clock.clone(),
                    pool,
                    links,
                    rx: share.rx.into_iter().map(rx).collect(),
                    ports: (0..).zip(share.tx).map(tx).collect(),
                    punt: self.punt.take().map(|kernel| Box::new(kernel) as Box<dyn PuntSink>),
                    idle: self.idle,
                })
            })
            .collect()
    }

    pub(crate) fn idle_workers(&mut self, count: usize) -> Vec<Worker<Obey>> {
        self.workers((0..count).map(|_| Obey::default()).collect())
    }
}
