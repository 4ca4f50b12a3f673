//! Services and their servers: what each says on its own.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use shunt_dataplane::conn::Timeouts;
use shunt_dataplane::server::Mode;
use shunt_dataplane::service::{OutOfState, ServerGone};
use shunt_dataplane::tuple::Protocol;
use shunt_engine::Duration;
use toml::Spanned;

use super::diagnostic::{Diagnostics, shift};
use super::health;
use super::listen::{self, Listen};
use super::one_packet::one_packet;
use super::overlap;
use super::parse;
use super::persistence::persistence;
use super::raw;
use super::resolve::{duration, integer, word};
use super::scheduler::{check_slots, scheduler};
use super::thresholds::thresholds;
use super::words::{ServerState, Word};
use super::{AddressPorts, Server, ServerHealth, ServerPort, Service};
use crate::health::Standing;

/// A service with the places of its parts, in the order of the parts.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) service: Arc<Service>,
    pub(super) name: Range<usize>,
    pub(super) listen: Vec<Range<usize>>,
    pub(super) local: Vec<Range<usize>>,
    pub(super) servers: Vec<Range<usize>>,
    pub(super) server_names: Vec<Range<usize>>,
}

impl Placed {
    /// Where its local addresses stand.
    pub(super) fn local_places(&self) -> impl Iterator<Item = ((String, IpAddr), Range<usize>)> {
        let local = self.service.local.iter().zip(&self.local);
        local.map(|(local, place)| ((self.service.name.clone(), local.address), place.clone()))
    }

    /// The same in a file that begins at `base`.
    pub(super) fn at(mut self, base: usize) -> Self {
        let lists = [&mut self.listen, &mut self.local, &mut self.servers, &mut self.server_names];
        for place in lists.into_iter().flatten().chain([&mut self.name]) {
            *place = shift(place.clone(), base);
        }
        self
    }
}

/// What one `[[service]]` means. Wrong parts are left out and noted in `diagnostics`.
pub(super) fn service(
    spanned: &Spanned<raw::Service>,
    timeouts: &Timeouts,
    diagnostics: &mut Diagnostics,
) -> Placed {
    let typed = spanned.as_ref();
    let name = name(spanned, diagnostics);
    let key = |key: &str| format!("service {name:?}: {key}");
    if typed.protocol.is_none() {
        diagnostics
            .error(spanned.span(), key("`protocol` is missing"), "of this service")
            .help("add protocol = \"tcp\" or \"udp\"");
    }
    let protocol = word(&key("protocol"), &typed.protocol, Protocol::Tcp, diagnostics);
    let mode = word(&key("mode"), &typed.mode, Mode::Fullnat, diagnostics);
    let (listen, listen_places): (Vec<_>, Vec<_>) =
        listen::listens(&name, spanned, diagnostics).into_iter().unzip();
    let drain = duration(&key("drain"), &typed.drain, diagnostics);
    let health = health::defaults(&format!("service {name:?}"), typed, diagnostics);
    let defaults = Defaults { mode, drain, health: &health, listen: &listen };
    let mut servers: Vec<_> = typed
        .server
        .iter()
        .filter_map(|server| resolve_server(&name, server, false, &defaults, diagnostics))
        .collect();
    let sorry = typed.sorry_server.iter();
    servers.extend(sorry.filter_map(|server| resolve_server(&name, server, true, &defaults, diagnostics)));
    // What depends on the modes is told when they are known.
    let modes_known = known(&typed.mode) && typed.server.iter().all(|server| known(&server.as_ref().mode));
    let one_packet = one_packet(&name, typed, protocol, &servers, modes_known, diagnostics);
    let (servers, server_places): (Vec<Server>, Vec<Places>) = servers.into_iter().unzip();
    if typed.server.is_empty() {
        let message = key("no [[service.server]]: every connection will be refused");
        diagnostics.warning(spanned.span(), message, "this service has no server");
    }
    let (local, local_places): (Vec<_>, Vec<_>) = locals(&name, typed, diagnostics).into_iter().unzip();
    for family in [Family::V4, Family::V6] {
        check_listens(&name, family, &listen, &listen_places, &servers, diagnostics);
        check_servers(&name, family, &listen, &servers, &server_places, diagnostics);
        if modes_known {
            check_locals(&name, family, spanned, &local, &servers, diagnostics);
        }
    }
    if modes_known {
        check_locals_are_used(&name, typed, mode, &servers, diagnostics);
    }
    let replies_seen = servers.iter().map(|server| server.mode).chain([mode]).all(Mode::sees_replies);
    let scheduler = scheduler(&name, typed, diagnostics);
    check_slots(&name, typed, &scheduler, &servers, diagnostics);
    health::check_ports(&name, &listen, &servers, &server_places, diagnostics);
    // Where nothing but the addresses says which server it is, a packet after a restart still finds the one it was for.
    let default = match replies_seen {
        true => OutOfState::Reset,
        false if scheduler.kind.maps() && servers.iter().all(|server| !server.mode.sees_replies()) => {
            OutOfState::Schedule
        }
        false => OutOfState::Drop,
    };
    let service = Service {
        listen,
        protocol,
        mode,
        scheduler,
        local,
        out_of_state: word(&key("out_of_state"), &typed.out_of_state, default, diagnostics),
        server_gone: server_gone(&name, typed, protocol, diagnostics),
        timeouts: super::timeouts::timeouts(&key("timeouts"), &typed.timeouts, *timeouts, diagnostics),
        persistence: persistence(&name, typed, diagnostics),
        one_packet,
        policy: health::policy(&format!("service {name:?}"), typed, &servers, diagnostics),
        servers,
        local_leaving: Vec::new(),
        left_out: false,
        name,
    };
    if modes_known {
        listen::prefixes_need_dr_or_tun(&service, &listen_places, diagnostics);
    }
    let name = typed.name.as_ref().map_or_else(|| spanned.span(), Spanned::span);
    let (servers, server_names) = server_places.into_iter().unzip();
    let service = Arc::new(service);
    let placed = Placed { service, name, listen: listen_places, local: local_places, servers, server_names };
    overlap::within(&placed, diagnostics);
    placed
}

/// Whether a mode is one of those there are, or left to the default.
fn known(mode: &raw::Typed<String>) -> bool {
    mode.as_ref().is_none_or(|typed| Mode::from_word(typed.as_ref()).is_some())
}

fn server_gone(
    name: &str,
    typed: &raw::Service,
    protocol: Protocol,
    diagnostics: &mut Diagnostics,
) -> ServerGone {
    let key = format!("service {name:?}: server_gone");
    let default = match protocol {
        Protocol::Tcp => ServerGone::Reset,
        Protocol::Udp => ServerGone::Reschedule,
    };
    let policy = word(&key, &typed.server_gone, default, diagnostics);
    if let Some(typed) = typed.server_gone.as_ref().filter(|_| protocol == Protocol::Udp && policy != default)
    {
        let message = format!("{key}: {:?} is not possible with udp", typed.as_ref());
        diagnostics.error(typed.span(), message, "a datagram always goes to a server that is there");
    }
    policy
}

fn name(spanned: &Spanned<raw::Service>, diagnostics: &mut Diagnostics) -> String {
    let Some(name) = &spanned.as_ref().name else {
        diagnostics.error(spanned.span(), "service: `name` is missing", "of this service");
        return String::new();
    };
    check_name("service.name", name, diagnostics);
    name.as_ref().clone()
}

fn check_name(key: &str, name: &Spanned<String>, diagnostics: &mut Diagnostics) {
    let text = name.as_ref();
    let odd = |c: char| c.is_control() || c.is_whitespace();
    if text.is_empty() || text.len() > NAME_LEN_MAX || text.contains(odd) {
        let label = format!("must have 1 to {NAME_LEN_MAX} characters and no spaces");
        diagnostics.error(name.span(), format!("{key}: {text:?} is no name"), label);
    }
}

const NAME_LEN_MAX: usize = 64;

type PlacedPorts = (AddressPorts, Range<usize>);

/// Where a server's address is, and its name.
pub(super) type Places = (Range<usize>, Range<usize>);

fn locals(name: &str, typed: &raw::Service, diagnostics: &mut Diagnostics) -> Vec<PlacedPorts> {
    let key = |key: &str| format!("service {name:?}: {key}");
    let ports = match typed.local_port_range.as_ref().map(|range| (range, parse::port_range(range.as_ref())))
    {
        None => LOCAL_PORTS,
        Some((_, Ok(ports))) => ports,
        Some((range, Err(why))) => {
            let message = format!("{}: {:?} is not possible", key("local_port_range"), range.as_ref());
            diagnostics.error(range.span(), message, why).help("write it as \"1025-65535\"");
            LOCAL_PORTS
        }
    };
    let mut locals: Vec<PlacedPorts> = Vec::new();
    for text in typed.local.iter().flat_map(|list| list.as_ref()) {
        match parse::host(text.as_ref()) {
            Ok(address) if locals.iter().any(|(local, _)| local.address == address) => {
                diagnostics.error(text.span(), key(&format!("local: {address} is named twice")), "again");
            }
            Ok(address) => {
                let local = AddressPorts { address, first: *ports.start(), last: *ports.end() };
                locals.push((local, text.span()));
            }
            Err(why) => {
                let message = format!("{}: {:?} is not possible", key("local"), text.as_ref());
                diagnostics.error(text.span(), message, why);
            }
        }
    }
    locals
}

/// Which addresses go together: a client of one family gets a server of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// A family that a service listens in and has no server of.
fn check_listens(
    service: &str,
    family: Family,
    listen: &[Listen],
    places: &[Range<usize>],
    servers: &[Server],
    diagnostics: &mut Diagnostics,
) {
    // A service without any server has a warning of its own.
    if servers.is_empty() || servers.iter().any(|server| family.has(server.address)) {
        return;
    }
    if let Some((entry, place)) =
        listen.iter().zip(places).find(|(entry, _)| family.has(entry.prefix.address()))
    {
        let name = family.name();
        let message = format!(
            "service {service:?}: listens on {entry} and has no {name} server: every connection will be refused"
        );
        diagnostics.warning(place.clone(), message, format!("{name} clients get {name} servers"));
    }
}

/// Servers of a family that their service does not listen in.
fn check_servers(
    service: &str,
    family: Family,
    listen: &[Listen],
    servers: &[Server],
    places: &[Places],
    diagnostics: &mut Diagnostics,
) {
    if listen.is_empty() || listen.iter().any(|entry| family.has(entry.prefix.address())) {
        return;
    }
    if let Some((server, (place, _))) =
        servers.iter().zip(places).find(|(server, _)| family.has(server.address))
    {
        let name = family.name();
        let message =
            format!("service {service:?}: server {:?}: the service does not listen in {name}", server.name);
        diagnostics.warning(place.clone(), message, "it will get no connections");
    }
}

/// FULLNAT servers without a local address of their family.
fn check_locals(
    service: &str,
    family: Family,
    spanned: &Spanned<raw::Service>,
    local: &[AddressPorts],
    servers: &[Server],
    diagnostics: &mut Diagnostics,
) {
    let needed = |server: &Server| server.mode == Mode::Fullnat && family.has(server.address);
    if !servers.iter().any(needed) || local.iter().any(|local| family.has(local.address)) {
        return;
    }
    let key = |key: &str| format!("service {service:?}: {key}");
    let free = match family {
        Family::V4 => "\"10.0.0.200\"",
        Family::V6 => "\"fd00::200\"",
    };
    let help =
        format!("add local = [{free}]: a free address of the servers' network, not an interface's own");
    match &spanned.as_ref().local {
        Some(typed) if !typed.as_ref().is_empty() => {
            // One that could not be read may have been it.
            if typed.as_ref().len() == local.len() {
                let name = family.name();
                let message = key(&format!("fullnat needs a local address for its {name} servers"));
                diagnostics.error(typed.span(), message, format!("no {name} address among these")).help(help);
            }
        }
        _ => {
            let message = key("fullnat needs a local address");
            diagnostics.error(spanned.span(), message, "`local` is missing").help(help);
        }
    }
}

/// Local addresses that nobody talks to a server from.
fn check_locals_are_used(
    service: &str,
    typed: &raw::Service,
    mode: Mode,
    servers: &[Server],
    diagnostics: &mut Diagnostics,
) {
    let Some(local) = typed.local.as_ref().filter(|local| !local.as_ref().is_empty()) else { return };
    let default = servers.is_empty() && mode == Mode::Fullnat;
    if !default && servers.iter().all(|server| server.mode != Mode::Fullnat) {
        let message = format!("service {service:?}: local: no server has mode fullnat");
        diagnostics.warning(local.span(), message, "these addresses are not used");
    }
}

/// Ports of local addresses unless said otherwise: all but the well-known ones.
const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 1025..=65535;

/// What servers have that say nothing themselves.
struct Defaults<'a> {
    mode: Mode,
    drain: Option<Duration>,
    health: &'a ServerHealth,
    listen: &'a [Listen],
}

fn resolve_server(
    service: &str,
    spanned: &Spanned<raw::Server>,
    sorry: bool,
    defaults: &Defaults<'_>,
    diagnostics: &mut Diagnostics,
) -> Option<(Server, Places)> {
    let typed = spanned.as_ref();
    let what = format!("service {service:?}: {}", if sorry { "sorry_server" } else { "server" });
    let key = |key: &str| format!("{what} {key}");
    let mode = word(&key("mode"), &typed.mode, defaults.mode, diagnostics);
    let weight = integer(&key("weight"), &typed.weight, 1, 0..=65_535, diagnostics);
    let state = word(&key("state"), &typed.state, ServerState::Enabled, diagnostics);
    let weight = if state == ServerState::Enabled { weight } else { 0 };
    let drain = duration(&key("drain"), &typed.drain, diagnostics).or(defaults.drain);
    let health = match sorry {
        true => health::unchecked(&what, typed, diagnostics),
        false => health::server(&what, typed, defaults.health, diagnostics),
    };
    if let Some(name) = &typed.name {
        check_name(&key("name"), name, diagnostics);
    }
    let Some(text) = &typed.address else {
        diagnostics.error(spanned.span(), key("`address` is missing"), "of this server");
        return None;
    };
    let (address, port) = match server_address(text.as_ref()) {
        Ok(parsed) => parsed,
        Err(why) => {
            let message = format!("{}: {:?} is not possible", key("address"), text.as_ref());
            diagnostics
                .error(text.span(), message, why)
                .help("write it as \"10.0.0.11:8080\" or \"[fd00::11]:8080\"");
            return None;
        }
    };
    let thresholds = thresholds(service, typed, diagnostics);
    let port = server_port(service, mode, text.as_ref(), text.span(), port, defaults.listen, diagnostics);
    let name = typed.name.as_ref().map_or_else(|| text.as_ref().clone(), |name| name.as_ref().clone());
    let named = typed.name.as_ref().map_or_else(|| text.span(), Spanned::span);
    let server = Server {
        name,
        address,
        port,
        mode,
        weight,
        state,
        drain,
        draining: None,
        thresholds,
        health,
        sorry,
        standing: Standing::default(),
    };
    Some((server, (text.span(), named)))
}

fn server_address(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    match parse::address_ports(text)? {
        (address, None) => Ok((address, None)),
        (address, Some(ports)) if ports == (0..=u16::MAX) => Ok((address, None)),
        (address, Some(ports)) if ports.start() == ports.end() => Ok((address, Some(*ports.start()))),
        _ => Err("a server has one port".to_owned()),
    }
}

/// DR and TUN leave the port alone, so a server there listens on its service's port or the file is wrong.
fn server_port(
    service: &str,
    mode: Mode,
    text: &str,
    place: Range<usize>,
    port: Option<u16>,
    listen: &[Listen],
    diagnostics: &mut Diagnostics,
) -> ServerPort {
    let Some(port) = port else { return ServerPort::Same };
    if mode.sees_replies() {
        return ServerPort::Mapped(port);
    }
    if let Some(other) = listen.iter().find(|listen| listen.ports() != (port..=port)) {
        let message = format!(
            "service {service:?}: server {text:?}: mode {} cannot change ports, and the service listens on {other}",
            mode.name()
        );
        diagnostics
            .error(place, message, format!("port {port} is not the service's"))
            .help(format!("write {:?} without a port, or use mode fullnat or nat", strip_port(text)));
    }
    ServerPort::Same
}

fn strip_port(text: &str) -> &str {
    match text.rsplit_once("]:") {
        Some((address, _)) => address.trim_start_matches('['),
        None => text.rsplit_once(':').map_or(text, |(address, _)| address),
    }
}
