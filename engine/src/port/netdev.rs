//! What the kernel knows of a network interface, asked and changed by ioctl (netdevice(7))
//! and, for an address, rtnetlink(7).
//!
//! Not by sysfs: that shows the network namespace of whoever mounted it, not the caller's.
#![allow(unsafe_code)]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use super::MacAddr;

/// Length of an interface name, final zero included.
const NAME_LEN: usize = 16;

const ETHTOOL_GRXFH: u32 = 0x29;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_GRSSH: u32 = 0x46;

/// An interface by name, in the network namespace of the thread that looked it up.
#[derive(Debug)]
pub(crate) struct Netdev {
    name: String,
    socket: OwnedFd,
}

/// `struct ifreq` of `linux/if.h`: a name and 24 bytes whose meaning depends on the request.
#[repr(C, align(8))]
struct Request {
    name: [u8; NAME_LEN],
    value: [u8; 24],
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    /// Most receive, transmit, other and combined channels.
    most: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// The part of `struct ethtool_rxnfc` that `ETHTOOL_GRXFH` is about.
#[repr(C)]
struct RxHash {
    command: u32,
    flow_type: u32,
    fields: u64,
}

/// Words before the indirection table in `struct ethtool_rxfh`: command, context, its length, the key's length in
/// bytes, hash function (byte 0) and transformation of the input (byte 1), reserved.
pub(crate) const RXFH_WORDS: usize = 6;

/// More entries, or bytes of key, than any device has.
const RXFH_MAX: u32 = 1 << 16;

impl Netdev {
    /// # Errors
    /// `ENODEV` when there is no such interface.
    pub(crate) fn find(name: &str) -> io::Result<Self> {
        if !is_name(name) {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let netdev = Self { name: name.to_owned(), socket };
        netdev.index()?;
        Ok(netdev)
    }

    /// The kernel's number of the interface.
    pub(crate) fn index(&self) -> io::Result<u32> {
        Ok(u32::from_ne_bytes(self.ask(libc::SIOCGIFINDEX)?))
    }

    /// Largest layer-3 packet in bytes.
    pub(crate) fn mtu(&self) -> io::Result<u32> {
        Ok(u32::from_ne_bytes(self.ask(libc::SIOCGIFMTU)?))
    }

    pub(crate) fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        self.tell(libc::SIOCSIFMTU, mtu.to_ne_bytes())
    }

    /// The station address: the first bytes of a `struct sockaddr`, behind its family.
    pub(crate) fn mac(&self) -> io::Result<MacAddr> {
        let [_, _, mac @ ..]: [u8; 8] = self.ask(libc::SIOCGIFHWADDR)?;
        Ok(MacAddr(mac))
    }

    /// Sets the interface administratively up.
    pub(crate) fn set_up(&self) -> io::Result<()> {
        let flags = u16::from_ne_bytes(self.ask(libc::SIOCGIFFLAGS)?) | libc::IFF_UP as u16;
        self.tell(libc::SIOCSIFFLAGS, flags.to_ne_bytes())
    }

    /// Adds an IPv4 address that the kernel never chooses as the source of what it sends (scope `host`).
    pub(crate) fn add_host_address(&self, address: Ipv4Addr) -> io::Result<()> {
        const REQUEST_ACK_CREATE: u16 = 0x0405;
        const ERROR: u16 = 2;
        const SCOPE_HOST: u8 = 254;
        const IFA_LOCAL: u16 = 2;
        let mut message = Vec::with_capacity(32);
        // `struct nlmsghdr`, `struct ifaddrmsg` and one attribute, each of a multiple of 4 bytes.
        message.extend(32u32.to_ne_bytes());
        message.extend(libc::RTM_NEWADDR.to_ne_bytes());
        message.extend(REQUEST_ACK_CREATE.to_ne_bytes());
        message.extend([0; 8]);
        message.extend([libc::AF_INET as u8, 32, 0, SCOPE_HOST]);
        message.extend(self.index()?.to_ne_bytes());
        message.extend(8u16.to_ne_bytes());
        message.extend(IFA_LOCAL.to_ne_bytes());
        message.extend(address.octets());
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        send(&socket, &message, SendFlags::empty())?;
        // `struct nlmsgerr`: a header, then 0 or a negative error number, then the request.
        let mut answer = [0; 128];
        let (len, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
        let kind = u16::from_ne_bytes([answer[4], answer[5]]);
        match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
            _ if len < 20 || kind != ERROR => Err(io::ErrorKind::InvalidData.into()),
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// Receive queues in use now. A device that does not tell by ethtool is counted in sysfs, and has one if it is not
    /// there either.
    pub(crate) fn rx_queues(&self) -> u16 {
        let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
        let queues = match self.ethtool(&mut channels) {
            Ok(()) => channels.rx + channels.combined,
            Err(_) => std::fs::read_dir(format!("/sys/class/net/{}/queues", self.name))
                .into_iter()
                .flatten()
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-"))
                .count() as u32,
        };
        u16::try_from(queues.max(1)).unwrap_or(u16::MAX)
    }

    /// How the device spreads frames over its queues: a `struct ethtool_rxfh`, whose first [`RXFH_WORDS`] words are
    /// followed by the indirection table and the key.
    pub(crate) fn rxfh(&self) -> io::Result<Vec<u32>> {
        // First the sizes are asked for; then what has exactly these sizes.
        let mut sizes = [ETHTOOL_GRSSH, 0, 0, 0, 0, 0];
        const { assert!(RXFH_WORDS == 6) };
        self.ethtool(&mut sizes)?;
        let [_, _, entries, key_len, ..] = sizes;
        if entries > RXFH_MAX || key_len > RXFH_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut answer = vec![0; RXFH_WORDS + entries as usize + key_len.div_ceil(4) as usize];
        [answer[0], answer[2], answer[3]] = [ETHTOOL_GRSSH, entries, key_len];
        // The kernel writes as many entries and bytes of key as are named here, or refuses.
        self.ethtool(answer.as_mut_slice())?;
        Ok(answer)
    }

    /// Which fields of packets of a kind (`TCP_V4_FLOW` …) the device hashes: bits `RXH_*`.
    pub(crate) fn hashed_fields(&self, flow_type: u32) -> io::Result<u64> {
        let mut request = RxHash { command: ETHTOOL_GRXFH, flow_type, fields: 0 };
        self.ethtool(&mut request)?;
        Ok(request.fields)
    }

    /// An ethtool request whose command and answer are a `u32` each (`struct ethtool_value`).
    pub(crate) fn ethtool_value(&self, command: u32, value: u32) -> io::Result<u32> {
        let mut request = [command, value];
        self.ethtool(&mut request)?;
        Ok(request[1])
    }

    /// `T` is the kernel's structure for the command in its first field.
    fn ethtool<T: ?Sized>(&self, data: &mut T) -> io::Result<()> {
        let pointer = std::ptr::from_mut(data).cast::<u8>() as usize;
        self.request(libc::SIOCETHTOOL, &pointer.to_ne_bytes()).map(drop)
    }

    fn ask<const N: usize>(&self, code: libc::c_ulong) -> io::Result<[u8; N]> {
        let answer = self.request(code, &[])?;
        let mut value = [0; N];
        value.copy_from_slice(&answer[..N]);
        Ok(value)
    }

    fn tell<const N: usize>(&self, code: libc::c_ulong, value: [u8; N]) -> io::Result<()> {
        self.request(code, &value).map(drop)
    }

    fn request(&self, code: libc::c_ulong, value: &[u8]) -> io::Result<[u8; 24]> {
        // SAFETY: of the requests made here only SIOCETHTOOL carries a pointer, which `ethtool` made from a live
        // `&mut` to the structure that the command names.
        unsafe { request(self.socket.as_fd(), code, &self.name, value) }
    }
}

/// Makes a TUN device whose packets have no header of its own; it exists until the descriptor is closed.
pub(crate) fn open_tun(name: &str) -> io::Result<OwnedFd> {
    // The kernel would put a number in the place of a `%d`.
    if !is_name(name) || name.contains('%') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tun = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    let kind = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq` without pointers.
    unsafe { request(tun.as_fd(), libc::TUNSETIFF as _, name, &kind.to_ne_bytes()) }?;
    Ok(tun)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() < NAME_LEN && !name.contains(['\0', '/'])
}

/// # Safety
/// `code` takes a `struct ifreq`, and where `value` holds a pointer it is valid for what the request does with it.
unsafe fn request(fd: BorrowedFd<'_>, code: libc::c_ulong, name: &str, value: &[u8]) -> io::Result<[u8; 24]> {
    let mut request = Request { name: [0; NAME_LEN], value: [0; 24] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    request.value[..value.len()].copy_from_slice(value);
    // SAFETY: the request is as large as the kernel's `struct ifreq` and lives through the call; the rest is the
    // caller's contract.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), code as _, std::ptr::from_mut(&mut request)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(request.value) }
}
