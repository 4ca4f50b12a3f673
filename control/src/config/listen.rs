//! Where a service listens: single addresses, or prefixes for clusters of caches in DR and TUN.

use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};

use shunt_engine::steer::Prefix;
use toml::Spanned;

use super::diagnostic::Diagnostics;
use super::{PortsText, Service, parse, raw};

/// Addresses with the ports a service answers on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listen {
    /// One address, or all of a prefix.
    pub prefix: Prefix,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl Listen {
    /// The ports.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// The address (VIP), when it is a single one.
    pub fn vip(&self) -> Option<IpAddr> {
        self.prefix.is_host().then_some(self.prefix.address())
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.prefix.address() {
            IpAddr::V4(v4) => write!(out, "{v4}")?,
            IpAddr::V6(v6) => write!(out, "[{v6}]")?,
        }
        if !self.prefix.is_host() {
            write!(out, "/{}", self.prefix.len())?;
        }
        write!(out, ":{}", PortsText(self.first, self.last))
    }
}

/// The listen entries of a service with their places. Wrong ones are left out and noted in `diagnostics`.
pub(super) fn listens(
    name: &str,
    spanned: &Spanned<raw::Service>,
    diagnostics: &mut Diagnostics,
) -> Vec<(Listen, Range<usize>)> {
    let key = format!("service {name:?}: listen");
    let Some(typed) = spanned.as_ref().listen.as_ref().filter(|list| !list.as_ref().is_empty()) else {
        diagnostics
            .error(spanned.span(), format!("{key} is missing"), "clients cannot reach this service")
            .help("add listen = [\"203.0.113.10:80\"]");
        return Vec::new();
    };
    let one = |text: &Spanned<String>| match listen(text.as_ref()) {
        Ok(listen) => Some((listen, text.span())),
        Err(why) => {
            let message = format!("{key}: {:?} is not possible", text.as_ref());
            let help = if text.as_ref().contains('/') { PREFIX_HELP } else { LISTEN_HELP };
            diagnostics.error(text.span(), message, why).help(help);
            None
        }
    };
    typed.as_ref().iter().filter_map(one).collect()
}

fn listen(text: &str) -> Result<Listen, String> {
    let (prefix, ports) = parse::prefix_ports(text)?;
    let ports = ports.ok_or_else(|| "the port is missing".to_owned())?;
    Ok(Listen { prefix, first: *ports.start(), last: *ports.end() })
}

const LISTEN_HELP: &str = "write it as \"203.0.113.10:80\", \"[2001:db8::10]:80\", \"203.0.113.10:8000-8099\" or \"203.0.113.10:0\" for every port";

const PREFIX_HELP: &str = "write it as \"198.51.100.0/24:80\", \"[2001:db8::]/32:80\", or \"0.0.0.0/0:80\" for every address that is not the director's own";

/// Prefixes of a service with servers that answer through the director.
pub(super) fn prefixes_need_dr_or_tun(
    service: &Service,
    places: &[Range<usize>],
    diagnostics: &mut Diagnostics,
) {
    let mut modes = service.servers.iter().map(|server| server.mode);
    let default = service.servers.is_empty().then_some(service.mode);
    let Some(mode) = modes.find(|mode| mode.sees_replies()).or(default.filter(|mode| mode.sees_replies()))
    else {
        return;
    };
    for (listen, place) in service.listen.iter().zip(places).filter(|(listen, _)| listen.vip().is_none()) {
        let message = format!(
            "service {:?}: listen: {listen} is a prefix, which mode {} cannot serve",
            service.name,
            mode.name()
        );
        diagnostics
            .error(
                place.clone(),
                message,
                "answers would have to come from addresses that are not the director's",
            )
            .help("use mode dr or tun, where servers answer themselves; or write single addresses");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listen_entry_is_shown_as_it_is_written() {
        for text in [
            "203.0.113.10:80",
            "203.0.113.10:8000-8099",
            "203.0.113.10:0",
            "0.0.0.0/0:80",
            "198.51.100.0/24:0",
        ] {
            assert_eq!(listen(text).unwrap().to_string(), text);
        }
        assert_eq!(listen("203.0.113.10/32:80").unwrap().to_string(), "203.0.113.10:80");
    }
}
