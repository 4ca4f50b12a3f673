//! The stages of one burst. Each is done for all frames before the next begins, so that cache misses overlap:
//! look (what is it? its bucket is fetched) → narrow (its record is fetched) → act (it is sent on).

use arrayvec::ArrayVec;
use shunt_engine::program::Verdicts;
use shunt_engine::{BURST, Burst, Frame, Verdict};

use crate::classify::{Class, Ours, classify};
use crate::counters::Event;
use crate::fast::{self, Usual};
use crate::flow::{Context, Flows, Search};
use crate::snapshot::Snapshot;
use crate::stages::Stages;
use crate::tuple::{V4, V6};
use crate::verdict::{Decision, DropReason};
use crate::wire::ethernet::ethertype;

/// Decides all frames of a burst, and counts what becomes of them. Returns whether all of them were usual packets, which
/// leave nothing for a tick to do.
#[inline]
pub(crate) fn run(
    v4: &mut Stages<V4>,
    v6: &mut Stages<V6>,
    cx: &mut Context<'_, '_>,
    frames: &mut Burst,
    verdicts: &mut Verdicts,
) -> bool {
    let mut seen = [Seen::default(); BURST];
    let mut read = Read::default();
    look(v4, v6, cx.snapshot, frames, &mut seen, &mut read);
    narrow(v4, v6, &mut seen[..frames.len()], &mut read);
    act(v4, v6, cx, &seen[..frames.len()], &read, frames, verdicts)
}

/// What a first look at a frame tells.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    kind: Kind,
    /// Of a usual packet: where its IP header begins.
    l3: u8,
    /// Of a usual packet: its flow.
    search: Search,
}

/// Which way a frame goes on.
#[derive(Clone, Copy, Debug, Default)]
enum Kind {
    /// The short way.
    UsualV4,
    /// The short way.
    UsualV6,
    /// The next of [`Read::v4`].
    V4,
    /// The next of [`Read::v6`].
    V6,
    #[default]
    NotOurs,
    Broken(DropReason),
}

/// Packets that go the long way, in order. Each IP version has its own list: in one, IPv4's entries would be as big as
/// IPv6's, and slower to write.
#[derive(Debug, Default)]
struct Read {
    v4: ArrayVec<(Ours<V4>, Option<Search>), BURST>,
    v6: ArrayVec<(Ours<V6>, Option<Search>), BURST>,
}

/// The first stage: what the frames are. Their buckets are fetched.
#[inline(never)]
fn look(
    v4: &Stages<V4>,
    v6: &Stages<V6>,
    snapshot: &Snapshot,
    frames: &Burst,
    seen: &mut [Seen; BURST],
    read: &mut Read,
) {
    frames.iter().for_each(Frame::prefetch);
    for (frame, seen) in frames.iter().zip(seen) {
        let data = frame.data();
        let usual = match fast::link(data, snapshot.macs()) {
            Some((ethertype::IPV4, l3)) => look_usual(&v4.flows, Kind::UsualV4, data, l3, seen),
            Some((ethertype::IPV6, l3)) => look_usual_v6(v6, data, l3, seen),
            Some(_) | None => false,
        };
        if !usual {
            seen.kind = look_closer(v4, v6, snapshot, data, read);
        }
    }
}

/// A first look at a packet that may be a usual one. Returns whether it is.
#[inline(always)]
fn look_usual<A: Usual>(flows: &Flows<A>, kind: Kind, frame: &[u8], l3: usize, seen: &mut Seen) -> bool {
    match flows.usual(frame, l3) {
        Some(search) => {
            *seen = Seen { kind, l3: l3 as u8, search };
            true
        }
        None => false,
    }
}

/// IPv6 in a function of its own: inlined it would take IPv4's registers.
#[inline(never)]
fn look_usual_v6(v6: &Stages<V6>, frame: &[u8], l3: usize, seen: &mut Seen) -> bool {
    look_usual(&v6.flows, Kind::UsualV6, frame, l3, seen)
}

/// A first look at an unusual packet.
#[inline(never)]
fn look_closer(v4: &Stages<V4>, v6: &Stages<V6>, snapshot: &Snapshot, frame: &[u8], read: &mut Read) -> Kind {
    match classify(frame, snapshot) {
        Class::V4(ours) => {
            let search = v4.seek(&ours);
            read.v4.push((ours, search));
            Kind::V4
        }
        Class::V6(ours) => {
            let search = v6.seek(&ours);
            read.v6.push((ours, search));
            Kind::V6
        }
        Class::NotOurs => Kind::NotOurs,
        Class::Drop(reason) => Kind::Broken(reason),
    }
}

/// The second stage: the buckets are there, and the records are fetched.
#[inline(never)]
fn narrow(v4: &Stages<V4>, v6: &Stages<V6>, seen: &mut [Seen], read: &mut Read) {
    for seen in seen {
        match seen.kind {
            Kind::UsualV4 => v4.flows.narrow(&mut seen.search),
            Kind::UsualV6 => v6.flows.narrow(&mut seen.search),
            Kind::V4 | Kind::V6 | Kind::NotOurs | Kind::Broken(_) => {}
        }
    }
    read.v4.iter_mut().filter_map(|(_, search)| search.as_mut()).for_each(|search| v4.flows.narrow(search));
    read.v6.iter_mut().filter_map(|(_, search)| search.as_mut()).for_each(|search| v6.flows.narrow(search));
}

/// The third stage: the records are there, and packets are sent on. Returns whether all of them were usual.
#[inline(never)]
fn act(
    v4: &mut Stages<V4>,
    v6: &mut Stages<V6>,
    cx: &mut Context<'_, '_>,
    seen: &[Seen],
    read: &Read,
    frames: &mut Burst,
    verdicts: &mut Verdicts,
) -> bool {
    let (mut read_v4, mut read_v6) = (read.v4.iter(), read.v6.iter());
    let mut decided = [Verdict::Drop; BURST];
    let (mut at, mut unusual) = (0, 0);
    while at < frames.len() {
        let ahead = &mut frames[at..];
        let sent = match seen[at].kind {
            Kind::UsualV4 => go_on(&mut v4.flows, cx, &seen[at..], ahead, &mut decided[at..]),
            Kind::UsualV6 => go_on(&mut v6.flows, cx, &seen[at..], ahead, &mut decided[at..]),
            Kind::V4 | Kind::V6 | Kind::NotOurs | Kind::Broken(_) => 0,
        };
        at += sent;
        if sent > 0 {
            continue;
        }
        let frame = &mut frames[at];
        let decision = match seen[at].kind {
            Kind::UsualV4 | Kind::UsualV6 => long_way(v4, v6, cx, frame),
            Kind::V4 => {
                let (ours, search) = read_v4.next().expect("an entry was made for every such frame");
                decide_v4(v4, cx, ours, *search, frame)
            }
            Kind::V6 => {
                let (ours, search) = read_v6.next().expect("an entry was made for every such frame");
                decide_v6(v6, cx, ours, *search, frame)
            }
            Kind::NotOurs => Decision::Punt,
            Kind::Broken(reason) => Decision::Drop(reason),
        };
        cx.count(decision);
        decided[at] = decision.into();
        at += 1;
        unusual += 1;
    }
    cx.counters.events(Event::Forwarded, (frames.len() - unusual) as u64);
    verdicts.try_extend_from_slice(&decided[..frames.len()]).expect("there is a place for each frame");
    unusual == 0
}

/// Sends usual packets of one IP version on, up to the first that is none after all. Returns how many.
#[inline(never)]
fn go_on<A: Usual>(
    flows: &mut Flows<A>,
    cx: &mut Context<'_, '_>,
    seen: &[Seen],
    frames: &mut [Frame],
    verdicts: &mut [Verdict],
) -> usize {
    let kind = std::mem::discriminant(&seen[0].kind);
    let mut sent = 0;
    for ((seen, frame), verdict) in seen.iter().zip(frames).zip(verdicts) {
        if std::mem::discriminant(&seen.kind) != kind {
            break;
        }
        let Some(port) = flows.forward(cx, &seen.search, seen.l3.into(), frame) else { break };
        *verdict = Verdict::Forward(port);
        sent += 1;
    }
    sent
}

/// A packet that looked usual, and whose connection is not, or not there.
#[inline(never)]
fn long_way(
    v4: &mut Stages<V4>,
    v6: &mut Stages<V6>,
    cx: &mut Context<'_, '_>,
    frame: &mut Frame,
) -> Decision {
    match classify(frame.data(), cx.snapshot) {
        Class::V4(ours) => {
            let search = v4.seek(&ours);
            decide_v4(v4, cx, &ours, search, frame)
        }
        Class::V6(ours) => {
            let search = v6.seek(&ours);
            decide_v6(v6, cx, &ours, search, frame)
        }
        Class::NotOurs => Decision::Punt,
        Class::Drop(reason) => Decision::Drop(reason),
    }
}

#[inline(never)]
fn decide_v4(
    v4: &mut Stages<V4>,
    cx: &mut Context<'_, '_>,
    ours: &Ours<V4>,
    search: Option<Search>,
    frame: &mut Frame,
) -> Decision {
    v4.decide(cx, ours, search, frame)
}

#[inline(never)]
fn decide_v6(
    v6: &mut Stages<V6>,
    cx: &mut Context<'_, '_>,
    ours: &Ours<V6>,
    search: Option<Search>,
    frame: &mut Frame,
) -> Decision {
    v6.decide(cx, ours, search, frame)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use proptest::prelude::*;
    use shunt_engine::mempool::PoolConfig;
    use shunt_engine::port::MacAddr;
    use shunt_engine::program::EmitBuffer;
    use shunt_engine::steer::Prefix;
    use shunt_engine::{Emit, Instant, Mempool, Origin, PortId, WorkerId};

    use super::*;
    use crate::agreed::Agreed;
    use crate::conn::{Conn, Timeouts};
    use crate::counters::WorkerCounters;
    use crate::ip::Ip;
    use crate::neigh::{HopId, NextHop};
    use crate::pipeline::Config;
    use crate::scheduler::SchedulerKind;
    use crate::server::{Mode, Server, ServerId};
    use crate::service::{Listen, Local, OutOfState, ServerGone, Service, ServiceId};
    use crate::shared::Shared;
    use crate::snapshot::{Builder, PortInfo};
    use crate::tuple::Protocol;
    use crate::wire::builder::PacketBuilder;
    use crate::wire::tcp::flags;

    const CONFIG: Config = Config {
        worker: WorkerId(0),
        workers: 1,
        secret: [3, 4],
        max_connections: 8,
        max_services: 1,
        max_servers: 1,
    };
    const CLIENTS: (PortId, MacAddr) = (PortId(0), MacAddr([2, 0, 0, 0, 0, 1]));
    const SERVERS: (PortId, MacAddr) = (PortId(1), MacAddr([2, 0, 0, 0, 0, 2]));
    const CLIENT_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
    const SERVER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 2]);

    /// What the way of a usual packet may depend on.
    #[derive(Clone, Copy, Debug)]
    struct World {
        mode: Mode,
        protocol: Protocol,
        six: bool,
        /// VLANs of the clients' and the servers' side.
        vids: [Option<u16>; 2],
        /// Clients are on the director's own network.
        attached: bool,
        mtu: u16,
    }

    impl World {
        fn ip(&self, v4: &str, v6: &str) -> IpAddr {
            if self.six { v6.parse().unwrap() } else { v4.parse().unwrap() }
        }

        fn client(&self) -> SocketAddr {
            (self.ip("198.51.100.7", "2001:db8:1::7"), 40_000).into()
        }

        fn vip(&self) -> SocketAddr {
            (self.ip("203.0.113.10", "2001:db8:2::10"), 80).into()
        }

        fn server(&self) -> SocketAddr {
            (self.ip("10.0.0.11", "2001:db8:3::11"), if self.mode.sees_replies() { 8080 } else { 80 }).into()
        }

        fn snapshot(&self) -> Snapshot {
            let mut builder = Builder::new();
            for ((_, mac), name) in [(CLIENTS, "clients"), (SERVERS, "servers")] {
                builder.port(PortInfo { name: name.into(), mac });
            }
            let hop = |(port, source): (PortId, MacAddr), vid, destination| NextHop {
                port,
                vid,
                source,
                destination,
                attached: false,
                mtu: self.mtu,
                address: Some(self.ip("10.0.0.1", "2001:db8:3::1")),
            };
            let router = (!self.attached).then_some(CLIENT_MAC);
            let clients = NextHop { attached: self.attached, ..hop(CLIENTS, self.vids[0], router) };
            builder.hop(HopId(0), clients).hop(HopId(1), hop(SERVERS, self.vids[1], Some(SERVER_MAC)));
            let everywhere = Prefix::new(self.ip("0.0.0.0", "::"), 0).unwrap();
            builder.route(everywhere, HopId(0)).route(Prefix::host(self.server().ip()), HopId(1));
            let server = Server {
                id: ServerId::default(),
                service: ServiceId(0),
                address: self.server().ip(),
                port: self.mode.sees_replies().then_some(8080),
                mode: self.mode,
                weight: 1,
                drain_at: None,
                down: false,
                thresholds: None,
                hop: None,
            };
            let service = Service {
                id: ServiceId(0),
                name: "web".into(),
                protocol: self.protocol,
                listen: vec![Listen { prefix: Prefix::host(self.vip().ip()), ports: 80..=80 }],
                scheduler: SchedulerKind::Rr.into(),
                locals: vec![Local { address: self.ip("10.0.0.200", "2001:db8:3::200"), ports: 1024..=2047 }],
                out_of_state: OutOfState::Reset,
                timeouts: Timeouts::default(),
                persistence: None,
                one_packet: false,
                server_gone: ServerGone::Reset,
            };
            builder.service(service, vec![server]);
            builder.build()
        }

        fn packet(&self, (from, to): (SocketAddr, SocketAddr), to_server: bool) -> PacketBuilder {
            let packet = match self.protocol {
                Protocol::Tcp => PacketBuilder::tcp(from, to),
                Protocol::Udp => PacketBuilder::udp(from, to),
            };
            let (station, mac, vid) = if to_server {
                (CLIENT_MAC, CLIENTS.1, self.vids[0])
            } else {
                (SERVER_MAC, SERVERS.1, self.vids[1])
            };
            let packet = packet.link(station, mac);
            vid.map_or(packet.clone(), |vid| packet.vlan(vid))
        }
    }

    /// By which way packets are to go.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Way {
        /// As they are seen to.
        Seen,
        /// The long one.
        Long,
    }

    /// One worker's stages without anything around them.
    struct Director {
        v4: Stages<V4>,
        v6: Stages<V6>,
        shared: Shared,
        counters: WorkerCounters,
        snapshot: Snapshot,
        pool: Mempool,
        way: Way,
    }

    impl Director {
        fn new(world: World, way: Way) -> Self {
            let snapshot = world.snapshot();
            let mut counters = WorkerCounters::new(1);
            snapshot.servers().for_each(|server| _ = counters.tenant(server.id));
            let shared = Shared::new(CONFIG, Agreed::new(64, 1, CONFIG.secret));
            Self {
                v4: Stages::new(CONFIG, shared.home()).unwrap(),
                v6: Stages::new(CONFIG, shared.home()).unwrap(),
                shared,
                counters,
                snapshot,
                pool: Mempool::single(PoolConfig { chunks: 8, ..PoolConfig::default() }).unwrap(),
                way,
            }
        }

        /// What becomes of `packet`, which comes at `now`, and whether it went as a usual one.
        fn deliver(
            &mut self,
            packet: &PacketBuilder,
            now: Instant,
            port: PortId,
        ) -> (Verdict, Vec<u8>, bool) {
            let Self { v4, v6, shared, counters, snapshot, pool, way } = self;
            let mut frame = pool.alloc().unwrap();
            assert!(frame.fill(&packet.build()));
            frame.set_source(port, 0);
            let (mut frames, mut verdicts, mut staged) = (Burst::new(), Verdicts::new(), EmitBuffer::new());
            let emit = &mut Emit::new(pool, &mut staged);
            let mut cx = Context::new(now, Origin::Port, snapshot, counters, shared, emit);
            let usual = match way {
                Way::Seen => {
                    frames.push(frame);
                    run(v4, v6, &mut cx, &mut frames, &mut verdicts)
                }
                Way::Long => {
                    let decision = long_way(v4, v6, &mut cx, &mut frame);
                    cx.count(decision);
                    verdicts.push(decision.into());
                    frames.push(frame);
                    false
                }
            };
            let bytes = frames[0].data().to_vec();
            pool.free_all(frames.drain(..).chain(staged.drain(..).map(|(_, frame)| frame)));
            (verdicts[0], bytes, usual)
        }

        /// Everything it keeps that packets change.
        fn state(&self) -> (Vec<String>, Vec<u64>) {
            fn records<A: Ip>(flows: &Flows<A>) -> Vec<String> {
                let mut records = Vec::new();
                // Generations differ between snapshots.
                let shown = |conn: &Conn<A>| format!("{:?}", Conn { generation: 0, ..*conn });
                flows.table().scan(0, 8, |_, conn| records.push(shown(conn)));
                records
            }
            let counters = self.counters.raw();
            let records = [records(&self.v4.flows), records(&self.v6.flows)].concat();
            (records, (0..counters.len()).map(|index| counters.get(index)).collect())
        }
    }

    fn vid() -> impl Strategy<Value = Option<u16>> {
        prop_oneof![3 => Just(None), 1 => (1u16..4095).prop_map(Some)]
    }

    prop_compose! {
        fn world()(
            mode in prop::sample::select(Mode::ALL.to_vec()),
            tcp: bool,
            six: bool,
            vids in [vid(), vid()],
            attached: bool,
            mtu in prop_oneof![3 => Just(1500u16), 1 => 1280u16..1400],
        ) -> World {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            World { mode, protocol, six, vids, attached, mtu }
        }
    }

    proptest! {
        #[test]
        fn a_usual_packet_goes_the_short_way_as_it_would_go_the_long_one(
            world in world(),
            reply: bool,
            payload in prop_oneof![0usize..100, 1200usize..1460],
            fill: u8,
            ttl in 1u8..,
            tos: u8,
            tcp_flags in prop_oneof![4 => Just(flags::ACK), 1 => any::<u8>()],
            dont_fragment: bool,
            padded: bool,
            wrong_checksum in prop::option::weighted(0.2, any::<u16>()),
            moved in prop::bool::weighted(0.1),
        ) {
            let mut directors = [Way::Seen, Way::Long].map(|way| Director::new(world, way));
            let at = |step: u64| Instant::from_nanos((1 << 40) + (step << 27));
            let there = (world.client(), world.vip());
            let syn = world.packet(there, true);
            let syn = if world.protocol == Protocol::Tcp { syn.flags(flags::SYN) } else { syn };
            let opened = directors.each_mut().map(|director| director.deliver(&syn, at(0), CLIENTS.0));
            prop_assert_eq!(&opened[0], &opened[1]);
            prop_assert_eq!(opened[0].0, Verdict::Forward(SERVERS.0));
            // Where the server sees the connection come from, read off the packet it got.
            let seen = shunt_engine::rss::Tuple::of_frame(&opened[0].1).unwrap();
            let back = match (world.mode.sees_replies(), seen.ports) {
                (true, Some((source, destination))) => {
                    Some(((seen.destination, destination).into(), (seen.source, source).into()))
                }
                _ => None,
            };
            if let Some(back) = back {
                let answer = world.packet(back, false);
                let answer = if world.protocol == Protocol::Tcp { answer.flags(flags::SYN | flags::ACK) } else { answer };
                directors.iter_mut().for_each(|director| _ = director.deliver(&answer, at(1), SERVERS.0));
            }
            for step in 2..4 {
                let ack = world.packet(there, true);
                directors.iter_mut().for_each(|director| _ = director.deliver(&ack, at(step), CLIENTS.0));
            }

            let to_server = !reply || back.is_none();
            let (ends, port) = if to_server { (there, CLIENTS.0) } else { (back.unwrap(), SERVERS.0) };
            let mut packet = world.packet(ends, to_server).payload(vec![fill; payload]).ttl(ttl).tos(tos);
            if world.protocol == Protocol::Tcp {
                packet = packet.flags(tcp_flags);
            }
            if dont_fragment && !world.six {
                packet = packet.dont_fragment();
            }
            if padded {
                packet = packet.padded();
            }
            if let Some(value) = wrong_checksum {
                packet = packet.l4_checksum(value);
            }
            if moved {
                packet = packet.link(MacAddr([2, 0, 0, 0, 9, 9]), if to_server { CLIENTS.1 } else { SERVERS.1 });
            }
            let [short, long] = directors.each_mut().map(|director| director.deliver(&packet, at(9), port));
            prop_assert_eq!((short.0, &short.1), (long.0, &long.1));
            prop_assert_eq!(directors[0].state(), directors[1].state());

            let steady = world.protocol == Protocol::Udp
                || tcp_flags & (flags::SYN | flags::FIN | flags::RST | flags::ACK) == flags::ACK;
            let overhead = if world.mode == Mode::Tun { if world.six { 40 } else { 20 } } else { 0 };
            let headers = if world.six { 40 } else { 20 } + if world.protocol == Protocol::Tcp { 20 } else { 8 };
            let fits = headers + payload + overhead <= usize::from(world.mtu);
            let whole = headers + payload >= if world.six { 60 } else { 40 } || padded && !world.six;
            let learns = moved && to_server && world.attached;
            let usual = steady && fits && whole && ttl > 1 && !learns;
            prop_assert_eq!(short.2, usual, "whether it was usual");
        }
    }
}
