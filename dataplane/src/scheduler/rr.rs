//! `rr`: the servers in turn, weights ignored except 0, which takes no connections.

use super::pool::{Candidate, place_of};
use super::state::{Servers, Turn};

/// The candidate after the one picked last. Where that one is gone, its place is where the turn goes on.
pub(super) fn pick(candidates: &[Candidate], turn: &mut Turn, servers: &Servers, seed: u64) -> Option<usize> {
    let count = candidates.len();
    if count == 0 {
        return None;
    }
    let start = match turn.last {
        None => (seed % count as u64) as usize,
        Some((id, place)) => place_of(candidates, id, place).map_or(place, |place| place + 1),
    };
    let picked = (start..start + count).map(|i| i % count).find(|&i| servers.takes(&candidates[i]))?;
    turn.last = Some((candidates[picked].id, picked));
    Some(picked)
}

#[cfg(test)]
mod tests {
    use shunt_engine::Instant;

    use super::super::testing::{candidates, pick, pool, pool_of, request, shares};
    use super::super::{Candidate, Request, SchedulerKind, SchedulerState};
    use crate::server::ServerId;
    use crate::service::ServiceId;
    use crate::tuple::{Endpoint, Protocol, Tuple, V6};
    use proptest::prelude::*;

    const RR: SchedulerKind = SchedulerKind::Rr;

    fn sequence(state: &mut SchedulerState, candidates: &[Candidate], picks: usize) -> Vec<u32> {
        let pool = pool_of(RR, candidates);
        (0..picks).map(|_| pick(state, &pool).unwrap()).collect()
    }

    #[test]
    fn a_million_picks_are_shared_evenly() {
        let mut state = SchedulerState::new(1, 8, 3);
        let weights = [1, 5, 0, 1, 100, 0, 7, 1];
        let shares = shares(&mut state, &pool(RR, &weights), 1_000_000);
        for (share, weight) in shares.into_iter().zip(weights) {
            let expected = if weight == 0 { 0 } else { 1_000_000 / 6 };
            assert!(share.abs_diff(expected) <= 1, "{share}");
        }
    }

    #[test]
    fn a_reload_goes_on_where_the_turn_was() {
        let mut state = SchedulerState::new(1, 8, 3);
        let all = candidates(&[1, 1, 1, 1, 1]);
        while sequence(&mut state, &all, 1) != [2] {}
        // 0 is removed: the next is still 3.
        let without_first = all[1..].to_vec();
        assert_eq!(sequence(&mut state, &without_first, 4), [3, 4, 1, 2]);
        // The one picked last is removed: the one after it is next.
        let without_last: Vec<_> = without_first.into_iter().filter(|c| c.id.slot != 2).collect();
        assert_eq!(sequence(&mut state, &without_last, 3), [3, 4, 1]);
        // Servers are added in front.
        assert_eq!(sequence(&mut state, &all, 4), [2, 3, 4, 0]);
    }

    #[test]
    fn services_have_turns_of_their_own() {
        let mut state = SchedulerState::new(2, 2, 3);
        let pool = pool(RR, &[1, 1]);
        let first = pick(&mut state, &pool).unwrap();
        for _ in 0..3 {
            state.pick(ServiceId(1), &pool, &request(0));
        }
        assert_eq!(pick(&mut state, &pool), Some(1 - first));
    }

    #[test]
    fn clients_of_both_ip_versions_have_turns_of_their_own() {
        let mut state = SchedulerState::new(1, 6, 3);
        let second = |slot| Candidate { id: ServerId { slot, generation: 1 }, weight: 1 };
        let (v4, v6) = (pool(RR, &[1, 1, 1]), pool_of(RR, &[3, 4, 5].map(second)));
        let endpoint = Endpoint::new(V6([0x2001_0db8, 0, 0, 1]), 80);
        let tuple = Tuple { src: endpoint, dst: endpoint, protocol: Protocol::Tcp };
        let mut seen: Vec<_> = (0..3)
            .flat_map(|_| {
                let one = pick(&mut state, &v4).unwrap();
                let other = state.pick(ServiceId(0), &v6, &Request::new(&tuple, Instant::ZERO)).unwrap();
                [one, other.slot]
            })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
    }

    proptest! {
        #[test]
        fn within_one_turn_everybody_with_a_weight_comes_once(weights in prop::collection::vec(0u32..3, 1..20), seed: u64) {
            let all = candidates(&weights);
            let mut state = SchedulerState::new(1, 20, seed);
            let mut expected: Vec<_> = all.iter().filter(|c| c.weight > 0).map(|c| c.id.slot).collect();
            prop_assume!(!expected.is_empty());
            for _ in 0..3 {
                let mut turn = sequence(&mut state, &all, expected.len());
                turn.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(&turn, &expected);
            }
        }
    }
}
