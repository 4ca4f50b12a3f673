//! tcpdump at an edge of the lab, and tshark as the judge of what it saw.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{Edge, Lab, succeed};

/// The lab spells the director's addresses in its MACs.
pub(crate) const FROM_DIRECTOR: &str = "eth.src in {02:00:0a:01:00:02, 02:00:0a:02:00:02}";

/// As tshark prints them.
const DIRECTOR: [&str; 2] = ["02:00:0a:01:00:02", "02:00:0a:02:00:02"];

/// What tshark is asked about a frame. It may have several checksums of a kind where it carries inner headers or, in an
/// ICMP error, the packet it is about: all of them are looked at.
const FIELDS: [&str; 12] = [
    "eth.src",
    "frame.len",
    "frame.cap_len",
    "ip.len",
    "ipv6.plen",
    "tcp.checksum",
    "tcp.checksum_calculated",
    "tcp.checksum.status",
    "ip.checksum.status",
    "udp.checksum.status",
    "icmp.checksum.status",
    "icmpv6.checksum.status",
];
const BAD: &str = "0";
const GOOD: &str = "1";

/// A frame is recorded up to here. Longer ones are super-frames, which are judged nowhere.
const BYTES: &str = "2048";

/// What a story moves, and so how much of it is recorded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// Little: all of it.
    Light,
    /// 50 MiB and more: everything but seven of eight large frames. Which of them, says a byte of their random payload:
    /// the choice is the same at every edge. All of it at six edges is more than tcpdump can keep up with on a busy
    /// machine.
    Bulk,
    /// Tens of thousands of connections: those of every sixty-fourth port. tshark would judge all of them for minutes.
    Crowd,
}

impl Load {
    /// As a pcap filter.
    const fn filter(self) -> Option<&'static str> {
        match self {
            Self::Light => None,
            Self::Bulk => Some("less 512 or ether[256] & 7 = 0"),
            Self::Crowd => Some("not tcp or tcp[1] & 63 = 0 or tcp[3] & 63 = 0"),
        }
    }
}

/// How long tcpdump may take to answer, and to read what has come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whose frames are judged. Where the peers' offloads are on, their own frames are complete only on a real wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    Every,
    FromDirector,
}

/// What tshark found in a recording.
pub(crate) struct Findings {
    file: PathBuf,
    /// Frames with a wrong IP, TCP, UDP or ICMP checksum: of all, or of those the director has sent.
    pub(crate) wrong: usize,
    /// Frames of the same that were not recorded whole.
    cut: usize,
    /// Frames that came too fast for tcpdump; `None` if it did not say.
    missed: Option<u64>,
    /// Frames from the director whose TCP, UDP or ICMP checksum tshark has verified.
    pub(crate) verified_from_director: usize,
}

impl Findings {
    /// What stands against the recording.
    pub(crate) fn objections(&self) -> Vec<String> {
        let file = self.file.display();
        let mut objections = Vec::new();
        if self.wrong > 0 {
            objections.push(format!("{file}: {} frames with a wrong checksum", self.wrong));
        }
        if self.cut > 0 {
            objections.push(format!("{file}: {} frames too long to be judged", self.cut));
        }
        match self.missed {
            Some(0) => {}
            Some(missed) => objections.push(format!(
                "{file}: {missed} frames too fast to be recorded (a story that downloads 50 MiB is BULK)"
            )),
            None => objections.push(format!("{file}: tcpdump did not catch up with its frames")),
        }
        objections
    }
}

/// One recording, running or ended.
pub(crate) struct Capture {
    edge: Edge,
    file: PathBuf,
    tcpdump: Option<Tcpdump>,
    /// Frames that came too fast for tcpdump. Known at the end.
    missed: Option<u64>,
}

struct Tcpdump {
    process: Child,
    says: Receiver<String>,
}

/// How many frames tcpdump has read, how many there were for it, and how many did not fit its buffer.
struct Counts {
    read: u64,
    came: u64,
    missed: u64,
}

impl Tcpdump {
    fn counts(&self) -> Option<Counts> {
        kill_process(Pid::from_child(&self.process), Signal::USR1).ok()?;
        // As in: tcpdump: 7 packets captured, 9 packets received by filter, 0 packets dropped by kernel
        let line = self.says.recv_timeout(PATIENCE).ok()?;
        let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
        Some(Counts { read: numbers.next()?, came: numbers.next()?, missed: numbers.next()? })
    }

    /// Waits until tcpdump has read all that came before the call; on a busy machine it may be late. Returns how many
    /// frames it has missed for ever.
    fn catch_up(&self) -> Option<u64> {
        let came = self.counts()?.came;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let now = self.counts()?;
            if now.read + now.missed >= came {
                return Some(now.missed);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Capture {
    /// Records an edge: all of it or, where the load is heavy, a sample. Returns when tcpdump listens.
    pub(crate) fn start(lab: &Lab, (name, interface): Edge, load: Load) -> Self {
        let file = lab.folder().join(format!("{name}-{interface}.pcap"));
        // Not `lab.command`: tcpdump is stopped by a signal, which must reach it and not a wrapper.
        let mut process = Command::new("ip")
            .args(["netns", "exec", &lab.namespace(name), "tcpdump", "-i", interface, "-n", "-Z", "root"])
            .args(["--immediate-mode", "-B", "32768", "-s", BYTES, "-w"])
            .arg(&file)
            .args(load.filter())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut says = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(says.read_line(&mut line).unwrap() > 0, "tcpdump on {name}'s {interface} ended at once");
        }
        let (tell, says_more) = std::sync::mpsc::channel();
        std::thread::spawn(move || says.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let tcpdump = Tcpdump { process, says: says_more };
        Self { edge: (name, interface), file, tcpdump: Some(tcpdump), missed: None }
    }

    pub(crate) fn edge(&self) -> Edge {
        self.edge
    }

    pub(crate) fn is_running(&self) -> bool {
        self.tcpdump.is_some()
    }

    /// Ends the recording. What has passed the edge by now is in the file.
    pub(crate) fn stop(&mut self) {
        let Some(mut tcpdump) = self.tcpdump.take() else { return };
        self.missed = tcpdump.catch_up();
        let _ = kill_process(Pid::from_child(&tcpdump.process), Signal::INT);
        let _ = tcpdump.process.wait();
    }

    /// How many frames match a display filter. The recording must have ended.
    pub(crate) fn count(&self, filter: &str) -> usize {
        self.tshark(&["-Y", filter, "-T", "fields", "-e", "frame.number"]).lines().count()
    }

    /// Has tshark look at every frame. The recording must have ended.
    pub(crate) fn findings(&self, judged: Judged) -> Findings {
        let mut arguments = vec!["-T", "fields"];
        arguments.extend(FIELDS.iter().flat_map(|field| ["-e", field]));
        let mut findings = Findings {
            file: self.file.clone(),
            wrong: 0,
            cut: 0,
            missed: self.missed,
            verified_from_director: 0,
        };
        for frame in self.tshark(&arguments).lines() {
            let columns: Vec<_> = frame.split('\t').collect();
            let [source, len, recorded, v4_len, v6_len, sum, right_sum, tcp, ip, udp, icmp, icmpv6] =
                columns[..]
            else {
                panic!("{frame}")
            };
            // Linux writes 0 as 0xffff when it completes a checksum, in TCP as well (`skb_checksum_help`). To a receiver
            // it is the same; tshark would see it in UDP only.
            let tcp = if (sum, right_sum) == ("0xffff", "0x0000") { GOOD } else { tcp };
            // What is cut off by the ICMP error that quotes it has no sum to compare with.
            let is_icmp = !icmp.is_empty() || !icmpv6.is_empty();
            let (tcp, udp) = if is_icmp && quotes_in_part(v4_len, v6_len) { ("", "") } else { (tcp, udp) };
            let says = |columns: &[&str], status: &str| {
                columns.iter().flat_map(|all| all.split(',')).any(|one| one == status)
            };
            let from_director = DIRECTOR.contains(&source);
            // Its kernel speaks ICMPv6 with the neighbours in any case.
            if from_director && says(&[tcp, udp, icmp], GOOD) {
                findings.verified_from_director += 1;
            }
            if from_director || judged == Judged::Every {
                findings.wrong += usize::from(says(&[ip, tcp, udp, icmp, icmpv6], BAD));
                findings.cut += usize::from(len != recorded);
            }
        }
        findings
    }

    fn tshark(&self, arguments: &[&str]) -> String {
        assert!(self.tcpdump.is_none(), "stop a capture before reading it");
        let mut tshark = Command::new("tshark");
        for option in ["ip.check_checksum", "tcp.check_checksum", "udp.check_checksum"] {
            tshark.arg("-o").arg(format!("{option}:TRUE"));
        }
        // What costs time and says nothing about checksums.
        for option in ["tcp.desegment_tcp_streams", "tcp.analyze_sequence_numbers"] {
            tshark.arg("-o").arg(format!("{option}:FALSE"));
        }
        tshark.args(["--disable-protocol", "http", "-r"]).arg(&self.file).args(arguments);
        String::from_utf8_lossy(&succeed(&mut tshark).stdout).into_owned()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether the packet that an ICMP error quotes is longer than the error has room for: from the lengths of the frame's IP
/// packets, the quoted one's being the last. IPv4 counts its header of 20 bytes, IPv6 counts the payload alone.
fn quotes_in_part(v4_lens: &str, v6_lens: &str) -> bool {
    let last_two = |lens: &str| {
        let mut lens = lens.rsplit(',').map_while(|len| len.parse::<u32>().ok());
        Some((lens.next()?, lens.next()?))
    };
    last_two(v4_lens).is_some_and(|(quoted, error)| 20 + 8 + quoted > error)
        || last_two(v6_lens).is_some_and(|(quoted, error)| 8 + 40 + quoted > error)
}
