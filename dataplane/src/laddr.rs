//! Local addresses of FULLNAT: from which address and port a new connection talks to its server.
//!
//! A worker uses the ports whose remainder by the number of workers is its own number, so that a server's answer says
//! by its destination port whose it is ([`crate::home::Home::of_local_port`]). There are no pools: whether a port is
//! free towards a server is asked of the connection table. A record of a connection that is over is the quarantine: LVS
//! keeps TIME_WAIT for 120 s, Linux servers for 60, so the port of a record that is gone is free at its server too. Only
//! when there is no other is a port taken from such a record, or from one that is half open.

use std::ops::RangeInclusive;

use shunt_engine::WorkerId;

use crate::conn::GivesWay;
use crate::service::Local;
use crate::tuple::{Address, Endpoint, Protocol, Tuple};

/// Tries per call. A call gives up after that many taken ports, and the next one goes on behind: a search never holds up
/// the packet path, and the one port that is free among `n` is found within `n / 256` calls, rounded up.
pub const TRIES_MAX: u32 = 256;

/// Chooses the local ports of one worker.
#[derive(Clone, Debug)]
pub struct LocalPorts {
    worker: u16,
    workers: u16,
    /// Where the next search begins. It never goes back, so a port that was given comes up again after all others.
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
pub struct Choice<A> {
    /// A local endpoint, if one was found.
    pub endpoint: Option<Endpoint<A>>,
    /// Whether it is still that of a connection that must give way.
    pub held: bool,
    /// Endpoints tried, the free one included.
    pub tries: u32,
}

impl LocalPorts {
    /// Ports of `worker` among `workers`. `seed` says where the first search begins: after a restart the ports that
    /// servers still remember shall not be the first again.
    pub fn new(worker: WorkerId, workers: u16, seed: u64) -> Self {
        assert!(worker.0 < workers, "worker {} of {workers}", worker.0);
        Self { worker: worker.0, workers, cursor: seed % (1 << 32) }
    }

    /// A local endpoint among `locals` from which no connection talks to `server` by `protocol`: one whose reply tuple
    /// has no `holder`. Addresses take turns, and so do the ports of each. Where no try finds one it is that of a
    /// connection that is over, or else may give way; of several the one silent for longest.
    pub fn choose<A: Address>(
        &mut self,
        locals: &[Local],
        server: Endpoint<A>,
        protocol: Protocol,
        mut holder: impl FnMut(&Tuple<A>) -> Holder,
    ) -> Choice<A> {
        let addresses = locals.len() as u64;
        let (mut tries, mut best) = (0, None);
        let steps = if addresses == 0 { 0 } else { TRIES_MAX };
        for _ in 0..steps {
            let (turn, place) = (self.cursor / addresses, (self.cursor % addresses) as usize);
            self.cursor += 1;
            let local = &locals[place];
            let Some(address) = A::from_ip(local.address) else { continue };
            let Some(port) = self.port(&local.ports, turn) else { continue };
            let endpoint = Endpoint::new(address, port);
            tries += 1;
            match holder(&Tuple { src: server, dst: endpoint, protocol }) {
                Holder::Nobody => return Choice { endpoint: Some(endpoint), held: false, tries },
                Holder::Connection => {}
                Holder::Leaving(why, idle) => {
                    let rank = (why == GivesWay::Closing, idle);
                    if best.is_none_or(|(best, _)| rank > best) {
                        best = Some((rank, endpoint));
                    }
                }
            }
        }
        Choice { endpoint: best.map(|(_, endpoint)| endpoint), held: best.is_some(), tries }
    }

    /// This worker's port number `turn` in `ports`, which are counted round. Port 0 is nobody's.
    fn port(&self, ports: &RangeInclusive<u16>, turn: u64) -> Option<u16> {
        let (first, last) = ((*ports.start()).max(1), *ports.end());
        let (worker, workers) = (u32::from(self.worker), u32::from(self.workers));
        // The first port from `first` on with our remainder.
        let ours = u32::from(first) + (worker + workers - u32::from(first) % workers) % workers;
        let count = (u32::from(last) + 1).checked_sub(ours)?.div_ceil(workers);
        (count > 0).then(|| (ours + (turn % u64::from(count)) as u32 * workers) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::V4;
    use std::collections::HashSet;

    const SERVER: Endpoint<V4> = Endpoint::new(V4(0xc0a8_0001), 80);

    fn local(address: &str, ports: RangeInclusive<u16>) -> Local {
        Local { address: address.parse().unwrap(), ports }
    }

    fn held(taken: bool) -> Holder {
        if taken { Holder::Connection } else { Holder::Nobody }
    }

    /// Takes ports until a whole round of searches finds none.
    fn drain(ports: &mut LocalPorts, locals: &[Local]) -> HashSet<Endpoint<V4>> {
        let (mut used, mut misses) = (HashSet::new(), 0);
        while misses < 65_536 * locals.len() / TRIES_MAX as usize + 1 {
            let choice = ports.choose(locals, SERVER, Protocol::Tcp, |tuple| held(used.contains(&tuple.dst)));
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
                let used = drain(&mut LocalPorts::new(WorkerId(worker), workers, 99), &locals);
                assert!(used.iter().all(|endpoint| endpoint.port % workers == worker));
                for endpoint in used {
                    assert!(all.insert(endpoint), "{endpoint:?} of two workers");
                }
            }
            assert_eq!(all.len(), 9000 + 536, "{workers} workers");
        }
    }

    #[test]
    fn the_whole_range_of_ports_is_usable_but_port_0() {
        let used = drain(&mut LocalPorts::new(WorkerId(0), 1, 5), &[local("10.0.0.200", 0..=65_535)]);
        assert_eq!(used.len(), 65_535);
        assert!(used.iter().all(|endpoint| endpoint.port > 0));
    }

    #[test]
    fn the_only_free_port_is_found_within_the_promised_number_of_calls() {
        for worker in 0..3 {
            let mut ports = LocalPorts::new(WorkerId(worker), 3, 12_345);
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
        let mut ports = LocalPorts::new(WorkerId(1), 2, 0);
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
        assert_eq!(given.iter().filter(|endpoint| endpoint.address == V4(0x0a00_00c8)).count(), 500);
    }

    #[test]
    fn without_a_usable_address_there_is_none() {
        let mut ports = LocalPorts::new(WorkerId(2), 3, 0);
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
        let mut ports = LocalPorts::new(WorkerId(0), 1, 5);
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
            let mut ports = LocalPorts::new(WorkerId(0), 1, 3);
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
        let mut ports = LocalPorts::new(WorkerId(0), 1, 0);
        let choice = ports
            .choose(&[local("10.0.0.200", 1024..=65_535)], SERVER, Protocol::Tcp, |_| Holder::Connection);
        assert_eq!(choice, Choice { endpoint: None, held: false, tries: TRIES_MAX });
    }
}
