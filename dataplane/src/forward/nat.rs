//! NAT (LVS: Masq): the server's address replaces the VIP, and the VIP the server's; servers route back through us.

use super::Rewrite;
use crate::tuple::{Endpoint, Protocol, V4};

/// A client's packet: to `server`.
#[inline]
pub fn request(frame: &mut [u8], l3: usize, l4: usize, protocol: Protocol, server: Endpoint<V4>) {
    Rewrite { src: None, dst: Some(server) }.apply(frame, l3, Some((l4, protocol)));
}

/// A server's packet: from `vip`.
#[inline]
pub fn reply(frame: &mut [u8], l3: usize, l4: usize, protocol: Protocol, vip: Endpoint<V4>) {
    Rewrite { src: Some(vip), dst: None }.apply(frame, l3, Some((l4, protocol)));
}

/// A later fragment of a client's packet.
pub fn later_request(frame: &mut [u8], l3: usize, server: V4) {
    Rewrite { src: None, dst: Some(Endpoint::new(server, 0)) }.apply(frame, l3, None);
}

/// A later fragment of a server's packet.
pub fn later_reply(frame: &mut [u8], l3: usize, vip: V4) {
    Rewrite { src: Some(Endpoint::new(vip, 0)), dst: None }.apply(frame, l3, None);
}
