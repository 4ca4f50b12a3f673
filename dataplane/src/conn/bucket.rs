//! The index of the connection table: buckets of one cache line that hold short tags and record numbers.
//!
//! A slot lives in the bucket its hash names or, when that one is full, in a second bucket computed from the first and
//! the tag alone, so that a slot can be moved without reading its record. A full pair makes room by moving one slot to
//! its other bucket. A bucket knows how many of its slots live elsewhere: while that is none, a miss costs one line.

use shunt_engine::mem::{Slab, equal_lanes, prefetch};
use zerocopy::FromZeros;

use super::table::Direction;

/// What a tuple hashes to under the table's secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hash(pub(crate) u64);

/// Slots per bucket: as many as fit 64 bytes.
pub(super) const SLOTS: usize = 10;

/// Records a table can number: two bits of a slot's number say direction and place.
pub(super) const RECORDS_MAX: usize = 1 << 30;

/// What the index finds: which record, and whether as its request or its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) record: u32,
    pub(super) direction: Direction,
}

/// All buckets; their number is a power of two.
#[derive(Debug)]
pub(super) struct Index {
    buckets: Slab<Bucket>,
    mask: u32,
}

/// One cache line.
#[derive(Clone, Copy, FromZeros, Debug)]
#[repr(C, align(64))]
struct Bucket {
    /// 0: the slot is free.
    tags: [u16; SLOTS],
    /// Record number with [`REPLY`] and [`AWAY`].
    values: [u32; SLOTS],
    /// Slots whose first bucket is this one and that live in their second.
    away: u32,
}

const _: () = assert!(std::mem::size_of::<Bucket>() == 64);

/// Slots moved to make room for one.
const MOVES_MAX: u32 = 2;

/// The slot is of the reply's tuple.
const REPLY: u32 = 1 << 31;
/// The slot lives in its second bucket.
const AWAY: u32 = 1 << 30;

impl Index {
    /// An empty index with room for `slots` slots at a load of at most 85 %.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub(super) fn new(slots: usize) -> std::io::Result<Self> {
        let buckets = Self::buckets_for(slots);
        Ok(Self { buckets: Slab::zeroed(buckets)?, mask: (buckets - 1) as u32 })
    }

    /// Bytes of an index for `slots` slots.
    pub(super) fn bytes_for(slots: usize) -> usize {
        Self::buckets_for(slots) * std::mem::size_of::<Bucket>()
    }

    fn buckets_for(slots: usize) -> usize {
        (slots * 100).div_ceil(SLOTS * 85).next_power_of_two()
    }

    /// Asks the cache for the bucket `hash` names.
    #[inline]
    pub(super) fn prefetch(&self, hash: Hash) {
        prefetch(&raw const self.buckets[self.first(hash) as usize]);
    }

    /// The first entry whose tag fits: a guess good enough to prefetch by.
    #[inline]
    pub(super) fn candidate(&self, hash: Hash) -> Option<Entry> {
        self.find(hash, |_| true)
    }

    /// The entry under `hash` for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, hash: Hash, mut is_it: impl FnMut(Entry) -> bool) -> Option<Entry> {
        let (tag, first) = (tag(hash), self.first(hash));
        let bucket = &self.buckets[first as usize];
        if let Some(entry) = bucket.find(tag, &mut is_it) {
            return Some(entry);
        }
        if bucket.away == 0 {
            return None;
        }
        self.buckets[self.other(first, tag) as usize].find(tag, &mut is_it)
    }

    /// Adds a slot; `false` when both its buckets are full and none of their slots can move away.
    pub(super) fn insert(&mut self, hash: Hash, entry: Entry) -> bool {
        let (tag, first) = (tag(hash), self.first(hash));
        let second = self.other(first, tag);
        let value = entry.record | if entry.direction == Direction::Reply { REPLY } else { 0 };
        let mut place = self.free_slot(first).map(|slot| (first, slot));
        place = place.or_else(|| self.free_slot(second).map(|slot| (second, slot)));
        for moves in 1..=MOVES_MAX {
            place = place.or_else(|| self.make_room(first, moves).map(|slot| (first, slot)));
            place = place.or_else(|| self.make_room(second, moves).map(|slot| (second, slot)));
        }
        let Some((bucket, slot)) = place else { return false };
        let away = bucket != first;
        self.put(bucket, slot, tag, if away { value | AWAY } else { value });
        if away {
            self.buckets[first as usize].away += 1;
        }
        true
    }

    /// Removes the slot `insert` added; `false` when there is none.
    pub(super) fn remove(&mut self, hash: Hash, entry: Entry) -> bool {
        let (tag, first) = (tag(hash), self.first(hash));
        let value = entry.record | if entry.direction == Direction::Reply { REPLY } else { 0 };
        for bucket in [first, self.other(first, tag)] {
            let slots = &mut self.buckets[bucket as usize];
            if let Some(slot) = slots.tagged(tag).find(|&slot| slots.values[slot] & !AWAY == value) {
                let away = slots.values[slot] & AWAY != 0;
                slots.tags[slot] = 0;
                if away {
                    self.buckets[first as usize].away -= 1;
                }
                return true;
            }
        }
        false
    }

    /// Moves one slot of a full bucket to its other bucket, making room there by up to `moves - 1` moves; the slot that
    /// became free. Looks at no more than [`SLOTS`] to the power of `moves` buckets.
    fn make_room(&mut self, bucket: u32, moves: u32) -> Option<usize> {
        let Bucket { tags, values, .. } = self.buckets[bucket as usize];
        for slot in 0..SLOTS {
            let target = self.other(bucket, tags[slot]);
            if target == bucket {
                continue;
            }
            let free = match moves {
                1 => self.free_slot(target),
                // Every bucket within reach of fewer moves is full, so this cannot change `bucket` behind our back.
                _ => self.make_room(target, moves - 1),
            };
            let Some(free) = free else { continue };
            // Away becomes at home and the reverse; the count is kept where the slot is at home.
            self.put(target, free, tags[slot], values[slot] ^ AWAY);
            if values[slot] & AWAY == 0 {
                self.buckets[bucket as usize].away += 1;
            } else {
                self.buckets[target as usize].away -= 1;
            }
            self.buckets[bucket as usize].tags[slot] = 0;
            return Some(slot);
        }
        None
    }

    fn put(&mut self, bucket: u32, slot: usize, tag: u16, value: u32) {
        let bucket = &mut self.buckets[bucket as usize];
        debug_assert_eq!(bucket.tags[slot], 0);
        bucket.tags[slot] = tag;
        bucket.values[slot] = value;
    }

    fn free_slot(&self, bucket: u32) -> Option<usize> {
        self.buckets[bucket as usize].tagged(0).next()
    }

    #[inline]
    fn first(&self, hash: Hash) -> u32 {
        hash.0 as u32 & self.mask
    }

    /// The other bucket of a slot in `bucket`: its own inverse.
    #[inline]
    fn other(&self, bucket: u32, tag: u16) -> u32 {
        // An odd multiplier spreads the tag over all bits of a bucket number; a tag is never 0.
        bucket ^ ((u32::from(tag).wrapping_mul(0x9e37_79b1)) & self.mask)
    }

    /// Share of slots in use, for tests.
    #[cfg(test)]
    pub(super) fn load(&self) -> f64 {
        let used: usize =
            self.buckets.iter().map(|bucket| bucket.tags.iter().filter(|&&tag| tag != 0).count()).sum();
        used as f64 / (self.buckets.len() * SLOTS) as f64
    }
}

impl Bucket {
    #[inline]
    fn find(&self, tag: u16, is_it: &mut impl FnMut(Entry) -> bool) -> Option<Entry> {
        self.tagged(tag)
            .map(|slot| {
                let value = self.values[slot];
                let direction = if value & REPLY != 0 { Direction::Reply } else { Direction::Request };
                Entry { record: value & !(REPLY | AWAY), direction }
            })
            .find(|&entry| is_it(entry))
    }

    /// The slots with `tag`. All are compared at once.
    #[inline]
    fn tagged(&self, tag: u16) -> impl Iterator<Item = usize> + use<> {
        let mut matches = matching(&self.tags, tag);
        std::iter::from_fn(move || {
            let slot = (matches != 0).then(|| matches.trailing_zeros() as usize)?;
            matches &= matches - 1;
            Some(slot)
        })
    }
}

/// The slots of `tags` that hold `tag`, one bit each.
#[inline(always)]
fn matching(tags: &[u16; SLOTS], tag: u16) -> u32 {
    let (eight, rest) = tags.split_first_chunk().expect("there are more than eight");
    let found = u32::from(equal_lanes(eight, tag));
    rest.iter().zip(8..).fold(found, |found, (&other, slot)| found | u32::from(other == tag) << slot)
}

/// The upper bits of the hash, never 0. The lower bits name the bucket.
#[inline]
fn tag(hash: Hash) -> u16 {
    ((hash.0 >> 48) as u16).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(i: u32) -> Hash {
        let endpoint = crate::tuple::Endpoint::new(crate::tuple::V4(i), 1);
        Hash(crate::hash::KeyedHash::new([7, 9], 0).endpoint(endpoint, crate::tuple::Protocol::Tcp))
    }

    fn entry(record: u32) -> Entry {
        Entry { record, direction: Direction::Request }
    }

    #[test]
    fn nine_slots_in_ten_fill_before_the_first_is_refused() {
        let sizes: &[usize] = if cfg!(miri) { &[100] } else { &[100, 10_000, 1_000_000] };
        for &slots in sizes {
            let mut index = Index::new(slots).unwrap();
            let refused = (0..).find(|&i| !index.insert(hash(i), entry(i))).unwrap();
            println!("{slots}: refused at a load of {:.3}", index.load());
            assert!(index.load() >= 0.90, "{slots}: {:.3}", index.load());
            assert!(refused as usize >= slots);
            for i in 0..refused {
                assert_eq!(index.find(hash(i), |found| found.record == i), Some(entry(i)));
            }
            for i in 0..refused {
                assert!(index.remove(hash(i), entry(i)));
            }
            assert!(index.load() == 0.0 && index.buckets.iter().all(|bucket| bucket.away == 0));
        }
    }

    #[test]
    fn what_was_removed_is_not_found_and_cannot_be_removed_again() {
        let mut index = Index::new(1000).unwrap();
        assert!(index.insert(hash(1), entry(1)));
        assert!(!index.remove(hash(1), Entry { record: 1, direction: Direction::Reply }));
        assert!(index.remove(hash(1), entry(1)) && !index.remove(hash(1), entry(1)));
        assert_eq!(index.candidate(hash(1)), None);
    }

    #[test]
    fn the_other_bucket_of_the_other_bucket_is_the_first() {
        let index = Index::new(100_000).unwrap();
        for i in 0..1000 {
            let (tag, first) = (tag(hash(i)), index.first(hash(i)));
            assert_eq!(index.other(index.other(first, tag), tag), first);
        }
    }
}
