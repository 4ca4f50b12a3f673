//! Builds whole frames: for tests, benchmarks and fuzzing. Lengths and checksums are right unless asked otherwise.
//!
//! ```
//! use shunt_dataplane::wire::{builder::PacketBuilder, tcp::flags::SYN};
//!
//! let frame = PacketBuilder::tcp("198.51.100.7:40000", "203.0.113.10:80").flags(SYN).build();
//! assert_eq!(frame.len(), 14 + 20 + 20);
//! ```

use std::net::{IpAddr, SocketAddr};

use shunt_engine::port::MacAddr;

use super::ethernet::{self, ethertype};
use super::{Family, checksum, icmpv4, ipv4, ipv6, put_u16, tcp, udp, vlan};
use crate::tuple::{Address, Endpoint, Tuple, V4, V6};

/// What can be written where an address and port are meant: a `&str` like `"203.0.113.10:80"`, a [`SocketAddr`] or an
/// [`Endpoint`].
pub trait IntoSocket {
    /// The address and port.
    ///
    /// # Panics
    /// When text is no address and port: the builder is a tool for tests.
    fn socket(self) -> SocketAddr;
}

impl IntoSocket for SocketAddr {
    fn socket(self) -> SocketAddr {
        self
    }
}

impl IntoSocket for &str {
    fn socket(self) -> SocketAddr {
        self.parse().unwrap_or_else(|_| panic!("not an address and port: {self}"))
    }
}

impl<A: Address> IntoSocket for Endpoint<A> {
    fn socket(self) -> SocketAddr {
        SocketAddr::new(self.address.to_ip(), self.port)
    }
}

/// A frame to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketBuilder {
    source: MacAddr,
    destination: MacAddr,
    vid: Option<u16>,
    frame_len_min: usize,
    src: SocketAddr,
    dst: SocketAddr,
    ip: Ip,
    transport: Transport,
    payload: Vec<u8>,
    ip_checksum: Option<u16>,
    l4_checksum: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Ip {
    tos: u8,
    id: u16,
    flags_offset: u16,
    ttl: u8,
    options: Vec<u8>,
    /// IPv6 extension headers: number, and all but the first byte.
    extensions: Vec<(u8, Vec<u8>)>,
    total_len: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Transport {
    Tcp {
        flags: u8,
        seq: u32,
        ack: u32,
        window: u16,
        options: Vec<u8>,
    },
    Udp {
        length: Option<u16>,
    },
    Icmp {
        kind: u8,
        code: u8,
        rest: u32,
    },
    /// The payload is all there is: another protocol, or a later fragment.
    Raw {
        protocol: u8,
    },
}

impl PacketBuilder {
    /// Source link address unless [`Self::link`] says otherwise.
    pub const SOURCE: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x01]);
    /// Destination link address unless [`Self::link`] says otherwise.
    pub const DESTINATION: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x02]);

    /// A TCP segment: a plain ACK until told otherwise.
    pub fn tcp(src: impl IntoSocket, dst: impl IntoSocket) -> Self {
        let transport = Transport::Tcp {
            flags: tcp::flags::ACK,
            seq: 1000,
            ack: 2000,
            window: 65_535,
            options: Vec::new(),
        };
        Self::new(src.socket(), dst.socket(), transport)
    }

    /// A UDP datagram.
    pub fn udp(src: impl IntoSocket, dst: impl IntoSocket) -> Self {
        Self::new(src.socket(), dst.socket(), Transport::Udp { length: None })
    }

    /// A TCP segment or UDP datagram with the addresses and ports of `tuple`.
    pub fn tuple<A: Address>(tuple: &Tuple<A>) -> Self {
        match tuple.protocol {
            crate::tuple::Protocol::Tcp => Self::tcp(tuple.src, tuple.dst),
            crate::tuple::Protocol::Udp => Self::udp(tuple.src, tuple.dst),
        }
    }

    /// An ICMP message; the payload of an error is the quoted packet (see [`Self::build_ip`]).
    pub fn icmp(src: &str, dst: &str, kind: u8, code: u8) -> Self {
        Self::new(host(src), host(dst), Transport::Icmp { kind, code, rest: 0 })
    }

    /// A packet of another protocol, or a later fragment: the payload follows the IP header.
    pub fn raw(src: &str, dst: &str, protocol: u8) -> Self {
        Self::new(host(src), host(dst), Transport::Raw { protocol })
    }

    fn new(src: SocketAddr, dst: SocketAddr, transport: Transport) -> Self {
        assert_eq!(src.is_ipv4(), dst.is_ipv4(), "both addresses are of one family");
        Self {
            source: Self::SOURCE,
            destination: Self::DESTINATION,
            vid: None,
            frame_len_min: 0,
            src,
            dst,
            ip: Ip {
                tos: 0,
                id: 0x1234,
                flags_offset: 0,
                ttl: 64,
                options: Vec::new(),
                extensions: Vec::new(),
                total_len: None,
            },
            transport,
            payload: Vec::new(),
            ip_checksum: None,
            l4_checksum: None,
        }
    }

    /// Link addresses.
    #[must_use]
    pub fn link(self, source: MacAddr, destination: MacAddr) -> Self {
        Self { source, destination, ..self }
    }

    /// An 802.1Q tag.
    #[must_use]
    pub fn vlan(self, vid: u16) -> Self {
        Self { vid: Some(vid), ..self }
    }

    /// Ethernet padding up to the shortest legal frame.
    #[must_use]
    pub fn padded(self) -> Self {
        Self { frame_len_min: ethernet::FRAME_LEN_MIN, ..self }
    }

    /// What the transport header carries.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = payload.into();
        self
    }

    /// Type of service, or traffic class.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        self.ip.tos = tos;
        self
    }

    /// TTL, or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ip.ttl = ttl;
        self
    }

    /// IPv4 identification.
    #[must_use]
    pub fn id(mut self, id: u16) -> Self {
        self.ip.id = id;
        self
    }

    /// "Don't fragment".
    #[must_use]
    pub fn dont_fragment(mut self) -> Self {
        self.ip.flags_offset |= ipv4::DONT_FRAGMENT;
        self
    }

    /// "More fragments".
    #[must_use]
    pub fn more_fragments(mut self) -> Self {
        self.ip.flags_offset |= ipv4::MORE_FRAGMENTS;
        self
    }

    /// Fragment offset in bytes, a multiple of 8.
    #[must_use]
    pub fn fragment_offset(mut self, bytes: u16) -> Self {
        self.ip.flags_offset = (self.ip.flags_offset & !ipv4::OFFSET_MASK) | (bytes / 8);
        self
    }

    /// IPv4 options; padded to a multiple of four bytes.
    #[must_use]
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.ip.options = padded_options(options);
        self
    }

    /// One more IPv6 extension header: its number, and its bytes behind the first, which says what follows.
    #[must_use]
    pub fn extension(mut self, number: u8, body: impl Into<Vec<u8>>) -> Self {
        self.ip.extensions.push((number, body.into()));
        self
    }

    /// A total length (IPv6: payload length) that may lie.
    #[must_use]
    pub fn total_len(mut self, len: u16) -> Self {
        self.ip.total_len = Some(len);
        self
    }

    /// An IPv4 header checksum that may lie.
    #[must_use]
    pub fn ip_checksum(self, value: u16) -> Self {
        Self { ip_checksum: Some(value), ..self }
    }

    /// A transport checksum that may lie; 0 for UDP without one.
    #[must_use]
    pub fn l4_checksum(self, value: u16) -> Self {
        Self { l4_checksum: Some(value), ..self }
    }

    /// TCP control bits.
    #[must_use]
    pub fn flags(mut self, value: u8) -> Self {
        if let Transport::Tcp { flags, .. } = &mut self.transport {
            *flags = value;
        }
        self
    }

    /// TCP sequence number.
    #[must_use]
    pub fn seq(mut self, value: u32) -> Self {
        if let Transport::Tcp { seq, .. } = &mut self.transport {
            *seq = value;
        }
        self
    }

    /// TCP acknowledgement number.
    #[must_use]
    pub fn ack(mut self, value: u32) -> Self {
        if let Transport::Tcp { ack, .. } = &mut self.transport {
            *ack = value;
        }
        self
    }

    /// TCP window.
    #[must_use]
    pub fn window(mut self, value: u16) -> Self {
        if let Transport::Tcp { window, .. } = &mut self.transport {
            *window = value;
        }
        self
    }

    /// TCP options; padded to a multiple of four bytes.
    #[must_use]
    pub fn tcp_options(mut self, value: &[u8]) -> Self {
        if let Transport::Tcp { options, .. } = &mut self.transport {
            *options = padded_options(value);
        }
        self
    }

    /// A UDP length that may lie.
    #[must_use]
    pub fn udp_length(mut self, value: u16) -> Self {
        if let Transport::Udp { length } = &mut self.transport {
            *length = Some(value);
        }
        self
    }

    /// The rest of an ICMP header: an MTU, or echo identifier and sequence number.
    #[must_use]
    pub fn icmp_rest(mut self, value: u32) -> Self {
        if let Transport::Icmp { rest, .. } = &mut self.transport {
            *rest = value;
        }
        self
    }

    /// The frame.
    pub fn build(&self) -> Vec<u8> {
        let kind = if self.src.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
        let mut frame = Vec::with_capacity(ethernet::FRAME_LEN_MIN);
        frame.extend(self.destination.0);
        frame.extend(self.source.0);
        if let Some(vid) = self.vid {
            frame.extend(ethertype::VLAN.to_be_bytes());
            frame.extend(vid.to_be_bytes());
            debug_assert_eq!(frame.len() + 2, ethernet::HEADER_LEN + vlan::TAG_LEN);
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(self.build_ip());
        frame.resize(frame.len().max(self.frame_len_min), 0);
        frame
    }

    /// The IP packet alone.
    pub fn build_ip(&self) -> Vec<u8> {
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.ipv4(V4(src.to_bits()), V4(dst.to_bits())),
            (src, dst) => match (V6::from_ip(src), V6::from_ip(dst)) {
                (Some(src), Some(dst)) => self.ipv6(src, dst),
                _ => unreachable!("`new` refuses two families"),
            },
        }
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp { .. } => 17,
            Transport::Icmp { .. } if self.src.is_ipv6() => ICMPV6,
            Transport::Icmp { .. } => ipv4::protocol::ICMP,
            Transport::Raw { protocol } => protocol,
        }
    }

    fn ipv4(&self, src: V4, dst: V4) -> Vec<u8> {
        let body = self.body(src, dst);
        let header_len = ipv4::HEADER_LEN + self.ip.options.len();
        let mut bytes = vec![0; ipv4::HEADER_LEN];
        bytes[0] = 0x40 | (header_len / 4) as u8;
        bytes.extend(&self.ip.options);
        let mut header = ipv4::Packet::new_header(&mut bytes).expect("version and length were just set");
        header.set_tos(self.ip.tos);
        header.set_total_len(self.ip.total_len.unwrap_or((header_len + body.len()) as u16));
        header.set_id(self.ip.id);
        header.set_flags_offset(self.ip.flags_offset);
        header.set_ttl(self.ip.ttl);
        header.set_protocol(self.protocol());
        header.set_src(src);
        header.set_dst(dst);
        header.fill_checksum();
        if let Some(value) = self.ip_checksum {
            header.set_checksum(value);
        }
        bytes.extend(body);
        bytes
    }

    fn ipv6(&self, src: V6, dst: V6) -> Vec<u8> {
        let mut body = Vec::new();
        let mut next = self.ip.extensions.iter().map(|(number, _)| *number).skip(1).chain([self.protocol()]);
        for (_, extension) in &self.ip.extensions {
            body.extend(next.next());
            body.extend(extension);
        }
        body.extend(self.body(src, dst));
        let mut bytes = vec![0; ipv6::HEADER_LEN];
        bytes[0] = 6 << 4;
        let mut header = ipv6::Packet::new_checked(&mut bytes).expect("version and length are right");
        header.set_class_and_label(self.ip.tos, 0);
        header.set_payload_len(self.ip.total_len.unwrap_or(body.len() as u16));
        header.set_next_header(self.ip.extensions.first().map_or(self.protocol(), |(number, _)| *number));
        header.set_hop_limit(self.ip.ttl);
        header.set_src(src);
        header.set_dst(dst);
        bytes.extend(body);
        bytes
    }

    /// Transport header and payload.
    fn body<A: Family>(&self, src: A, dst: A) -> Vec<u8> {
        let (mut bytes, field) = self.transport_header();
        bytes.extend(&self.payload);
        if let Some(at) = field {
            let protocol = self.protocol();
            let right = match self.transport {
                Transport::Icmp { .. } if self.src.is_ipv4() => checksum::of(&bytes),
                Transport::Udp { .. } => checksum::udp(checksum::transport(src, dst, protocol, &bytes)),
                Transport::Tcp { .. } | Transport::Raw { .. } | Transport::Icmp { .. } => {
                    checksum::transport(src, dst, protocol, &bytes)
                }
            };
            put_u16(&mut bytes, at, self.l4_checksum.unwrap_or(right));
        }
        bytes
    }

    /// The transport header without checksum, and where that goes.
    fn transport_header(&self) -> (Vec<u8>, Option<usize>) {
        let ports = [self.src.port().to_be_bytes(), self.dst.port().to_be_bytes()].concat();
        match &self.transport {
            Transport::Tcp { flags, seq, ack, window, options } => {
                let mut bytes = ports;
                bytes.extend(seq.to_be_bytes());
                bytes.extend(ack.to_be_bytes());
                bytes.extend([((tcp::HEADER_LEN + options.len()) * 4) as u8, *flags]);
                bytes.extend(window.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(options);
                (bytes, Some(tcp::CHECKSUM))
            }
            Transport::Udp { length } => {
                let mut bytes = ports;
                let right = (udp::HEADER_LEN + self.payload.len()) as u16;
                bytes.extend(length.unwrap_or(right).to_be_bytes());
                bytes.extend([0; 2]);
                (bytes, Some(udp::CHECKSUM))
            }
            Transport::Icmp { kind, code, rest } => {
                let mut bytes = vec![*kind, *code, 0, 0];
                bytes.extend(rest.to_be_bytes());
                (bytes, Some(icmpv4::CHECKSUM))
            }
            Transport::Raw { .. } => (Vec::new(), None),
        }
    }
}

const ICMPV6: u8 = 58;

fn host(text: &str) -> SocketAddr {
    let address = text.parse().unwrap_or_else(|_| panic!("not an address: {text}"));
    SocketAddr::new(address, 0)
}

fn padded_options(options: &[u8]) -> Vec<u8> {
    let mut padded = options.to_vec();
    padded.resize(options.len().next_multiple_of(4), 0);
    assert!(padded.len() <= 40, "options take at most 40 bytes");
    padded
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice, VlanSlice};
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    enum Kind {
        Tcp,
        Udp,
        Icmp,
    }

    prop_compose! {
        fn frames()(
            kind in prop_oneof![Just(Kind::Tcp), Just(Kind::Udp), Just(Kind::Icmp)],
            v6 in any::<bool>(),
            (src, dst, src_port, dst_port) in any::<(u32, u32, u16, u16)>(),
            vid in prop::option::of(0u16..4096),
            (tos, ttl, id) in any::<(u8, u8, u16)>(),
            options in prop::collection::vec(1u8..=1, 0..40),
            payload in prop::collection::vec(any::<u8>(), 0..600),
            (seq, ack, flags) in any::<(u32, u32, u8)>(),
        ) -> PacketBuilder {
            let socket = |bits: u32, port| match v6 {
                true => Endpoint::new(V6([0x2001_0db8, 0, 1, bits]), port).socket(),
                false => Endpoint::new(V4(bits), port).socket(),
            };
            let (src, dst) = (socket(src, src_port), socket(dst, dst_port));
            let packet = match kind {
                Kind::Tcp => PacketBuilder::tcp(src, dst).seq(seq).ack(ack).flags(flags).tcp_options(&options),
                Kind::Icmp if !v6 => {
                    PacketBuilder::icmp(&src.ip().to_string(), &dst.ip().to_string(), 8, 0).icmp_rest(seq)
                }
                Kind::Udp | Kind::Icmp => PacketBuilder::udp(src, dst),
            };
            let packet = if v6 { packet } else { packet.ip_options(&options).id(id) };
            let packet = packet.tos(tos).ttl(ttl).payload(payload);
            vid.map_or(packet.clone(), |vid| packet.vlan(vid))
        }
    }

    /// The transport checksum field of `bytes`, and what etherparse computes for it.
    fn checksums(slice: &TransportSlice<'_>, net: &NetSlice<'_>) -> (u16, u16) {
        let (v4, v6) = match net {
            NetSlice::Ipv4(ip) => (Some((ip.header().source(), ip.header().destination())), None),
            NetSlice::Ipv6(ip) => (None, Some((ip.header().source(), ip.header().destination()))),
            NetSlice::Arp(_) => unreachable!(),
        };
        match slice {
            TransportSlice::Tcp(tcp) => {
                let header = tcp.to_header();
                let right = match (v4, v6) {
                    (Some((src, dst)), _) => header.calc_checksum_ipv4_raw(src, dst, tcp.payload()),
                    (_, Some((src, dst))) => header.calc_checksum_ipv6_raw(src, dst, tcp.payload()),
                    _ => unreachable!(),
                };
                (tcp.checksum(), right.unwrap())
            }
            TransportSlice::Udp(udp) => {
                let header = udp.to_header();
                let right = match (v4, v6) {
                    (Some((src, dst)), _) => header.calc_checksum_ipv4_raw(src, dst, udp.payload()),
                    (_, Some((src, dst))) => header.calc_checksum_ipv6_raw(src, dst, udp.payload()),
                    _ => unreachable!(),
                };
                (udp.checksum(), right.unwrap())
            }
            TransportSlice::Icmpv4(icmp) => {
                (icmp.checksum(), icmp.header().icmp_type.calc_checksum(icmp.payload()))
            }
            TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => unreachable!(),
        }
    }

    proptest! {
        #[test]
        fn etherparse_reads_what_was_asked_for_and_agrees_about_checksums(packet in frames()) {
            let frame = packet.build();
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            prop_assert_eq!(sliced.vlan().map(|vlan| match vlan {
                VlanSlice::SingleVlan(tag) => tag.vlan_identifier().value(),
                VlanSlice::DoubleVlan(_) => unreachable!(),
            }), packet.vid);
            let net = sliced.net.unwrap();
            match &net {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header();
                    prop_assert_eq!(IpAddr::V4(header.source_addr()), packet.src.ip());
                    prop_assert_eq!(IpAddr::V4(header.destination_addr()), packet.dst.ip());
                    prop_assert_eq!((header.ttl(), header.identification()), (packet.ip.ttl, packet.ip.id));
                    prop_assert_eq!(header.options(), &packet.ip.options[..]);
                    prop_assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
                }
                NetSlice::Ipv6(ip) => {
                    let header = ip.header();
                    prop_assert_eq!(IpAddr::V6(header.source_addr()), packet.src.ip());
                    prop_assert_eq!(IpAddr::V6(header.destination_addr()), packet.dst.ip());
                    prop_assert_eq!((header.hop_limit(), header.traffic_class()), (packet.ip.ttl, packet.ip.tos));
                }
                NetSlice::Arp(_) => prop_assert!(false),
            }
            let transport = sliced.transport.unwrap();
            let (is, right) = checksums(&transport, &net);
            prop_assert_eq!(is, right);
            match (&transport, &packet.transport) {
                (TransportSlice::Tcp(tcp), Transport::Tcp { seq, ack, options, .. }) => {
                    prop_assert_eq!((tcp.source_port(), tcp.destination_port()), (packet.src.port(), packet.dst.port()));
                    prop_assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (*seq, *ack));
                    prop_assert_eq!((tcp.options(), tcp.payload()), (&options[..], &packet.payload[..]));
                }
                (TransportSlice::Udp(udp), Transport::Udp { .. }) => {
                    prop_assert_eq!((udp.source_port(), udp.destination_port()), (packet.src.port(), packet.dst.port()));
                    prop_assert_eq!(udp.payload(), &packet.payload[..]);
                }
                (TransportSlice::Icmpv4(icmp), Transport::Icmp { .. }) => {
                    prop_assert_eq!(icmp.payload(), &packet.payload[..]);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn our_own_views_read_what_was_asked_for(packet in frames()) {
            let bytes = packet.build_ip();
            match (V4::from_ip(packet.src.ip()), V4::from_ip(packet.dst.ip())) {
                (Some(src), Some(dst)) => {
                    let ip = ipv4::Packet::new_checked(&bytes).unwrap();
                    prop_assert_eq!((ip.src(), ip.dst(), ip.tos(), ip.ttl()), (src, dst, packet.ip.tos, packet.ip.ttl));
                    prop_assert!(ip.checksum_is_right());
                    prop_assert!(transport_is_right(&packet, ip.payload(), src, dst));
                }
                _ => {
                    let ip = ipv6::Packet::new_checked(&bytes).unwrap();
                    prop_assert!(transport_is_right(&packet, ip.payload(), ip.src(), ip.dst()));
                }
            }
        }
    }

    fn transport_is_right<A: Family>(packet: &PacketBuilder, bytes: &[u8], src: A, dst: A) -> bool {
        match packet.transport {
            Transport::Tcp { .. } => {
                let segment = tcp::Packet::new_checked(bytes).unwrap();
                segment.payload() == packet.payload && segment.checksum_is_right(src, dst)
            }
            Transport::Udp { .. } => {
                let datagram = udp::Packet::new_checked(bytes).unwrap();
                datagram.payload() == packet.payload && datagram.checksum_is_right(src, dst)
            }
            Transport::Icmp { .. } => icmpv4::Packet::new_checked(bytes).unwrap().checksum_is_right(),
            Transport::Raw { .. } => true,
        }
    }

    #[test]
    fn lies_are_told_when_asked_for() {
        let packet = PacketBuilder::udp("192.0.2.1:1", "192.0.2.2:2").payload(*b"x");
        let bytes = packet.total_len(77).ip_checksum(0xdead).l4_checksum(0).udp_length(5).build_ip();
        let ip = ipv4::Packet::new_header(&bytes).unwrap();
        assert_eq!((ip.total_len(), ip.checksum(), &bytes[24..28]), (77, 0xdead, &[0, 5, 0, 0][..]));
    }

    #[test]
    fn a_padded_frame_has_the_minimum_length_and_its_packet_its_own() {
        let frame = PacketBuilder::tcp("192.0.2.1:1", "192.0.2.2:2").padded().build();
        assert_eq!(frame.len(), 60);
        assert_eq!(ipv4::Packet::new_checked(&frame[14..]).unwrap().total_len(), 40);
    }

    #[test]
    fn a_fragment_is_built_from_its_offset_and_flag() {
        let bytes = PacketBuilder::raw("192.0.2.1", "192.0.2.2", 17)
            .fragment_offset(1480)
            .more_fragments()
            .build_ip();
        let ip = ipv4::Packet::new_checked(&bytes).unwrap();
        assert_eq!((ip.fragment_offset(), ip.more_fragments(), ip.protocol()), (1480, true, 17));
    }
}
