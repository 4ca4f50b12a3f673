//! Schedulers: which server a new connection goes to. One file each, named as the operator types it.
//!
//! What follows from the configuration alone is a [`Pool`], built once and shared by all workers. What changes with every
//! pick is a [`SchedulerState`], per worker, in arrays indexed by stable slots, so that a reload neither restarts a
//! sequence nor forgets a count.
//!
//! LVS puts each server it is told of in front of those it has, and so its list runs from the newest to the oldest. Turns,
//! ties and tables follow the list, so a pool's list is the configuration's order backwards: among equals the last server
//! of the file comes first, as it does behind Keepalived and `ipvsadm`.

mod destinations;
mod dh;
mod fo;
mod lblc;
mod lblcr;
mod lc;
mod least;
mod mapping;
pub mod mh;
mod nq;
mod ovf;
mod pool;
mod rr;
mod sed;
mod sh;
mod shares;
mod state;
#[cfg(test)]
mod testing;
mod tree;
mod twos;
mod wlc;
mod wrr;

use shunt_engine::Instant;

use crate::tuple::{Address, Endpoint, Tuple, V6};

pub use pool::{Candidate, Pool, Pools};
pub use state::{Load, SchedulerState};

/// The schedulers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchedulerKind {
    /// Round robin.
    Rr,
    /// Weighted round robin, smooth.
    Wrr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Source hashing.
    Sh,
    /// Destination hashing.
    Dh,
    /// Locality-based least connections.
    Lblc,
    /// Locality-based least connections with replication.
    Lblcr,
    /// Maglev hashing.
    Mh,
    /// Weighted fail-over.
    Fo,
    /// Weighted overflow.
    Ovf,
    /// Power of two choices.
    Twos,
}

impl SchedulerKind {
    /// All of them, in the order people list them.
    pub const ALL: [Self; 14] = [
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Sed,
        Self::Nq,
        Self::Sh,
        Self::Dh,
        Self::Lblc,
        Self::Lblcr,
        Self::Mh,
        Self::Fo,
        Self::Ovf,
        Self::Twos,
    ];

    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Sh => "sh",
            Self::Dh => "dh",
            Self::Lblc => "lblc",
            Self::Lblcr => "lblcr",
            Self::Mh => "mh",
            Self::Fo => "fo",
            Self::Ovf => "ovf",
            Self::Twos => "twos",
        }
    }

    /// Whether a packet's addresses alone say which server it goes to, on every worker and director alike.
    pub const fn maps(self) -> bool {
        match self {
            Self::Sh | Self::Dh | Self::Mh => true,
            Self::Rr
            | Self::Wrr
            | Self::Lc
            | Self::Wlc
            | Self::Sed
            | Self::Nq
            | Self::Lblc
            | Self::Lblcr
            | Self::Fo
            | Self::Ovf
            | Self::Twos => false,
        }
    }
}

/// Which function maps addresses to servers, for the schedulers that do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashKind {
    /// Shunt's own: every server its exact share. Keyed by the seed alone, so that directors agree.
    Keyed,
    /// The kernel's, table and all, for directors that must agree with LVS.
    Kernel,
}

/// A scheduler with all that can be said about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduler {
    /// Which.
    pub kind: SchedulerKind,
    /// Keys hashes, and says where turns begin. Without one, turns begin anywhere.
    pub seed: Option<u64>,
    /// Which function maps addresses to servers.
    pub hash: HashKind,
    /// Whether the client's port counts in the hash (`sh-port`, `mh-port`).
    pub port: bool,
    /// Whether a client whose server is overloaded is sent to another (`sh-fallback`, `mh-fallback`).
    pub fallback: bool,
    /// Slots of `mh`'s table, one of [`mh::SLOTS_ALLOWED`].
    pub mh_slots: u32,
}

impl From<SchedulerKind> for Scheduler {
    /// The scheduler with nothing said about it.
    fn from(kind: SchedulerKind) -> Self {
        Self { kind, seed: None, hash: HashKind::Keyed, port: false, fallback: false, mh_slots: mh::SLOTS }
    }
}

/// What a pick may depend on. Addresses of both families look alike here: an IPv4 address is in the last word.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    client: Endpoint<V6>,
    vip: Endpoint<V6>,
    /// [`family`] of the addresses.
    family: usize,
    now: Instant,
}

impl Request {
    /// A client's packet with `tuple` at `now`.
    #[inline]
    pub fn new<A: Address>(tuple: &Tuple<A>, now: Instant) -> Self {
        let wide = |endpoint: Endpoint<A>| Endpoint::new(mapping::wide(endpoint.address), endpoint.port);
        Self { client: wide(tuple.src), vip: wide(tuple.dst), family: family::<A>(), now }
    }
}

/// 0 for IPv4, 1 for IPv6.
#[inline]
fn family<A: Address>() -> usize {
    usize::from(!A::default().to_ip().is_ipv4())
}
