//! A server ("real server", RS): where a service's connections go, and how.

use std::net::IpAddr;

use shunt_engine::Instant;

use crate::route::Hops;
use crate::service::ServiceId;
use crate::thresholds::Thresholds;

/// The stable number of a server with the generation of the slot: a connection keeps both, and a server removed and
/// another put into its slot are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, zerocopy::FromZeros)]
#[repr(C)]
pub struct ServerId {
    /// Index into per-worker state and [`crate::snapshot::Snapshot::servers`].
    pub slot: u32,
    /// Which tenant of the slot.
    pub generation: u32,
}

/// How packets reach the server and how its answers come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Both addresses rewritten; the server answers to a local address of the director.
    Fullnat,
    /// Destination rewritten; the server's way to the client leads through the director (LVS: Masq).
    Nat,
    /// Only the link address changes; the server owns the VIP and answers the client itself (LVS: Route).
    Dr,
    /// IP in IP to the server, which owns the VIP and answers the client itself (LVS: Tunnel).
    Tun,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Fullnat, Self::Nat, Self::Dr, Self::Tun];

    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fullnat => "fullnat",
            Self::Nat => "nat",
            Self::Dr => "dr",
            Self::Tun => "tun",
        }
    }

    /// Whether answers pass the director, so that both directions are seen.
    pub const fn sees_replies(self) -> bool {
        matches!(self, Self::Fullnat | Self::Nat)
    }

    /// The mode with this number (as stored in connection records).
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Fullnat,
            1 => Self::Nat,
            2 => Self::Dr,
            _ => Self::Tun,
        }
    }
}

/// A server of one service, as workers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its number.
    pub id: ServerId,
    /// The service it belongs to.
    pub service: ServiceId,
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None` keeps the packet's (all-ports and port-range services, DR, TUN).
    pub port: Option<u16>,
    /// How to reach it.
    pub mode: Mode,
    /// Share of new connections; 0 takes none and keeps what it has.
    pub weight: u32,
    /// When the connections it still has are reset; `None` for never. No new one is opened on it from then on.
    pub drain_at: Option<Instant>,
    /// Found dead, not just drained: UDP flows leave it at once. Its weight is 0 then. Whoever checks servers sets this.
    pub down: bool,
    /// How many connections it may have; `None` for any number.
    pub thresholds: Option<Thresholds>,
    /// Next hops towards [`Self::address`]; `None` without a route.
    pub hop: Option<Hops>,
}

impl Server {
    /// Whether its time to drain is over at `now`.
    #[inline]
    pub fn has_drained(&self, now: Instant) -> bool {
        self.drain_at.is_some_and(|at| at <= now)
    }
}
