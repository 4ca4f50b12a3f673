//! The real program in a network namespace: what it leaves behind when it stops, crashes, or never starts; what a
//! reload changes. No packet is balanced here; the stories in `netns/` do that.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../engine/tests/common/mod.rs"]
mod netns;

#[path = "daemon/changes.rs"]
mod changes;
#[path = "daemon/service.rs"]
mod service;

use std::os::unix::fs::PermissionsExt;
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
        self.start_with(&[], &[]);
    }

    /// Starts the daemon with more arguments, and more in its environment.
    fn start_with(&mut self, arguments: &[&str], environment: &[(&str, &str)]) {
        let log = std::fs::File::create(self.folder.join("log")).unwrap();
        let mut command = self.command(SHUNT);
        command.arg("run").arg("-c").arg(self.file()).args(arguments).stdout(Stdio::null()).stderr(log);
        command.envs(environment.iter().copied());
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

    /// Waits for the kernel to say `word` of the server as a neighbour.
    fn neighbour(&self, word: &str) {
        let asked = Instant::now();
        loop {
            let shown = self.shows("ip", &["neigh", "show", "10.0.0.11", "dev", "d0"]);
            if shown.split_whitespace().any(|other| other == word) {
                return;
            }
            assert!(asked.elapsed() < Duration::from_secs(10), "{word} within ten seconds: {shown}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn addresses(&self) -> String {
        self.shows("ip", &["-o", "-4", "addr", "show", "dev", "d0"])
    }

    /// Receive offloads of the interface that are on and can be switched.
    fn offloads(&self) -> Vec<String> {
        let features = self.shows("ethtool", &["-k", "d0"]);
        let wanted = |line: &&str| line.contains("receive-offload:") || line.contains("rx-vlan-offload:");
        let on = features.lines().map(str::trim).filter(wanted).filter(|line| line.ends_with(": on"));
        on.map(str::to_owned).collect()
    }

    /// Asks the daemon over its socket, without the cost of a process, and returns how long the answer took.
    fn ask(&self, request: &str) -> (String, Duration) {
        use std::io::{Read, Write};
        let asked = Instant::now();
        let mut stream = std::os::unix::net::UnixStream::connect(self.socket()).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer, asked.elapsed())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Waits until the daemon has logged `words`.
    fn logs(&self, words: &str) {
        let asked = Instant::now();
        while !self.log().contains(words) {
            assert!(asked.elapsed() < Duration::from_secs(5), "{words:?} is not in\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
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
    let mut elsewhere = Command::new("ip");
    elsewhere.args(["netns", "exec", lab.peer.name(), SHUNT, "cleanup", "--socket"]).arg(lab.socket());
    refused(&elsewhere.output().unwrap(), "nothing was removed: no interface");
    assert!(lab.folder.join("shunt.state").exists(), "who is right must still find what was left");
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
    lab.logs("event=\"configuration\" cause=\"reload\" generation=");
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
fn a_core_that_is_not_there_is_refused_by_run_and_only_told_by_check() {
    let lab = Lab::new("cores");
    lab.configure("[engine]\ncores = \"1023\"\n");
    let why = "engine.cores: core 1023 is not to be had here; there are ";
    refused(&lab.run(), why);
    lab.is_clean();
    let checked = lab.shunt(&["check", lab.file().to_str().unwrap()]);
    assert!(checked.status.success() && stderr(&checked).contains(&format!("warning: {why}")));
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
    // The median, so that a neighbour on the machine who takes the processor once does not matter.
    let mut times = Vec::new();
    for weight in 1..=9 {
        lab.configure(&format!("weight = {weight}\n"));
        // The workers are asleep by then.
        std::thread::sleep(Duration::from_millis(20));
        let (answer, took) = lab.ask("POST /v1/reload");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        times.push(took);
    }
    times.sort();
    assert!(times[4] < Duration::from_millis(10), "a reload is in force within 10 ms: {times:?}");
}

#[test]
fn an_idle_daemon_uses_hardly_any_processor_time() {
    let mut lab = Lab::new("idle");
    lab.start();
    let run = |task: std::path::PathBuf| {
        let text = std::fs::read_to_string(task.join("schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let tasks = format!("/proc/{}/task", lab.daemon.as_ref().unwrap().id());
    let used = || std::fs::read_dir(&tasks).unwrap().map(|task| run(task.unwrap().path())).sum::<u64>();
    let before = used();
    let time = Duration::from_secs(3);
    std::thread::sleep(time);
    let share = (used() - before) as f64 / time.as_nanos() as f64;
    assert!(share < 0.02, "{:.1} % of a processor", share * 100.0);
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
}

#[test]
fn receive_offloads_come_back_after_a_stop_and_after_a_crash() {
    let mut lab = Lab::new("offload");
    lab.director.run("ethtool", &["-K", "d0", "gro", "on"]);
    let before = lab.offloads();
    assert!(before.iter().any(|name| name.starts_with("generic-receive")), "{before:?}");
    lab.start();
    assert_eq!(lab.offloads(), [""; 0]);
    assert_eq!(lab.end(rustix::process::Signal::KILL), None);
    assert_eq!(lab.offloads(), [""; 0], "nobody was left to switch them on");
    assert!(lab.shunt(&["cleanup"]).status.success());
    assert_eq!(lab.offloads(), before);
    lab.is_clean();
    lab.start();
    assert_eq!(lab.end(rustix::process::Signal::KILL), None);
    lab.start();
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
    assert_eq!(lab.offloads(), before);
    lab.is_clean();
}

#[test]
fn a_start_that_fails_half_way_leaves_nothing_behind() {
    let lab = Lab::new("half");
    lab.director.run("ethtool", &["-K", "d0", "gro", "on"]);
    let before = lab.offloads();
    // Nft is there and refuses the table: the ports are open by then, and steered.
    let folder = lab.folder.join("bin");
    std::fs::create_dir(&folder).unwrap();
    let fake = "#!/bin/sh\ncase $(cat) in *chain*) echo no such table today >&2; exit 1;; esac\n";
    std::fs::write(folder.join("nft"), fake).unwrap();
    std::fs::set_permissions(folder.join("nft"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let mut command = lab.command("env");
    command
        .arg(format!("PATH={}:/usr/bin:/bin", folder.display()))
        .args([SHUNT, "run", "-c"])
        .arg(lab.file());
    refused(&command.output().unwrap(), "no such table today");
    assert_eq!(lab.offloads(), before);
    lab.is_clean();
    // The first port opens, the second is no Ethernet interface.
    lab.director.ip("tuntap add dev t0 mode tun");
    let text = std::fs::read_to_string(lab.file()).unwrap();
    let second = "[[port]]\ninterface = \"t0\"\ndriver = \"af_packet\"\n[[service]]";
    std::fs::write(lab.file(), text.replace("[[service]]", second)).unwrap();
    refused(&lab.run(), "t0: is not an Ethernet interface");
    assert_eq!(lab.offloads(), before);
    lab.is_clean();
}

#[test]
fn an_interface_that_changes_or_goes_is_reported_and_the_daemon_stays() {
    let mut lab = Lab::new("link");
    lab.peer.ip(&format!("link add p1 type veth peer name d1 netns {}", lab.director.name()));
    lab.peer.ip("link set p1 up");
    lab.director.ip("addr add 10.0.1.1/24 dev d1");
    lab.director.ip("link set d1 up");
    let text = std::fs::read_to_string(lab.file()).unwrap();
    std::fs::write(lab.file(), text.replace("[[service]]", "[[port]]\ninterface = \"d1\"\n[[service]]"))
        .unwrap();
    lab.start();
    lab.director.ip("link set d1 mtu 1400");
    lab.logs("interface d1 has MTU 1400 now");
    lab.director.ip("link set d1 address 02:00:00:00:00:99");
    lab.logs("interface d1 has a new address, 02:00:00:00:00:99");
    lab.director.ip("link set d1 down");
    lab.logs("interface d1 is down");
    lab.director.ip("link set d1 up");
    lab.logs("interface d1 is up");
    lab.peer.ip("link del p1");
    lab.logs("interface d1 is gone");
    let sleeps = || lab.status()["services"][0]["name"].clone();
    assert_eq!(sleeps(), "web");
    assert!(lab.shunt(&["reload"]).status.success());
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
    lab.is_clean();
}

#[test]
fn a_server_that_is_away_and_forgotten_twice_is_found_within_ten_seconds_of_its_return() {
    let mut lab = Lab::new("forgotten");
    lab.start();
    lab.neighbour("lladdr");
    lab.peer.ip("addr del 10.0.0.11/24 dev p0");
    // The second time the daemon's view is what it was: no entry, and none before.
    for _ in 0..2 {
        lab.director.ip("neigh del 10.0.0.11 dev d0");
        lab.neighbour("managed");
    }
    lab.peer.ip("addr add 10.0.0.11/24 dev p0");
    lab.neighbour("lladdr");
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
    lab.is_clean();
}

#[test]
fn clients_that_ask_slowly_or_nonsense_delay_neither_a_reload_nor_the_end() {
    use std::io::Write;
    let mut lab = Lab::new("hostile");
    lab.start();
    let pid = rustix::process::Pid::from_child(lab.daemon.as_ref().unwrap());
    let mut clients = Vec::new();
    for number in 0..500 {
        let mut client = std::os::unix::net::UnixStream::connect(lab.socket()).unwrap();
        match number % 3 {
            0 => client.write_all(b"POST /v1/reload HTTP/1.1\r\nx").unwrap(),
            1 => client.shutdown(std::net::Shutdown::Write).unwrap(),
            _ => {}
        }
        clients.push(client);
    }
    let mut greedy = std::os::unix::net::UnixStream::connect(lab.socket()).unwrap();
    greedy.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let _ = greedy.write_all(&vec![b'a'; 1 << 20]);
    lab.configure("weight = 7\n");
    for _ in 0..100 {
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }
    lab.logs("cause=\"reload\"");
    let other = lab.command(SHUNT).args(["run", "-c"]).arg(lab.file()).output().unwrap();
    refused(&other, "a daemon is running on it");
    let asked = Instant::now();
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    lab.is_clean();
}

#[test]
fn a_signal_during_the_start_ends_it_and_nothing_is_left() {
    let mut lab = Lab::new("early");
    // From before the signal is caught to well after the start.
    for delay_ms in [5, 20, 40, 80, 160] {
        let mut command = lab.command(SHUNT);
        command.arg("run").arg("-c").arg(lab.file()).stdout(Stdio::null()).stderr(Stdio::null());
        lab.daemon = Some(command.spawn().unwrap());
        std::thread::sleep(Duration::from_millis(delay_ms));
        lab.end(rustix::process::Signal::TERM);
        lab.is_clean();
    }
}

#[test]
fn a_guard_that_somebody_flushes_is_set_again_and_the_daemons_own_changes_are_no_loss() {
    let mut lab = Lab::new("flush");
    lab.start();
    let again = |lab: &Lab| {
        lab.log().matches("the guard table was changed by somebody else and is set again").count()
    };
    let whole = lab.shows("nft", &["-s", "list", "table", "inet", "shunt"]);
    lab.shows("nft", &["add", "table", "inet", "theirs"]);
    assert!(lab.shunt(&["reload"]).status.success());
    lab.configure(
        "[[service.server]]\naddress = \"10.0.0.12:8080\"\n[[service]]\nname = \"dns\"\nprotocol = \"udp\"\n\
        mode = \"nat\"\nlisten = [\"203.0.113.10:53\"]\n",
    );
    assert!(lab.shunt(&["reload"]).status.success());
    lab.configure("");
    assert!(lab.shunt(&["reload"]).status.success());
    let taken = [
        "flush ruleset",
        "flush table inet shunt",
        "delete table inet shunt",
        "flush chain inet shunt prerouting",
    ];
    for (times, words) in taken.iter().enumerate() {
        assert_eq!(again(&lab), times, "{}", lab.log());
        lab.shows("nft", &words.split(' ').collect::<Vec<_>>());
        let flushed = Instant::now();
        while again(&lab) == times {
            assert!(flushed.elapsed() < Duration::from_secs(5), "{words}: {}", lab.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(lab.shows("nft", &["-s", "list", "table", "inet", "shunt"]), whole, "{words}");
    }
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
    assert_eq!(again(&lab), taken.len());
    lab.is_clean();
}

#[test]
fn addresses_that_a_link_or_a_hand_takes_away_come_back() {
    let mut lab = Lab::new("back");
    lab.shows("sysctl", &["-qw", "net.ipv6.conf.all.disable_ipv6=0"]);
    lab.configure(
        "[[service]]\nname = \"web6\"\nprotocol = \"tcp\"\nlisten = [\"[2001:db8:cb::10]:80\"]\nlocal = [\"fd00::200\"]\n\
         [[service.server]]\naddress = \"[fd00::11]:80\"\n",
    );
    lab.start();
    let ours = ["203.0.113.10/32", "10.0.0.200/32", "2001:db8:cb::10/128", "fd00::200/128"];
    let missing = |lab: &Lab| {
        let shown = lab.shows("ip", &["-o", "addr", "show", "dev", "d0"]);
        ours.iter().filter(|address| !shown.contains(&format!(" {address} "))).count()
    };
    let come_back = |lab: &Lab| {
        let asked = Instant::now();
        while missing(lab) > 0 {
            assert!(asked.elapsed() < Duration::from_secs(10), "{}", lab.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    assert_eq!(missing(&lab), 0);
    lab.director.ip("link set d0 down");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(missing(&lab), 2, "the kernel keeps IPv4 addresses only");
    lab.director.ip("link set d0 up");
    lab.logs("address fd00::200 was gone from d0 and is back");
    come_back(&lab);
    // One command, or the first would be back before the second.
    let delete = "ip addr del 203.0.113.10/32 dev d0; ip addr del 2001:db8:cb::10/128 dev d0";
    lab.shows("sh", &["-c", delete]);
    lab.logs("address 203.0.113.10 was gone from d0 and is back");
    come_back(&lab);
    lab.configure("");
    assert!(lab.shunt(&["reload"]).status.success());
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(missing(&lab), 2, "what is left out stays away");
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
    lab.is_clean();
}

/// What the shell says of a command: its exit code, and what it wrote to stderr.
fn in_shell(lab: &Lab, words: &str) -> (i32, String) {
    let mut shell = lab.command("bash");
    shell.env("SHUNT", SHUNT).env("SOCKET", lab.socket()).env("FILE", lab.file());
    let output = shell.args(["-c", words]).output().unwrap();
    (output.status.code().unwrap(), stderr(&output))
}

#[test]
fn an_answer_that_cannot_be_written_is_an_error_and_one_that_nobody_reads_is_none() {
    let mut lab = Lab::new("full");
    lab.start();
    let daemons =
        ["status", "status --workers --json", "counters", "connections", "connections --json", "reload"];
    let commands = daemons.map(|words| format!("$SHUNT {words} --socket $SOCKET"));
    let others = ["$SHUNT check $FILE", "$SHUNT --help", "$SHUNT --version"].map(str::to_owned);
    for command in commands.iter().chain(&others) {
        // Without connections there is nothing to write as JSON.
        if !command.contains("connections --json") {
            let (code, said) = in_shell(&lab, &format!("{command} > /dev/full"));
            assert_eq!(code, 1, "{command}");
            assert_eq!(said, "shunt: the answer cannot be written: No space left on device (os error 28)\n");
        }
        let unread = format!("(sleep 0.1; {command}; exit $?) | true; exit ${{PIPESTATUS[0]}}");
        assert_eq!(in_shell(&lab, &unread), (0, String::new()), "{command}");
    }
    assert_eq!(in_shell(&lab, "$SHUNT statsu").0, 2);
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
    let (code, _) = in_shell(&lab, "$SHUNT cleanup --socket $SOCKET > /dev/full");
    assert_eq!(code, 1);
}

/// Runs a program with other capabilities, and with little memory to lock, whatever this process may.
fn setpriv(lab: &Lab) -> Command {
    let mut command = lab.command("prlimit");
    command.args(["--memlock=65536:65536", "setpriv"]);
    command
}

/// As nobody, with these capabilities and no others.
fn as_nobody(lab: &Lab, capabilities: &str) -> Command {
    let mut command = setpriv(lab);
    let all = format!("-all{capabilities}");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.args([
        format!("--inh-caps={all}"),
        format!("--ambient-caps={all}"),
        format!("--bounding-set={all}"),
    ]);
    command
}

#[test]
fn who_may_not_run_it_hears_why_and_who_has_the_capabilities_need_not_be_root() {
    let mut lab = Lab::new("nobody");
    // Where everybody may read and write.
    std::os::unix::fs::chown(&lab.folder, Some(65534), Some(65534)).unwrap();
    std::fs::set_permissions(&lab.folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    let program = lab.folder.join("shunt");
    std::fs::copy(SHUNT, &program).unwrap();
    let mut powerless = as_nobody(&lab, "");
    refused(
        &powerless.arg(&program).args(["run", "-c"]).arg(lab.file()).output().unwrap(),
        "shunt: CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON, CAP_IPC_LOCK missing: run this as root, or with",
    );
    let mut check = as_nobody(&lab, "");
    let checked = check.arg(&program).arg("check").arg(lab.file()).output().unwrap();
    assert!(checked.status.success(), "{}", stderr(&checked));

    lab.start();
    let mut ask = as_nobody(&lab, "");
    let asked = ask.arg(&program).args(["status", "--socket"]).arg(lab.socket()).output().unwrap();
    refused(&asked, "not for this user; ask as the one who runs the daemon");
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
    lab.is_clean();

    let mut daemon = as_nobody(&lab, ",+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock");
    let log = std::fs::File::create(lab.folder.join("log")).unwrap();
    daemon.arg(&program).args(["run", "-c"]).arg(lab.file()).stdout(Stdio::null()).stderr(log);
    lab.daemon = Some(daemon.spawn().unwrap());
    lab.logs("running");
    assert!(lab.shows("nft", &["list", "ruleset"]).contains("203.0.113.10 . tcp . 80"));
    assert_eq!(lab.end(rustix::process::Signal::TERM), Some(0));
    lab.is_clean();
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
    let mut powerless = setpriv(&lab);
    powerless.args(["--inh-caps=-all", "--bounding-set=-all", SHUNT, "run", "-c"]).arg(lab.file());
    let lacks = "shunt: CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON, CAP_IPC_LOCK missing: run this as root, or with \
                 CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON, CAP_IPC_LOCK (in a unit of systemd: AmbientCapabilities=)\n";
    assert_eq!(stderr(&powerless.output().unwrap()), lacks);
    let mut some = setpriv(&lab);
    some.args(["--bounding-set=-all,+net_admin,+net_raw,+ipc_lock", SHUNT, "run", "-c"]).arg(lab.file());
    refused(&some.output().unwrap(), "shunt: CAP_BPF, CAP_PERFMON missing: run this as root, or");
    let mut powerless = setpriv(&lab);
    powerless.args(["--bounding-set=-all", SHUNT, "cleanup", "--socket"]).arg(lab.socket());
    refused(
        &powerless.output().unwrap(),
        "shunt: CAP_NET_ADMIN missing: run this as root, or with CAP_NET_ADMIN (",
    );
    lab.is_clean();
    refused(&lab.run_missing(), "No such file");

    lab.start();
    refused(&lab.run(), "a daemon is running on it");
    std::fs::write(lab.file(), good.replace("shunt.sock", "other.sock")).unwrap();
    refused(&lab.run(), "d0");
    lab.director.ip("link add d1 type veth peer name d2");
    std::fs::write(lab.file(), good.replace("shunt.sock", "other.sock").replace("\"d0\"", "\"d1\"")).unwrap();
    refused(&lab.run(), "another shunt runs in this network namespace");
    let mut elsewhere = lab.command(SHUNT);
    elsewhere.arg("cleanup").arg("--socket").arg(lab.folder.join("other.sock"));
    refused(&elsewhere.output().unwrap(), "a daemon is running in this network namespace");
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
