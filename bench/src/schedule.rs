//! What a pick costs: each scheduler next to a baseline that takes one candidate after the other, in turns.

use anyhow::ensure;
use serde::Serialize;
use shunt_dataplane::scheduler::{Candidate, Pool, Request, SchedulerKind, SchedulerState};
use shunt_dataplane::server::ServerId;
use shunt_dataplane::service::ServiceId;
use shunt_dataplane::tuple::{Endpoint, Protocol, Tuple, V4, V6};
use shunt_engine::{Duration, Instant};

use crate::machine::Machine;
use crate::pipeline::thread_cpu_ns;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// What was measured.
    pub runs: Vec<Run>,
}

/// One scheduler with one number of servers. Nanoseconds are CPU time of the thread, of the best round.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The scheduler.
    pub scheduler: &'static str,
    /// Servers of the service, all with the same weight.
    pub servers: u32,
    /// Per pick, the new connection counted and an old one taken off.
    pub ns_per_pick: f64,
    /// Per turn of the same loop with the next candidate in the list.
    pub baseline_ns: f64,
    /// What the pool took to build.
    pub build_ns: u64,
    /// Picks per round.
    pub picks: u32,
    /// Rounds of scheduler and baseline in turns.
    pub rounds: u32,
}

/// Open connections while it is measured.
const OPEN: usize = 4096;

/// Measures one scheduler with so many servers.
///
/// # Errors
/// When a pick finds no server: figures of such a run say nothing.
pub fn measure(kind: SchedulerKind, servers: u32, picks: u32, rounds: u32) -> anyhow::Result<Run> {
    let mut best = Run {
        scheduler: kind.name(),
        servers,
        ns_per_pick: f64::INFINITY,
        baseline_ns: f64::INFINITY,
        build_ns: u64::MAX,
        picks,
        rounds,
    };
    for _ in 0..rounds {
        let start = thread_cpu_ns();
        let pool = std::hint::black_box(pool(kind, servers));
        best.build_ns = best.build_ns.min(thread_cpu_ns() - start);
        let mut state = SchedulerState::new(1, servers as usize, 7);
        state.prepare([kind].into_iter());
        let now = Instant::ZERO + Duration::from_secs(1);
        let own =
            round(&mut state, picks, |state, client| state.pick(ServiceId(0), &pool, &request(client, now)))?;
        let mut state = SchedulerState::new(1, servers as usize, 7);
        let baseline = round(&mut state, picks, |_, client| {
            std::hint::black_box(request(client, now));
            Some(pool.candidates()[(client % servers) as usize].id)
        })?;
        best.ns_per_pick = best.ns_per_pick.min(own);
        best.baseline_ns = best.baseline_ns.min(baseline);
    }
    Ok(best)
}

/// Nanoseconds per pick.
fn round(
    state: &mut SchedulerState,
    picks: u32,
    mut pick: impl FnMut(&mut SchedulerState, u32) -> Option<ServerId>,
) -> anyhow::Result<f64> {
    let mut open: Vec<Option<ServerId>> = vec![None; OPEN];
    let start = thread_cpu_ns();
    for client in 0..picks {
        let picked = pick(state, client);
        ensure!(picked.is_some(), "no server for client {client}");
        let place = &mut open[client as usize % OPEN];
        if let Some(old) = std::mem::replace(place, picked) {
            state.closed(old, true);
        }
        if let Some(id) = picked {
            state.opened(id, true);
        }
    }
    Ok((thread_cpu_ns() - start) as f64 / f64::from(picks))
}

/// A service with `servers` servers that all weigh as much as there are connections, so that `ovf` is never full.
pub fn pool(kind: SchedulerKind, servers: u32) -> Pool {
    let member = |slot| {
        let candidate = Candidate { id: ServerId { slot, generation: 1 }, weight: OPEN as u32 };
        (candidate, Endpoint::new(V6([0, 0, 0, 0x0a01_0000 + slot]), 80))
    };
    Pool::new(kind.into(), &(0..servers).map(member).collect::<Vec<_>>())
}

/// A packet of client number `client`.
pub fn request(client: u32, now: Instant) -> Request {
    let src = Endpoint::new(V4(0x0b00_0000 + client), 1024 + client as u16 % 60_000);
    // A thousand destinations, for the schedulers that go by them.
    let dst = Endpoint::new(V4(0x0808_0000 + client % 1000), 80);
    Request::new(&Tuple { src, dst, protocol: Protocol::Tcp }, now)
}

/// The head of the table.
pub fn head() -> String {
    format!("{:<9} {:>7} {:>10} {:>12} {:>10}", "scheduler", "servers", "ns/pick", "baseline ns", "build ms")
}

/// One row of the table.
pub fn row(run: &Run) -> String {
    format!(
        "{:<9} {:>7} {:>10.1} {:>12.1} {:>10.3}",
        run.scheduler,
        run.servers,
        run.ns_per_pick,
        run.baseline_ns,
        run.build_ns as f64 / 1e6
    )
}
