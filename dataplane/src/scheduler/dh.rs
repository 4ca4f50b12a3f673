//! `dh`, destination hashing: an address always gets the same server, whoever asks for it. For caches, where one service
//! covers many addresses (net/netfilter/ipvs/ip_vs_dh.c). Weights do not count, except 0.

use super::Request;
use super::mapping::{fold, hash_8_bits, keyed};
use super::pool::{Candidate, Pool, Table};
use super::sh::{fill, steady};
use super::state::Servers;
use crate::tuple::Endpoint;

/// The destination's candidate. When it is drained, another one that is as fixed; LVS would refuse the connection.
pub(super) fn pick(pool: &Pool, servers: &Servers, request: &Request) -> Option<usize> {
    let destination = Endpoint::new(request.vip.address, 0);
    match pool.table() {
        Table::Shares(shares) => {
            steady(pool, servers, |attempt| shares.of(keyed(pool.hash(), destination, attempt)))
        }
        Table::Buckets(buckets) => {
            let bucket = hash_8_bits(fold(destination.address));
            steady(pool, servers, |attempt| {
                Some(buckets[usize::from(bucket.wrapping_add(attempt as u8))].into())
            })
        }
        Table::None | Table::Classes(_) | Table::Slots(_) | Table::KernelSlots(_) => None,
    }
}

/// The kernel's table: the candidates in turn.
pub(super) fn buckets(candidates: &[Candidate]) -> Option<Box<[u16; 256]>> {
    fill((0u16..).take(candidates.len()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_fair, id, pool, request_to, state};
    use super::super::{HashKind, Pool, Scheduler, SchedulerKind, SchedulerState};
    use crate::service::ServiceId;

    const DH: SchedulerKind = SchedulerKind::Dh;

    fn pick_to(state: &mut SchedulerState, pool: &Pool, client: u32, vip: u32) -> Option<u32> {
        state.pick(ServiceId(0), pool, &request_to(client, vip)).map(|id| id.slot)
    }

    #[test]
    fn destinations_are_shared_evenly_whatever_the_weights() {
        let (mut state, pool) = (state(), pool(DH, &[1, 9, 0, 2]));
        let mut shares = [0; 4];
        for vip in 0..1_000_000 {
            shares[pick_to(&mut state, &pool, vip, vip).unwrap() as usize] += 1;
        }
        assert_fair(&shares, &[1, 1, 0, 1]);
    }

    #[test]
    fn a_destination_gets_the_same_server_whoever_asks_on_every_director() {
        for hash in [HashKind::Keyed, HashKind::Kernel] {
            let pool = pool(Scheduler { hash, ..DH.into() }, &[1; 5]);
            let mapping = |client, seed| -> Vec<_> {
                let mut state = SchedulerState::new(1, 8, seed);
                (0..16).map(|vip| pick_to(&mut state, &pool, client, 0x0808_0800 + vip).unwrap()).collect()
            };
            assert_eq!(mapping(1, 2), mapping(3, 4));
            if hash == HashKind::Keyed {
                assert_eq!(mapping(1, 2), GOLDEN);
            }
        }
    }

    const GOLDEN: [u32; 16] = [2, 1, 1, 0, 4, 4, 2, 2, 0, 1, 2, 1, 0, 4, 1, 4];

    #[test]
    fn the_kernels_mapping_is_the_kernels_and_a_drained_servers_destinations_go_elsewhere() {
        let kernel = Scheduler { hash: HashKind::Kernel, ..DH.into() };
        let (mut state, all, drained) = (state(), pool(kernel, &[5, 1, 1]), pool(kernel, &[5, 0, 1]));
        for vip in 0..2000u32 {
            let product = u64::from(vip) * 0x61c8_8647 % (1 << 32);
            let expected = (product >> 24) as u32 % 256 % 3;
            assert_eq!(pick_to(&mut state, &all, 1, vip), Some(expected));
            let after = pick_to(&mut state, &drained, 1, vip).unwrap();
            assert!(if expected == 1 { after != 1 } else { after == expected });
        }
        state.set_available(id(0), false);
        assert_eq!(pick_to(&mut state, &all, 1, 0), None, "an overloaded server's destinations wait");
    }
}
