//! Schedulers: which server a new connection goes to. One file each, named as the operator types it.
//!
//! Candidates and weights come from the snapshot; what changes with every pick lives here, per worker, in arrays indexed
//! by stable slots, so that a reload neither restarts a sequence nor forgets a count.

mod rr;
mod wlc;
mod wrr;

use crate::hash;
use crate::server::ServerId;
use crate::service::{Candidate, ServiceId};

/// The schedulers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchedulerKind {
    /// Round robin.
    Rr,
    /// Weighted round robin, smooth.
    Wrr,
    /// Weighted least connections.
    Wlc,
}

/// Live connections of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Those in an active state ([`crate::conn::State::is_active`]).
    pub active: u32,
    /// All others.
    pub inactive: u32,
}

/// What one worker's schedulers remember. All memory is taken at start.
#[derive(Debug)]
pub struct SchedulerState {
    services: Box<[ServiceState]>,
    servers: Servers,
    seed: u64,
}

/// What is remembered per service.
#[derive(Clone, Copy, Debug, Default)]
struct ServiceState {
    /// The server picked last, and its place among the candidates then.
    last: Option<(ServerId, usize)>,
    /// Sum of the weights at the last pick by `wrr`.
    total: u64,
}

/// What is remembered per server slot, of its present tenant.
#[derive(Clone, Copy, Debug, Default)]
struct ServerState {
    generation: u32,
    /// Connections of this worker.
    own: Load,
    /// Connections of all other workers, as of the last tick.
    others: Load,
    /// How far `wrr` owes this server, in units of weight. `None`: not picked among others yet.
    credit: Option<i64>,
}

/// The slots of all servers.
#[derive(Debug)]
struct Servers(Box<[ServerState]>);

impl SchedulerState {
    /// State for service slots below `services_max` and server slots below `servers_max`. `seed` differs between
    /// workers and starts: it says where sequences begin, so that directors do not all begin at the first server.
    pub fn new(services_max: usize, servers_max: usize, seed: u64) -> Self {
        Self {
            services: vec![ServiceState::default(); services_max].into(),
            servers: Servers(vec![ServerState::default(); servers_max].into()),
            seed,
        }
    }

    /// The index of the candidate that gets the next connection; `None` when none has a weight.
    ///
    /// # Panics
    /// When a slot is not below its maximum: control publishes no such snapshot.
    pub fn pick(
        &mut self,
        service: ServiceId,
        kind: SchedulerKind,
        candidates: &[Candidate],
    ) -> Option<usize> {
        let state = &mut self.services[service.0 as usize];
        let seed = random(self.seed, u64::from(service.0));
        match kind {
            SchedulerKind::Rr => rr::pick(candidates, state, seed),
            SchedulerKind::Wrr => wrr::pick(candidates, state, &mut self.servers, seed),
            SchedulerKind::Wlc => wlc::pick(candidates, &mut self.servers),
        }
    }

    /// Counts a connection opened to the server `id`.
    pub fn opened(&mut self, id: ServerId, active: bool) {
        *self.servers.tenant(id).own.part(active) += 1;
    }

    /// Counts a connection of the server `id` as active from now on, or as inactive. Nothing when the slot has another
    /// tenant by now.
    pub fn changed(&mut self, id: ServerId, active: bool) {
        if let Some(server) = self.servers.same(id) {
            let left = server.own.part(!active);
            debug_assert!(*left > 0);
            *left = left.saturating_sub(1);
            *server.own.part(active) += 1;
        }
    }

    /// Counts a connection of the server `id` as gone. Nothing when the slot has another tenant by now.
    pub fn closed(&mut self, id: ServerId, active: bool) {
        if let Some(server) = self.servers.same(id) {
            let left = server.own.part(active);
            debug_assert!(*left > 0);
            *left = left.saturating_sub(1);
        }
    }

    /// This worker's connections of the server `id`.
    pub fn own(&self, id: ServerId) -> Load {
        let server = &self.servers.0[id.slot as usize];
        if server.generation == id.generation { server.own } else { Load::default() }
    }

    /// Sets the connections all other workers have of the server `id`.
    pub fn set_others(&mut self, id: ServerId, others: Load) {
        self.servers.tenant(id).others = others;
    }
}

impl Load {
    fn part(&mut self, active: bool) -> &mut u32 {
        if active { &mut self.active } else { &mut self.inactive }
    }
}

impl Servers {
    /// The state of the slot's tenant `id`; afresh when the slot had another one before.
    fn tenant(&mut self, id: ServerId) -> &mut ServerState {
        let server = &mut self.0[id.slot as usize];
        if server.generation != id.generation {
            *server = ServerState { generation: id.generation, ..ServerState::default() };
        }
        server
    }

    /// The state of the slot while `id` is its tenant.
    fn same(&mut self, id: ServerId) -> Option<&mut ServerState> {
        let server = &mut self.0[id.slot as usize];
        (server.generation == id.generation).then_some(server)
    }
}

/// A number that depends on both arguments and looks like neither.
fn random(seed: u64, what: u64) -> u64 {
    hash::mix(hash::mix(seed ^ 0x9e37_79b9_7f4a_7c15, what ^ 0xd1b5_4a32_d192_ed03), 0xa0b4_28db_9e61_97f5)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates with `weights`, in slots 0, 1, ….
    pub(super) fn candidates(weights: &[u32]) -> Vec<Candidate> {
        let id = |slot| ServerId { slot, generation: 1 };
        (0..).zip(weights).map(|(slot, &weight)| Candidate { id: id(slot), weight }).collect()
    }

    /// How often each of `candidates` is picked in `picks`.
    pub(super) fn shares(
        state: &mut SchedulerState,
        kind: SchedulerKind,
        candidates: &[Candidate],
        picks: u32,
    ) -> Vec<u32> {
        let mut shares = vec![0; candidates.len()];
        for _ in 0..picks {
            shares[state.pick(ServiceId(0), kind, candidates).unwrap()] += 1;
        }
        shares
    }

    const KINDS: [SchedulerKind; 3] = [SchedulerKind::Rr, SchedulerKind::Wrr, SchedulerKind::Wlc];

    #[test]
    fn nothing_is_picked_when_nobody_has_a_weight() {
        let mut state = SchedulerState::new(1, 3, 7);
        for kind in KINDS {
            assert_eq!(state.pick(ServiceId(0), kind, &[]), None);
            assert_eq!(state.pick(ServiceId(0), kind, &candidates(&[0, 0, 0])), None);
            assert_eq!(state.pick(ServiceId(0), kind, &candidates(&[0, 1, 0])), Some(1));
        }
    }

    #[test]
    fn sequences_begin_elsewhere_for_another_seed() {
        for kind in [SchedulerKind::Rr, SchedulerKind::Wrr] {
            for weights in [[1; 8], [100; 8]] {
                let first =
                    |seed| SchedulerState::new(1, 8, seed).pick(ServiceId(0), kind, &candidates(&weights));
                let mut firsts: Vec<_> = (0..200).map(|seed| first(seed).unwrap()).collect();
                firsts.sort_unstable();
                firsts.dedup();
                assert_eq!(firsts.len(), 8, "{kind:?} {weights:?}");
            }
        }
    }

    #[test]
    fn loads_follow_connections_and_a_new_tenant_starts_with_none() {
        let mut state = SchedulerState::new(1, 2, 7);
        let (old, new) = (ServerId { slot: 1, generation: 1 }, ServerId { slot: 1, generation: 2 });
        state.opened(old, true);
        state.opened(old, false);
        state.changed(old, false);
        assert_eq!(state.own(old), Load { active: 0, inactive: 2 });
        state.closed(old, false);
        assert_eq!(state.own(old), Load { active: 0, inactive: 1 });
        state.opened(new, true);
        assert_eq!(state.own(new), Load { active: 1, inactive: 0 });
        state.closed(old, false);
        state.changed(old, true);
        assert_eq!((state.own(old), state.own(new)), (Load::default(), Load { active: 1, inactive: 0 }));
    }
}
