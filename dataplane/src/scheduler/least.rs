//! What all least-something schedulers share: the candidate with the lowest price, without a look at each of them.
//!
//! A pool's candidates hold a knock-out (`tree.rs`), their prices being the bids; who has won gets the next connection. It
//! is played again where a server's load changes. A new pool begins a new one with its first pick. `lblc` and `lblcr` hold
//! a second one beside it, for who has least to do.

use std::ops::Range;

use super::pool::Pool;
use super::state::{ServerState, Servers, Total};
use super::tree::{self, NOBODY};
use super::{SchedulerKind, fo, lc, nq, ovf, sed, wlc};

/// What the next connection to a server costs. The order of prices is all that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Price(u128);

impl Price {
    /// Nobody asks for less.
    pub(super) const LEAST: Self = Self(0);

    /// The price `cost`, below 2⁴⁸.
    #[inline]
    pub(super) fn of(cost: u64) -> Self {
        debug_assert!(cost < 1 << 48);
        Self(u128::from(cost) << 64)
    }

    /// `cost`, below 2⁴⁸, by `weight`, which is not 0, in units of 2⁻⁶⁴, rounded down. The order is exact all the same:
    /// two fractions by weights of 32 bits are equal, or differ by more than a unit.
    #[inline]
    pub(super) fn by_weight(cost: u64, weight: u32) -> Self {
        debug_assert!(cost < 1 << 48);
        if weight == 1 {
            return Self::of(cost);
        }
        let weight = u64::from(weight);
        // Division by hand, 32 bits at a time: what remains is less than a weight.
        let (whole, rest) = (cost / weight, cost % weight);
        let (high, rest) = ((rest << 32) / weight, (rest << 32) % weight);
        let low = (rest << 32) / weight;
        Self(u128::from(whole) << 64 | u128::from(high << 32 | low))
    }

    /// Under `kind`; `None` when the server takes no connections for any price.
    #[inline]
    fn new(kind: SchedulerKind, weight: u32, load: Total) -> Option<Self> {
        match kind {
            SchedulerKind::Lc => Some(lc::price(load)),
            SchedulerKind::Wlc | SchedulerKind::Lblc | SchedulerKind::Lblcr => Some(wlc::price(weight, load)),
            SchedulerKind::Sed => Some(sed::price(weight, load)),
            SchedulerKind::Nq => Some(nq::price(weight, load)),
            SchedulerKind::Fo => Some(fo::price(weight)),
            SchedulerKind::Ovf => ovf::price(weight, load),
            SchedulerKind::Rr
            | SchedulerKind::Wrr
            | SchedulerKind::Sh
            | SchedulerKind::Dh
            | SchedulerKind::Mh
            | SchedulerKind::Twos => None,
        }
    }
}

/// The knock-outs of all pools, in memory taken at start.
#[derive(Debug)]
pub(super) struct Tournaments {
    running: Box<[Tournament]>,
    nodes: Box<[u128]>,
    /// Nodes given to tournaments so far.
    used: usize,
}

/// One pool's.
#[derive(Clone, Copy, Debug)]
struct Tournament {
    /// [`Pool::number`]; 0: not begun.
    pool: u64,
    kind: SchedulerKind,
    /// The part of the nodes that is its.
    first: u32,
    players: u32,
}

/// One connection by a weight of two. Less than half a connection by weight is less than this, rounded down or not.
const HALF: Price = Price(1 << 63);

/// Where a server plays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub(super) tournament: u32,
    pub(super) place: u16,
    /// 0: it does not play.
    pub(super) weight: u32,
    pub(super) pool: u64,
}

/// Bits of a place ([`Pool::MEMBERS_MAX`]), the lowest of a bid: the earlier of equals wins.
pub(super) const PLACE: u32 = u16::BITS;

impl Tournaments {
    /// For `pools` pools at a time, which have up to `servers_max` servers together.
    pub(super) fn new(pools: usize, servers_max: usize) -> Self {
        let none = Tournament { pool: 0, kind: SchedulerKind::Lc, first: 0, players: 0 };
        // What all need together if each holds two knock-outs, else twice as much: some is lost to pools that have grown,
        // until all begin anew.
        let nodes = 2 * KNOCK_OUTS_MAX * servers_max;
        Self { running: vec![none; pools].into(), nodes: vec![NOBODY; nodes].into(), used: 0 }
    }

    /// The place of the cheapest candidate of `pool`, which holds tournament number `tournament`.
    #[inline]
    pub(super) fn winner(&mut self, tournament: usize, pool: &Pool, servers: &mut Servers) -> Option<usize> {
        let (nodes, is_new) = self.nodes(tournament, pool);
        if is_new {
            begin(nodes, tournament, pool, servers);
        }
        let lowest = tree::lowest(&nodes[..2 * pool.candidates().len()]);
        (lowest != NOBODY).then_some(usize::from(lowest as u16))
    }

    /// Whether a candidate of `pool`, whose scheduler is `lblc` or `lblcr` and whose [`Self::winner`] was asked for before,
    /// has fewer active connections than half its weight.
    pub(super) fn has_bored(&self, tournament: usize, pool: &Pool) -> bool {
        let tournament = &self.running[tournament];
        debug_assert_eq!(tournament.pool, pool.number());
        let (_, by_rest) = self.nodes[tournament.range()].split_at(2 * tournament.players as usize);
        tree::lowest(by_rest) >> PLACE < HALF.0
    }

    /// The winner as of now, if the tournament has begun.
    #[inline]
    pub(super) fn favourite(&self, tournament: usize, pool: &Pool) -> Option<usize> {
        let Tournament { pool: number, kind, first, players } = self.running[tournament];
        if number != pool.number() || kind == SchedulerKind::Wrr || players == 0 {
            return None;
        }
        let lowest = self.nodes[first as usize + 1];
        (lowest != NOBODY).then_some(usize::from(lowest as u16))
    }

    /// A server's load has changed.
    #[inline]
    pub(super) fn replay(&mut self, server: &ServerState) {
        let Some(seat) = server.seat else { return };
        let Tournament { pool, kind, players, .. } = self.running[seat.tournament as usize];
        // Its pool may be history; and in `wrr` loads do not count.
        if pool == seat.pool && kind != SchedulerKind::Wrr {
            let range = self.running[seat.tournament as usize].range();
            let (by_price, by_rest) = self.nodes[range].split_at_mut(2 * players as usize);
            tree::bid(by_price, usize::from(seat.place), bid(kind, seat, server));
            if !by_rest.is_empty() {
                tree::bid(by_rest, usize::from(seat.place), bid_of_rest(seat, server));
            }
        }
    }

    /// A server has become available, or is no longer.
    pub(super) fn admit(&mut self, server: &ServerState) {
        let Some(seat) = server.seat else { return };
        let tournament = &mut self.running[seat.tournament as usize];
        if tournament.kind == SchedulerKind::Wrr {
            // Everybody's share changes.
            tournament.pool = 0;
        } else {
            self.replay(server);
        }
    }

    /// The nodes of `pool`, and whether they are still to be filled.
    #[inline]
    pub(super) fn nodes(&mut self, tournament: usize, pool: &Pool) -> (&mut [u128], bool) {
        let is_new = self.running[tournament].pool != pool.number();
        if is_new {
            self.make_room(tournament, pool);
        }
        (&mut self.nodes[self.running[tournament].range()], is_new)
    }

    /// Gives a new pool the nodes of the one before it, or others. When there are no more all tournaments begin anew, so
    /// that what pools have left behind is used again.
    #[cold]
    fn make_room(&mut self, tournament: usize, pool: &Pool) {
        let before = self.running[tournament].range();
        let (kind, players) = (pool.scheduler().kind, pool.candidates().len() as u32);
        let mut next = Tournament { pool: pool.number(), kind, first: before.start as u32, players };
        let needed = next.range().len();
        if needed > before.len() {
            if self.used + needed > self.nodes.len() {
                self.running.iter_mut().for_each(|tournament| (tournament.pool, tournament.players) = (0, 0));
                self.used = 0;
            }
            next.first = self.used as u32;
            self.used += needed;
        }
        self.running[tournament] = next;
    }
}

impl Tournament {
    /// Its nodes: those of the knock-out by price, then those of the one by rest if it has one.
    fn range(&self) -> Range<usize> {
        let first = self.first as usize;
        first..first + 2 * self.players as usize * knock_outs(self.kind)
    }
}

/// How many knock-outs are held under a scheduler.
const fn knock_outs(kind: SchedulerKind) -> usize {
    match kind {
        SchedulerKind::Lblc | SchedulerKind::Lblcr => KNOCK_OUTS_MAX,
        SchedulerKind::Rr
        | SchedulerKind::Wrr
        | SchedulerKind::Lc
        | SchedulerKind::Wlc
        | SchedulerKind::Sed
        | SchedulerKind::Nq
        | SchedulerKind::Sh
        | SchedulerKind::Dh
        | SchedulerKind::Mh
        | SchedulerKind::Fo
        | SchedulerKind::Ovf
        | SchedulerKind::Twos => 1,
    }
}

const KNOCK_OUTS_MAX: usize = 2;

/// All candidates of `pool` take their seats and bid.
#[cold]
fn begin(nodes: &mut [u128], tournament: usize, pool: &Pool, servers: &mut Servers) {
    let kind = pool.scheduler().kind;
    let players = pool.candidates().len();
    let (by_price, by_rest) = nodes.split_at_mut(2 * players);
    for (place, candidate) in (0..).zip(pool.candidates()) {
        let server = servers.tenant(candidate.id);
        let (tournament, weight) = (tournament as u32, candidate.weight);
        let seat = Seat { tournament, place, weight, pool: pool.number() };
        server.seat = Some(seat);
        let leaf = players + usize::from(place);
        by_price[leaf] = bid(kind, seat, server);
        if !by_rest.is_empty() {
            by_rest[leaf] = bid_of_rest(seat, server);
        }
    }
    tree::play(by_price);
    tree::play(by_rest);
}

/// What a server bids: its price with its place.
#[inline]
fn bid(kind: SchedulerKind, seat: Seat, server: &ServerState) -> u128 {
    if seat.weight == 0 || server.overloaded {
        return NOBODY;
    }
    let price = Price::new(kind, seat.weight, server.load());
    price.map_or(NOBODY, |Price(price)| price << PLACE | u128::from(seat.place))
}

/// What a server bids where it counts how little it has to do: its active connections by weight. Whether it takes more
/// does not count, as in LVS.
#[inline]
fn bid_of_rest(seat: Seat, server: &ServerState) -> u128 {
    if seat.weight == 0 {
        return NOBODY;
    }
    Price::by_weight(server.load().active, seat.weight).0 << PLACE | u128::from(seat.place)
}

/// Whether one cost by weight is less than another one: without the division, in 128 bits, which do not overflow.
#[inline]
pub(super) const fn is_less(cost: u64, weight: u32, other_cost: u64, other_weight: u32) -> bool {
    cost as u128 * (other_weight as u128) < other_cost as u128 * (weight as u128)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::testing::{pool_of, request};
    use super::super::{Candidate, Load, SchedulerState};
    use super::*;
    use crate::server::ServerId;
    use crate::service::ServiceId;

    #[test]
    fn costs_are_compared_by_weight_and_without_overflow() {
        assert!(is_less(2, 3, 1, 1) && !is_less(1, 1, 2, 3));
        assert!(!is_less(2, 2, 1, 1) && !is_less(1, 1, 2, 2));
        assert!(is_less(u64::MAX - 1, u32::MAX, u64::MAX, u32::MAX));
    }

    #[test]
    fn the_nearest_fractions_of_the_largest_weights_have_prices_of_their_own() {
        const MAX: u32 = u32::MAX;
        let (one, other) = (u64::from(MAX - 1), u64::from(MAX - 2));
        // They differ by 1 / (MAX * (MAX - 1)).
        assert!(Price::by_weight(other, MAX - 1) < Price::by_weight(one, MAX));
        assert_eq!(Price::by_weight(3 << 40, 3), Price::of(1 << 40));
    }

    const SERVICES: u32 = 2;
    const EACH: u32 = 9;
    const KINDS: [SchedulerKind; 8] = [
        SchedulerKind::Lc,
        SchedulerKind::Wlc,
        SchedulerKind::Sed,
        SchedulerKind::Nq,
        SchedulerKind::Fo,
        SchedulerKind::Ovf,
        // Before they have memory they are `wlc`.
        SchedulerKind::Lblc,
        SchedulerKind::Lblcr,
    ];

    #[derive(Clone, Debug)]
    enum Step {
        Open {
            service: u32,
            active: bool,
        },
        Change(prop::sample::Index),
        Close(prop::sample::Index),
        Others(u32, Load),
        Available(u32, bool),
        /// Weights by slot, `None` for those that are not there; where the list begins; who has a new tenant.
        Reload {
            service: u32,
            weights: Vec<Option<u32>>,
            first: usize,
            fresh: u32,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let (slot, count) = (0..SERVICES * EACH, prop_oneof![0..5u32, Just(u32::MAX)]);
        let load = (count.clone(), count).prop_map(|(active, inactive)| Load { active, inactive });
        let weight = prop::option::weighted(0.9, prop_oneof![0..4u32, Just(u32::MAX), Just(u32::MAX - 1)]);
        let weights = prop::collection::vec(weight, EACH as usize);
        let reload = (0..SERVICES, weights, 0..EACH as usize, 0..3 * EACH);
        prop_oneof![
            8 => (0..SERVICES, any::<bool>()).prop_map(|(service, active)| Step::Open { service, active }),
            2 => any::<prop::sample::Index>().prop_map(Step::Change),
            4 => any::<prop::sample::Index>().prop_map(Step::Close),
            2 => (slot.clone(), load).prop_map(|(slot, load)| Step::Others(slot, load)),
            2 => (slot, any::<bool>()).prop_map(|(slot, available)| Step::Available(slot, available)),
            1 => reload.prop_map(|(service, weights, first, fresh)| Step::Reload {
                service, weights, first, fresh
            }),
        ]
    }

    /// What is known of a server: own connections, others', whether it is available.
    #[derive(Clone, Copy)]
    struct Known {
        own: Load,
        others: Load,
        available: bool,
    }

    #[derive(Default)]
    struct Model {
        known: HashMap<ServerId, Known>,
        generations: HashMap<u32, u32>,
        open: Vec<(ServerId, bool)>,
    }

    impl Model {
        fn id(&self, slot: u32) -> ServerId {
            ServerId { slot, generation: self.generations.get(&slot).map_or(1, |generation| *generation) }
        }

        fn known(&mut self, id: ServerId) -> &mut Known {
            let none = Load::default();
            self.known.entry(id).or_insert(Known { own: none, others: none, available: true })
        }

        fn count(&mut self, id: ServerId, active: bool, by: i64) {
            let own = &mut self.known(id).own;
            let count = if active { &mut own.active } else { &mut own.inactive };
            *count = (i64::from(*count) + by) as u32;
        }

        /// The first candidate that nobody is cheaper than, by a look at each.
        fn pick(&mut self, kind: SchedulerKind, candidates: &[Candidate]) -> Option<ServerId> {
            let mut best: Option<(ServerId, u128, u128)> = None;
            for &Candidate { id, weight } in candidates {
                let Known { own, others, available } = *self.known(id);
                let active = u128::from(own.active) + u128::from(others.active);
                let inactive = u128::from(own.inactive) + u128::from(others.inactive);
                let (all, weight) = (256 * active + inactive, u128::from(weight));
                let (cost, by) = match kind {
                    SchedulerKind::Lc => (all, 1),
                    SchedulerKind::Sed => (active + 1, weight),
                    SchedulerKind::Nq if active == 0 => (0, 1),
                    SchedulerKind::Nq => (active + 1, weight),
                    SchedulerKind::Fo | SchedulerKind::Ovf => (u128::from(u32::MAX) - weight, 1),
                    _ => (all, weight),
                };
                let full = kind == SchedulerKind::Ovf && active > weight;
                if weight > 0 && available && !full && best.is_none_or(|(_, c, b)| cost * b < c * by) {
                    best = Some((id, cost, by));
                }
            }
            best.map(|(id, ..)| id)
        }
    }

    impl Model {
        fn has_bored(&mut self, candidates: &[Candidate]) -> bool {
            candidates.iter().any(|candidate| {
                let Known { own, others, .. } = *self.known(candidate.id);
                2 * (u64::from(own.active) + u64::from(others.active)) < u64::from(candidate.weight)
            })
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn whatever_happens_the_picked_is_whom_a_look_at_each_finds(
            kind in prop::sample::select(&KINDS[..]),
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let mut state = SchedulerState::new(SERVICES as usize, (SERVICES * EACH) as usize, 7);
            let mut model = Model::default();
            let mut pools: Vec<_> = (0..SERVICES).map(|_| pool_of(kind, &[])).collect();
            for step in steps {
                match step {
                    Step::Open { service, active } => {
                        let pool = &pools[service as usize];
                        let picked = state.pick(ServiceId(service), pool, &request(0));
                        prop_assert_eq!(picked, model.pick(kind, pool.candidates()));
                        if knock_outs(kind) == 2 {
                            let bored = model.has_bored(pool.candidates());
                            prop_assert_eq!(state.tournaments.has_bored(2 * service as usize, pool), bored);
                        }
                        if let Some(id) = picked {
                            state.opened(id, active);
                            model.count(id, active, 1);
                            model.open.push((id, active));
                        }
                    }
                    Step::Change(which) if !model.open.is_empty() => {
                        let which = which.index(model.open.len());
                        let (id, active) = model.open[which];
                        model.open[which].1 = !active;
                        state.changed(id, !active);
                        model.count(id, active, -1);
                        model.count(id, !active, 1);
                    }
                    Step::Close(which) if !model.open.is_empty() => {
                        let (id, active) = model.open.swap_remove(which.index(model.open.len()));
                        state.closed(id, active);
                        model.count(id, active, -1);
                    }
                    Step::Change(_) | Step::Close(_) => {}
                    Step::Others(slot, load) => {
                        let id = model.id(slot);
                        state.set_others(id, load);
                        model.known(id).others = load;
                    }
                    Step::Available(slot, available) => {
                        let id = model.id(slot);
                        state.set_available(id, available);
                        model.known(id).available = available;
                    }
                    Step::Reload { service, weights, first, fresh } => {
                        if fresh < EACH {
                            *model.generations.entry(service * EACH + fresh).or_insert(1) += 1;
                        }
                        let slots = (service * EACH..).zip(weights);
                        let mut candidates: Vec<_> = slots
                            .filter_map(|(slot, weight)| Some(Candidate { id: model.id(slot), weight: weight? }))
                            .collect();
                        let count = candidates.len();
                        candidates.rotate_left(first % count.max(1));
                        pools[service as usize] = pool_of(kind, &candidates);
                    }
                }
            }
        }
    }
}
