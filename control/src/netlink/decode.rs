//! From the kernel's messages to plain values.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteType, RouteVia,
};
use shunt_engine::port::MacAddr;
use shunt_engine::steer::Prefix;

use crate::kernel::{Address, Link, Neighbour, Path, Route, Way};

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

pub(super) fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: MacAddr::default(),
        mtu: 0,
        up: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
        vlan: None,
    };
    let (mut below, mut vid) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes).unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkInfo(infos) => vid = infos.iter().find_map(vlan_id),
            _ => {}
        }
    }
    link.vlan = below.zip(vid);
    link
}

fn vlan_id(info: &LinkInfo) -> Option<u16> {
    let LinkInfo::Data(InfoData::Vlan(parts)) = info else { return None };
    parts.iter().find_map(|part| if let InfoVlan::Id(id) = part { Some(*id) } else { None })
}

pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let local = |attribute: &AddressAttribute| {
        if let AddressAttribute::Local(address) = attribute { Some(*address) } else { None }
    };
    let plain = |attribute: &AddressAttribute| {
        if let AddressAttribute::Address(address) = attribute { Some(*address) } else { None }
    };
    // On a point-to-point link IFA_ADDRESS is the peer's; IPv6 has no IFA_LOCAL otherwise.
    let found = message.attributes.iter().find_map(local);
    let address = found.or_else(|| message.attributes.iter().find_map(plain))?;
    Some(Address { link: message.header.index, address, prefix_len: message.header.prefix_len })
}

pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    if table.unwrap_or(u32::from(message.header.table)) != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    // What the kernel has learnt about one destination (a path's MTU, a redirect) is gone one day without a word.
    if message.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let unspecified: IpAddr = match message.header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut destination, mut metric, mut mtu) = (unspecified, 0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics
                    .iter()
                    .find_map(|one| if let RouteMetric::Mtu(mtu) = one { Some(*mtu) } else { None });
            }
            _ => {}
        }
    }
    let paths = match message.header.kind {
        RouteType::Unicast => paths(message),
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => vec![Way::Nowhere.into()],
        _ => return None,
    };
    if paths.is_empty() {
        return None;
    }
    let prefix = Prefix::new(destination, message.header.destination_prefix_length)?;
    Some(Route { prefix, metric, paths, mtu })
}

/// Where a unicast route leads: the ways that are alive. A route by a nexthop object shows them too, as long as
/// net.ipv4.nexthop_compat_mode is 1, the kernel's default.
fn paths(message: &RouteMessage) -> Vec<Path> {
    let several = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let dead = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    match several {
        None => way(None, &message.attributes).map(Path::from).into_iter().collect(),
        Some(hops) => {
            let alive = hops.iter().filter(|hop| !hop.flags.intersects(dead));
            let path = |hop: &RouteNextHop| {
                let way = way(Some(hop.interface_index), &hop.attributes)?;
                // struct rtnexthop counts weights from 0.
                Some(Path { way, weight: u32::from(hop.hops) + 1 })
            };
            alive.filter_map(path).collect()
        }
    }
}

fn way(mut link: Option<u32>, attributes: &[RouteAttribute]) -> Option<Way> {
    let mut gateway = None;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(address) => gateway = Some(ip(address)?),
            // A gateway of the other family (RFC 8950).
            RouteAttribute::Via(RouteVia::Inet(v4)) => gateway = Some((*v4).into()),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => gateway = Some((*v6).into()),
            RouteAttribute::Via(_) => return None,
            _ => {}
        }
    }
    Some(match (link?, gateway) {
        (link, Some(gateway)) => Way::Gateway(link, gateway),
        (link, None) => Way::Attached(link),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

pub(super) fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut address, mut station) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => station = mac(bytes),
            _ => {}
        }
    }
    let fixed = matches!(message.header.state, NeighbourState::Permanent | NeighbourState::Noarp);
    let usable = match message.header.state {
        NeighbourState::Reachable
        | NeighbourState::Stale
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent
        | NeighbourState::Noarp => true,
        NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None => false,
        _ => false,
    };
    let failed = message.header.state == NeighbourState::Failed;
    let mac = station.filter(|_| usable);
    Some(Neighbour { link: message.header.ifindex, address: address?, mac, failed, fixed })
}
