//! What the schedulers' tests share. Servers are in list order: slot 0 is the first a scheduler looks at.

use shunt_engine::Instant;

use super::{Candidate, Pool, Request, Scheduler, SchedulerKind, SchedulerState};
use crate::server::ServerId;
use crate::service::ServiceId;
use crate::tuple::{Endpoint, Protocol, Tuple, V4, V6};

/// The server in `slot`.
pub(super) fn id(slot: u32) -> ServerId {
    ServerId { slot, generation: 1 }
}

/// Candidates with `weights`, in slots 0, 1, ….
pub(super) fn candidates(weights: &[u32]) -> Vec<Candidate> {
    (0..).zip(weights).map(|(slot, &weight)| Candidate { id: id(slot), weight }).collect()
}

/// The pool of `candidates` in list order; the server in slot n has the address 10.1.0.0 + n.
pub(super) fn pool_of(scheduler: impl Into<Scheduler>, candidates: &[Candidate]) -> Pool {
    let member = |candidate: &Candidate| {
        (*candidate, Endpoint::new(V6([0, 0, 0, 0x0a01_0000 + candidate.id.slot]), 80))
    };
    // The configuration's order is the list's backwards.
    let members: Vec<_> = candidates.iter().rev().map(member).collect();
    Pool::new(scheduler.into(), &members)
}

/// The pool of [`candidates`].
pub(super) fn pool(scheduler: impl Into<Scheduler>, weights: &[u32]) -> Pool {
    pool_of(scheduler, &candidates(weights))
}

/// A packet from client number `client` to a VIP.
pub(super) fn request(client: u32) -> Request {
    request_to(client, 0xcb00_710a)
}

/// A packet from client number `client` to `vip`.
pub(super) fn request_to(client: u32, vip: u32) -> Request {
    request_at(client, vip, Instant::ZERO)
}

/// The same at some time.
pub(super) fn request_at(client: u32, vip: u32, now: Instant) -> Request {
    let src = Endpoint::new(V4(0xc633_0000 + client), 1024 + (client % 60_000) as u16);
    let tuple = Tuple { src, dst: Endpoint::new(V4(vip), 80), protocol: Protocol::Tcp };
    Request::new(&tuple, now)
}

/// The slot that client number `client` of service 0 gets.
pub(super) fn pick_for(state: &mut SchedulerState, pool: &Pool, client: u32) -> Option<u32> {
    state.pick(ServiceId(0), pool, &request(client)).map(|id| id.slot)
}

/// The slot that some client of service 0 gets.
pub(super) fn pick(state: &mut SchedulerState, pool: &Pool) -> Option<u32> {
    pick_for(state, pool, 0)
}

/// How often each slot is picked in `picks`, each of another client.
pub(super) fn shares(state: &mut SchedulerState, pool: &Pool, picks: u32) -> Vec<u32> {
    let mut shares = vec![0; pool.candidates().len()];
    for client in 0..picks {
        shares[pick_for(state, pool, client).unwrap() as usize] += 1;
    }
    shares
}

/// Whether each of `shares` is in proportion to `weights` within one per cent.
pub(super) fn assert_fair(shares: &[u32], weights: &[u32]) {
    let (all, total): (u32, u32) = (shares.iter().sum(), weights.iter().sum());
    for (&share, &weight) in shares.iter().zip(weights) {
        let expected = f64::from(all) * f64::from(weight) / f64::from(total);
        assert!((f64::from(share) - expected).abs() <= expected / 100.0, "{shares:?} for {weights:?}");
    }
}

/// A state for eight servers of one service.
pub(super) fn state() -> SchedulerState {
    SchedulerState::new(1, 8, 7)
}

const KINDS: [SchedulerKind; SchedulerKind::ALL.len()] = SchedulerKind::ALL;

#[test]
fn nothing_is_picked_when_nobody_has_a_weight() {
    for kind in KINDS {
        let mut state = state();
        assert_eq!(pick(&mut state, &pool(kind, &[])), None, "{kind:?}");
        assert_eq!(pick(&mut state, &pool(kind, &[0, 0, 0])), None, "{kind:?}");
        assert_eq!(pick(&mut state, &pool(kind, &[0, 1, 0])), Some(1), "{kind:?}");
    }
}

#[test]
fn an_overloaded_server_is_never_picked_until_it_is_available_again() {
    for kind in KINDS {
        let (mut state, pool) = (state(), pool(Scheduler { fallback: true, ..kind.into() }, &[3, 3, 3]));
        let seen = |state: &mut SchedulerState| -> Vec<u32> {
            let mut seen: Vec<_> = (0..300).filter_map(|client| pick_for(state, &pool, client)).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        let before = seen(&mut state);
        state.set_available(id(before[0]), false);
        let meanwhile = seen(&mut state);
        assert!(!meanwhile.is_empty() && !meanwhile.contains(&before[0]), "{kind:?}: {meanwhile:?}");
        (0..3).for_each(|slot| state.set_available(id(slot), false));
        assert_eq!(seen(&mut state), [], "{kind:?}");
        (0..3).for_each(|slot| state.set_available(id(slot), true));
        assert!(seen(&mut state).contains(&before[0]), "{kind:?}");
    }
}

#[test]
fn a_new_tenant_of_a_slot_is_not_overloaded_because_the_old_one_was() {
    let mut state = state();
    state.set_available(id(0), false);
    let tenant = Candidate { id: ServerId { slot: 0, generation: 2 }, weight: 1 };
    assert_eq!(pick(&mut state, &pool_of(SchedulerKind::Wlc, &[tenant])), Some(0));
}

#[test]
fn sequences_begin_elsewhere_for_another_seed_and_on_another_worker() {
    use shunt_engine::WorkerId;
    for kind in [SchedulerKind::Rr, SchedulerKind::Wrr] {
        for weights in [[1; 8], [100; 8]] {
            let pool = pool(kind, &weights);
            let all = |first: &dyn Fn(u16) -> Option<u32>| {
                let mut firsts: Vec<_> = (0..200).map(|number| first(number).unwrap()).collect();
                firsts.sort_unstable();
                firsts.dedup();
                firsts.len()
            };
            let by_seed = |seed: u16| pick(&mut SchedulerState::new(1, 8, seed.into()), &pool);
            assert_eq!(all(&by_seed), 8, "{kind:?} {weights:?}");
            let by_worker = |worker| pick(&mut state().for_worker(WorkerId(worker)), &pool);
            assert_eq!(all(&by_worker), 8, "{kind:?} {weights:?}");
        }
    }
}

#[test]
fn a_seed_in_the_configuration_fixes_where_sequences_begin() {
    for kind in [SchedulerKind::Rr, SchedulerKind::Wrr, SchedulerKind::Twos] {
        let pool = pool(Scheduler { seed: Some(42), ..kind.into() }, &[1; 8]);
        let sequence = |seed| {
            let mut state = SchedulerState::new(1, 8, seed);
            (0..20).map(|_| pick(&mut state, &pool)).collect::<Vec<_>>()
        };
        assert_eq!(sequence(1), sequence(2), "{kind:?}");
    }
}
