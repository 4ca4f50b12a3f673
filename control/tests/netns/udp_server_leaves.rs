//! A UDP server leaves the configuration: its flows go on with another server at their next datagram, the other flows
//! notice nothing.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{Lab, MODES, PLAIN};

/// Twelve flows to each address. For every line on its input, one datagram on every flow, all awaited for two seconds
/// together; prints who answered which.
const FLOWS: &str = "
import select, socket, sys
flows = {}
for vip in sys.argv[1:]:
    for number in range(12):
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        flow.connect((vip, 9000))
        flows[flow] = f'{vip}/{number}'
for line in sys.stdin:
    answers = {}
    for flow in flows: flow.send(b'hello')
    while len(answers) < len(flows):
        ready, _, _ = select.select([flow for flow in flows if flow not in answers], [], [], 2)
        if not ready: break
        for flow in ready: answers[flow] = flow.recv(9000).decode().split()[0]
    print(' '.join(f'{name}={answers.get(flow)}' for flow, name in flows.items()), flush=True)";

#[test]
fn flows_of_a_udp_server_that_leaves_move_at_once_and_others_stay() {
    let mut lab = Lab::new("udp-server-leaves", PLAIN);
    let config = Config::new(Driver::Native);
    Daemon::start(&mut lab, &config);
    let mut client = lab
        .command("client", "/usr/bin/python3")
        .args(["-c", FLOWS])
        .args(MODES.map(|(_, vip)| vip))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut ask, answers) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    let mut answers = BufReader::new(answers).lines();
    let mut round = || -> BTreeMap<String, String> {
        ask.write_all(b"\n").unwrap();
        let line = answers.next().expect("the client goes on").unwrap();
        line.split(' ')
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(flow, server)| (flow.to_owned(), server.to_owned()))
            .collect()
    };
    let before = round();
    assert_eq!(before.len(), 12 * MODES.len());
    for (mode, vip) in MODES {
        let of = |server: &str| {
            before.iter().filter(|(flow, by)| flow.starts_with(vip) && by.as_str() == server).count()
        };
        assert_eq!(["rs1", "rs2", "rs3"].map(of), [4; 3], "{mode}: {before:?}");
    }
    assert_eq!(round(), before, "a flow keeps its server");
    lab.shunt().reload(&Config { servers: vec![12, 13], ..config });
    let after = round();
    for (flow, server) in &before {
        let now = after[flow].as_str();
        if server == "rs1" {
            assert!(["rs2", "rs3"].contains(&now), "{flow}: {server}, then {now}");
        } else {
            assert_eq!(now, server, "{flow}");
        }
    }
    assert_eq!(round(), after);
    drop(ask);
    client.wait().unwrap();
}
