//! The same in IPv6: flows, fragments and ICMP errors come through from whatever worker they arrive on.

use shunt_dataplane::conn::Conn;
use shunt_dataplane::counters::Event;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Endpoint, Protocol, Tuple, V4, V6};
use shunt_dataplane::verdict::DropReason;
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::{extension, ipv6};
use shunt_engine::PortId;
use shunt_engine::port::MacAddr;

use crate::lab::{
    CLIENT_MAC, CLIENTS, Lab, OWN, Out, SERVERS, To, US, VIP, World, client, every, packet_in, server_mac,
    six, vip,
};
use crate::packets::payload;

const ROUTER: V4 = V4(0x0a01_00fe);

fn world() -> Lab {
    Lab::new(World { ipv6: true, ..World::default() })
}

fn end(of: Endpoint<V4>) -> Endpoint<V6> {
    Endpoint::new(six(of.address), of.port)
}

fn text(address: V6) -> String {
    format!("{address:?}")
}

fn data(protocol: Protocol, src: Endpoint<V6>, dst: Endpoint<V6>, len: usize) -> PacketBuilder {
    PacketBuilder::tuple(&Tuple { src, dst, protocol }).payload(payload(len))
}

fn framed(from: MacAddr, to: MacAddr, packet: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &[0x86, 0xdd], packet].concat()
}

/// Opens a connection by a first packet that worker `worker` receives.
fn open(lab: &mut Lab, worker: usize, port: u16, mode: Mode, protocol: Protocol) -> Conn<V6> {
    let (from, to) = (end(client(port)), end(vip(mode, protocol)));
    let packet = match protocol {
        Protocol::Tcp => PacketBuilder::tcp(from, to).flags(shunt_dataplane::wire::tcp::flags::SYN),
        Protocol::Udp => PacketBuilder::udp(from, to),
    };
    lab.deliver(worker, CLIENTS, &[packet.link(CLIENT_MAC, US[0]).build()]);
    let found = lab.connections_v6().into_iter().find(|conn| (conn.client, conn.vip) == (from, to));
    found.expect("the connection is open")
}

/// What left by `port` to `station`.
fn left(out: &[Out], port: PortId, station: MacAddr) -> Vec<Vec<u8>> {
    let packet = |out: &Out| {
        assert_eq!((out.to, &out.bytes[..6]), (To::Port(port), &station.0[..]));
        packet_in(&out.bytes).to_vec()
    };
    out.iter().map(packet).collect()
}

/// The packets that went to the server of `conn`, out of their tunnel if it has one.
fn at_server(out: &[Out], conn: &Conn<V6>) -> Vec<Vec<u8>> {
    let packets = left(out, SERVERS, server_mac(conn.server_id.slot as usize));
    if conn.mode() != Mode::Tun {
        return packets;
    }
    let inner = |bytes: &Vec<u8>| {
        let outer = ipv6::Packet::new_checked(bytes).unwrap();
        let ends = (outer.src(), outer.dst(), outer.next_header());
        assert_eq!(ends, (six(OWN[1]), conn.server.address, 41));
        outer.payload().to_vec()
    };
    packets.iter().map(inner).collect()
}

/// What a client's packet looks like to the server of `conn`: source and destination.
fn ends_at_server(conn: &Conn<V6>) -> (Endpoint<V6>, Endpoint<V6>) {
    if conn.mode().sees_replies() { (conn.peer, conn.server) } else { (conn.client, conn.vip) }
}

#[test]
fn packets_go_there_and_back_from_every_worker() {
    for (mode, protocol) in every() {
        let mut lab = world();
        for (case, worker) in (0..9).zip([0, 1, 2].into_iter().cycle()) {
            let conn = open(&mut lab, worker, 40_000 + case, mode, protocol);
            for arrival in 0..3 {
                let request = data(protocol, conn.client, conn.vip, 31).link(CLIENT_MAC, US[0]).build();
                let (src, dst) = ends_at_server(&conn);
                let expected = data(protocol, src, dst, 31).ttl(63).build_ip();
                let out = lab.deliver(arrival, CLIENTS, &[request]);
                assert_eq!(at_server(&out, &conn), [expected], "{mode:?} {protocol} at {arrival}");
                if mode.sees_replies() {
                    let from = server_mac(conn.server_id.slot as usize);
                    let reply = data(protocol, conn.server, conn.peer, 32).link(from, US[1]).build();
                    let expected = data(protocol, conn.vip, conn.client, 32).ttl(63).build_ip();
                    let out = lab.deliver(arrival, SERVERS, &[reply]);
                    assert_eq!(
                        left(&out, CLIENTS, CLIENT_MAC),
                        [expected],
                        "{mode:?} {protocol} at {arrival}"
                    );
                }
            }
        }
        lab.finish();
    }
}

/// Cuts a packet into fragments of at most `size` bytes of payload each, a multiple of 8.
fn cut(packet: &[u8], size: usize, id: u32) -> Vec<Vec<u8>> {
    let (header, payload) = packet.split_at(ipv6::HEADER_LEN);
    let count = payload.len().div_ceil(size);
    let part = |(index, chunk): (usize, &[u8])| {
        let more = u16::from(index + 1 < count);
        let fragment =
            [&[header[6], 0], &((index * size) as u16 | more).to_be_bytes()[..], &id.to_be_bytes()];
        let mut part = [header, &fragment.concat(), chunk].concat();
        part[4..6].copy_from_slice(&((8 + chunk.len()) as u16).to_be_bytes());
        part[6] = extension::kind::FRAGMENT;
        part
    };
    payload.chunks(size).enumerate().map(part).collect()
}

#[test]
fn a_datagram_in_three_fragments_reaches_its_server_from_every_worker_in_every_order() {
    let orders = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]];
    let arrivals = [[0, 0, 0], [1, 1, 1], [2, 2, 2], [0, 1, 2], [2, 0, 1]];
    for mode in Mode::ALL {
        let mut lab = world();
        let cases = orders.iter().flat_map(|order| arrivals.iter().map(move |arrival| (order, arrival)));
        for (case, (order, arrival)) in cases.enumerate() {
            let (src, dst) = (end(client(40_000 + case as u16 / 3)), end(vip(mode, Protocol::Udp)));
            // More than 16 bits tell one packet from another.
            let id = 0x0001_0000 * (case as u32 + 1);
            let parts = cut(&data(Protocol::Udp, src, dst, 3000).build_ip(), 1400, id);
            assert_eq!(parts.len(), 3);
            let mut out = Vec::new();
            for (&part, &worker) in order.iter().zip(arrival) {
                out.extend(lab.deliver(worker, CLIENTS, &[framed(CLIENT_MAC, US[0], &parts[part])]));
            }
            let conn = lab.connections_v6().into_iter().find(|conn| conn.client == src).unwrap();
            let (src, dst) = ends_at_server(&conn);
            let mut got = at_server(&out, &conn);
            got.sort_by_key(|part| extension::walk(part).unwrap().fragment.unwrap().offset);
            let expected = cut(&data(Protocol::Udp, src, dst, 3000).ttl(63).build_ip(), 1400, id);
            assert_eq!(got, expected, "{mode:?} {order:?} at {arrival:?}");
        }
        assert_eq!(lab.dropped(DropReason::HandoffLoop), 0);
        assert_eq!(lab.count(Event::FragmentsFollowed), 2 * 20, "each counts once");
        lab.finish();
    }
}

/// "No route" from `src` to `dst` about `packet`.
fn error(src: V6, dst: V6, packet: &[u8]) -> PacketBuilder {
    PacketBuilder::icmp(&text(src), &text(dst), 1, 0).payload(packet).ttl(60)
}

#[test]
fn an_error_from_the_servers_side_reaches_the_client_as_one_about_its_own_packet() {
    for (mode, protocol) in every().filter(|(mode, _)| mode.sees_replies()) {
        let mut lab = world();
        for (case, worker) in (0..9).zip([0, 1, 2].into_iter().cycle()) {
            let conn = open(&mut lab, worker, 40_000 + case / 3, mode, protocol);
            let seen = data(protocol, conn.peer, conn.server, 30).ttl(63).build_ip();
            let sent = data(protocol, conn.client, conn.vip, 30).ttl(63).build_ip();
            let expected = error(six(VIP), conn.client.address, &sent).ttl(59).build_ip();
            // A router's goes to the address that it saw: in NAT the client's.
            for sender in [conn.server.address, six(ROUTER)] {
                let frame = error(sender, conn.peer.address, &seen).link(server_mac(0), US[1]).build();
                let out = lab.deliver(worker, SERVERS, &[frame]);
                assert_eq!(
                    left(&out, CLIENTS, CLIENT_MAC),
                    [&expected[..]],
                    "{mode:?} {protocol} {sender:?}"
                );
            }
        }
        assert_eq!(lab.count(Event::IcmpForwarded), 18);
        lab.finish();
    }
}

#[test]
fn an_error_from_the_clients_side_reaches_the_server_as_one_about_its_own_packet() {
    for (mode, protocol) in every() {
        let mut lab = world();
        for (case, worker) in (0..9).zip([0, 1, 2].into_iter().cycle()) {
            let conn = open(&mut lab, worker, 40_000 + case / 3, mode, protocol);
            let (src, dst) = ends_at_server(&conn);
            let seen = data(protocol, conn.vip, conn.client, 30).build_ip();
            let sent = data(protocol, dst, src, 30).build_ip();
            for sender in [conn.client.address, six(ROUTER)] {
                let frame = error(sender, six(VIP), &seen).link(CLIENT_MAC, US[0]).build();
                let out = lab.deliver(worker, CLIENTS, &[frame]);
                let (from, to) = match mode {
                    Mode::Fullnat => (conn.peer.address, conn.server.address),
                    Mode::Nat => (sender, conn.server.address),
                    Mode::Dr | Mode::Tun => (sender, six(VIP)),
                };
                let expected = error(from, to, &sent).ttl(59).build_ip();
                assert_eq!(at_server(&out, &conn), [expected], "{mode:?} {protocol}");
            }
        }
        assert_eq!(lab.count(Event::IcmpForwarded), 18);
        lab.finish();
    }
}

#[test]
fn an_error_about_a_tunnel_is_told_to_the_client_from_every_worker() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut lab = world();
        for (case, worker) in (0..9).zip([0, 1, 2].into_iter().cycle()) {
            let conn = open(&mut lab, worker, 40_000 + case / 3, Mode::Tun, protocol);
            let inside = data(protocol, conn.client, conn.vip, 1000).ttl(63).build_ip();
            let outer = PacketBuilder::raw(&text(six(OWN[1])), &text(conn.server.address), 41);
            let outer = outer.payload(inside.clone()).build_ip();
            let too_big = |src: V6, dst: V6, mtu, quote: &[u8]| {
                PacketBuilder::icmp(&text(src), &text(dst), 2, 0).icmp_rest(mtu).payload(quote)
            };
            let frame = too_big(six(ROUTER), six(OWN[1]), 1400, &outer).link(server_mac(0), US[1]).build();
            let out = lab.deliver(worker, SERVERS, &[frame]);
            let expected = too_big(six(OWN[0]), conn.client.address, 1360, &inside).build_ip();
            assert_eq!(left(&out, CLIENTS, CLIENT_MAC), [expected], "{protocol} at {worker}");
        }
        assert_eq!((lab.count(Event::IcmpForwarded), lab.count(Event::IcmpSent)), (9, 0));
        lab.finish();
    }
}
