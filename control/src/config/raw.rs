//! The configuration as typed: which keys exist and of which type their values are, with the place of each.
//! What they mean, and whether they make sense together, is [`super::resolve`]'s.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use toml::Spanned;

/// A value with its place in the file, if it was typed.
pub(super) type Typed<T> = Option<Spanned<T>>;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    /// Read by [`super::sources`].
    #[serde(rename = "include")]
    pub(super) _include: Vec<String>,
    pub(super) engine: Engine,
    pub(super) api: Api,
    pub(super) metrics: Metrics,
    pub(super) timeouts: Timeouts,
    pub(super) port: Vec<Spanned<Port>>,
    pub(super) service: Vec<Spanned<Service>>,
}

/// A file that another one includes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Included {
    pub(super) service: Vec<Spanned<Service>>,
}

/// A whole number, or text with a unit: `10_000`, `"10k"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Number {
    Plain(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

struct NumberVisitor;

impl serde::de::Visitor<'_> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "a whole number")
    }

    fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
        Ok(Number::Plain(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Number, E> {
        Ok(Number::Text(text.to_owned()))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(number) => write!(out, "{number}"),
            Self::Text(text) => write!(out, "{text:?}"),
        }
    }
}

/// `[engine]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Engine {
    pub(super) workers: Typed<Number>,
    pub(super) cores: Typed<Cores>,
    pub(super) idle: Typed<String>,
    pub(super) buffer_size: Typed<Number>,
    pub(super) buffers: Typed<Number>,
    pub(super) max_connections: Typed<Number>,
    pub(super) max_templates: Typed<Number>,
    pub(super) manage_addresses: Option<bool>,
}

/// `engine.cores`: `"2-5,8"` or `[2, 3]`.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a list of cores such as \"2-5\" or [2, 3]")]
pub(super) enum Cores {
    Text(String),
    List(Vec<i64>),
}

/// `[api]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Api {
    pub(super) socket: Typed<String>,
    pub(super) group: Typed<String>,
}

/// `[metrics]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub(super) listen: Typed<String>,
}

/// `[timeouts]` and `[service.timeouts]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Timeouts {
    pub(super) none: Typed<String>,
    pub(super) established: Typed<String>,
    pub(super) syn_sent: Typed<String>,
    pub(super) syn_recv: Typed<String>,
    pub(super) fin_wait: Typed<String>,
    pub(super) time_wait: Typed<String>,
    pub(super) close: Typed<String>,
    pub(super) close_wait: Typed<String>,
    pub(super) last_ack: Typed<String>,
    pub(super) listen: Typed<String>,
    pub(super) synack: Typed<String>,
    pub(super) udp: Typed<String>,
}

/// `[[port]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Port {
    pub(super) interface: Typed<String>,
    pub(super) driver: Typed<String>,
    pub(super) xdp: Typed<String>,
    pub(super) queues: Typed<Number>,
}

/// `[[service]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Service {
    pub(super) name: Typed<String>,
    pub(super) listen: Typed<Vec<Spanned<String>>>,
    pub(super) protocol: Typed<String>,
    pub(super) mode: Typed<String>,
    pub(super) scheduler: Typed<String>,
    pub(super) scheduler_flags: Typed<Vec<Spanned<String>>>,
    pub(super) hash: Typed<String>,
    pub(super) seed: Typed<Number>,
    pub(super) mh_slots: Typed<Number>,
    pub(super) local: Typed<Vec<Spanned<String>>>,
    pub(super) local_port_range: Typed<String>,
    pub(super) out_of_state: Typed<String>,
    pub(super) drain: Typed<String>,
    pub(super) server_gone: Typed<String>,
    pub(super) persistence: Typed<String>,
    pub(super) persistence_mask_ipv4: Typed<Number>,
    pub(super) persistence_mask_ipv6: Typed<Number>,
    pub(super) one_packet: Typed<bool>,
    pub(super) initial: Typed<String>,
    pub(super) on_down: Typed<String>,
    pub(super) slow_start: Typed<String>,
    pub(super) quorum: Typed<Number>,
    pub(super) quorum_hysteresis: Typed<Number>,
    pub(super) panic_threshold: Typed<Number>,
    pub(super) timeouts: Timeouts,
    pub(super) check: Typed<Vec<Spanned<Check>>>,
    pub(super) server: Vec<Spanned<Server>>,
    pub(super) sorry_server: Option<Spanned<Server>>,
}

/// `[[service.server]]` and `[service.sorry_server]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Server {
    pub(super) name: Typed<String>,
    pub(super) address: Typed<String>,
    pub(super) weight: Typed<Number>,
    pub(super) state: Typed<String>,
    pub(super) drain: Typed<String>,
    pub(super) max_connections: Typed<Number>,
    pub(super) resume_connections: Typed<Number>,
    pub(super) mode: Typed<String>,
    pub(super) initial: Typed<String>,
    pub(super) on_down: Typed<String>,
    pub(super) slow_start: Typed<String>,
    pub(super) check: Typed<Vec<Spanned<Check>>>,
}

/// `[[service.check]]` and `[[service.server.check]]`: how often is asked, and the keys of every kind. Which of them a
/// kind knows is [`super::check`]'s.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Check {
    pub(super) kind: Typed<String>,
    pub(super) interval: Typed<String>,
    pub(super) fast_interval: Typed<String>,
    pub(super) jitter: Typed<String>,
    pub(super) timeout: Typed<String>,
    pub(super) rise: Typed<Number>,
    pub(super) fall: Typed<Number>,
    pub(super) port: Typed<Number>,
    // udp
    pub(super) send: Typed<String>,
    pub(super) expect: Typed<String>,
    pub(super) expect_regex: Typed<String>,
    // http, https: keys of one URL, or of what its URLs have in common
    pub(super) method: Typed<String>,
    pub(super) path: Typed<String>,
    pub(super) host: Typed<String>,
    pub(super) headers: BTreeMap<Spanned<String>, Spanned<String>>,
    pub(super) status: Typed<Status>,
    pub(super) body: Typed<String>,
    pub(super) body_regex: Typed<String>,
    pub(super) url: Vec<Spanned<Url>>,
    // https
    pub(super) verify: Typed<bool>,
    pub(super) ca: Typed<String>,
    pub(super) sni: Typed<String>,
    // dns
    pub(super) query: Typed<String>,
    pub(super) r#type: Typed<String>,
    pub(super) rcode: Typed<String>,
    pub(super) answer: Typed<String>,
    // smtp
    pub(super) helo: Typed<String>,
    // exec
    pub(super) command: Typed<Vec<String>>,
    pub(super) user: Typed<String>,
    pub(super) group: Typed<String>,
    pub(super) weight_from: Typed<String>,
    // file
    pub(super) file: Typed<String>,
    pub(super) file_says: Typed<String>,
    // passive
    pub(super) failures: Typed<Number>,
    pub(super) hold: Typed<String>,
}

/// `check.url`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Url {
    pub(super) method: Typed<String>,
    pub(super) path: Typed<String>,
    pub(super) host: Typed<String>,
    pub(super) headers: BTreeMap<Spanned<String>, Spanned<String>>,
    pub(super) status: Typed<Status>,
    pub(super) body: Typed<String>,
    pub(super) body_regex: Typed<String>,
}

/// `check.status`: `"200,301-302"` or `200`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "statuses such as \"200,301-302\" or 200")]
pub(super) enum Status {
    Text(String),
    Number(i64),
}
