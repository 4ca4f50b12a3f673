//! TUN: the packet travels to the server inside another (IP in IP, RFC 2003); the server owns the VIP.

use shunt_engine::Frame;

use super::NoHeadroom;
use crate::tuple::V4;
use crate::wire::checksum;

/// Bytes the outer header takes of the next hop's MTU.
pub const OVERHEAD: u16 = 20;

const IPIP: u8 = 4;
const DONT_FRAGMENT: u8 = 0x40;

/// Puts an IPv4 header from `src` to `dst` before the packet behind `l2_len` bytes of link header, which go; what is
/// behind the packet (padding) goes too. TTL, TOS and DF are the inner packet's (RFC 2003 §3.1).
///
/// # Errors
/// [`NoHeadroom`]; the frame has lost its link header then and nothing else.
#[inline]
pub fn encapsulate(frame: &mut Frame, l2_len: usize, src: V4, dst: V4, id: u16) -> Result<(), NoHeadroom> {
    frame.pull_front(l2_len);
    let inner = frame.data();
    let (tos, ttl, dont_fragment) = (inner[1], inner[8], inner[6] & DONT_FRAGMENT);
    let inner_len = u16::from_be_bytes([inner[2], inner[3]]);
    if !frame.set_len(usize::from(inner_len)) || !frame.push_front(usize::from(OVERHEAD)) {
        return Err(NoHeadroom);
    }
    let [len_high, len_low] = (inner_len + OVERHEAD).to_be_bytes();
    let [id_high, id_low] = id.to_be_bytes();
    let header = &mut frame.data_mut()[..usize::from(OVERHEAD)];
    header[..12].copy_from_slice(&[
        0x45,
        tos,
        len_high,
        len_low,
        id_high,
        id_low,
        dont_fragment,
        0,
        ttl,
        IPIP,
        0,
        0,
    ]);
    header[12..16].copy_from_slice(&src.0.to_be_bytes());
    header[16..20].copy_from_slice(&dst.0.to_be_bytes());
    let sum = checksum::of(header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}
