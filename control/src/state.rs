//! Numbers that stay the same from one reload to the next: which slot a service, a server, a next hop has.
//!
//! Workers keep cursors and counts by slot, so what is the same thing to the operator keeps its slot. A service is its
//! name; a server is its service, address, port and mode. A slot that becomes free waits behind all others before it
//! is used again, and its generation tells the tenants apart.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;

use shunt_dataplane::neigh::HopId;
use shunt_dataplane::server::{Mode, ServerId};
use shunt_dataplane::service::ServiceId;
use shunt_engine::steer::Prefix;

use crate::config::{Config, Server, ServerPort};

/// Servers of all services together.
pub const SERVERS_MAX: usize = 4096;

/// Services.
pub const SERVICES_MAX: usize = 1024;

/// What makes a server the same server.
pub type ServerKey = (String, IpAddr, ServerPort, Mode);

/// Why numbers could not be given.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NumbersError {
    /// More servers than slots.
    #[error(
        "{count} servers, {leaving} of them left out by a reload and not drained yet; {SERVERS_MAX} are possible: \
         reload again when they have drained"
    )]
    Servers {
        /// All servers.
        count: usize,
        /// Of them, those that no file names any more.
        leaving: usize,
    },
    /// More services than slots.
    #[error(
        "{count} services, {leaving} of them left out by a reload and not drained yet; {SERVICES_MAX} are possible: \
         reload again when they have drained"
    )]
    Services {
        /// All services.
        count: usize,
        /// Of them, those that no file names any more.
        leaving: usize,
    },
    /// More next hops than numbers.
    #[error("more than {} gateways, servers and networks", u16::MAX)]
    Hops,
}

/// All numbers in use. A change is tried on a clone, which takes the original's place when all else is well too.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    services: Slots<String>,
    servers: Slots<ServerKey>,
    hops: BTreeMap<HopKey, HopId>,
}

/// What makes a next hop the same next hop: the kernel's link, where on it, and the MTU of the routes that lead there if
/// they have one of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HopKey {
    /// This network on this link: each packet's own destination.
    Attached(u32, Prefix, Option<u32>),
    /// One station on this link.
    Station(u32, IpAddr, Option<u32>),
    /// Nowhere.
    Nowhere,
}

impl Numbers {
    /// Gives every service and server of `config` its number, and takes the numbers of what is gone.
    ///
    /// # Errors
    /// When there are too many.
    pub fn assign(&mut self, config: &Config) -> Result<(), NumbersError> {
        let names = config.services.iter().map(|service| service.name.clone());
        let leaving = || config.services.iter().filter(|service| service.left_out).count();
        let too_many = |count| NumbersError::Services { count, leaving: leaving() };
        self.services.assign(names, SERVICES_MAX).map_err(too_many)?;
        let keys = config
            .services
            .iter()
            .flat_map(|service| service.servers.iter().map(|server| server_key(&service.name, server)));
        let left_out = |server: &&Server| server.draining.is_some_and(|draining| draining.left_out);
        let servers = || config.services.iter().flat_map(|service| &service.servers);
        let leaving = || servers().filter(left_out).count();
        let too_many = |count| NumbersError::Servers { count, leaving: leaving() };
        self.servers.assign(keys, SERVERS_MAX).map_err(too_many)
    }

    /// The number of the service `name`.
    pub fn service(&self, name: &str) -> Option<ServiceId> {
        self.services.used.get(name).map(|slot| ServiceId(slot.number))
    }

    /// The number of a server.
    pub fn server(&self, key: &ServerKey) -> Option<ServerId> {
        let slot = self.servers.used.get(key)?;
        Some(ServerId { slot: slot.number, generation: slot.generation })
    }

    /// Gives every next hop of `keys` its number, and takes the numbers of those that are gone.
    ///
    /// # Errors
    /// When there are too many.
    pub fn assign_hops(&mut self, keys: &BTreeSet<HopKey>) -> Result<(), NumbersError> {
        self.hops.retain(|key, _| keys.contains(key));
        let mut taken: HashSet<u16> = self.hops.values().map(|id| id.0).collect();
        let mut next = 0;
        for key in keys {
            if self.hops.contains_key(key) {
                continue;
            }
            while taken.contains(&next) {
                next = next.checked_add(1).ok_or(NumbersError::Hops)?;
            }
            taken.insert(next);
            self.hops.insert(*key, HopId(next));
        }
        Ok(())
    }

    /// The number of a next hop.
    pub fn hop(&self, key: HopKey) -> Option<HopId> {
        self.hops.get(&key).copied()
    }
}

/// The key of a server of `service`.
pub fn server_key(service: &str, server: &Server) -> ServerKey {
    (service.to_owned(), server.address, server.port, server.mode)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    number: u32,
    generation: u32,
}

#[derive(Clone, Debug)]
struct Slots<K> {
    used: HashMap<K, Slot>,
    /// Slots that had a tenant, the longest free one first.
    free: VecDeque<Slot>,
    /// Slots that ever had a tenant are those below.
    next: u32,
}

impl<K> Default for Slots<K> {
    fn default() -> Self {
        Self { used: HashMap::new(), free: VecDeque::new(), next: 0 }
    }
}

impl<K: std::hash::Hash + Eq + Clone> Slots<K> {
    /// Keeps the slots of `keys`, frees others, gives new ones. The error is how many were asked for.
    fn assign(&mut self, keys: impl Iterator<Item = K>, slots_max: usize) -> Result<(), usize> {
        let keys: Vec<K> = keys.collect();
        if keys.len() > slots_max {
            return Err(keys.len());
        }
        let wanted: HashSet<&K> = keys.iter().collect();
        let mut gone: Vec<Slot> = Vec::new();
        self.used.retain(|key, slot| {
            let stays = wanted.contains(key);
            if !stays {
                gone.push(*slot);
            }
            stays
        });
        gone.sort_by_key(|slot| slot.number);
        self.free.extend(
            gone.into_iter().map(|slot| Slot { generation: slot.generation.wrapping_add(1), ..slot }),
        );
        for key in &keys {
            if !self.used.contains_key(key) {
                let slot = self.take(slots_max).expect("there are no more keys than slots");
                self.used.insert(key.clone(), slot);
            }
        }
        Ok(())
    }

    fn take(&mut self, slots_max: usize) -> Option<Slot> {
        if (self.next as usize) < slots_max {
            self.next += 1;
            return Some(Slot { number: self.next - 1, generation: 0 });
        }
        self.free.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(slots: &mut Slots<&'static str>, keys: &[&'static str], max: usize) -> Vec<(u32, u32)> {
        slots.assign(keys.iter().copied(), max).unwrap();
        keys.iter().map(|key| slots.used[key]).map(|slot| (slot.number, slot.generation)).collect()
    }

    #[test]
    fn what_stays_keeps_its_slot_and_what_returns_gets_another_tenancy() {
        let mut s = Slots::default();
        assert_eq!(slots(&mut s, &["a", "b", "c"], 4), [(0, 0), (1, 0), (2, 0)]);
        assert_eq!(slots(&mut s, &["c", "a"], 4), [(2, 0), (0, 0)]);
        // "b" comes back: never-used slots go first, so that old connections of slot 1 end in peace.
        assert_eq!(slots(&mut s, &["c", "a", "b"], 4), [(2, 0), (0, 0), (3, 0)]);
        assert_eq!(slots(&mut s, &["c", "a", "b", "d"], 4), [(2, 0), (0, 0), (3, 0), (1, 1)]);
    }

    #[test]
    fn the_slot_free_for_longest_is_used_again_first() {
        let mut s = Slots::default();
        slots(&mut s, &["a", "b"], 2);
        slots(&mut s, &["b"], 2);
        slots(&mut s, &[], 2);
        assert_eq!(slots(&mut s, &["x"], 2), [(0, 1)]);
        assert_eq!(slots(&mut s, &["x", "y"], 2), [(0, 1), (1, 1)]);
    }

    #[test]
    fn too_many_keys_change_nothing() {
        let mut s = Slots::default();
        slots(&mut s, &["a"], 1);
        assert_eq!(s.assign(["b", "c"].into_iter(), 1), Err(2));
        assert_eq!(slots(&mut s, &["a"], 1), [(0, 0)]);
    }

    #[test]
    fn hops_keep_their_number_while_they_are_named() {
        let mut numbers = Numbers::default();
        let network = Prefix::new(IpAddr::from([10, 0, 0, 0]), 24).unwrap();
        let station = |last| HopKey::Station(3, IpAddr::from([10, 0, 0, last]), None);
        numbers.assign_hops(&[station(1), station(2), HopKey::Attached(3, network, None)].into()).unwrap();
        let kept = numbers.hop(station(2)).unwrap();
        numbers.assign_hops(&[station(2), station(9)].into()).unwrap();
        assert_eq!(numbers.hop(station(2)), Some(kept));
        assert_eq!(numbers.hop(station(1)), None);
        assert_ne!(numbers.hop(station(9)), Some(kept));
    }
}
