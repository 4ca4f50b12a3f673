//! See `targets::http`.
#![no_main]

#[path = "../../tests/fuzzing/targets.rs"]
#[allow(dead_code, reason = "the others are for the other targets")]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::http(data));
