//! In which order local ports are taken back when there is no free one: FULLNAT connections that are over, by how long
//! nothing has been heard of them. Their servers may still hold the ports in TIME_WAIT, each for as long from then on.
//!
//! There is a queue for each server endpoint, protocol and local address, among which ports are exchangeable. A
//! connection joins its queue at the end when it is over, and again with each packet that still comes: so a queue is in
//! order without anybody sorting, and its first is the oldest. The wheel is no help: it holds all connections by when they
//! are due, and the few of one server are somewhere among them. Queues are found by a keyed hash. Where two share one,
//! each passes over the other's, up to [`LOOKS_MAX`].

use shunt_engine::mem::Slab;
use zerocopy::FromZeros;

/// Connections looked at in one search.
pub(super) const LOOKS_MAX: usize = 64;

/// At most so many queues, half a megabyte. That many local addresses times servers have 2³² ports.
const QUEUES_MAX: usize = 1 << 16;

/// All queues.
#[derive(Debug)]
pub(super) struct Quarantine {
    /// A link per record, then one per queue, the head of its circular list.
    links: Slab<Link>,
    records: u32,
    /// The number of queues, a power of two, less one.
    mask: u32,
}

/// Neighbours in a queue.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
struct Link {
    older: u32,
    newer: u32,
}

/// Bytes per record.
pub(super) const LINK_BYTES: usize = std::mem::size_of::<Link>();

impl Quarantine {
    /// Empty queues for `records` records.
    ///
    /// # Errors
    /// When the kernel has no memory for them.
    pub(super) fn new(records: u32) -> std::io::Result<Self> {
        // A record per 16 has a queue: more queues than that cannot be long.
        let queues = (records as usize / 16).clamp(1, QUEUES_MAX).next_power_of_two();
        let mut links = Slab::<Link>::zeroed(records as usize + queues)?;
        for head in records..records + queues as u32 {
            links[head as usize] = Link { older: head, newer: head };
        }
        Ok(Self { links, records, mask: queues as u32 - 1 })
    }

    /// Puts `record` at the end of the queue that `hash` names; it must be in none.
    pub(super) fn join(&mut self, record: u32, hash: u64) {
        let head = self.head(hash);
        let last = self.links[head as usize].older;
        self.links[record as usize] = Link { older: last, newer: head };
        self.links[last as usize].newer = record;
        self.links[head as usize].older = record;
    }

    /// Takes `record` out of the queue it is in.
    pub(super) fn leave(&mut self, record: u32) {
        let Link { older, newer } = self.links[record as usize];
        self.links[older as usize].newer = newer;
        self.links[newer as usize].older = older;
    }

    /// The records of the queue that `hash` names, oldest first.
    pub(super) fn queue(&self, hash: u64) -> impl Iterator<Item = u32> {
        let mut at = self.head(hash);
        std::iter::from_fn(move || {
            at = self.links[at as usize].newer;
            (at < self.records).then_some(at)
        })
    }

    fn head(&self, hash: u64) -> u32 {
        self.records + (hash as u32 & self.mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_joins_again_is_last_and_who_leaves_is_not_there() {
        let mut quarantine = Quarantine::new(64).unwrap();
        let queue = |quarantine: &Quarantine, hash| quarantine.queue(hash).collect::<Vec<_>>();
        (0..5).for_each(|record| quarantine.join(record, 2));
        (5..8).for_each(|record| quarantine.join(record, 3));
        assert_eq!((queue(&quarantine, 2), queue(&quarantine, 3)), (vec![0, 1, 2, 3, 4], vec![5, 6, 7]));
        for record in [0, 3, 4] {
            quarantine.leave(record);
        }
        quarantine.join(0, 2);
        quarantine.leave(6);
        assert_eq!((queue(&quarantine, 2), queue(&quarantine, 3)), (vec![1, 2, 0], vec![5, 7]));
        assert_eq!(queue(&quarantine, 1), []);
        for record in [1, 2, 0] {
            quarantine.leave(record);
        }
        assert_eq!(queue(&quarantine, 2), []);
    }
}
