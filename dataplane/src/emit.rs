//! Packets we originate about packets of others, besides ICMP: TCP resets. And the limit on originating anything.
//!
//! What is written here is an IP packet without link header, into an empty frame.

use shunt_engine::{Duration, Frame, Instant};

use crate::tuple::V4;
use crate::wire::tcp::flags;
use crate::wire::{ipv4, tcp};

/// TTL of what we originate: Linux's default, RFC 1700's recommendation.
pub(crate) const TTL: u8 = 64;

/// Writes the RST that answers the TCP segment in `packet` (an IPv4 packet without link header) where no connection
/// exists, RFC 9293 §3.10.7.1. Returns false, with nothing to send, for a RST, for a sender that is no single host,
/// and for bytes that are no TCP segment.
#[must_use]
pub fn reset(out: &mut Frame, packet: &[u8]) -> bool {
    let Ok(ip) = ipv4::Packet::new_checked(packet) else { return false };
    let Ok(segment) = tcp::Packet::new_checked(ip.payload()) else { return false };
    let later_fragment = ip.fragment_offset() != 0;
    if segment.flags() & flags::RST != 0 || ip.protocol() != 6 || later_fragment || !is_host(ip.src()) {
        return false;
    }
    let (seq, ack, reply_flags) = if segment.flags() & flags::ACK != 0 {
        (segment.ack(), 0, flags::RST)
    } else {
        (0, segment.seq().wrapping_add(segment.segment_len()), flags::RST | flags::ACK)
    };
    let header = ipv4::Repr {
        tos: ip.tos(),
        payload_len: tcp::HEADER_LEN as u16,
        id: 0,
        dont_fragment: true,
        ttl: TTL,
        protocol: 6,
        src: ip.dst(),
        dst: ip.src(),
    };
    if !out.set_len(ipv4::HEADER_LEN + tcp::HEADER_LEN) {
        return false;
    }
    let (head, body) = out.data_mut().split_at_mut(ipv4::HEADER_LEN);
    head.copy_from_slice(&header.emit());
    let mut reply = tcp::Packet::write(body).expect("the frame was just made that long");
    reply.set_src_port(segment.dst_port());
    reply.set_dst_port(segment.src_port());
    reply.set_seq(seq);
    reply.set_ack(ack);
    reply.set_flags(reply_flags);
    reply.fill_checksum(header.src, header.dst);
    true
}

/// Whether an address can be that of a single host: not 0.0.0.0/8, loopback, multicast, reserved or broadcast
/// (RFC 1122 §3.2.1.3). A subnet's broadcast address cannot be told without the subnet.
pub(crate) const fn is_host(address: V4) -> bool {
    !matches!((address.0 >> 24) as u8, 0 | 127 | 224..)
}

/// A token bucket: so many per second, and so many at once. Time is an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    interval: Duration,
    tolerance: Duration,
    /// When the bucket will be full again.
    full_at: Instant,
}

impl RateLimit {
    /// `per_second` of them on average, `burst` of them at once; both at least one.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        let interval = 1_000_000_000 / if per_second == 0 { 1 } else { per_second as u64 };
        let spare = (burst as u64).saturating_sub(1);
        Self {
            interval: Duration::from_nanos(interval),
            tolerance: Duration::from_nanos(interval * spare),
            full_at: Instant::ZERO,
        }
    }

    /// Whether one more may be sent `now`; if so it is taken.
    #[must_use]
    pub fn allow(&mut self, now: Instant) -> bool {
        if self.full_at.since(now) > self.tolerance {
            return false;
        }
        self.full_at = self.full_at.max(now) + self.interval;
        true
    }
}

impl Default for RateLimit {
    /// What Linux allows itself for ICMP (`icmp_msgs_per_sec`, `icmp_msgs_burst`).
    fn default() -> Self {
        Self::new(1000, 50)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_per_millisecond() {
        let mut limit = RateLimit::default();
        let start = Instant::from_nanos(1_000_000_000);
        let passed = (0..1000).filter(|_| limit.allow(start)).count();
        assert_eq!(passed, 50);
        let passed: usize = (1..=1000u64)
            .map(|millisecond| {
                let now = start + Duration::from_millis(millisecond);
                (0..10).filter(|_| limit.allow(now)).count()
            })
            .sum();
        assert_eq!(passed, 1000);
    }
}
