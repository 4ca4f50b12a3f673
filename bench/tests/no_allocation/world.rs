//! What is configured: a service per address family, mode and protocol, all schedulers among them, and what a reload
//! changes about it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use shunt_dataplane::conn::Timeouts;
use shunt_dataplane::neigh::{HopId, NextHop};
use shunt_dataplane::persist::Persistence;
use shunt_dataplane::pipeline::Config;
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::{Mode, Server, ServerId};
use shunt_dataplane::service::{Listen, Local, OutOfState, ServerGone, Service, ServiceId};
use shunt_dataplane::snapshot::{Builder, PortInfo, Snapshot};
use shunt_dataplane::thresholds::Thresholds;
use shunt_dataplane::tuple::{Address, Endpoint, Protocol, V4, V6};
use shunt_engine::port::MacAddr;
use shunt_engine::steer::Prefix;
use shunt_engine::{Duration, Instant, PortId, WorkerId};

pub(crate) const WORKERS: u16 = 3;
/// Server slots of each service: all but the last are there in every generation.
const SLOTS: u32 = 3;
/// A service of every kind.
pub(crate) const SERVICES: u32 = 16;
/// What fits the way to servers and to clients: less than what arrives.
const MTU: u16 = 1300;
/// Connections that a server with thresholds may have: some more than live on.
pub(crate) const THRESHOLDS: Thresholds = Thresholds { upper: 80, lower: 75 };
/// From the generation that drains a server to the end of what it has.
const DRAIN: Duration = Duration::from_secs(60);

pub(crate) const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
pub(crate) const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// What there is one service of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// Whether every address is the IPv6 one that [`six`] makes of it.
    pub(crate) ipv6: bool,
    pub(crate) mode: Mode,
    pub(crate) protocol: Protocol,
}

/// All kinds.
pub(crate) fn every() -> impl Iterator<Item = Kind> {
    let protocols = |ipv6, mode| [Protocol::Tcp, Protocol::Udp].map(|protocol| Kind { ipv6, mode, protocol });
    let modes = move |ipv6| Mode::ALL.into_iter().flat_map(move |mode| protocols(ipv6, mode));
    [false, true].into_iter().flat_map(modes)
}

/// The address of the same station in IPv6.
pub(crate) fn six(address: V4) -> V6 {
    V6([0x2001_0db8, 0, 0, address.0])
}

impl Kind {
    fn number(self) -> u32 {
        u32::from(self.ipv6) * SERVICES / 2 + self.mode as u32 * 2 + u32::from(self.protocol == Protocol::Udp)
    }

    /// Where its service answers.
    pub(crate) fn vip(self) -> Endpoint<V4> {
        Endpoint { address: V4(0xcb00_710a), port: 8000 + self.number() as u16 }
    }

    pub(crate) fn name(self) -> String {
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        format!("{} {} {family} {}", self.mode.name(), self.protocol, self.scheduler().name())
    }

    fn slots(self) -> Range<u32> {
        let first = self.number() * SLOTS;
        first..first + SLOTS
    }

    /// The server slots of its service that no reload touches.
    pub(crate) fn lasting_slots(self) -> Range<u32> {
        let all = self.slots();
        all.start..all.end - 1
    }

    /// The slot of the server that may have [`THRESHOLDS`] connections. Where addresses alone say which server is meant
    /// there is none: whoever is sent to a full one stays outside.
    pub(crate) fn narrow_slot(self) -> Option<u32> {
        (self.number() % 2 == 1 && !self.scheduler().maps()).then_some(self.slots().start + 1)
    }

    /// Whether its service has persistence.
    fn remembers(self) -> bool {
        self.number().is_multiple_of(3)
    }

    fn scheduler(self) -> SchedulerKind {
        SchedulerKind::ALL[self.number() as usize % SchedulerKind::ALL.len()]
    }

    fn ip(self, bits: u32) -> IpAddr {
        if self.ipv6 { six(V4(bits)).to_ip() } else { V4(bits).to_ip() }
    }
}

/// Client number `index`, of 198.18.0.0/16.
pub(crate) fn client(index: u32) -> Endpoint<V4> {
    Endpoint { address: V4(0xc612_0000 | index & 0xffff), port: 1024 + (index >> 16) as u16 }
}

pub(crate) fn config(worker: u16) -> Config {
    Config {
        worker: WorkerId(worker),
        workers: WORKERS,
        secret: [5, 7],
        max_connections: 1 << 12,
        max_services: SERVICES,
        max_servers: SERVICES * SLOTS,
    }
}

/// Generation `number` of the configuration, published at `now`: from one to the next weights, routes and the way to the
/// clients change, and the last server of each service comes, drains or goes.
pub(crate) fn snapshot(generation: u32, now: Instant) -> Snapshot {
    let mut builder = Builder::new();
    builder.port(PortInfo { name: "memory".into(), mac: US });
    builder.hop(HopId(0), hop(MacAddr([2, 0, 0, 0, 3, generation as u8])));
    for everywhere in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        builder.route(Prefix::new(everywhere, 0).unwrap(), HopId(0));
    }
    for kind in every() {
        let lasting = kind.lasting_slots().map(|slot| server(kind, slot, generation));
        let servers: Vec<_> = lasting.chain(guest(kind, generation, now)).collect();
        for server in &servers {
            let id = HopId(server.id.slot as u16 + 1);
            builder.hop(id, hop(MacAddr([2, 0, 0, 0, 1, server.id.slot as u8])));
            builder.route(Prefix::host(server.address), id);
        }
        builder.service(service(kind), servers);
    }
    builder.build()
}

/// The server in the last slot, never the same one: it stays for two generations of four. Then every other service has
/// it drain for one more, and the others lose it together with the connections it has.
fn guest(kind: Kind, generation: u32, now: Instant) -> Option<Server> {
    let age = generation % 4;
    let tenant = Server {
        id: ServerId { slot: kind.lasting_slots().end, generation: generation - age + 1 },
        ..server(kind, kind.lasting_slots().end, generation)
    };
    match age {
        1 | 2 => Some(tenant),
        3 if (kind.number() / 2).is_multiple_of(2) => {
            Some(Server { weight: 0, drain_at: Some(now + DRAIN), ..tenant })
        }
        _ => None,
    }
}

fn server(kind: Kind, slot: u32, generation: u32) -> Server {
    Server {
        id: ServerId { slot, generation: 1 },
        service: ServiceId(kind.number()),
        address: kind.ip(0x0a01_0001 + slot),
        port: kind.mode.sees_replies().then_some(9000),
        mode: kind.mode,
        // Where clients are remembered one of the three gets nobody, and clients have to move. `ovf` takes weights for
        // numbers of connections: all have their place.
        weight: 1000 * ((slot + generation) % 3 + u32::from(!kind.remembers())),
        drain_at: None,
        down: false,
        thresholds: (kind.narrow_slot() == Some(slot)).then_some(THRESHOLDS),
        hop: None,
    }
}

fn service(kind: Kind) -> Service {
    let vip = kind.vip();
    let locals = if kind.mode == Mode::Fullnat { 4 } else { 0 };
    // Longer than a client that comes once per round stays away.
    let persistence = Persistence { timeout: Duration::from_secs(1500), mask_v4: 32, mask_v6: 128 };
    Service {
        id: ServiceId(kind.number()),
        name: kind.name(),
        protocol: kind.protocol,
        listen: vec![Listen { prefix: Prefix::host(kind.ip(vip.address.0)), ports: vip.port..=vip.port }],
        scheduler: kind.scheduler().into(),
        locals: (0..locals)
            .map(|n| Local { address: kind.ip(0x0a00_0001 + n), ports: 1024..=65535 })
            .collect(),
        out_of_state: OutOfState::Reset,
        timeouts: Timeouts::default(),
        persistence: kind.remembers().then_some(persistence),
        one_packet: false,
        server_gone: ServerGone::Reset,
    }
}

fn hop(destination: MacAddr) -> NextHop {
    NextHop {
        port: PortId(0),
        vid: None,
        source: US,
        destination: Some(destination),
        attached: false,
        mtu: MTU,
        address: Some(V4(0x0a00_00fe).to_ip()),
    }
}
