//! Behind a link of MTU 1400 the servers learn, by the router's ICMP errors to the VIP, to send less: downloads arrive
//! complete, in each mode and family.

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{Lab, MODES, MODES_V6, PLAIN};

over_every_driver!(a_smaller_mtu_on_the_way_is_found);

fn a_smaller_mtu_on_the_way_is_found(driver: Driver) {
    let mut lab = Lab::new("path-mtu", PLAIN);
    // One server, so that it hears of its own packets.
    Daemon::start(&mut lab, &Config { v6: true, servers: vec![11], ..Config::new(driver) });
    // Two MiB, some 1500 frames: many more than a window, and than what is under way when the server is told.
    let sum = lab.sum_of_start("50m", 2 << 20);
    let download = |host: &str| {
        lab.sh("far", &format!("curl -sS --fail --max-time 30 -r 0-2097151 'http://{host}/50m' | sha256sum"))
    };
    // What one mode has taught the server about the client must not help the next.
    let forget = || {
        // An IPv6 route takes what was learnt along when it is replaced.
        let route = "ip -6 route replace default via";
        lab.sh("rs1", &format!("ip route flush cache; {route} fd00:2::2; {route} fd00:2::10 table 100"));
    };
    for (mode, vip) in MODES {
        forget();
        assert_eq!(download(vip), sum, "{mode}");
    }
    for (mode, vip) in MODES_V6 {
        forget();
        assert_eq!(download(&format!("[{vip}]")), sum, "{mode} in IPv6");
    }
    lab.judge();
    let told = |filter: &str| lab.seen(("rs1", "eth0"), filter);
    let v4 = "icmp.type == 3 && icmp.code == 4 && icmp.mtu == 1400";
    let v6 = "icmpv6.type == 2 && icmpv6.mtu == 1400";
    for (mode, to) in [("fullnat and nat", "10.2.0.11"), ("dr", "203.0.113.30"), ("tun", "203.0.113.40")] {
        assert!(told(&format!("{v4} && ip.dst == {to}")) > 0, "{mode}: the server is told");
    }
    for (mode, to) in
        [("fullnat and nat", "fd00:2::11"), ("dr", "2001:db8:cb::30"), ("tun", "2001:db8:cb::40")]
    {
        assert!(told(&format!("{v6} && ipv6.dst == {to}")) > 0, "{mode}: the server is told in IPv6");
    }
}
