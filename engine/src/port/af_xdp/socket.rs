//! One AF_XDP socket per queue: its two halves as [`RxQueue`] and [`TxQueue`].
//!
//! Each socket registers the whole region of the process's pools as its UMEM, so that a frame received by one port
//! is sent by another where it lies. The kernel's `XDP_PACKET_HEADROOM` equals the pools' headroom.
//!
//! A buffer is in one place at a time: with the pool, as a frame, in the fill ring (given to the kernel to receive
//! into), or in the transmit ring until it comes back by the completion ring.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::sockopt;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING,
    XDP_UMEM_PGOFF_FILL_RING, XdpDesc, XdpDescOptions, XdpOptionsFlags, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::ring::{Consumer, Producer};
use crate::burst::{BURST, Burst};
use crate::frame::Chunk;
use crate::mempool::{Mempool, Region};
use crate::port::checksum::complete_partial;
use crate::port::{RxQueue, RxStats, TxQueue, TxStats};

/// Descriptors of the receive and the fill ring. What the kernel has for us when the receive ring is full is dropped
/// by it and counted (`missed`).
const RX_RING: u32 = 2048;
/// Descriptors of the transmit and the completion ring. What does not fit stays with the caller.
const TX_RING: u32 = 1024;
/// Buffers lent to the kernel to receive into, per queue, at most.
const FILL_MAX: u32 = 1024;
/// Calls per `tx_burst` to make the kernel send; it sends at least 32 frames per call.
const KICKS_MAX: u32 = 4;
/// After its owner has gone a queue stays busy for up to a second while the kernel cleans up.
const BIND_ATTEMPTS: u32 = 50;
const BIND_PAUSE: Duration = Duration::from_millis(50);
/// Ethernet header, and with a VLAN tag.
const ETHERNET_LEN: usize = 14;
pub(super) const LINK_LEN: usize = 18;

/// The rings carry chunk numbers of one region.
const WRONG_POOL: &str = "the pool is of the region that the socket has registered";

/// The chunk of an address in the region. Pools refuse a number that no chunk has, and one that is too large for a
/// number must not become another chunk's.
fn chunk_at(address: u64, chunk_size: u64) -> Chunk {
    Chunk(u32::try_from(address / chunk_size).unwrap_or(u32::MAX))
}

/// What both halves stand on.
#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    region: Arc<Region>,
    /// Buffers the kernel keeps when the socket closes: what the halves knew to be in its rings.
    left_behind: AtomicU32,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Nobody can take these buffers again, but the pages stay with the kernel until it has let go of them.
        self.region.write_off(*self.left_behind.get_mut());
    }
}

/// A bound socket that nobody uses yet.
#[derive(Debug)]
pub(super) struct Bound {
    rx: AfXdpRx,
    tx: AfXdpTx,
}

impl Bound {
    /// Makes a socket for one queue. Frames come only when the program is told about it.
    pub(super) fn open(
        region: &Arc<Region>,
        interface: u32,
        queue: u16,
        force_copy: bool,
        frame_len_max: usize,
    ) -> io::Result<Self> {
        let fd = rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let umem = XdpUmemReg {
            addr: region.base().as_ptr() as u64,
            len: region.len() as u64,
            chunk_size: u32::from(region.chunk_size()),
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        sockopt::set_xdp_umem_reg(&fd, umem)?;
        sockopt::set_xdp_umem_fill_ring_size(&fd, RX_RING)?;
        sockopt::set_xdp_umem_completion_ring_size(&fd, TX_RING)?;
        sockopt::set_xdp_rx_ring_size(&fd, RX_RING)?;
        sockopt::set_xdp_tx_ring_size(&fd, TX_RING)?;
        let offsets = sockopt::xdp_mmap_offsets(&fd)?;
        let borrowed = fd.as_fd();
        // SAFETY: the sizes are those set above, the offsets are the kernel's for this socket, fill and completion
        // rings hold u64 addresses and the others `struct xdp_desc`; each is mapped once.
        let (fill, rx, tx, completion) = unsafe {
            (
                Producer::<u64>::map(borrowed, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, RX_RING)?,
                Consumer::<XdpDesc>::map(borrowed, XDP_PGOFF_RX_RING, &offsets.rx, RX_RING)?,
                Producer::<XdpDesc>::map(borrowed, XDP_PGOFF_TX_RING, &offsets.tx, TX_RING)?,
                Consumer::<u64>::map(borrowed, XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, TX_RING)?,
            )
        };
        // Without XDP_COPY the kernel takes zero-copy where the driver has it, and copies where not.
        let mut flags = SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        if force_copy {
            flags |= SocketAddrXdpFlags::XDP_COPY;
        }
        bind(&fd, &SocketAddrXdp::new(flags, interface, u32::from(queue)))?;

        let zero_copy = sockopt::xdp_options(&fd)?.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
        let share = fill_share(region);
        let chunk_size = u64::from(region.chunk_size());
        let socket = Arc::new(Socket { fd, region: region.clone(), left_behind: AtomicU32::new(0) });
        Ok(Self {
            rx: AfXdpRx {
                ring: rx,
                fill,
                socket: socket.clone(),
                lent: 0,
                share,
                chunk_size,
                frame_len_max,
                zero_copy,
                stats: RxStats::default(),
            },
            tx: AfXdpTx {
                ring: tx,
                completion,
                socket,
                in_flight: 0,
                chunk_size,
                frame_len_max,
                stats: TxStats::default(),
            },
        })
    }

    /// Whether the device reads and writes our buffers itself.
    pub(super) fn is_zero_copy(&self) -> bool {
        self.rx.zero_copy
    }

    pub(super) fn split(self) -> (AfXdpRx, AfXdpTx) {
        (self.rx, self.tx)
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rx.socket.fd.as_fd()
    }
}

/// Buffers of one pool that a queue may lend to the kernel: an eighth, so that several queues leave it some.
fn fill_share(region: &Region) -> u32 {
    (region.chunks_per_pool() / 8).clamp(8, FILL_MAX)
}

fn bind(fd: &OwnedFd, address: &SocketAddrXdp) -> io::Result<()> {
    for _ in 1..BIND_ATTEMPTS {
        match rustix::net::bind(fd, address) {
            Err(rustix::io::Errno::BUSY) => std::thread::sleep(BIND_PAUSE),
            result => return Ok(result?),
        }
    }
    Ok(rustix::net::bind(fd, address)?)
}

/// The receiving half.
#[derive(Debug)]
pub(super) struct AfXdpRx {
    ring: Consumer<XdpDesc>,
    fill: Producer<u64>,
    socket: Arc<Socket>,
    /// Buffers in the fill ring, in the device, or received and not popped.
    lent: u32,
    share: u32,
    chunk_size: u64,
    /// MTU with link header.
    frame_len_max: usize,
    /// Whether the device reads and writes our buffers itself.
    zero_copy: bool,
    stats: RxStats,
}

impl AfXdpRx {
    /// Lends the kernel buffers up to this queue's share, but not the pool's last ones, and no fewer than `batch`.
    fn refill(&mut self, pool: &mut Mempool, batch: u32) {
        let spare = pool.available().saturating_sub(self.share as usize) as u32;
        let missing = (self.share - self.lent).min(spare);
        if missing < batch {
            return;
        }
        for _ in 0..missing.min(self.fill.room(missing)) {
            let Some(chunk) = pool.take() else { break };
            self.fill.push(u64::from(chunk.0) * self.chunk_size);
            self.lent += 1;
        }
        self.fill.commit();
        if self.fill.needs_wakeup() {
            wake_receive(&self.socket.fd);
        }
    }
}

impl RxQueue for AfXdpRx {
    fn rx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        assert!(pool.is_of(&self.socket.region), "{WRONG_POOL}");
        let before = burst.len();
        let mut popped = 0;
        while !burst.is_full() && popped < 2 * BURST as u32 {
            let Some(descriptor) = self.ring.pop() else { break };
            popped += 1;
            let chunk = chunk_at(descriptor.addr, self.chunk_size);
            let len = descriptor.len as usize;
            if len > self.frame_len_max {
                self.stats.oversize += 1;
                pool.put(chunk);
                continue;
            }
            let offset = (descriptor.addr % self.chunk_size) as u16;
            let mut frame = pool.frame(chunk, offset, len as u16);
            self.stats.checksum_completed += u64::from(complete_partial(frame.data_mut()));
            self.stats.bytes += len as u64;
            burst.push(frame);
        }
        if popped > 0 {
            self.lent -= popped;
            self.ring.release();
        }
        // Under load in batches, so that the ring's indices travel between cores once per burst or so.
        let batch = if popped > 0 { (BURST as u32).min(self.share / 2) } else { 1 };
        self.refill(pool, batch);
        let received = burst.len() - before;
        self.stats.packets += received as u64;
        received
    }

    fn pollable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.fd.as_fd())
    }

    /// Asks the kernel for its counts: a system call.
    fn stats(&self) -> RxStats {
        let mut stats = self.stats;
        if let Ok(kernel) = sockopt::xdp_statistics(&self.socket.fd) {
            let no_buffer = kernel.rx_fill_ring_empty_descs.unwrap_or(0);
            let full = kernel.rx_ring_full.unwrap_or(0);
            if self.zero_copy {
                // The driver counts attempts to find a buffer, not frames.
                stats.missed = kernel.rx_dropped.max(no_buffer) + full;
            } else {
                // `xsk_rcv` drops for two reasons: no buffer, which both counts show, and a frame longer than a
                // buffer: a super-frame of a stack on this host.
                stats.oversize += kernel.rx_dropped.saturating_sub(no_buffer);
                stats.missed = no_buffer + full;
            }
        }
        stats
    }
}

impl Drop for AfXdpRx {
    fn drop(&mut self) {
        self.socket.left_behind.fetch_add(self.lent, Ordering::Relaxed);
    }
}

/// The sending half.
#[derive(Debug)]
pub(super) struct AfXdpTx {
    ring: Producer<XdpDesc>,
    completion: Consumer<u64>,
    socket: Arc<Socket>,
    /// Buffers in the transmit ring, in the device, or completed and not popped.
    in_flight: u32,
    chunk_size: u64,
    /// MTU with link header.
    frame_len_max: usize,
    stats: TxStats,
}

impl AfXdpTx {
    /// Makes the kernel send what waits in the ring.
    fn kick(&mut self) {
        for _ in 0..KICKS_MAX {
            if !self.ring.is_pending() || !self.ring.needs_wakeup() {
                return;
            }
            // Errors say that the device or the socket's share of memory is full (EAGAIN, ENOBUFS), that a frame was
            // dropped (EBUSY), or that the interface is down: what remains in the ring goes with a later call.
            if !wake_send(&self.socket.fd) {
                return;
            }
        }
    }

    fn take_back(&mut self, pool: &mut Mempool) {
        let mut completed = 0;
        while let Some(address) = self.completion.pop() {
            pool.put(chunk_at(address, self.chunk_size));
            completed += 1;
        }
        if completed > 0 {
            self.in_flight -= completed;
            self.completion.release();
        }
    }
}

impl TxQueue for AfXdpTx {
    fn tx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        assert!(pool.is_of(&self.socket.region), "{WRONG_POOL}");
        let before = burst.len();
        self.take_back(pool);
        // A buffer in flight has its place in the completion ring too, so that ring bounds both.
        let room = self.ring.room(before as u32).min(TX_RING - self.in_flight) as usize;
        let mut sent = 0;
        for frame in burst.drain(..before.min(room)) {
            let len = frame.len();
            if !(ETHERNET_LEN..=self.frame_len_max).contains(&len) {
                self.stats.oversize += u64::from(len > self.frame_len_max);
                self.stats.errors += u64::from(len < ETHERNET_LEN);
                pool.free(frame);
                continue;
            }
            let offset = u64::from(frame.offset());
            let addr = u64::from(pool.chunk(frame).0) * self.chunk_size + offset;
            self.ring.push(XdpDesc { addr, len: len as u32, options: XdpDescOptions::empty() });
            self.stats.bytes += len as u64;
            sent += 1;
        }
        if sent > 0 {
            self.in_flight += sent;
            self.stats.packets += u64::from(sent);
            self.ring.commit();
        }
        self.kick();
        before - burst.len()
    }

    fn reclaim(&mut self, pool: &mut Mempool) {
        if self.in_flight > 0 {
            assert!(pool.is_of(&self.socket.region), "{WRONG_POOL}");
            self.kick();
            self.take_back(pool);
        }
    }

    /// Asks the kernel for its counts: a system call.
    fn stats(&self) -> TxStats {
        let mut stats = self.stats;
        if let Ok(kernel) = sockopt::xdp_statistics(&self.socket.fd) {
            stats.errors += kernel.tx_invalid_descs;
        }
        stats
    }
}

impl Drop for AfXdpTx {
    fn drop(&mut self) {
        self.socket.left_behind.fetch_add(self.in_flight, Ordering::Relaxed);
    }
}

/// Makes the driver look at the fill ring again.
fn wake_receive(fd: &OwnedFd) {
    // SAFETY: no buffer is passed.
    unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        );
    }
}

/// Makes the kernel or driver look at the transmit ring. Returns whether it has sent what it wanted to.
fn wake_send(fd: &OwnedFd) -> bool {
    // SAFETY: no buffer and no address are passed.
    let result =
        unsafe { libc::sendto(fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    result >= 0
}
