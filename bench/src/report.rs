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

/// One mode with one number of flows and one size of frames. Nanoseconds are CPU time of the worker's thread and include the in-memory port.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The forwarding mode.
    pub mode: &'static str,
    /// The address family.
    pub family: &'static str,
    /// Established connections.
    pub flows: u32,
    /// What was asked for: the length of frames, or `imix`.
    pub frames: String,
    /// Bytes of a frame in memory, without frame check sequence, on average.
    #[serde(serialize_with = "hundredths")]
    pub frame_bytes: f64,
    /// Per packet through the pipeline, in the best round.
    #[serde(serialize_with = "hundredths")]
    pub ns_per_packet: f64,
    /// Wall time per packet through the pipeline, in the round in which it was least.
    #[serde(serialize_with = "hundredths")]
    pub wall_ns: f64,
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

/// All of the connection table's.
#[derive(Clone, Debug, Serialize)]
pub struct TableReport {
    /// Where it ran.
    pub machine: Machine,
    /// What was measured.
    pub runs: Vec<TableRun>,
}

/// A full connection table of one family, beside hashbrown with the same connections. All connections are FULLNAT: each
/// is found by two tuples.
#[derive(Clone, Debug, Serialize)]
pub struct TableRun {
    /// The address family.
    pub family: &'static str,
    /// Connections, and the capacity of the table.
    pub connections: u32,
    /// Memory of the table by its connections: records, both directions' slots, timers.
    #[serde(serialize_with = "hundredths")]
    pub bytes_per_connection: f64,
    /// Memory of hashbrown's table and a slab of the same records, by the connections; no timers.
    #[serde(serialize_with = "hundredths")]
    pub hashbrown_bytes_per_connection: f64,
    /// What the table takes.
    pub table: Costs,
    /// What hashbrown takes.
    pub hashbrown: Costs,
    /// Rounds of both in turns; the best of each figure counts.
    pub rounds: u32,
}

/// Nanoseconds of CPU time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Costs {
    /// To find a connection by one of its tuples and read its record, tuples in a random order, one after the other.
    #[serde(serialize_with = "hundredths")]
    pub hit_ns: f64,
    /// To find that there is none.
    #[serde(serialize_with = "hundredths")]
    pub miss_ns: f64,
    /// To add a connection with both tuples.
    #[serde(serialize_with = "hundredths")]
    pub insert_ns: f64,
    /// To remove one.
    #[serde(serialize_with = "hundredths")]
    pub delete_ns: f64,
}

impl Costs {
    /// Before anything was measured.
    pub const WORST: Self =
        Self { hit_ns: f64::MAX, miss_ns: f64::MAX, insert_ns: f64::MAX, delete_ns: f64::MAX };

    /// The lower of each figure.
    #[must_use]
    pub const fn best(self, other: Self) -> Self {
        Self {
            hit_ns: self.hit_ns.min(other.hit_ns),
            miss_ns: self.miss_ns.min(other.miss_ns),
            insert_ns: self.insert_ns.min(other.insert_ns),
            delete_ns: self.delete_ns.min(other.delete_ns),
        }
    }
}

/// Nobody measures finer than that.
pub(crate) fn hundredths<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((value * 100.0).round() / 100.0)
}

/// The head of the table of runs.
pub fn head(machine: &Machine) -> String {
    let mut out = place(machine);
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "{:<8} {:<6} {:>6} {:>9} {:>10} {:>8} {:>6} {:>12} {:>7} {:>9} {:>6}",
        "mode",
        "family",
        "frames",
        "flows",
        "ns/packet",
        "wall ns",
        "share",
        "baseline ns",
        "Mpps",
        "median ns",
        "pages"
    );
    out
}

/// The head of the table of connection tables.
pub fn table_head(machine: &Machine) -> String {
    let mut out = place(machine);
    let _ = write!(
        out,
        "{:<6} {:>11} {:<9} {:>10} {:>7} {:>7} {:>7} {:>7}",
        "family", "connections", "table", "bytes/conn", "hit", "miss", "insert", "delete"
    );
    out
}

/// Two rows: the connection table and hashbrown.
pub fn table_rows(run: &TableRun) -> String {
    let row = |name: &str, bytes: f64, costs: &Costs| {
        format!(
            "{:<6} {:>11} {:<9} {:>10.1} {:>7.1} {:>7.1} {:>7.1} {:>7.1}",
            run.family,
            run.connections,
            name,
            bytes,
            costs.hit_ns,
            costs.miss_ns,
            costs.insert_ns,
            costs.delete_ns
        )
    };
    let ours = row("shunt", run.bytes_per_connection, &run.table);
    ours + "\n" + &row("hashbrown", run.hashbrown_bytes_per_connection, &run.hashbrown)
}

/// Where it ran, in two lines and an empty one.
pub fn place(machine: &Machine) -> String {
    let Machine { cpu, cores, kernel, huge_pages_reserved, transparent_huge_pages, .. } = machine;
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{cpu}, {cores} cores, Linux {kernel}");
    let _ = writeln!(
        out,
        "huge pages: {huge_pages_reserved} reserved, transparent ones: {transparent_huge_pages}\n"
    );
    out
}

/// One row of the table.
pub fn row(run: &Run) -> String {
    format!(
        "{:<8} {:<6} {:>6} {:>9} {:>10.1} {:>8.1} {:>6.2} {:>12.1} {:>7.2} {:>9.1} {:>6}",
        run.mode,
        run.family,
        run.frames,
        run.flows,
        run.ns_per_packet,
        run.wall_ns,
        run.cpu_share,
        run.baseline_ns,
        run.mpps,
        run.median_ns,
        run.table_pages
    )
}
