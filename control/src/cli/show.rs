//! `shunt status` and `shunt counters`: the API's answers, for people or as JSON.

use std::fmt::Write;
use std::path::Path;

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::output::print;
use super::table::{Table, bytes};
use super::{runtime, workers};
use crate::admin::client::ask;
use crate::admin::view::{Counter, Counters, Persistence, Server, Service, Status, Workers};
use crate::config::{ServerState, Word};

pub(super) fn status(socket: &Path, json: bool) -> anyhow::Result<()> {
    show::<Status>(socket, "/v1/status", json, status_text)
}

pub(super) fn workers(socket: &Path, json: bool) -> anyhow::Result<()> {
    show::<Workers>(socket, "/v1/workers", json, workers::text)
}

pub(super) fn counters(socket: &Path, json: bool) -> anyhow::Result<()> {
    show::<Counters>(socket, "/v1/counters", json, counters_text)
}

fn show<T: DeserializeOwned + Serialize>(
    socket: &Path,
    path: &str,
    json: bool,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let answer: T = runtime()?.block_on(ask(socket, Method::GET, path))?;
    let shown = if json { serde_json::to_string_pretty(&answer)? + "\n" } else { text(&answer) };
    print(&shown)
}

/// Services and servers in the shape of `ipvsadm -Ln`, with traffic.
fn status_text(status: &Status) -> String {
    let mut text = format!(
        "shunt {}, up {}, {} workers, configuration {} (generation {})\n",
        status.version,
        duration(status.uptime_seconds),
        status.workers,
        status.file,
        status.generation
    );
    for port in &status.ports {
        let line = format!(
            "port {}: {}, {} queues, {}, MTU {}",
            port.interface, port.kind, port.queues, port.mac, port.mtu
        );
        writeln!(text, "{line}").expect("strings take everything");
    }
    text.push('\n');
    let head = [
        "Prot",
        "LocalAddress:Port",
        "Scheduler",
        "Forward",
        "Weight",
        "ActiveConn",
        "InActConn",
        "Conns",
        "InPkts",
        "OutPkts",
        "InBytes",
        "OutBytes",
    ];
    let mut table = Table::new(4, &head);
    table.row(["  ->", "RemoteAddress:Port"].map(str::to_owned));
    for service in &status.services {
        let listen = service.listen.first().cloned().unwrap_or_default();
        let mut name = format!("{} ({})", service.scheduler, service.name);
        if let Some(persistence) = service.persistence {
            name += &persistent(persistence);
        }
        if service.one_packet {
            name += " ops";
        }
        if service.left_out {
            name += " (left out)";
        }
        table.row([service.protocol.to_uppercase(), listen, name]);
        for more in service.listen.iter().skip(1) {
            table.row([String::new(), more.clone()]);
        }
        if !service.has_quorum || service.using != "healthy" {
            let quorum = if service.has_quorum { "" } else { "no quorum, " };
            table.row([String::new(), String::new(), format!("({quorum}uses {} servers)", service.using)]);
        }
        for server in &service.servers {
            let traffic = &server.traffic;
            let named = if server.name == server.address { String::new() } else { server.name.clone() };
            let mut cells = vec!["  ->".to_owned(), server.address.clone(), named, server.mode.clone()];
            let numbers = [u64::from(server.weight), traffic.active, traffic.inactive, traffic.connections];
            cells.extend(numbers.map(|number| number.to_string()));
            cells.extend([traffic.packets_in, traffic.packets_out].map(|packets| packets.to_string()));
            cells.extend([traffic.bytes_in, traffic.bytes_out].map(bytes));
            cells.extend(standing(service, server));
            if let Some(thresholds) = server.thresholds {
                cells.push(format!(
                    "(max {}, resume {}{})",
                    thresholds.max_connections,
                    thresholds.resume_connections,
                    if thresholds.full { ": full" } else { "" }
                ));
            }
            let left_out = if server.left_out { "left out, " } else { "" };
            if let Some(seconds) = server.drains_for_seconds {
                cells.push(format!("({left_out}drains for {})", duration(seconds)));
            } else if server.state == ServerState::Draining.word()
                || server.state == ServerState::Disabled.word()
            {
                cells.push(format!("({})", server.state));
            }
            if server.next_hop.is_none() {
                cells.push("(next hop unknown)".to_owned());
            }
            table.row(cells);
        }
    }
    text + &table.text()
}

/// As ipvsadm words it, masks only where they are no whole address.
fn persistent(persistence: Persistence) -> String {
    let mut text = format!(" persistent {}", persistence.timeout_ms.div_ceil(1000));
    for (mask, whole) in [(persistence.mask_ipv4, 32), (persistence.mask_ipv6, 128)] {
        if mask != whole {
            write!(text, " mask {mask}/{whole}").expect("strings take everything");
        }
    }
    text
}

fn counters_text(counters: &Counters) -> String {
    let mut text = String::new();
    let groups = [
        ("Dropped packets", &counters.drops),
        ("Events", &counters.events),
        ("Workers", &counters.workers),
        ("Ports", &counters.ports),
    ];
    for (title, group) in groups {
        let name_width = group.iter().map(|counter| counter.name.len()).max().unwrap_or(0);
        let value_width = group.iter().map(|counter| counter.value.to_string().len()).max().unwrap_or(0);
        writeln!(text, "{title}").expect("strings take everything");
        for Counter { name, value, meaning } in group {
            let line = format!("  {name:<name_width$}  {value:>value_width$}  {meaning}");
            writeln!(text, "{}", line.trim_end()).expect("strings take everything");
        }
        text.push('\n');
    }
    text
}

/// What there is to say of a server's health, if its checks or its service's say anything.
fn standing(service: &Service, server: &Server) -> Option<String> {
    let weighing = match server.effective_weight == server.weight {
        true => String::new(),
        false => format!(", weight now {}", server.effective_weight),
    };
    if server.sorry {
        let state = if service.using == "sorry" { "in use" } else { "aside" };
        return Some(format!("(sorry server: {state})"));
    }
    let health = server.health.as_ref()?;
    let since = duration(health.seconds);
    if health.state == "up" {
        return Some(format!("(up {since}{weighing})"));
    }
    let layers = format!("L3 {}, L4 {}, L7 {}", health.l3, health.l4, health.l7);
    let wrong = health.checks.iter().filter(|check| check.state != "up");
    let wrong = wrong.filter_map(|check| Some((check, check.error.as_ref()?))).map(|(check, error)| {
        format!("; {} {}: {}, {} ago", check.kind, check.target, error.text, duration(error.seconds))
    });
    Some(format!("({} {since}{weighing}: {layers}{})", health.state, wrong.collect::<String>()))
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::{Check, CheckError, Health, Thresholds, Traffic};

    #[test]
    fn status_reads_like_ipvsadm() {
        let traffic = Traffic { active: 3, packets_in: 120, bytes_out: 20_480, ..Traffic::default() };
        let server = Server {
            name: "10.0.0.11:8080".into(),
            address: "10.0.0.11:8080".into(),
            mode: "fullnat".into(),
            weight: 2,
            effective_weight: 2,
            state: "enabled".into(),
            next_hop: Some("02:00:00:00:00:11".into()),
            traffic,
            ..Server::default()
        };
        let named = Server { name: "rs2".into(), next_hop: None, ..server.clone() };
        let service = Service {
            name: "web".into(),
            protocol: "tcp".into(),
            listen: vec!["203.0.113.10:80".into()],
            scheduler: "wlc".into(),
            has_quorum: true,
            using: "healthy".into(),
            servers: vec![server, named],
            ..Service::default()
        };
        let status = Status {
            version: "1".into(),
            uptime_seconds: 75,
            file: "a.toml".into(),
            services: vec![service],
            ..Status::default()
        };
        let text = status_text(&status);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "shunt 1, up 1 min 15 s, 0 workers, configuration a.toml (generation 0)");
        assert!(lines[2].starts_with("Prot  LocalAddress:Port   Scheduler"), "{text}");
        assert!(lines[4].starts_with("TCP   203.0.113.10:80     wlc (web)"), "{text}");
        assert!(
            lines[5].contains("10.0.0.11:8080")
                && lines[5].contains("fullnat")
                && lines[5].ends_with("20.0K")
        );
        assert!(lines[6].contains("rs2") && lines[6].ends_with("(next hop unknown)"), "{text}");
    }

    #[test]
    fn status_shows_persistence_and_thresholds() {
        let full = Thresholds { max_connections: 100, resume_connections: 75, full: true };
        let server = Server { address: "10.0.0.11".into(), thresholds: Some(full), ..Server::default() };
        let persistence = Persistence { timeout_ms: 300_000, mask_ipv4: 24, mask_ipv6: 128 };
        let service = Service {
            name: "web".into(),
            scheduler: "rr".into(),
            persistence: Some(persistence),
            servers: vec![server],
            ..Service::default()
        };
        let text = status_text(&Status { services: vec![service], ..Status::default() });
        assert!(text.contains("rr (web) persistent 300 mask 24/32"), "{text}");
        assert!(text.contains("(max 100, resume 75: full)"), "{text}");
    }

    #[test]
    fn status_says_which_check_failed_and_which_layers_work() {
        let check = |state: &str, error: Option<CheckError>| Check {
            kind: "http".into(),
            target: "10.0.0.11:80".into(),
            state: state.into(),
            error,
            ..Check::default()
        };
        let error = CheckError { text: "status 503".into(), layer: "L7".into(), seconds: 1 };
        let health = |state: &str, checks| Health {
            state: state.into(),
            seconds: 65,
            l3: "ok".into(),
            l4: "ok".into(),
            l7: "failed".into(),
            checks,
        };
        let server = |health| Server { weight: 2, health, ..Server::default() };
        let service = |using: &str| Service { using: using.into(), ..Service::default() };
        let down = server(Some(health("down", vec![check("up", None), check("down", Some(error))])));
        assert_eq!(
            standing(&service("healthy"), &down).unwrap(),
            "(down 1 min 5 s, weight now 0: L3 ok, L4 ok, L7 failed; http 10.0.0.11:80: status 503, 1 s ago)"
        );
        let starting = Server { effective_weight: 1, ..server(Some(health("up", Vec::new()))) };
        assert_eq!(standing(&service("healthy"), &starting).unwrap(), "(up 1 min 5 s, weight now 1)");
        assert_eq!(standing(&service("healthy"), &server(None)), None, "nothing is checked");
        let sorry = Server { sorry: true, ..Server::default() };
        assert_eq!(standing(&service("sorry"), &sorry).unwrap(), "(sorry server: in use)");
        let lost = Service { servers: vec![sorry], ..service("sorry") };
        let text = status_text(&Status { services: vec![lost], ..Status::default() });
        assert!(text.contains("(no quorum, uses sorry servers)"), "{text}");
    }

    #[test]
    fn status_shows_what_drains_and_what_the_file_names_no_more() {
        let hop = Some("02:00:00:00:00:11".to_owned());
        let drains = Server { drains_for_seconds: Some(75), next_hop: hop, ..Server::default() };
        let left_out = Server { left_out: true, ..drains.clone() };
        let service = |left_out, server| Service {
            name: "web".into(),
            scheduler: "rr".into(),
            has_quorum: true,
            using: "healthy".into(),
            left_out,
            servers: vec![server],
            ..Service::default()
        };
        let services = vec![service(false, drains), service(true, left_out)];
        let text = status_text(&Status { services, ..Status::default() });
        let lines: Vec<_> = text.lines().skip(4).map(str::trim_end).collect();
        assert!(lines[0].ends_with("rr (web)") && lines[2].ends_with("rr (web) (left out)"), "{text}");
        assert!(lines[1].ends_with("(drains for 1 min 15 s)"), "{text}");
        assert!(lines[3].ends_with("(left out, drains for 1 min 15 s)"), "{text}");
    }

    #[test]
    fn times_are_short_enough_to_read() {
        assert_eq!([duration(5), duration(3_700), duration(90_000)], ["5 s", "1 h 1 min", "1 d 1 h"]);
    }
}
