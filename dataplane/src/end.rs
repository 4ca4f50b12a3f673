//! The end of connections: they are closed, or idle for too long, and their servers' load and templates are let go.

use shunt_engine::Instant;

use crate::conn::{Conn, ConnFlags, ConnId, State, Ticks};
use crate::counters::{Event, ServerField, WorkerCounters};
use crate::flow::{Context, Flows, load_fields};
use crate::ip::Ip;
use crate::persist::Template;
use crate::shared::Shared;
use crate::snapshot::Snapshot;
use crate::tuple::Protocol;

/// What a tick did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick {
    /// Connections that went or were reset.
    pub removed: usize,
    /// When the next tick is due.
    pub next: Option<Instant>,
}

impl<A: Ip> Flows<A> {
    /// Records looked at per tick for expiry.
    const EXPIRE_BUDGET: usize = 256;

    /// Removes a connection and its share of the server's load.
    pub(crate) fn close(&mut self, cx: &mut Context<'_, '_>, id: ConnId) {
        let conn = self.table.remove(id);
        let template = self.held.template(id, &conn);
        forget(&conn, template, cx.ticks, cx.snapshot, cx.counters, cx.shared);
    }

    /// Removes idle connections and resets drained ones, a bounded number of each.
    pub(crate) fn tick(&mut self, cx: &mut Context<'_, '_>) -> Tick {
        let mut removed = 0;
        if self.next_expiry <= cx.ticks {
            let (held, now) = (&self.held, cx.ticks);
            let done = self.table.expire(now, Self::EXPIRE_BUDGET, |id, conn| {
                cx.counters.event(Event::ConnectionsExpired);
                if was_unanswered(conn) {
                    cx.counters.server_add(conn.server_id, ServerField::Failures, 1);
                }
                forget(conn, held.template(id, conn), now, cx.snapshot, cx.counters, cx.shared);
            });
            removed = done.removed;
            if done.visited < Self::EXPIRE_BUDGET {
                self.next_expiry = Ticks(cx.ticks.0 + 1);
            }
        }
        let ended = self.drain(cx);
        let expiry = Instant::from_nanos(u64::from(self.next_expiry.0) << Ticks::SHIFT);
        let expiry = (!self.table.is_empty()).then_some(expiry.max(cx.now));
        let next = [expiry, ended.next].into_iter().flatten().min();
        Tick { removed: removed + ended.removed, next }
    }
}

/// Whether a connection is one whose server has said nothing to its client's SYN, where that would have passed here.
fn was_unanswered<A: Ip>(conn: &Conn<A>) -> bool {
    State::from_number(conn.state) == State::SynRecv
        && !conn.flags.has(ConnFlags::AGAIN | ConnFlags::MOVED | ConnFlags::PARKED)
        && conn.mode().sees_replies()
}

/// Takes a connection that went off its server's load, and lets its `template` go.
fn forget<A: Ip>(
    conn: &Conn<A>,
    template: Option<Template>,
    now: Ticks,
    snapshot: &Snapshot,
    counters: &mut WorkerCounters,
    shared: &mut Shared,
) {
    if conn.moved_to().is_none() {
        let active = conn.flags.has(ConnFlags::ACTIVE);
        let (counted, _) = load_fields(active);
        counters.server_sub(conn.server_id, counted, 1);
        shared.schedulers.closed(conn.server_id, active);
        shared.doors.leave(conn.server_id, &mut shared.schedulers);
        if let Some(template) = template {
            let established =
                conn.protocol() == Protocol::Udp || !State::from_number(conn.state).is_half_open();
            let_go(conn, template, established, now, snapshot, shared);
        }
    }
}

/// Lets the `template` of a connection go, which was `established` or never got beyond the handshake.
pub(crate) fn let_go<A: Ip>(
    conn: &Conn<A>,
    template: Template,
    established: bool,
    now: Ticks,
    snapshot: &Snapshot,
    shared: &Shared,
) {
    let service = snapshot.server(conn.server_id).and_then(|server| snapshot.service(server.service));
    let persistence = service.and_then(|service| service.persistence.as_ref());
    shared.agreed.templates.release(template, established, persistence, now);
}
