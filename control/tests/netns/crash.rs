//! `kill -9` of the daemon in the middle of a download.

use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

use crate::capture::FROM_DIRECTOR;
use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{BESIDE_DIRECTOR, BULK, Lab, MODES};

over_every_driver!(a_killed_daemon_leaves_no_reset_behind);

fn a_killed_daemon_leaves_no_reset_behind(driver: Driver) {
    let mut lab = Lab::new("crash", BULK);
    Daemon::start(&mut lab, &Config { servers: vec![11], ..Config::new(driver) });
    let mut downloads = MODES.map(|(_, vip)| {
        let mut curl = lab.command("client", "curl");
        curl.args(["-sS", "-m", "8", "-o", "/dev/null", "--limit-rate", "5M", &format!("http://{vip}/50m")]);
        curl.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    });
    lab.shunt().serves_every_mode(50);
    let daemon = lab.daemon.take().unwrap();
    daemon.end(Signal::KILL);
    for download in &mut downloads {
        assert!(download.try_wait().unwrap().is_none(), "the download runs while the daemon is killed");
    }
    // The clients go on sending until their time is up, and the kernel of the director hears all of it.
    for download in &mut downloads {
        assert!(!download.wait().unwrap().success(), "the download was cut");
    }
    assert!(lab.sh("director", "nft list tables").contains("inet shunt"), "the guard outlives the daemon");
    let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    Daemon::start(&mut lab, &Config::new(driver));
    for (mode, vip) in MODES {
        assert_eq!(lab.shares(&format!("http://{vip}/"), 3), [1; 3], "{mode}: after the restart");
    }
    lab.judge();
    for edge in BESIDE_DIRECTOR {
        let resets = format!("{FROM_DIRECTOR} && tcp.flags.reset == 1 && frame.time_epoch < {until}");
        assert_eq!(lab.seen(edge, &resets), 0, "RSTs of the director at {edge:?}");
    }
}
