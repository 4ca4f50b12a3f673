//! The stages of one burst. Each is done for all frames before the next begins, so that cache misses overlap:
//! look (what is it? its bucket is fetched) → narrow (its record is fetched) → act (it is sent on).

use arrayvec::ArrayVec;
use shunt_engine::program::Verdicts;
use shunt_engine::{BURST, Burst, Frame, Note, Origin, Verdict};

use crate::classify::{Class, Ours, classify};
use crate::conn::Hash;
use crate::counters::Event;
use crate::fast::{self, Usual};
use crate::flow::{Context, Flows, Search};
use crate::snapshot::Snapshot;
use crate::stages::Stages;
use crate::tuple::{V4, V6};
use crate::verdict::{Decision, DropReason};
use crate::wire::ethernet::ethertype;

/// Decides all frames of a burst, and counts what becomes of them. Returns whether all of them were usual packets, which
/// leave nothing for a tick to do.
#[inline]
pub(crate) fn run(
    v4: &mut Stages<V4>,
    v6: &mut Stages<V6>,
    cx: &mut Context<'_, '_>,
    frames: &mut Burst,
    verdicts: &mut Verdicts,
) -> bool {
    let mut seen = [Seen::default(); BURST];
    let mut read = Read::default();
    match cx.origin {
        Origin::Port => look(v4, v6, cx.snapshot, frames, &mut seen, &mut read),
        Origin::Handoff(_) => look_again(v4, v6, cx.snapshot, frames, &mut seen, &mut read),
    }
    narrow(v4, v6, cx.snapshot.generation(), &mut seen[..frames.len()], &mut read);
    act(v4, v6, cx, &seen[..frames.len()], &read, frames, verdicts)
}

/// What a first look at a frame tells.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    kind: Kind,
    /// Of a usual packet: where its IP header begins.
    l3: u8,
    /// Of a usual packet: its flow.
    search: Search,
}

/// Which way a frame goes on.
#[derive(Clone, Copy, Debug, Default)]
enum Kind {
    /// The short way.
    UsualV4,
    /// The short way.
    UsualV6,
    /// The next of [`Read::v4`].
    V4,
    /// The next of [`Read::v6`].
    V6,
    #[default]
    NotOurs,
    Broken(DropReason),
}

/// Packets that go the long way, in order. Each IP version has its own list: in one, IPv4's entries would be as big as
/// IPv6's, and slower to write.
#[derive(Debug, Default)]
struct Read {
    v4: ArrayVec<(Ours<V4>, Option<Search>), BURST>,
    v6: ArrayVec<(Ours<V6>, Option<Search>), BURST>,
}

/// The first stage: what the frames are. Their buckets are fetched.
#[inline(never)]
fn look(
    v4: &Stages<V4>,
    v6: &Stages<V6>,
    snapshot: &Snapshot,
    frames: &Burst,
    seen: &mut [Seen; BURST],
    read: &mut Read,
) {
    frames.iter().for_each(Frame::prefetch);
    for (frame, seen) in frames.iter().zip(seen) {
        let data = frame.data();
        let usual = match fast::link(data, snapshot.macs()) {
            Some((ethertype::IPV4, l3)) => look_usual(&v4.flows, Kind::UsualV4, data, l3, seen),
            Some((ethertype::IPV6, l3)) => look_usual_v6(v6, data, l3, seen),
            Some(_) | None => false,
        };
        if !usual {
            seen.kind = look_closer(v4, v6, snapshot, data, read);
        }
    }
}

/// The first stage of frames that other workers have looked at: what they noted is not found out again.
#[inline(never)]
fn look_again(
    v4: &Stages<V4>,
    v6: &Stages<V6>,
    snapshot: &Snapshot,
    frames: &Burst,
    seen: &mut [Seen; BURST],
    read: &mut Read,
) {
    frames.iter().for_each(Frame::prefetch);
    for (frame, seen) in frames.iter().zip(seen) {
        let note = frame.note();
        let l3 = note.kind as u8;
        match note.kind - u16::from(l3) {
            NOTED_V4 => {
                *seen = Seen { kind: Kind::UsualV4, l3, search: v4.flows.seek_by(Hash(note.word)) };
            }
            NOTED_V6 => {
                *seen = Seen { kind: Kind::UsualV6, l3, search: v6.flows.seek_by(Hash(note.word)) };
            }
            _ => seen.kind = look_closer(v4, v6, snapshot, frame.data(), read),
        }
    }
}

/// Notes about usual packets: with where the IP header begins, and the hash of the flow.
const NOTED_V4: u16 = 0x0400;
const NOTED_V6: u16 = 0x0600;

impl Seen {
    /// What the next worker need not find out again about a usual packet.
    #[inline]
    fn note(&self) -> Note {
        let version = match self.kind {
            Kind::UsualV4 => NOTED_V4,
            Kind::UsualV6 => NOTED_V6,
            Kind::V4 | Kind::V6 | Kind::NotOurs | Kind::Broken(_) => return Note::default(),
        };
        Note { kind: version | u16::from(self.l3), word: self.search.hash().0 }
    }
}

/// A first look at a packet that may be a usual one. Returns whether it is.
#[inline(always)]
fn look_usual<A: Usual>(flows: &Flows<A>, kind: Kind, frame: &[u8], l3: usize, seen: &mut Seen) -> bool {
    match flows.usual(frame, l3) {
        Some(search) => {
            *seen = Seen { kind, l3: l3 as u8, search };
            true
        }
        None => false,
    }
}

/// IPv6 in a function of its own: inlined it would take IPv4's registers.
#[inline(never)]
fn look_usual_v6(v6: &Stages<V6>, frame: &[u8], l3: usize, seen: &mut Seen) -> bool {
    look_usual(&v6.flows, Kind::UsualV6, frame, l3, seen)
}

/// A first look at an unusual packet.
#[inline(never)]
fn look_closer(v4: &Stages<V4>, v6: &Stages<V6>, snapshot: &Snapshot, frame: &[u8], read: &mut Read) -> Kind {
    match classify(frame, snapshot) {
        Class::V4(ours) => {
            let search = v4.seek(&ours);
            read.v4.push((ours, search));
            Kind::V4
        }
        Class::V6(ours) => {
            let search = v6.seek(&ours);
            read.v6.push((ours, search));
            Kind::V6
        }
        Class::NotOurs => Kind::NotOurs,
        Class::Drop(reason) => Kind::Broken(reason),
    }
}

/// The second stage: the buckets are there, and the records are fetched.
#[inline(never)]
fn narrow(v4: &Stages<V4>, v6: &Stages<V6>, generation: u32, seen: &mut [Seen], read: &mut Read) {
    let (mut last_v4, mut last_v6) = (Search::default(), Search::default());
    for seen in seen {
        match seen.kind {
            Kind::UsualV4 => v4.flows.narrow_next(&mut seen.search, &mut last_v4, generation),
            Kind::UsualV6 => v6.flows.narrow_next(&mut seen.search, &mut last_v6, generation),
            Kind::V4 | Kind::V6 | Kind::NotOurs | Kind::Broken(_) => {}
        }
    }
    let searches = read.v4.iter_mut().filter_map(|(_, search)| search.as_mut());
    searches.for_each(|search| v4.flows.narrow(search, generation));
    let searches = read.v6.iter_mut().filter_map(|(_, search)| search.as_mut());
    searches.for_each(|search| v6.flows.narrow(search, generation));
}

/// The third stage: the records are there, and packets are sent on. Returns whether all of them were usual.
#[inline(never)]
fn act(
    v4: &mut Stages<V4>,
    v6: &mut Stages<V6>,
    cx: &mut Context<'_, '_>,
    seen: &[Seen],
    read: &Read,
    frames: &mut Burst,
    verdicts: &mut Verdicts,
) -> bool {
    let (mut read_v4, mut read_v6) = (read.v4.iter(), read.v6.iter());
    let mut decided = [Verdict::Drop; BURST];
    let (mut at, mut unusual, mut strays) = (0, 0, 0);
    while at < frames.len() {
        let ahead = &mut frames[at..];
        let sent = match seen[at].kind {
            Kind::UsualV4 => go_on(&mut v4.flows, cx, &seen[at..], ahead, &mut decided[at..]),
            Kind::UsualV6 => go_on(&mut v6.flows, cx, &seen[at..], ahead, &mut decided[at..]),
            Kind::V4 | Kind::V6 | Kind::NotOurs | Kind::Broken(_) => 0,
        };
        at += sent;
        if sent > 0 {
            continue;
        }
        let handed = match seen[at].kind {
            Kind::UsualV4 => hand_on(&mut v4.flows, cx, &seen[at..], ahead, &mut decided[at..]),
            Kind::UsualV6 => hand_on(&mut v6.flows, cx, &seen[at..], ahead, &mut decided[at..]),
            Kind::V4 | Kind::V6 | Kind::NotOurs | Kind::Broken(_) => 0,
        };
        at += handed;
        strays += handed;
        if handed > 0 {
            continue;
        }
        let frame = &mut frames[at];
        let decision = match seen[at].kind {
            Kind::UsualV4 | Kind::UsualV6 => long_way(v4, v6, cx, frame),
            Kind::V4 => {
                let (ours, search) = read_v4.next().expect("an entry was made for every such frame");
                decide_v4(v4, cx, ours, *search, frame)
            }
            Kind::V6 => {
                let (ours, search) = read_v6.next().expect("an entry was made for every such frame");
                decide_v6(v6, cx, ours, *search, frame)
            }
            Kind::NotOurs => Decision::Punt,
            Kind::Broken(reason) => Decision::Drop(reason),
        };
        cx.count(decision);
        decided[at] = decision.into();
        at += 1;
        unusual += 1;
    }
    cx.counters.events(Event::Forwarded, (frames.len() - unusual - strays) as u64);
    cx.counters.events(Event::HandedOff, strays as u64);
    verdicts.try_extend_from_slice(&decided[..frames.len()]).expect("there is a place for each frame");
    unusual == 0
}

/// Sends usual packets of one IP version on, up to the first that is none after all. Returns how many.
#[inline(never)]
fn go_on<A: Usual>(
    flows: &mut Flows<A>,
    cx: &mut Context<'_, '_>,
    seen: &[Seen],
    frames: &mut [Frame],
    verdicts: &mut [Verdict],
) -> usize {
    let kind = std::mem::discriminant(&seen[0].kind);
    let mut sent = 0;
    for ((seen, frame), verdict) in seen.iter().zip(frames).zip(verdicts) {
        if std::mem::discriminant(&seen.kind) != kind {
            break;
        }
        let Some(port) = flows.forward(cx, &seen.search, seen.l3.into(), frame) else { break };
        *verdict = Verdict::Forward(port);
        sent += 1;
    }
    sent
}

/// Hands usual packets of one IP version to the workers where they are at home, up to the first that may be so here.
/// Returns how many.
#[inline(never)]
fn hand_on<A: Usual>(
    flows: &mut Flows<A>,
    cx: &Context<'_, '_>,
    seen: &[Seen],
    frames: &mut [Frame],
    verdicts: &mut [Verdict],
) -> usize {
    let kind = std::mem::discriminant(&seen[0].kind);
    let mut handed = 0;
    for ((seen, frame), verdict) in seen.iter().zip(frames).zip(verdicts) {
        if std::mem::discriminant(&seen.kind) != kind {
            break;
        }
        let Some(home) = flows.stray(cx, &seen.search, seen.l3.into(), frame) else { break };
        frame.set_note(seen.note());
        *verdict = Verdict::Handoff(home);
        handed += 1;
    }
    handed
}

/// A packet that looked usual, and whose connection is not, or not there.
#[inline(never)]
fn long_way(
    v4: &mut Stages<V4>,
    v6: &mut Stages<V6>,
    cx: &mut Context<'_, '_>,
    frame: &mut Frame,
) -> Decision {
    match classify(frame.data(), cx.snapshot) {
        Class::V4(ours) => {
            let search = v4.seek(&ours);
            decide_v4(v4, cx, &ours, search, frame)
        }
        Class::V6(ours) => {
            let search = v6.seek(&ours);
            decide_v6(v6, cx, &ours, search, frame)
        }
        Class::NotOurs => Decision::Punt,
        Class::Drop(reason) => Decision::Drop(reason),
    }
}

#[inline(never)]
fn decide_v4(
    v4: &mut Stages<V4>,
    cx: &mut Context<'_, '_>,
    ours: &Ours<V4>,
    search: Option<Search>,
    frame: &mut Frame,
) -> Decision {
    v4.decide(cx, ours, search, frame)
}

#[inline(never)]
fn decide_v6(
    v6: &mut Stages<V6>,
    cx: &mut Context<'_, '_>,
    ours: &Ours<V6>,
    search: Option<Search>,
    frame: &mut Frame,
) -> Decision {
    v6.decide(cx, ours, search, frame)
}

#[cfg(test)]
mod tests;
