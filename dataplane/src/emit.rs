//! Packets we originate about packets of others, besides ICMP: TCP resets. And the limit on originating anything.
//!
//! What is written here is an IP packet without link header, into an empty frame.

use shunt_engine::{Duration, Frame, Instant};

use crate::ip::Ip;
use crate::tuple::{Endpoint, V4, V6};
use crate::wire::tcp::flags;
use crate::wire::{Family, extension, ipv4, ipv6, tcp};

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
    answer(body, &segment, header.src, header.dst);
    true
}

/// As [`reset`], for an IPv6 packet.
#[must_use]
pub fn reset_v6(out: &mut Frame, packet: &[u8]) -> bool {
    let (Ok(ip), Ok(upper)) = (ipv6::Packet::new_checked(packet), extension::walk(packet)) else {
        return false;
    };
    let end = ipv6::HEADER_LEN + ip.payload().len();
    let Some(Ok(segment)) = packet.get(upper.at..end).map(tcp::Packet::new_checked) else { return false };
    let later_fragment = upper.fragment.is_some_and(|fragment| fragment.offset != 0);
    if segment.flags() & flags::RST != 0 || upper.protocol != 6 || later_fragment || !is_host_v6(ip.src()) {
        return false;
    }
    let header = ipv6::Repr {
        traffic_class: ip.traffic_class(),
        flow_label: 0,
        payload_len: tcp::HEADER_LEN as u16,
        next_header: 6,
        hop_limit: TTL,
        src: ip.dst(),
        dst: ip.src(),
    };
    if !out.set_len(ipv6::HEADER_LEN + tcp::HEADER_LEN) {
        return false;
    }
    let (head, body) = out.data_mut().split_at_mut(ipv6::HEADER_LEN);
    head.copy_from_slice(&header.emit());
    answer(body, &segment, header.src, header.dst);
    true
}

/// Writes the RST from `src` to `dst` that answers `segment` into `bytes`.
fn answer<A: Family>(bytes: &mut [u8], segment: &tcp::Packet<&[u8]>, src: A, dst: A) {
    let (seq, ack, reply_flags) = if segment.flags() & flags::ACK != 0 {
        (segment.ack(), 0, flags::RST)
    } else {
        (0, segment.seq().wrapping_add(segment.segment_len()), flags::RST | flags::ACK)
    };
    let mut reply = tcp::Packet::write(bytes).expect("the frame was just made that long");
    reply.set_src_port(segment.dst_port());
    reply.set_dst_port(segment.src_port());
    reply.set_seq(seq);
    reply.set_ack(ack);
    reply.set_flags(reply_flags);
    reply.fill_checksum(src, dst);
}

/// A TCP segment without data or options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bare {
    /// Control bits.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
}

impl Bare {
    /// Writes the packet that brings it from `src` to `dst`; false when `out` has no room.
    #[must_use]
    pub fn write<A: Ip>(self, out: &mut Frame, src: Endpoint<A>, dst: Endpoint<A>) -> bool {
        if !out.set_len(A::HEADER_LEN + tcp::HEADER_LEN) {
            return false;
        }
        let (head, body) = out.data_mut().split_at_mut(A::HEADER_LEN);
        A::write_header(head, src.address, dst.address, tcp::HEADER_LEN as u16);
        let mut segment = tcp::Packet::write(body).expect("the frame was just made that long");
        segment.set_src_port(src.port);
        segment.set_dst_port(dst.port);
        segment.set_seq(self.seq);
        segment.set_ack(self.ack);
        segment.set_flags(self.flags);
        segment.fill_checksum(src.address, dst.address);
        true
    }
}

/// Whether an address can be that of a single host: not 0.0.0.0/8, loopback, multicast, reserved or broadcast
/// (RFC 1122 §3.2.1.3). A subnet's broadcast address cannot be told without the subnet.
pub(crate) const fn is_host(address: V4) -> bool {
    !matches!((address.0 >> 24) as u8, 0 | 127 | 224..)
}

/// As [`is_host`] for IPv6: not `::`, loopback, multicast, or an IPv4 address in disguise (RFC 4291 §2.5 and §2.7; the
/// kernel drops mapped ones on the wire too).
pub(crate) const fn is_host_v6(address: V6) -> bool {
    let V6([a, b, c, d]) = address;
    let unspecified_or_loopback = a == 0 && b == 0 && c == 0 && d <= 1;
    let mapped = a == 0 && b == 0 && c == 0xffff;
    !unspecified_or_loopback && !mapped && a >> 24 != 0xff
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
    use crate::forward::tests::{checksums_are_right, frame};
    use crate::tuple::Address;
    use crate::wire::builder::PacketBuilder;

    const CLIENT: &str = "198.51.100.7:40000";
    const VIP: &str = "203.0.113.10:80";

    /// The packet that answers, if any does.
    fn answer(packet: &PacketBuilder) -> Option<Vec<u8>> {
        let (mut frame, mut pool) = frame(&[]);
        let written = reset(&mut frame, &packet.build_ip());
        let bytes = frame.data().to_vec();
        pool.free(frame);
        assert_eq!(written, !bytes.is_empty());
        written.then_some(bytes)
    }

    fn v4(text: &str) -> V4 {
        V4::from_ip(text.parse().unwrap()).unwrap()
    }

    #[test]
    fn an_acknowledging_segment_is_reset_at_the_number_it_acknowledges() {
        let segment = PacketBuilder::tcp(CLIENT, VIP).flags(flags::ACK | flags::PSH).seq(100).ack(7777);
        let bytes = answer(&segment.payload(*b"GET /").tos(0x10)).unwrap();
        let expected = PacketBuilder::tcp(VIP, CLIENT).flags(flags::RST).seq(7777).ack(0).window(0);
        assert_eq!(bytes, expected.id(0).dont_fragment().tos(0x10).build_ip());
    }

    #[test]
    fn another_segment_is_reset_with_all_of_it_acknowledged() {
        for (bits, data, length) in
            [(flags::SYN, 0, 1), (flags::SYN | flags::FIN, 0, 2), (flags::PSH, 5, 5), (flags::FIN, 3, 4)]
        {
            let segment = PacketBuilder::tcp(CLIENT, VIP).flags(bits).seq(u32::MAX).ack(7777);
            let bytes = answer(&segment.payload(vec![1; data]).tcp_options(&[2, 4, 5, 0xb4])).unwrap();
            let expected = PacketBuilder::tcp(VIP, CLIENT).flags(flags::RST | flags::ACK).window(0);
            let expected = expected.seq(0).ack(u32::MAX.wrapping_add(length)).id(0).dont_fragment();
            assert_eq!(bytes, expected.build_ip());
            assert_eq!(checksums_are_right(&bytes), (true, true));
        }
    }

    #[test]
    fn an_ipv6_segment_is_answered_alike_whatever_extension_headers_it_has() {
        let (client, vip) = ("[2001:db8:64::7]:40000", "[2001:db8:cb::10]:80");
        let answer = |packet: &PacketBuilder| {
            let (mut frame, mut pool) = frame(&[]);
            let written = reset_v6(&mut frame, &packet.build_ip());
            let bytes = frame.data().to_vec();
            pool.free(frame);
            written.then_some(bytes)
        };
        let segment = PacketBuilder::tcp(client, vip).extension(60, [0; 7]).tos(0x10);
        let acknowledging =
            segment.clone().flags(flags::ACK | flags::PSH).seq(100).ack(7777).payload(*b"GET /");
        let expected = PacketBuilder::tcp(vip, client).window(0).tos(0x10);
        let at_its_number = expected.clone().flags(flags::RST).seq(7777).ack(0);
        assert_eq!(answer(&acknowledging), Some(at_its_number.build_ip()));
        let opening = segment.clone().flags(flags::SYN).seq(100).payload(*b"data");
        let all_of_it = expected.flags(flags::RST | flags::ACK).seq(0).ack(105);
        assert_eq!(answer(&opening), Some(all_of_it.build_ip()));

        assert_eq!(answer(&segment.clone().flags(flags::RST | flags::ACK)), None);
        assert_eq!(answer(&segment.extension(44, [0, 0, 8, 0, 0, 0, 1])), None, "a later fragment");
        assert_eq!(answer(&PacketBuilder::udp(client, vip).payload([0x50; 20])), None);
        for source in ["[::]:1", "[::1]:1", "[ff02::1]:1", "[::ffff:192.0.2.1]:1"] {
            assert_eq!(answer(&PacketBuilder::tcp(source, vip)), None, "{source}");
        }
    }

    #[test]
    fn a_reset_is_never_answered() {
        for bits in [flags::RST, flags::RST | flags::ACK, flags::RST | flags::SYN] {
            assert_eq!(answer(&PacketBuilder::tcp(CLIENT, VIP).flags(bits)), None);
        }
    }

    #[test]
    fn what_is_no_segment_from_a_host_is_not_answered() {
        assert_eq!(answer(&PacketBuilder::udp(CLIENT, VIP).payload([0x50; 20])), None);
        assert_eq!(answer(&PacketBuilder::tcp(CLIENT, VIP).fragment_offset(8)), None);
        assert_eq!(answer(&PacketBuilder::raw("198.51.100.7", "203.0.113.10", 6).payload([0x50; 19])), None);
        for source in ["0.0.0.0:1", "127.0.0.1:1", "224.0.0.18:1", "255.255.255.255:1"] {
            assert_eq!(answer(&PacketBuilder::tcp(source, VIP)), None);
        }
    }

    #[test]
    fn hosts_are_what_rfc_1122_lets_send() {
        for host in ["1.0.0.0", "10.0.0.1", "126.255.255.255", "128.0.0.1", "223.255.255.255"] {
            assert!(is_host(v4(host)), "{host}");
        }
        for other in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"] {
            assert!(!is_host(v4(other)), "{other}");
        }
    }

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

    #[test]
    fn a_long_silence_earns_no_more_than_a_burst() {
        let mut limit = RateLimit::new(10, 3);
        for hour in 1..4u64 {
            let now = Instant::ZERO + Duration::from_secs(3600 * hour);
            assert_eq!((0..100).filter(|_| limit.allow(now)).count(), 3);
            assert!(!limit.allow(now + Duration::from_millis(99)));
            assert!(limit.allow(now + Duration::from_millis(100)));
        }
    }
}
