//! Local addresses of FULLNAT: from which address and port a new connection talks to its server.
//!
//! A worker uses the ports at which a server's answer comes home to it ([`crate::home::Home::of_local_reply`]): those
//! whose RSS result is its own queue, where NICs are known to hash the protocol's ports, and else those whose remainder by
//! the number of workers is its own number. Either way a port of a local address is, towards each server, exactly one
//! worker's, and none is nobody's. There are no pools: whether a port is free towards a server is asked of the connection
//! table. A record of a connection that is over is the quarantine: LVS keeps TIME_WAIT for 120 s, Linux servers for 60, so
//! the port of a record that is gone is free at its server too. Only when there is no other is a port taken from such a
//! record, that of the connection over for longest ([`crate::conn::Table::over`]); where none is over, from one that is
//! half open or idle, the best of those a search has met.

use std::ops::RangeInclusive;

use shunt_engine::WorkerId;

use crate::conn::GivesWay;
use crate::home::Home;
use crate::service::Local;
use crate::solve::{Solver, lowest};
use crate::tuple::{Address, Endpoint, Protocol, Tuple};

/// Tries per call. A call gives up after that many taken ports, and the next one goes on behind: a search never holds up
/// the packet path, and the one port that is free among `n` is found within `n / 256` calls, rounded up.
pub const TRIES_MAX: u32 = 256;

/// Looks per call at a group of ports, of which none may be the worker's: enough for all tries, unless it has unusually
/// few.
const LOOKS_MAX: u32 = 4 * TRIES_MAX;

/// Ports of a group: as many as there are workers, so that about one of them is a worker's, within these bounds.
const GROUP: RangeInclusive<u16> = 8..=64;

/// Free ports per call that are passed by for one of another address, whose answers come to the worker's queue.
const PASSED_MAX: u64 = 16;

/// Chooses the local ports of one worker.
#[derive(Clone, Debug)]
pub struct LocalPorts<A> {
    /// Which ports of a group are ours by their remainder, by the remainder of the first.
    by_remainder: Box<[u64]>,
    /// Where it is known how NICs spread flows.
    solver: Option<Solver<A>>,
    /// Ports of a group: two to the power of this.
    group_bits: u32,
    /// The next port to look at: a group of the first address, of the next one and so on, then the next groups. It never
    /// goes back, so a port that was given comes up again after all others.
    cursor: u64,
}

/// Who talks to a server from a local endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// A connection that must stay.
    Connection,
    /// A connection that may give way, silent for so many ticks.
    Leaving(GivesWay, u32),
}

/// The result of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice<A: Address> {
    /// A local endpoint, if one was found.
    pub endpoint: Option<Endpoint<A>>,
    /// Whether it is still that of a connection that must give way.
    pub held: bool,
    /// Endpoints tried, the free one included.
    pub tries: u32,
}

impl<A: Address> LocalPorts<A> {
    /// The ports that are at home on `worker`. `seed` says where the first search begins: after a restart the ports that
    /// servers still remember shall not be the first again.
    pub fn new(worker: WorkerId, home: &Home, seed: u64) -> Self {
        let workers = home.workers();
        assert!(worker.0 < workers, "worker {} of {workers}", worker.0);
        let group = workers.next_power_of_two().clamp(*GROUP.start(), *GROUP.end());
        let ours = |first: u16| {
            let first = (worker.0 + workers - first) % workers;
            (first..group).step_by(workers.into()).fold(0, |ours, port| ours | 1 << port)
        };
        Self {
            by_remainder: (0..workers).map(ours).collect(),
            solver: home.spread().map(|spread| Solver::new(spread.clone(), worker, group)),
            group_bits: group.trailing_zeros(),
            cursor: seed % (1 << 32),
        }
    }

    /// A local endpoint among `locals` from which no connection talks to `server` by `protocol`: one whose reply tuple
    /// has no `holder`. Addresses take turns, and so do the ports of each. Where no try finds one it is that of a
    /// connection that is over, or else may give way; of several the one silent for longest.
    pub fn choose(
        &mut self,
        locals: &[Local],
        server: Endpoint<A>,
        protocol: Protocol,
        mut holder: impl FnMut(&Tuple<A>) -> Holder,
    ) -> Choice<A> {
        let mut passes = (locals.len() as u64).min(PASSED_MAX);
        let towards = self.towards(server, protocol);
        let (mut tries, mut looks, mut free, mut best) = (0, LOOKS_MAX, None, None);
        while tries < TRIES_MAX
            && let Some(endpoint) = self.next(locals, towards, &mut looks)
        {
            let reply = Tuple { src: server, dst: endpoint, protocol };
            tries += 1;
            match holder(&reply) {
                Holder::Nobody => {
                    passes -= 1;
                    if passes == 0 || towards.is_some() || self.comes_here(&reply) {
                        free = Some(endpoint);
                        break;
                    }
                    free = free.or(Some(endpoint));
                    // The address's other ports are no better.
                    self.cursor = self.cursor.next_multiple_of(1 << self.group_bits);
                }
                Holder::Connection => {}
                Holder::Leaving(why, idle) => {
                    let rank = (why == GivesWay::Closing, idle);
                    if best.is_none_or(|(best, _)| rank > best) {
                        best = Some((rank, endpoint));
                    }
                }
            }
        }
        let held = free.is_none() && best.is_some();
        Choice { endpoint: free.or(best.map(|(_, endpoint)| endpoint)), held, tries }
    }

    /// What [`Self::choose`] tries first, unless that is far away.
    pub fn peek(&mut self, locals: &[Local], server: Endpoint<A>, protocol: Protocol) -> Option<Endpoint<A>> {
        let cursor = self.cursor;
        let first = self.next(locals, self.towards(server, protocol), &mut 2);
        self.cursor = cursor;
        first
    }

    /// What the server's answers have in common, where ports can be solved for (see [`Solver::towards`]).
    #[inline]
    fn towards(&self, server: Endpoint<A>, protocol: Protocol) -> Option<u32> {
        self.solver.as_ref().and_then(|solver| solver.towards(server, protocol))
    }

    /// The next endpoint that is ours, unless it is more than `looks` away.
    fn next(&mut self, locals: &[Local], towards: Option<u32>, looks: &mut u32) -> Option<Endpoint<A>> {
        let addresses = locals.len() as u64;
        if addresses == 0 {
            return None;
        }
        while let Some(left) = looks.checked_sub(1) {
            *looks = left;
            let (look, seen) = (self.cursor >> self.group_bits, self.cursor & ((1 << self.group_bits) - 1));
            let (turn, place) = if addresses == 1 { (look, 0) } else { (look / addresses, look % addresses) };
            self.cursor = (look + 1) << self.group_bits;
            let local = &locals[place as usize];
            let Some(address) = A::from_ip(local.address) else { continue };
            let Some((first, usable)) = group(&local.ports, turn as u32, self.group_bits) else { continue };
            let wanted = usable & (u64::MAX << seen);
            if let Some(port) = self.first(Endpoint::new(address, first), wanted, towards) {
                self.cursor = (look << self.group_bits) + u64::from(port) + 1;
                return Some(Endpoint::new(address, first + port as u16));
            }
        }
        None
    }

    /// The first port that is ours among those `wanted` of the group that begins at `first`, whose bit is the lowest.
    #[inline]
    fn first(&self, first: Endpoint<A>, wanted: u64, towards: Option<u32>) -> Option<u32> {
        match (&self.solver, towards) {
            (Some(solver), Some(towards)) => solver.first(towards, first, wanted),
            _ => lowest(wanted & self.by_remainder[usize::from(first.port) % self.by_remainder.len()]),
        }
    }

    /// Whether an answer comes to our own queue, or nobody knows.
    fn comes_here(&self, reply: &Tuple<A>) -> bool {
        self.solver.as_ref().is_none_or(|solver| solver.is_ours(reply))
    }
}

/// Group number `turn` of `ports`, counted round: its first port, and which of it are among `ports`, the first one's bit
/// being the lowest. Port 0 is nobody's.
#[inline]
fn group(ports: &RangeInclusive<u16>, turn: u32, bits: u32) -> Option<(u16, u64)> {
    let (begin, end) = ((*ports.start()).max(1), *ports.end());
    if begin > end {
        return None;
    }
    let (first, last) = (begin >> bits, end >> bits);
    let first = (first + (turn % u32::from(last - first + 1)) as u16) << bits;
    let from = u64::MAX << begin.saturating_sub(first);
    let to = u64::MAX >> (u64::BITS - 1 - u32::from(end - first).min((1 << bits) - 1));
    Some((first, from & to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spread::Spread;
    use crate::tuple::{V4, V6};
    use proptest::prelude::*;
    use shunt_engine::rss::{MICROSOFT_KEY, Rss};
    use std::collections::HashSet;
    use std::sync::Arc;

    const SERVER: Endpoint<V4> = Endpoint::new(V4(0xc0a8_0001), 80);

    /// Where nobody knows how NICs spread flows.
    fn ports(worker: u16, workers: u16, seed: u64) -> LocalPorts<V4> {
        LocalPorts::new(WorkerId(worker), &Home::new(workers, [1, 2], None), seed)
    }

    fn local(address: &str, ports: RangeInclusive<u16>) -> Local {
        Local { address: address.parse().unwrap(), ports }
    }

    fn held(taken: bool) -> Holder {
        if taken { Holder::Connection } else { Holder::Nobody }
    }

    /// Where NICs spread flows over one queue per worker by an indirection table of so many entries.
    fn home_by_rss(workers: u16, entries: u16, udp_ports: bool) -> Home {
        let reta = (0..entries).map(|entry| entry % workers).collect();
        let rss = Rss { key: MICROSOFT_KEY.into(), reta, tcp_ports: true, udp_ports };
        let spread = Spread::new(&rss, workers, WorkerId).unwrap();
        Home::new(workers, [1, 2], Some(Arc::new(spread)))
    }

    /// Takes ports until a whole round of searches finds none.
    fn drain(ports: &mut LocalPorts<V4>, locals: &[Local]) -> HashSet<Endpoint<V4>> {
        drain_of(ports, locals, Protocol::Tcp)
    }

    fn drain_of(ports: &mut LocalPorts<V4>, locals: &[Local], protocol: Protocol) -> HashSet<Endpoint<V4>> {
        let (mut used, mut misses) = (HashSet::new(), 0);
        while misses < 65_536 * locals.len() / TRIES_MAX as usize + 1 {
            let choice = ports.choose(locals, SERVER, protocol, |tuple| held(used.contains(&tuple.dst)));
            assert!(choice.tries <= TRIES_MAX);
            match choice.endpoint {
                Some(endpoint) => {
                    assert!(used.insert(endpoint), "{endpoint:?} given twice");
                    misses = 0;
                }
                None => misses += 1,
            }
        }
        used
    }

    #[test]
    fn every_port_of_the_range_is_used_by_exactly_one_worker() {
        for workers in [1, 2, 3, 5, 6, 7, 8] {
            let locals = [local("10.0.0.200", 1000..=9999), local("10.0.0.201", 65_000..=65_535)];
            let mut all = HashSet::new();
            for worker in 0..workers {
                let used = drain(&mut ports(worker, workers, 99), &locals);
                assert!(used.iter().all(|endpoint| endpoint.port % workers == worker));
                for endpoint in used {
                    assert!(all.insert(endpoint), "{endpoint:?} of two workers");
                }
            }
            assert_eq!(all.len(), 9000 + 536, "{workers} workers");
        }
    }

    #[test]
    fn solved_for_the_own_queue_every_port_is_used_by_exactly_one_worker() {
        for (workers, entries) in [1, 2, 3, 5, 6, 7, 8].into_iter().zip([128, 128, 128, 100, 512, 37, 64]) {
            let home = home_by_rss(workers, entries, true);
            let locals = [local("10.0.0.200", 1000..=9999), local("10.0.0.201", 65_000..=65_535)];
            let mut all = HashSet::new();
            for worker in (0..workers).map(WorkerId) {
                let used = drain(&mut LocalPorts::new(worker, &home, 99), &locals);
                for endpoint in used {
                    let reply = Tuple { src: SERVER, dst: endpoint, protocol: Protocol::Tcp };
                    assert_eq!(home.of_local_reply(&reply), worker, "{workers} workers: {endpoint:?}");
                    assert!(all.insert(endpoint), "{endpoint:?} of two workers");
                }
            }
            assert_eq!(all.len(), 9000 + 536, "{workers} workers, {entries} entries");
        }
    }

    #[test]
    fn where_ports_are_not_hashed_an_address_whose_answers_come_to_the_own_queue_is_preferred() {
        let home = home_by_rss(4, 128, false);
        let locals: Vec<_> = (0..16).map(|i| local(&format!("10.0.0.{}", 200 + i), 1024..=2047)).collect();
        let mut all = HashSet::new();
        for worker in (0..4).map(WorkerId) {
            let mut ports = LocalPorts::<V4>::new(worker, &home, 7);
            let comes_here = |dst| {
                let reply = Tuple { src: SERVER, dst, protocol: Protocol::Udp };
                home.spread().unwrap().of(&reply) == worker
            };
            let near = locals
                .iter()
                .filter(|local| comes_here(Endpoint::new(V4::from_ip(local.address).unwrap(), 0)));
            let near = near.count() * 1024 / 4;
            assert!(near > 0, "of sixteen addresses some are this worker's");
            let used = drain_of(&mut ports, &locals, Protocol::Udp);
            assert!(used.iter().all(|endpoint| endpoint.port % 4 == worker.0), "home says so");
            assert_eq!(used.iter().filter(|&&endpoint| comes_here(endpoint)).count(), near);
            all.extend(used);
        }
        assert_eq!(all.len(), 16 * 1024);
        // The first ones all are of preferred addresses, and a single address serves all workers.
        let mut ports = LocalPorts::<V4>::new(WorkerId(1), &home, 7);
        for _ in 0..200 {
            let found = ports.choose(&locals, SERVER, Protocol::Udp, |_| Holder::Nobody).endpoint.unwrap();
            let reply = Tuple { src: SERVER, dst: found, protocol: Protocol::Udp };
            assert_eq!(home.spread().unwrap().of(&reply), WorkerId(1));
        }
        for worker in (0..4).map(WorkerId) {
            let mut ports = LocalPorts::<V4>::new(worker, &home, 7);
            let choice = ports.choose(&locals[..1], SERVER, Protocol::Udp, |_| Holder::Nobody);
            assert_eq!((choice.endpoint.unwrap().port % 4, choice.tries), (worker.0, 1));
        }
    }

    proptest! {
        /// For any NIC: what a worker chooses is its own by the home of the reply, in both IP versions.
        #[test]
        fn the_home_of_a_reply_is_the_worker_that_chose_its_port(
            workers in 1..=16u16,
            key in prop::collection::vec(any::<u8>(), 0..60),
            reta in prop::collection::vec(0..16u16, 0..300),
            (tcp_ports, udp_ports) in any::<(bool, bool)>(),
            server in any::<(u32, u16)>(),
            first in 1..65_000u16,
            seed in any::<u64>(),
        ) {
            let reta = reta.into_iter().chain(0..workers).collect();
            let nic = Rss { key: key.into(), reta, tcp_ports, udp_ports };
            let spread = Spread::new(&nic, workers, |queue| WorkerId(queue % workers)).unwrap();
            let home = Home::new(workers, [1, 2], Some(Arc::new(spread)));
            let ports = first..=first.saturating_add(999);
            let locals = [local("10.0.0.200", ports.clone()), local("2001:db8::200", ports.clone())];
            for worker in (0..workers).map(WorkerId) {
                let (mut v4, mut v6) = (LocalPorts::new(worker, &home, seed), LocalPorts::new(worker, &home, seed));
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let server_v4 = Endpoint::new(V4(server.0), server.1);
                    let choice = v4.choose(&locals, server_v4, protocol, |_| Holder::Nobody);
                    if let Some(dst) = choice.endpoint {
                        prop_assert!(ports.contains(&dst.port));
                        prop_assert_eq!(home.of_local_reply(&Tuple { src: server_v4, dst, protocol }), worker);
                    }
                    let server_v6 = Endpoint::new(V6([0x2001_0db8, 0, 1, server.0]), server.1);
                    let choice = v6.choose(&locals, server_v6, protocol, |_| Holder::Nobody);
                    if let Some(dst) = choice.endpoint {
                        prop_assert!(ports.contains(&dst.port));
                        prop_assert_eq!(home.of_local_reply(&Tuple { src: server_v6, dst, protocol }), worker);
                    }
                }
            }
        }
    }

    #[test]
    fn the_whole_range_of_ports_is_usable_but_port_0() {
        let used = drain(&mut ports(0, 1, 5), &[local("10.0.0.200", 0..=65_535)]);
        assert_eq!(used.len(), 65_535);
        assert!(used.iter().all(|endpoint| endpoint.port > 0));
    }

    #[test]
    fn the_only_free_port_is_found_within_the_promised_number_of_calls() {
        for worker in 0..3 {
            let mut ports = ports(worker, 3, 12_345);
            let locals = [local("10.0.0.200", 1024..=65_535), local("10.0.0.201", 1024..=65_535)];
            let free = Endpoint::new(V4(0x0a00_00c9), 40_002 + worker);
            let calls_max = (2 * 64_512 / 3_usize).div_ceil(TRIES_MAX as usize) + 1;
            let mut search =
                || ports.choose(&locals, SERVER, Protocol::Tcp, |tuple| held(tuple.dst != free)).endpoint;
            let found = (0..calls_max).find_map(|_| search());
            assert_eq!(found, Some(free));
        }
    }

    #[test]
    fn ports_are_tried_towards_the_server_and_addresses_take_turns() {
        let mut ports = ports(1, 2, 0);
        let locals = [local("10.0.0.200", 5000..=5999), local("10.0.0.201", 5000..=5999)];
        let mut given = Vec::new();
        for _ in 0..1000 {
            let choice = ports.choose(&locals, SERVER, Protocol::Udp, |tuple| {
                assert_eq!((tuple.src, tuple.protocol), (SERVER, Protocol::Udp));
                Holder::Nobody
            });
            assert_eq!(choice.tries, 1);
            given.push(choice.endpoint.unwrap());
        }
        assert_eq!(
            given.iter().collect::<HashSet<_>>().len(),
            1000,
            "a port came again before all others had"
        );
        assert_eq!(given.iter().filter(|endpoint| { endpoint.address } == V4(0x0a00_00c8)).count(), 500);
    }

    #[test]
    fn without_a_usable_address_there_is_none() {
        let mut ports = ports(2, 3, 0);
        let mut choose = |locals: &[Local]| ports.choose(locals, SERVER, Protocol::Tcp, |_| Holder::Nobody);
        assert_eq!(choose(&[]), Choice { endpoint: None, held: false, tries: 0 });
        assert_eq!(
            choose(&[local("2001:db8::1", 1024..=2000)]),
            Choice { endpoint: None, held: false, tries: 0 }
        );
        // 3000 and 3001 are other workers'.
        assert_eq!(
            choose(&[local("10.0.0.200", 3000..=3001)]),
            Choice { endpoint: None, held: false, tries: 0 }
        );
        assert_eq!(choose(&[local("10.0.0.200", 3000..=3002)]).endpoint.map(|local| local.port), Some(3002));
    }

    #[test]
    fn a_local_address_carries_64_511_connections_to_a_server_and_as_many_to_the_next() {
        let mut ports = ports(0, 1, 5);
        let locals = [local("10.0.0.200", 1025..=65_535)];
        let used = drain(&mut ports, &locals);
        assert_eq!(used.len(), 64_511);
        let next = Endpoint::new(V4(0xc0a8_0002), 80);
        let holder = |tuple: &Tuple<V4>| held(tuple.src == SERVER && used.contains(&tuple.dst));
        let choice = ports.choose(&locals, next, Protocol::Tcp, holder);
        assert_eq!((choice.endpoint.is_some(), choice.held, choice.tries), (true, false, 1));
    }

    #[test]
    fn a_port_in_quarantine_is_taken_only_when_none_is_free_and_the_oldest_first() {
        let locals = [local("10.0.0.200", 5000..=5009)];
        let choose = |holders: [Holder; 10]| {
            let mut ports = ports(0, 1, 3);
            let holder = |tuple: &Tuple<V4>| holders[usize::from(tuple.dst.port - 5000)];
            let choice = ports.choose(&locals, SERVER, Protocol::Tcp, holder);
            (choice.endpoint.map(|endpoint| endpoint.port), choice.held)
        };
        let mut holders = [Holder::Connection; 10];
        holders[1] = Holder::Leaving(GivesWay::HalfOpen, 900);
        assert_eq!(choose(holders), (Some(5001), true));
        holders[4] = Holder::Leaving(GivesWay::Closing, 10);
        holders[6] = Holder::Leaving(GivesWay::Closing, 90);
        holders[7] = Holder::Leaving(GivesWay::Closing, 50);
        assert_eq!(choose(holders), (Some(5006), true));
        holders[9] = Holder::Nobody;
        assert_eq!(choose(holders), (Some(5009), false));
    }

    #[test]
    fn a_search_among_taken_ports_is_bounded() {
        let mut ports = ports(0, 1, 0);
        let choice = ports
            .choose(&[local("10.0.0.200", 1024..=65_535)], SERVER, Protocol::Tcp, |_| Holder::Connection);
        assert_eq!(choice, Choice { endpoint: None, held: false, tries: TRIES_MAX });
    }
}
