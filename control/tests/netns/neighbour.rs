//! A server's MAC changes and nobody says so: traffic recovers by itself.

use std::time::Duration;

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{Lab, MODES, PLAIN, within};

over_every_driver!(a_silently_changed_mac_is_learnt_and_traffic_recovers);

fn a_silently_changed_mac_is_learnt_and_traffic_recovers(driver: Driver) {
    let mut lab = Lab::new("neighbour", PLAIN);
    Daemon::start(&mut lab, &Config { servers: vec![11], ..Config::new(driver) });
    for (mode, vip) in MODES {
        assert_eq!(lab.get(&format!("http://{vip}/")), "rs1", "{mode}");
    }
    // A new MAC without a gratuitous ARP, and without anything the server itself would send: it only answers.
    lab.sh("rs1", "ip link set eth0 address 02:00:00:00:00:99");
    let took = within(Duration::from_secs(45), "traffic recovers", || {
        lab.command("client", "curl")
            .args(["-sS", "-m", "1", "http://203.0.113.30/"])
            .output()
            .unwrap()
            .status
            .success()
    });
    eprintln!("recovered after {took:?}");
    for (mode, vip) in MODES {
        assert_eq!(lab.get(&format!("http://{vip}/")), "rs1", "{mode}");
    }
}
