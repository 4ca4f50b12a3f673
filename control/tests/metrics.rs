//! What is scraped, against docs/metrics.md and against a parser that is not ours.
//!
//! `EXPECT=write cargo test -p shunt-control --test metrics` writes the table of the document anew; read the difference.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use shunt_control::admin::metrics::Scrape;
use shunt_control::admin::view::{
    Counter, Counters, Load, Port, Queue, Server, Service, Status, Traffic, Turns, Worker, Workers,
};

/// Something of everything, with odd names.
fn scrape() -> Scrape {
    let traffic = Traffic { active: 3, connections: 41, bytes_in: u64::MAX, ..Traffic::default() };
    let server =
        Server { name: "rs\"1\\".into(), weight: 7, state: "enabled".into(), traffic, ..Server::default() };
    let service = |name: &str| Service {
        name: name.into(),
        protocol: "tcp".into(),
        mode: "dr".into(),
        scheduler: "mh (mh-port)".into(),
        servers: vec![server.clone(), Server { name: "rs2".into(), ..Server::default() }],
        ..Service::default()
    };
    let port = Port { interface: "eth0".into(), kind: "af_xdp native".into(), mtu: 1500, ..Port::default() };
    let status = Status {
        version: "1".into(),
        generation: 5,
        ports: vec![port],
        services: vec![service("web"), service("ünï")],
        ..Status::default()
    };
    let queue = |queue, packets| Queue {
        interface: "eth0".into(),
        queue,
        counters: [("packets".to_owned(), packets)].into(),
    };
    let mut histogram = vec![0; 32];
    (histogram[10], histogram[11], histogram[31]) = (4, 2, 1);
    let worker = |id: u16| Worker {
        id,
        counters: [("rx_packets".to_owned(), 99), ("busy_nanos".to_owned(), 1_500_000_000)].into(),
        connections_ipv4: Load { used: 10, capacity: 20 },
        turns: Turns { histogram: histogram.clone(), ..Turns::default() },
        rx: vec![queue(id, 12)],
        tx: vec![queue(id, 13)],
        ..Worker::default()
    };
    let workers = Workers { workers: vec![worker(0), worker(1)], ..Workers::default() };
    let counter = |name: &str| vec![Counter { name: name.into(), value: 8, meaning: String::new() }];
    Scrape {
        status,
        workers,
        counters: Counters {
            drops: counter("no_route"),
            events: counter("forwarded"),
            ..Counters::default()
        },
    }
}

/// Type, meaning and labels of every family in `text`, by the name of its samples.
fn families(text: &str) -> BTreeMap<String, [String; 3]> {
    let mut helps = BTreeMap::new();
    let mut families: BTreeMap<String, [String; 3]> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            helps.insert(name.to_owned(), help.trim_end_matches('.').to_owned());
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let labels: BTreeSet<_> = text.lines().filter_map(|line| labels(line, name)).flatten().collect();
            let labels = Vec::from_iter(labels.into_iter().filter(|label| label != "le")).join(", ");
            families.insert(format!("{name}{suffix}"), [kind.to_owned(), labels, helps[name].clone()]);
        }
    }
    families
}

/// The labels of a sample of `family`.
fn labels(line: &str, family: &str) -> Option<Vec<String>> {
    let rest = line.strip_prefix(family)?;
    let suffixes = ["_total", "_info", "_bucket", ""];
    let inside = suffixes.iter().find_map(|suffix| rest.strip_prefix(suffix)?.strip_prefix('{'))?;
    let keys = inside.split("=\"").filter_map(|part| part.rsplit([',', '{']).next());
    let count = inside.matches("=\"").count();
    Some(keys.take(count).map(str::to_owned).collect())
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let rows: String = families(&scrape().text())
        .into_iter()
        .map(|(name, [kind, labels, help])| format!("| `{name}` | {kind} | {labels} | {help} |\n"))
        .collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = document.split_once("| --- | --- | --- | --- |\n").unwrap();
    // The table ends with the first line that is none of its.
    let end = rest.split_inclusive('\n').take_while(|line| line.starts_with('|')).map(str::len).sum();
    if std::env::var("EXPECT").is_ok_and(|what| what == "write") {
        let text = format!("{head}| --- | --- | --- | --- |\n{rows}{}", &rest[end..]);
        return std::fs::write(&path, text).unwrap();
    }
    assert_eq!(rest[..end], rows, "EXPECT=write writes it anew");
}

#[test]
fn values_are_those_of_the_api_and_buckets_add_up() {
    let text = scrape().text();
    let has = |line: &str| assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
    has("shunt_generation 5");
    has("shunt_server_weight{service=\"web\",server=\"rs\\\"1\\\\\"} 7");
    has("shunt_server_bytes_in_total{service=\"ünï\",server=\"rs\\\"1\\\\\"} 18446744073709551615");
    has("shunt_server_enabled{service=\"web\",server=\"rs2\"} 0");
    has("shunt_worker_rx_packets_total{worker=\"1\"} 99");
    has("shunt_queue_rx_packets_total{interface=\"eth0\",queue=\"1\",worker=\"1\"} 12");
    has("shunt_drops_total{reason=\"no_route\"} 8");
    has("shunt_worker_connections{worker=\"0\",version=\"ipv4\"} 10");
    has("shunt_worker_turn_seconds_sum{worker=\"0\"} 1.5");
    has("shunt_worker_turn_seconds_count{worker=\"0\"} 7");
    has("shunt_worker_turn_seconds_bucket{le=\"0.000002048\",worker=\"0\"} 4");
    has("shunt_worker_turn_seconds_bucket{le=\"0.000004096\",worker=\"0\"} 6");
    has("shunt_worker_turn_seconds_bucket{le=\"+Inf\",worker=\"0\"} 7");
    assert!(text.ends_with("# EOF\n"));
}

/// Reads OpenMetrics from stdin and prints how many families and samples there are.
const PARSER: &str = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(sys.stdin.read()))
print(len(families), sum(len(family.samples) for family in families))";

#[test]
fn the_parser_of_prometheus_own_client_reads_all_of_it() {
    let text = scrape().text();
    let parser = Command::new("/usr/bin/python3")
        .args(["-c", PARSER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut parser = parser.unwrap();
    parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = parser.wait_with_output().unwrap();
    assert!(output.status.success(), "the package python3-prometheus-client (scripts/setup) refuses\n{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    let expected = format!("{} {samples}\n", families(&text).len());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}
