//! What differs between two configurations: services by their names, servers by address, port and mode. What only moved
//! in the file is the same.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use shunt_dataplane::conn::State;
use shunt_engine::Duration;

use super::words::Word;
use super::{Config, Server, ServerPort, Service, describe_scheduler};
use crate::state::{ServerKey, server_key};

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The service.
    pub service: String,
    /// The server, when it is one of its servers that differs.
    pub server: Option<String>,
    /// In what.
    pub what: What,
    /// Servers whose connections feel it: they are reset, at once or after the server's `drain` time.
    pub feel: Vec<Server>,
}

/// What became of a service or a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// One of its keys means something else.
    Key {
        /// The key.
        key: String,
        /// What it was.
        before: String,
        /// What it is.
        after: String,
    },
}

/// What turns `before` into `after`, in the order of `after`; what is gone comes last. What a reload left out and what
/// still drains has no part in it.
pub fn between(before: &Config, after: &Config) -> Vec<Change> {
    let stays = |service: &&Arc<Service>| !service.left_out;
    let (old, new) = (before.services_by_name(), after.services_by_name());
    let mut changes = Vec::new();
    for service in after.services.iter().filter(stays) {
        match old.get(service.name.as_str()).filter(|old| !old.left_out) {
            Some(old) if Arc::ptr_eq(old, service) || *old == service => {}
            Some(old) => between_services(old, service, &mut changes),
            None => changes.push(Change::new(service, None, What::Added, Vec::new())),
        }
    }
    let gone = before.services.iter().filter(stays).filter(|old| !new.contains_key(old.name.as_str()));
    changes.extend(gone.map(|old| Change::new(old, None, What::Removed, old.servers.clone())));
    changes
}

impl Change {
    fn new(service: &Service, server: Option<&Server>, what: What, feel: Vec<Server>) -> Self {
        let (service, server) = (service.name.clone(), server.map(|server| server.name.clone()));
        Self { service, server, what, feel }
    }
}

fn between_services(old: &Service, new: &Service, changes: &mut Vec<Change>) {
    changes.extend(
        differing(service_keys(old), service_keys(new)).map(|what| Change::new(new, None, what, Vec::new())),
    );
    let named = |server: &&Server| !server.draining.is_some_and(|draining| draining.left_out);
    let before: HashMap<_, _> =
        old.servers.iter().filter(named).map(|server| (server_key(server), server)).collect();
    let after: HashSet<ServerKey> = new.servers.iter().filter(named).map(server_key).collect();
    for server in new.servers.iter().filter(named) {
        let Some(old) = before.get(&server_key(server)) else {
            changes.push(Change::new(new, Some(server), What::Added, Vec::new()));
            continue;
        };
        for what in differing(server_keys(old), server_keys(server)) {
            let drains = matches!(&what, What::Key { key, after, .. } if key == "weight" && after == "0");
            let feel = if drains && server.drain.is_some() { vec![server.clone()] } else { Vec::new() };
            changes.push(Change::new(new, Some(server), what, feel));
        }
    }
    let gone = old.servers.iter().filter(named).filter(|server| !after.contains(&server_key(server)));
    changes.extend(gone.map(|server| Change::new(new, Some(server), What::Removed, vec![server.clone()])));
}

type Keys = Vec<(String, String)>;

fn differing(before: Keys, after: Keys) -> impl Iterator<Item = What> {
    let pairs = before.into_iter().zip(after).filter(|((_, before), (_, after))| before != after);
    pairs.map(|((_, before), (key, after))| What::Key { key, before, after })
}

/// Every key of a service with its meaning, always in the same order.
fn service_keys(service: &Service) -> Keys {
    let Service {
        name: _,
        listen,
        protocol,
        mode,
        scheduler,
        local,
        out_of_state,
        server_gone,
        timeouts,
        persistence,
        one_packet,
        servers: _,
        policy,
        local_leaving: _,
        left_out: _,
    } = service;
    let mut keys: Keys = [
        ("listen", list(listen)),
        ("protocol", protocol.word().to_owned()),
        ("mode", mode.word().to_owned()),
        ("scheduler", describe_scheduler(scheduler)),
        ("seed", or_none(scheduler.seed)),
        ("mh_slots", scheduler.mh_slots.to_string()),
        ("local", list(local)),
        ("out_of_state", out_of_state.word().to_owned()),
        ("server_gone", server_gone.word().to_owned()),
        ("persistence", or_none(persistence.map(|persistence| time(persistence.timeout)))),
        ("persistence_mask_ipv4", or_none(persistence.map(|persistence| persistence.mask_v4))),
        ("persistence_mask_ipv6", or_none(persistence.map(|persistence| persistence.mask_v6))),
        ("one_packet", one_packet.to_string()),
        ("quorum", policy.quorum.to_string()),
        ("quorum_hysteresis", policy.hysteresis.to_string()),
        ("panic_threshold", policy.panic_threshold.to_string()),
    ]
    .map(|(key, meaning)| (key.to_owned(), meaning))
    .into();
    keys.extend(
        State::ALL
            .map(|state| (format!("timeouts.{}", state.name().to_lowercase()), time(timeouts.get(state)))),
    );
    keys
}

/// Every key of a server with its meaning, always in the same order, but those that tell servers apart.
fn server_keys(server: &Server) -> Keys {
    let Server {
        name,
        address: _,
        port: _,
        mode: _,
        weight,
        state,
        drain,
        draining: _,
        thresholds,
        health,
        sorry,
        standing: _,
    } = server;
    [
        ("name", name.clone()),
        ("weight", weight.to_string()),
        ("state", state.word().to_owned()),
        ("drain", or_none(drain.map(time))),
        ("sorry", sorry.to_string()),
        ("checks", format!("{:?}", health.checks)),
        ("passive", format!("{:?}", health.passive)),
        ("initial", health.initial.word().to_owned()),
        ("on_down", health.on_down.word().to_owned()),
        ("slow_start", or_none(health.slow_start.map(time))),
        ("max_connections", or_none(thresholds.map(|thresholds| thresholds.upper))),
        ("resume_connections", or_none(thresholds.map(|thresholds| thresholds.lower))),
    ]
    .map(|(key, meaning)| (key.to_owned(), meaning))
    .into()
}

fn list<T: ToString>(of: &[T]) -> String {
    let texts: Vec<_> = of.iter().map(ToString::to_string).collect();
    texts.join(" ")
}

fn or_none<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

fn time(duration: Duration) -> String {
    match duration.as_nanos() / 1_000_000 {
        millis if millis % 1000 == 0 => format!("{}s", millis / 1000),
        millis => format!("{millis}ms"),
    }
}

/// Where a server is, as its configuration has it.
pub fn server_address(server: &Server) -> String {
    match server.port {
        ServerPort::Same => server.address.to_string(),
        ServerPort::Mapped(port) => std::net::SocketAddr::new(server.address, port).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str =
        "[[service]]\nname = \"web\"\nprotocol = \"tcp\"\nmode = \"nat\"\nlisten = [\"203.0.113.10:80\"]\n";
    const RS1: &str = "[[service.server]]\nname = \"rs1\"\naddress = \"10.0.0.11:80\"\n";
    const RS2: &str = "[[service.server]]\nname = \"rs2\"\naddress = \"10.0.0.12:80\"\nweight = 3\n";
    const DNS: &str =
        "[[service]]\nname = \"dns\"\nprotocol = \"udp\"\nmode = \"dr\"\nlisten = [\"203.0.113.10:53\"]\n";

    fn changes(before: &[&str], after: &[&str]) -> Vec<String> {
        let config = |parts: &[&str]| {
            let text = format!("{}[[port]]\ninterface = \"eth0\"\n", parts.concat());
            Config::parse("test", &text, false).unwrap_or_else(|error| panic!("{error}")).config
        };
        let words = |change: Change| {
            let of =
                change.server.map_or(change.service.clone(), |server| format!("{}/{server}", change.service));
            match change.what {
                What::Added => format!("{of} added"),
                What::Removed => format!("{of} removed"),
                What::Key { key, before, after } => format!("{of} {key}: {before} -> {after}"),
            }
        };
        between(&config(before), &config(after)).into_iter().map(words).collect()
    }

    #[test]
    fn what_only_moved_in_the_file_is_the_same() {
        assert_eq!(changes(&[WEB, RS1, RS2, DNS], &[DNS, WEB, RS2, RS1]), [""; 0]);
        assert_eq!(
            changes(&[WEB, RS1], &["[timeouts]\nudp = \"300s\"\n", WEB, RS1]),
            [""; 0],
            "a default, typed"
        );
    }

    #[test]
    fn services_and_servers_come_and_go_and_keys_change() {
        assert_eq!(changes(&[WEB, RS1], &[WEB, RS1, RS2, DNS]), ["web/rs2 added", "dns added"]);
        assert_eq!(changes(&[WEB, RS1, RS2, DNS], &[WEB, RS2]), ["web/rs1 removed", "dns removed"]);
        let heavier = RS2.replace("weight = 3", "weight = 4\nmax_connections = 8");
        let expected = [
            "web/rs2 weight: 3 -> 4",
            "web/rs2 max_connections: none -> 8",
            "web/rs2 resume_connections: none -> 6",
        ];
        assert_eq!(changes(&[WEB, RS1, RS2], &[WEB, RS1, &heavier]), expected);
        let other = WEB.replace("mode", "scheduler = \"sh\"\npersistence = \"1500ms\"\nmode");
        let expected = [
            "web scheduler: wlc -> sh",
            "web persistence: none -> 1500ms",
            "web persistence_mask_ipv4: none -> 32",
            "web persistence_mask_ipv6: none -> 128",
        ];
        assert_eq!(changes(&[WEB, RS1], &[&other, RS1]), expected);
        let all = "[timeouts]\nestablished = \"60s\"\n";
        assert_eq!(changes(&[WEB, RS1], &[all, WEB, RS1]), ["web timeouts.established: 900s -> 60s"]);
    }

    #[test]
    fn a_server_with_another_address_or_mode_is_another_server() {
        let moved = RS1.replace("10.0.0.11:80", "10.0.0.11:81");
        assert_eq!(changes(&[WEB, RS1], &[WEB, &moved]), ["web/rs1 added", "web/rs1 removed"]);
    }
}
