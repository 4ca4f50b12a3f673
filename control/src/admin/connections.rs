//! `GET /v1/connections`: the workers' tables as a stream of JSON lines, at the pace of the reader.
//!
//! Every worker fills one batch at a time (see [`shunt_dataplane::dump`]), and is asked for the next when the reader
//! has taken the last. Nothing is gathered here: a reader that is slow or gone costs a batch per worker.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use shunt_dataplane::dump::{DUMPS_MAX, Inquiry, Progress, Shown};
use shunt_dataplane::server::ServerId;
use shunt_engine::waker::Wakers;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::filter::{Filter, Server};
use super::view::Connection;

/// How long the workers are left in peace before they are looked at again.
const POLL: Duration = Duration::from_micros(500);

/// The daemon's ends of all dumps. A dump takes one end of every worker; those that find none wait.
#[derive(Clone, Debug)]
pub struct Dumps {
    free: Arc<Mutex<Vec<Vec<Inquiry>>>>,
    room: Arc<Semaphore>,
    wakers: Wakers,
}

impl Dumps {
    /// The dumps of the workers that `inquiries` are from, each worker's in a list of its own.
    pub fn new(mut inquiries: Vec<Vec<Inquiry>>, wakers: Wakers) -> Self {
        let one_of_each = |_| inquiries.iter_mut().filter_map(Vec::pop).collect();
        let free: Vec<Vec<Inquiry>> = (0..DUMPS_MAX).map(one_of_each).collect();
        Self { free: Arc::new(Mutex::new(free)), room: Arc::new(Semaphore::new(DUMPS_MAX)), wakers }
    }

    /// Shows every connection to `see`.
    pub async fn visit(&self, mut see: impl FnMut(&Shown)) {
        let mut walk = self.walk().await;
        while !walk.is_over() {
            walk.collect(|_, found| found.iter().for_each(&mut see));
            tokio::time::sleep(POLL).await;
        }
    }

    async fn walk(&self) -> Walk {
        let lease = self.lease().await;
        Walk { workers: vec![Stage::Fresh; lease.inquiries.len()], lease, wakers: self.wakers.clone() }
    }

    async fn lease(&self) -> Lease {
        let permit = self.room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        Lease {
            inquiries: free.pop().expect("there are as many as permits"),
            free: self.free.clone(),
            _permit: permit,
        }
    }
}

/// One end of every worker, while a dump lasts.
struct Lease {
    inquiries: Vec<Inquiry>,
    free: Arc<Mutex<Vec<Vec<Inquiry>>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(std::mem::take(&mut self.inquiries));
    }
}

/// What the daemon gives to whoever wants to see connections.
#[derive(Clone, Debug)]
pub struct Access {
    /// The way to the workers.
    pub dumps: Dumps,
    /// Service and name of every server.
    pub names: HashMap<ServerId, (String, String)>,
}

/// Streams the connections that `filter` lets through. The error is for people.
pub(super) async fn stream(access: Access, filter: Filter) -> Result<Response, String> {
    let sieve = Sieve::new(access.names, filter)?;
    let run = Run { walk: access.dumps.walk().await, sieve };
    let body = Body::from_stream(stream::unfold(run, Run::more));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Fresh,
    Asked,
    Over,
}

/// A dump under way.
struct Walk {
    lease: Lease,
    wakers: Wakers,
    workers: Vec<Stage>,
}

impl Walk {
    /// Shows to `see` what workers have found, and asks on.
    fn collect(&mut self, mut see: impl FnMut(u16, &[Shown])) {
        let workers = (0..).zip(&mut self.workers).zip(&mut self.lease.inquiries);
        for ((worker, stage), inquiry) in workers {
            let read = |progress: Progress<'_>| match progress {
                Progress::Found(found) => see(worker, found),
                Progress::Waiting => {}
            };
            *stage = match *stage {
                Stage::Fresh if inquiry.begin() => Stage::Asked,
                Stage::Fresh => Stage::Fresh,
                Stage::Asked => match inquiry.next(read) {
                    Some(()) => Stage::Asked,
                    None => Stage::Over,
                },
                Stage::Over => Stage::Over,
            };
        }
        self.wakers.wake_all();
    }

    fn is_over(&self) -> bool {
        self.workers.iter().all(|stage| *stage == Stage::Over)
    }
}

/// A dump for a reader.
struct Run {
    walk: Walk,
    sieve: Sieve,
}

impl Run {
    /// The next piece of the answer; called when the reader has room for it.
    async fn more(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        loop {
            let mut lines = Vec::new();
            self.walk.collect(|worker, found| self.sieve.write(worker, found, &mut lines));
            if !lines.is_empty() {
                return Some((Ok(lines.into()), self));
            }
            if self.walk.is_over() {
                return None;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Lets through what the filter names, and knows what servers are called.
struct Sieve {
    names: HashMap<ServerId, (String, String)>,
    filter: Filter,
}

impl Sieve {
    fn new(names: HashMap<ServerId, (String, String)>, filter: Filter) -> Result<Self, String> {
        if let Some(Server::Named(wanted)) = &filter.server
            && !names.values().any(|(_, name)| name == wanted)
        {
            return Err(format!("server: {wanted:?} is neither an address nor the name of a server"));
        }
        Ok(Self { names, filter })
    }

    fn write(&self, worker: u16, found: &[Shown], lines: &mut Vec<u8>) {
        for shown in found.iter().filter(|shown| self.passes(shown)) {
            serde_json::to_writer(&mut *lines, &self.connection(worker, shown))
                .expect("a line of plain values can be written to memory");
            lines.push(b'\n');
        }
    }

    fn passes(&self, shown: &Shown) -> bool {
        let Filter { client, server, state } = &self.filter;
        client.as_ref().is_none_or(|client| client.matches(shown.client))
            && state.is_none_or(|state| state == shown.state)
            && match server {
                None => true,
                Some(Server::At(peer)) => peer.matches(shown.server),
                Some(Server::Named(wanted)) => {
                    self.names.get(&shown.server_id).is_some_and(|(_, name)| name == wanted)
                }
            }
    }

    fn connection(&self, worker: u16, shown: &Shown) -> Connection {
        let (service, name) = self.names.get(&shown.server_id).cloned().unzip();
        Connection {
            protocol: shown.protocol.to_string(),
            expires_seconds: shown.expires.as_nanos().div_ceil(1_000_000_000),
            state: shown.state.name().to_owned(),
            client: shown.client.to_string(),
            virtual_address: shown.virtual_address.to_string(),
            server: shown.server.to_string(),
            local: shown.local.map(|local| local.to_string()),
            mode: shown.mode.name().to_owned(),
            worker,
            service,
            server_name: name,
        }
    }
}
