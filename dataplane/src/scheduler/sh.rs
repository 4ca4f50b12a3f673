//! `sh`, source hashing: a client always gets the same server (net/netfilter/ipvs/ip_vs_sh.c).
//!
//! LVS has 256 buckets: the 257th server gets no client, nor does any behind a weight of 256. Here every server has the
//! share of clients that its weight says, however many there are; `hash = "kernel"` brings the buckets back. In both, a
//! change of servers or weights moves most clients: `mh` is for those who mind.

use super::mapping::{fold, hash_8_bits, keyed};
use super::pool::{Candidate, Pool, Table};
use super::state::Servers;
use super::{Request, Scheduler};
use crate::tuple::Endpoint;

/// The client's candidate. When it is drained, another one that is as fixed; also when it is overloaded, with the flag
/// `sh-fallback`.
pub(super) fn pick(pool: &Pool, servers: &Servers, request: &Request) -> Option<usize> {
    let scheduler = pool.scheduler();
    let client = hashed(scheduler, request.client);
    match pool.table() {
        Table::Shares(shares) => {
            steady(pool, servers, |attempt| shares.of(keyed(pool.hash(), client, attempt)))
        }
        Table::Buckets(buckets) => {
            let bucket = hash_8_bits(fold(client.address).wrapping_add(u32::from(client.port)));
            // The kernel begins its second round with the bucket's own number as offset, so the first attempt of it
            // is another bucket already.
            steady(pool, servers, |attempt| {
                let offset = match attempt {
                    0 => 0,
                    _ => bucket.wrapping_add((attempt - 1) as u8),
                };
                Some(buckets[usize::from(bucket.wrapping_add(offset))].into())
            })
        }
        Table::None | Table::Classes(_) | Table::Slots(_) | Table::KernelSlots(_) => None,
    }
}

/// The part of a client's endpoint that counts.
#[inline]
pub(super) fn hashed<A>(scheduler: &Scheduler, client: Endpoint<A>) -> Endpoint<A> {
    Endpoint { port: if scheduler.port { client.port } else { 0 }, ..client }
}

/// The candidate of attempt 0, or where that one takes no connections the first of the following attempts that does. An
/// overloaded one is replaced only if the scheduler has a fallback: its clients are few, and wait.
#[inline]
pub(super) fn steady(
    pool: &Pool,
    servers: &Servers,
    attempt: impl Fn(u32) -> Option<usize>,
) -> Option<usize> {
    let takes = |place: usize| servers.takes(&pool.candidates()[place]);
    let first = attempt(0)?;
    if takes(first) {
        return Some(first);
    }
    if pool.candidates()[first].weight > 0 && !pool.scheduler().fallback {
        return None;
    }
    let found = (1..=ATTEMPTS_MAX).filter_map(attempt).find(|&place| takes(place));
    found.or_else(|| (0..pool.candidates().len()).find(|&place| takes(place)))
}

/// How often a replacement is looked up before the first in the list that takes connections has to do.
const ATTEMPTS_MAX: u32 = 256;

/// The kernel's table: the candidates in turn, each as often in a row as its weight says, but at least once.
pub(super) fn buckets(candidates: &[Candidate]) -> Option<Box<[u16; 256]>> {
    let turn = (0u16..).zip(candidates);
    let runs = turn
        .flat_map(|(place, candidate)| std::iter::repeat_n(place, candidate.weight.clamp(1, 256) as usize));
    fill(runs)
}

/// The first 256 of `places`, over and over; `None` without any.
pub(super) fn fill(places: impl Iterator<Item = u16> + Clone) -> Option<Box<[u16; 256]>> {
    let table: Vec<u16> = places.cycle().take(256).collect();
    table.into_boxed_slice().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_fair, id, pick_for, pool, shares, state};
    use super::super::{HashKind, Scheduler, SchedulerKind, SchedulerState};

    const SH: SchedulerKind = SchedulerKind::Sh;

    fn kernel() -> Scheduler {
        Scheduler { hash: HashKind::Kernel, ..SH.into() }
    }

    #[test]
    fn clients_are_shared_by_weight_within_one_per_cent() {
        for weights in [&[1, 1, 1, 1][..], &[1, 2, 3, 0], &[300, 300, 600], &[60_000, 30_000]] {
            let shares = shares(&mut state(), &pool(SH, weights), 1_000_000);
            assert_fair(&shares, weights);
        }
    }

    #[test]
    fn a_client_gets_the_same_server_on_every_worker_of_every_director_and_without_a_port_on_every_port() {
        let pool = pool(SH, &[1, 2, 3, 4]);
        let mapping = |seed| -> Vec<_> {
            let mut state = SchedulerState::new(1, 8, seed);
            (0..16).map(|client| pick_for(&mut state, &pool, client).unwrap()).collect()
        };
        assert_eq!(mapping(1), mapping(2));
        // What a release before this one did: directors of different releases share clients during an upgrade.
        assert_eq!(mapping(1), GOLDEN);
    }

    const GOLDEN: [u32; 16] = [3, 2, 3, 3, 0, 3, 0, 0, 1, 3, 1, 2, 3, 3, 3, 1];

    #[test]
    fn another_seed_is_another_mapping_and_so_is_the_port_if_it_counts() {
        let mapping = |scheduler: Scheduler| -> Vec<_> {
            let pool = pool(scheduler, &[1; 4]);
            (0..100).map(|client| pick_for(&mut state(), &pool, client)).collect()
        };
        let all =
            [SH.into(), Scheduler { seed: Some(1), ..SH.into() }, Scheduler { port: true, ..SH.into() }];
        let [plain, seeded, port] = all.map(mapping);
        assert!(plain != seeded && plain != port && seeded != port);
    }

    #[test]
    fn an_overloaded_servers_clients_wait_unless_there_is_a_fallback() {
        for hash in [HashKind::Keyed, HashKind::Kernel] {
            for fallback in [false, true] {
                let mut state = state();
                let pool = pool(Scheduler { hash, fallback, ..SH.into() }, &[1, 1, 1]);
                let before: Vec<_> = (0..300).map(|client| pick_for(&mut state, &pool, client)).collect();
                state.set_available(id(1), false);
                for (client, before) in (0..).zip(before) {
                    let now = pick_for(&mut state, &pool, client);
                    match before {
                        Some(1) if fallback => assert!(matches!(now, Some(0 | 2)), "{now:?}"),
                        Some(1) => assert_eq!(now, None),
                        other => assert_eq!(now, other, "others stay where they are"),
                    }
                }
            }
        }
    }

    #[test]
    fn a_drained_servers_clients_go_elsewhere_and_the_kernels_mapping_keeps_the_others() {
        let mut state = state();
        // In the kernel's table weight 0 has a bucket as weight 1 has.
        let (before, after) = (pool(kernel(), &[1, 1, 2]), pool(kernel(), &[1, 0, 2]));
        for client in 0..1000 {
            let (was, is) = (pick_for(&mut state, &before, client), pick_for(&mut state, &after, client));
            match was {
                Some(1) => assert!(matches!(is, Some(0 | 2))),
                other => assert_eq!(is, other),
            }
        }
    }

    #[test]
    fn the_kernels_mapping_is_the_kernels() {
        // 198.51.0.0 + client times 0x61c88647, the topmost eight bits; buckets 0, 1, 1, 2, 0, 1, 1, 2, ….
        let pool = pool(kernel(), &[1, 2, 1]);
        for client in 0..2000u32 {
            let product = u64::from(0xc633_0000 + client) * 0x61c8_8647 % (1 << 32);
            let expected = [0, 1, 1, 2][(product >> 24) as usize % 4];
            assert_eq!(pick_for(&mut state(), &pool, client), Some(expected));
        }
    }

    #[test]
    fn the_kernels_fallback_tries_the_buckets_from_twice_the_hash_on() {
        let mut state = state();
        let pool = pool(Scheduler { fallback: true, ..kernel() }, &[1, 1, 1, 1]);
        state.set_available(id(1), false);
        state.set_available(id(2), false);
        let mut moved = 0;
        for client in 0..2000u32 {
            let hash = (0xc633_0000 + client).wrapping_mul(0x61c8_8647) >> 24;
            let first = hash % 4;
            let expected = match first {
                1 | 2 => (0..).map(|i| (2 * hash + i) % 4).find(|slot| matches!(slot, 0 | 3)).unwrap(),
                _ => first,
            };
            moved += u32::from(expected != first);
            assert_eq!(pick_for(&mut state, &pool, client), Some(expected));
        }
        assert!(moved > 500);
    }
}
