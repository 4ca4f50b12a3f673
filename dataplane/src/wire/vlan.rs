//! VLAN tags, IEEE 802.1Q clause 9. One tag is understood; a second one is an EtherType that is not ours.

use super::{WireError, get_u16, put_u16};

/// Bytes of a tag: what it adds to a frame.
pub const TAG_LEN: usize = 4;

/// What follows EtherType 0x8100.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-----+-+-----------------------+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// | PCP |D|    VLAN Identifier    |           EtherType           |
/// +-----+-+-----------------------+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                           Payload …
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Packet<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Checks that the tag is there.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, WireError> {
        if bytes.as_ref().len() < TAG_LEN { Err(WireError::Truncated) } else { Ok(Self { bytes }) }
    }

    /// Priority code point, 0 … 7.
    #[inline]
    pub fn priority(&self) -> u8 {
        self.bytes.as_ref()[0] >> 5
    }

    /// Drop eligible indicator.
    #[inline]
    pub fn drop_eligible(&self) -> bool {
        self.bytes.as_ref()[0] & 0x10 != 0
    }

    /// VLAN identifier, 12 bits; 0 means that the frame has a priority but no VLAN.
    #[inline]
    pub fn vid(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 0) & 0x0fff
    }

    /// What the payload is; see [`super::ethernet::ethertype`].
    #[inline]
    pub fn ethertype(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 2)
    }

    /// Everything behind the tag.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[TAG_LEN..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets priority (low three bits), drop eligibility and VLAN identifier (low twelve bits).
    #[inline]
    pub fn set_tag(&mut self, priority: u8, drop_eligible: bool, vid: u16) {
        let tag = u16::from(priority) << 13 | u16::from(drop_eligible) << 12 | (vid & 0x0fff);
        put_u16(self.bytes.as_mut(), 0, tag);
    }

    /// Sets what the payload is.
    #[inline]
    pub fn set_ethertype(&mut self, ethertype: u16) {
        put_u16(self.bytes.as_mut(), 2, ethertype);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Priority 5, drop eligible, VLAN 0x123, IPv6.
    const BYTES: [u8; 5] = [0xb1, 0x23, 0x86, 0xdd, 0x60];

    #[test]
    fn deconstruct() {
        let tag = Packet::new_checked(&BYTES).unwrap();
        assert_eq!((tag.priority(), tag.drop_eligible(), tag.vid()), (5, true, 0x123));
        assert_eq!((tag.ethertype(), tag.payload()), (0x86dd, &[0x60][..]));
    }

    #[test]
    fn construct() {
        let mut tag = Packet::new_checked([0xff, 0xff, 0xff, 0xff, 0x60]).unwrap();
        tag.set_tag(5, true, 0x123);
        tag.set_ethertype(0x86dd);
        assert_eq!(tag.bytes, BYTES);
    }

    #[test]
    fn bits_beyond_a_field_do_not_leak_into_its_neighbours() {
        let mut tag = Packet::new_checked([0; 4]).unwrap();
        tag.set_tag(0, false, 0xf00a);
        assert_eq!((tag.priority(), tag.drop_eligible(), tag.vid()), (0, false, 0x00a));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        (0..4).for_each(|len| {
            assert_eq!(Packet::new_checked(&BYTES[..len]).unwrap_err(), WireError::Truncated);
        });
    }
}
