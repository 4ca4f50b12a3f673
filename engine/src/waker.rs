//! Waking a worker that sleeps, without a system call when it does not, and without ever losing a wake-up.
//!
//! The sleeper announces that it will sleep, *then* looks everywhere for work once more, then polls. Whoever brings
//! work makes it visible, *then* looks whether a sleep was announced. With a sequentially consistent fence on both
//! sides at least one of the two sees the other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::sync::{AtomicBool, Ordering, fence};

/// Whether a worker sleeps or is about to.
#[derive(Debug)]
struct SleepFlag(AtomicBool);

impl SleepFlag {
    fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Sleeper: from here on bringers of work will claim the wake-up. Look for work after this.
    fn announce(&self) {
        self.0.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Sleeper: awake.
    fn retract(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Bringer of work, after the work was made visible: whether it falls to the caller to wake the sleeper.
    fn claim(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct Bed {
    flag: SleepFlag,
    bell: OwnedFd,
}

/// Wakes one worker. Clones wake the same one.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Bed>);

impl Waker {
    /// A waker nobody sleeps on yet.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new() -> std::io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Bed { flag: SleepFlag::new(), bell })))
    }

    /// Wakes the worker if it sleeps. Call it after the work is visible to other threads. Costs a fence when the
    /// worker is awake, one system call when it sleeps.
    #[inline]
    pub fn wake(&self) {
        if self.0.flag.claim() {
            self.ring();
        }
    }

    #[cold]
    fn ring(&self) {
        // Can fail only when the counter is at its maximum, which wakes just as well.
        let _ = rustix::io::write(&self.0.bell, &1u64.to_ne_bytes());
    }

    /// The sleeper's side: see [`SleepFlag::announce`].
    pub(crate) fn announce(&self) {
        self.0.flag.announce();
    }

    /// The sleeper's side: awake again.
    pub(crate) fn retract(&self) {
        self.0.flag.retract();
    }

    /// What the sleeper polls.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }

    /// Makes the bell silent again.
    pub(crate) fn quiet(&self) {
        // Fails when it is silent already.
        let _ = rustix::io::read(&self.0.bell, &mut [0u8; 8]);
    }
}

/// Wakes every worker of a process: for whoever publishes something that they shall adopt now.
#[derive(Clone, Debug)]
pub struct Wakers(Arc<[Waker]>);

impl Wakers {
    pub(crate) fn new(wakers: impl IntoIterator<Item = Waker>) -> Self {
        Self(wakers.into_iter().collect())
    }

    /// Wakes all that sleep. Call it after publishing.
    pub fn wake_all(&self) {
        self.0.iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn rings(waker: &Waker) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(waker.bell(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    #[cfg_attr(miri, ignore = "miri cannot poll")]
    fn only_an_announced_sleep_is_ended_and_only_once() {
        let waker = Waker::new().unwrap();
        waker.wake();
        assert!(!rings(&waker), "nobody slept");
        waker.announce();
        waker.wake();
        assert!(rings(&waker));
        waker.quiet();
        waker.wake();
        assert!(!rings(&waker), "the sleep was ended before");
        waker.announce();
        waker.retract();
        waker.wake();
        assert!(!rings(&waker), "the sleep was called off");
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    #[test]
    fn loom_no_wake_up_is_lost() {
        loom::model(|| {
            let flag = Arc::new(SleepFlag::new());
            let work = Arc::new(AtomicBool::new(false));
            let bringer = thread::spawn({
                let (flag, work) = (flag.clone(), work.clone());
                move || {
                    work.store(true, Ordering::Release);
                    flag.claim()
                }
            });
            flag.announce();
            let seen = work.load(Ordering::Acquire);
            let rung = bringer.join().expect("the bringer does not panic");
            assert!(seen || rung, "the sleeper saw nothing and nobody rings");
        });
    }

    #[test]
    fn loom_of_two_who_bring_work_one_rings() {
        loom::model(|| {
            let flag = Arc::new(SleepFlag::new());
            let works = [(), ()].map(|()| Arc::new(AtomicBool::new(false)));
            let bringers = works.clone().map(|work| {
                let flag = flag.clone();
                thread::spawn(move || {
                    work.store(true, Ordering::Release);
                    flag.claim()
                })
            });
            flag.announce();
            let seen = works.iter().all(|work| work.load(Ordering::Acquire));
            let rung = bringers.map(|bringer| bringer.join().expect("the bringer does not panic"));
            assert!(seen || rung != [false, false], "the sleeper missed something and nobody rings");
            assert!(rung != [true, true], "one ring is enough");
        });
    }

    #[test]
    fn loom_a_sleep_that_was_called_off_does_not_cost_the_next_one_its_wake_up() {
        loom::model(|| {
            let flag = Arc::new(SleepFlag::new());
            let work = Arc::new(AtomicBool::new(false));
            let bringer = thread::spawn({
                let (flag, work) = (flag.clone(), work.clone());
                move || {
                    work.store(true, Ordering::Release);
                    flag.claim()
                }
            });
            flag.announce();
            flag.retract();
            flag.announce();
            let seen = work.load(Ordering::Acquire);
            let rung = bringer.join().expect("the bringer does not panic");
            assert!(seen || rung, "the sleeper saw nothing and nobody rings");
        });
    }
}
