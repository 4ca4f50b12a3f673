//! What must not collide: names, listen entries, local addresses, servers.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::diagnostic::Diagnostics;
use super::service::Placed;
use super::{AddressPorts, Listen, Server, Service};

/// Two services of one name.
pub(super) fn names(services: &[Arc<Placed>], diagnostics: &mut Diagnostics) {
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
pub(super) fn listens(services: &[Arc<Placed>], diagnostics: &mut Diagnostics) {
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
pub(super) fn locals(services: &[Arc<Placed>], diagnostics: &mut Diagnostics) {
    let mut listens: HashMap<_, Vec<(&Service, &Listen)>> = HashMap::new();
    for service in services.iter().map(|placed| &placed.service) {
        for (listen, vip) in service.listen.iter().filter_map(|listen| Some((listen, listen.vip()?))) {
            listens.entry((vip, service.protocol)).or_default().push((service, listen));
        }
    }
    for placed in services {
        let service = &placed.service;
        for (local, place) in service.local.iter().zip(&placed.local) {
            let others = listens.get(&(local.address, service.protocol)).into_iter().flatten();
            let Some((other, listen)) = others.copied().find(|(_, listen)| overlap(local, listen)) else {
                continue;
            };
            let message = format!(
                "service {:?}: local: {local} collides with {listen}, where service {:?} listens",
                service.name, other.name
            );
            diagnostics
                .error(place.clone(), message, "answers could not be told from clients' packets")
                .help("use another address, or a local_port_range without the service's ports");
        }
    }
}

/// Two servers of a service that are the same, or have one name: whoever asks for it by its name would get both. A
/// server without a name is called by its address.
pub(super) fn within(placed: &Placed, diagnostics: &mut Diagnostics) {
    let service = &placed.service;
    let mut named: HashMap<&str, (&Server, &Range<usize>)> = HashMap::new();
    let mut seen: HashMap<_, &Range<usize>> = HashMap::new();
    for ((server, place), name_place) in service.servers.iter().zip(&placed.servers).zip(&placed.server_names)
    {
        if let Some(first) = seen.insert((server.address, server.port), place) {
            let message =
                format!("service {:?}: server {:?} is in this service twice", service.name, server.name);
            diagnostics.error(place.clone(), message, "again").related(first.clone(), "first here");
        }
        let Some(&(first, first_place)) = named.get(server.name.as_str()) else {
            named.insert(&server.name, (server, name_place));
            continue;
        };
        // One that is there twice is told as such.
        if (first.address, first.port) != (server.address, server.port) {
            let message =
                format!("service {:?}: server {:?} is the name of another server", service.name, server.name);
            diagnostics
                .error(name_place.clone(), message, "again")
                .related(first_place.clone(), "first here");
        }
    }
}

/// A server that is the director itself.
pub(super) fn loops(services: &[Arc<Placed>], diagnostics: &mut Diagnostics) {
    let all = || services.iter().map(|placed| &placed.service);
    let local = all()
        .flat_map(|service| &service.local)
        .map(|local| (local.address, "a local address of the director"));
    let listened = all().flat_map(|service| &service.listen).filter_map(Listen::vip);
    let listened = listened.map(|vip| (vip, "an address that a service listens on"));
    let own: HashMap<_, _> = local.chain(listened).collect();
    for placed in services {
        let service = &placed.service;
        for (server, place) in service.servers.iter().zip(&placed.servers) {
            if let Some(what) = own.get(&server.address) {
                let message = format!("service {:?}: server {:?} is {what}", service.name, server.name);
                diagnostics.error(place.clone(), message, "a loop");
            }
        }
    }
}
