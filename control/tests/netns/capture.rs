//! tcpdump at an edge of the lab, and tshark as the judge of what it saw.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{Lab, succeed};

/// What tshark calls a frame with a wrong checksum, inner headers and the packets quoted in ICMP errors included.
const WRONG: &str = "ip.checksum.status == \"Bad\" || tcp.checksum.status == \"Bad\" \
                     || udp.checksum.status == \"Bad\" || icmp.checksum.status == \"Bad\"";

/// The lab spells the director's addresses in its MACs.
pub(crate) const FROM_DIRECTOR: &str = "eth.src in {02:00:0a:01:00:02, 02:00:0a:02:00:02}";

/// A pcap file's header.
const EMPTY_PCAP: u64 = 24;

/// Whose frames are judged. Where the peers' offloads are on, their own frames are complete only on a real wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    Every,
    FromDirector,
}

/// One running or finished recording.
pub(crate) struct Capture {
    file: PathBuf,
    tcpdump: Option<Child>,
}

impl Capture {
    /// Returns when tcpdump listens.
    pub(crate) fn start(lab: &Lab, name: &str, interface: &str) -> Self {
        let file = lab.folder().join(format!("{name}-{interface}.pcap"));
        // Not `lab.command`: tcpdump is stopped by a signal, which must reach it and not a wrapper.
        let mut tcpdump = Command::new("ip")
            .args(["netns", "exec", &lab.namespace(name), "tcpdump", "-i", interface, "-n", "-Z", "root"])
            .args(["--immediate-mode", "-B", "65536", "-w"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut says = BufReader::new(tcpdump.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(says.read_line(&mut line).unwrap() > 0, "tcpdump on {name}'s {interface} ended at once");
        }
        // What tcpdump says at its end must find a reader.
        std::thread::spawn(move || std::io::copy(&mut says, &mut std::io::sink()));
        Self { file, tcpdump: Some(tcpdump) }
    }

    /// Ends the recording. Frames of the last moment are in the file.
    pub(crate) fn stop(&mut self) {
        let Some(mut tcpdump) = self.tcpdump.take() else { return };
        // tcpdump reads frames as they come; this is for those that came just now.
        std::thread::sleep(Duration::from_millis(50));
        let _ = kill_process(Pid::from_child(&tcpdump), Signal::INT);
        let _ = tcpdump.wait();
    }

    /// How many frames match a display filter. The recording must have ended.
    pub(crate) fn count(&self, filter: &str) -> usize {
        assert!(self.tcpdump.is_none(), "stop a capture before reading it");
        let mut tshark = Command::new("tshark");
        for option in ["ip.check_checksum", "tcp.check_checksum", "udp.check_checksum"] {
            tshark.arg("-o").arg(format!("{option}:TRUE"));
        }
        tshark.args(["-o", "tcp.desegment_tcp_streams:FALSE", "--disable-protocol", "http"]);
        tshark.arg("-r").arg(&self.file).args(["-Y", filter, "-T", "fields", "-e", "frame.number"]);
        let output = succeed(&mut tshark);
        String::from_utf8_lossy(&output.stdout).lines().count()
    }

    /// How many frames have a wrong IP, TCP, UDP or ICMP checksum: of all, or of those the director has sent.
    pub(crate) fn wrong_checksums(&self, judged: Judged) -> usize {
        match judged {
            Judged::Every => self.count(WRONG),
            Judged::FromDirector => self.count(&format!("{FROM_DIRECTOR} && ({WRONG})")),
        }
    }

    /// Fails the story if a frame has a wrong checksum, or if there is no frame to judge.
    pub(crate) fn has_no_wrong_checksum(&self, judged: Judged) {
        let file = self.file.display();
        assert!(std::fs::metadata(&self.file).unwrap().len() > EMPTY_PCAP, "{file}: no frame");
        assert_eq!(self.wrong_checksums(judged), 0, "{file}: frames with a wrong checksum");
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop();
    }
}
