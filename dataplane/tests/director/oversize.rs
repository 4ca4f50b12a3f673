//! Packets too big for the next hop: told to the sender, or cut.

use shunt_dataplane::counters::Event;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Endpoint, Protocol, V4};
use shunt_dataplane::verdict::DropReason;
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_engine::PortId;

use crate::lab::{
    CLIENT_MAC, CLIENTS, Lab, OWN, Out, SERVERS, To, US, World, client, every, packet_in, server_mac, vip,
};
use crate::packets::{at_server, check, data, ends_at_server, reassembled};

/// Asserts that `out` is "fragmentation needed" from our address on `port` about `packet`.
fn assert_refused(out: &[Out], port: PortId, mac: [u8; 6], packet: &[u8], src: Endpoint<V4>, mtu: u32) {
    let [out] = out else { panic!("{out:?}") };
    assert_eq!(
        (out.to, &out.bytes[..6], &out.bytes[6..12]),
        (To::Port(port), &mac[..], &US[usize::from(port.0)].0[..])
    );
    let text = |address: V4| format!("{address:?}");
    let error = PacketBuilder::icmp(&text(OWN[usize::from(port.0)]), &text(src.address), 3, 4).icmp_rest(mtu);
    let error = error.tos(0xc0).id(0).dont_fragment().payload(&packet[..548.min(packet.len())]);
    assert_eq!(packet_in(&out.bytes), error.build_ip());
    check(packet_in(&out.bytes));
}

#[test]
fn a_packet_not_to_be_cut_is_answered_with_the_mtu_there_is_room_for() {
    for (mode, protocol) in every() {
        let mut lab = Lab::new(World { mtu: [1500, 1400], ..World::default() });
        for worker in 0..3 {
            let conn = lab.open(worker, 40_000 + worker as u16, mode, protocol);
            let packet = data(protocol, conn.client, conn.vip, 1400).dont_fragment();
            let out = lab.deliver(worker, CLIENTS, &[packet.clone().link(CLIENT_MAC, US[0]).build()]);
            let mtu = if mode == Mode::Tun { 1380 } else { 1400 };
            assert_refused(&out, CLIENTS, CLIENT_MAC.0, &packet.build_ip(), conn.client, mtu);
        }
        assert_eq!((lab.dropped(DropReason::MtuExceeded), lab.count(Event::IcmpSent)), (3, 3));
        lab.finish();
    }
}

#[test]
fn a_packet_of_exactly_the_mtu_passes_and_one_byte_more_does_not() {
    for (mode, protocol) in every() {
        let mut lab = Lab::new(World { mtu: [1500, 1400], ..World::default() });
        let conn = lab.open(0, 40_000, mode, protocol);
        let headers = if protocol == Protocol::Tcp { 40 } else { 28 };
        let room = if mode == Mode::Tun { 1380 } else { 1400 } - headers;
        let mut sent = |len| {
            let packet = data(protocol, conn.client, conn.vip, len).dont_fragment().link(CLIENT_MAC, US[0]);
            lab.deliver(0, CLIENTS, &[packet.build()])
        };
        assert_eq!(at_server(&sent(room), &conn, 1400).len(), 1);
        assert_eq!(sent(room + 1)[0].to, To::Port(CLIENTS), "ICMP");
        lab.finish();
    }
}

#[test]
fn an_answer_not_to_be_cut_is_refused_towards_the_server() {
    for (mode, protocol) in every().filter(|(mode, _)| mode.sees_replies()) {
        let mut lab = Lab::new(World { mtu: [1400, 1500], ..World::default() });
        for worker in 0..3 {
            let conn = lab.open(worker, 40_000 + worker as u16, mode, protocol);
            let packet = data(protocol, conn.server, conn.peer, 1400).dont_fragment();
            let mac = server_mac(conn.server_id.slot as usize);
            let out = lab.deliver(worker, SERVERS, &[packet.clone().link(mac, US[1]).build()]);
            assert_refused(&out, SERVERS, mac.0, &packet.build_ip(), conn.server, 1400);
        }
        lab.finish();
    }
}

#[test]
fn a_packet_that_may_be_cut_arrives_in_fragments_that_make_it_whole() {
    for (mode, protocol) in every() {
        for mtu in [1400, 576, 100] {
            let mut lab = Lab::new(World { mtu: [1500, mtu], ..World::default() });
            for worker in 0..3 {
                let conn = lab.open(worker, 40_000 + worker as u16, mode, protocol);
                let packet = data(protocol, conn.client, conn.vip, 1400).id(99).link(CLIENT_MAC, US[0]);
                let out = lab.deliver(worker, CLIENTS, &[packet.build()]);
                assert!(out.len() > 1);
                let (src, dst) = ends_at_server(&conn);
                let expected = data(protocol, src, dst, 1400).id(99).ttl(63).build_ip();
                assert_eq!(reassembled(&at_server(&out, &conn, mtu)), expected);
            }
            assert_eq!(lab.count(Event::PacketsFragmented), 3);
            lab.finish();
        }
    }
}

#[test]
fn an_answer_that_may_be_cut_reaches_the_client_whole() {
    for (mode, protocol) in every().filter(|(mode, _)| mode.sees_replies()) {
        let mut lab = Lab::new(World { mtu: [600, 1500], ..World::default() });
        let conn = lab.open(0, 40_000, mode, protocol);
        let packet = data(protocol, conn.server, conn.peer, 1400).id(99);
        let mac = server_mac(conn.server_id.slot as usize);
        let out = lab.deliver(1, SERVERS, &[packet.link(mac, US[1]).build()]);
        let got: Vec<_> = out.iter().map(|out| packet_in(&out.bytes).to_vec()).collect();
        assert!(got.iter().all(|packet| packet.len() <= 600));
        let expected = data(protocol, conn.vip, conn.client, 1400).id(99).ttl(63).build_ip();
        assert_eq!(reassembled(&got), expected);
        lab.finish();
    }
}

#[test]
fn without_buffers_for_all_parts_none_is_sent() {
    let mut lab = Lab::new(World { workers: 1, mtu: [1500, 600], chunks: 8, ..World::default() });
    let conn = lab.open(0, 40_000, Mode::Dr, Protocol::Udp);
    let packet =
        data(Protocol::Udp, client(40_000), vip(Mode::Dr, Protocol::Udp), 1400).link(CLIENT_MAC, US[0]);
    // Three parts each: six frames in hand leave two buffers, four leave four.
    assert_eq!(lab.deliver(0, CLIENTS, &vec![packet.build(); 6]), []);
    let out = lab.deliver(0, CLIENTS, &vec![packet.build(); 4]);
    assert_eq!(at_server(&out, &conn, 600).len(), 3);
    assert_eq!((lab.count(Event::FragmentsSent), lab.count(Event::PacketsFragmented)), (3, 1));
    assert_eq!(lab.dropped(DropReason::NoBuffer), 9);
    lab.finish();
}
