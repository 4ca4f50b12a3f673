//! What workers did in the last seconds: their counts a few seconds ago, to be compared with those of now.

use std::collections::VecDeque;
use std::time::Duration;

use shunt_engine::Instant;
use shunt_engine::report::{WorkerCounter, WorkerView};

/// How often the counts are noted.
pub(crate) const EVERY: Duration = Duration::from_secs(1);

/// How many notes are kept: the oldest is as many seconds old.
const KEPT: usize = 5;

/// A worker's counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) packets: u64,
    pub(crate) busy_nanos: u64,
}

impl Counts {
    pub(crate) fn of(view: &WorkerView) -> Self {
        Self { packets: view.get(WorkerCounter::RxPackets), busy_nanos: view.get(WorkerCounter::BusyNanos) }
    }
}

/// What a worker did in a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stretch {
    pub(crate) seconds: f64,
    pub(crate) packets_per_second: f64,
    /// Share of the time in turns that moved a frame, 0 … 1.
    pub(crate) busy: f64,
}

impl Stretch {
    /// From `then` to `now`, `nanos` apart; all zero when no time has passed.
    pub(crate) fn between(then: Counts, now: Counts, nanos: u64) -> Self {
        if nanos == 0 {
            return Self { seconds: 0.0, packets_per_second: 0.0, busy: 0.0 };
        }
        let (packets, busy) = (now.packets - then.packets, now.busy_nanos - then.busy_nanos);
        let seconds = nanos as f64 / 1e9;
        // Workers publish up to a millisecond later than they work.
        let busy = (busy as f64 / nanos as f64).min(1.0);
        Self { seconds, packets_per_second: packets as f64 / seconds, busy }
    }
}

/// The notes of the last seconds, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Recent(VecDeque<(Instant, Vec<Counts>)>);

impl Recent {
    /// Notes what all workers have counted until `now`.
    pub(crate) fn note(&mut self, now: Instant, workers: impl Iterator<Item = Counts>) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((now, workers.collect()));
    }

    /// What worker `number` did from the oldest note until `now`, when its counts are `counts`.
    pub(crate) fn stretch(&self, number: usize, now: Instant, counts: Counts) -> Stretch {
        let oldest = self.0.front().and_then(|(at, workers)| Some((*at, *workers.get(number)?)));
        let (at, then) = oldest.unwrap_or((now, counts));
        Stretch::between(then, counts, now.since(at).as_nanos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + shunt_engine::Duration::from_secs(seconds)
    }

    /// A worker that receives 100 packets in each second of the first ten, half of which it is busy.
    fn counts(second: u64) -> Counts {
        let worked = second.min(10);
        Counts { packets: 100 * worked, busy_nanos: 500_000_000 * worked }
    }

    #[test]
    fn the_last_seconds_count_and_no_older_ones() {
        let mut recent = Recent::default();
        for second in 0..=12 {
            recent.note(at(second), [Counts::default(), counts(second)].into_iter());
        }
        // The oldest note is of second 8: two seconds of work, and three of none.
        let expected = Stretch { seconds: 5.0, packets_per_second: 40.0, busy: 0.2 };
        assert_eq!(recent.stretch(1, at(13), counts(13)), expected);
        assert_eq!(recent.stretch(0, at(13), Counts::default()).busy, 0.0);
    }

    #[test]
    fn before_the_first_note_there_is_nothing_and_a_worker_is_never_busier_than_always() {
        let mut recent = Recent::default();
        assert_eq!(recent.stretch(0, at(3), counts(3)).seconds, 0.0);
        recent.note(at(3), std::iter::once(Counts::default()));
        let late = Counts { packets: 1, busy_nanos: 1_001_000_000 };
        assert_eq!(recent.stretch(0, at(4), late).busy, 1.0);
    }
}
