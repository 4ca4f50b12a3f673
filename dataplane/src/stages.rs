//! The stages of a packet of one IP version: fragments meet, a flow's packets go home, and there the flow decides.

use shunt_engine::{Frame, Instant, Origin, Verdict};

use crate::classify::{self, FragmentKey, Fragmentation, Meta, Ours, Packet};
use crate::counters::Event;
use crate::flow::{Context, Flows, Search};
use crate::fragment::Fragments;
use crate::home::Home;
use crate::ip::Ip;
use crate::pipeline::Config;
use crate::tuple::Tuple;
use crate::verdict::{Decision, DropReason};

/// What the stages change for one IP version.
#[derive(Debug)]
pub(crate) struct Stages<A: Ip> {
    pub(crate) flows: Flows<A>,
    pub(crate) fragments: Fragments<A>,
}

/// What a tick did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick {
    /// Connections that went or were reset, and fragments that have waited in vain.
    pub(crate) removed: usize,
    /// When the next tick is due.
    pub(crate) next: Option<Instant>,
}

impl<A: Ip> Stages<A> {
    /// Empty tables.
    ///
    /// # Errors
    /// When the kernel has no memory for them.
    pub(crate) fn new(config: Config, home: &Home) -> std::io::Result<Self> {
        Ok(Self { flows: Flows::new(config, home)?, fragments: Fragments::default() })
    }

    /// Begins the search for the flow of a whole packet.
    #[inline]
    pub(crate) fn seek(&self, ours: &Ours<A>) -> Option<Search> {
        match ours {
            Ours::Flow(packet) if packet.meta.fragment == Fragmentation::Whole => {
                Some(self.flows.seek(&packet.tuple))
            }
            Ours::Flow(_) | Ours::Fragment(..) | Ours::IcmpError(_) => None,
        }
    }

    /// What becomes of a packet; `search` is what [`Self::seek`] began.
    #[inline]
    pub(crate) fn decide(
        &mut self,
        cx: &mut Context<'_, '_>,
        ours: &Ours<A>,
        search: Option<Search>,
        frame: &mut Frame,
    ) -> Decision {
        match (ours, search) {
            (Ours::Flow(packet), Some(search)) => self.whole(cx, cx.origin, packet, search, frame),
            (Ours::Flow(packet), None) => self.first_fragment(cx, packet, frame),
            (&Ours::Fragment(key, meta), _) => self.later_fragment(cx, key, meta, frame),
            (&Ours::IcmpError(meta), _) => self.icmp_error(cx, meta, frame),
        }
    }

    /// A whole packet, whose flow has been searched for.
    #[inline]
    fn whole(
        &mut self,
        cx: &mut Context<'_, '_>,
        origin: Origin,
        packet: &Packet<A>,
        search: Search,
        frame: &mut Frame,
    ) -> Decision {
        match self.elsewhere(cx, origin, packet.role, &packet.tuple, packet.opens()) {
            Some(decision) => decision,
            None => self.flows.packet(cx, packet, search, frame),
        }
    }

    /// A packet with a known tuple: processed if it is at home here, else handed on.
    fn at_home(
        &mut self,
        cx: &mut Context<'_, '_>,
        origin: Origin,
        packet: &Packet<A>,
        frame: &mut Frame,
    ) -> Decision {
        let search = self.flows.seek(&packet.tuple);
        self.whole(cx, origin, packet, search, frame)
    }

    /// What to do with a packet of `tuple` when its flow does not live here. `opens`: it may open one at its home.
    #[inline(always)]
    fn elsewhere(
        &self,
        cx: &Context<'_, '_>,
        origin: Origin,
        role: classify::Role,
        tuple: &Tuple<A>,
        opens: bool,
    ) -> Option<Decision> {
        let home = cx.shared.home_of(cx.snapshot, role, tuple);
        let earlier = cx.shared.earlier_home_of(cx.snapshot, role, tuple);
        let next = match earlier {
            None if home == cx.shared.worker => return None,
            None => home,
            Some(earlier) if home == cx.shared.worker => {
                if opens || origin == Origin::Handoff(earlier) || self.flows.knows(tuple) {
                    return None;
                }
                earlier
            }
            // The home has sent it on: nobody has the flow.
            Some(earlier) if earlier == cx.shared.worker && origin == Origin::Handoff(home) => return None,
            Some(_) => home,
        };
        if self.flows.is_here(tuple) {
            return None;
        }
        Some(match origin {
            Origin::Handoff(from) if from == next => Decision::Drop(DropReason::HandoffLoop),
            Origin::Handoff(_) | Origin::Port => Decision::Handoff(next),
        })
    }

    /// All fragments of a packet meet on one worker first, whatever ports they have or lack. `Err` sends the fragment
    /// there; `Ok` says how it came here, the way to the meeting left out: from there it may well go back home.
    fn fragments_meet(cx: &Context<'_, '_>, key: &FragmentKey<A>) -> Result<Origin, Decision> {
        let meeting = cx.shared.fragment_home(key);
        match cx.origin {
            _ if meeting == cx.shared.worker => Ok(Origin::Port),
            Origin::Port => Err(Decision::Handoff(meeting)),
            origin @ Origin::Handoff(_) => Ok(origin),
        }
    }

    fn first_fragment(
        &mut self,
        cx: &mut Context<'_, '_>,
        packet: &Packet<A>,
        frame: &mut Frame,
    ) -> Decision {
        let key = A::fragment_key(&frame.data()[usize::from(packet.meta.l3)..])
            .expect("classify has read these headers");
        let origin = match Self::fragments_meet(cx, &key) {
            Ok(origin) => origin,
            Err(decision) => return decision,
        };
        self.fragments.learn(key, packet.role, packet.tuple, cx.now);
        let decision = self.at_home(cx, origin, packet, frame);
        while let Some(mut held) = self.fragments.take(&key) {
            if cx.emit.room() == 0 {
                cx.count(Decision::Drop(DropReason::NoBuffer));
                cx.emit.free(held.frame);
                continue;
            }
            let decision = self.follow(cx, origin, &Packet { meta: held.meta, ..*packet }, &mut held.frame);
            cx.count(decision);
            cx.emit.release(decision.into(), held.frame);
        }
        decision
    }

    /// A later fragment with the tuple of its first.
    fn follow(
        &mut self,
        cx: &mut Context<'_, '_>,
        origin: Origin,
        packet: &Packet<A>,
        frame: &mut Frame,
    ) -> Decision {
        let decision = self.at_home(cx, origin, packet, frame);
        if matches!(decision, Decision::Forward(_) | Decision::Replaced) {
            cx.counters.event(Event::FragmentsFollowed);
        }
        decision
    }

    fn later_fragment(
        &mut self,
        cx: &mut Context<'_, '_>,
        key: FragmentKey<A>,
        meta: Meta,
        frame: &mut Frame,
    ) -> Decision {
        if !A::may_be_balanced(&key) {
            return Decision::Punt;
        }
        let origin = match Self::fragments_meet(cx, &key) {
            Ok(origin) => origin,
            Err(decision) => return decision,
        };
        if let Some((role, tuple)) = self.fragments.lookup(&key, cx.now) {
            return self.follow(cx, origin, &Packet { role, tuple, meta }, frame);
        }
        if !cx.snapshot.names(key.src.to_ip(), key.dst.to_ip()) {
            // Only a prefix covers it: most of what passes there is others' business, and must not be held up.
            return Decision::Punt;
        }
        if !self.fragments.has_room() {
            return Decision::Drop(DropReason::FragmentsFull);
        }
        let Some(frame) = cx.emit.hold(frame) else { return Decision::Drop(DropReason::NoBuffer) };
        cx.counters.event(Event::FragmentsHeld);
        self.fragments.hold(key, meta, frame, cx.now);
        Decision::Hold
    }

    fn icmp_error(&mut self, cx: &mut Context<'_, '_>, meta: Meta, frame: &mut Frame) -> Decision {
        // In pieces it cannot be translated: its later fragments have no quote. The kernel gets all of it.
        if meta.fragment != Fragmentation::Whole {
            return Decision::Punt;
        }
        let Some(quoted) = A::quoted(frame.data(), &meta) else {
            return self.tunnel_error(cx, meta, frame);
        };
        // What the quoted packet's receiver would answer is what we know the flow by.
        let tuple = quoted.tuple.reversed();
        let Some(role) = classify::role(&tuple, cx.snapshot) else { return Decision::Punt };
        match self.elsewhere(cx, cx.origin, role, &tuple, false) {
            Some(decision) => decision,
            None => self.flows.icmp_error(cx, &tuple, &quoted, &meta, frame),
        }
    }

    /// An ICMP error about a packet that we had put into a tunnel: whoever sent us that packet is to hear it.
    fn tunnel_error(&mut self, cx: &mut Context<'_, '_>, meta: Meta, frame: &Frame) -> Decision {
        let Some(tunnelled) = A::tunnelled(frame.data(), &meta) else { return Decision::Punt };
        let Some(role) = classify::role(&tunnelled.tuple, cx.snapshot) else { return Decision::Punt };
        match self.elsewhere(cx, cx.origin, role, &tunnelled.tuple, false) {
            Some(decision) => decision,
            None => self.flows.tunnel_error(cx, &tunnelled, &meta, frame),
        }
    }

    /// Removes what is idle, gives fragments that waited in vain to the kernel and resets what has drained, a bounded
    /// number of each.
    pub(crate) fn tick(&mut self, cx: &mut Context<'_, '_>) -> Tick {
        let mut removed = 0;
        while cx.emit.room() > 0
            && let Some(held) = self.fragments.take_expired(cx.now)
        {
            cx.counters.event(Event::FragmentsUnknown);
            cx.emit.release(Verdict::Punt, held.frame);
            removed += 1;
        }
        let flows = self.flows.tick(cx);
        removed += flows.removed;
        let next = [self.fragments.next_deadline(), flows.next].into_iter().flatten().min();
        Tick { removed, next }
    }
}
