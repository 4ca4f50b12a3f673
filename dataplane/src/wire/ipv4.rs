//! IPv4 headers, RFC 791 §3.1.

use super::{Family, WireError, checksum, get_u16, put_u16};
use crate::tuple::V4;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Bytes of the longest header.
pub const HEADER_LEN_MAX: usize = 60;
/// The flag "don't fragment" in [`Packet::flags_offset`].
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The flag "more fragments".
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The bits of the fragment offset, in units of 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// IP protocol numbers that are not [`crate::tuple::Protocol`]s.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
}

/// A packet.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |Version|  IHL  |Type of Service|          Total Length         |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |         Identification        |Flags|      Fragment Offset    |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |  Time to Live |    Protocol   |         Header Checksum       |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                       Source Address                          |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                    Destination Address                        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                    Options                    |    Padding    |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Packet<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Checks version and lengths; not the checksum (see [`Self::checksum_is_right`]).
    ///
    /// # Errors
    /// [`WireError::Truncated`] when the header is not all there, [`WireError::Version`] for other than IPv4,
    /// [`WireError::Length`] when a length contradicts the other or the number of bytes.
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, WireError> {
        let packet = Self::new_header(bytes)?;
        let total_len = usize::from(packet.total_len());
        if total_len < packet.header_len() || total_len > packet.bytes.as_ref().len() {
            return Err(WireError::Length);
        }
        Ok(packet)
    }

    /// Like [`Self::new_checked`], for a packet that may be cut off behind its header, as ICMP errors quote it.
    ///
    /// # Errors
    /// As [`Self::new_checked`], but the total length is not looked at.
    #[inline]
    pub fn new_header(bytes: T) -> Result<Self, WireError> {
        let data = bytes.as_ref();
        if data.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        if data[0] >> 4 != 4 {
            return Err(WireError::Version);
        }
        let header_len = usize::from(data[0] & 15) * 4;
        if header_len < HEADER_LEN {
            return Err(WireError::Length);
        }
        if header_len > data.len() { Err(WireError::Truncated) } else { Ok(Self { bytes }) }
    }

    /// Bytes of the header, options included.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes.as_ref()[0] & 15) * 4
    }

    /// Type of service: DSCP and ECN.
    #[inline]
    pub fn tos(&self) -> u8 {
        self.bytes.as_ref()[1]
    }

    /// Bytes of the whole packet.
    #[inline]
    pub fn total_len(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 2)
    }

    /// Identification, common to the fragments of a packet.
    #[inline]
    pub fn id(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 4)
    }

    /// Flags and fragment offset as they are on the wire.
    #[inline]
    pub fn flags_offset(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 6)
    }

    /// Whether the sender forbids fragmentation.
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.flags_offset() & DONT_FRAGMENT != 0
    }

    /// Whether fragments follow.
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.flags_offset() & MORE_FRAGMENTS != 0
    }

    /// Offset of the payload in the unfragmented one, in bytes.
    #[inline]
    pub fn fragment_offset(&self) -> u16 {
        (self.flags_offset() & OFFSET_MASK) * 8
    }

    /// Time to live.
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.bytes.as_ref()[8]
    }

    /// Number of the protocol in the payload.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.bytes.as_ref()[9]
    }

    /// Header checksum, as it is in the field.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 10)
    }

    /// Whether the header's checksum is right.
    #[inline]
    pub fn checksum_is_right(&self) -> bool {
        checksum::of(self.header()) == 0
    }

    /// Source address.
    #[inline]
    pub fn src(&self) -> V4 {
        V4::get(self.bytes.as_ref(), 12)
    }

    /// Destination address.
    #[inline]
    pub fn dst(&self) -> V4 {
        V4::get(self.bytes.as_ref(), 16)
    }

    /// The header, options included.
    #[inline]
    pub fn header(&self) -> &[u8] {
        &self.bytes.as_ref()[..self.header_len()]
    }

    /// Options, with their padding.
    #[inline]
    pub fn options(&self) -> &[u8] {
        &self.header()[HEADER_LEN..]
    }

    /// What the header is for: up to the total length, or as much as there is.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        let bytes = self.bytes.as_ref();
        let end = usize::from(self.total_len()).min(bytes.len());
        &bytes[self.header_len().min(end)..end]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the type of service.
    #[inline]
    pub fn set_tos(&mut self, tos: u8) {
        self.bytes.as_mut()[1] = tos;
    }

    /// Sets the total length. Any value is safe: [`Self::payload`] never goes beyond the bytes there are.
    #[inline]
    pub fn set_total_len(&mut self, len: u16) {
        put_u16(self.bytes.as_mut(), 2, len);
    }

    /// Sets the identification.
    #[inline]
    pub fn set_id(&mut self, id: u16) {
        put_u16(self.bytes.as_mut(), 4, id);
    }

    /// Sets flags and fragment offset as they are on the wire.
    #[inline]
    pub fn set_flags_offset(&mut self, flags_offset: u16) {
        put_u16(self.bytes.as_mut(), 6, flags_offset);
    }

    /// Sets the time to live.
    #[inline]
    pub fn set_ttl(&mut self, ttl: u8) {
        self.bytes.as_mut()[8] = ttl;
    }

    /// Sets the number of the protocol in the payload.
    #[inline]
    pub fn set_protocol(&mut self, protocol: u8) {
        self.bytes.as_mut()[9] = protocol;
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src(&mut self, address: V4) {
        address.put(self.bytes.as_mut(), 12);
    }

    /// Sets the destination address.
    #[inline]
    pub fn set_dst(&mut self, address: V4) {
        address.put(self.bytes.as_mut(), 16);
    }

    /// Sets the header checksum as given.
    #[inline]
    pub fn set_checksum(&mut self, value: u16) {
        put_u16(self.bytes.as_mut(), 10, value);
    }

    /// Computes and sets the header checksum.
    #[inline]
    pub fn fill_checksum(&mut self) {
        self.set_checksum(0);
        let value = checksum::of(self.header());
        self.set_checksum(value);
    }

    /// What the header is for.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.header_len(), usize::from(self.total_len()));
        let bytes = self.bytes.as_mut();
        let end = end.min(bytes.len());
        &mut bytes[start.min(end)..end]
    }
}

/// A header without options that we write ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Type of service.
    pub tos: u8,
    /// Bytes behind the header; at most 65 515.
    pub payload_len: u16,
    /// Identification.
    pub id: u16,
    /// Whether fragmentation is forbidden.
    pub dont_fragment: bool,
    /// Time to live.
    pub ttl: u8,
    /// Number of the protocol in the payload.
    pub protocol: u8,
    /// Source address.
    pub src: V4,
    /// Destination address.
    pub dst: V4,
}

impl Repr {
    /// The header's bytes, with its checksum.
    #[inline]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = 0x45;
        let mut packet = Packet { bytes: &mut bytes };
        packet.set_tos(self.tos);
        packet.set_total_len(self.payload_len.saturating_add(HEADER_LEN as u16));
        packet.set_id(self.id);
        packet.set_flags_offset(if self.dont_fragment { DONT_FRAGMENT } else { 0 });
        packet.set_ttl(self.ttl);
        packet.set_protocol(self.protocol);
        packet.set_src(self.src);
        packet.set_dst(self.dst);
        packet.fill_checksum();
        bytes
    }
}

impl<T: AsRef<[u8]>> std::fmt::Display for Packet<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (src, dst, protocol) = (self.src(), self.dst(), self.protocol());
        write!(out, "{src:?} > {dst:?} proto {protocol} ttl {} len {}", self.ttl(), self.total_len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One option (router alert), two bytes of payload, one of padding behind the packet.
    #[rustfmt::skip]
    const BYTES: [u8; 27] = [
        0x46, 0x2e, 0x00, 0x1a, 0x12, 0x34, 0x60, 0x03, 0x40, 0x11, 0x0d, 0x24,
        198, 51, 100, 7, 203, 0, 113, 10,
        0x94, 0x04, 0x00, 0x00,
        0xab, 0xcd, 0x00,
    ];

    #[test]
    fn deconstruct() {
        let packet = Packet::new_checked(&BYTES).unwrap();
        assert_eq!((packet.header_len(), packet.tos(), packet.total_len()), (24, 0x2e, 26));
        assert_eq!((packet.id(), packet.flags_offset(), packet.fragment_offset()), (0x1234, 0x6003, 24));
        assert!(packet.dont_fragment() && packet.more_fragments());
        assert_eq!((packet.ttl(), packet.protocol()), (64, 17));
        assert_eq!((packet.src(), packet.dst()), (V4(0xc633_6407), V4(0xcb00_710a)));
        assert_eq!((packet.options(), packet.payload()), (&BYTES[20..24], &BYTES[24..26]));
        assert_eq!((packet.checksum(), packet.checksum_is_right()), (0x0d24, true));
    }

    #[test]
    fn construct() {
        let mut bytes = BYTES;
        bytes[1..20].fill(0);
        bytes[24..26].fill(0);
        let mut packet = Packet::new_header(&mut bytes).unwrap();
        packet.set_tos(0x2e);
        packet.set_total_len(26);
        packet.set_id(0x1234);
        packet.set_flags_offset(DONT_FRAGMENT | MORE_FRAGMENTS | 3);
        packet.set_ttl(64);
        packet.set_protocol(17);
        packet.set_src(V4(0xc633_6407));
        packet.set_dst(V4(0xcb00_710a));
        packet.fill_checksum();
        packet.payload_mut().copy_from_slice(&[0xab, 0xcd]);
        assert_eq!(bytes, BYTES);
    }

    #[test]
    fn a_header_of_our_own_is_whole_and_right() {
        let repr = Repr {
            tos: 0x10,
            payload_len: 5,
            id: 7,
            dont_fragment: true,
            ttl: 3,
            protocol: 6,
            src: V4(1),
            dst: V4(2),
        };
        let bytes = [&repr.emit()[..], b"hello"].concat();
        let packet = Packet::new_checked(&bytes).unwrap();
        assert_eq!((packet.tos(), packet.id(), packet.ttl(), packet.protocol()), (0x10, 7, 3, 6));
        assert_eq!((packet.flags_offset(), packet.payload()), (DONT_FRAGMENT, &b"hello"[..]));
        assert_eq!((packet.src(), packet.dst(), packet.checksum_is_right()), (V4(1), V4(2), true));
        assert_eq!(packet.to_string(), "0.0.0.1 > 0.0.0.2 proto 6 ttl 3 len 25");
    }

    #[test]
    fn a_single_wrong_bit_is_a_wrong_checksum() {
        for bit in 0..24 * 8 {
            let mut bytes = BYTES;
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A changed version or length is refused before.
            if let Ok(packet) = Packet::new_checked(&bytes) {
                assert!(!packet.checksum_is_right(), "bit {bit}");
            }
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        (0..24).for_each(|len| {
            assert_eq!(Packet::new_checked(&BYTES[..len]).unwrap_err(), WireError::Truncated);
        });
        let with = |at: usize, value: u8| {
            let mut bytes = BYTES;
            bytes[at] = value;
            Packet::new_checked(bytes).unwrap_err()
        };
        assert_eq!(with(0, 0x44), WireError::Length);
        assert_eq!(with(0, 0x4f), WireError::Truncated);
        assert_eq!(with(0, 0x66), WireError::Version);
        assert_eq!(with(3, 23), WireError::Length);
        assert_eq!(with(3, 28), WireError::Length);
    }

    #[test]
    fn a_quoted_header_may_be_cut_off_behind_itself() {
        let packet = Packet::new_header(&BYTES[..25]).unwrap();
        assert_eq!(packet.payload(), [0xab]);
        assert!(Packet::new_header(&BYTES[..24]).unwrap().payload().is_empty());
    }
}
