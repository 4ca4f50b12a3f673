//! Thresholds: how many connections a server may have, over all workers, and when one that was full takes new ones again.
//!
//! One shared word per server slot, touched only when a connection of a server with thresholds opens or ends. A
//! connection is admitted and counted in one step, so that workers opening at the same moment never pass the limit.
//! Whoever fills a server, or opens it again, rings: others look at the servers of a service only when it has rung.

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
pub struct Occupancy {
    words: Box<[AtomicU64]>,
    /// How often a server has closed or opened, by service. Services share bells: a look too many does no harm.
    bells: [AtomicU64; BELLS],
}

const BELLS: usize = 64;

// A word: the slot's tenant (32 bits), whether it was full and is not open to new clients yet, and its connections.
const WAS_FULL: u64 = 1 << 31;
const COUNT: u64 = WAS_FULL - 1;

impl Occupancy {
    /// No connections, for server slots below `servers_max`.
    pub fn new(servers_max: usize) -> Self {
        let zero = || AtomicU64::new(0);
        let words = (0..servers_max).map(|_| zero()).collect();
        Self { words, bells: std::array::from_fn(|_| zero()) }
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
        self.step_in(id, thresholds, visitor) != Step::Refused
    }

    fn step_in(&self, id: ServerId, thresholds: Thresholds, visitor: Visitor) -> Step {
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

    /// What a worker compares with what it heard last.
    fn rung(&self, service: ServiceId) -> u64 {
        self.bell(service).load(Ordering::Acquire)
    }

    /// Tells that a server of `service` has closed or opened. Returns what was rung before.
    fn ring(&self, service: ServiceId) -> u64 {
        self.bell(service).fetch_add(1, Ordering::Release)
    }

    fn bell(&self, service: ServiceId) -> &AtomicU64 {
        &self.bells[service.0 as usize % BELLS]
    }

    fn add(&self, id: ServerId, connections: u64) {
        self.change(id, |state| Some(state + connections));
    }

    fn take(&self, id: ServerId, connections: u64) -> Step {
        self.change(id, |state| {
            debug_assert!(state & COUNT >= connections, "more connections left than came");
            Some(state - connections.min(state & COUNT))
        })
    }

    /// The upper threshold was raised or taken away: nobody waits for the lower one any more.
    fn reopen(&self, id: ServerId) {
        self.change(id, |state| Some(state & COUNT));
    }

    /// Changes what is counted for `id`, unless `next` refuses. A worker that still knows an older tenant only changes
    /// nothing and is not refused: it will hear of the newer one at once.
    fn change(&self, id: ServerId, next: impl Fn(u64) -> Option<u64>) -> Step {
        let slot = self.word(id);
        let mut word = slot.load(Ordering::Relaxed);
        loop {
            let state = match Word::of(word, id) {
                Word::Tenants(state) => state,
                Word::Older => 0,
                Word::Newer => return Step::Foreign,
            };
            let Some(after) = next(state) else { return Step::Refused };
            let changed = u64::from(id.generation) << 32 | after;
            match slot.compare_exchange_weak(word, changed, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Step::Done { before: state, after },
                Err(seen) => word = seen,
            }
        }
    }

    fn word(&self, id: ServerId) -> &AtomicU64 {
        &self.words[id.slot as usize]
    }
}

/// What became of an attempt to change what is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing: there is no place.
    Refused,
    /// Nothing: the slot has a newer tenant.
    Foreign,
    /// The one became the other.
    Done { before: u64, after: u64 },
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
    /// What is counted in each slot.
    counted: Box<[Option<Counted>]>,
    /// What each service with thresholds had rung at the last look.
    heard: Box<[Option<u64>]>,
    /// Whether any server ever had thresholds. Few directors have any, and servers may be very many.
    limits: bool,
    /// Whether a new snapshot's servers are still being followed.
    is_following: bool,
}

/// A server that is counted.
#[derive(Clone, Copy, Debug)]
struct Counted {
    generation: u32,
    thresholds: Thresholds,
    service: ServiceId,
}

/// Nothing has been looked at yet.
const NEVER: u64 = u64::MAX;

impl Doors {
    pub(crate) fn new(occupancy: Arc<Occupancy>, services_max: usize) -> Self {
        let counted = vec![None; occupancy.words.len()].into();
        Self {
            occupancy,
            counted,
            heard: vec![None; services_max].into(),
            limits: false,
            is_following: false,
        }
    }

    /// A new snapshot is in force: of the services `limited` some server has thresholds. [`Self::follow`] will be called
    /// for each server of which something may differ, and then [`Self::followed_all`].
    pub(crate) fn begin(&mut self, limited: impl Iterator<Item = ServiceId>) {
        self.heard.fill(None);
        for service in limited {
            self.heard[service.0 as usize] = Some(NEVER);
            self.limits = true;
        }
        self.is_following = self.limits;
    }

    /// Follows the thresholds of a new snapshot's `server`; `schedulers` knows this worker's connections.
    #[inline]
    pub(crate) fn follow(&mut self, server: &Server, schedulers: &mut SchedulerState) {
        if self.is_following {
            self.follow_limited(server, schedulers);
        }
    }

    fn follow_limited(&mut self, server: &Server, schedulers: &mut SchedulerState) {
        let (id, service) = (server.id, server.service);
        let counted = &mut self.counted[id.slot as usize];
        let before = counted.filter(|counted| counted.generation == id.generation);
        let Load { active, inactive } = schedulers.own(id);
        let own = u64::from(active) + u64::from(inactive);
        match (before, server.thresholds) {
            (None, Some(_)) => self.occupancy.add(id, own),
            (Some(_), None) => {
                _ = self.occupancy.take(id, own);
                self.occupancy.reopen(id);
                schedulers.set_available(id, true);
            }
            (Some(old), Some(new)) if new.upper > old.thresholds.upper => self.occupancy.reopen(id),
            (Some(_), Some(_)) | (None, None) => {}
        }
        let generation = id.generation;
        *counted = server.thresholds.map(|thresholds| Counted { generation, thresholds, service });
        if server.thresholds.is_some() {
            self.heard[service.0 as usize] = Some(NEVER);
        }
    }

    /// All servers have been followed.
    pub(crate) fn followed_all(&mut self) {
        self.is_following = false;
    }

    /// Tells `schedulers` which servers of `service` take connections of new clients, if another worker has filled or
    /// opened one since the last look.
    #[inline]
    pub(crate) fn look<'a, I: Iterator<Item = &'a Server>>(
        &mut self,
        service: ServiceId,
        servers: impl FnOnce() -> I,
        schedulers: &mut SchedulerState,
    ) {
        let Some(heard) = &mut self.heard[service.0 as usize] else { return };
        let rung = self.occupancy.rung(service);
        if *heard != rung {
            *heard = rung;
            let limited = servers().filter_map(|server| Some((server.id, server.thresholds?)));
            limited.for_each(|(id, thresholds)| {
                schedulers.set_available(id, self.occupancy.is_open(id, thresholds));
            });
        }
    }

    /// Counts one more connection of `server`, if it takes it. `schedulers` hear whether it takes more.
    #[inline]
    pub(crate) fn enter(
        &mut self,
        server: &Server,
        visitor: Visitor,
        schedulers: &mut SchedulerState,
    ) -> bool {
        // Its connections must be counted before one more is.
        self.follow(server, schedulers);
        let Some(thresholds) = server.thresholds else { return true };
        let step = self.occupancy.step_in(server.id, thresholds, visitor);
        self.after(step, server.id, thresholds, server.service, schedulers);
        step != Step::Refused
    }

    /// A connection of the server `id` has ended. `schedulers` hear whether it takes new ones.
    #[inline]
    pub(crate) fn leave(&mut self, id: ServerId, schedulers: &mut SchedulerState) {
        let counted = self.counted[id.slot as usize].filter(|counted| counted.generation == id.generation);
        if let Some(Counted { thresholds, service, .. }) = counted {
            let step = self.occupancy.take(id, 1);
            self.after(step, id, thresholds, service, schedulers);
        }
    }

    /// What a step means to new clients: for this worker's schedulers, and for the others if it is news.
    fn after(
        &mut self,
        step: Step,
        id: ServerId,
        thresholds: Thresholds,
        service: ServiceId,
        schedulers: &mut SchedulerState,
    ) {
        let is_open = |state| admits(state, thresholds, Visitor::New);
        match step {
            Step::Foreign => {}
            Step::Refused => schedulers.set_available(id, false),
            Step::Done { before, after } => {
                schedulers.set_available(id, is_open(after));
                if is_open(before) != is_open(after) {
                    let rung = self.occupancy.ring(service);
                    // One's own bell is no news.
                    if let Some(heard) =
                        self.heard[service.0 as usize].as_mut().filter(|heard| **heard == rung)
                    {
                        *heard = rung + 1;
                    }
                }
            }
        }
    }
}

/// A snapshot with this one server is in force.
#[cfg(test)]
fn follow(doors: &mut Doors, server: &Server, schedulers: &mut SchedulerState) {
    doors.begin(server.thresholds.map(|_| server.service).into_iter());
    doors.follow(server, schedulers);
    doors.followed_all();
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use shunt_engine::Instant;

    use super::*;
    use crate::scheduler::{Candidate, Pool, Request, SchedulerKind};
    use crate::server::Mode;
    use crate::tuple::{Endpoint, Protocol, Tuple, V4, V6};

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
        const ROUNDS: u32 = if cfg!(miri) { 200 } else { 20_000 };
        let limits = Thresholds { upper: 50, lower: 50 };
        let occupancy = Occupancy::new(2);
        let (inside, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let work = || {
            let (mut admitted, mut refused) = (0u64, 0u64);
            for round in 0..ROUNDS {
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
            follow(doors, &server(None), schedulers);
            doors.leave(ID, schedulers);
        }
        assert_eq!(occupancy.count(ID), 0, "nobody counts without thresholds");
        let limited = server(Some(LIMITS));
        for (doors, schedulers) in &mut workers {
            follow(doors, &limited, schedulers);
            follow(doors, &limited, schedulers);
        }
        assert_eq!(occupancy.count(ID), 4);
        let (doors, schedulers) = &mut workers[0];
        assert!(!doors.enter(&limited, Visitor::New, schedulers));
        doors.leave(ID, schedulers);
        schedulers.closed(ID, true);
        follow(doors, &server(None), schedulers);
        assert_eq!(occupancy.count(ID), 2, "the other worker's");
    }

    #[test]
    fn raising_the_limit_opens_a_full_server_at_once() {
        let occupancy = Arc::new(Occupancy::new(2));
        let (mut doors, mut schedulers) = (Doors::new(occupancy, 1), SchedulerState::new(1, 2, 0));
        let limited = server(Some(LIMITS));
        follow(&mut doors, &limited, &mut schedulers);
        let enter = |doors: &mut Doors, schedulers: &mut SchedulerState, server: &Server| {
            doors.enter(server, Visitor::New, schedulers)
        };
        assert!((0..4).all(|_| enter(&mut doors, &mut schedulers, &limited)));
        assert_eq!(look(&mut doors, &mut schedulers, &limited), None);
        let wider = server(Some(Thresholds { upper: 5, lower: 2 }));
        follow(&mut doors, &wider, &mut schedulers);
        assert_eq!(look(&mut doors, &mut schedulers, &wider), Some(ID));
        assert!(enter(&mut doors, &mut schedulers, &wider));
        assert_eq!(look(&mut doors, &mut schedulers, &wider), None);
    }

    /// Whom a new client gets after a look.
    fn look(doors: &mut Doors, schedulers: &mut SchedulerState, server: &Server) -> Option<ServerId> {
        doors.look(ServiceId(0), || [server].into_iter(), schedulers);
        pick(schedulers)
    }

    fn pick(schedulers: &mut SchedulerState) -> Option<ServerId> {
        let endpoint = Endpoint::new(V4(1), 1);
        let tuple = Tuple { src: endpoint, dst: endpoint, protocol: Protocol::Tcp };
        let member = (Candidate { id: ID, weight: 1 }, Endpoint::new(V6([0; 4]), 1));
        let pool = Pool::new(SchedulerKind::Lc.into(), &[member]);
        schedulers.pick(ServiceId(0), &pool, &Request::new(&tuple, Instant::ZERO))
    }

    #[test]
    fn a_worker_looks_again_when_another_one_has_filled_or_opened_a_server_and_only_then() {
        let occupancy = Arc::new(Occupancy::new(2));
        let worker = || (Doors::new(occupancy.clone(), 1), SchedulerState::new(1, 2, 0));
        let ((mut one, mut ones), (mut other, mut others)) = (worker(), worker());
        let limited = server(Some(LIMITS));
        follow(&mut one, &limited, &mut ones);
        follow(&mut other, &limited, &mut others);
        assert_eq!(look(&mut one, &mut ones, &limited), Some(ID));
        assert_eq!(look(&mut other, &mut others, &limited), Some(ID));
        // A mark that the next look would wipe off.
        others.set_available(ID, false);
        for _ in 0..3 {
            assert!(one.enter(&limited, Visitor::New, &mut ones));
            assert_eq!(look(&mut other, &mut others, &limited), None, "nothing has closed or opened");
        }
        others.set_available(ID, true);
        assert!(one.enter(&limited, Visitor::New, &mut ones));
        assert_eq!(pick(&mut ones), None, "who fills a server knows it without a look");
        assert_eq!(look(&mut other, &mut others, &limited), None);
        for _ in 0..2 {
            one.leave(ID, &mut ones);
            assert_eq!((pick(&mut ones), look(&mut other, &mut others, &limited)), (None, None));
        }
        one.leave(ID, &mut ones);
        assert_eq!((pick(&mut ones), look(&mut other, &mut others, &limited)), (Some(ID), Some(ID)));
        ones.set_available(ID, false);
        assert_eq!(look(&mut one, &mut ones, &limited), None, "one's own bell is no news");
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::server::Mode;

    const ID: ServerId = ServerId { slot: 0, generation: 5 };
    const ONE: Thresholds = Thresholds { upper: 1, lower: 1 };

    #[test]
    fn loom_the_last_place_is_given_once() {
        loom::model(|| {
            let occupancy = Arc::new(Occupancy::new(1));
            let other = thread::spawn({
                let occupancy = occupancy.clone();
                move || occupancy.enter(ID, ONE, Visitor::New)
            });
            let mine = occupancy.enter(ID, ONE, Visitor::New);
            let other = other.join().expect("the other does not panic");
            assert_ne!(mine, other);
            assert_eq!(occupancy.count(ID), 1);
        });
    }

    #[test]
    fn loom_a_place_that_is_left_is_free_for_one_and_nothing_is_lost() {
        loom::model(|| {
            let occupancy = Arc::new(Occupancy::new(1));
            assert!(occupancy.enter(ID, ONE, Visitor::New));
            let other = thread::spawn({
                let occupancy = occupancy.clone();
                move || occupancy.leave(ID)
            });
            let entered = occupancy.enter(ID, ONE, Visitor::New);
            other.join().expect("the other does not panic");
            assert_eq!(occupancy.count(ID), u32::from(entered));
            assert_eq!(occupancy.enter(ID, ONE, Visitor::New), !entered);
        });
    }

    #[test]
    fn loom_what_an_older_tenant_leaves_is_not_taken_from_the_newer_one() {
        loom::model(|| {
            let occupancy = Arc::new(Occupancy::new(1));
            assert!(occupancy.enter(ID, ONE, Visitor::New));
            let new = ServerId { generation: 6, ..ID };
            let other = thread::spawn({
                let occupancy = occupancy.clone();
                move || occupancy.leave(ID)
            });
            assert!(occupancy.enter(new, ONE, Visitor::New));
            other.join().expect("the other does not panic");
            assert_eq!((occupancy.count(new), occupancy.count(ID)), (1, 0));
        });
    }

    /// A worker with one connection of the server hears of its thresholds, then opens another one and closes the first.
    fn follows(occupancy: std::sync::Arc<Occupancy>) -> bool {
        let (mut doors, mut schedulers) = (Doors::new(occupancy, 1), SchedulerState::new(1, 1, 0));
        schedulers.opened(ID, true);
        let limited = Server {
            id: ID,
            service: ServiceId(0),
            address: [10, 0, 0, 1].into(),
            port: None,
            mode: Mode::Dr,
            weight: 1,
            drain_at: None,
            down: false,
            thresholds: Some(Thresholds { upper: 4, lower: 4 }),
            hop: None,
        };
        follow(&mut doors, &limited, &mut schedulers);
        let entered = doors.enter(&limited, Visitor::New, &mut schedulers);
        doors.leave(ID, &mut schedulers);
        entered
    }

    #[test]
    fn loom_workers_that_hear_of_thresholds_one_after_the_other_count_every_connection_once() {
        loom::model(|| {
            let occupancy = std::sync::Arc::new(Occupancy::new(1));
            let other = thread::spawn({
                let occupancy = occupancy.clone();
                move || follows(occupancy)
            });
            let mine = follows(occupancy.clone());
            let other = other.join().expect("the other does not panic");
            assert!(mine && other, "there is room for both");
            assert_eq!(occupancy.count(ID), 2);
        });
    }
}
