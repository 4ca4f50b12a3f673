//! Receive offloads are off on an interface while a port is attached to it.
//!
//! GRO and LRO melt several packets into one that is longer than the MTU: no router may forward that as one frame. VLAN
//! stripping takes the tag out of the frame, where AF_XDP never finds it again.
//!
//! A port switches on again what it found on. Whoever wants that after a crash too writes down what is [`enabled`]
//! before the port is opened, and has it back with [`enable`].

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

/// A receive offload that is off while a port is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Packets of a flow melted into one by the kernel.
    Gro,
    /// The same by the device.
    Lro,
    /// VLAN tags taken out of the frame.
    VlanStripping,
}

impl Offload {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gro, Self::Lro, Self::VlanStripping];

    /// Its name in ethtool(8).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gro => "generic-receive-offload",
            Self::Lro => "large-receive-offload",
            Self::VlanStripping => "rx-vlan-offload",
        }
    }

    const fn flag(self) -> Option<u32> {
        match self {
            Self::Gro => None,
            Self::Lro => Some(FLAG_LRO),
            Self::VlanStripping => Some(FLAG_VLAN_STRIPPING),
        }
    }

    /// A device without ethtool has none.
    fn is_on(self, netdev: &Netdev) -> bool {
        let (command, mask) = self.flag().map_or((ETHTOOL_GGRO, u32::MAX), |flag| (ETHTOOL_GFLAGS, flag));
        netdev.ethtool_value(command, 0).unwrap_or(0) & mask != 0
    }

    fn switch(self, netdev: &Netdev, on: bool) -> io::Result<()> {
        match self.flag() {
            None => netdev.ethtool_value(ETHTOOL_SGRO, u32::from(on))?,
            Some(flag) => {
                let others = netdev.ethtool_value(ETHTOOL_GFLAGS, 0)? & !flag;
                netdev.ethtool_value(ETHTOOL_SFLAGS, others | if on { flag } else { 0 })?
            }
        };
        Ok(())
    }
}

/// The offloads that are on at `interface`, in the network namespace of the calling thread.
///
/// # Errors
/// When the interface does not exist.
pub fn enabled(interface: &str) -> io::Result<Vec<Offload>> {
    let netdev = Netdev::find(interface)?;
    Ok(Offload::ALL.into_iter().filter(|offload| offload.is_on(&netdev)).collect())
}

/// Switches `offload` on at `interface`, in the network namespace of the calling thread.
///
/// # Errors
/// When the interface does not exist or refuses.
pub fn enable(interface: &str, offload: Offload) -> io::Result<()> {
    offload.switch(&Netdev::find(interface)?, true)
}

/// Offloads switched off; dropping it switches on again what was on.
#[derive(Debug)]
pub struct ReceiveOffloads {
    netdev: Netdev,
    off: Vec<Offload>,
}

impl ReceiveOffloads {
    /// Switches the receive offloads of `interface` off, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the interface does not exist or an offload that is on refuses to go off.
    pub fn disable(interface: &str) -> io::Result<Self> {
        let mut offloads = Self { netdev: Netdev::find(interface)?, off: Vec::new() };
        for offload in Offload::ALL {
            if !offload.is_on(&offloads.netdev) {
                continue;
            }
            match offload.switch(&offloads.netdev, false) {
                Ok(()) => offloads.off.push(offload),
                // Some devices cannot; without VLANs it does not matter.
                Err(error) if offload == Offload::VlanStripping => tracing::warn!(
                    interface,
                    %error,
                    "rx-vlan-offload stays on: VLAN tags of received frames may be lost"
                ),
                Err(error) => return Err(error),
            }
        }
        Ok(offloads)
    }
}

impl Drop for ReceiveOffloads {
    fn drop(&mut self) {
        for offload in &self.off {
            // An interface that has gone has nothing to restore.
            let _ = offload.switch(&self.netdev, true);
        }
    }
}
