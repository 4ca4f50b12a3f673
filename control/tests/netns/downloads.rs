//! 50 MiB arrive bit for bit, in each mode over each driver.

use crate::capture::Judged;
use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{Lab, MODES, PLAIN};

#[test]
fn fifty_mebibytes_arrive_over_af_xdp_native() {
    arrive(Driver::Native);
}

#[test]
fn fifty_mebibytes_arrive_over_af_xdp_generic() {
    arrive(Driver::Generic);
}

#[test]
fn fifty_mebibytes_arrive_over_af_packet() {
    arrive(Driver::AfPacket);
}

fn arrive(driver: Driver) {
    let mut lab = Lab::new("downloads", PLAIN);
    Daemon::start(&mut lab, &Config::new(driver));
    let sum = lab.sum_of_file("50m");
    for (mode, vip) in MODES {
        assert_eq!(lab.sum_of_download(&format!("http://{vip}/50m")), sum, "{mode}");
    }
    // Once more with a recording where the director's frames arrive; recording everything would only take longer.
    lab.capture("client", "front");
    assert_eq!(lab.sum_of_download("http://203.0.113.10/50m"), sum, "recorded");
    lab.judge(Judged::Every);
}
