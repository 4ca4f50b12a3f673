//! `wlc`: the server with the fewest connections for its weight. An active connection counts as 256 inactive ones, as in
//! LVS (net/netfilter/ipvs/ip_vs_wlc.c).

use super::lc::cost;
use super::least::least;
use super::pool::Candidate;
use super::state::Servers;

/// The candidate whose cost divided by its weight is least; the earliest of equals.
pub(super) fn pick(candidates: &[Candidate], servers: &Servers) -> Option<usize> {
    least(candidates, servers, cost)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{id, pick, pool};
    use super::super::{Load, SchedulerKind, SchedulerState};
    use proptest::prelude::*;

    const WLC: SchedulerKind = SchedulerKind::Wlc;

    #[test]
    fn ties_keep_the_earlier_candidate() {
        let mut state = SchedulerState::new(1, 3, 9);
        assert_eq!(pick(&mut state, &pool(WLC, &[1, 5, 9])), Some(0));
        assert_eq!(pick(&mut state, &pool(WLC, &[0, 5, 9])), Some(1));
    }

    #[test]
    fn open_connections_end_up_in_proportion_to_the_weights() {
        let all = pool(WLC, &[1, 2, 5]);
        let mut state = SchedulerState::new(1, 3, 9);
        for _ in 0..8000 {
            let place = pick(&mut state, &all).unwrap();
            state.opened(id(place), true);
        }
        for candidate in all.candidates() {
            assert!(state.own(candidate.id).active.abs_diff(candidate.weight * 1000) <= 2);
        }
    }

    #[test]
    fn an_active_connection_weighs_as_much_as_256_inactive_ones() {
        let all = pool(WLC, &[1, 1]);
        let mut state = SchedulerState::new(1, 2, 9);
        state.opened(id(0), true);
        (0..255).for_each(|_| state.opened(id(1), false));
        assert_eq!(pick(&mut state, &all), Some(1));
        state.opened(id(1), false);
        state.opened(id(1), false);
        assert_eq!(pick(&mut state, &all), Some(0));
    }

    #[test]
    fn other_workers_connections_count() {
        let all = pool(WLC, &[1, 1]);
        let mut state = SchedulerState::new(1, 2, 9);
        state.set_others(id(0), Load { active: 3, inactive: 0 });
        state.opened(id(1), true);
        assert_eq!(pick(&mut state, &all), Some(1));
    }

    proptest! {
        #[test]
        fn nobody_is_cheaper_than_the_picked(
            servers in prop::collection::vec((0u32..=u32::MAX, 0u32..=u32::MAX, 0u32..=u32::MAX, 0u32..4), 1..10),
        ) {
            let weights: Vec<_> =
                servers.iter().map(|&(weight, _, _, small)| if small == 0 { 0 } else { weight }).collect();
            let all = pool(WLC, &weights);
            let mut state = SchedulerState::new(1, 10, 9);
            for (candidate, &(_, active, inactive, _)) in all.candidates().iter().zip(&servers) {
                state.set_others(candidate.id, Load { active, inactive });
            }
            let price = |i: usize| {
                let (_, active, inactive, _) = servers[i];
                (256 * u128::from(active) + u128::from(inactive), u128::from(weights[i]))
            };
            let picked = pick(&mut state, &all).map(|slot| slot as usize);
            let eligible: Vec<_> = (0..weights.len()).filter(|&i| weights[i] > 0).collect();
            prop_assert_eq!(picked.is_some(), !eligible.is_empty());
            if let Some(picked) = picked {
                let (cost, weight) = price(picked);
                for other in eligible {
                    let (its_cost, its_weight) = price(other);
                    let ahead = cost * its_weight < its_cost * weight;
                    let equal = cost * its_weight == its_cost * weight;
                    prop_assert!(ahead || equal && picked <= other);
                }
            }
        }
    }
}
