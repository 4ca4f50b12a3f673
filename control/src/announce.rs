//! Gratuitous ARP: the network hears at once where an address lives now (RFC 5227 §3, "ARP announcement").
//!
//! Stations that knew the address by another link address, from the director that had it before, correct their
//! entries. The frames leave through a packet socket, so that the interface may be any link: a port or a VLAN on it.

use std::net::{IpAddr, Ipv4Addr};

use shunt_dataplane::tuple::{Address, V4};
use shunt_dataplane::wire::arp::{self, operation};
use shunt_engine::mempool::PoolConfig;
use shunt_engine::port::af_packet::{AfPacket, AfPacketConfig};
use shunt_engine::port::{MacAddr, Port, PortError};
use shunt_engine::{Burst, Mempool};

use crate::kernel::Kernel;

/// Tells the networks of `added` (link, address) that the addresses are here. What fails is logged: clients find the
/// new place by themselves, later.
pub fn announce(added: &[(u32, IpAddr)], kernel: &Kernel) {
    for link in &kernel.links {
        let here = added.iter().filter(|(index, _)| *index == link.index);
        let frames: Vec<_> = here
            .filter_map(|(_, address)| match address {
                IpAddr::V4(address) => Some(frame(link.mac, *address)),
                IpAddr::V6(_) => None,
            })
            .collect();
        if !frames.is_empty()
            && let Err(error) = send(&link.name, &frames)
        {
            tracing::warn!("new addresses could not be announced: {error}");
        }
    }
}

fn send(interface: &str, frames: &[[u8; FRAME_LEN]]) -> Result<(), PortError> {
    // The socket only sends: it must not mind that its interface's frames would not fit the buffers.
    let config =
        AfPacketConfig { interface: interface.to_owned(), queues: 1, frame_len_max: usize::from(u16::MAX) };
    let mut port = AfPacket::open(config)?;
    let failed = |action| move |source| PortError::Io { name: interface.to_owned(), action, source };
    let mut pool = Mempool::single(PoolConfig { chunks: 1, ..PoolConfig::default() })
        .map_err(failed("allocate a buffer"))?;
    let (_, mut tx) = port.take_queue(0)?;
    for frame in frames {
        let mut burst = Burst::new();
        let mut buffer = pool.alloc().expect("the pool's only buffer is free");
        assert!(buffer.fill(frame), "the frame is shorter than any buffer");
        burst.push(buffer);
        tx.tx_burst(&mut pool, &mut burst);
        tx.reclaim(&mut pool);
        pool.free_all(burst.drain(..));
    }
    match tx.stats().packets {
        sent if sent == frames.len() as u64 => Ok(()),
        _ => Err(failed("send an announcement")(std::io::ErrorKind::WouldBlock.into())),
    }
}

/// An ARP request by `address` for itself, to everybody, padded to Ethernet's shortest frame.
fn frame(mac: MacAddr, address: Ipv4Addr) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac.0);
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    let address = V4::from_ip(address.into()).expect("an IPv4 address is one");
    arp::Packet::write(&mut frame[14..], operation::REQUEST, (mac, address), (MacAddr::default(), address))
        .expect("the frame is longer than an ARP packet and its header");
    frame
}

/// Without the check sequence, which the device adds.
const FRAME_LEN: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_asks_everybody_for_the_sender_itself() {
        let mac = MacAddr([2, 0, 0, 0, 0, 7]);
        let frame = frame(mac, Ipv4Addr::new(203, 0, 113, 10));
        assert_eq!(frame[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6]);
        let packet = arp::Packet::new_checked(&frame[14..]).unwrap();
        assert_eq!((packet.operation(), packet.sender_mac()), (operation::REQUEST, mac));
        assert_eq!((packet.sender(), packet.target()), (V4(0xcb00_710a), V4(0xcb00_710a)));
    }
}
