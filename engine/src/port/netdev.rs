//! What the kernel knows of a network interface, asked and changed by ioctl (netdevice(7)).
//!
//! Not by sysfs: that shows the network namespace of whoever mounted it, not the caller's.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::MacAddr;

/// Length of an interface name, final zero included.
const NAME_LEN: usize = 16;

const ETHTOOL_GCHANNELS: u32 = 0x3c;

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

impl Netdev {
    /// # Errors
    /// `ENODEV` when there is no such interface.
    pub(crate) fn find(name: &str) -> io::Result<Self> {
        if name.is_empty() || name.len() >= NAME_LEN || name.contains('\0') {
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

    /// An ethtool request whose command and answer are a `u32` each (`struct ethtool_value`).
    pub(crate) fn ethtool_value(&self, command: u32, value: u32) -> io::Result<u32> {
        let mut request = [command, value];
        self.ethtool(&mut request)?;
        Ok(request[1])
    }

    /// `T` is the kernel's structure for the command in its first field.
    fn ethtool<T>(&self, data: &mut T) -> io::Result<()> {
        let pointer = std::ptr::from_mut(data) as usize;
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
        let mut request = Request { name: [0; NAME_LEN], value: [0; 24] };
        request.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        request.value[..value.len()].copy_from_slice(value);
        // SAFETY: the request is as large as the kernel's `struct ifreq` and lives through the call. Where it carries
        // a pointer (SIOCETHTOOL), `ethtool` made it from a live `&mut` to the structure that the command names.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), code as _, std::ptr::from_mut(&mut request)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(request.value) }
    }
}
