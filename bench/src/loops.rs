//! Turns of a worker's loop, under a load of so many packets per second or without any, each with the time it took, and
//! whether the thread ran all the while.

use shunt_dataplane::pipeline::Pipeline;
use shunt_engine::clock::Clock;
use shunt_engine::{BURST, Duration, Instant};

use crate::pipeline::thread_cpu_ns;
use crate::rig::Rig;

/// A worker under load. Packets arrive evenly, and wait until the worker's next turn.
pub struct Loop<'a> {
    rig: &'a mut Rig<Pipeline>,
    clock: Clock,
    /// Between two packets. Zero: there are always enough for a full burst.
    interval_ns: f64,
    /// When the first packet arrived. Moves on with the time in which the thread did not run: what would have arrived
    /// meanwhile does not.
    begin: Instant,
    taken: u64,
    last: Instant,
    watch: Watch,
}

/// One turn.
#[derive(Clone, Copy, Debug)]
pub struct Turned {
    /// Packets received, decided and sent in it.
    pub packets: u64,
    /// How long it took: so long each of them was in the worker, at most.
    pub took: Duration,
    /// How long the first of them had waited before it.
    pub waited: Duration,
    /// Whether the thread ran all the while.
    pub ran: bool,
    /// When it ended.
    pub end: Instant,
}

impl<'a> Loop<'a> {
    /// A worker that gets a packet every `interval_ns` nanoseconds from now on.
    pub fn new(rig: &'a mut Rig<Pipeline>, interval_ns: f64) -> Self {
        let clock = Clock::System;
        let now = clock.now();
        Self { rig, clock, interval_ns, begin: now, taken: 0, last: now, watch: Watch::new(now) }
    }

    /// Goes once round.
    pub fn turn(&mut self) -> Turned {
        let (begin, since) = (self.last, (self.last - self.begin).as_nanos() as f64);
        let arrived = if self.interval_ns > 0.0 { (since / self.interval_ns) as u64 } else { u64::MAX };
        let packets = arrived.saturating_sub(self.taken).min(BURST as u64);
        let first_ns = self.taken as f64 * self.interval_ns;
        if packets > 0 {
            self.rig.wire().allow(packets);
        }
        self.rig.turn();
        let end = self.clock.now();
        let took = end - begin;
        let ran = self.watch.ran(begin, end);
        if !ran {
            self.begin += took;
        }
        self.last = end;
        self.taken += packets;
        Turned { packets, took, waited: Duration::from_nanos((since - first_ns).max(0.0) as u64), ran, end }
    }
}

/// A loop that only reads the clock: what the machine does to any loop.
pub struct Bare {
    last: Instant,
    watch: Watch,
}

impl Bare {
    /// One that begins now.
    pub fn new() -> Self {
        let now = Clock::System.now();
        Self { last: now, watch: Watch::new(now) }
    }

    /// Goes once round. Returns how long that took, and whether the thread ran all the while.
    pub fn turn(&mut self) -> (Duration, bool) {
        let end = Clock::System.now();
        let begin = std::mem::replace(&mut self.last, end);
        (end - begin, self.watch.ran(begin, end))
    }
}

impl Default for Bare {
    fn default() -> Self {
        Self::new()
    }
}

/// Tells turns in which the thread was switched out, be it by the kernel or by the hypervisor: wall time passed and CPU
/// time did not.
#[derive(Debug)]
struct Watch {
    wall: Instant,
    cpu_ns: u64,
    due: Instant,
}

impl Watch {
    /// A shorter turn is not asked about: nobody is switched out and in again in less.
    const ASKED_ABOUT: Duration = Duration::from_micros(5);
    /// Longer turns are asked about one by one, the others all together so often: clocks drift.
    const ASKED_EVERY: Duration = Duration::from_micros(100);
    /// What two clocks that are read one after the other may differ by.
    const LOST_NS_MIN: u64 = 1_000;

    fn new(now: Instant) -> Self {
        Self { wall: now, cpu_ns: thread_cpu_ns(), due: now + Self::ASKED_EVERY }
    }

    #[inline]
    fn ran(&mut self, begin: Instant, end: Instant) -> bool {
        let long = end - begin >= Self::ASKED_ABOUT;
        if !long && end < self.due {
            return true;
        }
        let cpu_ns = thread_cpu_ns();
        let lost = (end - self.wall).as_nanos().saturating_sub(cpu_ns - self.cpu_ns);
        *self = Self { wall: end, cpu_ns, due: end + Self::ASKED_EVERY };
        !long || lost < Self::LOST_NS_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_in_which_the_thread_sleeps_is_told_from_one_in_which_it_works() {
        let now = || Clock::System.now();
        let mut watch = Watch::new(now());
        let begin = now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(!watch.ran(begin, now()));
        // On a busy machine a piece of work may be interrupted, but not each of many.
        let worked = (0..1_000).any(|_| {
            let begin = now();
            while now() - begin < Duration::from_micros(20) {}
            watch.ran(begin, now())
        });
        assert!(worked);
    }
}
