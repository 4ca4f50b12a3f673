//! What a service says of the health of its servers: their checks, and what follows from them.

use std::sync::Arc;

use shunt_engine::Duration;
use toml::Spanned;

use super::check::asks;
use super::diagnostic::Diagnostics;
use super::raw::{self, Typed};
use super::resolve::{duration, integer, word};
use super::service::Places;
use super::words::{CheckKind, Initial, OnDown, Word};
use super::{Check, Listen, Server, ServerHealth, ServerPort};
use crate::health::check::Rhythm;
use crate::health::passive::Limits;
use crate::health::service::Policy;

/// How often a server is asked unless said otherwise.
const INTERVAL: Duration = Duration::from_secs(2);

/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What servers have that say nothing themselves.
pub(super) fn defaults(key: &str, typed: &raw::Service, diagnostics: &mut Diagnostics) -> ServerHealth {
    let key = |name: &str| format!("{key}: {name}");
    let (checks, passive) =
        checks(&key("check"), &typed.check, diagnostics).unwrap_or_else(|| (Arc::new([]), None));
    ServerHealth {
        checks,
        passive,
        initial: word(&key("initial"), &typed.initial, Initial::Down, diagnostics),
        on_down: word(&key("on_down"), &typed.on_down, OnDown::Remove, diagnostics),
        slow_start: duration(&key("slow_start"), &typed.slow_start, diagnostics),
    }
}

/// What one server has.
pub(super) fn server(
    key: &str,
    typed: &raw::Server,
    defaults: &ServerHealth,
    diagnostics: &mut Diagnostics,
) -> ServerHealth {
    let key = |name: &str| format!("{key} {name}");
    let own = checks(&key("check"), &typed.check, diagnostics);
    let (checks, passive) = own.unwrap_or_else(|| (defaults.checks.clone(), defaults.passive));
    ServerHealth {
        checks,
        passive,
        initial: word(&key("initial"), &typed.initial, defaults.initial, diagnostics),
        on_down: word(&key("on_down"), &typed.on_down, defaults.on_down, diagnostics),
        slow_start: duration(&key("slow_start"), &typed.slow_start, diagnostics).or(defaults.slow_start),
    }
}

/// What a sorry server has, which nobody checks.
pub(super) fn unchecked(key: &str, typed: &raw::Server, diagnostics: &mut Diagnostics) -> ServerHealth {
    let places = [
        typed.check.as_ref().map(|checks| ("check", checks.span())),
        typed.initial.as_ref().map(|word| ("initial", word.span())),
        typed.on_down.as_ref().map(|word| ("on_down", word.span())),
        typed.slow_start.as_ref().map(|time| ("slow_start", time.span())),
    ];
    for (name, place) in places.into_iter().flatten() {
        let label = "it takes connections when there are not enough others, well or not";
        diagnostics.error(place, format!("{key} {name}: a sorry server is not checked"), label);
    }
    ServerHealth {
        checks: Arc::new([]),
        passive: None,
        initial: Initial::Up,
        on_down: OnDown::Remove,
        slow_start: None,
    }
}

/// What follows for the service from the states of its servers.
pub(super) fn policy(
    key: &str,
    typed: &raw::Service,
    servers: &[Server],
    diagnostics: &mut Diagnostics,
) -> Policy {
    let key = |name: &str| format!("{key}: {name}");
    let quorum = integer(&key("quorum"), &typed.quorum, 1, 1..=WEIGHTS_MAX, diagnostics);
    let hysteresis =
        integer(&key("quorum_hysteresis"), &typed.quorum_hysteresis, 0, 0..=WEIGHTS_MAX, diagnostics);
    let percent = integer(&key("panic_threshold"), &typed.panic_threshold, 0, 0..=100, diagnostics);
    if let Some(place) = typed.quorum_hysteresis.as_ref().filter(|_| hysteresis >= quorum) {
        let message = format!("{}: {hysteresis} is not below the quorum", key("quorum_hysteresis"));
        diagnostics.error(place.span(), message, format!("the quorum is {quorum}"));
    }
    let weights: u64 =
        servers.iter().filter(|server| !server.sorry).map(|server| u64::from(server.weight)).sum();
    if let Some(place) = typed.quorum.as_ref().filter(|_| u64::from(quorum) + u64::from(hysteresis) > weights)
    {
        let message = key("quorum: this service never has it, once it is lost");
        let label = format!("all servers together weigh {weights}");
        diagnostics.warning(place.span(), message, label).help(
            "the quorum counts weights; it is there again when quorum + quorum_hysteresis of them are up",
        );
    }
    Policy { quorum, hysteresis, panic_threshold: percent, sorry: typed.sorry_server.is_some() }
}

/// As much as all servers can weigh.
const WEIGHTS_MAX: i64 = u32::MAX as i64;

fn checks(
    key: &str,
    typed: &Typed<Vec<Spanned<raw::Check>>>,
    diagnostics: &mut Diagnostics,
) -> Option<(Arc<[Check]>, Option<Limits>)> {
    let typed = typed.as_ref()?;
    let mut limits = None;
    let mut checks = Vec::new();
    for spanned in typed.as_ref() {
        checks.extend(check(key, spanned, diagnostics));
        let passive = |kind: &Spanned<String>| kind.as_ref() == CheckKind::Passive.word();
        if spanned.as_ref().kind.as_ref().is_some_and(passive)
            && limits.replace(passive_limits(key, spanned.as_ref(), diagnostics)).is_some()
        {
            let message = format!("{key}: a server has one passive check");
            diagnostics.error(spanned.span(), message, "another one");
        }
    }
    Some((checks.into(), limits))
}

fn passive_limits(key: &str, typed: &raw::Check, diagnostics: &mut Diagnostics) -> Limits {
    let key = |name: &str| format!("{key}: {name}");
    Limits {
        failures: integer(&key("failures"), &typed.failures, 5, 1..=ANSWERS_MAX, diagnostics),
        interval: duration(&key("interval"), &typed.interval, diagnostics).unwrap_or(Duration::from_secs(10)),
        hold: duration(&key("hold"), &typed.hold, diagnostics).unwrap_or(Duration::from_secs(30)),
    }
}

fn check(key: &str, spanned: &Spanned<raw::Check>, diagnostics: &mut Diagnostics) -> Option<Check> {
    let asks = asks(key, spanned, diagnostics)?;
    Some(Check { asks, rhythm: rhythm(key, spanned.as_ref(), diagnostics) })
}

fn rhythm(key: &str, typed: &raw::Check, diagnostics: &mut Diagnostics) -> Rhythm {
    let key = |name: &str| format!("{key}: {name}");
    let interval = duration(&key("interval"), &typed.interval, diagnostics).unwrap_or(INTERVAL);
    let fast_interval =
        duration(&key("fast_interval"), &typed.fast_interval, diagnostics).unwrap_or(interval);
    if let Some(place) = typed.fast_interval.as_ref().filter(|_| fast_interval > interval) {
        let message = format!("{}: {:?} is longer than the interval", key("fast_interval"), place.as_ref());
        diagnostics.error(place.span(), message, "it is how often to ask while a verdict is pending");
    }
    let tenth = Duration::from_nanos(interval.as_nanos() / 10);
    let jitter = match &typed.jitter {
        Some(none) if none.as_ref() == "0s" => Duration::ZERO,
        typed => duration(&key("jitter"), typed, diagnostics).unwrap_or(tenth),
    };
    Rhythm {
        interval,
        fast_interval,
        jitter,
        timeout: duration(&key("timeout"), &typed.timeout, diagnostics).unwrap_or(TIMEOUT),
        rise: integer(&key("rise"), &typed.rise, 2, 1..=ANSWERS_MAX, diagnostics),
        fall: integer(&key("fall"), &typed.fall, 3, 1..=ANSWERS_MAX, diagnostics),
    }
}

const ANSWERS_MAX: i64 = 1000;

/// A check that has no port to ask: one of a server that keeps the ports of a service that has several.
pub(super) fn check_ports(
    service: &str,
    listen: &[Listen],
    servers: &[Server],
    places: &[Places],
    diagnostics: &mut Diagnostics,
) {
    if listen.is_empty() || called_port(listen).is_some() {
        return;
    }
    let nowhere = |server: &Server| {
        server.port == ServerPort::Same && server.health.checks.iter().any(|check| check.asks.needs_port())
    };
    if let Some((server, (place, _))) = servers.iter().zip(places).find(|(server, _)| nowhere(server)) {
        let message = format!("service {service:?}: server {:?}: which port shall be checked?", server.name);
        diagnostics
            .error(place.clone(), message, "has every port that the service listens on")
            .help("add `port` to the check");
    }
}

/// The one port that `listen` has.
pub fn called_port(listen: &[Listen]) -> Option<u16> {
    let first = listen.first()?;
    let alike = listen.iter().all(|other| other.first == first.first && other.last == first.first);
    alike.then_some(first.first)
}
