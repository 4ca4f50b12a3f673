//! What a reload takes, from the file to all workers, and how long it keeps a worker from its packets. By the daemon's own
//! code; the kernel is not asked and not changed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use shunt_control::config::Config;
use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::Mode;
use shunt_engine::Duration;
use shunt_engine::clock::Clock;

use crate::director;
use crate::loops::Loop;
use crate::machine::{self, Machine};
use crate::pipeline::{mode, scheduler, thread_cpu_ns};
use crate::progress::Progress;
use crate::report::{hundredths, place};
use crate::rig::Rig;
use crate::world::{Plan, World};

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
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
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
    /// To read the file and understand it.
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
    /// The longest turn of any worker's loop from the publication on, in microseconds.
    #[serde(serialize_with = "hundredths")]
    pub loop_us: f64,
    /// The same in as much time before anything is published: what the machine does by itself.
    #[serde(serialize_with = "hundredths")]
    pub quiet_loop_us: f64,
    /// Share of turns above five microseconds that are left out because the thread did not run all the while.
    pub excluded: f64,
}

/// Workers are watched for so long after a change is in force: they finish what it brings piece by piece.
const WATCHED: std::time::Duration = std::time::Duration::from_millis(200);
/// What a shorter turn is caused by nobody asks.
const LONG: Duration = Duration::from_micros(5);

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
    let mut runs = Vec::new();
    for &scheduler in &arguments.schedulers {
        progress.begin(scheduler.name());
        runs.extend(measure(arguments, scheduler, workers, &cores)?);
        progress.done();
    }
    drop(progress);
    let &Arguments { mode, services, servers, json, .. } = arguments;
    let report = Report { machine, mode: mode.name(), services, servers, workers, runs };
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
    let (one, other) = (plan.file(1), plan.file(2));
    let nothing_yet = Plan { services: 1, servers: 1, ..plan }.file(1);
    let (mut world, pipelines) = World::new(workers, director::capacity(0))?;
    let mut rigs = Rig::mesh(pipelines, &Clock::System)?;
    let watched = Watched::default();
    std::thread::scope(|scope| {
        for (rig, number) in rigs.iter_mut().zip(1..) {
            let (watched, core) = (&watched, cores.get(number % cores.len().max(1)).copied());
            scope.spawn(move || {
                core.into_iter().for_each(machine::pin);
                watched.turn(rig);
            });
        }
        let measured = ["everything", "nothing", "one server"].map(|change| {
            let rounds = (0..rounds).map(|round| {
                if change == "everything" {
                    Round::of(&mut world, &nothing_yet, &watched)?;
                }
                let text = if change == "one server" && round % 2 == 0 { &other } else { &one };
                Round::of(&mut world, text, &watched)
            });
            Ok(Round::run(rounds.collect::<anyhow::Result<_>>()?, scheduler, change))
        });
        watched.stop.store(true, Ordering::Relaxed);
        measured.into_iter().collect()
    })
}

/// What the workers' threads have seen since somebody asked.
#[derive(Debug, Default)]
struct Watched {
    longest_ns: AtomicU64,
    long: AtomicU64,
    excluded: AtomicU64,
    stop: AtomicBool,
}

impl Watched {
    /// Turns a worker without packets until it is to stop.
    fn turn(&self, rig: &mut Rig<Pipeline>) {
        let mut turns = Loop::new(rig, f64::INFINITY);
        while !self.stop.load(Ordering::Relaxed) {
            let turned = turns.turn();
            if turned.took < LONG {
                continue;
            }
            self.long.fetch_add(1, Ordering::Relaxed);
            match turned.ran {
                true => _ = self.longest_ns.fetch_max(turned.took.as_nanos(), Ordering::Relaxed),
                false => _ = self.excluded.fetch_add(1, Ordering::Relaxed),
            }
        }
    }

    /// The longest turn since this was asked last.
    fn take_longest_us(&self) -> f64 {
        self.longest_ns.swap(0, Ordering::Relaxed) as f64 / 1e3
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
    loop_us: f64,
    quiet_loop_us: f64,
    excluded: f64,
}

impl Round {
    fn of(world: &mut World, text: &str, watched: &Watched) -> anyhow::Result<Self> {
        let millis = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
        watched.take_longest_us();
        std::thread::sleep(WATCHED);
        let quiet_loop_us = watched.take_longest_us();
        let cpu_millis = |since: u64| (thread_cpu_ns() - since) as f64 / 1e6;
        let (start, cpu) = (Instant::now(), thread_cpu_ns());
        let config = Config::parse("reload", text, false)?.config;
        let (read_ms, read_cpu_ms) = (millis(start), cpu_millis(cpu));
        let (start, cpu) = (Instant::now(), thread_cpu_ns());
        let compiled = world.compile(&config)?;
        let (compile_ms, compile_cpu_ms) = (millis(start), cpu_millis(cpu));
        watched.take_longest_us();
        let counts = || [&watched.excluded, &watched.long].map(|count| count.load(Ordering::Relaxed));
        let (start, [excluded, long]) = (Instant::now(), counts());
        let generation = world.publish(compiled);
        while !world.is_in_force(generation) {
            std::thread::yield_now();
        }
        let in_force_ms = millis(start);
        std::thread::sleep(WATCHED);
        let loop_us = watched.take_longest_us();
        let [excluded, long] = [counts()[0] - excluded, counts()[1] - long];
        world.reclaim();
        let excluded = excluded as f64 / long.max(1) as f64;
        Ok(Self {
            read_ms,
            read_cpu_ms,
            compile_ms,
            compile_cpu_ms,
            in_force_ms,
            loop_us,
            quiet_loop_us,
            excluded,
        })
    }

    fn run(rounds: Vec<Self>, scheduler: SchedulerKind, change: &'static str) -> Run {
        let sorted = |figure: fn(&Self) -> f64| {
            let mut figures: Vec<_> = rounds.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures
        };
        let median = |figure| sorted(figure)[rounds.len() / 2];
        let longest = |figure| sorted(figure)[rounds.len() - 1];
        Run {
            scheduler: scheduler.name(),
            change,
            read_ms: median(|round| round.read_ms),
            read_cpu_ms: median(|round| round.read_cpu_ms),
            compile_ms: median(|round| round.compile_ms),
            compile_cpu_ms: median(|round| round.compile_cpu_ms),
            in_force_ms: median(|round| round.in_force_ms),
            total_ms: median(|round| round.read_ms + round.compile_ms + round.in_force_ms),
            loop_us: longest(|round| round.loop_us),
            quiet_loop_us: longest(|round| round.quiet_loop_us),
            excluded: sorted(|round| round.excluded).iter().sum::<f64>() / rounds.len() as f64,
        }
    }
}

fn table(report: &Report) -> String {
    let mut out = format!(
        "{}, {} services with {} servers each, {} workers\n{:<9} {:<12} {:>8} {:>8} {:>10} {:>8} {:>11} {:>9} {:>8} {:>13} {:>9}\n",
        report.mode,
        report.services,
        report.servers,
        report.workers,
        "scheduler",
        "change",
        "read ms",
        "cpu ms",
        "compile ms",
        "cpu ms",
        "in force ms",
        "total ms",
        "loop us",
        "quiet loop us",
        "excluded"
    );
    for run in &report.runs {
        out += &format!(
            "{:<9} {:<12} {:>8.1} {:>8.1} {:>10.1} {:>8.1} {:>11.2} {:>9.1} {:>8.1} {:>13.1} {:>8.2}%\n",
            run.scheduler,
            run.change,
            run.read_ms,
            run.read_cpu_ms,
            run.compile_ms,
            run.compile_cpu_ms,
            run.in_force_ms,
            run.total_ms,
            run.loop_us,
            run.quiet_loop_us,
            100.0 * run.excluded
        );
    }
    out.trim_end().to_owned()
}
