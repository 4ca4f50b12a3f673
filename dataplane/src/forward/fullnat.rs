//! `mode = "fullnat"`: both ends are rewritten, so that servers answer to us whatever their routes are.
//!
//! ```text
//! client → VIP        becomes        local address → server
//! client ← VIP        becomes        local address ← server
//! ```

use super::{rewrite, rewrite_addresses};
use crate::tuple::{Endpoint, Protocol};
use crate::wire::Family;

/// A client's packet, on from a `local` address and port to its `server`.
#[inline]
pub fn request<A: Family>(
    frame: &mut [u8],
    l3: usize,
    l4: usize,
    protocol: Protocol,
    local: Endpoint<A>,
    server: Endpoint<A>,
) {
    rewrite(frame, l3, l4, protocol, Some(local), Some(server));
}

/// A server's packet, back from the `vip` to the `client`.
#[inline]
pub fn reply<A: Family>(
    frame: &mut [u8],
    l3: usize,
    l4: usize,
    protocol: Protocol,
    vip: Endpoint<A>,
    client: Endpoint<A>,
) {
    rewrite(frame, l3, l4, protocol, Some(vip), Some(client));
}

/// A later fragment in either direction.
#[inline]
pub fn later<A: Family>(frame: &mut [u8], l3: usize, src: A, dst: A) {
    rewrite_addresses(frame, l3, Some(src), Some(dst));
}
