//! AF_XDP: the kernel keeps the interface, an XDP program takes off what the steering rules name.
//!
//! Read [`crate::steer::RuleSet::takes`] for what is taken, `program.rs` for how the kernel decides the same,
//! `filter.rs` for how rules change under traffic, `socket.rs` for how frames travel. The program hangs on the
//! interface by a BPF link that this process owns: it is gone when the process is, however that ends.

mod asm;
mod bpf;
mod filter;
mod program;
mod ring;
mod socket;

use std::io;
use std::sync::Arc;

pub use filter::{Filter, FilterError, PORT_SETS};
pub use program::WithoutSocket;

use self::bpf::{Attach, Link};
use self::filter::QUEUES_MAX;
use self::socket::{Bound, LINK_LEN};
use super::netdev::Netdev;
use super::offload::ReceiveOffloads;
use super::{MacAddr, Port, PortCaps, PortError, QueuePair, rx_flow_hash};
use crate::mempool::Region;
use crate::steer::{Rule, RuleSet};

/// Where the XDP program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In the driver where that works, else as [`Mode::Generic`].
    #[default]
    Auto,
    /// In the driver, before the kernel has made a packet of the frame.
    Native,
    /// In the kernel's stack: any device, slower.
    Generic,
}

/// How to open an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AfXdpConfig {
    /// Its name, in the network namespace of the thread that opens it.
    pub interface: String,
    /// Where the program runs.
    pub mode: Mode,
    /// Queues to use: the first ones of the device. `None` is all. Frames of the others pass to the kernel.
    pub queues: Option<u16>,
    /// Station addresses to accept beside the interface's own.
    pub macs: Vec<MacAddr>,
    /// Room for different sets of ports in the rules, 16 KiB each.
    pub port_sets: u32,
}

impl AfXdpConfig {
    /// All queues, the mode that works best, no further station address.
    pub fn new(interface: &str) -> Self {
        let interface = interface.to_owned();
        Self { interface, mode: Mode::Auto, queues: None, macs: Vec::new(), port_sets: PORT_SETS }
    }
}

/// An interface with the program attached. Nothing is taken until [`Port::steer`] names it.
#[derive(Debug)]
pub struct AfXdp {
    caps: PortCaps,
    // Fields are dropped in this order: first no frame is redirected any more, at last the offloads come back.
    link: Link,
    filter: Filter,
    /// One per queue, until it is taken.
    sockets: Vec<Option<Bound>>,
    _offloads: ReceiveOffloads,
}

impl AfXdp {
    /// Attaches to an interface. Every queue gets its socket now, in the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no such interface, its MTU does not fit the buffers, it has no such queues, another program
    /// is attached, or the kernel refuses (AF_XDP wants CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF).
    pub fn open(config: &AfXdpConfig, region: &Arc<Region>) -> Result<Self, PortError> {
        let name = config.interface.as_str();
        let netdev = Netdev::find(name).map_err(|_| PortError::NoSuchInterface(name.to_owned()))?;
        let ask = |action| move |source| PortError::Io { name: name.to_owned(), action, source };
        let index = netdev.index().map_err(ask("ask for the interface index"))?;
        let mac = netdev.mac().map_err(ask("ask for the MAC address"))?;
        let mtu = netdev.mtu().map_err(ask("ask for the MTU"))?;
        if mtu as usize + LINK_LEN > region.frame_len_max() {
            return Err(PortError::MtuTooLarge { name: name.to_owned(), mtu, room: region.frame_len_max() });
        }
        let queues = queues_wanted(config, netdev.rx_queues())?;

        let mut filter = Filter::load(config.port_sets, WithoutSocket::Pass).map_err(|e| refused(name, e))?;
        let macs: Vec<MacAddr> = config.macs.iter().copied().chain([mac]).collect();
        filter.set_macs(&macs).map_err(|error| refused(name, error))?;
        let offloads = ReceiveOffloads::disable(name).map_err(ask("switch receive offloads off"))?;
        let (link, mode) = attach(&filter, index, config)?;
        let force_copy = mode == Attach::Generic;
        let frame_len_max = mtu as usize + LINK_LEN;
        let sockets = (0..queues)
            .map(|queue| Bound::open(region, index, queue, force_copy, frame_len_max).map(Some))
            .collect::<io::Result<Vec<_>>>()
            .map_err(ask("open an AF_XDP socket for a queue"))?;
        let zero_copy = sockets.iter().flatten().all(Bound::is_zero_copy);
        let kind = match (mode, zero_copy) {
            (Attach::Generic, _) => "af_xdp generic",
            (Attach::Native, false) => "af_xdp native",
            (Attach::Native, true) => "af_xdp native zero-copy",
        };
        tracing::info!(interface = name, kind, queues, mtu, "port attached");
        let caps = PortCaps {
            name: name.to_owned(),
            kind,
            mac,
            mtu: mtu as u16,
            queues,
            rss: rx_flow_hash::read(&netdev),
            kernel_sees_all: false,
        };
        if caps.rss.as_ref().is_ok_and(|rss| rss.reta.iter().any(|&queue| queue >= queues)) {
            let remedy = format!("`ethtool -X {name} equal {queues}` brings all frames to those in use");
            tracing::warn!(
                interface = name,
                queues,
                remedy,
                "frames arrive on queues that are not used, and are lost"
            );
        }
        Ok(Self { caps, link, filter, sockets, _offloads: offloads })
    }

    /// Replaces the station addresses accepted beside the interface's own.
    ///
    /// # Errors
    /// When there are too many or the kernel refuses.
    pub fn set_macs(&mut self, macs: &[MacAddr]) -> Result<(), PortError> {
        let all: Vec<MacAddr> = macs.iter().copied().chain([self.caps.mac]).collect();
        self.filter.set_macs(&all).map_err(|error| refused(&self.caps.name, error))
    }

    /// The kernel's number of the BPF link that holds the program on the interface.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn link_id(&self) -> Result<u32, PortError> {
        let action = "ask for the BPF link";
        self.link.id().map_err(|source| PortError::Io { name: self.caps.name.clone(), action, source })
    }
}

impl Port for AfXdp {
    fn caps(&self) -> &PortCaps {
        &self.caps
    }

    fn take_queue(&mut self, index: u16) -> Result<QueuePair, PortError> {
        let name = &self.caps.name;
        let slot = self.sockets.get_mut(usize::from(index)).filter(|slot| slot.is_some());
        let Some(slot) = slot else {
            return Err(PortError::NoSuchQueue {
                name: name.clone(),
                queue: index,
                queues: self.caps.queues,
            });
        };
        if let Some(socket) = slot.as_ref() {
            self.filter.set_socket(index, std::os::fd::AsFd::as_fd(socket)).map_err(|source| {
                PortError::Io { name: name.clone(), action: "direct a queue to its socket", source }
            })?;
        }
        let (rx, tx) = slot.take().expect("the slot was found taken above otherwise").split();
        Ok((Box::new(rx), Box::new(tx)))
    }

    fn steer(&mut self, rules: &[Rule]) -> Result<(), PortError> {
        self.filter.set_rules(&RuleSet::compile(rules)).map_err(|error| refused(&self.caps.name, error))
    }
}

fn queues_wanted(config: &AfXdpConfig, present: u16) -> Result<u16, PortError> {
    let other = |reason: String| Err(PortError::Other { name: config.interface.clone(), reason });
    match config.queues {
        Some(0) => other("a port needs at least one queue".to_owned()),
        Some(wanted) if wanted > present => {
            other(format!("{wanted} queues are configured and the device has {present}"))
        }
        wanted => match wanted.unwrap_or(present) {
            many if u32::from(many) > QUEUES_MAX => {
                other(format!("{many} queues are more than {QUEUES_MAX}; set fewer with queues"))
            }
            queues => Ok(queues),
        },
    }
}

/// Attaches in the mode asked for; [`Mode::Auto`] falls back to generic and says why.
fn attach(filter: &Filter, index: u32, config: &AfXdpConfig) -> Result<(Link, Attach), PortError> {
    let name = config.interface.as_str();
    let failed = |mode: &str, error: io::Error| {
        let name = name.to_owned();
        let reason = match error.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => {
                format!(
                    "another XDP program is attached, perhaps that of another shunt; stop what attached it, or remove \
                     what is left over with `ip link set dev {name} xdp off`"
                )
            }
            Some(libc::ERANGE) => {
                format!("{mode} XDP: the MTU is too large for the driver; lower it, or use generic mode")
            }
            _ => format!("attach in {mode} mode: {error}"),
        };
        PortError::Other { name, reason }
    };
    let generic = || match filter.attach(index, Attach::Generic) {
        Ok(link) => Ok((link, Attach::Generic)),
        Err(error) => Err(failed("generic", error)),
    };
    if config.mode == Mode::Generic {
        return generic();
    }
    match filter.attach(index, Attach::Native) {
        Ok(link) => Ok((link, Attach::Native)),
        Err(error) if config.mode == Mode::Native => Err(failed("native", error)),
        Err(error) => {
            let reason = failed("native", error).to_string();
            let attached = generic()?;
            tracing::warn!(interface = name, reason, "native XDP does not work, attached in generic mode");
            Ok(attached)
        }
    }
}

fn refused(name: &str, error: FilterError) -> PortError {
    match error {
        FilterError::Kernel { action, source } => PortError::Io { name: name.to_owned(), action, source },
        other => PortError::Other { name: name.to_owned(), reason: other.to_string() },
    }
}
