//! A director with many services, through the very code of the daemon: a file as an operator writes it, the kernel's view
//! of the network, and what becomes of both.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use shunt_control::compile::{OpenPort, compile};
use shunt_control::config::{Config, Reader};
use shunt_control::drain;
use shunt_control::kernel::{Address, Kernel, Link, Neighbour, Route, Way};
use shunt_control::state::{Numbers, SERVERS_MAX, SERVICES_MAX};
use shunt_dataplane::agreed::Agreed;
use shunt_dataplane::pipeline::{self, Pipeline};
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::Mode;
use shunt_dataplane::snapshot::{PortInfo, Snapshot};
use shunt_dataplane::tuple::{Address as _, V4};
use shunt_engine::clock::Clock;
use shunt_engine::publish::{self, Generation, Publisher};
use shunt_engine::steer::Prefix;
use shunt_engine::{PortId, WorkerId};

use crate::director::{self, ROUTER, US};
use crate::machine;

/// What is configured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The services' forwarding mode.
    pub mode: Mode,
    /// Their scheduler.
    pub scheduler: SchedulerKind,
    /// How many services.
    pub services: u32,
    /// Servers of each, all behind one gateway.
    pub servers: u32,
}

impl Plan {
    /// The configuration file. `weight` is that of the first service's first server, all others have 1.
    pub fn file(&self, weight: u32) -> String {
        let Self { mode, scheduler, services, servers } = *self;
        let ip = |bits| V4(bits).to_ip();
        // The first is the one that benchmarks open connections to.
        let vip = director::vip::<V4>(mode);
        let mut file = String::from(PORT);
        // Writing to a string cannot fail.
        for service in 0..services {
            let _ = write!(
                file,
                "[[service]]\nname = \"s{service}\"\nlisten = [\"{}:{}\"]\nprotocol = \"tcp\"\nmode = \"{}\"\nscheduler = \"{}\"\n",
                ip(vip.address.0 + service),
                vip.port,
                mode.name(),
                scheduler.name()
            );
            if mode == Mode::Fullnat {
                let _ = writeln!(file, "local = [\"{}\"]", ip(0x0a00_0001 + service));
            }
            for server in 0..servers {
                let address = ip(0x0a40_0001 + service * servers + server);
                let port = if mode.sees_replies() { ":8080" } else { "" };
                let weight = if (service, server) == (0, 0) { weight } else { 1 };
                let _ =
                    writeln!(file, "[[service.server]]\naddress = \"{address}{port}\"\nweight = {weight}");
            }
        }
        file
    }
}

/// What control keeps from one reload to the next.
pub struct World {
    kernel: Kernel,
    ports: Vec<OpenPort>,
    reader: Reader,
    config: Config,
    numbers: Numbers,
    publisher: Publisher<Snapshot>,
}

/// What a reload puts in force.
pub struct Compiled {
    config: Config,
    numbers: Numbers,
    snapshot: Snapshot,
}

impl World {
    /// One with nothing configured yet, and so many workers' pipelines.
    ///
    /// # Errors
    /// When the kernel has no memory for the tables.
    pub fn new(workers: u16, capacity: u32) -> anyhow::Result<(Self, Vec<Pipeline>)> {
        let (publisher, readers) = publish::channel(Snapshot::default(), workers.into());
        let agreed = Agreed::new(64, SERVERS_MAX as u32, director::SECRET);
        let agreed = Agreed { spread: director::spread(workers), ..agreed };
        let pipeline = |(reader, worker)| {
            let config = pipeline_config(WorkerId(worker), workers, capacity, SERVERS_MAX as u32);
            Pipeline::new(config, agreed.clone(), reader)
        };
        let pipelines = readers.into_iter().zip(0..).map(pipeline).collect::<std::io::Result<_>>()?;
        let info = PortInfo { name: "eth0".into(), mac: US };
        let ports = vec![OpenPort { id: PortId(0), link: 2, info }];
        let (reader, numbers) = (Reader::default(), Numbers::default());
        let config = Config::parse("nothing", PORT, false)?.config;
        Ok((Self { kernel: kernel(), ports, reader, config, numbers, publisher }, pipelines))
    }

    /// Reads the file at `path`, and what was in force is carried over into it.
    ///
    /// # Errors
    /// When there is anything wrong with it.
    pub fn read(&mut self, path: &Path) -> anyhow::Result<Config> {
        let config = self.reader.load(path, false)?.config;
        Ok(self.carry_over(config))
    }

    /// What is in force with `weight` for the first service's first server.
    pub fn edit(&self, weight: u32) -> Config {
        let mut config = self.config.clone();
        Arc::make_mut(&mut config.services[0]).servers[0].weight = weight;
        self.carry_over(config)
    }

    fn carry_over(&self, mut config: Config) -> Config {
        drain::carry_over(Some(&self.config), &mut config, Clock::System.now());
        config
    }

    /// What workers get of `config`.
    ///
    /// # Errors
    /// When there is more in it than there are numbers.
    pub fn compile(&self, config: Config) -> anyhow::Result<Compiled> {
        // As the daemon does: until the snapshot is in force the old numbers hold.
        let mut numbers = self.numbers.clone();
        let before: Arc<Snapshot> = self.publisher.current();
        let snapshot = compile(&config, &self.kernel, &self.ports, &mut numbers, &before);
        Ok(Compiled { snapshot: snapshot.context("compiling")?, numbers, config })
    }

    /// Publishes it.
    pub fn publish(&mut self, compiled: Compiled) -> Generation {
        self.numbers = compiled.numbers;
        self.config = compiled.config;
        self.publisher.publish(compiled.snapshot)
    }

    /// Whether all workers work with `generation`.
    pub fn is_in_force(&self, generation: Generation) -> bool {
        self.publisher.in_force() >= generation
    }

    /// Drops what nobody works with any more.
    pub fn reclaim(&mut self) {
        self.publisher.reclaim();
    }
}

/// Memory that a worker has taken at start for each of all server slots, in bytes.
///
/// # Errors
/// When there is none.
pub fn bytes_per_slot() -> std::io::Result<f64> {
    let taken = |servers| {
        let (_, mut readers) = publish::channel(Snapshot::default(), 1);
        let agreed = Agreed::new(64, servers, director::SECRET);
        let before = machine::resident();
        let config = pipeline_config(WorkerId(0), 1, director::capacity(0), servers);
        let pipeline = Pipeline::new(config, agreed, readers.remove(0))?;
        let taken = machine::resident().saturating_sub(before);
        drop(pipeline);
        std::io::Result::Ok(taken as f64)
    };
    Ok((taken(SERVERS_MAX as u32)? - taken(1)?) / SERVERS_MAX as f64)
}

fn pipeline_config(
    worker: WorkerId,
    workers: u16,
    max_connections: u32,
    max_servers: u32,
) -> pipeline::Config {
    let max_services = SERVICES_MAX as u32;
    pipeline::Config { worker, workers, secret: director::SECRET, max_connections, max_services, max_servers }
}

/// The one port, as it is configured.
const PORT: &str = "[[port]]\ninterface = \"eth0\"\n";

/// The network: one interface, one gateway, everything behind it.
fn kernel() -> Kernel {
    let ip = |last| IpAddr::from([192, 0, 2, last]);
    let everywhere = Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0).expect("no bit is set behind the prefix");
    Kernel {
        links: vec![Link { index: 2, name: "eth0".into(), mac: US, mtu: 1540, up: true, vlan: None }],
        addresses: vec![Address { link: 2, address: ip(1), prefix_len: 24 }],
        routes: vec![Route {
            prefix: everywhere,
            metric: 0,
            paths: vec![Way::Gateway(2, ip(254)).into()],
            mtu: None,
        }],
        neighbours: vec![Neighbour {
            link: 2,
            address: ip(254),
            mac: Some(ROUTER),
            failed: false,
            fixed: false,
        }],
    }
}
