//! The director that is measured: one port, one service per mode, a few servers each, everything behind one router.

use std::net::{IpAddr, Ipv4Addr};

use shunt_dataplane::agreed::Agreed;
use shunt_dataplane::conn::Timeouts;
use shunt_dataplane::neigh::{HopId, NextHop};
use shunt_dataplane::pipeline::{Config, Pipeline};
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::{Mode, Server, ServerId};
use shunt_dataplane::service::{Listen, Local, OutOfState, ServerGone, Service, ServiceId};
use shunt_dataplane::snapshot::{Builder, PortInfo, Snapshot};
use shunt_dataplane::tuple::{Endpoint, Protocol, V4};
use shunt_engine::port::MacAddr;
use shunt_engine::steer::Prefix;
use shunt_engine::{PortId, WorkerId, publish};

/// Servers of each service, unless a run asks for more.
pub const SERVERS: u8 = 4;
/// Local addresses of the FULLNAT service.
pub const LOCAL_ADDRESSES: u8 = 64;
/// Ports of each local address: as many as there are above the well-known ones.
pub const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 1024..=65535;
/// Connections the table is made for, unless a run needs more.
const CAPACITY_MIN: u32 = 1 << 20;
/// MTU of the one port.
const MTU: u16 = 1500;

/// The director's link address.
pub const US: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x02]);
/// The router's: what clients' and servers' packets come from.
pub const ROUTER: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x01]);

/// The virtual address and port of the service with `mode`.
pub const fn vip(mode: Mode) -> Endpoint<V4> {
    Endpoint { address: V4(0xcb00_710a), port: 8000 + mode as u16 }
}

/// Client number `index`: of 198.18.0.0/16, which is set aside for benchmarks (RFC 2544).
pub const fn client(index: u32) -> Endpoint<V4> {
    Endpoint { address: V4(0xc612_0000 | index & 0xffff), port: 1024 + (index >> 16) as u16 }
}

/// The table size of a run with `flows` flows.
pub fn capacity(flows: u32) -> u32 {
    flows.max(CAPACITY_MIN)
}

/// The services there are: one per mode.
#[derive(Clone, Copy, Debug)]
pub struct Services<'a> {
    /// The modes.
    pub modes: &'a [Mode],
    /// The scheduler of each.
    pub scheduler: SchedulerKind,
    /// Servers of each.
    pub servers: u16,
}

/// The real pipeline of one worker, for connections up to `capacity`, over a snapshot with one service per mode: a few
/// servers in turn.
///
/// # Errors
/// When the kernel has no memory for the tables.
pub fn pipeline(modes: &[Mode], capacity: u32) -> std::io::Result<Pipeline> {
    Services { modes, scheduler: SchedulerKind::Rr, servers: SERVERS.into() }.pipeline(capacity)
}

impl Services<'_> {
    /// The real pipeline of one worker, for connections up to `capacity`.
    ///
    /// # Errors
    /// When the kernel has no memory for the tables.
    pub fn pipeline(&self, capacity: u32) -> std::io::Result<Pipeline> {
        let (_, mut readers) = publish::channel(self.snapshot(), 1);
        let services = self.modes.len() as u32;
        let config = Config {
            worker: WorkerId(0),
            workers: 1,
            secret: [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345],
            max_connections: capacity,
            max_services: services,
            max_servers: services * u32::from(self.servers),
        };
        Pipeline::new(config, Agreed::new(64, config.max_servers, config.secret), readers.remove(0))
    }

    fn snapshot(&self) -> Snapshot {
        let mut builder = Builder::new();
        builder.port(PortInfo { name: "memory".into(), mac: US }).routes_generation(1);
        let everywhere =
            Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0).expect("no bit is set behind the prefix");
        builder.hop(HopId(0), hop(ROUTER)).route(everywhere, HopId(0));
        for (number, &mode) in (0u32..).zip(self.modes) {
            let slots = (0..u32::from(self.servers)).map(|index| number * u32::from(self.servers) + index);
            let servers: Vec<_> = slots.map(|slot| server(number, mode, slot)).collect();
            for server in &servers {
                let slot = server.id.slot as u16;
                let [high, low] = slot.to_be_bytes();
                builder.hop(HopId(slot + 1), hop(MacAddr([0x02, 0, 0, 1, high, low])));
                builder.route(Prefix::host(server.address), HopId(slot + 1));
            }
            builder.service(service(number, mode, self.scheduler), servers);
        }
        builder.build()
    }
}

fn service(number: u32, mode: Mode, scheduler: SchedulerKind) -> Service {
    let vip = vip(mode);
    let locals = if mode == Mode::Fullnat { LOCAL_ADDRESSES } else { 0 };
    Service {
        id: ServiceId(number),
        name: mode.name().into(),
        protocol: Protocol::Tcp,
        listen: vec![Listen { prefix: Prefix::host(ip(vip.address.0)), ports: vip.port..=vip.port }],
        scheduler: scheduler.into(),
        locals: (0..locals)
            .map(|index| Local { address: ip(0x0a00_0001 + u32::from(index)), ports: LOCAL_PORTS })
            .collect(),
        out_of_state: OutOfState::Reset,
        timeouts: Timeouts::default(),
        persistence: None,
        one_packet: false,
        server_gone: ServerGone::Reset,
    }
}

fn server(service: u32, mode: Mode, slot: u32) -> Server {
    Server {
        id: ServerId { slot, generation: 1 },
        service: ServiceId(service),
        address: ip(0x0a01_0001 + slot),
        port: mode.sees_replies().then_some(8080),
        mode,
        weight: 1,
        drain_at: None,
        down: false,
        thresholds: None,
        hop: None,
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
        address: Some(ip(0x0a00_00fe)),
    }
}

fn ip(bits: u32) -> IpAddr {
    Ipv4Addr::from_bits(bits).into()
}
