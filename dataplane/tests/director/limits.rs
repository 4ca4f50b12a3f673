//! What a director originates is limited.

use shunt_dataplane::counters::Event;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::Protocol;
use shunt_dataplane::verdict::DropReason;
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_engine::Duration;

use crate::lab::{CLIENT_MAC, CLIENTS, Lab, US, World, client, vip};
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
