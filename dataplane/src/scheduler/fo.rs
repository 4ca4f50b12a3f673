//! `fo`, fail-over: everything to the server with the highest weight, while it lives and takes connections
//! (net/netfilter/ipvs/ip_vs_fo.c).

use super::least::Price;

/// What it lacks to the highest weight there may be.
#[inline]
pub(super) fn price(weight: u32) -> Price {
    Price::of(u64::from(u32::MAX - weight))
}

#[cfg(test)]
mod tests {
    use super::super::SchedulerKind;
    use super::super::testing::{id, pick, pool, state};

    #[test]
    fn the_heaviest_gets_everything_until_it_is_full_or_drained() {
        let mut state = state();
        for _ in 0..3 {
            assert_eq!(pick(&mut state, &pool(SchedulerKind::Fo, &[2, 7, 7, 1])), Some(1));
            state.opened(id(1), true);
        }
        state.set_available(id(1), false);
        assert_eq!(pick(&mut state, &pool(SchedulerKind::Fo, &[2, 7, 7, 1])), Some(2));
        assert_eq!(pick(&mut state, &pool(SchedulerKind::Fo, &[2, 7, 0, 1])), Some(0));
    }
}
