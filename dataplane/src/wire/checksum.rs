//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use crate::tuple::{Address, Endpoint};

/// A change to bytes under a checksum, in one's complement: what is subtracted and what is added, folded late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// Nothing changes.
    pub const NONE: Self = Self(0);

    /// A 16-bit word that was `old` becomes `new`.
    #[inline]
    #[must_use]
    pub const fn word(self, old: u16, new: u16) -> Self {
        // RFC 1624 equation 3: HC' = ~(~HC + ~m + m').
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// A 32-bit word that was `old` becomes `new`.
    #[inline]
    #[must_use]
    pub const fn dword(self, old: u32, new: u32) -> Self {
        self.word((old >> 16) as u16, (new >> 16) as u16).word(old as u16, new as u16)
    }

    /// An address that was `old` becomes `new`.
    #[inline]
    #[must_use]
    pub fn address<A: Address>(self, old: A, new: A) -> Self {
        let ((a, b), (c, d)) = (old.words(), new.words());
        self.dword((a >> 32) as u32, (c >> 32) as u32)
            .dword(a as u32, c as u32)
            .dword((b >> 32) as u32, (d >> 32) as u32)
            .dword(b as u32, d as u32)
    }

    /// An address and port that were `old` become `new`.
    #[inline]
    #[must_use]
    pub fn endpoint<A: Address>(self, old: Endpoint<A>, new: Endpoint<A>) -> Self {
        self.address(old.address, new.address).word(old.port, new.port)
    }

    /// Both changes.
    #[inline]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum after the change. A wrong one stays wrong by as much.
    #[inline]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(self.0 + (!checksum) as u64)
    }
}

/// The checksum of `bytes`; 0 when they contain their own, correct one.
#[inline]
pub fn of(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// The one's complement sum of `bytes`, to be added to others and folded.
#[inline]
pub fn sum(bytes: &[u8]) -> u64 {
    let mut sum = 0u64;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    sum + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum of 16-bit (or wider, big-endian) words into 16 bits.
#[inline]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}
