//! The peers' offloads untouched: frames come with partial checksums and as super-frames, and leave complete.

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{BULK, Cables, Lab, MODES};

over_every_driver!(peers_offloads_do_no_harm);

fn peers_offloads_do_no_harm(driver: Driver) {
    let mut lab = Lab::new("offloads", Cables { offload: true, ..BULK });
    Daemon::start(&mut lab, &Config::new(driver));
    let (small, large) = (lab.sum_of_file("64k"), lab.sum_of_file("50m"));
    for (mode, vip) in MODES {
        assert_eq!(lab.shares(&format!("http://{vip}/"), 6), [2; 3], "{mode}");
        assert_eq!(lab.sum_of_download(&format!("http://{vip}/64k")), small, "{mode}: 64 KiB");
        assert!(lab.udp_echo(vip, "hello").ends_with(" hello"), "{mode}: UDP");
    }
    // Native XDP makes the kernel cut super-frames before they reach the director. Elsewhere those above the MTU are
    // dropped and counted, and the senders' TCP gets along with what is left: 50 MiB would take too long.
    if driver == Driver::Native {
        for (mode, vip) in MODES {
            assert_eq!(lab.sum_of_download(&format!("http://{vip}/50m")), large, "{mode}: 50 MiB");
        }
    } else {
        assert!(lab.shunt().rx_counter("oversize")[0] > 0, "super-frames are counted");
    }
}
