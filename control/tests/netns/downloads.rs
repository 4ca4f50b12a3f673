//! 50 MiB arrive bit for bit, in each mode over each driver.

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{BULK, Lab, MODES};

over_every_driver!(fifty_mebibytes_arrive);

fn fifty_mebibytes_arrive(driver: Driver) {
    let mut lab = Lab::new("downloads", BULK);
    Daemon::start(&mut lab, &Config::new(driver));
    let sum = lab.sum_of_file("50m");
    for (mode, vip) in MODES {
        assert_eq!(lab.sum_of_download(&format!("http://{vip}/50m")), sum, "{mode}");
    }
}
