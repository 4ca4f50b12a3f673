//! What a process must be allowed to do here: the kernel's capabilities, by the names of capabilities(7).

use rustix::process::{Resource, getrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

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

/// What is kept once ports are open and memory is locked: for addresses, neighbours, the guard and offloads; for
/// gratuitous ARP and checks by ping; for the maps of XDP programs; for programs that check servers, which run as somebody
/// else and are killed when their time is over.
pub const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::KILL);

/// Gives up for ever what is not [`KEPT`], for this thread, the threads that it starts and the programs that they run.
/// What cannot be given up is logged: the daemon runs with it as well.
pub fn drop_rest() {
    let dropped = || -> rustix::io::Result<()> {
        set_no_new_privs(true)?;
        let has = capabilities(None)?;
        // Before Linux 5.8 CAP_SYS_ADMIN stands for CAP_BPF.
        let old = !has.permitted.contains(CapabilitySet::BPF);
        let kept = if old { KEPT.union(CapabilitySet::SYS_ADMIN) } else { KEPT };
        for other in CapabilitySet::all().difference(kept).iter() {
            // One that this kernel does not know, or a process that may not: what it has not got it cannot pass on.
            let _ = remove_capability_from_bounding_set(other);
        }
        let sets = CapabilitySets {
            effective: has.effective.intersection(kept),
            permitted: has.permitted.intersection(kept),
            inheritable: has.inheritable.intersection(kept),
        };
        set_capabilities(None, sets)
    };
    if let Err(error) = dropped() {
        tracing::warn!("capabilities that are not needed any more cannot be given up: {error}");
    }
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
