//! Services ("virtual services"): which packets are balanced, among whom, by which rule.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::conn::Timeouts;
use crate::scheduler::Scheduler;
use crate::tuple::{EndpointKey, KeyHasher, Protocol};

/// The stable number of a service: index into [`crate::snapshot::Snapshot::services`] and per-worker state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u32);

/// What to do with a packet that belongs to no connection and is no SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfState {
    /// Answer with a TCP RST (rate-limited).
    Reset,
    /// Drop it.
    Drop,
    /// Schedule it as if it were the first: for schedulers that map a client to the same server anyway.
    Schedule,
}

/// Addresses and ports a service answers on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The virtual address (VIP).
    pub address: IpAddr,
    /// The ports; `0..=65535` is every port.
    pub ports: RangeInclusive<u16>,
}

/// An address of the director's own from which FULLNAT talks to servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The address.
    pub address: IpAddr,
    /// Ports that may be used.
    pub ports: RangeInclusive<u16>,
}

/// A service, as workers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its number.
    pub id: ServiceId,
    /// Its name in the configuration.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Where it answers.
    pub listen: Vec<Listen>,
    /// How a server is picked.
    pub scheduler: Scheduler,
    /// FULLNAT local addresses.
    pub locals: Vec<Local>,
    /// Packets without connection.
    pub out_of_state: OutOfState,
    /// State timeouts.
    pub timeouts: Timeouts,
}

impl Service {
    /// The port it answers on, if it is one and the same everywhere.
    pub fn single_port(&self) -> Option<u16> {
        let (first, rest) = self.listen.split_first()?;
        let port = *first.ports.start();
        let same = |listen: &Listen| listen.ports == (port..=port);
        (same(first) && rest.iter().all(same)).then_some(port)
    }
}

type Ranges = Vec<(RangeInclusive<u16>, ServiceId)>;

/// Finds the service of a destination: exact port first, then ranges, the narrowest first.
#[derive(Clone, Debug, Default)]
pub struct ServiceIndex {
    exact: HashMap<EndpointKey, ServiceId, KeyHasher>,
    ranges: HashMap<EndpointKey, Ranges, KeyHasher>,
    addresses: HashSet<IpAddr, KeyHasher>,
}

impl ServiceIndex {
    /// Indexes the listen entries of `services`. Control has refused overlaps of equal width before.
    pub fn new<'a>(services: impl IntoIterator<Item = &'a Service>) -> Self {
        let mut index = Self::default();
        for service in services {
            for listen in &service.listen {
                index.addresses.insert(listen.address);
                let (first, last) = (*listen.ports.start(), *listen.ports.end());
                let key = |port| EndpointKey { address: listen.address, port, protocol: service.protocol };
                if first == last {
                    index.exact.insert(key(first), service.id);
                } else {
                    let ranges = index.ranges.entry(key(0)).or_default();
                    ranges.push((listen.ports.clone(), service.id));
                    ranges.sort_by_key(|(ports, _)| ports.end() - ports.start());
                }
            }
        }
        index
    }

    /// Whether any service answers on `address`.
    #[inline]
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// The service that answers on `address`, `port`, `protocol`.
    #[inline]
    pub fn lookup(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<ServiceId> {
        if let Some(&id) = self.exact.get(&EndpointKey { address, port, protocol }) {
            return Some(id);
        }
        let ranges = self.ranges.get(&EndpointKey { address, port: 0, protocol })?;
        ranges.iter().find(|(ports, _)| ports.contains(&port)).map(|&(_, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::SchedulerKind;
    use crate::server::Mode;

    fn service(id: u32, protocol: Protocol, listen: &[(&str, RangeInclusive<u16>)]) -> Service {
        let listen = listen
            .iter()
            .map(|(address, ports)| Listen { address: address.parse().unwrap(), ports: ports.clone() });
        Service {
            id: ServiceId(id),
            name: format!("s{id}"),
            protocol,
            listen: listen.collect(),
            scheduler: SchedulerKind::Rr.into(),
            locals: Vec::new(),
            out_of_state: OutOfState::Drop,
            timeouts: Timeouts::default(),
        }
    }

    #[test]
    fn the_narrowest_listen_entry_wins() {
        let services = [
            service(0, Protocol::Tcp, &[("203.0.113.1", 0..=65535)]),
            service(1, Protocol::Tcp, &[("203.0.113.1", 8000..=8099)]),
            service(2, Protocol::Tcp, &[("203.0.113.1", 8080..=8080), ("2001:db8::1", 80..=80)]),
            service(3, Protocol::Udp, &[("203.0.113.1", 53..=53)]),
        ];
        let index = ServiceIndex::new(&services);
        let find = |address: &str, port, protocol| {
            index.lookup(address.parse().unwrap(), port, protocol).map(|id| id.0)
        };
        assert_eq!(find("203.0.113.1", 8080, Protocol::Tcp), Some(2));
        assert_eq!(find("203.0.113.1", 8081, Protocol::Tcp), Some(1));
        assert_eq!(find("203.0.113.1", 22, Protocol::Tcp), Some(0));
        assert_eq!(find("203.0.113.1", 53, Protocol::Udp), Some(3));
        assert_eq!(find("203.0.113.1", 54, Protocol::Udp), None);
        assert_eq!(find("2001:db8::1", 80, Protocol::Tcp), Some(2));
        assert_eq!(find("203.0.113.2", 80, Protocol::Tcp), None);
    }

    #[test]
    fn modes_survive_their_number() {
        assert!(Mode::ALL.iter().all(|&mode| Mode::from_number(mode as u8) == mode));
    }
}
