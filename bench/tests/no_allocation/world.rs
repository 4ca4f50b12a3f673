//! What is configured: a service per mode and protocol, and what a reload changes about it.

use std::net::{IpAddr, Ipv4Addr};

use shunt_dataplane::conn::Timeouts;
use shunt_dataplane::neigh::{HopId, NextHop};
use shunt_dataplane::pipeline::Config;
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::{Mode, Server, ServerId};
use shunt_dataplane::service::{Listen, Local, OutOfState, ServerGone, Service, ServiceId};
use shunt_dataplane::snapshot::{Builder, PortInfo, Snapshot};
use shunt_dataplane::tuple::{Endpoint, Protocol, V4};
use shunt_engine::port::MacAddr;
use shunt_engine::steer::Prefix;
use shunt_engine::{PortId, WorkerId};

pub(crate) const WORKERS: u16 = 3;
/// Server slots of each service: all but the last are there in every generation.
const SLOTS: u32 = 3;
/// A service for every mode and protocol.
pub(crate) const SERVICES: u32 = 8;
/// What fits the way to servers and to clients: less than what arrives.
const MTU: u16 = 600;

pub(crate) const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
pub(crate) const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// All modes with all protocols.
pub(crate) fn every() -> impl Iterator<Item = (Mode, Protocol)> {
    Mode::ALL.into_iter().flat_map(|mode| [(mode, Protocol::Tcp), (mode, Protocol::Udp)])
}

fn number(mode: Mode, protocol: Protocol) -> u32 {
    mode as u32 * 2 + u32::from(protocol == Protocol::Udp)
}

/// Where the service of a mode and protocol answers.
pub(crate) fn vip(mode: Mode, protocol: Protocol) -> Endpoint<V4> {
    Endpoint { address: V4(0xcb00_710a), port: 8000 + number(mode, protocol) as u16 }
}

/// Client number `index`, of 198.18.0.0/16.
pub(crate) fn client(index: u32) -> Endpoint<V4> {
    Endpoint { address: V4(0xc612_0000 | index & 0xffff), port: 1024 + (index >> 16) as u16 }
}

/// The server slots of a service that no reload touches.
pub(crate) fn lasting_slots(mode: Mode, protocol: Protocol) -> std::ops::Range<u32> {
    let first = number(mode, protocol) * SLOTS;
    first..first + SLOTS - 1
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

/// Generation `number` of the configuration: in every other one each service has a server more, never the same one,
/// and from one to the next weights, routes and the way to the clients change.
pub(crate) fn snapshot(generation: u32) -> Snapshot {
    let mut builder = Builder::new();
    builder.port(PortInfo { name: "memory".into(), mac: US }).routes_generation(generation);
    let everywhere = Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0).unwrap();
    builder.hop(HopId(0), hop(MacAddr([2, 0, 0, 0, 3, generation as u8]))).route(everywhere, HopId(0));
    for (mode, protocol) in every() {
        let slots = number(mode, protocol) * SLOTS..(number(mode, protocol) + 1) * SLOTS;
        let present = |slot: &u32| generation % 2 == 1 || lasting_slots(mode, protocol).contains(slot);
        let servers: Vec<_> =
            slots.filter(present).map(|slot| server(mode, protocol, slot, generation)).collect();
        for server in &servers {
            let id = HopId(server.id.slot as u16 + 1);
            builder.hop(id, hop(MacAddr([2, 0, 0, 0, 1, server.id.slot as u8])));
            builder.route(Prefix::host(server.address), id);
        }
        builder.service(service(mode, protocol), servers);
    }
    builder.build()
}

fn server(mode: Mode, protocol: Protocol, slot: u32, generation: u32) -> Server {
    let lasts = lasting_slots(mode, protocol).contains(&slot);
    Server {
        id: ServerId { slot, generation: if lasts { 1 } else { generation } },
        service: ServiceId(number(mode, protocol)),
        address: ip(0x0a01_0001 + slot),
        port: mode.sees_replies().then_some(9000),
        mode,
        weight: 1 + (slot + generation) % 3,
        drain_at: None,
        down: false,
        thresholds: None,
        hop: None,
    }
}

fn service(mode: Mode, protocol: Protocol) -> Service {
    let (number, vip) = (number(mode, protocol), vip(mode, protocol));
    let locals = if mode == Mode::Fullnat { 4 } else { 0 };
    Service {
        id: ServiceId(number),
        name: format!("{}-{protocol}", mode.name()),
        protocol,
        listen: vec![Listen { prefix: Prefix::host(ip(vip.address.0)), ports: vip.port..=vip.port }],
        scheduler: [SchedulerKind::Rr, SchedulerKind::Wrr, SchedulerKind::Wlc][number as usize % 3].into(),
        locals: (0..locals).map(|n| Local { address: ip(0x0a00_0001 + n), ports: 1024..=65535 }).collect(),
        out_of_state: OutOfState::Reset,
        timeouts: Timeouts::default(),
        persistence: None,
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
        address: Some(ip(0x0a00_00fe)),
    }
}

fn ip(bits: u32) -> IpAddr {
    Ipv4Addr::from_bits(bits).into()
}
