//! Changes while running: a new configuration, or a kernel that changed. Either way one new snapshot, in force everywhere
//! before the caller hears of it, and the outside world changed in the order that loses nothing.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use shunt_dataplane::snapshot::Snapshot;
use shunt_engine::clock::Clock;
use shunt_engine::steer::Rule;

use crate::addresses::{self, LedgerError};
use crate::announce::announce;
use crate::census::Census;
use crate::compile::{compile, stations};
use crate::config::{Config, Loaded};
use crate::drain;
use crate::guard;
use crate::kernel::Kernel;
use crate::neighbours;
use crate::netlink::Tables;
use crate::supervisor::Daemon;

impl Daemon {
    /// Puts `config` in force. Returns the generation.
    ///
    /// # Errors
    /// With the text for people, when it cannot be put in force; nothing has changed then.
    pub(crate) async fn put_in_force(
        &mut self,
        loaded: &Loaded,
        warnings: &mut Vec<String>,
    ) -> Result<u64, String> {
        let mut config = loaded.config.clone();
        let fixed = needs_restart(&self.config, &config);
        if !fixed.is_empty() {
            return Err(format!("{} cannot change without a restart", fixed.join(", ")));
        }
        let ports = addresses::kernel_ports();
        self.health.watch().carry_over(&mut config, Clock::System.now());
        drain::carry_over(Some(&self.config), &mut config, Clock::System.now());
        let conflicts = addresses::conflicts(&config, &self.kernel, self.ledger.ours(), &ports);
        if !conflicts.is_empty() {
            return Err(format!("this machine is in the way\n{}", loaded.render(&conflicts, false)));
        }
        let mut numbers = self.numbers.clone();
        let compiled = compile(&config, &self.kernel, &self.ports, &mut numbers, &self.publisher.current());
        let snapshot = compiled.map_err(|error| error.to_string())?;
        let rules = snapshot.steering();
        self.widen(&rules).await?;
        self.numbers = numbers;
        self.config = config;
        self.health.alter(|watch, now| watch.configure(&self.config, now));
        // What it has seen of local addresses was before this.
        self.census = Census::default();
        Ok(self.replace(snapshot, rules, warnings).await)
    }

    /// Puts in force what the checks of servers have found.
    pub(crate) fn standings_changed(&mut self) {
        let mut config = self.config.clone();
        if !self.health.alter(|watch, now| watch.apply(&mut config, now)) {
            return;
        }
        let mut numbers = self.numbers.clone();
        match compile(&config, &self.kernel, &self.ports, &mut numbers, &self.publisher.current()) {
            Ok(snapshot) => {
                self.numbers = numbers;
                self.config = config;
                self.publisher.publish(snapshot);
                self.workers.wakers().wake_all();
            }
            Err(error) => tracing::error!("servers stay as they were: {error}"),
        }
    }

    /// Lets go what was left out by a reload and has drained.
    pub(crate) async fn let_go(&mut self) {
        let mut config = self.config.clone();
        let now = Clock::System.now();
        let in_question = drain::locals_in_question(&config);
        let mut census = std::mem::take(&mut self.census);
        let unused = census.unused(&in_question, || self.connections_access(), now);
        self.census = census;
        let gone = drain::take_drained(&mut config, &unused, now);
        if gone.is_empty() {
            return;
        }
        let mut numbers = self.numbers.clone();
        let snapshot =
            match compile(&config, &self.kernel, &self.ports, &mut numbers, &self.publisher.current()) {
                Ok(snapshot) => snapshot,
                Err(error) => return tracing::error!("a drained server stays: {error}"),
            };
        self.numbers = numbers;
        self.config = config;
        let rules = snapshot.steering();
        let mut warnings = Vec::new();
        self.replace(snapshot, rules, &mut warnings).await;
        for what in gone {
            tracing::info!("{what} and is gone");
        }
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    }

    /// Guard and steering take what is new in `rules` on top of what they have.
    async fn widen(&mut self, rules: &[Rule]) -> Result<(), String> {
        let both = union(&self.rules, rules);
        if both == self.rules {
            return Ok(());
        }
        guard::set(&both).await.map_err(|error| format!("guard: {error}"))?;
        let before = std::mem::replace(&mut self.rules, both);
        let Err(error) = self.steer() else { return Ok(()) };
        self.rules = before;
        // Back to the narrower rules, which fitted before.
        let (steered, guarded) = (self.steer(), guard::set(&self.rules).await);
        if steered.is_err() || guarded.is_err() {
            tracing::error!("the steering rules from before the reload could not be brought back whole");
        }
        Err(format!("port {error}"))
    }

    /// Everything after the point of no return: what fails from here on is a warning.
    async fn replace(&mut self, snapshot: Snapshot, rules: Vec<Rule>, warnings: &mut Vec<String>) -> u64 {
        let wanted = addresses::wanted(&self.config, &self.kernel, &self.ports);
        if let Err(error) = addresses::remove(&wanted, &self.kernel, &self.netlink, &mut self.ledger).await {
            warnings.push(error.to_string());
        }
        let generation = self.publisher.publish(snapshot);
        if !self.in_force(generation).await {
            warnings.push("a worker has not taken the new configuration within a second".to_owned());
        }
        match addresses::add(&wanted, &self.kernel, &self.netlink, &mut self.ledger).await {
            Ok(added) => announce(&added, &self.kernel),
            Err(error) => warnings.push(error.to_string()),
        }
        self.follow(rules, warnings).await;
        let stations = stations(&self.config, &self.kernel, &self.ports);
        if let Err(error) = self.adjust_neighbours(&stations).await {
            warnings.push(error.to_string());
        }
        generation.0
    }

    /// Guard and steering take `rules` and nothing else.
    async fn follow(&mut self, rules: Vec<Rule>, warnings: &mut Vec<String>) {
        if rules == self.rules {
            return;
        }
        self.rules = rules;
        if let Err(error) = self.steer() {
            warnings.push(format!("port {error}"));
        }
        if let Err(error) = guard::set(&self.rules).await {
            warnings.push(format!("guard: {error}"));
        }
    }

    /// Brings the managed neighbours in line. What the kernel refuses is said once, until it refuses nothing.
    pub(crate) async fn adjust_neighbours(
        &mut self,
        stations: &BTreeSet<(u32, IpAddr)>,
    ) -> Result<(), LedgerError> {
        let refused = neighbours::adjust(stations, &self.kernel, &self.netlink, &mut self.ledger).await?;
        match &refused {
            Some(refused) if !self.neighbours_refused => tracing::warn!("{refused}"),
            _ => {}
        }
        self.neighbours_refused = refused.is_some();
        Ok(())
    }

    /// Brings the managed neighbours in line with the present view. Returns which there shall be.
    pub(crate) async fn tend_neighbours(&mut self) -> BTreeSet<(u32, IpAddr)> {
        let stations = stations(&self.config, &self.kernel, &self.ports);
        if let Err(error) = self.adjust_neighbours(&stations).await {
            tracing::warn!("{error}");
        }
        stations
    }

    /// Reads the changed tables of the kernel, and tells the workers if it matters to them.
    pub(crate) async fn kernel_changed(&mut self, tables: Tables) {
        let mut kernel = self.kernel.clone();
        if let Err(error) = self.netlink.reread(&mut kernel, tables).await {
            // The kernel interrupts a reading that changes meanwhile; the event of that change starts another.
            tracing::warn!("{error}");
            return;
        }
        if kernel == self.kernel {
            return;
        }
        self.notice_ports(&kernel);
        let same_ways = kernel.leads_like(&self.kernel);
        let came_up = kernel.links.iter().any(|link| link.up && !self.kernel.has_link_up(link.index));
        self.kernel = kernel;
        if came_up {
            self.put_addresses_back().await;
        }
        self.tend_neighbours().await;
        if same_ways {
            return;
        }
        let mut numbers = self.numbers.clone();
        match compile(&self.config, &self.kernel, &self.ports, &mut numbers, &self.publisher.current()) {
            Ok(snapshot) => {
                self.numbers = numbers;
                // An address of the director's that comes or goes makes a hole in a prefix, or closes one.
                let rules = snapshot.steering();
                self.publisher.publish(snapshot);
                self.workers.wakers().wake_all();
                let mut warnings = Vec::new();
                self.follow(rules, &mut warnings).await;
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            }
            Err(error) => {
                tracing::error!("the kernel's network is too large, workers keep the old view: {error}")
            }
        }
    }

    /// Puts addresses back that somebody, or the kernel itself, has taken away.
    pub(crate) async fn put_addresses_back(&self) {
        announce(&addresses::put_back(&self.kernel, &self.netlink, &self.ledger).await, &self.kernel);
    }

    /// Sets the guard again, which somebody else has removed or emptied.
    pub(crate) async fn guard_again(&self) {
        match guard::set(&self.rules).await {
            Ok(()) => tracing::warn!("the guard table was changed by somebody else and is set again"),
            Err(error) => tracing::error!("the guard table was changed by somebody else: {error}"),
        }
    }

    /// Says when the interface of a port comes, goes or loses its carrier.
    fn notice_ports(&self, now: &Kernel) {
        for port in &self.ports {
            let name = &port.info.name;
            let up = |kernel: &Kernel| kernel.link(port.link).map(|link| link.up);
            match (up(&self.kernel), up(now)) {
                (Some(_), None) => tracing::error!("interface {name} is gone; restart shunt when it is back"),
                (Some(true), Some(false)) => tracing::warn!("interface {name} is down"),
                (Some(false), Some(true)) => tracing::info!("interface {name} is up"),
                _ => {}
            }
            let (Some(was), Some(is)) = (self.kernel.link(port.link), now.link(port.link)) else { continue };
            if is.mac != was.mac && is.mac != port.info.mac {
                tracing::error!(
                    "interface {name} has a new address, {}: shunt goes on with {} until it is restarted",
                    is.mac,
                    port.info.mac
                );
            }
            if is.mtu != was.mtu {
                tracing::warn!(
                    "interface {name} has MTU {} now; larger than at the start takes effect when shunt is restarted",
                    is.mtu
                );
            }
        }
    }
}

/// Parts of the file that are fixed while the daemon runs and differ.
pub(crate) fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let mut differ = Vec::new();
    let engine = |config: &Config| crate::config::Engine { manage_addresses: true, ..config.engine.clone() };
    if engine(old) != engine(new) {
        differ.push("[engine]");
    }
    if old.api != new.api {
        differ.push("[api]");
    }
    if old.metrics != new.metrics {
        differ.push("[metrics]");
    }
    if old.ports != new.ports {
        differ.push("[[port]]");
    }
    differ
}

fn union(old: &[Rule], new: &[Rule]) -> Vec<Rule> {
    let known: HashSet<_> = old.iter().collect();
    old.iter().chain(new.iter().filter(|rule| !known.contains(rule))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use shunt_engine::steer::{Prefix, Side};

    use super::*;

    fn config(text: &str) -> Config {
        Config::parse("test", text, false).unwrap_or_else(|error| panic!("{error}")).config
    }

    #[test]
    fn what_is_fixed_while_running_is_named() {
        let old = config("[[port]]\ninterface = \"eth0\"\n");
        assert!(needs_restart(&old, &old).is_empty());
        let new = config(
            "[engine]\nworkers = 2\n[[port]]\ninterface = \"eth1\"\n[api]\nsocket = \"/a\"\n[metrics]\nlisten = \"[::1]:9110\"\n",
        );
        assert_eq!(needs_restart(&old, &new), ["[engine]", "[api]", "[metrics]", "[[port]]"]);
        let unmanaged = config("[engine]\nmanage_addresses = false\n[[port]]\ninterface = \"eth0\"\n");
        assert!(needs_restart(&old, &unmanaged).is_empty());
    }

    #[test]
    fn wider_rules_keep_the_old_ones_and_add_the_new() {
        let rule = |port| Rule {
            side: Side::Destination,
            prefix: Prefix::host(IpAddr::from([203, 0, 113, 10])),
            protocol: 6,
            ports: port..=port,
        };
        assert_eq!(union(&[rule(1), rule(2)], &[rule(2), rule(3)]), [rule(1), rule(2), rule(3)]);
        assert_eq!(union(&[rule(1)], &[rule(1)]), [rule(1)]);
    }
}
