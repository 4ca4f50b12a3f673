//! Routes: longest-prefix match from an address to its next hops, as the kernel's tables have it.

use std::net::IpAddr;
use std::sync::Arc;

use shunt_engine::steer::Prefix;

use crate::hash::mix;
use crate::neigh::HopId;

/// Where a route leads: one next hop, or several over which flows are spread (ECMP).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hops {
    /// All packets go one way.
    One(HopId),
    /// Flows are spread by weight. At least two hops, each of weight 1 at least.
    Several(Arc<[(HopId, u32)]>),
}

impl From<HopId> for Hops {
    fn from(hop: HopId) -> Self {
        Self::One(hop)
    }
}

impl FromIterator<(HopId, u32)> for Hops {
    /// # Panics
    /// Without any hop.
    fn from_iter<T: IntoIterator<Item = (HopId, u32)>>(hops: T) -> Self {
        let hops: Arc<[_]> = hops.into_iter().collect();
        match *hops {
            [] => panic!("a route leads somewhere"),
            [(hop, _)] => Self::One(hop),
            [..] => Self::Several(hops),
        }
    }
}

impl Hops {
    /// The first: where any will do.
    pub fn first(&self) -> HopId {
        match self {
            Self::One(hop) => *hop,
            Self::Several(hops) => hops[0].0,
        }
    }

    /// All of them with their weights.
    pub fn iter(&self) -> impl Iterator<Item = (HopId, u32)> + '_ {
        let (one, several) = match self {
            Self::One(hop) => (Some((*hop, 1)), &[][..]),
            Self::Several(hops) => (None, &hops[..]),
        };
        one.into_iter().chain(several.iter().copied())
    }

    /// The hop of the flow with the hash that `flow` computes, if it matters.
    #[inline]
    pub fn of(&self, flow: impl FnOnce() -> u64) -> HopId {
        match self {
            Self::One(hop) => *hop,
            Self::Several(hops) => rendezvous(hops, flow()),
        }
    }
}

/// Each hop draws a lot for the flow, and the best lot wins: when a hop goes or comes, its own flows move and no other's
/// (weighted rendezvous hashing). The lots are exponentially distributed, the weight being the rate, so that each hop
/// wins as often as its weight says.
fn rendezvous(hops: &[(HopId, u32)], flow: u64) -> HopId {
    let lot = |&(hop, weight): &(HopId, u32)| {
        // Twice: after one round the lots of two hops still resemble each other.
        let station = (u64::from(hop.0) + 1).wrapping_mul(SPREAD);
        let drawn = mix(mix(flow ^ SALT, station ^ SALT) ^ station, SPREAD);
        // 53 bits, and never 0.
        let uniform = ((drawn >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        (-uniform.ln() / f64::from(weight.max(1)), hop)
    };
    let best = hops.iter().map(lot).min_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map_or(hops[0].0, |(_, hop)| hop)
}

/// Arbitrary odd constants (digits of √2 and of the golden ratio).
const SALT: u64 = 0x6a09_e667_f3bc_c909;
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The kernel's routes in a form that is looked up when a connection opens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Longest prefix first. A director has few routes; a full table would want a trie.
    entries: Vec<(Prefix, Hops)>,
}

impl Routes {
    /// Builds the table. Of two equal prefixes the first wins: give them in order of the kernel's metric.
    pub fn new(mut entries: Vec<(Prefix, Hops)>) -> Self {
        entries.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Self { entries }
    }

    /// The next hops towards `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<&Hops> {
        self.entries.iter().find(|(prefix, _)| prefix.contains(address)).map(|(_, hops)| hops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, len) = text.split_once('/').unwrap();
        Prefix::new(address.parse().unwrap(), len.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_longest_prefix_wins_and_equal_ones_keep_their_order() {
        let routes = Routes::new(vec![
            (prefix("0.0.0.0/0"), HopId(1).into()),
            (prefix("10.0.0.0/8"), HopId(2).into()),
            (prefix("10.1.0.0/16"), HopId(3).into()),
            (prefix("10.0.0.0/8"), HopId(4).into()),
            (prefix("::/0"), HopId(5).into()),
        ]);
        let hop = |address: &str| routes.lookup(address.parse().unwrap()).map(Hops::first);
        assert_eq!(hop("10.1.2.3"), Some(HopId(3)));
        assert_eq!(hop("10.2.2.3"), Some(HopId(2)));
        assert_eq!(hop("192.0.2.1"), Some(HopId(1)));
        assert_eq!(hop("2001:db8::1"), Some(HopId(5)));
        assert_eq!(Routes::default().lookup("10.0.0.1".parse().unwrap()), None);
    }

    /// What the keyed hash of a flow looks like.
    fn flows() -> impl Iterator<Item = u64> {
        (0..100_000_u64).map(|flow| mix(mix(flow + 1, 0x1319_8a2e_0370_7345) ^ SPREAD, SALT))
    }

    fn several(hops: &[(u16, u32)]) -> Hops {
        hops.iter().map(|&(hop, weight)| (HopId(hop), weight)).collect()
    }

    #[test]
    fn flows_are_spread_by_weight_and_each_keeps_its_hop() {
        let hops = several(&[(7, 1), (3, 2), (300, 5)]);
        let mut counts = [0_u32; 301];
        for flow in flows() {
            let hop = hops.of(|| flow);
            assert_eq!(hops.of(|| flow), hop);
            counts[usize::from(hop.0)] += 1;
        }
        for (hop, weight) in hops.iter() {
            let expected = 100_000 * weight / 8;
            let count = counts[usize::from(hop.0)];
            assert!(count.abs_diff(expected) <= expected / 25, "{hop:?}: {count} of {expected}");
        }
        assert_eq!(several(&[(7, 4)]).of(|| panic!("one hop needs no hash")), HopId(7));
    }

    #[test]
    fn when_a_hop_goes_its_flows_move_and_no_others() {
        let all = several(&[(1, 1), (2, 1), (3, 3)]);
        let left = several(&[(3, 3), (1, 1)]);
        let (mut moved, mut to) = (0, [0; 4]);
        for flow in flows() {
            let (before, after) = (all.of(|| flow), left.of(|| flow));
            if before == HopId(2) {
                moved += 1;
                to[usize::from(after.0)] += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert!((18_000..22_000).contains(&moved), "{moved}");
        assert!(to[1] > 0 && to[3] > 2 * to[1], "the others share them by weight: {to:?}");
    }
}
