//! One connection's record: both tuples, the server, the state. 64 bytes for IPv4, one cache line.

use shunt_engine::{Instant, WorkerId};
use zerocopy::FromZeros;

use crate::server::{Mode, ServerId};
use crate::tuple::{Address, Endpoint, Protocol, Tuple};
use crate::wire::Family;
use crate::wire::checksum::Delta;

/// Coarse time for timeouts: 2²⁶ ns (67 ms) per tick, good for nine years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromZeros)]
#[repr(transparent)]
pub struct Ticks(pub u32);

impl Ticks {
    /// Nanoseconds per tick, as a power of two.
    pub const SHIFT: u32 = 26;

    /// The tick `now` falls into.
    #[inline]
    pub const fn at(now: Instant) -> Self {
        Self((now.as_nanos() >> Self::SHIFT) as u32)
    }

    /// How many ticks `nanos` fill, rounded up.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self((nanos.saturating_add((1 << Self::SHIFT) - 1) >> Self::SHIFT) as u32)
    }

    /// Ticks passed since `earlier`.
    #[inline]
    pub const fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }
}

/// One-bit facts about a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromZeros)]
#[repr(transparent)]
pub struct ConnFlags(pub u8);

impl ConnFlags {
    /// The record stands for a flow that lives on another worker (see [`Conn::moved_to`]).
    pub const MOVED: u8 = 1;
    /// Counted as active at its server (LVS's rule for the state it is in).
    pub const ACTIVE: u8 = 2;
    /// More than one packet has passed; of TCP, something else than a SYN that its client repeats.
    pub const AGAIN: u8 = 4;
    /// Its server's time to drain is over: it is being reset ([`crate::server::Server::drain_at`]).
    pub const DRAINED: u8 = 8;
    /// Another connection has its request; this one only keeps its local port ([`super::Table::park`]).
    pub const PARKED: u8 = 16;
    /// Of a drained connection: the client has no more of it.
    pub const CLIENT_GONE: u8 = 32;
    /// Of a drained connection: the server has no more of it.
    pub const SERVER_GONE: u8 = 64;
    /// Holds a template of [`crate::persist`].
    pub const TEMPLATE: u8 = 128;

    /// Whether `flag` is set.
    #[inline]
    pub const fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    /// Sets or clears `flag`.
    #[inline]
    pub const fn set(&mut self, flag: u8, on: bool) {
        if on {
            self.0 |= flag;
        } else {
            self.0 &= !flag;
        }
    }
}

/// A connection. `client` → `vip` is what clients send; `server` → `peer` is what servers answer.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
pub struct Conn<A: Address> {
    /// The client (CIP).
    pub client: Endpoint<A>,
    /// The virtual address (VIP) and port.
    pub vip: Endpoint<A>,
    /// The server (RIP) and its port.
    pub server: Endpoint<A>,
    /// Whom the server answers: a local address (FULLNAT) or the client (all other modes).
    pub peer: Endpoint<A>,
    /// Whose slot and counters.
    pub server_id: ServerId,
    /// When the last packet passed.
    pub last_seen: Ticks,
    /// Idle time after which the record goes, in ticks.
    pub timeout: Ticks,
    /// The generation of the snapshot in which the way was worked out ([`crate::way`]).
    pub generation: u32,
    /// Next hop towards the client ([`crate::neigh::HopId`]), in that generation.
    pub client_hop: u16,
    /// Next hop towards the server, in that generation.
    pub server_hop: u16,
    /// Link address client packets came from: the destination when the client's network is attached.
    pub client_mac: [u8; 6],
    /// [`State`](super::State) as a number.
    pub state: u8,
    /// [`Mode`] as a number.
    pub mode: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// One-bit facts.
    pub flags: ConnFlags,
    /// What a request's new addresses, and its new addresses and ports, change about checksums; a reply changes the
    /// opposite. Of modes that rewrite, in the same generation.
    pub deltas: Deltas,
}

/// What a connection's packets have changed about their checksums, folded ([`Delta`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
#[repr(C)]
pub struct Deltas {
    /// By new addresses.
    pub addresses: u16,
    /// By new addresses and ports.
    pub endpoints: u16,
}

impl Deltas {
    /// Those of a request of `conn`, whose mode rewrites.
    pub fn of<A: Family>(conn: &Conn<A>) -> Self {
        let (client, vip, server, peer) = (conn.client, conn.vip, conn.server, conn.peer);
        let addresses =
            Delta::default().address(client.address, peer.address).address(vip.address, server.address);
        let ports = Delta::default().word(client.port, peer.port).word(vip.port, server.port);
        Self { addresses: addresses.fold(), endpoints: addresses.and(ports).fold() }
    }
}

impl<A: Address> Conn<A> {
    /// No way there.
    pub const NO_HOP: u16 = u16::MAX;

    /// The forwarding mode.
    #[inline]
    pub const fn mode(&self) -> Mode {
        Mode::from_number(self.mode)
    }

    /// The transport protocol.
    #[inline]
    pub fn protocol(&self) -> Protocol {
        Protocol::from_number(self.protocol).expect("records are made for TCP and UDP only")
    }

    /// What the client sends.
    #[inline]
    pub fn request(&self) -> Tuple<A> {
        Tuple { src: self.client, dst: self.vip, protocol: self.protocol() }
    }

    /// What the server answers, as this director sees it: `None` when answers do not pass here (DR, TUN).
    #[inline]
    pub fn reply(&self) -> Option<Tuple<A>> {
        let tuple = Tuple { src: self.server, dst: self.peer, protocol: self.protocol() };
        self.mode().sees_replies().then_some(tuple)
    }

    /// The worker a `MOVED` record points to (kept where a live record keeps its hop).
    pub fn moved_to(&self) -> Option<WorkerId> {
        self.flags.has(ConnFlags::MOVED).then_some(WorkerId(self.client_hop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::{V4, V6};

    #[test]
    fn an_ipv4_record_is_one_cache_line() {
        assert_eq!(std::mem::size_of::<Conn<V4>>(), 64);
        assert!(std::mem::size_of::<Conn<V6>>() <= 128);
    }

    #[test]
    fn ticks_round_up_and_wrap() {
        assert_eq!(Ticks::from_nanos(1), Ticks(1));
        assert_eq!(Ticks(1).since(Ticks(u32::MAX)), 2);
    }
}
