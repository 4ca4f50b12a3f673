//! A reload while traffic runs: what did not change does not notice.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{BULK, Lab, MODES, within};

over_every_driver!(a_server_removed_by_reload_leaves_downloads_from_the_others_alone);

fn a_server_removed_by_reload_leaves_downloads_from_the_others_alone(driver: Driver) {
    let mut lab = Lab::new("reload", BULK);
    let config = Config::new(driver);
    Daemon::start(&mut lab, &Config { servers: vec![11], ..config.clone() });
    // All on rs1, the only server so far.
    let downloads = long_downloads(&mut lab);
    lab.shunt().reload(&config);
    for (mode, vip) in MODES {
        assert_eq!(lab.shares(&format!("http://{vip}/"), 6), [2; 3], "{mode}: all three are in");
    }
    lab.shunt().reload(&Config { servers: vec![11, 13], ..config });
    for (mode, vip) in MODES {
        assert_eq!(lab.shares(&format!("http://{vip}/"), 10), [5, 0, 5], "{mode}: rs2 is out");
    }
    finish(&lab, downloads);
}

over_every_driver!(a_bad_file_is_refused_and_changes_nothing);

fn a_bad_file_is_refused_and_changes_nothing(driver: Driver) {
    let mut lab = Lab::new("bad-file", BULK);
    let config = Config { servers: vec![11], ..Config::new(driver) };
    Daemon::start(&mut lab, &config);
    let downloads = long_downloads(&mut lab);
    let before = lab.shunt().status()["generation"].clone();
    let file = lab.folder().join("shunt.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    // A wrong type; a file whose end is missing; all is well but for one server.
    let unfinished = good.clone() + "[[service\n";
    let one_bad = good.clone() + "[[service.server]]\naddress = \"10.2.0.300:80\"\n";
    for (text, line) in [
        ("[[service]]\nname = 7\n", 2),
        (&unfinished, unfinished.lines().count()),
        (&one_bad, one_bad.lines().count()),
    ] {
        std::fs::write(&file, text).unwrap();
        let refused = lab.shunt().shunt(&["reload"]);
        assert!(!refused.status.success());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(&format!("shunt.toml:{line}:")), "file and line {line} are named: {said}");
        assert_eq!(lab.shunt().status()["generation"], before);
        for (mode, vip) in MODES {
            assert_eq!(lab.get(&format!("http://{vip}/")), "rs1", "{mode}");
        }
    }
    finish(&lab, downloads);
    lab.shunt().reload(&Config::new(driver));
    assert_eq!(lab.shares("http://203.0.113.10/", 6), [2; 3], "a good file is taken again");
}

#[test]
fn a_local_address_left_out_stays_until_the_last_connection_over_it_to_a_server_that_stays_has_ended() {
    let mut lab = Lab::new("local", BULK);
    let config = |local: &str| {
        let more = format!(
            "[[service]]\nname = \"moves\"\nlisten = [\"203.0.113.10:8100\"]\nprotocol = \"tcp\"\nmode = \"fullnat\"\n\
             local = [\"{local}\"]\n\
             [[service.server]]\naddress = \"10.2.0.11:80\"\n"
        );
        Config { more, ..Config::new(Driver::Native) }
    };
    Daemon::start(&mut lab, &config("10.2.0.201"));
    let download = long_download(&lab, "203.0.113.10:8100");
    let peers = |lab: &Lab| lab.sh("rs1", "ss -Htn state established sport = :80");
    within(Duration::from_secs(10), "the download runs", || peers(&lab).contains("10.2.0.201"));

    lab.shunt().reload(&config("10.2.0.202"));
    assert_eq!(lab.get("http://203.0.113.10:8100/"), "rs1");
    // Time enough for all connections to be looked at once, and more.
    let is_there = |lab: &Lab| lab.sh("director", "ip -4 -o addr").contains(" 10.2.0.201/32 ");
    let reloaded = Instant::now();
    while reloaded.elapsed() < Duration::from_secs(6) {
        assert!(is_there(&lab), "it goes {:?} after the reload", reloaded.elapsed());
        std::thread::sleep(Duration::from_millis(200));
    }
    std::fs::write(lab.folder().join("finish"), "").unwrap();
    let output = download.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), lab.sum_of_file("50m"));
    within(Duration::from_secs(30), "the address goes", || !is_there(&lab));
    let said = "local address 10.2.0.201 of service moves was left out and is gone";
    within(Duration::from_secs(10), "that is said", || lab.shunt().log().contains(said));
}

/// 50 MiB in each mode, running from now on and not complete before [`finish`].
pub(crate) fn long_downloads(lab: &mut Lab) -> Vec<Child> {
    let downloads = MODES.iter().map(|(_, vip)| long_download(lab, vip)).collect();
    lab.shunt().serves_every_mode(50);
    downloads
}

/// 50 MiB, of which the last five wait for a file of the name `finish`.
fn long_download(lab: &Lab, host: &str) -> Child {
    let script = format!(
        "curl -sS --fail --limit-rate 20M http://{host}/50m \
         | {{ head -c 45M; until [ -e \"$0\" ]; do sleep 0.05; done; cat; }} | sha256sum"
    );
    let mut curl = lab.command("client", "bash");
    curl.args(["-euo", "pipefail", "-c", &script]).arg(lab.folder().join("finish"));
    curl.stdout(Stdio::piped()).spawn().unwrap()
}

/// Lets the downloads come to their end, which must be a good one.
pub(crate) fn finish(lab: &Lab, downloads: Vec<Child>) {
    std::fs::write(lab.folder().join("finish"), "").unwrap();
    let sum = lab.sum_of_file("50m");
    for (download, (mode, _)) in downloads.into_iter().zip(MODES) {
        let output = download.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), sum, "{mode}: the download went on");
    }
}
