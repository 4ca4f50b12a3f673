//! IPv6 headers, RFC 8200 §3.

use super::{Family, WireError, get_u16, put_u16};
use crate::tuple::V6;

/// Bytes of the header.
pub const HEADER_LEN: usize = 40;

/// A packet.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |Version| Traffic Class |           Flow Label                  |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |         Payload Length        |  Next Header  |   Hop Limit   |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                                                               |
/// +                         Source Address                        +
/// |                           (16 bytes)                          |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                                                               |
/// +                      Destination Address                      +
/// |                           (16 bytes)                          |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Packet<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Checks version and length.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when the header is not all there, [`WireError::Version`] for other than IPv6,
    /// [`WireError::Length`] when the payload length goes beyond the bytes.
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, WireError> {
        let data = bytes.as_ref();
        if data.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        if data[0] >> 4 != 6 {
            return Err(WireError::Version);
        }
        if HEADER_LEN + usize::from(get_u16(data, 4)) > data.len() {
            return Err(WireError::Length);
        }
        Ok(Self { bytes })
    }

    /// As [`Self::new_checked`], of a packet that may be cut off behind its header, as quoted ones are.
    ///
    /// # Errors
    /// [`WireError::Truncated`], [`WireError::Version`].
    #[inline]
    pub fn new_header(bytes: T) -> Result<Self, WireError> {
        let data = bytes.as_ref();
        if data.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        if data[0] >> 4 != 6 { Err(WireError::Version) } else { Ok(Self { bytes }) }
    }

    /// Traffic class: DSCP and ECN.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        (get_u16(self.bytes.as_ref(), 0) >> 4) as u8
    }

    /// Flow label, 20 bits.
    #[inline]
    pub fn flow_label(&self) -> u32 {
        super::get_u32(self.bytes.as_ref(), 0) & 0x000f_ffff
    }

    /// Bytes behind the header, extension headers included.
    #[inline]
    pub fn payload_len(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 4)
    }

    /// Number of the protocol or extension that follows.
    #[inline]
    pub fn next_header(&self) -> u8 {
        self.bytes.as_ref()[6]
    }

    /// Hop limit.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.bytes.as_ref()[7]
    }

    /// Source address.
    #[inline]
    pub fn src(&self) -> V6 {
        V6::get(self.bytes.as_ref(), 8)
    }

    /// Destination address.
    #[inline]
    pub fn dst(&self) -> V6 {
        V6::get(self.bytes.as_ref(), 24)
    }

    /// What follows the header: up to the payload length, or as much as there is.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        let bytes = self.bytes.as_ref();
        let end = (HEADER_LEN + usize::from(self.payload_len())).min(bytes.len());
        &bytes[HEADER_LEN..end]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets version, traffic class and flow label (low 20 bits).
    #[inline]
    pub fn set_class_and_label(&mut self, traffic_class: u8, flow_label: u32) {
        let word = 6 << 28 | u32::from(traffic_class) << 20 | (flow_label & 0x000f_ffff);
        super::put_u32(self.bytes.as_mut(), 0, word);
    }

    /// Sets the payload length. Any value is safe: [`Self::payload`] never goes beyond the bytes there are.
    #[inline]
    pub fn set_payload_len(&mut self, len: u16) {
        put_u16(self.bytes.as_mut(), 4, len);
    }

    /// Sets the number of what follows.
    #[inline]
    pub fn set_next_header(&mut self, number: u8) {
        self.bytes.as_mut()[6] = number;
    }

    /// Sets the hop limit.
    #[inline]
    pub fn set_hop_limit(&mut self, hops: u8) {
        self.bytes.as_mut()[7] = hops;
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src(&mut self, address: V6) {
        address.put(self.bytes.as_mut(), 8);
    }

    /// Sets the destination address.
    #[inline]
    pub fn set_dst(&mut self, address: V6) {
        address.put(self.bytes.as_mut(), 24);
    }
}

/// A header that we write ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Traffic class.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Bytes behind the header.
    pub payload_len: u16,
    /// Number of the protocol or extension that follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub src: V6,
    /// Destination address.
    pub dst: V6,
}

impl Repr {
    /// The header's bytes.
    #[inline]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut packet = Packet { bytes: &mut bytes };
        packet.set_class_and_label(self.traffic_class, self.flow_label);
        packet.set_payload_len(self.payload_len);
        packet.set_next_header(self.next_header);
        packet.set_hop_limit(self.hop_limit);
        packet.set_src(self.src);
        packet.set_dst(self.dst);
        bytes
    }
}

/// Source and destination address of a packet that begins with a whole header.
#[inline]
pub fn addresses(packet: &[u8]) -> (V6, V6) {
    (V6::get(packet, 8), V6::get(packet, 24))
}

/// Protocol numbers that only IPv6 uses.
pub mod protocol {
    /// IPv6 in IP, RFC 2473.
    pub const IPV6: u8 = 41;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRC: V6 = V6([0x2001_0db8, 0, 0, 7]);
    const DST: V6 = V6([0x2001_0db8, 0, 0, 10]);

    fn bytes() -> Vec<u8> {
        let mut bytes = vec![0x62, 0xe1, 0x23, 0x45, 0, 2, 17, 64];
        bytes.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        bytes.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10]);
        bytes.extend([0xab, 0xcd, 0]);
        bytes
    }

    #[test]
    fn deconstruct() {
        let bytes = bytes();
        let packet = Packet::new_checked(&bytes).unwrap();
        assert_eq!((packet.traffic_class(), packet.flow_label()), (0x2e, 0x12345));
        assert_eq!((packet.payload_len(), packet.next_header(), packet.hop_limit()), (2, 17, 64));
        assert_eq!((packet.src(), packet.dst(), packet.payload()), (SRC, DST, &[0xab, 0xcd][..]));
    }

    #[test]
    fn construct() {
        let mut written = vec![0; 43];
        written[0] = 0x60;
        written[40..42].copy_from_slice(&[0xab, 0xcd]);
        let mut packet = Packet::new_checked(&mut written).unwrap();
        packet.set_class_and_label(0x2e, 0x12345);
        packet.set_payload_len(2);
        packet.set_next_header(17);
        packet.set_hop_limit(64);
        packet.set_src(SRC);
        packet.set_dst(DST);
        assert_eq!(written, bytes());
    }

    #[test]
    fn a_header_is_written_as_its_fields_say() {
        let header = Repr {
            traffic_class: 0x2e,
            flow_label: 0x12345,
            payload_len: 2,
            next_header: 17,
            hop_limit: 64,
            src: SRC,
            dst: DST,
        };
        assert_eq!(header.emit(), bytes()[..40]);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let bytes = bytes();
        (0..40).for_each(|len| {
            assert_eq!(Packet::new_checked(&bytes[..len]).unwrap_err(), WireError::Truncated);
        });
        assert_eq!(Packet::new_checked(&bytes[..41]).unwrap_err(), WireError::Length);
        assert_eq!(Packet::new_header(&bytes[..39]).unwrap_err(), WireError::Truncated);
        assert_eq!(Packet::new_header(&bytes[..41]).unwrap().payload(), &[0xab]);
    }

    #[test]
    fn another_version_is_refused() {
        let mut bytes = bytes();
        bytes[0] = 0x45;
        assert_eq!(Packet::new_checked(&bytes).unwrap_err(), WireError::Version);
        assert_eq!(Packet::new_header(&bytes).unwrap_err(), WireError::Version);
    }
}
