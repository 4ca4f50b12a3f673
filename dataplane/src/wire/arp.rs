//! ARP for IPv4 over Ethernet, RFC 826.

use shunt_engine::port::MacAddr;

use super::ethernet::mac;
use super::{Family, WireError, get_u16, put_u16};
use crate::tuple::V4;

/// Bytes of a packet.
pub const LEN: usize = 28;

/// Operation codes.
pub mod operation {
    /// Who has the target address?
    pub const REQUEST: u16 = 1;
    /// The sender has it.
    pub const REPLY: u16 = 2;
}

/// A packet that maps IPv4 to Ethernet addresses; of the other kinds RFC 826 allows there are none today.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |      Hardware Type = 1        |    Protocol Type = 0x0800     |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |  HW Len = 6   | Proto Len = 4 |           Operation           |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                    Sender Hardware Address                    |
/// +                               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                               |    Sender Protocol Address    |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |     … continued               |                               |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+                               +
/// |                    Target Hardware Address                    |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                    Target Protocol Address                    |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Packet<T> {
    bytes: T,
}

/// The fields with one legal value.
const FIXED: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

impl<T: AsRef<[u8]>> Packet<T> {
    /// Checks length and address types.
    ///
    /// # Errors
    /// [`WireError::Truncated`]; [`WireError::Version`] for other than IPv4 over Ethernet.
    pub fn new_checked(bytes: T) -> Result<Self, WireError> {
        let data = bytes.as_ref();
        if data.len() < LEN {
            return Err(WireError::Truncated);
        }
        if data[..6] != FIXED { Err(WireError::Version) } else { Ok(Self { bytes }) }
    }

    /// What is asked or told; see [`operation`].
    pub fn operation(&self) -> u16 {
        get_u16(self.bytes.as_ref(), 6)
    }

    /// The station that speaks …
    pub fn sender_mac(&self) -> MacAddr {
        mac(self.bytes.as_ref(), 8)
    }

    /// … and its address.
    pub fn sender(&self) -> V4 {
        V4::get(self.bytes.as_ref(), 14)
    }

    /// The station spoken to; undefined in a request.
    pub fn target_mac(&self) -> MacAddr {
        mac(self.bytes.as_ref(), 18)
    }

    /// The address asked for, or spoken to.
    pub fn target(&self) -> V4 {
        V4::get(self.bytes.as_ref(), 24)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Writes a whole packet over the first [`LEN`] bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when there are fewer.
    pub fn write(
        mut bytes: T,
        operation: u16,
        sender: (MacAddr, V4),
        target: (MacAddr, V4),
    ) -> Result<Self, WireError> {
        let data = bytes.as_mut();
        if data.len() < LEN {
            return Err(WireError::Truncated);
        }
        data[..6].copy_from_slice(&FIXED);
        put_u16(data, 6, operation);
        data[8..14].copy_from_slice(&sender.0.0);
        sender.1.put(data, 14);
        data[18..24].copy_from_slice(&target.0.0);
        target.1.put(data, 24);
        Ok(Self { bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDER: (MacAddr, V4) = (MacAddr([2, 0, 0, 0, 0, 1]), V4(0x0a00_0001));
    const TARGET: (MacAddr, V4) = (MacAddr([0; 6]), V4(0x0a00_0002));
    #[rustfmt::skip]
    const BYTES: [u8; LEN] = [
        0, 1, 8, 0, 6, 4, 0, 1,
        2, 0, 0, 0, 0, 1, 10, 0, 0, 1,
        0, 0, 0, 0, 0, 0, 10, 0, 0, 2,
    ];

    #[test]
    fn deconstruct() {
        let packet = Packet::new_checked(&BYTES).unwrap();
        assert_eq!(packet.operation(), operation::REQUEST);
        assert_eq!((packet.sender_mac(), packet.sender()), SENDER);
        assert_eq!((packet.target_mac(), packet.target()), TARGET);
    }

    #[test]
    fn construct() {
        let packet = Packet::write([0xff; LEN], operation::REQUEST, SENDER, TARGET).unwrap();
        assert_eq!(packet.bytes, BYTES);
    }

    #[test]
    fn other_address_types_are_refused() {
        for at in 0..6 {
            let mut bytes = BYTES;
            bytes[at] ^= 0x40;
            assert_eq!(Packet::new_checked(bytes).unwrap_err(), WireError::Version);
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        (0..LEN).for_each(|len| {
            assert_eq!(Packet::new_checked(&BYTES[..len]).unwrap_err(), WireError::Truncated);
            let mut room = vec![0; len];
            let written = Packet::write(&mut room[..], operation::REPLY, SENDER, TARGET);
            assert_eq!(written.unwrap_err(), WireError::Truncated);
        });
    }

    #[test]
    fn ethernet_padding_behind_a_packet_is_no_obstacle() {
        let mut padded = BYTES.to_vec();
        padded.resize(46, 0);
        assert!(Packet::new_checked(padded).is_ok());
    }
}
