//! `fo`, fail-over: everything to the server with the highest weight, while it lives and takes connections
//! (net/netfilter/ipvs/ip_vs_fo.c).

use super::pool::Candidate;
use super::state::Servers;

/// The candidate with the highest weight; the earliest of equals.
pub(super) fn pick(candidates: &[Candidate], servers: &Servers) -> Option<usize> {
    heaviest(candidates, |candidate| servers.takes(candidate))
}

/// The heaviest of the candidates that are `eligible`.
#[inline]
pub(super) fn heaviest(candidates: &[Candidate], eligible: impl Fn(&Candidate) -> bool) -> Option<usize> {
    let mut best: Option<(usize, u32)> = None;
    for (place, candidate) in candidates.iter().enumerate().filter(|(_, candidate)| eligible(candidate)) {
        if best.is_none_or(|(_, most)| candidate.weight > most) {
            best = Some((place, candidate.weight));
        }
    }
    best.map(|(place, _)| place)
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
