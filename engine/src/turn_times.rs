//! How long turns of a worker's loop take: a histogram with a bucket for every power of two.

use crate::clock::Duration;

/// Buckets: number n is of times from 2ⁿ up to 2ⁿ⁺¹ nanoseconds, the last one of all that are longer, too.
pub const TURN_BUCKETS: usize = 32;

/// The times of all turns that moved a frame, from the reading of the clock to the next one. What the kernel took of
/// the core meanwhile counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnTimes {
    /// How many there were of each power of two.
    pub buckets: [u64; TURN_BUCKETS],
    /// The longest.
    pub longest: Duration,
    /// The longest of the last minute or two in which the worker was awake.
    pub longest_lately: Duration,
}

impl TurnTimes {
    /// The bucket of a turn that took `time`.
    #[inline]
    pub(crate) fn bucket_of(time: Duration) -> usize {
        let power = time.as_nanos().checked_ilog2().unwrap_or(0) as usize;
        power.min(TURN_BUCKETS - 1)
    }

    /// How many turns there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// A time that `share` of the turns (0 … 1) did not exceed: the end of a bucket, hence at most twice the true one,
    /// and never more than the longest. `None` when there were no turns.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        let end = Duration::from_nanos(2 << bucket);
        Some(if bucket == TURN_BUCKETS - 1 { self.longest } else { end.min(self.longest) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(nanos: impl IntoIterator<Item = u64>) -> TurnTimes {
        let mut times = TurnTimes::default();
        for time in nanos.into_iter().map(Duration::from_nanos) {
            times.buckets[TurnTimes::bucket_of(time)] += 1;
            times.longest = times.longest.max(time);
        }
        times
    }

    #[test]
    fn every_time_has_a_bucket_of_its_power_of_two() {
        let bucket = |nanos| TurnTimes::bucket_of(Duration::from_nanos(nanos));
        assert_eq!([0, 1, 2, 3, 4, 1023, 1024].map(bucket), [0, 0, 1, 1, 2, 9, 10]);
        assert_eq!([1 << 31, 1 << 32, u64::MAX].map(bucket), [31, 31, 31]);
    }

    #[test]
    fn a_quantile_is_neither_below_the_true_one_nor_twice_as_high() {
        let all = times(1..=10_000);
        assert_eq!(all.count(), 10_000);
        for (share, truth) in [(0.0, 1), (0.01, 100), (0.5, 5_000), (0.99, 9_900), (1.0, 10_000)] {
            let found = all.quantile(share).unwrap().as_nanos();
            assert!(found >= truth && found <= 2 * truth, "{share}: {found} for {truth}");
        }
    }

    #[test]
    fn a_quantile_is_at_most_the_longest_and_there_is_none_of_nothing() {
        assert_eq!(TurnTimes::default().quantile(0.5), None);
        let one = times([1_500]);
        assert_eq!(one.quantile(0.5), Some(Duration::from_nanos(1_500)));
        let stalled = times([100, 100, 1 << 40]);
        assert_eq!(stalled.quantile(0.5), Some(Duration::from_nanos(128)));
        assert_eq!(stalled.quantile(0.99), Some(Duration::from_nanos(1 << 40)));
    }
}
