//! `mode = "dr"`: the packet goes to the server's link address as it is. The server has the VIP too, does not tell
//! anybody, and answers the client directly.

use super::rewrite_addresses;
use crate::wire::Family;

/// A client's packet of family `A`, whole or any fragment: only its TTL changes, as when Linux forwards.
#[inline]
pub fn request<A: Family>(frame: &mut [u8], l3: usize) {
    rewrite_addresses::<A>(frame, l3, None, None);
}
