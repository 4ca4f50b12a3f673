//! Addresses, ports and the tuple that names a flow. Generic over the address family: IPv4 keys stay small.

use std::fmt::Debug;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rapidhash::fast::RapidHasher;
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout};

/// An IPv4 address as a number: `10.0.0.1` is `0x0a00_0001`.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromZeros, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct V4(pub u32);

/// An IPv6 address as four numbers, most significant first.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromZeros, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct V6(pub [u32; 4]);

/// An address of one family, small enough to copy and compare per packet.
pub trait Address:
    Copy
    + Default
    + Eq
    + Ord
    + Hash
    + Debug
    + Send
    + Sync
    + FromZeros
    + IntoBytes
    + Immutable
    + KnownLayout
    + 'static
{
    /// The standard type.
    fn to_ip(self) -> IpAddr;
    /// `None` when `ip` is of the other family.
    fn from_ip(ip: IpAddr) -> Option<Self>;
    /// The address as two words, for hashing.
    fn words(self) -> (u64, u64);
}

impl Address for V4 {
    fn to_ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(self.0))
    }

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(v4) => Some(Self(v4.to_bits())),
            IpAddr::V6(_) => None,
        }
    }

    #[inline]
    fn words(self) -> (u64, u64) {
        (u64::from(self.0), 0)
    }
}

impl Address for V6 {
    fn to_ip(self) -> IpAddr {
        let (high, low) = self.words();
        IpAddr::V6(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)))
    }

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => {
                let bits = v6.to_bits();
                Some(Self([(bits >> 96) as u32, (bits >> 64) as u32, (bits >> 32) as u32, bits as u32]))
            }
        }
    }

    #[inline]
    fn words(self) -> (u64, u64) {
        let [a, b, c, d] = self.0;
        (u64::from(a) << 32 | u64::from(b), u64::from(c) << 32 | u64::from(d))
    }
}

impl Debug for V4 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.to_ip())
    }
}

impl Debug for V6 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.to_ip())
    }
}

/// A transport protocol that shunt balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// TCP, RFC 9293.
    Tcp = 6,
    /// UDP, RFC 768.
    Udp = 17,
}

impl Protocol {
    /// The protocol with this IP protocol number, if it is one of ours.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// An address with a port (host byte order). Packed: a connection's record has four, and no byte to spare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromZeros)]
#[repr(C, packed(2))]
pub struct Endpoint<A> {
    /// The address.
    pub address: A,
    /// The port.
    pub port: u16,
}

impl<A: Address> Endpoint<A> {
    /// `address` and `port` together.
    pub const fn new(address: A, port: u16) -> Self {
        Self { address, port }
    }
}

/// What is in a packet's headers: where from, where to, by which protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple<A: Address> {
    /// Source.
    pub src: Endpoint<A>,
    /// Destination.
    pub dst: Endpoint<A>,
    /// Protocol.
    pub protocol: Protocol,
}

impl<A: Address> Tuple<A> {
    /// The tuple of a packet that answers.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, protocol: self.protocol }
    }
}

/// The key of maps that are looked up per packet. It hashes in one step for IPv4, in two for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EndpointKey {
    pub(crate) address: IpAddr,
    /// 0 where all ports of the address share an entry.
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

impl Hash for EndpointKey {
    #[inline]
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let rest = u64::from(self.port) << 8 | u64::from(self.protocol.number());
        match self.address {
            IpAddr::V4(v4) => state.write_u64(u64::from(v4.to_bits()) << 32 | rest),
            IpAddr::V6(v6) => {
                state.write_u128(v6.to_bits());
                state.write_u64(rest);
            }
        }
    }
}

/// Hashes keys of maps that control fills and workers read; not for what clients can choose.
pub(crate) type KeyHasher = std::hash::BuildHasherDefault<RapidHasher<'static>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_there_and_back() {
        let v4: IpAddr = "203.0.113.10".parse().unwrap();
        let v6: IpAddr = "2001:db8::8a2e:370:7334".parse().unwrap();
        assert_eq!(V4::from_ip(v4).unwrap().to_ip(), v4);
        assert_eq!(V6::from_ip(v6).unwrap().to_ip(), v6);
        assert_eq!((V4::from_ip(v6), V6::from_ip(v4)), (None, None));
    }

    #[test]
    fn an_ipv4_endpoint_stays_small() {
        assert_eq!(std::mem::size_of::<Endpoint<V4>>(), 6);
        assert_eq!(std::mem::size_of::<Tuple<V4>>(), 14);
    }
}
