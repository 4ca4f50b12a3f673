//! What is fuzzed: bytes in, a panic if something that must hold does not. `fuzz/fuzz_targets` runs these under
//! libFuzzer; [`super`] runs them over kept crashes and random bytes with the stable compiler.

use std::net::{IpAddr, SocketAddr};

use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::Protocol;
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::{checksum, tcp::flags};
use shunt_engine::Duration;

use super::director::{Director, LOCAL_PORT, MTU, Setup, THEM, US, client, kind, local, server, vip};

/// A target by its name.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: [Target; 4] =
    [("classify", classify), ("icmp", icmp), ("headers", headers), ("operations", operations)];

/// Any frame to our link address, on a director that has connections of every kind.
pub(crate) fn classify(bytes: &[u8]) {
    let mut director = Director::default();
    open_all(&mut director);
    let mut frame = US.0.to_vec();
    frame.extend(bytes.iter().take(1500));
    checked(director.receive(0, &frame));
    director.end();
}

/// An ICMP error with any message, from a router or a party, to whom it may concern us.
pub(crate) fn icmp(bytes: &[u8]) {
    let Some((&[choice, kind, code], message)) = bytes.split_first_chunk::<3>() else { return };
    let v6 = choice & 1 != 0;
    let (source, target) = match choice >> 1 & 3 {
        0 => (client(250, v6), vip(0, v6).0),
        1 => (server(u32::from(v6)).0, local(v6)),
        2 => (client(250, v6), local(v6)),
        _ => (server(4 + u32::from(v6)).0, client(1, v6)),
    };
    let mut director = Director::default();
    open_all(&mut director);
    let message = &message[..message.len().min(1280)];
    let error = PacketBuilder::icmp(&source.to_string(), &target.to_string(), kind, code).payload(message);
    let frame = error.link(THEM, US).build();
    let sent = director.receive(u16::from(choice >> 3 & 1), &frame);
    // What is quoted may have had any checksum; the message's own was right and must stay so.
    for frame in &sent {
        ip_checksums_are_right(frame);
    }
    director.end();
}

/// An IPv6 packet to a VIP that begins with any extension headers.
pub(crate) fn headers(bytes: &[u8]) {
    let Some((&[first, service], chain)) = bytes.split_first_chunk::<2>() else { return };
    let chain = &chain[..chain.len().min(1400)];
    let (address, _) = vip(u32::from(service) % 8, true);
    let source = client(1, true).to_string();
    let packet = PacketBuilder::raw(&source, &address.to_string(), first).payload(chain);
    let frame = packet.link(THEM, US).build();
    let mut director = Director::default();
    open_all(&mut director);
    checked(director.receive(0, &frame));
    director.end();
}

/// A sequence of packets, pauses and reloads, three bytes each.
pub(crate) fn operations(bytes: &[u8]) {
    let mut director = Director::default();
    let mut setup = Setup::default();
    for operation in bytes.chunks_exact(3).take(256) {
        let &[what, a, b] = operation else { unreachable!("chunks of three") };
        match what >> 5 {
            0..=3 => request(&mut director, what, a, b),
            4 => reply(&mut director, what, a, b),
            5 => fragment(&mut director, what, a, b),
            6 => director.wait(Duration::from_millis(u64::from(a) * u64::from(b))),
            _ => {
                match what & 7 {
                    0 => setup.gone ^= 1 << (a % 32),
                    1 => setup.quiesced ^= 1 << (a % 32),
                    2 => setup.drained ^= 1 << (a % 32),
                    3 => setup.generation += 1,
                    4 => setup.scheduler = a,
                    _ => setup = Setup { generation: setup.generation, ..Setup::default() },
                }
                director.reload(setup);
            }
        }
    }
    director.end();
}

/// Connections of every service and IP version.
fn open_all(director: &mut Director) {
    for service in 0..8 {
        for v6 in [0, 1] {
            request(director, service << 1 | v6, 1, 0);
            request(director, service << 1 | v6, 1, 1);
        }
    }
}

/// A client's packet: bit 0 of `what` is the IP version, then the service; `b` chooses the flags.
fn request(director: &mut Director, what: u8, from: u8, b: u8) {
    let v6 = what & 1 != 0;
    let service = u32::from(what >> 1 & 7);
    let source = SocketAddr::new(client(1 + from % 8, v6), 40_000 + u16::from(from / 8));
    let packet = segment(kind(service).1, source, vip(service, v6).into(), b);
    let frame = packet.link(THEM, US).build();
    checked(director.receive(u16::from(b >> 7), &frame));
}

/// A server's packet to whom it may answer.
fn reply(director: &mut Director, what: u8, a: u8, b: u8) {
    let v6 = what & 1 != 0;
    let service = u32::from(what >> 1 & 7);
    let slot = service * 4 + u32::from(v6) + 2 * u32::from(a & 1);
    let (mode, protocol) = kind(service);
    let to = match mode {
        Mode::Fullnat => SocketAddr::new(local(v6), LOCAL_PORT + u16::from(a >> 1 & 7)),
        Mode::Nat | Mode::Dr | Mode::Tun => {
            SocketAddr::new(client(1 + (a >> 1) % 8, v6), 40_000 + u16::from(a >> 4))
        }
    };
    let frame = segment(protocol, server(slot).into(), to, b).link(THEM, US).build();
    checked(director.receive(u16::from(b >> 7), &frame));
}

/// A fragment of a client's datagram: first or later, small or big.
fn fragment(director: &mut Director, what: u8, a: u8, b: u8) {
    let service = u32::from(what >> 1 & 7);
    let (IpAddr::V4(source), IpAddr::V4(target)) = (client(1 + a % 8, false), vip(service, false).0) else {
        unreachable!("IPv4 was asked for")
    };
    let protocol = kind(service).1;
    let payload = vec![b; usize::from(b) * 5 / 8 * 8];
    let packet = if what & 1 == 0 {
        let source = SocketAddr::new(source.into(), 40_000);
        segment(protocol, source, vip(service, false).into(), b).payload(payload).more_fragments()
    } else {
        let raw = PacketBuilder::raw(&source.to_string(), &target.to_string(), protocol.number());
        raw.fragment_offset(u16::from(a) * 8).payload(payload)
    };
    let frame = packet.id(u16::from(a)).link(THEM, US).build();
    checked(director.receive(u16::from(b >> 7), &frame));
}

fn segment(protocol: Protocol, source: SocketAddr, target: SocketAddr, choice: u8) -> PacketBuilder {
    const FLAGS: [u8; 8] = [
        flags::SYN,
        flags::ACK,
        flags::SYN | flags::ACK,
        flags::FIN | flags::ACK,
        flags::RST,
        flags::RST | flags::ACK,
        flags::ACK | flags::PSH,
        0,
    ];
    match protocol {
        Protocol::Tcp => PacketBuilder::tcp(source, target).flags(FLAGS[usize::from(choice & 7)]),
        Protocol::Udp => PacketBuilder::udp(source, target).payload([choice]),
    }
}

/// Checks what left the director.
fn checked(sent: Vec<Vec<u8>>) {
    for out in &sent {
        ip_checksums_are_right(out);
        assert!(out.len() <= 14 + usize::from(MTU), "{} bytes leave", out.len());
    }
}

/// Every IPv4 header of what leaves sums up, the one inside of a tunnel too.
fn ip_checksums_are_right(frame: &[u8]) {
    let mut packet = match frame.get(12..14) {
        Some([0x08, 0x00]) => &frame[14..],
        Some([0x86, 0xdd]) => return,
        _ => panic!("neither IPv4 nor IPv6 leaves: {frame:02x?}"),
    };
    loop {
        let header_len = usize::from(packet[0] & 15) * 4;
        assert_eq!(checksum::of(&packet[..header_len]), 0, "{frame:02x?}");
        if packet[9] != 4 {
            return;
        }
        packet = &packet[header_len..];
    }
}
