//! The daemon's life: open everything, establish the services, answer what comes, leave nothing behind.
//!
//! One task owns all state. What it does to the outside world is in the order that loses nothing: first nobody else
//! answers for our addresses (guard), then we take their packets (steering), then the world hears of them
//! (addresses); at the end the other way round.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shunt_dataplane::agreed::Agreed;
use shunt_dataplane::pipeline::{self, Pipeline};
use shunt_dataplane::snapshot::{PortInfo, Snapshot};
use shunt_dataplane::spread::Spread;
use shunt_dataplane::thresholds::Occupancy;
use shunt_engine::clock::Clock;
use shunt_engine::counters::Published;
use shunt_engine::lcore::{self, Workers};
use shunt_engine::mempool::PoolConfig;
use shunt_engine::port::{Port, PortCaps, PortError};
use shunt_engine::publish::{self, Publisher};
use shunt_engine::punt::Punt;
use shunt_engine::steer::Rule;
use shunt_engine::{Instant, Mempool, PortId, WorkerId, ring};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::addresses::{self, AddressError, Ledger, LedgerError, Ours};
use crate::admin::connections::Dumps;
use crate::admin::socket::{SocketError, claim};
use crate::admin::{Ask, server};
use crate::announce::announce;
use crate::capabilities::{self, Powerless};
use crate::census::Census;
use crate::compile::{OpenPort, compile, stations};
use crate::config::{Config, ConfigError, Loaded, Reader};
use crate::devices;
use crate::drain;
use crate::events;
use crate::guard::{self, GuardError};
use crate::health::driver::Driver;
use crate::history::History;
use crate::kernel::Kernel;
use crate::neighbours;
use crate::netlink::{Events, Netlink, NetlinkError, Ruleset, Tables};
use crate::notify;
use crate::offloads;
use crate::recent::{self, Counts, Recent};
use crate::rss::{self, RssMatch};
use crate::shortage::Shortages;
use crate::state::{Numbers, NumbersError, SERVERS_MAX, SERVICES_MAX};

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel does not allow it.
    #[error(transparent)]
    Powerless(#[from] Powerless),
    /// The configuration does not fit this machine.
    #[error("{}", .0.join("\n"))]
    Machine(Vec<String>),
    /// The API's socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The port for metrics.
    #[error("metrics.listen {address}: {source}")]
    Metrics {
        /// What was configured.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A port.
    #[error("port {0}{remedy}", remedy = remedy(.0))]
    Port(#[from] PortError),
    /// The kernel's network.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The guard table.
    #[error("guard: {0}")]
    Guard(#[from] GuardError),
    /// VIPs and local addresses.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// What is remembered of them.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Too many services, servers or hops.
    #[error(transparent)]
    Numbers(#[from] NumbersError),
    /// The kernel has no more of something.
    #[error("cannot {action}: {source}")]
    Resources {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The device for what is not ours, and with it the guard table, is another daemon's.
    #[error("another shunt runs in this network namespace: the device {} is its", devices::PUNT_DEVICE)]
    Another,
    /// A worker died.
    #[error("worker {} panicked; the daemon has stopped and left the machine clean", .0.0)]
    Worker(WorkerId),
}

fn remedy(error: &PortError) -> &'static str {
    match error {
        PortError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            " (run shunt as root, or with CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON and CAP_IPC_LOCK)"
        }
        PortError::Io { source, .. } if source.kind() == std::io::ErrorKind::ResourceBusy => {
            " (another program has the interface: is another shunt running? `ip link show` names an XDP program)"
        }
        PortError::NoSuchInterface(_) => " (`ip link` lists those there are)",
        _ => "",
    }
}

/// A running daemon.
pub struct Daemon {
    pub(crate) file: PathBuf,
    pub(crate) reader: Reader,
    pub(crate) history: History,
    pub(crate) config: Config,
    pub(crate) kernel: Kernel,
    pub(crate) netlink: Netlink,
    pub(crate) ledger: Ledger,
    pub(crate) ports: Vec<OpenPort>,
    pub(crate) devices: Vec<Box<dyn Port>>,
    pub(crate) workers: Workers<Pipeline>,
    pub(crate) counters: Vec<Published>,
    pub(crate) dumps: Dumps,
    pub(crate) occupancy: Arc<Occupancy>,
    pub(crate) publisher: Publisher<Snapshot>,
    pub(crate) numbers: Numbers,
    /// What guard and steering hold.
    pub(crate) rules: Vec<Rule>,
    /// Whether the kernel did not take all next hops last time.
    pub(crate) neighbours_refused: bool,
    pub(crate) shortages: Shortages,
    pub(crate) started: tokio::time::Instant,
    /// When the workers had not begun yet.
    pub(crate) workers_started: Instant,
    /// What each port makes of the homes of flows.
    pub(crate) rss: Vec<RssMatch>,
    pub(crate) recent: Recent,
    pub(crate) health: Driver,
    pub(crate) events: events::Events,
    pub(crate) census: Census,
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When something is missing, with its name and what helps. Nothing is left behind then.
pub async fn run(file: &Path) -> Result<(), RunError> {
    // A reload finds the file also after the working directory has changed.
    let file = &std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let mut reader = Reader::default();
    let loaded = reader.load(file, false)?;
    warn(&loaded.warnings);
    capabilities::to_run(&loaded.config)?;
    // Signals are caught from here on, so that one that comes during the start ends it politely too.
    let mut signals = Signals::new().map_err(resources("catch signals"))?;
    let (listener, _claim) = claim(&loaded.config.api.socket, loaded.config.api.group.as_deref()).await?;
    let metrics = listen(loaded.config.metrics).await?;
    // Events are heard before the first reading, so that no change falls between.
    let changes = watch(Events::open()?);
    let losses = watch_guard(Ruleset::open()?);
    let socket = loaded.config.api.socket.clone();
    let mut daemon = match Daemon::open(file, reader, loaded).await {
        Ok(daemon) => daemon,
        Err(error) => {
            // Ports that were open are closed by now.
            complain(Ledger::open(&socket).and_then(|mut ledger| offloads::restore(&[], &mut ledger)));
            return Err(error);
        }
    };
    let lived = match daemon.establish().await {
        Ok(()) => {
            let (asks, asked) = mpsc::channel(server::ASKS_MAX);
            if let Some(metrics) = metrics {
                tokio::spawn(server::serve_metrics(metrics, asks.clone()));
            }
            tokio::spawn(server::serve(listener, asks, daemon.events.clone()));
            daemon.check_servers();
            tracing::info!(file = %file.display(), "running");
            notify::ready(&daemon.in_short());
            daemon.live(&mut signals, changes, losses, asked).await
        }
        Err(error) => Err(error),
    };
    daemon.close().await;
    lived
}

/// Opens the port for metrics, if there is to be one.
async fn listen(address: Option<SocketAddr>) -> Result<Option<TcpListener>, RunError> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|source| RunError::Metrics { address, source })
}

fn warn(warnings: &str) {
    if !warnings.is_empty() {
        tracing::warn!("{}", warnings.trim_end());
    }
}

fn resources(action: &'static str) -> impl Fn(std::io::Error) -> RunError {
    move |source| RunError::Resources { action, source }
}

struct Signals {
    hangup: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Tells of changes in the kernel. One waits at most; the socket keeps what comes meanwhile.
fn watch(mut events: Events) -> mpsc::Receiver<Tables> {
    let (tell, changes) = mpsc::channel(1);
    tokio::spawn(async move { while tell.send(events.changed().await).await.is_ok() {} });
    changes
}

/// Tells when the guard has lost something. As with [`watch`], one waits at most.
fn watch_guard(mut ruleset: Ruleset) -> mpsc::Receiver<()> {
    let (tell, losses) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            ruleset.loss().await;
            if tell.send(()).await.is_err() {
                return;
            }
        }
    });
    losses
}

impl Daemon {
    /// Opens ports and starts workers. Nothing outside has changed when it fails.
    async fn open(file: &Path, reader: Reader, loaded: Loaded) -> Result<Self, RunError> {
        let mut config = loaded.config.clone();
        drain::carry_over(None, &mut config, Clock::System.now());
        let health = Driver::new(random()?);
        health.watch().carry_over(&mut config, Clock::System.now());
        let netlink = Netlink::open()?;
        let kernel = netlink.read().await?;
        let mut ledger = Ledger::open(&config.api.socket)?;
        has_ports(&config, &kernel)?;
        guard::available().await?;
        let interfaces: Vec<_> = config.ports.iter().map(|port| port.interface.as_str()).collect();
        offloads::note(&interfaces, &mut ledger)?;
        let engine = &config.engine;
        let pool = PoolConfig { chunk_size: engine.buffer_size, chunks: engine.buffers };
        let workers = usize::from(engine.workers);
        let mut pools = Mempool::split(pool, workers).map_err(resources("allocate packet buffers"))?;
        let cores = (!engine.cores.is_empty()).then_some(engine.cores.as_slice());
        let seats = lcore::cores_for(workers, cores);
        pools.iter_mut().zip(&seats).for_each(|(pool, &core)| lcore::on(core, || pool.settle()));
        let mut devices = devices::open(&config.ports, pools[0].region(), engine.workers)?;
        let punt = open_punt(&devices)?;
        let (spread, rss) = rss::agree(devices.iter().map(|device| device.caps()), engine.workers);
        let ports = open_ports(&devices, &kernel);
        if workers > 1 {
            ports.iter().zip(&rss).for_each(|(port, rss)| tracing::info!("port {}: {rss}", port.info.name));
        }
        fits(&loaded, &kernel, ledger.ours())?;
        let mut numbers = Numbers::default();
        let snapshot = compile(&config, &kernel, &ports, &mut numbers, &Snapshot::default())?;
        let (publisher, readers) = publish::channel(snapshot, workers);
        let (mut pipelines, agreed) = pipelines(&config, readers, spread, &seats)?;
        let inquiries = pipelines.iter_mut().map(Pipeline::inquiries).collect();
        let counters: Vec<_> = pipelines.iter().map(Pipeline::counters).collect();
        let links = ring::mesh(engine.workers).map_err(resources("connect the workers"))?;
        let made = devices::workers(engine, &mut devices, pipelines, pools, links, punt.as_ref())?;
        capabilities::drop_rest();
        let workers_started = Clock::System.now();
        let workers = Workers::start(made, cores).map_err(resources("start the workers"))?;
        for warning in workers.placements().iter().filter_map(|placement| placement.warning.as_ref()) {
            tracing::warn!("{warning}");
        }
        let dumps = Dumps::new(inquiries, workers.wakers().clone());
        let rules = Vec::new();
        let (file, started) = (file.to_owned(), tokio::time::Instant::now());
        Ok(Self {
            file,
            reader,
            history: History::new(loaded.sources),
            config,
            kernel,
            netlink,
            ledger,
            ports,
            devices,
            workers,
            counters,
            dumps,
            occupancy: agreed.occupancy,
            publisher,
            numbers,
            rules,
            neighbours_refused: false,
            shortages: Shortages::default(),
            started,
            workers_started,
            rss,
            recent: Recent::default(),
            health,
            events: events::Events::default(),
            census: Census::default(),
        })
    }

    /// Takes over the services' packets and addresses.
    async fn establish(&mut self) -> Result<(), RunError> {
        let rules = self.publisher.current().steering();
        guard::set(&rules).await?;
        self.rules = rules;
        self.steer()?;
        let wanted = addresses::wanted(&self.config, &self.kernel, &self.ports);
        // An earlier daemon that crashed may have left addresses that nobody wants any more.
        addresses::remove(&wanted, &self.kernel, &self.netlink, &mut self.ledger).await?;
        let added = addresses::add(&wanted, &self.kernel, &self.netlink, &mut self.ledger).await?;
        announce(&added, &self.kernel);
        let stations = stations(&self.config, &self.kernel, &self.ports);
        self.adjust_neighbours(&stations).await?;
        Ok(())
    }

    /// Begins to check servers.
    fn check_servers(&self) {
        Driver::make_room();
        self.health.alter(|watch, now| watch.configure(&self.config, now));
        let events = self.events.clone();
        tokio::spawn(self.health.clone().run(move |notice| events.tell(notice.into())));
    }

    /// Brings [`Self::rules`] to every port.
    pub(crate) fn steer(&mut self) -> Result<(), PortError> {
        self.devices.iter_mut().try_for_each(|device| device.steer(&self.rules))
    }

    async fn live(
        &mut self,
        signals: &mut Signals,
        mut changes: mpsc::Receiver<Tables>,
        mut losses: mpsc::Receiver<()>,
        mut asked: mpsc::Receiver<Ask>,
    ) -> Result<(), RunError> {
        let mut probe = tokio::time::interval(neighbours::PROBE_INTERVAL);
        let mut note = tokio::time::interval(recent::EVERY);
        let mut standings = self.health.changes();
        let watched = notify::every();
        let mut alive = tokio::time::interval(watched.unwrap_or(Duration::MAX));
        for interval in [&mut probe, &mut note, &mut alive] {
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                Some(tables) = changes.recv() => self.kernel_changed(tables).await,
                Some(()) = losses.recv() => self.guard_again().await,
                Some(()) = standings.recv() => self.standings_changed(),
                Some(ask) = asked.recv() => self.answer(ask).await,
                _ = signals.hangup.recv() => drop(self.reload().await),
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.interrupt.recv() => return Ok(()),
                _ = probe.tick() => self.look_after().await?,
                _ = note.tick() => self.note(),
                _ = alive.tick(), if watched.is_some() => notify::alive(),
            }
        }
    }

    /// What runs, in a line.
    pub(crate) fn in_short(&self) -> String {
        let services = &self.config.services;
        let servers: usize = services.iter().map(|service| service.servers.len()).sum();
        format!("{} services, {servers} servers, generation {}", services.len(), self.publisher.in_force().0)
    }

    /// Notes what the workers have counted.
    fn note(&mut self) {
        self.recent.note(Clock::System.now(), self.workers.views().iter().map(Counts::of));
        self.tell_passive_checks();
    }

    /// What is due now and then.
    async fn look_after(&mut self) -> Result<(), RunError> {
        if let Some(worker) = self.workers.failed() {
            return Err(RunError::Worker(worker));
        }
        self.publisher.reclaim();
        self.let_go().await;
        self.put_addresses_back().await;
        self.shortages.tell(&self.counters, Clock::System.now());
        let stations = self.tend_neighbours().await;
        neighbours::probe(&stations, &self.kernel, &self.netlink).await;
        Ok(())
    }

    /// Leaves the machine as it was. Goes on whatever fails, and says what did.
    async fn close(mut self) {
        tracing::info!("stopping");
        notify::stopping();
        if let Ok(kernel) = self.netlink.read().await {
            self.kernel = kernel;
        }
        let nothing = std::collections::BTreeSet::new();
        complain(addresses::remove(&nothing, &self.kernel, &self.netlink, &mut self.ledger).await);
        self.rules.clear();
        complain(self.steer());
        let stopped = self.workers.stop();
        // The XDP programs go first, then what they filled.
        drop(self.devices);
        drop(stopped);
        complain(offloads::restore(&[], &mut self.ledger));
        complain(neighbours::remove_all(&self.kernel, &self.netlink, &mut self.ledger).await);
        complain(guard::remove().await);
    }

    /// Waits until every worker works with `generation`. Returns whether they do in time.
    pub(crate) async fn in_force(&self, generation: publish::Generation) -> bool {
        self.workers.wakers().wake_all();
        let adopted = async {
            while self.publisher.in_force() < generation {
                tokio::time::sleep(ADOPTION_POLL).await;
            }
        };
        tokio::time::timeout(ADOPTION_TIMEOUT, adopted).await.is_ok()
    }
}

/// How long workers may take to adopt a snapshot. A healthy one needs a turn of its loop.
const ADOPTION_TIMEOUT: Duration = Duration::from_secs(1);

const ADOPTION_POLL: Duration = Duration::from_micros(500);

fn complain<E: std::fmt::Display>(result: Result<(), E>) {
    if let Err(error) = result {
        tracing::error!("{error}");
    }
}

/// Whether this machine has the interfaces that the configuration names.
fn has_ports(config: &Config, kernel: &Kernel) -> Result<(), RunError> {
    match config.ports.iter().find(|port| kernel.link_named(&port.interface).is_none()) {
        Some(port) => Err(PortError::NoSuchInterface(port.interface.clone()).into()),
        None => Ok(()),
    }
}

/// Whether the configuration's local addresses go together with the machine's own, and its cores are there.
fn fits(loaded: &Loaded, kernel: &Kernel, ours: &Ours) -> Result<(), RunError> {
    let misfits = addresses::conflicts(&loaded.config, kernel, ours, &addresses::kernel_ports());
    let rendered = (!misfits.is_empty()).then(|| loaded.render(&misfits, false));
    let cores = devices::missing_cores(&loaded.config.engine, &lcore::allowed());
    let wrong: Vec<_> = rendered.into_iter().chain(cores).collect();
    if wrong.is_empty() { Ok(()) } else { Err(RunError::Machine(wrong)) }
}

fn open_ports(devices: &[Box<dyn Port>], kernel: &Kernel) -> Vec<OpenPort> {
    let open = |(number, caps): (usize, &PortCaps)| {
        tracing::info!(
            "port {}: {}, {} queues, MTU {}, {}",
            caps.name,
            caps.kind,
            caps.queues,
            caps.mtu,
            caps.mac
        );
        OpenPort {
            id: PortId(u8::try_from(number).expect("the configuration has at most 64 ports")),
            link: kernel.link_named(&caps.name).map_or(0, |link| link.index),
            info: PortInfo { name: caps.name.clone(), mac: caps.mac },
        }
    };
    devices.iter().map(|device| device.caps()).enumerate().map(open).collect()
}

/// The way back to the kernel, where a port takes frames away from it.
fn open_punt(devices: &[Box<dyn Port>]) -> Result<Option<Punt>, RunError> {
    if devices.iter().all(|device| device.caps().kernel_sees_all) {
        return Ok(None);
    }
    match Punt::open(devices::PUNT_DEVICE) {
        Ok(punt) => Ok(Some(punt)),
        Err(PortError::Io { source, .. }) if source.kind() == std::io::ErrorKind::ResourceBusy => {
            Err(RunError::Another)
        }
        Err(error) => {
            let complaint = "later fragments and ICMP errors for the director itself will be lost";
            tracing::warn!("{error}; {complaint}");
            Ok(None)
        }
    }
}

fn random() -> Result<u64, RunError> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| resources("get random bytes")(errno.into()))?;
    Ok(u64::from_ne_bytes(bytes))
}

fn pipelines(
    config: &Config,
    readers: Vec<publish::Reader<Snapshot>>,
    spread: Option<Arc<Spread>>,
    seats: &[Option<usize>],
) -> Result<(Vec<Pipeline>, Agreed), RunError> {
    let secret = [random()?, random()?];
    let engine = &config.engine;
    let agreed = Agreed { spread, ..Agreed::new(engine.max_templates, SERVERS_MAX as u32, secret) };
    let pipeline = |((number, reader), &core): ((u16, publish::Reader<Snapshot>), &Option<usize>)| {
        let config = pipeline::Config {
            worker: WorkerId(number),
            workers: engine.workers,
            secret,
            max_connections: engine.connections_per_worker(),
            max_services: SERVICES_MAX as u32,
            max_servers: SERVERS_MAX as u32,
        };
        lcore::on(core, || Pipeline::new(config, agreed.clone(), reader))
            .map_err(resources("allocate the connection table"))
    };
    let mut pipelines = (0..).zip(readers).zip(seats).map(pipeline).collect::<Result<Vec<_>, _>>()?;
    let counters: Vec<_> = pipelines.iter().map(Pipeline::counters).collect();
    for (own, pipeline) in pipelines.iter_mut().enumerate() {
        let others = counters.iter().enumerate().filter(|(other, _)| *other != own);
        pipeline.set_peers(others.map(|(_, counters)| counters.clone()).collect());
    }
    Ok((pipelines, agreed))
}
