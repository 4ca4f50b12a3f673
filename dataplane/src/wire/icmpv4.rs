//! ICMP headers, RFC 792.

use super::{WireError, checksum, get_u16, get_u32, put_u16, put_u32};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Offset of the checksum in the header.
pub const CHECKSUM: usize = 2;

/// Message types.
pub mod kind {
    /// Answer to an echo.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable; see [`super::unreachable`].
    pub const UNREACHABLE: u8 = 3;
    /// Source quench, deprecated by RFC 6633.
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo.
    pub const ECHO: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// Codes of [`kind::UNREACHABLE`].
pub mod unreachable {
    /// Host unreachable.
    pub const HOST: u8 = 1;
    /// Port unreachable.
    pub const PORT: u8 = 3;
    /// Fragmentation needed and DF set; the header's rest holds the next hop's MTU (RFC 1191 §4).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
}

/// Whether messages of this type report an error, and so quote a packet and are never answered.
#[inline]
pub const fn is_error(kind: u8) -> bool {
    matches!(
        kind,
        kind::UNREACHABLE
            | kind::SOURCE_QUENCH
            | kind::REDIRECT
            | kind::TIME_EXCEEDED
            | kind::PARAMETER_PROBLEM
    )
}

/// A message.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |     Type      |     Code      |          Checksum             |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |           unused, or depends on type and code                 |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |      Internet Header + at least 64 bits of Original Data      |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Packet<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Checks that the header is there.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, WireError> {
        if bytes.as_ref().len() < HEADER_LEN { Err(WireError::Truncated) } else { Ok(Self { bytes }) }
    }

    /// Message type; see [`kind`].
    #[inline]
    pub fn kind(&self) -> u8 {
        self.bytes.as_ref()[0]
    }

    /// Code, whose meaning depends on the type.
    #[inline]
    pub fn code(&self) -> u8 {
        self.bytes.as_ref()[1]
    }

    /// Checksum, as it is in the field.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get_u16(self.bytes.as_ref(), CHECKSUM)
    }

    /// Whether the checksum is right. The bytes must be the whole message.
    #[inline]
    pub fn checksum_is_right(&self) -> bool {
        checksum::of(self.bytes.as_ref()) == 0
    }

    /// The rest of the header: echo identifier and sequence number, or in its lower half the next hop's MTU.
    #[inline]
    pub fn rest(&self) -> u32 {
        get_u32(self.bytes.as_ref(), 4)
    }

    /// What follows the header: in an error, the quoted packet.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[HEADER_LEN..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets type and code.
    #[inline]
    pub fn set_kind(&mut self, kind: u8, code: u8) {
        self.bytes.as_mut()[..2].copy_from_slice(&[kind, code]);
    }

    /// Sets the rest of the header.
    #[inline]
    pub fn set_rest(&mut self, rest: u32) {
        put_u32(self.bytes.as_mut(), 4, rest);
    }

    /// Computes and sets the checksum. The bytes must be the whole message.
    #[inline]
    pub fn fill_checksum(&mut self) {
        put_u16(self.bytes.as_mut(), CHECKSUM, 0);
        let value = checksum::of(self.bytes.as_ref());
        put_u16(self.bytes.as_mut(), CHECKSUM, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An echo, as ping sends it.
    const BYTES: [u8; 10] = [8, 0, 0x8d, 0x94, 0x00, 0x01, 0x00, 0x02, b'j', b'h'];

    #[test]
    fn deconstruct() {
        let message = Packet::new_checked(&BYTES).unwrap();
        assert_eq!((message.kind(), message.code()), (kind::ECHO, 0));
        assert_eq!((message.rest(), message.payload()), (0x0001_0002, &b"jh"[..]));
        assert_eq!((message.checksum(), message.checksum_is_right()), (0x8d94, true));
    }

    #[test]
    fn construct() {
        let mut bytes = [0xff; 10];
        bytes[8..].copy_from_slice(b"jh");
        let mut message = Packet::new_checked(&mut bytes).unwrap();
        message.set_kind(kind::ECHO, 0);
        message.set_rest(0x0001_0002);
        message.fill_checksum();
        assert_eq!(bytes, BYTES);
    }

    #[test]
    fn the_errors_of_rfc_792_are_errors_and_queries_are_not() {
        let errors: Vec<u8> = (0..=255).filter(|&kind| is_error(kind)).collect();
        assert_eq!(errors, [3, 4, 5, 11, 12]);
    }

    #[test]
    fn a_single_wrong_bit_is_a_wrong_checksum() {
        for bit in 0..80 {
            let mut bytes = BYTES;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!Packet::new_checked(&bytes).unwrap().checksum_is_right());
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        (0..8).for_each(|len| {
            assert_eq!(Packet::new_checked(&BYTES[..len]).unwrap_err(), WireError::Truncated);
        });
    }
}
