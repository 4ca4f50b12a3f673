//! The XDP program in the kernel decides as `RuleSet::takes` says. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use etherparse::PacketBuilder;
use proptest::prelude::*;
use shunt_engine::port::MacAddr;
use shunt_engine::port::af_xdp::{Filter, FilterError, WithoutSocket};
use shunt_engine::steer::{Prefix, Rule, RuleSet, Side};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);
const VIRTUAL_MAC: MacAddr = MacAddr([0, 0, 0x5e, 0, 1, 7]);

fn load(port_sets: u32) -> Filter {
    let mut filter = Filter::load(port_sets, WithoutSocket::Bounce)
        .expect("the XDP program loads (this test needs root: CAP_BPF and CAP_NET_ADMIN)");
    filter.set_macs(&[MAC, VIRTUAL_MAC]).unwrap();
    filter
}

fn rule(side: Side, prefix: &str, len: u8, protocol: u8, ports: std::ops::RangeInclusive<u16>) -> Rule {
    Rule { side, prefix: Prefix::new(prefix.parse().unwrap(), len).unwrap(), protocol, ports }
}

fn rules() -> Vec<Rule> {
    vec![
        rule(Side::Destination, "10.0.0.1", 32, 6, 80..=80),
        rule(Side::Destination, "10.0.0.0", 24, 17, 53..=60),
        rule(Side::Source, "10.1.0.0", 16, 6, 8080..=8081),
        rule(Side::Destination, "2001:db8::1", 128, 6, 443..=443),
        rule(Side::Source, "2001:db8:1::", 48, 17, 0..=65535),
    ]
}

/// One frame by hand, before mutations.
#[derive(Clone, Debug)]
struct Shape {
    destination_mac: MacAddr,
    vlan: bool,
    source: std::net::IpAddr,
    destination: std::net::IpAddr,
    transport: Transport,
    /// In units of 8 bytes.
    fragment_offset: u16,
    /// IPv4 options in words; IPv6 extension headers, alternating fragment headers and others.
    extra: u8,
}

#[derive(Clone, Copy, Debug)]
enum Transport {
    Tcp(u16, u16),
    Udp(u16, u16),
    Icmp(u8),
    Other,
}

fn frame(shape: &Shape) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(shape.destination_mac.0);
    bytes.extend([2, 0, 0, 0, 0, 1]);
    if shape.vlan {
        bytes.extend([0x81, 0, 0, 7]);
    }
    let v4 = shape.destination.is_ipv4();
    let (number, payload) = match shape.transport {
        Transport::Tcp(source, destination) => (6, segment(source, destination, 20)),
        Transport::Udp(source, destination) => (17, segment(source, destination, 8)),
        Transport::Icmp(kind) => (if v4 { 1 } else { 58 }, vec![kind, 0, 0, 0, 0, 0, 0, 0]),
        Transport::Other => (47, vec![0; 8]),
    };
    match (shape.source, shape.destination) {
        (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) => {
            let words = 5 + shape.extra.min(10);
            bytes.extend([0x08, 0x00, 0x40 | words, 0, 0, 60, 0, 1]);
            bytes.extend((shape.fragment_offset & 0x1fff).to_be_bytes());
            bytes.extend([64, number, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend(vec![1; usize::from(words - 5) * 4]);
        }
        (std::net::IpAddr::V6(source), std::net::IpAddr::V6(destination)) => {
            let chain: Vec<u8> = [44, 0, 60, 43, 51]
                .into_iter()
                .cycle()
                .take(usize::from(shape.extra))
                .chain([number])
                .collect();
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, chain[0], 64]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            for pair in chain.windows(2) {
                bytes.push(pair[1]);
                match pair[0] {
                    44 => {
                        bytes.push(0);
                        bytes.extend((shape.fragment_offset << 3 | 1).to_be_bytes());
                        bytes.extend([0, 0, 0, 9]);
                    }
                    // In units of four bytes, from eight on.
                    51 => bytes.extend([1; 11]),
                    _ => bytes.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                }
            }
        }
        _ => unreachable!("addresses are of one family"),
    }
    bytes.extend(payload);
    bytes
}

fn segment(source: u16, destination: u16, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[..2].copy_from_slice(&source.to_be_bytes());
    bytes[2..4].copy_from_slice(&destination.to_be_bytes());
    bytes
}

fn tcp(source: [u8; 4], source_port: u16, destination: [u8; 4], port: u16) -> Shape {
    Shape {
        destination_mac: MAC,
        vlan: false,
        source: source.into(),
        destination: destination.into(),
        transport: Transport::Tcp(source_port, port),
        fragment_offset: 0,
        extra: 0,
    }
}

const CLIENT: [u8; 4] = [192, 0, 2, 1];
const VIP: [u8; 4] = [10, 0, 0, 1];

/// Both the reference and the kernel say `expected`.
#[track_caller]
fn both(filter: &Filter, set: &RuleSet, bytes: &[u8], expected: bool, what: &str) {
    assert_eq!(set.takes(&[MAC, VIRTUAL_MAC], bytes), expected, "reference: {what}");
    assert_eq!(filter.test_run(bytes).unwrap(), expected, "kernel: {what}");
}

#[test]
fn the_program_takes_what_the_rules_name_and_nothing_else() {
    let mut filter = load(16);
    let set = RuleSet::compile(&rules());
    filter.set_rules(&set).unwrap();
    let base = tcp(CLIENT, 1000, VIP, 80);
    let check = |shape: &Shape, expected, what| both(&filter, &set, &frame(shape), expected, what);

    check(&base, true, "TCP to the service");
    check(&Shape { vlan: true, ..base.clone() }, true, "TCP behind a VLAN tag");
    check(&Shape { extra: 10, ..base.clone() }, true, "TCP behind IPv4 options");
    check(&Shape { destination_mac: VIRTUAL_MAC, ..base.clone() }, true, "to the virtual MAC");
    check(&Shape { destination_mac: MacAddr([2, 0, 0, 0, 0, 8]), ..base.clone() }, false, "another station");
    check(&Shape { destination_mac: MacAddr([0xff; 6]), ..base.clone() }, false, "broadcast");
    check(&Shape { transport: Transport::Tcp(80, 81), ..base.clone() }, false, "another port");
    check(&Shape { transport: Transport::Udp(1000, 80), ..base.clone() }, false, "another protocol");
    check(&Shape { transport: Transport::Udp(1000, 53), ..base.clone() }, true, "a shorter prefix's ports");
    check(&Shape { transport: Transport::Icmp(8), ..base.clone() }, false, "echo request");
    for error in [3, 4, 11, 12] {
        check(&Shape { transport: Transport::Icmp(error), ..base.clone() }, true, "ICMP error");
    }
    check(&Shape { transport: Transport::Other, ..base.clone() }, false, "GRE");
    check(&Shape { transport: Transport::Other, fragment_offset: 1, ..base.clone() }, true, "later fragment");
    check(&tcp([10, 1, 2, 3], 8080, CLIENT, 9), true, "a server's reply");
    check(&tcp([10, 1, 2, 3], 8082, CLIENT, 80), false, "another port of the server");
    check(
        &Shape { transport: Transport::Icmp(3), ..tcp([10, 1, 2, 3], 0, CLIENT, 0) },
        true,
        "its ICMP error",
    );

    let v6 = Shape {
        source: "2001:db8:f::2".parse().unwrap(),
        destination: "2001:db8::1".parse().unwrap(),
        transport: Transport::Tcp(1000, 443),
        ..base.clone()
    };
    check(&v6, true, "IPv6 TCP");
    check(&Shape { extra: 1, ..v6.clone() }, true, "IPv6 first fragment");
    check(
        &Shape { extra: 1, fragment_offset: 2, transport: Transport::Other, ..v6.clone() },
        true,
        "later one",
    );
    check(&Shape { transport: Transport::Icmp(2), ..v6.clone() }, true, "packet too big");
    check(&Shape { transport: Transport::Icmp(135), ..v6.clone() }, false, "neighbour solicitation");
    check(&Shape { extra: 1, transport: Transport::Icmp(2), ..v6.clone() }, true, "a first fragment of one");
    for headers in 0..=8 {
        check(&Shape { extra: headers, ..v6.clone() }, true, "TCP behind extension headers");
        let other_port = Transport::Tcp(1000, 444);
        check(&Shape { extra: headers, transport: other_port, ..v6.clone() }, false, "another port there");
    }
    let too_many = Shape { extra: 9, transport: Transport::Other, ..v6.clone() };
    check(&too_many, true, "more extension headers than are walked");
    let elsewhere = "2001:db8::2".parse().unwrap();
    check(&Shape { destination: elsewhere, ..too_many }, false, "so many to another address");
    let mut on_the_way = frame(&Shape { extra: 4, ..v6.clone() });
    let segments_left = 14 + 40 + 8 + 16 + 16 + 3;
    on_the_way[segments_left] = 1;
    both(&filter, &set, &on_the_way, false, "a routing header with segments left");

    let mut arp = frame(&base);
    arp[12..14].copy_from_slice(&[8, 6]);
    both(&filter, &set, &arp, false, "ARP");
    let whole = frame(&Shape { vlan: true, extra: 3, ..base });
    let ports_end = 18 + 32 + 4;
    for len in 14..whole.len() {
        both(&filter, &set, &whole[..len], len >= ports_end, "a cut frame");
    }
}

#[test]
fn etherparse_frames_are_taken_too() {
    let mut filter = load(8);
    let set = RuleSet::compile(&rules());
    filter.set_rules(&set).unwrap();
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], MAC.0)
        .ipv4(CLIENT, VIP, 64)
        .tcp(1, 80, 0, 0)
        .write(&mut bytes, b"hello")
        .unwrap();
    both(&filter, &set, &bytes, true, "another library's frame");
}

#[test]
fn ipv4_rules_and_ipv6_rules_do_not_meet() {
    let mut filter = load(4);
    let set = RuleSet::compile(&[rule(Side::Destination, "::", 0, 6, 80..=80)]);
    filter.set_rules(&set).unwrap();
    both(&filter, &set, &frame(&tcp(CLIENT, 1, VIP, 80)), false, "IPv4 under ::/0");
    let set = RuleSet::compile(&[rule(Side::Destination, "0.0.0.0", 0, 6, 80..=80)]);
    filter.set_rules(&set).unwrap();
    both(&filter, &set, &frame(&tcp(CLIENT, 1, VIP, 80)), true, "IPv4 under 0.0.0.0/0");
}

#[test]
fn too_many_port_sets_are_refused_and_the_rules_before_stay() {
    let mut filter = load(2);
    let first = RuleSet::compile(&[rule(Side::Destination, "10.0.0.1", 32, 6, 80..=80)]);
    filter.set_rules(&first).unwrap();
    let many: Vec<_> =
        (1..=3).map(|n| rule(Side::Destination, &format!("10.0.0.{n}"), 32, 6, n..=n)).collect();
    let error = filter.set_rules(&RuleSet::compile(&many)).unwrap_err();
    assert!(matches!(error, FilterError::TooManyPortSets { needed: 4, room: 2 }), "{error}");
    both(&filter, &first, &frame(&tcp(CLIENT, 1, VIP, 80)), true, "the rule before");
    both(&filter, &first, &frame(&tcp(CLIENT, 1, [10, 0, 0, 2], 2)), false, "a refused rule");

    // Equal sets share a slot, and slots come back: this goes on for ever in a filter with two.
    for round in 0..10u16 {
        let shared: Vec<_> = (1..=9)
            .map(|n| rule(Side::Destination, &format!("10.0.0.{n}"), 32, 6, 80 + round..=80 + round))
            .collect();
        let set = RuleSet::compile(&shared);
        filter.set_rules(&set).unwrap();
        both(&filter, &set, &frame(&tcp(CLIENT, 1, [10, 0, 0, 9], 80 + round)), true, "new port");
        both(&filter, &set, &frame(&tcp(CLIENT, 1, [10, 0, 0, 9], 79 + round)), false, "old port");
    }
}

/// Few addresses and ports, so that rules and frames meet often.
fn address(v4: bool) -> impl Strategy<Value = std::net::IpAddr> {
    (0u8..4, 0u8..3).prop_map(move |(net, host)| match v4 {
        true => std::net::Ipv4Addr::new(10, net, 0, host).into(),
        false => std::net::Ipv6Addr::new(0x2001, 0xdb8, net.into(), 0, 0, 0, 0, host.into()).into(),
    })
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![0u16..20, any::<u16>(), Just(65535)]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let prefix = any::<bool>().prop_flat_map(|v4| {
        let lens = if v4 { vec![0, 8, 14, 16, 31, 32] } else { vec![0, 32, 47, 48, 127, 128] };
        (address(v4), prop::sample::select(lens))
            .prop_map(|(address, len)| Prefix::new(address, len).unwrap())
    });
    (any::<bool>(), prefix, prop::sample::select(vec![6u8, 17, 6, 17, 132]), port(), port()).prop_map(
        |(destination, prefix, protocol, from, to)| Rule {
            side: if destination { Side::Destination } else { Side::Source },
            prefix,
            protocol,
            ports: from..=to,
        },
    )
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let transport = prop_oneof![
        4 => (port(), port()).prop_map(|(source, destination)| Transport::Tcp(source, destination)),
        4 => (port(), port()).prop_map(|(source, destination)| Transport::Udp(source, destination)),
        2 => (0u8..15).prop_map(Transport::Icmp),
        1 => Just(Transport::Other),
    ];
    let mac = prop_oneof![6 => Just(MAC), 1 => Just(VIRTUAL_MAC), 1 => Just(MacAddr([0xff; 6]))];
    let addresses = any::<bool>().prop_flat_map(|v4| (address(v4), address(v4)));
    let fragment = prop_oneof![3 => Just(0u16), 1 => 0u16..0x2000];
    let extra = prop_oneof![2 => Just(0u8), 1 => 0u8..11];
    (mac, any::<bool>(), addresses, transport, fragment, extra).prop_map(
        |(destination_mac, vlan, (source, destination), transport, fragment_offset, extra)| Shape {
            destination_mac,
            vlan,
            source,
            destination,
            transport,
            fragment_offset,
            extra,
        },
    )
}

#[derive(Clone, Debug)]
struct Mutation {
    /// A byte of the headers changed at a place.
    byte: Option<(prop::sample::Index, u8)>,
    /// What remains, of a cut frame.
    cut: Option<prop::sample::Index>,
}

fn any_mutation() -> impl Strategy<Value = Mutation> {
    let byte = prop::option::of((any::<prop::sample::Index>(), any::<u8>()));
    let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
    (byte, cut).prop_map(|(byte, cut)| Mutation { byte, cut })
}

fn mutated(shape: &Shape, mutation: &Mutation) -> Vec<u8> {
    let mut bytes = frame(shape);
    if let Some((index, value)) = &mutation.byte {
        let at = index.index(bytes.len());
        bytes[at] = *value;
    }
    if let Some(index) = &mutation.cut {
        // The kernel runs no program over less than an Ethernet header.
        bytes.truncate(14 + index.index(bytes.len() - 13));
    }
    bytes
}

#[test]
fn program_and_reference_agree_on_random_rules_and_mutated_frames() {
    let filter = std::cell::RefCell::new(load(64));
    let taken = std::cell::Cell::new([0u32; 2]);
    let strategy =
        (prop::collection::vec(any_rule(), 0..8), prop::collection::vec((any_shape(), any_mutation()), 64));
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&strategy, |(rules, frames)| {
            let set = RuleSet::compile(&rules);
            let mut filter = filter.borrow_mut();
            filter.set_rules(&set).unwrap();
            for (shape, mutation) in &frames {
                let bytes = mutated(shape, mutation);
                let expected = set.takes(&[MAC, VIRTUAL_MAC], &bytes);
                prop_assert_eq!(filter.test_run(&bytes).unwrap(), expected, "{:?} {:02x?}", shape, bytes);
                let mut counts = taken.get();
                counts[usize::from(expected)] += 1;
                taken.set(counts);
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    let [passed, taken] = taken.get();
    assert!(passed > 1000 && taken > 1000, "the frames try both: {passed} passed, {taken} taken");
}
