//! The bpf(2) system call: maps, program, link.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::asm::Instruction;

const MAP_CREATE: u32 = 0;
const MAP_UPDATE: u32 = 2;
const MAP_DELETE: u32 = 3;
const PROG_LOAD: u32 = 5;
const PROG_TEST_RUN: u32 = 10;
const GET_INFO: u32 = 15;
const LINK_CREATE: u32 = 28;

const PROGRAM_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
const NAME_LEN: usize = 16;
const VERIFIER_LOG_LEN: usize = 1 << 20;

/// Kinds of maps used here.
#[derive(Clone, Copy, Debug)]
pub(super) enum MapKind {
    Hash = 1,
    Array = 2,
    LpmTrie = 11,
    Sockets = 17,
}

/// How a program hangs on an interface: `XDP_FLAGS_SKB_MODE`, `XDP_FLAGS_DRV_MODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attach {
    Generic = 2,
    Native = 4,
}

/// A map in the kernel.
#[derive(Debug)]
pub(super) struct Map {
    fd: OwnedFd,
    key_len: usize,
    value_len: usize,
}

/// A loaded program.
#[derive(Debug)]
pub(super) struct LoadedProgram(OwnedFd);

/// A program attached to an interface, for as long as this lives: the kernel detaches it when the process ends,
/// however it ends.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

impl Map {
    pub(super) fn new(kind: MapKind, name: &str, key: usize, value: usize, entries: u32) -> io::Result<Self> {
        #[repr(C)]
        #[derive(FromZeros, IntoBytes, Immutable)]
        struct Attributes {
            kind: u32,
            key_size: u32,
            value_size: u32,
            entries_max: u32,
            flags: u32,
            inner_map: u32,
            numa_node: u32,
            name: [u8; NAME_LEN],
        }
        const NO_PREALLOCATION: u32 = 1;
        let mut attributes = Attributes {
            kind: kind as u32,
            key_size: key as u32,
            value_size: value as u32,
            entries_max: entries,
            flags: if matches!(kind, MapKind::LpmTrie) { NO_PREALLOCATION } else { 0 },
            inner_map: 0,
            numa_node: 0,
            name: object_name(name),
        };
        // SAFETY: MAP_CREATE reads the attributes only; they hold no pointer.
        let fd = unsafe { call_for_fd(MAP_CREATE, &mut attributes) }?;
        Ok(Self { fd, key_len: key, value_len: value })
    }

    pub(super) fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    pub(super) fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!((key.len(), value.len()), (self.key_len, self.value_len), "sizes are the map's");
        let mut attributes = ElementAttributes::new(self, key);
        attributes.value = value.as_ptr() as u64;
        // SAFETY: key and value have the sizes of the map (asserted) and are only read.
        unsafe { call(MAP_UPDATE, &mut attributes) }.map(drop)
    }

    /// Removes a key that may be absent.
    pub(super) fn remove(&self, key: &[u8]) -> io::Result<()> {
        assert_eq!(key.len(), self.key_len, "the size is the map's");
        let mut attributes = ElementAttributes::new(self, key);
        // SAFETY: the key has the size of the map (asserted) and is only read.
        match unsafe { call(MAP_DELETE, &mut attributes) } {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }
}

#[repr(C)]
#[derive(FromZeros, IntoBytes, Immutable)]
struct ElementAttributes {
    map: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl ElementAttributes {
    fn new(map: &Map, key: &[u8]) -> Self {
        Self { map: map.fd() as u32, key: key.as_ptr() as u64, ..Self::new_zeroed() }
    }
}

impl LoadedProgram {
    /// Has the kernel verify and compile a program. A refusal carries the last lines of the verifier's log.
    pub(super) fn load(name: &str, instructions: &[Instruction]) -> io::Result<Self> {
        const LICENCE: &CStr = c"Apache-2.0";
        #[repr(C)]
        #[derive(FromZeros, IntoBytes, Immutable)]
        struct Attributes {
            kind: u32,
            instruction_count: u32,
            instructions: u64,
            licence: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            kernel_version: u32,
            flags: u32,
            name: [u8; NAME_LEN],
        }
        let mut attributes = Attributes {
            kind: PROGRAM_TYPE_XDP,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            licence: LICENCE.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name: object_name(name),
        };
        // SAFETY: the pointers are to `instruction_count` instructions and a terminated string, both live and only read.
        let refusal = match unsafe { call_for_fd(PROG_LOAD, &mut attributes) } {
            Ok(fd) => return Ok(Self(fd)),
            Err(error) => error,
        };
        let mut log = vec![0u8; VERIFIER_LOG_LEN];
        attributes.log_level = 1;
        attributes.log_size = VERIFIER_LOG_LEN as u32;
        attributes.log = log.as_mut_ptr() as u64;
        // SAFETY: as above, and the log is writable for `log_size` bytes.
        if let Ok(fd) = unsafe { call_for_fd(PROG_LOAD, &mut attributes) } {
            return Ok(Self(fd));
        }
        let text = String::from_utf8_lossy(log.split(|&byte| byte == 0).next().unwrap_or_default());
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(12)..].join("; ");
        Err(io::Error::new(refusal.kind(), format!("{refusal} ({tail})")))
    }

    /// Attaches the program to the interface with this index.
    pub(super) fn attach(&self, interface: u32, mode: Attach) -> io::Result<Link> {
        #[repr(C)]
        #[derive(FromZeros, IntoBytes, Immutable)]
        struct Attributes {
            program: u32,
            interface: u32,
            attach_type: u32,
            flags: u32,
        }
        let mut attributes = Attributes {
            program: self.0.as_raw_fd() as u32,
            interface,
            attach_type: ATTACH_TYPE_XDP,
            flags: mode as u32,
        };
        // SAFETY: LINK_CREATE reads the attributes only; they hold no pointer.
        unsafe { call_for_fd(LINK_CREATE, &mut attributes) }.map(Link)
    }

    /// Runs the program over a frame and returns its verdict (`enum xdp_action`).
    pub(super) fn test_run(&self, frame: &[u8]) -> io::Result<u32> {
        #[repr(C)]
        #[derive(FromZeros, IntoBytes, Immutable)]
        struct Attributes {
            program: u32,
            verdict: u32,
            data_in_size: u32,
            data_out_size: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
        }
        let mut attributes = Attributes {
            program: self.0.as_raw_fd() as u32,
            data_in_size: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat: 1,
            ..Attributes::new_zeroed()
        };
        // SAFETY: `data_in` is `data_in_size` live bytes, only read; no output buffer is asked for. The verdict is
        // written into the attributes, which are borrowed mutably.
        unsafe { call(PROG_TEST_RUN, &mut attributes) }?;
        Ok(attributes.verdict)
    }
}

impl Link {
    /// The kernel's number of the link, as `bpftool link` shows it.
    pub(super) fn id(&self) -> io::Result<u32> {
        #[repr(C)]
        #[derive(FromZeros, IntoBytes, Immutable)]
        struct Attributes {
            fd: u32,
            info_len: u32,
            info: u64,
        }
        let mut info = [0u32; 16];
        let mut attributes = Attributes {
            fd: self.0.as_raw_fd() as u32,
            info_len: size_of_val(&info) as u32,
            info: info.as_mut_ptr() as u64,
        };
        // SAFETY: `info` is writable for `info_len` bytes and lives through the call; any bytes are valid u32s.
        unsafe { call(GET_INFO, &mut attributes) }?;
        Ok(info[1])
    }
}

fn object_name(name: &str) -> [u8; NAME_LEN] {
    let mut bytes = [0; NAME_LEN];
    let len = name.len().min(NAME_LEN - 1);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    bytes
}

/// # Safety
/// `attributes` are the fields of `union bpf_attr` for `command`, in order, and every pointer in them is valid for
/// what the command does with it.
unsafe fn call<T: IntoBytes + Immutable>(command: u32, attributes: &mut T) -> io::Result<i32> {
    // Named fields only: bytes of padding would be read by the kernel as attributes that it does not know.
    let len = size_of::<T>();
    // SAFETY: by the contract of this function; the kernel reads and writes at most `len` bytes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// # Safety
/// As [`call`], and the command returns a new descriptor.
unsafe fn call_for_fd<T: IntoBytes + Immutable>(command: u32, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the contract is the same.
    let fd = unsafe { call(command, attributes) }?;
    // SAFETY: the command made the descriptor just now and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
