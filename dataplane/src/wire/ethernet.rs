//! Ethernet II frames, IEEE 802.3 clause 3.

use shunt_engine::port::MacAddr;

use super::{WireError, get_u16, put_u16};

/// Bytes of the header.
pub const HEADER_LEN: usize = 14;
/// Shortest frame on a wire, without its frame check sequence; shorter packets are padded.
pub const FRAME_LEN_MIN: usize = 60;

/// EtherTypes.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// An 802.1Q tag follows.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// A frame.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                      Destination Address                      |
/// +                               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                               |                               |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+                               +
/// |                         Source Address                        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |           EtherType           |            Payload …
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-
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

    /// Where the frame goes.
    #[inline]
    pub fn destination(&self) -> MacAddr {
        mac(self.bytes.as_ref(), 0)
    }

    /// Where it comes from.
    #[inline]
    pub fn source(&self) -> MacAddr {
        mac(self.bytes.as_ref(), 6)
    }

    /// What the payload is; see [`ethertype`].
    #[inline]
    pub fn ethertype(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 12)
    }

    /// Everything behind the header, padding included.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[HEADER_LEN..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets where the frame goes.
    #[inline]
    pub fn set_destination(&mut self, address: MacAddr) {
        self.bytes.as_mut()[..6].copy_from_slice(&address.0);
    }

    /// Sets where it comes from.
    #[inline]
    pub fn set_source(&mut self, address: MacAddr) {
        self.bytes.as_mut()[6..12].copy_from_slice(&address.0);
    }

    /// Sets what the payload is.
    #[inline]
    pub fn set_ethertype(&mut self, ethertype: u16) {
        put_u16(self.bytes.as_mut(), 12, ethertype);
    }

    /// Everything behind the header.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.bytes.as_mut()[HEADER_LEN..]
    }
}

pub(super) fn mac(bytes: &[u8], at: usize) -> MacAddr {
    MacAddr([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3], bytes[at + 4], bytes[at + 5]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: [u8; 16] = [2, 0, 0, 0, 0, 0xaa, 2, 0, 0, 0, 0, 0xbb, 0x08, 0x00, 0x45, 0x00];

    #[test]
    fn deconstruct() {
        let packet = Packet::new_checked(&BYTES).unwrap();
        assert_eq!(packet.destination(), MacAddr([2, 0, 0, 0, 0, 0xaa]));
        assert_eq!(packet.source(), MacAddr([2, 0, 0, 0, 0, 0xbb]));
        assert_eq!(packet.ethertype(), ethertype::IPV4);
        assert_eq!(packet.payload(), [0x45, 0x00]);
    }

    #[test]
    fn construct() {
        let mut packet = Packet::new_checked([0xff; 16]).unwrap();
        packet.set_destination(MacAddr([2, 0, 0, 0, 0, 0xaa]));
        packet.set_source(MacAddr([2, 0, 0, 0, 0, 0xbb]));
        packet.set_ethertype(ethertype::IPV4);
        packet.payload_mut().copy_from_slice(&[0x45, 0x00]);
        assert_eq!(packet.bytes, BYTES);
    }

    #[test]
    fn a_frame_without_payload_is_one() {
        assert!(Packet::new_checked(&BYTES[..14]).unwrap().payload().is_empty());
    }

    #[test]
    fn impossible_lengths_are_refused() {
        (0..14).for_each(|len| {
            assert_eq!(Packet::new_checked(&BYTES[..len]).unwrap_err(), WireError::Truncated);
        });
    }
}
