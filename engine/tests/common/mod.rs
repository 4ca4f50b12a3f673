//! Network namespaces for tests: made with a unique name, quiet, and deleted on drop, also when the test panics.
//!
//! What cannot run fails with a message that says what is missing; nothing is skipped.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "every test binary uses its own part")]

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// A network namespace of one's own, without IPv6 autoconfiguration, so that no frame moves unless a test sends it.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    pub netns: &'a Netns,
    pub name: &'a str,
    pub mac: [u8; 6],
}

impl Netns {
    /// Creates a namespace called `shunt-<pid>-<number>-<label>`.
    ///
    /// # Panics
    /// Without root or the `ip` command: such a test has failed, not passed.
    pub fn new(label: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes network namespaces and needs root (or CAP_NET_ADMIN and CAP_SYS_ADMIN as root)"
        );
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            remove_orphans();
        }
        let name = format!("shunt-{}-{number}-{label}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let netns = Self { name };
        netns.enter(|| {
            for set in ["all", "default"] {
                // A kernel without IPv6 has nothing to silence.
                let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{set}/disable_ipv6"), "1");
            }
        });
        netns.ip("link set lo up");
        netns
    }

    /// The name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip <words>` in the namespace.
    pub fn ip(&self, words: &str) {
        let mut args = vec!["-n", &self.name];
        args.extend(words.split_whitespace());
        run("ip", &args);
    }

    /// Runs a program in the namespace and returns what it wrote to stdout.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let mut all = vec!["netns", "exec", &self.name, program];
        all.extend(args);
        run("ip", &all)
    }

    /// Runs `work` on a thread of its own inside the namespace. What it opens stays in the namespace.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let path = format!("/run/netns/{}", self.name);
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
                rustix::thread::move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&file),
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )
                .unwrap_or_else(|error| panic!("{path}: setns: {error}"));
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Creates a veth pair with `queues` queues per direction and `mtu` at both ends, and sets both up. The ends may lie in
/// the same namespace.
pub fn veth_pair(near: Veth<'_>, far: Veth<'_>, mtu: u16, queues: u16) {
    let end = |veth: Veth<'_>| {
        let mac = mac_text(veth.mac);
        format!("{} address {mac} mtu {mtu} numtxqueues {queues} numrxqueues {queues}", veth.name)
    };
    near.netns.ip(&format!(
        "link add {} type veth peer name {} netns {}",
        end(near),
        end(far),
        far.netns.name
    ));
    near.netns.ip(&format!("link set {} up", near.name));
    far.netns.ip(&format!("link set {} up", far.name));
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The guard may run while a test panics: a second panic would hide the first.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Removes the namespaces of test runs that were killed: nobody else will.
pub fn remove_orphans() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("shunt-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            // Another run may be faster.
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

/// Runs a program to its end and returns its stdout.
///
/// # Panics
/// When it cannot be started or fails, with its stderr.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
    let Output { status, stdout, stderr } = output;
    assert!(
        status.success(),
        "{program} {}: {status}: {}",
        args.join(" "),
        String::from_utf8_lossy(&stderr).trim()
    );
    String::from_utf8_lossy(&stdout).into_owned()
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
