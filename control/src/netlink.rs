//! The kernel's network over netlink: read it whole, hear that it changed, change it.
//!
//! Events only say *which table* changed; the table is then read again. That is right after any loss (ENOBUFS marks
//! all tables) and needs no merging rules; a burst of events costs one reading.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::TryStreamExt;
use futures_util::stream::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteNextHopFlags, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rtnetlink::Handle;
use shunt_engine::port::MacAddr;
use shunt_engine::steer::Prefix;

use crate::kernel::{Address, Kernel, Link, Neighbour, Route, Way};

/// What went wrong between the kernel and us.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[source] std::io::Error),
    /// A request was refused.
    #[error("{action}: {source}")]
    Request {
        /// What was asked.
        action: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// The kernel said no, with an errno.
    #[error("{action}: {source}")]
    Refused {
        /// What was asked.
        action: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl NetlinkError {
    fn new(action: impl Into<String>, source: rtnetlink::Error) -> Self {
        let action = action.into();
        match source {
            rtnetlink::Error::NetlinkError(message) => Self::Refused { action, source: message.to_io() },
            source => Self::Request { action, source },
        }
    }

    /// The errno, when the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Socket(source) => source.raw_os_error(),
            Self::Request { .. } => None,
        }
    }
}

/// Tables of the kernel that changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Links.
    pub links: bool,
    /// Addresses.
    pub addresses: bool,
    /// Routes.
    pub routes: bool,
    /// Neighbours.
    pub neighbours: bool,
}

impl Tables {
    /// All of them.
    pub const ALL: Self = Self { links: true, addresses: true, routes: true, neighbours: true };

    /// Notes the table that a message of type `kind` is about (linux/rtnetlink.h).
    fn note(&mut self, kind: u16) {
        match kind {
            // RTM_NEWLINK, RTM_DELLINK. Routes of a link that goes down vanish without a message of their own.
            16 | 17 => (self.links, self.routes) = (true, true),
            // RTM_NEWADDR, RTM_DELADDR. Likewise an address's routes.
            20 | 21 => (self.addresses, self.routes) = (true, true),
            // RTM_NEWROUTE, RTM_DELROUTE
            24 | 25 => self.routes = true,
            // RTM_NEWNEIGH, RTM_DELNEIGH
            28 | 29 => self.neighbours = true,
            _ => {}
        }
    }

    fn any(self) -> bool {
        self.links || self.addresses || self.routes || self.neighbours
    }
}

/// Requests to the kernel.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens a socket; its driver runs as a task of the present runtime.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn read(&self) -> Result<Kernel, NetlinkError> {
        let mut kernel = Kernel::default();
        self.reread(&mut kernel, Tables::ALL).await?;
        Ok(kernel)
    }

    /// Reads the named tables again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn reread(&self, kernel: &mut Kernel, tables: Tables) -> Result<(), NetlinkError> {
        if tables.links {
            let links: Vec<_> =
                self.handle.link().get().execute().try_collect().await.map_err(read("links"))?;
            kernel.links = links.iter().map(link).collect();
        }
        if tables.addresses {
            let got = self.handle.address().get().execute().try_collect::<Vec<_>>().await;
            kernel.addresses = got.map_err(read("addresses"))?.iter().filter_map(address).collect();
        }
        if tables.routes {
            let got =
                self.handle.route().get(RouteMessage::default()).execute().try_collect::<Vec<_>>().await;
            kernel.routes = got.map_err(read("routes"))?.iter().filter_map(route).collect();
            kernel.routes.sort_by_key(|route| route.metric);
        }
        if tables.neighbours {
            let got = self.handle.neighbours().get().execute().try_collect::<Vec<_>>().await;
            kernel.neighbours = got.map_err(read("neighbours"))?.iter().filter_map(neighbour).collect();
        }
        Ok(())
    }

    /// Adds `address` with a prefix of its own (/32) to `link`.
    ///
    /// # Errors
    /// When the kernel refuses; EEXIST when it has the address there already.
    pub async fn add_address(&self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let request = self.handle.address().add(link, address, host_len(address));
        request
            .execute()
            .await
            .map_err(|error| NetlinkError::new(format!("cannot add address {address}"), error))
    }

    /// Removes `address` with a prefix of its own from `link`.
    ///
    /// # Errors
    /// When the kernel refuses; EADDRNOTAVAIL when it is not there.
    pub async fn remove_address(&self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = host_len(address);
        message.header.index = link;
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        let request = self.handle.address().del(message);
        request
            .execute()
            .await
            .map_err(|error| NetlinkError::new(format!("cannot remove address {address}"), error))
    }

    /// Has the kernel find `address` on `link` and keep what it finds up to date (NTF_EXT_MANAGED, Linux 5.16).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn manage_neighbour(&self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = neighbour_message(link, address);
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        self.put_neighbour(message, NLM_F_CREATE | NLM_F_REPLACE, "manage").await
    }

    /// Has the kernel ask the station now whether it is still there, with the address it knows; the entry stays
    /// usable meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn probe_neighbour(&self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = neighbour_message(link, address);
        message.header.state = NeighbourState::Probe;
        self.put_neighbour(message, NLM_F_REPLACE, "probe").await?;
        // A state can only be set by dropping the flag (net/core/neighbour.c, __neigh_update); setting the flag
        // again keeps the state.
        self.manage_neighbour(link, address).await
    }

    /// Has the kernel look for a station anew, by broadcast.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn seek_neighbour(&self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = neighbour_message(link, address);
        message.header.flags = NeighbourFlags::Use;
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        self.put_neighbour(message, NLM_F_REPLACE, "look for").await
    }

    async fn put_neighbour(
        &self,
        message: NeighbourMessage,
        flags: u16,
        action: &str,
    ) -> Result<(), NetlinkError> {
        let described = format!("cannot {action} neighbour {:?}", message.attributes.first());
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut handle = self.handle.clone();
        let mut answers =
            handle.request(request).map_err(|error| NetlinkError::new(described.clone(), error))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(NetlinkError::Refused { action: described, source: error.to_io() });
            }
        }
        Ok(())
    }

    /// Forgets a neighbour.
    ///
    /// # Errors
    /// When the kernel refuses; ENOENT when it is not there.
    pub async fn remove_neighbour(&self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let request = self.handle.neighbours().del(neighbour_message(link, address));
        request
            .execute()
            .await
            .map_err(|error| NetlinkError::new(format!("cannot remove neighbour {address}"), error))
    }
}

fn read(what: &'static str) -> impl Fn(rtnetlink::Error) -> NetlinkError {
    move |error| NetlinkError::new(format!("cannot read the kernel's {what}"), error)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn host_len(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn neighbour_message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    message.header.state = NeighbourState::None;
    message.header.kind = RouteType::Unspec;
    message.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }));
    message
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

fn link(message: &LinkMessage) -> Link {
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

fn address(message: &AddressMessage) -> Option<Address> {
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

fn route(message: &RouteMessage) -> Option<Route> {
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    if table.unwrap_or(u32::from(message.header.table)) != u32::from(RouteHeader::RT_TABLE_MAIN) {
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
    let way = match message.header.kind {
        RouteType::Unicast => way(&message.attributes)?,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => Way::Nowhere,
        _ => return None,
    };
    let prefix = Prefix::new(destination, message.header.destination_prefix_length)?;
    Some(Route { prefix, metric, way, mtu })
}

/// Where a unicast route leads. Of several paths the first that is alive is taken.
fn way(attributes: &[RouteAttribute]) -> Option<Way> {
    let dead = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    let (mut link, mut gateway) = (None, None);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::MultiPath(hops) => {
                let alive = hops.iter().find(|hop| !hop.flags.intersects(dead))?;
                let through = alive.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(address) => ip(address),
                    _ => None,
                });
                (link, gateway) = (Some(alive.interface_index), through);
            }
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

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
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

/// Hears that something changed.
pub struct Events {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Events {
    /// Listens from now on: open it before reading, or a change in between is missed.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::open_socket().map_err(NetlinkError::Socket)
    }

    fn open_socket() -> std::io::Result<Self> {
        let mut socket = TokioSocket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
        // A bit per group: links, neighbours, IPv4 addresses and routes, IPv6 addresses and routes.
        let groups = [1, 3, 5, 7, 9, 11].map(|group: u32| 1 << (group - 1)).iter().sum();
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER)?;
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM_MAX) })
    }

    /// Waits for a change, then a moment more for what comes along with it, and says what changed.
    pub async fn changed(&mut self) -> Tables {
        let mut tables = Tables::default();
        while !tables.any() {
            self.buffer.clear();
            let received = self.socket.recv(&mut self.buffer).await;
            self.note(received.map(|()| self.buffer.len()), &mut tables);
        }
        tokio::time::sleep(COALESCE).await;
        while self.take(&mut tables) {}
        tables
    }

    /// Takes one datagram off the socket. Returns false when there is none.
    fn take(&mut self, tables: &mut Tables) -> bool {
        self.buffer.clear();
        match self.socket.socket_ref().recv(&mut self.buffer, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
            received => {
                self.note(received, tables);
                true
            }
        }
    }

    fn note(&self, received: std::io::Result<usize>, tables: &mut Tables) {
        match received {
            Ok(_) => kinds(&self.buffer).for_each(|kind| tables.note(kind)),
            // ENOBUFS: events were lost.
            Err(_) => *tables = Tables::ALL,
        }
    }
}

/// Longest datagram of events that is read whole; the kernel's are a page or less.
const DATAGRAM_MAX: usize = 64 << 10;

/// Room for events in the socket, in bytes; what does not fit is noticed as ENOBUFS.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Changes come in groups: an interface that goes down takes its routes and neighbours along.
const COALESCE: Duration = Duration::from_millis(2);

/// The types of the messages in a datagram (struct nlmsghdr of linux/netlink.h: length, type, …; 4-byte aligned).
fn kinds(mut datagram: &[u8]) -> impl Iterator<Item = u16> + '_ {
    std::iter::from_fn(move || {
        let header = datagram.get(..16)?;
        let len = u32::from_ne_bytes(header[..4].try_into().expect("four bytes")) as usize;
        let kind = u16::from_ne_bytes(header[4..6].try_into().expect("two bytes"));
        datagram = datagram.get(len.max(16).next_multiple_of(4)..).unwrap_or(&[]);
        Some(kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_tells_the_types_of_its_messages() {
        let message = |len: u32, kind: u16| {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.resize(len.next_multiple_of(4) as usize, 0);
            bytes
        };
        let datagram = [message(17, 28), message(16, 24), message(20, 16)].concat();
        assert_eq!(kinds(&datagram).collect::<Vec<_>>(), [28, 24, 16]);
        assert_eq!(kinds(&datagram[..15]).count(), 0);
        // A length that lies must not loop.
        assert_eq!(kinds(&[0; 64]).count(), 4);
    }

    #[test]
    fn an_event_marks_the_tables_it_touches() {
        let mut tables = Tables::default();
        tables.note(28);
        assert_eq!(tables, Tables { neighbours: true, ..Tables::default() });
        tables.note(17);
        assert!(tables.links && tables.routes && !tables.addresses);
        let mut other = Tables::default();
        other.note(99);
        assert!(!other.any());
    }
}
