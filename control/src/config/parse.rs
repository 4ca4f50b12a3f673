//! Values as operators write them: durations, addresses with ports, ranges, lists of cores. Each parser answers with
//! the value or with a sentence that says what is wrong.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use shunt_engine::steer::Prefix;

/// An address and the ports behind it; without a port the ports are `None`.
pub(super) type AddressPorts = (IpAddr, Option<RangeInclusive<u16>>);

/// `"900s"`, `"15m"`, `"2h"`, `"500ms"`; more than nothing, at most 31 days.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| "not a duration".to_owned())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "" => return Err("the unit is missing".to_owned()),
        _ => return Err(format!("{unit:?} is not a unit")),
    };
    match millis {
        Some(0) => Err("must be longer than nothing".to_owned()),
        Some(millis) if millis <= DURATION_MAX_MILLIS => Ok(Duration::from_millis(millis)),
        _ => Err("longer than 31 days".to_owned()),
    }
}

const DURATION_MAX_MILLIS: u64 = 31 * 24 * 3_600_000;

/// `"1000"`, `"10k"`, `"2M"`, `"1G"`.
pub(super) fn count(text: &str) -> Result<i64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: i64 = number.parse().map_err(|_| "not a whole number".to_owned())?;
    let factor = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return Err(format!("{unit:?} is not a unit")),
    };
    number.checked_mul(factor).ok_or_else(|| "too large".to_owned())
}

/// `"203.0.113.10:80"`, `"203.0.113.10:8000-8099"`, `"203.0.113.10:0"` (every port), `"203.0.113.10"`; in IPv6
/// `"[2001:db8::10]:80"` and so on, without a port also `"2001:db8::10"`.
pub(super) fn address_ports(text: &str) -> Result<AddressPorts, String> {
    let (address, ports) = match text.strip_prefix('[') {
        Some(rest) => bracketed(rest)?,
        None => match text.rsplit_once(':') {
            // More than one colon: IPv6, whose address has brackets before a port.
            Some((head, _)) if head.contains(':') => (text, None),
            Some((address, ports)) => (address, Some(ports)),
            None => (text, None),
        },
    };
    Ok((host(address)?, ports.map(ports_of).transpose()?))
}

/// `"80"`, `"8000-8099"`, or `"0"` for every port.
fn ports_of(text: &str) -> Result<RangeInclusive<u16>, String> {
    if text == "0" { Ok(0..=u16::MAX) } else { port_range(text) }
}

/// What [`address_ports`] reads, and prefixes: `"198.51.100.0/24:80"`, `"0.0.0.0/0:80"`, `"[2001:db8::]/32:443"`.
pub(super) fn prefix_ports(text: &str) -> Result<(Prefix, Option<RangeInclusive<u16>>), String> {
    let Some((network, rest)) = text.split_once('/') else {
        let (address, ports) = address_ports(text)?;
        return Ok((Prefix::host(address), ports));
    };
    let network = match network.strip_prefix('[') {
        Some(rest) => match bracketed(rest)? {
            (address, None) => address,
            _ => return Err("the length stands before the port".to_owned()),
        },
        None if network.contains(':') => return Err("an IPv6 prefix has its address in brackets".to_owned()),
        None => network,
    };
    let (len, ports) = match rest.split_once(':') {
        Some((len, ports)) => (len, Some(ports_of(ports)?)),
        None => (rest, None),
    };
    Ok((prefix(network, len)?, ports))
}

fn prefix(network: &str, len: &str) -> Result<Prefix, String> {
    let address: IpAddr = network.parse().map_err(|_| why_no_address(network))?;
    let digits = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_digit());
    let number = len.parse().ok().filter(|_| digits);
    let prefix = number.and_then(|number| Prefix::new(address, number));
    let prefix = prefix.ok_or_else(|| format!("{len:?} is not the length of a prefix"))?;
    if prefix.address() != address {
        return Err(format!("{network} has bits behind the prefix; it begins at {}", prefix.address()));
    }
    // All addresses of a prefix are as special as its first, but for those of short ones that begin at 0.0.0.0 or ::.
    if !(address.is_unspecified() && prefix.len() < SPECIAL_LEN) {
        host(network)?;
    }
    Ok(prefix)
}

/// 0.0.0.0/8 has no address that a host can have, nor has ::/8 one that is in use; longer and shorter ones begin alike.
const SPECIAL_LEN: u8 = 8;

/// What follows an opening bracket: `ADDRESS]` or `ADDRESS]:PORTS`.
fn bracketed(text: &str) -> Result<(&str, Option<&str>), String> {
    let (address, rest) = text.split_once(']').ok_or("the bracket is not closed")?;
    if !address.contains(':') {
        return Err("brackets are for IPv6 addresses".to_owned());
    }
    match rest.strip_prefix(':') {
        Some(ports) => Ok((address, Some(ports))),
        None if rest.is_empty() => Ok((address, None)),
        None => Err(format!("{rest:?} behind the bracket is no port")),
    }
}

/// An address that a host can have, wherever on the network it is asked for.
pub(super) fn host(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| why_no_address(text))?;
    let special = match address {
        // This network (RFC 1122 §3.2.1.3), loopback; multicast, reserved (RFC 1112 §4) and broadcast.
        IpAddr::V4(v4) => matches!(v4.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped() {
                return Err(format!("write it as the IPv4 address that it is: {v4}"));
            }
            if v6.is_unicast_link_local() {
                return Err("a link-local address means nothing beyond its link".to_owned());
            }
            // ::, loopback and IPv4 addresses as they were once written; reserved (RFC 4291 §2.4); multicast.
            v6.to_ipv4().is_some() || v6.segments()[0] & 0xff80 == 0xfe00 || v6.is_multicast()
        }
    };
    if special {
        return Err("not an address that a host on the network can have".to_owned());
    }
    Ok(address)
}

fn why_no_address(text: &str) -> String {
    if text.contains('/') {
        return "a prefix is not possible here; write single addresses".to_owned();
    }
    if text.contains('%') {
        return "an address with a zone means nothing beyond its link".to_owned();
    }
    let octets: Vec<_> = text.split('.').collect();
    let numbers = octets.iter().all(|octet| !octet.is_empty() && octet.bytes().all(|b| b.is_ascii_digit()));
    match octets.iter().find(|octet| octet.parse::<u8>().is_err()) {
        Some(octet) if numbers && octets.len() == 4 => format!("octet {octet} is out of range"),
        _ => "not an IP address".to_owned(),
    }
}

/// `"80"` or `"8000-8099"`; ports are 1 … 65535.
pub(super) fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("the range {first}-{last} runs backwards"));
    }
    Ok(first..=last)
}

fn port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if port > 0 && digits => Ok(port),
        _ if digits => Err(format!("port {text} is not in 1-65535")),
        _ => Err(format!("{text:?} is not a port")),
    }
}

/// `"2-5,8"`.
pub(super) fn cores(text: &str) -> Result<Vec<usize>, String> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| format!("{text:?} is not a core"));
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last >= CORES_MAX {
            return Err(format!("{part:?} is not a range of cores"));
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

/// Cores are numbered below this: what Linux calls CONFIG_NR_CPUS is at most 8192.
pub(super) const CORES_MAX: usize = 8192;

/// The word of `known` nearest to `typed`, when it is near enough to be meant.
pub(super) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near_enough = (typed.chars().count() / 3).max(1);
    let measured = known.into_iter().map(|word| (edits(typed, word), word));
    measured.filter(|&(distance, _)| distance <= near_enough).min().map(|(_, word)| word)
}

/// Levenshtein distance: letters to insert, delete or replace.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_bounds() {
        assert_eq!(duration("900s"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("744h"), Ok(Duration::from_millis(DURATION_MAX_MILLIS)));
        for bad in ["", "900", "s", "-1s", "1.5s", "0s", "745h", "3 weeks", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_may_have_a_port_a_range_every_port_or_none() {
        let address = IpAddr::from([203, 0, 113, 10]);
        assert_eq!(address_ports("203.0.113.10:80"), Ok((address, Some(80..=80))));
        assert_eq!(address_ports("203.0.113.10:8000-8099"), Ok((address, Some(8000..=8099))));
        assert_eq!(address_ports("203.0.113.10:0"), Ok((address, Some(0..=65535))));
        assert_eq!(address_ports("203.0.113.10"), Ok((address, None)));
        let v6: IpAddr = "2001:db8::10".parse().unwrap();
        assert_eq!(address_ports("[2001:db8::10]:80"), Ok((v6, Some(80..=80))));
        assert_eq!(address_ports("[2001:db8::10]:0"), Ok((v6, Some(0..=65535))));
        assert_eq!(address_ports("[2001:db8::10]"), Ok((v6, None)));
        assert_eq!(address_ports("2001:db8::10"), Ok((v6, None)));
        for bad in ["[2001:db8::10]:", "[2001:db8::10]80", "[[2001:db8::10]]:80", "[]:80", "2001:db8:::10"] {
            assert!(address_ports(bad).is_err(), "{bad}");
        }
        for bad in ["", ":80", "203.0.113.10:", "203.0.113.10:65536", "203.0.113.10:9-8", "203.0.113.10:+80"]
        {
            assert!(address_ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_address_is_said() {
        let why = |text| address_ports(text).unwrap_err();
        assert_eq!(why("10.0.0.300:80"), "octet 300 is out of range");
        assert_eq!(why("[2001:db8::1:80"), "the bracket is not closed");
        assert_eq!(why("[203.0.113.10]:80"), "brackets are for IPv6 addresses");
        assert_eq!(why("[::ffff:203.0.113.10]:80"), "write it as the IPv4 address that it is: 203.0.113.10");
        assert_eq!(why("fe80::1"), "a link-local address means nothing beyond its link");
        assert_eq!(why("[fe80::1%eth0]:80"), "an address with a zone means nothing beyond its link");
        assert_eq!(why("[::1]:80"), "not an address that a host on the network can have");
        assert_eq!(why("0.0.0.0/0:80"), "a prefix is not possible here; write single addresses");
        assert_eq!(why("web1:80"), "not an IP address");
        for text in [
            "127.0.0.1:80",
            "240.0.0.1:80",
            "0.1.2.3:80",
            "255.255.255.255:80",
            "[fe00::1]:80",
            "[ff02::1]:80",
        ] {
            assert_eq!(why(text), "not an address that a host on the network can have", "{text}");
        }
        for text in ["223.255.255.254:80", "128.0.0.1:80", "1.0.0.1:80", "[fdff::1]:80", "[fec0::1]:80"] {
            assert!(address_ports(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_prefix_has_a_length_and_no_bits_behind_it() {
        let prefix = |address: [u8; 4], len| Prefix::new(address.into(), len).unwrap();
        assert_eq!(prefix_ports("0.0.0.0/0:80"), Ok((prefix([0; 4], 0), Some(80..=80))));
        assert_eq!(prefix_ports("198.51.100.0/24:0"), Ok((prefix([198, 51, 100, 0], 24), Some(0..=65535))));
        assert_eq!(prefix_ports("198.51.100.0/24"), Ok((prefix([198, 51, 100, 0], 24), None)));
        assert_eq!(prefix_ports("203.0.113.10:80"), Ok((prefix([203, 0, 113, 10], 32), Some(80..=80))));
        let why = |text| prefix_ports(text).unwrap_err();
        assert_eq!(
            why("198.51.100.7/24:80"),
            "198.51.100.7 has bits behind the prefix; it begins at 198.51.100.0"
        );
        assert_eq!(why("198.51.100.0/33:80"), "\"33\" is not the length of a prefix");
        assert_eq!(why("198.51.100.0/+4:80"), "\"+4\" is not the length of a prefix");
        assert_eq!(why("198.51.100.0/:80"), "\"\" is not the length of a prefix");
        assert_eq!(why("198.51.100.0/24:"), "\"\" is not a port");
        assert_eq!(why("198.51.300.0/24:80"), "octet 300 is out of range");
        assert_eq!(why("224.0.0.0/4:80"), "not an address that a host on the network can have");
        assert_eq!(why("2001:db8::/32:443"), "an IPv6 prefix has its address in brackets");
        assert_eq!(why("[2001:db8::]:443/32"), "the length stands before the port");
        assert_eq!(why("[2001:db8::/32]:443"), "the bracket is not closed");
        assert_eq!(why("[fe80::]/10:443"), "a link-local address means nothing beyond its link");
        let v6 = |text: &str, len| Prefix::new(text.parse().unwrap(), len).unwrap();
        assert_eq!(prefix_ports("[2001:db8::]/32:443"), Ok((v6("2001:db8::", 32), Some(443..=443))));
        assert_eq!(prefix_ports("[::]/0:0"), Ok((v6("::", 0), Some(0..=65535))));
        assert_eq!(prefix_ports("[2001:db8::10]:80"), Ok((v6("2001:db8::10", 128), Some(80..=80))));
        for text in [
            "0.0.0.0/32:80",
            "0.0.0.0/8:80",
            "127.0.0.0/8:80",
            "224.0.0.0/3:80",
            "240.0.0.0/4:80",
            "[fe00::]/7:80",
            "[ff00::]/8:80",
            "[::]/8:80",
            "[::]/128:80",
        ] {
            assert_eq!(why(text), "not an address that a host on the network can have", "{text}");
        }
        // What no host can have is left alone in a prefix around it.
        assert_eq!(prefix_ports("128.0.0.0/1:80"), Ok((prefix([128, 0, 0, 0], 1), Some(80..=80))));
        assert_eq!(prefix_ports("0.0.0.0/7:80"), Ok((prefix([0; 4], 7), Some(80..=80))));
    }

    #[test]
    fn cores_are_lists_of_ranges() {
        assert_eq!(cores("2-5,8"), Ok(vec![2, 3, 4, 5, 8]));
        assert_eq!(cores("0"), Ok(vec![0]));
        for bad in ["", "a", "5-2", "1-", "99999"] {
            assert!(cores(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nearest_word_is_near() {
        assert_eq!(nearest("schedular", ["name", "scheduler"]), Some("scheduler"));
        assert_eq!(nearest("wcl", ["rr", "wrr", "wlc"]), None);
        assert_eq!(nearest("wl", ["rr", "wrr", "wlc"]), Some("wlc"));
        assert_eq!(nearest("colour", ["name", "scheduler"]), None);
    }
}
