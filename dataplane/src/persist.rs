//! Persistence: which server a client was given, remembered beyond its connections. LVS calls it a template.
//!
//! Connections of one client live on several workers, and all must agree. So there is one table for all workers, in
//! which a client's template is found or made in one atomic step. It is touched when a connection opens and when it
//! ends, never in between. All memory is taken at start; a template that finds no room is not made.
//!
//! A client's template is in one bucket. Who holds the bucket's turn may make templates there, and only them: finding,
//! holding and letting go are single compare-and-swaps that wait for nobody.

use std::net::IpAddr;

use shunt_engine::Duration;
use shunt_engine::mem::Slab;

use crate::conn::{Conn, ConnFlags, ConnId, Ticks};
use crate::hash::{KeyedHash, reduce};
use crate::server::ServerId;
use crate::service::ServiceId;
use crate::sync::{AtomicU64, Ordering, spin_loop};
use crate::tuple::{Address, V6};

/// How a service remembers its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// How long a client without connections is remembered.
    pub timeout: Duration,
    /// Leading bits by which IPv4 clients are told apart.
    pub mask_v4: u8,
    /// Leading bits by which IPv6 clients are told apart.
    pub mask_v6: u8,
}

impl Persistence {
    /// When a client last seen at `now` is forgotten. As with connections, a tick more than the timeout fills.
    fn until(&self, now: Ticks) -> Ticks {
        Ticks(now.0.wrapping_add(Ticks::from_nanos(self.timeout.as_nanos()).0 + 1))
    }
}

/// Whose template: the service, and what its mask leaves of the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The service's number and, above it, the address family.
    owner: u64,
    high: u64,
    low: u64,
}

impl Key {
    /// The key of `client` at a service.
    pub fn new(service: ServiceId, client: IpAddr, persistence: &Persistence) -> Self {
        let (family, bits, mask) = match client {
            IpAddr::V4(v4) => (4, u128::from(v4.to_bits()) << 96, persistence.mask_v4),
            IpAddr::V6(v6) => (6, v6.to_bits(), persistence.mask_v6),
        };
        let kept = bits & u128::MAX.checked_shl(128 - u32::from(mask)).unwrap_or(0);
        Self { owner: family << 32 | u64::from(service.0), high: (kept >> 64) as u64, low: kept as u64 }
    }
}

/// A template that a connection holds: it stays until [`Templates::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template(pub u32);

/// The templates of all workers.
#[derive(Debug)]
pub struct Templates {
    buckets: Box<[Bucket]>,
    hash: KeyedHash,
}

impl Templates {
    /// A table for about `capacity` templates, hashed under `secret`: half full then, so that one client in a thousand
    /// finds its bucket full. With a capacity of 0 nobody is remembered.
    pub fn new(capacity: usize, secret: [u64; 2]) -> Self {
        let buckets = (capacity * 2).div_ceil(SLOTS);
        Self {
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            hash: KeyedHash::new(secret, HASH_PURPOSE),
        }
    }

    /// The template of `key`, if there is one, held for a connection that opens at `now`.
    pub fn find(&self, key: &Key, persistence: &Persistence, now: Ticks) -> Option<Template> {
        let number = self.bucket_of(key);
        let slot = self.buckets.get(number)?.hold(key, now, persistence.until(now))?;
        Some(Template((number * SLOTS + slot) as u32))
    }

    /// The template of `key`, held for a connection that opens at `now`: the one there is, or a new one that names
    /// `server`. `None` when there is no room; or when another worker adds to the same bucket and does not come to an
    /// end, because the kernel took its core away at that very moment.
    pub fn find_or_insert(
        &self,
        key: &Key,
        server: ServerId,
        persistence: &Persistence,
        now: Ticks,
    ) -> Option<Template> {
        let number = self.bucket_of(key);
        let slot = self.buckets.get(number)?.hold_or_fill(key, server, now, persistence.until(now))?;
        Some(Template((number * SLOTS + slot) as u32))
    }

    /// The server a template that the caller holds names.
    pub fn server(&self, template: Template) -> ServerId {
        unpack(self.slot(template).server.load(Ordering::Relaxed))
    }

    /// The server that `key` is remembered with at `now`. Changes nothing: for tests and for people.
    pub fn remembered(&self, key: &Key, now: Ticks) -> Option<ServerId> {
        let slots = &self.buckets.get(self.bucket_of(key))?.slots;
        let live = |slot: &&Slot| !is_vacant(slot.control.load(Ordering::Acquire), now) && slot.is(key);
        slots.iter().find(live).map(|slot| unpack(slot.server.load(Ordering::Relaxed)))
    }

    /// Makes a template that the caller holds name the server `to` instead of `from`, which takes no connections any
    /// more. Returns what it names now: another server than `to` when another worker was first.
    pub fn repoint(&self, template: Template, from: ServerId, to: ServerId) -> ServerId {
        let slot = &self.slot(template).server;
        match slot.compare_exchange(pack(from), pack(to), Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => to,
            Err(seen) => unpack(seen),
        }
    }

    /// Lets a template go: a connection that held it has ended at `now`. One that was `established`, here or on another
    /// connection, is remembered for the timeout of `persistence` (as long as it was before, if that is not known any
    /// more); one that never was goes with its last connection, so that a flood of SYNs leaves nothing behind.
    pub fn release(
        &self,
        template: Template,
        established: bool,
        persistence: Option<&Persistence>,
        now: Ticks,
    ) {
        self.slot(template).release(established, persistence.map(|persistence| persistence.until(now)));
    }

    /// Templates in use or remembered at `now`.
    pub fn len(&self, now: Ticks) -> usize {
        let slots = self.buckets.iter().flat_map(|bucket| &bucket.slots);
        slots.filter(|slot| !is_vacant(slot.control.load(Ordering::Relaxed), now)).count()
    }

    /// Whether there are none at `now`.
    pub fn is_empty(&self, now: Ticks) -> bool {
        self.len(now) == 0
    }

    fn bucket_of(&self, key: &Key) -> usize {
        let words = [key.high >> 32, key.high, key.low >> 32, key.low].map(|word| word as u32);
        let hash = self.hash.addresses(V6(words), V6::default(), key.owner);
        reduce(hash, self.buckets.len() as u32) as usize
    }

    fn slot(&self, template: Template) -> &Slot {
        let number = template.0 as usize;
        &self.buckets[number / SLOTS].slots[number % SLOTS]
    }
}

/// Which template each connection of a table holds, if its record says that it holds one.
#[derive(Debug)]
pub(crate) struct Held(Slab<u32>);

impl Held {
    /// For a table of `capacity` connections.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub(crate) fn new(capacity: usize) -> std::io::Result<Self> {
        Ok(Self(Slab::zeroed(capacity)?))
    }

    pub(crate) fn hold(&mut self, id: ConnId, template: Template) {
        self.0[id.0 as usize] = template.0;
    }

    pub(crate) fn template<A: Address>(&self, id: ConnId, conn: &Conn<A>) -> Option<Template> {
        conn.flags.has(ConnFlags::TEMPLATE).then(|| Template(self.0[id.0 as usize]))
    }
}

/// Templates per bucket. Few under loom, which tries everything.
const SLOTS: usize = if cfg!(loom) { 2 } else { 16 };

/// How often who wants to add to a bucket looks whether it is its turn.
const ATTEMPTS: u32 = 4096;

const HASH_PURPOSE: u64 = 4;

#[derive(Debug, Default)]
struct Bucket {
    /// Odd while somebody adds; another number after each addition.
    turn: AtomicU64,
    slots: [Slot; SLOTS],
}

impl Bucket {
    fn hold(&self, key: &Key, now: Ticks, until: Ticks) -> Option<usize> {
        self.slots.iter().position(|slot| slot.hold(key, now, until))
    }

    fn hold_or_fill(&self, key: &Key, server: ServerId, now: Ticks, until: Ticks) -> Option<usize> {
        for _ in 0..ATTEMPTS {
            let turn = self.turn.load(Ordering::Acquire);
            if !turn.is_multiple_of(2) {
                spin_loop();
                continue;
            }
            if let Some(slot) = self.hold(key, now, until) {
                return Some(slot);
            }
            let slot = self.vacancy(key, now)?;
            // Who gets the turn knows that nobody has added this key since it looked.
            let next = turn.wrapping_add(1);
            if self.turn.compare_exchange(turn, next, Ordering::Acquire, Ordering::Relaxed).is_err() {
                continue;
            }
            let filled = self.slots[slot].fill(key, server, now, until);
            self.turn.store(turn.wrapping_add(2), Ordering::Release);
            if filled {
                return Some(slot);
            }
        }
        None
    }

    /// A slot for `key`: the one of its forgotten template if there is one, for a worker whose clock is a little behind
    /// may still revive that.
    fn vacancy(&self, key: &Key, now: Ticks) -> Option<usize> {
        let vacant = |slot: &&Slot| is_vacant(slot.control.load(Ordering::Relaxed), now);
        let same = self.slots.iter().position(|slot| slot.is(key) && vacant(&slot));
        same.or_else(|| self.slots.iter().position(|slot| vacant(&slot)))
    }
}

/// One template. The key may change only while the slot is vacant, the server also while it is held.
#[derive(Debug, Default)]
struct Slot {
    control: AtomicU64,
    owner: AtomicU64,
    high: AtomicU64,
    low: AtomicU64,
    server: AtomicU64,
}

// The control word: how many connections hold it (30 bits), two flags, and when it is forgotten once nobody does (32).
const HOLDERS: u64 = (LIVE - 1) & !ESTABLISHED;
const ESTABLISHED: u64 = 1 << 30;
const LIVE: u64 = 1 << 31;

impl Slot {
    /// Holds the template if it is the one of `key`.
    fn hold(&self, key: &Key, now: Ticks, until: Ticks) -> bool {
        let mut control = self.control.load(Ordering::Acquire);
        loop {
            if is_vacant(control, now) || !self.is(key) {
                return false;
            }
            let held = later(control, until) + 1;
            match self.control.compare_exchange_weak(control, held, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(seen) => control = seen,
            }
        }
        // It may have become another's between the comparison and the holding. Now it cannot any more.
        let is_it = self.is(key);
        if !is_it {
            self.release(false, None);
        }
        is_it
    }

    /// Makes the slot the template of `key`, held once. For the one whose turn it is. `false` if somebody has revived it.
    fn fill(&self, key: &Key, server: ServerId, now: Ticks, until: Ticks) -> bool {
        let control = self.control.load(Ordering::Relaxed);
        if !is_vacant(control, now)
            || self.control.compare_exchange(control, 0, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return false;
        }
        self.owner.store(key.owner, Ordering::Relaxed);
        self.high.store(key.high, Ordering::Relaxed);
        self.low.store(key.low, Ordering::Relaxed);
        self.server.store(pack(server), Ordering::Relaxed);
        self.control.store(u64::from(until.0) << 32 | LIVE | 1, Ordering::Release);
        true
    }

    fn release(&self, established: bool, until: Option<Ticks>) {
        let mut control = self.control.load(Ordering::Relaxed);
        loop {
            debug_assert!(control & HOLDERS > 0, "a template was let go more often than held");
            let flag = if established { ESTABLISHED } else { 0 };
            let mut left = (control | flag) - 1;
            if let Some(until) = until {
                left = later(left, until);
            }
            if left & (HOLDERS | ESTABLISHED) == 0 {
                left = 0;
            }
            match self.control.compare_exchange_weak(control, left, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(seen) => control = seen,
            }
        }
    }

    fn is(&self, key: &Key) -> bool {
        self.high.load(Ordering::Relaxed) == key.high
            && self.low.load(Ordering::Relaxed) == key.low
            && self.owner.load(Ordering::Relaxed) == key.owner
    }
}

/// Whether a slot with this control word may become another client's at `now`.
fn is_vacant(control: u64, now: Ticks) -> bool {
    control & LIVE == 0 || control & HOLDERS == 0 && now.since(forgotten_at(control)) as i32 >= 0
}

fn forgotten_at(control: u64) -> Ticks {
    Ticks((control >> 32) as u32)
}

/// `control`, not forgotten before `until`.
fn later(control: u64, until: Ticks) -> u64 {
    // Signed, because ticks wrap.
    if until.since(forgotten_at(control)) as i32 > 0 {
        control & u64::from(u32::MAX) | u64::from(until.0) << 32
    } else {
        control
    }
}

fn pack(id: ServerId) -> u64 {
    u64::from(id.generation) << 32 | u64::from(id.slot)
}

fn unpack(word: u64) -> ServerId {
    ServerId { slot: word as u32, generation: (word >> 32) as u32 }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const HOUR: Persistence = Persistence { timeout: Duration::from_secs(3600), mask_v4: 32, mask_v6: 128 };
    const NOW: Ticks = Ticks(1000);

    fn id(slot: u32) -> ServerId {
        ServerId { slot, generation: 7 }
    }

    fn key(client: &str) -> Key {
        Key::new(ServiceId(1), client.parse().unwrap(), &HOUR)
    }

    fn ticks(duration: Duration) -> u32 {
        Ticks::from_nanos(duration.as_nanos()).0
    }

    #[test]
    fn a_client_is_told_apart_by_service_family_and_masked_address() {
        let net = Persistence { mask_v4: 24, mask_v6: 64, ..HOUR };
        let key = |service, client: &str, persistence| {
            Key::new(ServiceId(service), client.parse().unwrap(), persistence)
        };
        assert_eq!(key(1, "198.51.100.7", &net), key(1, "198.51.100.250", &net));
        assert_ne!(key(1, "198.51.100.7", &net), key(1, "198.51.101.7", &net));
        assert_ne!(key(1, "198.51.100.7", &HOUR), key(1, "198.51.100.250", &HOUR));
        assert_ne!(key(1, "198.51.100.7", &HOUR), key(2, "198.51.100.7", &HOUR));
        assert_eq!(key(1, "2001:db8::7", &net), key(1, "2001:db8::ffff:0:0:9", &net));
        assert_ne!(key(1, "2001:db8::7", &HOUR), key(1, "2001:db8::9", &HOUR));
        assert_ne!(key(1, "2001:db8:0:1::", &net), key(1, "2001:db8::", &net));
        let all = Persistence { mask_v4: 0, mask_v6: 0, ..HOUR };
        assert_eq!(key(1, "198.51.100.7", &all), key(1, "203.0.113.1", &all));
        assert_ne!(key(1, "198.51.100.7", &all), key(1, "2001:db8::", &all));
    }

    #[test]
    fn a_template_keeps_the_first_server_until_it_is_repointed() {
        let table = Templates::new(8, [1, 2]);
        let first = table.find_or_insert(&key("198.51.100.7"), id(3), &HOUR, NOW).unwrap();
        let again = table.find_or_insert(&key("198.51.100.7"), id(4), &HOUR, NOW).unwrap();
        assert_eq!((first, table.server(again)), (again, id(3)));
        assert_eq!(table.find(&key("198.51.100.7"), &HOUR, NOW), Some(first));
        assert_eq!(table.find(&key("198.51.100.8"), &HOUR, NOW), None);
        assert_eq!(table.repoint(first, id(3), id(5)), id(5));
        assert_eq!(table.repoint(first, id(3), id(6)), id(5), "another worker was first");
        assert_eq!((table.server(first), table.len(NOW)), (id(5), 1));
    }

    #[test]
    fn a_client_is_remembered_for_the_timeout_after_its_last_connection_and_no_longer() {
        let table = Templates::new(8, [1, 2]);
        let template = table.find_or_insert(&key("198.51.100.7"), id(3), &HOUR, NOW).unwrap();
        let closed = Ticks(NOW.0 + 10 * ticks(HOUR.timeout));
        assert_eq!(table.len(closed), 1, "held, however long");
        table.release(template, true, Some(&HOUR), closed);
        let last = Ticks(closed.0 + ticks(HOUR.timeout));
        assert_eq!(table.find(&key("198.51.100.7"), &HOUR, last), Some(template));
        table.release(template, false, None, last);
        let last = Ticks(last.0 + ticks(HOUR.timeout));
        assert_eq!(table.len(last), 1, "an opening counts as well as an end");
        let after = Ticks(last.0 + 1);
        assert_eq!((table.find(&key("198.51.100.7"), &HOUR, after), table.is_empty(after)), (None, true));
        let template = table.find_or_insert(&key("198.51.100.7"), id(4), &HOUR, after).unwrap();
        assert_eq!(table.server(template), id(4));
    }

    #[test]
    fn a_client_that_never_had_a_connection_is_not_remembered() {
        let table = Templates::new(8, [1, 2]);
        let first = table.find_or_insert(&key("198.51.100.7"), id(3), &HOUR, NOW).unwrap();
        let second = table.find(&key("198.51.100.7"), &HOUR, NOW).unwrap();
        table.release(first, false, Some(&HOUR), NOW);
        assert_eq!(table.len(NOW), 1, "the other connection still holds it");
        table.release(second, false, Some(&HOUR), NOW);
        assert!(table.is_empty(NOW));
    }

    #[test]
    fn a_full_bucket_refuses_and_takes_the_place_of_what_is_forgotten() {
        let table = Templates::new(SLOTS / 2, [1, 2]);
        let key = |client: u32| Key::new(ServiceId(1), std::net::Ipv4Addr::from_bits(client).into(), &HOUR);
        let held: Vec<_> = (0..SLOTS as u32)
            .map(|client| table.find_or_insert(&key(client), id(client), &HOUR, NOW).unwrap())
            .collect();
        assert_eq!(table.find_or_insert(&key(99), id(99), &HOUR, NOW), None);
        table.release(held[5], true, Some(&HOUR), NOW);
        assert_eq!(table.find_or_insert(&key(99), id(99), &HOUR, NOW), None, "5 is remembered");
        let later = Ticks(NOW.0 + ticks(HOUR.timeout) + 1);
        assert_eq!(table.find_or_insert(&key(99), id(99), &HOUR, later), Some(held[5]));
        assert_eq!(table.find(&key(5), &HOUR, later), None);
        assert_eq!(table.len(later), SLOTS);
    }

    #[test]
    fn nearly_every_client_finds_room_in_a_table_for_so_many() {
        const CLIENTS: u32 = if cfg!(miri) { 500 } else { 20_000 };
        let table = Templates::new(CLIENTS as usize, [3, 4]);
        let key = |client: u32| Key::new(ServiceId(1), std::net::Ipv4Addr::from_bits(client).into(), &HOUR);
        let made = (0..CLIENTS)
            .filter(|&client| table.find_or_insert(&key(client), id(client), &HOUR, NOW).is_some());
        let made = made.count();
        assert!(made >= CLIENTS as usize * 997 / 1000, "{made}");
        assert_eq!(table.len(NOW), made);
        let right = |client: u32| {
            let found = table.find(&key(client), &HOUR, NOW);
            found.is_none_or(|template| table.server(template) == id(client))
        };
        assert!((0..CLIENTS).all(right));
    }

    #[test]
    fn time_may_wrap() {
        let table = Templates::new(8, [1, 2]);
        let now = Ticks(u32::MAX - 5);
        let template = table.find_or_insert(&key("198.51.100.7"), id(3), &HOUR, now).unwrap();
        table.release(template, true, Some(&HOUR), now);
        let last = Ticks(now.0.wrapping_add(ticks(HOUR.timeout)));
        assert!(!table.is_empty(last) && table.is_empty(Ticks(last.0 + 1)));
    }

    #[test]
    fn threads_agree_on_one_server_per_client() {
        const THREADS: u32 = 4;
        const CLIENTS: u32 = if cfg!(miri) { 4 } else { 200 };
        const ROUNDS: u32 = if cfg!(miri) { 3 } else { 50 };
        let table = Templates::new(CLIENTS as usize * 4, [5, 6]);
        let key = |client: u32| Key::new(ServiceId(1), std::net::Ipv4Addr::from_bits(client).into(), &HOUR);
        let work = |thread: u32| {
            let mut got = Vec::new();
            for round in 0..ROUNDS {
                let client = |number: u32| (number * (2 * thread + 1) + round) % CLIENTS;
                for client in (0..CLIENTS).map(client) {
                    let template = table.find_or_insert(&key(client), id(thread), &HOUR, NOW).unwrap();
                    got.push((client, table.server(template)));
                    table.release(template, true, Some(&HOUR), NOW);
                }
            }
            got
        };
        let got: HashSet<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!((got.len(), table.len(NOW)), (CLIENTS as usize, CLIENTS as usize));
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    const SECOND: Persistence = Persistence { timeout: Duration::from_secs(1), mask_v4: 32, mask_v6: 128 };
    const NOW: Ticks = Ticks(1000);

    fn id(slot: u32) -> ServerId {
        ServerId { slot, generation: 0 }
    }

    fn key(client: [u8; 4]) -> Key {
        Key::new(ServiceId(0), client.into(), &SECOND)
    }

    fn open(table: &Templates, key: &Key, server: u32) -> ServerId {
        let template = table.find_or_insert(key, id(server), &SECOND, NOW).expect("there is room");
        table.server(template)
    }

    #[test]
    fn loom_two_workers_give_a_client_one_server() {
        loom::model(|| {
            let table = Arc::new(Templates::new(1, [1, 2]));
            let key = key([10, 0, 0, 1]);
            let other = thread::spawn({
                let table = table.clone();
                move || open(&table, &key, 1)
            });
            let mine = open(&table, &key, 2);
            assert_eq!(mine, other.join().expect("the other does not panic"));
            assert_eq!(table.len(NOW), 1);
        });
    }

    #[test]
    fn loom_a_template_is_never_taken_from_who_holds_it() {
        loom::model(|| {
            let table = Arc::new(Templates::new(1, [1, 2]));
            let (one, two, three) = (key([10, 0, 0, 1]), key([10, 0, 0, 2]), key([10, 0, 0, 3]));
            for key in [&one, &two] {
                let template = table.find_or_insert(key, id(1), &SECOND, NOW).expect("there is room");
                table.release(template, true, Some(&SECOND), NOW);
            }
            // Both are forgotten by the clock of one worker, which needs their place, and just not by the other's.
            let late = Ticks(SECOND.until(NOW).0);
            let taker = thread::spawn({
                let table = table.clone();
                move || table.find_or_insert(&three, id(3), &SECOND, late).map(|mine| table.server(mine))
            });
            let early = Ticks(late.0 - 1);
            let kept = table.find(&one, &SECOND, early).map(|template| table.server(template));
            assert_eq!(taker.join().expect("the other does not panic"), Some(id(3)));
            if let Some(server) = kept {
                assert_eq!(server, id(1));
                let again = table.find(&one, &SECOND, early).expect("it is held");
                assert_eq!(table.server(again), id(1));
            }
        });
    }

    #[test]
    fn loom_the_last_to_let_go_forgets_and_nobody_before() {
        loom::model(|| {
            let table = Arc::new(Templates::new(1, [1, 2]));
            let key = key([10, 0, 0, 1]);
            let first = table.find_or_insert(&key, id(1), &SECOND, NOW).expect("there is room");
            let other = thread::spawn({
                let table = table.clone();
                move || table.release(first, false, Some(&SECOND), NOW)
            });
            let second = table.find_or_insert(&key, id(2), &SECOND, NOW).expect("there is room");
            let server = table.server(second);
            other.join().expect("the other does not panic");
            assert_eq!((table.server(second), table.len(NOW)), (server, 1));
            table.release(second, false, Some(&SECOND), NOW);
            assert!(table.is_empty(NOW));
        });
    }
}
