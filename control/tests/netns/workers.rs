//! Two queues and two workers: a flow has one home, and frames that come in elsewhere are handed to it.

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{BULK, Cables, Lab, MODES};

over_every_driver!(two_workers_hand_frames_to_each_other);

fn two_workers_hand_frames_to_each_other(driver: Driver) {
    let mut lab = Lab::new("workers", Cables { queues: 2, ..BULK });
    Daemon::start(&mut lab, &Config { workers: 2, ..Config::new(driver) });
    for (mode, vip) in MODES {
        let shares = lab.shares(&format!("http://{vip}/"), 40);
        assert!(shares.iter().all(|share| *share >= 8), "{mode}: {shares:?}");
    }
    assert!(lab.shunt().worker_counter("handoff_in") > 0, "frames were handed over");
    assert_eq!(
        lab.shunt().worker_counter("handoff_in"),
        lab.shunt().worker_counter("handoff_out"),
        "none is lost"
    );
    let sum = lab.sum_of_file("50m");
    for (mode, vip) in MODES {
        assert_eq!(lab.sum_of_download(&format!("http://{vip}/50m")), sum, "{mode}: 50 MiB");
    }
}
