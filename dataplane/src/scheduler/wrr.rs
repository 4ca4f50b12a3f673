//! `wrr`: each server in proportion to its weight, as evenly spread as it goes. LVS's own `wrr` sends bursts to heavy
//! servers; this one is smooth: every pick owes each server its weight, and the one owed most pays for the whole round.
//!
//! What servers are owed grows alike where weights are equal: which of those is owed most changes only when it is picked.
//! So servers of one weight hold a knock-out (`tree.rs`) among themselves, and a pick compares their winners.

use std::ops::Range;

use super::least::{PLACE, Seat, Tournaments};
use super::pool::{Candidate, Pool, Table};
use super::state::{ServerState, Servers, Turn, random};
use super::tree::{self, NOBODY};

/// The candidate that is owed most; the earlier one when two are owed the same. The pool holds tournament `number`.
pub(super) fn pick(
    pool: &Pool,
    number: usize,
    turn: &mut Turn,
    servers: &mut Servers,
    tournaments: &mut Tournaments,
    seed: u64,
) -> Option<usize> {
    let Table::Classes(classes) = pool.table() else { return None };
    let (nodes, is_new) = tournaments.nodes(number, pool);
    if is_new || turn.picks == PICKS_MAX {
        settle(pool, number, turn, servers, seed);
        for (leaf, candidate) in classes.leaves.iter().zip(pool.candidates()) {
            let nodes = &mut nodes[classes.nodes(leaf.class)];
            let (_, bids) = nodes.split_at_mut(nodes.len() / 2);
            bids[usize::from(leaf.player)] = bid(servers.tenant(candidate.id));
        }
        (0..classes.weights.len()).for_each(|class| tree::play(&mut nodes[classes.nodes(class as u16)]));
    }
    turn.picks += 1;
    let mut best: Option<(i64, usize)> = None;
    for (class, (weight, _)) in classes.weights.iter().enumerate() {
        let lowest = tree::lowest(&nodes[classes.nodes(class as u16)]);
        if lowest != NOBODY {
            let (credit, place) =
                (owed(lowest) + i64::from(*weight) * turn.picks, usize::from(lowest as u16));
            if best.is_none_or(|(most, first)| credit > most || credit == most && place < first) {
                best = Some((credit, place));
            }
        }
    }
    let (credit, place) = best?;
    let server = servers.tenant(pool.candidates()[place].id);
    (server.credit, server.picks) = (Some(credit - turn.total as i64), turn.picks);
    let leaf = classes.leaves[place];
    tree::bid(&mut nodes[classes.nodes(leaf.class)], leaf.player.into(), bid(server));
    Some(place)
}

/// Picks until what is owed is settled, so that it stays small.
const PICKS_MAX: i64 = 1 << 12;

/// A pool's candidates by weight.
#[derive(Debug)]
pub(super) struct Classes {
    /// The weights there are, with the candidates of each in the order of their weights.
    weights: Box<[(u32, Range<u16>)]>,
    /// Where each candidate is, by place.
    leaves: Box<[Leaf]>,
}

/// A candidate among those of its weight.
#[derive(Clone, Copy, Debug)]
struct Leaf {
    class: u16,
    player: u16,
}

impl Classes {
    pub(super) fn new(candidates: &[Candidate]) -> Self {
        let mut places: Vec<_> = (0..candidates.len()).collect();
        places.sort_by_key(|&place| candidates[place].weight);
        let mut weights: Vec<(u32, Range<u16>)> = Vec::new();
        let mut leaves = vec![Leaf { class: 0, player: 0 }; candidates.len()];
        for (at, place) in (0..).zip(places) {
            let weight = candidates[place].weight;
            match weights.last_mut() {
                Some((last, range)) if *last == weight => range.end = at + 1,
                _ => weights.push((weight, at..at + 1)),
            }
            let first = weights.last().map_or(0, |(_, range)| range.start);
            leaves[place] = Leaf { class: weights.len() as u16 - 1, player: at - first };
        }
        Self { weights: weights.into(), leaves: leaves.into() }
    }

    /// The nodes of the servers of one weight among those of the pool.
    #[inline]
    fn nodes(&self, class: u16) -> Range<usize> {
        let Range { start, end } = self.weights[usize::from(class)].1;
        2 * usize::from(start)..2 * usize::from(end)
    }
}

/// What a server bids: the more it was owed before all picks, the less.
#[inline]
fn bid(server: &ServerState) -> u128 {
    match (server.seat, server.credit) {
        (Some(seat), Some(credit)) if seat.weight > 0 => {
            let before = credit - i64::from(seat.weight) * server.picks;
            u128::from(before.abs_diff(i64::MAX)) << PLACE | u128::from(seat.place)
        }
        _ => NOBODY,
    }
}

/// What the bidder was owed before all picks.
#[inline]
fn owed(bid: u128) -> i64 {
    i64::MAX.wrapping_sub_unsigned((bid >> PLACE) as u64)
}

/// Makes known what each server is owed by now, who takes part from now on, and what those are owed that are new.
#[cold]
fn settle(pool: &Pool, number: usize, turn: &mut Turn, servers: &mut Servers, seed: u64) {
    let candidates = pool.candidates();
    let takers = candidates.iter().filter(|candidate| servers.takes(candidate));
    let (count, total) =
        takers.fold((0, 0), |(n, sum), candidate| (n + 1, sum + u64::from(candidate.weight)));
    for candidate in candidates {
        let server = servers.tenant(candidate.id);
        if let (Some(credit), Some(seat)) = (&mut server.credit, server.seat)
            && seat.pool == turn.pool
        {
            *credit += i64::from(seat.weight) * (turn.picks - server.picks);
        }
    }
    // Nobody is picked, and nothing changes, until somebody takes part.
    turn.picks = 0;
    turn.pool = pool.number();
    if total > 0 && turn.total != total {
        rescale(candidates, servers, turn.total, total);
        turn.total = total;
    }
    let (first, mut taker) = (random(seed, 0) % count.max(1), 0);
    for (place, candidate) in (0..).zip(candidates) {
        let takes = servers.takes(candidate);
        let server = servers.tenant(candidate.id);
        if takes {
            let behind = (taker + count - first) % count;
            taker += 1;
            // Less than a round's worth, and less down the list from where the sequence starts: less than one pick of
            // unfairness, and servers of equal weight take turns in the list's order.
            server.credit.get_or_insert((total - 1 - behind * total / count) as i64);
        }
        let weight = if takes { candidate.weight } else { 0 };
        server.seat = Some(Seat { tournament: number as u32, place, weight, pool: turn.pool });
        server.picks = 0;
    }
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
    use std::collections::{HashMap, HashSet};

    use super::super::testing::{pick, pool, pool_of, shares};
    use super::super::{SchedulerKind, SchedulerState};
    use super::*;
    use crate::server::ServerId;
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

    /// What `wrr` does, by a look at each server for each pick.
    #[derive(Default)]
    struct Linear {
        credits: HashMap<ServerId, i64>,
        total: u64,
    }

    impl Linear {
        fn pick(&mut self, candidates: &[Candidate], full: &HashSet<u32>, seed: u64) -> Option<u32> {
            let takes = |c: &&Candidate| c.weight > 0 && !full.contains(&c.id.slot);
            let takers: Vec<_> = candidates.iter().filter(takes).collect();
            let (count, total) =
                (takers.len() as u64, takers.iter().map(|c| u64::from(c.weight)).sum::<u64>());
            if total == 0 {
                return None;
            }
            if self.total != total {
                let (before, after) = (i128::from(self.total), i128::from(total));
                for id in candidates.iter().map(|candidate| candidate.id) {
                    if let Some(credit) = self.credits.get_mut(&id) {
                        *credit = (i128::from(*credit) * after / before).clamp(-after, after) as i64;
                    }
                }
                self.total = total;
            }
            let turn = random(random(random(seed, 0), 0), 0) % count;
            for (taker, candidate) in (0..).zip(&takers) {
                let start = || (total - 1 - (taker + count - turn) % count * total / count) as i64;
                *self.credits.entry(candidate.id).or_insert_with(start) += i64::from(candidate.weight);
            }
            let most = takers.iter().map(|candidate| self.credits[&candidate.id]).max()?;
            let picked = takers.iter().find(|candidate| self.credits[&candidate.id] == most)?.id;
            *self.credits.get_mut(&picked)? -= total as i64;
            Some(picked.slot)
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Picks(u32),
        Available(u32, bool),
        /// Weights by slot, where the list begins, and who has a new tenant.
        Reload(Vec<u32>, usize, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let weight = prop_oneof![4 => 0..4u32, 1 => Just(u32::MAX), 1 => any::<u32>()];
        prop_oneof![
            4 => (1..60u32).prop_map(Step::Picks),
            1 => Just(Step::Picks(PICKS_MAX as u32)),
            4 => (0..9u32, any::<bool>()).prop_map(|(slot, available)| Step::Available(slot, available)),
            2 => (prop::collection::vec(weight, 9), 0..9usize, 0..20u32)
                .prop_map(|(weights, first, fresh)| Step::Reload(weights, first, fresh)),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_the_picked_is_whom_a_look_at_each_finds(
            steps in prop::collection::vec(step(), 1..60), seed: u64,
        ) {
            let (mut state, mut linear) = (SchedulerState::new(1, 9, seed), Linear::default());
            let (mut all, mut full) = (pool(WRR, &[1; 9]), HashSet::new());
            let mut generations = [1; 9];
            for step in steps {
                match step {
                    Step::Picks(picks) => {
                        for _ in 0..picks {
                            let expected = linear.pick(all.candidates(), &full, seed);
                            prop_assert_eq!(pick(&mut state, &all), expected);
                        }
                    }
                    Step::Available(slot, available) => {
                        let id = ServerId { slot, generation: generations[slot as usize] };
                        state.set_available(id, available);
                        if available { full.remove(&slot) } else { full.insert(slot) };
                    }
                    Step::Reload(weights, first, fresh) => {
                        if let Some(generation) = generations.get_mut(fresh as usize) {
                            *generation += 1;
                            full.remove(&fresh);
                        }
                        let slots = (0..).zip(weights).zip(generations);
                        let mut candidates: Vec<_> = slots
                            .map(|((slot, weight), generation)| Candidate { id: ServerId { slot, generation }, weight })
                            .collect();
                        candidates.rotate_left(first);
                        all = pool_of(WRR, &candidates);
                    }
                }
            }
        }

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
