//! Fragments: only the first carries ports, so it teaches the others where they belong.
//!
//! The first fragment's tuple is remembered under its [`FragmentKey`]. A later fragment that comes first is held, a
//! bounded number for a bounded time; if its first does not come it is given to the kernel, whose packet it must be:
//! first fragments for ports that are not ours never reach us.

use arrayvec::ArrayVec;
use shunt_engine::{Duration, Frame, Instant};

use crate::classify::{FragmentKey, Meta, Role};
use crate::tuple::{Address, Tuple};

/// Packets whose first fragment is remembered at a time; the oldest in a set is forgotten first.
const KNOWN_SETS: usize = 512;
const WAYS: usize = 4;
/// Later fragments held at a time, per worker.
pub const HELD_MAX: usize = 64;
/// How long a first fragment is remembered: the kernel's `ipfrag_time`.
const REMEMBER: Duration = Duration::from_secs(30);
/// How long a later fragment waits for its first: reordering is a matter of microseconds.
const PATIENCE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug)]
struct Known<A: Address> {
    key: FragmentKey<A>,
    role: Role,
    tuple: Tuple<A>,
    since: Instant,
}

/// A later fragment that waits.
#[derive(Debug)]
pub struct Held<A> {
    /// Its packet.
    pub key: FragmentKey<A>,
    /// Its headers.
    pub meta: Meta,
    /// Its bytes.
    pub frame: Frame,
    since: Instant,
}

/// What one worker knows of fragmented packets.
#[derive(Debug)]
pub struct Fragments<A: Address> {
    known: Box<[[Option<Known<A>>; WAYS]]>,
    held: ArrayVec<Held<A>, HELD_MAX>,
}

impl<A: Address> Default for Fragments<A> {
    fn default() -> Self {
        Self { known: vec![[None; WAYS]; KNOWN_SETS].into_boxed_slice(), held: ArrayVec::new() }
    }
}

impl<A: Address> Fragments<A> {
    /// Remembers the flow of a first fragment.
    pub fn learn(&mut self, key: FragmentKey<A>, role: Role, tuple: Tuple<A>, now: Instant) {
        let set = &mut self.known[set_of(&key)];
        let age = |way: &Option<Known<A>>| match way {
            Some(known) if known.key == key => Duration::MAX,
            Some(known) => now.since(known.since),
            None => Duration::from_nanos(u64::MAX - 1),
        };
        if let Some(way) = set.iter_mut().max_by_key(|way| age(way)) {
            *way = Some(Known { key, role, tuple, since: now });
        }
    }

    /// The flow of a later fragment, if its first has passed.
    pub fn lookup(&self, key: &FragmentKey<A>, now: Instant) -> Option<(Role, Tuple<A>)> {
        let known = self.known[set_of(key)].iter().flatten().find(|known| known.key == *key)?;
        (now.since(known.since) < REMEMBER).then_some((known.role, known.tuple))
    }

    /// Whether another fragment can be held.
    pub fn has_room(&self) -> bool {
        !self.held.is_full()
    }

    /// Keeps a later fragment. Call only with room.
    pub fn hold(&mut self, key: FragmentKey<A>, meta: Meta, frame: Frame, now: Instant) {
        self.held.push(Held { key, meta, frame, since: now });
    }

    /// A held fragment of the packet `key`, oldest first.
    pub fn take(&mut self, key: &FragmentKey<A>) -> Option<Held<A>> {
        let position = self.held.iter().position(|held| held.key == *key)?;
        Some(self.held.remove(position))
    }

    /// A held fragment that has waited in vain.
    pub fn take_expired(&mut self, now: Instant) -> Option<Held<A>> {
        let oldest = self.held.first()?;
        (now.since(oldest.since) >= PATIENCE).then(|| self.held.remove(0))
    }

    /// Gives back everything held.
    pub fn drain(&mut self) -> impl Iterator<Item = Held<A>> + '_ {
        self.held.drain(..)
    }

    /// When the next held fragment has waited long enough.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.held.first().map(|oldest| oldest.since + PATIENCE)
    }
}

fn set_of<A: Address>(key: &FragmentKey<A>) -> usize {
    let ((a, b), (c, d)) = (key.src.words(), key.dst.words());
    let mixed = (a ^ b.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (c ^ d.rotate_left(29)).wrapping_mul(0xc2b2_ae3d_27d4_eb4f)
        ^ (u64::from(key.id) << 8 | u64::from(key.protocol)).wrapping_mul(0x1656_67b1_9e37_79f9);
    (mixed >> 48) as usize % KNOWN_SETS
}

#[cfg(test)]
mod tests {
    use shunt_engine::Mempool;
    use shunt_engine::mempool::PoolConfig;

    use super::*;
    use crate::service::ServiceId;
    use crate::tuple::{Endpoint, Protocol, V4};

    fn key(id: u32) -> FragmentKey<V4> {
        FragmentKey { src: V4(1), dst: V4(2), id, protocol: 17 }
    }

    fn tuple(port: u16) -> Tuple<V4> {
        Tuple { src: Endpoint::new(V4(1), port), dst: Endpoint::new(V4(2), 53), protocol: Protocol::Udp }
    }

    #[test]
    fn a_first_fragment_is_known_until_it_is_too_old() {
        let mut fragments = Fragments::default();
        let role = Role::Request(ServiceId(0));
        fragments.learn(key(7), role, tuple(1000), Instant::ZERO);
        let later = Instant::ZERO + Duration::from_secs(29);
        assert_eq!(fragments.lookup(&key(7), later), Some((role, tuple(1000))));
        assert_eq!(fragments.lookup(&key(8), later), None);
        assert_eq!(fragments.lookup(&key(7), Instant::ZERO + REMEMBER), None);
    }

    #[test]
    fn a_newer_packet_with_the_same_identification_replaces_the_older() {
        let mut fragments = Fragments::default();
        fragments.learn(key(7), Role::LocalReply, tuple(1000), Instant::ZERO);
        fragments.learn(key(7), Role::LocalReply, tuple(2000), Instant::from_nanos(1));
        assert_eq!(fragments.lookup(&key(7), Instant::from_nanos(2)), Some((Role::LocalReply, tuple(2000))));
    }

    #[test]
    fn many_packets_forget_the_oldest_and_nothing_else() {
        let mut fragments = Fragments::default();
        for id in 0..100_000 {
            fragments.learn(key(id), Role::LocalReply, tuple(id as u16), Instant::from_nanos(id.into()));
            let found = fragments.lookup(&key(id), Instant::from_nanos(id.into()));
            assert_eq!(found, Some((Role::LocalReply, tuple(id as u16))));
        }
    }

    #[test]
    fn held_fragments_are_released_in_order_or_expire() {
        let mut pool = Mempool::single(PoolConfig { chunks: 8, ..PoolConfig::default() }).unwrap();
        let mut fragments = Fragments::default();
        for id in [1, 2, 1] {
            let frame = pool.alloc().unwrap();
            fragments.hold(key(id), Meta { l4: id as u16, ..Meta::default() }, frame, Instant::ZERO);
        }
        assert!(fragments.take_expired(Instant::from_nanos(1)).is_none());
        let first = fragments.take(&key(1)).unwrap();
        let second = fragments.take(&key(1)).unwrap();
        assert!(fragments.take(&key(1)).is_none());
        assert_eq!(fragments.next_deadline(), Some(Instant::ZERO + PATIENCE));
        let third = fragments.take_expired(Instant::ZERO + PATIENCE).unwrap();
        assert_eq!((third.key, fragments.next_deadline()), (key(2), None));
        pool.free_all([first.frame, second.frame, third.frame]);
        assert_eq!(pool.available(), 8);
    }
}
