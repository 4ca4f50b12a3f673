//! What persistence and thresholds promise, kept naively: a map of clients, and a count of connections walked each time.

use std::collections::HashMap;

use shunt_dataplane::conn::State;
use shunt_dataplane::server::ServerId;
use shunt_dataplane::tuple::V4;
use shunt_engine::{Duration, Instant};

use crate::lab::{Lab, SERVICES, Setup, persistence};

/// How long after its timeout a client may still be remembered.
const LATE_MAX: Duration = Duration::from_millis(200);

/// A client that a service remembers, as the model knows it.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    /// Whether a connection of it was ever more than half-open.
    established: bool,
    /// When its last connection was opened or ended: not before and not after.
    touched: (Instant, Instant),
}

/// Clients remembered, and servers that were full.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    clients: HashMap<(usize, V4), Remembered>,
    /// Whether a server waits for its lower threshold; `None` after a connection that found a place and did not open.
    waits: HashMap<ServerId, Option<bool>>,
    checked: Instant,
}

/// Whether a server takes a new client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    Yes,
    Perhaps,
    No,
}

/// What identifies a client to a service, if that remembers clients.
pub(crate) fn client_of(service: usize, client: V4) -> Option<V4> {
    let mask = u32::from(persistence(service)?.mask_v4);
    Some(V4(client.0 & u32::MAX << (32 - mask)))
}

impl Policy {
    /// Whether server `id` with `count` connections takes one of a new client.
    pub(crate) fn takes(&self, setup: &Setup, id: ServerId, count: u64) -> Takes {
        let Some(limits) = setup.thresholds(id.slot as usize) else { return Takes::Yes };
        if count >= limits.upper.into() {
            return Takes::No;
        }
        if count < limits.lower.into() {
            return Takes::Yes;
        }
        match self.waits.get(&id).copied().unwrap_or(Some(false)) {
            Some(true) => Takes::No,
            Some(false) => Takes::Yes,
            None => Takes::Perhaps,
        }
    }

    /// Server `id`, which had `count` connections, has got one more.
    pub(crate) fn entered(&mut self, setup: &Setup, id: ServerId, count: u64) {
        let Some(limits) = setup.thresholds(id.slot as usize) else { return };
        assert!(count < limits.upper.into(), "{id:?} had {count} connections, {limits:?}");
        let waits = self.waits.entry(id).or_insert(Some(false));
        if count < limits.lower.into() {
            *waits = Some(false);
        }
        if count + 1 == limits.upper.into() {
            *waits = Some(true);
        }
    }

    /// A connection may have found a place at server `id`, which has `count` connections, and has not opened.
    pub(crate) fn may_have_left(&mut self, setup: &Setup, id: ServerId, count: u64) {
        let Some(limits) = setup.thresholds(id.slot as usize) else { return };
        if count + 1 == limits.upper.into() || count < limits.lower.into() {
            self.waits.insert(id, None);
        }
    }

    /// The limit of the servers in `slot` was raised or taken away.
    pub(crate) fn reopened(&mut self, slot: usize) {
        self.waits.retain(|id, _| id.slot as usize != slot);
    }

    /// A connection of `client` opened at `now`, when the workers `knew` the client or did not.
    pub(crate) fn opened(&mut self, service: usize, client: V4, knew: bool, now: Instant) {
        let Some(key) = client_of(service, client) else { return };
        let before = self.clients.get(&(service, key)).filter(|_| knew);
        let established = before.is_some_and(|before| before.established);
        self.clients.insert((service, key), Remembered { established, touched: (now, now) });
    }

    /// A connection of `client` was tried at `now` and holds nothing.
    pub(crate) fn tried(&mut self, service: usize, client: V4, now: Instant) {
        let known = client_of(service, client).and_then(|key| self.clients.get_mut(&(service, key)));
        if let Some(known) = known {
            known.touched.1 = now;
        }
    }

    /// Whether `client` is remembered for more than the connection that has just ended.
    pub(crate) fn keeps(
        &self,
        service: usize,
        client: V4,
        now: Instant,
        holders: impl Fn(V4) -> usize,
    ) -> bool {
        let Some(key) = client_of(service, client) else { return false };
        let timeout = persistence(service).map_or(Duration::ZERO, |persistence| persistence.timeout);
        let lasts = |known: &Remembered| known.established && now.since(known.touched.0) <= timeout;
        holders(key) > 0 || self.clients.get(&(service, key)).is_some_and(lasts)
    }

    /// A connection of `client` that held its template has ended in `state`, at the latest at `now`. If its server was
    /// `gone` by then, the client may be remembered for no longer than it was before.
    pub(crate) fn ended(&mut self, service: usize, client: V4, state: State, gone: bool, now: Instant) {
        let Some(key) = client_of(service, client) else { return };
        let known = self.clients.get_mut(&(service, key)).expect("who has a connection is known");
        known.established |= !state.is_half_open();
        if !gone {
            known.touched = (self.checked.max(known.touched.0), now);
        }
    }

    /// Compares who is remembered with the workers' table. `holders` counts live connections that hold a template.
    pub(crate) fn check(&mut self, lab: &Lab, clients: &[V4], holders: impl Fn(usize, V4) -> usize) {
        for service in 0..SERVICES.len() {
            let Some(persistence) = persistence(service) else { continue };
            for &client in clients {
                let key = client_of(service, client).unwrap();
                let server = lab.remembered(service, client);
                if holders(service, key) > 0 {
                    assert!(server.is_some(), "{client:?} has connections and is forgotten");
                    continue;
                }
                let known = self.clients.get(&(service, key)).copied();
                let Some(Remembered { established, touched }) = known else {
                    assert_eq!(server, None, "{client:?} never had a connection");
                    continue;
                };
                if server.is_some() {
                    assert!(established, "{client:?} never had a whole connection");
                    let idle = lab.now.since(touched.1).as_nanos();
                    let most = persistence.timeout.as_nanos() + LATE_MAX.as_nanos();
                    assert!(idle <= most, "{client:?} is remembered after {idle} ns");
                } else {
                    let idle = lab.now.since(touched.0);
                    assert!(
                        !established || idle >= persistence.timeout,
                        "{client:?} is forgotten after {idle:?}"
                    );
                    self.clients.remove(&(service, key));
                }
            }
        }
        self.checked = lab.now;
    }
}
