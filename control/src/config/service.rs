//! Services and their servers: what each says on its own.

use std::net::IpAddr;
use std::ops::Range;

use shunt_dataplane::conn::Timeouts;
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::Mode;
use shunt_dataplane::service::OutOfState;
use shunt_dataplane::tuple::Protocol;
use toml::Spanned;

use super::diagnostic::Diagnostics;
use super::parse;
use super::raw;
use super::resolve::{integer, word};
use super::{AddressPorts, Server, ServerPort, Service};

/// A service with the places of its parts, in the order of the parts.
pub(super) struct Placed {
    pub(super) service: Service,
    pub(super) name: Range<usize>,
    pub(super) listen: Vec<Range<usize>>,
    pub(super) local: Vec<Range<usize>>,
    pub(super) servers: Vec<Range<usize>>,
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
    let (listen, listen_places): (Vec<_>, Vec<_>) = listens(&name, spanned, diagnostics).into_iter().unzip();
    let (servers, server_places): (Vec<_>, Vec<_>) = typed
        .server
        .iter()
        .filter_map(|server| resolve_server(&name, server, mode, &listen, diagnostics))
        .unzip();
    if typed.server.is_empty() {
        let message = key("no [[service.server]]: every connection will be refused");
        diagnostics.warning(spanned.span(), message, "this service has no server");
    }
    let (local, local_places): (Vec<_>, Vec<_>) = locals(&name, typed, diagnostics).into_iter().unzip();
    let needs_local = servers.iter().any(|server| server.mode == Mode::Fullnat);
    if needs_local && typed.local.as_ref().is_none_or(|local| local.as_ref().is_empty()) {
        diagnostics.error(spanned.span(), key("fullnat needs a local address"), "`local` is missing").help(
            "add local = [\"10.0.0.200\"]: a free address of the servers' network, not an interface's own",
        );
    }
    let replies_seen =
        servers.iter().map(|server: &Server| server.mode).chain([mode]).all(Mode::sees_replies);
    let default = if replies_seen { OutOfState::Reset } else { OutOfState::Drop };
    let service = Service {
        listen,
        protocol,
        mode,
        scheduler: word(&key("scheduler"), &typed.scheduler, SchedulerKind::Wlc, diagnostics),
        local,
        out_of_state: word(&key("out_of_state"), &typed.out_of_state, default, diagnostics),
        timeouts: *timeouts,
        servers,
        name,
    };
    let name = typed.name.as_ref().map_or_else(|| spanned.span(), Spanned::span);
    Placed { service, name, listen: listen_places, local: local_places, servers: server_places }
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

fn listens(name: &str, spanned: &Spanned<raw::Service>, diagnostics: &mut Diagnostics) -> Vec<PlacedPorts> {
    let key = format!("service {name:?}: listen");
    let Some(typed) = spanned.as_ref().listen.as_ref().filter(|list| !list.as_ref().is_empty()) else {
        diagnostics
            .error(spanned.span(), format!("{key} is missing"), "clients cannot reach this service")
            .help("add listen = [\"203.0.113.10:80\"]");
        return Vec::new();
    };
    let one = |text: &Spanned<String>| {
        let parsed = match parse::address_ports(text.as_ref()) {
            Ok((address, Some(ports))) => Ok((address, ports)),
            Ok((_, None)) => Err("the port is missing".to_owned()),
            Err(why) => Err(why),
        };
        match parsed {
            Ok((address, ports)) => {
                Some((AddressPorts { address, first: *ports.start(), last: *ports.end() }, text.span()))
            }
            Err(why) => {
                let message = format!("{key}: {:?} is not possible", text.as_ref());
                diagnostics.error(text.span(), message, why).help(LISTEN_HELP);
                None
            }
        }
    };
    typed.as_ref().iter().filter_map(one).collect()
}

const LISTEN_HELP: &str =
    "write it as \"203.0.113.10:80\", \"203.0.113.10:8000-8099\" or \"203.0.113.10:0\" for every port";

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

/// Ports of local addresses unless said otherwise: all but the well-known ones.
const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 1025..=65535;

fn resolve_server(
    service: &str,
    spanned: &Spanned<raw::Server>,
    default: Mode,
    listen: &[AddressPorts],
    diagnostics: &mut Diagnostics,
) -> Option<(Server, Range<usize>)> {
    let typed = spanned.as_ref();
    let key = |key: &str| format!("service {service:?}: server {key}");
    let mode = word(&key("mode"), &typed.mode, default, diagnostics);
    let weight = integer(&key("weight"), &typed.weight, 1, 0..=65_535, diagnostics);
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
            diagnostics.error(text.span(), message, why).help("write it as \"10.0.0.11:8080\"");
            return None;
        }
    };
    let port = server_port(service, mode, text.as_ref(), text.span(), port, listen, diagnostics);
    let name = typed.name.as_ref().map_or_else(|| text.as_ref().clone(), |name| name.as_ref().clone());
    Some((Server { name, address, port, mode, weight }, text.span()))
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
    listen: &[AddressPorts],
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
    text.rsplit_once(':').map_or(text, |(address, _)| address)
}
