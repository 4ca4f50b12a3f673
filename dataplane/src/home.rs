//! Which worker owns a flow: a function of the packet's headers and of parameters frozen at start.
//!
//! Every worker computes the same answer, so a frame that a queue brought to the wrong one is handed to the right one.
//! Where it is known how NICs spread flows, the answer is the worker whose queue that is, and no frame is handed on.
//! With one worker every answer is that worker, and nothing is hashed.

use std::sync::Arc;

use shunt_engine::WorkerId;

use crate::hash::{KeyedHash, reduce};
use crate::spread::Spread;
use crate::tuple::{Address, Endpoint, Protocol, Tuple};

/// The assignment of flows to workers.
#[derive(Clone, Debug)]
pub struct Home {
    workers: u16,
    spread: Option<Arc<Spread>>,
    clients: KeyedHash,
    fragments: KeyedHash,
}

impl Home {
    /// The assignment to `workers` workers (at least one) under `secret`, by `spread` where it is known. All workers must
    /// get the same arguments.
    pub fn new(workers: u16, secret: [u64; 2], spread: Option<Arc<Spread>>) -> Self {
        assert!(workers > 0, "flows need a worker");
        Self {
            workers,
            spread: spread.filter(|_| workers > 1),
            clients: KeyedHash::new(secret, CLIENTS),
            fragments: KeyedHash::new(secret, FRAGMENTS),
        }
    }

    /// How many workers there are.
    pub const fn workers(&self) -> u16 {
        self.workers
    }

    /// How NICs spread flows over the workers, where it is known.
    pub const fn spread(&self) -> Option<&Arc<Spread>> {
        self.spread.as_ref()
    }

    /// Owner of a client's packet to a service none of whose servers is in NAT mode.
    #[inline]
    pub fn of_request<A: Address>(&self, request: &Tuple<A>) -> WorkerId {
        match &self.spread {
            Some(spread) => spread.of(request),
            None => self.of_client(request.src, request.protocol),
        }
    }

    /// Owner of what `client` sends to a service with NAT servers, and of what those send back to it: an answer does not
    /// say which service was called, so no NIC can bring both to one queue.
    #[inline]
    pub fn of_client<A: Address>(&self, client: Endpoint<A>, protocol: Protocol) -> WorkerId {
        self.reduced(|| self.clients.endpoint(client, protocol))
    }

    /// Owner of what a server sends to a local address in FULLNAT: the worker that chose the port, by
    /// [`crate::laddr::LocalPorts`].
    #[inline]
    pub fn of_local_reply<A: Address>(&self, reply: &Tuple<A>) -> WorkerId {
        match &self.spread {
            Some(spread) if spread.hashes_ports(reply.protocol) => spread.of(reply),
            _ if self.workers == 1 => WorkerId(0),
            _ => WorkerId(reply.dst.port % self.workers),
        }
    }

    /// Where the fragments of one datagram meet, for only the first of them has ports. `id` is the identification of
    /// the IPv4 header or of the IPv6 fragment header.
    #[inline]
    pub fn of_fragment<A: Address>(&self, src: A, dst: A, id: u32, protocol: u8) -> WorkerId {
        let rest = u64::from(id) << 8 | u64::from(protocol);
        self.reduced(|| self.fragments.addresses(src, dst, rest))
    }

    #[inline]
    fn reduced(&self, hash: impl FnOnce() -> u64) -> WorkerId {
        match self.workers {
            1 => WorkerId(0),
            workers => WorkerId(reduce(hash(), u32::from(workers)) as u16),
        }
    }
}

/// How the requests of a service find their home where it is known how NICs spread flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Calls {
    /// By the queue that NICs bring them to ([`Home::of_request`]).
    #[default]
    ByQueue,
    /// By their client ([`Home::of_client`]), since the service has NAT servers.
    ByClient,
    /// By their client now. Connections from before the service had a NAT server are where NICs bring them.
    ByClientOnceByQueue,
}

impl Calls {
    /// Of a service that has or has no NAT server now and did `before`. What was once found by its client stays so: its
    /// connections may live on.
    #[must_use]
    pub const fn after(before: Option<Self>, has_nat: bool) -> Self {
        match (before, has_nat) {
            (Some(before @ (Self::ByClient | Self::ByClientOnceByQueue)), _) => before,
            (Some(Self::ByQueue), true) => Self::ByClientOnceByQueue,
            (None, true) => Self::ByClient,
            (Some(Self::ByQueue) | None, false) => Self::ByQueue,
        }
    }

    /// Whether new connections are found by their client.
    pub const fn by_client(self) -> bool {
        matches!(self, Self::ByClient | Self::ByClientOnceByQueue)
    }
}

/// Purposes of the hashes; the connection table has its own.
const CLIENTS: u64 = 2;
const FRAGMENTS: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::{V4, V6};

    /// Asserts that 100 000 owners are spread over `workers` within 5 %.
    fn assert_even(workers: u16, owner: impl Fn(u32) -> WorkerId) {
        let mut counts = vec![0u32; usize::from(workers)];
        (0..100_000).for_each(|i| counts[usize::from(owner(i).0)] += 1);
        let expected = 100_000 / u32::from(workers);
        assert!(
            counts.iter().all(|count| count.abs_diff(expected) <= expected / 20),
            "{workers}: {counts:?}"
        );
    }

    #[test]
    fn clients_ports_and_fragments_are_spread_evenly() {
        for workers in [1, 2, 3, 5, 6, 7, 8] {
            let home = Home::new(workers, [11, 12], None);
            let v4 = |i: u32| Endpoint::new(V4(0x0a00_0000 + i / 500), 1024 + (i % 500) as u16);
            let v6 = |i: u32| Endpoint::new(V6([0x2001_0db8, 0, 0, i / 500]), 1024 + (i % 500) as u16);
            let local = |i| Endpoint::new(V4(0x0a00_00c8), (1024 + i % 60_000) as u16);
            assert_even(workers, |i| home.of_client(v4(i), Protocol::Tcp));
            assert_even(workers, |i| home.of_client(v6(i), Protocol::Udp));
            let reply = |i| Tuple { src: v4(i / 60_000), dst: local(i), protocol: Protocol::Tcp };
            assert_even(workers, |i| home.of_local_reply(&reply(i)));
            assert_even(workers, |i| home.of_fragment(V4(1 + i / 1000), V4(2), i, 17));
            assert_even(workers, |i| home.of_fragment(V6([1; 4]), V6([2, 0, 0, i]), i, 0));
        }
    }

    #[test]
    fn the_same_arguments_give_the_same_owner_and_another_secret_another_spread() {
        let client = |i: u16| Endpoint::new(V4(0x0a00_0001), i);
        let owners = |secret| {
            let home = Home::new(7, secret, None);
            (0..100).map(|i| home.of_client(client(i), Protocol::Tcp)).collect::<Vec<_>>()
        };
        assert_eq!(owners([1, 2]), owners([1, 2]));
        assert_ne!(owners([1, 2]), owners([1, 3]));
    }
}
