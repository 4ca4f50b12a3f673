//! Why packets are handed from worker to worker, in a sentence.
//!
//! A flow has one home worker. Where a port brings its packets to another one they are handed over, which costs both of
//! them time: what keeps the port from doing better is what an operator wants to know.

use shunt_engine::rss::Unknown;

use crate::rss::RssMatch;

/// What the sentence is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) workers: u16,
    pub(crate) ports: Vec<PortFacts>,
    /// Whether any server is reached by NAT: its answers are hashed to other queues than the requests.
    pub(crate) nat: bool,
    /// Packets all workers received from ports.
    pub(crate) received: u64,
    /// Packets handed to other workers.
    pub(crate) handed: u64,
}

/// What is known of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortFacts {
    pub(crate) interface: String,
    pub(crate) queues: u16,
    pub(crate) rss: RssMatch,
}

/// What keeps a port from bringing every packet home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    FewQueues(u16),
    /// There are enough, and flows are not spread over all of them.
    FewUsed,
    Unknown(Unknown),
    Differs,
}

impl PortFacts {
    fn reason(&self, workers: u16) -> Option<Reason> {
        match self.rss {
            _ if self.queues < workers => Some(Reason::FewQueues(self.queues)),
            RssMatch::FewQueues => Some(Reason::FewUsed),
            RssMatch::Unknown(why) => Some(Reason::Unknown(why)),
            RssMatch::Differs => Some(Reason::Differs),
            RssMatch::Matches => None,
        }
    }
}

/// The sentence.
pub(crate) fn words(facts: &Facts) -> String {
    if facts.workers == 1 {
        return "one worker: nothing to hand off".to_owned();
    }
    let share = share(facts).map_or_else(
        || "no packet received yet".to_owned(),
        |share| format!("{:.1} % handed off", share * 100.0),
    );
    format!("{}: {share}", reasons(facts))
}

/// Share of the received packets that were handed to another worker; `None` before the first.
pub(crate) fn share(facts: &Facts) -> Option<f64> {
    (facts.received > 0).then(|| facts.handed as f64 / facts.received as f64)
}

fn reasons(facts: &Facts) -> String {
    let mut groups: Vec<(Reason, Vec<&str>)> = Vec::new();
    for port in &facts.ports {
        let Some(reason) = port.reason(facts.workers) else { continue };
        match groups.iter_mut().find(|(other, _)| *other == reason) {
            Some((_, names)) => names.push(&port.interface),
            None => groups.push((reason, vec![&port.interface])),
        }
    }
    let said: Vec<_> = groups.iter().map(|(reason, names)| sentence(*reason, names, facts.workers)).collect();
    match (said.is_empty(), facts.nat, facts.handed) {
        (false, _, _) => said.join("; "),
        (true, true, _) => "NAT replies cannot be steered".to_owned(),
        (true, false, 0) => "RSS matches".to_owned(),
        (true, false, _) => "RSS matches all but fragments, ICMP errors and some UDP replies".to_owned(),
    }
}

fn sentence(reason: Reason, names: &[&str], workers: u16) -> String {
    let who = list(names);
    match reason {
        Reason::FewQueues(1) => format!("{who}: one queue feeds {workers} workers"),
        Reason::FewQueues(queues) => format!("{who}: {queues} queues feed {workers} workers"),
        Reason::FewUsed => format!("{who}: the indirection table leaves queues of some workers out"),
        Reason::Unknown(Unknown::NotTold) if names.len() == 1 => {
            format!("{who} does not say how it spreads flows")
        }
        Reason::Unknown(Unknown::NotTold) => format!("{who} do not say how they spread flows"),
        Reason::Unknown(why) => format!("{who}: {why}"),
        Reason::Differs => format!("{who}: flows are spread otherwise than by the port that workers go by"),
    }
}

/// The first two names, and how many more there are.
fn list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [one, two] => format!("{one} and {two}"),
        [one, two, more @ ..] => format!("{one}, {two} and {} more", more.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_TOLD: RssMatch = RssMatch::Unknown(Unknown::NotTold);

    /// Half of the packets are handed on.
    fn facts(workers: u16, ports: &[(&str, u16, RssMatch)]) -> Facts {
        let port = |&(interface, queues, rss): &(&str, _, _)| PortFacts {
            interface: interface.to_owned(),
            queues,
            rss,
        };
        Facts { workers, ports: ports.iter().map(port).collect(), nat: false, received: 1000, handed: 498 }
    }

    fn of_ports(workers: u16, ports: &[(&str, u16, RssMatch)]) -> String {
        words(&facts(workers, ports))
    }

    #[test]
    fn one_worker_hands_nothing_off() {
        assert_eq!(of_ports(1, &[("eth0", 4, NOT_TOLD)]), "one worker: nothing to hand off");
    }

    #[test]
    fn ports_that_bring_all_home_match() {
        let ports = [("eth0", 2, RssMatch::Matches), ("eth1", 4, RssMatch::Matches)];
        let facts = Facts { handed: 0, ..facts(2, &ports) };
        assert_eq!(words(&facts), "RSS matches: 0.0 % handed off");
        let expected = "RSS matches all but fragments, ICMP errors and some UDP replies: 0.3 % handed off";
        assert_eq!(words(&Facts { handed: 3, ..facts }), expected);
    }

    #[test]
    fn a_port_may_not_say_how_it_spreads_flows() {
        let one = of_ports(2, &[("eth0", 2, NOT_TOLD), ("eth1", 2, RssMatch::Matches)]);
        assert_eq!(one, "eth0 does not say how it spreads flows: 49.8 % handed off");
        let two = of_ports(2, &[("eth0", 2, NOT_TOLD), ("eth1", 2, NOT_TOLD)]);
        assert_eq!(two, "eth0 and eth1 do not say how they spread flows: 49.8 % handed off");
    }

    #[test]
    fn a_port_may_spread_flows_in_a_way_that_nobody_can_follow() {
        let expected = [
            (Unknown::KernelsOwn, "eth0: the kernel spreads frames by a hash of its own: 49.8 % handed off"),
            (Unknown::Function, "eth0: the hash is not the plain Toeplitz hash: 49.8 % handed off"),
            (
                Unknown::Fields,
                "eth0: other fields are hashed than addresses, or addresses and ports: 49.8 % handed off",
            ),
            (Unknown::Versions, "eth0: ports are hashed in one version of IP only: 49.8 % handed off"),
        ];
        for (why, expected) in expected {
            assert_eq!(of_ports(2, &[("eth0", 2, RssMatch::Unknown(why))]), expected);
        }
    }

    #[test]
    fn ports_may_differ() {
        let ports = ["a", "b", "c"].map(|name| (name, 2, RssMatch::Differs));
        let expected = "a, b and 1 more: flows are spread otherwise than by the port that workers go by: \
                        49.8 % handed off";
        assert_eq!(of_ports(2, &ports), expected);
    }

    #[test]
    fn a_port_may_have_or_use_fewer_queues_than_there_are_workers() {
        let one = of_ports(3, &[("eth0", 1, RssMatch::FewQueues)]);
        assert_eq!(one, "eth0: one queue feeds 3 workers: 49.8 % handed off");
        let two = of_ports(3, &[("eth0", 2, NOT_TOLD), ("eth1", 3, NOT_TOLD)]);
        let expected =
            "eth0: 2 queues feed 3 workers; eth1 does not say how it spreads flows: 49.8 % handed off";
        assert_eq!(two, expected);
        let unused = of_ports(3, &[("eth0", 4, RssMatch::FewQueues)]);
        let expected = "eth0: the indirection table leaves queues of some workers out: 49.8 % handed off";
        assert_eq!(unused, expected);
    }

    #[test]
    fn nat_is_the_reason_where_ports_are_not() {
        let nat = Facts { nat: true, ..facts(2, &[("eth0", 2, RssMatch::Matches)]) };
        assert_eq!(words(&nat), "NAT replies cannot be steered: 49.8 % handed off");
        let port = Facts { nat: true, ..facts(2, &[("eth0", 2, NOT_TOLD)]) };
        assert_eq!(words(&port), "eth0 does not say how it spreads flows: 49.8 % handed off");
    }

    #[test]
    fn before_the_first_packet_no_share_is_said() {
        let idle = Facts { received: 0, handed: 0, ..facts(2, &[("eth0", 2, NOT_TOLD)]) };
        assert_eq!(words(&idle), "eth0 does not say how it spreads flows: no packet received yet");
    }
}
