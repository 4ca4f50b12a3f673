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
