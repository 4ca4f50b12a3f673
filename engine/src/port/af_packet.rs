//! Frames through raw packet sockets (packet(7)): for interfaces where XDP is not allowed.
//!
//! One socket per queue; several form a fanout group, over which the kernel spreads flows by a hash of its own. The
//! kernel's stack gets every frame as well. Frames for other stations, broadcast and multicast never come up: the
//! kernel has them anyway.

mod sys;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::burst::{BURST, Burst};
use crate::frame::Frame;
use crate::mempool::Mempool;
use crate::port::checksum::complete_partial;
use crate::port::netdev::Netdev;
use crate::port::offload::ReceiveOffloads;
use crate::port::{FRAME_OVERHEAD, Port, PortCaps, PortError, QueuePair, RxQueue, RxStats, TxQueue, TxStats};
use crate::rss::Unknown;
use crate::steer::Rule;

/// Which interface to open, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AfPacketConfig {
    /// The interface's name.
    pub interface: String,
    /// Queue pairs: sockets.
    pub queues: u16,
    /// Longest frame a buffer holds: [`crate::mempool::Region::frame_len_max`].
    pub frame_len_max: usize,
}

/// An interface opened through raw packet sockets. Its receive offloads are off until this is dropped.
#[derive(Debug)]
pub struct AfPacket {
    caps: PortCaps,
    sockets: Vec<Option<OwnedFd>>,
    _offloads: ReceiveOffloads,
}

impl AfPacket {
    /// Opens the interface in the network namespace of the calling thread. Reception starts here.
    ///
    /// # Errors
    /// [`PortError::NoSuchInterface`], [`PortError::MtuTooLarge`] for the buffers, [`PortError::Other`] for an
    /// interface that is not Ethernet or an impossible number of queues, [`PortError::Io`] for the rest: without
    /// CAP_NET_RAW and CAP_NET_ADMIN the kernel refuses.
    pub fn open(config: AfPacketConfig) -> Result<Self, PortError> {
        let AfPacketConfig { interface: name, queues, frame_len_max } = config;
        let netdev = Netdev::find(&name).map_err(|_| PortError::NoSuchInterface(name.clone()))?;
        let fail = |action| {
            let name = name.clone();
            move |source| PortError::Io { name, action, source }
        };
        let index = netdev.index().map_err(fail("asking for the interface's number"))?;
        let mac = netdev.mac().map_err(fail("asking for the station address"))?;
        let mtu_found = netdev.mtu().map_err(fail("asking for the MTU"))?;
        if !(1..=FANOUT_SOCKETS_MAX).contains(&queues) {
            let reason = format!("an af_packet port has 1 to {FANOUT_SOCKETS_MAX} queues");
            return Err(PortError::Other { name, reason });
        }
        let room = frame_len_max.min(usize::from(u16::MAX));
        let fits = |&mtu: &u16| usize::from(mtu) + FRAME_OVERHEAD <= room;
        let Some(mtu) = u16::try_from(mtu_found).ok().filter(fits) else {
            return Err(PortError::MtuTooLarge { name, mtu: mtu_found, room });
        };
        let offloads = ReceiveOffloads::disable(&name).map_err(fail("switching receive offloads off"))?;
        let sockets = open_sockets(&name, index, queues)?;
        let rss = Err(Unknown::KernelsOwn);
        let caps = PortCaps { name, kind: "af_packet", mac, mtu, queues, rss, kernel_sees_all: true };
        Ok(Self { caps, sockets: sockets.into_iter().map(Some).collect(), _offloads: offloads })
    }
}

impl Port for AfPacket {
    fn caps(&self) -> &PortCaps {
        &self.caps
    }

    fn take_queue(&mut self, index: u16) -> Result<QueuePair, PortError> {
        let slot = self.sockets.get_mut(usize::from(index));
        let socket = Arc::new(slot.and_then(Option::take).ok_or_else(|| self.caps.no_such_queue(index))?);
        let frame_len_max = usize::from(self.caps.mtu) + FRAME_OVERHEAD;
        let rx = PacketRx {
            socket: socket.clone(),
            frame_len_max,
            stats: RxStats::default(),
            missed: Cell::new(0),
        };
        let tx = PacketTx { socket, frame_len_max, stats: TxStats::default() };
        Ok((Box::new(rx), Box::new(tx)))
    }

    /// Does nothing: the queues receive all that is addressed to the interface, and the kernel sees it too.
    fn steer(&mut self, _rules: &[Rule]) -> Result<(), PortError> {
        Ok(())
    }
}

/// Opens one socket per queue. A socket is deaf until all have joined the group: one that listens before would get
/// second copies of frames.
fn open_sockets(name: &str, index: u32, queues: u16) -> Result<Vec<OwnedFd>, PortError> {
    let fail = |action| move |source| PortError::Io { name: name.to_owned(), action, source };
    let mut sockets = Vec::with_capacity(usize::from(queues));
    let mut group = None;
    for _ in 0..queues {
        let socket = sys::open().map_err(fail("opening a packet socket"))?;
        let fd = socket.as_fd();
        configure(fd).map_err(fail("setting packet socket options"))?;
        sys::set_filter(fd, &DEAF).map_err(fail("setting a socket filter"))?;
        if sys::bind(fd, index).map_err(fail("binding a packet socket"))? != libc::ARPHRD_ETHER {
            let reason = "is not an Ethernet interface".to_owned();
            return Err(PortError::Other { name: name.to_owned(), reason });
        }
        if queues > 1 {
            let joined = join(fd, group).map_err(fail("joining a fanout group"))?;
            group = Some(joined);
        }
        sockets.push(socket);
    }
    for socket in &sockets {
        sys::set_filter(socket.as_fd(), &OURS).map_err(fail("setting a socket filter"))?;
    }
    Ok(sockets)
}

fn configure(socket: BorrowedFd<'_>) -> io::Result<()> {
    for option in [libc::PACKET_AUXDATA, libc::PACKET_IGNORE_OUTGOING, libc::PACKET_QDISC_BYPASS] {
        sys::set_option(socket, libc::SOL_PACKET, option, 1)?;
    }
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        sys::set_option(socket, libc::SOL_SOCKET, option, SOCKET_BUFFER_BYTES)?;
    }
    Ok(())
}

/// Joins fanout group `group`, or a new one; returns its number.
fn join(socket: BorrowedFd<'_>, group: Option<i32>) -> io::Result<i32> {
    let request = match group {
        Some(group) => group | (libc::PACKET_FANOUT_HASH as i32) << 16,
        None => ((libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_UNIQUEID) as i32) << 16,
    };
    sys::set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, request)?;
    Ok(sys::get_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT)? & 0xffff)
}

#[derive(Debug)]
struct PacketRx {
    socket: Arc<OwnedFd>,
    frame_len_max: usize,
    stats: RxStats,
    /// The kernel forgets its count when asked, so asking adds to ours.
    missed: Cell<u64>,
}

impl PacketRx {
    /// Makes of a filled buffer the frame that was on the wire, or says that it is too long.
    fn finish(&mut self, frame: &mut Frame, seen: sys::Received) -> bool {
        let tag_len = if seen.vlan.is_some() { VLAN_TAG_LEN } else { 0 };
        if seen.len > seen.copied || seen.len + tag_len > self.frame_len_max || !frame.set_len(seen.copied) {
            self.stats.oversize += 1;
            return false;
        }
        if let Some((tpid, tci)) = seen.vlan {
            insert_tag(frame, tpid, tci);
        }
        if seen.checksum_partial && complete_partial(frame.data_mut()) {
            self.stats.checksum_completed += 1;
        }
        self.stats.packets += 1;
        self.stats.bytes += frame.len() as u64;
        true
    }
}

impl RxQueue for PacketRx {
    fn rx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        let before = burst.len();
        let room = pool.region().frame_len_max().min(self.frame_len_max);
        let mut frames = Burst::new();
        while burst.len() + frames.len() < BURST {
            let Some(mut frame) = pool.alloc() else { break };
            assert!(frame.set_len(room), "a fresh buffer holds the longest frame of its region");
            frames.push(frame);
        }
        if frames.is_empty() {
            // Frames wait in the socket; when that is full the kernel counts what it loses.
            self.stats.no_buffer += u64::from(!burst.is_full() && is_readable(self.socket.as_fd()));
            return 0;
        }
        // An error here is "nothing there", or an interface that is down: nothing there either.
        let mut received = sys::receive(self.socket.as_fd(), &mut frames).unwrap_or_default().into_iter();
        for mut frame in frames {
            match received.next() {
                Some(seen) if self.finish(&mut frame, seen) => burst.push(frame),
                _ => pool.free(frame),
            }
        }
        burst.len() - before
    }

    fn pollable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn stats(&self) -> RxStats {
        let drops = sys::take_drops(self.socket.as_fd()).unwrap_or(0);
        self.missed.set(self.missed.get() + u64::from(drops));
        RxStats { missed: self.missed.get(), ..self.stats }
    }
}

#[derive(Debug)]
struct PacketTx {
    socket: Arc<OwnedFd>,
    frame_len_max: usize,
    stats: TxStats,
}

impl TxQueue for PacketTx {
    fn tx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        let before = burst.len();
        // Each round sends or drops at least one frame, or is the last.
        while !burst.is_empty() {
            if burst[0].len() > self.frame_len_max {
                self.stats.oversize += 1;
                pool.free_all(burst.drain(..1));
                continue;
            }
            match sys::send(self.socket.as_fd(), burst) {
                Ok(sent) => {
                    self.stats.packets += sent as u64;
                    self.stats.bytes += burst[..sent].iter().map(|frame| frame.len() as u64).sum::<u64>();
                    pool.free_all(burst.drain(..sent));
                    continue;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::EINTR) => break,
                    Some(libc::EMSGSIZE) => self.stats.oversize += 1,
                    _ => self.stats.errors += 1,
                },
            }
            pool.free_all(burst.drain(..1));
        }
        before - burst.len()
    }

    fn stats(&self) -> TxStats {
        self.stats
    }
}

/// Puts back the VLAN tag that the kernel took off: between the addresses and the Ethertype.
fn insert_tag(frame: &mut Frame, tpid: u16, tci: u16) {
    if frame.len() < MACS_LEN || !frame.push_front(VLAN_TAG_LEN) {
        return;
    }
    let data = frame.data_mut();
    data.copy_within(VLAN_TAG_LEN..VLAN_TAG_LEN + MACS_LEN, 0);
    data[MACS_LEN..MACS_LEN + 2].copy_from_slice(&tpid.to_be_bytes());
    data[MACS_LEN + 2..MACS_LEN + 4].copy_from_slice(&tci.to_be_bytes());
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&at_once)) == Ok(1)
}

const MACS_LEN: usize = 12;
const VLAN_TAG_LEN: usize = 4;
/// What every kernel allows in a fanout group.
const FANOUT_SOCKETS_MAX: u16 = 256;
/// About 10 000 small frames, as the kernel counts them (with their overhead).
const SOCKET_BUFFER_BYTES: i32 = 8 << 20;

/// Hears nothing.
const DEAF: [libc::sock_filter; 1] = [libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: 0 }];
/// Hears frames addressed to the interface's own station address: `skb->pkt_type == PACKET_HOST`.
const OURS: [libc::sock_filter; 4] = [
    libc::sock_filter { code: LOAD_BYTE, jt: 0, jf: 0, k: PACKET_TYPE },
    libc::sock_filter { code: JUMP_EQUAL, jt: 0, jf: 1, k: libc::PACKET_HOST as u32 },
    libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: u32::MAX },
    libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: 0 },
];
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// `SKF_AD_OFF + SKF_AD_PKTTYPE` of `include/uapi/linux/filter.h`.
const PACKET_TYPE: u32 = (-0x1000_i32 + 4) as u32;
