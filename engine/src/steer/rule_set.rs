//! Rules compiled for lookup, and what they mean: the reference for every filter that a device or kernel runs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{HEADERS_MAX, Prefix, Rule, Side};
use crate::port::MacAddr;

/// Rules compiled for lookup by longest prefix: each entry holds the ports of all rules whose prefix covers it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    destination: Entries,
    source: Entries,
}

/// Addresses of one side with their ports.
pub(crate) type Entries = BTreeMap<Prefix, PortSet>;

/// Ports per protocol: sorted ranges that neither overlap nor touch, so that equal sets compare equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PortSet {
    ranges: Vec<PortRange>,
}

/// Protocol, first and last port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortRange {
    pub(crate) protocol: u8,
    pub(crate) first: u16,
    pub(crate) last: u16,
}

/// What of a packet the rules look at.
enum Headers {
    /// TCP or UDP with its ports.
    Ports { protocol: u8, source: u16, destination: u16 },
    /// A fragment without ports: the addresses decide.
    AddressesOnly,
    /// An ICMP error: the addresses decide, or the packet it quotes.
    Error(Option<Quoted>),
}

/// The packet that an ICMP error quotes, or the one in the tunnel that it quotes.
struct Quoted {
    protocol: u8,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    tunnelled: bool,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Tunnels (RFC 2003, RFC 2473).
const IPIP: u8 = 4;
const IPV6: u8 = 41;
/// IPv6 extension headers.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

impl RuleSet {
    /// Compiles rules. A rule for another protocol than TCP and UDP names its addresses only.
    pub fn compile(rules: &[Rule]) -> Self {
        Self { destination: entries(rules, Side::Destination), source: entries(rules, Side::Source) }
    }

    /// Whether a frame, seen by a port with the addresses `macs`, is taken off the kernel:
    ///
    /// - Its destination is one of `macs` and no group address; behind at most one 802.1Q tag comes IPv4 or IPv6,
    ///   with the whole fixed header (IPv4: and options) in the frame.
    /// - TCP or UDP: a rule's prefix holds the address and its ports the port of the rule's side.
    /// - A later fragment, an ICMP error (IPv4 types 3, 4, 11, 12; IPv6 types 1 to 4), or an IPv6 packet with more
    ///   than [`HEADERS_MAX`] extension headers: a rule's prefix holds the address of the rule's side, whatever the
    ///   rule's protocol and ports.
    /// - An ICMP error about a packet to a server, from a router on the way to it: the rules would take the quoted
    ///   packet's answer by its source, port included. The quoted TCP or UDP header follows the quoted IP header.
    /// - An ICMP error about a tunnel (IPv4 in IPv4, IPv6 in IPv6): the rules would take the packet inside, whose TCP or
    ///   UDP header follows its IP header.
    ///
    /// In IPv6 hop-by-hop options, destination options, routing, fragment and authentication headers are walked over as
    /// far as they are in the frame. A routing header with segments left is the kernel's: its packet is on the way to
    /// somewhere else.
    ///
    /// Lengths that reach beyond the frame are not looked at.
    pub fn takes(&self, macs: &[MacAddr], frame: &[u8]) -> bool {
        self.matches(macs, frame).unwrap_or(false)
    }

    pub(crate) fn side(&self, side: Side) -> &Entries {
        match side {
            Side::Destination => &self.destination,
            Side::Source => &self.source,
        }
    }

    /// `None` where the frame ends too early or is nothing that rules speak of.
    fn matches(&self, macs: &[MacAddr], frame: &[u8]) -> Option<bool> {
        let station = MacAddr(*frame.first_chunk()?);
        if station.is_group() || !macs.contains(&station) {
            return None;
        }
        let (ethertype, packet) = match half(frame, 12)? {
            0x8100 => (half(frame, 16)?, frame.get(18..)?),
            untagged => (untagged, frame.get(14..)?),
        };
        let (source, destination, headers) = match ethertype {
            0x0800 => ipv4(packet)?,
            0x86dd => ipv6(packet)?,
            _ => return None,
        };
        let (destination, source) = (longest(&self.destination, destination), longest(&self.source, source));
        Some(match headers {
            Headers::AddressesOnly => destination.is_some() || source.is_some(),
            Headers::Error(quoted) => {
                destination.is_some() || source.is_some() || quoted.is_some_and(|quoted| self.names(&quoted))
            }
            Headers::Ports { protocol, source: source_port, destination: destination_port } => {
                destination.is_some_and(|ports| ports.contains(protocol, destination_port))
                    || source.is_some_and(|ports| ports.contains(protocol, source_port))
            }
        })
    }

    /// Whether a rule would take a quoted packet's answer, or what was in a quoted tunnel.
    fn names(&self, quoted: &Quoted) -> bool {
        let &Quoted { protocol, source, destination, tunnelled } = quoted;
        let has = |entries: &Entries, (address, port)| {
            longest(entries, address).is_some_and(|ports: &PortSet| ports.contains(protocol, port))
        };
        match tunnelled {
            false => has(&self.source, destination),
            true => has(&self.destination, destination) || has(&self.source, source),
        }
    }
}

impl PortSet {
    /// The ranges of TCP and UDP ports, ascending.
    pub(crate) fn ranges(&self) -> &[PortRange] {
        &self.ranges
    }

    fn contains(&self, protocol: u8, port: u16) -> bool {
        self.ranges
            .iter()
            .any(|range| range.protocol == protocol && (range.first..=range.last).contains(&port))
    }

    fn extend(&mut self, more: impl IntoIterator<Item = PortRange>) {
        self.ranges.extend(more);
        self.ranges.sort_unstable();
        self.ranges.dedup_by(|next, kept| {
            let joins = next.protocol == kept.protocol && u32::from(next.first) <= u32::from(kept.last) + 1;
            if joins {
                kept.last = kept.last.max(next.last);
            }
            joins
        });
    }
}

/// Shorter prefixes first, so that the ports of all that cover an entry are in the longest of them already.
fn entries(rules: &[Rule], side: Side) -> Entries {
    let mut by_len: BTreeMap<u8, BTreeMap<Prefix, Vec<PortRange>>> = BTreeMap::new();
    for rule in rules.iter().filter(|rule| rule.side == side) {
        let ranges = by_len.entry(rule.prefix.len()).or_default().entry(rule.prefix).or_default();
        if matches!(rule.protocol, TCP | UDP) && !rule.ports.is_empty() {
            let (first, last) = (*rule.ports.start(), *rule.ports.end());
            ranges.push(PortRange { protocol: rule.protocol, first, last });
        }
    }
    let mut entries = Entries::new();
    for prefixes in by_len.into_values() {
        for (prefix, ranges) in prefixes {
            let mut ports = longest(&entries, prefix.address()).cloned().unwrap_or_default();
            ports.extend(ranges);
            entries.insert(prefix, ports);
        }
    }
    entries
}

fn longest(entries: &Entries, address: IpAddr) -> Option<&PortSet> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    (0..=bits).rev().find_map(|len| entries.get(&Prefix::new(address, len)?))
}

/// Source, destination and what else counts.
fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, Headers)> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < 20 {
        return None;
    }
    let payload = packet.get(header_len..)?;
    let later_fragment = half(header, 6)? & 0x1fff != 0;
    let headers = match header[9] {
        _ if later_fragment => Headers::AddressesOnly,
        ICMP if matches!(payload.first()?, 3 | 4 | 11 | 12) => {
            Headers::Error(payload.get(8..).and_then(|quote| quoted_ipv4(quote, false)))
        }
        protocol => ports(protocol, payload)?,
    };
    let address = |at: usize| header[at..].first_chunk::<4>().map(|bytes| IpAddr::from(*bytes));
    Some((address(12)?, address(16)?, headers))
}

fn ipv6(packet: &[u8]) -> Option<(IpAddr, IpAddr, Headers)> {
    let header: &[u8; 40] = packet.first_chunk()?;
    let payload = &packet[40..];
    if header[0] >> 4 != 6 {
        return None;
    }
    let headers = behind_extensions(header[6], payload)?;
    let address = |at: usize| header[at..].first_chunk::<16>().map(|bytes| IpAddr::from(*bytes));
    Some((address(8)?, address(24)?, headers))
}

/// What counts of the headers from `next` on, the first of them being `bytes`.
fn behind_extensions(mut next: u8, mut bytes: &[u8]) -> Option<Headers> {
    for walked in 0..=HEADERS_MAX {
        let len = match next {
            ICMPV6 if matches!(bytes.first()?, 1..=4) => {
                return Some(Headers::Error(bytes.get(8..).and_then(|quote| quoted_ipv6(quote, false))));
            }
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION if walked == HEADERS_MAX => break,
            ROUTING if bytes.first_chunk::<8>()?[3] != 0 => return None,
            HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(bytes.first_chunk::<8>()?[1]) + 1) * 8,
            AUTHENTICATION => (usize::from(bytes.first_chunk::<8>()?[1]) + 2) * 4,
            FRAGMENT if half(bytes.first_chunk::<8>()?, 2)? & 0xfff8 != 0 => {
                return Some(Headers::AddressesOnly);
            }
            FRAGMENT => 8,
            protocol => return ports(protocol, bytes),
        };
        next = bytes[0];
        bytes = bytes.get(len..)?;
    }
    Some(Headers::AddressesOnly)
}

fn quoted_ipv4(packet: &[u8], tunnelled: bool) -> Option<Quoted> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < 20 || half(header, 6)? & 0x1fff != 0 {
        return None;
    }
    let payload = packet.get(header_len..)?;
    let address = |at: usize| header[at..].first_chunk::<4>().map(|bytes| IpAddr::from(*bytes));
    match header[9] {
        IPIP if !tunnelled => quoted_ipv4(payload, true),
        protocol => quoted(protocol, (address(12)?, address(16)?), payload, tunnelled),
    }
}

fn quoted_ipv6(packet: &[u8], tunnelled: bool) -> Option<Quoted> {
    let header: &[u8; 40] = packet.first_chunk()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let payload = &packet[40..];
    let address = |at: usize| header[at..].first_chunk::<16>().map(|bytes| IpAddr::from(*bytes));
    match header[6] {
        IPV6 if !tunnelled => quoted_ipv6(payload, true),
        protocol => quoted(protocol, (address(8)?, address(24)?), payload, tunnelled),
    }
}

fn quoted(
    protocol: u8,
    (source, destination): (IpAddr, IpAddr),
    payload: &[u8],
    tunnelled: bool,
) -> Option<Quoted> {
    let (source, destination) = ((source, half(payload, 0)?), (destination, half(payload, 2)?));
    matches!(protocol, TCP | UDP).then_some(Quoted { protocol, source, destination, tunnelled })
}

fn ports(protocol: u8, payload: &[u8]) -> Option<Headers> {
    let (source, destination) = (half(payload, 0), half(payload, 2));
    match protocol {
        TCP | UDP => Some(Headers::Ports { protocol, source: source?, destination: destination? }),
        _ => None,
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(side: Side, prefix: &str, len: u8, protocol: u8, ports: std::ops::RangeInclusive<u16>) -> Rule {
        Rule { side, prefix: Prefix::new(prefix.parse().unwrap(), len).unwrap(), protocol, ports }
    }

    #[test]
    fn a_longer_prefix_has_the_ports_of_the_shorter_ones_around_it() {
        let rules = [
            rule(Side::Destination, "10.0.0.1", 32, TCP, 80..=80),
            rule(Side::Destination, "10.0.0.0", 8, TCP, 81..=90),
            rule(Side::Destination, "0.0.0.0", 0, UDP, 53..=53),
            rule(Side::Destination, "::", 0, UDP, 99..=99),
            rule(Side::Source, "10.0.0.1", 32, UDP, 1..=1),
        ];
        let set = RuleSet::compile(&rules);
        let range = |protocol, first, last| PortRange { protocol, first, last };
        let host = longest(&set.destination, "10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(host.ranges(), [range(TCP, 80, 90), range(UDP, 53, 53)]);
        let other = longest(&set.destination, "10.0.0.2".parse().unwrap()).unwrap();
        assert_eq!(other.ranges(), [range(TCP, 81, 90), range(UDP, 53, 53)]);
        assert_eq!(longest(&set.source, "10.0.0.2".parse().unwrap()), None);
    }

    #[test]
    fn equal_sets_of_ports_are_equal_however_they_were_written() {
        let set = |ranges: &[std::ops::RangeInclusive<u16>]| {
            let rules: Vec<_> =
                ranges.iter().map(|r| rule(Side::Source, "::1", 128, TCP, r.clone())).collect();
            RuleSet::compile(&rules)
        };
        assert_eq!(set(&[1..=5, 6..=9, 3..=4]), set(&[1..=9]));
        assert_eq!(set(&[0..=65535, 65535..=65535]), set(&[0..=65535]));
        assert_ne!(set(&[1..=5, 7..=9]), set(&[1..=9]));
    }
}
