//! A knock-out: who has the lowest bid of many, known without a look at all of them.
//!
//! A binary tree in an array of twice as many numbers as there are players: node 1 is the root, nodes 2n and 2n + 1 are
//! below node n, and the leaves are the last half. Every node is the lower of the two below it. Where a bid changes, only
//! the matches between its leaf and the root are played again.

/// What loses against every bid.
pub(super) const NOBODY: u128 = u128::MAX;

/// Plays all matches; the last half of `nodes` has the bids.
pub(super) fn play(nodes: &mut [u128]) {
    for node in (1..nodes.len() / 2).rev() {
        nodes[node] = nodes[2 * node].min(nodes[2 * node + 1]);
    }
}

/// Another bid of `player`.
#[inline]
pub(super) fn bid(nodes: &mut [u128], player: usize, bid: u128) {
    let (mut node, mut best) = (nodes.len() / 2 + player, bid);
    nodes[node] = best;
    while node > 1 {
        best = best.min(nodes[node ^ 1]);
        node /= 2;
        nodes[node] = best;
    }
}

/// The lowest bid; [`NOBODY`] without players.
#[inline]
pub(super) fn lowest(nodes: &[u128]) -> u128 {
    nodes.get(1).copied().unwrap_or(NOBODY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_lowest_bid_of_any_number_of_players() {
        for players in 0..20 {
            let mut nodes = vec![NOBODY; 2 * players];
            nodes[players..].fill(500);
            play(&mut nodes);
            assert_eq!(lowest(&nodes), if players > 0 { 500 } else { NOBODY });
            for player in 0..players {
                bid(&mut nodes, player, 7);
                assert_eq!(lowest(&nodes), 7, "{player} of {players}");
                bid(&mut nodes, player, 1000 + player as u128);
            }
            assert_eq!(lowest(&nodes), if players > 0 { 1000 } else { NOBODY });
        }
    }
}
