//! Services on prefixes: whatever is routed through the director to port 80 of a network goes to a cache, but not what
//! is for the director itself. The director forwards for others (`ip_forward`), and what it takes is not forwarded twice.

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{Lab, PLAIN};

/// DR for the whole network on rs1 and rs2, TUN for its upper half on rs3.
const SERVICES: &str = r#"
[[service]]
name = "caches"
listen = ["198.51.100.0/24:80"]
protocol = "tcp"
mode = "dr"
scheduler = "rr"
[[service.server]]
address = "10.2.0.11"
[[service.server]]
address = "10.2.0.12"
[[service]]
name = "upper"
listen = ["198.51.100.128/25:80"]
protocol = "tcp"
mode = "dr"
[[service.server]]
address = "10.2.0.13"
"#;

over_every_driver!(a_prefix_is_served_by_caches_and_the_director_keeps_its_own_address);

fn a_prefix_is_served_by_caches_and_the_director_keeps_its_own_address(driver: Driver) {
    let mut lab = Lab::new("prefix", PLAIN);
    lab.sh("client", "ip route add 198.51.100.0/24 via 10.1.0.2");
    // The origin of all those addresses is rs3, as far as the director's kernel knows.
    lab.sh("director", "sysctl -qw net.ipv4.ip_forward=1; ip route add 198.51.100.0/24 via 10.2.0.13");
    lab.sh("director", "ip addr add 198.51.100.1/32 dev lo");
    for server in ["rs1", "rs2", "rs3"] {
        lab.sh(
            server,
            "ip route add local 198.51.100.0/24 dev lo; ip rule add from 198.51.100.0/24 lookup 100",
        );
    }
    Daemon::start(&mut lab, &Config { more: SERVICES.into(), ..Config::new(driver) });
    assert_eq!(lab.shares("http://198.51.100.7/", 10), [5, 5, 0], "the caches in turn");
    assert_eq!(lab.shares("http://198.51.100.77/", 4), [2, 2, 0], "another address, the same caches");
    assert_eq!(lab.shares("http://198.51.100.200/", 4), [0, 0, 4], "the longer prefix wins");
    // Another port is no service's: the kernel forwards it to the origin.
    assert_eq!(lab.shares("http://198.51.100.7:8080/", 2), [0, 0, 2]);
    // Nobody listens on the director itself, and its kernel says so.
    assert!(refuses(&lab, "198.51.100.1"));
    // An address that the director gets later is its own from then on.
    lab.sh("director", "ip addr add 198.51.100.2/32 dev lo");
    crate::lab::within(std::time::Duration::from_secs(10), "the new address is the director's", || {
        refuses(&lab, "198.51.100.2")
    });
    lab.judge();
    assert_eq!(
        lab.seen(("rs3", "eth0"), "ip.dst == 198.51.100.7 && tcp.dstport == 80"),
        0,
        "nothing is forwarded twice"
    );
    assert!(lab.seen(("rs1", "eth0"), "ip.dst == 198.51.100.7 && tcp.dstport == 80") > 0);
}

/// Whether connections to port 80 of `address` are refused at once: curl's exit code 7, where a timeout is 28.
fn refuses(lab: &Lab, address: &str) -> bool {
    lab.sh("client", &format!("curl -sS --max-time 10 http://{address}/ || echo exit $?")).contains("exit 7")
}
