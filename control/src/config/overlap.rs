//! What must not collide: names, listen entries, local addresses, servers.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use shunt_dataplane::tuple::Protocol;

use super::diagnostic::Diagnostics;
use super::service::Placed;
use super::{AddressPorts, Listen, Server};

/// Two services of one name.
pub(super) fn names(services: &[Placed], diagnostics: &mut Diagnostics) {
    let mut seen: HashMap<&str, &Range<usize>> = HashMap::new();
    // A missing name is an error of its own.
    for placed in services.iter().filter(|placed| !placed.service.name.is_empty()) {
        let name = placed.service.name.as_str();
        if let Some(&first) = seen.get(name) {
            let message = format!("service.name: {name:?} is the name of another service");
            diagnostics.error(placed.name.clone(), message, "again").related(first.clone(), "first here");
        } else {
            seen.insert(name, &placed.name);
        }
    }
}

/// Two listen entries that answer for the same packet. A narrower range inside a wider one, or a longer prefix inside a
/// shorter one, is meant: the narrower one wins.
pub(super) fn listens(services: &[Placed], diagnostics: &mut Diagnostics) {
    let mut seen: HashMap<_, Vec<(&Listen, &Range<usize>, &str)>> = HashMap::new();
    for placed in services {
        let service = &placed.service;
        for (entry, place) in service.listen.iter().zip(&placed.listen) {
            let others = seen.entry((entry.prefix, service.protocol)).or_default();
            let Some((other, first, owner)) = others.iter().find(|(other, ..)| ambiguous(entry, other))
            else {
                others.push((entry, place, &service.name));
                continue;
            };
            let protocol = service.protocol;
            let message = format!(
                "service {:?}: listen: {entry} {protocol} collides with {other} of service {owner:?}",
                service.name
            );
            diagnostics.error(place.clone(), message, "taken").related((*first).clone(), "by this one");
        }
    }
}

/// Whether a packet could be meant for both, whose addresses are equal: they share ports, and neither lies inside the
/// other.
fn ambiguous(a: &Listen, b: &Listen) -> bool {
    let inside = |a: &Listen, b: &Listen| {
        a.first >= b.first && a.last <= b.last && (a.first, a.last) != (b.first, b.last)
    };
    let overlap = a.first <= b.last && b.first <= a.last;
    overlap && !inside(a, b) && !inside(b, a)
}

/// Whether a packet to a local address could be a client's.
fn overlap(local: &AddressPorts, listen: &Listen) -> bool {
    listen.vip() == Some(local.address) && local.first <= listen.last && listen.first <= local.last
}

/// A local address whose ports are a service's: an answer to it could not be told from a client's packet.
pub(super) fn locals(services: &[Placed], diagnostics: &mut Diagnostics) {
    let taken = |local: &AddressPorts, protocol: Protocol| {
        let same_protocol = services.iter().filter(|placed| placed.service.protocol == protocol);
        same_protocol.into_iter().find_map(|placed| {
            let listen = placed.service.listen.iter().find(|listen| overlap(local, listen))?;
            Some((&placed.service.name, listen))
        })
    };
    for placed in services {
        let service = &placed.service;
        for (local, place) in service.local.iter().zip(&placed.local) {
            let Some((other, listen)) = taken(local, service.protocol) else { continue };
            let message = format!(
                "service {:?}: local: {local} collides with {listen}, where service {other:?} listens",
                service.name
            );
            diagnostics
                .error(place.clone(), message, "answers could not be told from clients' packets")
                .help("use another address, or a local_port_range without the service's ports");
        }
    }
}

/// Two servers of one name in a service: whoever asks for it by its name would get both. A server without a name is
/// called by its address.
pub(super) fn server_names(services: &[Placed], diagnostics: &mut Diagnostics) {
    for placed in services {
        let service = &placed.service;
        let mut seen: HashMap<&str, (&Server, &Range<usize>)> = HashMap::new();
        for (server, place) in service.servers.iter().zip(&placed.server_names) {
            let Some(&(first, first_place)) = seen.get(server.name.as_str()) else {
                seen.insert(&server.name, (server, place));
                continue;
            };
            // One that is there twice is told as such.
            if (first.address, first.port) != (server.address, server.port) {
                let message = format!(
                    "service {:?}: server {:?} is the name of another server",
                    service.name, server.name
                );
                diagnostics.error(place.clone(), message, "again").related(first_place.clone(), "first here");
            }
        }
    }
}

/// A server that is in its service twice, or that is the director itself.
pub(super) fn servers(services: &[Placed], diagnostics: &mut Diagnostics) {
    let all = || services.iter().map(|placed| &placed.service);
    let listened: HashSet<_> = all().flat_map(|service| &service.listen).filter_map(Listen::vip).collect();
    let local: HashSet<_> = all().flat_map(|service| &service.local).map(|local| local.address).collect();
    for placed in services {
        let service = &placed.service;
        let mut seen = HashMap::new();
        for (server, place) in service.servers.iter().zip(&placed.servers) {
            let key = |what: &str| format!("service {:?}: server {:?} {what}", service.name, server.name);
            if let Some(first) = seen.insert((server.address, server.port), place) {
                diagnostics
                    .error(place.clone(), key("is in this service twice"), "again")
                    .related(Range::clone(first), "first here");
            } else if listened.contains(&server.address) {
                diagnostics.error(place.clone(), key("is an address that a service listens on"), "a loop");
            } else if local.contains(&server.address) {
                diagnostics.error(place.clone(), key("is a local address of the director"), "a loop");
            }
        }
    }
}
