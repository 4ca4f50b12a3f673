//! The Internet checksum: RFC 1071 over bytes, RFC 1624 for what changed.
//!
//! Forwarding never computes a transport checksum anew: a [`Delta`] collects what an edit changes and is applied to
//! the field, so a packet that came with a wrong checksum leaves with a wrong one, and its receiver finds out.

use super::Family;

/// A one's complement sum under way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes that start at an even offset of what is summed. An odd last byte counts as followed by a zero.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // A sum of 32-bit words folds to that of 16-bit words. In the byte order of memory, which RFC 1071 §2 (B)
        // allows, so that the compiler may add several words at once; below 16 GiB nothing overflows.
        let mut words = bytes.chunks_exact(4);
        let word = |word: &[u8]| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        let mut sum: u64 = words.by_ref().map(word).sum();
        let mut tail = [0; 4];
        let rest = words.remainder();
        tail[..rest.len()].copy_from_slice(rest);
        sum += word(&tail);
        Self(self.0 + u64::from(u16::from_be(fold(sum))))
    }

    /// Whether an IPv4 header without options holds its right checksum.
    #[inline(always)]
    pub(crate) fn is_right(header: &[u8; 20]) -> bool {
        let word = |at: usize| {
            u64::from(u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]))
        };
        let sum = word(0) + word(4) + word(8) + word(12) + word(16);
        // 35 bits at most.
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        (sum & 0xffff) + (sum >> 16) == 0xffff
    }

    /// Adds one 16-bit word.
    #[inline]
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// The sum, folded to 16 bits.
    #[inline]
    pub fn fold(self) -> u16 {
        fold(self.0)
    }

    /// What belongs into a checksum field that held zero while its packet was summed.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The checksum of `bytes`. Over bytes that contain their own checksum the result is 0 exactly when that is right.
#[inline]
pub fn of(bytes: &[u8]) -> u16 {
    Sum::default().bytes(bytes).checksum()
}

/// The sum of the pseudo header that TCP and UDP include (RFC 9293 §3.1, RFC 8200 §8.1). `len` is that of the
/// transport header and everything behind it.
#[inline]
pub fn pseudo_header<A: Family>(src: A, dst: A, protocol: u8, len: u32) -> Sum {
    Sum(src.sum() + dst.sum() + u64::from(protocol) + u64::from(len))
}

/// The checksum of a TCP segment or UDP datagram with its pseudo header. 0 when it contains the right one.
#[inline]
pub fn transport<A: Family>(src: A, dst: A, protocol: u8, bytes: &[u8]) -> u16 {
    pseudo_header(src, dst, protocol, bytes.len() as u32).bytes(bytes).checksum()
}

/// What a number of edits change about a checksum: RFC 1624 equation 3, `HC' = ~(~HC + ~m + m')`, with the sum of all
/// `~m + m'` collected first. Every value must have stood, and must stand, at an even offset of what is summed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delta(u64);

impl Delta {
    /// A 16-bit word changes.
    #[inline]
    #[must_use]
    pub fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// An address changes.
    #[inline]
    #[must_use]
    pub fn address<A: Family>(self, old: A, new: A) -> Self {
        Self(self.0 + old.complement_sum() + new.sum())
    }

    /// Both.
    #[inline]
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The edits in 16 bits, to be kept.
    pub fn fold(self) -> u16 {
        fold(self.0)
    }

    /// The edits that [`Self::fold`] gave, or (`undone`) those that take them back.
    #[inline]
    #[must_use]
    pub fn folded(edits: u16, undone: bool) -> Self {
        let edits = edits ^ if undone { 0xffff } else { 0 };
        // 0xffff counts nothing, and keeps a sum from being zero: what RFC 1624 is about.
        Self(u64::from(edits) + 0xffff)
    }

    /// The checksum after the edits, for IPv4, TCP and ICMP.
    #[inline]
    #[must_use]
    pub fn apply(self, checksum: u16) -> u16 {
        !fold(self.0 + u64::from(!checksum))
    }

    /// The checksum after the edits, for UDP: 0 says that there is none and stays, and a result of 0 is written as
    /// its equal 0xffff (RFC 768).
    #[inline]
    #[must_use]
    pub fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 { 0 } else { udp(self.apply(checksum)) }
    }
}

/// A computed UDP checksum as it is written: 0 would mean "none".
#[inline]
pub const fn udp(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

#[inline]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::{V4, V6};
    use proptest::prelude::*;

    /// RFC 1071 as it is written: 16-bit words, one carry at a time.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for word in bytes.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&bytes).fold(), 0xddf2);
        assert_eq!(of(&bytes), !0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624_gives_zero_and_not_ffff() {
        // §4: HC = 0xdd2f, m = 0x5555, m' = 0x3285.
        assert_eq!(Delta::default().word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn a_missing_udp_checksum_stays_missing_and_a_computed_zero_is_written_as_ones() {
        let delta = Delta::default().word(0x5555, 0x3285);
        assert_eq!(delta.apply_udp(0), 0);
        assert_eq!(delta.apply_udp(0xdd2f), 0xffff);
    }

    proptest! {
        #[test]
        fn sums_agree_with_the_naive_one(bytes in prop::collection::vec(any::<u8>(), 0..1600)) {
            prop_assert_eq!(of(&bytes), naive(&bytes));
        }

        #[test]
        fn sums_of_parts_add_up(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..150) {
            let (left, right) = bytes.split_at((cut * 2).min(bytes.len() & !1));
            prop_assert_eq!(Sum::default().bytes(left).bytes(right).checksum(), of(&bytes));
        }

        #[test]
        fn edits_followed_step_by_step_equal_a_new_sum(
            mut bytes in prop::collection::vec(any::<u8>(), 64),
            edits in prop::collection::vec((0usize..22, any::<[u32; 4]>(), 0u8..3), 1..12),
        ) {
            // A version nibble, as real headers have: only all-zero bytes have two checksums.
            bytes[0] |= 0x40;
            let before = of(&bytes);
            let mut delta = Delta::default();
            for (word, value, kind) in edits {
                let at = 2 + 2 * word;
                match kind {
                    0 => {
                        delta = delta.word(crate::wire::get_u16(&bytes, at), value[0] as u16);
                        put(&mut bytes, at, &(value[0] as u16).to_be_bytes());
                    }
                    1 => {
                        let new = V4(value[0]);
                        delta = delta.address(V4::get(&bytes, at), new);
                        new.put(&mut bytes, at);
                    }
                    _ => {
                        let new = V6(value);
                        delta = delta.address(V6::get(&bytes, at), new);
                        new.put(&mut bytes, at);
                    }
                }
            }
            prop_assert_eq!(delta.apply(before), of(&bytes));
        }

        #[test]
        fn a_wrong_checksum_stays_wrong_by_as_much(right: u16, error in 1u16..0xffff, old: u16, new: u16) {
            let delta = Delta::default().word(old, new);
            let wrong = fold(u64::from(right) + u64::from(error));
            let off = fold(u64::from(delta.apply(right)) + u64::from(error));
            // 0 and 0xffff are the same number.
            prop_assert_eq!(delta.apply(wrong) % 0xffff, off % 0xffff);
            prop_assert_ne!(delta.apply(wrong) % 0xffff, delta.apply(right) % 0xffff);
        }
    }

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }
}
