//! Receive-side scaling: which queue a NIC puts a flow on (Toeplitz hash and indirection table, as Microsoft's
//! "RSS hashing functions" define them).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How a port spreads received frames over its queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rss {
    /// The secret key; 40 bytes on most NICs.
    pub key: Box<[u8]>,
    /// Indirection table: `hash % len` → queue.
    pub reta: Box<[u16]>,
    /// Whether TCP ports are hashed (else addresses only).
    pub tcp_ports: bool,
    /// Whether UDP ports are hashed (else addresses only).
    pub udp_ports: bool,
}

/// Why it is not known how a port spreads received frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// There is nothing to ask, or it does not answer.
    #[error("the driver does not tell how it spreads frames")]
    NotTold,
    /// A packet socket's fanout: a hash under a secret of the kernel's.
    #[error("the kernel spreads frames by a hash of its own")]
    KernelsOwn,
    /// Not the Toeplitz hash, or one of something else than the packet's bytes as they are.
    #[error("the hash is not the plain Toeplitz hash")]
    Function,
    /// Not the addresses, with or without the ports.
    #[error("other fields are hashed than addresses, or addresses and ports")]
    Fields,
    /// IPv4 and IPv6 differ.
    #[error("ports are hashed in one version of IP only")]
    Versions,
}

/// What the hash of a packet is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address; of the source's family.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source and destination port of a TCP or UDP packet that is not a fragment.
    pub ports: Option<(u16, u16)>,
}

impl Rss {
    /// Microsoft's key, the default of many drivers, with an indirection table of 128 entries that deals `queues`
    /// queues out in turn. TCP and UDP ports are hashed.
    pub fn even(queues: u16) -> Self {
        Self {
            key: MICROSOFT_KEY.into(),
            reta: (0..RETA_LEN).map(|entry| entry % queues.max(1)).collect(),
            tcp_ports: true,
            udp_ports: true,
        }
    }

    /// The hash a NIC with this key computes.
    pub fn hash(&self, tuple: &Tuple) -> u32 {
        let mut input = [0; INPUT_LEN_MAX];
        let mut len = 0;
        let mut put = |bytes: &[u8]| {
            input[len..len + bytes.len()].copy_from_slice(bytes);
            len += bytes.len();
        };
        for address in [tuple.source, tuple.destination] {
            match address {
                IpAddr::V4(v4) => put(&v4.octets()),
                IpAddr::V6(v6) => put(&v6.octets()),
            }
        }
        let hashed = (tuple.protocol == TCP && self.tcp_ports) || (tuple.protocol == UDP && self.udp_ports);
        if let Some((source, destination)) = tuple.ports.filter(|_| hashed) {
            put(&source.to_be_bytes());
            put(&destination.to_be_bytes());
        }
        toeplitz(&self.key, &input[..len])
    }

    /// The queue that frames of `tuple` arrive on.
    pub fn queue_of(&self, tuple: &Tuple) -> u16 {
        self.queue_of_hash(self.hash(tuple))
    }

    /// The queue a frame arrives on. What is not IP has no hash and arrives on the first queue, as on a NIC.
    pub fn queue_of_frame(&self, frame: &[u8]) -> u16 {
        Tuple::of_frame(frame).map_or(0, |tuple| self.queue_of(&tuple))
    }

    fn queue_of_hash(&self, hash: u32) -> u16 {
        let entries = self.reta.len().max(1);
        self.reta.get(hash as usize % entries).copied().unwrap_or(0)
    }
}

impl Tuple {
    /// What a NIC reads off an Ethernet frame, with or without VLAN tags: addresses of IP packets, and ports where
    /// they are at hand (no fragment, no IPv6 extension header). `None` for all other frames.
    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        let mut at = 12;
        let mut ethertype = be16(frame, at)?;
        for _ in 0..VLAN_TAGS_MAX {
            if !matches!(ethertype, VLAN | VLAN_SERVICE) {
                break;
            }
            at += 4;
            ethertype = be16(frame, at)?;
        }
        let packet = frame.get(at + 2..)?;
        match ethertype {
            IPV4 => Self::of_ipv4(packet),
            IPV6 => Self::of_ipv6(packet),
            _ => None,
        }
    }

    fn of_ipv4(packet: &[u8]) -> Option<Self> {
        let (version, header_len) = (packet.first()? >> 4, usize::from(packet[0] & 15) * 4);
        let header: &[u8; 20] = packet.first_chunk()?;
        if version != 4 || header_len < header.len() {
            return None;
        }
        let [source, destination] = [12, 16].map(|at| {
            let octets: [u8; 4] = std::array::from_fn(|byte| header[at + byte]);
            IpAddr::V4(Ipv4Addr::from(octets))
        });
        // More-fragments flag and fragment offset: both zero in a whole packet.
        let whole = (u16::from_be_bytes([header[6], header[7]]) & 0x3fff) == 0;
        let protocol = header[9];
        let ports = if whole { ports_at(packet, header_len, protocol) } else { None };
        Some(Self { source, destination, protocol, ports })
    }

    fn of_ipv6(packet: &[u8]) -> Option<Self> {
        let header: &[u8; 40] = packet.first_chunk()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let [source, destination] = [8, 24].map(|at| {
            let octets: [u8; 16] = std::array::from_fn(|byte| header[at + byte]);
            IpAddr::V6(Ipv6Addr::from(octets))
        });
        let protocol = header[6];
        let ports = ports_at(packet, header.len(), protocol);
        Some(Self { source, destination, protocol, ports })
    }
}

/// The Toeplitz hash under one key by table: a look-up per byte of input.
///
/// The hash is linear: that of an input is the sum modulo two (`^`) of what its parts add, each at its place.
#[derive(Clone, PartialEq, Eq)]
pub struct Toeplitz {
    bytes: Box<[[u32; 256]; INPUT_LEN_MAX]>,
}

impl Toeplitz {
    /// The hash under `key`.
    pub fn new(key: &[u8]) -> Self {
        let mut bytes = Box::new([[0; 256]; INPUT_LEN_MAX]);
        for (at, values) in bytes.iter_mut().enumerate() {
            let mut input = [0; INPUT_LEN_MAX];
            for (byte, value) in (0..=u8::MAX).zip(values) {
                input[at] = byte;
                *value = toeplitz(key, &input);
            }
        }
        Self { bytes }
    }

    /// What `part` adds to the hash where it is the input from byte `at` on.
    ///
    /// # Panics
    /// When it would end behind the longest input.
    #[inline]
    pub fn part(&self, at: usize, part: &[u8]) -> u32 {
        let tables = &self.bytes[at..at + part.len()];
        tables.iter().zip(part).fold(0, |hash, (values, &byte)| hash ^ values[usize::from(byte)])
    }
}

impl std::fmt::Debug for Toeplitz {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Toeplitz")
    }
}

/// The longest input of the hash: two IPv6 addresses and two ports.
pub const INPUT_LEN_MAX: usize = 36;

/// The Toeplitz hash of `input` under `key`: for every set bit of the input, the 32 bits of the key that start at its
/// position are added modulo two. Bits that a short key lacks count as zero.
pub fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let key_byte = |at: usize| u64::from(key.get(at).copied().unwrap_or(0));
    let mut window = (0..4).fold(0, |window, at| (window << 8) | key_byte(at));
    let mut hash = 0;
    for (at, &byte) in input.iter().enumerate() {
        // 40 bits of key cover the eight positions of this byte.
        window = ((window << 8) | key_byte(at + 4)) & 0xff_ffff_ffff;
        for bit in 0..8 {
            if byte & (0x80 >> bit) != 0 {
                hash ^= (window >> (8 - bit)) as u32;
            }
        }
    }
    hash
}

fn ports_at(packet: &[u8], at: usize, protocol: u8) -> Option<(u16, u16)> {
    if !matches!(protocol, TCP | UDP) {
        return None;
    }
    Some((be16(packet, at)?, be16(packet, at + 2)?))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// The key of Microsoft's verification suite, which many drivers ship as their default.
pub const MICROSOFT_KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

const RETA_LEN: u16 = 128;
const VLAN_TAGS_MAX: usize = 2;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const VLAN_SERVICE: u16 = 0x88a8;
const TCP: u8 = 6;
const UDP: u8 = 17;

#[cfg(test)]
mod tests {
    use super::*;

    /// Destination, source, hash of the addresses, hash with the TCP ports: Microsoft, "Verifying the RSS hash
    /// calculation".
    const VERIFICATION: [(&str, &str, u32, u32); 8] = [
        ("161.142.100.80:1766", "66.9.149.187:2794", 0x323e_8fc2, 0x51cc_c178),
        ("65.69.140.83:4739", "199.92.111.2:14230", 0xd718_262a, 0xc626_b0ea),
        ("12.22.207.184:38024", "24.19.198.95:12898", 0xd2d0_a5de, 0x5c2b_394a),
        ("209.142.163.6:2217", "38.27.205.30:48228", 0x8298_9176, 0xafc7_327f),
        ("202.188.127.2:1303", "153.39.163.191:44251", 0x5d18_09c5, 0x10e8_28a2),
        ("[3ffe:2501:200:3::1]:1766", "[3ffe:2501:200:1fff::7]:2794", 0x2cc1_8cd5, 0x4020_7d3d),
        ("[ff02::1]:4739", "[3ffe:501:8::260:97ff:fe40:efab]:14230", 0x0f0c_461c, 0xdde5_1bbf),
        (
            "[fe80::200:f8ff:fe21:67cf]:38024",
            "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251",
            0x4b61_e985,
            0x02d1_feef,
        ),
    ];

    fn tuple(destination: &str, source: &str, protocol: u8) -> Tuple {
        let (source, destination): (std::net::SocketAddr, std::net::SocketAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        Tuple {
            source: source.ip(),
            destination: destination.ip(),
            protocol,
            ports: Some((source.port(), destination.port())),
        }
    }

    fn ethernet(tuple: &Tuple, tags: &[u16], fragment: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        for tpid in tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend([0, 7]);
        }
        match (tuple.source, tuple.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([8, 0, 0x46, 0, 0, 32, 0, 1]);
                frame.extend(fragment.to_be_bytes());
                frame.extend([64, tuple.protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend([1; 4]);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, tuple.protocol, 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            _ => panic!("one family"),
        }
        let (source, destination) = tuple.ports.unwrap();
        frame.extend(source.to_be_bytes());
        frame.extend(destination.to_be_bytes());
        frame.extend([0; 4]);
        frame
    }

    #[test]
    fn hashes_are_those_of_the_published_verification_suite() {
        let ports = Rss::even(4);
        let addresses = Rss { tcp_ports: false, ..Rss::even(4) };
        for (destination, source, by_address, by_port) in VERIFICATION {
            let tuple = tuple(destination, source, TCP);
            assert_eq!(addresses.hash(&tuple), by_address, "{source} to {destination}, addresses");
            assert_eq!(ports.hash(&tuple), by_port, "{source} to {destination}, addresses and ports");
        }
    }

    #[test]
    fn hashes_by_table_are_the_sum_of_the_parts_wherever_the_input_is_cut() {
        let key: Vec<u8> = (0..52).map(|i| (i * 37 + 11) as u8).collect();
        for key in [&MICROSOFT_KEY[..], &key, &key[..7], &[]] {
            let table = Toeplitz::new(key);
            for len in 0..=INPUT_LEN_MAX {
                let input: Vec<u8> = (0..len).map(|i| (i * 59 + len) as u8).collect();
                for cut in 0..=len {
                    let sum = table.part(0, &input[..cut]) ^ table.part(cut, &input[cut..]);
                    assert_eq!(sum, toeplitz(key, &input), "{len} bytes cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn udp_and_tcp_ports_count_only_where_asked_for() {
        let rss = Rss { udp_ports: false, ..Rss::even(4) };
        let (destination, source, by_address, by_port) = VERIFICATION[0];
        assert_eq!(rss.hash(&tuple(destination, source, UDP)), by_address);
        assert_eq!(rss.hash(&tuple(destination, source, TCP)), by_port);
        assert_eq!(rss.hash(&tuple(destination, source, 132)), by_address);
    }

    #[test]
    fn the_indirection_table_names_the_queue() {
        let (destination, source, _, hash) = VERIFICATION[0];
        let tuple = tuple(destination, source, TCP);
        let mut rss = Rss::even(4);
        assert_eq!(rss.queue_of(&tuple), (hash % 128 % 4) as u16);
        rss.reta = [7, 8, 9].into();
        assert_eq!(rss.queue_of(&tuple), 7 + (hash % 3) as u16);
        rss.reta = [].into();
        assert_eq!(rss.queue_of(&tuple), 0);
    }

    #[test]
    fn a_key_of_any_length_hashes_as_if_zeros_followed() {
        let long: Vec<u8> = MICROSOFT_KEY.iter().copied().chain([0; 12]).collect();
        let input = [0xa5; 36];
        assert_eq!(toeplitz(&MICROSOFT_KEY, &input), toeplitz(&long, &input));
        assert_eq!(toeplitz(&[], &input), 0);
        assert_eq!(toeplitz(&[0x80], &[0x80]), 0x8000_0000);
        assert_eq!(toeplitz(&[0, 0, 0, 0, 0x80], &[0, 0, 0, 0, 0x80]), 0x8000_0000);
    }

    #[test]
    fn a_frame_is_hashed_by_the_headers_it_shows() {
        for (destination, source, ..) in VERIFICATION {
            let want = tuple(destination, source, TCP);
            for tags in [&[][..], &[VLAN], &[VLAN_SERVICE, VLAN]] {
                assert_eq!(Tuple::of_frame(&ethernet(&want, tags, 0)), Some(want));
            }
        }
    }

    #[test]
    fn a_fragment_is_hashed_by_addresses_and_other_frames_go_to_the_first_queue() {
        let (destination, source, by_address, _) = VERIFICATION[0];
        let whole = tuple(destination, source, TCP);
        let rss = Rss::even(5);
        for fragment in [0x2000, 0x2001, 0x0001] {
            let seen = Tuple::of_frame(&ethernet(&whole, &[], fragment)).unwrap();
            assert_eq!((seen.ports, rss.hash(&seen)), (None, by_address));
        }
        // Don't-fragment does not make a fragment.
        assert_eq!(Tuple::of_frame(&ethernet(&whole, &[], 0x4000)), Some(whole));
        let arp = [&[0xff; 12][..], &[8, 6], &[0; 28]].concat();
        assert_eq!(rss.queue_of_frame(&arp), 0);
    }

    #[test]
    fn a_frame_cut_anywhere_is_read_without_panic() {
        for (destination, source, ..) in [VERIFICATION[0], VERIFICATION[5]] {
            let frame = ethernet(&tuple(destination, source, TCP), &[VLAN], 0);
            for len in 0..frame.len() {
                let seen = Tuple::of_frame(&frame[..len]);
                assert!(seen.is_none_or(|tuple| tuple.ports.is_none() || len >= frame.len() - 4));
            }
        }
    }
}
