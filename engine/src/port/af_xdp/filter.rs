//! The XDP program with its maps, kept in step with a [`RuleSet`] while frames pass through it.
//!
//! An address points at a set of ports by number, and equal sets are stored once. A set in use is never edited: a change
//! writes new sets into free slots, points addresses at them one by one, and frees what nobody points at any more.
//! So each address goes from its old ports to its new ones at once. (A freed slot is written again by a later
//! change only, long after the last run of the program that could have read its number.)

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::bpf::{Attach, Link, LoadedProgram, Map, MapKind};
use super::program::{
    FAMILY_BITS, FAMILY_IPV4, FAMILY_IPV6, KEY_LEN, MapFds, PORT_SET_LEN, UDP_BITS, WithoutSocket, steering,
};
use crate::port::MacAddr;
use crate::steer::rule_set::{Entries, PortSet};
use crate::steer::{Prefix, RuleSet, Side};

/// Different sets of ports a filter holds unless told otherwise: 16 MiB of kernel memory. Addresses with equal ports share
/// one.
pub const PORT_SETS: u32 = 1024;
/// Address prefixes per side. Memory is taken for those in use.
const PREFIXES_MAX: u32 = 65_536;
/// Station addresses of one port.
const MACS_MAX: u32 = 1024;
/// Queues of one port.
pub(super) const QUEUES_MAX: u32 = 256;

/// Why a filter does not hold what it was given.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// More different sets of ports than the filter was made for.
    #[error("the steering rules need {needed} different sets of ports and there is room for {room}")]
    TooManyPortSets {
        /// Sets of the new rules that the old ones do not have, and those in use until the change is done.
        needed: usize,
        /// Slots of the filter.
        room: usize,
    },
    /// More prefixes than the filter holds.
    #[error("the steering rules name {needed} address prefixes on one side and there is room for {room}")]
    TooManyPrefixes {
        /// Prefixes of the rules.
        needed: usize,
        /// What the filter holds.
        room: usize,
    },
    /// The kernel refused.
    #[error("{action}: {source}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// A loaded program with its maps. Attached to no interface until a port does so.
#[derive(Debug)]
pub struct Filter {
    program: LoadedProgram,
    macs: Map,
    destinations: Trie,
    sources: Trie,
    port_sets: Map,
    sockets: Map,
    /// What is in force.
    rules: RuleSet,
    stations: HashSet<MacAddr>,
    slots: Slots,
}

/// The addresses of one side, in the kernel and as we know that they are there.
#[derive(Debug)]
struct Trie {
    map: Map,
    slots: BTreeMap<Prefix, u32>,
}

/// Which slot holds which set of ports.
#[derive(Debug)]
struct Slots {
    used: HashMap<PortSet, u32>,
    free: Vec<u32>,
    room: usize,
}

impl Filter {
    /// Loads program and maps with room for `port_sets` different sets of ports (16 KiB each; [`PORT_SETS`] is plenty).
    ///
    /// # Errors
    /// When the kernel refuses: without CAP_BPF and CAP_NET_ADMIN, or without eBPF.
    pub fn load(port_sets: u32, without_socket: WithoutSocket) -> Result<Self, FilterError> {
        let map = |kind, name, key, value, entries| {
            Map::new(kind, name, key, value, entries).map_err(kernel("create a BPF map"))
        };
        let macs = map(MapKind::Hash, "shunt_macs", 8, 4, MACS_MAX)?;
        let destinations = map(MapKind::LpmTrie, "shunt_dst", KEY_LEN, 4, PREFIXES_MAX)?;
        let sources = map(MapKind::LpmTrie, "shunt_src", KEY_LEN, 4, PREFIXES_MAX)?;
        let sets = map(MapKind::Array, "shunt_ports", 4, PORT_SET_LEN, port_sets)?;
        let sockets = map(MapKind::Sockets, "shunt_sockets", 4, 4, QUEUES_MAX)?;
        let fds = MapFds {
            macs: macs.fd(),
            destinations: destinations.fd(),
            sources: sources.fd(),
            port_sets: sets.fd(),
            sockets: sockets.fd(),
        };
        let program = LoadedProgram::load("shunt_steer", &steering(fds, without_socket))
            .map_err(kernel("load the XDP program"))?;
        Ok(Self {
            program,
            macs,
            destinations: Trie { map: destinations, slots: BTreeMap::new() },
            sources: Trie { map: sources, slots: BTreeMap::new() },
            port_sets: sets,
            sockets,
            rules: RuleSet::default(),
            stations: HashSet::new(),
            slots: Slots {
                used: HashMap::new(),
                free: (0..port_sets).rev().collect(),
                room: port_sets as usize,
            },
        })
    }

    /// Replaces the rules, touching only what differs. After an error the rules before are in force.
    ///
    /// # Errors
    /// When they do not fit or the kernel refuses.
    pub fn set_rules(&mut self, rules: &RuleSet) -> Result<(), FilterError> {
        self.check(rules)?;
        if let Err(error) = self.apply(rules) {
            let before = self.rules.clone();
            // Best effort: what it writes was there a moment ago.
            let _ = self.apply(&before);
            return Err(error);
        }
        self.rules = rules.clone();
        Ok(())
    }

    /// Replaces the station addresses whose frames are looked at. Group addresses never are.
    ///
    /// # Errors
    /// When there are too many or the kernel refuses.
    pub fn set_macs(&mut self, macs: &[MacAddr]) -> Result<(), FilterError> {
        let wanted: HashSet<MacAddr> = macs.iter().copied().filter(|mac| !mac.is_group()).collect();
        for mac in &wanted {
            if !self.stations.contains(mac) {
                self.macs.set(&mac_key(*mac), &[0; 4]).map_err(kernel("add a station address"))?;
                self.stations.insert(*mac);
            }
        }
        for mac in self.stations.clone().difference(&wanted) {
            self.macs.remove(&mac_key(*mac)).map_err(kernel("remove a station address"))?;
            self.stations.remove(mac);
        }
        Ok(())
    }

    /// Whether the program would redirect this frame. Meaningful for a filter loaded with
    /// [`WithoutSocket::Bounce`] and not given sockets; the kernel wants at least the 14 bytes of an Ethernet header.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn test_run(&self, frame: &[u8]) -> io::Result<bool> {
        Ok(self.program.test_run(frame)? == WithoutSocket::Bounce as u32)
    }

    pub(super) fn attach(&self, interface: u32, mode: Attach) -> io::Result<Link> {
        self.program.attach(interface, mode)
    }

    /// Frames of `queue` go to this socket from now on, until it is closed.
    pub(super) fn set_socket(&self, queue: u16, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.sockets.set(&u32::from(queue).to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes())
    }

    fn check(&self, rules: &RuleSet) -> Result<(), FilterError> {
        let sides = [rules.side(Side::Destination), rules.side(Side::Source)];
        for entries in sides {
            if entries.len() > PREFIXES_MAX as usize {
                return Err(FilterError::TooManyPrefixes {
                    needed: entries.len(),
                    room: PREFIXES_MAX as usize,
                });
            }
        }
        let new: HashSet<&PortSet> = sides
            .iter()
            .flat_map(|entries| entries.values())
            .filter(|set| !self.slots.used.contains_key(*set))
            .collect();
        if new.len() > self.slots.free.len() {
            let needed = new.len() + self.slots.used.len();
            return Err(FilterError::TooManyPortSets { needed, room: self.slots.room });
        }
        Ok(())
    }

    fn apply(&mut self, rules: &RuleSet) -> Result<(), FilterError> {
        for side in [Side::Destination, Side::Source] {
            for (prefix, ports) in rules.side(side) {
                let slot = self.slot(ports)?;
                self.trie(side).point(*prefix, slot).map_err(kernel("steer an address"))?;
            }
        }
        for side in [Side::Destination, Side::Source] {
            let wanted = rules.side(side);
            self.trie(side).keep_only(wanted).map_err(kernel("stop steering an address"))?;
        }
        self.slots.keep_only(rules);
        Ok(())
    }

    /// The number of a set of ports, written to the kernel when it is new.
    fn slot(&mut self, ports: &PortSet) -> Result<u32, FilterError> {
        if let Some(slot) = self.slots.used.get(ports) {
            return Ok(*slot);
        }
        let room = self.slots.room;
        let slot = *self.slots.free.last().ok_or(FilterError::TooManyPortSets { needed: room + 1, room })?;
        self.port_sets.set(&slot.to_ne_bytes(), &bitmap(ports)).map_err(kernel("write a set of ports"))?;
        self.slots.free.pop();
        self.slots.used.insert(ports.clone(), slot);
        Ok(slot)
    }

    fn trie(&mut self, side: Side) -> &mut Trie {
        match side {
            Side::Destination => &mut self.destinations,
            Side::Source => &mut self.sources,
        }
    }
}

impl Trie {
    fn point(&mut self, prefix: Prefix, slot: u32) -> io::Result<()> {
        if self.slots.get(&prefix) != Some(&slot) {
            self.map.set(&prefix_key(&prefix), &slot.to_ne_bytes())?;
            self.slots.insert(prefix, slot);
        }
        Ok(())
    }

    fn keep_only(&mut self, wanted: &Entries) -> io::Result<()> {
        let gone: Vec<Prefix> =
            self.slots.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        for prefix in gone {
            self.map.remove(&prefix_key(&prefix))?;
            self.slots.remove(&prefix);
        }
        Ok(())
    }
}

impl Slots {
    fn keep_only(&mut self, rules: &RuleSet) {
        let entries = |side| Entries::values(rules.side(side));
        let needed: HashSet<&PortSet> = entries(Side::Destination).chain(entries(Side::Source)).collect();
        let free = &mut self.free;
        self.used.retain(|ports, slot| {
            let keep = needed.contains(ports);
            if !keep {
                free.push(*slot);
            }
            keep
        });
    }
}

fn kernel(action: &'static str) -> impl Fn(io::Error) -> FilterError {
    move |source| FilterError::Kernel { action, source }
}

fn mac_key(mac: MacAddr) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.0;
    [a, b, c, d, e, f, 0, 0]
}

/// `struct bpf_lpm_trie_key`: the number of bits that count, then the bits: family and address.
fn prefix_key(prefix: &Prefix) -> [u8; KEY_LEN] {
    let mut key = [0; KEY_LEN];
    let family = match prefix.address() {
        IpAddr::V4(address) => {
            key[8..12].copy_from_slice(&address.octets());
            FAMILY_IPV4
        }
        IpAddr::V6(address) => {
            key[8..24].copy_from_slice(&address.octets());
            FAMILY_IPV6
        }
    };
    key[..4].copy_from_slice(&(FAMILY_BITS + u32::from(prefix.len())).to_ne_bytes());
    key[4..8].copy_from_slice(&family.to_ne_bytes());
    key
}

fn bitmap(ports: &PortSet) -> Box<[u8]> {
    const UDP: u8 = 17;
    let mut bits = vec![0u8; PORT_SET_LEN].into_boxed_slice();
    for range in ports.ranges() {
        let start = if range.protocol == UDP { UDP_BITS as usize } else { 0 };
        for port in range.first..=range.last {
            bits[start + usize::from(port >> 3)] |= 1 << (port & 7);
        }
    }
    bits
}
