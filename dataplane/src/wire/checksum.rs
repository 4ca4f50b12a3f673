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
