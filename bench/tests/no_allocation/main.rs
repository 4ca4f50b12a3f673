//! A million packets of every kind pass through workers on threads of their own, and generations of the configuration are
//! replaced meanwhile: no worker's thread calls the allocator once, be it to get memory or to give it back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod schedulers;
mod traffic;
mod workers;
mod world;

use shunt_bench::alloc::{self, CountingAllocator};
use shunt_dataplane::counters::{self, Event, ServerField};
use shunt_dataplane::verdict::DropReason;
use shunt_engine::Duration;
use shunt_engine::report::WorkerCounter;

use traffic::{PARTS, PASSERS_BY};
use workers::{SLICE, Workers};
use world::{Kind, THRESHOLDS, every};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const PACKETS: usize = 1_000_000;
/// Time per round of packets. A client that comes once per round finds its connection gone, whatever its state (UDP: 300
/// seconds); one that comes in each of the round's parts finds it alive.
const ROUND: Duration = Duration::from_secs(250 * PARTS as u64);
/// Slices between two reloads.
const RELOAD_EVERY: usize = 64;

/// What has to happen while nothing is allocated.
const EVENTS: [Event; 19] = [
    Event::Forwarded,
    Event::NotOurs,
    Event::HandedOff,
    Event::ConnectionsOpened,
    Event::ConnectionsExpired,
    Event::ConnectionsReused,
    Event::ConnectionsDrained,
    Event::DrainProbes,
    Event::TemplatesFollowed,
    Event::TemplatesMoved,
    Event::TemplatesOverflowed,
    Event::ResetsSent,
    Event::IcmpSent,
    Event::IcmpForwarded,
    Event::PacketsFragmented,
    Event::FragmentsSent,
    Event::FragmentsFollowed,
    Event::FragmentsHeld,
    Event::FragmentsUnknown,
];

/// Packets, and reloads in the midst of them.
struct Pass {
    frames: Vec<Vec<u8>>,
    per_slice: Duration,
    slices: usize,
    freed: u64,
}

impl Pass {
    fn new(frames: Vec<Vec<u8>>) -> Self {
        let slices = frames.len().div_ceil(SLICE) as u64;
        let per_slice = Duration::from_nanos(ROUND.as_nanos() / slices);
        Self { frames, per_slice, slices: 0, freed: 0 }
    }

    /// Carries whole rounds until `packets` are through.
    fn carry(&mut self, workers: &mut Workers, packets: usize) {
        for _ in 0..packets.div_ceil(self.frames.len()) {
            for slice in self.frames.chunks(SLICE) {
                workers.feed(slice);
                self.slices += 1;
                if self.slices.is_multiple_of(RELOAD_EVERY) {
                    // The second comes when some may work with the first already, and others with none of the two.
                    workers.publish();
                    workers.publish();
                    self.freed += workers.in_force();
                } else if self.slices % RELOAD_EVERY == RELOAD_EVERY / 2 {
                    workers.publish();
                    self.freed += workers.in_force();
                }
                workers.finish(|_| ());
                workers.advance(self.per_slice);
            }
        }
    }
}

/// Everything counted, to tell what has come since.
struct Counts {
    events: Vec<u64>,
    gone: u64,
    servers: Vec<[u64; 3]>,
}

impl Counts {
    fn of(workers: &Workers) -> Self {
        let fields = [ServerField::Connections, ServerField::PacketsIn, ServerField::PacketsOut];
        Self {
            events: EVENTS.iter().map(|&event| workers.count(counters::event(event))).collect(),
            gone: workers.count(counters::drop_reason(DropReason::ServerGone)),
            servers: every()
                .map(|kind| {
                    fields.map(|field| kind.lasting_slots().map(|slot| workers.server(slot, field)).sum())
                })
                .collect(),
        }
    }
}

#[test]
fn a_million_packets_with_reloads_between_them_allocate_and_free_nothing_on_any_worker() {
    let mut workers = Workers::start();
    let mut pass = Pass::new(traffic::round(&mut workers));
    pass.carry(&mut workers, PACKETS / 10);

    let (calls, before) = (workers.calls(), Counts::of(&workers));
    let freed = pass.freed;
    pass.carry(&mut workers, PACKETS);
    let (calls_after, after) = (workers.calls(), Counts::of(&workers));
    assert_eq!(calls_after, calls, "calls of the allocator by each worker in {PACKETS} packets");

    assert!(pass.freed > freed, "old generations are given back by who publishes them");
    for ((event, before), after) in EVENTS.iter().zip(&before.events).zip(&after.events) {
        println!("{}: {}", event.name(), after - before);
        assert!(after > before, "{} did not happen", event.name());
    }
    println!("server gone: {}", after.gone - before.gone);
    assert!(after.gone > before.gone, "no reload took a server from a connection");
    for ((kind, before), after) in every().zip(&before.servers).zip(&after.servers) {
        let [opened, to_server, to_client] = [0, 1, 2].map(|field: usize| after[field] - before[field]);
        let what = format!("{}: {opened} opened, {to_server} in, {to_client} out", kind.name());
        println!("{what}");
        // A client that comes again opens a connection only when its old one is gone.
        assert!(opened >= 2 * u64::from(PASSERS_BY) && to_server > opened, "{what}");
        assert_eq!(to_client > 0, kind.mode.sees_replies(), "{what}");
    }
    let live = [ServerField::Active, ServerField::Inactive];
    let live = |slot| live.map(|field| workers.server(slot, field)).iter().sum::<u64>();
    let narrow: Vec<_> = every().filter_map(Kind::narrow_slot).map(live).collect();
    println!("connections of servers with thresholds: {narrow:?}");
    assert!(narrow.iter().all(|live| (1..=u64::from(THRESHOLDS.upper)).contains(live)), "{narrow:?}");
    for counter in [WorkerCounter::HandoffOut, WorkerCounter::HandoffIn, WorkerCounter::Sleeps] {
        println!("{}: {:?}", counter.name(), workers.engine(counter));
    }
    assert!(workers.engine(WorkerCounter::HandoffIn).iter().all(|&frames| frames > 0));
    assert!(workers.engine(WorkerCounter::Sleeps).iter().all(|&times| times > 0));
    assert!(workers.engine(WorkerCounter::TxViaOther).iter().sum::<u64>() > 0);
    for counter in [WorkerCounter::HandoffFull, WorkerCounter::Misrouted, WorkerCounter::TxFull] {
        assert_eq!(workers.engine(counter).iter().sum::<u64>(), 0, "{}", counter.name());
    }
}

#[test]
fn one_allocation_on_one_workers_packet_path_is_seen_there_and_nowhere_else() {
    let mut workers = Workers::start();
    let mut pass = Pass::new(traffic::round(&mut workers));
    pass.carry(&mut workers, 1);
    let before = workers.calls();
    drop(std::hint::black_box(Box::new(1)));
    workers.provoke(1);
    pass.carry(&mut workers, 1);
    let calls: Vec<_> = workers.calls().iter().zip(&before).map(|(after, before)| after - before).collect();
    assert_eq!(calls, [0, 2, 0]);
}

#[test]
fn the_allocator_counts_what_this_thread_does() {
    let before = alloc::calls();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(alloc::calls() - before, 2);
}
