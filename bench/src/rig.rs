//! A real worker, turned by hand, between the two ends of a [`Wire`].

use std::sync::Arc;

use shunt_engine::clock::Clock;
use shunt_engine::idle::{IdleConfig, Turn};
use shunt_engine::mem::Pages;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::outbox::{TxPort, TxRoute};
use shunt_engine::ring::{self, Links, RING_FRAMES};
use shunt_engine::worker::{RxPort, Setup, Worker};
use shunt_engine::{BURST, Mempool, PortId, Program};

use crate::wire::{Feed, ROTATION, Wire};

/// Buffers of a worker: what the sink keeps, what may be with another worker, what the loop has in hand, and what a
/// program may originate or hold meanwhile.
const BUFFERS: u32 = (ROTATION + 2 * RING_FRAMES + 32 * BURST) as u32;

/// A worker that runs `P` over an in-memory port.
pub struct Rig<P: Program> {
    worker: Worker<P>,
    wire: Arc<Wire>,
    pages: Pages,
}

impl<P: Program> Rig<P> {
    /// A rig for `program`.
    ///
    /// # Errors
    /// When the kernel has no memory or file descriptors for it.
    pub fn new(program: P, clock: Clock) -> std::io::Result<Self> {
        Ok(Self::mesh(vec![program], &clock)?.remove(0))
    }

    /// Rigs whose workers hand frames to each other. Drop them together.
    ///
    /// # Errors
    /// When the kernel has no memory or file descriptors for them.
    pub fn mesh(programs: Vec<P>, clock: &Clock) -> std::io::Result<Vec<Self>> {
        let pools = Mempool::split(PoolConfig { chunks: BUFFERS, ..PoolConfig::default() }, programs.len())?;
        let links = ring::mesh(programs.len() as u16)?;
        let parts = programs.into_iter().zip(pools).zip(links);
        Ok(parts
            .map(|((program, pool), links)| Self::assemble(program, clock.clone(), pool, links))
            .collect())
    }

    fn assemble(program: P, clock: Clock, pool: Mempool, links: Links) -> Self {
        let pages = pool.region().pages();
        let (wire, source, sink) = Wire::new();
        let route = TxRoute::Own { queue: 0, tx: Box::new(sink) };
        let worker = Worker::new(Setup {
            program,
            clock,
            pool,
            links,
            rx: vec![RxPort { port: PortId(0), queue: 0, rx: Box::new(source) }],
            ports: vec![TxPort { kernel_sees_all: false, route }],
            punt: None,
            idle: IdleConfig::Spin,
        });
        Self { worker, wire, pages }
    }

    /// The far side of the port.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// A handle on it for another thread.
    pub fn wire_handle(&self) -> Arc<Wire> {
        self.wire.clone()
    }

    /// The worker.
    pub fn worker(&self) -> &Worker<P> {
        &self.worker
    }

    /// What the buffers lie on.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Receives `packets` frames of the feed, a full burst per turn of the loop.
    pub fn receive(&mut self, packets: u64) {
        self.wire.allow(packets);
        for _ in 0..packets.div_ceil(BURST as u64) {
            self.worker.turn();
        }
    }

    /// Receives the whole of `feed` once.
    pub fn receive_all(&mut self, feed: Feed) {
        let packets = feed.len() as u64;
        self.wire.feed(feed);
        self.receive(packets);
    }

    /// One turn of the loop.
    pub fn turn(&mut self) -> Turn {
        self.worker.turn()
    }
}

impl<P: Program> Drop for Rig<P> {
    fn drop(&mut self) {
        // The worker's own end, right after this, takes back what the sink still keeps.
        self.wire.close();
    }
}
