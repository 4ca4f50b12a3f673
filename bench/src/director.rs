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

/// Servers of each service.
pub const SERVERS: u8 = 4;
/// Local addresses of the FULLNAT service.
pub const LOCAL_ADDRESSES: u8 = 64;
/// Ports of each local address: as many as there are above the well-known ones.
const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 1024..=65535;
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

/// The real pipeline of one worker, for connections up to `capacity`, over a snapshot with one service per mode.
///
/// # Errors
/// When the kernel has no memory for the tables.
pub fn pipeline(modes: &[Mode], capacity: u32) -> std::io::Result<Pipeline> {
    let (_, mut readers) = publish::channel(snapshot(modes), 1);
    let config = Config {
        worker: WorkerId(0),
        workers: 1,
        secret: [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345],
        max_connections: capacity,
        max_services: modes.len() as u32,
        max_servers: modes.len() as u32 * u32::from(SERVERS),
    };
    Pipeline::new(config, Agreed::new(64, config.max_servers, config.secret), readers.remove(0))
}

fn snapshot(modes: &[Mode]) -> Snapshot {
    let mut builder = Builder::new();
    builder.port(PortInfo { name: "memory".into(), mac: US }).routes_generation(1);
    let everywhere = Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0).expect("no bit is set behind the prefix");
    builder.hop(HopId(0), hop(ROUTER)).route(everywhere, HopId(0));
    for (number, &mode) in modes.iter().enumerate() {
        let servers: Vec<_> = (0..SERVERS).map(|index| server(number, mode, index)).collect();
        for server in &servers {
            let id = HopId(server.id.slot as u16 + 1);
            builder.hop(id, hop(MacAddr([0x02, 0, 0, 0, 1, server.id.slot as u8])));
            builder.route(Prefix::host(server.address), id);
        }
        builder.service(service(number, mode), servers);
    }
    builder.build()
}

fn service(number: usize, mode: Mode) -> Service {
    let vip = vip(mode);
    let locals = if mode == Mode::Fullnat { LOCAL_ADDRESSES } else { 0 };
    Service {
        id: ServiceId(number as u32),
        name: mode.name().into(),
        protocol: Protocol::Tcp,
        listen: vec![Listen { prefix: Prefix::host(ip(vip.address.0)), ports: vip.port..=vip.port }],
        scheduler: SchedulerKind::Rr.into(),
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

fn server(number: usize, mode: Mode, index: u8) -> Server {
    Server {
        id: ServerId { slot: number as u32 * u32::from(SERVERS) + u32::from(index), generation: 1 },
        service: ServiceId(number as u32),
        address: ip(0x0a01_0001 + (number as u32) * 256 + u32::from(index)),
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
