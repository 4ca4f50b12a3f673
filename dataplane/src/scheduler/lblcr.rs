//! `lblcr`, locality-based least connections with replication: as [`super::lblc`], but a destination whose servers cannot
//! cope gets one more, and has one less for every day without a change (net/netfilter/ipvs/ip_vs_lblcr.c). Each worker
//! remembers destinations for itself.

use shunt_engine::Instant;

use super::destinations::{Destination, EXPIRATION};
use super::lblc::is_overloaded;
use super::lc::cost;
use super::least::is_less;
use super::pool::Pool;
use super::state::Servers;

/// The least loaded of the destination's candidates, or from now on one more: the `cheapest` by [`super::wlc`].
pub(super) fn pick(
    pool: &Pool,
    servers: &Servers,
    destination: Option<&mut Destination>,
    cheapest: Option<usize>,
    has_bored: impl Fn() -> bool,
    now: Instant,
) -> Option<usize> {
    let candidates = pool.candidates();
    let Some(destination) = destination else { return cheapest };
    let places = destination.places(pool);
    let lighter = |&a: &usize, &b: &usize| {
        let price = |place: usize| (cost(servers.load(candidates[place].id)), candidates[place].weight);
        let ((cost, weight), (other_cost, other_weight)) = (price(a), price(b));
        is_less(cost, weight, other_cost, other_weight)
    };
    let takers = places.iter().filter(|&&place| servers.takes(&candidates[place]));
    let least = takers.copied().reduce(|best, place| if lighter(&place, &best) { place } else { best });
    if places.len() > 1 && now.since(destination.changed) > EXPIRATION {
        let most =
            places.iter().copied().reduce(|worst, place| if lighter(&worst, &place) { place } else { worst });
        if let Some(most) = most {
            destination.remove(candidates[most].id, now);
        }
    }
    if let Some(place) = least
        && !is_overloaded(&candidates[place], servers, has_bored)
    {
        return Some(place);
    }
    let place = cheapest?;
    destination.add(candidates[place], place, now);
    Some(place)
}

#[cfg(test)]
mod tests {
    use shunt_engine::{Duration, Instant};

    use super::super::mapping::wide;
    use super::super::testing::{id, pool, request_at, state};
    use super::super::{Load, SchedulerKind};
    use crate::service::ServiceId;
    use crate::tuple::V4;

    #[test]
    fn a_destination_spreads_over_more_servers_under_load_and_shrinks_a_day_later() {
        let (mut state, pool) = (state(), pool(SchedulerKind::Lblcr, &[2, 2, 2]));
        state.destinations.allocate();
        let mut now = Instant::ZERO + Duration::from_secs(1);
        let load = |active| Load { active, inactive: 0 };
        let pick = |state: &mut super::super::SchedulerState, now| {
            state.pick(ServiceId(0), &pool, &request_at(1, 9, now)).unwrap().slot
        };
        assert_eq!(pick(&mut state, now), 0);
        state.set_others(id(0), load(3));
        assert_eq!(pick(&mut state, now), 1, "0 is overloaded: 1 is added");
        state.set_others(id(1), load(1));
        assert_eq!(pick(&mut state, now), 1, "the less loaded of both");
        state.set_others(id(1), load(4));
        assert_eq!(pick(&mut state, now), 2, "0 is the better one but overloaded, 2 is bored");
        state.set_others(id(0), load(0));
        state.set_others(id(1), load(1));
        state.set_others(id(2), load(1));
        assert_eq!(pick(&mut state, now), 0, "it is one of three");
        // A day later the most loaded of three goes, another day later the next.
        state.set_others(id(0), load(2));
        for left in [2, 1] {
            now += Duration::from_secs(12 * 3600);
            pick(&mut state, now);
            now += Duration::from_secs(12 * 3600 + 1);
            pick(&mut state, now);
            let known = state.destinations.entry(ServiceId(0), wide(V4(9)), now).unwrap().places(&pool);
            assert_eq!(known.len(), left, "{known:?}");
            assert!(!known.contains(&0), "0 was the most loaded: {known:?}");
        }
    }
}
