//! The real `shunt` in the lab's director.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::lab::{Lab, MODES, MODES_V6, within};

const SHUNT: &str = env!("CARGO_BIN_EXE_shunt");

/// How shunt gets at the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    Native,
    Generic,
    AfPacket,
}

impl Driver {
    /// As `status` names a port of it.
    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::Native => "af_xdp native",
            Self::Generic => "af_xdp generic",
            Self::AfPacket => "af_packet",
        }
    }
}

/// Makes the tests of a story that holds over every driver: `over_every_driver!(story)` runs `fn story(driver: Driver)`
/// as `story::over_af_xdp_native` and so on.
macro_rules! over_every_driver {
    ($story:ident) => {
        mod $story {
            use crate::daemon::Driver;

            #[test]
            fn over_af_xdp_native() {
                super::$story(Driver::Native);
            }

            #[test]
            fn over_af_xdp_generic() {
                super::$story(Driver::Generic);
            }

            #[test]
            fn over_af_packet() {
                super::$story(Driver::AfPacket);
            }
        }
    };
}
pub(crate) use over_every_driver;

/// What a story changes in the lab's configuration.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) driver: Driver,
    pub(crate) workers: u32,
    /// Each mode's servers, by the last byte of their address.
    pub(crate) servers: Vec<u8>,
    /// Whether there are the same services in IPv6, too.
    pub(crate) v6: bool,
    /// Whether services are in the opposite order.
    pub(crate) backwards: bool,
    /// Text at the end of the file.
    pub(crate) more: String,
}

impl Config {
    /// One worker, three servers.
    pub(crate) fn new(driver: Driver) -> Self {
        Self {
            driver,
            workers: 1,
            servers: vec![11, 12, 13],
            v6: false,
            backwards: false,
            more: String::new(),
        }
    }

    /// Four modes on the lab's VIPs: HTTP on port 80, on port 8000 mapped to the servers' 8080 where the mode can, and
    /// the UDP echo on 9000.
    fn text(&self, socket: &str) -> String {
        let port = match self.driver {
            Driver::Native => "driver = \"af_xdp\"\nxdp = \"native\"",
            Driver::Generic => "driver = \"af_xdp\"\nxdp = \"generic\"",
            Driver::AfPacket => "driver = \"af_packet\"",
        };
        let mut text = format!(
            "[engine]\nworkers = {}\nmanage_addresses = true\n[api]\nsocket = {socket:?}\n\
             [[port]]\ninterface = \"front\"\n{port}\n[[port]]\ninterface = \"back\"\n{port}\n",
            self.workers
        );
        let v6 = MODES_V6.into_iter().filter(|_| self.v6);
        let mut modes: Vec<_> = MODES.into_iter().chain(v6).collect();
        if self.backwards {
            modes.reverse();
        }
        for (mode, vip) in modes {
            self.service(&mut text, mode, "web", (vip, 80), "tcp", 80);
            self.service(&mut text, mode, "echo", (vip, 9000), "udp", 9000);
            if matches!(mode, "fullnat" | "nat") {
                self.service(&mut text, mode, "mapped", (vip, 8000), "tcp", 8080);
            }
        }
        text + &self.more
    }

    fn service(
        &self,
        text: &mut String,
        mode: &str,
        name: &str,
        listen: (&str, u16),
        protocol: &str,
        port: u16,
    ) {
        let v6 = listen.0.contains(':');
        let (suffix, network) = if v6 { ("-v6", "fd00:2::") } else { ("", "10.2.0.") };
        let local = if mode == "fullnat" { format!("local = [\"{network}200\"]\n") } else { String::new() };
        let listen = socket(listen.0, listen.1);
        write!(
            text,
            "[[service]]\nname = \"{mode}-{name}{suffix}\"\nlisten = [\"{listen}\"]\nprotocol = \"{protocol}\"\n\
             mode = \"{mode}\"\nscheduler = \"rr\"\n{local}"
        )
        .unwrap();
        for server in &self.servers {
            let address = socket(&format!("{network}{server}"), port);
            write!(text, "[[service.server]]\naddress = \"{address}\"\n").unwrap();
        }
    }
}

/// An address and port as they are written.
fn socket(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// A running daemon. Dropping it kills it.
pub(crate) struct Daemon {
    folder: PathBuf,
    namespace: String,
    process: Child,
}

impl Daemon {
    /// Starts the daemon with a configuration and waits until it answers.
    pub(crate) fn start(lab: &mut Lab, config: &Config) {
        let folder = lab.folder().to_owned();
        let namespace = lab.namespace("director");
        std::fs::write(folder.join("shunt.toml"), config.text(&folder.join("shunt.sock").to_string_lossy()))
            .unwrap();
        let log = std::fs::File::options().create(true).append(true).open(folder.join("shunt.log")).unwrap();
        let process = Command::new("ip")
            .args(["netns", "exec", &namespace, SHUNT, "run", "-c"])
            .arg(folder.join("shunt.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Self { folder, namespace, process };
        within(Duration::from_secs(20), "the daemon answers", || {
            let ended = daemon.process.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended at start:\n{}", daemon.log());
            daemon.answers()
        });
        daemon.knows_every_neighbour();
        lab.daemon = Some(daemon);
    }

    /// Runs a `shunt` command that talks to the daemon.
    pub(crate) fn shunt(&self, words: &[&str]) -> Output {
        Command::new("ip")
            .args(["netns", "exec", &self.namespace, SHUNT])
            .args(words)
            .arg("--socket")
            .arg(self.folder.join("shunt.sock"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Replaces the file's text by another configuration and has it loaded. The story fails if that is refused.
    pub(crate) fn reload(&self, config: &Config) {
        let text = config.text(&self.folder.join("shunt.sock").to_string_lossy());
        std::fs::write(self.folder.join("shunt.toml"), text).unwrap();
        let output = self.shunt(&["reload"]);
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), self.log());
    }

    /// `status --json`.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_slice(&self.shunt(&["status", "--json"]).stdout).unwrap()
    }

    /// Waits until each mode's first web server has got so many packets.
    pub(crate) fn serves_every_mode(&self, packets: u64) {
        within(Duration::from_secs(10), "each mode's download runs", || {
            let status = self.status();
            let services = status["services"].as_array().unwrap();
            MODES.iter().all(|(mode, _)| {
                let web = services.iter().find(|service| service["name"] == format!("{mode}-web")).unwrap();
                web["servers"][0]["packets_in"].as_u64().unwrap() > packets
            })
        });
    }

    /// Each worker's count of one of its own counters.
    pub(crate) fn worker_counter(&self, name: &str) -> Vec<u64> {
        let count = |worker: &Value| worker["counters"][name].as_u64().unwrap();
        self.workers().iter().map(count).collect()
    }

    /// Each worker's sum over its receive queues of one of their counters.
    pub(crate) fn rx_counter(&self, name: &str) -> Vec<u64> {
        let count = |queue: &Value| queue["counters"][name].as_u64().unwrap();
        let sum = |worker: &Value| worker["rx"].as_array().unwrap().iter().map(count).sum();
        self.workers().iter().map(sum).collect()
    }

    fn workers(&self) -> Vec<Value> {
        self.status_workers()["workers"].as_array().unwrap().clone()
    }

    /// `status --workers --json`.
    pub(crate) fn status_workers(&self) -> Value {
        serde_json::from_slice(&self.shunt(&["status", "--workers", "--json"]).stdout).unwrap()
    }

    /// One of the counters of events, over all workers.
    pub(crate) fn event(&self, name: &str) -> u64 {
        let counters: Value = serde_json::from_slice(&self.shunt(&["counters", "--json"]).stdout).unwrap();
        let events = counters["events"].as_array().unwrap();
        events.iter().find(|event| event["name"] == name).unwrap()["value"].as_u64().unwrap()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("shunt.log")).unwrap_or_default()
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
        within(Duration::from_secs(15), "the daemon ends", || self.process.try_wait().unwrap().is_some());
    }

    fn answers(&self) -> bool {
        self.shunt(&["status"]).status.success()
    }

    fn knows_every_neighbour(&self) {
        within(Duration::from_secs(10), "every server's next hop is known", || {
            let status = self.status();
            let services = status["services"].as_array().unwrap();
            services
                .iter()
                .flat_map(|service| service["servers"].as_array().unwrap())
                .all(|s| s["next_hop"].is_string())
        });
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
