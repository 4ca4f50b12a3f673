//! Fragments follow their first, whichever comes first and wherever they arrive.

use shunt_dataplane::counters::Event;
use shunt_dataplane::fragment::HELD_MAX;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Endpoint, Protocol};
use shunt_dataplane::verdict::DropReason;
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_engine::{Duration, PortId};

use crate::lab::{
    CLIENT_MAC, CLIENTS, Lab, SERVERS, To, US, VIP, World, client, every, framed, packet_in, server_mac, vip,
};
use crate::packets::{at_server, cut, data, ends_at_server, reassembled};

/// In order, reversed, the first last, the first in the middle.
const ORDERS: [[usize; 3]; 4] = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]];
/// The workers on which three fragments arrive.
const ARRIVALS: [[usize; 3]; 5] = [[0, 0, 0], [1, 1, 1], [2, 2, 2], [0, 1, 2], [2, 0, 1]];

#[test]
fn a_datagram_in_three_fragments_reaches_its_server_whole_from_every_worker_in_every_order() {
    for (mode, protocol) in every() {
        let mut lab = Lab::new(World::default());
        for (case, (order, arrival)) in
            ORDERS.iter().flat_map(|order| ARRIVALS.iter().map(move |arrival| (order, arrival))).enumerate()
        {
            // Another client now and then, and always another packet: homes and meeting places vary.
            let from = 40_000 + case as u16 / 3;
            // A UDP flow is opened by the fragments themselves.
            if protocol == Protocol::Tcp {
                lab.open(case % 3, from, mode, protocol);
            }
            let (src, dst) = (client(from), vip(mode, protocol));
            let parts = cut(&data(protocol, src, dst, 4000).id(case as u16).build_ip(), 1480);
            assert_eq!(parts.len(), 3);
            let mut out = Vec::new();
            for (&part, &worker) in order.iter().zip(arrival) {
                out.extend(lab.deliver(worker, CLIENTS, &[framed(CLIENT_MAC, US[0], &parts[part])]));
            }
            let conn = lab.conn(src, dst).unwrap().1;
            let (src, dst) = ends_at_server(&conn);
            let expected = data(protocol, src, dst, 4000).id(case as u16).ttl(63).build_ip();
            let got = at_server(&out, &conn, 1500);
            assert_eq!(reassembled(&got), expected, "{mode:?} {protocol} {order:?} at {arrival:?}");
        }
        assert_eq!(lab.dropped(DropReason::HandoffLoop), 0);
        assert_eq!(
            lab.count(Event::FragmentsFollowed),
            2 * 20,
            "each counts once, however many workers it passed"
        );
        lab.finish();
    }
}

#[test]
fn an_answer_in_three_fragments_reaches_its_client_whole_from_every_worker_in_every_order() {
    for (mode, protocol) in every().filter(|(mode, _)| mode.sees_replies()) {
        let mut lab = Lab::new(World::default());
        for (case, (order, arrival)) in
            ORDERS.iter().flat_map(|order| ARRIVALS.iter().map(move |arrival| (order, arrival))).enumerate()
        {
            let conn = lab.open(case % 3, 40_000 + case as u16 / 3, mode, protocol);
            let parts = cut(&data(protocol, conn.server, conn.peer, 4000).id(case as u16).build_ip(), 1480);
            let mut out = Vec::new();
            let from = server_mac(conn.server_id.slot as usize);
            for (&part, &worker) in order.iter().zip(arrival) {
                out.extend(lab.deliver(worker, SERVERS, &[framed(from, US[1], &parts[part])]));
            }
            assert!(out.iter().all(|out| out.to == To::Port(CLIENTS) && out.bytes[..6] == CLIENT_MAC.0));
            let got: Vec<_> = out.iter().map(|out| packet_in(&out.bytes).to_vec()).collect();
            let expected = data(protocol, conn.vip, conn.client, 4000).id(case as u16).ttl(63).build_ip();
            assert_eq!(reassembled(&got), expected, "{mode:?} {protocol} {order:?} at {arrival:?}");
        }
        lab.finish();
    }
}

#[test]
fn fragments_of_a_packet_that_is_the_kernels_all_get_there_unchanged() {
    let mut lab = Lab::new(World::default());
    let other = Endpoint::new(VIP, 53);
    for (id, worker) in [0, 1, 2, 0, 1, 2].into_iter().enumerate() {
        let packet = data(Protocol::Udp, client(40_000), other, 4000).id(id as u16).build_ip();
        let frames: Vec<_> = cut(&packet, 1480).iter().map(|part| framed(CLIENT_MAC, US[0], part)).collect();
        let first = lab.deliver(worker, CLIENTS, &frames[..1]);
        assert_eq!((first[0].to, &first[0].bytes), (To::Kernel, &frames[0]));
        assert_eq!(lab.deliver(worker, CLIENTS, &frames[1..]), [], "later ones wait");
        assert_eq!(lab.pass(Duration::from_millis(19)), []);
        let later = lab.pass(Duration::from_millis(1));
        assert!(later.iter().all(|out| out.to == To::Kernel));
        let later: Vec<_> = later.into_iter().map(|out| out.bytes).collect();
        assert_eq!(later, frames[1..]);
    }
    assert_eq!((lab.count(Event::FragmentsHeld), lab.count(Event::FragmentsUnknown)), (12, 12));
    lab.finish();
}

#[test]
fn no_more_fragments_wait_than_there_is_room_for() {
    let mut lab = Lab::new(World { workers: 1, ..World::default() });
    let later = |id| {
        let packet = PacketBuilder::raw("198.51.100.7", "203.0.113.10", 17).id(id).fragment_offset(1480);
        packet.payload([1; 100]).link(CLIENT_MAC, US[0]).build()
    };
    let frames: Vec<_> = (0..HELD_MAX as u16 + 10).map(later).collect();
    assert_eq!(lab.deliver(0, CLIENTS, &frames), []);
    assert_eq!((lab.count(Event::FragmentsHeld), lab.dropped(DropReason::FragmentsFull)), (64, 10));
    assert_eq!(lab.pass(Duration::from_millis(20)).len(), HELD_MAX);
    assert_eq!(lab.deliver(0, CLIENTS, &frames[..1]), [], "there is room again");
    lab.finish();
}

#[test]
fn a_later_fragment_opens_no_connection() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut lab = Lab::new(World::default());
        lab.open(0, 40_000, Mode::Nat, protocol);
        let (src, dst) = (client(40_000), vip(Mode::Nat, protocol));
        let packet = data(protocol, src, dst, 4000).build_ip();
        let frames: Vec<_> = cut(&packet, 1480).iter().map(|part| framed(CLIENT_MAC, US[0], part)).collect();
        assert_eq!(lab.deliver(1, CLIENTS, &frames[..1]).len(), 1);
        let slot = lab.conn(src, dst).unwrap().1.server_id.slot as usize;
        lab.reload(|world| world.servers[slot] = None);
        assert_eq!(lab.deliver(1, CLIENTS, &frames[1..]), []);
        assert_eq!(lab.conn(src, dst).map(|(_, conn)| conn.server), None);
        assert_eq!((lab.dropped(DropReason::ServerGone), lab.dropped(DropReason::OutOfState)), (1, 1));
        assert_eq!(lab.count(Event::ResetsSuppressed), 0, "nor would it be answered");
        lab.finish();
    }
}

#[test]
fn fragments_that_find_no_place_among_the_frames_to_send_are_counted_as_dropped() {
    let mut lab = Lab::new(World { workers: 1, mtu: [1500, 400], ..World::default() });
    let (src, dst) = (client(40_000), vip(Mode::Dr, Protocol::Udp));
    let parts = cut(&data(Protocol::Udp, src, dst, 99).build_ip(), 8);
    let frames: Vec<_> = parts.iter().map(|part| framed(CLIENT_MAC, US[0], part)).collect();
    assert_eq!(frames.len(), 14);
    assert_eq!(lab.deliver(0, CLIENTS, &frames[1..]), [], "thirteen wait");
    // 31 packets in 4 parts each fill all but 4 places of the 128.
    let big = framed(CLIENT_MAC, US[0], &data(Protocol::Udp, src, dst, 1400).id(9).build_ip());
    let mut burst = vec![big; 31];
    burst.push(frames[0].clone());
    let out = lab.deliver(0, CLIENTS, &burst);
    assert_eq!(out.len(), 31 * 4 + 4 + 1);
    assert!(out.iter().all(|out| out.to == To::Port(PortId(1))));
    assert_eq!(lab.dropped(DropReason::NoBuffer), 9);
    lab.finish();
}
