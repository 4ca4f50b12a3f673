//! From `[[port]]` to open ports, and from their queues to workers.

use std::collections::HashMap;
use std::sync::Arc;

use shunt_dataplane::pipeline::Pipeline;
use shunt_engine::assign::{TxShare, assign};
use shunt_engine::clock::Clock;
use shunt_engine::idle::IdleConfig;
use shunt_engine::mempool::Region;
use shunt_engine::outbox::{PuntSink, TxPort, TxRoute};
use shunt_engine::port::af_packet::{AfPacket, AfPacketConfig};
use shunt_engine::port::af_xdp::{self, AfXdp, AfXdpConfig};
use shunt_engine::port::{Port, PortError, QueuePair};
use shunt_engine::punt::Punt;
use shunt_engine::ring::Links;
use shunt_engine::worker::{RxPort, Setup, Worker};
use shunt_engine::{Mempool, PortId};

use crate::config::{self, Driver, Engine, Idle, Queues, XdpMode};

/// Opens every port of the configuration, in its order.
///
/// # Errors
/// With the first port that cannot be opened; those before are closed again.
pub fn open(
    ports: &[config::Port],
    region: &Arc<Region>,
    workers: u16,
) -> Result<Vec<Box<dyn Port>>, PortError> {
    ports.iter().map(|port| open_one(port, region, workers)).collect()
}

fn open_one(port: &config::Port, region: &Arc<Region>, workers: u16) -> Result<Box<dyn Port>, PortError> {
    let interface = port.interface.clone();
    Ok(match port.driver {
        Driver::AfXdp => {
            let mode = match port.xdp {
                XdpMode::Auto => af_xdp::Mode::Auto,
                XdpMode::Native => af_xdp::Mode::Native,
                XdpMode::Generic => af_xdp::Mode::Generic,
            };
            let queues = match port.queues {
                Queues::All => None,
                Queues::First(count) => Some(count),
            };
            Box::new(AfXdp::open(&AfXdpConfig { mode, queues, ..AfXdpConfig::new(&interface) }, region)?)
        }
        Driver::AfPacket => {
            // The kernel spreads flows over as many sockets as we open: one per worker serves all.
            let queues = match port.queues {
                Queues::All => workers,
                Queues::First(count) => count,
            };
            let frame_len_max = region.frame_len_max();
            Box::new(AfPacket::open(AfPacketConfig { interface, queues, frame_len_max })?)
        }
    })
}

/// What is wrong with the configuration's cores on a machine where those `allowed` may be used, if anything.
pub fn missing_cores(engine: &Engine, allowed: &[usize]) -> Option<String> {
    let list = |cores: &[usize]| cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let missing: Vec<_> = engine.cores.iter().copied().filter(|core| !allowed.contains(core)).collect();
    let many = if missing.len() == 1 { ("core", "is") } else { ("cores", "are") };
    (!missing.is_empty() && !allowed.is_empty()).then(|| {
        let (noun, verb) = many;
        format!(
            "engine.cores: {noun} {} {verb} not to be had here; there are {}",
            list(&missing),
            list(allowed)
        )
    })
}

/// The device by which frames that are not ours go back to the kernel.
pub const PUNT_DEVICE: &str = "shunt0";

/// Makes one worker of each pipeline: deals the queues of `devices` out and connects what belongs together.
///
/// # Errors
/// When a queue cannot be set up.
pub fn workers(
    engine: &Engine,
    devices: &mut [Box<dyn Port>],
    pipelines: Vec<Pipeline>,
    pools: Vec<Mempool>,
    links: Vec<Links>,
    punt: Option<&Punt>,
) -> Result<Vec<Worker<Pipeline>>, PortError> {
    let queues: Vec<u16> = devices.iter().map(|device| device.caps().queues).collect();
    let mut taken = take_queues(devices)?;
    let sees_all: Vec<bool> = devices.iter().map(|device| device.caps().kernel_sees_all).collect();
    let shares = assign(&queues, engine.workers);
    let mut workers = Vec::with_capacity(pipelines.len());
    for (((program, pool), links), share) in pipelines.into_iter().zip(pools).zip(links).zip(shares) {
        let receive = |&(port, queue): &(PortId, u16)| {
            let rx = taken.get_mut(&(port, queue)).and_then(|halves| halves.0.take());
            RxPort { port, queue, rx: rx.expect("assign deals every queue out once") }
        };
        let rx = share.rx.iter().map(receive).collect();
        let transmit = |(number, share): (usize, &TxShare)| {
            let port = PortId(u8::try_from(number).expect("the configuration has at most 64 ports"));
            let route = match *share {
                TxShare::Via(worker) => TxRoute::Via(worker),
                TxShare::Own(queue) => {
                    let tx = taken.get_mut(&(port, queue)).and_then(|halves| halves.1.take());
                    TxRoute::Own { queue, tx: tx.expect("assign gives every queue to one worker") }
                }
            };
            TxPort { kernel_sees_all: sees_all[number], route }
        };
        let ports = share.tx.iter().enumerate().map(transmit).collect();
        let punt = punt.map(Punt::try_clone).transpose().map_err(|source| PortError::Io {
            name: PUNT_DEVICE.to_owned(),
            action: "share the TUN device among workers",
            source,
        })?;
        let punt = punt.map(|punt| Box::new(punt) as Box<dyn PuntSink>);
        let idle = match engine.idle {
            Idle::Adaptive => IdleConfig::default(),
            Idle::Spin => IdleConfig::Spin,
        };
        let setup = Setup { program, clock: Clock::System, pool, links, rx, ports, punt, idle };
        workers.push(Worker::new(setup));
    }
    Ok(workers)
}

type Halves = (Option<Box<dyn shunt_engine::port::RxQueue>>, Option<Box<dyn shunt_engine::port::TxQueue>>);

fn take_queues(devices: &mut [Box<dyn Port>]) -> Result<HashMap<(PortId, u16), Halves>, PortError> {
    let mut taken = HashMap::new();
    for (number, device) in devices.iter_mut().enumerate() {
        let port = PortId(u8::try_from(number).expect("the configuration has at most 64 ports"));
        for queue in 0..device.caps().queues {
            let (rx, tx): QueuePair = device.take_queue(queue)?;
            taken.insert((port, queue), (Some(rx), Some(tx)));
        }
    }
    Ok(taken)
}
