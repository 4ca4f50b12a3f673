//! Receive offloads are off on an interface while a port is attached to it.
//!
//! GRO and LRO melt several packets into one that is longer than the MTU: no router may forward that as one frame. VLAN
//! stripping takes the tag out of the frame, where AF_XDP never finds it again.

use std::io;

use super::netdev::Netdev;

const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;
/// `ETH_FLAG_LRO`.
const FLAG_LRO: u32 = 1 << 15;
/// `ETH_FLAG_RXVLAN`.
const FLAG_VLAN_STRIPPING: u32 = 1 << 8;

/// Offloads switched off; dropping it switches on again what was on.
#[derive(Debug)]
pub struct ReceiveOffloads {
    netdev: Netdev,
    gro: bool,
    flags: u32,
}

impl ReceiveOffloads {
    /// Switches the receive offloads of `interface` off, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the interface does not exist or an offload that is on refuses to go off.
    pub fn disable(interface: &str) -> io::Result<Self> {
        let netdev = Netdev::find(interface)?;
        let mut offloads = Self { netdev, gro: false, flags: 0 };
        // A device without ethtool has none of them.
        if offloads.netdev.ethtool_value(ETHTOOL_GGRO, 0).unwrap_or(0) != 0 {
            offloads.netdev.ethtool_value(ETHTOOL_SGRO, 0)?;
            offloads.gro = true;
        }
        offloads.switch_off(FLAG_LRO)?;
        if let Err(error) = offloads.switch_off(FLAG_VLAN_STRIPPING) {
            // Some devices cannot; without VLANs it does not matter.
            tracing::warn!(interface, %error, "rx-vlan-offload stays on: VLAN tags of received frames may be lost");
        }
        Ok(offloads)
    }

    fn switch_off(&mut self, flag: u32) -> io::Result<()> {
        let flags = self.netdev.ethtool_value(ETHTOOL_GFLAGS, 0).unwrap_or(0);
        if flags & flag != 0 {
            self.netdev.ethtool_value(ETHTOOL_SFLAGS, flags & !flag)?;
            self.flags |= flag;
        }
        Ok(())
    }
}

impl Drop for ReceiveOffloads {
    fn drop(&mut self) {
        // An interface that has gone has nothing to restore.
        if self.gro {
            let _ = self.netdev.ethtool_value(ETHTOOL_SGRO, 1);
        }
        if self.flags != 0
            && let Ok(flags) = self.netdev.ethtool_value(ETHTOOL_GFLAGS, 0)
        {
            let _ = self.netdev.ethtool_value(ETHTOOL_SFLAGS, flags | self.flags);
        }
    }
}
