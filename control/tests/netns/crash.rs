//! `kill -9` of the daemon in the middle of a download.

use std::process::Stdio;

use rustix::process::Signal;

use crate::capture::FROM_DIRECTOR;
use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{Lab, MODES, PLAIN};

#[test]
fn a_killed_daemon_over_af_xdp_leaves_no_reset_behind() {
    leaves_no_reset(Driver::Native);
}

#[test]
fn a_killed_daemon_over_af_packet_leaves_no_reset_behind() {
    leaves_no_reset(Driver::AfPacket);
}

fn leaves_no_reset(driver: Driver) {
    let mut lab = Lab::new("crash", PLAIN);
    Daemon::start(&mut lab, &Config { servers: vec![11], ..Config::new(driver) });
    lab.capture("client", "front");
    lab.capture("switch", "director");
    let downloads: Vec<_> = MODES
        .iter()
        .map(|(_, vip)| {
            let mut curl = lab.command("client", "curl");
            curl.args([
                "-sS",
                "-m",
                "3",
                "-o",
                "/dev/null",
                "--limit-rate",
                "5M",
                &format!("http://{vip}/50m"),
            ]);
            curl.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    lab.shunt().serves_every_mode(50);
    let daemon = lab.daemon.take().unwrap();
    daemon.end(Signal::KILL);
    // The clients go on sending until their time is up, and the kernel of the director hears all of it.
    for mut download in downloads {
        assert!(!download.wait().unwrap().success(), "the download was cut");
    }
    assert!(lab.sh("director", "nft list tables").contains("inet shunt"), "the guard outlives the daemon");
    for capture in &mut lab.captures {
        capture.stop();
    }
    for capture in &lab.captures {
        assert_eq!(
            capture.count(&format!("{FROM_DIRECTOR} && tcp.flags.reset == 1")),
            0,
            "RSTs of the director"
        );
    }
    Daemon::start(&mut lab, &Config::new(driver));
    for (mode, vip) in MODES {
        assert_eq!(lab.shares(&format!("http://{vip}/"), 3), [1; 3], "{mode}: after the restart");
    }
}
