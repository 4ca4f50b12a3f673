//! Two queues and two workers: a flow has one home, and frames that come in elsewhere are handed to it.

use std::time::Duration;

use serde_json::Value;

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{BULK, Cables, Lab, MODES, within};

over_every_driver!(two_workers_hand_frames_to_each_other);

fn two_workers_hand_frames_to_each_other(driver: Driver) {
    let queues = match driver {
        Driver::Native | Driver::AfPacket => 2,
        // Before generic XDP, veth shows what was sent on queues 0 and 1 as received on 0, and what was on 2 as on 1.
        Driver::Generic => 3,
    };
    let mut lab = Lab::new("workers", Cables { queues, ..BULK });
    Daemon::start(&mut lab, &Config { workers: 2, ..Config::new(driver) });
    for (mode, vip) in MODES {
        let shares = lab.shares(&format!("http://{vip}/"), 40);
        assert!(shares.iter().all(|share| *share >= 8), "{mode}: {shares:?}");
    }
    let received = lab.shunt().rx_counter("packets");
    assert!(received.iter().all(|packets| *packets >= 40), "both workers' queues get frames: {received:?}");
    // How many is chance: the kernel spreads flows by a hash seeded at boot, shunt by one seeded at start.
    let handed = lab.shunt().worker_counter("handoff_in");
    assert!(handed.iter().all(|frames| *frames >= 20), "both are handed frames: {handed:?}");
    let sum = lab.sum_of_file("50m");
    for (mode, vip) in MODES {
        assert_eq!(lab.sum_of_download(&format!("http://{vip}/50m")), sum, "{mode}: 50 MiB");
    }
    // What a full ring refuses is lost, and counted. Workers publish what they count now and then.
    let mut sum = |name| lab.shunt().worker_counter(name).iter().sum::<u64>();
    within(Duration::from_secs(10), "every frame given is taken or counted as refused", || {
        sum("handoff_out") == sum("handoff_in") + sum("handoff_full")
    });
    let workers = quiet(lab.shunt());
    workers["workers"].as_array().unwrap().iter().for_each(adds_up);
    handed_off_is_said(&workers, driver);
    connections_are_those_in_the_tables(lab.shunt());
    let text = String::from_utf8(lab.shunt().shunt(&["status", "--workers"]).stdout).unwrap();
    assert_eq!(text.lines().next(), workers["handoff"].as_str());
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

/// `status --workers` at a moment when no frame moves: what is read in the middle of a publication does not add up.
fn quiet(shunt: &Daemon) -> Value {
    let still = |status: &Value| {
        let workers = status["workers"].as_array().unwrap().iter();
        workers.map(|w| [&w["burst_sizes"], &w["turns"], &w["rx"]].map(Value::clone)).collect::<Vec<_>>()
    };
    let mut status = shunt.status_workers();
    within(Duration::from_secs(10), "no frame moves between two readings", || {
        let before = still(&status);
        status = shunt.status_workers();
        still(&status) == before
    });
    status
}

fn numbers(list: &Value) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
}

/// What is shown of a worker agrees with itself.
fn adds_up(worker: &Value) {
    let count = |name: &str| worker["counters"][name].as_u64().unwrap();
    let share = |name: &str| worker[name].as_f64().unwrap();
    let close = |one: f64, other: f64| (one - other).abs() < 1e-9;
    let packets = count("rx_packets");
    let queues = worker["rx"].as_array().unwrap().iter();
    let by_queue: u64 = queues.map(|queue| queue["counters"]["packets"].as_u64().unwrap()).sum();
    assert_eq!(by_queue, packets, "packets are those of the queues: {worker}");

    let sizes = numbers(&worker["burst_sizes"]);
    assert_eq!(sizes.iter().sum::<u64>(), count("rx_bursts"), "{worker}");
    let fewest: u64 = sizes.iter().enumerate().map(|(power, bursts)| bursts << power).sum();
    let most: u64 = sizes.iter().enumerate().map(|(power, bursts)| bursts * ((2 << power) - 1).min(32)).sum();
    assert!((fewest..=most).contains(&packets), "packets are those of the bursts: {worker}");
    assert!(close(share("burst_mean"), packets as f64 / count("rx_bursts") as f64), "{worker}");

    let turns = numbers(&worker["turns"]["histogram"]);
    let at_least: u64 = turns.iter().enumerate().map(|(power, turns)| turns << power).sum();
    assert!((at_least..at_least * 2).contains(&count("busy_nanos")), "busy are the turns: {worker}");
    assert!(turns.iter().sum::<u64>() <= count("loops"), "{worker}");
    let [p50, p99, max] =
        ["p50_nanos", "p99_nanos", "max_nanos"].map(|name| worker["turns"][name].as_u64().unwrap());
    assert!(0 < p50 && p50 <= p99 && p99 <= max, "{worker}");
    for busy in [&worker["busy"], &worker["recent"]["busy"]].map(|busy| busy.as_f64().unwrap()) {
        assert!((0.0..=1.0).contains(&busy), "{worker}");
    }

    let (out, into) = (count("handoff_out") as f64, count("handoff_in") as f64);
    assert!(close(share("handed_out_share"), out / packets as f64), "{worker}");
    assert!(close(share("handed_in_share"), into / (into + packets as f64)), "{worker}");
    let [used, capacity] = ["used", "capacity"].map(|what| worker["buffers"][what].as_u64().unwrap());
    assert_eq!(capacity - used, count("pool_free"), "{worker}");
}

fn handed_off_is_said(status: &Value, driver: Driver) {
    let workers = status["workers"].as_array().unwrap();
    let sum =
        |name| workers.iter().map(|worker| worker["counters"][name].as_u64().unwrap()).sum::<u64>() as f64;
    let share = sum("handoff_out") / sum("rx_packets");
    assert!(share > 0.0 && share < 1.0, "{share}");
    let said = status["handoff"].as_str().unwrap();
    assert!(
        said.starts_with("front") && said.ends_with(&format!(": {:.1} % handed off", share * 100.0)),
        "{said}"
    );
    let why = match driver {
        Driver::Native | Driver::Generic => "front and back do not say how they spread flows:",
        Driver::AfPacket => "front and back: the kernel spreads frames by a hash of its own:",
    };
    assert!(said.starts_with(why), "{driver:?}: {said}");
}

/// The tables are as full as `shunt connections` has lines.
fn connections_are_those_in_the_tables(shunt: &Daemon) {
    within(Duration::from_secs(10), "as many records are in use as connections are shown", || {
        let output = shunt.shunt(&["connections", "--json"]);
        let shown = String::from_utf8(output.stdout).unwrap().lines().count() as u64;
        let status = shunt.status_workers();
        let tables = status["workers"].as_array().unwrap().iter();
        let tables = tables.flat_map(|worker| [&worker["connections_ipv4"], &worker["connections_ipv6"]]);
        let used: u64 = tables.clone().map(|table| table["used"].as_u64().unwrap()).sum();
        let capacity: u64 = tables.map(|table| table["capacity"].as_u64().unwrap()).sum();
        assert_eq!(capacity, 2 * 262_144, "two tables, all workers together");
        shown > 0 && used == shown
    });
}
