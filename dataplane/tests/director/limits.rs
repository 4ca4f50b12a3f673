//! What a director originates is limited.

use shunt_dataplane::counters::Event;
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Endpoint, Protocol, V4};
use shunt_dataplane::verdict::DropReason;
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::tcp::flags;
use shunt_engine::Duration;

use crate::lab::{CLIENT_MAC, CLIENTS, Lab, US, VIP, World, client, vip};
use crate::packets::data;

#[test]
fn a_flood_of_strays_gets_a_burst_of_resets_and_then_one_per_millisecond() {
    let mut lab = Lab::new(World { workers: 1, ..World::default() });
    let stray =
        PacketBuilder::tcp(client(40_000), vip(Mode::Nat, Protocol::Tcp)).link(CLIENT_MAC, US[0]).build();
    assert_eq!(lab.deliver(0, CLIENTS, &vec![stray.clone(); 500]).len(), 50);
    for _ in 0..10 {
        lab.pass(Duration::from_millis(1));
        assert_eq!(lab.deliver(0, CLIENTS, &vec![stray.clone(); 20]).len(), 1);
    }
    assert_eq!((lab.count(Event::ResetsSent), lab.count(Event::ResetsSuppressed)), (60, 640));
    assert_eq!(lab.dropped(DropReason::OutOfState), 700);
    lab.finish();
}

#[test]
fn a_flood_of_packets_too_big_or_too_old_gets_a_burst_of_icmp_and_then_one_per_millisecond() {
    let mut lab = Lab::new(World { workers: 1, mtu: [1500, 1400], ..World::default() });
    let conn = lab.open(0, 40_000, Mode::Fullnat, Protocol::Udp);
    let packet = data(Protocol::Udp, conn.client, conn.vip, 1400).link(CLIENT_MAC, US[0]);
    let pair = [packet.clone().dont_fragment().build(), packet.ttl(1).build()];
    let flood: Vec<_> = pair.into_iter().cycle().take(200).collect();
    assert_eq!(lab.deliver(0, CLIENTS, &flood).len(), 50);
    for _ in 0..10 {
        lab.pass(Duration::from_millis(1));
        assert_eq!(lab.deliver(0, CLIENTS, &flood[..20]).len(), 1);
    }
    assert_eq!((lab.count(Event::IcmpSent), lab.count(Event::IcmpSuppressed)), (60, 340));
    assert_eq!((lab.dropped(DropReason::MtuExceeded), lab.dropped(DropReason::TtlExceeded)), (200, 200));
    lab.finish();
}

/// A flood from ever new clients fills the table and goes on. Connections that are established do not notice, whoever is
/// new gets a place, and the work per packet is bounded: a search looks at a bounded number of records.
#[test]
fn a_flood_of_first_segments_evicts_its_own_kind_and_no_established_connection() {
    for mode in Mode::ALL {
        let mut lab = Lab::new(World { workers: 1, ..World::default() });
        let to = vip(mode, Protocol::Tcp);
        let packet = |from, bits| PacketBuilder::tcp(from, to).flags(bits).link(CLIENT_MAC, US[0]).build();
        let established: Vec<_> = (40_000..40_010).collect();
        for &port in &established {
            lab.open(0, port, mode, Protocol::Tcp);
            assert_eq!(lab.deliver(0, CLIENTS, &[packet(client(port), flags::ACK)]).len(), 1);
        }
        let conns: Vec<_> = established.iter().map(|&port| lab.conn(client(port), to).unwrap().1).collect();
        for second in 0..20u16 {
            let flood: Vec<_> =
                (0..100).map(|i| packet(client(1000 + second * 100 + i), flags::SYN)).collect();
            assert_eq!(lab.deliver(0, CLIENTS, &flood).len(), 100, "{mode:?}: every SYN finds a place");
            lab.pass(Duration::from_secs(1));
            let data: Vec<_> =
                established.iter().map(|&port| packet(client(port), flags::ACK | flags::PSH)).collect();
            assert_eq!(lab.deliver(0, CLIENTS, &data).len(), data.len(), "{mode:?}: data goes on");
        }
        for (port, conn) in established.iter().zip(conns) {
            let (_, now) = lab.conn(client(*port), to).unwrap();
            assert_eq!((now.server_id, now.peer), (conn.server_id, conn.peer), "{mode:?}");
        }
        // Six places are left of sixteen.
        assert_eq!(lab.count(Event::HalfOpenEvicted), 2000 - 6, "{mode:?}");
        assert_eq!(lab.dropped(DropReason::TableFull), 0, "{mode:?}");
        lab.finish();
    }
}

/// A thousand ports, four times as many as a search looks at, all taken by connections that end in another order than
/// they began. New ones get theirs in the order in which they ended; what is heard of one again makes it the last.
#[test]
fn when_no_local_port_is_free_those_of_connections_over_for_longest_are_taken_back_first() {
    const PORTS: u16 = 1000;
    const LIVE: u16 = 10;
    let mut lab = Lab::new(World { workers: 1, max_connections: 1200, ..World::default() });
    let slot = lab.open(0, 1000, Mode::Fullnat, Protocol::Tcp).server_id.slot as usize;
    let other = slot ^ 1;
    lab.reload(|world| world.servers[other] = None);
    for i in 1..PORTS {
        lab.open(0, 1000 + i, Mode::Fullnat, Protocol::Tcp);
    }
    let to = vip(Mode::Fullnat, Protocol::Tcp);
    let packet =
        |from, bits| vec![PacketBuilder::tcp(client(from), to).flags(bits).link(CLIENT_MAC, US[0]).build()];
    let mut ended: Vec<u16> = (0..990_u32).map(|i| 1000 + (i * 617 % 990) as u16).collect();
    let live = 1000 + PORTS - LIVE..1000 + PORTS;
    for from in 1000..live.end {
        assert_eq!(lab.deliver(0, CLIENTS, &packet(from, flags::ACK)).len(), 1);
    }
    for &from in &ended {
        assert_eq!(lab.deliver(0, CLIENTS, &packet(from, flags::RST)).len(), 1);
        lab.pass(Duration::from_millis(5));
    }
    for again in [ended.remove(0), ended.remove(400)] {
        assert_eq!(lab.deliver(0, CLIENTS, &packet(again, flags::RST)).len(), 1);
        ended.push(again);
    }
    let ports: Vec<_> = ended.iter().map(|&from| lab.conn(client(from), to).unwrap().1.peer).collect();
    for (i, port) in (0..).zip(ports) {
        assert_eq!(lab.open(0, 10_000 + i, Mode::Fullnat, Protocol::Tcp).peer, port, "number {i}");
    }
    assert_eq!(lab.count(Event::PortsReused), ended.len() as u64);
    // All are taken by connections that live or have just begun.
    assert_eq!(lab.deliver(0, CLIENTS, &packet(20_000, flags::SYN)).len(), 0);
    assert_eq!(lab.dropped(DropReason::NoLocalPort), 1);
    assert!(live.into_iter().all(|from| lab.conn(client(from), to).is_some()));
    lab.finish();
}

/// `lblc` and `lblcr` remember 32 768 destinations, in buckets of eight.
#[test]
fn more_destinations_than_lblc_has_room_for_are_all_served_and_what_is_forgotten_is_counted() {
    for scheduler in [SchedulerKind::Lblc, SchedulerKind::Lblcr] {
        let mut lab = Lab::new(World { workers: 1, scheduler, vip_len: 16, ..World::default() });
        let port = vip(Mode::Dr, Protocol::Tcp).port;
        let first_segments = |destinations: std::ops::Range<u32>| -> Vec<_> {
            let to = |number| Endpoint::new(V4(VIP.0 & 0xffff_0000 | number), port);
            let segment = |number| PacketBuilder::tcp(client(1000), to(number)).flags(flags::SYN);
            destinations.map(|number| segment(number).link(CLIENT_MAC, US[0]).build()).collect()
        };
        assert_eq!(lab.deliver(0, CLIENTS, &first_segments(0..8)).len(), 8);
        assert_eq!(lab.count(Event::DestinationsEvicted), 0, "eight fit into any bucket");
        assert_eq!(lab.deliver(0, CLIENTS, &first_segments(8..60_000)).len(), 60_000 - 8);
        let forgotten = lab.count(Event::DestinationsEvicted);
        assert!((60_000 - 32_768..60_000 / 2).contains(&forgotten), "{forgotten}");
        lab.finish();
    }
}
