//! Every scheduler before four real servers of weights 1, 2, 3 and 0.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::calls::{CLIENTS, Call, PORT, Then, answers, prepare};
use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{Cables, Lab, PLAIN};

/// The addresses that are called: one for each scheduler that does not look at them, 64 for those that do.
const VIPS: [&str; 2] = ["203.0.113.64/26", "198.51.100.0/24"];

/// How often each server answered, rs1 first; calls nobody answered are not counted.
fn shares(answers: &[String]) -> [usize; 4] {
    ["rs1", "rs2", "rs3", "rs4"].map(|server| answers.iter().filter(|name| *name == server).count())
}

/// Calls of one client, each from a port of its own.
fn one_client(vip: &str, calls: u16) -> Vec<Call> {
    (0..calls).map(|call| (1, 10_000 + 37 * call, vip.to_owned())).collect()
}

/// A call of every client.
fn clients(vip: &str) -> Vec<Call> {
    (1..=CLIENTS).map(|client| (client, 20_000, vip.to_owned())).collect()
}

fn lab(story: &str, services: &[(&str, &str, &str)]) -> Lab {
    let mut lab = Lab::new(story, Cables { servers: 4, ..PLAIN });
    prepare(&lab, 4, &VIPS);
    lab.sh("client", "ip route replace 198.51.100.0/24 via 10.1.0.2");
    let mut text = String::new();
    for (listen, scheduler, more) in services {
        write!(
            text,
            "[[service]]\nname = \"{scheduler}\"\nlisten = [\"{listen}:{PORT}\"]\nprotocol = \"tcp\"\n\
             scheduler = \"{scheduler}\"\n{more}\n"
        )
        .unwrap();
        for (server, weight) in [(11, 1), (12, 2), (13, 3), (14, 0)] {
            write!(text, "[[service.server]]\naddress = \"10.2.0.{server}:{PORT}\"\nweight = {weight}\n")
                .unwrap();
        }
    }
    Daemon::start(&mut lab, &Config { more: text, ..Config::new(Driver::Native) });
    lab
}

const DR: &str = "mode = \"dr\"";
const FULLNAT: &str = "mode = \"fullnat\"\nlocal = [\"10.2.0.201\"]";

#[test]
fn schedulers_that_go_round_respect_weights() {
    let services =
        [("203.0.113.65", "rr", DR), ("203.0.113.66", "wrr", FULLNAT), ("203.0.113.67", "twos", DR)];
    let lab = lab("schedulers-round", &services);
    let rr = answers(&lab, Then::HangUp, &one_client("203.0.113.65", 60));
    assert_eq!(shares(&rr), [20, 20, 20, 0], "rr looks at no weight but 0");
    let wrr = answers(&lab, Then::HangUp, &one_client("203.0.113.66", 60));
    for cycle in wrr.chunks(6) {
        assert_eq!(shares(cycle), [1, 2, 3, 0], "wrr has no bursts: {cycle:?}");
    }
    let twos = shares(&answers(&lab, Then::Stay, &one_client("203.0.113.67", 120)));
    assert!(twos[0] >= 8 && twos[1] >= 25 && twos[2] >= 40 && twos[3] == 0, "twos: {twos:?}");
    assert_eq!(twos.iter().sum::<usize>(), 120);
}

#[test]
fn schedulers_that_count_connections_respect_weights() {
    let services = [
        ("203.0.113.65", "lc", DR),
        ("203.0.113.66", "wlc", FULLNAT),
        ("203.0.113.67", "sed", DR),
        ("203.0.113.68", "nq", FULLNAT),
        ("203.0.113.69", "fo", DR),
        ("203.0.113.70", "ovf", FULLNAT),
    ];
    let lab = lab("schedulers-count", &services);
    let held = |last: u8, calls| answers(&lab, Then::Stay, &one_client(&format!("203.0.113.{last}"), calls));
    assert_eq!(shares(&held(65, 60)), [20, 20, 20, 0], "lc looks at no weight but 0");
    assert_eq!(shares(&held(66, 60)), [10, 20, 30, 0], "wlc");
    assert_eq!(shares(&held(67, 60)), [10, 20, 30, 0], "sed");
    let nq = held(68, 60);
    assert_eq!(shares(&nq[..3]), [1, 1, 1, 0], "nq: nobody waits while a server is idle");
    assert_eq!(shares(&nq), [10, 20, 30, 0], "nq");
    assert_eq!(shares(&held(69, 20)), [0, 0, 20, 0], "fo: all to the heaviest");
    let ovf = held(70, 12);
    assert_eq!(shares(&ovf), [2, 3, 4, 0], "ovf fills one server after the other: {ovf:?}");
    assert_eq!(ovf[9..], ["-", "-", "-"], "and refuses what is too much");
}

#[test]
fn schedulers_that_hash_send_a_client_to_the_same_server_every_time() {
    let services = [("203.0.113.65", "sh", DR), ("203.0.113.66", "mh", FULLNAT)];
    let lab = lab("schedulers-hash", &services);
    for vip in ["203.0.113.65", "203.0.113.66"] {
        let first = answers(&lab, Then::HangUp, &clients(vip));
        let shares = shares(&first);
        assert_eq!(shares.iter().sum::<usize>(), CLIENTS, "{vip}: everybody is answered: {first:?}");
        assert!(shares[0] >= 2 && shares[1] >= 8 && shares[2] >= 16 && shares[3] == 0, "{vip}: {shares:?}");
        assert_eq!(answers(&lab, Then::HangUp, &clients(vip)), first, "{vip}");
    }
}

#[test]
fn schedulers_for_caches_send_every_client_of_an_address_to_the_same_server() {
    let services =
        [("198.51.100.0/26", "dh", DR), ("198.51.100.64/26", "lblc", DR), ("198.51.100.128/26", "lblcr", DR)];
    let lab = lab("schedulers-caches", &services);
    for (at, (_, scheduler, _)) in services.iter().enumerate() {
        let to = |client| -> Vec<Call> {
            (0..64).map(|n| (client, 30_000, format!("198.51.100.{}", 64 * at + n))).collect()
        };
        let first = answers(&lab, Then::HangUp, &to(1));
        let shares = shares(&first);
        assert!(shares[..3].iter().all(|&share| share >= 4) && shares[3] == 0, "{scheduler}: {shares:?}");
        let all: BTreeMap<_, _> = to(1).iter().map(|call| call.2.clone()).zip(first.clone()).collect();
        assert_eq!(all.len(), 64);
        for client in [2, 3] {
            assert_eq!(answers(&lab, Then::HangUp, &to(client)), first, "{scheduler}: client {client}");
        }
    }
}
