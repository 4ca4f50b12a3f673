//! Where it is known how NICs spread flows: frames arrive at home, and whatever does not is handed there.

use std::collections::HashSet;

use proptest::prelude::*;
use shunt_dataplane::conn::Conn;
use shunt_dataplane::counters::Event;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Address, Endpoint, Protocol, Tuple, V4};
use shunt_dataplane::wire::builder::{IntoSocket, PacketBuilder};
use shunt_dataplane::wire::tcp::flags;
use shunt_engine::report::WorkerCounter;
use shunt_engine::rss::{self, Rss};

use crate::icmp::error;
use crate::lab::{CLIENT_MAC, CLIENTS, Lab, SERVERS, To, US, VIP, World, every, server_mac, six, vip};
use crate::on_workers::Bench;
use crate::packets::{at_server, data, ends_at_server};

/// What opens a connection: a SYN or a datagram.
fn first(protocol: Protocol, src: impl IntoSocket, dst: impl IntoSocket) -> Vec<u8> {
    let packet = match protocol {
        Protocol::Tcp => PacketBuilder::tcp(src, dst).flags(flags::SYN),
        Protocol::Udp => PacketBuilder::udp(src, dst),
    };
    packet.link(CLIENT_MAC, US[0]).build()
}

/// Clients' flows over the ports' own idea of RSS, both directions. Returns how many frames were handed to another worker.
fn handed_off(world: &World, modes: &[Mode]) -> u64 {
    let mut bench = Bench::new(world, [world.workers; 2]);
    for (mode, protocol) in every().filter(|(mode, _)| modes.contains(mode)) {
        for number in 0..16 {
            let from = Endpoint::new(V4(0xc633_6400 + number), 1024 + 977 * number as u16);
            let to = vip(mode, protocol);
            let frame = match world.ipv6 {
                false => first(protocol, from, to),
                true => {
                    let ends = [from, to].map(|end| Endpoint::new(six(end.address), end.port));
                    first(protocol, ends[0], ends[1])
                }
            };
            (0..2).for_each(|_| carry(&mut bench, 0, &frame));
        }
    }
    let answers: Vec<Vec<u8>> = bench
        .workers
        .iter()
        .flat_map(|worker| {
            let (v4, v6) = (worker.program().flows_v4().table(), worker.program().flows_v6().table());
            let mut answers = Vec::new();
            v4.scan(0, u32::MAX, |_, conn| answers.extend(answer(conn)));
            v6.scan(0, u32::MAX, |_, conn| answers.extend(answer(conn)));
            answers
        })
        .collect();
    let seen = every().filter(|(mode, _)| modes.contains(mode) && mode.sees_replies()).count();
    assert_eq!(answers.len(), 16 * seen);
    answers.iter().for_each(|frame| carry(&mut bench, 1, frame));
    let handed = bench.count(WorkerCounter::HandoffOut);
    bench.finish();
    handed
}

/// A frame comes in by one port, on the queue that its NIC chooses, and leaves by the other.
fn carry(bench: &mut Bench, from: usize, frame: &[u8]) {
    assert!(bench.wires[from].send(frame));
    bench.turn(3);
    assert!(bench.wires[1 - from].recv().is_some(), "a frame comes through");
    assert_eq!(bench.wires[1 - from].recv(), None);
}

/// What the server of a connection answers, if answers pass here.
fn answer<A: Address>(conn: &Conn<A>) -> Option<Vec<u8>> {
    let packet = PacketBuilder::tuple(&Tuple { src: conn.server, dst: conn.peer, protocol: conn.protocol() });
    conn.mode().sees_replies().then(|| packet.link(server_mac(conn.server_id.slot as usize), US[1]).build())
}

#[test]
fn with_rss_known_no_frame_of_fullnat_dr_or_tun_is_handed_on_in_either_direction() {
    for workers in [1, 2, 3, 5, 6, 7, 8] {
        for ipv6 in [false, true] {
            let world = World {
                workers,
                ipv6,
                rss: Some(Rss::even(workers)),
                max_connections: 256,
                ..World::default()
            };
            assert_eq!(handed_off(&world, &[Mode::Fullnat, Mode::Dr, Mode::Tun]), 0, "{workers} workers");
        }
    }
}

#[test]
fn nat_is_at_home_by_its_client_and_frames_that_arrive_elsewhere_are_handed_on() {
    for workers in [2, 3] {
        let rss = Some(Rss::even(workers));
        let world = World { workers, rss, max_connections: 256, ..World::default() };
        assert!(handed_off(&world, &[Mode::Nat]) > 16, "{workers} workers");
    }
}

#[test]
fn connections_from_before_a_service_had_a_nat_server_go_on() {
    for (mode, protocol) in every() {
        let rss = Rss::even(3);
        let mut lab = Lab::new(World { rss: Some(rss.clone()), ..World::default() });
        let conn = lab.open(0, 40_000, mode, protocol);
        lab.reload(|world| world.other_modes = true);
        lab.reload(|world| world.other_modes = false);
        lab.reload(|world| world.other_modes = true);
        let arrives = arrival(&lab.world, &rss, &conn.request());
        // A datagram that arrives elsewhere opens a connection anew.
        for worker in (0..3).filter(|&worker| protocol == Protocol::Tcp || worker == arrives) {
            let frame = data(protocol, conn.client, conn.vip, 10).link(CLIENT_MAC, US[0]).build();
            let out = lab.deliver(worker, CLIENTS, &[frame]);
            let (src, dst) = ends_at_server(&conn);
            let expected = data(protocol, src, dst, 10).ttl(63).build_ip();
            assert_eq!(at_server(&out, &conn, 1500), [expected], "{mode:?} {protocol} at {worker}");
        }
        // What belongs to no connection is refused wherever it arrives.
        for worker in 0..3 {
            let stray = data(Protocol::Tcp, crate::lab::client(50_000), vip(mode, Protocol::Tcp), 10);
            let out = lab.deliver(worker, CLIENTS, &[stray.link(CLIENT_MAC, US[0]).build()]);
            assert_eq!(out.len(), 1, "a RST");
            assert_eq!((out[0].to, &out[0].bytes[..6]), (To::Port(CLIENTS), &CLIENT_MAC.0[..]));
        }
        lab.finish();
    }
}

/// The worker that a NIC brings packets of `tuple` to.
fn arrival(world: &World, nic: &Rss, tuple: &Tuple<V4>) -> usize {
    let (source, destination) = (tuple.src.address.to_ip(), tuple.dst.address.to_ip());
    let ports = Some((tuple.src.port, tuple.dst.port));
    let protocol = tuple.protocol.number();
    world.owner(nic.queue_of(&rss::Tuple { source, destination, protocol, ports })).0.into()
}

/// Any indirection table, most of them of no power of two, any key, any fields.
fn any_rss(queues: u16) -> impl Strategy<Value = Rss> {
    let key = prop::collection::vec(1..=u8::MAX, 36..60);
    let reta = prop::collection::vec(0..queues, 1..200);
    (key, reta, any::<(bool, bool)>()).prop_map(|(key, reta, (tcp_ports, udp_ports))| Rss {
        key: key.into(),
        reta: reta.into(),
        tcp_ports,
        udp_ports,
    })
}

fn any_case() -> impl Strategy<Value = (u16, Rss, Rss, Vec<(u8, u16)>)> {
    let queues = 1..=16u16;
    let clients = prop::collection::vec((1..=200u8, 1024..=u16::MAX), 8);
    (1..=16u16, queues, clients).prop_flat_map(|(workers, queues, clients)| {
        (Just(workers), any_rss(queues), any_rss(queues), Just(clients))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// `known` is what the workers believe, `nic` what the NIC of the servers' side does.
    #[test]
    fn both_directions_and_the_errors_about_them_meet_at_one_home(
        (workers, known, nic, clients) in any_case(),
        nic_is_known in any::<bool>(),
    ) {
        let servers_nic = if nic_is_known { &known } else { &nic };
        let world = World { workers, rss: Some(known.clone()), ..World::default() };
        let believed = world.agreed().spread.is_some() && workers > 1;
        let mut lab = Lab::new(world);
        let mut endpoints = HashSet::new();
        for ((mode, protocol), &(host, port)) in every().zip(&clients) {
            let (from, to) = (Endpoint::new(V4(0xc633_6400 + u32::from(host)), port), vip(mode, protocol));
            let request = Tuple { src: from, dst: to, protocol };
            let arrives = arrival(&lab.world, &known, &request);
            let before = lab.count(Event::HandedOff);
            let out = lab.deliver(arrives, CLIENTS, &[first(protocol, from, to)]);
            prop_assert_eq!(out.len(), 1);
            let (home, conn) = lab.conn(from, to).unwrap();
            prop_assert_eq!(out[0].worker, home);
            let mut free = believed && mode != Mode::Nat || workers == 1;
            prop_assert!(!free || home == arrives);
            let (src, dst) = ends_at_server(&conn);
            prop_assert!(endpoints.insert((src, dst, protocol)));
            if mode.sees_replies() {
                let reply = Tuple { src: conn.server, dst: conn.peer, protocol };
                let frame = answer(&conn).unwrap();
                let arrives = arrival(&lab.world, servers_nic, &reply);
                let hashed = if protocol == Protocol::Tcp { known.tcp_ports } else { known.udp_ports };
                free &= nic_is_known && hashed || workers == 1;
                prop_assert!(!free || home == arrives, "answers arrive at home");
                let out = lab.deliver(arrives, SERVERS, &[frame]);
                prop_assert_eq!(out.len(), 1);
                prop_assert_eq!((out[0].to, out[0].worker), (To::Port(CLIENTS), home));
            }
            prop_assert!(!free || lab.count(Event::HandedOff) == before);
            // Errors of a router on either side, about what it has seen, from whatever worker.
            for worker in [0, usize::from(workers) - 1, home] {
                let router = V4(0x0a01_00fe);
                let seen = data(protocol, src, dst, 30).build_ip();
                if mode.sees_replies() {
                    let frame = error(router, src.address, &seen, 28).link(server_mac(0), US[1]).build();
                    let out = lab.deliver(worker, SERVERS, &[frame]);
                    prop_assert_eq!(out.len(), 1);
                    prop_assert_eq!((out[0].to, out[0].worker), (To::Port(CLIENTS), home));
                }
                let seen = data(protocol, to, from, 30).build_ip();
                let frame = error(from.address, VIP, &seen, 28).link(CLIENT_MAC, US[0]).build();
                let out = lab.deliver(worker, CLIENTS, &[frame]);
                prop_assert_eq!(out.len(), 1);
                prop_assert_eq!((out[0].to, out[0].worker), (To::Port(SERVERS), home));
            }
        }
        prop_assert_eq!(lab.connections().len(), every().count());
        lab.finish();
    }
}
