//! Where packets are handed that this worker received and another one is the home of, as far as it remembers.
//!
//! A NIC that spreads flows otherwise than workers share them brings many such strays. Asking tables and hashes for the home
//! of each would cost more than all the rest; it is asked once per flow and generation of the snapshot, more or less: flows
//! that hash to the same seat displace each other.

use shunt_engine::WorkerId;
use shunt_engine::mem::prefetch;

use crate::conn::Hash;

/// A bounded memory of homes.
#[derive(Debug)]
pub(crate) struct Strays {
    /// By the lower half-word of a key: the rest of the key, and the worker's number plus one. 0: free.
    seats: Box<[u64]>,
}

/// As many as a half-word counts: the key is compared to its last bit, then.
const SEATS: usize = 1 << 16;

impl Strays {
    /// An empty memory; one worker of one needs none.
    pub(crate) fn new(workers: u16) -> Self {
        Self { seats: vec![0; if workers > 1 { SEATS } else { 0 }].into() }
    }

    /// Whether there can be strays.
    #[inline]
    pub(crate) fn is_possible(&self) -> bool {
        !self.seats.is_empty()
    }

    /// Asks the cache for what [`Self::find`] looks at.
    #[inline]
    pub(crate) fn prefetch(&self, hash: Hash, generation: u32) {
        if let Some(seat) = self.seats.get(seat(key(hash, generation))) {
            prefetch(seat);
        }
    }

    /// The home of the flow that hashes to `hash`, if it was noted in this generation.
    #[inline]
    pub(crate) fn find(&self, hash: Hash, generation: u32) -> Option<WorkerId> {
        let key = key(hash, generation);
        let noted = self.seats.get(seat(key))? ^ (key & !0xffff);
        (1..=0xffff).contains(&noted).then(|| WorkerId(noted as u16 - 1))
    }

    /// Notes where the flow is at home. That holds for a generation, since homes change only with services.
    pub(crate) fn note(&mut self, hash: Hash, generation: u32, home: WorkerId) {
        let key = key(hash, generation);
        if let Some(seat) = self.seats.get_mut(seat(key)) {
            *seat = (key & !0xffff) | (u64::from(home.0) + 1);
        }
    }
}

/// In another generation a flow has another key: what was noted before is not found.
#[inline]
fn key(hash: Hash, generation: u32) -> u64 {
    hash.0 ^ u64::from(generation).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[inline]
fn seat(key: u64) -> usize {
    usize::from(key as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_remembered_for_its_flow_and_its_generation_only() {
        let mut strays = Strays::new(2);
        let hash = Hash(0x1234_5678_9abc_def0);
        assert_eq!(strays.find(hash, 1), None);
        strays.note(hash, 1, WorkerId(0));
        assert_eq!(strays.find(hash, 1), Some(WorkerId(0)));
        assert_eq!(strays.find(hash, 2), None);
        (0..64).for_each(|bit| assert_eq!(strays.find(Hash(hash.0 ^ 1 << bit), 1), None, "bit {bit}"));
        let displacing = Hash(hash.0 ^ 1 << 63);
        strays.note(displacing, 1, WorkerId(65_534));
        assert_eq!(strays.find(displacing, 1), Some(WorkerId(65_534)));
        assert_eq!(strays.find(hash, 1), None);
    }

    #[test]
    fn one_worker_remembers_nothing() {
        let mut strays = Strays::new(1);
        strays.note(Hash(7), 1, WorkerId(0));
        assert_eq!(strays.find(Hash(7), 1), None);
    }
}
