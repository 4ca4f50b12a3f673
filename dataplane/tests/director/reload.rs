//! Servers come and go while connections live.

use shunt_dataplane::counters::{Event, ServerField};
use shunt_dataplane::server::Mode;
use shunt_dataplane::service::ServerGone;
use shunt_dataplane::tuple::Protocol;
use shunt_dataplane::verdict::DropReason;
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::ipv4;
use shunt_dataplane::wire::tcp::{self, flags};

use shunt_engine::Duration;

use crate::lab::{
    CLIENT_MAC, CLIENTS, Lab, PER_SERVICE, SERVERS, To, US, World, every, number, packet_in, server_mac,
};
use crate::packets::{at_server, data, ends_at_server};

/// Opens `count` connections from workers in turn; every other server is removed afterwards. Returns those whose server
/// stayed and those whose went.
fn after_a_removal(
    lab: &mut Lab,
    mode: Mode,
    protocol: Protocol,
) -> [Vec<shunt_dataplane::conn::Conn<shunt_dataplane::tuple::V4>>; 2] {
    for case in 0..12 {
        let conn = lab.open(case % 3, 40_000 + case as u16, mode, protocol);
        if protocol == Protocol::Tcp && case % 2 == 0 {
            let ack = PacketBuilder::tcp(conn.client, conn.vip).flags(flags::ACK).link(CLIENT_MAC, US[0]);
            lab.deliver(case % 3, CLIENTS, &[ack.build()]);
        }
    }
    let gone = number(mode, protocol) * PER_SERVICE;
    lab.reload(|world| world.servers[gone] = None);
    let (went, stayed): (Vec<_>, Vec<_>) = lab
        .connections()
        .into_iter()
        .map(|(_, conn)| conn)
        .partition(|conn| conn.server_id.slot as usize == gone);
    assert!(!went.is_empty() && !stayed.is_empty());
    [stayed, went]
}

#[test]
fn connections_of_a_server_that_stays_go_on_and_their_counts_stay_exact() {
    for (mode, protocol) in every() {
        let mut lab = Lab::new(World::default());
        let [stayed, _] = after_a_removal(&mut lab, mode, protocol);
        let slot = number(mode, protocol) * PER_SERVICE + 1;
        for worker in 0..3 {
            for conn in &stayed {
                let frame = data(protocol, conn.client, conn.vip, 10).link(CLIENT_MAC, US[0]).build();
                let out = lab.deliver(worker, CLIENTS, &[frame]);
                assert_eq!((out[0].to, &out[0].bytes[..6]), (To::Port(SERVERS), &server_mac(slot).0[..]));
            }
        }
        let sum = |lab: &mut Lab, field| lab.server(slot, field).iter().sum::<u64>();
        let (active, inactive) = (sum(&mut lab, ServerField::Active), sum(&mut lab, ServerField::Inactive));
        let live = stayed.len() as u64;
        assert_eq!((active, inactive), if protocol == Protocol::Tcp { (live, 0) } else { (0, live) });
        lab.finish();
    }
}

#[test]
fn a_new_first_packet_to_a_removed_server_goes_to_another() {
    for (mode, protocol) in every() {
        let mut lab = Lab::new(World::default());
        let [_, went] = after_a_removal(&mut lab, mode, protocol);
        let slot = number(mode, protocol) * PER_SERVICE + 1;
        for (conn, worker) in went.iter().zip([0, 1, 2].into_iter().cycle()) {
            let before = (lab.count(Event::ConnectionsOpened), lab.dropped(DropReason::ServerGone));
            let again = lab.open(worker, conn.client.port, mode, protocol);
            assert_eq!(again.server_id.slot as usize, slot);
            let after = (lab.count(Event::ConnectionsOpened), lab.dropped(DropReason::ServerGone));
            assert_eq!(after, (before.0 + 1, before.1));
        }
        lab.finish();
    }
}

#[test]
fn other_packets_to_a_removed_server_are_refused_as_the_service_says() {
    for policy in [ServerGone::Reset, ServerGone::Drop] {
        for mode in Mode::ALL {
            let mut lab = Lab::new(World { server_gone: policy, ..World::default() });
            let [_, went] = after_a_removal(&mut lab, mode, Protocol::Tcp);
            for (conn, worker) in went.iter().zip([0, 1, 2].into_iter().cycle()) {
                let frame =
                    PacketBuilder::tcp(conn.client, conn.vip).ack(777).link(CLIENT_MAC, US[0]).build();
                let out = lab.deliver(worker, CLIENTS, &[frame]);
                assert_eq!(out.len(), usize::from(policy == ServerGone::Reset), "{policy:?}");
                if let [out] = &out[..] {
                    assert_eq!((out.to, &out.bytes[..6]), (To::Port(CLIENTS), &CLIENT_MAC.0[..]));
                    let ip = ipv4::Packet::new_checked(packet_in(&out.bytes)).unwrap();
                    let reset = tcp::Packet::new_checked(ip.payload()).unwrap();
                    assert_eq!((reset.flags(), reset.seq()), (flags::RST, 777));
                }
                assert!(lab.conn(conn.client, conn.vip).is_none(), "the connection is closed");
            }
            assert_eq!(lab.dropped(DropReason::ServerGone), went.len() as u64);
            lab.finish();
        }
    }
}

#[test]
fn a_new_server_in_an_old_slot_starts_at_zero_on_every_worker() {
    for (mode, protocol) in every() {
        let mut lab = Lab::new(World::default());
        let [_, went] = after_a_removal(&mut lab, mode, protocol);
        let slot = number(mode, protocol) * PER_SERVICE;
        lab.reload(|world| world.servers[slot] = Some(2));
        for field in ServerField::ALL {
            assert_eq!(lab.server(slot, *field), [0; 3], "{}", field.name());
        }
        // The old connections end without a trace in the new one's counts, and it gets all new ones by wlc.
        for (conn, worker) in went.iter().zip([0, 1, 2].into_iter().cycle()) {
            let again = lab.open(worker, conn.client.port, mode, protocol);
            assert_eq!(again.server_id, lab.world.id(slot));
        }
        assert_eq!(lab.server(slot, ServerField::Connections).iter().sum::<u64>(), went.len() as u64);
        lab.finish();
    }
}

#[test]
fn a_connection_keeps_its_mode_whatever_its_servers_becomes() {
    for (mode, protocol) in every() {
        let mut lab = Lab::new(World::default());
        let conn = lab.open(0, 40_000, mode, protocol);
        lab.reload(|world| world.other_modes = true);
        for worker in 0..3 {
            let frame = data(protocol, conn.client, conn.vip, 10).link(CLIENT_MAC, US[0]).build();
            let out = lab.deliver(worker, CLIENTS, &[frame]);
            let (src, dst) = ends_at_server(&conn);
            let expected = data(protocol, src, dst, 10).ttl(63).build_ip();
            assert_eq!(at_server(&out, &conn, 1500), [expected], "{mode:?} {protocol}");
        }
        lab.finish();
    }
}

#[test]
fn wlc_sees_what_all_workers_have() {
    let mut lab = Lab::new(World::default());
    let slot = number(Mode::Dr, Protocol::Udp) * PER_SERVICE;
    for case in 0..16 {
        lab.open(case % 3, 40_000 + case as u16, Mode::Dr, Protocol::Udp);
        for _ in 0..3 {
            lab.pass(Duration::from_millis(5));
        }
        let opened = |slot| lab.connections().iter().filter(|(_, conn)| conn.server_id.slot == slot).count();
        let (first, second) = (opened(slot as u32), opened(slot as u32 + 1));
        assert!(first.abs_diff(second) <= 1, "{first} and {second}");
    }
    lab.finish();
}
