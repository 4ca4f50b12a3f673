//! Frames given back to the kernel by a TUN device, in namespaces of their own. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::net::UdpSocket;
use std::time::Duration;

use common::Netns;
use etherparse::PacketBuilder;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::outbox::PuntSink;
use shunt_engine::punt::{PUNT_BUDGET, Punt};
use shunt_engine::{Frame, Mempool};

const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A machine with the address 192.0.2.1 on an interface that is not the TUN device, and the strictest source check.
fn machine() -> Netns {
    let netns = Netns::new("punt");
    netns.ip("link add home type veth peer name away");
    netns.ip("address add 192.0.2.1/24 dev home");
    netns.ip("link set away up");
    netns.ip("link set home up");
    netns.enter(|| std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1")).unwrap();
    netns
}

fn udp(vlan: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let link = PacketBuilder::ethernet2(CLIENT, STATION);
    let (source, destination) = ([192, 0, 2, 2], [192, 0, 2, 1]);
    let step = match vlan {
        true => link.single_vlan(7.try_into().unwrap()).ipv4(source, destination, 64),
        false => link.ipv4(source, destination, 64),
    };
    step.udp(4000, 53).write(&mut bytes, payload).unwrap();
    bytes
}

fn frame(pool: &mut Mempool, bytes: &[u8]) -> Frame {
    let mut frame = pool.alloc().unwrap();
    assert!(frame.fill(bytes));
    frame
}

fn punt(punt: &mut Punt, pool: &mut Mempool, bytes: &[u8]) -> bool {
    let frame = frame(pool, bytes);
    let taken = punt.punt(&frame);
    pool.free(frame);
    taken
}

fn pool() -> Mempool {
    Mempool::single(PoolConfig { chunks: 8, ..PoolConfig::default() }).unwrap()
}

fn server(netns: &Netns, address: &str) -> UdpSocket {
    let server = netns.enter(|| UdpSocket::bind(address)).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    server
}

#[test]
fn packets_reach_the_kernels_sockets_as_if_received() {
    let netns = machine();
    let mut pool = pool();
    let mut sink = netns.enter(|| Punt::open("shunt0")).unwrap();
    let server_v4 = server(&netns, "192.0.2.1:53");
    for (vlan, payload) in [(false, &b"plain"[..]), (true, b"tagged")] {
        assert!(punt(&mut sink, &mut pool, &udp(vlan, payload)));
        let mut buffer = [0; 100];
        let (len, from) = server_v4.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (payload, "192.0.2.2:4000".parse().unwrap()));
    }
    assert_eq!(sink.stats().packets, 2);
    assert_eq!(sink.stats().bytes, 2 * 28 + 5 + 6);

    // IPv6, which the namespace has off until now.
    netns.enter(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0")).unwrap();
    netns.ip("address add 2001:db8::1/128 dev lo");
    let server_v6 = server(&netns, "[2001:db8::1]:53");
    let (mut bytes, mut buffer) = (Vec::new(), [0; 100]);
    let addresses: [std::net::Ipv6Addr; 2] = ["2001:db8::2".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    PacketBuilder::ethernet2(CLIENT, STATION)
        .ipv6(addresses[0].octets(), addresses[1].octets(), 64)
        .udp(4000, 53)
        .write(&mut bytes, b"six")
        .unwrap();
    assert!(punt(&mut sink, &mut pool, &bytes));
    assert_eq!(server_v6.recv_from(&mut buffer).unwrap().0, 3);
}

#[test]
fn what_is_over_budget_not_ip_or_refused_is_counted() {
    let netns = machine();
    let mut pool = pool();
    let mut sink = netns.enter(|| Punt::open("shunt0")).unwrap();
    let taken = (0..PUNT_BUDGET + 9).filter(|_| punt(&mut sink, &mut pool, &udp(false, b"x"))).count();
    assert_eq!(taken, PUNT_BUDGET as usize);
    assert_eq!((sink.stats().packets, sink.stats().over_budget), (PUNT_BUDGET.into(), 9));
    sink.begin_loop();
    assert!(punt(&mut sink, &mut pool, &udp(false, b"x")));

    let mut arp = udp(false, b"x");
    arp[12..14].copy_from_slice(&[8, 6]);
    assert!(!punt(&mut sink, &mut pool, &arp));
    netns.ip("link set shunt0 down");
    assert!(!punt(&mut sink, &mut pool, &udp(false, b"x")));
    assert_eq!((sink.stats().not_ip, sink.stats().refused), (1, 1));
}

#[test]
fn the_device_is_shared_by_clones_and_goes_with_the_last_one() {
    let netns = machine();
    let mut pool = pool();
    let first = netns.enter(|| Punt::open("shunt0")).unwrap();
    let error = netns.enter(|| Punt::open("shunt0")).unwrap_err().to_string();
    assert!(error.starts_with("shunt0: create a TUN device:"), "{error}");
    let mut second = first.try_clone().unwrap();
    drop(first);
    let link = netns.run("ip", &["-o", "link", "show", "dev", "shunt0"]);
    assert!(link.contains("mtu 65535") && link.contains("UP"), "{link}");
    assert!(punt(&mut second, &mut pool, &udp(false, b"x")));
    drop(second);
    assert!(!netns.run("ip", &["-o", "link"]).contains("shunt0"));
}
