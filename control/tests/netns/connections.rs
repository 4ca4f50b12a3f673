//! `shunt connections` shows what curl has open in each mode.

use std::time::Duration;

use serde_json::Value;

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{BULK, Lab, MODES, within};

over_every_driver!(connections_shows_what_is_open_in_each_mode);

fn connections_shows_what_is_open_in_each_mode(driver: Driver) {
    let mut lab = Lab::new("connections", BULK);
    Daemon::start(&mut lab, &Config { workers: 2, ..Config::new(driver) });
    let mut downloads: Vec<_> = MODES
        .iter()
        .map(|(_, vip)| {
            let url = format!("http://{vip}/50m");
            lab.command("client", "curl")
                .args(["-sS", "--limit-rate", "200k", "-o", "/dev/null", &url])
                .spawn()
                .unwrap()
        })
        .collect();
    let lines = |lab: &mut Lab, words: &[&str]| -> Vec<Value> {
        let output = lab.shunt().shunt(&[&["connections", "--json"], words].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    within(Duration::from_secs(20), "each mode's download runs", || {
        lines(&mut lab, &["--state", "established"]).len() == MODES.len()
    });
    for (mode, vip) in MODES {
        let all = lines(&mut lab, &["--state", "established"]);
        let own: Vec<_> = all.iter().filter(|line| line["virtual"] == format!("{vip}:80")).collect();
        assert_eq!(own.len(), 1, "{mode}: {all:?}");
        let own = own[0];
        assert_eq!((own["mode"].as_str(), own["protocol"].as_str()), (Some(mode), Some("tcp")));
        assert_eq!(own["service"], format!("{mode}-web"));
        assert!(own["client"].as_str().unwrap().starts_with("10.1.0.10:"), "{own}");
        assert_eq!(own["server"], own["server_name"], "servers are called by their address: {own}");
        let local = own["local"].as_str();
        assert_eq!(local.map(|local| local.starts_with("10.2.0.200:")), (mode == "fullnat").then_some(true));
        // By each of its ends it is found alone.
        assert_eq!(
            lines(&mut lab, &["--client", own["client"].as_str().unwrap()]),
            std::slice::from_ref(own)
        );
        let server = own["server"].as_str().unwrap();
        assert!(lines(&mut lab, &["--server", server, "--client", "10.1.0.0/24"]).contains(own));
    }
    assert!(lines(&mut lab, &["--client", "10.9.0.0/16"]).is_empty());
    let table = String::from_utf8(lab.shunt().shunt(&["connections"]).stdout).unwrap();
    assert_eq!(table.lines().filter(|line| line.contains(" ESTABLISHED 10.1.0.10:")).count(), 4, "{table}");
    let refused = lab.shunt().shunt(&["connections", "--state", "open"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("\"open\" is no state"), "{said}");
    assert!(refused.stdout.is_empty(), "the head of the table would say that there are none");
    for download in &mut downloads {
        let _ = download.kill();
        let _ = download.wait();
    }
}
