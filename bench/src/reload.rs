//! What a reload takes, from the file to all workers, and how long it keeps a worker from its packets. By the daemon's own
//! code; the kernel is not asked and not changed.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use shunt_control::config::Config;
use shunt_control::state::SERVERS_MAX;
use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::Mode;
use shunt_engine::Duration;
use shunt_engine::clock::Clock;

use crate::director;
use crate::loops::{Bare, Loop};
use crate::machine::{self, Machine};
use crate::pipeline::{mode, scheduler, thread_cpu_ns};
use crate::progress::Progress;
use crate::report::{hundredths, place};
use crate::rig::Rig;
use crate::world::{Plan, World, bytes_per_slot};

/// What is typed behind `reload`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// The services' forwarding mode.
    #[arg(long, value_parser = mode, default_value = "fullnat")]
    mode: Mode,
    /// Schedulers, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = scheduler, default_value = "wlc,mh")]
    schedulers: Vec<SchedulerKind>,
    /// Services.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1000))]
    services: u32,
    /// Servers of each.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    servers: u32,
    /// Workers, each on a core of its own; unless said otherwise all cores but one.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
    /// How often each change is made; the median counts, of loops the longest.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// The services' forwarding mode.
    pub mode: &'static str,
    /// Services, with so many servers each.
    pub services: u32,
    /// Servers of each.
    pub servers: u32,
    /// Workers.
    pub workers: u16,
    /// Memory that each worker has taken for each server slot before there is any server, in bytes.
    #[serde(serialize_with = "hundredths")]
    pub slot_bytes: f64,
    /// Share of the cores' time that the host gave to others while they had work.
    pub stolen: f64,
    /// What was measured.
    pub runs: Vec<Run>,
}

/// One change, in the median round. Milliseconds are wall time unless they say otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The services' scheduler.
    pub scheduler: &'static str,
    /// What is changed.
    pub change: &'static str,
    /// To read the file and understand it, or to change what is in force.
    #[serde(serialize_with = "hundredths")]
    pub read_ms: f64,
    /// The same in CPU time of the thread.
    #[serde(serialize_with = "hundredths")]
    pub read_cpu_ms: f64,
    /// To compile what workers get.
    #[serde(serialize_with = "hundredths")]
    pub compile_ms: f64,
    /// The same in CPU time of the thread.
    #[serde(serialize_with = "hundredths")]
    pub compile_cpu_ms: f64,
    /// To publish it, until all workers work with it.
    #[serde(serialize_with = "hundredths")]
    pub in_force_ms: f64,
    /// All of it.
    #[serde(serialize_with = "hundredths")]
    pub total_ms: f64,
    /// All of it, as far as it is work of this thread, in CPU time.
    #[serde(serialize_with = "hundredths")]
    pub total_cpu_ms: f64,
    /// Turns of the workers' loops from the publication on.
    pub loops: Loops,
    /// The same in as much time before anything is published.
    pub quiet: Loops,
    /// In as much time the turns of a loop on the same cores that only reads the clock: what the machine does to any loop.
    pub bare: Loops,
    /// Turns above five microseconds that are left out because the thread did not run all the while.
    pub excluded: u64,
    /// Their share of all turns above five microseconds.
    pub excluded_share: f64,
    /// How often the kernel has taken a worker's core meanwhile.
    pub switches: u64,
}

/// The longest turns of some stretches of time, one for each round.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Loops {
    /// Of all rounds, in microseconds.
    #[serde(serialize_with = "hundredths")]
    pub longest_us: f64,
    /// Of the round in which it was shortest: what comes by chance does not come in every round.
    #[serde(serialize_with = "hundredths")]
    pub least_us: f64,
    /// Turns of more than 100 microseconds, in all rounds.
    pub long: u64,
}

/// Workers are watched for so long after a change is in force: they finish what it brings piece by piece.
const WATCHED: std::time::Duration = std::time::Duration::from_millis(200);
/// For a worker to hear that it is to do something else.
const CHANGE: std::time::Duration = std::time::Duration::from_millis(5);
/// What a shorter turn is caused by nobody asks.
const LONG: Duration = Duration::from_micros(5);

/// So long no turn shall be.
const LIMIT: Duration = Duration::from_micros(100);

/// Measures and says.
///
/// # Errors
/// When there is no memory, or the configuration has more than there is room for.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cores = machine::cores();
    let machine = Machine::prepare();
    // This thread is control: it has the first core, the workers have the others, as far as there are others.
    cores.iter().take(1).copied().for_each(machine::pin);
    let workers = arguments.workers.unwrap_or(cores.len().saturating_sub(1).max(1) as u16);
    let progress = Progress::new(arguments.schedulers.len());
    let slot_bytes = bytes_per_slot()?;
    let (mut runs, before) = (Vec::new(), machine::stolen());
    for &scheduler in &arguments.schedulers {
        progress.begin(scheduler.name());
        runs.extend(measure(arguments, scheduler, workers, &cores)?);
        progress.done();
    }
    drop(progress);
    let after = machine::stolen();
    let stolen = (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64;
    let &Arguments { mode, services, servers, json, .. } = arguments;
    let report = Report { machine, mode: mode.name(), services, servers, workers, slot_bytes, stolen, runs };
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}{}", place(&report.machine), table(&report));
    }
    Ok(())
}

fn measure(
    arguments: &Arguments,
    scheduler: SchedulerKind,
    workers: u16,
    cores: &[usize],
) -> anyhow::Result<Vec<Run>> {
    let &Arguments { mode, services, servers, rounds, .. } = arguments;
    let plan = Plan { mode, scheduler, services, servers };
    let nothing_yet = Plan { services: 1, servers: 1, ..plan };
    let [one, other, nothing_yet] =
        [(plan, 1), (plan, 2), (nothing_yet, 1)].map(|(plan, weight)| File::new(&plan.file(weight)));
    let (one, other, nothing_yet) = (one?, other?, nothing_yet?);
    let (mut world, pipelines) = World::new(workers, director::capacity(0))?;
    let mut rigs = Rig::mesh(pipelines, &Clock::System)?;
    let watched = Watched::new(workers);
    std::thread::scope(|scope| {
        for (rig, number) in rigs.iter_mut().zip(0..) {
            let (watched, core) = (&watched, cores.get((number + 1) % cores.len().max(1)).copied());
            scope.spawn(move || {
                core.into_iter().for_each(machine::pin);
                watched.turn(rig, number);
            });
        }
        let measured = ["everything", "nothing", "one server, file", "one server, edit"].map(|change| {
            let rounds = (0..rounds).map(|round| {
                if change == "everything" {
                    Round::of(&mut world, |world| world.read(&nothing_yet.path), &watched)?;
                }
                let weight = 1 + u32::from(round % 2 == 0);
                match change {
                    "one server, edit" => Round::of(&mut world, |world| Ok(world.edit(weight)), &watched),
                    "one server, file" if weight == 2 => {
                        Round::of(&mut world, |world| world.read(&other.path), &watched)
                    }
                    _ => Round::of(&mut world, |world| world.read(&one.path), &watched),
                }
            });
            Ok(Round::run(rounds.collect::<anyhow::Result<_>>()?, scheduler, change))
        });
        watched.stage.store(Stage::STOP, Ordering::Relaxed);
        measured.into_iter().collect()
    })
}

/// A configuration file, for as long as this lives.
struct File {
    path: PathBuf,
}

impl File {
    fn new(text: &str) -> std::io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("shunt-bench-{}-{number}.toml", std::process::id()));
        std::fs::write(&path, text)?;
        Ok(Self { path })
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Nothing can be done about it, and nothing is wrong with the figures.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What the workers' threads do.
struct Stage;

impl Stage {
    const WORK: u8 = 0;
    const BARE: u8 = 1;
    const STOP: u8 = 2;
}

/// What the workers' threads have seen since somebody asked.
#[derive(Debug)]
struct Watched {
    stage: AtomicU8,
    longest_ns: AtomicU64,
    long: AtomicU64,
    /// Turns that took longer than what nobody asks about, and those of them that are left out.
    asked: AtomicU64,
    excluded: AtomicU64,
    threads: Vec<AtomicI32>,
}

/// What has been seen in a stretch of time.
#[derive(Clone, Copy, Debug)]
struct Seen {
    longest_us: f64,
    long: u64,
    asked: u64,
    excluded: u64,
    switches: u64,
}

impl Watched {
    fn new(workers: u16) -> Self {
        let count = || AtomicU64::new(0);
        Self {
            stage: AtomicU8::new(Stage::WORK),
            longest_ns: count(),
            long: count(),
            asked: count(),
            excluded: count(),
            threads: (0..workers).map(|_| AtomicI32::new(0)).collect(),
        }
    }

    /// Turns a worker without packets, or nothing at all, until it is to stop.
    fn turn(&self, rig: &mut Rig<Pipeline>, number: usize) {
        self.threads[number].store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        loop {
            let mut turns = Loop::new(rig, f64::INFINITY);
            while self.stage.load(Ordering::Relaxed) == Stage::WORK {
                let turned = turns.turn();
                self.note(turned.took, turned.ran);
            }
            let mut bare = Bare::new();
            while self.stage.load(Ordering::Relaxed) == Stage::BARE {
                let (took, ran) = bare.turn();
                self.note(took, ran);
            }
            if self.stage.load(Ordering::Relaxed) == Stage::STOP {
                return;
            }
        }
    }

    #[inline]
    fn note(&self, took: Duration, ran: bool) {
        if took < LONG {
            return;
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        if !ran {
            self.excluded.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.longest_ns.fetch_max(took.as_nanos(), Ordering::Relaxed);
        if took > LIMIT {
            self.long.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn switches(&self) -> u64 {
        self.threads.iter().map(|thread| machine::switches(thread.load(Ordering::Relaxed))).sum()
    }

    /// What is seen while `what` is done and for some time after it.
    fn during<T>(&self, what: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Seen)> {
        let before = self.switches();
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        _ = [&self.longest_ns, &self.long, &self.asked, &self.excluded].map(take);
        let done = what()?;
        std::thread::sleep(WATCHED);
        let [longest_ns, long, asked, excluded] =
            [&self.longest_ns, &self.long, &self.asked, &self.excluded].map(take);
        let switches = self.switches() - before;
        Ok((done, Seen { longest_us: longest_ns as f64 / 1e3, long, asked, excluded, switches }))
    }
}

/// One reload.
#[derive(Clone, Copy, Debug)]
struct Round {
    read_ms: f64,
    read_cpu_ms: f64,
    compile_ms: f64,
    compile_cpu_ms: f64,
    in_force_ms: f64,
    /// While the loop is bare, while workers have nothing to do, while they reload.
    seen: [Seen; 3],
}

impl Round {
    fn of(
        world: &mut World,
        config: impl FnOnce(&mut World) -> anyhow::Result<Config>,
        watched: &Watched,
    ) -> anyhow::Result<Self> {
        let stretch = |stage| {
            watched.stage.store(stage, Ordering::Relaxed);
            // So that no turn is of both.
            std::thread::sleep(CHANGE);
            watched.during(|| Ok(()))
        };
        let bare = stretch(Stage::BARE)?.1;
        let quiet = stretch(Stage::WORK)?.1;
        let millis = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
        let cpu_millis = |since: u64| (thread_cpu_ns() - since) as f64 / 1e6;
        let (start, cpu) = (Instant::now(), thread_cpu_ns());
        let config = config(world)?;
        let (read_ms, read_cpu_ms) = (millis(start), cpu_millis(cpu));
        let (start, cpu) = (Instant::now(), thread_cpu_ns());
        let compiled = world.compile(config)?;
        let (compile_ms, compile_cpu_ms) = (millis(start), cpu_millis(cpu));
        let (in_force_ms, reload) = watched.during(|| {
            let start = Instant::now();
            let generation = world.publish(compiled);
            while !world.is_in_force(generation) {
                std::thread::yield_now();
            }
            Ok(millis(start))
        })?;
        world.reclaim();
        let seen = [bare, quiet, reload];
        Ok(Self { read_ms, read_cpu_ms, compile_ms, compile_cpu_ms, in_force_ms, seen })
    }

    fn run(rounds: Vec<Self>, scheduler: SchedulerKind, change: &'static str) -> Run {
        let median = |figure: fn(&Self) -> f64| {
            let mut figures: Vec<_> = rounds.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures[rounds.len() / 2]
        };
        let sum = |figure: fn(&Seen) -> u64| rounds.iter().map(|round| figure(&round.seen[2])).sum::<u64>();
        let loops = |stretch: usize| {
            let longest = || rounds.iter().map(|round| round.seen[stretch].longest_us);
            Loops {
                longest_us: longest().fold(0.0, f64::max),
                least_us: longest().fold(f64::INFINITY, f64::min),
                long: rounds.iter().map(|round| round.seen[stretch].long).sum(),
            }
        };
        Run {
            scheduler: scheduler.name(),
            change,
            read_ms: median(|round| round.read_ms),
            read_cpu_ms: median(|round| round.read_cpu_ms),
            compile_ms: median(|round| round.compile_ms),
            compile_cpu_ms: median(|round| round.compile_cpu_ms),
            in_force_ms: median(|round| round.in_force_ms),
            total_ms: median(|round| round.read_ms + round.compile_ms + round.in_force_ms),
            total_cpu_ms: median(|round| round.read_cpu_ms + round.compile_cpu_ms),
            bare: loops(0),
            quiet: loops(1),
            loops: loops(2),
            excluded: sum(|seen| seen.excluded),
            excluded_share: sum(|seen| seen.excluded) as f64 / sum(|seen| seen.asked).max(1) as f64,
            switches: sum(|seen| seen.switches),
        }
    }
}

fn table(report: &Report) -> String {
    let mut out = format!(
        "{}, {} services with {} servers each, {} workers; {:.0} bytes per worker and server slot at start, {:.1} MiB for all\n\
         {:.2} % of the machine's time went to others on the same host. Milliseconds:\n\
         {:<9} {:<16} {:>8} {:>8} {:>10} {:>8} {:>11} {:>9} {:>8}\n",
        report.mode,
        report.services,
        report.servers,
        report.workers,
        report.slot_bytes,
        report.slot_bytes * SERVERS_MAX as f64 / f64::from(1 << 20),
        100.0 * report.stolen,
        "scheduler",
        "change",
        "read",
        "cpu",
        "compile",
        "cpu",
        "in force",
        "total",
        "cpu"
    );
    for run in &report.runs {
        out += &format!(
            "{:<9} {:<16} {:>8.1} {:>8.1} {:>10.1} {:>8.1} {:>11.2} {:>9.1} {:>8.1}\n",
            run.scheduler,
            run.change,
            run.read_ms,
            run.read_cpu_ms,
            run.compile_ms,
            run.compile_cpu_ms,
            run.in_force_ms,
            run.total_ms,
            run.total_cpu_ms
        );
    }
    out += &format!(
        "Longest turns in microseconds, of all rounds, of the best, and how many above 100:\n\
         {:<9} {:<16} {:>24} {:>24} {:>24} {:>9} {:>8}\n",
        "scheduler", "change", "reload", "no reload", "no worker", "excluded", "switches"
    );
    for run in &report.runs {
        let loops =
            |loops: Loops| format!("{:.1} {:>7.1} {:>5}", loops.longest_us, loops.least_us, loops.long);
        out += &format!(
            "{:<9} {:<16} {:>24} {:>24} {:>24} {:>8.2}% {:>8}\n",
            run.scheduler,
            run.change,
            loops(run.loops),
            loops(run.quiet),
            loops(run.bare),
            100.0 * run.excluded_share,
            run.switches
        );
    }
    out.trim_end().to_owned()
}
