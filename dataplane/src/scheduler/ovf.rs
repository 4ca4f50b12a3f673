//! `ovf`, overflow: the server with the highest weight until it has more active connections than its weight, then the
//! next (net/netfilter/ipvs/ip_vs_ovf.c).

use super::fo;
use super::least::Price;
use super::state::Total;

/// As [`fo`]; `None` when the server is full.
#[inline]
pub(super) fn price(weight: u32, load: Total) -> Option<Price> {
    (load.active <= u64::from(weight)).then(|| fo::price(weight))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{id, pick, pool, state};
    use super::super::{Load, SchedulerKind};

    #[test]
    fn the_heaviest_is_filled_first_and_one_beyond_its_weight_as_in_lvs() {
        let (mut state, pool) = (state(), pool(SchedulerKind::Ovf, &[1, 3, 0, 2]));
        for slot in [1, 1, 1, 1, 3, 3, 3, 0, 0] {
            assert_eq!(pick(&mut state, &pool), Some(slot));
            state.opened(id(slot), true);
        }
        assert_eq!(pick(&mut state, &pool), None);
        state.changed(id(3), false);
        assert_eq!(pick(&mut state, &pool), Some(3), "only active connections count");
    }

    #[test]
    fn connections_on_other_workers_fill_a_server_too() {
        let (mut state, pool) = (state(), pool(SchedulerKind::Ovf, &[1, 3]));
        state.set_others(id(1), Load { active: 4, inactive: 0 });
        assert_eq!(pick(&mut state, &pool), Some(0));
    }
}
