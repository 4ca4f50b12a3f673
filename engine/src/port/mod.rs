//! Where frames come from and go to: one pair of traits for every kind of port.
//!
//! A [`Port`] is the control side of an interface: it is opened, steered, asked for its queues and closed by the
//! control thread. Its queues are handed out once and then belong to one worker each, without locks.

pub mod af_packet;
pub mod af_xdp;
pub mod checksum;
pub mod mem;
pub(crate) mod netdev;
pub mod offload;
pub mod pcap;
mod rx_flow_hash;

use std::os::fd::BorrowedFd;

use crate::burst::Burst;
use crate::mempool::Mempool;
use crate::rss::{Rss, Unknown};
use crate::steer::Rule;

/// The number of a port in this process, as in the configuration's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u8);

/// An Ethernet address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether the group bit is set (multicast or broadcast).
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether all bytes are zero, which no station has.
    pub const fn is_zero(self) -> bool {
        let [a, b, c, d, e, f] = self.0;
        a | b | c | d | e | f == 0
    }
}

impl std::fmt::Display for MacAddr {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl std::fmt::Debug for MacAddr {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{self}")
    }
}

/// What a port is and can do. Does not change while the port is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortCaps {
    /// Interface name, file name or label.
    pub name: String,
    /// How frames travel, for people: `"af_xdp native"`, `"af_xdp generic"`, `"af_packet"`, `"mem"`, `"pcap"`.
    pub kind: &'static str,
    /// The station address; zero where there is none.
    pub mac: MacAddr,
    /// Largest layer-3 packet in bytes (Ethernet header and VLAN tag come on top).
    pub mtu: u16,
    /// Queue pairs that can be taken.
    pub queues: u16,
    /// How received frames are spread over the queues, or why that is not known.
    pub rss: Result<Rss, Unknown>,
    /// Whether the kernel gets a copy of every frame anyway, so that handing one back would double it.
    pub kernel_sees_all: bool,
}

/// Bytes a frame may have on top of the MTU: the Ethernet header and one VLAN tag.
pub const FRAME_OVERHEAD: usize = 18;

impl PortCaps {
    /// The error for a queue that is not there to be taken.
    pub(crate) fn no_such_queue(&self, queue: u16) -> PortError {
        PortError::NoSuchQueue { name: self.name.clone(), queue, queues: self.queues }
    }
}

/// Counts of one receive queue since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxStats {
    /// Frames handed on.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames longer than MTU or buffer, dropped: a receive offload (LRO, GRO, GSO) is on somewhere.
    pub oversize: u64,
    /// Frames that found no free buffer here.
    pub no_buffer: u64,
    /// Frames the device or kernel dropped because the queue was full or it ran out of buffers.
    pub missed: u64,
    /// Frames whose partial checksum was completed.
    pub checksum_completed: u64,
}

/// Counts of one transmit queue since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxStats {
    /// Frames accepted by the device or kernel.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames longer than the MTU allows, dropped.
    pub oversize: u64,
    /// Frames the device or kernel refused for good.
    pub errors: u64,
}

/// The receiving half of a queue. Belongs to one worker.
pub trait RxQueue: Send {
    /// Appends received frames, in order of arrival, until `burst` is full or the queue is empty.
    /// Returns how many. Buffers come from `pool`. Never blocks.
    fn rx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize;

    /// A descriptor that polls readable when frames wait, if the port has one. Without one a worker sleeps no longer
    /// than [`crate::idle::NAP`].
    fn pollable(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What happened so far. Called about once per millisecond by a busy worker, and before it sleeps.
    fn stats(&self) -> RxStats;
}

/// The sending half of a queue. Belongs to one worker.
pub trait TxQueue: Send {
    /// Sends frames from the front of `burst`, in order. What cannot be sent now stays in `burst`, in order, with the
    /// caller; what can never be sent (oversize) is freed and counted. Returns how many left `burst`. Never blocks.
    fn tx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize;

    /// Takes back buffers whose frames have left. The worker calls it once per loop.
    fn reclaim(&mut self, _pool: &mut Mempool) {}

    /// What happened so far. Called about once per millisecond by a busy worker, and before it sleeps.
    fn stats(&self) -> TxStats;
}

/// A receive and a transmit half with the same number.
pub type QueuePair = (Box<dyn RxQueue>, Box<dyn TxQueue>);

/// Why a port could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The interface does not exist.
    #[error("interface {0:?} does not exist")]
    NoSuchInterface(String),
    /// A queue that the port does not have, or that was handed out before.
    #[error("{name}: queue {queue} does not exist or is taken (the port has {queues})")]
    NoSuchQueue {
        /// The port.
        name: String,
        /// The queue asked for.
        queue: u16,
        /// How many it has.
        queues: u16,
    },
    /// Frames of the port's MTU do not fit the buffers.
    #[error(
        "{name}: MTU {mtu} needs buffers larger than {room} bytes; lower the MTU or set engine.buffer_size = 4096"
    )]
    MtuTooLarge {
        /// The port.
        name: String,
        /// Its MTU.
        mtu: u32,
        /// What a buffer holds.
        room: usize,
    },
    /// A system call failed.
    #[error("{name}: {action}: {source}")]
    Io {
        /// The port.
        name: String,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Anything else, in words.
    #[error("{name}: {reason}")]
    Other {
        /// The port.
        name: String,
        /// What is wrong and what helps.
        reason: String,
    },
}

/// The control side of a port.
pub trait Port: Send {
    /// What the port is and can do.
    fn caps(&self) -> &PortCaps;

    /// Hands out queue pair `index`, once.
    ///
    /// # Errors
    /// [`PortError::NoSuchQueue`] when there is none or it is taken, [`PortError::Io`] when it cannot be set up.
    fn take_queue(&mut self, index: u16) -> Result<QueuePair, PortError>;

    /// Replaces the rules that say which frames the queues receive; frames in flight are not disturbed. A port
    /// that cannot filter receives everything and ignores this.
    ///
    /// # Errors
    /// When the device refuses; the rules before stay in force then.
    fn steer(&mut self, rules: &[Rule]) -> Result<(), PortError>;
}
