//! The kernel's own IPVS is the judge: the same clients call through it and through shunt, and the same servers answer
//! in the same order. IPVS runs in user-mode Linux; both directors forward in DR mode, for the same VIPs.

use std::fmt::Write as _;

use crate::calls::{CLIENTS, Call, PORT, Then, answers, prepare};
use crate::daemon::{Config, Daemon, Driver};
use crate::guest::Guest;
use crate::lab::{Cables, Lab, PLAIN};

/// What both directors are told, and who calls.
struct Case {
    name: &'static str,
    /// Of the lab's four servers.
    weights: [u32; 4],
    /// For `ipvsadm -A`.
    ipvs: &'static str,
    /// For `[[service]]`.
    shunt: &'static str,
    callers: Callers,
    then: Then,
    /// Where a sequence begins is left to the director, the order is not.
    any_start: bool,
}

/// Who calls, and what for.
#[derive(Clone, Copy)]
enum Callers {
    /// One client from many ports.
    OneClient,
    /// Many clients.
    Clients,
    /// One client calls many addresses.
    Addresses,
}

const CASES: &[Case] = &[
    Case {
        name: "rr",
        weights: [1, 2, 3, 0],
        ipvs: "-s rr",
        shunt: "scheduler = \"rr\"",
        callers: Callers::OneClient,
        then: Then::HangUp,
        any_start: true,
    },
    Case {
        name: "wrr-equal",
        weights: [2, 2, 2, 2],
        ipvs: "-s wrr",
        shunt: "scheduler = \"wrr\"",
        callers: Callers::OneClient,
        then: Then::HangUp,
        any_start: true,
    },
    Case {
        name: "sh",
        weights: [1, 2, 3, 1],
        ipvs: "-s sh",
        shunt: "scheduler = \"sh\"\nhash = \"kernel\"",
        callers: Callers::Clients,
        then: Then::HangUp,
        any_start: false,
    },
    Case {
        name: "sh-port",
        weights: [1, 2, 3, 0],
        ipvs: "-s sh -b sh-port,sh-fallback",
        shunt: "scheduler = \"sh\"\nhash = \"kernel\"\nscheduler_flags = [\"sh-port\", \"sh-fallback\"]",
        callers: Callers::OneClient,
        then: Then::HangUp,
        any_start: false,
    },
    Case {
        name: "dh",
        weights: [1, 1, 1, 1],
        ipvs: "-s dh",
        shunt: "scheduler = \"dh\"\nhash = \"kernel\"",
        callers: Callers::Addresses,
        then: Then::HangUp,
        any_start: false,
    },
    Case {
        name: "mh",
        weights: [1, 2, 3, 1],
        ipvs: "-s mh",
        shunt: "scheduler = \"mh\"\nhash = \"kernel\"",
        callers: Callers::Clients,
        then: Then::HangUp,
        any_start: false,
    },
    Case {
        name: "mh-port",
        weights: [1, 2, 3, 4],
        ipvs: "-s mh -b mh-port",
        shunt: "scheduler = \"mh\"\nhash = \"kernel\"\nscheduler_flags = [\"mh-port\"]",
        callers: Callers::OneClient,
        then: Then::HangUp,
        any_start: false,
    },
    Case {
        name: "fo",
        weights: [1, 3, 2, 0],
        ipvs: "-s fo",
        shunt: "scheduler = \"fo\"",
        callers: Callers::OneClient,
        then: Then::HangUp,
        any_start: false,
    },
    Case {
        name: "ovf",
        weights: [5, 9, 7, 0],
        ipvs: "-s ovf",
        shunt: "scheduler = \"ovf\"",
        callers: Callers::OneClient,
        then: Then::Stay,
        any_start: false,
    },
    Case {
        name: "lc",
        weights: [1, 2, 3, 0],
        ipvs: "-s lc",
        shunt: "scheduler = \"lc\"",
        callers: Callers::OneClient,
        then: Then::Stay,
        any_start: false,
    },
    Case {
        name: "wlc",
        weights: [1, 2, 3, 0],
        ipvs: "-s wlc",
        shunt: "scheduler = \"wlc\"",
        callers: Callers::OneClient,
        then: Then::Stay,
        any_start: false,
    },
    Case {
        name: "sed",
        weights: [1, 2, 3, 0],
        ipvs: "-s sed",
        shunt: "scheduler = \"sed\"",
        callers: Callers::OneClient,
        then: Then::Stay,
        any_start: false,
    },
    Case {
        name: "nq",
        weights: [1, 2, 3, 0],
        ipvs: "-s nq",
        shunt: "scheduler = \"nq\"",
        callers: Callers::OneClient,
        then: Then::Stay,
        any_start: false,
    },
];

/// The VIPs of all cases; the servers own them.
const VIPS: [&str; 2] = ["203.0.113.64/26", "203.0.113.128/25"];
/// Addresses a caller that calls many calls.
const ADDRESSES: usize = 32;

impl Case {
    /// The VIPs of case number `number`.
    fn vips(&self, number: usize) -> Vec<String> {
        match self.callers {
            Callers::Addresses => (128..128 + ADDRESSES).map(|last| format!("203.0.113.{last}")).collect(),
            _ => vec![format!("203.0.113.{}", 65 + number)],
        }
    }

    fn calls(&self, number: usize) -> Vec<Call> {
        let vips = self.vips(number);
        match self.callers {
            Callers::OneClient => (0..40).map(|call| (1, 10_000 + 37 * call, vips[0].clone())).collect(),
            Callers::Clients => (1..=CLIENTS).map(|client| (client, 20_000, vips[0].clone())).collect(),
            Callers::Addresses => vips.into_iter().map(|vip| (2, 30_000, vip)).collect(),
        }
    }

    /// The service as `ipvsadm -R` reads it. Servers are added as they are listed.
    fn for_ipvs(&self, number: usize) -> String {
        let mut text = String::new();
        for vip in self.vips(number) {
            writeln!(text, "-A -t {vip}:{PORT} {}", self.ipvs).unwrap();
            for (server, weight) in self.weights.iter().enumerate() {
                let address = format!("10.2.0.{}:{PORT}", 11 + server);
                writeln!(text, "-a -t {vip}:{PORT} -r {address} -g -w {weight}").unwrap();
            }
        }
        text
    }

    fn for_shunt(&self, number: usize) -> String {
        let listen: Vec<_> = self.vips(number).iter().map(|vip| format!("{vip}:{PORT}")).collect();
        let mut text = format!(
            "[[service]]\nname = {:?}\nlisten = {listen:?}\nprotocol = \"tcp\"\nmode = \"dr\"\n{}\n",
            self.name, self.shunt
        );
        for (server, weight) in self.weights.iter().enumerate() {
            let address = format!("10.2.0.{}:{PORT}", 11 + server);
            write!(text, "[[service.server]]\naddress = {address:?}\nweight = {weight}\n").unwrap();
        }
        text
    }
}

#[test]
fn the_same_clients_get_the_same_servers_through_shunt_and_through_the_kernels_ipvs() {
    let mut lab = Lab::new("ipvs", Cables { servers: 4, ..PLAIN });
    prepare(&lab, 4, &VIPS);
    lab.sh("client", &routes("10.2.0.20"));
    let (mut rules, mut services) = (String::new(), String::new());
    for (number, case) in CASES.iter().enumerate() {
        rules += &case.for_ipvs(number);
        services += &case.for_shunt(number);
    }
    let guest = Guest::boot(&lab, &director(&rules));
    let expected = all_answers(&lab);
    drop(guest);
    Daemon::start(&mut lab, &Config { more: services, ..Config::new(Driver::Native) });
    lab.sh("client", &routes("10.1.0.2"));
    let got = all_answers(&lab);
    for (case, (expected, got)) in CASES.iter().zip(expected.iter().zip(&got)) {
        let servers: std::collections::BTreeSet<_> = expected.iter().filter(|name| *name != "-").collect();
        assert!(case.name == "fo" || servers.len() >= 3, "{}: IPVS uses {servers:?}", case.name);
        let got = if case.any_start { begun_like(expected, got) } else { got.clone() };
        assert_eq!(&got, expected, "{}: got, expected", case.name);
    }
}

/// Has the client reach the VIPs through `director`.
fn routes(director: &str) -> String {
    format!("for vip in {}; do ip route replace $vip via {director}; done", VIPS.join(" "))
}

/// The guest as an IPVS director.
fn director(rules: &str) -> String {
    let schedulers = "rr wrr sh dh mh fo ovf lc wlc sed nq";
    let modules: Vec<_> = schedulers.split(' ').map(|name| format!("ip_vs_{name}")).collect();
    format!(
        "modprobe -d /run/root -a {}\nip address add 10.2.0.20/24 dev vec0\nip route add default via 10.2.0.10\n\
         for vip in {}; do ip route add local $vip dev lo; done\n\
         echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter\necho 0 >/proc/sys/net/ipv4/conf/vec0/rp_filter\nipvsadm -R <<RULES\n{rules}RULES\n",
        modules.join(" "),
        VIPS.join(" ")
    )
}

/// Who answered the calls of each case.
fn all_answers(lab: &Lab) -> Vec<Vec<String>> {
    CASES.iter().enumerate().map(|(number, case)| answers(lab, case.then, &case.calls(number))).collect()
}

/// `got` from where it is as `expected` begins, if there is such a place.
fn begun_like(expected: &[String], got: &[String]) -> Vec<String> {
    let skip = (0..got.len()).find(|&skip| expected.starts_with(&got[skip..])).unwrap_or(0);
    let turned = got[skip..].iter().chain(&expected[got.len() - skip..]);
    turned.cloned().collect()
}
