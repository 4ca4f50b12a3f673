//! The kernel's side of things, against a real kernel in network namespaces: mirror, addresses, guard, neighbours.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../engine/tests/common/mod.rs"]
mod netns;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use netns::Netns;
use shunt_control::addresses::{self, Ledger};
use shunt_control::kernel::{Kernel, Way};
use shunt_control::netlink::{Events, Netlink};
use shunt_control::{announce, guard, neighbours};
use shunt_engine::port::MacAddr;
use shunt_engine::steer::{Prefix, Rule, Side};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs `work` inside the namespace, on a runtime of its own, for 30 seconds at most.
fn inside<F: Future<Output = ()>>(netns: &Netns, work: impl FnOnce() -> F + Send) {
    netns.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), work()).await }).unwrap();
    });
}

/// Waits for the kernel to look as `wanted` says, rereading what changes.
async fn until(netlink: &Netlink, events: &mut Events, wanted: impl Fn(&Kernel) -> bool) -> Kernel {
    let mut kernel = netlink.read().await.unwrap();
    while !wanted(&kernel) {
        let changed = tokio::time::timeout(Duration::from_secs(15), events.changed()).await;
        netlink.reread(&mut kernel, changed.expect("the kernel changes in time")).await.unwrap();
    }
    kernel
}

struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(label: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shunt-test-{}-{label}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A director with one interface `d0`, 10.0.0.1/24, and a server 10.0.0.11 on the other end.
fn pair(label: &str) -> (Netns, Netns) {
    let (director, server) = (Netns::new(&format!("{label}-d")), Netns::new(&format!("{label}-s")));
    director.ip(&format!("link add d0 type veth peer name s0 netns {}", server.name()));
    director.ip("addr add 10.0.0.1/24 dev d0");
    server.ip("addr add 10.0.0.11/24 dev s0");
    director.ip("link set d0 up");
    server.ip("link set s0 up");
    (director, server)
}

/// The same in IPv6: the director is fd00::1, the server fd00::11, and no router announces anything.
fn pair_v6(label: &str) -> (Netns, Netns) {
    let (director, server) = (Netns::new(&format!("{label}-d")), Netns::new(&format!("{label}-s")));
    for netns in [&director, &server] {
        netns.enter(|| {
            for (name, value) in [("disable_ipv6", "0"), ("accept_ra", "0"), ("addr_gen_mode", "1")] {
                for set in ["all", "default"] {
                    std::fs::write(format!("/proc/sys/net/ipv6/conf/{set}/{name}"), value).unwrap();
                }
            }
        });
    }
    director.ip(&format!("link add d0 type veth peer name s0 netns {}", server.name()));
    director.ip("addr add fd00::1/64 dev d0 nodad");
    server.ip("addr add fd00::11/64 dev s0 nodad");
    server.ip("addr add fe80::11/64 dev s0 nodad");
    director.ip("link set d0 up");
    server.ip("link set s0 up");
    (director, server)
}

#[test]
fn ipv6_routes_lead_to_link_local_gateways_too() {
    let (director, _server) = pair_v6("mirror6");
    director.ip("route add default via fe80::11 dev d0");
    director.ip("route add 2001:db8:9::/48 via fd00::fe metric 7 mtu 1400");
    director.ip("route add unreachable 2001:db8:66::/48");
    inside(&director, || async {
        let kernel = Netlink::open().unwrap().read().await.unwrap();
        let link = kernel.link_named("d0").unwrap().index;
        assert!(kernel.has_address(ip("fd00::1")));
        assert_eq!(kernel.route_to(ip("fd00::11")).unwrap().way(), Way::Attached(link));
        assert_eq!(kernel.next_station(ip("2001:db8:64::7")), Some((link, ip("fe80::11"))));
        assert_eq!(kernel.route_to(ip("2001:db8:66::1")).unwrap().way(), Way::Nowhere);
        let far = kernel.route_to(ip("2001:db8:9::1")).unwrap();
        assert_eq!((far.metric, far.mtu), (7, Some(1400)));
    });
}

#[test]
fn where_ipv6_is_disabled_an_address_is_refused_with_the_remedy() {
    let (director, _server) = pair_v6("disabled6");
    let scratch = Scratch::new("disabled6");
    inside(&director, || async {
        let netlink = Netlink::open().unwrap();
        let kernel = netlink.read().await.unwrap();
        let link = kernel.link_named("d0").unwrap().index;
        let vip = (link, ip("2001:db8:cb::10"));
        let mut ledger = Ledger::open(&scratch.0.join("shunt.sock")).unwrap();
        let setting = "/proc/sys/net/ipv6/conf/d0/disable_ipv6";
        std::fs::write(setting, "1").unwrap();
        let refused = addresses::add(&[vip].into(), &kernel, &netlink, &mut ledger).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "cannot add address 2001:db8:cb::10: IPv6 is disabled on d0; \
             `sysctl -w net.ipv6.conf.d0.disable_ipv6=0` enables it"
        );
        // The remedy is one.
        std::fs::write(setting, "0").unwrap();
        let added = addresses::add(&[vip].into(), &kernel, &netlink, &mut ledger).await.unwrap();
        assert_eq!(added, [vip]);
    });
}

#[test]
fn an_ipv6_address_of_ours_can_be_used_at_once_and_makes_no_route() {
    let (director, server) = pair_v6("addresses6");
    server.ip("route add 2001:db8::/32 dev s0");
    let scratch = Scratch::new("addresses6");
    inside(&director, || async {
        let netlink = Netlink::open().unwrap();
        let kernel = netlink.read().await.unwrap();
        let link = kernel.link_named("d0").unwrap().index;
        let vip = ip("2001:db8:cb::10");
        let mut ledger = Ledger::open(&scratch.0.join("shunt.sock")).unwrap();
        addresses::add(&[(link, vip)].into(), &kernel, &netlink, &mut ledger).await.unwrap();
        // Nobody is asked first whether the address is free: the very next packet is answered.
        let shown = director.run("ip", &["-6", "-o", "addr", "show", "dev", "d0"]);
        let line = shown.lines().find(|line| line.contains("2001:db8:cb::10/128")).unwrap();
        assert!(
            line.contains("nodad") && line.contains("deprecated") && !line.contains("tentative"),
            "{line}"
        );
        server.run("ping", &["-c1", "-W2", "2001:db8:cb::10"]);
        let routes = director.run("ip", &["-6", "route", "show"]);
        assert!(!routes.contains("2001:db8:cb::10"), "{routes}");

        let kernel = netlink.read().await.unwrap();
        assert!(kernel.has_address(vip) && kernel.route_to(vip).is_none());
        addresses::remove(&BTreeSet::new(), &kernel, &netlink, &mut ledger).await.unwrap();
        let shown = director.run("ip", &["-6", "-o", "addr", "show", "dev", "d0"]);
        assert!(!shown.contains("2001:db8:cb::10") && shown.contains("fd00::1/64"), "{shown}");
    });
}

#[test]
fn an_address_that_moves_here_is_known_at_once_to_those_who_knew_its_old_place() {
    let (director, server) = pair_v6("announce6");
    director.ip("addr add 10.0.0.1/24 dev d0");
    server.ip("addr add 10.0.0.11/24 dev s0");
    server.ip("neigh add fd00::10 lladdr 02:00:00:00:00:77 dev s0 nud stale");
    server.ip("neigh add 10.0.0.10 lladdr 02:00:00:00:00:77 dev s0 nud stale");
    inside(&director, || async {
        let kernel = Netlink::open().unwrap().read().await.unwrap();
        let link = kernel.link_named("d0").unwrap();
        announce::announce(&[(link.index, ip("fd00::10")), (link.index, ip("10.0.0.10"))], &kernel);
        let here = link.mac.to_string();
        let knows =
            |address: &str| server.run("ip", &["neigh", "show", address, "dev", "s0"]).contains(&here);
        let started = Instant::now();
        while !(knows("fd00::10") && knows("10.0.0.10")) {
            assert!(started.elapsed() < Duration::from_secs(5), "both neighbours are corrected: {here}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn the_mirror_shows_links_addresses_and_routes_and_follows_changes() {
    let (director, _server) = pair("mirror");
    director.ip("route add default via 10.0.0.254");
    director.ip("route add 192.0.2.0/24 via 10.0.0.253 metric 7 mtu 1400");
    director.ip("route add unreachable 198.51.100.0/24");
    inside(&director, || async {
        let netlink = Netlink::open().unwrap();
        let mut events = Events::open().unwrap();
        let kernel = netlink.read().await.unwrap();
        let link = kernel.link_named("d0").unwrap().clone();
        assert_eq!(link.mtu, 1500);
        assert!(link.up && !link.mac.is_zero());
        assert!(kernel.has_address(ip("10.0.0.1")));
        assert_eq!(kernel.route_to(ip("10.0.0.11")).unwrap().way(), Way::Attached(link.index));
        assert_eq!(kernel.next_station(ip("8.8.8.8")), Some((link.index, ip("10.0.0.254"))));
        assert_eq!(kernel.route_to(ip("198.51.100.1")).unwrap().way(), Way::Nowhere);
        let far = kernel.route_to(ip("192.0.2.1")).unwrap();
        assert_eq!((far.metric, far.mtu), (7, Some(1400)));

        director.ip("addr add 10.7.0.1/24 dev d0");
        until(&netlink, &mut events, |kernel| {
            kernel.next_station(ip("10.7.0.9")) == Some((link.index, ip("10.7.0.9")))
        })
        .await;
        director.ip("link set d0 down");
        until(&netlink, &mut events, |kernel| kernel.route_to(ip("10.0.0.11")).is_none()).await;
    });
}

/// The ways to 192.0.2.1, with their weights.
fn paths(kernel: &Kernel) -> Vec<(Way, u32)> {
    let route = kernel.route_to(ip("192.0.2.1"));
    route.map(|route| route.paths.iter().map(|path| (path.way, path.weight)).collect()).unwrap_or_default()
}

#[test]
fn a_multipath_route_has_all_its_living_ways_however_it_was_written() {
    let director = Netns::new("multipath");
    for (number, device) in ["d0", "d1"].into_iter().enumerate() {
        director.ip(&format!("link add {device} type veth peer name p{number}"));
        director.ip(&format!("addr add 10.0.{number}.1/24 dev {device}"));
        director.ip(&format!("link set p{number} up"));
        director.ip(&format!("link set {device} up"));
    }
    director.ip("route add 192.0.2.0/24 nexthop via 10.0.0.254 weight 3 nexthop via 10.0.1.254");
    inside(&director, || async {
        let netlink = Netlink::open().unwrap();
        let mut events = Events::open().unwrap();
        let kernel = netlink.read().await.unwrap();
        let link = |name| kernel.link_named(name).unwrap().index;
        let gateways =
            [Way::Gateway(link("d0"), ip("10.0.0.254")), Way::Gateway(link("d1"), ip("10.0.1.254"))];
        assert_eq!(paths(&kernel), [(gateways[0], 3), (gateways[1], 1)]);
        // The other end goes: the link has no carrier any more.
        director.ip("link set p0 down");
        until(&netlink, &mut events, |kernel| paths(kernel) == [(gateways[1], 1)]).await;
        director.ip("link set p0 up");
        until(&netlink, &mut events, |kernel| paths(kernel).len() == 2).await;

        director.ip("route del 192.0.2.0/24");
        director.ip("nexthop add id 1 via 10.0.0.254 dev d0");
        director.ip("nexthop add id 2 via 10.0.1.254 dev d1");
        director.ip("nexthop add id 10 group 1,2/2,5");
        director.ip("route add 192.0.2.0/24 nhid 10");
        until(&netlink, &mut events, |kernel| paths(kernel) == [(gateways[0], 2), (gateways[1], 5)]).await;
        director.ip("nexthop replace id 10 group 2");
        until(&netlink, &mut events, |kernel| paths(kernel) == [(gateways[1], 1)]).await;
    });
}

#[test]
fn our_addresses_come_and_go_and_those_of_others_stay() {
    let (director, _server) = pair("addresses");
    director.ip("addr add 203.0.113.9/32 dev d0");
    let scratch = Scratch::new("addresses");
    let socket = scratch.0.join("shunt.sock");
    inside(&director, || async {
        let netlink = Netlink::open().unwrap();
        let mut kernel = netlink.read().await.unwrap();
        let link = kernel.link_named("d0").unwrap().index;
        let wanted: BTreeSet<_> =
            ["203.0.113.9", "203.0.113.10", "10.0.0.200"].map(|text| (link, ip(text))).into();
        let mut ledger = Ledger::open(&socket).unwrap();
        let added = addresses::add(&wanted, &kernel, &netlink, &mut ledger).await.unwrap();
        assert_eq!(added.len(), 2, "one was there before");
        let shown = director.run("ip", &["-o", "addr", "show", "dev", "d0"]);
        assert!(shown.contains("203.0.113.10/32") && shown.contains("10.0.0.200/32"), "{shown}");

        // A crash: a new ledger on the same file knows what to remove.
        let mut ledger = Ledger::open(&socket).unwrap();
        kernel = netlink.read().await.unwrap();
        let keep = [(link, ip("10.0.0.200"))].into();
        addresses::remove(&keep, &kernel, &netlink, &mut ledger).await.unwrap();
        let shown = director.run("ip", &["-o", "addr", "show", "dev", "d0"]);
        assert!(!shown.contains("203.0.113.10/32") && shown.contains("10.0.0.200/32"), "{shown}");
        addresses::remove(&BTreeSet::new(), &kernel, &netlink, &mut ledger).await.unwrap();
        let shown = director.run("ip", &["-o", "addr", "show", "dev", "d0"]);
        assert!(!shown.contains("10.0.0.200/32"), "{shown}");
        assert!(shown.contains("203.0.113.9/32") && shown.contains("10.0.0.1/24"), "{shown}");
        assert!(!scratch.0.join("shunt.state").exists(), "nothing is ours any more");
    });
}

fn rule(side: Side, address: &str, protocol: u8, ports: RangeInclusive<u16>) -> Rule {
    Rule { side, prefix: Prefix::host(ip(address)), protocol, ports }
}

#[test]
fn the_guard_swallows_what_is_ours_and_nothing_else() {
    let (director, server) = pair("guard");
    director.ip("addr add 203.0.113.10/32 dev d0");
    server.ip("route add 203.0.113.10 dev s0");
    inside(&director, || async {
        guard::set(&[rule(Side::Destination, "203.0.113.10", 17, 9..=9)]).await.unwrap();
        let rules = [
            rule(Side::Destination, "203.0.113.10", 6, 80..=80),
            rule(Side::Destination, "203.0.113.10", 6, 8000..=8099),
            rule(Side::Destination, "203.0.113.10", 6, 8010..=8010),
            rule(Side::Source, "10.0.0.11", 6, 5000..=5000),
        ];
        guard::set(&rules).await.unwrap();
        let shown = director.run("nft", &["list", "table", "inet", "shunt"]);
        assert!(
            shown.contains("203.0.113.10 . 6 . 80") || shown.contains("203.0.113.10 . tcp . 80"),
            "{shown}"
        );
        assert!(shown.contains("8000-8099") && shown.contains("priority raw"), "{shown}");
        assert!(!shown.contains(". 9"), "the earlier rules are gone: {shown}");
    });
    // No socket listens: without the guard every port answers with a reset, which `connect` sees at once.
    let connect = |address: &str| {
        server.enter(|| {
            let timeout = Duration::from_millis(700);
            std::net::TcpStream::connect_timeout(&address.parse().unwrap(), timeout).unwrap_err().kind()
        })
    };
    use std::io::ErrorKind::{ConnectionRefused, TimedOut};
    assert_eq!(connect("203.0.113.10:80"), TimedOut);
    assert_eq!(connect("203.0.113.10:8042"), TimedOut);
    assert_eq!(connect("203.0.113.10:81"), ConnectionRefused);
    server.run("ping", &["-c1", "-W2", "203.0.113.10"]);
    // An answer to the director's own connection is the kernel's, though it comes from a guarded source port.
    let listener = server.enter(|| std::net::TcpListener::bind("10.0.0.11:5000").unwrap());
    director.enter(|| std::net::TcpStream::connect("10.0.0.11:5000").unwrap());
    drop(listener);
    inside(&director, || async {
        guard::remove().await.unwrap();
        guard::remove().await.unwrap();
        assert_eq!(director.run("nft", &["list", "ruleset"]), "");
    });
    assert_eq!(connect("203.0.113.10:80"), ConnectionRefused);
}

#[test]
fn the_guard_swallows_ipv6_too() {
    let (director, server) = pair_v6("guard6");
    director.ip("addr add 2001:db8:cb::10/128 dev d0 nodad");
    server.ip("route add 2001:db8:cb::/64 dev s0");
    inside(&director, || async {
        let rules = [
            rule(Side::Destination, "2001:db8:cb::10", 6, 80..=80),
            rule(Side::Destination, "203.0.113.10", 6, 81..=81),
            rule(Side::Source, "fd00::11", 6, 5000..=5000),
        ];
        guard::set(&rules).await.unwrap();
    });
    let connect = |address: &str| {
        server.enter(|| {
            let timeout = Duration::from_millis(700);
            std::net::TcpStream::connect_timeout(&address.parse().unwrap(), timeout).unwrap_err().kind()
        })
    };
    use std::io::ErrorKind::{ConnectionRefused, TimedOut};
    assert_eq!(connect("[2001:db8:cb::10]:80"), TimedOut);
    assert_eq!(connect("[2001:db8:cb::10]:81"), ConnectionRefused);
    server.run("ping", &["-c1", "-W2", "2001:db8:cb::10"]);
    let listener = server.enter(|| std::net::TcpListener::bind("[fd00::11]:5000").unwrap());
    director.enter(|| std::net::TcpStream::connect("[fd00::11]:5000").unwrap());
    drop(listener);
}

#[test]
fn a_refused_guard_says_what_nft_says_and_leaves_the_old_one() {
    let (director, _server) = pair("refused");
    inside(&director, || async {
        guard::set(&[rule(Side::Destination, "203.0.113.10", 6, 80..=80)]).await.unwrap();
        let before = director.run("nft", &["list", "ruleset"]);
        // Ports from 90 down to 80 are no range. What is fine in front of it does not come into force either.
        let fine = rule(Side::Destination, "203.0.113.11", 6, 80..=80);
        let odd = rule(Side::Destination, "203.0.113.10", 6, RangeInclusive::new(90, 80));
        let error = guard::set(&[fine, odd]).await.unwrap_err().to_string();
        assert!(error.contains("nft refused"), "{error}");
        assert_eq!(director.run("nft", &["list", "ruleset"]), before);
    });
}

#[test]
fn a_neighbour_is_managed_follows_a_silent_change_of_address_and_is_forgotten() {
    let (director, server) = pair("neighbour");
    let scratch = Scratch::new("neighbour");
    inside(&director, || async {
        let netlink = Netlink::open().unwrap();
        let mut events = Events::open().unwrap();
        let mut ledger = Ledger::open(&scratch.0.join("shunt.sock")).unwrap();
        let kernel = netlink.read().await.unwrap();
        let link = kernel.link_named("d0").unwrap().index;
        let station = (link, ip("10.0.0.11"));
        let stations: BTreeSet<_> = [station].into();
        neighbours::adjust(&stations, &kernel, &netlink, &mut ledger).await.unwrap();
        let kernel = until(&netlink, &mut events, |kernel| mac(kernel, station).is_some()).await;
        assert!(director.run("ip", &["neigh", "show", "10.0.0.11", "dev", "d0"]).contains("managed"));

        // Another machine takes over the address, without a word: the link stays up.
        server.ip("link set s0 address 02:00:00:00:00:99");
        let kernel = learn(&stations, &kernel, &netlink, &mut events, &mut ledger).await;
        assert!(director.run("ip", &["neigh", "show", "10.0.0.11", "dev", "d0"]).contains("managed"));

        neighbours::remove_all(&kernel, &netlink, &mut ledger).await.unwrap();
        assert!(!director.run("ip", &["neigh", "show", "10.0.0.11", "dev", "d0"]).contains("managed"));
    });
}

#[test]
fn a_neighbour_that_went_with_the_carrier_is_managed_again_and_found_by_its_new_address() {
    let (director, server) = pair("carrier");
    let scratch = Scratch::new("carrier");
    inside(&director, || async {
        let netlink = Netlink::open().unwrap();
        let mut events = Events::open().unwrap();
        let mut ledger = Ledger::open(&scratch.0.join("shunt.sock")).unwrap();
        let kernel = netlink.read().await.unwrap();
        let station = (kernel.link_named("d0").unwrap().index, ip("10.0.0.11"));
        let stations = [station].into();
        neighbours::adjust(&stations, &kernel, &netlink, &mut ledger).await.unwrap();
        let kernel = until(&netlink, &mut events, |kernel| mac(kernel, station).is_some()).await;

        server.ip("link set s0 down");
        until(&netlink, &mut events, |kernel| kernel.neighbour(station.0, station.1).is_none()).await;
        server.ip("link set s0 address 02:00:00:00:00:99");
        server.ip("link set s0 up");
        learn(&stations, &kernel, &netlink, &mut events, &mut ledger).await;
        assert!(director.run("ip", &["neigh", "show", "10.0.0.11", "dev", "d0"]).contains("managed"));
    });
}

/// The station's address as far as the kernel knows it.
fn mac(kernel: &Kernel, (link, address): (u32, IpAddr)) -> Option<MacAddr> {
    kernel.neighbour(link, address).and_then(|known| known.mac)
}

/// Looks after stations as the daemon does, until the kernel knows each by another address than `before`.
async fn learn(
    stations: &BTreeSet<(u32, IpAddr)>,
    before: &Kernel,
    netlink: &Netlink,
    events: &mut Events,
    ledger: &mut Ledger,
) -> Kernel {
    let changed = Instant::now();
    let mut asking = tokio::time::interval(neighbours::PROBE_INTERVAL);
    let mut kernel = netlink.read().await.unwrap();
    let old =
        |kernel: &Kernel, station| mac(kernel, station).is_none_or(|now| Some(now) == mac(before, station));
    while stations.iter().any(|&station| old(&kernel, station)) {
        assert!(changed.elapsed() < Duration::from_secs(10), "the new address is known within ten seconds");
        neighbours::adjust(stations, &kernel, netlink, ledger).await.unwrap();
        // News does not put off the next question.
        tokio::select! {
            tables = events.changed() => netlink.reread(&mut kernel, tables).await.unwrap(),
            _ = asking.tick() => neighbours::probe(stations, &kernel, netlink).await,
        }
    }
    kernel
}

#[test]
fn ipv6_neighbours_are_managed_link_local_ones_too() {
    let (director, server) = pair_v6("neighbour6");
    director.ip("addr add fe80::1/64 dev d0 nodad");
    let scratch = Scratch::new("neighbour6");
    inside(&director, || async {
        let netlink = Netlink::open().unwrap();
        let mut events = Events::open().unwrap();
        let mut ledger = Ledger::open(&scratch.0.join("shunt.sock")).unwrap();
        let kernel = netlink.read().await.unwrap();
        let link = kernel.link_named("d0").unwrap().index;
        let stations: BTreeSet<_> = ["fd00::11", "fe80::11"].map(|text| (link, ip(text))).into();
        let refused = neighbours::adjust(&stations, &kernel, &netlink, &mut ledger).await.unwrap();
        assert!(refused.is_none(), "{}", refused.unwrap());
        let known = |kernel: &Kernel| stations.iter().all(|&station| mac(kernel, station).is_some());
        let kernel = until(&netlink, &mut events, known).await;
        assert!(director.run("ip", &["neigh", "show", "fe80::11", "dev", "d0"]).contains("managed"));

        // Asked while it is known, it answers, and stays known.
        neighbours::probe(&stations, &kernel, &netlink).await;
        server.ip("link set s0 address 02:00:00:00:00:99");
        let kernel = learn(&stations, &kernel, &netlink, &mut events, &mut ledger).await;
        neighbours::remove_all(&kernel, &netlink, &mut ledger).await.unwrap();
        assert!(!director.run("ip", &["neigh", "show", "fd00::11", "dev", "d0"]).contains("managed"));
    });
}

#[test]
fn a_neighbour_that_somebody_configured_is_left_alone() {
    let (director, _server) = pair("fixed");
    director.ip("neigh add 10.0.0.11 lladdr 02:00:00:00:00:77 dev d0 nud permanent");
    let scratch = Scratch::new("fixed");
    inside(&director, || async {
        let netlink = Netlink::open().unwrap();
        let mut ledger = Ledger::open(&scratch.0.join("shunt.sock")).unwrap();
        let kernel = netlink.read().await.unwrap();
        let link = kernel.link_named("d0").unwrap().index;
        let stations = [(link, ip("10.0.0.11"))].into();
        neighbours::adjust(&stations, &kernel, &netlink, &mut ledger).await.unwrap();
        neighbours::remove_all(&kernel, &netlink, &mut ledger).await.unwrap();
        let shown = director.run("ip", &["neigh", "show", "10.0.0.11", "dev", "d0"]);
        assert!(shown.contains("PERMANENT"), "{shown}");
    });
}

#[test]
fn a_route_is_read_again_when_only_its_nexthop_group_has_changed() {
    let (director, _server) = pair("nexthops");
    director.ip("nexthop add id 1 via 10.0.0.11 dev d0");
    director.ip("nexthop add id 2 via 10.0.0.12 dev d0");
    director.ip("nexthop add id 3 group 1/2");
    director.ip("route add 192.0.2.0/24 nhid 3");
    inside(&director, || async {
        let mut events = Events::open().unwrap();
        let netlink = Netlink::open().unwrap();
        let ways = |kernel: &Kernel| kernel.route_to(ip("192.0.2.9")).map_or(0, |route| route.paths.len());
        assert_eq!(ways(&netlink.read().await.unwrap()), 2);
        let quiet = async { while events.changed().await.routes {} };
        let _ = tokio::time::timeout(Duration::from_millis(500), quiet).await;
        director.ip("nexthop del id 2");
        let told = tokio::time::timeout(Duration::from_secs(5), events.changed()).await;
        assert!(told.expect("a change is told").routes);
        assert_eq!(ways(&netlink.read().await.unwrap()), 1);
    });
}

#[test]
fn what_the_kernel_has_learnt_about_one_destination_is_no_route() {
    let (director, server) = pair("learnt");
    director.ip("route add 192.0.2.0/24 via 10.0.0.11");
    server.ip("link add x0 mtu 1000 type veth peer name x1");
    server.ip("link set x1 up");
    server.ip("addr add 192.0.2.1/24 dev x0");
    server.ip("link set x0 up");
    server.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
    director.run("sh", &["-c", "ping -c2 -W1 -M do -s 1300 192.0.2.9 || true"]);
    let learnt = director.run("ip", &["route", "get", "192.0.2.9"]);
    assert!(learnt.contains("mtu 1000"), "{learnt}");
    inside(&director, || async {
        let kernel = Netlink::open().unwrap().read().await.unwrap();
        let route = kernel.route_to(ip("192.0.2.9")).unwrap();
        assert_eq!((route.prefix.len(), route.mtu), (24, None));
    });
}

#[test]
fn an_ipv4_route_by_an_ipv6_gateway_leads_to_that_gateway() {
    let (director, _server) = pair_v6("via6");
    director.ip("addr add 10.0.0.1/24 dev d0");
    director.ip("route add 192.0.2.0/24 via inet6 fe80::11 dev d0");
    director
        .ip("route add 198.51.100.0/24 nexthop via inet6 fe80::11 dev d0 nexthop via inet6 fe80::12 dev d0");
    inside(&director, || async {
        let kernel = Netlink::open().unwrap().read().await.unwrap();
        let link = kernel.link_named("d0").unwrap().index;
        let gateway = |address| Way::Gateway(link, ip(address));
        assert_eq!(kernel.route_to(ip("192.0.2.9")).unwrap().way(), gateway("fe80::11"));
        let several = kernel.route_to(ip("198.51.100.9")).unwrap();
        let ways: Vec<_> = several.paths.iter().map(|path| path.way).collect();
        assert_eq!(ways, [gateway("fe80::11"), gateway("fe80::12")]);
    });
}

#[test]
fn an_address_of_ours_that_belongs_on_another_link_moves_there() {
    let (director, _server) = pair_v6("moves");
    director.ip("link add d1 type veth peer name p1");
    director.ip("link set d1 up");
    let scratch = Scratch::new("moves");
    inside(&director, || async {
        let netlink = Netlink::open().unwrap();
        let kernel = netlink.read().await.unwrap();
        let link = |name| kernel.link_named(name).unwrap().index;
        let mut ledger = Ledger::open(&scratch.0.join("shunt.sock")).unwrap();
        for address in ["203.0.113.10", "2001:db8:cb::10"].map(ip) {
            addresses::add(&[(link("d0"), address)].into(), &kernel, &netlink, &mut ledger).await.unwrap();
        }
        let kernel = netlink.read().await.unwrap();
        let wanted = ["203.0.113.10", "2001:db8:cb::10"].map(|address| (link("d1"), ip(address))).into();
        addresses::remove(&wanted, &kernel, &netlink, &mut ledger).await.unwrap();
        let added = addresses::add(&wanted, &kernel, &netlink, &mut ledger).await.unwrap();
        assert_eq!(BTreeSet::from_iter(added), wanted);
        let now = netlink.read().await.unwrap();
        for &(link, address) in &wanted {
            let links: Vec<_> = now.addresses.iter().filter(|own| own.address == address).collect();
            assert!(links.len() == 1 && links[0].link == link, "{links:?}");
        }
        assert_eq!(ledger.ours().addresses.len(), 2);
    });
}
