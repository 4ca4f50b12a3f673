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

fn frames() -> Vec<(String, Vec<u8>)> {
    let rows = scene::scenes().into_iter().flat_map(|scene| scene.rows);
    rows.flat_map(|row| {
        let frames = row.input.map(|input| input.frames).unwrap_or_default();
        frames.into_iter().map(move |frame| (row.title.clone(), frame))
    })
    .collect()
}

#[test]
fn the_program_redirects_exactly_the_fixtures_that_are_ours() {
    let judges = Judges::new();
    let mut counts = [0, 0];
    for (title, frame) in frames() {
        let ours = judges.verdict(&frame).unwrap_or_else(|what| panic!("{title}: {what}"));
        counts[usize::from(ours)] += 1;
    }
    assert!(counts[0] >= 15 && counts[1] >= 100, "{counts:?}: both sides have their fixtures");
}

/// Frames that differ, whichever rows they are from.
fn different_frames() -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = frames().into_iter().map(|(_, frame)| frame).collect();
    frames.sort();
    frames.dedup();
    frames
}

#[test]
fn they_agree_about_every_value_of_every_byte_that_decides_and_every_length() {
    let judges = Judges::new();
    for frame in different_frames() {
        for len in 0..frame.len().min(80) {
            judges.verdict(&frame[..len]).unwrap();
        }
        // From the EtherType to the ports behind a VLAN tag and an IPv4 header.
        for at in (0..2).chain(12..42).take_while(|&at| at < frame.len()) {
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
    let value = prop_oneof![any::<u8>(), 0u8..20, Just(0x45), Just(0x81), Just(0x08)];
    let change = (prop_oneof![4 => 12usize..60, 1 => 0usize..1000], value);
    let accident = (0..frames.len(), prop::collection::vec(change, 1..5), prop::option::of(0usize..80));
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
