//! Where answers go on the link: to the client's own station, learnt from its frames on its own network only.

use shunt_dataplane::counters::Event;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::Protocol;
use shunt_dataplane::verdict::DropReason;
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_engine::PortId;
use shunt_engine::port::MacAddr;

use crate::lab::{CLIENT_MAC, CLIENTS, Lab, ROUTER_MAC, SERVERS, To, US, World, client, server_mac, vip};
use crate::packets::data;

/// Opens a connection by a frame from `mac` on `port`, and returns where its server's answer goes, if anywhere.
fn answered_to(
    lab: &mut Lab,
    mac: MacAddr,
    port: PortId,
    vid: Option<u16>,
) -> Option<(Vec<u8>, Option<u16>)> {
    let (src, dst) = (client(40_000), vip(Mode::Nat, Protocol::Udp));
    let packet = PacketBuilder::udp(src, dst).link(mac, US[usize::from(port.0)]);
    let packet = vid.map_or(packet.clone(), |vid| packet.vlan(vid));
    assert_eq!(lab.deliver(0, port, &[packet.build()]).len(), 1, "the request goes on in any case");
    let conn = lab.conn(src, dst).unwrap().1;
    let answer = data(Protocol::Udp, conn.server, conn.peer, 10);
    let answer = answer.link(server_mac(conn.server_id.slot as usize), US[1]).build();
    let out = lab.deliver(0, SERVERS, &[answer]);
    out.first().map(|out| {
        assert_eq!(out.to, To::Port(CLIENTS));
        let tag =
            (out.bytes[12..14] == [0x81, 0]).then(|| u16::from_be_bytes([out.bytes[14], out.bytes[15]]));
        (out.bytes[..6].to_vec(), tag)
    })
}

#[test]
fn an_answer_goes_to_the_station_the_request_came_from() {
    let mut lab = Lab::new(World::default());
    assert_eq!(answered_to(&mut lab, CLIENT_MAC, CLIENTS, None), Some((CLIENT_MAC.0.to_vec(), None)));
    let moved = MacAddr([2, 0, 0, 0, 1, 8]);
    assert_eq!(answered_to(&mut lab, moved, CLIENTS, None), Some((moved.0.to_vec(), None)));
    lab.finish();
}

#[test]
fn a_router_on_another_port_is_not_taken_for_the_client() {
    let mut lab = Lab::new(World::default());
    assert_eq!(answered_to(&mut lab, ROUTER_MAC, SERVERS, None), None);
    assert_eq!(lab.dropped(DropReason::NoNeighbour), 1);
    assert_eq!(answered_to(&mut lab, CLIENT_MAC, CLIENTS, None), Some((CLIENT_MAC.0.to_vec(), None)));
    assert_eq!(answered_to(&mut lab, ROUTER_MAC, SERVERS, None), Some((CLIENT_MAC.0.to_vec(), None)));
    lab.finish();
}

#[test]
fn a_router_in_another_vlan_is_not_taken_for_the_client() {
    let mut lab = Lab::new(World { clients_vid: Some(7), ..World::default() });
    assert_eq!(answered_to(&mut lab, ROUTER_MAC, CLIENTS, Some(8)), None);
    assert_eq!(answered_to(&mut lab, ROUTER_MAC, CLIENTS, None), None);
    let client = Some((CLIENT_MAC.0.to_vec(), Some(7)));
    assert_eq!(answered_to(&mut lab, CLIENT_MAC, CLIENTS, Some(7)), client);
    // Priority bits are no part of the VLAN's number.
    let moved = MacAddr([2, 0, 0, 0, 1, 8]);
    let moved_to = Some((moved.0.to_vec(), Some(7)));
    assert_eq!(answered_to(&mut lab, moved, CLIENTS, Some(0xa007)), moved_to);
    lab.finish();
}

#[test]
fn nothing_is_sent_to_a_group_address() {
    let mut lab = Lab::new(World::default());
    assert_eq!(answered_to(&mut lab, MacAddr([0xff; 6]), CLIENTS, None), None);
    let stray = PacketBuilder::tcp(client(40_000), vip(Mode::Nat, Protocol::Tcp));
    let dying = PacketBuilder::udp(client(40_000), vip(Mode::Nat, Protocol::Udp)).ttl(1);
    for packet in [stray, dying] {
        let frame = packet.link(MacAddr([0x01, 0, 0x5e, 0, 0, 1]), US[0]).build();
        assert_eq!(lab.deliver(1, CLIENTS, &[frame]), []);
    }
    assert_eq!((lab.count(Event::ResetsSuppressed), lab.count(Event::IcmpSuppressed)), (1, 1));
    lab.finish();
}

#[test]
fn an_answer_takes_the_route_there_is_now() {
    let mut lab = Lab::new(World::default());
    let conn = lab.open(0, 40_000, Mode::Nat, Protocol::Udp);
    let answer = data(Protocol::Udp, conn.server, conn.peer, 10);
    let answer = answer.link(server_mac(conn.server_id.slot as usize), US[1]).build();
    for (routed, station) in [(false, CLIENT_MAC), (true, ROUTER_MAC), (false, CLIENT_MAC)] {
        lab.reload(|world| world.clients_routed = routed);
        let out = lab.deliver(1, SERVERS, std::slice::from_ref(&answer));
        assert_eq!((out[0].to, &out[0].bytes[..6]), (To::Port(CLIENTS), &station.0[..]));
    }
    lab.finish();
}
