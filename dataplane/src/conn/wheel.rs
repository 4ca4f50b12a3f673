//! When records are looked at again. Packets do not touch the wheel: a record found alive when its turn comes is filed
//! anew, so the wheel moves once per timeout and record, not once per packet.

use shunt_engine::mem::Slab;
use zerocopy::FromZeros;

use super::Ticks;

/// Slots of the wheel; together with [`SLOT_TICKS`] it spans 18 minutes, more than LVS's longest timeout.
const SLOTS: u32 = 4096;

/// Ticks per slot, a power of two: a quarter of a second, which is also how late a record may be looked at.
const SLOT_TICKS: u32 = 4;

/// Where each record is filed: one list per slot, one link per record.
#[derive(Debug)]
pub(super) struct Wheel {
    /// A link per record, then one per slot, the head of its circular list.
    links: Slab<Link>,
    records: u32,
    /// Start of the first slot that has not been emptied; a multiple of [`SLOT_TICKS`].
    cursor: Ticks,
}

/// Neighbours in a slot's list, and when the record is due there.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
struct Link {
    next: u32,
    prev: u32,
    due: Ticks,
}

/// Bytes per record.
pub(super) const LINK_BYTES: usize = std::mem::size_of::<Link>();

impl Wheel {
    /// A wheel for `records` records, none of them filed.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub(super) fn new(records: u32) -> std::io::Result<Self> {
        let mut links = Slab::<Link>::zeroed(records as usize + SLOTS as usize)?;
        for head in records..records + SLOTS {
            links[head as usize] = Link { next: head, prev: head, due: Ticks(0) };
        }
        Ok(Self { links, records, cursor: Ticks(0) })
    }

    /// Starts the wheel at `now`. Allowed only while no record is filed.
    pub(super) fn start(&mut self, now: Ticks) {
        self.cursor = Ticks(now.0 & !(SLOT_TICKS - 1));
    }

    /// Files `record` to be looked at when `due` has come, or earlier when that is beyond the wheel's span.
    pub(super) fn file(&mut self, record: u32, due: Ticks) {
        // What is already past is due at once; signed, because ticks wrap.
        let ahead = (due.since(self.cursor) as i32).max(0) as u32;
        let due = Ticks(self.cursor.0.wrapping_add(ahead.min(SLOTS * SLOT_TICKS - 1)));
        let head = self.head(due);
        let last = self.links[head as usize].prev;
        self.links[record as usize] = Link { next: head, prev: last, due };
        self.links[last as usize].next = record;
        self.links[head as usize].prev = record;
    }

    /// Takes `record` out of its list.
    pub(super) fn unfile(&mut self, record: u32) {
        let Link { next, prev, .. } = self.links[record as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
    }

    /// Makes sure that `record` is looked at when `due` has come, if it is filed for later.
    pub(super) fn advance(&mut self, record: u32, due: Ticks) {
        if (due.since(self.links[record as usize].due) as i32) < 0 {
            self.unfile(record);
            self.file(record, due);
        }
    }

    /// Takes out the next record whose slot is over at `now`. `None`: nothing is left to look at for now.
    pub(super) fn pop(&mut self, now: Ticks) -> Option<u32> {
        let span = SLOTS * SLOT_TICKS;
        if now.since(self.cursor) > span {
            // Every slot is over: one turn of the wheel sees them all.
            self.cursor = Ticks((now.0 & !(SLOT_TICKS - 1)).wrapping_sub(span));
        }
        while now.since(self.cursor) >= SLOT_TICKS {
            let head = self.head(self.cursor);
            let first = self.links[head as usize].next;
            if first != head {
                self.unfile(first);
                return Some(first);
            }
            self.cursor = Ticks(self.cursor.0.wrapping_add(SLOT_TICKS));
        }
        None
    }

    /// The head of the list of the slot `due` falls into.
    fn head(&self, due: Ticks) -> u32 {
        self.records + due.0 / SLOT_TICKS % SLOTS
    }
}

const _: () = assert!(SLOTS.is_power_of_two() && SLOT_TICKS.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    fn due_at(wheel: &mut Wheel, from: u32, to: u32) -> Vec<(u32, u32)> {
        let mut seen = Vec::new();
        for now in from..to {
            while let Some(record) = wheel.pop(Ticks(now)) {
                seen.push((record, now));
            }
        }
        seen
    }

    #[test]
    fn records_come_up_when_due_and_at_most_a_slot_later() {
        let mut wheel = Wheel::new(8).unwrap();
        wheel.start(Ticks(1000));
        for (record, due) in [(0, 1003), (1, 1100), (2, 1101), (3, 17_000)] {
            wheel.file(record, Ticks(due));
        }
        let seen = due_at(&mut wheel, 1000, 18_000);
        assert_eq!(seen.iter().map(|&(record, _)| record).collect::<Vec<_>>(), [0, 1, 2, 3]);
        for ((_, at), due) in seen.into_iter().zip([1003, 1100, 1101, 17_000]) {
            assert!(at >= due && at <= due + SLOT_TICKS, "due {due}, seen {at}");
        }
    }

    #[test]
    fn what_is_beyond_the_span_comes_up_at_its_end() {
        let mut wheel = Wheel::new(1).unwrap();
        wheel.file(0, Ticks(1_000_000));
        let seen = due_at(&mut wheel, 0, 20_000);
        assert_eq!(seen.len(), 1);
        assert!((SLOTS * SLOT_TICKS - SLOT_TICKS..=SLOTS * SLOT_TICKS).contains(&seen[0].1));
    }

    #[test]
    fn an_earlier_due_time_moves_a_record_and_a_later_one_does_not() {
        let mut wheel = Wheel::new(2).unwrap();
        wheel.file(0, Ticks(1000));
        wheel.file(1, Ticks(1000));
        wheel.advance(0, Ticks(100));
        wheel.advance(1, Ticks(5000));
        let seen = due_at(&mut wheel, 0, 1100);
        assert_eq!(seen, [(0, 104), (1, 1004)]);
    }

    #[test]
    fn unfiled_records_do_not_come_up() {
        let mut wheel = Wheel::new(3).unwrap();
        (0..3).for_each(|record| wheel.file(record, Ticks(10)));
        wheel.unfile(1);
        assert_eq!(due_at(&mut wheel, 0, 20).iter().map(|&(record, _)| record).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn a_long_pause_and_the_wrap_of_time_lose_nothing() {
        let mut wheel = Wheel::new(2).unwrap();
        wheel.start(Ticks(u32::MAX - 5));
        wheel.file(0, Ticks(20));
        wheel.file(1, Ticks(u32::MAX - 1));
        assert_eq!(wheel.pop(Ticks(u32::MAX - 2)), None);
        assert_eq!(wheel.pop(Ticks(2)), Some(1));
        assert_eq!(wheel.pop(Ticks(2)), None);
        assert_eq!(wheel.pop(Ticks(10_000_000)), Some(0));
        assert_eq!(wheel.pop(Ticks(10_000_000)), None);
    }
}
