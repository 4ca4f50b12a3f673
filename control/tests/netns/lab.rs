//! The network of a story. The topology itself is in `scripts/lab`, whose head has the picture and the addresses.
//!
//! Every edge is recorded from the moment a lab stands, and nothing in a story asks for that. When the lab is dropped
//! the recordings end and tshark judges each of them: a frame with a wrong IP, TCP, UDP or ICMP checksum fails the
//! story, and so does a director that has sent nothing. A story that downloads 50 MiB says [`BULK`]. A story that counts
//! frames calls [`Lab::judge`] when all has happened and [`Lab::seen`] after it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::capture::{Capture, Findings, Judged, Load};
use crate::daemon::Daemon;

/// The modes, with the VIP the lab's servers expect for each.
pub(crate) const MODES: [(&str, &str); 4] =
    [("fullnat", "203.0.113.10"), ("nat", "203.0.113.20"), ("dr", "203.0.113.30"), ("tun", "203.0.113.40")];

/// The same in IPv6.
pub(crate) const MODES_V6: [(&str, &str); 4] = [
    ("fullnat", "2001:db8:cb::10"),
    ("nat", "2001:db8:cb::20"),
    ("dr", "2001:db8:cb::30"),
    ("tun", "2001:db8:cb::40"),
];

/// A place where a frame may be looked at: (namespace, interface).
pub(crate) type Edge = (&'static str, &'static str);

/// On the director's own interfaces tcpdump does not see what AF_XDP takes and sends; the other ends of its two cables
/// do: the first and the third.
const EDGES: [Edge; 12] = [
    ("client", "front"),
    ("client", "back"),
    ("switch", "director"),
    ("rs1", "eth0"),
    ("rs2", "eth0"),
    ("rs3", "eth0"),
    ("rs4", "eth0"),
    ("rs5", "eth0"),
    ("rs6", "eth0"),
    ("rs7", "eth0"),
    ("rs8", "eth0"),
    ("rs9", "eth0"),
];

/// The edges that see all the director sends.
pub(crate) const BESIDE_DIRECTOR: [Edge; 2] = [EDGES[0], EDGES[2]];

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lab");

/// How many servers there are, and how the cables are made.
#[derive(Clone, Copy)]
pub(crate) struct Cables {
    pub(crate) servers: u32,
    pub(crate) queues: u32,
    /// The peers' transmit offloads: with them, frames arrive with partial checksums.
    pub(crate) offload: bool,
    /// What the story moves.
    pub(crate) load: Load,
}

/// Three servers, one queue, every frame complete on every edge.
pub(crate) const PLAIN: Cables = Cables { servers: 3, queues: 1, offload: false, load: Load::Light };

/// The same for a story that downloads 50 MiB.
pub(crate) const BULK: Cables = Cables { load: Load::Bulk, ..PLAIN };

/// A lab that stands until it is dropped.
pub(crate) struct Lab {
    prefix: String,
    /// Captures, configuration and log. Outlives the story only if that failed.
    folder: PathBuf,
    judged: Judged,
    captures: Vec<Capture>,
    pub(crate) daemon: Option<Daemon>,
}

impl Lab {
    /// Builds a lab under a name of its own and records every edge from then on.
    pub(crate) fn new(story: &str, cables: Cables) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        assert!(rustix::process::geteuid().is_root(), "stories make network namespaces and need root");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            remove_orphans();
        }
        let prefix = format!("story-{}-{number}-", std::process::id());
        let folder =
            std::env::temp_dir().join(format!("shunt-stories/{story}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let judged = if cables.offload { Judged::FromDirector } else { Judged::Every };
        let mut lab = Self { prefix, folder, judged, captures: Vec::new(), daemon: None };
        let offload = if cables.offload { "on" } else { "off" };
        let mut up = Command::new(SCRIPT);
        up.args(["up", &lab.prefix, "--offload", offload]);
        succeed(
            up.arg("--queues")
                .arg(cables.queues.to_string())
                .arg("--servers")
                .arg(cables.servers.to_string()),
        );
        lab.captures = EDGES[..3 + cables.servers as usize]
            .iter()
            .map(|edge| Capture::start(&lab, *edge, cables.load))
            .collect();
        lab
    }

    /// The story's own files.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where `scripts/lab` keeps the files of a server.
    pub(crate) fn folder_of(&self, server: &str) -> PathBuf {
        Path::new("/tmp/shunt-lab").join(&self.prefix).join(server)
    }

    /// The name of the namespace of `client`, `director`, `switch`, `rs1` …
    pub(crate) fn namespace(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// `program` in a namespace, to be run or spawned. It is killed after a minute.
    pub(crate) fn command(&self, name: &str, program: &str) -> Command {
        assert!(self.recording(), "{program} after the judgement: nobody would look at it");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(name), "timeout", "-k", "1", "60", program]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a shell script in a namespace. Returns stdout; the story fails if the script does.
    pub(crate) fn sh(&self, name: &str, script: &str) -> String {
        let output = succeed(self.command(name, "bash").args(["-euo", "pipefail", "-c", script]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Fetches a URL from the client. The story fails if that fails.
    pub(crate) fn get(&self, url: &str) -> String {
        self.sh("client", &format!("curl -sS --fail --max-time 10 '{url}'")).trim_end().to_owned()
    }

    /// Fetches a URL from the client `times` times, each on a connection of its own. Returns how often each of the
    /// servers rs1, rs2 and rs3 answered.
    pub(crate) fn shares(&self, url: &str, times: usize) -> [usize; 3] {
        let answers = self
            .sh("client", &format!("for _ in $(seq {times}); do curl -sS --fail --max-time 5 '{url}'; done"));
        assert_eq!(answers.lines().count(), times, "{answers}");
        ["rs1", "rs2", "rs3"].map(|server| answers.lines().filter(|line| *line == server).count())
    }

    /// The SHA-256 of what the client gets from a URL.
    pub(crate) fn sum_of_download(&self, url: &str) -> String {
        self.sh("client", &format!("curl -sS --fail --max-time 50 '{url}' | sha256sum"))
    }

    /// The SHA-256 of what the servers have under `file`.
    pub(crate) fn sum_of_file(&self, file: &str) -> String {
        self.sh("client", &format!("sha256sum </tmp/shunt-lab/{}/www/{file}", self.prefix))
    }

    /// The same of its first `bytes`.
    pub(crate) fn sum_of_start(&self, file: &str, bytes: u32) -> String {
        self.sh("client", &format!("head -c {bytes} /tmp/shunt-lab/{}/www/{file} | sha256sum", self.prefix))
    }

    /// Sends a datagram to `to:9000` from the client and returns the answer.
    pub(crate) fn udp_echo(&self, to: &str, text: &str) -> String {
        let family = if to.contains(':') { "AF_INET6" } else { "AF_INET" };
        let script = format!(
            "import socket; s = socket.socket(socket.{family}, socket.SOCK_DGRAM); s.settimeout(5)\n\
             s.sendto(b'{text}', ('{to}', 9000)); print(s.recvfrom(9000)[0].decode())"
        );
        let output = succeed(self.command("client", "/usr/bin/python3").args(["-c", &script]));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Ends the recordings and has tshark judge them. The story fails if a frame has a wrong checksum, if there is no
    /// frame from the director to judge, or if frames came too fast to be recorded. Nothing may happen in the lab
    /// after this, because nobody would look at it. A story that does not call it is judged when its lab is dropped.
    pub(crate) fn judge(&mut self) {
        self.end_recordings();
        let objections = self.objections();
        assert!(objections.is_empty(), "{}", objections.join("\n"));
    }

    /// The recording of an edge, to be read after [`Lab::judge`].
    pub(crate) fn capture(&self, edge: Edge) -> &Capture {
        let capture = self.captures.iter().find(|capture| capture.edge() == edge);
        capture.unwrap_or_else(|| panic!("{edge:?} is no edge"))
    }

    /// How many recorded frames of an edge match tshark's display filter. To be asked after [`Lab::judge`].
    pub(crate) fn seen(&self, edge: Edge, filter: &str) -> usize {
        self.capture(edge).count(filter)
    }

    /// The same of every edge: the client's two, the director's on the back network, and those of the servers.
    pub(crate) fn seen_everywhere(&self, filter: &str) -> Vec<usize> {
        self.captures.iter().map(|capture| capture.count(filter)).collect()
    }

    fn recording(&self) -> bool {
        self.captures.iter().any(Capture::is_running)
    }

    fn end_recordings(&mut self) {
        for capture in &mut self.captures {
            capture.stop();
        }
    }

    fn objections(&self) -> Vec<String> {
        let findings: Vec<_> = self.captures.iter().map(|capture| capture.findings(self.judged)).collect();
        let mut objections: Vec<_> = findings.iter().flat_map(Findings::objections).collect();
        if findings.iter().all(|findings| findings.verified_from_director == 0) {
            objections.push("no frame from the director to judge".to_owned());
        }
        objections
    }

    /// The running daemon.
    pub(crate) fn shunt(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the story has started the daemon")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let unjudged = self.recording();
        self.end_recordings();
        drop(self.daemon.take());
        let _ = Command::new(SCRIPT).args(["down", &self.prefix]).status();
        let failed = std::thread::panicking();
        let objections = if unjudged && !failed { self.objections() } else { Vec::new() };
        if failed || !objections.is_empty() {
            eprintln!("the story failed; its captures, configuration and log: {}", self.folder.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
        assert!(objections.is_empty(), "{}", objections.join("\n"));
    }
}

/// Runs a command that must succeed.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Waits until `done`, at most `limit`. Returns how long it took.
pub(crate) fn within(limit: Duration, what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    started.elapsed()
}

/// Takes down labs of test processes that were killed before they could.
fn remove_orphans() {
    let output = succeed(Command::new(SCRIPT).arg("list"));
    for prefix in String::from_utf8_lossy(&output.stdout).lines() {
        let Some(pid) = prefix.strip_prefix("story-").and_then(|rest| rest.split('-').next()) else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            let _ = Command::new(SCRIPT).args(["down", prefix]).status();
        }
    }
}
