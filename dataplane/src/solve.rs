//! RSS solved backwards: the ports of a local address at which a server's answers come to one worker's queue.
//!
//! The hash is linear, so what a port adds to it does not depend on addresses. Eight ports that differ in their last
//! bits only are answered for at once: by a look-up where the indirection table's length is a power of two, for then
//! the entry alone says what the next seven ports' entries are.

use std::marker::PhantomData;
use std::sync::Arc;

use shunt_engine::WorkerId;

use crate::spread::Spread;
use crate::tuple::{Address, Endpoint, Protocol, Tuple};

/// Ports that [`Solver::eight`] answers for at once.
pub(crate) const EIGHT: u16 = 8;

/// One worker's view of a [`Spread`], for one IP version.
#[derive(Clone, Debug)]
pub(crate) struct Solver<A> {
    spread: Arc<Spread>,
    worker: WorkerId,
    /// What the last three bits of a port add to the hash.
    steps: [u32; EIGHT as usize],
    /// Which of eight ports are the worker's, by the first one's entry of the indirection table. Empty where its length
    /// is no power of two.
    eights: Box<[u8]>,
    _address: PhantomData<A>,
}

impl<A: Address> Solver<A> {
    pub(crate) fn new(spread: Arc<Spread>, worker: WorkerId) -> Self {
        let mut steps = [0; EIGHT as usize];
        (0..EIGHT).zip(&mut steps).for_each(|(port, step)| *step = spread.destination_port::<A>(port));
        let mut solver = Self { spread, worker, steps, eights: Box::default(), _address: PhantomData };
        let entries = solver.spread.entries();
        if entries.is_power_of_two() {
            solver.eights = (0..entries as u32).map(|entry| solver.eight_behind(entry)).collect();
        }
        solver
    }

    /// Whether ports of `protocol` can be solved for: elsewhere they say nothing about the queue.
    pub(crate) fn solves(&self, protocol: Protocol) -> bool {
        self.spread.hashes_ports(protocol)
    }

    /// Which of the eight ports from `base` on, a multiple of eight, bring the answers of `server` to `local` to the
    /// worker's queue: bit `n` is port `base + n`.
    #[inline]
    pub(crate) fn eight(&self, server: Endpoint<A>, local: A, base: u16) -> u8 {
        debug_assert!(base.is_multiple_of(EIGHT));
        let hash = self.spread.with_ports(server, Endpoint::new(local, base));
        match self.eights.get(self.spread.entry(hash)) {
            Some(&eight) => eight,
            None => self.eight_behind(hash),
        }
    }

    /// Whether `reply` comes to the worker's queue.
    pub(crate) fn is_ours(&self, reply: &Tuple<A>) -> bool {
        self.spread.of(reply) == self.worker
    }

    fn eight_behind(&self, hash: u32) -> u8 {
        let ours = |&step: &u32| self.spread.owner(hash ^ step) == self.worker;
        self.steps.iter().rev().fold(0, |eight, step| eight << 1 | u8::from(ours(step)))
    }
}
