//! What one packet of an established flow costs: the pipeline next to the baseline, in turns.

use std::time::Instant;

use anyhow::ensure;
use rustix::time::{ClockId, clock_gettime};
use shunt_dataplane::counters::{self, Event};
use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{V4, V6};
use shunt_dataplane::verdict::DropReason;
use shunt_engine::clock::Clock;
use shunt_engine::{BURST, Program};

use crate::baseline::SwapMacs;
use crate::family::Family;
use crate::report::Run;
use crate::rig::Rig;
use crate::size::Size;
use crate::wire::ROTATION;
use crate::{connections, director, machine};

/// An IP version, as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Version {
    Ipv4,
    Ipv6,
}

/// The forwarding mode called `word`.
///
/// # Errors
/// With the names there are.
pub fn mode(word: &str) -> Result<Mode, String> {
    let names = || Mode::ALL.map(Mode::name).join(", ");
    Mode::ALL
        .into_iter()
        .find(|mode| mode.name() == word)
        .ok_or_else(|| format!("no such forwarding mode; there are {}", names()))
}

/// The scheduler called `word`.
///
/// # Errors
/// With the names there are.
pub fn scheduler(word: &str) -> Result<SchedulerKind, String> {
    let names = || SchedulerKind::ALL.map(SchedulerKind::name).join(", ");
    SchedulerKind::ALL
        .into_iter()
        .find(|kind| kind.name() == word)
        .ok_or_else(|| format!("no such scheduler; there are {}", names()))
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The forwarding mode.
    pub mode: Mode,
    /// The IP version.
    pub version: Version,
    /// Established connections.
    pub flows: u32,
    /// How long frames are.
    pub size: Size,
}

/// How long is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of pipeline and baseline.
    pub rounds: u32,
    /// Packets per round and program, rounded up to full bursts.
    pub packets: u64,
}

/// Share of a round's packets that pass before it is measured, so that each program finds the cache as it left it.
const WARM_UP: u64 = 8;

/// Measures one case.
///
/// # Errors
/// When there is no memory, or a packet was not forwarded: figures of a run that drops say nothing.
pub fn measure(case: Case, effort: Effort) -> anyhow::Result<Run> {
    match case.version {
        Version::Ipv4 => measure_in::<V4>(case, effort),
        Version::Ipv6 => measure_in::<V6>(case, effort),
    }
}

fn measure_in<A: Family>(case: Case, effort: Effort) -> anyhow::Result<Run> {
    let Case { mode, flows, size, .. } = case;
    let capacity = director::capacity(flows);
    let mut measured = Rig::new(director::pipeline::<A>(&[mode], capacity)?, Clock::System)?;
    let mut baseline = Rig::new(SwapMacs, Clock::System)?;
    let connections = connections::open::<A>(&mut measured, mode, 0..flows)?;
    let data = connections.data(size);
    let reply_share = connections.reply_share();
    drop(connections);
    let frame_bytes = data.bytes_mean();
    measured.wire().feed(data.clone());
    baseline.wire().feed(data);
    let opened = counts(&mut measured);
    let packets = effort.packets.next_multiple_of(BURST as u64);
    let rounds: Vec<_> =
        (0..effort.rounds).map(|_| (round(&mut measured, packets), round(&mut baseline, packets))).collect();
    let total = u64::from(effort.rounds) * (packets + warm_up(packets));
    all_forwarded(opened, counts(&mut measured), total)?;

    let per_packet = |ns: f64| ns / packets as f64;
    let ns = Figures::of(rounds.iter().map(|(pipeline, _)| per_packet(pipeline.cpu_ns)));
    let wall = Figures::of(rounds.iter().map(|(pipeline, _)| per_packet(pipeline.wall_ns)));
    let baseline_ns = Figures::of(rounds.iter().map(|(_, baseline)| per_packet(baseline.cpu_ns)));
    let total_of = |time: fn(&Round) -> f64| rounds.iter().map(|(pipeline, _)| time(pipeline)).sum::<f64>();
    Ok(Run {
        mode: mode.name(),
        family: A::NAME,
        flows,
        frames: size.to_string(),
        frame_bytes,
        ns_per_packet: ns.best,
        wall_ns: wall.best,
        baseline_ns: baseline_ns.best,
        mpps: 1e3 / ns.best,
        cpu_share: (total_of(|round| round.cpu_ns) / total_of(|round| round.wall_ns)).min(1.0),
        median_ns: ns.median,
        baseline_median_ns: baseline_ns.median,
        packets: packets * u64::from(effort.rounds),
        rounds: effort.rounds,
        reply_share,
        servers: director::SERVERS,
        local_addresses: if mode == Mode::Fullnat { director::local_addresses(capacity) } else { 0 },
        table_capacity: capacity,
        buffers: ROTATION,
        table_pages: machine::pages(A::flows(measured.worker().program()).table().pages()),
        buffer_pages: machine::pages(measured.pages()),
    })
}

/// What a round took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) cpu_ns: f64,
    pub(crate) wall_ns: f64,
}

const fn warm_up(packets: u64) -> u64 {
    (packets / WARM_UP).next_multiple_of(BURST as u64)
}

fn round<P: Program>(rig: &mut Rig<P>, packets: u64) -> Round {
    rig.receive(warm_up(packets));
    let (wall, cpu) = (Instant::now(), thread_cpu_ns());
    rig.receive(packets);
    let cpu_ns = thread_cpu_ns() - cpu;
    Round { cpu_ns: cpu_ns as f64, wall_ns: wall.elapsed().as_nanos() as f64 }
}

/// CPU time of this thread: what other processes take away does not count.
pub fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The best and the middle one of several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    pub(crate) best: f64,
    pub(crate) median: f64,
}

impl Figures {
    pub(crate) fn of(rounds: impl Iterator<Item = f64>) -> Self {
        let mut rounds: Vec<_> = rounds.collect();
        rounds.sort_by(f64::total_cmp);
        Self { best: rounds[0], median: rounds[rounds.len() / 2] }
    }
}

/// What a run must not lose.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    sent: u64,
    forwarded: u64,
    drops: Vec<(DropReason, u64)>,
}

/// Turns the loop until everything counted is published, and reads it.
fn counts(rig: &mut Rig<Pipeline>) -> Counts {
    // CPU time: on a busy machine a span of wall time may hold no turn at all.
    const PUBLISHED_AFTER_NS: u64 = 20_000_000;
    let start = thread_cpu_ns();
    while thread_cpu_ns() - start < PUBLISHED_AFTER_NS {
        rig.turn();
    }
    Counts::of(rig)
}

impl Counts {
    /// What has been published.
    pub(crate) fn of(rig: &Rig<Pipeline>) -> Self {
        let published = rig.worker().program().counters();
        let drop = |&reason| (reason, published.get(counters::drop_reason(reason)));
        Self {
            sent: rig.wire().sent(),
            forwarded: published.get(counters::event(Event::Forwarded)),
            drops: DropReason::ALL.iter().map(drop).collect(),
        }
    }
}

pub(crate) fn all_forwarded(before: Counts, after: Counts, packets: u64) -> anyhow::Result<()> {
    for ((reason, before), (_, after)) in before.drops.into_iter().zip(after.drops) {
        ensure!(before == after, "{} packets were dropped: {}", after - before, reason.describe());
    }
    let (sent, forwarded) = (after.sent - before.sent, after.forwarded - before.forwarded);
    ensure!(sent == packets, "{sent} of {packets} packets left");
    ensure!(forwarded == packets, "{forwarded} of {packets} packets were counted as forwarded");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_packet_is_an_error_that_says_why() {
        let counts = |drops: u64| Counts {
            sent: 10 - drops,
            forwarded: 10 - drops,
            drops: vec![(DropReason::TableFull, drops)],
        };
        let zero = Counts { sent: 0, forwarded: 0, drops: vec![(DropReason::TableFull, 0)] };
        assert!(all_forwarded(zero.clone(), counts(0), 10).is_ok());
        assert!(all_forwarded(zero.clone(), counts(0), 11).is_err());
        let error = all_forwarded(zero, counts(2), 10).unwrap_err().to_string();
        assert_eq!(
            error,
            "2 packets were dropped: the connection table is full, and nothing in it gives way"
        );
    }

    #[test]
    fn figures_are_the_best_and_the_middle_round() {
        assert_eq!(Figures::of([3.0, 1.0, 2.0].into_iter()), Figures { best: 1.0, median: 2.0 });
    }
}
