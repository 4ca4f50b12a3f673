//! Routes: longest-prefix match from an address to a next hop, as the kernel's tables have it.

use std::net::IpAddr;

use shunt_engine::steer::Prefix;

use crate::neigh::HopId;

/// The kernel's routes in a form that is looked up when a connection opens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Longest prefix first. A director has few routes; a full table would want a trie.
    entries: Vec<(Prefix, HopId)>,
}

impl Routes {
    /// Builds the table. Of two equal prefixes the first wins: give them in order of the kernel's metric.
    pub fn new(mut entries: Vec<(Prefix, HopId)>) -> Self {
        entries.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Self { entries }
    }

    /// The next hop towards `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<HopId> {
        self.entries.iter().find(|(prefix, _)| prefix.contains(address)).map(|&(_, hop)| hop)
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
            (prefix("0.0.0.0/0"), HopId(1)),
            (prefix("10.0.0.0/8"), HopId(2)),
            (prefix("10.1.0.0/16"), HopId(3)),
            (prefix("10.0.0.0/8"), HopId(4)),
            (prefix("::/0"), HopId(5)),
        ]);
        let hop = |address: &str| routes.lookup(address.parse().unwrap());
        assert_eq!(hop("10.1.2.3"), Some(HopId(3)));
        assert_eq!(hop("10.2.2.3"), Some(HopId(2)));
        assert_eq!(hop("192.0.2.1"), Some(HopId(1)));
        assert_eq!(hop("2001:db8::1"), Some(HopId(5)));
        assert_eq!(Routes::default().lookup("10.0.0.1".parse().unwrap()), None);
    }
}
