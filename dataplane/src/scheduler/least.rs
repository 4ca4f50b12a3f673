//! What all least-something schedulers share: the cheapest candidate for its weight.

use super::pool::Candidate;
use super::state::{Servers, Total};

/// The candidate whose cost divided by its weight is least; the earliest in the list of equals. Those that take no
/// connections are left out.
#[inline]
pub(super) fn least(
    candidates: &[Candidate],
    servers: &Servers,
    cost: impl Fn(Total) -> u64,
) -> Option<usize> {
    cheapest(candidates, servers, |candidate, load| (cost(load), candidate.weight))
}

/// The candidate whose cost is least, whatever its weight.
#[inline]
pub(super) fn least_unweighted(
    candidates: &[Candidate],
    servers: &Servers,
    cost: impl Fn(Total) -> u64,
) -> Option<usize> {
    cheapest(candidates, servers, |_, load| (cost(load), 1))
}

#[inline]
fn cheapest(
    candidates: &[Candidate],
    servers: &Servers,
    price: impl Fn(&Candidate, Total) -> (u64, u32),
) -> Option<usize> {
    let mut best: Option<(usize, u64, u32)> = None;
    for (place, candidate) in candidates.iter().enumerate().filter(|(_, candidate)| servers.takes(candidate))
    {
        let (cost, weight) = price(candidate, servers.load(candidate.id));
        if best.is_none_or(|(_, least, its_weight)| is_less(cost, weight, least, its_weight)) {
            best = Some((place, cost, weight));
        }
    }
    best.map(|(place, ..)| place)
}

/// Whether one cost by weight is less than another one: without the division, in 128 bits, which do not overflow.
#[inline]
pub(super) const fn is_less(cost: u64, weight: u32, other_cost: u64, other_weight: u32) -> bool {
    cost as u128 * (other_weight as u128) < other_cost as u128 * (weight as u128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_compared_by_weight_and_without_overflow() {
        assert!(is_less(2, 3, 1, 1) && !is_less(1, 1, 2, 3));
        assert!(!is_less(2, 2, 1, 1) && !is_less(1, 1, 2, 2));
        assert!(is_less(u64::MAX - 1, u32::MAX, u64::MAX, u32::MAX));
    }
}
