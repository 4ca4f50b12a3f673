//! UDP headers, RFC 768.

use super::{Family, WireError, checksum, get_u16, put_u16};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Offset of the checksum in the header.
pub const CHECKSUM: usize = 6;

/// A datagram.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |          Source Port          |       Destination Port        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |            Length             |           Checksum            |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Packet<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Checks the lengths.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when the header is not all there, [`WireError::Length`] when the length field is too
    /// small for one or goes beyond the bytes.
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, WireError> {
        let data = bytes.as_ref();
        if data.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        let len = usize::from(get_u16(data, 4));
        if len < HEADER_LEN || len > data.len() { Err(WireError::Length) } else { Ok(Self { bytes }) }
    }

    /// Source port; 0 where no answer is expected.
    #[inline]
    pub fn src_port(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 0)
    }

    /// Destination port.
    #[inline]
    pub fn dst_port(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 2)
    }

    /// Bytes of header and data.
    #[inline]
    pub fn length(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 4)
    }

    /// Checksum, as it is in the field; 0 for none.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get_u16(self.bytes.as_ref(), CHECKSUM)
    }

    /// Whether the checksum is right, or absent (which RFC 768 allows, and RFC 8200 §8.1 does not).
    #[inline]
    pub fn checksum_is_right<A: Family>(&self, src: A, dst: A) -> bool {
        self.checksum() == 0 || checksum::transport(src, dst, 17, self.datagram()) == 0
    }

    /// The data.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.datagram()[HEADER_LEN..]
    }

    /// Header and data.
    #[inline]
    fn datagram(&self) -> &[u8] {
        let bytes = self.bytes.as_ref();
        &bytes[..usize::from(self.length()).clamp(HEADER_LEN, bytes.len())]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the source port.
    #[inline]
    pub fn set_src_port(&mut self, port: u16) {
        put_u16(self.bytes.as_mut(), 0, port);
    }

    /// Sets the destination port.
    #[inline]
    pub fn set_dst_port(&mut self, port: u16) {
        put_u16(self.bytes.as_mut(), 2, port);
    }

    /// Sets the length. Any value is safe: [`Self::payload`] never goes beyond the bytes there are.
    #[inline]
    pub fn set_length(&mut self, len: u16) {
        put_u16(self.bytes.as_mut(), 4, len);
    }

    /// Sets the checksum as given.
    #[inline]
    pub fn set_checksum(&mut self, value: u16) {
        put_u16(self.bytes.as_mut(), CHECKSUM, value);
    }

    /// Computes and sets the checksum.
    #[inline]
    pub fn fill_checksum<A: Family>(&mut self, src: A, dst: A) {
        self.set_checksum(0);
        let value = checksum::udp(checksum::transport(src, dst, 17, self.datagram()));
        self.set_checksum(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::V4;

    const SRC: V4 = V4(0xc633_6407);
    const DST: V4 = V4(0xcb00_710a);
    /// Two bytes of data, and one behind the datagram.
    const BYTES: [u8; 11] = [0x9c, 0x40, 0x00, 0x35, 0x00, 0x0a, 0x94, 0xb5, b'h', b'i', 0xee];

    #[test]
    fn deconstruct() {
        let datagram = Packet::new_checked(&BYTES).unwrap();
        assert_eq!((datagram.src_port(), datagram.dst_port()), (40_000, 53));
        assert_eq!((datagram.length(), datagram.payload()), (10, &b"hi"[..]));
        assert_eq!((datagram.checksum(), datagram.checksum_is_right(SRC, DST)), (0x94b5, true));
    }

    #[test]
    fn construct() {
        let mut bytes = [0, 0, 0, 0, 0, 8, 0, 0, b'h', b'i', 0xee];
        let mut datagram = Packet::new_checked(&mut bytes).unwrap();
        datagram.set_src_port(40_000);
        datagram.set_dst_port(53);
        datagram.set_length(10);
        datagram.fill_checksum(SRC, DST);
        assert_eq!(bytes, BYTES);
    }

    #[test]
    fn no_checksum_is_a_right_one() {
        let mut bytes = BYTES;
        Packet::new_checked(&mut bytes).unwrap().set_checksum(0);
        assert!(Packet::new_checked(&bytes).unwrap().checksum_is_right(SRC, DST));
        Packet::new_checked(&mut bytes).unwrap().set_checksum(1);
        assert!(!Packet::new_checked(&bytes).unwrap().checksum_is_right(SRC, DST));
    }

    #[test]
    fn a_checksum_that_comes_out_as_zero_is_written_as_ones() {
        // Data that makes the sum 0xffff: what is missing to it without.
        let mut bytes = [0, 0, 0, 0, 0, 10, 0, 0, 0, 0];
        let rest = checksum::transport(SRC, DST, 17, &bytes);
        bytes[8..].copy_from_slice(&rest.to_be_bytes());
        let mut datagram = Packet::new_checked(&mut bytes).unwrap();
        datagram.fill_checksum(SRC, DST);
        assert_eq!(datagram.checksum(), 0xffff);
        assert!(datagram.checksum_is_right(SRC, DST));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        (0..8).for_each(|len| {
            assert_eq!(Packet::new_checked(&BYTES[..len]).unwrap_err(), WireError::Truncated);
        });
        for length in [0, 7, 12, 255] {
            let mut bytes = BYTES;
            bytes[5] = length;
            assert_eq!(Packet::new_checked(&bytes).unwrap_err(), WireError::Length);
        }
    }

    #[test]
    fn a_length_set_too_long_or_too_short_does_not_panic() {
        let mut datagram = Packet::new_checked(BYTES).unwrap();
        datagram.set_length(u16::MAX);
        assert_eq!(datagram.payload().len(), 3);
        datagram.set_length(0);
        assert_eq!(datagram.payload().len(), 0);
    }
}
