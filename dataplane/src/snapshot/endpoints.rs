//! A set of addresses with the ports that count, per protocol.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use shunt_engine::steer::{Prefix, Rule, Side};

use crate::tuple::{EndpointKey, KeyHasher, Protocol};

/// Addresses with ranges of ports: local addresses of FULLNAT, servers of NAT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    sets: HashMap<EndpointKey, Vec<RangeInclusive<u16>>, KeyHasher>,
}

impl Endpoints {
    /// Adds `ports` of `address`.
    pub fn add(&mut self, address: IpAddr, protocol: Protocol, ports: RangeInclusive<u16>) {
        let set = self.sets.entry(EndpointKey { address, port: 0, protocol }).or_default();
        if !set.contains(&ports) {
            set.push(ports);
        }
    }

    /// Whether `port` of `address` is in the set.
    #[inline]
    pub fn contains(&self, address: IpAddr, protocol: Protocol, port: u16) -> bool {
        let set = self.sets.get(&EndpointKey { address, port: 0, protocol });
        set.is_some_and(|set| set.iter().any(|ports| ports.contains(&port)))
    }

    /// Whether any port of `address` is in the set.
    pub fn has_address(&self, address: IpAddr) -> bool {
        [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .any(|protocol| self.sets.contains_key(&EndpointKey { address, port: 0, protocol }))
    }

    /// The set as steering rules.
    pub(super) fn rules(&self, side: Side) -> impl Iterator<Item = Rule> + '_ {
        self.sets.iter().flat_map(move |(&EndpointKey { address, protocol, .. }, set)| {
            let prefix = Prefix::host(address);
            set.iter().map(move |ports| Rule {
                side,
                prefix,
                protocol: protocol.number(),
                ports: ports.clone(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_added_ports_of_an_address_count() {
        let mut set = Endpoints::default();
        let (address, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        set.add(address, Protocol::Tcp, 80..=80);
        set.add(address, Protocol::Tcp, 8000..=8099);
        assert!(set.contains(address, Protocol::Tcp, 80) && set.contains(address, Protocol::Tcp, 8042));
        assert!(!set.contains(address, Protocol::Tcp, 81) && !set.contains(address, Protocol::Udp, 80));
        assert!(set.has_address(address) && !set.has_address(other));
        assert_eq!(set.rules(Side::Source).count(), 2);
    }
}
