//! What a machine's other services see of the daemon: systemd, a scraper, whoever reads the log, and what it may do.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::CapabilitySet;
use serde_json::Value;
use shunt_control::capabilities::KEPT;

use super::{Lab, refused};

/// Reads what systemd is told until `wanted` says that it is enough.
fn told(socket: &UnixDatagram, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while !wanted(&all) {
        let len = match socket.recv(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            received => received.unwrap_or_else(|error| panic!("{error} after {all:?}")),
        };
        all.push(String::from_utf8(buffer[..len].to_vec()).unwrap().trim_end().to_owned());
    }
    all
}

#[test]
fn systemd_hears_of_start_reload_and_stop_and_that_the_daemon_lives() {
    let mut lab = Lab::new("notify");
    let path = lab.folder.join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "400000")];
    lab.start_with(&[], &environment);
    let is_ready =
        |message: &String| message.starts_with("READY=1\nSTATUS=1 services, 1 servers, generation ");
    let start = told(&socket, |all| all.last().is_some_and(is_ready));
    assert_eq!(start.iter().filter(|message| *message != "WATCHDOG=1").count(), 1, "{start:?}");
    // Every 200 ms: 5 take 0.8 s. A busy machine may be late, but none comes early.
    let began = Instant::now();
    let beats = told(&socket, |all| all.len() == 5);
    assert!(beats.iter().all(|message| message == "WATCHDOG=1"), "{beats:?}");
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
    for text in ["", "[[service]]\n"] {
        lab.configure(text);
        kill_process(Pid::from_child(lab.daemon.as_ref().unwrap()), Signal::HUP).unwrap();
        let reload = told(&socket, |all| all.last().is_some_and(is_ready));
        let reload: Vec<_> = reload.into_iter().filter(|message| message != "WATCHDOG=1").collect();
        assert_eq!(reload.len(), 2, "{reload:?}");
        let now = reload[0].strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse::<u64>().unwrap();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
        assert!(now as f64 / 1e6 <= uptime + 1.0 && now as f64 / 1e6 > uptime - 60.0, "{now} at {uptime}");
    }
    assert_eq!(lab.end(Signal::TERM), Some(0));
    told(&socket, |all| all.last().is_some_and(|message| message == "STOPPING=1"));
}

#[test]
fn after_the_start_no_thread_may_do_more_than_is_documented() {
    let mut lab = Lab::new("kept");
    lab.start();
    let tasks = format!("/proc/{}/task", lab.daemon.as_ref().unwrap().id());
    let mut threads = 0;
    for task in std::fs::read_dir(tasks).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapInh:"] {
            let more = CapabilitySet::from_bits_retain(field(set)).difference(KEPT);
            assert!(more.is_empty(), "{set} {more:?} in\n{status}");
        }
        assert!(
            CapabilitySet::from_bits_retain(field("CapEff:")).contains(CapabilitySet::NET_ADMIN),
            "{status}"
        );
        assert_eq!(field("NoNewPrivs:"), 1, "{status}");
        threads += 1;
    }
    assert!(threads >= 2, "a worker besides the main thread");
    let documented = include_str!("../../../docs/service.md");
    let names = ["NET_ADMIN", "NET_RAW", "BPF", "SETUID", "SETGID", "KILL"];
    let sets = names.map(|name| CapabilitySet::from_name(name).unwrap_or_else(|| panic!("{name}")));
    assert_eq!(sets.into_iter().fold(CapabilitySet::empty(), CapabilitySet::union), KEPT);
    names.iter().for_each(|name| assert!(documented.contains(&format!("CAP_{name}")), "{name}"));
    // All that a daemon does later it still can: addresses, guard, steering.
    let more =
        "[[service]]\nname = \"dns\"\nprotocol = \"udp\"\nmode = \"dr\"\nlisten = [\"203.0.113.53:53\"]\n";
    lab.configure(more);
    let reload = lab.shunt(&["reload"]);
    assert!(reload.status.success() && lab.addresses().contains("203.0.113.53"), "{reload:?}");
    assert_eq!(lab.end(Signal::TERM), Some(0));
    lab.is_clean();
}

#[test]
fn the_log_can_be_an_object_per_line_with_an_event_for_every_change() {
    let mut lab = Lab::new("json");
    lab.start_with(&["--log", "json"], &[]);
    lab.shunt(&["server", "weight", "web", "10.0.0.11:8080", "4"]);
    lab.shunt(&["rollback"]);
    lab.configure("[[service]]\n");
    lab.shunt(&["reload"]);
    assert_eq!(lab.end(Signal::TERM), Some(0));
    let events: Vec<Value> = lab.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let all = |key: &str, text: &str| events.iter().filter(|event| event[key] == text).collect::<Vec<_>>();
    let in_force = all("event", "configuration");
    assert_eq!(in_force.len(), 2, "{events:?}");
    assert_eq!((&in_force[0]["cause"], &in_force[1]["cause"]), (&"edit".into(), &"rollback".into()));
    assert!(in_force[0]["generation"].as_u64() < in_force[1]["generation"].as_u64());
    let changed = &all("message", "configuration changed")[0];
    let fields =
        ["service", "server", "what", "key", "before", "after"].map(|key| changed[key].as_str().unwrap());
    assert_eq!(fields, ["web", "10.0.0.11:8080", "changed", "weight", "1", "4"]);
    let refusal = events.iter().find(|event| event["level"] == "ERROR").unwrap();
    assert_eq!(refusal["event"], "refused");
}

#[test]
fn metrics_are_served_over_tcp_only_where_the_configuration_says_so() {
    let mut lab = Lab::new("scrape");
    lab.director.ip("link set lo up");
    lab.start();
    let listening = |lab: &Lab| lab.shows("ss", &["-Hltn"]);
    assert_eq!(listening(&lab), "", "nothing listens on TCP");
    assert_eq!(lab.end(Signal::TERM), Some(0));
    let text = std::fs::read_to_string(lab.file()).unwrap();
    std::fs::write(lab.file(), format!("[metrics]\nlisten = \"127.0.0.1:9110\"\n{text}")).unwrap();
    lab.start();
    assert_eq!(listening(&lab).lines().count(), 1);
    let scraped = lab.shows("curl", &["-sS", "http://127.0.0.1:9110/metrics"]);
    assert!(
        scraped.contains("shunt_server_weight{service=\"web\",server=\"10.0.0.11:8080\"} 1\n"),
        "{scraped}"
    );
    assert!(scraped.contains("shunt_drops_total{reason=") && scraped.ends_with("# EOF\n"), "{scraped}");
    std::fs::write(
        lab.folder.join("second.toml"),
        format!("[metrics]\nlisten = \"127.0.0.1:9110\"\n{}", text.replace("shunt.sock", "second.sock")),
    )
    .unwrap();
    let second = lab.shunt(&["run", "-c", lab.folder.join("second.toml").to_str().unwrap()]);
    refused(&second, "metrics.listen 127.0.0.1:9110: Address already in use");
}
