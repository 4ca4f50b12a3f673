//! What a worker counts about itself, and the view on it that other threads read.

use std::sync::Arc;

use crate::burst::BURST;
use crate::clock::{Duration, Instant};
use crate::counters::{Counters, Published};
use crate::port::{PortId, RxStats, TxStats};
use crate::program::WorkerId;
use crate::turn_times::{TURN_BUCKETS, TurnTimes};

macro_rules! worker_counters {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// What a worker counts. All are totals since start, unless they say "gauge".
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum WorkerCounter { $($(#[$doc])+ $variant,)+ }

        impl WorkerCounter {
            /// All counters, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name for people and programs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

worker_counters! {
    /// Turns of the loop.
    Loops = "loops",
    /// Frames received from ports.
    RxPackets = "rx_packets",
    /// Bursts, of at least one frame, received from ports.
    RxBursts = "rx_bursts",
    /// Frames that left for good by this worker's transmit queues; see [`TxStats`] for those a queue refused.
    TxPackets = "tx_packets",
    /// Frames the program originated, or had kept and released.
    Emitted = "emitted",
    /// Frames given to the kernel's stack.
    Punted = "punted",
    /// Frames for the kernel's stack that it has a copy of already, freed.
    PuntSeen = "punt_seen",
    /// Frames for the kernel's stack that could not be given to it, freed.
    PuntRefused = "punt_refused",
    /// Frames handed to other workers for their program to decide.
    HandoffOut = "handoff_out",
    /// Frames handed over by other workers for this program to decide.
    HandoffIn = "handoff_in",
    /// Frames freed because the ring to another worker was full, whatever the errand.
    HandoffFull = "handoff_full",
    /// Frames handed to other workers to be transmitted, this worker having no queue on the port.
    TxViaOther = "tx_via_other",
    /// Frames handed over by other workers to be transmitted.
    TxForOther = "tx_for_other",
    /// Frames freed because a transmit queue did not keep up and its backlog was full.
    TxFull = "tx_full",
    /// Frames for a port or worker that does not exist, freed: a defect, 0 in a healthy process.
    Misrouted = "misrouted",
    /// Frames the program dropped; it counts why.
    ProgramDrops = "program_drops",
    /// Frames the program kept.
    Held = "held",
    /// Times the worker slept.
    Sleeps = "sleeps",
    /// Sleeps ended by another thread's wake-up.
    Wakes = "wakes",
    /// Nanoseconds spent in turns that moved a frame.
    BusyNanos = "busy_nanos",
    /// Gauge: buffers free in the worker's pool.
    PoolFree = "pool_free",
    /// Times the worker's pool had no buffer.
    PoolEmpty = "pool_empty",
}

/// Buckets of the histogram of burst sizes: 1, 2–3, 4–7, 8–15, 16–31, 32 frames.
pub const BURST_BUCKETS: usize = BURST.ilog2() as usize + 1;

const BUCKETS_AT: usize = WorkerCounter::ALL.len();
const TURNS_AT: usize = BUCKETS_AT + BURST_BUCKETS;
const LONGEST_AT: usize = TURNS_AT + TURN_BUCKETS;
/// The longest turn since the last minute began, and in the minute before.
const LATELY_AT: [usize; 2] = [LONGEST_AT + 1, LONGEST_AT + 2];
const QUEUES_AT: usize = LONGEST_AT + 3;
const RX_FIELDS: usize = 6;
const TX_FIELDS: usize = 4;

/// How old the published copy may get while the worker is busy.
const PUBLISH_EVERY: Duration = Duration::from_millis(1);

const MINUTE: Duration = Duration::from_secs(60);

/// The counts of one worker, as old as its last publication: at most about 1 ms while it is awake; before it sleeps
/// it publishes. Readable from any thread; clones show the same worker.
#[derive(Clone, Debug)]
pub struct WorkerView {
    id: WorkerId,
    published: Published,
    rx: Arc<[(PortId, u16)]>,
    tx: Arc<[(PortId, u16)]>,
}

impl WorkerView {
    /// Whose counts these are.
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// One counter.
    pub fn get(&self, counter: WorkerCounter) -> u64 {
        self.published.get(counter as usize)
    }

    /// How many received bursts had 1, 2–3, 4–7, 8–15, 16–31, 32 frames.
    pub fn burst_sizes(&self) -> [u64; BURST_BUCKETS] {
        std::array::from_fn(|bucket| self.published.get(BUCKETS_AT + bucket))
    }

    /// How long the turns took that moved a frame.
    pub fn turn_times(&self) -> TurnTimes {
        TurnTimes {
            buckets: std::array::from_fn(|bucket| self.published.get(TURNS_AT + bucket)),
            longest: Duration::from_nanos(self.published.get(LONGEST_AT)),
            longest_lately: Duration::from_nanos(
                LATELY_AT.map(|at| self.published.get(at)).into_iter().max().unwrap_or(0),
            ),
        }
    }

    /// The receive queues this worker polls: port, queue number, counts.
    pub fn rx(&self) -> impl Iterator<Item = (PortId, u16, RxStats)> + '_ {
        let get = |at| self.published.get(at);
        self.rx.iter().enumerate().map(move |(index, &(port, queue))| {
            let at = QUEUES_AT + index * RX_FIELDS;
            let stats = RxStats {
                packets: get(at),
                bytes: get(at + 1),
                oversize: get(at + 2),
                no_buffer: get(at + 3),
                missed: get(at + 4),
                checksum_completed: get(at + 5),
            };
            (port, queue, stats)
        })
    }

    /// The transmit queues this worker owns: port, queue number, counts.
    pub fn tx(&self) -> impl Iterator<Item = (PortId, u16, TxStats)> + '_ {
        let get = |at| self.published.get(at);
        let first = QUEUES_AT + self.rx.len() * RX_FIELDS;
        self.tx.iter().enumerate().map(move |(index, &(port, queue))| {
            let at = first + index * TX_FIELDS;
            let stats =
                TxStats { packets: get(at), bytes: get(at + 1), oversize: get(at + 2), errors: get(at + 3) };
            (port, queue, stats)
        })
    }
}

/// The worker's own side of its view.
#[derive(Debug)]
pub(crate) struct WorkerReport {
    counters: Counters,
    view: WorkerView,
    due: Instant,
    /// When what was the last minute becomes the one before.
    minute_ends: Instant,
}

impl WorkerReport {
    pub(crate) fn new(id: WorkerId, rx: Vec<(PortId, u16)>, tx: Vec<(PortId, u16)>) -> Self {
        let counters = Counters::new(QUEUES_AT + rx.len() * RX_FIELDS + tx.len() * TX_FIELDS);
        let view = WorkerView { id, published: counters.published(), rx: rx.into(), tx: tx.into() };
        Self { counters, view, due: Instant::ZERO, minute_ends: Instant::ZERO }
    }

    pub(crate) fn view(&self) -> WorkerView {
        self.view.clone()
    }

    #[inline]
    pub(crate) fn add(&mut self, counter: WorkerCounter, amount: usize) {
        self.counters.add(counter as usize, amount as u64);
    }

    #[inline]
    pub(crate) fn bump(&mut self, counter: WorkerCounter) {
        self.counters.bump(counter as usize);
    }

    /// Sets a counter that somebody else counts.
    pub(crate) fn set(&mut self, counter: WorkerCounter, value: u64) {
        self.counters.set(counter as usize, value);
    }

    /// Counts a turn that moved a frame and took `time`.
    #[inline]
    pub(crate) fn busy(&mut self, time: Duration) {
        self.counters.add(WorkerCounter::BusyNanos as usize, time.as_nanos());
        self.counters.bump(TURNS_AT + TurnTimes::bucket_of(time));
        // Usually one comparison.
        if time.as_nanos() > self.counters.get(LATELY_AT[0]) {
            self.counters.set(LATELY_AT[0], time.as_nanos());
            self.counters.set(LONGEST_AT, time.as_nanos().max(self.counters.get(LONGEST_AT)));
        }
    }

    /// Counts a received burst of `size` frames.
    #[inline]
    pub(crate) fn received(&mut self, size: usize) {
        let Some(bucket) = size.checked_ilog2() else { return };
        self.bump(WorkerCounter::RxBursts);
        self.add(WorkerCounter::RxPackets, size);
        self.counters.bump(BUCKETS_AT + bucket as usize);
    }

    /// Whether it is time to publish.
    #[inline]
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }

    /// Makes everything visible, with the counts of the queues in the order given to [`Self::new`].
    pub(crate) fn publish(
        &mut self,
        now: Instant,
        rx: impl Iterator<Item = RxStats>,
        tx: impl Iterator<Item = TxStats>,
    ) {
        let mut at = QUEUES_AT;
        let mut put = |value| {
            self.counters.set(at, value);
            at += 1;
        };
        for stats in rx {
            let RxStats { packets, bytes, oversize, no_buffer, missed, checksum_completed } = stats;
            [packets, bytes, oversize, no_buffer, missed, checksum_completed].into_iter().for_each(&mut put);
        }
        for stats in tx {
            let TxStats { packets, bytes, oversize, errors } = stats;
            [packets, bytes, oversize, errors].into_iter().for_each(&mut put);
        }
        if now >= self.minute_ends {
            self.counters.set(LATELY_AT[1], self.counters.get(LATELY_AT[0]));
            self.counters.set(LATELY_AT[0], 0);
            self.minute_ends = now + MINUTE;
        }
        self.counters.publish_all();
        self.due = now + PUBLISH_EVERY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_shows_what_was_published_under_the_right_names() {
        let eth = PortId(0);
        let mut report = WorkerReport::new(WorkerId(3), vec![(eth, 1), (eth, 4)], vec![(PortId(2), 1)]);
        let view = report.view();
        for size in [1, 3, 31, 32, 0] {
            report.received(size);
        }
        report.busy(Duration::from_nanos(1_500));
        report.busy(Duration::from_nanos(500));
        assert_eq!(view.get(WorkerCounter::RxPackets), 0);
        let rx = |packets| RxStats { packets, missed: 9, checksum_completed: 7, ..RxStats::default() };
        let tx = TxStats { packets: 5, errors: 6, ..TxStats::default() };
        let now = Instant::from_nanos(10);
        report.publish(now, [rx(1), rx(2)].into_iter(), [tx].into_iter());
        assert_eq!((view.get(WorkerCounter::RxPackets), view.get(WorkerCounter::RxBursts)), (67, 4));
        assert_eq!(view.get(WorkerCounter::BusyNanos), 2_000);
        assert_eq!(view.burst_sizes(), [1, 1, 0, 0, 1, 1]);
        let turns = view.turn_times();
        assert_eq!((turns.count(), turns.buckets[8], turns.buckets[10]), (2, 1, 1));
        assert_eq!(turns.longest, Duration::from_nanos(1_500));
        assert_eq!(view.rx().collect::<Vec<_>>(), [(eth, 1, rx(1)), (eth, 4, rx(2))]);
        assert_eq!(view.tx().collect::<Vec<_>>(), [(PortId(2), 1, tx)]);
        assert!(!report.is_due(now + Duration::from_micros(999)) && report.is_due(now + PUBLISH_EVERY));
    }

    #[test]
    fn the_longest_turn_of_the_last_minute_or_two_is_forgotten_and_that_of_all_time_is_not() {
        let mut report = WorkerReport::new(WorkerId(0), Vec::new(), Vec::new());
        let view = report.view();
        let mut second = |seconds, nanos| {
            report.busy(Duration::from_nanos(nanos));
            report.publish(
                Instant::ZERO + Duration::from_secs(seconds),
                std::iter::empty(),
                std::iter::empty(),
            );
            let times = view.turn_times();
            (times.longest.as_nanos(), times.longest_lately.as_nanos())
        };
        assert_eq!(second(1, 9_000), (9_000, 9_000), "the first publication ends a minute");
        assert_eq!(second(60, 500), (9_000, 9_000));
        assert_eq!(second(62, 700), (9_000, 700));
        assert_eq!(second(119, 600), (9_000, 700));
        assert_eq!(second(123, 600), (9_000, 600));
    }

    #[test]
    fn counter_names_are_unique() {
        let mut names: Vec<_> = WorkerCounter::ALL.iter().map(|counter| counter.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), WorkerCounter::ALL.len());
    }
}
