//! Each mode serves HTTP and UDP in IPv6 too, over each driver: small and large answers arrive as they are.

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{BULK, Lab, MODES, MODES_V6, PLAIN};

over_every_driver!(each_mode_serves_ipv6);

fn each_mode_serves_ipv6(driver: Driver) {
    let mut lab = Lab::new("ipv6", BULK);
    Daemon::start(&mut lab, &Config { v6: true, ..Config::new(driver) });
    let sums = ["64k", "50m"].map(|file| (file, lab.sum_of_file(file)));
    for (mode, vip) in MODES_V6 {
        assert_eq!(lab.shares(&format!("http://[{vip}]/"), 30), [10; 3], "{mode}: every server a third");
        for (file, sum) in &sums {
            assert_eq!(&lab.sum_of_download(&format!("http://[{vip}]/{file}")), sum, "{mode}: {file}");
        }
        let mut answers: Vec<_> = (0..3).map(|_| lab.udp_echo(vip, "hello")).collect();
        answers.sort();
        assert_eq!(answers, ["rs1 hello", "rs2 hello", "rs3 hello"], "{mode}: UDP goes round");
    }
    for vip in ["2001:db8:cb::10", "2001:db8:cb::20"] {
        assert_eq!(lab.shares(&format!("http://[{vip}]:8000/"), 6), [2; 3], "port 8000 is mapped to 8080");
    }
    for (mode, vip) in MODES {
        assert_eq!(lab.shares(&format!("http://{vip}/"), 3), [1; 3], "{mode}: IPv4 beside it");
    }
    let status = lab.shunt().status();
    let services = status["services"].as_array().unwrap();
    let web = services.iter().find(|service| service["name"] == "fullnat-web-v6").unwrap();
    assert_eq!(web["listen"][0], "[2001:db8:cb::10]:80");
    assert_eq!(web["servers"][0]["address"], "[fd00:2::11]:80");
    lab.judge();
    let seen = |filter: &str| lab.seen_everywhere(filter);
    // DR and TUN servers answer past the director, over the client's own leg on the back network.
    let answers = seen("ipv6.src in {2001:db8:cb::30, 2001:db8:cb::40} && tcp");
    assert!(answers[0] == 0 && answers[1] > 0 && answers[2] == 0, "DR and TUN answers by edge: {answers:?}");
    // FULLNAT and NAT answers come back through it.
    let answers = seen("ipv6.src in {2001:db8:cb::10, 2001:db8:cb::20} && tcp");
    assert!(answers[0] > 0 && answers[1] == 0, "FULLNAT and NAT answers by edge: {answers:?}");
    assert!(seen("ipv6.src == fd00:2::200 && tcp")[2] > 0, "FULLNAT servers see the local address");
    assert!(seen("ipv6.nxt == 41 && ipv6.dst == fd00:2::11")[2] > 0, "TUN servers get IPv6 in IPv6");
}

#[test]
fn one_service_of_both_families_gives_each_client_a_server_of_its_own() {
    let mut lab = Lab::new("dual-stack", PLAIN);
    let both = "[[service]]\nname = \"both\"\nlisten = [\"203.0.113.50:80\", \"[2001:db8:cb::50]:80\"]\n\
        protocol = \"tcp\"\nscheduler = \"rr\"\nlocal = [\"10.2.0.201\", \"fd00:2::201\"]\n\
        [[service.server]]\naddress = \"10.2.0.11:80\"\n[[service.server]]\naddress = \"10.2.0.12:80\"\n\
        [[service.server]]\naddress = \"[fd00:2::12]:80\"\n[[service.server]]\naddress = \"[fd00:2::13]:80\"\n";
    Daemon::start(&mut lab, &Config { more: both.to_owned(), ..Config::new(Driver::Native) });
    assert_eq!(lab.shares("http://203.0.113.50/", 10), [5, 5, 0]);
    assert_eq!(lab.shares("http://[2001:db8:cb::50]/", 10), [0, 5, 5]);
}
