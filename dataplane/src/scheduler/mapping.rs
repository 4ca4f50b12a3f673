//! From addresses to numbers: the functions of the kernel (include/linux/hash.h, lib/siphash.c), and our own.

use crate::hash::KeyedHash;
use crate::tuple::{Address, Endpoint, V6};

/// An address of either family in one type: IPv4 in the last word, so that [`fold`] gives it back.
#[inline]
pub(super) fn wide<A: Address>(address: A) -> V6 {
    match address.words() {
        (v4, _) if const { std::mem::size_of::<A>() == 4 } => V6([0, 0, 0, v4 as u32]),
        (high, low) => V6([(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32]),
    }
}

/// The kernel's short form of an address: IPv6 is the exclusive or of its words.
#[inline]
pub(super) const fn fold(V6([a, b, c, d]): V6) -> u32 {
    a ^ b ^ c ^ d
}

/// `hash_32(value, 8)`: multiplication by the golden ratio, the topmost bits.
#[inline]
pub(super) const fn hash_8_bits(value: u32) -> u8 {
    (value.wrapping_mul(0x61c8_8647) >> 24) as u8
}

/// The kernel's `hsiphash` of 32 bits on machines of 64 bits, under a key that is twice `key`: SipHash-1-3, the lower half.
pub(super) const fn hsiphash(value: u32, key: u64) -> u32 {
    let mut v = [
        key ^ 0x736f_6d65_7073_6575,
        key ^ 0x646f_7261_6e64_6f6d,
        key ^ 0x6c79_6765_6e65_7261,
        key ^ 0x7465_6462_7974_6573,
    ];
    // One word: the length in the topmost byte, the value in the lowest four.
    let word = 4 << 56 | value as u64;
    v[3] ^= word;
    v = sip_round(v);
    v[0] ^= word;
    v[2] ^= 0xff;
    v = sip_round(sip_round(sip_round(v)));
    (v[0] ^ v[1] ^ v[2] ^ v[3]) as u32
}

const fn sip_round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

/// Our own hash of an endpoint; another one for each `attempt`.
#[inline]
pub(super) fn keyed(hash: &KeyedHash, endpoint: Endpoint<V6>, attempt: u32) -> u64 {
    hash.addresses(endpoint.address, V6::default(), u64::from(attempt) << 16 | u64::from(endpoint.port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::V4;

    #[test]
    fn an_ipv4_address_survives_the_way_there_and_back() {
        assert_eq!(fold(wide(V4(0xcb00_710a))), 0xcb00_710a);
        assert_eq!(wide(V6([1, 2, 3, 4])), V6([1, 2, 3, 4]));
        assert_eq!(fold(V6([0x2001_0db8, 0, 0x10, 1])), 0x2001_0da9);
    }

    #[test]
    fn the_kernels_hash_is_a_product_by_the_golden_ratio() {
        // 0x61c88647 × 1 and × 0x0a000001, by hand.
        assert_eq!(hash_8_bits(1), 0x61);
        assert_eq!(hash_8_bits(0x0a00_0001), 0x0a00_0001u64.wrapping_mul(0x61c8_8647).to_le_bytes()[3]);
    }

    #[test]
    fn hsiphash_is_siphash_1_3() {
        use std::hash::Hasher;
        // The standard library's hasher is SipHash-1-3 under the key zero.
        for value in [0u32, 1, 0xcb00_710a, u32::MAX] {
            let mut hasher = std::hash::DefaultHasher::new();
            hasher.write(&value.to_le_bytes());
            assert_eq!(hsiphash(value, 0), hasher.finish() as u32);
        }
        assert_ne!(hsiphash(1, 0), hsiphash(1, 1));
    }
}
