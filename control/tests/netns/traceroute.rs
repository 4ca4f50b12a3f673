//! ping and traceroute, to the director and through it, find what an operator expects, in both families.

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{Lab, PLAIN};

over_every_driver!(ping_and_traceroute_find_the_director_and_what_is_behind_it);

fn ping_and_traceroute_find_the_director_and_what_is_behind_it(driver: Driver) {
    let mut lab = Lab::new("traceroute", PLAIN);
    // Hosts behind the director are reached through its kernel.
    lab.sh("director", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    lab.sh("client", "ip route add 10.2.0.11/32 via 10.1.0.2; ip route add fd00:2::11/128 via fd00:1::2");
    Daemon::start(&mut lab, &Config { v6: true, ..Config::new(driver) });
    let families = [
        ("203.0.113.10", "10.2.0.11", ["10.3.0.2", "10.1.0.2"]),
        ("2001:db8:cb::10", "fd00:2::11", ["fd00:3::2", "fd00:1::2"]),
    ];
    for (vip, server, [router, director]) in families {
        // Echo to a VIP is the director's kernel's to answer; to a server it passes through.
        lab.sh("far", &format!("ping -c 3 -i 0.2 -W 2 {vip}"));
        lab.sh("far", &format!("ping -c 3 -i 0.2 -W 2 -s 1300 {vip}"));
        lab.sh("far", &format!("ping -c 3 -i 0.2 -W 2 {server}"));
        // The VIP is the director's own address.
        assert_eq!(hops(&lab, "-I", vip), [router, vip], "to the VIP by echo");
        assert_eq!(hops(&lab, "-U -p 33434", vip), [router, vip], "to the VIP by a UDP port nobody balances");
        assert_eq!(hops(&lab, "-I", server), [router, director, server], "through to a server");
        // The service is behind the director, which loses a hop of each packet and says so.
        assert_eq!(hops(&lab, "-T -p 80", vip), [router, director, vip], "through to the service");
        assert_eq!(hops(&lab, "-U -p 9000", vip)[..2], [router, director], "through to the UDP service");
    }
    lab.judge();
    let exceeded = lab.seen(("client", "front"), "icmp.type == 11 && ip.src == 10.1.0.2");
    let exceeded_v6 = lab.seen(("client", "front"), "icmpv6.type == 3 && ipv6.src == fd00:1::2");
    assert!(
        exceeded >= 3 && exceeded_v6 >= 3,
        "the director says when a hop limit runs out: {exceeded} {exceeded_v6}"
    );
}

/// Where traceroute says that `to` is reached by, the last being who answered as the destination. A probe per hop at
/// a time, as often as it takes: answers are rate-limited.
fn hops(lab: &Lab, how: &str, to: &str) -> Vec<String> {
    let shown = lab.sh("far", &format!("traceroute -n -q 3 -N 1 -w 2 -m 5 {how} {to}"));
    // "2  10.1.0.2  0.080 ms  0.047 ms  0.049 ms"; a star stands for no answer.
    let hop = |line: &str| {
        line.split_whitespace().find(|word| word.parse::<std::net::IpAddr>().is_ok()).map(str::to_owned)
    };
    shown.lines().skip(1).filter_map(hop).collect()
}
