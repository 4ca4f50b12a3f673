//! Two queues and two workers: a flow has one home, and frames that come in elsewhere are handed to it.

use std::time::Duration;

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{BULK, Cables, Lab, MODES, within};

over_every_driver!(two_workers_hand_frames_to_each_other);

fn two_workers_hand_frames_to_each_other(driver: Driver) {
    let queues = match driver {
        Driver::Native | Driver::AfPacket => 2,
        // Before generic XDP, veth shows what was sent on queues 0 and 1 as received on 0, and what was on 2 as on 1.
        Driver::Generic => 3,
    };
    let mut lab = Lab::new("workers", Cables { queues, ..BULK });
    Daemon::start(&mut lab, &Config { workers: 2, ..Config::new(driver) });
    for (mode, vip) in MODES {
        let shares = lab.shares(&format!("http://{vip}/"), 40);
        assert!(shares.iter().all(|share| *share >= 8), "{mode}: {shares:?}");
    }
    let received = lab.shunt().rx_counter("packets");
    assert!(received.iter().all(|packets| *packets > 100), "both workers' queues get frames: {received:?}");
    let handed = lab.shunt().worker_counter("handoff_in");
    assert!(handed.iter().all(|frames| *frames > 100), "both are handed frames: {handed:?}");
    let sum = lab.sum_of_file("50m");
    for (mode, vip) in MODES {
        assert_eq!(lab.sum_of_download(&format!("http://{vip}/50m")), sum, "{mode}: 50 MiB");
    }
    // What a full ring refuses is lost, and counted. Workers publish what they count now and then.
    let mut sum = |name| lab.shunt().worker_counter(name).iter().sum::<u64>();
    within(Duration::from_secs(10), "every frame given is taken or counted as refused", || {
        sum("handoff_out") == sum("handoff_in") + sum("handoff_full")
    });
}
