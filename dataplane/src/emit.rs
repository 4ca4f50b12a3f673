//! Packets we originate, and how many of them.

use shunt_engine::{Duration, Frame, Instant};

use crate::tuple::V4;
use crate::wire::checksum;
use crate::wire::tcp::flags::{ACK, FIN, RST, SYN};

const TCP: u8 = 6;
const TTL: u8 = 64;
const DONT_FRAGMENT: u8 = 0x40;

/// At most so many packets per second in the long run, and a few at once: as the kernel's `icmp_msgs_per_sec` and
/// `icmp_msgs_burst`.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateLimit {
    /// When the packets sent so far would have been sent at an even pace.
    paced: Instant,
}

impl RateLimit {
    const INTERVAL: Duration = Duration::from_millis(1);
    const BURST: Duration = Duration::from_millis(50);

    /// Whether another packet may be sent now; it counts as sent then.
    pub fn allow(&mut self, now: Instant) -> bool {
        let paced = self.paced.max(now) + Self::INTERVAL;
        let allowed = paced.since(now) <= Self::BURST;
        if allowed {
            self.paced = paced;
        }
        allowed
    }
}

/// Writes the RST that answers the TCP segment `packet` (IPv4; RFC 9293 §3.10.7.1) into an empty frame, without link
/// header. False when it does not fit.
pub fn reset(out: &mut Frame, packet: &[u8]) -> bool {
    if !out.set_len(40) {
        return false;
    }
    let header_len = usize::from(packet[0] & 15) * 4;
    let segment = &packet[header_len..];
    let flags = segment[13];
    let address =
        |at: usize| V4(u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]));
    let number =
        |at: usize| u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
    let payload = segment.len() - usize::from(segment[12] >> 4) * 4;
    let phantom = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let (seq, ack, flags) = if flags & ACK != 0 {
        (number(8), 0, RST)
    } else {
        (0, number(4).wrapping_add(payload as u32).wrapping_add(phantom), RST | ACK)
    };
    let (src, dst) = (address(16), address(12));
    let (header, tcp) = out.data_mut().split_at_mut(20);
    ipv4_header(header, 40, TCP, src, dst);
    tcp.fill(0);
    tcp[..2].copy_from_slice(&segment[2..4]);
    tcp[2..4].copy_from_slice(&segment[..2]);
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    tcp[12..14].copy_from_slice(&[5 << 4, flags]);
    let pseudo = u64::from(src.0) + u64::from(dst.0) + u64::from(TCP) + 20;
    let sum = !checksum::fold(pseudo + checksum::sum(tcp));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Writes an IPv4 header of 20 bytes with its checksum. Not to be fragmented, so its identification may be 0 (RFC 6864).
pub(crate) fn ipv4_header(out: &mut [u8], total_len: u16, protocol: u8, src: V4, dst: V4) {
    let [len_high, len_low] = total_len.to_be_bytes();
    out[..12].copy_from_slice(&[0x45, 0, len_high, len_low, 0, 0, DONT_FRAGMENT, 0, TTL, protocol, 0, 0]);
    out[12..16].copy_from_slice(&src.0.to_be_bytes());
    out[16..20].copy_from_slice(&dst.0.to_be_bytes());
    let sum = checksum::of(&out[..20]);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
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
