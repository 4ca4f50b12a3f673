//! What runs out while traffic flows, said now and then: counters of refusals that grow become one warning, and no more
//! until a while has passed.

use shunt_dataplane::counters::drop_reason;
use shunt_dataplane::verdict::DropReason;
use shunt_engine::counters::Published;
use shunt_engine::{Duration, Instant};

/// Everything that is watched.
#[derive(Debug, Default)]
pub(crate) struct Shortages {
    local_ports: Shortage,
    connections: Shortage,
}

impl Shortages {
    /// Warns of what the workers have refused, by their `counters`.
    pub(crate) fn tell(&mut self, counters: &[Published], now: Instant) {
        let refused = |reason| counters.iter().map(|worker| worker.get(drop_reason(reason))).sum();
        if let Some(count) = self.local_ports.look(refused(DropReason::NoLocalPort), now) {
            tracing::warn!("no local port was free for {count} connections: add local addresses");
        }
        if let Some(count) = self.connections.look(refused(DropReason::TableFull), now) {
            tracing::warn!("the connection table was full for {count} connections: raise max_connections");
        }
    }
}

/// Watches one counter of refusals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shortage {
    /// The counter when it was last spoken of.
    told: u64,
    /// Before that nothing is said.
    quiet_until: Instant,
}

/// How long nothing more is said about the same shortage.
const QUIET: Duration = Duration::from_secs(30);

impl Shortage {
    /// The counter is at `count`. Returns how many refusals there are to tell of, if it is time to.
    fn look(&mut self, count: u64, now: Instant) -> Option<u64> {
        let new = count.saturating_sub(self.told);
        if new == 0 || now < self.quiet_until {
            return None;
        }
        *self = Self { told: count, quiet_until: now + QUIET };
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_at_once_and_then_at_most_twice_a_minute_with_nothing_left_out() {
        let mut shortage = Shortage::default();
        let at = |seconds| Instant::ZERO + Duration::from_secs(seconds);
        assert_eq!(shortage.look(0, at(1)), None, "nothing has happened");
        assert_eq!(shortage.look(5, at(10)), Some(5));
        let told: Vec<_> = (11..=100).filter_map(|s| shortage.look(5 + (s - 10) * 100, at(s))).collect();
        assert_eq!(told, [3000; 3]);
        assert_eq!(shortage.look(9005, at(500)), None, "it is over");
    }
}
