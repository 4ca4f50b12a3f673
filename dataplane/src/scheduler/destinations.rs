//! Which servers serve which destination, for `lblc` and `lblcr`: a table of fixed size, looked up in one bucket.
//!
//! LVS lets its table grow and collects garbage by a timer. Here a destination that finds its bucket full takes the place
//! of the one that has not been asked for the longest.

use arrayvec::ArrayVec;
use shunt_engine::{Duration, Instant};

use super::pool::{Candidate, Pool};
use super::state::random;
use crate::server::ServerId;
use crate::service::ServiceId;
use crate::tuple::V6;

/// Servers of one destination, at most.
pub(super) const SET_MAX: usize = 8;

/// How long a destination is remembered after it was last asked for, and how long a set stays as it is before it shrinks
/// (LVS: lblc_expiration, lblcr_expiration).
pub(super) const EXPIRATION: Duration = Duration::from_secs(24 * 3600);

/// Destinations per worker, over all services.
const CAPACITY: usize = BUCKETS * WAYS;
const BUCKETS: usize = 1 << 12;
const WAYS: usize = 8;
const _: () = assert!(CAPACITY == 32_768);

/// The table of one worker.
#[derive(Debug)]
pub(super) struct Destinations {
    /// Keys the hash: clients choose destinations, and shall not choose whose place they take.
    seed: u64,
    /// Empty until a service needs it.
    buckets: Box<[[Destination; WAYS]]>,
    /// Live destinations that had to make room.
    evicted: u64,
}

/// One destination of one service.
#[derive(Clone, Debug, Default)]
pub(super) struct Destination {
    /// `None`: the entry is free.
    key: Option<(ServiceId, V6)>,
    /// When it was last asked for.
    used: Instant,
    /// When its servers were last changed.
    pub(super) changed: Instant,
    /// Its servers with their places among the candidates when they were looked up last.
    servers: ArrayVec<(ServerId, u16), SET_MAX>,
}

impl Destinations {
    /// A table without memory, which [`Self::allocate`] takes.
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, buckets: Box::default(), evicted: 0 }
    }

    /// Takes the memory, if that has not been done.
    pub(super) fn allocate(&mut self) {
        if self.buckets.is_empty() {
            self.buckets = vec![Default::default(); BUCKETS].into();
        }
    }

    /// How many destinations have made room since this was asked last.
    pub(super) fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// The entry of a destination, marked as used; an empty one if it is not known. `None` before there is memory.
    pub(super) fn entry(
        &mut self,
        service: ServiceId,
        address: V6,
        now: Instant,
    ) -> Option<&mut Destination> {
        let count = self.buckets.len();
        if count == 0 {
            return None;
        }
        let V6([a, b, c, d]) = address;
        let high = u64::from(a ^ service.0.rotate_left(16)) << 32 | u64::from(b);
        let hash = random(random(self.seed, high), u64::from(c) << 32 | u64::from(d));
        let bucket = &mut self.buckets[hash as usize % count];
        let key = Some((service, address));
        let place = match bucket.iter().position(|entry| entry.key == key) {
            Some(place) => place,
            None => bucket.iter().enumerate().min_by_key(|(_, entry)| (entry.key.is_some(), entry.used))?.0,
        };
        let entry = &mut bucket[place];
        let expired = now.since(entry.used) >= EXPIRATION;
        if entry.key != key || expired {
            self.evicted += u64::from(entry.key.is_some() && !expired);
            *entry = Destination { key, used: now, changed: now, servers: ArrayVec::new() };
        }
        entry.used = now;
        Some(entry)
    }
}

impl Destination {
    /// Its servers that are still among the candidates, by place.
    pub(super) fn places(&mut self, pool: &Pool) -> ArrayVec<usize, SET_MAX> {
        let mut places = ArrayVec::new();
        self.servers.retain(|(id, place)| {
            let found = pool.place_of(*id, usize::from(*place));
            if let Some(found) = found {
                *place = found as u16;
                places.push(found);
            }
            found.is_some()
        });
        places
    }

    /// Adds a server; a set that is full loses the one that was added first.
    pub(super) fn add(&mut self, candidate: Candidate, place: usize, now: Instant) {
        if self.servers.iter().any(|(id, _)| *id == candidate.id) {
            return;
        }
        if self.servers.is_full() {
            self.servers.remove(0);
        }
        self.servers.push((candidate.id, place as u16));
        self.changed = now;
    }

    /// Takes a server off.
    pub(super) fn remove(&mut self, id: ServerId, now: Instant) {
        self.servers.retain(|(other, _)| *other != id);
        self.changed = now;
    }

    /// Makes a server the only one.
    pub(super) fn replace(&mut self, candidate: Candidate, place: usize, now: Instant) {
        self.servers.clear();
        self.add(candidate, place, now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::SchedulerKind;
    use super::super::testing::{id, pool};
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_full_bucket_gives_up_what_was_not_asked_for_the_longest_and_counts_it() {
        let (mut table, pool) = (Destinations::new(7), pool(SchedulerKind::Lblc, &[1]));
        table.allocate();
        let all = 2 * CAPACITY as u32;
        for address in 0..all {
            let entry =
                table.entry(ServiceId(0), V6([0, 0, 0, address]), at(1 + u64::from(address) / 1000)).unwrap();
            assert!(entry.places(&pool).is_empty(), "it is new");
            entry.add(pool.candidates()[0], 0, at(1));
        }
        let evicted = table.take_evicted();
        assert!((CAPACITY as u64..CAPACITY as u64 * 5 / 4).contains(&evicted), "{evicted}");
        assert_eq!(table.take_evicted(), 0);
        // The newest are there; services do not share them.
        let newest = V6([0, 0, 0, all - 1]);
        assert_eq!(table.entry(ServiceId(0), newest, at(100)).unwrap().places(&pool)[..], [0]);
        assert!(table.entry(ServiceId(1), newest, at(100)).unwrap().places(&pool).is_empty());
    }

    #[test]
    fn a_destination_is_forgotten_a_day_after_it_was_last_asked_for() {
        let (mut table, pool) = (Destinations::new(7), pool(SchedulerKind::Lblc, &[1]));
        table.allocate();
        let mut known = |now| {
            !table
                .entry(ServiceId(0), V6([0; 4]), now)
                .map_or_else(
                    || panic!("there is memory"),
                    |entry| {
                        let places = entry.places(&pool);
                        entry.add(pool.candidates()[0], 0, now);
                        places
                    },
                )
                .is_empty()
        };
        assert!(!known(at(1)));
        assert!(known(at(86_400)));
        assert!(known(at(2 * 86_400 - 1)));
        assert!(!known(at(3 * 86_400)));
    }

    #[test]
    fn a_full_set_loses_its_first() {
        let (mut entry, pool) = (Destination::default(), pool(SchedulerKind::Lblcr, &[1; 9]));
        for (place, &candidate) in pool.candidates().iter().enumerate() {
            entry.add(candidate, place, at(1));
            entry.add(candidate, place, at(1));
        }
        assert_eq!(entry.places(&pool)[..], [1, 2, 3, 4, 5, 6, 7, 8]);
        entry.remove(id(4), at(2));
        assert_eq!(entry.places(&pool)[..], [1, 2, 3, 5, 6, 7, 8]);
    }
}
