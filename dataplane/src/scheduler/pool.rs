//! The candidates of one service, with all that can be worked out before the first pick.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::mapping;
use super::shares::Shares;
use super::wrr::Classes;
use super::{HashKind, Scheduler, SchedulerKind, dh, mh, sh};
use crate::hash::KeyedHash;
use crate::server::{Server, ServerId};
use crate::service::Service;
use crate::tuple::{Address, Endpoint, V4, V6};

/// A server as a scheduler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub id: ServerId,
    /// Its weight; 0 is never picked.
    pub weight: u32,
}

/// The servers of one service and one address family. Immutable, shared by all workers, and by all snapshots in which
/// nothing about it differs.
#[derive(Debug)]
pub struct Pool {
    number: u64,
    scheduler: Scheduler,
    /// In list order.
    candidates: Box<[Candidate]>,
    /// Where the candidates are, in the same order. Without a port of their own: the service's, if that has one only.
    endpoints: Box<[Endpoint<V6>]>,
    hash: KeyedHash,
    table: Table,
}

/// What schedulers look up instead of working it out.
#[derive(Debug)]
pub(super) enum Table {
    /// Nothing.
    None,
    /// Each candidate's share of all hashes.
    Shares(Shares),
    /// Places of candidates by the kernel's hash of eight bits.
    Buckets(Box<[u16; 256]>),
    /// Candidates of equal weight together.
    Classes(Classes),
    /// Places of candidates by our hash.
    Slots(Box<[u16]>),
    /// Places of candidates by the kernel's hash of 32 bits.
    KernelSlots(Box<[u16]>),
}

impl Table {
    fn new(
        scheduler: &Scheduler,
        candidates: &[Candidate],
        endpoints: &[Endpoint<V6>],
        hash: &KeyedHash,
    ) -> Self {
        let weights = candidates.iter().map(|candidate| candidate.weight);
        let slots = scheduler.mh_slots;
        let table = match (scheduler.kind, scheduler.hash) {
            (SchedulerKind::Sh, HashKind::Kernel) => sh::buckets(candidates).map(Self::Buckets),
            (SchedulerKind::Dh, HashKind::Kernel) => dh::buckets(candidates).map(Self::Buckets),
            (SchedulerKind::Mh, HashKind::Kernel) => {
                mh::kernel_slots(candidates, endpoints, slots).map(Self::KernelSlots)
            }
            (SchedulerKind::Mh, HashKind::Keyed) => {
                mh::slots(candidates, endpoints, hash, slots).map(Self::Slots)
            }
            (SchedulerKind::Dh, HashKind::Keyed) => {
                Some(Self::Shares(Shares::new(weights.map(|weight| weight.min(1)))))
            }
            (SchedulerKind::Wrr, _) => Some(Self::Classes(Classes::new(candidates))),
            (SchedulerKind::Sh | SchedulerKind::Twos, _) => Some(Self::Shares(Shares::new(weights))),
            (
                SchedulerKind::Rr
                | SchedulerKind::Lc
                | SchedulerKind::Wlc
                | SchedulerKind::Sed
                | SchedulerKind::Nq
                | SchedulerKind::Lblc
                | SchedulerKind::Lblcr
                | SchedulerKind::Fo
                | SchedulerKind::Ovf,
                _,
            ) => None,
        };
        table.unwrap_or(Self::None)
    }
}

impl Pool {
    /// The pool of `members`, which are in the configuration's order.
    ///
    /// # Panics
    /// When there are more than [`Self::MEMBERS_MAX`].
    pub fn new(scheduler: Scheduler, members: &[(Candidate, Endpoint<V6>)]) -> Self {
        assert!(members.len() <= Self::MEMBERS_MAX, "places are numbered in 16 bits");
        // The list runs from the newest to the oldest, see the module.
        let (candidates, endpoints): (Vec<_>, Vec<_>) = members.iter().rev().copied().unzip();
        // The seed is no secret: directors that share a configuration must map alike.
        let hash = KeyedHash::new([scheduler.seed.unwrap_or(0), 0], 0);
        let table = Table::new(&scheduler, &candidates, &endpoints, &hash);
        // From 1 on, and never the same twice.
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Self { number, scheduler, candidates: candidates.into(), endpoints: endpoints.into(), hash, table }
    }

    /// Most servers of a service.
    pub const MEMBERS_MAX: usize = u16::MAX as usize;

    /// Tells this pool from all others there are and were; not 0.
    #[inline]
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// How servers are picked.
    #[inline]
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Among whom, in list order.
    #[inline]
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The place of a candidate, which was `place` when it was looked at last.
    #[inline]
    pub(super) fn place_of(&self, id: ServerId, place: usize) -> Option<usize> {
        place_of(&self.candidates, id, place)
    }

    #[inline]
    pub(super) fn hash(&self) -> &KeyedHash {
        &self.hash
    }

    #[inline]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Whether [`Self::new`] would give the same.
    fn is_of(&self, scheduler: &Scheduler, members: &[(Candidate, Endpoint<V6>)]) -> bool {
        let own = self.candidates.iter().zip(&self.endpoints).rev();
        self.scheduler == *scheduler
            && self.candidates.len() == members.len()
            && own.zip(members).all(|((candidate, endpoint), member)| (*candidate, *endpoint) == *member)
    }
}

/// The place of `id` among `candidates`, which was `place` when it was looked at last.
#[inline]
pub(super) fn place_of(candidates: &[Candidate], id: ServerId, place: usize) -> Option<usize> {
    let is_it = |candidate: &Candidate| candidate.id == id;
    match candidates.get(place) {
        Some(candidate) if is_it(candidate) => Some(place),
        _ => candidates.iter().position(is_it),
    }
}

/// The pools of one service: a client is sent to servers of its own address family.
#[derive(Clone, Debug)]
pub struct Pools {
    v4: Arc<Pool>,
    v6: Arc<Pool>,
}

impl Pools {
    /// The pools of `service` with `servers`, which are in the configuration's order. What is the same in `before` is
    /// taken from there.
    pub(crate) fn new(service: &Service, servers: &[Server], before: Option<&Self>) -> Self {
        let port = service.single_port().unwrap_or(0);
        let pool = |v4: bool| {
            let family = servers.iter().filter(|server| server.address.is_ipv4() == v4);
            let members: Vec<_> = family.map(|server| member(server, port)).collect();
            let old = before.map(|before| if v4 { &before.v4 } else { &before.v6 });
            let old = old.filter(|old| old.is_of(&service.scheduler, &members));
            old.cloned().unwrap_or_else(|| Arc::new(Pool::new(service.scheduler, &members)))
        };
        Self { v4: pool(true), v6: pool(false) }
    }

    /// The candidates of both.
    pub fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.v4.candidates().iter().chain(self.v6.candidates())
    }

    /// Share of clients that a Maglev table sends to another server than the one of `before` did, in the family where it
    /// is more; `None` without such tables.
    pub fn moved(&self, before: &Self) -> Option<f64> {
        let families = [(&before.v4, &self.v4), (&before.v6, &self.v6)];
        families.into_iter().filter_map(|(before, after)| mh::moved(before, after)).reduce(f64::max)
    }

    /// The pool for clients of family `A`.
    #[inline]
    pub fn of<A: Address>(&self) -> &Arc<Pool> {
        if A::default().to_ip().is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

fn member(server: &Server, port: u16) -> (Candidate, Endpoint<V6>) {
    let address = match server.address {
        IpAddr::V4(v4) => mapping::wide(V4(v4.to_bits())),
        IpAddr::V6(_) => V6::from_ip(server.address).expect("it is of this family"),
    };
    let endpoint = Endpoint::new(address, server.port.unwrap_or(port));
    (Candidate { id: server.id, weight: server.weight }, endpoint)
}

#[cfg(test)]
mod tests {
    use shunt_engine::steer::Prefix;

    use super::*;
    use crate::conn::Timeouts;
    use crate::server::Mode;
    use crate::service::{Listen, OutOfState, ServerGone, ServiceId};
    use crate::snapshot::{Builder, Snapshot};
    use crate::tuple::Protocol;

    fn service(kind: SchedulerKind) -> Service {
        Service {
            id: ServiceId(0),
            name: "web".into(),
            protocol: Protocol::Tcp,
            listen: vec![Listen { prefix: Prefix::host("203.0.113.10".parse().unwrap()), ports: 80..=80 }],
            scheduler: kind.into(),
            locals: Vec::new(),
            out_of_state: OutOfState::Drop,
            timeouts: Timeouts::default(),
            persistence: None,
            one_packet: false,
            server_gone: ServerGone::Reset,
        }
    }

    fn servers(addresses: &[&str]) -> Vec<Server> {
        let server = |(slot, address): (u32, &&str)| Server {
            id: ServerId { slot, generation: 1 },
            service: ServiceId(0),
            address: address.parse().unwrap(),
            port: None,
            mode: Mode::Dr,
            weight: 1,
            drain_at: None,
            down: false,
            thresholds: None,
            hop: None,
        };
        (0..).zip(addresses).map(server).collect()
    }

    fn after(before: &Snapshot, service: Service, servers: Vec<Server>) -> Snapshot {
        let mut builder = Builder::after(before);
        builder.service(service, servers);
        builder.build()
    }

    #[test]
    fn the_list_runs_from_the_last_server_of_the_file_to_the_first_in_each_family() {
        let servers = servers(&["10.0.0.1", "2001:db8::1", "10.0.0.2", "2001:db8::2", "10.0.0.3"]);
        let snapshot = after(&Snapshot::default(), service(SchedulerKind::Rr), servers);
        let pools = snapshot.pools(ServiceId(0)).unwrap();
        let slots = |pool: &Pool| pool.candidates().iter().map(|c| c.id.slot).collect::<Vec<_>>();
        assert_eq!(slots(pools.of::<V4>()), [4, 2, 0]);
        assert_eq!(slots(pools.of::<V6>()), [3, 1]);
        assert_eq!(pools.of::<V6>().endpoints[1], Endpoint::new(V6([0x2001_0db8, 0, 0, 1]), 80));
    }

    #[test]
    fn a_reload_builds_only_the_pools_of_which_something_differs() {
        let both = || servers(&["10.0.0.1", "2001:db8::1", "10.0.0.2"]);
        let first = after(&Snapshot::default(), service(SchedulerKind::Sh), both());
        let kept = |next: &Snapshot| {
            let (old, new) = (first.pools(ServiceId(0)).unwrap(), next.pools(ServiceId(0)).unwrap());
            let same = |old: &Arc<Pool>, new: &Arc<Pool>| Arc::ptr_eq(old, new);
            (same(old.of::<V4>(), new.of::<V4>()), same(old.of::<V6>(), new.of::<V6>()))
        };
        let mut renamed = service(SchedulerKind::Sh);
        renamed.name = "other".into();
        renamed.out_of_state = OutOfState::Reset;
        assert_eq!(kept(&after(&first, renamed, both())), (true, true));
        let mut lighter = both();
        lighter[2].weight = 0;
        assert_eq!(kept(&after(&first, service(SchedulerKind::Sh), lighter)), (false, true));
        let mut swapped = both();
        swapped.swap(0, 2);
        assert_eq!(kept(&after(&first, service(SchedulerKind::Sh), swapped)), (false, true));
        let mut next_tenant = both();
        next_tenant[1].id.generation = 2;
        assert_eq!(kept(&after(&first, service(SchedulerKind::Sh), next_tenant)), (true, false));
        assert_eq!(kept(&after(&first, service(SchedulerKind::Sh), both()[..2].to_vec())), (false, true));
        assert_eq!(kept(&after(&first, service(SchedulerKind::Wlc), both())), (false, false));
        let mut moved = service(SchedulerKind::Sh);
        moved.listen[0].ports = 81..=81;
        assert_eq!(kept(&after(&first, moved, both())), (false, false), "servers follow the service's port");
    }
}
