//! `one_packet`: every datagram scheduled alone (`ipvsadm -o`).

use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::Protocol;

use super::Server;
use super::diagnostic::Diagnostics;
use super::raw;
use super::service::Places;

/// Whether the service `name` schedules every datagram alone. Without a connection nobody knows whose an answer is, so
/// its servers must answer clients themselves; if not all `modes_known` that is asked when they are.
pub(super) fn one_packet(
    name: &str,
    typed: &raw::Service,
    protocol: Protocol,
    servers: &[(Server, Places)],
    modes_known: bool,
    diagnostics: &mut Diagnostics,
) -> bool {
    let Some(spanned) = typed.one_packet.as_ref().filter(|typed| *typed.as_ref()) else { return false };
    let key = format!("service {name:?}: one_packet");
    if protocol != Protocol::Udp {
        let message = format!("{key} is not possible with {protocol}");
        diagnostics.error(spanned.span(), message, "only datagrams can be scheduled alone");
    }
    for (server, (place, _)) in servers.iter().filter(|_| modes_known) {
        let why = match server.mode {
            Mode::Fullnat => "only a connection knows which client a local port stands for",
            Mode::Nat => "only a connection knows the VIP that its answers must come from",
            Mode::Dr | Mode::Tun => continue,
        };
        let message = format!("{key}: server {:?} has mode {}", server.name, server.mode.name());
        diagnostics
            .error(place.clone(), message, why)
            .related(spanned.span(), "leaves no connection behind")
            .help("use mode dr or tun, where servers answer clients themselves");
    }
    for (server, (place, _)) in servers.iter().filter(|(server, _)| server.thresholds.is_some()) {
        let message = format!("{key}: server {:?} has max_connections", server.name);
        diagnostics
            .error(place.clone(), message, "it never has any connection")
            .related(spanned.span(), "leaves no connection behind");
    }
    true
}
