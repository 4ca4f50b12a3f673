//! `mode = "tun"`: the packet goes to the server inside another one (IP in IP, RFC 2003), over any number of hops. The
//! server has the VIP on its tunnel device and answers the client directly.

use shunt_engine::Frame;

use super::NoHeadroom;
use crate::tuple::V4;
use crate::wire::ipip;
use crate::wire::ipv4::{HEADER_LEN, Packet};

pub use crate::wire::ipip::OVERHEAD;

/// Puts an IPv4 header from `src` to `dst` in front of the IPv4 packet behind `l2_len` bytes of link header, which go;
/// so does Ethernet padding behind the packet. TTL (already decremented), TOS and "don't fragment" are the inner
/// packet's. `id` is to be unique for a while, since the outer packet may be fragmented when the inner one allows it.
///
/// # Errors
/// [`NoHeadroom`], also for bytes that are no IPv4 packet; the frame is then unchanged.
#[inline]
pub fn encapsulate(frame: &mut Frame, l2_len: usize, src: V4, dst: V4, id: u16) -> Result<(), NoHeadroom> {
    let inner = frame.data().get(l2_len..).ok_or(NoHeadroom)?;
    let inner = Packet::new_checked(inner).map_err(|_| NoHeadroom)?;
    let end = l2_len + usize::from(inner.total_len());
    let outer = ipip::outer(&inner, src, dst, id).emit();
    if frame.headroom() + l2_len < HEADER_LEN || !frame.set_len(end) {
        return Err(NoHeadroom);
    }
    frame.pull_front(l2_len);
    if !frame.push_front(HEADER_LEN) {
        return Err(NoHeadroom);
    }
    frame.data_mut()[..HEADER_LEN].copy_from_slice(&outer);
    Ok(())
}
