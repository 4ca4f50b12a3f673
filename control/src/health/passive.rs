//! `passive`: what the workers see of a server while they forward to it. It asks nothing: handshakes that the server
//! answered with RST or not at all, and datagrams answered with ICMP unreachable, are counted where they are seen.
//!
//! A server is down when, within an interval, there were so many failures, and they are at least half of what was opened.
//! As nothing goes to a server that is down, nothing can be seen of it: after a time it is tried again.

use shunt_engine::{Duration, Instant};

use super::check::State;

/// What a passive check believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Failures that take a server down.
    pub failures: u32,
    /// Within this time.
    pub interval: Duration,
    /// How long it is down before it is tried again.
    pub hold: Duration,
}

/// What the workers have counted of a server, from its first connection on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Connections opened, and flows of datagrams.
    pub opened: u64,
    /// Of them, or of their datagrams, those that failed.
    pub failed: u64,
}

/// A passive check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passive {
    limits: Limits,
    state: State,
    since: Instant,
    /// What had been seen when the interval began, and when that was.
    before: Option<(Instant, Seen)>,
}

impl Passive {
    /// A check that has seen nothing wrong.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self { limits, state: State::Up, since: now, before: None }
    }

    /// The same with other limits.
    #[must_use]
    pub fn with(&self, limits: Limits) -> Self {
        Self { limits, ..self.clone() }
    }

    /// Its verdict.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Judges what was `seen` by `now`, to be called a few times per interval. Returns the new state if that is another.
    pub fn look(&mut self, seen: Seen, now: Instant) -> Option<State> {
        let (began, before) = *self.before.get_or_insert((now, seen));
        // Counts start again with another tenant of the server's slot.
        let failed = seen.failed.saturating_sub(before.failed);
        let opened = seen.opened.saturating_sub(before.opened);
        let state = match self.state {
            State::Up | State::Unknown => {
                let bad = failed >= u64::from(self.limits.failures) && 2 * failed >= opened;
                if bad { State::Down } else { State::Up }
            }
            State::Down if now.since(self.since) >= self.limits.hold => State::Up,
            State::Down => State::Down,
        };
        if state != self.state || now.since(began) >= self.limits.interval {
            self.before = Some((now, seen));
        }
        let changed = state != self.state;
        if changed {
            (self.state, self.since) = (state, now);
        }
        changed.then_some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { failures: 5, interval: Duration::from_secs(2), hold: Duration::from_secs(10) };

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    fn seen(opened: u64, failed: u64) -> Seen {
        Seen { opened, failed }
    }

    #[test]
    fn enough_failures_among_enough_connections_take_a_server_down() {
        for (opened, failed, state) in [
            (4, 4, State::Up),
            (5, 5, State::Down),
            (10, 5, State::Down),
            (11, 5, State::Up),
            (0, 5, State::Down),
        ] {
            let mut check = Passive::new(LIMITS, at(0));
            assert_eq!(check.look(seen(100, 50), at(0)), None, "what was before does not count");
            check.look(seen(100 + opened, 50 + failed), at(500));
            assert_eq!(check.state(), state, "{opened} opened, {failed} failed");
        }
    }

    #[test]
    fn failures_of_another_interval_do_not_add_up() {
        let mut check = Passive::new(LIMITS, at(0));
        for second in 0..60 {
            // Two failures a second are four in an interval.
            assert_eq!(check.look(seen(2 * second, 2 * second), at(second * 1_000)), None);
        }
    }

    #[test]
    fn a_server_that_is_down_is_tried_again_after_the_hold_time_and_not_before() {
        let mut check = Passive::new(LIMITS, at(0));
        check.look(seen(0, 0), at(0));
        assert_eq!(check.look(seen(9, 9), at(1_000)), Some(State::Down));
        assert_eq!(check.look(seen(9, 9), at(10_999)), None);
        assert_eq!(check.look(seen(9, 9), at(11_000)), Some(State::Up));
        assert_eq!(check.look(seen(12, 12), at(11_500)), None);
        assert_eq!(check.look(seen(14, 14), at(12_000)), Some(State::Down), "nothing has changed there");
    }

    #[test]
    fn counts_that_start_again_are_no_failures() {
        let mut check = Passive::new(LIMITS, at(0));
        check.look(seen(1_000, 900), at(0));
        assert_eq!(check.look(seen(3, 0), at(500)), None);
    }
}
