//! `lblc`, locality-based least connections: a destination keeps its server while that can cope, else it moves to the one
//! with the fewest connections for its weight. For caches, as `dh` (net/netfilter/ipvs/ip_vs_lblc.c). Each worker
//! remembers destinations for itself.

use shunt_engine::Instant;

use super::destinations::Destination;
use super::pool::{Candidate, Pool};
use super::state::Servers;

/// The destination's candidate, or the `cheapest` by [`super::wlc`] from now on.
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
    if let Some(&place) = destination.places(pool).first()
        && servers.takes(&candidates[place])
        && !is_overloaded(&candidates[place], servers, has_bored)
    {
        return Some(place);
    }
    let place = cheapest?;
    destination.replace(candidates[place], place, now);
    Some(place)
}

/// Whether a server has more active connections than its weight while another one has less than half of its own.
pub(super) fn is_overloaded(candidate: &Candidate, servers: &Servers, has_bored: impl Fn() -> bool) -> bool {
    servers.load(candidate.id).active > u64::from(candidate.weight) && has_bored()
}

#[cfg(test)]
mod tests {
    use super::super::SchedulerKind;
    use super::super::testing::{id, pool, request_to, state};
    use crate::service::ServiceId;

    #[test]
    fn a_destination_keeps_its_server_until_that_is_overloaded_and_another_is_bored() {
        let (mut state, pool) = (state(), pool(SchedulerKind::Lblc, &[4, 4]));
        state.destinations.allocate();
        let mut pick = |vip| {
            let picked = state.pick(ServiceId(0), &pool, &request_to(1, vip)).unwrap();
            state.opened(picked, true);
            picked.slot
        };
        // The second destination goes to the server without connections. Five of a weight of four are too many once the
        // other one has less than two.
        assert_eq!([pick(1), pick(1), pick(1), pick(1), pick(1)], [0; 5]);
        assert_eq!(pick(1), 1, "0 has five, 1 has none");
        assert_eq!([pick(1), pick(2)], [1, 1]);
        assert_eq!([pick(1), pick(1), pick(1), pick(1)], [1; 4], "nobody is bored: it stays");
    }

    #[test]
    fn a_destination_leaves_a_server_that_is_drained_removed_or_full() {
        let mut state = state();
        state.destinations.allocate();
        let pick = |state: &mut super::super::SchedulerState, weights: &[u32]| {
            state.pick(ServiceId(0), &pool(SchedulerKind::Lblc, weights), &request_to(1, 9)).unwrap().slot
        };
        assert_eq!(pick(&mut state, &[1, 1, 1]), 0);
        state.opened(id(0), true);
        assert_eq!(pick(&mut state, &[2, 1, 1]), 0);
        assert_eq!(pick(&mut state, &[0, 1, 1]), 1);
        assert_eq!(pick(&mut state, &[9, 1, 1]), 1, "it does not go back by itself");
        state.set_available(id(1), false);
        assert_eq!(pick(&mut state, &[1, 1, 1]), 2);
        assert_eq!(pick(&mut state, &[1, 1]), 0, "2 is gone");
    }
}
