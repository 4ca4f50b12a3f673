//! What the API says, in types: the daemon fills them, the command line shows them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /v1/status`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// The configuration file.
    pub file: String,
    /// Number of the snapshot every worker works with.
    pub generation: u64,
    /// Worker threads.
    pub workers: u16,
    /// Ports in the file's order.
    pub ports: Vec<Port>,
    /// Services in the file's order.
    pub services: Vec<Service>,
}

/// A port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Its interface.
    pub interface: String,
    /// How frames travel: `af_xdp native`, `af_xdp generic`, `af_packet`.
    pub kind: String,
    /// Its station address.
    pub mac: String,
    /// Largest layer-3 packet, in bytes.
    pub mtu: u16,
    /// Queues in use.
    pub queues: u16,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Addresses and ports it answers on.
    pub listen: Vec<String>,
    /// Default mode of its servers.
    pub mode: String,
    /// How a server is picked.
    pub scheduler: String,
    /// How clients are remembered; null when they are not.
    pub persistence: Option<Persistence>,
    /// Whether every datagram is scheduled alone.
    pub one_packet: bool,
    /// Whether the file names it no more, and it stays for the connections it has.
    pub left_out: bool,
    /// FULLNAT local addresses.
    pub local: Vec<String>,
    /// Whether enough of its servers are up.
    pub has_quorum: bool,
    /// Which servers take its connections: `healthy`; `all`, below the panic threshold; `sorry`, without quorum.
    pub using: String,
    /// Its servers in the file's order, the sorry server at the end.
    pub servers: Vec<Server>,
}

/// How a service remembers its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persistence {
    /// How long a client without connections is remembered, in milliseconds.
    pub timeout_ms: u64,
    /// Leading bits by which IPv4 clients are told apart.
    pub mask_ipv4: u8,
    /// Leading bits by which IPv6 clients are told apart.
    pub mask_ipv6: u8,
}

/// How many connections a server may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// So many.
    pub max_connections: u32,
    /// After that, new clients are sent there when it has fewer than so many.
    pub resume_connections: u32,
    /// Whether new clients are kept away at the moment.
    pub full: bool,
}

/// A server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Address, with the port when it has one of its own.
    pub address: String,
    /// How packets reach it.
    pub mode: String,
    /// Share of new connections.
    pub weight: u32,
    /// The same at this moment, as its checks have it.
    pub effective_weight: u32,
    /// Whether it takes connections only when there are not enough other servers.
    pub sorry: bool,
    /// What its checks say; null when it has none.
    pub health: Option<Health>,
    /// `enabled`, `draining` or `disabled`, as the configuration says.
    pub state: String,
    /// Whether the file names it no more, and it stays for the connections it has.
    pub left_out: bool,
    /// Seconds until its connections are reset; null unless it drains with a deadline.
    pub drains_for_seconds: Option<u64>,
    /// How many connections it may have; null for any number.
    pub thresholds: Option<Thresholds>,
    /// Station address that packets for it are sent to; null while it is not known.
    pub next_hop: Option<String>,
    /// What is counted for it.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// What the checks of a server say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// `up`, `down`, or `checking` while there is no verdict.
    pub state: String,
    /// Since so many seconds.
    pub seconds: u64,
    /// Whether its address can be reached: `ok`, `failed` or `unknown`.
    pub l3: String,
    /// Whether its ports can be reached.
    pub l4: String,
    /// Whether it answers as it should.
    pub l7: String,
    /// Each of them.
    pub checks: Vec<Check>,
}

/// A check of a server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What it asks: `tcp`, `http` …
    pub kind: String,
    /// Whom.
    pub target: String,
    /// `up`, `down`, or `checking` while there is no verdict.
    pub state: String,
    /// Since so many seconds.
    pub seconds: u64,
    /// Answers in a row that contradict the state.
    pub streak: u32,
    /// How long the last right answer took; null before the first.
    pub latency_micros: Option<u64>,
    /// What went wrong last; null when nothing ever did.
    pub error: Option<CheckError>,
}

/// What went wrong with a check.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckError {
    /// What.
    pub text: String,
    /// `L3`, `L4` or `L7`; `told` when a program or file says so, `local` when the director could not ask.
    pub layer: String,
    /// So many seconds ago.
    pub seconds: u64,
}

/// Connections, packets and bytes of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Live connections in an active state.
    pub active: u64,
    /// Live connections in any other state.
    pub inactive: u64,
    /// Connections opened so far.
    pub connections: u64,
    /// Packets sent to it.
    pub packets_in: u64,
    /// Bytes sent to it.
    pub bytes_in: u64,
    /// Packets it answered with, where answers pass here.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Connections it refused or did not answer, and datagrams answered with ICMP unreachable, where answers pass here.
    pub failures: u64,
}

/// `GET /v1/workers`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Workers {
    /// Why packets are handed from worker to worker, and which share of those received: for people.
    pub handoff: String,
    /// That share, 0 … 1; null before the first packet.
    pub handed_off_share: Option<f64>,
    /// All of them, by number.
    pub workers: Vec<Worker>,
}

/// A worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Its number.
    pub id: u16,
    /// The core it is pinned to.
    pub core: Option<usize>,
    /// Its counters by name.
    pub counters: BTreeMap<String, u64>,
    /// What it did lately.
    pub recent: Recent,
    /// Share of the time since start in turns of its loop that moved a packet, 0 … 1.
    pub busy: f64,
    /// Received bursts by size: 1, 2–3, 4–7, 8–15, 16–31, 32 frames.
    pub burst_sizes: Vec<u64>,
    /// Their mean size; null before the first.
    pub burst_mean: Option<f64>,
    /// Of the packets it received from ports, the share it handed to other workers; null before the first.
    pub handed_out_share: Option<f64>,
    /// Of all packets that came to it, the share that other workers handed to it; null before the first.
    pub handed_in_share: Option<f64>,
    /// Its table of IPv4 connections.
    pub connections_ipv4: Load,
    /// Its table of IPv6 connections.
    pub connections_ipv6: Load,
    /// Packet buffers in use.
    pub buffers: Load,
    /// How long turns of its loop took.
    pub turns: Turns,
    /// The queues it receives from.
    pub rx: Vec<Queue>,
    /// The queues it sends by.
    pub tx: Vec<Queue>,
}

/// A stretch of time that ends now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recent {
    /// How long it is: about five seconds, less right after the start.
    pub seconds: f64,
    /// Packets received from ports.
    pub packets_per_second: f64,
    /// Share of the time in turns of the loop that moved a packet, 0 … 1.
    pub busy: f64,
}

/// How full something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// In use.
    pub used: u64,
    /// That there are.
    pub capacity: u64,
}

/// Times of those turns of a worker's loop that moved a packet, since start. What the kernel took of the core counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turns {
    /// How many took from 2ⁿ up to 2ⁿ⁺¹ nanoseconds, n counted from 0.
    pub histogram: Vec<u64>,
    /// Half of them took no longer: the end of its bucket. Null before the first, as the next one.
    pub p50_nanos: Option<u64>,
    /// 99 in a hundred took no longer.
    pub p99_nanos: Option<u64>,
    /// The longest.
    pub max_nanos: u64,
    /// The longest of the last minute or two in which the worker was awake.
    pub recent_max_nanos: u64,
}

/// A queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Queue {
    /// The port's interface.
    pub interface: String,
    /// The queue's number.
    pub queue: u16,
    /// Its counters by name.
    pub counters: BTreeMap<String, u64>,
}

/// `GET /v1/counters`: the workers' counts added up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Dropped packets by reason.
    pub drops: Vec<Counter>,
    /// What happened to packets.
    pub events: Vec<Counter>,
    /// What workers did.
    pub workers: Vec<Counter>,
    /// What queues of ports saw.
    pub ports: Vec<Counter>,
}

/// A counter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: u64,
    /// What it counts; empty where the name says it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub meaning: String,
}

/// A line of `GET /v1/connections`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Seconds until it goes if no packet comes.
    pub expires_seconds: u64,
    /// LVS's name of the state it is in.
    pub state: String,
    /// The client (CIP).
    pub client: String,
    /// What the client called (VIP).
    #[serde(rename = "virtual")]
    pub virtual_address: String,
    /// Where its packets go (RIP).
    pub server: String,
    /// The address they come from, in FULLNAT.
    pub local: Option<String>,
    /// How they get there.
    pub mode: String,
    /// The worker it lives on.
    pub worker: u16,
    /// The service; null when its server has left the configuration.
    pub service: Option<String>,
    /// The server's name; null as above.
    pub server_name: Option<String>,
}

/// The answer to `POST /v1/reload`, `/v1/rollback` and `/v1/config/edit`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The snapshot that is in force now.
    pub generation: u64,
    /// How long that took, from the files' meaning to the last worker.
    pub milliseconds: f64,
    /// What differs from before.
    pub changes: Vec<Change>,
    /// What people should know; empty when all is well.
    pub warnings: String,
}

/// One thing that differs between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The service.
    pub service: String,
    /// The server, if it is about one.
    pub server: Option<String>,
    /// `added`, `removed` or `changed`.
    pub what: String,
    /// The key that changed.
    pub key: Option<String>,
    /// What it was.
    pub before: Option<String>,
    /// What it is.
    pub after: Option<String>,
    /// Live connections that feel it.
    pub connections: u64,
    /// How long these are kept; null when they lose their server at once.
    pub kept_seconds: Option<u64>,
}

/// The question of `POST /v1/config/diff`: the files of a configuration, the one that includes others first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// All of them.
    pub files: Vec<File>,
}

/// A configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// What it is called in messages.
    pub path: String,
    /// What stands in it.
    pub text: String,
}

/// The answer to `POST /v1/config/diff`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Diff {
    /// What would change.
    pub changes: Vec<Change>,
    /// Share of clients that a Maglev table would send to another server, 0 … 1, of services where it is not 0.
    pub maglev: BTreeMap<String, f64>,
    /// Live connections that would feel it.
    pub connections: u64,
    /// Parts that differ and cannot change while the daemon runs: with them the files would be refused.
    pub needs_restart: Vec<String>,
    /// Warnings about the files.
    pub warnings: String,
}

/// `GET /v1/config`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigText {
    /// Number of the snapshot every worker works with.
    pub generation: u64,
    /// Whether the files hold the same.
    pub saved: bool,
    /// What is in force, as one file.
    pub text: String,
}

/// The answer to `POST /v1/config/save`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Files that were written: those that differed.
    pub files: usize,
}

/// The answer when something is wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// What.
    pub error: String,
}
