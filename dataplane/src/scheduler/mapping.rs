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
}
