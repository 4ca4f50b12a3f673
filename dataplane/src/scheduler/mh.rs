//! `mh`, Maglev hashing: a client always gets the same server, and when servers come or go hardly anybody else moves
//! (net/netfilter/ipvs/ip_vs_mh.c; Eisenbud et al., "Maglev", NSDI 2016, §3.4).
//!
//! Every server has an order of its own in which it likes the slots of the table. Servers take turns, each the first slot
//! it likes that is still free; a client's hash names a slot. A server without weight takes none, so that a drained one
//! hands its clients over; LVS keeps its slots and refuses those clients.

use super::Request;
use super::mapping::{fold, hsiphash, keyed};
use super::pool::{Candidate, Pool, Table};
use super::sh::{hashed, steady};
use super::state::Servers;
use crate::hash::{KeyedHash, reduce};
use crate::tuple::{Endpoint, V6};

/// Slots of a table unless said otherwise.
pub const SLOTS: u32 = 65_537;

/// Slots of a table there may be: primes, so that every server's order covers the table. All but [`SLOTS`] are the
/// kernel's (CONFIG_IP_VS_MH_TAB_INDEX 8 to 17).
pub const SLOTS_ALLOWED: [u32; 11] =
    [251, 509, 1021, 2039, KERNEL_SLOTS, 8191, 16_381, 32_749, 65_521, SLOTS, 131_071];

/// Slots of the kernel's table unless it was built otherwise (CONFIG_IP_VS_MH_TAB_INDEX 12).
pub const KERNEL_SLOTS: u32 = 4093;

/// The client's candidate. When it is overloaded, another one that is as fixed, with the flag `mh-fallback`.
pub(super) fn pick(pool: &Pool, servers: &Servers, request: &Request) -> Option<usize> {
    let client = hashed(pool.scheduler(), request.client);
    match pool.table() {
        Table::Slots(slots) => steady(pool, servers, |attempt| {
            Some(slots[own_slot(pool.hash(), client, attempt, slots.len())].into())
        }),
        Table::KernelSlots(slots) => {
            let slot = |offset| kernel_hash(client, offset, KEY_SLOT) as usize % slots.len();
            let first = slot(0);
            steady(pool, servers, |attempt| {
                let offset = match attempt {
                    0 => 0,
                    _ => (first + attempt as usize - 1) % slots.len(),
                };
                Some(slots[slot(offset as u32)].into())
            })
        }
        Table::None | Table::Classes(_) | Table::Shares(_) | Table::Buckets(_) => None,
    }
}

/// Share of the slots of `after` that lead to another server than in `before`; `None` when either has no table.
pub(super) fn moved(before: &Pool, after: &Pool) -> Option<f64> {
    let slots = |pool: &Pool| match pool.table() {
        Table::Slots(slots) | Table::KernelSlots(slots) => {
            Some(slots.iter().map(|&place| pool.candidates()[usize::from(place)].id).collect::<Vec<_>>())
        }
        Table::None | Table::Classes(_) | Table::Shares(_) | Table::Buckets(_) => None,
    };
    let (old, new) = (slots(before)?, slots(after)?);
    let (was, is) = (before.scheduler(), after.scheduler());
    if (was.hash, was.seed, was.port, old.len()) != (is.hash, is.seed, is.port, new.len()) {
        return Some(1.0);
    }
    let moved = old.iter().zip(&new).filter(|(old, new)| old != new).count();
    Some(moved as f64 / new.len() as f64)
}

#[inline]
fn own_slot(hash: &KeyedHash, client: Endpoint<V6>, attempt: u32, slots: usize) -> usize {
    reduce(keyed(hash, client, attempt), slots as u32) as usize
}

/// The kernel's hash of an endpoint: the sum of its parts, SipHash-1-3, the lower half.
#[inline]
fn kernel_hash(endpoint: Endpoint<V6>, offset: u32, key: u64) -> u32 {
    let sum = offset.wrapping_add(u32::from(endpoint.port)).wrapping_add(fold(endpoint.address));
    hsiphash(sum, key)
}

/// The keys of the kernel's two functions, each of which has it twice.
const KEY_SLOT: u64 = 2_654_435_761;
const KEY_SKIP: u64 = 2_654_446_892;

/// How one server goes through the slots, and how many it takes whenever it is its turn.
struct Walker {
    place: u16,
    slot: u32,
    skip: u32,
    /// Slots it gets within all rounds.
    quota: i64,
    /// What it has not got yet, in parts of a slot: as many parts as there are rounds.
    owed: i64,
}

/// Our own table: as many slots for each server as its weight says. The servers' order does not matter.
pub(super) fn slots(
    candidates: &[Candidate],
    endpoints: &[Endpoint<V6>],
    hash: &KeyedHash,
    slots: u32,
) -> Option<Box<[u16]>> {
    let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight)).sum();
    let mut order: Vec<_> = (0..candidates.len()).filter(|&place| candidates[place].weight > 0).collect();
    order.sort_unstable_by_key(|&place| endpoints[place]);
    let walker = |place: usize| Walker {
        place: place as u16,
        slot: reduce(keyed(hash, endpoints[place], ORDER), slots),
        skip: reduce(keyed(hash, endpoints[place], ORDER + 1), slots - 1) + 1,
        quota: (u64::from(candidates[place].weight) * u64::from(slots)).div_ceil(total.max(1)) as i64,
        owed: 0,
    };
    let walkers: Vec<_> = order.into_iter().map(walker).collect();
    // As many rounds as the heaviest server has slots, one slot each; fewer when that would take long.
    let most = walkers.iter().map(|walker| walker.quota).max()?;
    let rounds = most.min((TURNS_MAX / walkers.len() as i64).max(1));
    fill(walkers, slots, rounds)
}

/// Numbers of attempts that no client makes: they seed the servers' orders.
const ORDER: u32 = 1 << 20;

/// Turns over all rounds and servers: bounds how long a table takes.
const TURNS_MAX: i64 = 1 << 17;

/// The kernel's table. Weights are divided by what they have in common, and then so far that six bits are left of the
/// heaviest (in the table of [`KERNEL_SLOTS`]); what remains are the slots a server takes per turn.
pub(super) fn kernel_slots(
    candidates: &[Candidate],
    endpoints: &[Endpoint<V6>],
    slots: u32,
) -> Option<Box<[u16]>> {
    let weights = || candidates.iter().map(|candidate| candidate.weight).filter(|&weight| weight > 0);
    let common = weights().reduce(gcd)?;
    let heaviest = weights().max()? / common;
    let shift = (u32::BITS - heaviest.leading_zeros()).saturating_sub(bits_kept(slots));
    let walkers =
        candidates.iter().zip(endpoints).zip(0..).filter(|((candidate, _), _)| candidate.weight > 0);
    let walkers = walkers.map(|((candidate, &endpoint), place)| Walker {
        place,
        slot: kernel_hash(endpoint, 0, KEY_SLOT) % slots,
        skip: kernel_hash(endpoint, 0, KEY_SKIP) % (slots - 1) + 1,
        quota: i64::from((candidate.weight / common) >> shift).max(1),
        owed: 0,
    });
    fill(walkers.collect(), slots, 1)
}

/// IP_VS_MH_TAB_BITS: half of CONFIG_IP_VS_MH_TAB_INDEX, which is the logarithm of the number of slots.
const fn bits_kept(slots: u32) -> u32 {
    // The primes are at most fifteen below their power of two.
    (slots + 15).ilog2() / 2
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Lets the walkers take turns until the table is full, each its quota within `rounds`. `None` without any.
fn fill(mut walkers: Vec<Walker>, slots: u32, rounds: i64) -> Option<Box<[u16]>> {
    if walkers.is_empty() {
        return None;
    }
    let mut table = vec![0u16; slots as usize].into_boxed_slice();
    let mut free = Free::new(slots);
    loop {
        for walker in &mut walkers {
            walker.owed += walker.quota;
            while walker.owed > 0 {
                walker.owed -= rounds;
                walker.slot = free.take(walker.slot, walker.skip);
                table[walker.slot as usize] = walker.place;
                if free.left == 0 {
                    return Some(table);
                }
            }
        }
    }
}

/// The slots that nobody has taken yet.
struct Free {
    slots: u32,
    left: u32,
    /// A bit per slot: it stays in the nearest cache while most looks are at slots that are taken.
    taken: Vec<u64>,
    /// The last [`FEW`] of them.
    last: Vec<u32>,
}

/// How many free slots are faster to try one by one than to come upon: half of all looks are for so few.
const FEW: u32 = 192;

impl Free {
    fn new(slots: u32) -> Self {
        Self { slots, left: slots, taken: vec![0; slots.div_ceil(64) as usize], last: Vec::new() }
    }

    /// Takes the first one from `slot` on in steps of `skip`. There must be one.
    #[inline]
    fn take(&mut self, slot: u32, skip: u32) -> u32 {
        let found = if self.left > FEW { self.walk(slot, skip) } else { self.work_out(slot, skip) };
        self.taken[found as usize / 64] |= 1 << (found % 64);
        self.left -= 1;
        found
    }

    #[inline]
    fn walk(&self, mut slot: u32, skip: u32) -> u32 {
        let back = self.slots - skip;
        while self.is_taken(slot) {
            // The smaller is the one inside the table. A branch here would be guessed wrong too often.
            slot = (slot + skip).min(slot.wrapping_sub(back));
        }
        slot
    }

    /// Finds the one that the fewest steps lead to: as many as its distance divided by `skip`, modulo the slots.
    fn work_out(&mut self, slot: u32, skip: u32) -> u32 {
        if self.last.is_empty() {
            let words = (0..self.slots).step_by(64).zip(&self.taken).filter(|&(_, &taken)| taken != u64::MAX);
            let slots = words.flat_map(|(first, _)| first..(first + 64).min(self.slots));
            self.last = slots.filter(|&slot| !self.is_taken(slot)).collect();
        }
        let (slots, inverse) = (u64::from(self.slots), inverse(skip, self.slots));
        let steps = |to: u32| u64::from(to + self.slots - slot) * inverse % slots;
        let nearest = (0..self.last.len()).min_by_key(|&place| steps(self.last[place]));
        self.last.swap_remove(nearest.expect("one is free"))
    }

    #[inline]
    fn is_taken(&self, slot: u32) -> bool {
        self.taken[slot as usize / 64] & 1 << (slot % 64) != 0
    }
}

/// The number whose product with `n` is 1 modulo `prime` (Fermat: n to the power of prime - 2).
fn inverse(n: u32, prime: u32) -> u64 {
    let modulo = u64::from(prime);
    let (mut product, mut power, mut exponent) = (1, u64::from(n), prime - 2);
    while exponent > 0 {
        if exponent % 2 == 1 {
            product = product * power % modulo;
        }
        power = power * power % modulo;
        exponent /= 2;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_fair, candidates, id, pick_for, pool, pool_of, shares, state};
    use super::super::{HashKind, Pool, Scheduler, SchedulerKind, SchedulerState};
    use super::*;

    const MH: SchedulerKind = SchedulerKind::Mh;

    fn kernel() -> Scheduler {
        Scheduler { hash: HashKind::Kernel, mh_slots: KERNEL_SLOTS, ..MH.into() }
    }

    /// The share of clients that get another server.
    fn moved(before: &Pool, after: &Pool, servers: usize) -> f64 {
        let mut state = SchedulerState::new(1, servers, 7);
        let clients = 100_000;
        let moved = (0..clients).filter(|&client| {
            pick_for(&mut state, before, client).unwrap() != pick_for(&mut state, after, client).unwrap()
        });
        moved.count() as f64 / f64::from(clients)
    }

    #[test]
    fn a_million_picks_are_shared_by_weight_within_one_per_cent() {
        for weights in [&[1; 8][..], &[1, 2, 3, 0], &[300, 200, 100], &[60_000, 30_000, 10_000]] {
            let shares = shares(&mut state(), &pool(MH, weights), 1_000_000);
            assert_fair(&shares, weights);
        }
    }

    #[test]
    fn slots_are_in_proportion_to_the_weights_and_nobody_with_a_weight_is_without() {
        let weights: Vec<u32> = (0..1000).map(|n| if n == 0 { 65_535 } else { n % 3 }).collect();
        let pool = pool(MH, &weights);
        let Table::Slots(slots) = pool.table() else { panic!("{pool:?}") };
        let mut counts = vec![0u32; 1000];
        slots.iter().for_each(|&place| counts[usize::from(place)] += 1);
        for (&count, &weight) in counts.iter().zip(&weights) {
            assert_eq!(count > 0, weight > 0);
        }
    }

    #[test]
    fn one_of_a_hundred_servers_leaving_or_draining_moves_few_others() {
        let all = candidates(&[1; 100]);
        let (before, mut drained) = (pool_of(MH, &all), all.clone());
        drained[42].weight = 0;
        let mut left = all;
        left.remove(42);
        for after in [left, drained] {
            let moved = moved(&before, &pool_of(MH, &after), 100);
            // One per cent has to move, two more may.
            assert!((0.009..=0.03).contains(&moved), "{moved}");
        }
    }

    #[test]
    fn every_turn_takes_the_first_free_slot_of_the_servers_order() {
        for (slots, weights, rounds) in [
            (251, vec![3, 1, 2], 1),
            (4093, vec![100; 41], 100),
            (65_537, (1..=90).collect(), 7),
            (131_071, vec![1; 3000], 1),
        ] {
            let walkers = || {
                (0..).zip(&weights).map(|(place, &quota)| Walker {
                    place,
                    slot: (u32::from(place) * 7919 + 5) % slots,
                    skip: u32::from(place) * 104_729 % (slots - 1) + 1,
                    quota,
                    owed: 0,
                })
            };
            let (mut wanted, mut free) = (vec![None; slots as usize], slots);
            let mut steps = vec![0; weights.len()];
            for round in 0.. {
                for (walker, step) in walkers().zip(&mut steps) {
                    let until = |round: i64| (walker.quota * round + rounds - 1) / rounds;
                    for _ in 0..(until(round + 1) - until(round)).min(free.into()) {
                        let slot = |step| {
                            (u64::from(walker.slot) + step * u64::from(walker.skip)) % u64::from(slots)
                        };
                        *step += (0..).position(|more| wanted[slot(*step + more) as usize].is_none()).unwrap()
                            as u64;
                        wanted[slot(*step) as usize] = Some(walker.place);
                        free -= 1;
                    }
                }
                if free == 0 {
                    break;
                }
            }
            let table = fill(walkers().collect(), slots, rounds).unwrap();
            assert!(table.iter().copied().map(Some).eq(wanted), "{slots}");
        }
    }

    #[test]
    fn the_servers_order_does_not_matter() {
        let mut all = candidates(&[3, 1, 2, 2]);
        let before = pool_of(MH, &all);
        all.reverse();
        assert!(moved(&before, &pool_of(MH, &all), 4) == 0.0);
    }

    #[test]
    fn a_client_gets_the_same_server_on_every_worker_of_every_director() {
        for (scheduler, golden) in [(MH.into(), GOLDEN), (kernel(), KERNEL_GOLDEN)] {
            let pool = pool(scheduler, &[1, 2, 3, 4]);
            for seed in [1, 2] {
                let mut state = SchedulerState::new(1, 8, seed);
                let mapping: Vec<_> =
                    (0..16).map(|client| pick_for(&mut state, &pool, client).unwrap()).collect();
                assert_eq!(mapping, golden, "{scheduler:?}");
            }
        }
    }

    const GOLDEN: [u32; 16] = [3, 0, 3, 2, 3, 3, 1, 0, 3, 3, 1, 3, 3, 3, 2, 0];
    /// Worked out by another program from the kernel's description.
    const KERNEL_GOLDEN: [u32; 16] = [3, 3, 1, 2, 2, 3, 3, 2, 2, 2, 0, 2, 3, 2, 2, 3];

    #[test]
    fn an_overloaded_servers_clients_wait_unless_there_is_a_fallback() {
        for scheduler in [MH.into(), kernel()] {
            for fallback in [false, true] {
                let mut state = state();
                let pool = pool(Scheduler { fallback, ..scheduler }, &[1, 1, 1]);
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
    fn the_kernels_turns_keep_half_of_the_tables_bits() {
        assert_eq!([251, 509, 1021, 4093, 8191, 65_521, 131_071].map(bits_kept), [4, 4, 5, 6, 6, 8, 8]);
        // 1 : 2 : 3 whatever they have in common; at most 63 : 1 however far apart.
        for (weights, ratio) in [([100, 200, 300], [1.0, 2.0, 3.0]), ([65_535, 1, 1], [63.0, 1.0, 1.0])] {
            let pool = pool(kernel(), &weights);
            let Table::KernelSlots(slots) = pool.table() else { panic!("{pool:?}") };
            let sum: f64 = ratio.iter().sum();
            for (place, part) in (0..).zip(ratio) {
                let count = slots.iter().filter(|&&other| other == place).count() as f64;
                assert!((count - 4093.0 * part / sum).abs() <= 64.0, "{weights:?}: {count}");
            }
        }
    }
}
