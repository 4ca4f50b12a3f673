//! A real worker, turned by hand, between the two ends of a [`Wire`].

use std::sync::Arc;

use shunt_engine::clock::Clock;
use shunt_engine::idle::IdleConfig;
use shunt_engine::mem::Pages;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::outbox::{TxPort, TxRoute};
use shunt_engine::worker::{RxPort, Setup, Worker};
use shunt_engine::{BURST, Mempool, PortId, Program, ring};

use crate::wire::{Feed, ROTATION, Wire};

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
        // What the sink keeps, what the loop has in hand, and what a program may originate or hold meanwhile.
        let chunks = (ROTATION + 32 * BURST) as u32;
        let pool = Mempool::single(PoolConfig { chunks, ..PoolConfig::default() })?;
        let pages = pool.region().pages();
        let (wire, source, sink) = Wire::new();
        let route = TxRoute::Own { queue: 0, tx: Box::new(sink) };
        let worker = Worker::new(Setup {
            program,
            clock,
            pool,
            links: ring::mesh(1)?.remove(0),
            rx: vec![RxPort { port: PortId(0), queue: 0, rx: Box::new(source) }],
            ports: vec![TxPort { kernel_sees_all: false, route }],
            punt: None,
            idle: IdleConfig::Spin,
        });
        Ok(Self { worker, wire, pages })
    }

    /// The far side of the port.
    pub fn wire(&self) -> &Wire {
        &self.wire
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
    pub fn turn(&mut self) {
        self.worker.turn();
    }
}

impl<P: Program> Drop for Rig<P> {
    fn drop(&mut self) {
        // The worker's own end, right after this, takes back what the sink still keeps.
        self.wire.close();
    }
}
