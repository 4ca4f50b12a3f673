//! Gives back to the kernel what a port took from it and nobody wanted: by a TUN device.
//!
//! The packets enter the kernel's stack as if received on that device. Nothing reads from it: no route may point
//! there, and what the kernel sends to it by itself is dropped by it. The device goes when the last handle is closed, so
//! it does not outlive the process.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use crate::frame::Frame;
use crate::outbox::PuntSink;
use crate::port::PortError;
use crate::port::netdev::{Netdev, open_tun};

/// Packets per handle and turn of the loop; more are not punted in that turn, and counted. A flood of what is not
/// ours must not take the time of what is.
pub const PUNT_BUDGET: u32 = 64;

/// Largest packet: what an IP header can say.
const MTU: u32 = 65_535;

/// The "IPv4 dummy address" of RFC 7600: a device without any address fails even the loose source check
/// (`__fib_validate_source` in the kernel's `net/ipv4/fib_frontend.c`).
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Counts of one handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PuntStats {
    /// Packets given to the kernel.
    pub packets: u64,
    /// Their bytes, without link header.
    pub bytes: u64,
    /// Packets that came when the turn's budget was spent.
    pub over_budget: u64,
    /// Packets the kernel did not take.
    pub refused: u64,
    /// Frames without an IP packet (ARP and others): the device carries none.
    pub not_ip: u64,
}

/// A handle on the device, for one worker.
#[derive(Debug)]
pub struct Punt {
    tun: OwnedFd,
    left: u32,
    stats: PuntStats,
}

impl Punt {
    /// Creates the device in the calling thread's network namespace, and sets it up: IPv4 packets from anywhere are
    /// accepted (`rp_filter` loose), no IPv6 router is asked for.
    ///
    /// # Errors
    /// When the name is taken, TUN is missing in the kernel, or without CAP_NET_ADMIN.
    pub fn open(name: &str) -> Result<Self, PortError> {
        let failed = |action| move |source| PortError::Io { name: name.to_owned(), action, source };
        let tun = open_tun(name).map_err(failed("create a TUN device"))?;
        // Absent where the kernel has no such protocol or option.
        let set = |option: &str, value: &str| {
            let _ = std::fs::write(format!("/proc/sys/net/{option}").replace("DEVICE", name), value);
        };
        set("ipv4/conf/DEVICE/rp_filter", "2");
        set("ipv6/conf/DEVICE/accept_ra", "0");
        set("ipv6/conf/DEVICE/router_solicitations", "0");
        let netdev = Netdev::find(name).map_err(failed("find the TUN device"))?;
        netdev.set_mtu(MTU).map_err(failed("set the TUN device's MTU"))?;
        netdev.set_up().map_err(failed("set the TUN device up"))?;
        netdev.add_host_address(ADDRESS).map_err(failed("give the TUN device an address"))?;
        Ok(Self { tun, left: PUNT_BUDGET, stats: PuntStats::default() })
    }

    /// Another handle on the same device, with counts and budget of its own.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { tun: self.tun.try_clone()?, left: PUNT_BUDGET, stats: PuntStats::default() })
    }

    /// What happened so far.
    pub fn stats(&self) -> PuntStats {
        self.stats
    }

    fn inject(&mut self, frame: &[u8]) -> bool {
        let Some(packet) = ip_packet(frame) else {
            self.stats.not_ip += 1;
            return false;
        };
        if self.left == 0 {
            self.stats.over_budget += 1;
            return false;
        }
        self.left -= 1;
        if !matches!(rustix::io::write(&self.tun, packet), Ok(written) if written == packet.len()) {
            self.stats.refused += 1;
            return false;
        }
        self.stats.packets += 1;
        self.stats.bytes += packet.len() as u64;
        true
    }
}

impl PuntSink for Punt {
    fn begin_loop(&mut self) {
        self.left = PUNT_BUDGET;
    }

    fn punt(&mut self, frame: &Frame) -> bool {
        self.inject(frame.data())
    }
}

/// The IP packet in an Ethernet frame with at most one 802.1Q tag.
fn ip_packet(frame: &[u8]) -> Option<&[u8]> {
    let at = |offset: usize| frame.get(offset..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair));
    let (ethertype, packet) = match at(12)? {
        0x8100 => (at(16)?, frame.get(18..)?),
        untagged => (untagged, frame.get(14..)?),
    };
    let version = packet.first()? >> 4;
    matches!((ethertype, version), (0x0800, 4) | (0x86dd, 6)).then_some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packet_is_what_follows_the_link_header() {
        let frame = |link: &[u8], packet: &[u8]| [&[0; 12], link, packet].concat();
        assert_eq!(ip_packet(&frame(&[8, 0], &[0x45, 1])), Some(&[0x45, 1][..]));
        assert_eq!(ip_packet(&frame(&[0x81, 0, 0, 7, 0x86, 0xdd], &[0x60])), Some(&[0x60][..]));
        assert_eq!(ip_packet(&frame(&[8, 6], &[0, 1, 8, 0])), None);
        assert_eq!(ip_packet(&frame(&[8, 0], &[0x60])), None);
        assert_eq!(ip_packet(&frame(&[8, 0], &[])), None);
        assert_eq!(ip_packet(&[0; 13]), None);
    }
}
