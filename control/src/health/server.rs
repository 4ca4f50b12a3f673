//! All checks of one server taken together: whether it is well, and how much of its weight it gets.
//!
//! A server is down when one of its checks is, and up when all are. Until each has a verdict it is neither, unless it is
//! trusted: because it was up before a reload gave it another check, or because the file says so (`initial = "up"`).

use shunt_engine::{Duration, Instant};

use super::check::State;

/// Steps in which a server that comes up gets its full weight.
const STEPS: u64 = 20;

/// A server and what its checks say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    state: State,
    since: Instant,
    /// Whether a check without a verdict counts as passed.
    trusted: bool,
    slow_start: Option<Duration>,
    /// When it came up, while it does not have its full weight.
    starting: Option<Instant>,
}

impl Server {
    /// A server that nobody has asked yet.
    pub fn new(trusted: bool, slow_start: Option<Duration>, now: Instant) -> Self {
        Self { state: State::Unknown, since: now, trusted, slow_start, starting: None }
    }

    /// The same server after a reload, whose checks may be others now.
    #[must_use]
    pub fn reloaded(&self, slow_start: Option<Duration>) -> Self {
        let starting = self.starting.filter(|_| slow_start.is_some());
        Self { trusted: self.state == State::Up, slow_start, starting, ..self.clone() }
    }

    /// Whether it is well.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Judges it by its `checks`. `cold` is whether it begins slowly when it comes up. Returns its state if that is
    /// another.
    pub fn judge(
        &mut self,
        checks: impl IntoIterator<Item = State>,
        now: Instant,
        cold: bool,
    ) -> Option<State> {
        let all = checks.into_iter().fold(State::Up, |all, one| match (all, one) {
            (State::Down, _) | (_, State::Down) => State::Down,
            (State::Unknown, _) | (_, State::Unknown) => State::Unknown,
            (State::Up, State::Up) => State::Up,
        });
        let state = if all == State::Unknown && self.trusted { State::Up } else { all };
        self.trusted &= state != State::Down;
        if state == self.state {
            return None;
        }
        (self.state, self.since) = (state, now);
        self.starting = (state == State::Up && cold && self.slow_start.is_some()).then_some(now);
        Some(state)
    }

    /// The part of its weight that it gets at `now`, in [`STEPS`]; `None` when it has all of it.
    pub fn share(&self, now: Instant) -> Option<Share> {
        let (started, whole) = (self.starting?, self.slow_start?);
        let passed = now.since(started);
        (passed < whole).then(|| {
            let steps = u128::from(passed.as_nanos()) * u128::from(STEPS) / u128::from(whole.as_nanos());
            Share(steps as u64 + 1)
        })
    }

    /// When its share is another.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let Share(steps) = self.share(now)?;
        let nanos = u128::from(self.slow_start?.as_nanos()) * u128::from(steps);
        let passed = u64::try_from(nanos.div_ceil(u128::from(STEPS))).unwrap_or(u64::MAX);
        Some(self.starting? + Duration::from_nanos(passed))
    }
}

/// A part of a weight: so many of [`STEPS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u64);

impl Share {
    /// The part of `weight`, at least 1 of what is not 0.
    pub fn of(self, weight: u32) -> u32 {
        let part = (u64::from(weight) * self.0).div_ceil(STEPS);
        u32::try_from(part).expect("a part is no larger than the whole")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn one_check_takes_a_server_down_and_all_bring_it_up() {
        use State::{Down, Unknown, Up};
        let judged = |trusted, checks: &[State]| {
            let mut server = Server::new(trusted, None, at(0));
            server.judge(checks.iter().copied(), at(1), false);
            server.state()
        };
        for (checks, strange, trusted) in [
            (&[][..], Up, Up),
            (&[Up], Up, Up),
            (&[Unknown], Unknown, Up),
            (&[Down], Down, Down),
            (&[Up, Unknown], Unknown, Up),
            (&[Unknown, Down], Down, Down),
            (&[Up, Down, Up], Down, Down),
            (&[Up, Up], Up, Up),
        ] {
            assert_eq!(judged(false, checks), strange, "{checks:?}");
            assert_eq!(judged(true, checks), trusted, "{checks:?}, trusted");
        }
    }

    #[test]
    fn a_check_added_to_a_server_that_is_up_leaves_it_up_and_one_that_was_down_waits_for_it() {
        use State::{Down, Unknown, Up};
        let mut up = Server::new(false, None, at(0));
        assert_eq!(up.judge([Up], at(5), false), Some(Up));
        let mut up = up.reloaded(None);
        assert_eq!((up.judge([Up, Unknown], at(9), false), up.since()), (None, at(5)));
        assert_eq!(up.judge([Up, Down], at(10), false), Some(Down));
        assert_eq!(
            up.judge([Up, Unknown], at(11), false),
            Some(Unknown),
            "trust is lost with the first failure"
        );
        let mut down = Server::new(false, None, at(0));
        down.judge([Down], at(5), false);
        let mut down = down.reloaded(None);
        assert_eq!(down.judge([Unknown], at(9), false), Some(Unknown));
        assert_eq!(down.judge([Up], at(12), false), Some(Up));
    }

    #[test]
    fn weight_grows_step_by_step_to_the_whole_and_no_further() {
        let mut server = Server::new(false, Some(Duration::from_secs(20)), at(0));
        server.judge([State::Up], at(1_000), true);
        let of_100 = |millis| server.share(at(millis)).map(|share| share.of(100));
        assert_eq!(of_100(1_000), Some(5));
        assert_eq!(of_100(1_999), Some(5));
        assert_eq!(of_100(2_000), Some(10));
        assert_eq!(of_100(20_999), Some(100));
        assert_eq!(of_100(21_000), None);
        assert_eq!(server.next_deadline(at(1_000)), Some(at(2_000)));
        assert_eq!(server.next_deadline(at(20_500)), Some(at(21_000)));
        assert_eq!(server.next_deadline(at(21_000)), None);
        assert_eq!(server.share(at(1_000)).unwrap().of(1), 1);
        assert_eq!(server.share(at(1_000)).unwrap().of(0), 0);
    }

    #[test]
    fn only_a_cold_server_starts_slowly_and_a_reload_does_not_begin_anew() {
        let slow = Some(Duration::from_secs(10));
        let mut warm = Server::new(false, slow, at(0));
        warm.judge([State::Up], at(0), false);
        assert_eq!(warm.share(at(0)), None);
        let mut cold = Server::new(false, slow, at(0));
        cold.judge([State::Up], at(0), true);
        let cold = cold.reloaded(slow);
        assert_eq!(cold.share(at(5_000)), Some(Share(11)));
        assert_eq!(cold.reloaded(None).share(at(5_000)), None);
    }
}
