//! `ping`: an ICMP or ICMPv6 echo (RFC 792, RFC 4443 §4) is answered.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! |     Type      |     Code      |           Checksum            |
//! |          Identifier           |        Sequence Number        |
//! |     Data ...
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::net::{SocketType, ipproto};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::net::UdpSocket;

use super::{Failure, icmp};

/// Asks `address` once and waits for its answer, however long.
pub(super) async fn ask(address: IpAddr) -> Result<(), Failure> {
    let (socket, kind) = socket(address).await?;
    let echo = Echo::new(address)?;
    let failed = |error| Failure::connecting(&error, Duration::ZERO);
    socket.send(&echo.request()).await.map_err(failed)?;
    let mut message = [0; 256];
    loop {
        let len = socket.recv(&mut message).await.map_err(failed)?;
        if echo.is_answered_by(&message[..len], kind) {
            return Ok(());
        }
    }
}

/// A socket for echoes alone where the kernel allows it (net.ipv4.ping_group_range), else a raw one (CAP_NET_RAW).
async fn socket(address: IpAddr) -> Result<(UdpSocket, SocketType), Failure> {
    let protocol = if address.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
    let place = SocketAddr::new(address, 0);
    for kind in [SocketType::DGRAM, SocketType::RAW] {
        match icmp::connected(place, kind, Some(protocol)).await {
            Err(Failure::CannotAsk(_)) if kind == SocketType::DGRAM => {}
            socket => return socket.map(|socket| (socket, kind)),
        }
    }
    unreachable!("the second kind returns")
}

/// One echo, known by its number and its data.
struct Echo {
    v6: bool,
    /// Identifier and sequence number. The kernel replaces the identifier of a datagram socket by its own, and gives that
    /// socket only what has it.
    id: [u8; 2],
    sequence: [u8; 2],
    data: [u8; DATA_LEN],
}

const DATA_LEN: usize = 16;

/// The header before the data.
const HEADER_LEN: usize = 8;

impl Echo {
    fn new(address: IpAddr) -> Result<Self, Failure> {
        let mut random = [0; 4 + DATA_LEN];
        getrandom(&mut random, GetRandomFlags::empty()).map_err(|error| Failure::local(error.into()))?;
        let [a, b, c, d, data @ ..] = random;
        Ok(Self { v6: address.is_ipv6(), id: [a, b], sequence: [c, d], data })
    }

    fn request(&self) -> [u8; HEADER_LEN + DATA_LEN] {
        let kind = if self.v6 { 128 } else { 8 };
        let mut message = self.message(kind);
        // The kernel fills in ICMPv6 checksums, whatever the socket, and those of datagram sockets.
        let checksum = if self.v6 { 0 } else { checksum(&message) };
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        message
    }

    fn message(&self, kind: u8) -> [u8; HEADER_LEN + DATA_LEN] {
        let mut message = [0; HEADER_LEN + DATA_LEN];
        message[0] = kind;
        message[4..6].copy_from_slice(&self.id);
        message[6..8].copy_from_slice(&self.sequence);
        message[HEADER_LEN..].copy_from_slice(&self.data);
        message
    }

    /// Whether `bytes`, from a socket of `kind`, are the answer to this one. Raw IPv4 sockets give the IP header too.
    fn is_answered_by(&self, bytes: &[u8], kind: SocketType) -> bool {
        let raw = kind == SocketType::RAW;
        let skip = match bytes.first() {
            Some(first) if raw && !self.v6 => usize::from(first & 0xf) * 4,
            _ => 0,
        };
        let expected = self.message(if self.v6 { 129 } else { 0 });
        let Some(message) = bytes.get(skip..).filter(|message| message.len() == expected.len()) else {
            return false;
        };
        let from = if raw { 4 } else { 6 };
        message[..2] == expected[..2] && message[from..] == expected[from..]
    }
}

/// RFC 1071. The length is even.
fn checksum(bytes: &[u8]) -> u16 {
    let (words, _) = bytes.as_chunks::<2>();
    let mut sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(v6: bool) -> Echo {
        Echo { v6, id: [1, 2], sequence: [3, 4], data: [5; DATA_LEN] }
    }

    #[test]
    fn a_request_has_the_checksum_of_rfc_1071() {
        let request = echo(false).request();
        assert_eq!(request[..2], [8, 0]);
        assert_eq!(checksum(&request), 0, "a message with its checksum sums up to nothing");
    }

    #[test]
    fn only_the_answer_to_this_very_echo_is_one() {
        for v6 in [false, true] {
            let echo = echo(v6);
            let reply = echo.message(if v6 { 129 } else { 0 });
            assert!(echo.is_answered_by(&reply, SocketType::DGRAM));
            assert!(!echo.is_answered_by(&echo.request(), SocketType::DGRAM), "a request is no reply");
            for place in [0, 1, 6, 7, 8, 23] {
                let mut other = reply;
                other[place] ^= 1;
                assert!(!echo.is_answered_by(&other, SocketType::DGRAM), "{place}");
            }
            for len in 0..reply.len() {
                assert!(!echo.is_answered_by(&reply[..len], SocketType::DGRAM), "{len}");
            }
        }
    }

    #[test]
    fn a_raw_socket_shows_the_ip_header_of_ipv4_and_everybodys_answers() {
        let echo = echo(false);
        let packet = [&[0x46; 24][..], &echo.message(0)].concat();
        assert!(echo.is_answered_by(&packet, SocketType::RAW));
        let mut other = packet.clone();
        other[24 + 4] ^= 1;
        assert!(!echo.is_answered_by(&other, SocketType::RAW), "another program's identifier");
        assert!(!echo.is_answered_by(&[0x4f], SocketType::RAW));
        assert!(!echo.is_answered_by(&[], SocketType::RAW));
    }
}
