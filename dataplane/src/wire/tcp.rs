//! TCP headers, RFC 9293 §3.1.

use super::{Family, WireError, checksum, get_u16, get_u32, put_u16, put_u32};

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Offset of the checksum in the header.
pub const CHECKSUM: usize = 16;

/// The control bits, as they are in the header's byte 13.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
}

/// A segment.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |          Source Port          |       Destination Port        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                        Sequence Number                        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                    Acknowledgment Number                      |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |  Data |       |C|E|U|A|P|R|S|F|                               |
/// | Offset| Rsrvd |W|C|R|C|S|S|Y|I|            Window             |
/// |       |       |R|E|G|K|H|T|N|N|                               |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |           Checksum            |         Urgent Pointer        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                           [Options]                           |
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
    /// [`WireError::Truncated`] when the header is not all there, [`WireError::Length`] when the data offset is too
    /// small for one.
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, WireError> {
        let data = bytes.as_ref();
        if data.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        let header_len = usize::from(data[12] >> 4) * 4;
        if header_len < HEADER_LEN {
            return Err(WireError::Length);
        }
        if header_len > data.len() { Err(WireError::Truncated) } else { Ok(Self { bytes }) }
    }

    /// Source port.
    #[inline]
    pub fn src_port(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 0)
    }

    /// Destination port.
    #[inline]
    pub fn dst_port(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 2)
    }

    /// Sequence number.
    #[inline]
    pub fn seq(&self) -> u32 {
        get_u32(self.bytes.as_ref(), 4)
    }

    /// Acknowledgement number.
    #[inline]
    pub fn ack(&self) -> u32 {
        get_u32(self.bytes.as_ref(), 8)
    }

    /// Bytes of the header, options included.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes.as_ref()[12] >> 4) * 4
    }

    /// The control bits; see [`flags`].
    #[inline]
    pub fn flags(&self) -> u8 {
        self.bytes.as_ref()[13]
    }

    /// Window, unscaled.
    #[inline]
    pub fn window(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 14)
    }

    /// Checksum, as it is in the field.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get_u16(self.bytes.as_ref(), CHECKSUM)
    }

    /// Whether the checksum is right. The bytes must be the whole segment.
    #[inline]
    pub fn checksum_is_right<A: Family>(&self, src: A, dst: A) -> bool {
        checksum::transport(src, dst, 6, self.bytes.as_ref()) == 0
    }

    /// Options, with their padding.
    #[inline]
    pub fn options(&self) -> &[u8] {
        &self.bytes.as_ref()[HEADER_LEN..self.header_len()]
    }

    /// The data.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[self.header_len()..]
    }

    /// The segment's length in sequence space: SYN and FIN count one each (RFC 9293 §3.4).
    #[inline]
    pub fn segment_len(&self) -> u32 {
        let bit = |flag| u32::from(self.flags() & flag != 0);
        self.payload().len() as u32 + bit(flags::SYN) + bit(flags::FIN)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Makes the first 20 bytes a header without options and with all other fields zero.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when there are fewer.
    #[inline]
    pub fn write(mut bytes: T) -> Result<Self, WireError> {
        let header = bytes.as_mut().first_chunk_mut::<HEADER_LEN>().ok_or(WireError::Truncated)?;
        *header = [0; HEADER_LEN];
        header[12] = 5 << 4;
        Ok(Self { bytes })
    }

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

    /// Sets the sequence number.
    #[inline]
    pub fn set_seq(&mut self, seq: u32) {
        put_u32(self.bytes.as_mut(), 4, seq);
    }

    /// Sets the acknowledgement number.
    #[inline]
    pub fn set_ack(&mut self, ack: u32) {
        put_u32(self.bytes.as_mut(), 8, ack);
    }

    /// Sets the control bits.
    #[inline]
    pub fn set_flags(&mut self, flags: u8) {
        self.bytes.as_mut()[13] = flags;
    }

    /// Sets the window, unscaled.
    #[inline]
    pub fn set_window(&mut self, window: u16) {
        put_u16(self.bytes.as_mut(), 14, window);
    }

    /// Sets the checksum as given.
    #[inline]
    pub fn set_checksum(&mut self, value: u16) {
        put_u16(self.bytes.as_mut(), CHECKSUM, value);
    }

    /// Computes and sets the checksum. The bytes must be the whole segment.
    #[inline]
    pub fn fill_checksum<A: Family>(&mut self, src: A, dst: A) {
        self.set_checksum(0);
        let value = checksum::transport(src, dst, 6, self.bytes.as_ref());
        self.set_checksum(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::V4;

    const SRC: V4 = V4(0xc633_6407);
    const DST: V4 = V4(0xcb00_710a);
    /// A SYN with one option (MSS 1460) and two bytes of data.
    #[rustfmt::skip]
    const BYTES: [u8; 26] = [
        0x9c, 0x40, 0x00, 0x50, 0, 0, 0x03, 0xe8, 0, 0, 0x07, 0xd0,
        0x60, 0x02, 0xff, 0xff, 0x21, 0x2d, 0, 0,
        2, 4, 0x05, 0xb4,
        b'h', b'i',
    ];

    #[test]
    fn deconstruct() {
        let segment = Packet::new_checked(&BYTES).unwrap();
        assert_eq!((segment.src_port(), segment.dst_port()), (40_000, 80));
        assert_eq!((segment.seq(), segment.ack(), segment.window()), (1000, 2000, 65_535));
        assert_eq!((segment.header_len(), segment.flags()), (24, flags::SYN));
        assert_eq!((segment.options(), segment.payload()), (&BYTES[20..24], &b"hi"[..]));
        assert_eq!((segment.checksum(), segment.checksum_is_right(SRC, DST)), (0x212d, true));
    }

    #[test]
    fn construct() {
        let mut bytes = BYTES;
        let mut segment = Packet::write(&mut bytes[..]).unwrap();
        segment.set_src_port(40_000);
        segment.set_dst_port(80);
        segment.set_seq(1000);
        segment.set_ack(2000);
        segment.set_flags(flags::SYN);
        segment.set_window(65_535);
        // `write` makes a header without options; this one has some.
        bytes[12] = 6 << 4;
        Packet::new_checked(&mut bytes).unwrap().fill_checksum(SRC, DST);
        assert_eq!(bytes, BYTES);
    }

    #[test]
    fn syn_and_fin_take_a_sequence_number_each() {
        let len = |bits| {
            let mut bytes = BYTES;
            bytes[13] = bits;
            Packet::new_checked(&bytes).unwrap().segment_len()
        };
        assert_eq!((len(flags::ACK), len(flags::SYN), len(flags::SYN | flags::FIN)), (2, 3, 4));
    }

    #[test]
    fn a_single_wrong_bit_is_a_wrong_checksum() {
        for bit in (0..26 * 8).filter(|bit| bit / 8 != 12) {
            let mut bytes = BYTES;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!Packet::new_checked(&bytes).unwrap().checksum_is_right(SRC, DST), "bit {bit}");
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        (0..24).for_each(|len| {
            assert_eq!(Packet::new_checked(&BYTES[..len]).unwrap_err(), WireError::Truncated);
        });
        for (offset, error) in [(0x40, WireError::Length), (0xf0, WireError::Truncated)] {
            let mut bytes = BYTES;
            bytes[12] = offset;
            assert_eq!(Packet::new_checked(&bytes).unwrap_err(), error);
        }
        assert_eq!(Packet::write([0; 19]).unwrap_err(), WireError::Truncated);
    }
}
