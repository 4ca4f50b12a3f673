//! Services ("virtual services"): which packets are balanced, among whom, by which rule.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use shunt_engine::steer::Prefix;

use crate::conn::Timeouts;
use crate::persist::Persistence;
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

/// What to do with a packet of a connection whose server is gone from the configuration. A packet that may open a
/// connection (a SYN, any datagram) opens one in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerGone {
    /// Answer with a TCP RST (rate-limited): the client knows at once.
    Reset,
    /// Schedule it as if it were the first: the new server may know what to do with it, or resets it.
    Reschedule,
    /// Drop it: the client hears nothing (LVS with expire_nodest_conn = 0).
    Drop,
}

/// Addresses and ports a service answers on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The virtual address (VIP), or every address of a prefix.
    pub prefix: Prefix,
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
    /// How clients are remembered; `None`: they are not.
    pub persistence: Option<Persistence>,
    /// Every datagram is scheduled alone and leaves no connection behind (UDP, DR and TUN only).
    pub one_packet: bool,
    /// Packets of connections whose server is gone.
    pub server_gone: ServerGone,
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

/// Finds the service of a destination. A listen entry for one address goes before those for prefixes, a longer prefix
/// before a shorter one; then an exact port before ranges, and a narrow range before a wide one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceIndex {
    hosts: Listeners,
    /// Longest first. Empty unless a service listens on a prefix.
    levels: Vec<Level>,
    /// The director's own addresses: of prefixes they are no part.
    own: HashSet<IpAddr, KeyHasher>,
}

/// Listen entries of prefixes of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Level {
    ipv4: bool,
    len: u8,
    listeners: Listeners,
}

/// Who listens on an address, be it a host's or the first one of a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listeners {
    exact: HashMap<EndpointKey, ServiceId, KeyHasher>,
    ranges: HashMap<EndpointKey, Ranges, KeyHasher>,
    addresses: HashSet<IpAddr, KeyHasher>,
}

type Ranges = Vec<(RangeInclusive<u16>, ServiceId)>;

impl ServiceIndex {
    /// Indexes the listen entries of `services`. Control has refused overlaps of equal width before. `own` are the
    /// director's addresses, which prefixes leave alone.
    pub fn new<'a>(
        services: impl IntoIterator<Item = &'a Service>,
        own: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let mut index = Self { own: own.into_iter().collect(), ..Self::default() };
        for service in services {
            for listen in &service.listen {
                index.level(listen.prefix).add(service, listen);
            }
        }
        index.levels.sort_by_key(|level| std::cmp::Reverse(level.len));
        index
    }

    fn level(&mut self, prefix: Prefix) -> &mut Listeners {
        if prefix.is_host() {
            return &mut self.hosts;
        }
        let (ipv4, len) = (prefix.address().is_ipv4(), prefix.len());
        let found = self.levels.iter().position(|level| (level.ipv4, level.len) == (ipv4, len));
        let at = found.unwrap_or_else(|| {
            self.levels.push(Level { ipv4, len, listeners: Listeners::default() });
            self.levels.len() - 1
        });
        &mut self.levels[at].listeners
    }

    /// Whether a service answers on `address` itself.
    #[inline]
    pub fn is_vip(&self, address: IpAddr) -> bool {
        self.hosts.addresses.contains(&address)
    }

    /// Whether any service answers on `address`, be it as part of a prefix.
    #[inline]
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.is_vip(address) || (!self.levels.is_empty() && self.is_covered(address))
    }

    /// The service that answers on `address` itself, `port`, `protocol`.
    #[inline]
    pub fn lookup(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<ServiceId> {
        self.hosts.lookup(address, port, protocol)
    }

    /// The service that answers there because `address` is in a prefix it listens on.
    #[inline]
    pub fn lookup_prefix(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<ServiceId> {
        if self.levels.is_empty() { None } else { self.longest(address, port, protocol) }
    }

    #[cold]
    fn longest(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<ServiceId> {
        self.networks(address).find_map(|(network, listeners)| listeners.lookup(network, port, protocol))
    }

    #[cold]
    fn is_covered(&self, address: IpAddr) -> bool {
        self.networks(address).any(|(network, listeners)| listeners.addresses.contains(&network))
    }

    /// The networks around `address` whose length some listen entry has, with those entries. Longest first.
    fn networks(&self, address: IpAddr) -> impl Iterator<Item = (IpAddr, &Listeners)> {
        let left_alone = is_special(address) || self.own.contains(&address);
        let levels = if left_alone { &[] } else { self.levels.as_slice() };
        levels.iter().filter(move |level| level.ipv4 == address.is_ipv4()).filter_map(move |level| {
            let network = Prefix::new(address, level.len)?.address();
            Some((network, &level.listeners))
        })
    }

    /// The addresses of `listen` that are listened on.
    pub(crate) fn prefixes_of(&self, listen: &Listen) -> Vec<Prefix> {
        if listen.prefix.is_host() {
            return vec![listen.prefix];
        }
        let special = SPECIAL.iter().filter_map(|&(address, len)| Prefix::new(address, len));
        let left_alone: Vec<_> = self.own.iter().copied().map(Prefix::host).chain(special).collect();
        listen.prefix.without(&left_alone)
    }
}

/// Addresses that are no single host's on the network, which prefixes leave alone: this network, loopback, multicast,
/// reserved and broadcast (RFC 1122 §3.2.1.3); in IPv6 link-local and multicast.
const SPECIAL: [(IpAddr, u8); 5] = [
    (IpAddr::V4(Ipv4Addr::new(0, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 3),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
];

/// Whether `address` is one of [`SPECIAL`].
fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => matches!(v4.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast(),
    }
}

impl Listeners {
    fn add(&mut self, service: &Service, listen: &Listen) {
        let address = listen.prefix.address();
        self.addresses.insert(address);
        let (first, last) = (*listen.ports.start(), *listen.ports.end());
        let key = |port| EndpointKey { address, port, protocol: service.protocol };
        if first == last {
            self.exact.insert(key(first), service.id);
        } else {
            let ranges = self.ranges.entry(key(0)).or_default();
            ranges.push((listen.ports.clone(), service.id));
            ranges.sort_by_key(|(ports, _)| ports.end() - ports.start());
        }
    }

    #[inline]
    fn lookup(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<ServiceId> {
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

    /// An address, or one with a length.
    fn prefix(text: &str) -> Prefix {
        match text.split_once('/') {
            Some((address, len)) => Prefix::new(address.parse().unwrap(), len.parse().unwrap()).unwrap(),
            None => Prefix::host(text.parse().unwrap()),
        }
    }

    fn service(id: u32, protocol: Protocol, listen: &[(&str, RangeInclusive<u16>)]) -> Service {
        let listen =
            listen.iter().map(|(address, ports)| Listen { prefix: prefix(address), ports: ports.clone() });
        Service {
            id: ServiceId(id),
            name: format!("s{id}"),
            protocol,
            listen: listen.collect(),
            scheduler: SchedulerKind::Rr.into(),
            locals: Vec::new(),
            out_of_state: OutOfState::Drop,
            timeouts: Timeouts::default(),
            persistence: None,
            one_packet: false,
            server_gone: ServerGone::Drop,
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
        let index = ServiceIndex::new(&services, []);
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
    fn the_longest_prefix_wins_and_a_port_it_does_not_have_falls_to_the_next() {
        let services = [
            service(0, Protocol::Tcp, &[("0.0.0.0/0", 80..=80), ("0.0.0.0/0", 8000..=8099)]),
            service(1, Protocol::Tcp, &[("198.51.100.0/24", 80..=80), ("198.51.100.0/24", 8080..=8080)]),
            service(2, Protocol::Tcp, &[("198.51.100.128/25", 0..=65535)]),
            service(3, Protocol::Tcp, &[("203.0.113.1", 443..=443), ("2001:db8::/32", 80..=80)]),
        ];
        let own = ["203.0.113.1", "192.0.2.1"].map(|own| own.parse().unwrap());
        let index = ServiceIndex::new(&services, own);
        let find = |address: &str, port| {
            index.lookup_prefix(address.parse().unwrap(), port, Protocol::Tcp).map(|id| id.0)
        };
        assert_eq!(
            (find("192.0.2.7", 80), find("192.0.2.7", 8099), find("192.0.2.7", 81)),
            (Some(0), Some(0), None)
        );
        assert_eq!((find("198.51.100.7", 80), find("198.51.100.7", 8080)), (Some(1), Some(1)));
        assert_eq!(find("198.51.100.7", 8081), Some(0), "only the shorter one has that port");
        assert_eq!((find("198.51.100.200", 80), find("198.51.100.200", 22)), (Some(2), Some(2)));
        assert_eq!((find("2001:db8:7::1", 80), find("2001:db9::1", 80)), (Some(3), None));
        assert_eq!(index.lookup_prefix("192.0.2.7".parse().unwrap(), 80, Protocol::Udp), None);
        // The director's own addresses are its kernel's, whatever prefix is around them.
        assert_eq!((find("203.0.113.1", 80), find("192.0.2.1", 80)), (None, None));
        let has = |address: &str| index.has_address(address.parse().unwrap());
        assert!(has("192.0.2.7") && has("203.0.113.1") && has("2001:db8::1"));
        assert!(!has("192.0.2.1") && !has("2001:db9::1"));
        let is_vip = |address: &str| index.is_vip(address.parse().unwrap());
        assert!(is_vip("203.0.113.1") && !is_vip("192.0.2.7"));
    }

    #[test]
    fn a_prefix_leaves_alone_what_no_host_can_have() {
        let services = [service(0, Protocol::Udp, &[("0.0.0.0/0", 0..=65535), ("::/0", 0..=65535)])];
        let index = ServiceIndex::new(&services, []);
        let taken: Vec<_> = services[0].listen.iter().flat_map(|listen| index.prefixes_of(listen)).collect();
        let is_taken = |address: &str| {
            let address = address.parse().unwrap();
            let found = index.lookup_prefix(address, 67, Protocol::Udp).is_some();
            assert_eq!(found, index.has_address(address), "{address}");
            assert_eq!(found, taken.iter().any(|prefix| prefix.contains(address)), "{address}");
            found
        };
        let special = [
            "0.0.0.0",
            "0.255.255.255",
            "127.0.0.0",
            "127.255.255.255",
            "224.0.0.0",
            "224.0.0.251",
            "240.0.0.0",
            "255.255.255.255",
            "fe80::",
            "febf:ffff::1",
            "ff00::",
            "ff02::1:2",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ];
        assert_eq!(special.iter().find(|address| is_taken(address)), None);
        let taken =
            ["1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255", "fe7f::1", "fec0::", "feff::"];
        assert_eq!(taken.iter().find(|address| !is_taken(address)), None);
    }

    #[test]
    fn modes_survive_their_number() {
        assert!(Mode::ALL.iter().all(|&mode| Mode::from_number(mode as u8) == mode));
    }
}
