//! The network hears at once where an address lives now: by gratuitous ARP (RFC 5227 §3, "ARP announcement"), in IPv6 by
//! an unsolicited neighbour advertisement (RFC 4861 §7.2.6).
//!
//! Stations that knew the address by another link address, from the director that had it before, correct their
//! entries. The frames leave through a packet socket, so that the interface may be any link: a port or a VLAN on it.

use std::net::IpAddr;

use shunt_dataplane::tuple::{Address, V4, V6};
use shunt_dataplane::wire::arp::{self, operation};
use shunt_dataplane::wire::ndisc;
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
        let frames: Vec<_> = here.map(|(_, address)| frame(link.mac, *address)).collect();
        if !frames.is_empty()
            && let Err(error) = send(&link.name, &frames)
        {
            tracing::warn!("new addresses could not be announced: {error}");
        }
    }
}

fn send(interface: &str, frames: &[Vec<u8>]) -> Result<(), PortError> {
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

/// What tells everybody on a link that `address` is at `mac`.
fn frame(mac: MacAddr, address: IpAddr) -> Vec<u8> {
    match (V4::from_ip(address), V6::from_ip(address)) {
        (Some(v4), _) => request(mac, v4).into(),
        (_, Some(v6)) => ndisc::advertisement(v6, mac).into(),
        (None, None) => unreachable!("an address is of one family"),
    }
}

/// An ARP request by `address` for itself, to everybody, padded to Ethernet's shortest frame.
fn request(mac: MacAddr, address: V4) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac.0);
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
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
        let frame = frame(mac, "203.0.113.10".parse().unwrap());
        assert_eq!(frame[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6]);
        let packet = arp::Packet::new_checked(&frame[14..]).unwrap();
        assert_eq!((packet.operation(), packet.sender_mac()), (operation::REQUEST, mac));
        assert_eq!((packet.sender(), packet.target()), (V4(0xcb00_710a), V4(0xcb00_710a)));
        let address = "2001:db8::10".parse().unwrap();
        assert_eq!(super::frame(mac, address), ndisc::advertisement(V6::from_ip(address).unwrap(), mac));
    }
}
