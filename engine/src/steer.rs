//! Steering rules: which frames a port takes off the kernel.
//!
//! A rule names a prefix of destination or source addresses, a protocol and a range of ports. For every address named
//! by a rule, non-first fragments and ICMP errors are taken too, whatever their protocol: only a look at the flows can
//! tell whose they are. [`crate::port::af_xdp`] puts the rules into an XDP program's maps.

pub(crate) mod rule_set;

use std::net::IpAddr;
use std::ops::RangeInclusive;

pub use rule_set::RuleSet;

/// IPv6 extension headers that are walked over to find a packet's ports. RFC 8504 §5.3 lets a node set such a limit.
pub const HEADERS_MAX: usize = 8;

/// Which address and port of a packet a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Destination address and port.
    Destination,
    /// Source address and port.
    Source,
}

/// An address with the number of leading bits that count. Bits behind them are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// A prefix; bits behind `len` are cleared. `None` when `len` is too long for the family.
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) if len <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
            _ => return None,
        };
        Some(Self { address, len })
    }

    /// The prefix that holds one address.
    pub fn host(address: IpAddr) -> Self {
        Self { address, len: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// The first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that count.
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Whether every address of the family matches.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is left of the prefix without `holes`, as the largest prefixes there are.
    pub fn without(self, holes: &[Self]) -> Vec<Self> {
        let holes: Vec<Self> =
            holes.iter().copied().filter(|hole| self.covers(*hole) || hole.covers(self)).collect();
        if holes.is_empty() {
            return vec![self];
        }
        if holes.iter().any(|hole| hole.covers(self)) {
            return Vec::new();
        }
        self.halves().into_iter().flatten().flat_map(|half| half.without(&holes)).collect()
    }

    /// Whether all addresses of `other` lie in the prefix.
    pub fn covers(&self, other: Self) -> bool {
        self.len <= other.len && self.contains(other.address)
    }

    /// The two prefixes of the next length; `None` for a single address.
    fn halves(self) -> Option<[Self; 2]> {
        let low = Self::new(self.address, self.len + 1)?;
        let address = match self.address {
            IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() | 1 << (31 - self.len)).into()),
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() | 1 << (127 - self.len)).into()),
        };
        Some([low, Self { address, ..low }])
    }

    /// Whether it holds one address only.
    pub fn is_host(&self) -> bool {
        self.len == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Whether `address` lies in the prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && Self::new(address, self.len) == Some(*self)
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}", self.address, self.len)
    }
}

/// Frames to take: `side` address in `prefix`, IP protocol `protocol`, `side` port in `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Which address and port.
    pub side: Side,
    /// The addresses.
    pub prefix: Prefix,
    /// IP protocol number: 6 TCP, 17 UDP.
    pub protocol: u8,
    /// The ports; `0..=65535` is every port.
    pub ports: RangeInclusive<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_clears_host_bits_and_knows_its_addresses() {
        let prefix = Prefix::new("10.1.2.3".parse().unwrap(), 8).unwrap();
        assert_eq!(prefix.to_string(), "10.0.0.0/8");
        assert!(prefix.contains("10.255.0.1".parse().unwrap()));
        assert!(!prefix.contains("11.0.0.1".parse().unwrap()));
        assert!(!prefix.contains("::ffff:10.0.0.1".parse().unwrap()));
        let all = Prefix::new("1.2.3.4".parse().unwrap(), 0).unwrap();
        assert!(all.is_empty() && all.contains("255.255.255.255".parse().unwrap()));
        let v6 = Prefix::new("2001:db8::1".parse().unwrap(), 32).unwrap();
        assert!(v6.contains("2001:db8:ffff::".parse().unwrap()));
        assert_eq!(Prefix::new("10.0.0.1".parse().unwrap(), 33), None);
        assert!(Prefix::host("::1".parse().unwrap()).contains("::1".parse().unwrap()));
    }

    #[test]
    fn a_prefix_without_some_addresses_holds_all_others() {
        let prefix = Prefix::new("10.0.0.0".parse().unwrap(), 29).unwrap();
        let holes = ["10.0.0.3", "10.0.0.7", "192.0.2.1"].map(|hole| Prefix::host(hole.parse().unwrap()));
        let left: Vec<_> = prefix.without(&holes).iter().map(ToString::to_string).collect();
        assert_eq!(left, ["10.0.0.0/31", "10.0.0.2/32", "10.0.0.4/31", "10.0.0.6/32"]);
        assert_eq!(prefix.without(&holes[2..]), [prefix]);
        let host = holes[0];
        assert_eq!((host.without(&holes), host.without(&[])), (vec![], vec![host]));
        let all = Prefix::new("::".parse().unwrap(), 0).unwrap();
        assert_eq!(all.without(&[Prefix::host("::1".parse().unwrap())]).len(), 128);
        let multicast = Prefix::new("ff00::".parse().unwrap(), 8).unwrap();
        let left: Vec<_> = all.without(&[multicast, prefix]).iter().map(ToString::to_string).collect();
        let expected =
            ["::/1", "8000::/2", "c000::/3", "e000::/4", "f000::/5", "f800::/6", "fc00::/7", "fe00::/8"];
        assert_eq!(left, expected);
        assert_eq!((multicast.without(&[all]), multicast.without(&[multicast])), (vec![], vec![]));
    }
}
