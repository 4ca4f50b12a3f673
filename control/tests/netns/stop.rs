//! A polite stop under traffic leaves the director as it was found.

use rustix::process::Signal;

use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{Lab, PLAIN};

/// All a daemon could have left.
const STATE: &str =
    "ip -brief address; ip -d link | grep -i xdp || true; nft list ruleset; ip neigh | grep managed || true
    for device in front back; do ethtool -k $device; done";

#[test]
fn sigterm_and_sigint_leave_the_interfaces_clean() {
    let mut lab = Lab::new("stop", PLAIN);
    let before = lab.sh("director", STATE);
    for driver in [Driver::Native, Driver::Generic, Driver::AfPacket] {
        for signal in [Signal::TERM, Signal::INT] {
            Daemon::start(&mut lab, &Config::new(driver));
            assert_eq!(lab.shares("http://203.0.113.10/", 3), [1; 3]);
            let daemon = lab.daemon.take().unwrap();
            daemon.end(signal);
            assert_eq!(lab.sh("director", STATE), before, "{driver:?}, {signal:?}");
        }
    }
}
