//! Which worker owns a flow: a function of the packet's headers and of parameters frozen at start.
//!
//! Every worker computes the same answer, so a frame that a queue brought to the wrong one is handed to the right one.
//! With one worker every answer is that worker, and nothing is hashed.

use shunt_engine::WorkerId;

use crate::hash::{KeyedHash, reduce};
use crate::tuple::{Address, Endpoint, Protocol};

/// The assignment of flows to workers.
#[derive(Clone, Copy, Debug)]
pub struct Home {
    workers: u16,
    clients: KeyedHash,
    fragments: KeyedHash,
}

impl Home {
    /// The assignment to `workers` workers (at least one) under `secret`. All workers must get the same arguments.
    pub fn new(workers: u16, secret: [u64; 2]) -> Self {
        assert!(workers > 0, "flows need a worker");
        Self {
            workers,
            clients: KeyedHash::new(secret, CLIENTS),
            fragments: KeyedHash::new(secret, FRAGMENTS),
        }
    }

    /// How many workers there are.
    pub const fn workers(&self) -> u16 {
        self.workers
    }

    /// Owner of what `client` sends, in every mode, and of what a server sends back to it in NAT.
    #[inline]
    pub fn of_client<A: Address>(&self, client: Endpoint<A>, protocol: Protocol) -> WorkerId {
        self.reduced(|| self.clients.endpoint(client, protocol))
    }

    /// Owner of what a server sends to a local address in FULLNAT: the worker that chose the port.
    #[inline]
    pub const fn of_local_port(&self, port: u16) -> WorkerId {
        match self.workers {
            1 => WorkerId(0),
            workers => WorkerId(port % workers),
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
            let home = Home::new(workers, [11, 12]);
            let v4 = |i: u32| Endpoint::new(V4(0x0a00_0000 + i / 500), 1024 + (i % 500) as u16);
            let v6 = |i: u32| Endpoint::new(V6([0x2001_0db8, 0, 0, i / 500]), 1024 + (i % 500) as u16);
            assert_even(workers, |i| home.of_client(v4(i), Protocol::Tcp));
            assert_even(workers, |i| home.of_client(v6(i), Protocol::Udp));
            assert_even(workers, |i| home.of_local_port((1024 + i % 60_000) as u16));
            assert_even(workers, |i| home.of_fragment(V4(1 + i / 1000), V4(2), i, 17));
            assert_even(workers, |i| home.of_fragment(V6([1; 4]), V6([2, 0, 0, i]), i, 0));
        }
    }

    #[test]
    fn the_same_arguments_give_the_same_owner_and_another_secret_another_spread() {
        let client = |i: u16| Endpoint::new(V4(0x0a00_0001), i);
        let owners = |secret| {
            let home = Home::new(7, secret);
            (0..100).map(|i| home.of_client(client(i), Protocol::Tcp)).collect::<Vec<_>>()
        };
        assert_eq!(owners([1, 2]), owners([1, 2]));
        assert_ne!(owners([1, 2]), owners([1, 3]));
    }
}
