//! DR (direct routing, LVS: Route): the packet stays as it is, for the server owns the VIP; only the TTL counts the hop.

use super::Rewrite;

/// A client's packet.
#[inline]
pub fn request(frame: &mut [u8], l3: usize) {
    Rewrite::default().apply(frame, l3, None);
}
