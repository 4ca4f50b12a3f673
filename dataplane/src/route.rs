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
    v4: Ranges,
    v6: Ranges,
}

/// The addresses of one family, cut wherever a prefix begins or ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges {
    /// Where each range begins, in order. What lies before the first has no route.
    starts: Vec<u128>,
    /// Where each leads.
    hops: Vec<Option<Hops>>,
}

impl Routes {
    /// Builds the table. Of two equal prefixes the first wins: give them in order of the kernel's metric.
    pub fn new(entries: Vec<(Prefix, Hops)>) -> Self {
        let (v4, v6) = entries.into_iter().partition(|(prefix, _)| prefix.address().is_ipv4());
        Self { v4: Ranges::new(v4), v6: Ranges::new(v6) }
    }

    /// The next hops towards `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<&Hops> {
        match address {
            IpAddr::V4(v4) => self.v4.lookup(v4.to_bits().into()),
            IpAddr::V6(v6) => self.v6.lookup(v6.to_bits()),
        }
    }
}

impl Ranges {
    fn new(mut entries: Vec<(Prefix, Hops)>) -> Self {
        // What is around comes before what is in it, and so the last that has begun and not ended is the longest.
        entries.sort_by_key(|(prefix, _)| (bits(prefix.address()), prefix.len()));
        entries.dedup_by_key(|(prefix, _)| *prefix);
        let mut ranges = Self::default();
        let mut around: Vec<(u128, Hops)> = Vec::new();
        for (prefix, hops) in entries {
            let first = bits(prefix.address());
            ranges.leave(&mut around, Some(first));
            ranges.push(first, Some(hops.clone()));
            let width = if prefix.address().is_ipv4() { u32::BITS } else { u128::BITS };
            // Of the default route of IPv6 this is all ones.
            let last =
                first | 1_u128.checked_shl(width - u32::from(prefix.len())).unwrap_or(0).wrapping_sub(1);
            around.push((last, hops));
        }
        ranges.leave(&mut around, None);
        ranges
    }

    /// Behind each prefix that ends before `until` what is around it goes on.
    fn leave(&mut self, around: &mut Vec<(u128, Hops)>, until: Option<u128>) {
        while let Some((last, _)) = around.pop_if(|(last, _)| until.is_none_or(|until| *last < until)) {
            if let Some(next) = last.checked_add(1) {
                self.push(next, around.last().map(|(_, hops)| hops.clone()));
            }
        }
    }

    /// A range begins. One that began at the same address is empty.
    fn push(&mut self, start: u128, hops: Option<Hops>) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.hops.pop();
        }
        self.starts.push(start);
        self.hops.push(hops);
    }

    fn lookup(&self, address: u128) -> Option<&Hops> {
        let behind = self.starts.partition_point(|&start| start <= address);
        self.hops[behind.checked_sub(1)?].as_ref()
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    /// A prefix within a few addresses at either end of its family's, or a short one.
    fn few() -> impl Strategy<Value = Prefix> {
        (any::<bool>(), any::<bool>(), 0_u32..32, 0_u8..6, any::<bool>()).prop_map(
            |(v4, end, at, host, short)| {
                let low = if end { u32::MAX - at } else { at };
                let high = if end { u128::MAX - u128::from(at) } else { at.into() };
                let address: IpAddr = if v4 {
                    std::net::Ipv4Addr::from(low).into()
                } else {
                    std::net::Ipv6Addr::from(high).into()
                };
                let width = if v4 { 32 } else { 128 };
                Prefix::new(address, if short { host } else { width - host }).unwrap()
            },
        )
    }

    proptest! {
        #[test]
        fn the_route_of_every_address_is_that_of_the_first_of_its_longest_prefixes(
            prefixes in prop::collection::vec(few(), 0..20),
        ) {
            let entries: Vec<_> = prefixes.into_iter().zip((0..).map(|hop| HopId(hop).into())).collect();
            let routes = Routes::new(entries.clone());
            let v4 = (0..40).flat_map(|at| [at, u32::MAX - at, 0x0800_0000 * (at % 32), 0x0800_0000 * (at % 32) + 9]);
            let v4 = v4.map(|bits| IpAddr::from(std::net::Ipv4Addr::from(bits)));
            let v6 = (0..40_u128).flat_map(|at| [at, u128::MAX - at, (at % 32) << 123, ((at % 32) << 123) + 9]);
            let v6 = v6.map(|bits| IpAddr::from(std::net::Ipv6Addr::from(bits)));
            for address in v4.chain(v6) {
                let mut best: Option<&(Prefix, Hops)> = None;
                for entry in entries.iter().filter(|(prefix, _)| prefix.contains(address)) {
                    if best.is_none_or(|(prefix, _)| entry.0.len() > prefix.len()) {
                        best = Some(entry);
                    }
                }
                prop_assert_eq!(routes.lookup(address), best.map(|(_, hops)| hops), "{}", address);
            }
        }
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
