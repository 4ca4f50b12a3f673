//! How NICs spread flows over the workers: the hash they do it by, and whose queue each of its results is.
//!
//! The homes of flows go by it where it is known, so that no frame has to be handed on. Where a NIC spreads otherwise,
//! its frames are handed on.

use shunt_engine::WorkerId;
use shunt_engine::rss::{Rss, Toeplitz};

use crate::tuple::{Address, Endpoint, Protocol, Tuple};

/// The workers' common idea of receive-side scaling. It stays the same from start to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    hash: Toeplitz,
    /// Whose queue it is, by entry of the indirection table.
    workers: Box<[WorkerId]>,
    /// 2⁶⁴ by the number of entries, rounded up: a remainder by two products (Lemire, Kaser, Kurz 2019).
    reciprocal: u64,
    tcp_ports: bool,
    udp_ports: bool,
}

impl Spread {
    /// What `rss` makes of flows when the worker of a queue is `owner`'s answer. `None` unless every one of `workers`
    /// workers gets some: those without a queue live on what is handed to them.
    pub fn new(rss: &Rss, workers: u16, owner: impl Fn(u16) -> WorkerId) -> Option<Self> {
        let by_entry: Box<[WorkerId]> = rss.reta.iter().map(|&queue| owner(queue)).collect();
        (0..workers).all(|worker| by_entry.contains(&WorkerId(worker))).then(|| Self {
            hash: Toeplitz::new(&rss.key),
            reciprocal: (u64::MAX / by_entry.len() as u64).wrapping_add(1),
            workers: by_entry,
            tcp_ports: rss.tcp_ports,
            udp_ports: rss.udp_ports,
        })
    }

    /// Whether `other` brings every flow to the same worker. Tables of different lengths may do so, where the longer one
    /// repeats the shorter one.
    pub fn is_like(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.workers, &other.workers);
        let (short, long) = if ours.len() < theirs.len() { (ours, theirs) } else { (theirs, ours) };
        (self.tcp_ports, self.udp_ports) == (other.tcp_ports, other.udp_ports)
            && self.hash == other.hash
            && long.len().is_multiple_of(short.len())
            && long.iter().eq(short.iter().cycle().take(long.len()))
    }

    /// The worker whose queue packets of `tuple` arrive on.
    #[inline]
    pub fn of<A: Address>(&self, tuple: &Tuple<A>) -> WorkerId {
        self.owner(match self.hashes_ports(tuple.protocol) {
            true => self.source(tuple.src) ^ self.destination(tuple.dst),
            false => {
                let destination = self.address(const { address_len::<A>() }, tuple.dst.address);
                self.address(0, tuple.src.address) ^ destination
            }
        })
    }

    /// Whether the ports of packets of `protocol` count.
    #[inline]
    pub const fn hashes_ports(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp => self.tcp_ports,
            Protocol::Udp => self.udp_ports,
        }
    }

    /// Entries of the indirection table.
    pub(crate) fn entries(&self) -> usize {
        self.workers.len()
    }

    /// The entry that a hash leads to.
    #[inline]
    pub(crate) fn entry(&self, hash: u32) -> usize {
        let rest = self.reciprocal.wrapping_mul(hash.into());
        ((u128::from(rest) * self.entries() as u128) >> 64) as usize
    }

    /// The worker of the queue that a hash leads to.
    #[inline]
    pub(crate) fn owner(&self, hash: u32) -> WorkerId {
        self.workers[self.entry(hash)]
    }

    /// What a source adds to the hash where ports count.
    #[inline]
    pub(crate) fn source<A: Address>(&self, src: Endpoint<A>) -> u32 {
        let port = self.hash.part(const { 2 * address_len::<A>() }, &src.port.to_be_bytes());
        self.address(0, src.address) ^ port
    }

    /// What a destination adds to the hash where ports count.
    #[inline]
    pub(crate) fn destination<A: Address>(&self, dst: Endpoint<A>) -> u32 {
        self.address(const { address_len::<A>() }, dst.address) ^ self.destination_port::<A>(dst.port)
    }

    /// What a destination port adds to the hash.
    #[inline]
    pub(crate) fn destination_port<A: Address>(&self, port: u16) -> u32 {
        self.hash.part(const { 2 * address_len::<A>() + 2 }, &port.to_be_bytes())
    }

    #[inline]
    fn address<A: Address>(&self, at: usize, address: A) -> u32 {
        let (high, low) = address.words();
        if const { address_len::<A>() == 4 } {
            self.hash.part(at, &(high as u32).to_be_bytes())
        } else {
            self.hash.part(at, &high.to_be_bytes()) ^ self.hash.part(at + 8, &low.to_be_bytes())
        }
    }
}

/// Bytes of an address in the hash's input.
const fn address_len<A>() -> usize {
    std::mem::size_of::<A>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shunt_engine::rss;

    use super::*;
    use crate::tuple::{V4, V6};

    fn as_a_nic<A: Address>(nic: &Rss, tuple: &Tuple<A>) -> u16 {
        nic.queue_of(&rss::Tuple {
            source: tuple.src.address.to_ip(),
            destination: tuple.dst.address.to_ip(),
            protocol: tuple.protocol.number(),
            ports: Some((tuple.src.port, tuple.dst.port)),
        })
    }

    /// Any key, fields and indirection table, with every one of `queues` queues in it.
    fn any_rss(queues: u16) -> impl Strategy<Value = Rss> {
        let key = prop::collection::vec(any::<u8>(), 0..60);
        let reta = prop::collection::vec(0..queues, 0..300);
        (key, reta, any::<(bool, bool)>()).prop_map(move |(key, reta, (tcp_ports, udp_ports))| Rss {
            key: key.into(),
            reta: reta.into_iter().chain(0..queues).collect(),
            tcp_ports,
            udp_ports,
        })
    }

    proptest! {
        #[test]
        fn a_flow_is_the_worker_s_whose_queue_the_nic_would_choose(
            (workers, nic) in (1..=16u16).prop_flat_map(|workers| (Just(workers), any_rss(16))),
            v4 in any::<[u32; 2]>(),
            v6 in any::<[[u32; 4]; 2]>(),
            ports in any::<[u16; 2]>(),
        ) {
            let owner = |queue| WorkerId(queue % workers);
            let spread = Spread::new(&nic, workers, owner).unwrap();
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let [src, dst] = [0, 1].map(|i| Endpoint::new(V4(v4[i]), ports[i]));
                let tuple = Tuple { src, dst, protocol };
                prop_assert_eq!(spread.of(&tuple), owner(as_a_nic(&nic, &tuple)));
                let [src, dst] = [0, 1].map(|i| Endpoint::new(V6(v6[i]), ports[i]));
                let tuple = Tuple { src, dst, protocol };
                prop_assert_eq!(spread.of(&tuple), owner(as_a_nic(&nic, &tuple)));
            }
        }
    }

    #[test]
    fn a_worker_without_queue_lives_on_handed_frames_so_the_nic_does_not_say_where_flows_live() {
        let owner = |workers| move |queue| WorkerId(queue % workers);
        assert!(Spread::new(&Rss::even(4), 4, owner(4)).is_some());
        assert!(Spread::new(&Rss::even(5), 4, owner(4)).is_some());
        assert!(Spread::new(&Rss::even(3), 4, owner(4)).is_none());
        assert!(Spread::new(&Rss { reta: [].into(), ..Rss::even(1) }, 1, owner(1)).is_none());
    }
}
