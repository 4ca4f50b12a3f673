//! Each mode serves HTTP and UDP over each driver, and no frame on any edge has a wrong checksum.

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{Lab, MODES, PLAIN};

over_every_driver!(each_mode_serves);

fn each_mode_serves(driver: Driver) {
    let mut lab = Lab::new("modes", PLAIN);
    Daemon::start(&mut lab, &Config::new(driver));
    let sum = lab.sum_of_file("64k");
    for (mode, vip) in MODES {
        assert_eq!(lab.shares(&format!("http://{vip}/"), 30), [10; 3], "{mode}: every server a third");
        assert_eq!(
            lab.sum_of_download(&format!("http://{vip}/64k")),
            sum,
            "{mode}: 64 KiB arrive as they are"
        );
        let mut answers: Vec<_> = (0..3).map(|_| lab.udp_echo(vip, "hello")).collect();
        answers.sort();
        assert_eq!(answers, ["rs1 hello", "rs2 hello", "rs3 hello"], "{mode}: UDP goes round");
    }
    for vip in ["203.0.113.10", "203.0.113.20"] {
        assert_eq!(lab.shares(&format!("http://{vip}:8000/"), 6), [2; 3], "port 8000 is mapped to 8080");
    }
    for port in lab.shunt().status()["ports"].as_array().unwrap() {
        assert_eq!(port["kind"], driver.kind());
    }
    lab.judge();
    let seen = |filter: &str| lab.seen_everywhere(filter);
    // DR and TUN servers answer past the director, over the client's own leg on the back network.
    let answers = seen("ip.src in {203.0.113.30, 203.0.113.40} && tcp");
    assert!(answers[0] == 0 && answers[1] > 0 && answers[2] == 0, "DR and TUN answers by edge: {answers:?}");
    // FULLNAT and NAT answers come back through it.
    let answers = seen("ip.src in {203.0.113.10, 203.0.113.20} && tcp");
    assert!(answers[0] > 0 && answers[1] == 0, "FULLNAT and NAT answers by edge: {answers:?}");
    assert!(seen("ip.src == 10.2.0.200 && tcp")[2] > 0, "FULLNAT servers see the local address");
    assert!(seen("ip.proto == 4 && ip.dst == 10.2.0.11")[2] > 0, "TUN servers get IPIP");
    // A server may reset a connection it has forgotten when the machine is slow; the director invents none.
    let given = seen("tcp.flags.reset == 1 && eth.src == 02:00:0a:01:00:02")[0];
    let got = seen("tcp.flags.reset == 1 && eth.dst == 02:00:0a:02:00:02")[2];
    assert!(given <= got, "{given} RSTs to the client, {got} from servers");
}
