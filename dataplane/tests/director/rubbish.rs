//! No bytes can make the pipeline panic, lose a buffer, or count a frame twice or not at all.

use proptest::prelude::*;
use shunt_dataplane::server::Mode;
use shunt_dataplane::service::OutOfState;
use shunt_dataplane::tuple::{Endpoint, Protocol, V4};
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::checksum;
use shunt_engine::{Duration, PortId};

use crate::lab::{CLIENT_MAC, LOCAL, Lab, US, World, client, every, server_address, vip};
use crate::packets::payload;

/// What a frame is before anything happens to it.
#[derive(Clone, Debug)]
enum Base {
    /// Between a client, or a server, and a service or a local address.
    Flow { mode: usize, from_server: bool, port: u16, flags: u8, len: usize },
    /// A first or later fragment, or both, of such a flow.
    Fragment { mode: usize, from_server: bool, port: u16, id: u16, offset: u16, more: bool, len: usize },
    /// An ICMP error with such a packet in it, cut off.
    Error { mode: usize, from_server: bool, port: u16, kind: u8, quote: usize },
    /// Any bytes behind a right link header, or without.
    Bytes { bytes: Vec<u8>, linked: bool },
}

#[derive(Clone, Debug)]
struct Rubbish {
    base: Base,
    vid: Option<u16>,
    options: Vec<u8>,
    ttl: u8,
    dont_fragment: bool,
    /// A total length that lies.
    total_len: Option<u16>,
    /// Bytes overwritten, by offset.
    writes: Vec<(usize, u8)>,
    /// Bytes cut off, or put on.
    tail: isize,
    /// Whether the IPv4 header's checksum is made right afterwards.
    repaired: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Burst { worker: usize, port: u8, frames: Vec<Rubbish> },
    Pass(u64),
    Server { slot: usize, present: bool },
}

fn base() -> impl Strategy<Value = Base> {
    let port = || prop_oneof![3 => 40_000u16..40_004, 1 => 40_000u16..41_000];
    let flags = prop_oneof![Just(0x02u8), Just(0x10), Just(0x11), Just(0x04), any::<u8>()];
    let offset =
        prop_oneof![3 => Just(0u16), 1 => Just(8), 1 => Just(1480), 1 => (0u16..8192).prop_map(|o| o * 8)];
    prop_oneof![
        4 => (0..8usize, any::<bool>(), port(), flags, 0..1500usize)
            .prop_map(|(mode, from_server, port, flags, len)| Base::Flow { mode, from_server, port, flags, len }),
        4 => (0..8usize, any::<bool>(), port(), 0..4u16, offset, any::<bool>(), 0..1500usize).prop_map(
            |(mode, from_server, port, id, offset, more, len)| Base::Fragment { mode, from_server, port, id, offset, more, len }
        ),
        3 => (0..8usize, any::<bool>(), port(), prop::sample::select(&[3u8, 4, 5, 11, 12, 0, 8][..]), 0..120usize)
            .prop_map(|(mode, from_server, port, kind, quote)| Base::Error { mode, from_server, port, kind, quote }),
        1 => (prop::collection::vec(any::<u8>(), 0..100), any::<bool>())
            .prop_map(|(bytes, linked)| Base::Bytes { bytes, linked }),
    ]
}

prop_compose! {
    fn rubbish()(
        base in base(),
        vid in prop::option::weighted(0.2, any::<u16>()),
        options in prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(any::<u8>(), 0..40)],
        ttl in prop_oneof![8 => Just(64u8), 1 => 0u8..3],
        dont_fragment in any::<bool>(),
        total_len in prop::option::weighted(0.2, 0..120u16),
        writes in prop_oneof![
            2 => Just(Vec::new()),
            1 => prop::collection::vec((0..120usize, any::<u8>()), 1..4),
            2 => prop::collection::vec((14..100usize, any::<u8>()), 1..4),
        ],
        tail in prop_oneof![3 => Just(0isize), 1 => -60..60isize],
        repaired in prop::bool::weighted(0.8),
    ) -> Rubbish {
        Rubbish { base, vid, options, ttl, dont_fragment, total_len, writes, tail, repaired }
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..3usize, 0..2u8, prop::collection::vec(rubbish(), 1..12))
            .prop_map(|(worker, port, frames)| Op::Burst { worker, port, frames }),
        2 => (0u64..400_000).prop_map(Op::Pass),
        1 => (0..16usize, any::<bool>()).prop_map(|(slot, present)| Op::Server { slot, present }),
    ]
}

impl Rubbish {
    fn bytes(&self, lab: &Lab, on: u8) -> Vec<u8> {
        let packet = match &self.base {
            Base::Bytes { bytes, linked: false } => return bytes.clone(),
            Base::Bytes { bytes, linked: true } => {
                return [&US[usize::from(on)].0[..], &CLIENT_MAC.0, &[8, 0], bytes].concat();
            }
            &Base::Flow { mode, from_server, port, flags, len } => {
                let (protocol, src, dst) = ends(lab, mode, from_server, port);
                data(protocol, src, dst).flags(flags).payload(payload(len))
            }
            &Base::Fragment { mode, from_server, port, id, offset, more, len } => {
                let (protocol, src, dst) = ends(lab, mode, from_server, port);
                let body = data(protocol, src, dst).payload(payload(len)).build_ip()[20..].to_vec();
                let (src, dst) = (format!("{:?}", { src.address }), format!("{:?}", { dst.address }));
                let packet = PacketBuilder::raw(&src, &dst, protocol.number()).payload(body);
                let packet = packet.id(id).fragment_offset(offset);
                if more { packet.more_fragments() } else { packet }
            }
            &Base::Error { mode, from_server, port, kind, quote } => {
                let (protocol, src, dst) = ends(lab, mode, from_server, port);
                let mut quoted = data(protocol, dst, src).payload(payload(60)).build_ip();
                quoted.truncate(quote);
                let (src, dst) = (format!("{:?}", { src.address }), format!("{:?}", { dst.address }));
                PacketBuilder::icmp(&src, &dst, kind, 0).payload(quoted)
            }
        };
        let packet = packet.ttl(self.ttl).ip_options(&self.options).link(CLIENT_MAC, US[usize::from(on)]);
        let packet = if self.dont_fragment { packet.dont_fragment() } else { packet };
        let packet = self.total_len.map_or(packet.clone(), |len| packet.total_len(len));
        let packet = self.vid.map_or(packet.clone(), |vid| packet.vlan(vid));
        self.damage(packet.build())
    }

    fn damage(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let l3 = if self.vid.is_some() { 18 } else { 14 };
        for &(at, value) in &self.writes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.resize(bytes.len().saturating_add_signed(self.tail), 0xa5);
        bytes.truncate(1700);
        if self.repaired
            && let Some(header) = bytes.get_mut(l3..)
            && let Some(first) = header.first()
        {
            let len = usize::from(first & 15) * 4;
            if len >= 20 && len <= header.len() {
                header[10..12].fill(0);
                let right = checksum::of(&header[..len]);
                header[10..12].copy_from_slice(&right.to_be_bytes());
            }
        }
        bytes
    }
}

fn data(protocol: Protocol, src: Endpoint<V4>, dst: Endpoint<V4>) -> PacketBuilder {
    PacketBuilder::tuple(&shunt_dataplane::tuple::Tuple { src, dst, protocol })
}

/// Protocol, source and destination of a packet of a flow: of a live one if there is one.
fn ends(lab: &Lab, service: usize, from_server: bool, port: u16) -> (Protocol, Endpoint<V4>, Endpoint<V4>) {
    let (mode, protocol) = every().nth(service).unwrap();
    let (from, to) = (client(port), vip(mode, protocol));
    if !from_server {
        return (protocol, from, to);
    }
    let (src, dst) = match lab.conn(from, to) {
        Some((_, conn)) if mode.sees_replies() => (conn.server, conn.peer),
        Some((_, conn)) => (conn.vip, conn.client),
        None if mode == Mode::Fullnat => {
            (Endpoint::new(server_address(service * 2), 9000), Endpoint::new(LOCAL, 20_000 + port % 7))
        }
        None => (Endpoint::new(server_address(service * 2), 9000), from),
    };
    (protocol, src, dst)
}

fn run(workers: u16, out_of_state: OutOfState, mtu: [u16; 2], ops: Vec<Op>) {
    let mut lab = Lab::new(World { workers, out_of_state, mtu, ..World::default() });
    let mut generation = 1;
    for op in ops {
        match op {
            Op::Burst { worker, port, frames } => {
                let frames: Vec<_> = frames.iter().map(|rubbish| rubbish.bytes(&lab, port)).collect();
                lab.deliver(worker % usize::from(workers), PortId(port), &frames);
            }
            Op::Pass(millis) => _ = lab.pass(Duration::from_millis(millis)),
            // A slot's next tenant has a generation of its own.
            Op::Server { slot, present } => {
                generation += 1;
                lab.reload(|world| world.servers[slot] = present.then_some(generation));
            }
        }
    }
    lab.finish();
}

fn policies() -> impl Strategy<Value = OutOfState> {
    prop::sample::select(&[OutOfState::Reset, OutOfState::Drop, OutOfState::Schedule][..])
}

fn mtus() -> impl Strategy<Value = [u16; 2]> {
    let mtu = || prop::sample::select(&[1500u16, 1500, 576, 68, 28, 0][..]);
    [mtu(), mtu()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_breaks_one_worker(policy in policies(), mtu in mtus(), ops in prop::collection::vec(op(), 1..30)) {
        run(1, policy, mtu, ops);
    }

    #[test]
    fn nothing_breaks_three_workers(policy in policies(), mtu in mtus(), ops in prop::collection::vec(op(), 1..30)) {
        run(3, policy, mtu, ops);
    }
}
