//! RSS solved backwards: the ports of a local address at which a server's answers come to one worker's queue.
//!
//! The hash is linear, so what a port adds to it does not depend on addresses. A group of ports that differ in their
//! last bits only is answered for at once: by a look-up where the indirection table's length is a power of two, for then
//! the first one's entry alone says what the others' are.

use std::marker::PhantomData;
use std::sync::Arc;

use shunt_engine::WorkerId;

use crate::spread::Spread;
use crate::tuple::{Address, Endpoint, Protocol, Tuple};

/// One worker's view of a [`Spread`], for one IP version.
#[derive(Clone, Debug)]
pub(crate) struct Solver<A> {
    spread: Arc<Spread>,
    worker: WorkerId,
    /// What the ports of a group add to the hash, beside what their first one adds.
    steps: Box<[u32]>,
    /// Which ports of a group are the worker's, by its first one's entry of the indirection table. Empty where the table's
    /// length is no power of two.
    groups: Box<[u64]>,
    _address: PhantomData<A>,
}

impl<A: Address> Solver<A> {
    /// For groups of `group` ports: a power of two, at most 64.
    pub(crate) fn new(spread: Arc<Spread>, worker: WorkerId, group: u16) -> Self {
        let steps = (0..group).map(|port| spread.destination_port::<A>(port)).collect();
        let entries = spread.entries() as u32;
        let mut solver = Self { spread, worker, steps, groups: Box::default(), _address: PhantomData };
        if entries.is_power_of_two() {
            solver.groups = (0..entries).map(|entry| solver.group_at(entry)).collect();
        }
        solver
    }

    /// What the source of answers adds to the hash, if ports of `protocol` can be solved for: elsewhere they say nothing
    /// about the queue.
    pub(crate) fn towards(&self, server: Endpoint<A>, protocol: Protocol) -> Option<u32> {
        self.spread.hashes_ports(protocol).then(|| self.spread.source(server))
    }

    /// The first of the `wanted` ports of the group that begins at `first` that brings answers to the worker's queue; the
    /// lowest bit of `wanted` is the group's first port. `towards` is what [`Self::towards`] says of the server.
    #[inline]
    pub(crate) fn first(&self, towards: u32, first: Endpoint<A>, wanted: u64) -> Option<u32> {
        let hash = towards ^ self.spread.destination(first);
        match self.groups.get(self.spread.entry(hash)) {
            Some(group) => lowest(group & wanted),
            None => bits(wanted).find(|&port| self.is_owner(hash ^ self.steps[port as usize])),
        }
    }

    /// Whether `reply` comes to the worker's queue.
    pub(crate) fn is_ours(&self, reply: &Tuple<A>) -> bool {
        self.spread.of(reply) == self.worker
    }

    /// Which ports of a group are the worker's, its first one's entry of the indirection table being `entry`.
    fn group_at(&self, entry: u32) -> u64 {
        self.steps.iter().rev().fold(0, |group, step| group << 1 | u64::from(self.is_owner(entry ^ step)))
    }

    fn is_owner(&self, hash: u32) -> bool {
        self.spread.owner(hash) == self.worker
    }
}

/// The number of the lowest bit that is set.
#[inline]
pub(crate) fn lowest(bits: u64) -> Option<u32> {
    (bits != 0).then(|| bits.trailing_zeros())
}

fn bits(mut left: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = lowest(left)?;
        left &= left - 1;
        Some(bit)
    })
}
