//! A million packets of every kind pass through a worker, and its thread does not call the allocator once.

use std::sync::Arc;

use shunt_bench::alloc::{self, CountingAllocator};
use shunt_bench::connections::{self, Connections};
use shunt_bench::director::{self, ROUTER, US};
use shunt_bench::rig::Rig;
use shunt_bench::wire::Feed;
use shunt_dataplane::counters::{self, Event};
use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Protocol, Tuple, V4};
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::tcp::flags::{ACK, FIN, PSH, RST, SYN};
use shunt_engine::clock::Clock;
use shunt_engine::{BURST, Duration, Instant};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Established connections per mode, and as many clients again that come, go and come back.
const FLOWS: u32 = 500;
const PACKETS: u64 = 1_000_000;
/// Time per turn of the loop: until a frame comes again, connections that are not established have timed out.
const PER_TURN: Duration = Duration::from_millis(500);

/// What has to happen while nothing is allocated.
const EVENTS: [Event; 11] = [
    Event::Forwarded,
    Event::NotOurs,
    Event::ConnectionsOpened,
    Event::ConnectionsExpired,
    Event::ResetsSent,
    Event::IcmpSent,
    Event::IcmpForwarded,
    Event::PacketsFragmented,
    Event::FragmentsFollowed,
    Event::FragmentsHeld,
    Event::FragmentsUnknown,
];

fn frame(tuple: &Tuple<V4>) -> PacketBuilder {
    PacketBuilder::tuple(tuple).link(ROUTER, US)
}

/// Both directions of established connections: small, TTL 1, too big, fragmented, with ICMP errors about them.
fn established(connections: &Connections, frames: &mut Vec<Vec<u8>>) {
    for (number, tuple) in connections.requests.iter().chain(&connections.replies).enumerate() {
        let (id, data) = (number as u16, [0x5a; 1480]);
        frames.push(frame(tuple).flags(ACK | PSH).payload(&data[..10]).build());
        match number % 8 {
            0 => frames.push(frame(tuple).ttl(1).build()),
            1 => frames.push(frame(tuple).payload(&data[..]).build()),
            2 => frames.push(frame(tuple).payload(&data[..]).dont_fragment().build()),
            3 => frames.extend(fragments(tuple, id)),
            4 => frames.extend(fragments(tuple, id).into_iter().rev()),
            5 => frames.push(fragments(tuple, id).remove(1)),
            6 => frames.push(unreachable(tuple)),
            _ => {}
        }
    }
}

/// A segment in two parts.
fn fragments(tuple: &Tuple<V4>, id: u16) -> Vec<Vec<u8>> {
    let (src, dst) = (format!("{:?}", tuple.src.address), format!("{:?}", tuple.dst.address));
    let later = PacketBuilder::raw(&src, &dst, tuple.protocol.number()).link(ROUTER, US);
    vec![
        frame(tuple).id(id).more_fragments().payload([1; 44]).build(),
        later.id(id).fragment_offset(64).payload([2; 40]).build(),
    ]
}

/// What a host behind `tuple`'s source says when it cannot deliver what came the other way.
fn unreachable(tuple: &Tuple<V4>) -> Vec<u8> {
    let (src, dst) = (format!("{:?}", tuple.src.address), format!("{:?}", tuple.dst.address));
    let quoted = PacketBuilder::tuple(&tuple.reversed()).build_ip();
    PacketBuilder::icmp(&src, &dst, 3, 1).link(ROUTER, US).payload(quoted).build()
}

/// Clients that open, and close, and some that have no connection; and what is not for the director at all.
fn passers_by(mode: Mode, frames: &mut Vec<Vec<u8>>) {
    for index in FLOWS..2 * FLOWS {
        let src = director::client(index);
        let tuple = Tuple { src, dst: director::vip(mode), protocol: Protocol::Tcp };
        let flags = [SYN, ACK, FIN | ACK, RST];
        let count = if index % 3 == 0 { flags.len() } else { 1 };
        frames.extend(flags[..count].iter().map(|&flags| frame(&tuple).flags(flags).build()));
        let stranger = Tuple { src: director::client(index + FLOWS), ..tuple };
        frames.push(frame(&stranger).flags(ACK).build());
    }
    let elsewhere = Tuple { src: director::client(0), dst: director::client(1), protocol: Protocol::Tcp };
    frames.push(frame(&elsewhere).build());
}

fn events(rig: &Rig<Pipeline>) -> [u64; EVENTS.len()] {
    let published = rig.worker().program().counters();
    EVENTS.map(|event| published.get(counters::event(event)))
}

#[test]
fn the_packet_path_does_not_allocate() {
    let clock = Clock::manual(Instant::from_nanos(1_000_000_000_000));
    let program = director::pipeline(&Mode::ALL, 1 << 16).unwrap();
    let mut rig = Rig::new(program, clock.clone()).unwrap();
    let mut frames = Vec::new();
    for mode in Mode::ALL {
        let connections = connections::open(&mut rig, mode, 0..FLOWS).unwrap();
        established(&connections, &mut frames);
        passers_by(mode, &mut frames);
    }
    rig.wire().feed(Feed::Frames(Arc::from(frames)));
    let mut pass = |packets: u64| {
        for _ in 0..packets / BURST as u64 {
            rig.receive(BURST as u64);
            clock.advance(PER_TURN);
        }
        events(&rig)
    };
    let before = pass(PACKETS / 10);
    let calls = alloc::calls();
    let after = pass(PACKETS);
    let calls = alloc::calls() - calls;
    for ((event, before), after) in EVENTS.iter().zip(before).zip(after) {
        println!("{}: {}", event.name(), after - before);
        assert!(after > before, "{} did not happen", event.name());
    }
    assert_eq!(calls, 0, "calls of the allocator in {PACKETS} packets");
}

#[test]
fn the_allocator_counts_what_this_thread_does() {
    let before = alloc::calls();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(alloc::calls() - before, 2);
}
