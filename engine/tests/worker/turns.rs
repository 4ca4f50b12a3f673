//! One turn of the loop at a time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use shunt_engine::clock::Clock;
use shunt_engine::outbox::TX_BACKLOG;
use shunt_engine::report::WorkerCounter as C;
use shunt_engine::ring::RING_FRAMES;
use shunt_engine::worker::Worker;
use shunt_engine::{BURST, Duration, Instant};

use super::kit::{Bench, CHUNKS, Kernel, Obey};

/// Turns a manual clock far enough for the counts to be published, and the worker once.
fn counts(bench: &Bench, worker: &mut Worker<Obey>) -> impl Fn(C) -> u64 + use<> {
    bench.clock.advance(Duration::from_millis(2));
    worker.turn();
    let view = worker.view();
    move |counter| view.get(counter)
}

fn manual(queues: &[usize]) -> Bench {
    Bench { clock: Clock::manual(Instant::from_nanos(1)), ..Bench::new(queues, false) }
}

#[test]
fn every_verdict_is_carried_out_and_every_buffer_comes_back() {
    let got = Arc::new(Mutex::new(Vec::new()));
    let mut bench = Bench { punt: Some(Kernel { got: got.clone(), room: 1 }), ..manual(&[1, 1]) };
    let mut worker = bench.idle_workers(1).remove(0);
    let frames: [&[u8]; 9] = [
        &[b'F', 1, 10],
        b"D",
        &[b'P', 11],
        &[b'P', 12],
        &[b'K', 0],
        &[b'F', 0, 13],
        &[b'F', 9],
        &[b'H', 0, 0],
        &[b'F', 1, 14],
    ];
    frames.iter().for_each(|frame| bench.wires[0][0].feed(frame));
    assert_eq!(worker.turn().moved, 9 + 3, "received and sent");
    assert_eq!(bench.wires[1][0].sent(), [[b'F', 1, 10], [b'F', 1, 14]]);
    assert_eq!(bench.wires[0][0].sent(), [[b'F', 0, 13]]);
    assert_eq!(*got.lock().unwrap(), [[b'P', 11]]);
    assert_eq!(worker.pool_available(), CHUNKS as usize - 1, "the program keeps one");
    let count = counts(&bench, &mut worker);
    let seen = [C::RxPackets, C::TxPackets, C::ProgramDrops, C::Punted, C::PuntRefused, C::Held].map(&count);
    assert_eq!(seen, [9, 3, 1, 1, 1, 1]);
    assert_eq!(count(C::Misrouted), 2, "no port 9, and no handing to oneself");
    assert_eq!(count(C::PoolFree), u64::from(CHUNKS) - 1);
}

#[test]
fn what_the_kernel_has_already_is_not_given_to_it_again() {
    let got = Arc::new(Mutex::new(Vec::new()));
    let punt = Some(Kernel { got: got.clone(), room: 9 });
    let mut bench = Bench { punt, kernel_sees_all: true, ..manual(&[1]) };
    let mut worker = bench.idle_workers(1).remove(0);
    bench.wires[0][0].feed(b"P");
    worker.turn();
    let count = counts(&bench, &mut worker);
    assert_eq!([C::PuntSeen, C::Punted, C::PoolFree].map(count), [1, 0, u64::from(CHUNKS)]);
    assert!(got.lock().unwrap().is_empty());
}

#[test]
fn emitted_frames_leave_before_the_bursts_own() {
    let mut bench = manual(&[1]);
    let mut worker = bench.idle_workers(1).remove(0);
    for frame in [&[b'F', 0], &[b'E', 0], &[b'F', 0]] {
        bench.wires[0][0].feed(frame);
    }
    worker.turn();
    assert_eq!(bench.wires[0][0].sent(), [[b'e', 0], [b'F', 0], [b'E', 0], [b'F', 0]]);
}

#[test]
fn kept_frames_leave_when_the_program_releases_them() {
    let mut bench = manual(&[1]);
    let mut worker = bench.workers(vec![Obey { releases: true, ..Obey::default() }]).remove(0);
    bench.wires[0][0].feed(&[b'K', 0, 7]);
    worker.turn();
    assert_eq!(bench.wires[0][0].sent(), [[b'K', 0, 7]]);
    assert_eq!(worker.pool_available(), CHUNKS as usize);
}

#[test]
fn a_port_that_does_not_keep_up_has_a_bounded_backlog_and_keeps_order() {
    let mut bench = manual(&[1]);
    let mut worker = bench.idle_workers(1).remove(0);
    let wire = bench.wires[0][0].clone();
    wire.room.store(10, Ordering::Relaxed);
    let fits = 10 + BURST + TX_BACKLOG;
    for mark in 0..(fits + 100) as u16 {
        let [high, low] = mark.to_be_bytes();
        wire.feed(&[b'F', 0, high, low]);
    }
    while worker.turn().moved > 0 {}
    let count = counts(&bench, &mut worker);
    assert_eq!(count(C::TxPackets), 10);
    let waiting = CHUNKS as usize - worker.pool_available();
    assert_eq!(waiting as u64 + count(C::TxFull), (fits + 100 - 10) as u64, "every frame is somewhere");
    assert!((TX_BACKLOG..=TX_BACKLOG + BURST).contains(&waiting), "{waiting} wait");
    wire.room.store(100_000, Ordering::Relaxed);
    worker.turn();
    let sent: Vec<u16> = wire.sent().iter().map(|frame| u16::from_be_bytes([frame[2], frame[3]])).collect();
    assert_eq!(sent, (0..(10 + waiting) as u16).collect::<Vec<_>>());
    assert_eq!(worker.pool_available(), CHUNKS as usize);
}

#[test]
fn frames_do_not_overtake_a_backlog_that_is_only_partly_sent() {
    let mut bench = manual(&[1]);
    let mut worker = bench.idle_workers(1).remove(0);
    let wire = bench.wires[0][0].clone();
    wire.room.store(0, Ordering::Relaxed);
    for mark in 0..120 {
        if mark % 20 == 0 {
            worker.turn();
            wire.room.store(3, Ordering::Relaxed);
        }
        wire.feed(&[b'F', 0, mark]);
    }
    wire.room.store(1_000, Ordering::Relaxed);
    worker.turn();
    while worker.turn().moved > 0 {}
    let sent: Vec<u8> = wire.sent().iter().map(|frame| frame[2]).collect();
    assert_eq!(sent, (0..120).collect::<Vec<_>>());
}

#[test]
fn order_is_kept_across_a_handoff_and_buffers_come_home() {
    let mut bench = manual(&[2]);
    let [mut first, mut second]: [_; 2] = bench.idle_workers(2).try_into().ok().unwrap();
    for round in 0..100u8 {
        for mark in 0..50 {
            bench.wires[0][0].feed(&[b'H', 1, 0, round, mark]);
        }
        for _ in 0..3 {
            first.turn();
            second.turn();
        }
        let sent: Vec<_> = bench.wires[0][1].sent().iter().map(|frame| (frame[3], frame[4])).collect();
        assert_eq!(sent, (0..50).map(|mark| (round, mark)).collect::<Vec<_>>());
    }
    first.turn();
    assert_eq!(first.pool_available(), CHUNKS as usize);
    let (out, back) = (counts(&bench, &mut first), counts(&bench, &mut second));
    assert_eq!([out(C::HandoffOut), back(C::HandoffIn), out(C::HandoffFull)], [5_000, 5_000, 0]);
}

#[test]
fn a_peer_that_does_not_run_costs_frames_that_are_counted() {
    let mut bench = manual(&[1]);
    let [mut first, _second]: [_; 2] = bench.idle_workers(2).try_into().ok().unwrap();
    for _ in 0..RING_FRAMES + 77 {
        bench.wires[0][0].feed(&[b'H', 1, 0]);
    }
    while first.turn().moved > 0 {}
    assert_eq!(counts(&bench, &mut first)(C::HandoffFull), 77);
    assert_eq!(first.pool_available(), CHUNKS as usize - RING_FRAMES);
}

#[test]
fn a_worker_without_a_queue_transmits_through_another_in_order() {
    let mut bench = manual(&[2, 1]);
    let [mut first, mut second]: [_; 2] = bench.idle_workers(2).try_into().ok().unwrap();
    for mark in 0..BURST as u8 {
        bench.wires[0][1].feed(&[b'F', 1, mark]);
    }
    second.turn();
    assert!(bench.wires[1][0].sent().is_empty());
    first.turn();
    let sent: Vec<u8> = bench.wires[1][0].sent().iter().map(|frame| frame[2]).collect();
    assert_eq!(sent, (0..BURST as u8).collect::<Vec<_>>());
    second.turn();
    assert_eq!(second.pool_available(), CHUNKS as usize);
    let (helper, helped) = (counts(&bench, &mut first), counts(&bench, &mut second));
    assert_eq!([helped(C::TxViaOther), helper(C::TxForOther), helper(C::HandoffIn)], [32, 32, 0]);
}

#[test]
fn busy_time_is_that_of_turns_which_moved_a_frame() {
    let mut bench = manual(&[1]);
    let mut worker = bench.idle_workers(1).remove(0);
    worker.turn();
    bench.clock.advance(Duration::from_micros(1_000));
    bench.wires[0][0].feed(b"D");
    worker.turn();
    bench.clock.advance(Duration::from_micros(3));
    worker.turn();
    assert_eq!(counts(&bench, &mut worker)(C::BusyNanos), 3_000);
    assert_eq!(worker.view().burst_sizes()[0], 1);
    let turns = worker.view().turn_times();
    assert_eq!((turns.count(), turns.longest), (1, Duration::from_micros(3)));
}
