//! `lc`: the server with the fewest connections, weights ignored except 0 (net/netfilter/ipvs/ip_vs_lc.c).

use super::least::Price;
use super::state::Total;

/// The cost, whatever the weight.
#[inline]
pub(super) fn price(load: Total) -> Price {
    Price::of(cost(load))
}

/// What a server's connections cost it: an active one as much as 256 others, as in LVS (ip_vs_dest_conn_overhead).
#[inline]
pub(super) fn cost(load: Total) -> u64 {
    256 * load.active + load.inactive
}

#[cfg(test)]
mod tests {
    use super::super::testing::{id, pick, pool, state};
    use super::super::{Load, SchedulerKind};

    #[test]
    fn connections_are_shared_evenly_whatever_the_weights() {
        let (mut state, pool) = (state(), pool(SchedulerKind::Lc, &[1, 0, 9]));
        for round in 0..10 {
            for slot in [0, 2] {
                assert_eq!(pick(&mut state, &pool), Some(slot), "round {round}");
                state.opened(id(slot), true);
            }
        }
    }

    #[test]
    fn an_active_connection_costs_as_much_as_256_inactive_ones() {
        let (mut state, pool) = (state(), pool(SchedulerKind::Lc, &[1, 1]));
        state.set_others(id(0), Load { active: 1, inactive: 0 });
        state.set_others(id(1), Load { active: 0, inactive: 255 });
        assert_eq!(pick(&mut state, &pool), Some(1));
        state.set_others(id(1), Load { active: 0, inactive: 256 });
        assert_eq!(pick(&mut state, &pool), Some(0), "a tie keeps the earlier one");
        state.set_others(id(0), Load { active: u32::MAX, inactive: u32::MAX });
        state.set_others(id(1), Load { active: u32::MAX, inactive: u32::MAX - 1 });
        assert_eq!(pick(&mut state, &pool), Some(1));
    }
}
