//! The real program in a network namespace: what it leaves behind when it stops, crashes, or never starts; what a
//! reload changes. No packet is balanced here; the stories in `netns/` do that.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../engine/tests/common/mod.rs"]
mod netns;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use netns::Netns;
use serde_json::Value;

const SHUNT: &str = env!("CARGO_BIN_EXE_shunt");

/// A director with the interface `d0`, a folder for its files, and maybe a running daemon.
struct Lab {
    director: Netns,
    peer: Netns,
    folder: PathBuf,
    daemon: Option<Child>,
}

impl Lab {
    fn new(label: &str) -> Self {
        let (director, peer) = (Netns::new(&format!("{label}-d")), Netns::new(&format!("{label}-p")));
        director.ip(&format!("link add d0 type veth peer name p0 netns {}", peer.name()));
        director.ip("addr add 10.0.0.1/24 dev d0");
        director.ip("link set d0 up");
        peer.ip("addr add 10.0.0.11/24 dev p0");
        peer.ip("link set p0 up");
        let folder = std::env::temp_dir().join(format!("shunt-daemon-{}-{label}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let lab = Self { director, peer, folder, daemon: None };
        lab.configure("");
        lab
    }

    fn file(&self) -> PathBuf {
        self.folder.join("shunt.toml")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("shunt.sock")
    }

    /// Writes a configuration with one service, and `more` behind it.
    fn configure(&self, more: &str) {
        let text = format!(
            "[api]\nsocket = {:?}\n[[port]]\ninterface = \"d0\"\n[[service]]\nname = \"web\"\nprotocol = \"tcp\"\n\
             listen = [\"203.0.113.10:80\"]\nlocal = [\"10.0.0.200\"]\n[[service.server]]\n\
             address = \"10.0.0.11:8080\"\n{more}",
            self.socket()
        );
        std::fs::write(self.file(), text).unwrap();
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.director.name(), program]).stdin(Stdio::null());
        command
    }

    fn shunt(&self, words: &[&str]) -> Output {
        let mut command = self.command(SHUNT);
        command.args(words);
        if !matches!(words[0], "run" | "check") {
            command.arg("--socket").arg(self.socket());
        }
        command.output().unwrap()
    }

    fn run(&self) -> Output {
        self.shunt(&["run", "-c", self.file().to_str().unwrap()])
    }

    fn start(&mut self) {
        let log = std::fs::File::create(self.folder.join("log")).unwrap();
        let mut command = self.command(SHUNT);
        command.arg("run").arg("-c").arg(self.file()).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        let started = Instant::now();
        while !self.shunt(&["status"]).status.success() {
            let log = std::fs::read_to_string(self.folder.join("log")).unwrap();
            assert!(started.elapsed() < Duration::from_secs(20), "the daemon answers in time\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal and waits for the end. Returns the exit code, if it was no signal.
    fn end(&mut self, signal: rustix::process::Signal) -> Option<i32> {
        let mut daemon = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, signal).unwrap();
        let asked = Instant::now();
        loop {
            if let Some(status) = daemon.try_wait().unwrap() {
                return status.code();
            }
            assert!(asked.elapsed() < Duration::from_secs(15), "the daemon ends in time");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&self.shunt(&["status", "--json"]).stdout).unwrap()
    }

    fn shows(&self, program: &str, words: &[&str]) -> String {
        self.director.run(program, words)
    }

    fn addresses(&self) -> String {
        self.shows("ip", &["-o", "-4", "addr", "show", "dev", "d0"])
    }

    fn is_clean(&self) {
        let addresses = self.addresses();
        assert!(addresses.contains("10.0.0.1/24"), "{addresses}");
        assert!(!addresses.contains("203.0.113.10") && !addresses.contains("10.0.0.200"), "{addresses}");
        assert_eq!(self.shows("nft", &["list", "ruleset"]), "");
        assert!(!self.shows("ip", &["neigh"]).contains("managed"));
        let links = self.shows("ip", &["link"]);
        assert!(!links.contains("xdp") && !links.contains("shunt0"), "{links}");
        assert!(!self.socket().exists() && !self.folder.join("shunt.state").exists());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
            eprintln!("{}", std::fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn refused(output: &Output, why: &str) {
    assert!(!output.status.success());
    assert!(stderr(output).contains(why), "{:?} is not in {}", why, stderr(output));
}

#[test]
fn it_takes_the_addresses_and_leaves_nothing_behind_on_sigterm_and_sigint() {
    let mut lab = Lab::new("stop");
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        lab.start();
        let addresses = lab.addresses();
        assert!(addresses.contains("203.0.113.10/32") && addresses.contains("10.0.0.200/32"), "{addresses}");
        assert!(lab.shows("nft", &["list", "ruleset"]).contains("203.0.113.10 . tcp . 80"));
        assert!(lab.shows("ip", &["neigh"]).contains("managed"));
        let status = lab.status();
        assert_eq!(status["services"][0]["servers"][0]["address"], "10.0.0.11:8080");
        assert!(status["ports"][0]["kind"].as_str().unwrap().starts_with("af_xdp"));
        let workers = String::from_utf8(lab.shunt(&["status", "--workers"]).stdout).unwrap();
        assert!(workers.contains("d0/0"), "{workers}");
        let counters = String::from_utf8(lab.shunt(&["counters"]).stdout).unwrap();
        assert!(counters.contains("out_of_state") && counters.contains("no connection"), "{counters}");
        assert_eq!(lab.end(signal), Some(0));
        lab.is_clean();
    }
}

#[test]
fn stations_that_knew_an_address_elsewhere_hear_that_it_is_here_now() {
    let mut lab = Lab::new("announce");
    lab.peer.ip("neigh add 10.0.0.200 lladdr 02:00:00:00:00:77 dev p0 nud stale");
    lab.start();
    let ours = lab.status()["ports"][0]["mac"].as_str().unwrap().to_owned();
    let known = lab.peer.run("ip", &["neigh", "show", "10.0.0.200", "dev", "p0"]);
    assert!(known.contains(&ours), "{known}");
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
}

#[test]
fn after_a_crash_the_guard_stands_and_the_next_start_or_cleanup_takes_over() {
    let mut lab = Lab::new("crash");
    lab.start();
    assert_eq!(lab.end(rustix::process::Signal::KILL), None);
    assert!(lab.shows("nft", &["list", "ruleset"]).contains("203.0.113.10 . tcp . 80"));
    assert!(!lab.shows("ip", &["link"]).contains("xdp"), "the kernel detaches the program of a dead process");
    // The VIP changes while nobody runs: the old one must go.
    let text = std::fs::read_to_string(lab.file()).unwrap().replace("203.0.113.10", "203.0.113.77");
    std::fs::write(lab.file(), text).unwrap();
    lab.start();
    let addresses = lab.addresses();
    assert!(addresses.contains("203.0.113.77") && !addresses.contains("203.0.113.10/"), "{addresses}");
    refused(&lab.shunt(&["cleanup"]), "a daemon is running");
    assert_eq!(lab.end(rustix::process::Signal::KILL), None);
    let cleaned = lab.shunt(&["cleanup"]);
    assert!(cleaned.status.success(), "{}", stderr(&cleaned));
    lab.is_clean();
    refused(&lab.shunt(&["status"]), "shunt is not running");
}

#[test]
fn a_reload_adds_and_removes_services_and_keeps_servers() {
    let mut lab = Lab::new("reload");
    lab.start();
    lab.configure(
        "[[service.server]]\naddress = \"10.0.0.12:8080\"\nweight = 0\n[[service]]\nname = \"dns\"\n\
         protocol = \"udp\"\nlisten = [\"203.0.113.20:53\"]\nmode = \"nat\"\n[[service.server]]\n\
         address = \"10.0.0.13\"\n",
    );
    let reloaded = lab.shunt(&["reload"]);
    assert!(reloaded.status.success(), "{}", stderr(&reloaded));
    let status = lab.status();
    assert_eq!(status["services"].as_array().unwrap().len(), 2);
    assert_eq!(status["services"][0]["servers"][1]["weight"], 0);
    assert!(lab.addresses().contains("203.0.113.20/32"));
    let guard = lab.shows("nft", &["list", "ruleset"]);
    assert!(guard.contains("203.0.113.20 . udp . 53") && guard.contains("@servers4"), "{guard}");

    lab.configure("");
    assert!(lab.shunt(&["reload"]).status.success());
    assert!(!lab.addresses().contains("203.0.113.20"));
    assert!(!lab.shows("nft", &["list", "ruleset"]).contains("203.0.113.20"));
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
    lab.is_clean();
}

#[test]
fn a_bad_file_is_refused_with_its_place_and_changes_nothing() {
    let mut lab = Lab::new("bad");
    lab.start();
    let before = (lab.status()["services"].clone(), lab.addresses(), lab.shows("nft", &["list", "ruleset"]));
    let bad = [
        ("[[service.server]]\naddress = \"10.0.0.12:99999\"\n", "port 99999 is not in 1-65535"),
        ("colour = 1\n", "unknown key `colour`"),
        ("[engine]\nworkers = 2\n", "[engine] cannot change without a restart"),
        ("[[port]]\ninterface = \"d1\"\n", "[[port]] cannot change without a restart"),
    ];
    for (more, why) in bad {
        lab.configure(more);
        refused(&lab.shunt(&["reload"]), why);
    }
    std::fs::remove_file(lab.file()).unwrap();
    refused(&lab.shunt(&["reload"]), "No such file");
    let after = (lab.status()["services"].clone(), lab.addresses(), lab.shows("nft", &["list", "ruleset"]));
    assert_eq!(before, after);
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
}

#[test]
fn a_hangup_reloads_too_and_an_idle_daemon_takes_it_at_once() {
    let mut lab = Lab::new("hangup");
    lab.start();
    lab.configure("weight = 7\n");
    let pid = rustix::process::Pid::from_child(lab.daemon.as_ref().unwrap());
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let asked = Instant::now();
    while lab.status()["services"][0]["servers"][0]["weight"] != 7 {
        assert!(asked.elapsed() < Duration::from_secs(5), "the new file is in force");
    }
}

#[test]
fn what_prevents_the_start_is_named_and_nothing_is_left_behind() {
    let mut lab = Lab::new("start");
    let good = std::fs::read_to_string(lab.file()).unwrap();
    std::fs::write(lab.file(), good.replace("\"d0\"", "\"nope\"")).unwrap();
    refused(&lab.run(), "interface \"nope\" does not exist");
    std::fs::write(lab.file(), good.replace("10.0.0.200", "10.0.0.1")).unwrap();
    refused(&lab.run(), "ip_local_port_range");
    refused(&lab.shunt(&["check", lab.file().to_str().unwrap()]), "ip_local_port_range");
    std::fs::write(lab.file(), &good).unwrap();
    let without_nft =
        lab.command("env").args(["PATH=/nonexistent", SHUNT, "run", "-c"]).arg(lab.file()).output();
    refused(&without_nft.unwrap(), "\"nft\" is not installed");
    let mut powerless = lab.command("setpriv");
    powerless.args(["--inh-caps=-all", "--bounding-set=-all", SHUNT, "run", "-c"]).arg(lab.file());
    refused(&powerless.output().unwrap(), "run shunt as root");
    lab.is_clean();
    refused(&lab.run_missing(), "No such file");

    lab.start();
    refused(&lab.run(), "a daemon is running on it");
    std::fs::write(lab.file(), good.replace("shunt.sock", "other.sock")).unwrap();
    refused(&lab.run(), "d0");
    let addresses = lab.addresses();
    assert!(addresses.contains("203.0.113.10/32"), "the first daemon is not disturbed: {addresses}");
    assert!(lab.shows("nft", &["list", "ruleset"]).contains("203.0.113.10"));
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
    lab.is_clean();
}

impl Lab {
    fn run_missing(&self) -> Output {
        let missing: &Path = &self.folder.join("missing.toml");
        self.shunt(&["run", "-c", missing.to_str().unwrap()])
    }
}
