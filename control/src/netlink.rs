//! The kernel's network over netlink: read it whole, hear that it changed, change it.
//!
//! Events only say *which table* changed; the table is then read again. That is right after any loss (ENOBUFS marks
//! all tables) and needs no merging rules; a burst of events costs one reading.

mod decode;
mod events;
mod ruleset;

use std::net::IpAddr;

use futures_util::TryStreamExt;
use futures_util::stream::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, CacheInfo};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::Handle;

pub use events::{Events, Tables};
pub use ruleset::Ruleset;

use crate::kernel::Kernel;

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
            kernel.links = links.iter().map(decode::link).collect();
        }
        if tables.addresses {
            let got = self.handle.address().get().execute().try_collect::<Vec<_>>().await;
            kernel.addresses = got.map_err(read("addresses"))?.iter().filter_map(decode::address).collect();
        }
        if tables.routes {
            let got =
                self.handle.route().get(RouteMessage::default()).execute().try_collect::<Vec<_>>().await;
            kernel.routes = got.map_err(read("routes"))?.iter().filter_map(decode::route).collect();
            kernel.routes.sort_by_key(|route| route.metric);
        }
        if tables.neighbours {
            let got = self.handle.neighbours().get().execute().try_collect::<Vec<_>>().await;
            kernel.neighbours =
                got.map_err(read("neighbours"))?.iter().filter_map(decode::neighbour).collect();
        }
        Ok(())
    }

    /// Adds `address` with a prefix of its own (/32, /128) to `link`.
    ///
    /// An IPv6 address can be used at once: the kernel does not ask first whether another has it (another director may
    /// have had it a moment ago), makes no route for it, and prefers any other source for its own connections.
    ///
    /// # Errors
    /// When the kernel refuses; EEXIST when it has the address there already.
    pub async fn add_address(&self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(link, address, host_len(address));
        if address.is_ipv6() {
            let attributes = &mut request.message_mut().attributes;
            attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
            let mut lifetimes = CacheInfo::default();
            (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, u32::MAX);
            attributes.push(AddressAttribute::CacheInfo(lifetimes));
        }
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
        let described = match message.attributes.first() {
            Some(NeighbourAttribute::Destination(NeighbourAddress::Inet(v4))) => {
                format!("cannot {action} neighbour {v4}")
            }
            Some(NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6))) => {
                format!("cannot {action} neighbour {v6}")
            }
            _ => format!("cannot {action} a neighbour"),
        };
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
