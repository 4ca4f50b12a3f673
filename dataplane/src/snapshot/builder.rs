//! Builds a [`Snapshot`] from plain parts. Control, tests, benches and fuzz targets all use this one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use shunt_engine::steer::Prefix;

use super::{Paged, Part, PortInfo, Snapshot};
use crate::home::Calls;
use crate::neigh::{Exit, HopId, NextHop};
use crate::route::{Hops, Routes};
use crate::scheduler::Pools;
use crate::server::{Mode, Server};
use crate::service::{Local, Service, ServiceId, ServiceIndex};

/// Collects the parts of a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Builder<'a> {
    snapshot: Snapshot,
    routes: Vec<(Prefix, Hops)>,
    before: Option<&'a Snapshot>,
    calls_before: HashMap<&'a str, Calls>,
    own: BTreeSet<IpAddr>,
    /// Services that are taken from the snapshot before.
    kept: HashSet<ServiceId>,
    /// The servers of all others.
    servers: Vec<Server>,
}

impl<'a> Builder<'a> {
    /// An empty snapshot's parts.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, for the snapshot that follows `before`: schedulers' tables that would be the same are taken from there,
    /// connections are found where they were, and they keep their way if nothing that it depends on differs.
    pub fn after(before: &'a Snapshot) -> Self {
        let calls = before.services().map(|service| (service.name.as_str(), before.calls(service.id)));
        Self { before: Some(before), calls_before: calls.collect(), ..Self::default() }
    }

    /// Adds a port; ports are numbered in the order they are added.
    pub fn port(&mut self, port: PortInfo) -> &mut Self {
        if !self.snapshot.macs.contains(&port.mac) {
            self.snapshot.macs.push(port.mac);
        }
        self.snapshot.ports.push(port);
        self
    }

    /// Puts a next hop under its number.
    pub fn hop(&mut self, id: HopId, hop: NextHop) -> &mut Self {
        put(&mut self.snapshot.hops, usize::from(id.0), hop);
        self
    }

    /// Adds a route. Of two with the same prefix the first added wins.
    pub fn route(&mut self, prefix: Prefix, hops: impl Into<Hops>) -> &mut Self {
        self.routes.push((prefix, hops.into()));
        self
    }

    /// Adds one of the director's own addresses. What is for them is the kernel's, also inside a prefix that a service
    /// listens on.
    pub fn own_address(&mut self, address: IpAddr) -> &mut Self {
        self.own.insert(address);
        self
    }

    /// Adds a service with its servers, in the configuration's order. Servers' next hops are looked up in the routes by [`Self::build`].
    pub fn service(&mut self, service: Service, servers: Vec<Server>) -> &mut Self {
        for local in &service.locals {
            self.snapshot.locals.add(local.address, service.protocol, local.ports.clone());
        }
        let slot = service.id.0 as usize;
        let before = self.before.and_then(|before| before.pools(service.id));
        put(&mut self.snapshot.pools, slot, Pools::new(&service, &servers, before));
        put(&mut self.snapshot.parts, slot, Arc::default());
        self.calls(&service, false);
        servers.into_iter().for_each(|server| self.server(&service, server));
        put(&mut self.snapshot.services, slot, Arc::new(service));
        self
    }

    /// Takes the service in slot `id` with all that belongs to it from the snapshot before, in which it is the same. Returns
    /// whether it is there.
    pub fn keep(&mut self, id: ServiceId) -> bool {
        let slot = id.0 as usize;
        let Some(before) = self.before else { return false };
        let (Some(Some(service)), Some(Some(pools)), Some(Some(part))) =
            (before.services.get(slot), before.pools.get(slot), before.parts.get(slot))
        else {
            return false;
        };
        for local in service.locals.iter().chain(&part.locals) {
            self.snapshot.locals.add(local.address, service.protocol, local.ports.clone());
        }
        if part.has_nat {
            let all = part.servers(before).chain(&part.absent);
            all.for_each(|server| self.nat_server(service, server));
        }
        put(&mut self.snapshot.services, slot, service.clone());
        put(&mut self.snapshot.pools, slot, pools.clone());
        put(&mut self.snapshot.parts, slot, part.clone());
        self.calls(service, part.has_nat);
        self.kept.insert(id)
    }

    /// Adds servers and local addresses that a service added before no longer has: connections there go on, and no new
    /// ones come.
    pub fn leaving(&mut self, id: ServiceId, servers: Vec<Server>, locals: &[Local]) -> &mut Self {
        if let Some(service) = self.snapshot.services.get(id.0 as usize).cloned().flatten() {
            for local in locals {
                self.snapshot.locals.add(local.address, service.protocol, local.ports.clone());
            }
            self.part(id).locals.extend_from_slice(locals);
            servers.into_iter().for_each(|server| self.server(&service, server));
        }
        self
    }

    /// Adds servers that nothing goes to for now: their connections are treated as those of a server that is gone. What
    /// they still answer is ours, so that what ports take off the kernel does not change when they come back.
    pub fn absent(&mut self, id: ServiceId, servers: Vec<Server>) -> &mut Self {
        if let Some(service) = self.snapshot.services.get(id.0 as usize).cloned().flatten() {
            for server in servers.into_iter().filter(|server| server.mode == Mode::Nat) {
                self.calls(&service, true);
                self.nat_server(&service, &server);
                self.part(id).has_nat = true;
                self.part(id).absent.push(server);
            }
        }
        self
    }

    fn part(&mut self, id: ServiceId) -> &mut Part {
        let part = self.snapshot.parts[id.0 as usize].as_mut();
        Arc::make_mut(part.expect("every service that is added has one"))
    }

    fn server(&mut self, service: &Service, server: Server) {
        if server.mode == Mode::Nat {
            self.calls(service, true);
            self.nat_server(service, &server);
        }
        let part = self.part(service.id);
        part.servers.push(server.id.slot);
        part.drains.extend(server.drain_at);
        part.has_nat |= server.mode == Mode::Nat;
        part.has_thresholds |= server.thresholds.is_some();
        self.servers.push(server);
    }

    fn nat_server(&mut self, service: &Service, server: &Server) {
        if server.mode == Mode::Nat {
            // Without a port of its own it answers from the one that was called.
            let called = service.listen.iter().map(|listen| listen.ports.clone());
            let ports = server.port.map_or_else(|| called.collect(), |port| vec![port..=port]);
            for ports in ports {
                self.snapshot.nat_servers.add(server.address, service.protocol, ports);
            }
        }
    }

    fn calls(&mut self, service: &Service, has_nat: bool) {
        let (slot, calls) = (service.id.0 as usize, &mut self.snapshot.calls);
        calls.resize(calls.len().max(slot + 1), Calls::default());
        calls[slot] = Calls::after(self.calls_before.get(service.name.as_str()).copied(), has_nat);
    }

    /// The finished snapshot.
    pub fn build(mut self) -> Snapshot {
        let mut snapshot = std::mem::take(&mut self.snapshot);
        snapshot.routes = Routes::new(std::mem::take(&mut self.routes));
        snapshot.exits =
            snapshot.hops.iter().map(|hop| hop.as_ref().map_or(Exit::NONE, Exit::from)).collect();
        let services = || snapshot.services.iter().flatten().map(|service| &**service);
        snapshot.index = ServiceIndex::new(services(), std::mem::take(&mut self.own));
        snapshot.scheduler_kinds = services().map(|service| service.scheduler.kind).collect();
        let parts = snapshot.parts.iter().flatten();
        snapshot.drains = parts.flat_map(|part| part.drains.iter().copied()).collect();
        snapshot.drains.sort_unstable();
        let before = self.before;
        snapshot.servers = self.servers(&snapshot.routes);
        let same = before.filter(|before| same_ways(before, &snapshot));
        snapshot.generation = same.map_or_else(next_generation, |before| before.generation);
        snapshot
    }

    /// The servers by slot, in the pages of the snapshot before as far as nothing in them differs.
    fn servers(self, routes: &Routes) -> Paged<Server> {
        let hop = |server: Server| Server { hop: routes.lookup(server.address).cloned(), ..server };
        let mut slots = Paged::default();
        if let Some(before) = self.before {
            slots = before.servers.clone();
            let taken: HashSet<u32> = self.servers.iter().map(|server| server.id.slot).collect();
            let same_routes = before.routes == *routes;
            for (part, number) in before.parts.iter().zip(0..) {
                let kept = self.kept.contains(&ServiceId(number));
                for server in part.iter().flat_map(|part| part.servers(before)) {
                    let slot = server.id.slot;
                    if kept && !same_routes {
                        slots.put(slot as usize, Some(hop(server.clone())));
                    } else if !kept && !taken.contains(&slot) {
                        slots.put(slot as usize, None);
                    }
                }
            }
        }
        for server in self.servers {
            slots.put(server.id.slot as usize, Some(hop(server)));
        }
        slots
    }
}

impl Part {
    /// Its servers, whose snapshot is `snapshot`.
    fn servers<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Server> {
        self.servers.iter().filter_map(|&slot| snapshot.server_in(slot as usize))
    }
}

/// Whether what a connection's way depends on is the same in both: what is ours, which servers there are, and the routes.
fn same_ways(before: &Snapshot, after: &Snapshot) -> bool {
    before.index == after.index
        && before.locals == after.locals
        && before.nat_servers == after.nat_servers
        && before.routes == after.routes
        && before.servers.same(&after.servers, |a, b| match (a, b) {
            (Some(a), Some(b)) => (a.id, a.down, &a.hop) == (b.id, b.down, &b.hop),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        })
}

/// A generation that no snapshot of this process had before, but for a wrap after 2³²; never that of an empty one.
fn next_generation() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed).max(1)
}

fn put<T>(slots: &mut Vec<Option<T>>, slot: usize, value: T) {
    if slots.len() <= slot {
        slots.resize_with(slot + 1, || None);
    }
    slots[slot] = Some(value);
}
