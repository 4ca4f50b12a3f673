//! Receive offloads (GRO, LRO) are off on an interface while a port is attached to it.
//!
//! They melt several packets into one that is longer than the MTU: no router may forward that as one frame.

use std::io;

use super::netdev::Netdev;

const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;
/// `ETH_FLAG_LRO`.
const FLAG_LRO: u32 = 1 << 15;

/// GRO and LRO switched off; dropping it switches on again what was on.
#[derive(Debug)]
pub struct ReceiveOffloads {
    netdev: Netdev,
    gro: bool,
    lro: bool,
}

impl ReceiveOffloads {
    /// Switches the receive offloads of `interface` off, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the interface does not exist or an offload that is on refuses to go off.
    pub fn disable(interface: &str) -> io::Result<Self> {
        let netdev = Netdev::find(interface)?;
        // A device without ethtool has none of them.
        let gro = netdev.ethtool_value(ETHTOOL_GGRO, 0).unwrap_or(0) != 0;
        let flags = netdev.ethtool_value(ETHTOOL_GFLAGS, 0).unwrap_or(0);
        let lro = flags & FLAG_LRO != 0;
        let mut offloads = Self { netdev, gro: false, lro: false };
        if gro {
            offloads.netdev.ethtool_value(ETHTOOL_SGRO, 0)?;
            offloads.gro = true;
        }
        if lro {
            offloads.netdev.ethtool_value(ETHTOOL_SFLAGS, flags & !FLAG_LRO)?;
            offloads.lro = true;
        }
        Ok(offloads)
    }
}

impl Drop for ReceiveOffloads {
    fn drop(&mut self) {
        // An interface that has gone has nothing to restore.
        if self.gro {
            let _ = self.netdev.ethtool_value(ETHTOOL_SGRO, 1);
        }
        if self.lro
            && let Ok(flags) = self.netdev.ethtool_value(ETHTOOL_GFLAGS, 0)
        {
            let _ = self.netdev.ethtool_value(ETHTOOL_SFLAGS, flags | FLAG_LRO);
        }
    }
}
