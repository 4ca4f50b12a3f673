//! Traffic that one worker receives and another sends: every buffer of the first is freed by the second.

use std::time::{Duration, Instant};

use shunt_engine::clock::Clock;
use shunt_engine::frame::frames_lost;
use shunt_engine::idle::IdleConfig;
use shunt_engine::outbox::{TxPort, TxRoute};
use shunt_engine::port::{PortId, RxStats, TxStats};
use shunt_engine::program::{Emit, Origin, Program, Verdict, Verdicts, WorkerId};
use shunt_engine::worker::{RxPort, Setup, Worker};
use shunt_engine::{Burst, Mempool, clock};

use super::{Harness, POOL, WINDOW, number, to_port};

/// A port with two workers, of which the first has its receive queue and the second its transmit queue.
pub struct OneWay<H> {
    pub harness: H,
    workers: Vec<Worker<Turn>>,
    name: String,
    /// How long nothing may happen.
    patience: Duration,
}

impl<H: Harness> OneWay<H> {
    pub fn new(patience: Duration) -> Self {
        let pools = Mempool::split(POOL, 2).unwrap();
        let mut harness = H::open(1, &pools[0]);
        let caps = harness.port().caps();
        let name = format!("port {} ({})", caps.name, caps.kind);
        let (rx, tx) = harness.port().take_queue(0).unwrap();
        let (mut rx, mut tx) = (Some(rx), Some(tx));
        let worker = |(index, (links, pool))| {
            let rx = rx.take().map(|rx| RxPort { port: PortId(0), queue: 0, rx });
            let route = match index {
                0 => TxRoute::Via(WorkerId(1)),
                _ => TxRoute::Own { queue: 0, tx: tx.take().expect("only one worker sends") },
            };
            Worker::new(Setup {
                program: Turn,
                clock: Clock::System,
                pool,
                links,
                rx: rx.into_iter().collect(),
                ports: vec![TxPort { kernel_sees_all: true, route }],
                punt: None,
                idle: IdleConfig::default(),
            })
        };
        let links = shunt_engine::ring::mesh(2).unwrap();
        let workers = links.into_iter().zip(pools).enumerate().map(worker).collect();
        let mut lab = Self { harness, workers, name, patience };
        // A device takes its stock of buffers when its queue is first looked at.
        lab.turn();
        lab
    }

    /// Has `frames` frames pass both workers, a window at a time, each seen again by the peer, in order.
    ///
    /// # Panics
    /// When nothing comes back for as long as the patience lasts, or when all of it takes longer than [`LIMIT`].
    pub fn carry(&mut self, frames: u64) {
        let window: Vec<_> = (0..WINDOW as u64).map(|number| to_port(number, 60)).collect();
        let (start, mut carried) = (Instant::now(), 0);
        while carried < frames {
            let window = &window[..window.len().min((frames - carried) as usize)];
            self.harness.send(window);
            let (mut back, mut last, mut turns) = (0, Instant::now(), 0);
            while back < window.len() {
                self.turn();
                turns += 1;
                let before = back;
                while let Some(frame) = self.harness.recv() {
                    assert_eq!(number(&frame), back as u64, "{}: frames come back in order", self.name);
                    back += 1;
                }
                if back > before {
                    (last, turns) = (Instant::now(), 0);
                }
                let done = carried + back as u64;
                // Time in which this thread did not run says nothing about the port.
                let waits = last.elapsed() < self.patience || turns < TURNS;
                assert!(waits, "{}", self.stalled(done, frames));
                std::thread::yield_now();
            }
            carried += back as u64;
            assert!(start.elapsed() < LIMIT, "{}: {carried} of {frames} frames in {LIMIT:?}", self.name);
        }
    }

    /// Waits until every buffer is in the pool it belongs to, but for those the receive queue keeps, and checks that
    /// `frames` frames were received, handed over and sent, and nothing was lost on the way.
    pub fn settle(&mut self, frames: u64) {
        let expected = [POOL.chunks as usize - H::BUFFERS_KEPT, POOL.chunks as usize];
        let start = Instant::now();
        while self.pools() != expected {
            self.turn();
            let pools = self.pools();
            assert!(start.elapsed() < self.patience, "{}: {pools:?} buffers came home", self.name);
        }
        self.publish();
        let (rx, tx) = self.stats();
        assert_eq!((rx.packets, tx.packets), (frames, frames), "{}", self.name);
        assert_eq!((rx.oversize, rx.no_buffer, rx.missed), (0, 0, 0), "{}", self.name);
        assert_eq!((tx.oversize, tx.errors), (0, 0), "{}", self.name);
        assert_eq!(frames_lost(), 0);
    }

    fn turn(&mut self) {
        self.workers.iter_mut().for_each(|worker| _ = worker.turn());
    }

    fn pools(&self) -> [usize; 2] {
        [0, 1].map(|worker: usize| self.workers[worker].pool_available())
    }

    /// Waits until the workers' published counts are those of now: they publish about once per millisecond.
    fn publish(&mut self) {
        std::thread::sleep(Duration::from_millis(5));
        self.turn();
    }

    fn stats(&self) -> (RxStats, TxStats) {
        let [receiver, sender] = [0, 1].map(|worker: usize| self.workers[worker].view());
        let (_, _, rx) = receiver.rx().next().expect("the first worker receives");
        let (_, _, tx) = sender.tx().next().expect("the second worker sends");
        (rx, tx)
    }

    fn stalled(&mut self, done: u64, frames: u64) -> String {
        self.publish();
        let (Self { name, patience, .. }, pools, (rx, tx)) = (&*self, self.pools(), self.stats());
        format!(
            "{name} stalled: {done} of {frames} frames came back and no other for {patience:?}; {} received, {} sent, \
             {pools:?} buffers free",
            rx.packets, tx.packets
        )
    }
}

/// Hands what comes from a port to the other worker, which turns it round.
struct Turn;

impl Program for Turn {
    fn refresh(&mut self, _now: clock::Instant) {}

    fn on_burst(
        &mut self,
        _now: clock::Instant,
        origin: Origin,
        frames: &mut Burst,
        verdicts: &mut Verdicts,
        _emit: &mut Emit<'_>,
    ) {
        for frame in frames {
            verdicts.push(match origin {
                Origin::Port => Verdict::Handoff(WorkerId(1)),
                Origin::Handoff(_) => {
                    let (to, from) = frame.data_mut()[..12].split_at_mut(6);
                    to.swap_with_slice(from);
                    Verdict::Forward(PortId(0))
                }
            });
        }
    }

    fn tick(&mut self, _now: clock::Instant, _emit: &mut Emit<'_>) -> Option<clock::Instant> {
        None
    }
}

/// The longest that [`OneWay::carry`] may take: many times what the slowest port needs for ten million frames.
const LIMIT: Duration = Duration::from_secs(600);

/// Turns without a frame that make a stall: many more than a window takes.
const TURNS: u32 = 1000;
