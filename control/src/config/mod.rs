//! The configuration: TOML files, read twice. `raw` is a file as typed; `resolve` is what all of them mean, with every
//! default filled in. All errors are found at once, each with its file, line and column.

mod check;
mod diagnostic;
mod diff;
mod edit;
mod health;
mod http_check;
mod listen;
mod one_packet;
mod overlap;
mod parse;
mod persistence;
mod raw;
mod reader;
mod resolve;
mod save;
mod scheduler;
mod service;
mod shape;
mod sources;
mod thresholds;
mod timeouts;
mod words;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shunt_dataplane::conn::Timeouts;
use shunt_dataplane::persist::Persistence;
use shunt_dataplane::scheduler::Scheduler;
use shunt_dataplane::server::Mode;
use shunt_dataplane::service::{OutOfState, ServerGone};
use shunt_dataplane::thresholds::Thresholds;
use shunt_dataplane::tuple::Protocol;
use shunt_engine::Duration;

use crate::drain::{Draining, LeavingLocal};
use crate::health::Standing;
use crate::health::check::Rhythm;
use crate::health::passive::Limits;
use crate::health::service::Policy;

pub use check::Asks;
pub use diagnostic::{Diagnostic, Diagnostics, Severity};
pub use diff::{Change, What, between, server_address};
pub use edit::Edit;
pub use health::called_port;
pub use listen::Listen;
pub use reader::Reader;
pub use save::Prepared;
pub use scheduler::describe as describe_scheduler;
pub use sources::{FILES_MAX, Source, Sources};
pub use words::{
    CheckKind, DnsCode, DnsType, Driver, HttpMethod, Idle, Initial, OnDown, ServerState, Word, XdpMode,
};

/// What a configuration file means. Nothing is optional any more.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[engine]`
    pub engine: Engine,
    /// `[api]`
    pub api: Api,
    /// `[metrics]`: where they are to be had besides the API's socket; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// `[[port]]`, at least one.
    pub ports: Vec<Port>,
    /// `[[service]]`. What is the same from one configuration to the next is the very same ([`Self::share`]), so that
    /// many services cost little when few of them change.
    pub services: Vec<Arc<Service>>,
}

/// Workers and memory. Fixed while the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Worker threads.
    pub workers: u16,
    /// Cores to pin them to, in order; empty leaves the choice to the kernel.
    pub cores: Vec<usize>,
    /// What a worker does when no frame comes.
    pub idle: Idle,
    /// Bytes per packet buffer, headroom included.
    pub buffer_size: u16,
    /// Packet buffers per worker.
    pub buffers: u32,
    /// Connections, all workers together.
    pub max_connections: u32,
    /// Clients that persistence remembers, all services together.
    pub max_templates: u32,
    /// Whether VIPs and local addresses are added to interfaces and removed again.
    pub manage_addresses: bool,
}

impl Engine {
    /// Connections of each IP version that one worker can hold.
    pub fn connections_per_worker(&self) -> u32 {
        self.max_connections.div_ceil(self.workers.into())
    }
}

/// The channel for people and programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// The Unix socket.
    pub socket: PathBuf,
    /// The group whose members may use it besides its owner, by name or number; `None`: nobody.
    pub group: Option<String>,
}

/// Where `shunt` is asked when nothing else is configured.
pub const SOCKET: &str = "/run/shunt/shunt.sock";

/// An interface whose frames we take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name in the kernel.
    pub interface: String,
    /// How frames are taken from it.
    pub driver: Driver,
    /// Where the XDP program runs (AF_XDP only).
    pub xdp: XdpMode,
    /// How many of its queues are used.
    pub queues: Queues,
}

/// How many queues of a port are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queues {
    /// As many as it has.
    All,
    /// So many, from number 0 on.
    First(u16),
}

/// A service with its servers.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its name: what it is known by from one reload to the next.
    pub name: String,
    /// Addresses and ports it answers on.
    pub listen: Vec<Listen>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The mode of servers that name none.
    pub mode: Mode,
    /// How a server is picked.
    pub scheduler: Scheduler,
    /// FULLNAT local addresses with their ports.
    pub local: Vec<AddressPorts>,
    /// What becomes of packets without a connection.
    pub out_of_state: OutOfState,
    /// What becomes of packets whose server is gone.
    pub server_gone: ServerGone,
    /// State timeouts.
    pub timeouts: Timeouts,
    /// How clients are remembered; `None`: they are not.
    pub persistence: Option<Persistence>,
    /// Whether every datagram is scheduled alone.
    pub one_packet: bool,
    /// Servers in the file's order, the sorry server at the end.
    pub servers: Vec<Server>,
    /// What follows from the health of servers.
    pub policy: Policy,
    /// Local addresses that no new connection gets. No file names them: the daemon does ([`crate::drain`]).
    pub local_leaving: Vec<LeavingLocal>,
    /// Whether no file names the service any more, and it is there for the connections that it has.
    pub left_out: bool,
}

/// An address with the ports that count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressPorts {
    /// The address.
    pub address: IpAddr,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl AddressPorts {
    /// The ports.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl std::fmt::Display for AddressPorts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = match self.address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        write!(out, "{address}:{}", PortsText(self.first, self.last))
    }
}

/// First and last port as they are written: `0` is every port.
struct PortsText(u16, u16);

impl std::fmt::Display for PortsText {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0, self.1) {
            (0, u16::MAX) => write!(out, "0"),
            (first, last) if first == last => write!(out, "{first}"),
            (first, last) => write!(out, "{first}-{last}"),
        }
    }
}

/// A server of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// What people call it.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: ServerPort,
    /// How packets reach it.
    pub mode: Mode,
    /// Share of new connections; 0 takes none. Whatever the file says, 0 unless it is enabled.
    pub weight: u32,
    /// Whether it is in use.
    pub state: ServerState,
    /// How long it keeps its connections when it takes no new ones; `None` keeps them until they end by themselves.
    pub drain: Option<Duration>,
    /// Since when it has taken no new ones. No file says so: the daemon does ([`crate::drain`]).
    pub draining: Option<Draining>,
    /// How many connections it may have; `None`: any number.
    pub thresholds: Option<Thresholds>,
    /// How it is checked.
    pub health: ServerHealth,
    /// Whether it takes connections only while there are not enough other servers.
    pub sorry: bool,
    /// Whether it takes connections. No file says so: its checks do ([`crate::health`]).
    pub standing: Standing,
}

/// How a server is checked, and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHealth {
    /// All of them must pass; a server without any is always up.
    pub checks: Arc<[Check]>,
    /// What the workers may see of it; `None`: anything.
    pub passive: Option<Limits>,
    /// What it is before its first verdict.
    pub initial: Initial,
    /// What becomes of it when it is down.
    pub on_down: OnDown,
    /// How long it takes to get its whole weight when it comes up; `None`: no time.
    pub slow_start: Option<Duration>,
}

/// One check of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What it asks.
    pub asks: Asks,
    /// How often.
    pub rhythm: Rhythm,
}

/// Which port of a server packets go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerPort {
    /// The port the client asked for.
    Same,
    /// This one.
    Mapped(u16),
}

/// Configuration files that were read and understood.
#[derive(Debug)]
pub struct Loaded {
    /// What they mean.
    pub config: Config,
    /// What stands in them.
    pub sources: Sources,
    /// Warnings for people; empty when there are none.
    pub warnings: String,
}

/// A local address that does not go together with the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Whose it is.
    pub service: String,
    /// The address.
    pub address: IpAddr,
    /// What is wrong, without the service.
    pub message: String,
    /// What is wrong with the address.
    pub label: String,
    /// What helps.
    pub help: String,
}

impl Loaded {
    /// What does not go together with the machine, as an error of the file.
    pub fn render(&self, misfits: &[Misfit], colour: bool) -> String {
        let again = resolve::resolve(&self.sources, &mut Diagnostics::default());
        let services = again.iter().flat_map(|(_, services)| services);
        let places: HashMap<_, _> = services.flat_map(|placed| placed.local_places()).collect();
        let mut diagnostics = Diagnostics::default();
        for Misfit { service, address, message, label, help } in misfits {
            let place = places.get(&(service.clone(), *address)).cloned().unwrap_or_default();
            let message = format!("service {service:?}: local: {message}");
            diagnostics.error(place, message, label.clone()).help(help.clone());
        }
        diagnostics.render(&self.sources, colour)
    }
}

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It is, with what it includes before, larger than any configuration.
    #[error("{0}: larger than {FILE_LEN_MAX} bytes all in all; this is no configuration")]
    TooLong(PathBuf),
    /// What stands in it is wrong. All of it, rendered.
    #[error("{0}")]
    Wrong(String),
}

/// Bytes that all files of a configuration may have together.
pub const FILE_LEN_MAX: u64 = 16 << 20;

impl Config {
    /// Whether `address` is a VIP or a local address.
    pub fn is_floating(&self, address: IpAddr) -> bool {
        self.floating().any(|floating| floating == address)
    }

    /// All VIPs and local addresses.
    pub fn floating(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.services.iter().flat_map(|service| {
            let vips = service.listen.iter().filter_map(Listen::vip);
            let leaving = service.local_leaving.iter().map(|leaving| leaving.local.address);
            vips.chain(service.local.iter().map(|local| local.address)).chain(leaving)
        })
    }

    /// Takes the services that are as they were from the configuration `before` this one.
    pub fn share(&mut self, before: &Self) {
        let before = before.services_by_name();
        for service in &mut self.services {
            match before.get(service.name.as_str()) {
                Some(&old) if !Arc::ptr_eq(old, service) && old == service => *service = old.clone(),
                Some(_) | None => {}
            }
        }
    }

    /// The services by their names.
    pub fn services_by_name(&self) -> HashMap<&str, &Arc<Service>> {
        self.services.iter().map(|service| (service.name.as_str(), service)).collect()
    }

    /// Reads the file at `path` and those that it includes.
    ///
    /// # Errors
    /// When it cannot be read, or with every error in them.
    pub fn load(path: &Path, colour: bool) -> Result<Loaded, ConfigError> {
        let mut diagnostics = Diagnostics::default();
        let sources = Sources::read(path, &mut diagnostics)?;
        Self::understand(sources, diagnostics, colour)
    }

    /// Reads `text`, calling it `path` in messages. Files that it includes are left out.
    ///
    /// # Errors
    /// With every error in it.
    pub fn parse(path: &str, text: &str, colour: bool) -> Result<Loaded, ConfigError> {
        Self::of(Sources::new(Source::new(path.into(), text), []), colour)
    }

    /// What `sources` mean.
    ///
    /// # Errors
    /// With every error in them.
    pub fn of(sources: Sources, colour: bool) -> Result<Loaded, ConfigError> {
        Self::understand(sources, Diagnostics::default(), colour)
    }

    fn understand(
        sources: Sources,
        mut diagnostics: Diagnostics,
        colour: bool,
    ) -> Result<Loaded, ConfigError> {
        let config = resolve::resolve(&sources, &mut diagnostics);
        let rendered = diagnostics.render(&sources, colour);
        match config {
            Some((config, _)) if !diagnostics.has_errors() => {
                Ok(Loaded { config, sources, warnings: rendered })
            }
            _ => Err(ConfigError::Wrong(rendered)),
        }
    }
}
