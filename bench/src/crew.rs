//! Several workers that share the connections of one service, each with its own.

use shunt_dataplane::home::Home;
use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Protocol, Tuple};
use shunt_engine::WorkerId;
use shunt_engine::clock::Clock;

use crate::connections::{self, Connections};
use crate::director::{self, Services};
use crate::family::Family;
use crate::rig::Rig;

/// The workers, and the connections whose home each is.
pub struct Crew<A: Family> {
    /// The workers.
    pub rigs: Vec<Rig<Pipeline>>,
    /// For each, what it has.
    pub connections: Vec<Connections<A>>,
}

impl<A: Family> Crew<A> {
    /// So many workers with `flows` connections together, each opened at its home.
    ///
    /// # Errors
    /// When there is no memory, or a connection cannot be opened.
    pub fn open(workers: u16, mode: Mode, flows: u32, clock: &Clock) -> anyhow::Result<Self> {
        let pipelines = Services::few(&[mode]).pipelines::<A>(director::capacity(flows), workers)?;
        let mut rigs = Rig::mesh(pipelines, clock)?;
        let home = Home::new(workers, director::SECRET, director::spread(workers));
        let vip = director::vip::<A>(mode);
        let owner = |client: u32| {
            let request = Tuple { src: director::client(client), dst: vip, protocol: Protocol::Tcp };
            match mode {
                Mode::Fullnat | Mode::Dr | Mode::Tun => home.of_request(&request),
                Mode::Nat => home.of_client(request.src, request.protocol),
            }
        };
        let mut connections = Vec::with_capacity(rigs.len());
        for (rig, worker) in rigs.iter_mut().zip(0..) {
            let here = |client: &u32| owner(*client) == WorkerId(worker);
            connections.push(connections::open(rig, mode, (0..flows).filter(here))?);
        }
        Ok(Self { rigs, connections })
    }
}
