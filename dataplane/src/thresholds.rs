//! Thresholds: how many connections a server may have, over all workers, and when one that was full takes new ones again.
//!
//! One shared word per server slot, touched only when a connection of a server with thresholds opens or ends. A
//! connection is admitted and counted in one step, so that workers opening at the same moment never pass the limit.

use std::sync::Arc;

use crate::scheduler::{Load, SchedulerState};
use crate::server::{Server, ServerId};
use crate::service::ServiceId;
use crate::sync::{AtomicU64, Ordering};

/// The limits of a server (LVS: u_threshold and l_threshold).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// So many connections, and never one more.
    pub upper: u32,
    /// After that, clients are sent there again when it has fewer than so many.
    pub lower: u32,
}

/// Who asks for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visitor {
    /// Any client: a server that was full is closed to it until the lower threshold.
    New,
    /// One that persistence sends: the upper threshold alone counts, or it would lose its server to the waiting.
    Returning,
}

/// The connections of all servers, over all workers.
#[derive(Debug)]
pub struct Occupancy(Box<[AtomicU64]>);

// A word: the slot's tenant (32 bits), whether it was full and is not open to new clients yet, and its connections.
const WAS_FULL: u64 = 1 << 31;
const COUNT: u64 = WAS_FULL - 1;

impl Occupancy {
    /// No connections, for server slots below `servers_max`.
    pub fn new(servers_max: usize) -> Self {
        Self((0..servers_max).map(|_| AtomicU64::new(0)).collect())
    }

    /// Connections counted for the server `id`.
    pub fn count(&self, id: ServerId) -> u32 {
        match Word::of(self.word(id).load(Ordering::Relaxed), id) {
            Word::Tenants(state) => (state & COUNT) as u32,
            Word::Older | Word::Newer => 0,
        }
    }

    /// Whether the server `id` takes connections of new clients at the moment.
    pub fn is_open(&self, id: ServerId, thresholds: Thresholds) -> bool {
        match Word::of(self.word(id).load(Ordering::Relaxed), id) {
            Word::Tenants(state) => admits(state, thresholds, Visitor::New),
            Word::Older => thresholds.upper > 0,
            Word::Newer => true,
        }
    }

    /// Counts one more connection of the server `id`, if it takes it.
    pub fn enter(&self, id: ServerId, thresholds: Thresholds, visitor: Visitor) -> bool {
        self.change(id, |state| {
            // Below the lower threshold the waiting is over.
            let state = if state & COUNT < u64::from(thresholds.lower) { state & COUNT } else { state };
            admits(state, thresholds, visitor).then(|| {
                let state = state + 1;
                if state & COUNT >= u64::from(thresholds.upper) { state | WAS_FULL } else { state }
            })
        })
    }

    /// Counts one connection of the server `id` less. Nothing when the slot has another tenant by now.
    pub fn leave(&self, id: ServerId) {
        self.take(id, 1);
    }

    fn add(&self, id: ServerId, connections: u64) {
        self.change(id, |state| Some(state + connections));
    }

    fn take(&self, id: ServerId, connections: u64) {
        self.change(id, |state| {
            debug_assert!(state & COUNT >= connections, "more connections left than came");
            Some(state - connections.min(state & COUNT))
        });
    }

    /// The upper threshold was raised or taken away: nobody waits for the lower one any more.
    fn reopen(&self, id: ServerId) {
        self.change(id, |state| Some(state & COUNT));
    }

    /// Changes what is counted for `id`, unless `next` refuses. A worker that still knows an older tenant only changes
    /// nothing and is not refused: it will hear of the newer one at once.
    fn change(&self, id: ServerId, next: impl Fn(u64) -> Option<u64>) -> bool {
        let slot = self.word(id);
        let mut word = slot.load(Ordering::Relaxed);
        loop {
            let state = match Word::of(word, id) {
                Word::Tenants(state) => state,
                Word::Older => 0,
                Word::Newer => return true,
            };
            let Some(state) = next(state) else { return false };
            let changed = u64::from(id.generation) << 32 | state;
            match slot.compare_exchange_weak(word, changed, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(seen) => word = seen,
            }
        }
    }

    fn word(&self, id: ServerId) -> &AtomicU64 {
        &self.0[id.slot as usize]
    }
}

/// Whose word it is, seen from a tenant of the slot.
enum Word {
    /// Its own: flag and count.
    Tenants(u64),
    Older,
    Newer,
}

impl Word {
    fn of(word: u64, id: ServerId) -> Self {
        let ahead = ((word >> 32) as u32).wrapping_sub(id.generation) as i32;
        match ahead {
            0 => Self::Tenants(word & (WAS_FULL | COUNT)),
            1.. => Self::Newer,
            _ => Self::Older,
        }
    }
}

fn admits(state: u64, thresholds: Thresholds, visitor: Visitor) -> bool {
    let count = state & COUNT;
    let waits = state & WAS_FULL != 0 && count >= u64::from(thresholds.lower);
    count < u64::from(thresholds.upper) && (visitor == Visitor::Returning || !waits)
}

/// One worker's part: which servers it counts. A server that gets thresholds while it has connections is counted with
/// all of them from then on.
#[derive(Debug)]
pub(crate) struct Doors {
    occupancy: Arc<Occupancy>,
    /// The tenant of each slot that is counted, with its upper threshold.
    counted: Box<[Option<(u32, u32)>]>,
    /// Which services have servers with thresholds.
    limited: Box<[bool]>,
}

impl Doors {
    pub(crate) fn new(occupancy: Arc<Occupancy>, services_max: usize) -> Self {
        let counted = vec![None; occupancy.0.len()].into();
        Self { occupancy, counted, limited: vec![false; services_max].into() }
    }

    /// Follows the thresholds of a new snapshot's `servers`; `schedulers` knows this worker's connections.
    pub(crate) fn follow<'a>(
        &mut self,
        servers: impl Iterator<Item = &'a Server>,
        schedulers: &mut SchedulerState,
    ) {
        self.limited.fill(false);
        for server in servers {
            self.limited[server.service.0 as usize] |= server.thresholds.is_some();
            let id = server.id;
            let counted = &mut self.counted[id.slot as usize];
            let before = counted.filter(|(generation, _)| *generation == id.generation);
            let Load { active, inactive } = schedulers.own(id);
            let own = u64::from(active) + u64::from(inactive);
            match (before, server.thresholds) {
                (None, Some(_)) => self.occupancy.add(id, own),
                (Some(_), None) => {
                    self.occupancy.take(id, own);
                    self.occupancy.reopen(id);
                    schedulers.set_available(id, true);
                }
                (Some((_, upper)), Some(new)) if new.upper > upper => self.occupancy.reopen(id),
                (Some(_), Some(_)) | (None, None) => {}
            }
            *counted = server.thresholds.map(|thresholds| (id.generation, thresholds.upper));
        }
    }

    /// Whether any server of `service` has thresholds.
    pub(crate) fn has_limits(&self, service: ServiceId) -> bool {
        self.limited[service.0 as usize]
    }

    /// Whether `server` takes connections of new clients at the moment.
    pub(crate) fn is_open(&self, server: &Server) -> bool {
        server.thresholds.is_none_or(|thresholds| self.occupancy.is_open(server.id, thresholds))
    }

    /// Counts one more connection of `server`, if it takes it.
    pub(crate) fn enter(&self, server: &Server, visitor: Visitor) -> bool {
        server.thresholds.is_none_or(|thresholds| self.occupancy.enter(server.id, thresholds, visitor))
    }

    /// A connection of the server `id` has ended.
    pub(crate) fn leave(&self, id: ServerId) {
        let counted = self.counted[id.slot as usize];
        if counted.is_some_and(|(generation, _)| generation == id.generation) {
            self.occupancy.leave(id);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::server::Mode;

    const LIMITS: Thresholds = Thresholds { upper: 4, lower: 2 };
    const ID: ServerId = ServerId { slot: 1, generation: 5 };

    #[test]
    fn a_full_server_is_closed_to_new_clients_until_the_lower_threshold() {
        let occupancy = Occupancy::new(2);
        let enter = |visitor| occupancy.enter(ID, LIMITS, visitor);
        assert!((0..4).all(|_| enter(Visitor::New)));
        assert!(!enter(Visitor::New) && !enter(Visitor::Returning) && !occupancy.is_open(ID, LIMITS));
        occupancy.leave(ID);
        occupancy.leave(ID);
        assert!(!occupancy.is_open(ID, LIMITS) && !enter(Visitor::New), "two are not fewer than two");
        assert!(enter(Visitor::Returning), "there is a place for who was there before");
        occupancy.leave(ID);
        occupancy.leave(ID);
        assert!(occupancy.is_open(ID, LIMITS));
        assert!((0..3).all(|_| enter(Visitor::New)), "open again up to the upper threshold");
        assert_eq!((enter(Visitor::New), occupancy.count(ID)), (false, 4));
    }

    #[test]
    fn a_new_tenant_of_a_slot_starts_empty_and_older_ones_do_not_count_any_more() {
        let occupancy = Occupancy::new(2);
        let new = ServerId { generation: 6, ..ID };
        assert!((0..4).all(|_| occupancy.enter(ID, LIMITS, Visitor::New)));
        assert!(occupancy.is_open(new, LIMITS) && occupancy.enter(new, LIMITS, Visitor::New));
        occupancy.leave(ID);
        assert!(occupancy.enter(ID, LIMITS, Visitor::New), "who knows the older one only is not held up");
        assert_eq!((occupancy.count(new), occupancy.count(ID)), (1, 0));
    }

    #[test]
    fn workers_that_open_at_once_never_pass_the_limit() {
        const THREADS: u64 = 4;
        let limits = Thresholds { upper: 50, lower: 50 };
        let occupancy = Occupancy::new(2);
        let (inside, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let work = || {
            let (mut admitted, mut refused) = (0u64, 0u64);
            for round in 0..20_000 {
                if occupancy.enter(ID, limits, Visitor::New) {
                    let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    admitted += 1;
                } else {
                    refused += 1;
                }
                // They stay a while: every worker holds up to 16.
                if (refused > 0 || round % 16 == 15) && admitted > 0 {
                    inside.fetch_sub(1, Ordering::SeqCst);
                    occupancy.leave(ID);
                    admitted -= 1;
                }
            }
            (admitted, refused)
        };
        let (left, refused) = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            let done = threads.into_iter().map(|thread| thread.join().unwrap());
            done.fold((0, 0), |(left, refused), done| (left + done.0, refused + done.1))
        });
        assert_eq!(u64::from(occupancy.count(ID)), left);
        assert!(refused > 0, "the limit was never reached");
        assert!(most.into_inner() <= 50);
    }

    fn server(thresholds: Option<Thresholds>) -> Server {
        Server {
            id: ID,
            service: ServiceId(0),
            address: "10.0.0.1".parse().unwrap(),
            port: None,
            mode: Mode::Dr,
            weight: 1,
            drain_at: None,
            down: false,
            thresholds,
            hop: None,
        }
    }

    #[test]
    fn thresholds_that_come_with_a_reload_count_what_is_there_already() {
        let occupancy = Arc::new(Occupancy::new(2));
        let mut workers =
            [0, 1].map(|seed| (Doors::new(occupancy.clone(), 1), SchedulerState::new(1, 2, seed)));
        for (doors, schedulers) in &mut workers {
            schedulers.opened(ID, true);
            schedulers.opened(ID, false);
            doors.follow([server(None)].iter(), schedulers);
            doors.leave(ID);
        }
        assert_eq!(occupancy.count(ID), 0, "nobody counts without thresholds");
        let limited = server(Some(LIMITS));
        for (doors, schedulers) in &mut workers {
            doors.follow([limited.clone()].iter(), schedulers);
            doors.follow([limited.clone()].iter(), schedulers);
        }
        assert_eq!(occupancy.count(ID), 4);
        let (doors, schedulers) = &mut workers[0];
        assert!(!doors.enter(&limited, Visitor::New));
        doors.leave(ID);
        schedulers.closed(ID, true);
        doors.follow([server(None)].iter(), schedulers);
        assert_eq!(occupancy.count(ID), 2, "the other worker's");
    }

    #[test]
    fn raising_the_limit_opens_a_full_server_at_once() {
        let occupancy = Arc::new(Occupancy::new(2));
        let (mut doors, mut schedulers) = (Doors::new(occupancy, 1), SchedulerState::new(1, 2, 0));
        let limited = server(Some(LIMITS));
        doors.follow([limited.clone()].iter(), &mut schedulers);
        assert!((0..4).all(|_| doors.enter(&limited, Visitor::New)) && !doors.is_open(&limited));
        let wider = server(Some(Thresholds { upper: 5, lower: 2 }));
        doors.follow([wider.clone()].iter(), &mut schedulers);
        assert!(doors.is_open(&wider) && doors.enter(&wider, Visitor::New) && !doors.is_open(&wider));
    }
}
