//! `wlc`: the server with the fewest connections for its weight. An active connection counts as 256 inactive ones, as in
//! LVS (net/netfilter/ipvs/ip_vs_wlc.c).

use super::{ServerState, Servers};
use crate::service::Candidate;

/// The candidate whose cost divided by its weight is least; the earliest of equals.
pub(super) fn pick(candidates: &[Candidate], servers: &mut Servers) -> Option<usize> {
    let mut best: Option<(usize, u128, u128)> = None;
    for (place, candidate) in candidates.iter().enumerate().filter(|(_, candidate)| candidate.weight > 0) {
        let (cost, weight) = (cost(servers.tenant(candidate.id)), u128::from(candidate.weight));
        // cost / weight < least / its weight, without the division; 42 + 32 bits do not overflow.
        if best.is_none_or(|(_, least, its_weight)| cost * its_weight < least * weight) {
            best = Some((place, cost, weight));
        }
    }
    best.map(|(place, ..)| place)
}

/// Cost of a server's connections, this worker's and the others'.
fn cost(server: &ServerState) -> u128 {
    let active = u128::from(server.own.active) + u128::from(server.others.active);
    let inactive = u128::from(server.own.inactive) + u128::from(server.others.inactive);
    256 * active + inactive
}

#[cfg(test)]
mod tests {
    use super::super::tests::candidates;
    use super::super::{Load, SchedulerKind, SchedulerState};
    use crate::service::ServiceId;
    use proptest::prelude::*;

    const WLC: SchedulerKind = SchedulerKind::Wlc;

    #[test]
    fn ties_keep_the_earlier_candidate() {
        let mut state = SchedulerState::new(1, 3, 9);
        assert_eq!(state.pick(ServiceId(0), WLC, &candidates(&[1, 5, 9])), Some(0));
        assert_eq!(state.pick(ServiceId(0), WLC, &candidates(&[0, 5, 9])), Some(1));
    }

    #[test]
    fn open_connections_end_up_in_proportion_to_the_weights() {
        let all = candidates(&[1, 2, 5]);
        let mut state = SchedulerState::new(1, 3, 9);
        for _ in 0..8000 {
            let place = state.pick(ServiceId(0), WLC, &all).unwrap();
            state.opened(all[place].id, true);
        }
        for candidate in &all {
            assert!(state.own(candidate.id).active.abs_diff(candidate.weight * 1000) <= 2);
        }
    }

    #[test]
    fn an_active_connection_weighs_as_much_as_256_inactive_ones() {
        let all = candidates(&[1, 1]);
        let mut state = SchedulerState::new(1, 2, 9);
        state.opened(all[0].id, true);
        (0..255).for_each(|_| state.opened(all[1].id, false));
        assert_eq!(state.pick(ServiceId(0), WLC, &all), Some(1));
        state.opened(all[1].id, false);
        state.opened(all[1].id, false);
        assert_eq!(state.pick(ServiceId(0), WLC, &all), Some(0));
    }

    #[test]
    fn other_workers_connections_count() {
        let all = candidates(&[1, 1]);
        let mut state = SchedulerState::new(1, 2, 9);
        state.set_others(all[0].id, Load { active: 3, inactive: 0 });
        state.opened(all[1].id, true);
        assert_eq!(state.pick(ServiceId(0), WLC, &all), Some(1));
    }

    proptest! {
        #[test]
        fn nobody_is_cheaper_than_the_picked(
            servers in prop::collection::vec((0u32..=u32::MAX, 0u32..=u32::MAX, 0u32..=u32::MAX, 0u32..4), 1..10),
        ) {
            let weights: Vec<_> =
                servers.iter().map(|&(weight, _, _, small)| if small == 0 { 0 } else { weight }).collect();
            let all = candidates(&weights);
            let mut state = SchedulerState::new(1, 10, 9);
            for (candidate, &(_, active, inactive, _)) in all.iter().zip(&servers) {
                state.set_others(candidate.id, Load { active, inactive });
            }
            let price = |i: usize| {
                let (_, active, inactive, _) = servers[i];
                (256 * u128::from(active) + u128::from(inactive), u128::from(weights[i]))
            };
            let picked = state.pick(ServiceId(0), WLC, &all);
            let eligible: Vec<_> = (0..all.len()).filter(|&i| weights[i] > 0).collect();
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
