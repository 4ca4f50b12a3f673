//! Room for a new connection: a record in the table, a local port towards the server. Both may come from a connection
//! that gives way ([`GivesWay`]), and what gave way is counted.

use crate::conn::{Conn, ConnId, GivesWay, InsertError, Ticks};
use crate::counters::Event;
use crate::flow::{Context, Flows};
use crate::ip::Ip;
use crate::laddr::Holder;
use crate::server::Mode;
use crate::service::{Local, Service};
use crate::tuple::{Endpoint, Protocol, Tuple};
use crate::verdict::DropReason;

impl<A: Ip> Flows<A> {
    /// Puts a connection into the table whose request was looked for in vain. A full one makes room if it can.
    pub(crate) fn insert(&mut self, cx: &mut Context<'_, '_>, conn: Conn<A>) -> Result<ConnId, DropReason> {
        let inserted = match conn.mode() {
            Mode::Fullnat | Mode::Dr | Mode::Tun => self.table.insert_unknown(conn, cx.ticks),
            // Nobody has looked for its reply yet.
            Mode::Nat => self.table.insert(conn, cx.ticks),
        };
        match inserted {
            Ok(id) => Ok(id),
            Err(InsertError::Exists) => Err(DropReason::TupleTaken),
            Err(InsertError::Full) => self.insert_instead(cx, conn),
        }
    }

    #[cold]
    fn insert_instead(&mut self, cx: &mut Context<'_, '_>, conn: Conn<A>) -> Result<ConnId, DropReason> {
        let (why, id) = self.hand.find(&self.table, cx.ticks).ok_or(DropReason::TableFull)?;
        cx.counters.event(match why {
            GivesWay::HalfOpen => Event::HalfOpenEvicted,
            GivesWay::Closing => Event::ClosingEvicted,
            GivesWay::Idle => Event::IdleEvicted,
        });
        self.close(cx, id);
        self.table.insert(conn, cx.ticks).map_err(|_| DropReason::TableFull)
    }

    /// A local endpoint for a new FULLNAT connection of `service` to `server`.
    pub(crate) fn local_port(
        &mut self,
        cx: &mut Context<'_, '_>,
        service: &Service,
        server: Endpoint<A>,
        protocol: Protocol,
    ) -> Result<Endpoint<A>, DropReason> {
        let (table, now) = (&self.table, cx.ticks);
        let holder = |reply: &Tuple<A>| {
            let Some(hit) = table.lookup(reply, table.hash(reply)) else { return Holder::Nobody };
            let conn = table.get(hit.id);
            let idle = now.since(conn.last_seen);
            match GivesWay::of(conn, now) {
                // A handshake has a second for itself: that long its client waits before it asks again.
                Some(GivesWay::HalfOpen) if idle < SECOND.0 => Holder::Connection,
                Some(why) => Holder::Leaving(why, idle),
                None => Holder::Connection,
            }
        };
        let found = self.local_ports.choose(&service.locals, server, protocol, holder);
        cx.counters.events(Event::PortProbes, found.tries.saturating_sub(1).into());
        match found.endpoint {
            Some(endpoint) if !found.held => Ok(endpoint),
            held => self.take_back(cx, service, server, protocol, held),
        }
    }

    /// The local endpoint of the connection that has been over for longest. Where none is, the one `otherwise` found.
    #[cold]
    fn take_back(
        &mut self,
        cx: &mut Context<'_, '_>,
        service: &Service,
        server: Endpoint<A>,
        protocol: Protocol,
        otherwise: Option<Endpoint<A>>,
    ) -> Result<Endpoint<A>, DropReason> {
        let oldest_of = |local: &Local| {
            let may_go = |conn: &Conn<A>| {
                local.ports.contains(&{ conn.peer.port }) && GivesWay::of(conn, cx.ticks).is_some()
            };
            self.table.over(server, A::from_ip(local.address)?, protocol).find(|(_, conn)| may_go(conn))
        };
        let oldest = service.locals.iter().filter_map(oldest_of);
        let oldest = oldest.max_by_key(|(_, conn)| cx.ticks.since(conn.last_seen)).map(|(_, conn)| conn.peer);
        let endpoint = oldest.or(otherwise).ok_or(DropReason::NoLocalPort)?;
        let reply = Tuple { src: server, dst: endpoint, protocol };
        if let Some(hit) = self.table.lookup(&reply, self.table.hash(&reply)) {
            cx.counters.event(Event::PortsReused);
            self.close(cx, hit.id);
        }
        Ok(endpoint)
    }
}

const SECOND: Ticks = Ticks::from_nanos(1_000_000_000);
