//! What arrives: packets of every kind, of connections that live on and of such that come and go.

use shunt_dataplane::tuple::{Address, Endpoint, Protocol, Tuple, V4, V6};
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::tcp::flags::{ACK, FIN, PSH, RST, SYN};

use crate::workers::Workers;
use crate::world::{Kind, ROUTER, US, client, every, six};

/// Established connections per service.
const FLOWS: u32 = 64;
/// Clients per service that come, go, and come back in the next round.
pub(crate) const PASSERS_BY: u32 = 256;
/// Parts of a round. Established connections speak in each of them, a client that comes and goes in one.
pub(crate) const PARTS: u32 = 4;

/// Connections as seen from outside: what clients send and, where it comes this way, what servers answer.
struct Connections {
    kind: Kind,
    requests: Vec<Tuple<V4>>,
    replies: Vec<Tuple<V4>>,
}

/// One round of packets. Opens the connections that live on.
pub(crate) fn round(workers: &mut Workers) -> Vec<Vec<u8>> {
    let connections: Vec<_> = every().map(|kind| open(workers, kind)).collect();
    let mut frames = Vec::new();
    for part in 0..PARTS {
        connections.iter().for_each(|connections| established(connections, &mut frames));
        let share = PASSERS_BY / PARTS;
        let passers_by = |part| FLOWS + part * share..FLOWS + (part + 1) * share;
        for kind in every() {
            passers_by(part).for_each(|index| passer_by(kind, index, &mut frames));
            // Those of the part before say something more; the servers of some are gone by now.
            let before = passers_by((part + PARTS - 1) % PARTS).filter(|index| !index.is_multiple_of(3));
            frames.extend(before.map(|index| frame(kind, &request(kind, index)).build()));
        }
        let elsewhere = Tuple { src: client(0), dst: client(1), protocol: Protocol::Tcp };
        frames.extend(every().map(|kind| frame(kind, &elsewhere).build()));
    }
    frames
}

/// Opens connections with the packets that do: for TCP the three of its handshake.
fn open(workers: &mut Workers, kind: Kind) -> Connections {
    let requests: Vec<_> = (0..FLOWS).map(|index| request(kind, index)).collect();
    let mut forward = |tuples: &[Tuple<V4>], flags| {
        let frames: Vec<_> = tuples.iter().map(|tuple| frame(kind, tuple).flags(flags).build()).collect();
        workers.exchange(&frames)
    };
    let sent = forward(&requests, SYN);
    // What left for the server, turned round, is what the server answers; where answers come this way at all.
    let replies: Vec<_> = match kind.mode.sees_replies() {
        true => sent.iter().map(|frame| tuple(kind, frame).reversed()).collect(),
        false => Vec::new(),
    };
    forward(&replies, SYN | ACK);
    forward(&requests, ACK);
    Connections { kind, requests, replies }
}

/// Both directions of established connections: small, TTL 1, too big, fragmented, with ICMP errors about them.
fn established(connections: &Connections, frames: &mut Vec<Vec<u8>>) {
    let kind = connections.kind;
    for (number, tuple) in connections.requests.iter().chain(&connections.replies).enumerate() {
        let (id, data) = (number as u16, [0x5a; 1400]);
        frames.push(frame(kind, tuple).flags(ACK | PSH).payload(&data[..10]).build());
        match number % 8 {
            0 => frames.push(frame(kind, tuple).ttl(1).build()),
            1 => frames.push(frame(kind, tuple).payload(&data[..]).build()),
            2 => frames.push(frame(kind, tuple).payload(&data[..]).dont_fragment().build()),
            3 => frames.extend(fragments(kind, tuple, id)),
            4 => frames.extend(fragments(kind, tuple, id).into_iter().rev()),
            5 => frames.push(fragments(kind, tuple, id).remove(1)),
            6 => frames.push(unreachable(kind, tuple)),
            _ => {}
        }
    }
}

/// A packet in two parts.
fn fragments(kind: Kind, tuple: &Tuple<V4>, id: u16) -> Vec<Vec<u8>> {
    let (src, dst) = hosts(kind, tuple);
    let later = PacketBuilder::raw(&src, &dst, tuple.protocol.number()).link(ROUTER, US);
    let (header_len, size) = match tuple.protocol {
        Protocol::Tcp => (20, 64),
        Protocol::Udp => (8, 64),
    };
    let first = frame(kind, tuple).udp_length(size + 40).payload(vec![1; usize::from(size) - header_len]);
    let later = later.payload([2; 40]);
    let [first, later] = match kind.ipv6 {
        false => [first.id(id).more_fragments(), later.id(id).fragment_offset(size)],
        true => [first.extension(FRAGMENT, fragment(1, id)), later.extension(FRAGMENT, fragment(size, id))],
    };
    vec![first.build(), later.build()]
}

/// A fragment header of IPv6 behind its first byte: the offset, with the bit that more fragments follow, and a number.
fn fragment(offset_more: u16, id: u16) -> Vec<u8> {
    [&[0][..], &offset_more.to_be_bytes(), &u32::from(id).to_be_bytes()].concat()
}

/// What a host behind `tuple`'s source says when it cannot deliver what came the other way.
fn unreachable(kind: Kind, tuple: &Tuple<V4>) -> Vec<u8> {
    let (src, dst) = hosts(kind, tuple);
    let quoted = packet(kind, &tuple.reversed()).build_ip();
    let (message, code) = if kind.ipv6 { (1, 3) } else { (3, 1) };
    PacketBuilder::icmp(&src, &dst, message, code).link(ROUTER, US).payload(quoted).build()
}

/// A client that opens a connection, of some also the end and a new beginning; and one without any.
fn passer_by(kind: Kind, index: u32, frames: &mut Vec<Vec<u8>>) {
    let tuple = request(kind, index);
    let flags = [SYN, ACK, FIN | ACK, RST, SYN];
    let count = if index.is_multiple_of(3) { flags.len() } else { 2 };
    frames.extend(flags[..count].iter().map(|&flags| frame(kind, &tuple).flags(flags).build()));
    if kind.protocol == Protocol::Tcp {
        let stranger = Tuple { src: client(FLOWS + PASSERS_BY + index), ..tuple };
        frames.push(frame(kind, &stranger).flags(ACK).build());
    }
}

/// What client number `index` sends.
fn request(kind: Kind, index: u32) -> Tuple<V4> {
    Tuple { src: client(index), dst: kind.vip(), protocol: kind.protocol }
}

fn frame(kind: Kind, tuple: &Tuple<V4>) -> PacketBuilder {
    packet(kind, tuple).link(ROUTER, US)
}

fn packet(kind: Kind, tuple: &Tuple<V4>) -> PacketBuilder {
    let wide = |endpoint: Endpoint<V4>| Endpoint::<V6>::new(six(endpoint.address), endpoint.port);
    match kind.ipv6 {
        false => PacketBuilder::tuple(tuple),
        true => PacketBuilder::tuple(&Tuple {
            src: wide(tuple.src),
            dst: wide(tuple.dst),
            protocol: tuple.protocol,
        }),
    }
}

/// Source and destination as they are written.
fn hosts(kind: Kind, tuple: &Tuple<V4>) -> (String, String) {
    let written = |address: V4| if kind.ipv6 { six(address).to_ip() } else { address.to_ip() }.to_string();
    (written(tuple.src.address), written(tuple.dst.address))
}

/// Addresses (of IPv6 the last 32 bits) and ports of an untagged frame without options or extension headers.
fn tuple(kind: Kind, frame: &[u8]) -> Tuple<V4> {
    let address = |at: usize| V4(u32::from_be_bytes(frame[at..at + 4].try_into().unwrap()));
    let port = |at: usize| u16::from_be_bytes(frame[at..at + 2].try_into().unwrap());
    let (src, dst, ports) = if kind.ipv6 { (34, 50, 54) } else { (26, 30, 34) };
    Tuple {
        src: Endpoint::new(address(src), port(ports)),
        dst: Endpoint::new(address(dst), port(ports + 2)),
        protocol: kind.protocol,
    }
}

/// The number of IPv6's fragment header.
const FRAGMENT: u8 = 44;
