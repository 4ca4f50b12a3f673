//! What is known of servers, for people and programs.

use shunt_engine::Instant;

use super::probe::{Failure, Layer};
use super::service::Service;
use super::watch::{Entry, Watch};
use crate::admin::view::{Check, CheckError, Health};
use crate::config;
use crate::state::server_key;

impl Watch {
    /// What the states of the servers of a service come to.
    pub fn service(&self, name: &str) -> Service {
        self.watched(name).map(|watched| watched.service).unwrap_or_default()
    }

    /// What the checks of a server say at `now`; `None` when it has none.
    pub fn health(&self, service: &str, server: &config::Server, now: Instant) -> Option<Health> {
        let key = server_key(server);
        let member = self.watched(service)?.members.iter().find(|member| member.key == key)?;
        let entries: Vec<&Entry> = member.checks.iter().filter_map(|id| self.checks.get(id)).collect();
        let layer = |layer| works(&entries, layer).to_owned();
        let passive = member.passive.as_ref().map(|passive| Check {
            kind: "passive".to_owned(),
            state: passive.state().word().to_owned(),
            seconds: seconds(passive.since(), now),
            ..Check::default()
        });
        (!entries.is_empty() || passive.is_some()).then(|| Health {
            state: member.server.state().word().to_owned(),
            seconds: seconds(member.server.since(), now),
            l3: layer(Layer::L3),
            l4: layer(Layer::L4),
            l7: layer(Layer::L7),
            checks: entries.iter().map(|entry| entry.shown(now)).chain(passive).collect(),
        })
    }
}

impl Entry {
    fn shown(&self, now: Instant) -> Check {
        let error = |(at, failure): &(Instant, Failure)| CheckError {
            text: failure.to_string(),
            layer: word(failure.layer()).to_owned(),
            seconds: seconds(*at, now),
        };
        Check {
            kind: self.question.probe.kind().to_owned(),
            target: match self.question.probe.needs_port() {
                true => self.question.target.address.to_string(),
                false => self.question.target.address.ip().to_string(),
            },
            state: self.check.state().word().to_owned(),
            seconds: seconds(self.check.since(), now),
            streak: self.check.streak(),
            latency_micros: self
                .latency
                .map(|latency| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)),
            error: self.last_failure.as_ref().map(error),
        }
    }

    /// What it says of one layer.
    fn says(&self, layer: Layer) -> Option<bool> {
        match self.last.as_ref()? {
            Ok(_) => (layer <= self.question.probe.layer()).then_some(true),
            // Who keeps silent may not be there at all.
            Err(Failure::NoConnection(_) | Failure::NoAnswer(Layer::L4, _)) => {
                (layer == Layer::L4).then_some(false)
            }
            Err(failure) => match failure.layer() {
                Layer::Local | Layer::Told => None,
                failed if layer < failed => Some(true),
                failed => (layer == failed).then_some(false),
            },
        }
    }
}

/// What all checks say of one layer.
fn works(entries: &[&Entry], layer: Layer) -> &'static str {
    let said: Vec<bool> = entries.iter().filter_map(|entry| entry.says(layer)).collect();
    match (said.contains(&false), said.contains(&true)) {
        (true, _) => "failed",
        (false, true) => "ok",
        (false, false) => "unknown",
    }
}

const fn word(layer: Layer) -> &'static str {
    match layer {
        Layer::Local => "local",
        Layer::Told => "told",
        Layer::L3 => "L3",
        Layer::L4 => "L4",
        Layer::L7 => "L7",
    }
}

fn seconds(then: Instant, now: Instant) -> u64 {
    now.since(then).as_millis() / 1000
}
