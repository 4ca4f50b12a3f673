//! What control publishes and workers read: one immutable value, looked up and never locked.

mod builder;
mod endpoints;
mod paged;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use shunt_engine::Instant;
use shunt_engine::port::MacAddr;
use shunt_engine::steer::{Rule, Side};

pub use builder::Builder;
pub use endpoints::Endpoints;

use self::paged::Paged;
use crate::home::Calls;
use crate::neigh::{Exit, HopId, NextHop};
use crate::route::{Hops, Routes};
use crate::scheduler::{Pools, SchedulerKind};
use crate::server::{Server, ServerId};
use crate::service::{Local, Service, ServiceId, ServiceIndex};

/// Everything workers know about the world at one moment. Made by [`Builder`] only.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    services: Vec<Option<Arc<Service>>>,
    pools: Vec<Option<Pools>>,
    calls: Vec<Calls>,
    index: ServiceIndex,
    servers: Paged<Server>,
    parts: Vec<Option<Arc<Part>>>,
    locals: Endpoints,
    nat_servers: Endpoints,
    hops: Vec<Option<NextHop>>,
    exits: Vec<Exit>,
    routes: Routes,
    generation: u32,
    macs: Vec<MacAddr>,
    ports: Vec<PortInfo>,
    /// When servers have drained, in order.
    drains: Vec<Instant>,
    scheduler_kinds: BTreeSet<SchedulerKind>,
}

/// What a service has in a snapshot besides what workers ask for by its number.
#[derive(Clone, Debug, Default)]
struct Part {
    /// The slots of its servers, also of those that leave.
    servers: Vec<u32>,
    /// Local addresses that leave.
    locals: Vec<Local>,
    /// NAT servers that nothing goes to.
    absent: Vec<Server>,
    /// When its servers have drained.
    drains: Vec<Instant>,
    has_nat: bool,
    has_thresholds: bool,
}

/// What workers must know about a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Its name.
    pub name: String,
    /// Its station address.
    pub mac: MacAddr,
}

impl Snapshot {
    /// The service in slot `id`.
    #[inline]
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(id.0 as usize)?.as_deref()
    }

    /// The servers that connections of the service in slot `id` are scheduled to.
    #[inline]
    pub fn pools(&self, id: ServiceId) -> Option<&Pools> {
        self.pools.get(id.0 as usize)?.as_ref()
    }

    /// How requests to the service in slot `id` find their home.
    #[inline]
    pub fn calls(&self, id: ServiceId) -> Calls {
        self.calls.get(id.0 as usize).copied().unwrap_or_default()
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().flatten().map(|service| &**service)
    }

    /// Which service answers where.
    #[inline]
    pub fn index(&self) -> &ServiceIndex {
        &self.index
    }

    /// The server `id`, unless it is gone.
    #[inline]
    pub fn server(&self, id: ServerId) -> Option<&Server> {
        self.servers.get(id.slot as usize).filter(|server| server.id == id)
    }

    /// Server slots in use are below this.
    pub fn server_slots(&self) -> usize {
        self.servers.slots()
    }

    /// The server in a slot, whichever it is.
    pub fn server_in(&self, slot: usize) -> Option<&Server> {
        self.servers.get(slot)
    }

    /// All servers.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter()
    }

    /// The schedulers there are services with.
    pub fn scheduler_kinds(&self) -> impl Iterator<Item = SchedulerKind> {
        self.scheduler_kinds.iter().copied()
    }

    /// The services of which any server has thresholds.
    pub fn limited_services(&self) -> impl Iterator<Item = ServiceId> {
        let parts = (0..).zip(&self.parts).filter_map(|(id, part)| Some((ServiceId(id), part.as_ref()?)));
        parts.filter(|(_, part)| part.has_thresholds).map(|(id, _)| id)
    }

    /// Server slots of a page.
    pub(crate) const PAGE: usize = paged::PAGE;

    /// The servers in the slots of a page; none if they are the very same as in `before`.
    pub(crate) fn servers_unlike(&self, before: Option<&Self>, page: usize) -> impl Iterator<Item = &Server> {
        let shared = before.is_some_and(|before| self.servers.shares(&before.servers, page));
        let slots = if shared { 0..0 } else { page * Self::PAGE..(page + 1) * Self::PAGE };
        slots.filter_map(|slot| self.servers.get(slot))
    }

    /// The first moment after `after` at which a server has drained.
    #[inline]
    pub fn next_drain(&self, after: Instant) -> Option<Instant> {
        let later = self.drains.partition_point(|&at| at <= after);
        self.drains.get(later).copied()
    }

    /// FULLNAT local addresses with their ports.
    #[inline]
    pub fn locals(&self) -> &Endpoints {
        &self.locals
    }

    /// NAT servers with their ports: what comes from there may be an answer.
    #[inline]
    pub fn nat_servers(&self) -> &Endpoints {
        &self.nat_servers
    }

    /// Whether a packet's addresses are, by themselves, a VIP or local address, or a NAT server's; prefixes that services
    /// listen on do not count.
    pub fn names(&self, src: IpAddr, dst: IpAddr) -> bool {
        self.index.is_vip(dst) || self.locals.has_address(dst) || self.nat_servers.has_address(src)
    }

    /// Next hop `id`.
    #[inline]
    pub fn hop(&self, id: HopId) -> Option<&NextHop> {
        self.hops.get(usize::from(id.0))?.as_ref()
    }

    /// Next hop `id` as the usual packet needs it.
    #[inline]
    pub(crate) fn exit(&self, id: HopId) -> Option<&Exit> {
        self.exits.get(usize::from(id.0))
    }

    /// The next hops towards `address`, over which flows are spread.
    pub fn hops(&self, address: IpAddr) -> Option<&Hops> {
        self.routes.lookup(address)
    }

    /// A next hop towards `address`, where any will do.
    pub fn route(&self, address: IpAddr) -> Option<HopId> {
        self.hops(address).map(Hops::first)
    }

    /// Changes when, and only when, something does on which the way of a connection depends ([`crate::way`]): what is
    /// ours, which servers there are, and the routes.
    #[inline]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Station addresses that are ours.
    #[inline]
    pub fn macs(&self) -> &[MacAddr] {
        &self.macs
    }

    /// The ports, by number.
    pub fn ports(&self) -> &[PortInfo] {
        &self.ports
    }

    /// What ports must take off the kernel for this snapshot: exactly what classification calls ours.
    pub fn steering(&self) -> Vec<Rule> {
        let listens =
            self.services().flat_map(|service| service.listen.iter().map(move |listen| (service, listen)));
        let listen = listens.flat_map(|(service, listen)| {
            self.index.prefixes_of(listen).into_iter().map(|prefix| Rule {
                side: Side::Destination,
                prefix,
                protocol: service.protocol.number(),
                ports: listen.ports.clone(),
            })
        });
        let locals = self.locals.rules(Side::Destination);
        let mut rules: Vec<_> = listen.chain(locals).chain(self.nat_servers.rules(Side::Source)).collect();
        // Maps have no order; the same snapshot shall always give the same rules.
        rules.sort_by_key(|rule| {
            (rule.side, rule.prefix, rule.protocol, *rule.ports.start(), *rule.ports.end())
        });
        rules.dedup();
        rules
    }
}
