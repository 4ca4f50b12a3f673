//! Two ways from the director to a client's network: flows are spread over both, and when one way dies its flows take
//! the other.

use std::time::Duration;

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{Lab, PLAIN, within};

/// The ends of the two ways: the router (the namespace `client`) has a leg on either network.
const WAYS: [(&str, &str); 2] = [("client", "front"), ("client", "back")];

over_every_driver!(flows_are_spread_over_two_ways_and_survive_the_loss_of_one);

fn flows_are_spread_over_two_ways_and_survive_the_loss_of_one(driver: Driver) {
    let mut lab = Lab::new("ecmp", PLAIN);
    lab.sh(
        "director",
        "ip route replace 10.3.0.0/24 nexthop via 10.1.0.10 dev front nexthop via 10.2.0.10 dev back",
    );
    Daemon::start(&mut lab, &Config::new(driver));
    // Each phase has a service of its own, by which its answers are told apart.
    let fetch = |lab: &Lab, url: &str, times: u32| {
        let script =
            format!("for _ in $(seq {times}); do curl -sS --fail --max-time 5 '{url}' || echo failed; done");
        let answers = lab.sh("far", &script);
        answers.lines().filter(|line| line.starts_with("rs")).count()
    };
    // The second station is known a moment after the first.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(fetch(&lab, "http://203.0.113.10/", 40), 40);
    lab.sh("client", "ip link set back down");
    // The kernel gives up on a silent station within five seconds.
    within(Duration::from_secs(20), "all flows take the way that is left", || {
        fetch(&lab, "http://203.0.113.10:8000/", 10) == 10
    });
    assert_eq!(fetch(&lab, "http://203.0.113.20/", 40), 40, "one way is enough");
    lab.sh("client", "ip link set back up");
    within(Duration::from_secs(20), "the way is known again", || {
        lab.sh("director", "ip neigh show 10.2.0.10 dev back").contains("lladdr")
    });
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(fetch(&lab, "http://203.0.113.20:8000/", 40), 40);
    lab.judge();
    let answers = |from: &str, port: u16| {
        let filter =
            format!("ip.src == {from} && ip.dst == 10.3.0.10 && tcp.srcport == {port} && tcp.flags.syn == 1");
        WAYS.map(|way| lab.seen(way, &filter))
    };
    let both = |[front, back]: [usize; 2]| front + back >= 40 && front >= 5 && back >= 5;
    assert!(both(answers("203.0.113.10", 80)), "spread: {:?}", answers("203.0.113.10", 80));
    let [front, back] = answers("203.0.113.20", 80);
    assert!(front >= 40 && back == 0, "one way left: {front} {back}");
    assert!(both(answers("203.0.113.20", 8000)), "spread again: {:?}", answers("203.0.113.20", 8000));
}
