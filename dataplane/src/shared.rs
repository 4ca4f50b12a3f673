//! What one worker keeps for the flows of both IP versions: schedulers' state, what it originates at a limited rate, and
//! the other workers' loads.

use shunt_engine::counters::Published;
use shunt_engine::{Duration, Instant, WorkerId};

use crate::agreed::Agreed;
use crate::classify::{FragmentKey, Role};
use crate::conn::Conn;
use crate::counters::{self, ServerField};
use crate::hash::KeyedHash;
use crate::home::{Calls, Home};
use crate::path_mtu::PathMtus;
use crate::pipeline::Config;
use crate::scheduler::{Load, SchedulerState};
use crate::server::Server;
use crate::snapshot::Snapshot;
use crate::thresholds::Doors;
use crate::transmit::Originated;
use crate::tuple::{Address, Tuple};

/// One worker's state that does not belong to one IP version.
#[derive(Debug)]
pub struct Shared {
    pub(crate) worker: WorkerId,
    home: Home,
    paths: KeyedHash,
    pub(crate) schedulers: SchedulerState,
    pub(crate) originated: Originated,
    pub(crate) agreed: Agreed,
    pub(crate) doors: Doors,
    pub(crate) path_mtus: PathMtus,
    peers: Vec<Published>,
    next_loads: Instant,
    /// The server slot whose load elsewhere is looked up next.
    loads_cursor: usize,
}

impl Shared {
    /// How often the other workers' loads are looked at, and how many servers at a time.
    const LOADS_INTERVAL: Duration = Duration::from_millis(4);
    const LOADS_BUDGET: usize = 256;

    pub(crate) fn new(config: Config, agreed: Agreed) -> Self {
        let (services, servers) = (config.max_services as usize, config.max_servers as usize);
        Self {
            worker: config.worker,
            home: Home::new(config.workers, config.secret, agreed.spread.clone()),
            paths: KeyedHash::new(config.secret, PATHS),
            schedulers: SchedulerState::new(services, servers, config.secret[0]).for_worker(config.worker),
            originated: Originated::new(config.worker, config.seed()),
            doors: Doors::new(agreed.occupancy.clone(), services),
            path_mtus: PathMtus::new(servers),
            agreed,
            peers: Vec::new(),
            next_loads: Instant::ZERO,
            loads_cursor: 0,
        }
    }

    pub(crate) const fn home(&self) -> &Home {
        &self.home
    }

    pub(crate) fn set_peers(&mut self, peers: Vec<Published>) {
        self.peers = peers;
    }

    /// A new snapshot is in force: those of its servers of which something may differ are told one by one.
    pub(crate) fn adopt(&mut self, snapshot: &Snapshot) {
        self.schedulers.prepare(snapshot.scheduler_kinds());
        self.doors.begin(snapshot.limited_services());
    }

    /// One of them.
    #[inline]
    pub(crate) fn adopt_server(&mut self, server: &Server) {
        self.doors.follow(server, &mut self.schedulers);
    }

    /// They have all been told.
    pub(crate) fn adopted(&mut self) {
        self.doors.followed_all();
    }

    /// The worker a flow lives on, by the packet's headers alone.
    #[inline]
    pub(crate) fn home_of<A: Address>(&self, snapshot: &Snapshot, role: Role, tuple: &Tuple<A>) -> WorkerId {
        match role {
            Role::Request(id) if self.home.spread().is_some() && snapshot.calls(id).by_client() => {
                self.home.of_client(tuple.src, tuple.protocol)
            }
            Role::Request(_) => self.home.of_request(tuple),
            Role::LocalReply => self.home.of_local_reply(tuple),
            Role::ServerReply => self.home.of_client(tuple.dst, tuple.protocol),
        }
    }

    /// The worker a flow may live on from the time before its service had a NAT server, if that is another one than
    /// [`Self::home_of`] says.
    #[inline]
    pub(crate) fn earlier_home_of<A: Address>(
        &self,
        snapshot: &Snapshot,
        role: Role,
        tuple: &Tuple<A>,
    ) -> Option<WorkerId> {
        let Role::Request(id) = role else { return None };
        if self.home.spread().is_none() || snapshot.calls(id) != Calls::ByClientOnceByQueue {
            return None;
        }
        let earlier = self.home.of_request(tuple);
        (earlier != self.home_of(snapshot, role, tuple)).then_some(earlier)
    }

    /// What says which of several next hops a flow takes (see [`crate::route::Hops::of`]).
    pub(crate) fn path_of<A: Address>(&self, conn: &Conn<A>) -> u64 {
        self.paths.tuple(&conn.request())
    }

    /// The worker on which the fragments of a packet meet.
    pub(crate) fn fragment_home<A: Address>(&self, key: &FragmentKey<A>) -> WorkerId {
        self.home.of_fragment(key.src, key.dst, key.id, key.protocol)
    }

    /// Now and then tells the schedulers what the other workers' connections weigh, for a bounded number of servers.
    /// Returns when it will again, if packets come.
    pub(crate) fn tick(&mut self, now: Instant, snapshot: &Snapshot) -> Option<Instant> {
        if self.peers.is_empty() {
            return None;
        }
        if now < self.next_loads {
            return Some(self.next_loads);
        }
        self.next_loads = now + Self::LOADS_INTERVAL;
        let slots = snapshot.server_slots();
        for _ in 0..slots.min(Self::LOADS_BUDGET) {
            self.loads_cursor = if self.loads_cursor + 1 < slots { self.loads_cursor + 1 } else { 0 };
            let Some(server) = snapshot.server_in(self.loads_cursor) else { continue };
            let sum =
                |field| self.peers.iter().map(|peer| peer.get(counters::server(server.id.slot, field))).sum();
            let (active, inactive): (u64, u64) = (sum(ServerField::Active), sum(ServerField::Inactive));
            self.schedulers.set_others(server.id, Load { active: active as u32, inactive: inactive as u32 });
        }
        Some(self.next_loads)
    }
}

/// Purpose of the hash; the connection table and homes have their own.
const PATHS: u64 = 8;
