//! The fuzz targets with the stable compiler: over every input that once crashed one (`crashes/TARGET/NAME`), and over
//! some random ones, so that they do not rot. `scripts/ci fuzz` runs them under libFuzzer.
#![allow(clippy::unwrap_used, reason = "a broken harness has failed")]

mod targets;

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use targets::TARGETS;

#[test]
fn inputs_that_once_crashed_a_target_do_no_more() {
    let crashes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzzing/crashes");
    for (name, target) in TARGETS {
        for file in std::fs::read_dir(crashes.join(name)).into_iter().flatten() {
            let path = file.unwrap().path();
            println!("{}", path.display());
            target(&std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn random_inputs_crash_no_target() {
    for (name, target) in TARGETS {
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(300) });
        let input = proptest::collection::vec(any::<u8>(), 0..400);
        let run = |bytes: Vec<u8>| {
            target(&bytes);
            Ok(())
        };
        runner.run(&input, run).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_fuzzers_targets_are_these() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let mut names = TARGETS.map(|(name, _)| name.to_owned()).to_vec();
    files.sort();
    names.sort();
    assert_eq!(files, names);
}
