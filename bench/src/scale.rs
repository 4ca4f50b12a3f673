//! What another core brings, and what it costs when a packet arrives at the wrong one: workers on pinned threads of their
//! own over in-memory ports, beside one worker with the same connections and beside the port alone, in turns.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{V4, V6};
use shunt_engine::clock::Clock;
use shunt_engine::ring::RING_FRAMES;
use shunt_engine::{BURST, Program};

use crate::baseline::SwapMacs;
use crate::crew::Crew;
use crate::family::Family;
use crate::machine::{self, Machine};
use crate::pipeline::{Version, mode, thread_cpu_ns};
use crate::progress::Progress;
use crate::report::{hundredths, place};
use crate::rig::Rig;
use crate::size::Size;
use crate::wire::{Feed, Wire};

/// What is typed behind `scale`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Workers, one per core.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=64))]
    workers: u16,
    /// Forwarding modes, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = mode, default_value = "fullnat,dr,tun")]
    modes: Vec<Mode>,
    /// IP versions, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "ipv4")]
    families: Vec<Version>,
    /// Numbers of established connections, all workers together, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "10000,1000000",
        value_parser = clap::value_parser!(u32).range(64..=10_000_000))]
    flows: Vec<u32>,
    /// Packets per worker and round.
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    packets: u64,
    /// Rounds, all that is compared in turns; the best of each counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// What was measured.
    pub runs: Vec<Run>,
}

/// One mode with one number of flows, of the best rounds. Nanoseconds are CPU time of the workers' threads.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The forwarding mode.
    pub mode: &'static str,
    /// The IP version.
    pub family: &'static str,
    /// Established connections, over all workers.
    pub flows: u32,
    /// Workers.
    pub workers: u16,
    /// Per packet with one worker.
    #[serde(serialize_with = "hundredths")]
    pub one_ns: f64,
    /// Per packet with all workers at work at once, whose every packet arrives where it belongs.
    #[serde(serialize_with = "hundredths")]
    pub all_ns: f64,
    /// Packets per second of all workers by those of one, by CPU time.
    #[serde(serialize_with = "hundredths")]
    pub times_cpu: f64,
    /// The same by wall time: less where cores are shared, with other processes or as hyperthreads.
    #[serde(serialize_with = "hundredths")]
    pub times_wall: f64,
    /// The same for workers that only swap link addresses, by CPU time: what the machine allows.
    #[serde(serialize_with = "hundredths")]
    pub baseline_times_cpu: f64,
    /// The same by wall time.
    #[serde(serialize_with = "hundredths")]
    pub baseline_times_wall: f64,
    /// CPU time by wall time of the workers: below 1 when others took cores away.
    #[serde(serialize_with = "hundredths")]
    pub cpu_share: f64,
    /// Per packet when every one arrives at another worker than its own: both workers together, without the turns in
    /// which nothing moved.
    #[serde(serialize_with = "hundredths")]
    pub handed_ns: f64,
    /// What of that the handoff is: less `all_ns`.
    #[serde(serialize_with = "hundredths")]
    pub handoff_ns: f64,
    /// Packets per worker and round.
    pub packets: u64,
    /// Rounds.
    pub rounds: u32,
}

/// Measures and says.
///
/// # Errors
/// When there are too few cores or too little memory, or a packet was lost.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cores = machine::cores();
    let workers = usize::from(arguments.workers);
    ensure!(
        workers <= cores.len(),
        "{workers} workers need as many cores; this process may use {}",
        cores.len()
    );
    let machine = Machine::prepare();
    if !arguments.json {
        println!("{}{}", place(&machine), head());
    }
    let mut cases = Vec::new();
    for &mode in &arguments.modes {
        for &version in &arguments.families {
            cases.extend(arguments.flows.iter().map(|&flows| (mode, version, flows)));
        }
    }
    let progress = Progress::new(cases.len());
    let mut runs = Vec::with_capacity(cases.len());
    for (mode, version, flows) in cases {
        progress.begin(&format!("{}, {flows} flows", mode.name()));
        let run = match version {
            Version::Ipv4 => measure::<V4>(arguments, &cores[..workers], mode, flows)?,
            Version::Ipv6 => measure::<V6>(arguments, &cores[..workers], mode, flows)?,
        };
        if !arguments.json {
            progress.say(&row(&run));
        }
        progress.done();
        runs.push(run);
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&Report { machine, runs })?);
    }
    Ok(())
}

fn measure<A: Family>(arguments: &Arguments, cores: &[usize], mode: Mode, flows: u32) -> anyhow::Result<Run> {
    let &Arguments { workers, rounds, .. } = arguments;
    let packets = arguments.packets.next_multiple_of(BURST as u64);
    let size = Size::Bytes(64);
    let mut one = Crew::<A>::open(1, mode, flows, &Clock::System)?;
    let all_data = one.connections[0].data(size);
    let mut all = Crew::<A>::open(workers, mode, flows, &Clock::System)?;
    let mut data: Vec<_> = all.connections.iter().map(|connections| connections.data(size)).collect();
    let mut swap = Rig::mesh((0..workers).map(|_| SwapMacs).collect(), &Clock::System)?;
    let mut best = Best::default();
    for _ in 0..rounds {
        best.one.better(Round::of(&mut one.rigs, cores, std::slice::from_ref(&all_data), 0, packets)?);
        best.all.better(Round::of(&mut all.rigs, cores, &data, 0, packets)?);
        data.rotate_left(1);
        best.handed.better(Round::of(&mut all.rigs, cores, &data, 1, packets)?);
        data.rotate_right(1);
        best.swap_one.better(Round::of(&mut swap[..1], cores, &data, 0, packets)?);
        best.swap_all.better(Round::of(&mut swap, cores, &data, 0, packets)?);
    }
    let Best { one, all, handed, swap_one, swap_all } = best;
    Ok(Run {
        mode: mode.name(),
        family: A::NAME,
        flows,
        workers,
        one_ns: one.ns,
        all_ns: all.ns,
        times_cpu: f64::from(workers) * one.ns / all.ns,
        times_wall: one.wall_ns / all.wall_ns,
        baseline_times_cpu: f64::from(workers) * swap_one.ns / swap_all.ns,
        baseline_times_wall: swap_one.wall_ns / swap_all.wall_ns,
        cpu_share: all.share,
        handed_ns: handed.ns,
        handoff_ns: handed.ns - all.ns,
        packets,
        rounds,
    })
}

#[derive(Debug, Default)]
struct Best {
    one: Round,
    all: Round,
    handed: Round,
    swap_one: Round,
    swap_all: Round,
}

/// What a round took, over all its workers.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// CPU time per packet, in turns that moved something.
    ns: f64,
    /// Wall time per packet of the whole round.
    wall_ns: f64,
    /// CPU time by wall time.
    share: f64,
}

impl Default for Round {
    fn default() -> Self {
        Self { ns: f64::INFINITY, wall_ns: f64::INFINITY, share: 0.0 }
    }
}

impl Round {
    /// The better of each.
    fn better(&mut self, other: Self) {
        self.ns = self.ns.min(other.ns);
        self.wall_ns = self.wall_ns.min(other.wall_ns);
        self.share = self.share.max(other.share);
    }

    /// Has each of `rigs`, on a thread and core of its own, receive `packets` of its `data`. The flows' home is `away`
    /// workers further on.
    fn of<P: Program + Send>(
        rigs: &mut [Rig<P>],
        cores: &[usize],
        data: &[Feed],
        away: usize,
        packets: u64,
    ) -> anyhow::Result<Self> {
        let wires: Vec<_> = rigs.iter().map(Rig::wire_handle).collect();
        wires.iter().zip(data).for_each(|(wire, data)| wire.feed(data.clone()));
        let workers = rigs.len();
        let meet = Barrier::new(workers);
        let finished = AtomicU64::new(0);
        let parts: Vec<Part> = std::thread::scope(|scope| {
            let start = |(number, rig): (usize, _)| {
                let home = &*wires[(number + away) % workers];
                let (meet, finished, core) = (&meet, &finished, cores[number]);
                scope.spawn(move || {
                    machine::pin(core);
                    let runner = Runner { rig, home, finished, workers: workers as u64 };
                    runner.run(meet, packets)
                })
            };
            let threads: Vec<_> = rigs.iter_mut().enumerate().map(start).collect();
            threads.into_iter().map(|thread| thread.join().expect("workers do not panic")).collect()
        });
        let total = packets * workers as u64;
        let first = parts.iter().map(|part| part.begin).min().context("there are workers")?;
        let last = parts.iter().map(|part| part.end).max().context("there are workers")?;
        let span = last.duration_since(first).as_nanos() as f64;
        let cpu: f64 = parts.iter().map(|part| part.cpu_ns).sum();
        let busy: f64 = parts.iter().map(|part| part.cpu_ns - part.idle_ns).sum();
        ensure!(parts.iter().all(|part| !part.lost), "packets were lost");
        Ok(Self {
            ns: busy / total as f64,
            wall_ns: span / total as f64,
            share: (cpu / span / workers as f64).min(1.0),
        })
    }
}

/// What one worker took.
#[derive(Clone, Copy, Debug)]
struct Part {
    begin: Instant,
    end: Instant,
    cpu_ns: f64,
    /// In turns that moved nothing.
    idle_ns: f64,
    lost: bool,
}

/// Frames that are on the way to their home at once, at most: the ring between two workers has room for twice as many.
const WINDOW: u64 = RING_FRAMES as u64 / 2;
/// A turn that moves nothing takes less. More is a thread that did not run.
const IDLE_NS_MAX: u64 = 1_000;

/// One worker's thread.
struct Runner<'a, P: Program> {
    rig: &'a mut Rig<P>,
    /// Where what it receives leaves.
    home: &'a Wire,
    /// Workers whose frames have all left.
    finished: &'a AtomicU64,
    workers: u64,
}

impl<P: Program> Runner<'_, P> {
    fn run(mut self, meet: &Barrier, packets: u64) -> Part {
        let warm_up = (packets / 8).next_multiple_of(BURST as u64);
        meet.wait();
        self.pass(warm_up);
        if meet.wait().is_leader() {
            self.finished.store(0, Ordering::Relaxed);
        }
        meet.wait();
        let (begin, cpu) = (Instant::now(), thread_cpu_ns());
        let (idle_ns, lost) = self.pass(packets);
        let cpu_ns = (thread_cpu_ns() - cpu) as f64;
        Part { begin, end: Instant::now(), cpu_ns, idle_ns: idle_ns as f64, lost }
    }

    /// Turns until `packets` of its own have left at their home and nobody needs it any more. Returns the time that went
    /// with turns in which nothing moved, and whether frames were lost.
    fn pass(&mut self, packets: u64) -> (u64, bool) {
        const BURST_FRAMES: u64 = BURST as u64;
        let before = self.home.sent();
        let (mut fed, mut left, mut idle_ns, mut told) = (0, 0, 0, false);
        let mut idle_since = None;
        let start = Instant::now();
        loop {
            if fed + BURST_FRAMES > left + WINDOW || fed == packets {
                left = self.home.sent() - before;
            }
            if fed < packets && fed + BURST_FRAMES <= left + WINDOW {
                self.rig.wire().allow(BURST_FRAMES);
                fed += BURST_FRAMES;
            }
            let turn = self.rig.turn();
            if let Some(since) = idle_since.take() {
                idle_ns += (turn.now - since).as_nanos().min(IDLE_NS_MAX);
            }
            if turn.moved > 0 {
                continue;
            }
            idle_since = Some(turn.now);
            if !told && left == packets {
                told = true;
                self.finished.fetch_add(1, Ordering::Relaxed);
            }
            if told && self.finished.load(Ordering::Relaxed) == self.workers {
                return (idle_ns, false);
            }
            if start.elapsed().as_secs() > 60 {
                return (idle_ns, true);
            }
        }
    }
}

fn head() -> String {
    format!(
        "{:<8} {:<6} {:>9} {:>7} {:>7} {:>7} {:>9} {:>10} {:>13} {:>14} {:>6} {:>9} {:>10}",
        "mode",
        "family",
        "flows",
        "workers",
        "one ns",
        "all ns",
        "times cpu",
        "times wall",
        "baseline cpu",
        "baseline wall",
        "share",
        "handed ns",
        "handoff ns"
    )
}

fn row(run: &Run) -> String {
    format!(
        "{:<8} {:<6} {:>9} {:>7} {:>7.1} {:>7.1} {:>9.2} {:>10.2} {:>13.2} {:>14.2} {:>6.2} {:>9.1} {:>10.1}",
        run.mode,
        run.family,
        run.flows,
        run.workers,
        run.one_ns,
        run.all_ns,
        run.times_cpu,
        run.times_wall,
        run.baseline_times_cpu,
        run.baseline_times_wall,
        run.cpu_share,
        run.handed_ns,
        run.handoff_ns
    )
}
