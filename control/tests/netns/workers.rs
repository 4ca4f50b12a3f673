//! Two queues and two workers: a flow has one home, and frames that come in elsewhere are handed to it.

use crate::capture::Judged;
use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{Cables, Lab, MODES, PLAIN};

#[test]
fn two_workers_over_af_xdp_native_hand_frames_to_each_other() {
    hand_over(Driver::Native);
}

#[test]
fn two_workers_over_af_packet_hand_frames_to_each_other() {
    hand_over(Driver::AfPacket);
}

fn hand_over(driver: Driver) {
    let mut lab = Lab::new("workers", Cables { queues: 2, ..PLAIN });
    Daemon::start(&mut lab, &Config { workers: 2, ..Config::new(driver) });
    lab.capture("client", "front");
    lab.capture("switch", "director");
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
    lab.judge(Judged::Every);
    let sum = lab.sum_of_file("50m");
    for (mode, vip) in MODES {
        assert_eq!(lab.sum_of_download(&format!("http://{vip}/50m")), sum, "{mode}: 50 MiB");
    }
}
