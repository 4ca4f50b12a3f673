//! Numbers that stay the same from one reload to the next: which slot a service, a server, a next hop has.
//!
//! Workers keep cursors and counts by slot, so what is the same thing to the operator keeps its slot. A service is its
//! name; a server is its service, address, port and mode. A slot that becomes free waits behind all others before it
//! is used again, and its generation tells the tenants apart.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use shunt_dataplane::neigh::HopId;
use shunt_dataplane::server::{Mode, ServerId};
use shunt_dataplane::service::ServiceId;
use shunt_engine::steer::Prefix;

use crate::config::{Config, Server, ServerPort, Service};

/// Servers of all services together. Each costs a worker some 240 bytes, be it there or not.
pub const SERVERS_MAX: usize = 1 << 17;

/// Services.
pub const SERVICES_MAX: usize = 1024;

/// What makes a server of a service the same server.
pub type ServerKey = (IpAddr, ServerPort, Mode);

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
    services: HashMap<String, Arc<Numbered>>,
    service_slots: Slots,
    server_slots: Slots,
    hops: BTreeMap<HopKey, HopId>,
}

/// A service as it was last, and the numbers it and its servers have.
#[derive(Clone, Debug)]
struct Numbered {
    service: Arc<Service>,
    slot: Slot,
    servers: HashMap<ServerKey, Slot>,
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
    /// Gives every service and server of `config` its number, and takes the numbers of what is gone. Returns the services
    /// that are not the very same as before.
    ///
    /// # Errors
    /// When there are too many. Nothing has changed then.
    pub fn assign(&mut self, config: &Config) -> Result<BTreeSet<ServiceId>, NumbersError> {
        check_counts(config)?;
        self.free(config);
        let mut changed = BTreeSet::new();
        for service in &config.services {
            let known = self.services.get(&service.name);
            if known.is_some_and(|known| Arc::ptr_eq(&known.service, service)) {
                continue;
            }
            let numbered = self.services.entry(service.name.clone()).or_insert_with(|| {
                let slot = self.service_slots.take(SERVICES_MAX);
                Arc::new(Numbered { service: service.clone(), slot, servers: HashMap::new() })
            });
            let numbered = Arc::make_mut(numbered);
            numbered.service = service.clone();
            for server in &service.servers {
                let slot = numbered.servers.entry(server_key(server));
                slot.or_insert_with(|| self.server_slots.take(SERVERS_MAX));
            }
            changed.insert(ServiceId(numbered.slot.number));
        }
        Ok(changed)
    }

    /// Takes the numbers of what `config` does not have.
    fn free(&mut self, config: &Config) {
        let stay = config.services_by_name();
        let (mut services, mut servers) = (Vec::new(), Vec::new());
        self.services.retain(|name, numbered| match stay.get(name.as_str()) {
            Some(&service) if Arc::ptr_eq(&numbered.service, service) => true,
            Some(service) => {
                let stay: HashSet<_> = service.servers.iter().map(server_key).collect();
                let gone = Arc::make_mut(numbered).servers.extract_if(|key, _| !stay.contains(key));
                servers.extend(gone.map(|(_, slot)| slot));
                true
            }
            None => {
                services.push(numbered.slot);
                servers.extend(numbered.servers.values());
                false
            }
        });
        self.service_slots.free(services);
        self.server_slots.free(servers);
    }

    /// The number of the service `name`.
    pub fn service(&self, name: &str) -> Option<ServiceId> {
        self.services.get(name).map(|numbered| ServiceId(numbered.slot.number))
    }

    /// The number of a server of the service `name`.
    pub fn server(&self, name: &str, server: &Server) -> Option<ServerId> {
        let slot = self.services.get(name)?.servers.get(&server_key(server))?;
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

/// Whether there are as many slots as `config` needs.
fn check_counts(config: &Config) -> Result<(), NumbersError> {
    let count = config.services.len();
    if count > SERVICES_MAX {
        let leaving = config.services.iter().filter(|service| service.left_out).count();
        return Err(NumbersError::Services { count, leaving });
    }
    let count = config.services.iter().map(|service| service.servers.len()).sum();
    if count > SERVERS_MAX {
        let left_out = |server: &&Server| server.draining.is_some_and(|draining| draining.left_out);
        let servers = config.services.iter().flat_map(|service| &service.servers);
        return Err(NumbersError::Servers { count, leaving: servers.filter(left_out).count() });
    }
    Ok(())
}

/// The key of a server among those of its service.
pub fn server_key(server: &Server) -> ServerKey {
    (server.address, server.port, server.mode)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    number: u32,
    generation: u32,
}

/// The slots that nobody has.
#[derive(Clone, Debug, Default)]
struct Slots {
    /// Those that had a tenant, the longest free one first.
    free: VecDeque<Slot>,
    /// Slots that ever had a tenant are those below.
    next: u32,
}

impl Slots {
    /// The tenants of `gone` have left.
    fn free(&mut self, mut gone: Vec<Slot>) {
        gone.sort_by_key(|slot| slot.number);
        let next = |slot: Slot| Slot { generation: slot.generation.wrapping_add(1), ..slot };
        self.free.extend(gone.into_iter().map(next));
    }

    /// One for a new tenant. There must be one, of `slots_max`: never-used slots go first, so that old connections of
    /// the others end in peace.
    fn take(&mut self, slots_max: usize) -> Slot {
        if (self.next as usize) < slots_max {
            self.next += 1;
            return Slot { number: self.next - 1, generation: 0 };
        }
        self.free.pop_front().expect("there are no more tenants than slots")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration with one service per name, each of which has so many servers.
    fn config(services: &[(&str, u8)]) -> Config {
        let mut text = "[[port]]\ninterface = \"eth0\"\n".to_owned();
        for (number, (name, servers)) in services.iter().enumerate() {
            text += &format!(
                "[[service]]\nname = {name:?}\nprotocol = \"tcp\"\nmode = \"dr\"\nlisten = [\"203.0.113.{}:80\"]\n",
                number + 1
            );
            let server = |last| format!("[[service.server]]\naddress = \"10.0.0.{last}\"\n");
            text += &(1..=*servers).map(server).collect::<String>();
        }
        Config::parse("test", &text, false).unwrap_or_else(|error| panic!("{error}")).config
    }

    fn service(numbers: &mut Numbers, names: &[&str]) -> Vec<u32> {
        let named: Vec<_> = names.iter().map(|&name| (name, 0)).collect();
        numbers.assign(&config(&named)).unwrap();
        names.iter().map(|name| numbers.service(name).unwrap().0).collect()
    }

    #[test]
    fn what_stays_keeps_its_slot_and_what_returns_gets_another_one() {
        let mut numbers = Numbers::default();
        assert_eq!(service(&mut numbers, &["a", "b", "c"]), [0, 1, 2]);
        assert_eq!(service(&mut numbers, &["c", "a"]), [2, 0]);
        // "b" comes back: never-used slots go first, so that old connections of slot 1 end in peace.
        assert_eq!(service(&mut numbers, &["c", "a", "b"]), [2, 0, 3]);
    }

    #[test]
    fn a_server_is_its_service_address_port_and_mode() {
        let mut numbers = Numbers::default();
        let ids = |numbers: &Numbers, config: &Config| -> Vec<_> {
            let services = config.services.iter();
            let servers =
                services.flat_map(|service| service.servers.iter().map(move |s| (&service.name, s)));
            servers.map(|(name, server)| numbers.server(name, server).unwrap()).collect()
        };
        let first = config(&[("a", 2), ("b", 1)]);
        numbers.assign(&first).unwrap();
        let id = |slot| ServerId { slot, generation: 0 };
        assert_eq!(ids(&numbers, &first), [id(0), id(1), id(2)]);
        let second = config(&[("b", 2), ("a", 1)]);
        numbers.assign(&second).unwrap();
        assert_eq!(ids(&numbers, &second), [id(2), id(3), id(0)]);
        assert_eq!(numbers.server("a", &first.services[0].servers[1]), None);
        numbers.assign(&first).unwrap();
        assert_eq!(ids(&numbers, &first), [id(0), id(4), id(2)]);
    }

    #[test]
    fn only_services_of_which_something_differs_have_changed() {
        let mut numbers = Numbers::default();
        let first = config(&[("a", 2), ("b", 1), ("c", 1)]);
        let all = |ids: &[u32]| ids.iter().copied().map(ServiceId).collect();
        assert_eq!(numbers.assign(&first).unwrap(), all(&[0, 1, 2]));
        assert_eq!(numbers.assign(&first).unwrap(), all(&[]));
        let mut second = config(&[("a", 2), ("b", 2), ("c", 1)]);
        second.share(&first);
        assert_eq!(numbers.assign(&second).unwrap(), all(&[1]));
    }

    #[test]
    fn the_slot_free_for_longest_is_used_again_first_and_tells_its_tenants_apart() {
        let mut slots = Slots::default();
        let slot = |number, generation| Slot { number, generation };
        assert_eq!([slots.take(2), slots.take(2)], [slot(0, 0), slot(1, 0)]);
        slots.free(vec![slot(1, 0)]);
        slots.free(vec![slot(0, 0)]);
        assert_eq!([slots.take(2), slots.take(2)], [slot(1, 1), slot(0, 1)]);
        slots.free(vec![slot(1, 1), slot(0, 1)]);
        assert_eq!([slots.take(2), slots.take(2)], [slot(0, 2), slot(1, 2)]);
    }

    #[test]
    fn too_many_change_nothing() {
        let mut numbers = Numbers::default();
        numbers.assign(&config(&[("a", 1)])).unwrap();
        let mut many = config(&[("b", 1)]);
        many.services = (0..=SERVICES_MAX).map(|_| many.services[0].clone()).collect();
        let error = numbers.assign(&many).unwrap_err();
        assert_eq!(error, NumbersError::Services { count: SERVICES_MAX + 1, leaving: 0 });
        assert_eq!((numbers.service("a"), numbers.service("b")), (Some(ServiceId(0)), None));
    }

    /// As many servers as possible, and two that were left out and drain.
    #[test]
    fn servers_that_were_left_out_and_drain_count_and_the_message_says_so() {
        let config = |servers: std::ops::Range<usize>| {
            let mut text = "[[port]]\ninterface = \"eth0\"\n".to_owned();
            for i in servers.clone() {
                if i == servers.start || i % 60_000 == 0 {
                    let number = i / 60_000;
                    text +=
                        &format!("[[service]]\nname = \"s{number}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n");
                    text += &format!("drain = \"30s\"\nlisten = [\"203.0.113.10:{}\"]\n", 80 + number);
                }
                let [a, b, c] = [i >> 16, i >> 8 & 255, i & 255];
                text += &format!("[[service.server]]\naddress = \"10.{a}.{b}.{c}:80\"\n");
            }
            Config::parse("test", &text, false).unwrap_or_else(|error| panic!("{error}")).config
        };
        let now = shunt_engine::Instant::ZERO;
        let (first, mut second) = (config(0..SERVERS_MAX), config(2..SERVERS_MAX + 2));
        let mut numbers = Numbers::default();
        numbers.assign(&first).unwrap();
        crate::drain::carry_over(Some(&first), &mut second, now);
        let refused = numbers.assign(&second).unwrap_err().to_string();
        let counts = [SERVERS_MAX + 2, 2, SERVERS_MAX].map(|count| count.to_string());
        let numbers_told: Vec<_> =
            refused.split(|c: char| !c.is_ascii_digit()).filter(|s| !s.is_empty()).collect();
        assert_eq!(numbers_told, counts, "{refused}");
        assert!(refused.contains("left out by a reload and not drained yet"), "{refused}");
        // Those that were there have their numbers still, and once the two have gone there is room.
        let kept = &first.services[0].servers[2];
        let number = numbers.server("s0", kept).unwrap();
        crate::drain::take_drained(&mut second, &HashSet::new(), now + shunt_engine::Duration::from_secs(45));
        numbers.assign(&second).unwrap();
        assert_eq!(numbers.server("s0", kept), Some(number));
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
