//! The guard: an nftables table that keeps the kernel's own TCP and UDP away from what is ours.
//!
//! The kernel owns the VIPs too, so a frame that reaches it by accident (a crash that detaches XDP, a packet socket
//! which only sees copies, a queue without socket) would be answered with RST. The table drops such packets before
//! anything looks at them. It outlives the daemon on purpose: the next start replaces it, `shunt cleanup` removes it.
//! ICMP and all other ports pass; what the director itself sends passes.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::Stdio;

use shunt_engine::steer::{Rule, Side};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Name of the table, family `inet`.
pub const TABLE: &str = "shunt";

/// Why the guard could not be set.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The program `nft` is not there.
    #[error("the program \"nft\" is not installed; install it: apt-get install nftables")]
    NoNft,
    /// It could not be run.
    #[error("cannot run \"nft\": {0}")]
    Run(#[source] std::io::Error),
    /// It does not end.
    #[error("\"nft\" did not end within {} seconds", NFT_TIMEOUT.as_secs())]
    Timeout,
    /// It refused.
    #[error("nft refused the guard table: {0}")]
    Refused(String),
}

/// Whether the guard can be had at all: to be asked before anything is changed.
///
/// # Errors
/// When `nft` is missing or cannot be run.
pub async fn available() -> Result<(), GuardError> {
    nft("").await
}

/// Replaces the table by one that drops what `rules` describe. All or nothing.
///
/// # Errors
/// When `nft` is missing or refuses; the table before stays then.
pub async fn set(rules: &[Rule]) -> Result<(), GuardError> {
    nft(&script(rules)).await
}

/// Removes the table, if there is one.
///
/// # Errors
/// When `nft` is missing or refuses.
pub async fn remove() -> Result<(), GuardError> {
    // Declaring a table that exists changes nothing, so that deleting it never fails.
    nft(&format!("table inet {TABLE}\ndelete table inet {TABLE}\n")).await
}

/// The table in nft's language. Destination rules are matched as a set. Source rules too, but only packets that pass
/// through: an answer to the director's own connection is the kernel's.
pub fn script(rules: &[Rule]) -> String {
    let mut text = format!("table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    let sets = sets(rules);
    sets.iter().for_each(|set| set.declare(&mut text));
    text.push_str(" chain prerouting {\n  type filter hook prerouting priority raw; policy accept;\n");
    sets.iter().for_each(|set| set.drop(&mut text));
    text.push_str(" }\n}\n");
    text
}

/// Rules that go into one set: of one side, one family and one length of prefixes, for the kernel refuses elements that
/// overlap.
struct Set {
    side: Side,
    ipv4: bool,
    len: u8,
    elements: Vec<String>,
}

fn sets(rules: &[Rule]) -> Vec<Set> {
    let kind = |rule: &Rule| (rule.side, !rule.prefix.address().is_ipv4(), Reverse(rule.prefix.len()));
    let kinds: BTreeSet<_> = rules.iter().map(kind).collect();
    let set = |(side, ipv6, Reverse(len))| {
        let of_set = rules.iter().filter(|rule| kind(rule) == (side, ipv6, Reverse(len)));
        Set { side, ipv4: !ipv6, len, elements: merged(of_set).iter().map(element).collect() }
    };
    kinds.into_iter().map(set).collect()
}

impl Set {
    fn declare(&self, text: &mut String) {
        let (name, key, elements) = (self.name(), self.key(), self.elements.join(", "));
        let set =
            format!(" set {name} {{\n  typeof {key}; flags interval;\n  elements = {{ {elements} }}\n }}\n");
        text.push_str(&set);
    }

    fn drop(&self, text: &mut String) {
        let passing = if self.side == Side::Source { " fib daddr type != local" } else { "" };
        writeln!(text, "  {} @{}{passing} counter drop", self.key(), self.name())
            .expect("strings take everything");
    }

    fn name(&self) -> String {
        let (word, family) = match self.side {
            Side::Destination => ("ours", if self.ipv4 { 4 } else { 6 }),
            Side::Source => ("servers", if self.ipv4 { 4 } else { 6 }),
        };
        let is_host = self.len == if self.ipv4 { 32 } else { 128 };
        if is_host { format!("{word}{family}") } else { format!("{word}{family}_{}", self.len) }
    }

    /// What the set is looked up by.
    fn key(&self) -> &'static str {
        match (self.side, self.ipv4) {
            (Side::Destination, true) => "ip daddr . meta l4proto . th dport",
            (Side::Destination, false) => "ip6 daddr . meta l4proto . th dport",
            (Side::Source, true) => "ip saddr . meta l4proto . th sport",
            (Side::Source, false) => "ip6 saddr . meta l4proto . th sport",
        }
    }
}

fn element(rule: &Rule) -> String {
    let ports = match (rule.ports.start(), rule.ports.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    let prefix = rule.prefix;
    let address = if prefix.is_host() { prefix.address().to_string() } else { prefix.to_string() };
    format!("{address} . {} . {ports}", rule.protocol)
}

/// Rules of one prefix and protocol with their ports joined where they overlap.
fn merged<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<Rule> {
    let mut sorted: Vec<Rule> = rules.cloned().collect();
    sorted.sort_by_key(|rule| (rule.prefix, rule.protocol, *rule.ports.start()));
    let mut merged: Vec<Rule> = Vec::new();
    for rule in sorted {
        match merged.last_mut() {
            Some(last)
                if (last.prefix, last.protocol) == (rule.prefix, rule.protocol)
                    && *rule.ports.start() <= last.ports.end().saturating_add(1) =>
            {
                let end = *last.ports.end().max(rule.ports.end());
                last.ports = *last.ports.start()..=end;
            }
            _ => merged.push(rule),
        }
    }
    merged
}

async fn nft(script: &str) -> Result<(), GuardError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => GuardError::NoNft,
            _ => GuardError::Run(error),
        })?;
    let mut input = child.stdin.take().expect("stdin was asked for");
    let run = async {
        // A refusal may close the pipe early; what nft says then matters more than the broken pipe.
        let _ = input.write_all(script.as_bytes()).await;
        drop(input);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(NFT_TIMEOUT, run).await.map_err(|_| GuardError::Timeout)?;
    let output = output.map_err(GuardError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    Err(GuardError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

const NFT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use shunt_engine::steer::Prefix;

    use super::*;

    fn rule(side: Side, address: &str, protocol: u8, ports: std::ops::RangeInclusive<u16>) -> Rule {
        Rule { side, prefix: Prefix::host(address.parse().unwrap()), protocol, ports }
    }

    #[test]
    fn the_script_replaces_the_table_in_one_go() {
        let rules = [
            rule(Side::Destination, "203.0.113.10", 6, 80..=80),
            rule(Side::Destination, "10.0.0.200", 17, 1025..=65535),
            rule(Side::Source, "10.0.0.11", 6, 8080..=8080),
        ];
        let expected = "table inet shunt\ndelete table inet shunt\ntable inet shunt {\n \
            set ours4 {\n  typeof ip daddr . meta l4proto . th dport; flags interval;\n  \
            elements = { 10.0.0.200 . 17 . 1025-65535, 203.0.113.10 . 6 . 80 }\n }\n \
            set servers4 {\n  typeof ip saddr . meta l4proto . th sport; flags interval;\n  \
            elements = { 10.0.0.11 . 6 . 8080 }\n }\n \
            chain prerouting {\n  type filter hook prerouting priority raw; policy accept;\n  \
            ip daddr . meta l4proto . th dport @ours4 counter drop\n  \
            ip saddr . meta l4proto . th sport @servers4 fib daddr type != local counter drop\n }\n}\n";
        assert_eq!(script(&rules), expected);
    }

    #[test]
    fn overlapping_ranges_become_one_element() {
        let rules = [
            rule(Side::Destination, "203.0.113.10", 6, 0..=65535),
            rule(Side::Destination, "203.0.113.10", 6, 80..=80),
            rule(Side::Destination, "203.0.113.10", 17, 53..=53),
            rule(Side::Destination, "203.0.113.10", 17, 54..=60),
        ];
        let sets = sets(&rules);
        assert_eq!(sets.len(), 1);
        assert_eq!(sets[0].elements, ["203.0.113.10 . 6 . 0-65535", "203.0.113.10 . 17 . 53-60"]);
    }

    #[test]
    fn prefixes_of_each_length_have_a_set_of_their_own() {
        let prefix = |address: &str, len| Rule {
            prefix: Prefix::new(address.parse().unwrap(), len).unwrap(),
            ..rule(Side::Destination, "203.0.113.10", 6, 80..=80)
        };
        let rules = [
            prefix("0.0.0.0", 1),
            prefix("203.0.113.10", 32),
            prefix("128.0.0.0", 1),
            prefix("2001:db8::", 32),
        ];
        let found: Vec<_> = sets(&rules).iter().map(|set| (set.name(), set.elements.join(", "))).collect();
        let expected = [
            ("ours4", "203.0.113.10 . 6 . 80"),
            ("ours4_1", "0.0.0.0/1 . 6 . 80, 128.0.0.0/1 . 6 . 80"),
            ("ours6_32", "2001:db8::/32 . 6 . 80"),
        ];
        assert_eq!(found, expected.map(|(name, elements)| (name.to_owned(), elements.to_owned())));
    }

    #[test]
    fn without_rules_nothing_is_dropped() {
        assert!(!script(&[]).contains("drop"));
    }
}
