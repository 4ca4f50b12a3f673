//! A reload while traffic runs: what did not change does not notice.

use std::process::Stdio;

use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{BULK, Lab, MODES, PLAIN};

#[test]
fn a_server_removed_by_reload_leaves_downloads_from_the_others_alone() {
    let mut lab = Lab::new("reload", BULK);
    let config = Config::new(Driver::Native);
    Daemon::start(&mut lab, &Config { servers: vec![11], ..config.clone() });
    let sum = lab.sum_of_file("50m");
    // All on rs1, the only server so far, for some three seconds.
    let downloads: Vec<_> = MODES
        .iter()
        .map(|(_, vip)| {
            let script = format!("curl -sS --fail --limit-rate 20M http://{vip}/50m | sha256sum");
            let mut curl = lab.command("client", "bash");
            curl.args(["-euo", "pipefail", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    lab.shunt().serves_every_mode(50);
    lab.shunt().reload(&config);
    for (mode, vip) in MODES {
        assert_eq!(lab.shares(&format!("http://{vip}/"), 6), [2; 3], "{mode}: all three are in");
    }
    lab.shunt().reload(&Config { servers: vec![11, 13], ..config });
    for (mode, vip) in MODES {
        assert_eq!(lab.shares(&format!("http://{vip}/"), 10), [5, 0, 5], "{mode}: rs2 is out");
    }
    for (download, (mode, _)) in downloads.into_iter().zip(MODES) {
        let output = download.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), sum, "{mode}: the download went on");
    }
}

#[test]
fn a_bad_file_is_refused_and_changes_nothing() {
    let mut lab = Lab::new("bad-file", PLAIN);
    Daemon::start(&mut lab, &Config::new(Driver::Native));
    let before = lab.shunt().status()["generation"].clone();
    let file = lab.folder().join("shunt.toml");
    std::fs::write(&file, "[[service]]\nname = 7\n").unwrap();
    let refused = lab.shunt().shunt(&["reload"]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("shunt.toml") && said.contains("2:"), "file and line are named: {said}");
    assert_eq!(lab.shunt().status()["generation"], before);
    for (mode, vip) in MODES {
        assert_eq!(lab.shares(&format!("http://{vip}/"), 3), [1; 3], "{mode}");
    }
}
