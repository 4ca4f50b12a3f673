//! ICMP errors about our flows: whoever gets one recognises its own packet in it.

use shunt_dataplane::conn::Conn;
use shunt_dataplane::counters::Event;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Protocol, V4};
use shunt_dataplane::verdict::DropReason;
use shunt_dataplane::wire::builder::PacketBuilder;

use crate::lab::{
    CLIENT_MAC, CLIENTS, Lab, OWN, Out, SERVERS, To, US, VIP, World, every, packet_in, server_mac,
};
use crate::packets::{at_server, check, data, reassembled};

const ROUTER: V4 = V4(0x0a01_00fe);

/// "Host unreachable" from `src` to `dst` about the first `quote` bytes of `packet`.
pub(crate) fn error(src: V4, dst: V4, packet: &[u8], quote: usize) -> PacketBuilder {
    let quote = &packet[..quote.min(packet.len())];
    PacketBuilder::icmp(&format!("{src:?}"), &format!("{dst:?}"), 3, 1).payload(quote)
}

fn the_packet(out: &[Out], to: To) -> &[u8] {
    let [out] = out else { panic!("{out:?}") };
    assert_eq!(out.to, to);
    let packet = packet_in(&out.bytes);
    check(packet);
    packet
}

/// The connection's client sends, and the frame as the server gets it.
fn request(lab: &mut Lab, conn: &Conn<V4>) -> Vec<u8> {
    let packet = data(conn.protocol(), conn.client, conn.vip, 30).id(5).link(CLIENT_MAC, US[0]);
    the_packet(&lab.deliver(0, CLIENTS, &[packet.build()]), To::Port(SERVERS)).to_vec()
}

#[test]
fn an_error_from_the_servers_side_reaches_the_client_as_one_about_its_own_packet() {
    for (mode, protocol) in every().filter(|(mode, _)| mode.sees_replies()) {
        let mut lab = Lab::new(World::default());
        for (case, worker) in (0..9).zip([0, 1, 2].into_iter().cycle()) {
            let conn = lab.open(worker, 40_000 + case / 3, mode, protocol);
            let seen = request(&mut lab, &conn);
            let server = conn.server.address;
            // A router's goes to the address that it saw: in NAT the client's.
            for (sender, quote) in
                [server, ROUTER].into_iter().flat_map(|sender| [(sender, 28), (sender, 548)])
            {
                let frame = error(sender, conn.peer.address, &seen, quote).ttl(60).link(server_mac(0), US[1]);
                let out = lab.deliver(worker, SERVERS, &[frame.build()]);
                let sent = data(protocol, conn.client, conn.vip, 30).id(5).ttl(63).build_ip();
                let expected = error(VIP, conn.client.address, &sent, quote).ttl(59).build_ip();
                assert_eq!(the_packet(&out, To::Port(CLIENTS)), expected, "{mode:?} {protocol} {quote}");
                assert_eq!(out[0].bytes[..6], CLIENT_MAC.0);
            }
        }
        assert_eq!(lab.count(Event::IcmpForwarded), 36);
        lab.finish();
    }
}

#[test]
fn an_error_from_the_clients_side_reaches_the_server_as_one_about_its_own_packet() {
    for (mode, protocol) in every() {
        let mut lab = Lab::new(World::default());
        for (case, worker) in (0..9).zip([0, 1, 2].into_iter().cycle()) {
            let conn = lab.open(worker, 40_000 + case / 3, mode, protocol);
            // What the server answers, and what the client's side gets of it.
            let (src, dst) =
                if mode.sees_replies() { (conn.server, conn.peer) } else { (conn.vip, conn.client) };
            let ttl = if mode.sees_replies() { 63 } else { 64 };
            let seen = data(protocol, conn.vip, conn.client, 30).id(6).ttl(ttl).build_ip();
            let sent = data(protocol, src, dst, 30).id(6).ttl(ttl).build_ip();
            for (sender, quote) in [(conn.client.address, 28), (conn.client.address, 548), (ROUTER, 548)] {
                let frame = error(sender, VIP, &seen, quote).ttl(60).link(CLIENT_MAC, US[0]).build();
                let out = lab.deliver(worker, CLIENTS, &[frame]);
                the_packet(&out, To::Port(SERVERS));
                let (from, to) = match mode {
                    Mode::Fullnat => (conn.peer.address, conn.server.address),
                    Mode::Nat => (sender, conn.server.address),
                    Mode::Dr | Mode::Tun => (sender, VIP),
                };
                let expected = error(from, to, &sent, quote).ttl(59).build_ip();
                assert_eq!(at_server(&out, &conn, 1500), [expected], "{mode:?} {protocol} {quote}");
            }
        }
        assert_eq!(lab.count(Event::IcmpForwarded), 27);
        lab.finish();
    }
}

#[test]
fn an_error_about_a_tunnel_is_told_to_the_client_from_every_worker() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut lab = Lab::new(World::default());
        for (case, worker) in (0..9).zip([0, 1, 2].into_iter().cycle()) {
            let conn = lab.open(worker, 40_000 + case / 3, Mode::Tun, protocol);
            let seen = data(protocol, conn.client, conn.vip, 1000).dont_fragment().link(CLIENT_MAC, US[0]);
            let out = lab.deliver(worker, CLIENTS, &[seen.build()]);
            let inside = &at_server(&out, &conn, 1500)[0];
            let outer = packet_in(&out[0].bytes);
            let too_big = |src: V4, dst: V4, mtu, quote: &[u8]| {
                PacketBuilder::icmp(&format!("{src:?}"), &format!("{dst:?}"), 3, 4)
                    .icmp_rest(mtu)
                    .payload(quote)
            };
            let frame = too_big(ROUTER, OWN[1], 900, outer).link(server_mac(0), US[1]).build();
            let out = lab.deliver((worker + 1) % 3, SERVERS, &[frame]);
            let expected = too_big(OWN[0], conn.client.address, 880, &inside[..548]).tos(0xc0).id(0);
            assert_eq!(the_packet(&out, To::Port(CLIENTS)), expected.dont_fragment().build_ip());
        }
        assert_eq!((lab.count(Event::IcmpForwarded), lab.count(Event::IcmpSent)), (9, 0));
        lab.finish();
    }
}

#[test]
fn an_error_about_nothing_of_ours_is_the_kernels() {
    let mut lab = Lab::new(World::default());
    let conn = lab.open(0, 40_000, Mode::Fullnat, Protocol::Tcp);
    let other = data(Protocol::Tcp, conn.vip, crate::lab::client(50_000), 30).build_ip();
    let whole = data(Protocol::Tcp, conn.vip, conn.client, 30).build_ip();
    let later =
        PacketBuilder::raw("203.0.113.10", "198.51.100.7", 6).fragment_offset(8).payload([0; 20]).build_ip();
    for worker in 0..3 {
        let errors = [
            error(conn.client.address, VIP, &other, 548),
            error(conn.client.address, VIP, &whole, 27),
            error(conn.client.address, VIP, &[], 0),
            error(conn.client.address, VIP, &later, 548),
            // In pieces: the later ones have nothing to be known by.
            error(conn.client.address, VIP, &whole, 548).more_fragments(),
        ];
        for error in errors {
            let frame = error.link(CLIENT_MAC, US[0]).build();
            let out = lab.deliver(worker, CLIENTS, std::slice::from_ref(&frame));
            assert_eq!((out[0].to, &out[0].bytes), (To::Kernel, &frame));
        }
    }
    lab.finish();
}

#[test]
fn a_long_error_is_cut_for_the_tunnel_or_dropped_without_an_answer() {
    let mut lab = Lab::new(World::default());
    let conn = lab.open(0, 40_000, Mode::Tun, Protocol::Udp);
    let seen = data(Protocol::Udp, conn.vip, conn.client, 1400).build_ip();
    let long = error(conn.client.address, VIP, &seen, 1428).payload([&seen[..], &[7; 40]].concat());
    let out = lab.deliver(1, CLIENTS, &[long.clone().link(CLIENT_MAC, US[0]).build()]);
    let parts = at_server(&out, &conn, 1500);
    assert_eq!(parts.len(), 2);
    assert_eq!(reassembled(&parts), long.clone().ttl(63).build_ip());
    let whole = long.dont_fragment().link(CLIENT_MAC, US[0]).build();
    assert_eq!(lab.deliver(1, CLIENTS, &[whole]), []);
    assert_eq!((lab.dropped(DropReason::MtuExceeded), lab.count(Event::IcmpSent)), (1, 0));
    assert_eq!(lab.count(Event::IcmpForwarded), 1);
    lab.finish();
}

#[test]
fn what_follows_a_short_quote_in_the_frame_is_no_part_of_it() {
    let mut lab = Lab::new(World::default());
    let conn = lab.open(0, 40_000, Mode::Fullnat, Protocol::Tcp);
    let seen = request(&mut lab, &conn);
    let trailer = [0xa5; 20];
    let frame = error(conn.server.address, conn.peer.address, &seen, 28).link(server_mac(0), US[1]).build();
    let out = lab.deliver(2, SERVERS, &[[&frame[..], &trailer].concat()]);
    let sent = data(Protocol::Tcp, conn.client, conn.vip, 30).id(5).ttl(63).build_ip();
    let expected = error(VIP, conn.client.address, &sent, 28).ttl(63).build_ip();
    assert_eq!(the_packet(&out, To::Port(CLIENTS)), [&expected[..], &trailer].concat());
    lab.finish();
}
