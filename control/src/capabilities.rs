//! What a process must be allowed to do here: the kernel's capabilities, by the names of capabilities(7).

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::config::{Config, Driver};

/// Something the kernel allows or refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Addresses, neighbours, routes, the guard table, the device for what is not ours.
    NetAdmin,
    /// Packet and AF_XDP sockets.
    NetRaw,
    /// XDP programs and their maps.
    Bpf,
    /// Programs that compare pointers, as all do that look for a packet's end.
    Perfmon,
    /// Packet buffers that the kernel writes to, unless there is no limit to locked memory (RLIMIT_MEMLOCK).
    IpcLock,
}

impl Capability {
    const fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::Bpf => "CAP_BPF",
            Self::Perfmon => "CAP_PERFMON",
            Self::IpcLock => "CAP_IPC_LOCK",
        }
    }

    /// What has it: of several any will do.
    const fn set(self) -> CapabilitySet {
        match self {
            Self::NetAdmin => CapabilitySet::NET_ADMIN,
            Self::NetRaw => CapabilitySet::NET_RAW,
            Self::Bpf => CapabilitySet::BPF.union(CapabilitySet::SYS_ADMIN),
            Self::Perfmon => CapabilitySet::PERFMON.union(CapabilitySet::SYS_ADMIN),
            Self::IpcLock => CapabilitySet::IPC_LOCK,
        }
    }

    /// Whether a process with these capabilities may do it.
    fn is_in(self, has: CapabilitySet) -> bool {
        let unlimited = self == Self::IpcLock && getrlimit(Resource::Memlock).current.is_none();
        unlimited || has.intersects(self.set())
    }
}

/// What this process lacks, with what helps.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} missing: run this as root, or with {} (in a unit of systemd: AmbientCapabilities=)",
    list(missing),
    list(needed)
)]
pub struct Powerless {
    missing: Vec<Capability>,
    needed: Vec<Capability>,
}

fn list(capabilities: &[Capability]) -> String {
    let names: Vec<_> = capabilities.iter().map(|capability| capability.name()).collect();
    names.join(", ")
}

/// Whether this process may run the daemon of `config`.
///
/// # Errors
/// [`Powerless`].
pub fn to_run(config: &Config) -> Result<(), Powerless> {
    let mut needed = vec![Capability::NetAdmin, Capability::NetRaw];
    if config.ports.iter().any(|port| port.driver == Driver::AfXdp) {
        needed.extend([Capability::Bpf, Capability::Perfmon, Capability::IpcLock]);
    }
    need(needed)
}

/// Whether this process may remove what a daemon has left.
///
/// # Errors
/// [`Powerless`].
pub fn to_clean_up() -> Result<(), Powerless> {
    need(vec![Capability::NetAdmin])
}

fn need(needed: Vec<Capability>) -> Result<(), Powerless> {
    // A kernel that does not say what is allowed will say what is not when it is asked for it.
    let Ok(has) = capabilities(None) else { return Ok(()) };
    let lacks = |capability: &&Capability| !capability.is_in(has.effective);
    let missing: Vec<_> = needed.iter().filter(lacks).copied().collect();
    if missing.is_empty() { Ok(()) } else { Err(Powerless { missing, needed }) }
}
