//! A new snapshot's servers, piece by piece, so that very many of them do not make one turn of the loop long.
//!
//! What an older tenant of a slot left in the counters is not the newer one's, and whose connections are limited must be
//! known. A server that gets a connection before its turn has come is looked at then.

use std::ops::Range;
use std::sync::Arc;

use crate::counters::WorkerCounters;
use crate::shared::Shared;
use crate::snapshot::Snapshot;

/// How far a worker is with the newest snapshot's servers.
#[derive(Debug, Default)]
pub(crate) struct Adoption {
    /// The newest snapshot of which all servers have been looked at.
    done: Option<Arc<Snapshot>>,
    /// Pages of the present one still to be looked at.
    pages: Range<usize>,
}

impl Adoption {
    /// Pages a turn of the loop looks at, of [`Snapshot::PAGE`] servers at most.
    pub(crate) const PIECE: usize = 4;

    /// `snapshot` is in force from now on.
    pub(crate) fn begin(&mut self, snapshot: &Snapshot) {
        self.pages = 0..snapshot.server_slots().div_ceil(Snapshot::PAGE);
    }

    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        !self.pages.is_empty()
    }

    /// Looks at the next piece; at the last one keeps what `handle` gives.
    #[cold]
    pub(crate) fn run(
        &mut self,
        snapshot: &Snapshot,
        handle: impl FnOnce() -> Arc<Snapshot>,
        counters: &mut WorkerCounters,
        shared: &mut Shared,
    ) {
        for page in self.pages.by_ref().take(Self::PIECE) {
            for server in snapshot.servers_unlike(self.done.as_deref(), page) {
                counters.tenant(server.id);
                shared.adopt_server(server);
            }
        }
        if !self.is_pending() {
            self.done = Some(handle());
            shared.adopted();
        }
    }
}
