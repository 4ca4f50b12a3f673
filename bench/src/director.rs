//! The director that is measured: one port, one service per mode, a few servers each, everything behind one router.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use shunt_dataplane::agreed::Agreed;
use shunt_dataplane::conn::Timeouts;
use shunt_dataplane::neigh::{HopId, NextHop};
use shunt_dataplane::pipeline::{Config, Pipeline};
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::{Mode, Server, ServerId};
use shunt_dataplane::service::{Listen, Local, OutOfState, ServerGone, Service, ServiceId};
use shunt_dataplane::snapshot::{Builder, PortInfo, Snapshot};
use shunt_dataplane::spread::Spread;
use shunt_dataplane::tuple::{Endpoint, Protocol};
use shunt_engine::port::MacAddr;
use shunt_engine::rss::Rss;
use shunt_engine::steer::Prefix;
use shunt_engine::{PortId, WorkerId, publish};

use crate::family::Family;

/// Servers of each service, unless a run asks for more.
pub const SERVERS: u8 = 4;
/// Local addresses of the FULLNAT service, unless a run needs more.
const LOCAL_ADDRESSES_MIN: u8 = 64;
/// Ports of each local address: as many as there are above the well-known ones.
pub const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 1024..=65535;
/// Connections the table is made for, unless a run needs more.
const CAPACITY_MIN: u32 = 1 << 20;
/// MTU of the one port: the longest frame in a tunnel.
const MTU: u16 = 1500 + 40;

/// The director's link address.
pub const US: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x02]);
/// The router's: what clients' and servers' packets come from.
pub const ROUTER: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x01]);

/// The virtual address and port of the service with `mode`.
pub fn vip<A: Family>(mode: Mode) -> Endpoint<A> {
    Endpoint { address: A::address(0xcb00_710a), port: 8000 + mode as u16 }
}

/// Client number `index`: of 198.18.0.0/16, which is set aside for benchmarks (RFC 2544), or the like in IPv6.
pub fn client<A: Family>(index: u32) -> Endpoint<A> {
    Endpoint { address: A::address(0xc612_0000 | index & 0xffff), port: 1024 + (index >> 16) as u16 }
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

/// Local addresses of a FULLNAT service with up to `capacity` connections: there are more than four times as many ports.
pub fn local_addresses(capacity: u32) -> u8 {
    u8::try_from(capacity >> 16).unwrap_or(u8::MAX).max(LOCAL_ADDRESSES_MIN)
}

/// Keys every hash. Any will do: nobody attacks a benchmark.
pub const SECRET: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345];

/// How the port spreads frames over so many workers, one queue each: by Microsoft's key and an even table.
pub fn spread(workers: u16) -> Option<Arc<Spread>> {
    Spread::new(&Rss::even(workers), workers, WorkerId).map(Arc::new)
}

/// The real pipeline of one worker, for connections up to `capacity`, over a snapshot with one service per mode: a few
/// servers in turn.
///
/// # Errors
/// When the kernel has no memory for the tables.
pub fn pipeline<A: Family>(modes: &[Mode], capacity: u32) -> std::io::Result<Pipeline> {
    Services::few(modes).pipeline::<A>(capacity)
}

impl<'a> Services<'a> {
    /// A few servers in turn.
    pub fn few(modes: &'a [Mode]) -> Self {
        Self { modes, scheduler: SchedulerKind::Rr, servers: SERVERS.into() }
    }

    /// The real pipeline of one worker, for connections up to `capacity`.
    ///
    /// # Errors
    /// When the kernel has no memory for the tables.
    pub fn pipeline<A: Family>(&self, capacity: u32) -> std::io::Result<Pipeline> {
        Ok(self.pipelines::<A>(capacity, 1)?.remove(0))
    }

    /// The real pipelines of so many workers, each for connections up to `capacity`.
    ///
    /// # Errors
    /// When the kernel has no memory for the tables.
    pub fn pipelines<A: Family>(&self, capacity: u32, workers: u16) -> std::io::Result<Vec<Pipeline>> {
        let (_, readers) = publish::channel(self.snapshot::<A>(local_addresses(capacity)), workers.into());
        let services = self.modes.len() as u32;
        let config = |worker| Config {
            worker: WorkerId(worker),
            workers,
            secret: SECRET,
            max_connections: capacity,
            max_services: services,
            max_servers: services * u32::from(self.servers),
        };
        let agreed = Agreed { spread: spread(workers), ..Agreed::new(64, config(0).max_servers, SECRET) };
        let pipeline = |(reader, worker)| Pipeline::new(config(worker), agreed.clone(), reader);
        readers.into_iter().zip(0..).map(pipeline).collect()
    }

    fn snapshot<A: Family>(&self, local_addresses: u8) -> Snapshot {
        let mut builder = Builder::new();
        builder.port(PortInfo { name: "memory".into(), mac: US });
        builder.hop(HopId(0), hop::<A>(ROUTER));
        for everywhere in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            builder.route(Prefix::new(everywhere, 0).expect("no bit is set behind the prefix"), HopId(0));
        }
        for (number, &mode) in (0u32..).zip(self.modes) {
            let slots = (0..u32::from(self.servers)).map(|index| number * u32::from(self.servers) + index);
            let servers: Vec<_> = slots.map(|slot| server::<A>(number, mode, slot)).collect();
            for server in &servers {
                let slot = server.id.slot as u16;
                let [high, low] = slot.to_be_bytes();
                builder.hop(HopId(slot + 1), hop::<A>(MacAddr([0x02, 0, 0, 1, high, low])));
                builder.route(Prefix::host(server.address), HopId(slot + 1));
            }
            builder.service(service::<A>(number, mode, self.scheduler, local_addresses), servers);
        }
        builder.build()
    }
}

fn service<A: Family>(number: u32, mode: Mode, scheduler: SchedulerKind, local_addresses: u8) -> Service {
    let vip = vip::<A>(mode);
    let locals = if mode == Mode::Fullnat { local_addresses } else { 0 };
    Service {
        id: ServiceId(number),
        name: mode.name().into(),
        protocol: Protocol::Tcp,
        listen: vec![Listen { prefix: Prefix::host(vip.address.to_ip()), ports: vip.port..=vip.port }],
        scheduler: scheduler.into(),
        locals: (0..locals)
            .map(|index| Local { address: ip::<A>(0x0a00_0001 + u32::from(index)), ports: LOCAL_PORTS })
            .collect(),
        out_of_state: OutOfState::Reset,
        timeouts: Timeouts::default(),
        persistence: None,
        one_packet: false,
        server_gone: ServerGone::Reset,
    }
}

fn server<A: Family>(service: u32, mode: Mode, slot: u32) -> Server {
    Server {
        id: ServerId { slot, generation: 1 },
        service: ServiceId(service),
        address: ip::<A>(0x0a01_0001 + slot),
        port: mode.sees_replies().then_some(8080),
        mode,
        weight: 1,
        drain_at: None,
        down: false,
        thresholds: None,
        hop: None,
    }
}

fn hop<A: Family>(destination: MacAddr) -> NextHop {
    NextHop {
        port: PortId(0),
        vid: None,
        source: US,
        destination: Some(destination),
        attached: false,
        mtu: MTU,
        address: Some(ip::<A>(0x0a00_fffe)),
    }
}

fn ip<A: Family>(bits: u32) -> IpAddr {
    A::address(bits).to_ip()
}
