//! `nq`, never queue: a server without an active connection if there is one, be it slow; else as [`super::sed`]
//! (net/netfilter/ipvs/ip_vs_nq.c).

use super::least::Price;
use super::sed;
use super::state::Total;

/// Nothing at an idle server, whatever its weight; else the expected delay.
#[inline]
pub(super) fn price(weight: u32, load: Total) -> Price {
    if load.active == 0 { Price::LEAST } else { sed::price(weight, load) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{id, pick, pool, state};
    use super::super::{Load, SchedulerKind};

    #[test]
    fn every_idle_server_gets_a_connection_before_any_gets_a_second() {
        let (mut state, pool) = (state(), pool(SchedulerKind::Nq, &[1, 0, 9, 2]));
        for slot in [0, 2, 3] {
            assert_eq!(pick(&mut state, &pool), Some(slot), "in list order, whatever the weights");
            state.opened(id(slot), true);
        }
        // From here on as sed: delays 2, 2/9, 1.
        assert_eq!(pick(&mut state, &pool), Some(2));
    }

    #[test]
    fn a_server_with_inactive_connections_only_is_idle_and_one_busy_elsewhere_is_not() {
        let (mut state, pool) = (state(), pool(SchedulerKind::Nq, &[1, 9, 9]));
        state.set_others(id(0), Load { active: 1, inactive: 0 });
        state.opened(id(1), false);
        assert_eq!(pick(&mut state, &pool), Some(1));
    }
}
