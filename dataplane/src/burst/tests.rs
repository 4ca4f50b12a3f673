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
        Self::of(world, way, CONFIG)
    }

    fn of(world: World, way: Way, config: Config) -> Self {
        let snapshot = world.snapshot();
        let mut counters = WorkerCounters::new(1);
        snapshot.servers().for_each(|server| _ = counters.tenant(server.id));
        let shared = Shared::new(config, Agreed::new(64, 1, config.secret));
        Self {
            v4: Stages::new(config, shared.home()).unwrap(),
            v6: Stages::new(config, shared.home()).unwrap(),
            shared,
            counters,
            snapshot,
            pool: Mempool::single(PoolConfig { chunks: 8, ..PoolConfig::default() }).unwrap(),
            way,
        }
    }

    /// What becomes of `packet`, which comes at `now`, and whether it went as a usual one.
    fn deliver(&mut self, packet: &PacketBuilder, now: Instant, port: PortId) -> (Verdict, Vec<u8>, bool) {
        let (verdict, bytes, usual, _) = self.receive(packet, now, (port, Origin::Port), Note::default());
        (verdict, bytes, usual)
    }

    /// The same for a packet that comes from anywhere, with what was noted before and after.
    fn receive(
        &mut self,
        packet: &PacketBuilder,
        now: Instant,
        (port, origin): (PortId, Origin),
        note: Note,
    ) -> (Verdict, Vec<u8>, bool, Note) {
        let Self { v4, v6, shared, counters, snapshot, pool, way } = self;
        let mut frame = pool.alloc().unwrap();
        assert!(frame.fill(&packet.build()));
        frame.set_source(port, 0);
        frame.set_note(note);
        let (mut frames, mut verdicts, mut staged) = (Burst::new(), Verdicts::new(), EmitBuffer::new());
        let emit = &mut Emit::new(pool, &mut staged);
        let mut cx = Context::new(now, origin, snapshot, counters, shared, emit);
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
        let (bytes, note) = (frames[0].data().to_vec(), frames[0].note());
        pool.free_all(frames.drain(..).chain(staged.drain(..).map(|(_, frame)| frame)));
        (verdicts[0], bytes, usual, note)
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

/// What becomes of a packet that comes to worker `first` of two, the last worker's frame, and whether all found it usual.
fn through(
    directors: &mut [Director; 2],
    packet: &PacketBuilder,
    now: Instant,
    (port, first): (PortId, usize),
) -> (Vec<usize>, Verdict, Vec<u8>, bool) {
    let (mut visited, mut origin, mut note, mut all_usual) =
        (vec![first], Origin::Port, Note::default(), true);
    loop {
        let here = *visited.last().unwrap();
        let (verdict, bytes, usual, noted) = directors[here].receive(packet, now, (port, origin), note);
        all_usual &= usual;
        let Verdict::Handoff(next) = verdict else { return (visited, verdict, bytes, all_usual) };
        assert!(visited.len() < 3, "round and round: {visited:?}");
        (origin, note) = (Origin::Handoff(WorkerId(here as u16)), noted);
        visited.push(next.0.into());
    }
}

#[test]
fn a_stray_goes_the_short_way_as_it_would_go_the_long_one() {
    let both = [false, true];
    let worlds = Mode::ALL.into_iter().flat_map(|mode| {
        let tags = [[None, None], [Some(7), None], [None, Some(9)]];
        let kinds = both.into_iter().flat_map(move |tcp| both.map(|six| (tcp, six)));
        kinds.flat_map(move |(tcp, six)| {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            tags.map(|vids| World { mode, protocol, six, vids, attached: false, mtu: 1500 })
        })
    });
    for world in worlds {
        let mut ways = [Way::Seen, Way::Long].map(|way| {
            [0, 1].map(|worker| {
                Director::of(world, way, Config { worker: WorkerId(worker), workers: 2, ..CONFIG })
            })
        });
        let at = |step: u64| Instant::from_nanos((1 << 40) + (step << 27));
        // Long enough to be a usual one.
        let there = world.packet((world.client(), world.vip()), true).payload([0; 20]);
        let is_tcp = world.protocol == Protocol::Tcp;
        let syn = if is_tcp { there.clone().flags(flags::SYN) } else { there.clone() };
        let opened = ways.each_mut().map(|ends| through(ends, &syn, at(0), (CLIENTS.0, 0)));
        let home = *opened[0].0.last().unwrap();
        assert_eq!(opened[0].1, Verdict::Forward(SERVERS.0), "{world:?}");
        assert_eq!(opened[0].2, opened[1].2, "{world:?}");
        let seen = shunt_engine::rss::Tuple::of_frame(&opened[0].2).unwrap();
        let mut packets = vec![(there, CLIENTS.0)];
        if let (true, Some((source, destination))) = (world.mode.sees_replies(), seen.ports) {
            let back = ((seen.destination, destination).into(), (seen.source, source).into());
            let answer = world.packet(back, false).payload([0; 20]);
            let syn_ack = if is_tcp { answer.clone().flags(flags::SYN | flags::ACK) } else { answer.clone() };
            ways.iter_mut().for_each(|ends| _ = through(ends, &syn_ack, at(1), (SERVERS.0, home)));
            packets.push((answer, SERVERS.0));
        }
        ways.iter_mut().for_each(|ends| _ = through(ends, &packets[0].0, at(2), (CLIENTS.0, home)));
        ways.iter_mut().for_each(|ends| _ = through(ends, &packets[0].0, at(3), (CLIENTS.0, home)));
        // The second time the stray's home is remembered.
        for (step, (packet, port)) in (4..).zip(packets.iter().chain(&packets)) {
            let [short, long] =
                ways.each_mut().map(|ends| through(ends, packet, at(step), (*port, 1 - home)));
            assert_eq!((&short.0, short.1, &short.2), (&long.0, long.1, &long.2), "{world:?}");
            assert_eq!(short.0, [1 - home, home], "{world:?}");
            assert!(short.3 && !long.3, "it is usual at both workers: {world:?}");
        }
        let [short, long] = ways.each_ref().map(|ends| ends.each_ref().map(Director::state));
        assert_eq!(short, long, "{world:?}");
    }
}
