//! What the benchmark says: JSON for programs, a table for people.

use std::fmt::Write as _;

use serde::{Serialize, Serializer};

use crate::machine::Machine;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// What was measured.
    pub runs: Vec<Run>,
}

/// One mode with one number of flows. Nanoseconds are CPU time of the worker's thread and include the in-memory port.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The forwarding mode.
    pub mode: &'static str,
    /// The address family.
    pub family: &'static str,
    /// Established connections.
    pub flows: u32,
    /// Bytes of a frame in memory, without frame check sequence.
    pub frame_bytes: usize,
    /// Per packet through the pipeline, in the best round.
    #[serde(serialize_with = "hundredths")]
    pub ns_per_packet: f64,
    /// Per packet when only link addresses are swapped, in the best round.
    #[serde(serialize_with = "hundredths")]
    pub baseline_ns: f64,
    /// Million packets per second of CPU time, in the best round.
    #[serde(serialize_with = "hundredths")]
    pub mpps: f64,
    /// CPU time by wall time while the pipeline was measured: below 1 when others took the core away.
    #[serde(serialize_with = "hundredths")]
    pub cpu_share: f64,
    /// Per packet through the pipeline, in the median round.
    #[serde(serialize_with = "hundredths")]
    pub median_ns: f64,
    /// Per packet when only link addresses are swapped, in the median round.
    #[serde(serialize_with = "hundredths")]
    pub baseline_median_ns: f64,
    /// Packets measured, over all rounds.
    pub packets: u64,
    /// Rounds of pipeline and baseline in turns.
    pub rounds: u32,
    /// Share of packets that are servers' replies.
    #[serde(serialize_with = "hundredths")]
    pub reply_share: f64,
    /// Servers of the service.
    pub servers: u8,
    /// Local addresses (FULLNAT).
    pub local_addresses: u8,
    /// Connections the table is made for.
    pub table_capacity: u32,
    /// Buffers the frames rotate through, at least.
    pub buffers: usize,
    /// What the connection table lies on: `huge` for reserved huge pages, else `normal`.
    pub table_pages: &'static str,
    /// What the buffers lie on.
    pub buffer_pages: &'static str,
}

/// Nobody measures finer than that.
fn hundredths<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((value * 100.0).round() / 100.0)
}

/// The head of the table.
pub fn head(machine: &Machine) -> String {
    let Machine { cpu, cores, kernel, huge_pages_reserved, transparent_huge_pages, .. } = machine;
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{cpu}, {cores} cores, Linux {kernel}");
    let _ = writeln!(
        out,
        "huge pages: {huge_pages_reserved} reserved, transparent ones: {transparent_huge_pages}\n"
    );
    let _ = write!(
        out,
        "{:<8} {:>9} {:>10} {:>12} {:>7} {:>9} {:>6}",
        "mode", "flows", "ns/packet", "baseline ns", "Mpps", "median ns", "pages"
    );
    out
}

/// One row of the table.
pub fn row(run: &Run) -> String {
    format!(
        "{:<8} {:>9} {:>10.1} {:>12.1} {:>7.2} {:>9.1} {:>6}",
        run.mode, run.flows, run.ns_per_packet, run.baseline_ns, run.mpps, run.median_ns, run.table_pages
    )
}
