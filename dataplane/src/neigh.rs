//! Next hops: the link-layer answer to "where does this packet go now".

use std::net::IpAddr;

use crate::wire::ethernet::ethertype;
use crate::wire::put_u16;
use shunt_engine::PortId;
use shunt_engine::port::MacAddr;

/// The number of a next hop. Stable while the kernel's routes name it, so that a connection can keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopId(pub u16);

/// What the usual packet needs of a next hop, ready to be used. Kept beside [`NextHop`]s, of which it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Destination and source link address, and the 802.1Q tag if there is one.
    pub header: [u8; 16],
    /// How much of the header there is: 12 bytes, 16 with a tag.
    pub header_len: u8,
    /// Leaves by this port.
    pub port: PortId,
    /// Largest layer-3 packet in bytes; 0 while nothing can be sent.
    pub mtu: u16,
    /// The destination in the header is none: it is each client's own.
    pub attached: bool,
    /// The director's own address there.
    pub address: Option<IpAddr>,
}

impl Exit {
    /// No way out.
    pub const NONE: Self =
        Self { header: [0; 16], header_len: 12, port: PortId(0), mtu: 0, attached: false, address: None };

    /// Length of the link header, EtherType included.
    #[inline]
    pub const fn link_len(&self) -> usize {
        self.header_len as usize + 2
    }

    /// Writes the link header but for the EtherType; `client` is the destination if that is each client's own.
    #[inline(always)]
    pub fn write(&self, frame: &mut [u8], client: [u8; 6]) {
        if self.header_len == 12 {
            frame[..12].copy_from_slice(&self.header[..12]);
        } else {
            frame[..16].copy_from_slice(&self.header);
        }
        if self.attached {
            frame[..6].copy_from_slice(&client);
        }
    }

    /// The same with the EtherType.
    #[inline(always)]
    pub fn write_typed(&self, frame: &mut [u8], ethertype: u16, client: [u8; 6]) {
        self.write(frame, client);
        put_u16(frame, usize::from(self.header_len), ethertype);
    }
}

impl From<&NextHop> for Exit {
    fn from(hop: &NextHop) -> Self {
        let mut header = [0; 16];
        header[..6].copy_from_slice(&hop.destination.unwrap_or_default().0);
        header[6..12].copy_from_slice(&hop.source.0);
        header[12..14].copy_from_slice(&ethertype::VLAN.to_be_bytes());
        header[14..].copy_from_slice(&(hop.vid.unwrap_or(0) & 0x0fff).to_be_bytes());
        let attached = hop.destination.is_none() && hop.attached;
        let mtu = if hop.destination.is_some() || attached { hop.mtu } else { 0 };
        let header_len = if hop.vid.is_some() { 16 } else { 12 };
        Self { header, header_len, port: hop.port, mtu, attached, address: hop.address }
    }
}

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
