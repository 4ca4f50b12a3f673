//! Workers on threads of their own: sleeping, waking, stopping, failing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shunt_engine::WorkerId;
use shunt_engine::idle::IdleConfig;
use shunt_engine::lcore::Workers;
use shunt_engine::publish::channel;
use shunt_engine::report::WorkerCounter as C;

use super::kit::{Bench, CHUNKS, Obey};

/// Nothing here may take longer; what does is stuck.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long it takes until `done`.
fn time_until(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: did not happen");
        std::thread::sleep(Duration::from_micros(200));
    }
    start.elapsed()
}

/// The middle one of 15 measurements, each taken when the workers had the time to fall asleep: the machine may be
/// busy, but a wake-up that comes by the longest sleep only would show in most of them.
fn usual(mut measure: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<_> = std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(20));
        measure()
    })
    .take(15)
    .collect();
    times.sort_unstable();
    times[7]
}

#[test]
fn an_idle_worker_sleeps_and_adopts_a_publication_within_ten_milliseconds() {
    let (mut publisher, readers) = channel(0u64, 2);
    let cpu = Arc::new(AtomicU64::new(0));
    let program = |news| Obey { news: Some(news), cpu: cpu.clone(), ..Obey::default() };
    let mut bench = Bench::new(&[2], true);
    let workers = bench.workers(readers.into_iter().map(program).collect());
    let workers = Workers::start(workers, None).unwrap();
    let time = usual(|| {
        let generation = publisher.publish(7);
        workers.wakers().wake_all();
        time_until("adoption", || publisher.in_force() == generation)
    });
    assert!(time < Duration::from_millis(10), "{time:?}");
    assert!(workers.views().iter().all(|view| view.get(C::Sleeps) > 10 && view.get(C::Wakes) > 10));
    assert_eq!(workers.failed(), None);
    assert_eq!(workers.stop().panicked, []);
}

#[test]
fn an_idle_worker_uses_hardly_any_processor_time() {
    for pollable in [true, false] {
        let cpu = Arc::new(AtomicU64::new(0));
        let mut bench = Bench::new(&[1], pollable);
        let workers = bench.workers(vec![Obey { cpu: cpu.clone(), ..Obey::default() }]);
        let workers = Workers::start(workers, None).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let (before, start) = (cpu.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(Duration::from_millis(500));
        let sleeps = workers.views()[0].get(C::Sleeps);
        workers.stop();
        let used = Duration::from_nanos(cpu.load(Ordering::Relaxed) - before);
        assert!(used * 20 < start.elapsed(), "pollable {pollable}: {used:?} of {:?}", start.elapsed());
        assert!(sleeps >= 3, "pollable {pollable}: it slept {sleeps} times");
    }
}

#[test]
fn a_spinning_worker_does_not_sleep() {
    let mut bench = Bench { idle: IdleConfig::Spin, ..Bench::new(&[1], true) };
    let workers = Workers::start(bench.idle_workers(1), None).unwrap();
    let view = workers.views()[0].clone();
    time_until("spinning", || view.get(C::Loops) > 10_000);
    workers.stop();
    assert_eq!(view.get(C::Sleeps), 0);
}

#[test]
fn a_frame_wakes_its_worker_at_once_and_so_does_one_handed_over() {
    for order in [[b'F', 0, 0], [b'H', 1, 0]] {
        // Worker 1 has no queue: only frames handed over can wake it.
        let mut bench = Bench::new(&[1], true);
        let workers = Workers::start(bench.idle_workers(2), None).unwrap();
        let wire = bench.wires[0][0].clone();
        let time = usual(|| {
            wire.feed(&order);
            time_until("the way of a frame", || !wire.sent().is_empty())
        });
        workers.stop();
        assert!(time < Duration::from_millis(10), "{}: {time:?}", char::from(order[0]));
    }
}

#[test]
fn a_deadline_ends_a_sleep_in_time() {
    let called = Arc::new(AtomicU64::new(0));
    let every = Some(shunt_engine::Duration::from_millis(20));
    let mut bench = Bench::new(&[1], true);
    let workers = bench.workers(vec![Obey { every, called: called.clone(), ..Obey::default() }]);
    let workers = Workers::start(workers, None).unwrap();
    let time = time_until("25 deadlines", || called.load(Ordering::Relaxed) >= 25);
    assert!(time >= Duration::from_millis(24 * 20) && time < Duration::from_millis(3 * 25 * 20), "{time:?}");
    assert!(workers.views()[0].get(C::Sleeps) >= 15);
}

#[test]
fn every_frame_is_accounted_for_when_workers_stop() {
    const FRAMES: usize = 60_000;
    let mut bench = Bench::new(&[3, 1], true);
    let workers = Workers::start(bench.idle_workers(3), None).unwrap();
    let (mut fed, start) = (0u32, Instant::now());
    while (fed as usize) < FRAMES {
        assert!(start.elapsed() < PATIENCE, "workers receive no more after {fed} frames");
        // To another worker, which has no transmit queue on port 1, unless it is worker 0.
        let waiting: usize = bench.wires[0].iter().map(|wire| wire.input.lock().unwrap().len()).sum();
        if waiting > 100 {
            std::thread::yield_now();
            continue;
        }
        for _ in 0..50 {
            let from = fed % 3;
            let mut frame = vec![b'H', ((from + 1) % 3) as u8, 1, from as u8];
            frame.extend(fed.to_be_bytes());
            bench.wires[0][from as usize].feed(&frame);
            fed += 1;
        }
    }
    let full = || -> u64 { workers.views().iter().map(|view| view.get(C::HandoffFull)).sum() };
    let sent = || bench.wires[1][0].output.lock().unwrap().len() as u64;
    time_until("all frames through", || sent() + full() == u64::from(fed));
    let dropped = full();
    let mut stopped = workers.stop();
    assert_eq!((stopped.workers.len(), stopped.panicked.len()), (3, 0));
    let mut last = [None; 3];
    let output = bench.wires[1][0].sent();
    assert_eq!(output.len() as u64 + dropped, u64::from(fed));
    for frame in output {
        let number = u32::from_be_bytes(frame[4..8].try_into().unwrap());
        let last = &mut last[usize::from(frame[3])];
        assert!(last.is_none_or(|before| before < number), "order is kept from each queue");
        *last = Some(number);
    }
    for _ in 0..4 {
        stopped.workers.iter_mut().for_each(|worker| assert!(worker.turn().deadline.is_none()));
    }
    assert!(stopped.workers.iter().all(|worker| worker.pool_available() == CHUNKS as usize));
}

#[test]
fn a_worker_that_panics_is_noticed_and_the_others_stop_cleanly() {
    let mut bench = Bench::new(&[2], true);
    let workers = Workers::start(bench.idle_workers(2), None).unwrap();
    bench.wires[0][1].feed(b"!");
    time_until("noticing", || workers.failed() == Some(WorkerId(1)));
    let stopped = workers.stop();
    assert_eq!(stopped.panicked, [WorkerId(1)]);
    assert_eq!(stopped.workers.len(), 1);
}

#[test]
fn a_sleeping_worker_stops_without_delay() {
    let time = usual(|| {
        let workers = Workers::start(Bench::new(&[1], true).idle_workers(1), None).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        let start = Instant::now();
        workers.stop();
        start.elapsed()
    });
    assert!(time < Duration::from_millis(10), "{time:?}");
}

#[test]
fn workers_run_where_they_say() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let core = (0..1024).find(|&core| allowed.is_set(core)).unwrap();
    let mut bench = Bench::new(&[2], true);
    let workers = Workers::start(bench.idle_workers(5), Some(&[core, 1_023])).unwrap();
    let [first, second, .., last] = workers.placements() else { panic!("five workers") };
    assert_eq!((first.worker, first.core, &first.warning), (WorkerId(0), Some(core), &None));
    assert_eq!((second.worker, second.core), (WorkerId(1), None));
    assert!(second.warning.as_ref().unwrap().contains("1023"));
    assert_eq!((last.worker, last.core, &last.warning), (WorkerId(4), None, &None));
    let names: Vec<_> = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .collect();
    // No other test of this process has a fifth worker.
    assert!(names.iter().any(|name| name == "shunt-w4\n"), "{names:?}");
}
