//! What arrives: packets of every kind, of connections that live on and of such that come and go.

use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Endpoint, Protocol, Tuple, V4};
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::tcp::flags::{ACK, FIN, PSH, RST, SYN};

use crate::workers::Workers;
use crate::world::{ROUTER, US, client, every, vip};

/// Established connections per service.
const FLOWS: u32 = 64;
/// Clients per service that come, go, and come back in the next round.
pub(crate) const PASSERS_BY: u32 = 256;
/// Parts of a round. Established connections speak in each of them, a client that comes and goes in one.
pub(crate) const PARTS: u32 = 4;

/// Connections as seen from outside: what clients send and, where it comes this way, what servers answer.
struct Connections {
    requests: Vec<Tuple<V4>>,
    replies: Vec<Tuple<V4>>,
}

/// One round of packets. Opens the connections that live on.
pub(crate) fn round(workers: &mut Workers) -> Vec<Vec<u8>> {
    let connections: Vec<_> = every().map(|(mode, protocol)| open(workers, mode, protocol)).collect();
    let mut frames = Vec::new();
    for part in 0..PARTS {
        connections.iter().for_each(|connections| established(connections, &mut frames));
        for (mode, protocol) in every() {
            let share = PASSERS_BY / PARTS;
            let first = FLOWS + part * share;
            (first..first + share).for_each(|index| passer_by(mode, protocol, index, &mut frames));
        }
        let elsewhere = Tuple { src: client(0), dst: client(1), protocol: Protocol::Tcp };
        frames.push(frame(&elsewhere).build());
    }
    frames
}

/// Opens connections with the packets that do: for TCP the three of its handshake.
fn open(workers: &mut Workers, mode: Mode, protocol: Protocol) -> Connections {
    let request = |index| Tuple { src: client(index), dst: vip(mode, protocol), protocol };
    let requests: Vec<_> = (0..FLOWS).map(request).collect();
    let mut forward = |tuples: &[Tuple<V4>], flags| {
        let frames: Vec<_> = tuples.iter().map(|tuple| frame(tuple).flags(flags).build()).collect();
        workers.exchange(&frames)
    };
    let sent = forward(&requests, SYN);
    // What left for the server, turned round, is what the server answers; where answers come this way at all.
    let replies: Vec<_> = match mode.sees_replies() {
        true => sent.iter().map(|frame| tuple(frame, protocol).reversed()).collect(),
        false => Vec::new(),
    };
    forward(&replies, SYN | ACK);
    forward(&requests, ACK);
    Connections { requests, replies }
}

/// Both directions of established connections: small, TTL 1, too big, fragmented, with ICMP errors about them.
fn established(connections: &Connections, frames: &mut Vec<Vec<u8>>) {
    for (number, tuple) in connections.requests.iter().chain(&connections.replies).enumerate() {
        let (id, data) = (number as u16, [0x5a; 1000]);
        frames.push(frame(tuple).flags(ACK | PSH).payload(&data[..10]).build());
        match number % 8 {
            0 => frames.push(frame(tuple).ttl(1).build()),
            1 => frames.push(frame(tuple).payload(&data[..]).build()),
            2 => frames.push(frame(tuple).payload(&data[..]).dont_fragment().build()),
            3 => frames.extend(fragments(tuple, id)),
            4 => frames.extend(fragments(tuple, id).into_iter().rev()),
            5 => frames.push(fragments(tuple, id).remove(1)),
            6 => frames.push(unreachable(tuple)),
            _ => {}
        }
    }
}

/// A packet in two parts.
fn fragments(tuple: &Tuple<V4>, id: u16) -> Vec<Vec<u8>> {
    let (src, dst) = (format!("{:?}", tuple.src.address), format!("{:?}", tuple.dst.address));
    let later = PacketBuilder::raw(&src, &dst, tuple.protocol.number()).link(ROUTER, US);
    let (header_len, size) = match tuple.protocol {
        Protocol::Tcp => (20, 64),
        Protocol::Udp => (8, 64),
    };
    let first = frame(tuple).id(id).more_fragments().udp_length(size + 40);
    vec![
        first.payload(vec![1; usize::from(size) - header_len]).build(),
        later.id(id).fragment_offset(size).payload([2; 40]).build(),
    ]
}

/// What a host behind `tuple`'s source says when it cannot deliver what came the other way.
fn unreachable(tuple: &Tuple<V4>) -> Vec<u8> {
    let (src, dst) = (format!("{:?}", tuple.src.address), format!("{:?}", tuple.dst.address));
    let quoted = PacketBuilder::tuple(&tuple.reversed()).build_ip();
    PacketBuilder::icmp(&src, &dst, 3, 1).link(ROUTER, US).payload(quoted).build()
}

/// A client that opens a connection, of some also more packets, the end and a new beginning; and one without any.
fn passer_by(mode: Mode, protocol: Protocol, index: u32, frames: &mut Vec<Vec<u8>>) {
    let tuple = Tuple { src: client(index), dst: vip(mode, protocol), protocol };
    let flags = [SYN, ACK, FIN | ACK, RST, SYN];
    let count = if index.is_multiple_of(3) { flags.len() } else { 1 };
    frames.extend(flags[..count].iter().map(|&flags| frame(&tuple).flags(flags).build()));
    if protocol == Protocol::Tcp {
        let stranger = Tuple { src: client(FLOWS + PASSERS_BY + index), ..tuple };
        frames.push(frame(&stranger).flags(ACK).build());
    }
}

fn frame(tuple: &Tuple<V4>) -> PacketBuilder {
    PacketBuilder::tuple(tuple).link(ROUTER, US)
}

/// Addresses and ports of an untagged IPv4 frame without options.
fn tuple(frame: &[u8], protocol: Protocol) -> Tuple<V4> {
    let address = |at: usize| V4(u32::from_be_bytes(frame[at..at + 4].try_into().unwrap()));
    let port = |at: usize| u16::from_be_bytes(frame[at..at + 2].try_into().unwrap());
    Tuple { src: Endpoint::new(address(26), port(34)), dst: Endpoint::new(address(30), port(36)), protocol }
}
