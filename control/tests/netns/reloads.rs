//! Many reloads, and what goes on through them as if there had been none.

use std::io::{BufRead, BufReader, Write as _};
use std::process::Stdio;

use crate::calls::{Call, PORT, Then, answers, prepare};
use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{BULK, Cables, Lab, MODES, PLAIN};
use crate::reload::{finish, long_downloads};

/// One more service, which nobody calls.
const ANOTHER: &str = "[[service]]\nname = \"another\"\nlisten = [\"203.0.113.90:99\"]\nprotocol = \"tcp\"\nmode = \"dr\"\n\
    [[service.server]]\naddress = \"10.2.0.11\"\n";

/// Requests a second, over all modes.
const RATE: &str = "500";

#[test]
fn a_hundred_reloads_fail_no_request_and_no_download() {
    let mut lab = Lab::new("reloads", Cables { queues: 2, ..BULK });
    let config = Config { workers: 2, ..Config::new(Driver::Native) };
    Daemon::start(&mut lab, &Config { servers: vec![11], ..config.clone() });
    let downloads = long_downloads(&mut lab);
    lab.shunt().reload(&config);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lab.d/requests.py");
    let stop = lab.folder().join("stop");
    let mut requests = lab.command("client", "/usr/bin/python3");
    requests.arg(script).arg(RATE).arg(&stop).args(MODES.map(|(_, vip)| vip));
    let requests = requests.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let before = lab.shunt().status()["generation"].as_u64().unwrap();
    // Servers in another order, a service that comes and goes, all services elsewhere in the file.
    let moved = Config { servers: vec![13, 11, 12], ..config.clone() };
    let more = Config { more: ANOTHER.to_owned(), ..config.clone() };
    let backwards = Config { backwards: true, ..config.clone() };
    for next in [&moved, &more, &backwards, &config].into_iter().cycle().take(100) {
        lab.shunt().reload(next);
    }
    assert!(lab.shunt().status()["generation"].as_u64().unwrap() >= before + 100);
    std::fs::write(stop, "").unwrap();
    let output = requests.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let counts: Vec<u32> = said.split_whitespace().map(|count| count.parse().unwrap()).collect();
    assert_eq!(counts[1], 0, "of {} failed: {}", counts[0], String::from_utf8_lossy(&output.stderr));
    // A machine that is busy with something else gets fewer done than 500 a second.
    assert!(counts[0] >= 500, "{said}");
    finish(&lab, downloads);
}

const RR: &str = "203.0.113.65";
const WLC: &str = "203.0.113.66";
const STICKY: &str = "203.0.113.67";

fn service(name: &str, vip: &str, keys: &str) -> String {
    let servers: String = [11, 12, 13]
        .iter()
        .map(|last| format!("[[service.server]]\naddress = \"10.2.0.{last}:{PORT}\"\n"))
        .collect();
    format!(
        "[[service]]\nname = \"{name}\"\nlisten = [\"{vip}:{PORT}\"]\nprotocol = \"tcp\"\nmode = \"dr\"\n{keys}\n{servers}"
    )
}

#[test]
fn turns_counts_connections_and_templates_go_on_through_a_reload_that_moves_services() {
    let mut lab = Lab::new("goes-on", PLAIN);
    prepare(&lab, 3, &["203.0.113.64/26"]);
    let rr = service("rr", RR, "scheduler = \"rr\"");
    let wlc = service("wlc", WLC, "scheduler = \"wlc\"");
    let sticky = service("sticky", STICKY, "scheduler = \"rr\"\npersistence = \"60s\"");
    let config = |more: String| Config { more, ..Config::new(Driver::Native) };
    Daemon::start(&mut lab, &config([rr.as_str(), &wlc, &sticky].concat()));
    // Those that stay connected: four to begin with, on three servers.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lab.d/caller.py");
    let mut caller = lab.command("client", "/usr/bin/python3");
    let mut caller =
        caller.args([script, "stay"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(caller.stdout.take().unwrap()).lines();
    let mut asks = caller.stdin.take().unwrap();
    let mut stay = |ports: std::ops::Range<u16>| -> Vec<String> {
        let lines: String = ports.clone().map(|port| format!("10.9.0.1 {port} {WLC} {PORT}\n")).collect();
        asks.write_all(lines.as_bytes()).unwrap();
        ports.map(|_| said.next().unwrap().unwrap()).collect()
    };
    let turns = |lab: &Lab, ports: std::ops::Range<u16>| {
        let calls: Vec<Call> = ports.map(|port| (2, port, RR.to_owned())).collect();
        answers(lab, Then::HangUp, &calls)
    };
    let clients = |lab: &Lab, port: u16| {
        let calls: Vec<Call> = (3..13).map(|client| (client, port, STICKY.to_owned())).collect();
        answers(lab, Then::HangUp, &calls)
    };
    let (mut held, mut turn, remembered) =
        (stay(20_000..20_004), turns(&lab, 21_000..21_004), clients(&lab, 22_000));
    lab.shunt().reload(&config([ANOTHER, sticky.as_str(), &wlc, &rr].concat()));
    held.extend(stay(20_004..20_006));
    turn.extend(turns(&lab, 21_004..21_009));
    for next in turn.windows(4) {
        assert!(
            next[0] != next[1] && next[1] != next[2] && next[0] != next[2] && next[3] == next[0],
            "{turn:?}"
        );
    }
    held.sort();
    assert_eq!(
        held,
        ["rs1", "rs1", "rs2", "rs2", "rs3", "rs3"],
        "the fifth and sixth know of the first four"
    );
    assert_eq!(clients(&lab, 22_001), remembered);
    let status = lab.shunt().status();
    let services = status["services"].as_array().unwrap();
    let wlc = services.iter().find(|service| service["name"] == "wlc").unwrap();
    let active = wlc["servers"].as_array().unwrap().iter().map(|server| server["active"].as_u64().unwrap());
    assert_eq!(active.collect::<Vec<_>>(), [2, 2, 2]);
    drop(asks);
    assert!(caller.wait().unwrap().success());
}
