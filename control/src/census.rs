//! Which local addresses no connection uses any more, of those that were left out while their servers stay
//! ([`crate::drain`]).
//!
//! Nobody counts connections by local address: that would cost every connection something, for a case that is rare. So
//! as long as there are such addresses, all connections are looked at from time to time, as for `shunt connections`.

use std::collections::HashSet;

use shunt_dataplane::dump::Shown;
use shunt_engine::clock::Clock;
use shunt_engine::{Duration, Instant};
use tokio::task::JoinSet;

use crate::admin::connections::Access;
use crate::config::AddressPorts;

/// A local address of a service, by the service's name.
pub type LocalOf = (String, AddressPorts);

/// Looks at all connections, one time after the other. Dropped, it stops.
#[derive(Debug, Default)]
pub struct Census {
    /// The one under way, which ends with what is not in use and how long it has taken.
    under_way: JoinSet<(HashSet<LocalOf>, Duration)>,
    next: Instant,
}

impl Census {
    /// After one that took a second there is none for so many: workers have other things to do.
    const PAUSE: u64 = 10;

    /// Which of `candidates`, that no new connection uses, no connection has used since the question before. To be asked
    /// again and again.
    pub fn unused(
        &mut self,
        candidates: &HashSet<LocalOf>,
        access: impl FnOnce() -> Access,
        now: Instant,
    ) -> HashSet<LocalOf> {
        if candidates.is_empty() {
            *self = Self::default();
        } else if let Some(result) = self.under_way.try_join_next() {
            let (unused, took) = result.expect("looking at connections does not panic");
            self.next = now + Duration::from_nanos(took.as_nanos() * Self::PAUSE);
            return unused.intersection(candidates).cloned().collect();
        } else if self.under_way.is_empty() && now >= self.next {
            let (access, mut unused) = (access(), candidates.clone());
            self.under_way.spawn(async move {
                let names = access.names;
                let service = |shown: &Shown| names.get(&shown.server_id).map(|(service, _)| &service[..]);
                let see = |shown: &Shown| unused.retain(|local| !uses(shown, service(shown), local));
                access.dumps.visit(see).await;
                (unused, Clock::System.now().since(now))
            });
        }
        HashSet::new()
    }
}

/// Whether a connection of `service` that is not over has its local endpoint there.
fn uses(shown: &Shown, service: Option<&str>, (of, local): &LocalOf) -> bool {
    let is_there = |at: std::net::SocketAddr| {
        at.ip() == local.address && (local.first..=local.last).contains(&at.port())
    };
    service == Some(of) && !shown.state.is_over() && shown.local.is_some_and(is_there)
}
