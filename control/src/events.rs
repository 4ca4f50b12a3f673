//! What happens to servers, services and the configuration, told in the log and to whoever listens. The last
//! [`KEPT`] events are kept; a listener that is slower misses the oldest and is told how many.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::health::check::State;
use crate::health::service::Choice;
use crate::health::watch::Notice;

/// How many events are kept.
pub const KEPT: usize = 4096;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: one more than the last one's, from 1 on.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What.
    #[serde(flatten)]
    pub happened: Happened,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happened {
    /// A server is found well or dead.
    Server {
        /// Its service.
        service: String,
        /// Its name.
        server: String,
        /// `up` or `down`.
        state: String,
        /// Which check failed and how; null when none did.
        why: Option<String>,
    },
    /// A service has its quorum of servers again, or has lost it.
    Quorum {
        /// Its name.
        service: String,
        /// `gained` or `lost`.
        state: String,
    },
    /// Other servers take the connections of a service.
    Servers {
        /// Its name.
        service: String,
        /// `healthy`; `all`, below the panic threshold; `sorry`, without quorum.
        using: String,
    },
    /// A configuration is in force.
    Configuration {
        /// `reload`, `edit` or `rollback`.
        cause: String,
        /// The number of its snapshot.
        generation: u64,
        /// How many things differ from the one before.
        changes: usize,
    },
    /// A configuration was refused; nothing has changed.
    Refused {
        /// Why.
        error: String,
    },
    /// The listener was too slow.
    Lost {
        /// So many events are missing here.
        count: u64,
    },
}

impl From<Notice> for Happened {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::Server { service, server, state, why } => {
                Self::Server { service, server, state: state.word().to_owned(), why }
            }
            Notice::Quorum { service, has_quorum } => {
                Self::Quorum { service, state: if has_quorum { "gained" } else { "lost" }.to_owned() }
            }
            Notice::Choice { service, choice } => Self::Servers { service, using: choice.word().to_owned() },
        }
    }
}

impl std::fmt::Display for Happened {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Server { service, server, state, why: None } => {
                write!(out, "service {service}: server {server} is {state}")
            }
            Self::Server { service, server, state, why: Some(why) } => {
                write!(out, "service {service}: server {server} is {state}: {why}")
            }
            Self::Quorum { service, state } => write!(out, "service {service}: quorum {state}"),
            Self::Servers { service, using } => write!(out, "service {service}: uses {using} servers"),
            Self::Configuration { generation, .. } => {
                write!(out, "configuration in force: generation {generation}")
            }
            Self::Refused { error } => write!(out, "configuration refused, nothing has changed: {error}"),
            Self::Lost { count } => write!(out, "{count} events are missing here"),
        }
    }
}

impl Happened {
    /// Tells the log.
    fn log(&self) {
        let kind = match self {
            Self::Server { service, server, state, .. } if state == State::Down.word() => {
                return tracing::warn!(event = "server", %service, %server, %state, "{self}");
            }
            Self::Server { service, server, state, .. } => {
                return tracing::info!(event = "server", %service, %server, %state, "{self}");
            }
            Self::Quorum { service, state } => {
                return tracing::warn!(event = "quorum", %service, %state, "{self}");
            }
            Self::Servers { service, using } => {
                return tracing::warn!(event = "servers", %service, %using, "{self}");
            }
            Self::Configuration { cause, generation, changes } => {
                return tracing::info!(event = "configuration", cause, generation, changes, "{self}");
            }
            Self::Refused { .. } => "refused",
            Self::Lost { .. } => "lost",
        };
        tracing::error!(event = kind, "{self}");
    }
}

impl Choice {
    /// The word for people and programs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::All => "all",
            Self::Sorry => "sorry",
        }
    }
}

/// All events of the daemon. All clones are the same.
#[derive(Clone, Debug)]
pub struct Events {
    kept: Arc<Mutex<VecDeque<Event>>>,
    /// The number of the newest.
    newest: Arc<watch::Sender<u64>>,
}

impl Default for Events {
    fn default() -> Self {
        Self { kept: Arc::default(), newest: Arc::new(watch::Sender::new(0)) }
    }
}

impl Events {
    /// Tells everybody.
    pub fn tell(&self, happened: Happened) {
        happened.log();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        let mut kept = self.kept();
        let number = *self.newest.borrow() + 1;
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Event { number, unix_ms, happened });
        self.newest.send_replace(number);
    }

    /// The events after number `after`, at most `many`. When some of them are not kept any more, the first says so.
    pub fn after(&self, after: u64, many: usize) -> Vec<Event> {
        let kept = self.kept();
        // A number from before a restart of the daemon names none of its events.
        let after = if after > *self.newest.borrow() { 0 } else { after };
        let Some(oldest) = kept.front() else { return Vec::new() };
        let missing = (oldest.number - 1).saturating_sub(after);
        let lost = (missing > 0).then(|| Event {
            number: oldest.number - 1,
            unix_ms: oldest.unix_ms,
            happened: Happened::Lost { count: missing },
        });
        let known = (after + 1).saturating_sub(oldest.number);
        let rest = kept.iter().skip(usize::try_from(known).unwrap_or(usize::MAX));
        lost.into_iter().chain(rest.cloned()).take(many).collect()
    }

    /// Returns when there is an event after number `after`.
    pub async fn news(&self, after: u64) {
        let mut newest = self.newest.subscribe();
        // The sender lives as long as `self`.
        let _ = newest.wait_for(|&newest| newest != after).await;
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(generation: u64) -> Happened {
        Happened::Configuration { cause: "edit".into(), generation, changes: 1 }
    }

    fn tell(events: &Events, many: u64) {
        (0..many).for_each(|generation| events.tell(configuration(generation)));
    }

    fn numbers(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.number).collect()
    }

    #[test]
    fn a_listener_gets_what_came_after_what_it_has() {
        let events = Events::default();
        assert_eq!(events.after(0, 9), []);
        tell(&events, 3);
        assert_eq!(numbers(&events.after(0, 9)), [1, 2, 3]);
        assert_eq!(numbers(&events.after(2, 9)), [3]);
        assert_eq!(numbers(&events.after(3, 9)), [0; 0]);
        assert_eq!(numbers(&events.after(1, 1)), [2]);
        assert_eq!(numbers(&events.after(77, 9)), [1, 2, 3], "of a daemon before this one");
    }

    #[test]
    fn a_slow_listener_is_told_how_many_it_has_missed() {
        let events = Events::default();
        tell(&events, KEPT as u64 + 10);
        let late = events.after(4, 3);
        assert_eq!(late[0].happened, Happened::Lost { count: 6 });
        assert_eq!(numbers(&late), [10, 11, 12]);
        assert_eq!(numbers(&events.after(late[0].number, 2)), [11, 12], "it goes on from there");
        assert_eq!(events.after(0, usize::MAX).len(), KEPT + 1);
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let server = Notice::Server {
            service: "web".into(),
            server: "rs1".into(),
            state: State::Down,
            why: Some("tcp 10.0.0.11:80: connection refused".into()),
        };
        let event = Event { number: 7, unix_ms: 5, happened: server.into() };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(
            text,
            r#"{"number":7,"unix_ms":5,"event":"server","service":"web","server":"rs1","state":"down","#
                .to_owned()
                + r#""why":"tcp 10.0.0.11:80: connection refused"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
