//! The whole pipeline against a naive model of its connections: a list, walked from end to end.
//!
//! Random clients and servers send real frames through one worker or three; weights change, servers come and go by
//! reload, time passes. After each step both sides must have the same connections, in the same state, on one worker
//! each, with the same counts per server, in IPv4 and in IPv6; and every frame that leaves must go to the connection's own server.
#![allow(clippy::unwrap_used)]

mod lab;
mod policy;

use std::collections::{HashMap, HashSet};

use lab::{CAPACITY, GONE, LOCAL_PORTS, Lab, Outcome, SERVERS, SERVICES, Setup, Slot};
use policy::{Policy, Takes};
use proptest::prelude::*;
use shunt_dataplane::conn::{Conn, ConnFlags, State, Ticks, Timeouts, View};
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::{Mode, ServerId};
use shunt_dataplane::service::{OutOfState, ServerGone};
use shunt_dataplane::tuple::{Endpoint, Protocol, Tuple, V4};
use shunt_dataplane::verdict::DropReason;
use shunt_engine::{Duration, Instant, Verdict};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// How long after its timeout a connection may still be there.
const LATE_MAX: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
enum Op {
    /// A client's packet, to a connection or to none.
    Client {
        client: u16,
        service: usize,
        flags: u8,
        queue: usize,
    },
    /// Both sides of a handshake, as far as the mode shows them.
    Handshake {
        client: u16,
        service: usize,
        queue: usize,
    },
    /// A packet of a live connection, from its client or its server.
    Live {
        which: usize,
        from_server: bool,
        flags: u8,
        queue: usize,
    },
    /// A packet from a server to where no connection is.
    Stray {
        slot: usize,
        port: u16,
        flags: u8,
        queue: usize,
    },
    Pass(Duration),
    /// Time passes until a live connection's timeout is over, but for some milliseconds before or after.
    UntilDue {
        which: usize,
        before: u64,
        after: u64,
    },
    Weight {
        slot: usize,
        weight: u32,
    },
    /// A server takes no new connections, and so much later its old ones are reset.
    Drain {
        slot: usize,
        millis: u64,
    },
    Limit {
        slot: usize,
        max: Option<u32>,
    },
    Remove {
        slot: usize,
    },
    Add {
        slot: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let flags = || prop_oneof![3 => Just(SYN), 6 => Just(ACK), 3 => Just(FIN | ACK), 1 => Just(RST), 1 => Just(SYN | ACK), 1 => Just(0)];
    let (client, service, queue) = (|| 40_000u16..40_008, || 0..SERVICES.len(), || 0usize..3);
    let slot = || 0..SERVICES.len() * SERVERS;
    let pass = prop_oneof![4 => 1u64..2_000, 3 => 2_000u64..70_000, 1 => 70_000u64..1_000_000];
    prop_oneof![
        5 => (client(), service(), flags(), queue())
            .prop_map(|(client, service, flags, queue)| Op::Client { client, service, flags, queue }),
        5 => (client(), service(), queue())
            .prop_map(|(client, service, queue)| Op::Handshake { client, service, queue }),
        12 => (any::<usize>(), any::<bool>(), flags(), queue())
            .prop_map(|(which, from_server, flags, queue)| Op::Live { which, from_server, flags, queue }),
        1 => (slot(), LOCAL_PORTS, flags(), queue())
            .prop_map(|(slot, port, flags, queue)| Op::Stray { slot, port, flags, queue }),
        4 => pass.prop_map(|millis| Op::Pass(Duration::from_millis(millis))),
        2 => (any::<usize>(), 0u64..150, 0u64..150)
            .prop_map(|(which, before, after)| Op::UntilDue { which, before, after }),
        2 => (slot(), 0u32..4).prop_map(|(slot, weight)| Op::Weight { slot, weight }),
        2 => (slot(), prop_oneof![Just(0), 0u64..20_000])
            .prop_map(|(slot, millis)| Op::Drain { slot, millis }),
        2 => (slot(), prop::option::of(1u32..6)).prop_map(|(slot, max)| Op::Limit { slot, max }),
        1 => slot().prop_map(|slot| Op::Remove { slot }),
        1 => slot().prop_map(|slot| Op::Add { slot }),
    ]
}

/// What the model knows of a connection.
#[derive(Clone, Copy, Debug)]
struct Flow {
    service: usize,
    client: Endpoint<V4>,
    server: ServerId,
    peer: Endpoint<V4>,
    state: State,
    last_seen: Instant,
    worker: usize,
    /// Whether it keeps its client remembered.
    template: bool,
    /// More than one packet has passed.
    again: bool,
    /// A new connection has its request; its local port is in quarantine.
    parked: bool,
    /// Its server's deadline has come: its packets are answered with resets.
    drained: bool,
    /// Of a drained one: whether the client, and the server, have said that they have gone.
    gone: [bool; 2],
}

impl Flow {
    /// What its record is known by.
    fn key(&self) -> Tuple<V4> {
        if self.parked { reply(self) } else { request(self.service, self.client) }
    }

    /// The class in which it makes room at `now`, half-open before closing before idle, and for how many ticks it has been
    /// silent.
    fn makes_room(&self, now: Instant) -> Option<(u32, u32)> {
        let idle = Ticks::at(now).since(Ticks::at(self.last_seen));
        let silent = idle >= Ticks::from_nanos(10_000_000_000).0;
        let class = match self.state {
            State::Udp if self.again => silent.then_some(2)?,
            State::Udp | State::None | State::SynSent | State::SynRecv | State::SynAck => 0,
            State::FinWait | State::CloseWait => silent.then_some(1)?,
            State::TimeWait | State::Close | State::LastAck | State::Listen => 1,
            State::Established => return None,
        };
        Some((class, idle))
    }

    /// The same for its local port: those that are over first, then those half closed; handshakes not in their first
    /// second.
    fn gives_port(&self, now: Instant) -> Option<(u32, u32)> {
        let (class, idle) = self.makes_room(now)?;
        let rank = if self.state.is_over() { 2 } else { u32::from(class == 1) };
        (class != 0 || idle >= Ticks::from_nanos(1_000_000_000).0).then_some((rank, idle))
    }
}

/// Who may get a new connection.
struct Prospect {
    eligible: Vec<usize>,
    /// Each server that has a weight, with its connections and whether a new client's may be one more.
    places: Vec<(usize, u64, Takes)>,
    /// The server that the client is remembered at, if it may get one.
    theirs: Option<usize>,
    /// The same, if it has a place.
    room: Option<usize>,
    /// Whether the client was remembered at all.
    was_named: bool,
}

struct Model {
    lab: Lab,
    setup: Setup,
    workers: usize,
    flows: Vec<Flow>,
    /// The newest server of each slot that a worker has opened a connection to: whose counts it shows. And how many.
    tenants: HashMap<(usize, usize), (u32, u64)>,
    /// The server picked last per service, unless a pick went unseen since.
    last_pick: [Option<ServerId>; SERVICES.len()],
    policy: Policy,
}

impl Model {
    fn new(schedulers: [SchedulerKind; SERVICES.len()], workers: usize, ipv6: bool) -> Self {
        let slot = |slot| Slot {
            present: true,
            generation: 1,
            weight: 1 + slot as u32 % 3,
            drain_at: None,
            max: None,
        };
        let setup = Setup { schedulers, slots: std::array::from_fn(slot), ipv6 };
        let lab = Lab::new(&setup, workers as u16);
        let (flows, tenants) = (Vec::new(), HashMap::new());
        Self {
            lab,
            setup,
            workers,
            flows,
            tenants,
            last_pick: [None; SERVICES.len()],
            policy: Policy::default(),
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Client { client, service, flags, queue } => self.client(client, service, flags, queue),
            Op::Handshake { client, service, queue } => {
                self.client(client, service, SYN, queue);
                let request = request(service, client_endpoint(client));
                if SERVICES[service].1.sees_replies()
                    && let Some(place) = self.find(&request)
                {
                    self.server(place, SYN | ACK, queue + 1);
                }
                self.client(client, service, ACK, queue);
            }
            Op::Live { which, from_server, flags, queue } => {
                let Some(place) = which.checked_rem(self.flows.len()) else { return };
                let flow = self.flows[place];
                if from_server && mode(flow.service).sees_replies() {
                    self.server(place, flags, queue);
                } else {
                    self.client(flow.client.port, flow.service, flags, queue);
                }
            }
            Op::Stray { slot, port, flags, queue } => self.stray(slot, port, flags, queue),
            Op::Pass(duration) => self.lab.pass(duration),
            Op::UntilDue { which, before, after } => {
                let Some(place) = which.checked_rem(self.flows.len()) else { return };
                let flow = &self.flows[place];
                let due = flow.last_seen + Timeouts::default().get(flow.state) + Duration::from_millis(after);
                let nanos = due.since(self.lab.now).as_nanos();
                self.lab.pass(Duration::from_nanos(nanos.saturating_sub(before * 1_000_000)));
            }
            Op::Weight { slot, weight } => self.reload(|setup| {
                (setup.slots[slot].weight, setup.slots[slot].drain_at) = (weight, None);
            }),
            Op::Drain { slot, millis } => {
                let at = self.lab.now + Duration::from_millis(millis);
                self.reload(|setup| {
                    (setup.slots[slot].weight, setup.slots[slot].drain_at) = (0, Some(at));
                });
            }
            Op::Limit { slot, max } => {
                let before = self.setup.slots[slot].max;
                if before.is_some_and(|before| max.is_none_or(|max| max > before)) {
                    self.policy.reopened(slot);
                }
                self.reload(|setup| setup.slots[slot].max = max);
            }
            Op::Remove { slot } => self.reload(|setup| setup.slots[slot].present = false),
            Op::Add { slot } => self.reload(|setup| {
                let slot = &mut setup.slots[slot];
                if !slot.present {
                    *slot = Slot { generation: slot.generation + 1, present: true, drain_at: None, ..*slot };
                }
            }),
        }
    }

    fn reload(&mut self, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup);
        self.lab.reload(&self.setup);
        // A new tenant of a slot starts at zero on every worker.
        for (worker, slot) in (0..self.workers).flat_map(|w| (0..self.setup.slots.len()).map(move |s| (w, s)))
        {
            let Slot { present, generation, .. } = self.setup.slots[slot];
            if let Some(tenant) = self.tenants.get_mut(&(worker, slot))
                && present
                && tenant.0 != generation
            {
                *tenant = (generation, 0);
            }
        }
        self.lab.pass(Duration::ZERO);
    }

    fn client(&mut self, port: u16, service: usize, flags: u8, queue: usize) {
        self.note_drained();
        let (protocol, mode, policy) = SERVICES[service];
        let request = request(service, client_endpoint(port));
        let now = self.lab.now;
        let mut named = self.lab.remembered(service, request.src.address);
        let outcome = self.lab.deliver(queue, &self.lab.client_frame(&request, flags));
        let opens = protocol == Protocol::Udp || flags & (SYN | RST | ACK) == SYN;
        let mut refusal = DropReason::OutOfState;
        let mut resets = policy == OutOfState::Reset;
        let mut schedules = policy == OutOfState::Schedule && flags & RST == 0;
        if let Some(place) = self.find(&request) {
            let flow = self.flows[place];
            let gone = !self.setup.has(flow.server);
            let replaced = !gone && opens && (flow.drained || self.may_be_replaced(&flow, now));
            if flow.drained && !(gone || replaced) {
                return self.drained(place, true, flags, now, &outcome);
            }
            if !(gone || replaced) {
                let view = if mode.sees_replies() { View::Input } else { View::InputOnly };
                self.check_request(&outcome, &flow, queue);
                return self.moved(place, flow.state.next(view, flags), now);
            }
            if replaced && mode == Mode::Fullnat && !matches!(flow.state, State::None | State::SynRecv) {
                self.flows[place].parked = true;
            } else {
                self.flows.swap_remove(place);
                self.ended(&flow, now);
                // What nobody else holds and nobody ever used ended with it.
                let kept =
                    self.policy.keeps(service, flow.client.address, now, |key| self.holders(service, key));
                named = named.filter(|_| kept);
            }
            if gone {
                refusal = DropReason::ServerGone;
                schedules = GONE[service] == ServerGone::Reschedule && flags & RST == 0;
                resets = GONE[service] == ServerGone::Reset;
            }
        }
        if opens || schedules {
            self.opened(service, &request, flags, now, named, &outcome);
        } else {
            assert_eq!(outcome.reason, Some(refusal), "{outcome:?}");
            let answered = resets && flags & RST == 0;
            assert_eq!(outcome.emitted, usize::from(answered), "RST: {outcome:?}");
        }
    }

    /// The packet `request` should have opened a connection, or there is a reason why not.
    /// `named` is the server that the service remembered for the client just before.
    fn opened(
        &mut self,
        service: usize,
        request: &Tuple<V4>,
        flags: u8,
        now: Instant,
        named: Option<ServerId>,
        outcome: &Outcome,
    ) {
        let prospect = self.prospect(service, named);
        let last_pick = match outcome.reason {
            // A scheduler was not asked, or had nobody to name.
            Some(DropReason::NoServer) => self.last_pick[service],
            _ => self.last_pick[service].take(),
        };
        if let Some(reason) = outcome.reason {
            self.policy.tried(service, request.src.address, now);
            return self.not_opened(service, &prospect, reason, now, outcome);
        }
        let (slot, peer) = destination(service, outcome);
        let template = self.picked(service, slot, &prospect, now, request.src.address);
        let free = lab::persistence(service).is_none()
            && prospect.eligible.iter().all(|&slot| self.setup.slots[slot].max.is_none());
        if self.workers == 1 && free {
            self.check_pick(service, slot, &prospect.eligible, last_pick);
        }
        let server = self.setup.id(slot);
        self.last_pick[service] = Some(server);
        let tenant = self.tenants.entry((outcome.worker, slot)).or_default();
        *tenant = (server.generation, if tenant.0 == server.generation { tenant.1 + 1 } else { 1 });
        self.enter(Flow {
            service,
            client: request.src,
            server,
            peer: peer.unwrap_or(request.src),
            state: first_state(service, flags),
            last_seen: now,
            worker: outcome.worker,
            template,
            again: false,
            parked: false,
            drained: false,
            gone: [false; 2],
        });
    }

    /// Who may get a connection of `service` whose client is remembered at the server `named`.
    fn prospect(&self, service: usize, named: Option<ServerId>) -> Prospect {
        let eligible: Vec<_> = self.setup.eligible(service).collect();
        let taking = |id: &ServerId| self.setup.has(*id) && eligible.contains(&(id.slot as usize));
        let theirs = named.filter(taking).map(|id| id.slot as usize);
        let room = theirs.filter(|&slot| {
            let (_, count, _) = self.place(slot);
            self.setup.slots[slot].max.is_none_or(|max| count < max.into())
        });
        let places = eligible.iter().map(|&slot| self.place(slot)).collect();
        Prospect { eligible, places, theirs, room, was_named: named.is_some() }
    }

    /// No connection was opened, and that is right.
    fn not_opened(
        &mut self,
        service: usize,
        prospect: &Prospect,
        reason: DropReason,
        now: Instant,
        outcome: &Outcome,
    ) {
        let here = |flow: &&Flow| flow.worker == outcome.worker;
        if reason == DropReason::NoServer {
            assert_eq!(prospect.room, None, "the client's own server has a place");
            // A scheduler that maps clients to servers has no other for those of a full one.
            let maps = self.setup.schedulers[service].maps();
            let places = &prospect.places;
            assert!(maps || places.iter().all(|(.., takes)| *takes != Takes::Yes), "{places:?}");
            // The ICMP error, while the rate limit lasts.
            return assert!(outcome.emitted <= 1);
        }
        for &(slot, count, _) in &prospect.places {
            self.policy.may_have_left(&self.setup, self.setup.id(slot), count);
        }
        if reason == DropReason::TableFull {
            assert!(self.flows.iter().filter(here).all(|flow| flow.makes_room(now).is_none()));
            return assert_eq!(self.flows.iter().filter(here).count(), CAPACITY);
        }
        assert_eq!((reason, mode(service)), (DropReason::NoLocalPort, Mode::Fullnat), "{outcome:?}");
        let ports = LOCAL_PORTS.filter(|port| usize::from(*port) % self.workers == outcome.worker).count();
        let exhausted = |&slot: &usize| {
            let address = lab::server_address(slot);
            let towards = |flow: &&Flow| lab::server_address(flow.server.slot as usize) == address;
            let stays = |flow: &&Flow| flow.gives_port(now).is_none();
            self.flows.iter().filter(towards).filter(here).filter(stays).count() == ports
        };
        assert!(prospect.eligible.iter().any(exhausted), "a port is free");
    }

    /// The server in `slot` got a connection of `client`, and that is right. Returns whether that is remembered.
    fn picked(&mut self, service: usize, slot: usize, prospect: &Prospect, now: Instant, client: V4) -> bool {
        let eligible = &prospect.eligible;
        assert!(eligible.contains(&slot), "{slot} got a connection, {eligible:?} may");
        let &(_, before, takes) = prospect.places.iter().find(|(other, ..)| *other == slot).unwrap();
        match prospect.room {
            Some(theirs) => assert_eq!(slot, theirs, "the client was remembered there"),
            None => assert_ne!(takes, Takes::No, "{slot} is full"),
        }
        self.policy.entered(&self.setup, self.setup.id(slot), before);
        let template =
            lab::persistence(service).is_some() && prospect.theirs.is_none_or(|theirs| theirs == slot);
        if template {
            self.policy.opened(service, client, prospect.was_named, now);
        } else {
            self.policy.tried(service, client, now);
        }
        template
    }

    /// A new `flow` takes its place, and a local port.
    fn enter(&mut self, flow: Flow) {
        let (state, now) = (flow.state, flow.last_seen);
        if mode(flow.service) == Mode::Fullnat {
            self.gave_its_port(&flow, now);
        }
        self.made_room(flow.worker, now);
        self.flows.push(Flow { state: State::None, ..flow });
        let place = self.flows.len() - 1;
        self.refused(place, state, now);
        self.flows[place].state = state;
    }

    /// If the new `flow` has the port of another one, that may give it, and no better one was there.
    fn gave_its_port(&mut self, flow: &Flow, now: Instant) {
        let towards = |other: &Flow| {
            (other.worker, other.service, other.server.slot) == (flow.worker, flow.service, flow.server.slot)
        };
        let Some(place) = self.flows.iter().position(|other| towards(other) && other.peer == flow.peer)
        else {
            return;
        };
        let holders = self.flows.iter().filter(|other| towards(other));
        let ports = LOCAL_PORTS.filter(|port| usize::from(*port) % self.workers == flow.worker).count();
        assert_eq!(holders.clone().count(), ports, "a port is free");
        let best = holders.filter_map(|other| other.gives_port(now)).max();
        assert!(best.is_some() && self.flows[place].gives_port(now) == best, "{:?}", self.flows[place]);
        let gone = self.flows.swap_remove(place);
        self.ended(&gone, now);
    }

    /// If a worker's table was full, one connection has gone, and none goes before it.
    fn made_room(&mut self, worker: usize, now: Instant) {
        let here = |flow: &&Flow| flow.worker == worker;
        if self.flows.iter().filter(here).count() < CAPACITY {
            return;
        }
        let rank = |flow: &Flow| flow.makes_room(now).map(|(class, idle)| (class, u32::MAX - idle));
        let first = self.flows.iter().filter(here).filter_map(rank).min();
        let there = self.records();
        let went = |flow: &Flow| here(&flow) && !there.contains_key(&flow.key()) && rank(flow) == first;
        let place = self.flows.iter().position(went);
        let place = place.filter(|_| first.is_some()).expect("the one to go has made room");
        let gone = self.flows.swap_remove(place);
        self.ended(&gone, now);
    }

    /// All records by what they are known by, with their workers.
    fn records(&self) -> HashMap<Tuple<V4>, (usize, Conn<V4>)> {
        let key = |conn: &Conn<V4>| match conn.flags.has(ConnFlags::PARKED) {
            true => conn.reply().unwrap(),
            false => conn.request(),
        };
        self.lab.connections().into_iter().map(|(worker, conn)| (key(&conn), (worker, conn))).collect()
    }

    /// Takes over what has become of connections whose server's deadline has come, and sees that it has.
    fn note_drained(&mut self) {
        let (there, now, setup) = (self.records(), self.lab.now, &self.setup);
        let mut ended = Vec::new();
        self.flows.retain_mut(|flow| {
            let at = setup.slots[flow.server.slot as usize].drain_at.filter(|_| setup.has(flow.server));
            let over = at.is_some_and(|at| at <= now);
            let long_over = at.is_some_and(|at| at + Duration::from_millis(5) <= now && flow.last_seen < at);
            let Some((_, conn)) = there.get(&flow.key()) else {
                if over && flow.state == State::Udp {
                    ended.push(*flow);
                    return false;
                }
                return true;
            };
            if conn.flags.has(ConnFlags::DRAINED) && !flow.drained {
                assert!(over && !flow.parked, "{flow:?}");
                assert!(!matches!(flow.state, State::Udp | State::TimeWait | State::Close), "{flow:?}");
                let last_seen = Instant::from_nanos(u64::from(conn.last_seen.0) << Ticks::SHIFT);
                let refused = flow.state.is_half_open();
                if refused {
                    ended.push(*flow);
                }
                let template = flow.template && !refused;
                *flow = Flow { drained: true, state: State::Close, last_seen, template, ..*flow };
            }
            let over_anyway = flow.drained || matches!(flow.state, State::TimeWait | State::Close);
            assert!(!long_over || flow.parked || over_anyway, "still there after its deadline: {flow:?}");
            true
        });
        ended.iter().for_each(|flow| self.ended(flow, now));
    }

    /// A packet of a drained connection resets whoever has not gone.
    fn drained(&mut self, place: usize, from_client: bool, flags: u8, now: Instant, outcome: &Outcome) {
        let flow = &mut self.flows[place];
        assert_eq!((outcome.reason, outcome.worker), (Some(DropReason::Drained), flow.worker), "{outcome:?}");
        let (sender, other) = if from_client { (0, 1) } else { (1, 0) };
        let (reset, acks) = (flags & RST != 0, flags & ACK != 0);
        let to_other = (!reset || acks) && !flow.gone[other];
        let to_sender = !reset && acks;
        assert_eq!(outcome.emitted, usize::from(to_other) + usize::from(to_sender), "{outcome:?}");
        flow.gone[sender] |= reset;
        flow.last_seen = now;
        if flow.gone == [true; 2] {
            let gone = self.flows.swap_remove(place);
            self.ended(&gone, now);
        }
    }

    /// Whether a first SYN on its tuple opens a new connection.
    fn may_be_replaced(&self, flow: &Flow, now: Instant) -> bool {
        let idle = Ticks::at(now).since(Ticks::at(flow.last_seen));
        match flow.state {
            State::TimeWait | State::Close | State::LastAck => true,
            State::FinWait | State::CloseWait => {
                !mode(flow.service).sees_replies() || idle >= Ticks::from_nanos(1_000_000_000).0
            }
            State::None | State::SynRecv => self.setup.slots[flow.server.slot as usize].weight == 0,
            _ => false,
        }
    }

    /// What the scheduler promises, as far as one worker alone can keep it.
    fn check_pick(&self, service: usize, slot: usize, eligible: &[usize], last_pick: Option<ServerId>) {
        match self.setup.schedulers[service] {
            SchedulerKind::Rr => {
                let again = last_pick == Some(self.setup.id(slot));
                assert!(!again || eligible.len() == 1, "rr picked {slot} twice among {eligible:?}");
            }
            SchedulerKind::Lc => {
                self.check_cheapest(slot, eligible, |active, inactive, _| (256 * active + inactive, 1))
            }
            SchedulerKind::Wlc => {
                self.check_cheapest(slot, eligible, |active, inactive, weight| {
                    (256 * active + inactive, weight)
                });
            }
            SchedulerKind::Nq if eligible.iter().any(|&other| self.active(other) == 0) => {
                assert_eq!(self.active(slot), 0, "nq picked {slot}, but others among {eligible:?} are idle");
            }
            SchedulerKind::Sed | SchedulerKind::Nq => {
                self.check_cheapest(slot, eligible, |active, _, weight| (active + 1, weight));
            }
            SchedulerKind::Fo => {
                let weight = |slot: usize| self.setup.slots[slot].weight;
                let heavier = eligible.iter().find(|&&other| weight(other) > weight(slot));
                assert_eq!(heavier, None, "fo picked {slot}");
            }
            SchedulerKind::Ovf => assert!(self.active(slot) <= self.setup.slots[slot].weight.into()),
            SchedulerKind::Wrr
            | SchedulerKind::Sh
            | SchedulerKind::Dh
            | SchedulerKind::Lblc
            | SchedulerKind::Lblcr
            | SchedulerKind::Mh
            | SchedulerKind::Twos => {}
        }
    }

    fn active(&self, slot: usize) -> u64 {
        self.counts(self.setup.id(slot), None).0
    }

    /// Nobody has a lower cost by weight; both are said by `price` of (active, inactive, weight).
    fn check_cheapest(&self, slot: usize, eligible: &[usize], price: impl Fn(u64, u64, u64) -> (u64, u64)) {
        let price = |slot: usize| {
            let (active, inactive) = self.counts(self.setup.id(slot), None);
            price(active, inactive, self.setup.slots[slot].weight.into())
        };
        let (cost, weight) = price(slot);
        let cheaper = |&&other: &&usize| {
            let (its_cost, its_weight) = price(other);
            its_cost * weight < cost * its_weight
        };
        let cheapest = eligible.iter().find(cheaper);
        let kind = self.setup.schedulers[slot / SERVERS];
        assert!(cheapest.is_none(), "{kind:?} picked {slot}, but {cheapest:?} is cheaper");
    }

    fn server(&mut self, place: usize, flags: u8, queue: usize) {
        let flow = self.flows[place];
        self.note_drained();
        // A flow of datagrams may have ended just now.
        let Some(place) = self.flows.iter().position(|other| other.key() == flow.key()) else { return };
        let flow = self.flows[place];
        let (protocol, mode, _) = SERVICES[flow.service];
        let slot = flow.server.slot as usize;
        let reply = reply(&flow);
        let now = self.lab.now;
        let outcome = self.lab.deliver(queue, &self.lab.frame(lab::server_mac(slot), &reply, flags));
        if flow.parked {
            assert_eq!(outcome.reason, Some(DropReason::OutOfState), "{outcome:?}");
            assert_eq!(outcome.emitted, usize::from(flags & RST == 0));
        } else if self.setup.has(flow.server) && flow.drained {
            self.drained(place, false, flags, now, &outcome);
        } else if self.setup.has(flow.server) {
            assert_eq!(outcome.verdict, Verdict::Forward(shunt_engine::PortId(0)), "{outcome:?}");
            assert_eq!(outcome.worker, flow.worker);
            let (mac, tuple, outer) = lab::parse(&outcome.frame);
            let to_client = request(flow.service, flow.client).reversed();
            assert_eq!((mac, tuple, outer), (lab::client_mac(), to_client, None));
            self.moved(place, flow.state.next(View::Output, flags), now);
        } else if mode == Mode::Nat && !self.setup.slots[slot].present {
            // Nobody's packet any more, as far as this director can tell; the connection times out.
            assert_eq!(outcome.verdict, Verdict::Punt);
        } else {
            self.flows.swap_remove(place);
            self.ended(&flow, now);
            assert_eq!(outcome.reason, Some(DropReason::ServerGone), "{outcome:?}");
            let answered = mode == Mode::Fullnat && protocol == Protocol::Tcp && flags & RST == 0;
            assert_eq!(outcome.emitted, usize::from(answered));
        }
    }

    fn stray(&mut self, slot: usize, port: u16, flags: u8, queue: usize) {
        let service = slot / SERVERS;
        let (protocol, mode, _) = SERVICES[service];
        let src = Endpoint::new(lab::server_address(slot), if mode.sees_replies() { 9001 } else { 8000 });
        let dst = Endpoint::new(lab::local_address(service), port);
        let tuple = Tuple { src, dst, protocol };
        let outcome = self.lab.deliver(queue, &self.lab.frame(lab::server_mac(slot), &tuple, flags));
        // The local addresses of DR, TUN and NAT services are taken off the kernel as well.
        assert_eq!(outcome.reason, Some(DropReason::OutOfState), "{outcome:?}");
        assert_eq!(outcome.emitted, usize::from(protocol == Protocol::Tcp && flags & RST == 0));
    }

    /// A client's packet of a live connection must have gone to the connection's server.
    fn check_request(&self, outcome: &Outcome, flow: &Flow, queue: usize) {
        assert_eq!(outcome.verdict, Verdict::Forward(shunt_engine::PortId(0)), "queue {queue}: {outcome:?}");
        assert_eq!(outcome.worker, flow.worker);
        let (slot, peer) = destination(flow.service, outcome);
        assert_eq!((slot, peer.unwrap_or(flow.peer)), (flow.server.slot as usize, flow.peer));
        let (_, tuple, _) = lab::parse(&outcome.frame);
        assert_eq!(tuple.src, flow.peer);
    }

    /// Compares everything the workers have with the model; connections whose time has come may be gone.
    fn check(&mut self) {
        self.note_drained();
        let mut tuples = HashSet::new();
        let mut there = self.records();
        for (_, conn) in self.lab.connections() {
            let parked = conn.flags.has(ConnFlags::PARKED);
            assert!(parked || tuples.insert(conn.request()), "{:?} is there twice", conn.request());
            assert!(
                conn.reply().is_none_or(|reply| tuples.insert(reply)),
                "{:?} is there twice",
                conn.reply()
            );
        }
        let now = self.lab.now;
        let mut ended = Vec::new();
        self.flows.retain(|flow| {
            let (idle, timeout) = (now.since(flow.last_seen), Timeouts::default().get(flow.state));
            let Some((worker, conn)) = there.remove(&flow.key()) else {
                assert!(idle >= timeout, "went after {idle:?} of {timeout:?}: {flow:?}");
                ended.push(*flow);
                return false;
            };
            let late = idle.as_nanos() > timeout.as_nanos() + LATE_MAX.as_nanos();
            assert!(!late, "still there after {idle:?} of {timeout:?}: {flow:?}");
            assert_eq!((worker, conn.server_id, conn.peer), (flow.worker, flow.server, flow.peer));
            assert_eq!((State::from_number(conn.state), conn.mode()), (flow.state, mode(flow.service)));
            assert_eq!(conn.flags.has(ConnFlags::ACTIVE), flow.state.is_active());
            assert_eq!(conn.last_seen, Ticks::at(flow.last_seen));
            true
        });
        assert!(there.is_empty(), "only the workers have {there:?}");
        ended.iter().for_each(|flow| self.ended(flow, now));
        let clients: Vec<_> = (0..CLIENTS).map(|number| client_endpoint(number).address).collect();
        let flows = &self.flows;
        self.policy.check(&self.lab, &clients, |service, key| holders(flows, service, key));
        for (&(worker, slot), &(generation, opened)) in &self.tenants {
            let id = ServerId { slot: slot as u32, generation };
            let (active, inactive) = self.counts(id, Some(worker));
            assert_eq!(self.lab.load(worker, slot), [active, inactive, opened], "worker {worker}, {id:?}");
        }
    }

    /// A packet of a live connection has brought it to `state`.
    fn moved(&mut self, place: usize, state: State, now: Instant) {
        self.refused(place, state, now);
        let flow = &mut self.flows[place];
        (flow.state, flow.last_seen, flow.again) = (state, now, true);
    }

    /// If a handshake closes by getting into `state`, its client is not remembered for it.
    fn refused(&mut self, place: usize, state: State, now: Instant) {
        let flow = self.flows[place];
        if flow.state.is_half_open() && state == State::Close {
            self.ended(&flow, now);
            self.flows[place].template = false;
        }
    }

    fn ended(&mut self, flow: &Flow, now: Instant) {
        if flow.template {
            let gone = !self.setup.has(flow.server);
            self.policy.ended(flow.service, flow.client.address, flow.state, gone, now);
        }
    }

    /// A server slot with its connections, and whether a new client's may be one more.
    fn place(&self, slot: usize) -> (usize, u64, Takes) {
        let (active, inactive) = self.counts(self.setup.id(slot), None);
        let takes = self.policy.takes(&self.setup, self.setup.id(slot), active + inactive);
        (slot, active + inactive, takes)
    }

    fn holders(&self, service: usize, key: V4) -> usize {
        holders(&self.flows, service, key)
    }

    /// Active and inactive connections of a server, of one worker or of all.
    fn counts(&self, server: ServerId, worker: Option<usize>) -> (u64, u64) {
        let flows = self.flows.iter().filter(|flow| flow.server == server);
        let flows = flows.filter(|flow| worker.is_none_or(|worker| worker == flow.worker));
        let (active, all) =
            flows.fold((0, 0), |(active, all), flow| (active + u64::from(flow.state.is_active()), all + 1));
        (active, all - active)
    }

    fn find(&self, tuple: &Tuple<V4>) -> Option<usize> {
        self.flows.iter().position(|flow| !flow.parked && request(flow.service, flow.client) == *tuple)
    }
}

/// Which server slot a frame left for and, in FULLNAT, from which local endpoint.
fn destination(service: usize, outcome: &Outcome) -> (usize, Option<Endpoint<V4>>) {
    assert_eq!(outcome.verdict, Verdict::Forward(shunt_engine::PortId(0)));
    let (mac, tuple, outer) = lab::parse(&outcome.frame);
    let slot = usize::from(mac.0[5]);
    assert_eq!((mac, slot / SERVERS), (lab::server_mac(slot), service));
    let server = Endpoint::new(lab::server_address(slot), 9000);
    let mode = mode(service);
    let dst = if mode.sees_replies() { server } else { lab::vip(service) };
    assert_eq!(tuple.dst, dst);
    assert_eq!(outer, (mode == Mode::Tun).then_some(server.address));
    (slot, (mode == Mode::Fullnat).then_some(tuple.src))
}

/// The state a first packet with `flags` leads to.
fn first_state(service: usize, flags: u8) -> State {
    let view = if mode(service).sees_replies() { View::Input } else { View::InputOnly };
    match SERVICES[service].0 {
        Protocol::Tcp => State::None.next(view, flags),
        Protocol::Udp => State::Udp,
    }
}

fn mode(service: usize) -> Mode {
    SERVICES[service].1
}

fn client_endpoint(port: u16) -> Endpoint<V4> {
    Endpoint::new(V4(0xc633_6406 + u32::from(port % CLIENTS)), port)
}

/// Client addresses.
const CLIENTS: u16 = 3;

/// Connections that keep a client remembered.
fn holders(flows: &[Flow], service: usize, key: V4) -> usize {
    let of = |flow: &&Flow| policy::client_of(flow.service, flow.client.address) == Some(key);
    flows.iter().filter(|flow| flow.service == service && flow.template).filter(of).count()
}

fn request(service: usize, client: Endpoint<V4>) -> Tuple<V4> {
    Tuple { src: client, dst: lab::vip(service), protocol: SERVICES[service].0 }
}

fn reply(flow: &Flow) -> Tuple<V4> {
    let server = Endpoint::new(lab::server_address(flow.server.slot as usize), 9000);
    Tuple { src: server, dst: flow.peer, protocol: SERVICES[flow.service].0 }
}

fn run(schedulers: [SchedulerKind; SERVICES.len()], workers: usize, ipv6: bool, ops: Vec<Op>) {
    let mut model = Model::new(schedulers, workers, ipv6);
    for op in ops {
        model.apply(op);
        model.check();
    }
}

/// All schedulers that find a server whenever there is one with a weight: `ovf` refuses when all are full.
fn scheduler() -> impl Strategy<Value = SchedulerKind> {
    let all = prop::sample::select(&SchedulerKind::ALL[..]);
    all.prop_filter("refuses when all are full", |&kind| kind != SchedulerKind::Ovf)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_worker_does_what_the_model_does(
        schedulers in proptest::array::uniform(scheduler()),
        ipv6: bool,
        ops in prop::collection::vec(op(), 1..120),
    ) {
        run(schedulers, 1, ipv6, ops);
    }

    #[test]
    fn three_workers_do_what_the_model_does(
        schedulers in proptest::array::uniform(scheduler()),
        ipv6: bool,
        ops in prop::collection::vec(op(), 1..120),
    ) {
        run(schedulers, 3, ipv6, ops);
    }
}
