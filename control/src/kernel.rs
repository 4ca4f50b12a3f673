//! What the kernel knows about the network, as a plain value: links, addresses, routes, neighbours. [`crate::netlink`]
//! fills it; everything here only looks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use shunt_engine::port::MacAddr;
use shunt_engine::steer::Prefix;

/// The kernel's view at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// All links.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// Routes of the main table, better metric first.
    pub routes: Vec<Route>,
    /// Neighbours of every link.
    pub neighbours: Vec<Neighbour>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its station address.
    pub mac: MacAddr,
    /// Largest layer-3 packet, in bytes.
    pub mtu: u32,
    /// Whether it is switched on and has a carrier.
    pub up: bool,
    /// For a VLAN: the link below and the VLAN's number.
    pub vlan: Option<(u32, u16)>,
}

/// An address of the director.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// On this link.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its network's prefix.
    pub prefix_len: u8,
}

impl Address {
    /// The address that means every station of its network, if there is one: the last one in IPv4.
    pub fn broadcast(&self) -> Option<IpAddr> {
        let IpAddr::V4(v4) = self.address else { return None };
        let hosts = u32::MAX.checked_shr(self.prefix_len.into()).filter(|&hosts| hosts > 1)?;
        Some(IpAddr::V4((v4.to_bits() | hosts).into()))
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// To here.
    pub prefix: Prefix,
    /// Smaller is better.
    pub metric: u32,
    /// By these ways, at least one. A multipath route has several.
    pub paths: Vec<Path>,
    /// The route's own MTU, when it has one.
    pub mtu: Option<u32>,
}

/// One of a route's ways, with its share of the flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    /// Where it leads.
    pub way: Way,
    /// Its share beside the others'; at least 1.
    pub weight: u32,
}

impl From<Way> for Path {
    fn from(way: Way) -> Self {
        Self { way, weight: 1 }
    }
}

impl Route {
    /// The first way: what is taken where one is enough.
    pub fn way(&self) -> Way {
        self.paths.first().map_or(Way::Nowhere, |path| path.way)
    }
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// The network is attached to this link.
    Attached(u32),
    /// By this gateway on this link.
    Gateway(u32, IpAddr),
    /// Nowhere: blackhole, unreachable, prohibit.
    Nowhere,
}

impl Way {
    /// The link, if it leads to one.
    pub fn link(self) -> Option<u32> {
        match self {
            Self::Attached(link) | Self::Gateway(link, _) => Some(link),
            Self::Nowhere => None,
        }
    }
}

/// A station the kernel knows or looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// On this link.
    pub link: u32,
    /// Its IP address.
    pub address: IpAddr,
    /// Its station address, while the entry can be used: reachable, stale, being probed, permanent, no ARP.
    pub mac: Option<MacAddr>,
    /// Whether the kernel has given up on it until somebody asks again.
    pub failed: bool,
    /// Whether somebody configured it: the kernel never probes such an entry.
    pub fixed: bool,
}

impl Kernel {
    /// The link with this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The link with this number.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// Whether the link with this number is there and up.
    pub fn has_link_up(&self, index: u32) -> bool {
        self.link(index).is_some_and(|link| link.up)
    }

    /// The route the kernel takes to `address`.
    pub fn route_to(&self, address: IpAddr) -> Option<&Route> {
        let mut best: Option<&Route> = None;
        for route in self.routes.iter().filter(|route| route.prefix.contains(address)) {
            if best.is_none_or(|best| route.prefix.len() > best.prefix.len()) {
                best = Some(route);
            }
        }
        best
    }

    /// The neighbour `address` on `link`.
    pub fn neighbour(&self, link: u32, address: IpAddr) -> Option<&Neighbour> {
        self.neighbours.iter().find(|neighbour| neighbour.link == link && neighbour.address == address)
    }

    /// Whether `address` is the director's, on any link.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.address == address)
    }

    /// Whether packets would take the same ways: all but the neighbours that are only looked for.
    pub fn leads_like(&self, other: &Self) -> bool {
        let known = |kernel: &Self| -> BTreeSet<_> {
            let known = kernel.neighbours.iter().filter(|neighbour| neighbour.mac.is_some());
            known.map(|neighbour| (neighbour.link, neighbour.address, neighbour.mac)).collect()
        };
        (&self.links, &self.addresses, &self.routes) == (&other.links, &other.addresses, &other.routes)
            && known(self) == known(other)
    }

    /// The station on the attached link that packets for `address` go to, with its link.
    pub fn next_station(&self, address: IpAddr) -> Option<(u32, IpAddr)> {
        match self.route_to(address)?.way() {
            Way::Attached(link) => Some((link, address)),
            Way::Gateway(link, gateway) => Some((link, gateway)),
            Way::Nowhere => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    pub(crate) fn prefix(text: &str) -> Prefix {
        let (address, len) = text.split_once('/').unwrap();
        Prefix::new(ip(address), len.parse().unwrap()).unwrap()
    }

    pub(crate) fn link(index: u32, name: &str) -> Link {
        let mac = MacAddr([2, 0, 0, 0, 0, index as u8]);
        Link { index, name: name.to_owned(), mac, mtu: 1500, up: true, vlan: None }
    }

    pub(crate) fn route(to: &str, way: Way) -> Route {
        Route { prefix: prefix(to), metric: 0, paths: vec![way.into()], mtu: None }
    }

    /// eth0 203.0.113.1/24 with the default gateway .254; eth1 10.0.0.1/24 with servers.
    pub(crate) fn director() -> Kernel {
        let address = |link, address: &str, prefix_len| Address { link, address: ip(address), prefix_len };
        let station = |link, address: &str, last| Neighbour {
            link,
            address: ip(address),
            mac: Some(MacAddr([2, 0, 0, 0, 1, last])),
            failed: false,
            fixed: false,
        };
        Kernel {
            links: vec![link(1, "lo"), link(2, "eth0"), link(3, "eth1")],
            addresses: vec![address(2, "203.0.113.1", 24), address(3, "10.0.0.1", 24)],
            routes: vec![
                route("0.0.0.0/0", Way::Gateway(2, ip("203.0.113.254"))),
                route("203.0.113.0/24", Way::Attached(2)),
                route("10.0.0.0/24", Way::Attached(3)),
            ],
            neighbours: vec![station(2, "203.0.113.254", 254), station(3, "10.0.0.11", 11)],
        }
    }

    #[test]
    fn the_longest_prefix_says_which_station_is_next() {
        let kernel = director();
        assert_eq!(kernel.next_station(ip("198.51.100.7")), Some((2, ip("203.0.113.254"))));
        assert_eq!(kernel.next_station(ip("10.0.0.11")), Some((3, ip("10.0.0.11"))));
        assert_eq!(kernel.next_station(ip("2001:db8::1")), None);
        assert!(kernel.has_address(ip("10.0.0.1")) && !kernel.has_address(ip("10.0.0.11")));
    }

    #[test]
    fn a_search_in_vain_changes_no_way_and_an_answer_does() {
        let before = director();
        let mut now = before.clone();
        let mut sought =
            Neighbour { address: ip("10.0.0.12"), mac: None, failed: true, ..now.neighbours[1].clone() };
        now.neighbours.push(sought.clone());
        now.neighbours.reverse();
        assert!(now.leads_like(&before));
        sought.mac = Some(MacAddr([2, 0, 0, 0, 1, 12]));
        now.neighbours[0] = sought;
        assert!(!now.leads_like(&before));
    }

    #[test]
    fn a_network_of_more_than_two_addresses_has_a_broadcast_address() {
        let broadcast =
            |address: &str, prefix_len| Address { link: 1, address: ip(address), prefix_len }.broadcast();
        assert_eq!(broadcast("10.1.2.3", 24), Some(ip("10.1.2.255")));
        assert_eq!(broadcast("10.1.2.1", 30), Some(ip("10.1.2.3")));
        assert_eq!(
            (broadcast("10.1.2.3", 31), broadcast("10.1.2.3", 32), broadcast("fd00::1", 64)),
            (None, None, None)
        );
    }

    #[test]
    fn of_equal_prefixes_the_first_is_taken() {
        let mut kernel = director();
        kernel.routes.insert(0, route("10.0.0.0/24", Way::Nowhere));
        assert_eq!(kernel.next_station(ip("10.0.0.11")), None);
    }
}
