//! Next hops: the link-layer answer to "where does this packet go now".

use std::net::IpAddr;

use shunt_engine::PortId;
use shunt_engine::port::MacAddr;

/// The number of a next hop. Stable while the kernel's routes name it, so that a connection can keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopId(pub u16);

/// Where frames for a gateway, a server or an attached network leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Leaves by this port …
    pub port: PortId,
    /// … in this VLAN, if any.
    pub vid: Option<u16>,
    /// Source link address: the port's.
    pub source: MacAddr,
    /// Destination link address, when the hop is one station and the kernel knows it.
    pub destination: Option<MacAddr>,
    /// Whether this is an attached network: the destination is each packet's own, learnt from the client's frames.
    pub attached: bool,
    /// Largest layer-3 packet, in bytes.
    pub mtu: u16,
    /// The director's own address there: source of ICMP errors and outer source of tunnels.
    pub address: Option<IpAddr>,
}
