//! FULLNAT: both addresses are rewritten, so servers answer to us whatever their routes are.

use super::Rewrite;
use crate::tuple::{Endpoint, Protocol, V4};

/// A client's packet: from `local` to `server`.
#[inline]
pub fn request(
    frame: &mut [u8],
    l3: usize,
    l4: usize,
    protocol: Protocol,
    local: Endpoint<V4>,
    server: Endpoint<V4>,
) {
    Rewrite { src: Some(local), dst: Some(server) }.apply(frame, l3, Some((l4, protocol)));
}

/// A server's packet: from `vip` to `client`.
#[inline]
pub fn reply(
    frame: &mut [u8],
    l3: usize,
    l4: usize,
    protocol: Protocol,
    vip: Endpoint<V4>,
    client: Endpoint<V4>,
) {
    Rewrite { src: Some(vip), dst: Some(client) }.apply(frame, l3, Some((l4, protocol)));
}

/// A later fragment, of either direction: it has addresses only.
pub fn later(frame: &mut [u8], l3: usize, src: V4, dst: V4) {
    let (src, dst) = (Endpoint::new(src, 0), Endpoint::new(dst, 0));
    Rewrite { src: Some(src), dst: Some(dst) }.apply(frame, l3, None);
}
