//! One check: when it asks, and what the answers in a row make of its state. It does no I/O and reads no clock.
//!
//! `fall` failures in a row take a check down, `rise` successes bring it up again; the very first success is enough for
//! a check that has no verdict yet. While a verdict is pending it asks at the fast interval. Intervals count from
//! beginning to beginning, and jitter only ever adds: no target is asked more often than it says. An answer that says
//! nothing about the server, because the director itself could not ask, changes nothing.

use shunt_engine::{Duration, Instant};

/// How often a check asks, and how many answers it believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rhythm {
    /// From the beginning of one question to the beginning of the next.
    pub interval: Duration,
    /// The same while a verdict is pending.
    pub fast_interval: Duration,
    /// At most so much is added to an interval, by chance.
    pub jitter: Duration,
    /// How long an answer may take in all.
    pub timeout: Duration,
    /// Successes in a row that bring a check up that was down; at least 1.
    pub rise: u32,
    /// Failures in a row that take a check down; at least 1.
    pub fall: u32,
}

/// What is known by a check, or by all checks of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// No verdict yet.
    #[default]
    Unknown,
    /// It is well.
    Up,
    /// It is not.
    Down,
}

impl State {
    /// The word for people and programs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "checking",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The right one.
    Passed,
    /// None, or a wrong one.
    Failed,
    /// It could not be asked.
    NotAsked,
}

/// A check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    rhythm: Rhythm,
    state: State,
    since: Instant,
    /// Answers in a row that contradict the state.
    streak: u32,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To ask at this moment.
    Waiting(Instant),
    /// Asking since this moment.
    Asking(Instant),
}

impl Check {
    /// A check without a verdict at `now`, that asks at `first` for the first time.
    pub fn new(rhythm: Rhythm, now: Instant, first: Instant) -> Self {
        Self { rhythm, state: State::Unknown, since: now, streak: 0, phase: Phase::Waiting(first) }
    }

    /// The same check with all it knows, in another rhythm; it asks again at `now` plus the new interval at the latest.
    #[must_use]
    pub fn in_rhythm(&self, rhythm: Rhythm, now: Instant) -> Self {
        let latest = now + rhythm.interval;
        let phase = match self.phase {
            Phase::Waiting(at) => Phase::Waiting(at.min(latest)),
            // Whoever asks in the old rhythm does not answer to this check.
            Phase::Asking(began) => Phase::Waiting((began + rhythm.interval).max(now)),
        };
        Self { rhythm, phase, ..self.clone() }
    }

    /// Its rhythm.
    pub fn rhythm(&self) -> Rhythm {
        self.rhythm
    }

    /// Its verdict.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Answers in a row that contradict the state.
    pub fn streak(&self) -> u32 {
        self.streak
    }

    /// When to ask; `None` while it asks.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting(at) => Some(at),
            Phase::Asking(_) => None,
        }
    }

    /// The question goes out at `now`.
    pub fn begin(&mut self, now: Instant) {
        self.phase = Phase::Asking(now);
    }

    /// The `answer` has come at `now`; `chance`, of the whole range of its type, is for the jitter. Returns the new state
    /// if that is another.
    pub fn end(&mut self, answer: Answer, now: Instant, chance: u32) -> Option<State> {
        let Phase::Asking(began) = self.phase else { return None };
        let before = self.state;
        self.take(answer);
        if self.state != before {
            self.since = now;
        }
        let gap = if self.is_pending() { self.rhythm.fast_interval } else { self.rhythm.interval };
        let jitter = (u128::from(self.rhythm.jitter.as_nanos()) * u128::from(chance)) >> u32::BITS;
        let jitter = Duration::from_nanos(u64::try_from(jitter).unwrap_or(u64::MAX));
        self.phase = Phase::Waiting((began + gap + jitter).max(now));
        (self.state != before).then_some(self.state)
    }

    /// Whether the next answers decide.
    fn is_pending(&self) -> bool {
        self.state == State::Unknown || self.streak > 0
    }

    fn take(&mut self, answer: Answer) {
        let enough = match (self.state, answer) {
            (State::Unknown, Answer::Passed) => return self.become_state(State::Up),
            (State::Unknown | State::Up, Answer::Failed) => self.rhythm.fall,
            (State::Down, Answer::Passed) => self.rhythm.rise,
            (State::Up, Answer::Passed) | (State::Down, Answer::Failed) => return self.streak = 0,
            (State::Unknown | State::Up | State::Down, Answer::NotAsked) => return,
        };
        self.streak += 1;
        if self.streak >= enough {
            self.become_state(if answer == Answer::Passed { State::Up } else { State::Down });
        }
    }

    fn become_state(&mut self, state: State) {
        self.state = state;
        self.streak = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RHYTHM: Rhythm = Rhythm {
        interval: Duration::from_secs(2),
        fast_interval: Duration::from_millis(500),
        jitter: Duration::from_millis(200),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
    };

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    /// A check in this state after so many answers that contradict it, asking since second 10.
    fn check(state: State, streak: u32) -> Check {
        Check { rhythm: RHYTHM, state, since: at(0), streak, phase: Phase::Asking(at(10_000)) }
    }

    #[test]
    fn every_answer_in_every_state_has_one_consequence() {
        use Answer::{Failed, NotAsked, Passed};
        use State::{Down, Unknown, Up};
        // State and streak before, answer; state and streak after, and how many milliseconds after its beginning the
        // next question follows.
        let table = [
            ((Unknown, 0), Passed, (Up, 0), 2_000),
            ((Unknown, 0), Failed, (Unknown, 1), 500),
            ((Unknown, 0), NotAsked, (Unknown, 0), 500),
            ((Unknown, 1), Passed, (Up, 0), 2_000),
            ((Unknown, 1), Failed, (Unknown, 2), 500),
            ((Unknown, 1), NotAsked, (Unknown, 1), 500),
            ((Unknown, 2), Passed, (Up, 0), 2_000),
            ((Unknown, 2), Failed, (Down, 0), 2_000),
            ((Unknown, 2), NotAsked, (Unknown, 2), 500),
            ((Up, 0), Passed, (Up, 0), 2_000),
            ((Up, 0), Failed, (Up, 1), 500),
            ((Up, 0), NotAsked, (Up, 0), 2_000),
            ((Up, 1), Passed, (Up, 0), 2_000),
            ((Up, 1), Failed, (Up, 2), 500),
            ((Up, 1), NotAsked, (Up, 1), 500),
            ((Up, 2), Passed, (Up, 0), 2_000),
            ((Up, 2), Failed, (Down, 0), 2_000),
            ((Up, 2), NotAsked, (Up, 2), 500),
            ((Down, 0), Passed, (Down, 1), 500),
            ((Down, 0), Failed, (Down, 0), 2_000),
            ((Down, 0), NotAsked, (Down, 0), 2_000),
            ((Down, 1), Passed, (Up, 0), 2_000),
            ((Down, 1), Failed, (Down, 0), 2_000),
            ((Down, 1), NotAsked, (Down, 1), 500),
        ];
        for ((state, streak), answer, after, gap) in table {
            let mut check = check(state, streak);
            let change = check.end(answer, at(10_100), 0);
            let case = format!("{state:?} {streak} {answer:?}");
            assert_eq!((check.state, check.streak), after, "{case}");
            assert_eq!(change, (after.0 != state).then_some(after.0), "{case}");
            assert_eq!(check.since, if after.0 == state { at(0) } else { at(10_100) }, "{case}");
            assert_eq!(check.next_deadline(), Some(at(10_000 + gap)), "{case}");
        }
    }

    #[test]
    fn jitter_adds_up_to_its_bound_and_takes_nothing_away() {
        for (chance, added) in [(0, 0), (u32::MAX / 2 + 1, 100_000_000), (u32::MAX, 199_999_999)] {
            let mut check = check(State::Up, 0);
            check.end(Answer::Passed, at(10_001), chance);
            assert_eq!(check.next_deadline(), Some(at(12_000) + Duration::from_nanos(added)));
        }
    }

    #[test]
    fn a_question_that_takes_longer_than_the_interval_is_followed_at_once_and_never_overlapped() {
        let mut check = check(State::Up, 0);
        assert_eq!(check.next_deadline(), None, "one at a time");
        check.end(Answer::Passed, at(15_000), u32::MAX);
        assert_eq!(check.next_deadline(), Some(at(15_000)));
    }

    #[test]
    fn an_answer_to_no_question_is_none() {
        let mut check = Check::new(RHYTHM, at(0), at(5));
        assert_eq!(check.end(Answer::Passed, at(1), 0), None);
        assert_eq!((check.state(), check.next_deadline()), (State::Unknown, Some(at(5))));
    }

    #[test]
    fn another_rhythm_keeps_what_is_known_and_does_not_wait_for_the_old_one() {
        let mut slow = check(State::Up, 1);
        slow.end(Answer::Failed, at(10_100), 0);
        assert_eq!((slow.state(), slow.streak()), (State::Up, 2));
        let quick = Rhythm { interval: Duration::from_millis(100), ..RHYTHM };
        let faster = slow.in_rhythm(quick, at(10_200));
        assert_eq!((faster.state(), faster.streak()), (State::Up, 2));
        assert_eq!(faster.next_deadline(), Some(at(10_300)));
        let asking = check(State::Down, 1).in_rhythm(quick, at(10_050));
        assert_eq!((asking.state(), asking.next_deadline()), (State::Down, Some(at(10_100))));
    }
}
