//! Views of packet headers, each checked once.
//!
//! `Packet::new_checked` looks at every length that the accessors rely on; after it none of them can panic. Setters
//! exist where the bytes may be changed, and none of them can make an accessor panic except the ones that say so:
//! those that set a length. Nothing here allocates, apart from [`builder`], which tests, benchmarks and fuzzers use.
//!
//! Read the RFC named in a file's head next to its diagram.

pub mod arp;
pub mod builder;
pub mod checksum;
pub mod ethernet;
pub mod extension;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipip;
pub mod ipv4;
pub mod ipv6;
pub mod ndisc;
pub mod tcp;
pub mod udp;
pub mod vlan;

use crate::tuple::{Address, V4, V6};

/// Why bytes are not a packet of the kind they were taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WireError {
    /// There are fewer bytes than the header takes.
    Truncated,
    /// A length in the header contradicts itself or the number of bytes.
    Length,
    /// The version, or another field that has one legal value only, has another.
    Version,
}

impl std::fmt::Display for WireError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Truncated => "truncated header",
            Self::Length => "contradictory length",
            Self::Version => "wrong version",
        })
    }
}

impl std::error::Error for WireError {}

/// An address family as it is written in IP headers.
pub trait Family: Address {
    /// Bytes of an address.
    const LEN: usize;
    /// Offset of the source address in the IP header; the destination follows it.
    const SOURCE: usize;
    /// Offset of the TTL or hop limit in the IP header.
    const TTL: usize;
    /// Offset of the IP header's own checksum, if it has one.
    const CHECKSUM: Option<usize>;

    /// Reads an address at offset `at`.
    fn get(bytes: &[u8], at: usize) -> Self;
    /// Writes the address at offset `at`.
    fn put(self, bytes: &mut [u8], at: usize);
    /// What the address adds to a one's complement sum.
    fn sum(self) -> u64;
    /// What the address's complement adds to a one's complement sum.
    fn complement_sum(self) -> u64;
}

impl Family for V4 {
    const LEN: usize = 4;
    const SOURCE: usize = 12;
    const TTL: usize = 8;
    const CHECKSUM: Option<usize> = Some(10);

    #[inline]
    fn get(bytes: &[u8], at: usize) -> Self {
        Self(get_u32(bytes, at))
    }

    #[inline]
    fn put(self, bytes: &mut [u8], at: usize) {
        put_u32(bytes, at, self.0);
    }

    #[inline]
    fn sum(self) -> u64 {
        u64::from(self.0)
    }

    #[inline]
    fn complement_sum(self) -> u64 {
        u64::from(!self.0)
    }
}

impl Family for V6 {
    const LEN: usize = 16;
    const SOURCE: usize = 8;
    const TTL: usize = 7;
    const CHECKSUM: Option<usize> = None;

    #[inline(always)]
    fn get(bytes: &[u8], at: usize) -> Self {
        let bytes = &bytes[at..at + Self::LEN];
        // Written out: a closure over the words is not inlined everywhere, and this is read twice per packet.
        Self([get_u32(bytes, 0), get_u32(bytes, 4), get_u32(bytes, 8), get_u32(bytes, 12)])
    }

    #[inline(always)]
    fn put(self, bytes: &mut [u8], at: usize) {
        let bytes = &mut bytes[at..at + Self::LEN];
        for (word, value) in self.0.into_iter().enumerate() {
            put_u32(bytes, 4 * word, value);
        }
    }

    #[inline]
    fn sum(self) -> u64 {
        self.0.into_iter().map(u64::from).sum()
    }

    #[inline]
    fn complement_sum(self) -> u64 {
        self.0.into_iter().map(|word| u64::from(!word)).sum()
    }
}

#[inline]
pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[inline]
pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
