//! `wrr`: each server in proportion to its weight, as evenly spread as it goes. LVS's own `wrr` sends bursts to heavy
//! servers; this one is smooth: every pick owes each server its weight, and the one owed most pays for the whole round.

use super::pool::Candidate;
use super::state::{Servers, Turn, random};

/// The candidate that is owed most; the earlier one when two are owed the same.
pub(super) fn pick(
    candidates: &[Candidate],
    state: &mut Turn,
    servers: &mut Servers,
    seed: u64,
) -> Option<usize> {
    let takers = candidates.iter().filter(|candidate| servers.takes(candidate));
    let (count, total) =
        takers.fold((0, 0), |(n, sum), candidate| (n + 1, sum + u64::from(candidate.weight)));
    if total == 0 {
        return None;
    }
    if state.total != total {
        rescale(candidates, servers, state.total, total);
        state.total = total;
    }
    let mut best: Option<(usize, i64)> = None;
    let (turn, mut taker) = (random(seed, 0) % count, 0);
    for (place, candidate) in candidates.iter().enumerate() {
        if !servers.takes(candidate) {
            continue;
        }
        let server = servers.tenant(candidate.id);
        // Less than a round's worth, and less down the list from where the sequence starts: less than one pick of
        // unfairness, and servers of equal weight take turns in the list's order.
        let start = || {
            let behind = (taker + count - turn) % count;
            (total - 1 - behind * total / count) as i64
        };
        let credit = server.credit.unwrap_or_else(start) + i64::from(candidate.weight);
        server.credit = Some(credit);
        taker += 1;
        if best.is_none_or(|(_, most)| credit > most) {
            best = Some((place, credit));
        }
    }
    let (place, credit) = best?;
    servers.tenant(candidates[place].id).credit = Some(credit - total as i64);
    state.last = Some((candidates[place].id, place));
    Some(place)
}

/// Keeps what servers are owed in proportion when the sum of weights changes: a debt of many rounds at large weights
/// must not starve a server for ages at small ones.
fn rescale(candidates: &[Candidate], servers: &mut Servers, before: u64, total: u64) {
    for candidate in candidates {
        let server = servers.tenant(candidate.id);
        server.credit = server.credit.filter(|_| before > 0).map(|credit| {
            let scaled = i128::from(credit) * i128::from(total) / i128::from(before);
            scaled.clamp(-i128::from(total), i128::from(total)) as i64
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{pick, pool, shares};
    use super::super::{SchedulerKind, SchedulerState};
    use proptest::prelude::*;

    const WRR: SchedulerKind = SchedulerKind::Wrr;

    /// The longest run of picks of one server.
    fn burst_max(weights: &[u32], picks: usize) -> usize {
        let pool = pool(WRR, weights);
        let mut state = SchedulerState::new(1, weights.len(), 3);
        let picks: Vec<_> = (0..picks).map(|_| pick(&mut state, &pool).unwrap()).collect();
        picks.chunk_by(|a, b| a == b).map(<[u32]>::len).max().unwrap()
    }

    #[test]
    fn servers_of_equal_weight_take_turns_in_the_lists_order_from_wherever_it_starts() {
        for seed in 0..50 {
            for weights in [vec![2; 5], vec![1, 0, 1, 1], vec![65_535; 3]] {
                let pool = pool(WRR, &weights);
                let mut state = SchedulerState::new(1, weights.len(), seed);
                let picks: Vec<_> = (0..20).map(|_| pick(&mut state, &pool).unwrap()).collect();
                let mut turns: Vec<_> = pool.candidates().iter().filter(|c| c.weight > 0).collect();
                let first = turns.iter().position(|c| c.id.slot == picks[0]).unwrap();
                turns.rotate_left(first);
                let expected: Vec<_> = turns.iter().cycle().take(20).map(|c| c.id.slot).collect();
                assert_eq!(picks, expected, "seed {seed}, {weights:?}");
            }
        }
    }

    #[test]
    fn a_million_picks_are_shared_by_weight_within_one_per_cent() {
        for weights in [vec![1, 2, 3, 4], vec![65535, 1, 100, 0], vec![7; 9], vec![5, 1, 1]] {
            let total: u32 = weights.iter().sum();
            let mut state = SchedulerState::new(1, 9, 5);
            let shares = shares(&mut state, &pool(WRR, &weights), 1_000_000);
            for (&share, &weight) in shares.iter().zip(&weights) {
                let expected = 1e6 * f64::from(weight) / f64::from(total);
                assert!((f64::from(share) - expected).abs() <= 2.0, "{weights:?}: {shares:?}");
            }
        }
    }

    #[test]
    fn picks_are_spread_and_do_not_come_in_bursts() {
        assert_eq!(burst_max(&[1, 1, 1], 1000), 1);
        assert_eq!(burst_max(&[100, 100], 1000), 1);
        // LVS would send 50 in a row to the first.
        assert!(burst_max(&[100, 50], 10_000) <= 2);
        assert!(burst_max(&[100, 99, 98], 10_000) <= 2);
        // Five of seven cannot be spread better than in runs of a few.
        assert!(burst_max(&[5, 1, 1], 10_000) <= 4);
    }

    #[test]
    fn a_changed_weight_is_in_force_at_once_whatever_the_weights_were() {
        for (before, after) in
            [([60_000, 60_000, 1], [1, 1, 1]), ([1, 1, 1], [60_000, 60_000, 1]), ([0, 5, 9], [3, 3, 3])]
        {
            let mut state = SchedulerState::new(1, 3, 5);
            shares(&mut state, &pool(WRR, &before), 1017);
            let picks = 3000;
            let shares = shares(&mut state, &pool(WRR, &after), picks);
            let total: u32 = after.iter().sum();
            for (share, weight) in shares.into_iter().zip(after) {
                let expected = f64::from(picks) * f64::from(weight) / f64::from(total);
                assert!(
                    (f64::from(share) - expected).abs() <= 3.0,
                    "{before:?} → {after:?}: {share} for {weight}"
                );
            }
        }
    }

    #[test]
    fn a_reload_that_changes_nothing_keeps_the_sequence() {
        let all = pool(WRR, &[3, 2, 1]);
        let (mut one, mut other) = (SchedulerState::new(1, 3, 5), SchedulerState::new(1, 3, 5));
        for _ in 0..100 {
            let reloaded = pool(WRR, &[3, 2, 1]);
            assert_eq!(pick(&mut one, &all), pick(&mut other, &reloaded));
        }
    }

    proptest! {
        #[test]
        fn at_every_moment_each_server_has_its_share_within_a_pick_per_server(
            weights in prop::collection::vec(0u32..200, 1..12), seed: u64,
        ) {
            let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
            prop_assume!(total > 0);
            let all = pool(WRR, &weights);
            let mut state = SchedulerState::new(1, 12, seed);
            let mut picked = vec![0u64; weights.len()];
            for round in 1..=500u64 {
                picked[pick(&mut state, &all).unwrap() as usize] += 1;
                for (&count, &weight) in picked.iter().zip(&weights) {
                    let expected = round as f64 * f64::from(weight) / total as f64;
                    let allowed = if weight == 0 { 0.0 } else { weights.len() as f64 };
                    prop_assert!((count as f64 - expected).abs() <= allowed, "{weights:?} {picked:?} at {round}");
                }
            }
        }
    }
}
