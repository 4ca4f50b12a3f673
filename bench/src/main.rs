//! `shunt-bench`: arguments → benchmark.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use shunt_bench::connect;
use shunt_bench::count::Case;
use shunt_bench::machine::Machine;
use shunt_bench::pipeline::{self, Effort, Version, mode, scheduler};
use shunt_bench::progress::Progress;
use shunt_bench::report::{self, Report, TableReport};
use shunt_bench::size::Size;
use shunt_bench::{gate, latency, reload, scale, schedule, table};
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::Mode;

/// Benchmarks of shunt's packet path.
#[derive(Debug, Parser)]
#[command(name = "shunt-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// CPU time per packet of established flows: the real worker loop and pipeline over an in-memory port, one core.
    Pipeline(Pipeline),
    /// CPU time per new connection, its end included: the real worker loop and pipeline over an in-memory port, one core.
    Connect(Connect),
    /// Memory per connection, and what finding, adding and removing one costs, beside hashbrown in the same run.
    Table(Table),
    /// What another core brings, and what a packet costs that arrives at the wrong one.
    Scale(scale::Arguments),
    /// How long a packet is in the worker, by load, and while the configuration is replaced again and again.
    Latency(latency::Arguments),
    /// What a reload takes, and how long it keeps a worker from its packets.
    Reload(reload::Arguments),
    /// CPU time per pick of each scheduler, beside taking one server after the other in the same run.
    Schedule(Schedule),
    /// Instructions per packet of the hot paths, counted by valgrind, beside the accepted ones.
    Count(Count),
}

#[derive(Debug, Args)]
struct Count {
    /// Print one JSON object instead of a table, and judge nothing.
    #[arg(long)]
    json: bool,
    /// Write what is counted into the file of accepted figures.
    #[arg(long)]
    accept: bool,
    /// The file of accepted figures.
    #[arg(long, default_value = "bench/instructions.toml")]
    accepted: PathBuf,
    /// Have the packets of one case pass here and now, uncounted: what valgrind is to run.
    #[arg(long, conflicts_with_all = ["json", "accept", "accepted"])]
    case: Option<Case>,
    /// How often that many packets.
    #[arg(long, default_value_t = 1, requires = "case", value_parser = clap::value_parser!(u64).range(1..=2))]
    times: u64,
}

#[derive(Debug, Args)]
struct Connect {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Forwarding modes, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = mode, default_value = "fullnat")]
    modes: Vec<Mode>,
    /// Schedulers, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = scheduler, default_value = "wlc")]
    schedulers: Vec<SchedulerKind>,
    /// Numbers of servers, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "100",
        value_parser = clap::value_parser!(u16).range(1..=4096))]
    servers: Vec<u16>,
    /// Connections open at a time.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..=10_000_000))]
    open: u32,
    /// Connections per round.
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    connections: u64,
    /// Rounds per run, pipeline and baseline in turns; the best counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// A few seconds' worth that shows that it works, not how fast.
    #[arg(long, conflicts_with_all = ["open", "connections", "rounds"])]
    quick: bool,
}

#[derive(Debug, Args)]
struct Schedule {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Numbers of servers, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000",
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    servers: Vec<u32>,
    /// Picks per round.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    picks: u32,
    /// Rounds, scheduler and baseline in turns; the best counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
}

#[derive(Debug, Args)]
struct Table {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Numbers of connections, separated by commas. The table is full with them.
    #[arg(long, value_delimiter = ',', default_value = "10000,1000000",
        value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    connections: Vec<u32>,
    /// Rounds, both in turns; the best counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
}

#[derive(Debug, Args)]
struct Pipeline {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Forwarding modes, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = mode, default_value = "fullnat,nat,dr,tun")]
    modes: Vec<Mode>,
    /// IP versions, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "ipv4")]
    families: Vec<Version>,
    /// Lengths of frames in bytes, from 64 to 1500, or `imix` (7 of 64 bytes, 4 of 576, 1 of 1500), separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "64")]
    frames: Vec<Size>,
    /// Numbers of established connections, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1,10000,100000,1000000",
        value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    flows: Vec<u32>,
    /// Packets per round.
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    packets: u64,
    /// Rounds per run, pipeline and baseline in turns; the best counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// A few seconds' worth that shows that it works, not how fast.
    #[arg(long, conflicts_with_all = ["flows", "packets", "rounds"])]
    quick: bool,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Pipeline(arguments) => pipeline(arguments),
        Command::Connect(arguments) => connect(arguments),
        Command::Table(arguments) => table(arguments),
        Command::Schedule(arguments) => schedule(arguments),
        Command::Scale(arguments) => scale::run(&arguments),
        Command::Latency(arguments) => latency::run(&arguments),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::Count(arguments) => count(arguments),
    }
}

fn table(arguments: Table) -> anyhow::Result<()> {
    let Table { json, connections, rounds } = arguments;
    let machine = Machine::prepare();
    if !json {
        println!("{}", report::table_head(&machine));
    }
    let mut runs = Vec::with_capacity(2 * connections.len());
    for connections in connections {
        for run in table::measure(connections, rounds)? {
            if !json {
                println!("{}", report::table_rows(&run));
            }
            runs.push(run);
        }
    }
    if json {
        println!("{}", serde_json::to_string(&TableReport { machine, runs })?);
    }
    Ok(())
}

fn pipeline(arguments: Pipeline) -> anyhow::Result<()> {
    let Pipeline { json, modes, families, frames, mut flows, packets, rounds, quick } = arguments;
    let mut effort = Effort { rounds, packets };
    if quick {
        flows = vec![1, 10_000];
        effort = Effort { rounds: 3, packets: 100_000 };
    }
    let mut cases = Vec::new();
    for &mode in &modes {
        for &version in &families {
            for &size in &frames {
                cases.extend(flows.iter().map(|&flows| pipeline::Case { mode, version, flows, size }));
            }
        }
    }
    let machine = Machine::prepare();
    if !json {
        println!("{}", report::head(&machine));
    }
    let progress = Progress::new(cases.len());
    let mut runs = Vec::with_capacity(cases.len());
    for case in cases {
        progress.begin(&format!("{}, {} flows", case.mode.name(), case.flows));
        let run = pipeline::measure(case, effort)?;
        if !json {
            progress.say(&report::row(&run));
        }
        progress.done();
        runs.push(run);
    }
    if json {
        println!("{}", serde_json::to_string(&Report { machine, runs })?);
    }
    Ok(())
}

fn connect(arguments: Connect) -> anyhow::Result<()> {
    let Connect { json, modes, schedulers, servers, mut open, mut connections, mut rounds, quick } =
        arguments;
    if quick {
        (open, connections, rounds) = (20_000, 100_000, 2);
    }
    let machine = Machine::prepare();
    if !json {
        println!("{}{}", report::place(&machine), connect::head());
    }
    let mut runs = Vec::new();
    for &mode in &modes {
        for &scheduler in &schedulers {
            for &servers in &servers {
                eprintln!("{}: {} over {servers} servers …", mode.name(), scheduler.name());
                let setup = connect::Setup { mode, scheduler, servers, open };
                let run = connect::measure(setup, rounds, connections)?;
                if !json {
                    println!("{}", connect::row(&run));
                }
                runs.push(run);
            }
        }
    }
    if json {
        println!("{}", serde_json::to_string(&connect::Report { machine, runs })?);
    } else if let Some(run) = runs.first() {
        println!("\n{}", connect::foot(run));
    }
    Ok(())
}

fn schedule(arguments: Schedule) -> anyhow::Result<()> {
    let machine = Machine::prepare();
    let mut runs = Vec::new();
    if !arguments.json {
        println!("{}", schedule::head());
    }
    for kind in SchedulerKind::ALL {
        for &servers in &arguments.servers {
            let run = schedule::measure(kind, servers, arguments.picks, arguments.rounds)?;
            if !arguments.json {
                println!("{}", schedule::row(&run));
            }
            runs.push(run);
        }
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&schedule::Report { machine, runs })?);
    }
    Ok(())
}

fn count(arguments: Count) -> anyhow::Result<()> {
    let Count { json, accept, accepted, case, times } = arguments;
    if let Some(case) = case {
        return case.run(times);
    }
    let progress = Progress::new(Case::all().len());
    let counted = gate::count(|case| {
        progress.begin(case);
        progress.done();
    })?;
    drop(progress);
    if accept {
        gate::accept(&accepted, &counted)?;
    }
    if json {
        println!("{}", serde_json::to_string(&counted)?);
        return Ok(());
    }
    let (table, verdict) = gate::judge(&counted, &gate::accepted(&accepted)?);
    print!("{table}");
    verdict
}
