//! What only the AF_PACKET port promises, on veth pairs. The rest is in `port_contract.rs`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod ports;

use std::collections::HashMap;
use std::net::UdpSocket;

use shunt_engine::port::af_packet::{AfPacket, AfPacketConfig};
use shunt_engine::rss::Unknown;

use ports::kernel::{AfPacketHarness, Cable, NEAR};
use ports::{Harness, Lab, PORT_MAC, WINDOW, from_port, load, to_port, until};

#[test]
fn partial_checksums_of_the_peers_stack_are_completed() {
    let mut lab = Lab::<AfPacketHarness>::new(1);
    let cable = &lab.harness.cable;
    cable.near.ip("address add 192.0.2.1/24 dev near");
    cable.far.ip("address add 192.0.2.2/24 dev far");
    let socket = cable.far.enter(|| UdpSocket::bind("192.0.2.2:0")).unwrap();
    socket.send_to(b"an odd number of bytes!", "192.0.2.1:4000").unwrap();
    let mut seen = None;
    until("the datagram", || {
        let mut burst = shunt_engine::Burst::new();
        lab.queues[0].0.rx_burst(&mut lab.pool, &mut burst);
        // Beside it the peer's stack answers a request for its address.
        seen = seen.take().or(burst.iter().map(|frame| frame.data().to_vec()).find(|data| data[23] == 17));
        lab.pool.free_all(burst);
        seen.is_some()
    });
    let packet = &seen.unwrap()[14..];
    assert!(packet.ends_with(b"an odd number of bytes!"));
    // RFC 768: the sum over pseudo header and datagram, checksum included, is all ones.
    let udp = &packet[20..];
    let pseudo = [&packet[12..20], &[0, 17], &(udp.len() as u16).to_be_bytes(), udp, &[0]].concat();
    let sum: u32 = pseudo.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    assert_eq!(lab.queues[0].0.stats().checksum_completed, 1);
}

#[test]
fn only_frames_addressed_to_the_interface_come_up() {
    let mut lab = Lab::<AfPacketHarness>::new(1);
    let addressed = |mac: [u8; 6]| [&mac[..], &to_port(0, 60)[6..]].concat();
    let other = addressed([2, 0, 0, 0, 0, 9]);
    let everybody = addressed([0xff; 6]);
    let many = addressed([1, 0, 0x5e, 0, 0, 18]);
    let ours = to_port(7, 60);
    lab.transmit(0, &[from_port(0, 60)]);
    lab.harness.send(&[other, everybody, many, ours.clone()]);
    assert_eq!(lab.receive(1), [(0, ours)]);
}

#[test]
fn a_flow_stays_on_its_queue_and_flows_use_every_queue() {
    let mut lab = Lab::<AfPacketHarness>::new(2);
    let frames: Vec<_> = (0..WINDOW as u64).map(|number| to_port(number, 60)).collect();
    lab.harness.send(&frames);
    let mut queue_of = HashMap::new();
    for (queue, frame) in lab.receive(WINDOW) {
        assert_eq!(*queue_of.entry(frame[34..36].to_vec()).or_insert(queue), queue);
    }
    assert!((0..2).all(|queue| queue_of.values().any(|&used| used == queue)), "{queue_of:?}");
}

#[test]
fn what_the_socket_has_no_room_for_is_counted_as_missed() {
    const FRAMES: u64 = 40_000;
    let mut lab = Lab::<AfPacketHarness>::new(1);
    let frames: Vec<_> = (0..FRAMES).map(|number| to_port(number, 60)).collect();
    lab.harness.send(&frames);
    let (rx, _) = &mut lab.queues[0];
    let mut burst = shunt_engine::Burst::new();
    until("every frame to be received or counted", || {
        rx.rx_burst(&mut lab.pool, &mut burst);
        lab.pool.free_all(burst.drain(..));
        let stats = rx.stats();
        stats.packets + stats.missed == FRAMES
    });
    assert!(rx.stats().missed > 0, "{:?}", rx.stats());
}

#[test]
fn frames_for_an_interface_that_is_down_are_errors() {
    let mut lab = Lab::<AfPacketHarness>::new(1);
    lab.harness.cable.near.ip("link set near down");
    let before = lab.pool.available();
    let mut burst = load(&mut lab.pool, &[from_port(0, 60), from_port(1, 60)]);
    assert_eq!(lab.queues[0].1.tx_burst(&mut lab.pool, &mut burst), 2);
    assert_eq!((lab.queues[0].1.stats().errors, lab.pool.available()), (2, before));
}

#[test]
fn an_interface_that_cannot_be_opened_is_refused_by_name() {
    let cable = Cable::new("refuse", 1);
    let refusal = |interface: &str, queues, frame_len_max| {
        let config = AfPacketConfig { interface: interface.to_owned(), queues, frame_len_max };
        cable.near.enter(|| AfPacket::open(config)).unwrap_err().to_string()
    };
    assert_eq!(refusal("nowhere", 1, 1792), "interface \"nowhere\" does not exist");
    assert_eq!(refusal(NEAR, 0, 1792), "near: an af_packet port has 1 to 256 queues");
    assert!(refusal("lo", 1, 65_535).starts_with("lo: MTU 65536 needs buffers larger than 65535 bytes"));
    assert!(refusal(NEAR, 1, 1517).starts_with("near: MTU 1500 needs buffers larger than 1517 bytes"));
    cable.near.ip("link set lo mtu 1500");
    assert_eq!(refusal("lo", 1, 1792), "lo: is not an Ethernet interface");
}

#[test]
fn the_port_tells_address_and_mtu_of_the_interface() {
    let mut lab = Lab::<AfPacketHarness>::new(1);
    let caps = lab.harness.port().caps().clone();
    assert_eq!((caps.name.as_str(), caps.kind, caps.mtu), (NEAR, "af_packet", 1500));
    assert_eq!(caps.mac.0, PORT_MAC);
    assert!(caps.kernel_sees_all && caps.rss == Err(Unknown::KernelsOwn));
}
