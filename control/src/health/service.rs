//! What the states of a service's servers come to: its quorum, and which of its servers take connections.
//!
//! - The *quorum* is lost when the weight of the servers that are up falls below `quorum - hysteresis`, or to nothing,
//!   and is there again when it reaches `quorum + hysteresis`. A server without a verdict counts for it while the
//!   quorum is there: at a start nothing is lost yet.
//! - Without quorum the *sorry server* takes all connections, if there is one.
//! - Otherwise, when fewer than *panic threshold* percent of the servers are up, all of them take connections: so many
//!   failures at once are more likely the checks', and what is left would be overrun. A server without a verdict is
//!   none of either.

use super::check::State;

/// What a service's file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Weight of servers that have to be up.
    pub quorum: u32,
    /// So much less loses it, so much more regains it.
    pub hysteresis: u32,
    /// Percent of servers; 0 never panics.
    pub panic_threshold: u32,
    /// Whether there is a sorry server.
    pub sorry: bool,
}

/// A server as its service sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// What its checks say.
    pub state: State,
    /// Its weight when it is up.
    pub weight: u32,
}

/// Which servers take connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Those that are up.
    #[default]
    Healthy,
    /// All that have a verdict, whichever.
    All,
    /// The sorry server alone.
    Sorry,
}

/// A service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    has_quorum: bool,
    choice: Choice,
}

impl Default for Service {
    fn default() -> Self {
        Self { has_quorum: true, choice: Choice::Healthy }
    }
}

impl Service {
    /// Whether enough servers are up.
    pub fn has_quorum(&self) -> bool {
        self.has_quorum
    }

    /// Which servers take connections.
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// Judges the service by its `members`, the sorry server not among them.
    pub fn judge(&mut self, policy: Policy, members: &[Member]) {
        let weight = |state| {
            let of_state = members.iter().filter(|member| member.state == state);
            of_state.map(|member| u64::from(member.weight)).sum::<u64>()
        };
        let (up, hoped_for) = (weight(State::Up), weight(State::Up) + weight(State::Unknown));
        let (quorum, hysteresis) = (u64::from(policy.quorum), u64::from(policy.hysteresis));
        self.has_quorum = match self.has_quorum {
            true => hoped_for > 0 && hoped_for >= quorum.saturating_sub(hysteresis),
            false => up > 0 && up >= quorum + hysteresis,
        };
        self.choice = if policy.sorry && !self.has_quorum {
            Choice::Sorry
        } else if panics(policy, members) {
            Choice::All
        } else {
            Choice::Healthy
        };
    }
}

fn panics(policy: Policy, members: &[Member]) -> bool {
    // Without weight a server takes no connections, well or not.
    let count =
        |state| members.iter().filter(|member| member.state == state && member.weight > 0).count() as u64;
    let (up, down) = (count(State::Up), count(State::Down));
    100 * up < u64::from(policy.panic_threshold) * (up + down)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Policy = Policy { quorum: 1, hysteresis: 0, panic_threshold: 0, sorry: false };

    /// `u`, `d` and `?` are servers of weight 1 that are up, down and without a verdict.
    fn members(states: &str) -> Vec<Member> {
        let state = |c| match c {
            'u' => State::Up,
            'd' => State::Down,
            _ => State::Unknown,
        };
        states.chars().map(|c| Member { state: state(c), weight: 1 }).collect()
    }

    /// What a service does as its servers go through `states`: whether it has its quorum and who takes connections.
    fn through(policy: Policy, states: &[&str]) -> Vec<(bool, Choice)> {
        let mut service = Service::default();
        let step = |states: &&str| {
            service.judge(policy, &members(states));
            (service.has_quorum(), service.choice())
        };
        states.iter().map(step).collect()
    }

    #[test]
    fn quorum_is_lost_below_it_and_regained_at_it() {
        let quorum = |states: &[&str]| -> Vec<bool> {
            through(Policy { quorum: 2, ..PLAIN }, states).into_iter().map(|(quorum, _)| quorum).collect()
        };
        assert_eq!(
            quorum(&["uuu", "uud", "udd", "ddd", "udd", "uud"]),
            [true, true, false, false, false, true]
        );
        assert_eq!(quorum(&["???", "d??", "dd?", "ddu", "duu"]), [true, true, false, false, true]);
    }

    #[test]
    fn hysteresis_delays_both_ways() {
        let policy = Policy { quorum: 3, hysteresis: 1, ..PLAIN };
        let quorum: Vec<bool> =
            through(policy, &["uuuuu", "uuudd", "uuddd", "udddd", "uuddd", "uuudd", "uuuud", "uuudd"])
                .into_iter()
                .map(|(quorum, _)| quorum)
                .collect();
        assert_eq!(quorum, [true, true, true, false, false, false, true, true]);
    }

    #[test]
    fn no_weight_at_all_is_no_quorum_whatever_the_numbers() {
        let policy = Policy { quorum: 2, hysteresis: 1, ..PLAIN };
        assert_eq!(through(policy, &["ud", "dd"]).iter().map(|(q, _)| *q).collect::<Vec<_>>(), [true, false]);
        let mut service = Service::default();
        service.judge(PLAIN, &[Member { state: State::Up, weight: 0 }]);
        assert!(!service.has_quorum(), "weight counts, not heads");
    }

    #[test]
    fn the_sorry_server_takes_over_with_the_quorum_and_not_while_verdicts_are_pending() {
        let policy = Policy { sorry: true, ..PLAIN };
        let choices: Vec<Choice> = through(policy, &["??", "d?", "dd", "d?", "du", "uu"])
            .into_iter()
            .map(|(_, choice)| choice)
            .collect();
        use Choice::{Healthy, Sorry};
        assert_eq!(choices, [Healthy, Healthy, Sorry, Sorry, Healthy, Healthy]);
    }

    #[test]
    fn below_the_panic_threshold_all_servers_are_used_and_at_it_only_the_healthy_ones() {
        let policy = Policy { panic_threshold: 50, ..PLAIN };
        let choices = |policy, states: &[&str]| -> Vec<Choice> {
            through(policy, states).into_iter().map(|(_, choice)| choice).collect()
        };
        use Choice::{All, Healthy, Sorry};
        assert_eq!(
            choices(policy, &["uuuu", "uudd", "uddd", "dddd", "uudd"]),
            [Healthy, Healthy, All, All, Healthy]
        );
        // Nobody has a verdict: that is no reason to panic, and one failure of one is.
        assert_eq!(choices(policy, &["????", "d???", "du??"]), [Healthy, All, Healthy]);
        let both = Policy { sorry: true, ..policy };
        assert_eq!(choices(both, &["uddd", "dddd"]), [All, Sorry]);
        assert_eq!(choices(PLAIN, &["dddd"]), [Healthy]);
    }
}
