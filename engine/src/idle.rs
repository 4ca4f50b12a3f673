//! What a worker does when there is nothing to do: spin a little, then sleep until something happens.
//!
//! A sleep ends by a frame on a queue that can be polled, a [`crate::waker::Waker`] (frames handed over, something
//! published, stop) or the program's deadline. Before it there is always one whole turn of the loop with the sleep
//! announced, so that nothing that came meanwhile is slept over.

use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::clock::{Duration, Instant};
use crate::waker::Waker;

/// What a worker without frames does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleConfig {
    /// Spins for `spin` after the last frame, then sleeps.
    Adaptive {
        /// How long to spin.
        spin: Duration,
    },
    /// Never sleeps: for cores that do nothing else.
    Spin,
}

impl Default for IdleConfig {
    fn default() -> Self {
        Self::Adaptive { spin: Duration::from_micros(50) }
    }
}

/// The longest sleep, whatever the program's deadline.
pub const SLEEP_MAX: Duration = Duration::from_millis(100);

/// The longest sleep while something may come that cannot wake us: a queue without descriptor, room in a transmit
/// queue, buffers that come home.
pub const NAP: Duration = Duration::from_millis(1);

/// Queues a sleeping worker polls; it naps when it has more.
const POLLED_MAX: usize = 64;

/// What one turn of the loop found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// When the turn began.
    pub now: Instant,
    /// Frames received, handed over, originated and sent.
    pub moved: usize,
    /// When the program wants to be called at the latest.
    pub deadline: Option<Instant>,
}

/// What to do after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another turn.
    Turn,
    /// Another turn, and if that finds nothing either, sleep: the moment to publish.
    LastLook,
    /// Sleep.
    Sleep,
}

/// Decides when to sleep, and sleeps.
#[derive(Debug)]
pub(crate) struct Idle {
    config: IdleConfig,
    waker: Waker,
    announced: bool,
    last_moved: Option<Instant>,
    /// A queue polled readable but had no frame: polling it again at once would spin.
    doubt: bool,
}

impl Idle {
    pub(crate) fn new(config: IdleConfig, waker: Waker) -> Self {
        Self { config, waker, announced: false, last_moved: None, doubt: false }
    }

    /// What comes after `turn`.
    #[inline]
    pub(crate) fn after(&mut self, turn: &Turn) -> Next {
        if turn.moved > 0 {
            self.last_moved = Some(turn.now);
            self.doubt = false;
            self.retract();
            return Next::Turn;
        }
        let idle_since = *self.last_moved.get_or_insert(turn.now);
        let IdleConfig::Adaptive { spin } = self.config else { return Self::spin() };
        if turn.now.since(idle_since) < spin {
            return Self::spin();
        }
        if turn.deadline.is_some_and(|deadline| deadline <= turn.now) {
            self.retract();
            return Next::Turn;
        }
        if !self.announced {
            self.waker.announce();
            self.announced = true;
            return Next::LastLook;
        }
        Next::Sleep
    }

    /// Sleeps after `turn`, no longer than [`NAP`] when `nap`. `queues` are the descriptors of all receive queues.
    /// Returns whether another thread woke us.
    pub(crate) fn sleep<'a>(
        &mut self,
        turn: &Turn,
        nap: bool,
        queues: impl Iterator<Item = Option<BorrowedFd<'a>>>,
    ) -> bool {
        let waker = self.waker.clone();
        let mut fds = ArrayVec::<PollFd<'_>, { POLLED_MAX + 1 }>::new();
        fds.push(PollFd::from_borrowed_fd(waker.bell(), PollFlags::IN));
        let mut nap = nap || self.doubt;
        if !self.doubt {
            for queue in queues {
                match queue {
                    Some(fd) if !fds.is_full() => fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN)),
                    _ => nap = true,
                }
            }
        }
        let longest = if nap { NAP } else { SLEEP_MAX };
        let until = turn.deadline.map_or(longest, |deadline| deadline.since(turn.now).min(longest));
        let timeout =
            Timespec { tv_sec: 0, tv_nsec: i64::try_from(until.as_nanos()).expect("at most SLEEP_MAX") };
        // An interrupted sleep is a short one; the next turn looks everywhere.
        let _ = poll(&mut fds, Some(&timeout));
        let rung = !fds[0].revents().is_empty();
        self.doubt = fds[1..].iter().any(|fd| !fd.revents().is_empty());
        if rung {
            self.waker.quiet();
        }
        self.retract();
        rung
    }

    /// Forgets an announced sleep.
    pub(crate) fn retract(&mut self) {
        if self.announced {
            self.waker.retract();
            self.announced = false;
        }
    }

    fn spin() -> Next {
        std::hint::spin_loop();
        Next::Turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(micros: u64, moved: usize) -> Turn {
        Turn { now: Instant::from_nanos(micros * 1_000), moved, deadline: None }
    }

    #[test]
    fn a_sleep_comes_after_the_spin_time_and_one_last_look() {
        let mut idle = Idle::new(IdleConfig::default(), Waker::new().unwrap());
        assert_eq!(idle.after(&turn(0, 1)), Next::Turn);
        assert_eq!(idle.after(&turn(49, 0)), Next::Turn);
        assert_eq!(idle.after(&turn(50, 0)), Next::LastLook);
        assert_eq!(idle.after(&turn(51, 1)), Next::Turn, "the last look found something");
        assert_eq!(idle.after(&turn(100, 0)), Next::Turn);
        assert_eq!(idle.after(&turn(101, 0)), Next::LastLook);
        assert_eq!(idle.after(&turn(102, 0)), Next::Sleep);
    }

    #[test]
    fn a_deadline_that_has_come_keeps_awake() {
        let mut idle = Idle::new(IdleConfig::Adaptive { spin: Duration::ZERO }, Waker::new().unwrap());
        let due = Turn { deadline: Some(Instant::from_nanos(5_000)), ..turn(5, 0) };
        assert_eq!(idle.after(&due), Next::Turn);
        let later = Turn { deadline: Some(Instant::from_nanos(5_001)), ..turn(5, 0) };
        assert_eq!(idle.after(&later), Next::LastLook);
    }

    #[test]
    fn a_spinning_worker_never_sleeps() {
        let mut idle = Idle::new(IdleConfig::Spin, Waker::new().unwrap());
        assert!((0..1_000).all(|second| idle.after(&turn(second * 1_000_000, 0)) == Next::Turn));
    }

    #[test]
    #[cfg_attr(miri, ignore = "miri cannot poll")]
    fn a_wake_up_between_last_look_and_sleep_is_not_lost() {
        let waker = Waker::new().unwrap();
        let mut idle = Idle::new(IdleConfig::Adaptive { spin: Duration::ZERO }, waker.clone());
        assert_eq!(idle.after(&turn(0, 0)), Next::LastLook);
        waker.wake();
        assert_eq!(idle.after(&turn(1, 0)), Next::Sleep);
        assert!(idle.sleep(&turn(1, 0), false, std::iter::empty()));
        assert_eq!(idle.after(&turn(2, 0)), Next::LastLook);
        assert!(!idle.sleep(&turn(2, 0), true, std::iter::empty()), "the bell rings once");
    }

    #[test]
    #[cfg_attr(miri, ignore = "miri cannot poll")]
    fn a_queue_that_is_readable_without_frames_is_not_polled_twice_in_a_row() {
        let ready = rustix::event::eventfd(1, rustix::event::EventfdFlags::empty()).unwrap();
        let mut idle = Idle::new(IdleConfig::default(), Waker::new().unwrap());
        let sleep = |idle: &mut Idle| {
            let start = std::time::Instant::now();
            idle.sleep(&turn(0, 0), false, [Some(std::os::fd::AsFd::as_fd(&ready))].into_iter());
            start.elapsed()
        };
        sleep(&mut idle);
        assert!(idle.doubt);
        assert!(sleep(&mut idle) >= NAP.into());
        assert!(!idle.doubt);
    }
}
