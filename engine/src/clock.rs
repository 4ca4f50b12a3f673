//! Time as two newtypes over nanoseconds, and the only place that reads a clock.
//!
//! A worker reads [`Clock::now`] once per burst and hands the value on; everything else takes `now` as an argument.

use std::ops::{Add, AddAssign, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A point in time: nanoseconds since an arbitrary origin (for the system clock: `CLOCK_MONOTONIC`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

/// A length of time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(u64);

impl Instant {
    /// The origin of the clock.
    pub const ZERO: Self = Self(0);
    /// Later than any process lives.
    pub const MAX: Self = Self(u64::MAX);

    /// The instant `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero when `earlier` is in the future.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration(self.0.saturating_sub(earlier.0))
    }
}

impl Duration {
    /// No time at all.
    pub const ZERO: Self = Self(0);
    /// Longer than any process lives.
    pub const MAX: Self = Self(u64::MAX);

    /// `nanos` nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// `micros` microseconds.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros * 1_000)
    }

    /// `millis` milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1_000_000)
    }

    /// `secs` seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1_000_000_000)
    }

    /// Whole nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole milliseconds, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs.0))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, rhs: Self) -> Duration {
        self.since(rhs)
    }
}

impl From<std::time::Duration> for Duration {
    fn from(value: std::time::Duration) -> Self {
        Self(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<Duration> for std::time::Duration {
    fn from(value: Duration) -> Self {
        Self::from_nanos(value.0)
    }
}

/// Where a worker gets its time from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// `CLOCK_MONOTONIC`.
    System,
    /// A hand-turned clock, for tests and simulations; all clones show the same time.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// A hand-turned clock that shows `start`.
    pub fn manual(start: Instant) -> Self {
        Self::Manual(Arc::new(AtomicU64::new(start.0)))
    }

    /// The present moment.
    #[inline]
    pub fn now(&self) -> Instant {
        match self {
            Self::System => {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
                // CLOCK_MONOTONIC starts at boot and is never negative.
                Instant(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
            }
            Self::Manual(nanos) => Instant(nanos.load(Ordering::Relaxed)),
        }
    }

    /// Turns a manual clock forward; the system clock does not move.
    pub fn advance(&self, by: Duration) {
        if let Self::Manual(nanos) = self {
            nanos.fetch_add(by.0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_turned_and_clones_agree() {
        let clock = Clock::manual(Instant::from_nanos(5));
        let other = clock.clone();
        assert_eq!(clock.now(), Instant::from_nanos(5));
        other.advance(Duration::from_micros(2));
        assert_eq!(clock.now(), Instant::from_nanos(2_005));
    }

    #[test]
    fn the_system_clock_does_not_go_backwards() {
        let first = Clock::System.now();
        assert!(Clock::System.now() >= first);
    }

    #[test]
    fn differences_never_underflow() {
        assert_eq!(Instant::from_nanos(1) - Instant::from_nanos(9), Duration::ZERO);
    }
}
