//! What one worker's schedulers remember from pick to pick.

use shunt_engine::WorkerId;

use super::destinations::Destinations;
use super::least::{Seat, Tournaments};
use super::pool::{Candidate, Pool};
use super::{Request, SchedulerKind, dh, family, lblc, lblcr, mh, rr, sh, twos, wrr};
use crate::hash;
use crate::server::ServerId;
use crate::service::ServiceId;
use crate::tuple::Address;

/// Live connections of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Those in an active state ([`crate::conn::State::is_active`]).
    pub active: u32,
    /// All others.
    pub inactive: u32,
}

/// What one worker's schedulers remember. All memory is taken at start, but for what only `lblc` and `lblcr` need: that is
/// taken when the first such service comes.
#[derive(Debug)]
pub struct SchedulerState {
    /// Two for each service, by IP version.
    turns: Box<[Turn]>,
    pub(super) tournaments: Tournaments,
    servers: Servers,
    pub(super) destinations: Destinations,
    seed: u64,
    worker: WorkerId,
    /// Random numbers drawn so far.
    drawn: u64,
}

/// What is remembered per pool.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    /// The server picked last, and its place among the candidates then.
    pub(super) last: Option<(ServerId, usize)>,
    /// Sum of the weights at the last pick by `wrr`.
    pub(super) total: u64,
    /// The pool in which `wrr` settled last, and the picks since.
    pub(super) pool: u64,
    pub(super) picks: i64,
}

/// What is remembered per server slot, of its present tenant.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ServerState {
    generation: u32,
    /// It has all the connections it may have.
    pub(super) overloaded: bool,
    /// Connections of this worker.
    own: Load,
    /// Connections of all other workers, as of the last look.
    others: Load,
    /// How far `wrr` owes this server, in units of weight, after so many picks. `None`: not picked among others yet.
    pub(super) credit: Option<i64>,
    pub(super) picks: i64,
    /// Where it plays for the next connection, in pools whose scheduler looks for the least of something.
    pub(super) seat: Option<Seat>,
}

/// A server's connections on all workers, as far as this one can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Total {
    pub(super) active: u64,
    pub(super) inactive: u64,
}

/// The slots of all servers.
#[derive(Debug)]
pub(super) struct Servers(Box<[ServerState]>);

impl SchedulerState {
    /// State for service slots below `services_max` and server slots below `servers_max`, for the first worker.
    /// `seed` differs between starts: it says where sequences begin, so that directors do not all begin at the same
    /// server.
    pub fn new(services_max: usize, servers_max: usize, seed: u64) -> Self {
        Self {
            turns: vec![Turn::default(); 2 * services_max].into(),
            tournaments: Tournaments::new(2 * services_max, servers_max),
            servers: Servers(vec![ServerState::default(); servers_max].into()),
            destinations: Destinations::new(seed),
            seed,
            worker: WorkerId(0),
            drawn: 0,
        }
    }

    /// The same for another worker than the first: each begins its sequences elsewhere.
    #[must_use]
    pub fn for_worker(self, worker: WorkerId) -> Self {
        Self { worker, ..self }
    }

    /// Takes the memory that schedulers of these `kinds` need, unless it has been taken before.
    pub fn prepare(&mut self, mut kinds: impl Iterator<Item = SchedulerKind>) {
        if kinds.any(|kind| matches!(kind, SchedulerKind::Lblc | SchedulerKind::Lblcr)) {
            self.destinations.allocate();
        }
    }

    /// How many destinations `lblc` and `lblcr` have forgotten for lack of room since this was asked last.
    pub fn take_evicted(&mut self) -> u64 {
        self.destinations.take_evicted()
    }

    /// The server that gets the next connection; `None` when none takes any.
    ///
    /// # Panics
    /// When a slot is not below its maximum: control publishes no such snapshot.
    pub fn pick(&mut self, service: ServiceId, pool: &Pool, request: &Request) -> Option<ServerId> {
        let seed = pool.scheduler().seed.unwrap_or(self.seed);
        let seed = random(random(seed, u64::from(self.worker.0)), u64::from(service.0));
        let number = 2 * service.0 as usize + request.family;
        let (candidates, servers) = (pool.candidates(), &mut self.servers);
        let place = match pool.scheduler().kind {
            SchedulerKind::Rr => rr::pick(candidates, &mut self.turns[number], servers, seed),
            SchedulerKind::Wrr => {
                wrr::pick(pool, number, &mut self.turns[number], servers, &mut self.tournaments, seed)
            }
            SchedulerKind::Lc
            | SchedulerKind::Wlc
            | SchedulerKind::Sed
            | SchedulerKind::Nq
            | SchedulerKind::Fo
            | SchedulerKind::Ovf => self.tournaments.winner(number, pool, servers),
            SchedulerKind::Sh => sh::pick(pool, servers, request),
            SchedulerKind::Dh => dh::pick(pool, servers, request),
            SchedulerKind::Mh => mh::pick(pool, servers, request),
            SchedulerKind::Lblc => {
                let destination = self.destinations.entry(service, request.vip.address, request.now);
                let cheapest = self.tournaments.winner(number, pool, servers);
                let has_bored = || self.tournaments.has_bored(number, pool);
                lblc::pick(pool, servers, destination, cheapest, has_bored, request.now)
            }
            SchedulerKind::Lblcr => {
                let destination = self.destinations.entry(service, request.vip.address, request.now);
                let cheapest = self.tournaments.winner(number, pool, servers);
                let has_bored = || self.tournaments.has_bored(number, pool);
                lblcr::pick(pool, servers, destination, cheapest, has_bored, request.now)
            }
            SchedulerKind::Twos => {
                let drawn = &mut self.drawn;
                let draw = || {
                    *drawn += 1;
                    random(seed, *drawn)
                };
                twos::pick(pool, servers, draw)
            }
        };
        Some(candidates[place?].id)
    }

    /// Who gets the next connection of the service, if that can be said before it comes.
    #[inline]
    pub fn favourite<A: Address>(&self, service: ServiceId, pool: &Pool) -> Option<ServerId> {
        let place = self.tournaments.favourite(2 * service.0 as usize + family::<A>(), pool)?;
        Some(pool.candidates()[place].id)
    }

    /// Says whether the server `id` may get connections: not while it has all that its threshold allows. Whatever its
    /// weight, no scheduler picks it meanwhile (LVS: IP_VS_DEST_F_OVERLOAD).
    pub fn set_available(&mut self, id: ServerId, available: bool) {
        let server = self.servers.tenant(id);
        if server.overloaded == available {
            server.overloaded = !available;
            self.tournaments.admit(server);
        }
    }

    /// Counts a connection opened to the server `id`.
    #[inline]
    pub fn opened(&mut self, id: ServerId, active: bool) {
        let server = self.servers.tenant(id);
        *server.own.part(active) += 1;
        self.tournaments.replay(server);
    }

    /// Counts a connection of the server `id` as active from now on, or as inactive. Nothing when the slot has another
    /// tenant by now.
    pub fn changed(&mut self, id: ServerId, active: bool) {
        if let Some(server) = self.servers.same_mut(id) {
            let left = server.own.part(!active);
            debug_assert!(*left > 0);
            *left = left.saturating_sub(1);
            *server.own.part(active) += 1;
            self.tournaments.replay(server);
        }
    }

    /// Counts a connection of the server `id` as gone. Nothing when the slot has another tenant by now.
    pub fn closed(&mut self, id: ServerId, active: bool) {
        if let Some(server) = self.servers.same_mut(id) {
            let left = server.own.part(active);
            debug_assert!(*left > 0);
            *left = left.saturating_sub(1);
            self.tournaments.replay(server);
        }
    }

    /// This worker's connections of the server `id`.
    pub fn own(&self, id: ServerId) -> Load {
        self.servers.same(id).map_or_else(Load::default, |server| server.own)
    }

    /// Sets the connections all other workers have of the server `id`.
    pub fn set_others(&mut self, id: ServerId, others: Load) {
        let server = self.servers.tenant(id);
        if server.others != others {
            server.others = others;
            self.tournaments.replay(server);
        }
    }
}

impl Load {
    fn part(&mut self, active: bool) -> &mut u32 {
        if active { &mut self.active } else { &mut self.inactive }
    }
}

impl ServerState {
    /// The server's connections on all workers.
    #[inline]
    pub(super) fn load(&self) -> Total {
        Total {
            active: u64::from(self.own.active) + u64::from(self.others.active),
            inactive: u64::from(self.own.inactive) + u64::from(self.others.inactive),
        }
    }
}

impl Servers {
    /// The state of the slot's tenant `id`; afresh when the slot had another one before.
    pub(super) fn tenant(&mut self, id: ServerId) -> &mut ServerState {
        let server = &mut self.0[id.slot as usize];
        if server.generation != id.generation {
            *server = ServerState { generation: id.generation, ..ServerState::default() };
        }
        server
    }

    /// Whether a candidate takes connections: it has a weight and is not overloaded.
    #[inline]
    pub(super) fn takes(&self, candidate: &Candidate) -> bool {
        candidate.weight > 0 && !self.same(candidate.id).is_some_and(|server| server.overloaded)
    }

    /// The connections of `id` on all workers.
    #[inline]
    pub(super) fn load(&self, id: ServerId) -> Total {
        self.same(id).map_or(Total { active: 0, inactive: 0 }, ServerState::load)
    }

    /// The state of the slot while `id` is its tenant.
    #[inline]
    fn same(&self, id: ServerId) -> Option<&ServerState> {
        let server = &self.0[id.slot as usize];
        (server.generation == id.generation).then_some(server)
    }

    fn same_mut(&mut self, id: ServerId) -> Option<&mut ServerState> {
        let server = &mut self.0[id.slot as usize];
        (server.generation == id.generation).then_some(server)
    }
}

/// A number that depends on both arguments and looks like neither.
pub(super) fn random(seed: u64, what: u64) -> u64 {
    hash::mix(hash::mix(seed ^ 0x9e37_79b9_7f4a_7c15, what ^ 0xd1b5_4a32_d192_ed03), 0xa0b4_28db_9e61_97f5)
}

#[cfg(test)]
mod tests {
    use super::*;

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
