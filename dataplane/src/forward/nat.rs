//! `mode = "nat"`: the VIP becomes the server and back; servers see the clients' addresses and route through us. What
//! LVS calls masquerading.
//!
//! ```text
//! client → VIP        becomes        client → server
//! client ← VIP        becomes        client ← server
//! ```

use super::{rewrite, rewrite_addresses};
use crate::tuple::{Endpoint, Protocol};
use crate::wire::Family;

/// A client's packet, on to its `server`.
#[inline]
pub fn request<A: Family>(frame: &mut [u8], l3: usize, l4: usize, protocol: Protocol, server: Endpoint<A>) {
    rewrite(frame, l3, l4, protocol, None, Some(server));
}

/// A server's packet, back from the `vip`.
#[inline]
pub fn reply<A: Family>(frame: &mut [u8], l3: usize, l4: usize, protocol: Protocol, vip: Endpoint<A>) {
    rewrite(frame, l3, l4, protocol, Some(vip), None);
}

/// A later fragment of a client's packet.
#[inline]
pub fn later_request<A: Family>(frame: &mut [u8], l3: usize, server: A) {
    rewrite_addresses(frame, l3, None, Some(server));
}

/// A later fragment of a server's packet.
#[inline]
pub fn later_reply<A: Family>(frame: &mut [u8], l3: usize, vip: A) {
    rewrite_addresses(frame, l3, Some(vip), None);
}
