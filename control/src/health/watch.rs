//! All checks, servers and services together: what is to be asked when, and what the answers come to. It is driven by
//! calls with the present moment and does no I/O.
//!
//! The same question to the same target in the same rhythm is one check, however many servers it is for.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use shunt_dataplane::scheduler::SchedulerKind;
use shunt_engine::{Duration, Instant};

use super::Standing;
use super::check::{Answer, Check, Rhythm, State};
use super::passive::{Passive, Seen};
use super::probe::{Failure, Layer, Passed, Probe, Target};
use super::server::Server;
use super::service::{self, Choice, Policy, Service};
use crate::config::{self, Config, Initial, ServerPort, called_port};
use crate::state::{ServerKey, server_key};

/// From one new check's first question to the next one's, so that many do not begin at once.
const START_GAP: Duration = Duration::from_micros(100);

/// The number of a check; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckId(u64);

/// What a check asks, whom, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// What.
    pub probe: Probe,
    /// Whom.
    pub target: Target,
    /// How often.
    pub rhythm: Rhythm,
}

/// Something that people and programs want to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A server has another state.
    Server {
        /// Its service.
        service: String,
        /// Its name.
        server: String,
        /// What it is now.
        state: State,
        /// The check that failed, if one did, and how.
        why: Option<String>,
    },
    /// A service has lost or regained its quorum.
    Quorum {
        /// Its name.
        service: String,
        /// Whether it has it.
        has_quorum: bool,
    },
    /// Other servers of a service take its connections.
    Choice {
        /// Its name.
        service: String,
        /// Which.
        choice: Choice,
    },
}

/// A check with what is known of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) question: Arc<Question>,
    pub(super) check: Check,
    /// Servers that it is for: number of the service, place in it.
    places: Vec<(usize, usize)>,
    pub(super) last: Option<Result<Passed, Failure>>,
    pub(super) last_failure: Option<(Instant, Failure)>,
    /// Of the last right answer.
    pub(super) latency: Option<std::time::Duration>,
}

/// A service with its servers.
#[derive(Debug)]
pub(super) struct Watched {
    name: String,
    policy: Policy,
    /// Whether weights may be scaled: for ovf they are numbers of connections.
    scales: bool,
    pub(super) members: Vec<Member>,
    pub(super) service: Service,
    /// When the weight of a server that starts slowly grows.
    grows: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) key: ServerKey,
    name: String,
    weight: u32,
    sorry: bool,
    pub(super) checks: Vec<CheckId>,
    pub(super) passive: Option<Passive>,
    pub(super) server: Server,
    /// It was there when the daemon started: it is no colder than the others.
    warm: bool,
    standing: Standing,
}

/// The whole.
#[derive(Debug, Default)]
pub struct Watch {
    pub(super) checks: HashMap<CheckId, Entry>,
    by_question: HashMap<Arc<Question>, CheckId>,
    /// The same in whatever rhythm.
    by_target: HashMap<(Probe, Target), CheckId>,
    next_id: u64,
    due: BinaryHeap<Reverse<(Instant, CheckId)>>,
    /// By number; numbers stay, and those of services that are gone are used again.
    services: Vec<Option<Watched>>,
    free: Vec<usize>,
    by_name: HashMap<String, usize>,
    growing: BTreeSet<(Instant, usize)>,
    changed: BTreeSet<usize>,
    /// Services to be judged, once for all that happens in a moment: that takes as long as they have servers.
    pending: BTreeSet<usize>,
    notices: Vec<Notice>,
    configured: bool,
}

impl Watch {
    /// Gives the servers of `config` the standing they have; those that are new take no connections if they are to be
    /// checked first.
    pub fn carry_over(&self, config: &mut Config, now: Instant) {
        for service in &mut config.services {
            let members = self.watched(&service.name).map(Watched::standings).unwrap_or_default();
            let standing = |server: &config::Server| {
                members.get(&server_key(server)).copied().unwrap_or_else(|| fresh(server, now))
            };
            let differs = |server: &config::Server| is_watched(server) && server.standing != standing(server);
            if service.servers.iter().any(differs) {
                let servers = Arc::make_mut(service).servers.iter_mut();
                let watched = servers.filter(|server| is_watched(server));
                watched.for_each(|server| server.standing = standing(server));
            }
        }
    }

    /// Watches the servers of `config` from now on, which is in force. What stays goes on as it was.
    pub fn configure(&mut self, config: &Config, now: Instant) {
        let mut gone = std::mem::take(&mut self.by_name);
        let mut fresh = 0;
        for service in &config.services {
            let number = gone.remove(&service.name).unwrap_or_else(|| self.free_number());
            self.by_name.insert(service.name.clone(), number);
            self.watch(number, service, &mut fresh, now);
        }
        for number in gone.into_values() {
            self.forget_places(number);
            self.growing.retain(|&(_, other)| other != number);
            self.changed.remove(&number);
            self.pending.remove(&number);
            self.services[number] = None;
            self.free.push(number);
        }
        self.checks.retain(|_, entry| !entry.places.is_empty());
        self.by_question.retain(|_, id| self.checks.contains_key(id));
        self.by_target.retain(|_, id| self.checks.contains_key(id));
        self.configured = true;
    }

    /// Begins what is to be asked by `now`, at most `room` questions.
    pub fn begin(&mut self, now: Instant, room: usize) -> Vec<(CheckId, Arc<Question>)> {
        let mut begun = Vec::new();
        while begun.len() < room
            && let Some(&Reverse((at, id))) = self.due.peek()
            && at <= now
        {
            self.due.pop();
            // What was said of a check that is gone, or is asked at another time by now, is no longer true.
            let Some(entry) = self.checks.get_mut(&id) else { continue };
            if entry.check.next_deadline() == Some(at) {
                entry.check.begin(now);
                begun.push((id, entry.question.clone()));
            }
        }
        begun
    }

    /// When there is something to ask, or a weight grows.
    pub fn next_deadline(&self) -> Option<Instant> {
        let asks = self.due.peek().map(|Reverse((at, _))| *at);
        let grows = self.growing.first().map(|(at, _)| *at);
        asks.into_iter().chain(grows).min()
    }

    /// Takes an answer; `chance` is for the jitter.
    pub fn answered(&mut self, id: CheckId, result: Result<Passed, Failure>, now: Instant, chance: u32) {
        let Some(entry) = self.checks.get_mut(&id) else { return };
        let weight = entry.weight();
        let answer = match &result {
            Ok(_) => Answer::Passed,
            Err(failure) if failure.layer() == Layer::Local => Answer::NotAsked,
            Err(_) => Answer::Failed,
        };
        if let Err(failure) = &result {
            entry.last_failure = Some((now, failure.clone()));
        }
        entry.latency = result.as_ref().ok().map(|passed| passed.latency).or(entry.latency);
        entry.last = Some(result);
        let change = entry.check.end(answer, now, chance);
        if let Some(at) = entry.check.next_deadline() {
            self.due.push(Reverse((at, id)));
        }
        if change.is_some() || entry.weight() != weight {
            let places = entry.places.clone();
            for &(number, member) in &places {
                self.judge_server(number, member, now);
            }
            self.pending.extend(places.into_iter().map(|(number, _)| number));
        }
    }

    /// Takes what the workers have seen of a server that has a passive check.
    pub fn seen(&mut self, service: &str, server: &config::Server, seen: Seen, now: Instant) {
        let Some(&number) = self.by_name.get(service) else { return };
        let Some(watched) = &mut self.services[number] else { return };
        let key = server_key(server);
        let Some(place) = watched.members.iter().position(|member| member.key == key) else { return };
        let passive = watched.members[place].passive.as_mut();
        if passive.and_then(|passive| passive.look(seen, now)).is_some() {
            self.judge_server(number, place, now);
            self.pending.insert(number);
        }
    }

    /// Lets weights grow that are to by `now`.
    pub fn grow(&mut self, now: Instant) {
        while let Some(&(at, number)) = self.growing.first()
            && at <= now
        {
            self.growing.pop_first();
            self.pending.insert(number);
        }
    }

    /// Whether servers may have another standing than the configuration in force says.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty() || !self.pending.is_empty()
    }

    /// Brings the changed standings into `config`, the one in force. Returns whether there were any.
    pub fn apply(&mut self, config: &mut Config, now: Instant) -> bool {
        for number in std::mem::take(&mut self.pending) {
            self.judge_service(number, now);
        }
        let changed = std::mem::take(&mut self.changed);
        let watched = changed.iter().filter_map(|&number| self.services[number].as_ref());
        let changed: HashMap<&str, &Watched> =
            watched.map(|watched| (watched.name.as_str(), watched)).collect();
        for service in &mut config.services {
            let Some(watched) = changed.get(service.name.as_str()) else { continue };
            let standings = watched.standings();
            let servers = Arc::make_mut(service).servers.iter_mut();
            for server in servers.filter(|server| is_watched(server)) {
                server.standing = standings.get(&server_key(server)).copied().unwrap_or(server.standing);
            }
        }
        !changed.is_empty()
    }

    /// What has happened since this was asked last.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    pub(super) fn watched(&self, service: &str) -> Option<&Watched> {
        self.services[*self.by_name.get(service)?].as_ref()
    }

    fn free_number(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.services.push(None);
            self.services.len() - 1
        })
    }

    /// Takes the service `number` off the checks of its servers.
    fn forget_places(&mut self, number: usize) {
        let Some(watched) = &self.services[number] else { return };
        for id in watched.members.iter().flat_map(|member| &member.checks) {
            if let Some(entry) = self.checks.get_mut(id) {
                entry.places.retain(|&(other, _)| other != number);
            }
        }
    }

    /// Watches one service; `fresh` counts the checks that are new.
    fn watch(&mut self, number: usize, typed: &config::Service, fresh: &mut u64, now: Instant) {
        self.forget_places(number);
        let old = self.services[number].take();
        let (service, old) = old.map_or_else(Default::default, |old| (old.service, old.members));
        let mut old: HashMap<ServerKey, Member> =
            old.into_iter().map(|member| (member.key, member)).collect();
        let mut members = Vec::new();
        for server in typed.servers.iter().filter(|server| is_watched(server)) {
            let questions = questions(typed, server);
            let checks: Vec<_> =
                questions.into_iter().map(|question| self.check(question, fresh, now)).collect();
            for id in &checks {
                let entry = self.checks.get_mut(id).expect("it was found or made just now");
                entry.places.push((number, members.len()));
            }
            members.push(self.member(server, checks, old.remove(&server_key(server)), now));
        }
        self.services[number] = Some(Watched {
            name: typed.name.clone(),
            policy: typed.policy,
            scales: typed.scheduler.kind != SchedulerKind::Ovf,
            members,
            service,
            grows: None,
        });
        let members = self.services[number].as_ref().map_or(0, |watched| watched.members.len());
        (0..members).for_each(|member| self.judge_server(number, member, now));
        self.judge_service(number, now);
    }

    fn member(
        &self,
        typed: &config::Server,
        checks: Vec<CheckId>,
        old: Option<Member>,
        now: Instant,
    ) -> Member {
        let slow_start = typed.health.slow_start;
        let trusted = typed.health.initial == Initial::Up;
        let known = old.as_ref().and_then(|old| old.passive.as_ref());
        let passive = typed.health.passive.map(|limits| match known {
            Some(known) => known.with(limits),
            None => Passive::new(limits, now),
        });
        let (server, warm) = match old {
            Some(old) => (old.server.reloaded(slow_start), old.warm),
            None => (Server::new(trusted, slow_start, now), !self.configured),
        };
        Member {
            key: server_key(typed),
            name: typed.name.clone(),
            weight: typed.weight,
            sorry: typed.sorry,
            checks,
            passive,
            server,
            warm,
            standing: typed.standing,
        }
    }

    /// The check with this question: the one there is, or a new one, that knows what one in another rhythm does.
    fn check(&mut self, question: Question, fresh: &mut u64, now: Instant) -> CheckId {
        if let Some(&id) = self.by_question.get(&question) {
            return id;
        }
        let id = CheckId(self.next_id);
        self.next_id += 1;
        let question = Arc::new(question);
        let rhythm = question.rhythm;
        let target = (question.probe.clone(), question.target);
        let known = self.by_target.insert(target, id).and_then(|known| self.checks.get(&known));
        let check = match known {
            Some(known) => known.check.in_rhythm(rhythm, now),
            None => {
                let gap = *fresh * START_GAP.as_nanos() % rhythm.interval.as_nanos();
                *fresh += 1;
                Check::new(rhythm, now, now + Duration::from_nanos(gap))
            }
        };
        self.due.extend(check.next_deadline().map(|at| Reverse((at, id))));
        let entry = Entry {
            question: question.clone(),
            check,
            places: Vec::new(),
            last: known.and_then(|known| known.last.clone()),
            last_failure: known.and_then(|known| known.last_failure.clone()),
            latency: known.and_then(|known| known.latency),
        };
        self.checks.insert(id, entry);
        self.by_question.insert(question, id);
        id
    }

    fn judge_server(&mut self, number: usize, member: usize, now: Instant) {
        let Some(watched) = &mut self.services[number] else { return };
        let Some(member) = watched.members.get_mut(member) else { return };
        let entries = member.checks.iter().filter_map(|id| self.checks.get(id));
        let passive = member.passive.as_ref().map(Passive::state);
        let states = entries.clone().map(|entry| entry.check.state()).chain(passive);
        let before = member.server.state();
        let Some(state) = member.server.judge(states, now, !member.warm) else { return };
        member.warm &= state == State::Unknown;
        // That a server is to be checked first is no news, nor that one is up of which nothing is known yet.
        let nothing_known = entries.clone().all(|entry| entry.check.state() == State::Unknown);
        if state == State::Unknown || (before, state, nothing_known) == (State::Unknown, State::Up, true) {
            return;
        }
        let failed = entries.filter(|entry| entry.check.state() == State::Down);
        let seen = (passive == Some(State::Down)).then(|| "passive: connections to it fail".to_owned());
        let why = failed.filter_map(Entry::complaint).next().or(seen);
        self.notices.push(Notice::Server {
            service: watched.name.clone(),
            server: member.name.clone(),
            state,
            why: why.filter(|_| state == State::Down),
        });
    }

    fn judge_service(&mut self, number: usize, now: Instant) {
        let Some(watched) = &mut self.services[number] else { return };
        let weights: Vec<u32> =
            watched.members.iter().map(|member| member.base_weight(&self.checks)).collect();
        let both = || watched.members.iter().zip(&weights);
        let judged: Vec<_> = both()
            .filter(|(member, _)| !member.sorry)
            .map(|(member, &weight)| service::Member { state: member.server.state(), weight })
            .collect();
        let (had_quorum, chosen) = (watched.service.has_quorum(), watched.service.choice());
        watched.service.judge(watched.policy, &judged);
        let (has_quorum, choice) = (watched.service.has_quorum(), watched.service.choice());
        if has_quorum != had_quorum {
            self.notices.push(Notice::Quorum { service: watched.name.clone(), has_quorum });
        }
        if choice != chosen {
            self.notices.push(Notice::Choice { service: watched.name.clone(), choice });
        }
        let scale = watched.scale(&weights, now);
        let standings: Vec<_> =
            both().map(|(member, &weight)| member.standing_in(choice, weight, scale, now)).collect();
        let grows = watched.members.iter().filter_map(|member| member.server.next_deadline(now)).min();
        for (member, standing) in watched.members.iter_mut().zip(standings) {
            if member.standing != standing {
                member.standing = standing;
                self.changed.insert(number);
            }
        }
        if let Some(before) = std::mem::replace(&mut watched.grows, grows) {
            self.growing.remove(&(before, number));
        }
        self.growing.extend(grows.map(|at| (at, number)));
    }
}

impl Watched {
    fn standings(&self) -> HashMap<ServerKey, Standing> {
        self.members.iter().map(|member| (member.key, member.standing)).collect()
    }

    /// What all weights are multiplied by, so that parts of small ones can be told apart.
    fn scale(&self, weights: &[u32], now: Instant) -> u32 {
        let starting = self.members.iter().any(|member| member.server.share(now).is_some());
        let largest = weights.iter().copied().max().unwrap_or(0).max(1);
        if starting && self.scales { (WEIGHT_MAX / largest).clamp(1, 100) } else { 1 }
    }
}

/// The largest weight that a file may name.
const WEIGHT_MAX: u32 = 65_535;

impl Member {
    /// Its weight as its checks say, or else its file. One that drains has none, whatever they say.
    fn base_weight(&self, checks: &HashMap<CheckId, Entry>) -> u32 {
        let said = self.checks.iter().filter_map(|id| checks.get(id)?.weight()).min();
        said.filter(|_| self.weight > 0).unwrap_or(self.weight)
    }

    fn standing_in(&self, choice: Choice, weight: u32, scale: u32, now: Instant) -> Standing {
        let out = match self.standing {
            Standing::Out(since) => Standing::Out(since),
            Standing::Whole | Standing::Weighing(_) | Standing::Aside => Standing::Out(now),
        };
        let whole = weight * scale;
        let weighing = match self.server.share(now) {
            Some(share) => Standing::Weighing(share.of(whole)),
            None if whole == self.weight => Standing::Whole,
            None => Standing::Weighing(whole),
        };
        match (self.sorry, choice, self.server.state()) {
            (true, Choice::Sorry, _) => Standing::Whole,
            (true, Choice::Healthy | Choice::All, _) => Standing::Aside,
            (false, Choice::Sorry, State::Up) => Standing::Aside,
            (false, Choice::Healthy, State::Up) => weighing,
            (false, Choice::All, State::Up | State::Down) => weighing,
            (false, Choice::Sorry | Choice::Healthy, State::Down) => out,
            (false, _, State::Unknown) => out,
        }
    }
}

impl Entry {
    /// The weight that the server is to have by this check.
    fn weight(&self) -> Option<u32> {
        self.last.as_ref()?.as_ref().ok()?.weight.map(u32::from)
    }

    /// What is wrong, by its last failure.
    fn complaint(&self) -> Option<String> {
        let (_, failure) = self.last_failure.as_ref()?;
        Some(format!("{} {}: {failure}", self.question.probe.kind(), self.question.target.address))
    }
}

/// Whether a server is checked at all: one that a reload has left out takes nothing any more.
fn is_watched(server: &config::Server) -> bool {
    !server.draining.is_some_and(|draining| draining.left_out)
}

/// What a server is that nobody has asked.
fn fresh(server: &config::Server, now: Instant) -> Standing {
    match (server.sorry, server.health.initial, server.health.checks.is_empty()) {
        (true, _, _) => Standing::Aside,
        (false, Initial::Up, _) | (false, Initial::Down, true) => Standing::Whole,
        (false, Initial::Down, false) => Standing::Out(now),
    }
}

/// What the checks of a server ask.
fn questions(service: &config::Service, server: &config::Server) -> Vec<Question> {
    let own = match server.port {
        ServerPort::Mapped(port) => Some(port),
        ServerPort::Same => called_port(&service.listen),
    };
    let question = |check: &config::Check| {
        // A check that needs a port has one: the configuration is refused otherwise.
        let port = check.asks.port.or(own).unwrap_or(0);
        let address = SocketAddr::new(server.address, port);
        Question { probe: check.asks.probe.clone(), target: Target { address }, rhythm: check.rhythm }
    };
    server.health.checks.iter().map(question).collect()
}
