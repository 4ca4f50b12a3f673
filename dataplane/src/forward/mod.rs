//! Rewriting packets in place, one file per mode. Checksums are updated incrementally (RFC 1624), never recomputed: a
//! wrong one stays wrong, a UDP checksum of 0 ("none") stays 0.

pub mod dr;
pub mod fullnat;
pub mod nat;
pub mod split;
pub mod tun;

use shunt_engine::Frame;
use shunt_engine::port::MacAddr;

use crate::tuple::{Endpoint, Protocol, V4};
use crate::wire::checksum::Delta;

/// The buffer has no room in front of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoHeadroom;

/// Replaces the first `old_len` bytes of `frame` by an Ethernet header (tagged for `vid`) for what follows, IPv4.
///
/// # Errors
/// [`NoHeadroom`]; the frame is unchanged then.
#[inline]
pub fn set_link(
    frame: &mut Frame,
    old_len: usize,
    source: MacAddr,
    destination: MacAddr,
    vid: Option<u16>,
) -> Result<(), NoHeadroom> {
    let new_len = if vid.is_some() { 18 } else { 14 };
    if new_len > old_len {
        if !frame.push_front(new_len - old_len) {
            return Err(NoHeadroom);
        }
    } else {
        frame.pull_front(old_len - new_len);
    }
    let data = frame.data_mut();
    data[..6].copy_from_slice(&destination.0);
    data[6..12].copy_from_slice(&source.0);
    match vid {
        None => data[12..14].copy_from_slice(&[0x08, 0x00]),
        Some(vid) => {
            let [high, low] = (vid & 0x0fff).to_be_bytes();
            data[12..18].copy_from_slice(&[0x81, 0x00, high, low, 0x08, 0x00]);
        }
    }
    Ok(())
}

/// What changes of a packet's endpoints.
#[derive(Clone, Copy, Debug, Default)]
struct Rewrite {
    src: Option<Endpoint<V4>>,
    dst: Option<Endpoint<V4>>,
}

impl Rewrite {
    /// Writes the new endpoints into the IPv4 header at `l3` and, unless it is a later fragment, the transport header at
    /// `l4`; takes one off the TTL.
    #[inline]
    fn apply(self, frame: &mut [u8], l3: usize, transport: Option<(usize, Protocol)>) {
        let mut addresses = Delta::NONE;
        let mut ports = Delta::NONE;
        for (new, at, port_at) in [(self.src, 12, 0), (self.dst, 16, 2)] {
            let Some(new) = new else { continue };
            let at = l3 + at;
            let old = V4(u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]));
            addresses = addresses.address(old, new.address);
            frame[at..at + 4].copy_from_slice(&new.address.0.to_be_bytes());
            if let Some((l4, _)) = transport {
                ports = ports.word(word(frame, l4 + port_at), new.port);
                put(frame, l4 + port_at, new.port);
            }
        }
        let header = addresses.plus(take_ttl(frame, l3));
        put(frame, l3 + 10, header.apply(word(frame, l3 + 10)));
        if let Some((l4, protocol)) = transport {
            fix_transport(frame, l4, protocol, addresses.plus(ports));
        }
    }
}

/// Takes one off the TTL at `l3` and says how that changes the header's checksum.
#[inline]
fn take_ttl(frame: &mut [u8], l3: usize) -> Delta {
    let old = word(frame, l3 + 8);
    let new = old.wrapping_sub(0x0100);
    put(frame, l3 + 8, new);
    Delta::NONE.word(old, new)
}

/// Applies `delta` to the checksum of a TCP or UDP header.
#[inline]
fn fix_transport(frame: &mut [u8], l4: usize, protocol: Protocol, delta: Delta) {
    match protocol {
        Protocol::Tcp => put(frame, l4 + 16, delta.apply(word(frame, l4 + 16))),
        Protocol::Udp => {
            let old = word(frame, l4 + 6);
            if old != 0 {
                let new = delta.apply(old);
                // 0 means "no checksum" (RFC 768); both values mean the same sum.
                put(frame, l4 + 6, if new == 0 { 0xffff } else { new });
            }
        }
    }
}

#[inline]
fn word(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[inline]
fn put(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
