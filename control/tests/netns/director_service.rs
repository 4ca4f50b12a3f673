//! A TCP service of the director itself, on the very interfaces shunt takes frames from, is reachable all the time.

use std::process::Stdio;

use rustix::process::Signal;

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{Lab, PLAIN};

over_every_driver!(the_directors_own_service_is_reachable);

fn the_directors_own_service_is_reachable(driver: Driver) {
    let mut lab = Lab::new("director-service", PLAIN);
    let mut server = lab.command("director", "/usr/bin/python3");
    server.args(["-m", "http.server", "7000", "--directory"]).arg(lab.folder());
    let mut server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    lab.sh("director", "until curl -sSf 127.0.0.1:7000/ >/dev/null 2>&1; do sleep 0.05; done");
    // Asks without a pause from here on, over both interfaces; ends with the first question not answered at once.
    let ask = "while [ ! -e \"$0\" ]; do
            for at in 10.1.0.2 10.2.0.2; do curl -sSf -m 0.9 -o /dev/null $at:7000/ || exit 1; done
        done";
    let enough = lab.folder().join("enough");
    let asking = lab.command("client", "bash").args(["-c", ask]).arg(&enough).spawn().unwrap();
    let config = Config::new(driver);
    Daemon::start(&mut lab, &config);
    assert_eq!(lab.shares("http://203.0.113.10/", 6), [2; 3]);
    // A VIP answers a ping, and a port nobody balances is the kernel's: refused at once, not dropped.
    lab.sh("client", "ping -c 1 -W 1 203.0.113.10");
    lab.sh("client", "(curl -sS -m 2 http://203.0.113.10:7001/ || true) 2>&1 | grep -q 'connect to server'");
    lab.sh("client", "curl -sSf -m 2 -o /dev/null http://203.0.113.10:7000/");
    lab.shunt().reload(&Config { servers: vec![11], ..config });
    assert_eq!(lab.shares("http://203.0.113.10/", 6), [6, 0, 0]);
    let daemon = lab.daemon.take().unwrap();
    daemon.end(Signal::TERM);
    std::fs::write(enough, "").unwrap();
    let asked = asking.wait_with_output().unwrap();
    assert!(asked.status.success(), "one question was not answered in time");
    server.kill().unwrap();
    server.wait().unwrap();
}
