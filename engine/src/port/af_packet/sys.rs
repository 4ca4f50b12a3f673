//! The system calls of the AF_PACKET port: packet(7) options, `recvmmsg` and `sendmmsg`.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;

use arrayvec::ArrayVec;

use crate::burst::{BURST, Burst};

/// What the kernel says of one received frame (`struct tpacket_auxdata`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// Length on the wire, which may be more than the buffer holds; without a VLAN tag the kernel has taken off.
    pub(super) len: usize,
    /// Bytes in the buffer.
    pub(super) copied: usize,
    /// Whether the checksum field holds the pseudo header's sum only.
    pub(super) checksum_partial: bool,
    /// Ethertype and contents of the tag the kernel has taken off.
    pub(super) vlan: Option<(u16, u16)>,
}

/// Room for the one control message that PACKET_AUXDATA asks for.
#[repr(C)]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    aux: libc::tpacket_auxdata,
}

/// A raw packet socket that does not block and receives nothing yet.
pub(super) fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: plain integers go in.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) } as isize)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Starts reception of all frames from interface `index`; returns what kind of hardware that is (`ARPHRD_*`).
pub(super) fn bind(socket: BorrowedFd<'_>, index: u32) -> io::Result<u16> {
    // SAFETY: sockaddr_ll is integers and bytes, for which zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_ll of `len` bytes, read during the call only.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } as isize)?;
    let named = (&raw mut address).cast();
    // SAFETY: the kernel writes at most `len` bytes into `address`.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), named, &raw mut len) } as isize)?;
    Ok(address.sll_hatype)
}

/// Sets an integer option.
pub(super) fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` is `len` bytes, read during the call only.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    check(result as isize)?;
    Ok(())
}

/// Reads an integer option.
pub(super) fn get_option(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `value`.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    check(result as isize)?;
    Ok(value)
}

/// Puts a classic BPF program in front of the socket, in place of the one before, between two frames.
pub(super) fn set_filter(socket: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: `program` points at `len` instructions; both are only read, during the call.
    let result = unsafe {
        let fd = socket.as_raw_fd();
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const program).cast(), size)
    };
    check(result as isize)?;
    Ok(())
}

/// Frames the socket had no room for since the last call.
pub(super) fn take_drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: tpacket_stats is two integers.
    let mut stats: libc::tpacket_stats = unsafe { zeroed() };
    let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `stats`.
    let result = unsafe {
        let fd = socket.as_raw_fd();
        libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, (&raw mut stats).cast(), &raw mut len)
    };
    check(result as isize)?;
    Ok(stats.tp_drops)
}

/// Receives frames into the data of `frames`, in order, and tells of each that was filled. Does not block.
pub(super) fn receive(socket: BorrowedFd<'_>, frames: &mut Burst) -> io::Result<ArrayVec<Received, BURST>> {
    // SAFETY: both are plain C structs of integers and pointers, for which zero is valid.
    let (mut controls, mut messages): ([Control; BURST], [libc::mmsghdr; BURST]) = unsafe { zeroed() };
    let mut vectors = vectors(frames);
    for ((message, vector), control) in messages.iter_mut().zip(&mut vectors).zip(&mut controls) {
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_control = (&raw mut *control).cast();
        message.msg_hdr.msg_controllen = size_of::<Control>();
    }
    // SAFETY: the first `frames.len()` messages point at `vectors` and `controls`, which live until the end of this
    // function, and through them at the frames' data, which `frames` borrows exclusively for as long. The timeout
    // may be null.
    let count = check(unsafe {
        let fd = socket.as_raw_fd();
        libc::recvmmsg(fd, messages.as_mut_ptr(), frames.len() as u32, libc::MSG_DONTWAIT, null_mut())
    } as isize)?;
    let filled = messages.iter().zip(&controls).take(count);
    Ok(filled.map(|(message, control)| control.tell(message.msg_len as usize)).collect())
}

/// Sends frames from the front of `frames` and returns how many. An error is that of the first frame: nothing was
/// sent then. Does not block.
pub(super) fn send(socket: BorrowedFd<'_>, frames: &mut Burst) -> io::Result<usize> {
    // SAFETY: a plain C struct of integers and pointers, for which zero is valid.
    let mut messages: [libc::mmsghdr; BURST] = unsafe { zeroed() };
    let mut vectors = vectors(frames);
    for (message, vector) in messages.iter_mut().zip(&mut vectors) {
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the first `frames.len()` messages point at `vectors`, which live until the end of this function, and
    // through them at the frames' data, which `frames` borrows for as long.
    check(unsafe {
        let fd = socket.as_raw_fd();
        libc::sendmmsg(fd, messages.as_mut_ptr(), frames.len() as u32, libc::MSG_DONTWAIT)
    } as isize)
}

/// The data of each frame, for the kernel.
fn vectors(frames: &mut Burst) -> ArrayVec<libc::iovec, BURST> {
    let vector = |data: &mut [u8]| libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    frames.iter_mut().map(|frame| vector(frame.data_mut())).collect()
}

impl Control {
    fn tell(&self, copied: usize) -> Received {
        let is_aux = self.header.cmsg_len >= size_of::<libc::cmsghdr>() + size_of::<libc::tpacket_auxdata>()
            && self.header.cmsg_level == libc::SOL_PACKET
            && self.header.cmsg_type == libc::PACKET_AUXDATA;
        if !is_aux {
            return Received { len: copied, copied, checksum_partial: false, vlan: None };
        }
        let flag = |bit: u32| self.aux.tp_status & bit != 0;
        let tpid = if flag(libc::TP_STATUS_VLAN_TPID_VALID) { self.aux.tp_vlan_tpid } else { 0x8100 };
        Received {
            len: self.aux.tp_len as usize,
            copied,
            checksum_partial: flag(libc::TP_STATUS_CSUMNOTREADY),
            vlan: flag(libc::TP_STATUS_VLAN_VALID).then_some((tpid, self.aux.tp_vlan_tci)),
        }
    }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
