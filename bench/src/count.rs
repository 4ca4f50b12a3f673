//! Packets for a simulator that counts instructions: on the packet path the same number every time, whatever else the
//! machine does. The clock is turned by hand, nothing is random, and one thread does everything.

use anyhow::{Context as _, ensure};
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Endpoint, V4, V6};
use shunt_dataplane::wire::tcp::flags::ACK;
use shunt_engine::clock::Clock;
use shunt_engine::{BURST, Duration, Instant, Program};

use crate::baseline::SwapMacs;
use crate::connections::{self, Connections};
use crate::crew::Crew;
use crate::director;
use crate::family::Family;
use crate::pipeline::Version;
use crate::rig::Rig;
use crate::size::Size;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// The port and the loop alone: link addresses are swapped.
    Baseline,
    /// Packets of established connections, in both directions where both pass.
    Established(Mode, Version),
    /// The first SYN of each connection.
    New(Mode, Version),
    /// Segments of connections that do not exist.
    Miss(Version),
    /// Packets for an address that is not ours.
    NotOurs(Version),
    /// Packets of established connections that arrive at another worker than theirs.
    Handoff,
}

/// Packets of the short run; the long one has twice as many. What both do beside cancels out.
pub const PACKETS: u64 = 16_384;
/// Connections, where they are established.
const FLOWS: u32 = 64;
/// What passes between two bursts.
const BETWEEN: Duration = Duration::from_micros(2);

impl Case {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let versions = [Version::Ipv4, Version::Ipv6];
        let of_each = |case: fn(Version) -> Self| versions.map(case);
        let established =
            Mode::ALL.into_iter().flat_map(|mode| versions.map(|ip| Self::Established(mode, ip)));
        let new =
            [Mode::Fullnat, Mode::Dr].into_iter().flat_map(|mode| versions.map(|ip| Self::New(mode, ip)));
        std::iter::once(Self::Baseline)
            .chain(established)
            .chain(new)
            .chain(of_each(Self::Miss))
            .chain(of_each(Self::NotOurs))
            .chain([Self::Handoff])
            .collect()
    }

    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Baseline => "baseline".into(),
            Self::Established(mode, ip) => format!("{}_{}", mode.name(), name(ip)),
            Self::New(mode, ip) => format!("{}_{}_new", mode.name(), name(ip)),
            Self::Miss(ip) => format!("miss_{}", name(ip)),
            Self::NotOurs(ip) => format!("not_ours_{}", name(ip)),
            Self::Handoff => "handoff_ipv4".into(),
        }
    }

    /// Has [`PACKETS`] packets of it pass, `times` times (at most twice).
    ///
    /// # Errors
    /// When there is no memory, or packets did not go where they should.
    pub fn run(self, times: u64) -> anyhow::Result<()> {
        ensure!((1..=2).contains(&times), "once or twice");
        match self {
            Self::Established(mode, Version::Ipv4) => established::<V4>(mode, times),
            Self::Established(mode, Version::Ipv6) => established::<V6>(mode, times),
            Self::New(mode, Version::Ipv4) => new::<V4>(mode, times),
            Self::New(mode, Version::Ipv6) => new::<V6>(mode, times),
            Self::Miss(Version::Ipv4) => unknown::<V4>(director::vip(Mode::Fullnat), times),
            Self::Miss(Version::Ipv6) => unknown::<V6>(director::vip(Mode::Fullnat), times),
            Self::NotOurs(Version::Ipv4) => unknown::<V4>(director::client(1 << 15), times),
            Self::NotOurs(Version::Ipv6) => unknown::<V6>(director::client(1 << 15), times),
            Self::Baseline => baseline(times),
            Self::Handoff => handoff(times),
        }
        .with_context(|| self.name())
    }
}

impl std::str::FromStr for Case {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let names = || Self::all().into_iter().map(Self::name).collect::<Vec<_>>().join(", ");
        Self::all()
            .into_iter()
            .find(|case| case.name() == word)
            .ok_or_else(|| format!("no such case; there are {}", names()))
    }
}

const fn name(version: Version) -> &'static str {
    match version {
        Version::Ipv4 => V4::NAME,
        Version::Ipv6 => V6::NAME,
    }
}

fn clock() -> Clock {
    Clock::manual(Instant::from_nanos(1_000_000_000_000))
}

/// Receives what `feed` gives, and expects so many frames to leave for each.
fn pass<P: Program>(rig: &mut Rig<P>, clock: &Clock, packets: u64, forwarded: bool) -> anyhow::Result<()> {
    let before = rig.wire().sent();
    rig.wire().allow(packets);
    for _ in 0..packets / BURST as u64 {
        clock.advance(BETWEEN);
        rig.turn();
    }
    let sent = rig.wire().sent() - before;
    ensure!(!forwarded || sent == packets, "{sent} of {packets} packets were forwarded");
    ensure!(forwarded || sent < packets / 8, "{sent} of {packets} packets were answered");
    Ok(())
}

fn baseline(times: u64) -> anyhow::Result<()> {
    let clock = clock();
    let mut rig = Rig::new(SwapMacs, clock.clone())?;
    let tuples = connections::requests::<V4>(0..FLOWS, director::vip(Mode::Fullnat));
    rig.wire().feed(connections::feed(&tuples, ACK, Size::Bytes(64)));
    pass(&mut rig, &clock, times * PACKETS, true)
}

fn established<A: Family>(mode: Mode, times: u64) -> anyhow::Result<()> {
    let clock = clock();
    let mut rig = Rig::new(director::pipeline::<A>(&[mode], director::capacity(0))?, clock.clone())?;
    let data = connections::open::<A>(&mut rig, mode, 0..FLOWS)?.data(Size::Bytes(64));
    rig.wire().feed(data);
    pass(&mut rig, &clock, times * PACKETS, true)
}

fn new<A: Family>(mode: Mode, times: u64) -> anyhow::Result<()> {
    let clock = clock();
    let mut rig = Rig::new(director::pipeline::<A>(&[mode], director::capacity(0))?, clock.clone())?;
    rig.wire().feed(connections::syns::<A>(mode, 0..2 * PACKETS as u32));
    pass(&mut rig, &clock, times * PACKETS, true)
}

fn unknown<A: Family>(to: Endpoint<A>, times: u64) -> anyhow::Result<()> {
    let clock = clock();
    let pipeline = director::pipeline::<A>(&[Mode::Fullnat], director::capacity(0))?;
    let mut rig = Rig::new(pipeline, clock.clone())?;
    rig.wire().feed(connections::feed(&connections::requests(0..FLOWS, to), ACK, Size::Bytes(64)));
    pass(&mut rig, &clock, times * PACKETS, false)
}

fn handoff(times: u64) -> anyhow::Result<()> {
    let clock = clock();
    let Crew { mut rigs, connections } = Crew::<V4>::open(2, Mode::Fullnat, 2 * FLOWS, &clock)?;
    let feeds: Vec<_> =
        connections.iter().rev().map(|there: &Connections<V4>| there.data(Size::Bytes(64))).collect();
    let sent = |rigs: &[Rig<_>]| rigs.iter().map(|rig| rig.wire().sent()).sum::<u64>();
    let before = sent(&rigs);
    for (rig, feed) in rigs.iter().zip(feeds) {
        rig.wire().feed(feed);
        rig.wire().allow(times * PACKETS / 2);
    }
    // One more, in which the first worker gets the last burst of the second.
    for _ in 0..=times * PACKETS / 2 / BURST as u64 {
        clock.advance(BETWEEN);
        rigs.iter_mut().for_each(|rig| _ = rig.turn());
    }
    let sent = sent(&rigs) - before;
    ensure!(sent == times * PACKETS, "{sent} packets were forwarded");
    Ok(())
}
