//! What a new connection costs, its end included: SYNs of clients without connection, while the connections of those
//! before them time out.
//!
//! Time is turned by hand, so much per burst that as many connections end as open: a connection lives for LVS's timeout
//! of a handshake, and so many are open at a time as is asked for. A client comes again long after its connection is gone.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use shunt_dataplane::conn::{State, Timeouts};
use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::V4;
use shunt_engine::clock::Clock;
use shunt_engine::{BURST, Duration, Program};

use crate::baseline::SwapMacs;
use crate::connections;
use crate::director::{self, Services};
use crate::machine::{self, Machine};
use crate::pipeline::{self, Figures, Round, thread_cpu_ns};
use crate::report::hundredths;
use crate::rig::Rig;

/// What connections are opened to.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The service's forwarding mode.
    pub mode: Mode,
    /// Its scheduler.
    pub scheduler: SchedulerKind,
    /// Its servers.
    pub servers: u16,
    /// Connections open at a time.
    pub open: u32,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// What was measured.
    pub runs: Vec<Run>,
}

/// One setup. Nanoseconds are CPU time of the worker's thread and include the in-memory port.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The forwarding mode.
    pub mode: &'static str,
    /// The address family.
    pub family: &'static str,
    /// The scheduler.
    pub scheduler: &'static str,
    /// Servers of the service.
    pub servers: u16,
    /// Million connections per second of CPU time, in the best round.
    #[serde(serialize_with = "hundredths")]
    pub million_per_second: f64,
    /// Per connection, from its SYN to its end, in the best round.
    #[serde(serialize_with = "hundredths")]
    pub ns_per_connection: f64,
    /// Per SYN when only link addresses are swapped, in the best round.
    #[serde(serialize_with = "hundredths")]
    pub baseline_ns: f64,
    /// CPU time by wall time while the pipeline was measured: below 1 when others took the core away.
    #[serde(serialize_with = "hundredths")]
    pub cpu_share: f64,
    /// Per connection, in the median round.
    #[serde(serialize_with = "hundredths")]
    pub median_ns: f64,
    /// Per SYN when only link addresses are swapped, in the median round.
    #[serde(serialize_with = "hundredths")]
    pub baseline_median_ns: f64,
    /// Connections opened while it was measured, over all rounds.
    pub opened: u64,
    /// Connections that timed out meanwhile.
    pub expired: u64,
    /// Rounds of pipeline and baseline in turns.
    pub rounds: u32,
    /// Connections open at the end.
    pub open: usize,
    /// Local addresses (FULLNAT).
    pub local_addresses: u8,
    /// Ports of each.
    pub local_ports: usize,
    /// How long a connection lives: the timeout of SYN_RECV.
    pub syn_recv_s: u64,
    /// The timeout of TIME_WAIT, into which none of these connections comes.
    pub time_wait_s: u64,
    /// Time that passes for the worker per second of CPU time.
    #[serde(serialize_with = "hundredths")]
    pub time_lapse: f64,
    /// Bytes of a SYN in memory, without frame check sequence.
    pub frame_bytes: f64,
    /// Connections the table is made for.
    pub table_capacity: u32,
    /// What the connection table lies on: `huge` for reserved huge pages, else `normal`.
    pub table_pages: &'static str,
}

/// Measures one setup: so many rounds of so many connections.
///
/// # Errors
/// When there is no memory, a SYN was not forwarded, or not as many connections ended as opened.
pub fn measure(setup: Setup, rounds: u32, connections: u64) -> anyhow::Result<Run> {
    let timeouts = Timeouts::default();
    let lifetime = timeouts.get(State::SynRecv);
    let per_burst = Duration::from_nanos(lifetime.as_nanos() * BURST as u64 / u64::from(setup.open));
    let services = Services { modes: &[setup.mode], scheduler: setup.scheduler, servers: setup.servers };
    // A connection goes half a second after its time at the latest.
    let capacity = director::capacity(setup.open + setup.open / 8 + BURST as u32);
    let mut measured = Bench::new(|clock| Rig::new(services.pipeline::<V4>(capacity)?, clock), per_burst)?;
    let mut baseline = Bench::new(|clock| Rig::new(SwapMacs, clock), per_burst)?;
    let syns = connections::syns::<V4>(setup.mode, 0..2 * setup.open);
    let frame_bytes = syns.bytes_mean();
    measured.rig.wire().feed(syns.clone());
    baseline.rig.wire().feed(syns);

    let connections = connections.next_multiple_of(BURST as u64);
    let warm_up = u64::from(setup.open + setup.open / 4).next_multiple_of(BURST as u64);
    measured.round(warm_up);
    baseline.round(connections / 8);
    let before = (measured.settle(), measured.open());
    let mut done = Vec::new();
    for _ in 0..rounds {
        done.push((measured.round(connections), baseline.round(connections)));
    }
    let open = measured.open();
    let opened = u64::from(rounds) * connections;
    pipeline::all_forwarded(before.0, measured.settle(), opened).context("opening connections")?;
    let expired = opened + before.1 as u64 - open as u64;
    ensure!(
        opened.abs_diff(expired) <= opened / 20,
        "{expired} connections ended while {opened} opened: measure more of them"
    );

    let ns = Figures::of(done.iter().map(|(round, _)| round.cpu_ns / connections as f64));
    let baseline_ns = Figures::of(done.iter().map(|(_, round)| round.cpu_ns / connections as f64));
    let cpu: f64 = done.iter().map(|(round, _)| round.cpu_ns).sum();
    let wall: f64 = done.iter().map(|(round, _)| round.wall_ns).sum();
    let fullnat = setup.mode == Mode::Fullnat;
    Ok(Run {
        mode: setup.mode.name(),
        family: "ipv4",
        scheduler: setup.scheduler.name(),
        servers: setup.servers,
        million_per_second: 1e3 / ns.best,
        ns_per_connection: ns.best,
        baseline_ns: baseline_ns.best,
        cpu_share: (cpu / wall).min(1.0),
        median_ns: ns.median,
        baseline_median_ns: baseline_ns.median,
        opened,
        expired,
        rounds,
        open,
        local_addresses: if fullnat { director::local_addresses(capacity) } else { 0 },
        local_ports: if fullnat { director::LOCAL_PORTS.len() } else { 0 },
        syn_recv_s: lifetime.as_millis() / 1000,
        time_wait_s: timeouts.get(State::TimeWait).as_millis() / 1000,
        time_lapse: per_burst.as_nanos() as f64 / (BURST as f64 * ns.best),
        frame_bytes,
        table_capacity: capacity,
        table_pages: machine::pages(measured.rig.worker().program().flows_v4().table().pages()),
    })
}

/// A rig whose time goes on with its bursts.
struct Bench<P: Program> {
    rig: Rig<P>,
    clock: Clock,
    per_burst: Duration,
}

impl<P: Program> Bench<P> {
    fn new(rig: impl FnOnce(Clock) -> std::io::Result<Rig<P>>, per_burst: Duration) -> anyhow::Result<Self> {
        let clock = Clock::manual(shunt_engine::Instant::ZERO + Duration::from_secs(1));
        Ok(Self { rig: rig(clock.clone())?, clock, per_burst })
    }

    /// What full bursts of `packets` in all take.
    fn round(&mut self, packets: u64) -> Round {
        self.rig.wire().allow(packets);
        let (wall, cpu) = (Instant::now(), thread_cpu_ns());
        for _ in 0..packets.div_ceil(BURST as u64) {
            self.clock.advance(self.per_burst);
            self.rig.turn();
        }
        let cpu_ns = thread_cpu_ns() - cpu;
        Round { cpu_ns: cpu_ns as f64, wall_ns: wall.elapsed().as_nanos() as f64 }
    }
}

impl Bench<Pipeline> {
    /// Connections in the table.
    fn open(&self) -> usize {
        self.rig.worker().program().flows_v4().table().len()
    }

    /// Lets everything counted be published, and reads it.
    fn settle(&mut self) -> pipeline::Counts {
        // More turns than there are pieces in which counters are published, each a millisecond after the one before.
        for _ in 0..16 {
            self.clock.advance(Duration::from_millis(1));
            self.rig.turn();
        }
        pipeline::Counts::of(&self.rig)
    }
}

/// The head of the table.
pub fn head() -> String {
    format!(
        "{:<8} {:<9} {:>7} {:>8} {:>9} {:>7} {:>12} {:>9} {:>6}",
        "mode", "scheduler", "servers", "open", "M/s", "ns", "baseline ns", "median ns", "pages"
    )
}

/// One row of the table.
pub fn row(run: &Run) -> String {
    format!(
        "{:<8} {:<9} {:>7} {:>8} {:>9.2} {:>7.1} {:>12.1} {:>9.1} {:>6}",
        run.mode,
        run.scheduler,
        run.servers,
        run.open,
        run.million_per_second,
        run.ns_per_connection,
        run.baseline_ns,
        run.median_ns,
        run.table_pages
    )
}

/// What else a reader of the table has to know, below it.
pub fn foot(run: &Run) -> String {
    let Run { local_addresses, local_ports, syn_recv_s, time_wait_s, time_lapse, .. } = run;
    format!(
        "local addresses: {local_addresses} with {local_ports} ports each; timeouts: SYN_RECV {syn_recv_s} s, \
         TIME_WAIT {time_wait_s} s; time passes {time_lapse:.0} times as fast"
    )
}
