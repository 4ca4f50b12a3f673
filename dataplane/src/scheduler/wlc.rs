//! `wlc`: the server with the fewest connections for its weight. An active connection counts as 256 inactive ones, as in
//! LVS (net/netfilter/ipvs/ip_vs_wlc.c).

use super::lc::cost;
use super::least::Price;
use super::state::Total;

/// The cost by the weight.
#[inline]
pub(super) fn price(weight: u32, load: Total) -> Price {
    Price::by_weight(cost(load), weight)
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

    /// Four workers see each other's connections as of at most 4 ms ago; 50 connections come in every millisecond and live
    /// 400 on average.
    #[test]
    fn four_workers_keep_four_equal_servers_within_five_per_cent() {
        const SERVERS: u32 = 4;
        let pool = pool(WLC, &[1; 4]);
        let mut workers: Vec<_> = (0..4).map(|seed| SchedulerState::new(1, 4, seed)).collect();
        let mut ending: Vec<Vec<(usize, u32)>> = vec![Vec::new(); 2200];
        let mut random =
            (0u64..).map(|number| crate::hash::mix(number ^ 0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03));
        let mut draw = |below: u64| (random.next().unwrap() % below) as usize;
        for now in 0..1500 {
            for (worker, slot) in std::mem::take(&mut ending[now]) {
                workers[worker].closed(id(slot), true);
            }
            for _ in 0..50 {
                let worker = draw(4);
                let slot = pick(&mut workers[worker], &pool).unwrap();
                workers[worker].opened(id(slot), true);
                ending[now + 200 + draw(400)].push((worker, slot));
            }
            let own: Vec<Vec<u32>> = workers
                .iter()
                .map(|worker| (0..SERVERS).map(|slot| worker.own(id(slot)).active).collect())
                .collect();
            let totals: Vec<u32> = (0..4).map(|slot| own.iter().map(|own| own[slot]).sum()).collect();
            if now % 4 == 3 {
                for (worker, own) in workers.iter_mut().zip(&own) {
                    for slot in 0..SERVERS {
                        let active = totals[slot as usize] - own[slot as usize];
                        worker.set_others(id(slot), Load { active, inactive: 0 });
                    }
                }
            }
            let mean = f64::from(totals.iter().sum::<u32>()) / 4.0;
            let is_near = |&total: &u32| (f64::from(total) - mean).abs() <= mean * 0.05;
            assert!(now < 600 || totals.iter().all(is_near), "{totals:?} at {now} ms");
        }
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
