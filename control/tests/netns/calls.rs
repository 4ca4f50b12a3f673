//! Clients that call the lab's greeters one after the other, to see which server answers whom.

use std::process::Stdio;

use crate::lab::Lab;

/// Where the lab's greeters listen.
pub(crate) const PORT: u16 = 7000;

/// Addresses the client may call from: 10.9.0.1, 10.9.0.2 and so on.
pub(crate) const CLIENTS: usize = 60;

/// What callers do once they were greeted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Hang up, before the next calls.
    HangUp,
    /// Stay until all have called.
    Stay,
}

/// A call: client number, source port and the called address.
pub(crate) type Call = (usize, u16, String);

/// Gives the servers rs1 to rs`servers` the addresses in `vips` (prefixes, for DR) and the client its many addresses,
/// which the director reaches by the front.
pub(crate) fn prepare(lab: &Lab, servers: usize, vips: &[&str]) {
    for server in 1..=servers {
        for vip in vips {
            let own = format!("ip route add local {vip} dev lo; ip rule add from {vip} lookup 100");
            lab.sh(&format!("rs{server}"), &own);
        }
    }
    lab.sh("director", "ip route add 10.9.0.0/24 via 10.1.0.10");
    lab.sh("client", &format!("for n in $(seq {CLIENTS}); do ip address add 10.9.0.$n/32 dev lo; done"));
}

/// Makes the calls. Returns who answered each of them; `-` for nobody.
pub(crate) fn answers(lab: &Lab, then: Then, calls: &[Call]) -> Vec<String> {
    let lines: String =
        calls.iter().map(|(client, port, vip)| format!("10.9.0.{client} {port} {vip} {PORT}\n")).collect();
    let file = lab.folder().join("calls");
    std::fs::write(&file, lines).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lab.d/caller.py");
    let then = if then == Then::Stay { "stay" } else { "hang-up" };
    let output = lab
        .command("client", "/usr/bin/python3")
        .args([script, then])
        .stdin(Stdio::from(std::fs::File::open(&file).unwrap()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    assert_eq!(answers.len(), calls.len());
    answers
}
