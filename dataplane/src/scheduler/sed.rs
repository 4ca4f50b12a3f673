//! `sed`, shortest expected delay: the server that would have the fewest active connections for its weight with the new
//! one among them (net/netfilter/ipvs/ip_vs_sed.c). Connections that are not active do not count.

use super::least::Price;
use super::state::Total;

/// The delay.
#[inline]
pub(super) fn price(weight: u32, load: Total) -> Price {
    Price::by_weight(load.active + 1, weight)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{id, pick, pool, state};
    use super::super::{Load, SchedulerKind};

    #[test]
    fn the_sequence_is_that_of_lvs() {
        let (mut state, pool) = (state(), pool(SchedulerKind::Sed, &[1, 2, 3]));
        // (active + 1) / weight by hand, ties to the earlier: the delays before each pick are
        // 1 ½ ⅓ · 1 ½ ⅔ · 1 1 ⅔ · 1 1 1 · 2 1 1 · 2 3/2 1 · and after six picks it begins again, one connection up.
        for round in 0..5 {
            for slot in [2, 1, 2, 0, 1, 2] {
                assert_eq!(pick(&mut state, &pool), Some(slot), "round {round}");
                state.opened(id(slot), true);
            }
        }
    }

    #[test]
    fn inactive_connections_do_not_count() {
        let (mut state, pool) = (state(), pool(SchedulerKind::Sed, &[1, 1]));
        state.set_others(id(0), Load { active: 0, inactive: 1_000_000 });
        assert_eq!(pick(&mut state, &pool), Some(0));
        state.set_others(id(0), Load { active: 1, inactive: 0 });
        assert_eq!(pick(&mut state, &pool), Some(1));
    }
}
