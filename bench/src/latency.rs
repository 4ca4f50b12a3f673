//! How long a packet is in the worker, by load; and while a configuration is replaced again and again.
//!
//! A packet's time begins with the turn of the loop that receives it and ends with the end of that turn, by when it has
//! been sent. What it waited for the turn to begin is told beside it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::ensure;
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use shunt_control::config::Config;
use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::V4;
use shunt_engine::Duration;
use shunt_engine::clock::Clock;

use crate::loops::Loop;
use crate::machine::{self, Machine};
use crate::pipeline::mode;
use crate::progress::Progress;
use crate::report::{hundredths, place};
use crate::rig::Rig;
use crate::size::Size;
use crate::world::{Plan, World};
use crate::{connections, director};

/// What is typed behind `latency`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// The forwarding mode.
    #[arg(long, value_parser = mode, default_value = "fullnat")]
    mode: Mode,
    /// Loads in percent of the highest rate, which is measured first, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "10,50,80,95", value_parser = clap::value_parser!(u8).range(1..=95))]
    loads: Vec<u8>,
    /// Established connections.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    flows: u32,
    /// Services, all of which every reload is about.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1000))]
    services: u32,
    /// Servers of each.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    servers: u32,
    /// Milliseconds per load.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    millis: u64,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// The forwarding mode.
    pub mode: &'static str,
    /// Established connections.
    pub flows: u32,
    /// Services, with so many servers each.
    pub services: u32,
    /// Servers of each.
    pub servers: u32,
    /// The highest rate, by the time in which the thread ran.
    #[serde(serialize_with = "hundredths")]
    pub mpps_max: f64,
    /// What was measured.
    pub runs: Vec<Run>,
}

/// One load.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// In percent of the highest rate.
    pub load: u8,
    /// Whether the configuration was replaced meanwhile, and how often.
    pub reloads: Option<u64>,
    /// What was offered, and taken.
    #[serde(serialize_with = "hundredths")]
    pub mpps: f64,
    /// Packets that count.
    pub packets: u64,
    /// Nanoseconds in the worker.
    pub residence: Quantiles,
    /// Nanoseconds from the arrival, the wait for the worker's next turn included.
    pub with_wait: Quantiles,
    /// Share of packets left out because the thread did not run all the while.
    pub excluded: f64,
}

/// Nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Quantiles {
    /// So long or less: half of the packets.
    pub p50: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1000.
    pub p999: u64,
    /// All.
    pub max: u64,
}

/// Measures and says.
///
/// # Errors
/// When there is no memory, or packets were lost.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cores = machine::cores();
    let machine = Machine::prepare();
    let bench = Bench::open(arguments)?;
    let report = bench.measure(arguments, &cores, machine)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}{}", place(&report.machine), table(&report));
    }
    Ok(())
}

/// A worker under load, and what becomes of its packets.
struct Bench {
    rig: Rig<Pipeline>,
    world: World,
    configs: [Config; 2],
}

impl Bench {
    fn open(arguments: &Arguments) -> anyhow::Result<Self> {
        let &Arguments { mode, flows, services, servers, .. } = arguments;
        let plan = Plan { mode, scheduler: SchedulerKind::Wlc, services, servers };
        // What a reload changes is the weight of one server.
        let config = |weight| anyhow::Ok(Config::parse("latency", &plan.file(weight), false)?.config);
        let (one, mut other) = (config(1)?, config(2)?);
        other.share(&one);
        let configs = [one, other];
        let (mut world, mut pipelines) = World::new(1, director::capacity(flows))?;
        let compiled = world.compile(configs[0].clone())?;
        world.publish(compiled);
        let mut rig = Rig::new(pipelines.remove(0), Clock::System)?;
        let connections = connections::open::<V4>(&mut rig, mode, 0..flows)?;
        rig.wire().feed(connections.data(Size::Bytes(64)));
        Ok(Self { rig, world, configs })
    }

    fn measure(mut self, arguments: &Arguments, cores: &[usize], machine: Machine) -> anyhow::Result<Report> {
        let &Arguments { mode, flows, services, servers, millis, .. } = arguments;
        let progress = Progress::new(arguments.loads.len() + 2);
        progress.begin("the highest rate");
        let fastest_ns = self.pass(0.0, millis)?.ns_per_packet();
        progress.done();
        let mut runs = Vec::new();
        for &load in &arguments.loads {
            progress.begin(&format!("{load} %"));
            let interval_ns = fastest_ns * 100.0 / f64::from(load);
            runs.push(self.pass(interval_ns, millis)?.run(load, None, interval_ns));
            progress.done();
        }
        progress.begin("50 %, with reloads");
        let interval_ns = fastest_ns * 2.0;
        let (pass, reloads) = self.pass_with_reloads(interval_ns, millis, cores)?;
        runs.push(pass.run(50, Some(reloads), interval_ns));
        progress.done();
        Ok(Report { machine, mode: mode.name(), flows, services, servers, mpps_max: 1e3 / fastest_ns, runs })
    }

    fn pass(&mut self, interval_ns: f64, millis: u64) -> anyhow::Result<Pass> {
        pass(&mut self.rig, interval_ns, millis)
    }

    /// The same while another thread, on another core if there is one, compiles and publishes.
    fn pass_with_reloads(
        &mut self,
        interval_ns: f64,
        millis: u64,
        cores: &[usize],
    ) -> anyhow::Result<(Pass, u64)> {
        let Self { rig, world, configs } = self;
        let (stop, reloads) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let control = scope.spawn(|| -> anyhow::Result<()> {
                cores.iter().take(1).copied().for_each(machine::pin);
                for config in configs.iter().rev().cycle() {
                    let compiled = world.compile(config.clone())?;
                    let generation = world.publish(compiled);
                    while !world.is_in_force(generation) {
                        if stop.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        std::thread::yield_now();
                    }
                    world.reclaim();
                    reloads.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
            let passed = pass(rig, interval_ns, millis);
            stop.store(true, Ordering::Relaxed);
            // It waits for the worker, which turns no more: the last generation need not come into force.
            control.join().expect("control does not panic")?;
            Ok((passed?, reloads.load(Ordering::Relaxed)))
        })
    }
}

/// What happened to the packets of a load.
struct Pass {
    residence: Histogram<u64>,
    with_wait: Histogram<u64>,
    ran_ns: u64,
    excluded: u64,
}

fn pass(rig: &mut Rig<Pipeline>, interval_ns: f64, millis: u64) -> anyhow::Result<Pass> {
    // Three digits are more than the clock gives.
    let histogram = || Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3);
    let mut pass = Pass { residence: histogram()?, with_wait: histogram()?, ran_ns: 0, excluded: 0 };
    let before = rig.wire().sent();
    let now = Clock::System.now();
    let (warm, end) =
        (now + Duration::from_millis(millis / 8), now + Duration::from_millis(millis + millis / 8));
    let mut turns = Loop::new(rig, interval_ns);
    let mut offered = 0;
    loop {
        let turned = turns.turn();
        offered += turned.packets;
        if turned.end >= end {
            break;
        }
        if turned.end < warm {
            continue;
        }
        if !turned.ran {
            pass.excluded += turned.packets;
            continue;
        }
        pass.ran_ns += turned.took.as_nanos();
        if turned.packets > 0 {
            pass.residence.saturating_record_n(turned.took.as_nanos(), turned.packets);
            for number in 0..turned.packets {
                let later = (number as f64 * interval_ns) as u64;
                let waited = turned.waited.as_nanos().saturating_sub(later);
                pass.with_wait.saturating_record(turned.took.as_nanos() + waited);
            }
        }
    }
    let sent = rig.wire().sent() - before;
    ensure!(sent == offered, "{sent} of {offered} packets were forwarded");
    ensure!(!pass.residence.is_empty(), "no packet passed while the thread ran");
    Ok(pass)
}

impl Pass {
    fn ns_per_packet(&self) -> f64 {
        self.ran_ns as f64 / self.residence.len() as f64
    }

    fn run(&self, load: u8, reloads: Option<u64>, interval_ns: f64) -> Run {
        let packets = self.residence.len();
        Run {
            load,
            reloads,
            mpps: 1e3 / interval_ns,
            packets,
            residence: Quantiles::of(&self.residence),
            with_wait: Quantiles::of(&self.with_wait),
            excluded: self.excluded as f64 / (self.excluded + packets) as f64,
        }
    }
}

impl Quantiles {
    fn of(histogram: &Histogram<u64>) -> Self {
        let quantile = |quantile| histogram.value_at_quantile(quantile);
        Self { p50: quantile(0.5), p99: quantile(0.99), p999: quantile(0.999), max: histogram.max() }
    }
}

fn table(report: &Report) -> String {
    let mut out = format!(
        "{}, {} flows, {} services with {} servers each; at most {:.2} Mpps. Microseconds in the worker, and from the arrival:\n\
         {:<14} {:>6} {:>8} {:>8} {:>8} {:>8} {:>10} {:>8} {:>8} {:>8} {:>9}\n",
        report.mode,
        report.flows,
        report.services,
        report.servers,
        report.mpps_max,
        "load",
        "Mpps",
        "p50",
        "p99",
        "p99.9",
        "max",
        "wait: p50",
        "p99",
        "p99.9",
        "max",
        "excluded"
    );
    for run in &report.runs {
        let load = match run.reloads {
            Some(reloads) => format!("{}%, {reloads} reloads", run.load),
            None => format!("{}%", run.load),
        };
        let us = |ns: u64| ns as f64 / 1e3;
        let (Quantiles { p50, p99, p999, max }, wait) = (run.residence, run.with_wait);
        out += &format!(
            "{load:<14} {:>6.2} {:>8.2} {:>8.2} {:>8.2} {:>8.1} {:>10.2} {:>8.2} {:>8.2} {:>8.1} {:>8.2}%\n",
            run.mpps,
            us(p50),
            us(p99),
            us(p999),
            us(max),
            us(wait.p50),
            us(wait.p99),
            us(wait.p999),
            us(wait.max),
            100.0 * run.excluded
        );
    }
    out.trim_end().to_owned()
}
