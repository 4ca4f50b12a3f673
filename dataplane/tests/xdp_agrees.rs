//! Whatever classification calls ours, the XDP program redirects, and nothing else: over every frame of the packet
//! fixtures, and over frames made from them by accident. Runs the real program in the kernel (`BPF_PROG_TEST_RUN`), and
//! so needs root.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "only frames and the snapshot are of interest here")]
#[path = "fixtures/lab.rs"]
mod lab;
#[path = "fixtures/notation.rs"]
mod notation;
#[allow(dead_code, reason = "what comes of a frame is not")]
#[path = "fixtures/scene.rs"]
mod scene;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use shunt_dataplane::classify::{Class, classify};
use shunt_dataplane::snapshot::Snapshot;
use shunt_engine::port::af_xdp::{Filter, PORT_SETS, WithoutSocket};
use shunt_engine::steer::RuleSet;

/// The kernel runs a program over nothing shorter than an Ethernet header.
const FRAME_LEN_MIN: usize = 14;

/// The three who must agree: classification, the rules as plain code, and the rules as a program in the kernel.
struct Judges {
    snapshot: Snapshot,
    rules: RuleSet,
    filter: Filter,
}

impl Judges {
    fn new() -> Self {
        let snapshot = lab::Lab::default().snapshot();
        let rules = RuleSet::compile(&snapshot.steering());
        let mut filter = Filter::load(PORT_SETS, WithoutSocket::Bounce).expect("root and eBPF");
        filter.set_rules(&rules).unwrap();
        filter.set_macs(snapshot.macs()).unwrap();
        Self { snapshot, rules, filter }
    }

    /// Whether the frame is ours, in everybody's opinion.
    fn verdict(&self, frame: &[u8]) -> Result<bool, String> {
        let class = classify(frame, &self.snapshot);
        let ours = class != Class::NotOurs;
        let taken = self.rules.takes(self.snapshot.macs(), frame);
        let redirected = match frame.len() {
            0..FRAME_LEN_MIN => ours,
            _ => self.filter.test_run(frame).map_err(|error| error.to_string())?,
        };
        if (taken, redirected) == (ours, ours) {
            return Ok(ours);
        }
        let bytes: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        Err(format!("classified {class:?}, taken by the rules {taken}, redirected {redirected}: {bytes}"))
    }
}

/// IPv6 packets behind every extension header that is walked over: to the services, from a server, to a local address.
const EXTENDED: &[&str] = &[
    "tcp [2001:db8:64::7]:40000 > [2001:db8:cb::10]:80 S ext 0 00000000000000 ext 60 01000000000000 data 20",
    "tcp [2001:db8:64::7]:40000 > [2001:db8:cb::10]:81 S ext 43 00000000000000",
    "tcp [2001:db8:64::7]:40000 > [2001:db8:cb::10]:82 S ext 44 00000100000007 data 40",
    "tcp [2001:db8:64::7]:40000 > [2001:db8:cb::10]:83 S ext 51 01000000000000000000 data 40",
    "udp [2001:db8:64::7]:40000 > [2001:db8:cb::10]:53 ext 44 00000000000007 \"atomic\"",
    "udp [2001:db8:64::7]:40000 > [2001:db8:cb::10]:54 ext 60 00000000000000 ext 44 00000100000007 data 8",
    "ip 2001:db8:64::7 > 2001:db8:cb::10 proto 17 ext 44 0005a900000007 data 24",
    "ip 2001:db8:64::7 > 2001:db8:cb::10 proto 58 ext 60 00000000000000 ext 44 0005a800000007 data 24",
    "tcp [fd00::11]:8080 > [fd00::200]:5000 . ext 60 00000000000000",
    "udp [fd00::12]:5354 > [2001:db8:64::7]:40000 \"answer\"",
    "icmp 2001:db8:64::1 > 2001:db8:cb::10 type 2 code 0 mtu 1400
     quoting { tcp [2001:db8:cb::10]:80 > [2001:db8:64::7]:40000 . data 40 }",
    "icmp fd00::11 > fd00::200 type 1 code 4 ext 0 00000000000000
     quoting { udp [fd00::200]:5000 > [fd00::11]:5353 \"query\" }",
    "icmp fd00::12 > 2001:db8:64::7 type 3 code 0 ext 44 00000100000007 data 40",
    "icmp 2001:db8:64::7 > 2001:db8:cb::10 type 4 code 0 ext 60 01000000000000 data 40",
    "icmp fd00::99 > 2001:db8:64::7 type 2 code 0 mtu 1400
     quoting { tcp [2001:db8:64::7]:40000 > [fd00::12]:8081 . data 40 }",
    "icmp fd00::99 > 2001:db8:64::7 type 2 code 0 mtu 1400
     quoting { tcp [2001:db8:64::7]:40000 > [fd00::12]:8082 . data 40 }",
    "icmp 10.0.0.99 > 198.51.100.7 type 3 code 4 mtu 1400
     quoting { tcp 198.51.100.7:40000 > 10.0.0.12:8081 . data 40 }",
    "icmp 10.0.0.99 > 198.51.100.7 type 11 code 0
     quoting 28 { tcp 198.51.100.7:40000 > 10.0.0.12:8081 . options 01010101 data 40 }",
    "icmp fe80::1 > 2001:db8:cb::10 type 135 code 0 data 20",
];

fn frames() -> Vec<(String, Vec<u8>)> {
    let rows = scene::scenes().into_iter().flat_map(|scene| scene.rows);
    let rows = rows.flat_map(|row| {
        let frames = row.input.map(|input| input.frames).unwrap_or_default();
        frames.into_iter().map(move |frame| (row.title.clone(), frame))
    });
    let [router, director] = ["router", "director-wan"].map(lab::station);
    let extended = EXTENDED.iter().enumerate().map(|(number, text)| {
        let vid = [None, Some(7)][number % 2];
        ((*text).to_owned(), notation::Packet::read(text).frame(router, director, vid))
    });
    rows.chain(extended).collect()
}

#[test]
fn the_program_redirects_exactly_the_fixtures_that_are_ours() {
    let judges = Judges::new();
    let mut counts = [[0, 0], [0, 0]];
    for (title, frame) in frames() {
        let ours = judges.verdict(&frame).unwrap_or_else(|what| panic!("{title}: {what}"));
        counts[usize::from(is_ipv6(&frame))][usize::from(ours)] += 1;
    }
    let [v4, v6] = counts;
    assert!(v4[0] >= 15 && v4[1] >= 100 && v6[0] >= 10 && v6[1] >= 15, "{counts:?}: all have their fixtures");
}

/// Frames that differ, whichever rows they are from.
fn different_frames() -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = frames().into_iter().map(|(_, frame)| frame).collect();
    frames.sort();
    frames.dedup();
    frames
}

fn is_ipv6(frame: &[u8]) -> bool {
    let ethertype = if frame.get(12..14) == Some(&[0x81, 0]) { frame.get(16..18) } else { frame.get(12..14) };
    ethertype == Some(&[0x86, 0xdd])
}

#[test]
fn they_agree_about_every_value_of_every_byte_that_decides_and_every_length() {
    let judges = Judges::new();
    for frame in different_frames() {
        // As far as the ports behind a VLAN tag and IPv4 headers, an ICMP error's quoted tunnel too, or behind all
        // extension headers that are walked.
        let decisive = if is_ipv6(&frame) { 18 + 40 + 8 + 40 + 40 + 4 } else { 18 + 20 + 8 + 20 + 20 + 4 };
        for len in 0..frame.len().min(decisive + 40) {
            judges.verdict(&frame[..len]).unwrap();
        }
        for at in (0..2).chain(12..decisive).take_while(|&at| at < frame.len()) {
            let mut frame = frame.clone();
            for value in 0..=255 {
                frame[at] = value;
                judges.verdict(&frame).unwrap();
            }
        }
    }
}

#[test]
fn they_agree_about_frames_changed_in_several_places() {
    let judges = Judges::new();
    let frames = different_frames();
    // Small numbers are types, lengths and flags.
    let extension = prop::sample::select(vec![0u8, 43, 44, 51, 58, 60]);
    let value = prop_oneof![any::<u8>(), 0u8..20, Just(0x45), Just(0x81), Just(0x08), extension];
    let change = (prop_oneof![4 => 12usize..60, 2 => 54usize..150, 1 => 0usize..1000], value);
    let accident = (0..frames.len(), prop::collection::vec(change, 1..5), prop::option::of(0usize..150));
    let mut runner =
        TestRunner::new(Config { cases: 50_000, failure_persistence: None, ..Config::default() });
    let result = runner.run(&accident, |(which, changes, len)| {
        let mut frame = frames[which].clone();
        frame.truncate(len.unwrap_or(usize::MAX));
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        judges.verdict(&frame).map(|_| ()).map_err(TestCaseError::fail)
    });
    result.unwrap();
}
