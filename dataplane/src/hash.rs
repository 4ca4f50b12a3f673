//! The keyed hash of tuples. Clients choose addresses and ports; without the secret they cannot choose the hash.

use crate::tuple::{Address, Endpoint, Protocol, Tuple};

/// A hash function under a secret drawn once per start.
#[derive(Clone, Copy)]
pub struct KeyedHash {
    keys: [u64; 4],
}

impl KeyedHash {
    /// The function for `secret`; functions for different `purpose`s are independent of each other.
    pub const fn new(secret: [u64; 2], purpose: u64) -> Self {
        let a = mix(secret[0] ^ PRIMES[0], purpose ^ PRIMES[1]);
        let b = mix(secret[1] ^ PRIMES[2], a ^ PRIMES[3]);
        let c = mix(secret[0] ^ b, PRIMES[0] ^ a);
        let d = mix(secret[1] ^ c, PRIMES[2] ^ b);
        Self { keys: [a, b, c, d] }
    }

    /// The hash of a tuple. The direction counts.
    #[inline]
    pub fn tuple<A: Address>(&self, tuple: &Tuple<A>) -> u64 {
        let ports = u64::from(tuple.src.port) << 16 | u64::from(tuple.dst.port);
        self.addresses(tuple.src.address, tuple.dst.address, ports << 8 | u64::from(tuple.protocol.number()))
    }

    /// The hash of one endpoint under `protocol`.
    #[inline]
    pub fn endpoint<A: Address>(&self, endpoint: Endpoint<A>, protocol: Protocol) -> u64 {
        let rest = u64::from(endpoint.port) << 8 | u64::from(protocol.number());
        self.addresses(endpoint.address, A::default(), rest)
    }

    /// The hash of two addresses and up to 64 bits that go with them.
    #[inline]
    pub fn addresses<A: Address>(&self, src: A, dst: A, rest: u64) -> u64 {
        let [a, b, c, d] = self.keys;
        let ((src_high, src_low), (dst_high, dst_low)) = (src.words(), dst.words());
        let first = if const { std::mem::size_of::<A>() <= 4 } {
            // Both addresses fit one word.
            mix(src_high << 32 ^ dst_high ^ a, rest ^ b)
        } else {
            let left = mix(src_high ^ a, src_low ^ b);
            mix(dst_high ^ left, dst_low ^ c) ^ mix(rest ^ d, left ^ b)
        };
        mix(first ^ c, d)
    }
}

impl std::fmt::Debug for KeyedHash {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("KeyedHash(secret)")
    }
}

/// Maps a hash evenly to `0..n` by its upper half.
#[inline]
pub const fn reduce(hash: u64, n: u32) -> u32 {
    (((hash >> 32) * n as u64) >> 32) as u32
}

/// One 64 × 64 → 128 bit product, folded: every input bit reaches every output bit.
#[inline]
pub(crate) const fn mix(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

/// Arbitrary odd constants (digits of π), so that an all-zero secret still hashes.
const PRIMES: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345, 0xa409_3822_299f_31d1, 0x082e_fa98_ec4e_6c89];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::{V4, V6};
    use std::collections::HashSet;

    fn tuples() -> Vec<Tuple<V4>> {
        let endpoint = |address, port| Endpoint::new(V4(address), port);
        (0..20_000u32)
            .map(|i| Tuple {
                src: endpoint(0x0a00_0000 + i % 200, 1024 + (i / 200) as u16),
                dst: endpoint(0xcb00_710a, 80),
                protocol: Protocol::Tcp,
            })
            .collect()
    }

    #[test]
    fn every_part_of_a_tuple_counts() {
        let hash = KeyedHash::new([1, 2], 0);
        let base = tuples()[7];
        let mut seen = HashSet::from([hash.tuple(&base), hash.tuple(&base.reversed())]);
        for bit in 0..32 {
            let mut changed = base;
            changed.src.address.0 ^= 1 << bit;
            assert!(seen.insert(hash.tuple(&changed)));
            changed = base;
            changed.dst.address.0 ^= 1 << bit;
            assert!(seen.insert(hash.tuple(&changed)));
        }
        for bit in 0..16 {
            let mut changed = base;
            changed.src.port ^= 1 << bit;
            assert!(seen.insert(hash.tuple(&changed)));
            changed = base;
            changed.dst.port ^= 1 << bit;
            assert!(seen.insert(hash.tuple(&changed)));
        }
        assert!(seen.insert(hash.tuple(&Tuple { protocol: Protocol::Udp, ..base })));
    }

    #[test]
    fn every_word_of_an_ipv6_address_counts() {
        let hash = KeyedHash::new([1, 2], 0);
        let mut seen = HashSet::new();
        for word in 0..4 {
            for bit in 0..32 {
                let mut address = V6([0x2001_0db8, 0, 0, 1]);
                address.0[word] ^= 1 << bit;
                assert!(seen.insert(hash.addresses(address, V6::default(), 1)));
                assert!(seen.insert(hash.addresses(V6::default(), address, 1)));
            }
        }
    }

    #[test]
    fn secret_and_purpose_change_the_function() {
        let tuple = tuples()[0];
        let hashes = [
            KeyedHash::new([1, 2], 0).tuple(&tuple),
            KeyedHash::new([2, 1], 0).tuple(&tuple),
            KeyedHash::new([1, 2], 1).tuple(&tuple),
            KeyedHash::new([0, 0], 0).tuple(&tuple),
        ];
        assert_eq!(HashSet::from(hashes).len(), hashes.len());
    }

    #[test]
    fn both_halves_spread_neighbouring_tuples_evenly() {
        let hash = KeyedHash::new([3, 4], 0);
        let (mut low, mut high) = ([0u32; 64], [0u32; 64]);
        for tuple in tuples() {
            let value = hash.tuple(&tuple);
            low[value as usize % 64] += 1;
            high[reduce(value, 64) as usize] += 1;
        }
        // 312.5 expected; six standard deviations either way.
        for count in low.into_iter().chain(high) {
            assert!((207..=418).contains(&count), "{count}");
        }
    }

    #[test]
    fn the_secret_is_not_printed() {
        assert_eq!(format!("{:?}", KeyedHash::new([5, 6], 0)), "KeyedHash(secret)");
    }
}
