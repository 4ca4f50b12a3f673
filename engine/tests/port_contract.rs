//! The contract every port keeps: one list of behaviours, run against each of them.
//!
//! The ports that need the kernel run on veth pairs in namespaces of their own, which takes root. Without it their
//! tests fail: a port that cannot be shown to keep the contract does not keep it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod ports;

use std::time::Duration;

use shunt_engine::frame::frames_lost;
use shunt_engine::port::PortError;
use shunt_engine::{Burst, Mempool};

use ports::one_way::OneWay;
use ports::{Harness, Lab, MTU, POOL, WINDOW, from_port, number, to_port, until};

/// Every behaviour for one port.
macro_rules! contract {
    ($port:ident, $harness:ty) => {
        mod $port {
            #[test]
            fn received_frames_keep_their_order_on_every_queue() {
                super::received_frames_keep_their_order::<$harness>();
            }
            #[test]
            fn sent_frames_keep_their_order() {
                super::sent_frames_keep_their_order::<$harness>();
            }
            #[test]
            fn unsent_frames_stay_with_the_caller_in_order() {
                super::unsent_frames_stay_with_the_caller::<$harness>();
            }
            #[test]
            fn every_buffer_is_accounted_for_after_a_million_frames() {
                super::every_buffer_is_accounted_for::<$harness>();
            }
            #[test]
            fn ten_million_frames_handed_one_way_drain_no_pool() {
                super::ten_million_frames_handed_one_way_drain_no_pool::<$harness>();
            }
            #[test]
            fn frames_of_every_length_arrive_byte_by_byte() {
                super::frames_of_every_length_arrive::<$harness>();
            }
            #[test]
            fn frames_above_the_mtu_are_refused_and_counted() {
                super::frames_above_the_mtu_are_refused::<$harness>();
            }
            #[test]
            fn a_queue_is_handed_out_once() {
                super::a_queue_is_handed_out_once::<$harness>();
            }
            #[test]
            fn counters_add_up_to_what_was_carried() {
                super::counters_add_up::<$harness>();
            }
        }
    };
}

contract!(mem, crate::ports::mem::MemHarness);
contract!(pcap, crate::ports::pcap::PcapHarness);
contract!(af_packet, crate::ports::kernel::AfPacketHarness);
contract!(af_xdp_native, crate::ports::kernel::AfXdpHarness<true>);
contract!(af_xdp_generic, crate::ports::kernel::AfXdpHarness<false>);

fn received_frames_keep_their_order<H: Harness>() {
    let mut lab = Lab::<H>::new(H::QUEUES);
    let mut last = vec![None; usize::from(H::QUEUES)];
    let mut missing: std::collections::BTreeSet<u64> = (0..4096).collect();
    for window in 0..16 {
        let first = window * WINDOW as u64;
        let frames: Vec<_> = (first..first + WINDOW as u64).map(|number| to_port(number, 60)).collect();
        lab.harness.send(&frames);
        for (queue, frame) in lab.receive(WINDOW) {
            let number = number(&frame);
            assert!(missing.remove(&number), "frame {number} came twice");
            assert!(last[queue] < Some(number), "frame {number} came after {:?}", last[queue]);
            last[queue] = Some(number);
        }
    }
    assert!(missing.is_empty());
}

fn sent_frames_keep_their_order<H: Harness>() {
    let mut lab = Lab::<H>::new(H::QUEUES);
    for queue in 0..usize::from(H::QUEUES) {
        for window in 0..8 {
            let first = window * WINDOW as u64;
            let frames: Vec<_> = (first..first + WINDOW as u64).map(|number| from_port(number, 60)).collect();
            lab.transmit(queue, &frames);
            assert_eq!(lab.collect(WINDOW), frames);
        }
    }
}

fn unsent_frames_stay_with_the_caller<H: Harness>() {
    let mut lab = Lab::<H>::new(1);
    let can_jam = lab.harness.jam();
    let mut offered = 0;
    let mut burst = Burst::new();
    while burst.is_empty() && offered < 8192 {
        let frames: Vec<_> = (offered..offered + 32).map(|number| from_port(number, 60)).collect();
        burst = ports::load(&mut lab.pool, &frames);
        offered += 32;
        let left = lab.queues[0].1.tx_burst(&mut lab.pool, &mut burst);
        assert_eq!(left + burst.len(), 32, "what has not left is still here");
        lab.queues[0].1.reclaim(&mut lab.pool);
        if lab.pool.available() < 64 {
            break;
        }
    }
    assert_eq!(!burst.is_empty(), can_jam, "only a port that can be jammed leaves frames behind");
    let unsent: Vec<u64> = burst.iter().map(|frame| number(frame.data())).collect();
    assert_eq!(unsent, (offered - unsent.len() as u64..offered).collect::<Vec<_>>());
    lab.harness.unjam();
    let mut arrived: Vec<u64> = Vec::new();
    until("the unsent frames to arrive", || {
        lab.queues[0].1.tx_burst(&mut lab.pool, &mut burst);
        lab.queues[0].1.reclaim(&mut lab.pool);
        arrived.extend(std::iter::from_fn(|| lab.harness.recv()).map(|frame| number(&frame)));
        arrived.last() == Some(&(offered - 1))
    });
    assert!(burst.is_empty() && arrived.is_sorted_by(|a, b| a < b), "{arrived:?}");
    assert!(arrived.ends_with(&unsent), "every frame that stayed was sent later");
}

fn every_buffer_is_accounted_for<H: Harness>() {
    const FRAMES: usize = 1_000_000;
    let mut lab = Lab::<H>::new(1);
    let frames: Vec<_> = (0..WINDOW as u64).map(|number| to_port(number, 60)).collect();
    for _ in 0..FRAMES.div_ceil(WINDOW) {
        reflect(&mut lab, &frames);
    }
    lab.settle(POOL.chunks as usize - H::BUFFERS_KEPT);
    assert_eq!(frames_lost(), 0);
}

/// Sends a window of frames to the port, which sends each of them back.
fn reflect<H: Harness>(lab: &mut Lab<H>, frames: &[Vec<u8>]) {
    lab.harness.send(frames);
    let Lab { queues, pool, harness } = lab;
    let (rx, tx) = &mut queues[0];
    let mut burst = Burst::new();
    let mut back = 0;
    until("a window of frames to come back", || {
        tx.reclaim(pool);
        let waiting = burst.len();
        rx.rx_burst(pool, &mut burst);
        for frame in &mut burst[waiting..] {
            let (to, from) = frame.data_mut()[..12].split_at_mut(6);
            to.swap_with_slice(from);
        }
        tx.tx_burst(pool, &mut burst);
        while harness.recv().is_some() {
            back += 1;
        }
        back == frames.len()
    });
}

fn ten_million_frames_handed_one_way_drain_no_pool<H: Harness>() {
    const FRAMES: u64 = 10_000_000;
    let mut lab = OneWay::<H>::new(PATIENCE);
    lab.carry(FRAMES);
    lab.settle(FRAMES);
}

#[test]
#[should_panic(expected = "port mem (mem) stalled: 0 of 10000000 frames came back and no other for 50ms; \
                           256 received, 256 sent")]
fn a_port_that_stalls_is_named_in_bounded_time() {
    let mut lab = OneWay::<ports::mem::MemHarness>::new(Duration::from_millis(50));
    assert!(lab.harness.jam());
    lab.carry(10_000_000);
}

fn frames_of_every_length_arrive<H: Harness>() {
    let mut lab = Lab::<H>::new(1);
    let largest = usize::from(MTU) + 14;
    let lengths = [60, 42, 61, 64, 127, 128, 1000, 1514, largest - 1, largest];
    let with_tag = |frame: &Vec<u8>| ports::tagged(frame, 7);
    let mut inward: Vec<_> = (0..).zip(lengths).map(|(number, len)| to_port(number, len)).collect();
    inward.extend(inward.clone().iter().map(with_tag));
    lab.harness.send(&inward);
    let received: Vec<_> = lab.receive(inward.len()).into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(received, inward);
    let mut outward: Vec<_> = (0..).zip(lengths).map(|(number, len)| from_port(number, len)).collect();
    outward.extend(outward.clone().iter().map(with_tag));
    lab.transmit(0, &outward);
    assert_eq!(lab.collect(outward.len()), outward);
}

fn frames_above_the_mtu_are_refused<H: Harness>() {
    let mut lab = Lab::<H>::new(1);
    let too_long = from_port(1, usize::from(MTU) + 19);
    lab.transmit(0, &[from_port(0, 60), too_long.clone(), too_long, from_port(2, 60)]);
    let arrived: Vec<_> = lab.collect(2).iter().map(|frame| number(frame)).collect();
    assert_eq!(arrived, [0, 2]);
    let stats = lab.queues[0].1.stats();
    assert_eq!((stats.packets, stats.oversize, stats.errors), (2, 2, 0));
    if lab.harness.send_oversize() {
        until("an oversize frame to be counted", || {
            let mut burst = Burst::new();
            let (rx, _) = &mut lab.queues[0];
            rx.rx_burst(&mut lab.pool, &mut burst);
            assert!(burst.iter().all(|frame| frame.len() <= usize::from(MTU) + 18));
            lab.pool.free_all(burst);
            rx.stats().oversize > 0
        });
    }
}

fn a_queue_is_handed_out_once<H: Harness>() {
    let pool = Mempool::single(POOL).unwrap();
    let mut harness = H::open(H::QUEUES, &pool);
    assert_eq!(harness.port().caps().queues, H::QUEUES);
    let _taken: Vec<_> = (0..H::QUEUES).map(|queue| harness.port().take_queue(queue).unwrap()).collect();
    for queue in 0..=H::QUEUES {
        match harness.port().take_queue(queue) {
            Err(PortError::NoSuchQueue { queue: refused, .. }) => assert_eq!(refused, queue),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("queue {queue} was handed out twice"),
        }
    }
}

fn counters_add_up<H: Harness>() {
    let mut lab = Lab::<H>::new(H::QUEUES);
    let inward: Vec<_> = (0..200).map(|number| to_port(number, 60 + number as usize)).collect();
    lab.harness.send(&inward);
    let bytes = |frames: &[Vec<u8>]| frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
    let mut per_queue = vec![(0, 0); usize::from(H::QUEUES)];
    for (queue, frame) in lab.receive(inward.len()) {
        per_queue[queue].0 += 1;
        per_queue[queue].1 += frame.len() as u64;
    }
    for (queue, expected) in per_queue.iter().enumerate() {
        let stats = lab.queues[queue].0.stats();
        assert_eq!((stats.packets, stats.bytes), *expected);
        assert_eq!((stats.oversize, stats.no_buffer, stats.missed), (0, 0, 0));
    }
    let outward: Vec<_> = (0..100).map(|number| from_port(number, 60 + number as usize)).collect();
    for queue in 0..usize::from(H::QUEUES) {
        lab.transmit(queue, &outward);
        lab.collect(outward.len());
        let stats = lab.queues[queue].1.stats();
        assert_eq!((stats.packets, stats.bytes), (100, bytes(&outward)));
        assert_eq!((stats.oversize, stats.errors), (0, 0));
    }
}

/// How long nothing may come back from a port that has frames to send: whatever is waited for takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
