//! `twos`, the power of two choices: two servers are drawn by weight, and the one with fewer connections for its weight
//! gets the next (net/netfilter/ipvs/ip_vs_twos.c). LVS counts in 32 bits, which overflow, and favours the head of its
//! list a little; this one does neither.

use super::lc::cost;
use super::least::is_less;
use super::pool::{Pool, Table};
use super::state::Servers;

/// The better of two candidates, the first drawn of equals.
pub(super) fn pick(pool: &Pool, servers: &Servers, mut draw: impl FnMut() -> u64) -> Option<usize> {
    let first = one(pool, servers, &mut draw)?;
    let second = one(pool, servers, &mut draw)?;
    let price = |place: usize| {
        let candidate = pool.candidates()[place];
        (cost(servers.load(candidate.id)), candidate.weight)
    };
    let ((cost, weight), (second_cost, second_weight)) = (price(first), price(second));
    Some(if is_less(second_cost, second_weight, cost, weight) { second } else { first })
}

/// A candidate that takes connections, at random by weight. When most of them take none, any that does.
fn one(pool: &Pool, servers: &Servers, draw: &mut impl FnMut() -> u64) -> Option<usize> {
    let Table::Shares(shares) = pool.table() else { return None };
    let takes = |&place: &usize| servers.takes(&pool.candidates()[place]);
    let drawn = (0..DRAWS_MAX).find_map(|_| shares.of(draw()).filter(takes));
    drawn.or_else(|| {
        let count = pool.candidates().len();
        let start = (draw() % count.max(1) as u64) as usize;
        (start..start + count).map(|place| place % count).find(takes)
    })
}

/// How often to draw again when the drawn one takes no connections.
const DRAWS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::SchedulerKind;
    use super::super::testing::{assert_fair, id, pick, pool, shares, state};

    const TWOS: SchedulerKind = SchedulerKind::Twos;

    #[test]
    fn a_million_picks_among_idle_servers_are_shared_by_weight_within_one_per_cent() {
        for weights in [&[1, 1, 1, 1][..], &[1, 2, 3, 4], &[100, 50, 0, 50]] {
            let shares = shares(&mut state(), &pool(TWOS, weights), 1_000_000);
            assert_fair(&shares, weights);
        }
    }

    #[test]
    fn open_connections_are_far_more_even_than_by_chance() {
        let (mut state, pool) = (state(), pool(TWOS, &[1; 8]));
        for _ in 0..80_000 {
            let slot = pick(&mut state, &pool).unwrap();
            state.opened(id(slot), true);
        }
        // By chance alone the spread would be some hundreds: the standard deviation is 94.
        let loads = (0..8).map(|slot| state.own(id(slot)).active);
        let (least, most) = (loads.clone().min().unwrap(), loads.max().unwrap());
        assert!(most - least <= 12, "{least} to {most}");
    }

    #[test]
    fn overloaded_servers_leave_the_rest_in_proportion() {
        let (mut state, pool) = (state(), pool(TWOS, &[2, 5, 1, 1]));
        state.set_available(id(1), false);
        let shares = shares(&mut state, &pool, 1_000_000);
        assert_fair(&shares, &[2, 0, 1, 1]);
    }

    #[test]
    fn one_server_left_among_many_is_found() {
        let mut weights = [1; 8];
        weights[0] = u32::MAX;
        let (mut state, pool) = (state(), pool(TWOS, &weights));
        (0..7).for_each(|slot| state.set_available(id(slot), false));
        assert!((0..100).all(|_| pick(&mut state, &pool) == Some(7)));
    }
}
