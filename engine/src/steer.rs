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
}
