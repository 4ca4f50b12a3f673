//! The watch on a virtual clock, between servers that live, refuse and keep silent.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;

use shunt_engine::{Duration, Instant};

use super::Standing;
use super::check::{Rhythm, State};
use super::probe::{Failure, Passed};
use super::service::Choice;
use super::watch::{CheckId, Notice, Watch};
use crate::config::Config;

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It answers after a millisecond, and may name its weight.
    Lives(Option<u16>),
    /// It refuses after a millisecond.
    Refuses,
    /// It never answers.
    IsSilent,
}

/// Servers by the last byte of their address; those not named live.
type Ways = BTreeMap<u8, Way>;

/// An answer: when it comes, to what, and the weight it names if it is the right one.
type OnItsWay = Reverse<(Instant, CheckId, Option<Option<u16>>)>;

struct World {
    watch: Watch,
    config: Config,
    now: Instant,
    ways: Ways,
    answers: BinaryHeap<OnItsWay>,
    /// Every question: when, and to whom.
    asked: Vec<(Instant, u8)>,
    notices: Vec<(Instant, Notice)>,
    chance: u32,
}

const MILLISECOND: Duration = Duration::from_millis(1);

fn at(millis: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(millis)
}

impl World {
    fn new(text: &str, chance: u32) -> Self {
        let now = at(1_000);
        let mut world = Self {
            watch: Watch::default(),
            config: parse(text),
            now,
            ways: Ways::new(),
            answers: BinaryHeap::new(),
            asked: Vec::new(),
            notices: Vec::new(),
            chance: chance | 1,
        };
        world.watch.carry_over(&mut world.config, now);
        world.watch.configure(&world.config, now);
        world
    }

    fn reload(&mut self, text: &str) {
        let mut config = parse(text);
        self.watch.carry_over(&mut config, self.now);
        self.config = config;
        self.watch.configure(&self.config, self.now);
        self.settle();
    }

    /// Lives until `end`.
    fn run_until(&mut self, end: Instant) {
        loop {
            let answer = self.answers.peek().map(|Reverse((at, ..))| *at);
            let next = self.watch.next_deadline().into_iter().chain(answer).min();
            let Some(next) = next.filter(|&next| next <= end) else { break };
            assert!(next >= self.now, "time does not run backwards");
            self.now = next;
            self.step();
        }
        self.now = end;
    }

    fn step(&mut self) {
        while let Some(&Reverse((at, id, right))) = self.answers.peek()
            && at <= self.now
        {
            self.answers.pop();
            let passed = |weight| Passed { latency: std::time::Duration::from_millis(1), weight };
            self.chance = self.chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            self.watch.answered(id, right.map(passed).ok_or(Failure::Refused), self.now, self.chance);
        }
        self.watch.grow(self.now);
        for (id, question) in self.watch.begin(self.now, usize::MAX) {
            let IpAddr::V4(address) = question.target.address.ip() else { panic!("IPv4 only") };
            let last = address.octets()[3];
            self.asked.push((self.now, last));
            let (after, right) = match self.ways.get(&last).copied().unwrap_or(Way::Lives(None)) {
                Way::Lives(weight) => (MILLISECOND, Some(weight)),
                Way::Refuses => (MILLISECOND, None),
                Way::IsSilent => (question.rhythm.timeout, None),
            };
            self.answers.push(Reverse((self.now + after, id, right)));
        }
        self.settle();
    }

    fn settle(&mut self) {
        self.watch.apply(&mut self.config, self.now);
        self.notices.extend(self.watch.take_notices().into_iter().map(|notice| (self.now, notice)));
        assert!(!self.watch.has_changed());
    }

    /// How the servers of the first service stand.
    fn standings(&self) -> Vec<Standing> {
        self.config.services[0].servers.iter().map(|server| server.standing).collect()
    }

    /// Their standings as letters: whole, part of it (`p`), aside, out.
    fn letters(&self) -> String {
        let letter = |standing| match standing {
            Standing::Whole => 'w',
            Standing::Weighing(_) => 'p',
            Standing::Aside => 'a',
            Standing::Out(_) => 'o',
        };
        self.standings().into_iter().map(letter).collect()
    }

    /// When the first server was first found in this state, after `from`.
    fn first(&self, state: State, from: Instant) -> Option<Instant> {
        let is = |notice: &Notice| matches!(notice, Notice::Server { state: s, .. } if *s == state);
        self.notices.iter().find(|(at, notice)| *at >= from && is(notice)).map(|(at, _)| *at)
    }
}

fn parse(text: &str) -> Config {
    Config::parse("test", text, false).unwrap_or_else(|error| panic!("{error}")).config
}

/// A service with servers on 10.0.0.11 and so on, all checked with `check`.
fn service(name: &str, port: u16, of_service: &str, check: &str, servers: u8) -> String {
    let servers: String = (11..11 + servers)
        .map(|last| format!("[[service.server]]\naddress = \"10.0.0.{last}:80\"\nweight = 4\n"))
        .collect();
    format!(
        "[[service]]\nname = {name:?}\nprotocol = \"tcp\"\nmode = \"nat\"\nlisten = [\"203.0.113.10:{port}\"]\n\
         {of_service}\n[[service.check]]\nkind = \"tcp\"\n{check}\n{servers}"
    )
}

fn one_service(of_service: &str, check: &str, servers: u8) -> String {
    format!("[[port]]\ninterface = \"eth0\"\n{}", service("web", 80, of_service, check, servers))
}

/// Rhythms of all sorts, as they are written and as they are.
fn rhythms() -> Vec<(String, Rhythm)> {
    let mut rhythms = Vec::new();
    for (interval, fast, jitter) in [(2_000, 2_000, 0), (2_000, 300, 200), (500, 100, 450)] {
        for (rise, fall, timeout) in [(1, 1, 90), (2, 3, 90), (5, 4, 10)] {
            let text = format!(
                "interval = \"{interval}ms\"\nfast_interval = \"{fast}ms\"\njitter = \"{}\"\ntimeout = \"{timeout}ms\"\n\
                 rise = {rise}\nfall = {fall}",
                if jitter == 0 { "0s".to_owned() } else { format!("{jitter}ms") }
            );
            let [interval, fast_interval, jitter, timeout] =
                [interval, fast, jitter, timeout].map(Duration::from_millis);
            rhythms.push((text, Rhythm { interval, fast_interval, jitter, timeout, rise, fall }));
        }
    }
    rhythms
}

fn times(duration: Duration, factor: u32) -> Duration {
    Duration::from_nanos(duration.as_nanos() * u64::from(factor))
}

#[test]
fn a_server_that_dies_is_out_and_one_that_returns_is_in_neither_too_soon_nor_too_late() {
    for (text, rhythm) in rhythms() {
        for seed in 0..12_u32 {
            let way = if seed % 2 == 0 { Way::Refuses } else { Way::IsSilent };
            let mut world = World::new(&one_service("", &text, 1), seed.wrapping_mul(2_654_435_761));
            let died = at(10_000) + Duration::from_nanos(u64::from(seed) * 53_700_000);
            world.run_until(died);
            assert_eq!(world.letters(), "w");
            world.ways.insert(11, way);
            let returned = died + Duration::from_secs(30);
            world.run_until(returned);
            assert_eq!(world.letters(), "o");
            world.ways.clear();
            world.run_until(returned + Duration::from_secs(30));
            assert_eq!(world.letters(), "w");

            let Rhythm { interval, fast_interval, jitter, timeout, rise, fall } = rhythm;
            let case = format!("{text}, {way:?}, seed {seed}");
            let verdict = |from: Instant, state, answers: u32| {
                let took = world.first(state, from).expect(&case) - from;
                // An answer may have been on its way; the questions after it are apart as the rhythm says.
                assert!(took >= times(fast_interval, answers - 1), "{case}: {state:?} after {took:?}");
                let slow = Duration::from_nanos(interval.as_nanos() + jitter.as_nanos());
                let fast = Duration::from_nanos(fast_interval.as_nanos() + jitter.as_nanos());
                let latest = Instant::ZERO + slow + times(fast, answers - 1) + timeout + MILLISECOND;
                assert!(took <= latest - Instant::ZERO, "{case}: {state:?} after {took:?}");
            };
            verdict(died, State::Down, fall);
            verdict(returned, State::Up, rise);
        }
    }
}

#[test]
fn nobody_is_asked_more_often_than_the_file_says_and_nobody_is_forgotten() {
    for (text, rhythm) in rhythms() {
        let mut world = World::new(&one_service("", &text, 3), 7);
        // One lives, one is silent, one changes its mind all the time.
        world.ways.insert(12, Way::IsSilent);
        for turn in 0..200 {
            world.ways.insert(13, if turn % 3 == 0 { Way::Refuses } else { Way::Lives(None) });
            world.run_until(at(1_000 + turn * 350));
        }
        for last in [11, 12, 13] {
            let asked: Vec<Instant> =
                world.asked.iter().filter(|(_, whom)| *whom == last).map(|(at, _)| *at).collect();
            let least = if last == 11 { rhythm.interval } else { rhythm.fast_interval };
            let most = Duration::from_nanos(rhythm.interval.as_nanos() + rhythm.jitter.as_nanos());
            assert!(asked.len() > 20, "{last}");
            for pair in asked.windows(2) {
                let gap = pair[1] - pair[0];
                assert!(gap >= least && gap <= most, "{text}: 10.0.0.{last} after {gap:?}");
            }
        }
    }
}

#[test]
fn servers_enter_with_their_first_success_unless_the_file_trusts_them() {
    let rise_5 = "interval = \"1s\"\nrise = 5";
    let mut world = World::new(&one_service("", rise_5, 2), 1);
    assert_eq!(world.letters(), "oo");
    world.ways.insert(12, Way::Refuses);
    world.run_until(at(1_002));
    assert_eq!(world.letters(), "wo", "one success is enough for the first");
    assert_eq!(World::new(&one_service("initial = \"up\"", rise_5, 2), 1).letters(), "ww");
    let unchecked =
        one_service("", rise_5, 1) + "[[service.server]]\naddress = \"10.0.0.12:80\"\ncheck = []\n";
    assert_eq!(World::new(&unchecked, 1).letters(), "ow");
}

#[test]
fn reloads_change_nothing_of_what_is_known_and_when_is_asked() {
    let text = one_service("slow_start = \"20s\"", "interval = \"700ms\"\nfall = 3\nrise = 3", 4);
    let run = |reloads: bool| {
        let mut world = World::new(&text, 99);
        for turn in 0..300_u64 {
            world.ways.insert(11, if turn / 40 % 2 == 0 { Way::Lives(None) } else { Way::Refuses });
            world.ways.insert(12, if turn / 70 % 2 == 0 { Way::IsSilent } else { Way::Lives(None) });
            world.run_until(at(1_000 + turn * 103));
            if reloads {
                let asked = text.replace("[[port]]", "# Another file.\n[[port]]");
                world.reload(&asked);
            }
        }
        (world.asked.clone(), world.notices.clone(), world.standings())
    };
    let (quiet, reloaded) = (run(false), run(true));
    assert!(quiet.1.len() > 8, "there is something to be compared");
    assert_eq!(quiet, reloaded);
}

#[test]
fn a_reload_keeps_what_is_known_of_a_server_whose_checks_change() {
    let check = "interval = \"1s\"\nfall = 3\nrise = 3";
    let mut world = World::new(&one_service("", check, 2), 5);
    world.ways.insert(12, Way::Refuses);
    world.run_until(at(10_000));
    assert_eq!(world.letters(), "wo");
    world.reload(&one_service("", "interval = \"500ms\"\nfall = 2\nrise = 2", 2));
    assert_eq!(world.letters(), "wo", "another rhythm");
    world.reload(&one_service("", &format!("{check}\nport = 81"), 2));
    assert_eq!(world.letters(), "wo", "another question: who was up stays, who was down waits for it");
    world.ways.clear();
    world.run_until(at(12_000));
    assert_eq!(world.letters(), "ww", "its first success is enough");
}

#[test]
fn equal_checks_are_asked_once_and_count_for_all_their_servers() {
    let check = "interval = \"1s\"\nfall = 2";
    let two = one_service("", check, 2) + &service("other", 81, "", check, 2);
    let mut world = World::new(&two, 3);
    world.run_until(at(20_000));
    let alone = {
        let mut world = World::new(&one_service("", check, 2), 3);
        world.run_until(at(20_000));
        world.asked.len()
    };
    assert_eq!(world.asked.len(), alone);
    world.ways.insert(11, Way::Refuses);
    world.run_until(at(25_000));
    let out = |service: usize| matches!(world.config.services[service].servers[0].standing, Standing::Out(_));
    assert!(out(0) && out(1));
    world.reload(&one_service("", check, 2));
    world.asked.clear();
    world.run_until(at(35_000));
    assert!(world.asked.len() >= 18, "the check outlives one of its services");
}

#[test]
fn many_checks_do_not_begin_at_once_and_all_begin_in_time() {
    let servers: String = (0..3_000)
        .map(|n| format!("[[service.server]]\naddress = \"10.1.{}.{}:80\"\n", n / 200, n % 200 + 1))
        .collect();
    let text = one_service("", "interval = \"2s\"", 0) + &servers;
    let mut world = World::new(&text, 11);
    world.run_until(at(9_000));
    assert!(world.asked.len() >= 9_000, "{}", world.asked.len());
    let mut from = 0;
    for (to, (now, _)) in world.asked.iter().enumerate() {
        while *now - world.asked[from].0 > Duration::from_millis(100) {
            from += 1;
        }
        assert!(to - from <= 1_500, "{} questions within 100 ms", to - from);
    }
    let at_first = world.asked.iter().filter(|(now, _)| *now <= at(1_300)).count();
    assert_eq!(at_first, 3_000);
}

#[test]
fn a_server_that_comes_back_gets_its_weight_little_by_little_and_others_their_part_of_it() {
    let text =
        one_service("slow_start = \"20s\"", "interval = \"1s\"\nrise = 1\nfall = 1\njitter = \"0s\"", 2);
    let mut world = World::new(&text, 1);
    world.run_until(at(5_000));
    assert_eq!(world.standings(), [Standing::Whole; 2], "at the start all are as cold");
    world.ways.insert(11, Way::Refuses);
    world.run_until(at(10_000));
    world.ways.clear();
    let mut weights = Vec::new();
    for second in 11..=33 {
        world.run_until(at(second * 1_000 + 500));
        weights.push(match world.standings()[..] {
            [Standing::Weighing(cold), Standing::Weighing(400)] => cold,
            [Standing::Whole, Standing::Whole] => 401,
            ref others => panic!("{others:?} in second {second}"),
        });
    }
    assert_eq!(weights[0], 20, "a twentieth first");
    assert!(weights.windows(2).all(|pair| pair[1] > pair[0] || pair[1] == 401), "{weights:?}");
    assert_eq!(weights.iter().position(|&weight| weight == 401), Some(20), "{weights:?}");
}

#[test]
fn without_quorum_the_sorry_server_takes_over_and_healthy_ones_keep_what_they_have() {
    let text = one_service(
        "quorum = 8\n[service.sorry_server]\naddress = \"10.0.0.99:80\"\nmode = \"nat\"\n",
        "interval = \"1s\"",
        3,
    );
    let mut world = World::new(&text, 1);
    assert_eq!(world.letters(), "oooa", "nothing is lost while verdicts are pending");
    world.run_until(at(5_000));
    assert_eq!(world.letters(), "wwwa");
    world.ways.extend([(11, Way::Refuses), (12, Way::Refuses)]);
    world.run_until(at(15_000));
    assert_eq!(world.letters(), "ooaw");
    world.ways.remove(&11);
    world.run_until(at(25_000));
    assert_eq!(world.letters(), "wowa");
    assert!(!world.asked.iter().any(|(_, whom)| *whom == 99), "nobody checks the sorry server");
    let of_service: Vec<_> = world
        .notices
        .iter()
        .map(|(_, n)| n)
        .filter(|n| !matches!(n, Notice::Server { .. }))
        .cloned()
        .collect();
    let service = || "web".to_owned();
    assert_eq!(
        of_service,
        [
            Notice::Quorum { service: service(), has_quorum: false },
            Notice::Choice { service: service(), choice: Choice::Sorry },
            Notice::Quorum { service: service(), has_quorum: true },
            Notice::Choice { service: service(), choice: Choice::Healthy },
        ]
    );
}

#[test]
fn below_the_panic_threshold_dead_servers_are_used_too() {
    let mut world = World::new(&one_service("panic_threshold = 60", "interval = \"1s\"", 3), 1);
    world.run_until(at(5_000));
    world.ways.insert(11, Way::Refuses);
    world.run_until(at(15_000));
    assert_eq!(world.letters(), "oww");
    world.ways.insert(12, Way::Refuses);
    world.run_until(at(25_000));
    assert_eq!(world.letters(), "www");
    world.ways.remove(&12);
    world.run_until(at(35_000));
    assert_eq!(world.letters(), "oww");
}

#[test]
fn a_check_that_names_a_weight_is_believed_and_a_drained_server_stays_drained() {
    let text = one_service("", "interval = \"1s\"", 2)
        + "[[service.server]]\naddress = \"10.0.0.13:80\"\nweight = 0\n";
    let mut world = World::new(&text, 1);
    world.ways.extend([(11, Way::Lives(Some(77))), (13, Way::Lives(Some(77)))]);
    world.run_until(at(3_000));
    assert_eq!(world.standings(), [Standing::Weighing(77), Standing::Whole, Standing::Whole]);
    world.ways.insert(11, Way::Lives(Some(5)));
    world.run_until(at(6_000));
    assert_eq!(world.standings()[0], Standing::Weighing(5));
}

#[test]
fn an_answer_to_a_check_that_a_reload_has_removed_changes_nothing() {
    let check = "interval = \"1s\"\nfall = 1";
    let mut world = World::new(&one_service("", check, 2), 1);
    world.run_until(at(5_500));
    world.ways.insert(11, Way::IsSilent);
    world.run_until(at(6_300));
    assert!(!world.answers.is_empty(), "a question is on its way");
    let (gone, _) = one_service("", check, 2)
        .split_once("[[service.server]]")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    world.reload(&(gone + "[[service.server]]\naddress = \"10.0.0.12:80\"\nweight = 4\n"));
    world.run_until(at(20_000));
    assert_eq!(world.letters(), "w");
    assert!(world.first(State::Down, at(0)).is_none());
}
