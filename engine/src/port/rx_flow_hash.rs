//! How a device spreads received frames over its queues: what `ethtool -x` and `ethtool -n … rx-flow-hash` show.
//!
//! What is not exactly the Toeplitz hash of addresses, or addresses and ports, counts as unknown.

use super::netdev::{Netdev, RXFH_WORDS};
use crate::rss::{Rss, Unknown};

type Reta = Box<[u16]>;
type Key = Box<[u8]>;

/// What the device tells now; it may be changed while the port is open.
pub(crate) fn read(netdev: &Netdev) -> Result<Rss, Unknown> {
    let answer = netdev.rxfh().map_err(|_| Unknown::NotTold)?;
    let (reta, key) = indirection(&answer)?;
    let hashed = |flow_type| netdev.hashed_fields(flow_type).map_err(|_| Unknown::NotTold);
    let tcp_ports = both_versions(hashed(TCP_V4_FLOW)?, hashed(TCP_V6_FLOW)?)?;
    let udp_ports = both_versions(hashed(UDP_V4_FLOW)?, hashed(UDP_V6_FLOW)?)?;
    Ok(Rss { key, reta, tcp_ports, udp_ports })
}

/// Indirection table and key in a `struct ethtool_rxfh`.
fn indirection(answer: &[u32]) -> Result<(Reta, Key), Unknown> {
    let (header, rest) = answer.split_first_chunk::<RXFH_WORDS>().ok_or(Unknown::NotTold)?;
    let [_, _, entries, key_len, hash, _] = *header;
    let (reta, key) = rest.split_at_checked(entries as usize).ok_or(Unknown::NotTold)?;
    let key: Vec<u8> = key.iter().flat_map(|word| word.to_ne_bytes()).take(key_len as usize).collect();
    // A key of zeros hashes everything to zero: a driver that keeps its key to itself.
    if reta.is_empty() || key.len() < key_len as usize || key.iter().all(|&byte| byte == 0) {
        return Err(Unknown::NotTold);
    }
    let [function, transformation, ..] = hash.to_ne_bytes();
    match (function, transformation) {
        (0, _) => return Err(Unknown::NotTold),
        (HASH_TOEPLITZ, 0) => {}
        _ => return Err(Unknown::Function),
    }
    let queue = |&entry: &u32| u16::try_from(entry).map_err(|_| Unknown::NotTold);
    Ok((reta.iter().map(queue).collect::<Result<_, _>>()?, key.into()))
}

/// Whether ports are hashed, by the fields hashed in IPv4 and in IPv6.
fn both_versions(ipv4: u64, ipv6: u64) -> Result<bool, Unknown> {
    let ports = |fields| match fields {
        ADDRESSES => Ok(false),
        ADDRESSES_AND_PORTS => Ok(true),
        _ => Err(Unknown::Fields),
    };
    match (ports(ipv4)?, ports(ipv6)?) {
        (ipv4, ipv6) if ipv4 == ipv6 => Ok(ipv4),
        _ => Err(Unknown::Versions),
    }
}

/// `ETH_RSS_HASH_TOP`, the only function set.
const HASH_TOEPLITZ: u8 = 1;
/// `RXH_IP_SRC | RXH_IP_DST`.
const ADDRESSES: u64 = 1 << 4 | 1 << 5;
/// With `RXH_L4_B_0_1 | RXH_L4_B_2_3`.
const ADDRESSES_AND_PORTS: u64 = ADDRESSES | 1 << 6 | 1 << 7;
const TCP_V4_FLOW: u32 = 1;
const UDP_V4_FLOW: u32 = 2;
const TCP_V6_FLOW: u32 = 5;
const UDP_V6_FLOW: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with a table, a key and the bytes that name the hash.
    fn answer(reta: &[u32], key: &[u8], hash: [u8; 4]) -> Vec<u32> {
        let mut words = vec![0x46, 0, reta.len() as u32, key.len() as u32, u32::from_ne_bytes(hash), 0];
        words.extend(reta);
        words.extend(key.chunks(4).map(|chunk| {
            let mut bytes = [0; 4];
            bytes[..chunk.len()].copy_from_slice(chunk);
            u32::from_ne_bytes(bytes)
        }));
        words
    }

    #[test]
    fn table_and_key_are_read_as_the_device_has_them() {
        for key_len in [40, 52, 10] {
            let key: Vec<u8> = (1..=key_len).collect();
            let (reta, read) = indirection(&answer(&[0, 3, 1, 300], &key, [1, 0, 0, 0])).unwrap();
            assert_eq!((&reta[..], &read[..]), (&[0, 3, 1, 300][..], &key[..]));
        }
    }

    #[test]
    fn only_the_plain_toeplitz_hash_is_trusted() {
        let with = |hash| indirection(&answer(&[0, 1], &[7; 40], hash));
        assert!(with([1, 0, 0, 0]).is_ok());
        // XOR, CRC32; then Toeplitz of addresses and ports that were added modulo two before.
        for hash in [[2, 0, 0, 0], [4, 0, 0, 0], [1, 1, 0, 0], [1, 2, 0, 0]] {
            assert_eq!(with(hash), Err(Unknown::Function));
        }
        assert_eq!(with([0; 4]), Err(Unknown::NotTold));
    }

    #[test]
    fn a_device_without_table_or_key_does_not_tell() {
        let toeplitz = [1, 0, 0, 0];
        for told in [
            answer(&[], &[7; 40], toeplitz),
            answer(&[0, 1], &[], toeplitz),
            answer(&[0, 1], &[0; 40], toeplitz),
            answer(&[0, 1 << 16], &[7; 40], toeplitz),
        ] {
            assert_eq!(indirection(&told), Err(Unknown::NotTold));
        }
        let whole = answer(&[0, 1, 2], &[7; 40], toeplitz);
        for len in 0..whole.len() {
            assert_eq!(indirection(&whole[..len]), Err(Unknown::NotTold), "cut to {len} words");
        }
    }

    #[test]
    fn ports_count_where_they_are_hashed_in_both_versions_of_ip() {
        assert_eq!(both_versions(ADDRESSES, ADDRESSES), Ok(false));
        assert_eq!(both_versions(ADDRESSES_AND_PORTS, ADDRESSES_AND_PORTS), Ok(true));
        assert_eq!(both_versions(ADDRESSES_AND_PORTS, ADDRESSES), Err(Unknown::Versions));
        // Nothing, one address, the VLAN, the destination's port only.
        for odd in [0, 1 << 4, ADDRESSES | 1 << 2, ADDRESSES | 1 << 7] {
            assert_eq!(both_versions(odd, ADDRESSES_AND_PORTS), Err(Unknown::Fields));
            assert_eq!(both_versions(ADDRESSES, odd), Err(Unknown::Fields));
        }
    }
}
