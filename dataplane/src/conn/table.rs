//! The connection table of one worker: finds a connection by either of its tuples. All of its address space is taken at
//! start; records that no connection has needed yet cost no memory.
//!
//! Records are a slab of [`Conn`]s; the index (`bucket.rs`) leads from a tuple's hash to a record, where the exact key
//! is compared; the wheel (`wheel.rs`) says when a record is looked at for its timeout. A burst is looked up in stages,
//! so that its cache misses overlap: [`Table::hash`] and [`Table::prefetch_bucket`] for all, then [`Table::candidate`]
//! and [`Table::prefetch_record`] for all, then [`Table::lookup_from`].

use arrayvec::ArrayVec;
use shunt_engine::mem::{Pages, Slab, prefetch};

use super::bucket::{Entry, Index, RECORDS_MAX};
use super::quarantine::{self, Quarantine};
use super::wheel::{self, Wheel};
use super::{Conn, ConnFlags, State, Ticks};
use crate::hash::KeyedHash;
use crate::server::Mode;
use crate::tuple::{Address, Endpoint, Protocol, Tuple};

pub use super::bucket::Hash;

/// The number of a record. Valid until the record is removed or expires; then it may name another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u32);

/// As which of its two tuples a connection was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// [`Conn::request`]: towards the server.
    Request,
    /// [`Conn::reply`]: towards the client.
    Reply,
}

/// A connection found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Which.
    pub id: ConnId,
    /// By which tuple.
    pub direction: Direction,
}

impl From<Entry> for Hit {
    #[inline]
    fn from(entry: Entry) -> Self {
        Self { id: ConnId(entry.record), direction: entry.direction }
    }
}

/// Why a connection could not be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// No record or no slot is free.
    Full,
    /// One of its tuples is in the table already.
    Exists,
}

/// What one call of [`Table::expire`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Records looked at.
    pub visited: usize,
    /// Records removed.
    pub removed: usize,
}

/// Connections of one address family.
#[derive(Debug)]
pub struct Table<A: Address> {
    records: Slab<Conn<A>>,
    index: Index,
    wheel: Wheel,
    quarantine: Quarantine,
    hash: KeyedHash,
    /// Records in use.
    len: usize,
    /// The record freed last; each free one names the one freed before it in `last_seen`, the first one [`NONE`].
    free: u32,
    /// Records from this one on have never been used, and cost no memory yet.
    unused: u32,
}

impl<A: Address> Table<A> {
    /// A table for `capacity` connections, each with both directions, hashed under `secret`.
    ///
    /// # Errors
    /// When the kernel has no memory for it, or `capacity` is 0 or above 2³⁰.
    pub fn new(capacity: usize, secret: [u64; 2]) -> std::io::Result<Self> {
        if capacity == 0 || capacity > RECORDS_MAX {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            records: Slab::zeroed(capacity)?,
            index: Index::new(capacity * 2)?,
            wheel: Wheel::new(capacity as u32)?,
            quarantine: Quarantine::new(capacity as u32)?,
            hash: KeyedHash::new(secret, HASH_PURPOSE),
            len: 0,
            free: NONE,
            unused: 0,
        })
    }

    /// Bytes a table for `capacity` connections takes, the heads of the wheel and of queues apart.
    pub fn bytes_for(capacity: usize) -> usize {
        let each = std::mem::size_of::<Conn<A>>() + wheel::LINK_BYTES + quarantine::LINK_BYTES;
        capacity * each + Index::bytes_for(capacity * 2)
    }

    /// What the records lie on.
    pub fn pages(&self) -> Pages {
        self.records.pages()
    }

    /// The hash of `tuple` in this table.
    #[inline]
    pub fn hash(&self, tuple: &Tuple<A>) -> Hash {
        Hash(self.hash.tuple(tuple))
    }

    /// Asks the cache for the bucket where `hash` is looked up first.
    #[inline]
    pub fn prefetch_bucket(&self, hash: Hash) {
        self.index.prefetch(hash);
    }

    /// What is probably under `hash`: to be prefetched and tried first, not to be believed.
    #[inline]
    pub fn candidate(&self, hash: Hash) -> Option<Hit> {
        self.index.candidate(hash).map(Hit::from)
    }

    /// Asks the cache for a record.
    #[inline]
    pub fn prefetch_record(&self, id: ConnId) {
        let record = &raw const self.records[id.0 as usize];
        prefetch(record);
        if const { std::mem::size_of::<Conn<A>>() > 64 } {
            prefetch(record.cast::<u8>().wrapping_add(64));
        }
    }

    /// The connection one of whose tuples is exactly `tuple`; `hash` must be the tuple's.
    #[inline]
    pub fn lookup(&self, tuple: &Tuple<A>, hash: Hash) -> Option<Hit> {
        debug_assert_eq!(hash, self.hash(tuple));
        self.index.find(hash, |entry| self.is_it(tuple, entry.into())).map(Hit::from)
    }

    /// As [`Table::lookup`], but looks at a `candidate` first. That may be of an earlier time: the record is compared.
    #[inline]
    pub fn lookup_from(&self, candidate: Option<Hit>, tuple: &Tuple<A>, hash: Hash) -> Option<Hit> {
        match candidate {
            Some(hit) if self.is_it(tuple, hit) => Some(hit),
            _ => self.lookup(tuple, hash),
        }
    }

    /// The connection of a `candidate`, and as which of its tuples, if that is exactly `tuple`.
    #[inline]
    pub fn candidate_mut(&mut self, candidate: Hit, tuple: &Tuple<A>) -> Option<(&mut Conn<A>, Direction)> {
        self.is_it(tuple, candidate)
            .then(|| (&mut self.records[candidate.id.0 as usize], candidate.direction))
    }

    /// Whether the record of `hit` is, in its direction, that of `tuple`.
    #[inline]
    fn is_it(&self, tuple: &Tuple<A>, hit: Hit) -> bool {
        let conn = &self.records[hit.id.0 as usize];
        let (src, dst, can_be) = match hit.direction {
            // Who has found one by its request before it was parked must not take it for his.
            Direction::Request => (&conn.client, &conn.vip, !conn.flags.has(ConnFlags::PARKED)),
            Direction::Reply => (&conn.server, &conn.peer, conn.mode().sees_replies()),
        };
        *src == tuple.src && *dst == tuple.dst && conn.protocol == tuple.protocol.number() && can_be
    }

    /// Whether `tuple` belongs to a connection, in either direction.
    pub fn contains(&self, tuple: &Tuple<A>) -> bool {
        self.lookup(tuple, self.hash(tuple)).is_some()
    }

    /// Adds `conn` at `now`: it can be found by its request and, where the mode sees replies, by its reply. Its
    /// `last_seen` becomes `now`; its `timeout` counts from there.
    ///
    /// # Errors
    /// [`InsertError`]; the table is unchanged then.
    pub fn insert(&mut self, conn: Conn<A>, now: Ticks) -> Result<ConnId, InsertError> {
        if self.contains(&conn.request()) || conn.reply().is_some_and(|reply| self.contains(&reply)) {
            return Err(InsertError::Exists);
        }
        self.insert_unknown(conn, now)
    }

    /// As [`Table::insert`], for a connection neither of whose tuples is in the table, as the caller knows.
    ///
    /// # Errors
    /// [`InsertError`]; the table is unchanged then.
    pub fn insert_unknown(&mut self, mut conn: Conn<A>, now: Ticks) -> Result<ConnId, InsertError> {
        debug_assert!(!self.contains(&conn.request()));
        debug_assert!(conn.reply().is_none_or(|reply| !self.contains(&reply)));
        if conn.reply() == Some(conn.request()) {
            return Err(InsertError::Exists);
        }
        let Hashes { request: request_hash, reply: reply_hash } = self.hashes(&conn);
        let record = if self.free == NONE { self.unused } else { self.free };
        if record as usize == self.records.len() {
            return Err(InsertError::Full);
        }
        let entry = Entry { record, direction: Direction::Request };
        if !self.index.insert(request_hash, entry) {
            return Err(InsertError::Full);
        }
        if let Some(hash) = reply_hash
            && !self.index.insert(hash, Entry { record, direction: Direction::Reply })
        {
            self.index.remove(request_hash, entry);
            return Err(InsertError::Full);
        }
        if self.len == 0 {
            self.wheel.start(now);
        }
        conn.last_seen = now;
        self.wheel.file(record, due(&conn));
        if keeps_port(&conn) {
            self.quarantine.join(record, self.queue_of(&conn));
        }
        let slot = &mut self.records[record as usize];
        if record == self.unused {
            self.unused += 1;
        } else {
            self.free = slot.last_seen.0;
        }
        *slot = conn;
        self.len += 1;
        Ok(ConnId(record))
    }

    /// The connection `id`.
    ///
    /// # Panics
    /// When `id` is not of this table.
    #[inline]
    pub fn get(&self, id: ConnId) -> &Conn<A> {
        let conn = &self.records[id.0 as usize];
        debug_assert!(is_live(conn), "record {} is free", id.0);
        conn
    }

    /// The connection `id`, to be changed. Its four endpoints, protocol and mode are the keys it is found by and must
    /// stay; its state is changed by [`Table::set_state`]; a timeout that becomes shorter must go through
    /// [`Table::set_timeout`] to be kept in time.
    ///
    /// # Panics
    /// When `id` is not of this table.
    #[inline]
    pub fn get_mut(&mut self, id: ConnId) -> &mut Conn<A> {
        let conn = &mut self.records[id.0 as usize];
        debug_assert!(is_live(conn), "record {} is free", id.0);
        conn
    }

    /// Gives the connection `id`, last seen when its record says, another idle timeout. In constant time; the wheel is
    /// touched only when the connection becomes due earlier than it is filed.
    #[inline]
    pub fn set_timeout(&mut self, id: ConnId, timeout: Ticks) {
        let conn = self.get_mut(id);
        let shorter = timeout < conn.timeout;
        conn.timeout = timeout;
        if shorter {
            let due = due(conn);
            self.wheel.advance(id.0, due);
        }
    }

    /// Moves the connection `id`, of which something has been heard just now, to `state`, be it the one it is in. One
    /// that is over becomes the last to give its local port away ([`Table::over`]).
    #[inline]
    pub fn set_state(&mut self, id: ConnId, state: State) {
        let conn = self.get_mut(id);
        let kept = keeps_port(conn);
        conn.state = state as u8;
        let conn = *conn;
        if kept {
            self.quarantine.leave(id.0);
        }
        if keeps_port(&conn) {
            self.quarantine.join(id.0, self.queue_of(&conn));
        }
    }

    /// The connections of `server` with the local address `local` that are over, the one silent for longest first. Of a
    /// bounded number, should others share their queue.
    pub fn over(
        &self,
        server: Endpoint<A>,
        local: A,
        protocol: Protocol,
    ) -> impl Iterator<Item = (ConnId, &Conn<A>)> {
        let queue = self.quarantine.queue(self.queue(server, local, protocol)).take(quarantine::LOOKS_MAX);
        queue.map(|record| (ConnId(record), self.get(ConnId(record)))).filter(move |(_, conn)| {
            (conn.server, conn.peer.address, conn.protocol) == (server, local, protocol.number())
        })
    }

    /// Removes the connection `id` and returns its last record.
    ///
    /// # Panics
    /// When `id` is not of this table.
    pub fn remove(&mut self, id: ConnId) -> Conn<A> {
        self.wheel.unfile(id.0);
        self.release(id, self.hashes(self.get(id)))
    }

    /// Gives up the request of the connection `id`, which sees replies, for another to have. It is found by its reply
    /// until its time is over, and keeps its local port so long.
    ///
    /// # Panics
    /// When `id` is not of this table.
    pub fn park(&mut self, id: ConnId) {
        let request = self.get(id).request();
        let entry = Entry { record: id.0, direction: Direction::Request };
        let found = self.index.remove(self.hash(&request), entry);
        debug_assert!(found, "the keys of record {} were changed", id.0);
        self.get_mut(id).flags.set(ConnFlags::PARKED, true);
    }

    /// Looks at up to `budget` connections whose time may have come. Those idle for their timeout are removed and told
    /// to `on_removed`; the others are filed for when they will be. A connection goes at most half a second after its
    /// timeout, given the budget suffices; never before it.
    pub fn expire(
        &mut self,
        now: Ticks,
        budget: usize,
        mut on_removed: impl FnMut(ConnId, &Conn<A>),
    ) -> Expired {
        let mut expired = Expired::default();
        while expired.visited < budget {
            // In stages, as packets are looked up: first the records, then their buckets, then the work.
            let mut come: ArrayVec<u32, STAGE> = ArrayVec::new();
            while come.len() < STAGE.min(budget - expired.visited)
                && let Some(record) = self.wheel.pop(now)
            {
                self.prefetch_record(ConnId(record));
                come.push(record);
            }
            if come.is_empty() {
                break;
            }
            expired.visited += come.len();
            let mut idle: ArrayVec<(ConnId, Hashes), STAGE> = ArrayVec::new();
            for record in come {
                let conn = &self.records[record as usize];
                if now.since(conn.last_seen) < conn.timeout.0 {
                    self.wheel.file(record, due(conn));
                    continue;
                }
                let hashes = self.hashes(conn);
                self.index.prefetch(hashes.request);
                hashes.reply.into_iter().for_each(|hash| self.index.prefetch(hash));
                idle.push((ConnId(record), hashes));
            }
            expired.removed += idle.len();
            for (id, hashes) in idle {
                let conn = self.release(id, hashes);
                on_removed(id, &conn);
            }
        }
        expired
    }

    /// Shows the connections among `limit` records from number `from` on, and returns where to go on; `None` at the
    /// end. A dump is done in steps, so that the packet path is never held up long.
    pub fn scan(&self, from: u32, limit: u32, mut on_conn: impl FnMut(ConnId, &Conn<A>)) -> Option<u32> {
        let until = from.saturating_add(limit).min(self.unused);
        for number in from..until {
            let conn = &self.records[number as usize];
            if is_live(conn) {
                on_conn(ConnId(number), conn);
            }
        }
        (until < self.unused).then_some(until)
    }

    /// Connections in the table.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Connections the table has room for.
    pub fn capacity(&self) -> usize {
        self.records.len()
    }

    /// What its tuples hash to.
    #[inline]
    fn hashes(&self, conn: &Conn<A>) -> Hashes {
        Hashes { request: self.hash(&conn.request()), reply: conn.reply().map(|reply| self.hash(&reply)) }
    }

    /// Which queue a connection waits in that keeps its port.
    fn queue_of(&self, conn: &Conn<A>) -> u64 {
        self.queue(conn.server, conn.peer.address, conn.protocol())
    }

    fn queue(&self, server: Endpoint<A>, local: A, protocol: Protocol) -> u64 {
        self.hash.tuple(&Tuple { src: server, dst: Endpoint::new(local, 0), protocol })
    }

    /// Takes an unfiled record with these `hashes` out of the index and into the list of free ones.
    fn release(&mut self, id: ConnId, hashes: Hashes) -> Conn<A> {
        let conn = *self.get(id);
        if keeps_port(&conn) {
            self.quarantine.leave(id.0);
        }
        let request = Entry { record: id.0, direction: Direction::Request };
        let parked = conn.flags.has(ConnFlags::PARKED);
        let mut found = parked || self.index.remove(hashes.request, request);
        if let Some(hash) = hashes.reply {
            found &= self.index.remove(hash, Entry { direction: Direction::Reply, ..request });
        }
        debug_assert!(found, "the keys of record {} were changed", id.0);
        let record = &mut self.records[id.0 as usize];
        record.protocol = FREE;
        record.last_seen = Ticks(self.free);
        self.free = id.0;
        self.len -= 1;
        conn
    }
}

/// What the tuples of a connection hash to.
#[derive(Clone, Copy, Debug)]
struct Hashes {
    request: Hash,
    reply: Option<Hash>,
}

/// Records whose time has come that are read at the same time: as many misses as a core overlaps, and a few more.
const STAGE: usize = 32;

/// When `conn` will have been idle for its timeout, if no packet comes.
fn due<A: Address>(conn: &Conn<A>) -> Ticks {
    Ticks(conn.last_seen.0.wrapping_add(conn.timeout.0))
}

/// Whether nothing is left of `conn` but the local port that its server may hold still.
fn keeps_port<A: Address>(conn: &Conn<A>) -> bool {
    conn.mode() == Mode::Fullnat && State::from_number(conn.state).is_over()
}

fn is_live<A: Address>(conn: &Conn<A>) -> bool {
    conn.protocol != FREE
}

/// No record: above [`RECORDS_MAX`].
const NONE: u32 = u32::MAX;

/// The protocol number of a record that is not in use.
const FREE: u8 = 0;

/// Keeps the table's hash independent of the one that chooses workers: all flows here share a worker.
const HASH_PURPOSE: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Mode;
    use crate::tuple::{Endpoint, Protocol, V4, V6};
    use zerocopy::FromZeros;

    /// Connection number `i`: a client of its own, and in FULLNAT a local endpoint of its own.
    fn conn(i: u32, mode: Mode, timeout: u32) -> Conn<V4> {
        let client = Endpoint::new(V4(0x0a00_0000 + i / 50_000), 1024 + (i % 50_000) as u16);
        let local = Endpoint::new(V4(0x0b00_0000 + i / 50_000), 1024 + (i % 50_000) as u16);
        Conn {
            client,
            vip: Endpoint::new(V4(0xcb00_710a), 80),
            server: Endpoint::new(V4(0xc0a8_0001), 8080),
            peer: if mode == Mode::Fullnat { local } else { client },
            timeout: Ticks(timeout),
            mode: mode as u8,
            protocol: Protocol::Tcp.number(),
            ..Conn::new_zeroed()
        }
    }

    fn table(capacity: usize) -> Table<V4> {
        Table::new(capacity, [1, 2]).unwrap()
    }

    fn find(table: &Table<V4>, tuple: Tuple<V4>) -> Option<Hit> {
        table.lookup(&tuple, table.hash(&tuple))
    }

    #[test]
    fn a_connection_is_found_by_both_tuples_where_replies_are_seen() {
        let mut table = table(16);
        for (i, mode) in Mode::ALL.into_iter().enumerate() {
            let conn = conn(i as u32, mode, 100);
            let id = table.insert(conn, Ticks(0)).unwrap();
            let request = Hit { id, direction: Direction::Request };
            let reply = Hit { id, direction: Direction::Reply };
            assert_eq!(find(&table, conn.request()), Some(request));
            assert_eq!(table.candidate(table.hash(&conn.request())).map(|hit| hit.id), Some(id));
            let answer = Tuple { src: conn.server, dst: conn.peer, protocol: Protocol::Tcp };
            assert_eq!(find(&table, answer), mode.sees_replies().then_some(reply), "{mode:?}");
            assert_eq!(find(&table, conn.request().reversed()), None);
            assert_eq!(find(&table, Tuple { protocol: Protocol::Udp, ..conn.request() }), None);
        }
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn a_candidate_of_an_earlier_time_is_not_believed() {
        let mut table = table(1);
        let old = conn(1, Mode::Nat, 100);
        let id = table.insert(old, Ticks(0)).unwrap();
        let (request, reply) = (old.request(), old.reply().unwrap());
        let look = |table: &Table<V4>, direction, tuple: &Tuple<V4>| {
            table.lookup_from(Some(Hit { id, direction }), tuple, table.hash(tuple))
        };
        assert_eq!(look(&table, Direction::Reply, &reply), Some(Hit { id, direction: Direction::Reply }));
        // A wrong guess costs a second look, no more.
        assert_eq!(look(&table, Direction::Reply, &request), Some(Hit { id, direction: Direction::Request }));
        table.remove(id);
        assert_eq!(look(&table, Direction::Reply, &reply), None);
        // The same endpoints in the same record, but no replies are seen in this mode.
        let new = Conn { mode: Mode::Dr as u8, ..old };
        assert_eq!(table.insert(new, Ticks(0)), Ok(id));
        assert_eq!(look(&table, Direction::Reply, &reply), None);
    }

    #[test]
    fn a_removed_connection_is_found_by_neither_tuple_and_its_record_is_used_again() {
        let mut table = table(1);
        let first = conn(1, Mode::Fullnat, 100);
        let id = table.insert(first, Ticks(0)).unwrap();
        assert_eq!(table.insert(conn(2, Mode::Dr, 100), Ticks(0)), Err(InsertError::Full));
        assert_eq!(table.remove(id).request(), first.request());
        assert!(!table.contains(&first.request()) && !table.contains(&first.reply().unwrap()));
        assert_eq!(table.insert(conn(2, Mode::Dr, 100), Ticks(0)), Ok(id));
    }

    #[test]
    fn a_parked_connection_keeps_its_reply_and_leaves_its_request_to_another() {
        let mut table = table(2);
        let first = conn(1, Mode::Fullnat, 100);
        let id = table.insert(first, Ticks(0)).unwrap();
        let (request, reply) = (first.request(), first.reply().unwrap());
        let guess = Some(Hit { id, direction: Direction::Request });
        table.park(id);
        assert_eq!(find(&table, request), None);
        assert_eq!(table.lookup_from(guess, &request, table.hash(&request)), None);
        assert_eq!(find(&table, reply), Some(Hit { id, direction: Direction::Reply }));
        assert_eq!(table.get(id).request(), request, "whose it was can still be shown");
        assert_eq!(table.insert(first, Ticks(0)), Err(InsertError::Exists), "its port is taken");
        let second = Conn { peer: Endpoint::new(V4(0x0b00_0001), 9), ..first };
        let other = table.insert(second, Ticks(0)).unwrap();
        assert_eq!(table.expire(Ticks(200), 10, |_, _| ()).removed, 2);
        assert!(table.is_empty() && other != id && table.index.load() == 0.0);
    }

    #[test]
    fn no_tuple_is_in_the_table_twice() {
        let mut table = table(16);
        let one = conn(1, Mode::Fullnat, 100);
        table.insert(one, Ticks(0)).unwrap();
        let same_request = Conn { peer: Endpoint::new(V4(9), 9), ..one };
        let same_reply = Conn { client: Endpoint::new(V4(9), 9), ..one };
        // The other's reply is this one's request, and the reverse.
        let crossed = Conn { client: one.server, vip: one.peer, mode: Mode::Dr as u8, ..one };
        let itself = Conn { server: one.client, peer: one.vip, client: one.client, vip: one.vip, ..one };
        for again in [one, same_request, same_reply, crossed, itself] {
            assert_eq!(table.insert(again, Ticks(0)), Err(InsertError::Exists));
        }
        assert_eq!(table.len(), 1);
        let itself = Conn { server: Endpoint::new(V4(7), 7), client: Endpoint::new(V4(7), 7), ..itself };
        let itself = Conn { peer: itself.vip, ..itself };
        assert_eq!(table.insert(itself, Ticks(0)), Err(InsertError::Exists));
    }

    #[test]
    fn every_record_can_be_used_with_both_directions() {
        const CAPACITY: u32 = if cfg!(miri) { 200 } else { 100_000 };
        let mut table = table(CAPACITY as usize);
        for i in 0..CAPACITY {
            table.insert(conn(i, Mode::Fullnat, 100), Ticks(0)).unwrap();
        }
        println!("index load with every record in use: {:.3}", table.index.load());
        assert_eq!(table.insert(conn(CAPACITY, Mode::Fullnat, 100), Ticks(0)), Err(InsertError::Full));
        assert_eq!((table.len(), table.capacity()), (CAPACITY as usize, CAPACITY as usize));
        for i in 0..CAPACITY {
            let conn = conn(i, Mode::Fullnat, 100);
            let (request, reply) = (find(&table, conn.request()), find(&table, conn.reply().unwrap()));
            assert_eq!(request.unwrap().id, reply.unwrap().id);
        }
    }

    #[test]
    fn an_ipv4_connection_costs_at_most_128_bytes_everything_included() {
        for capacity in [1_000, 100_000, 222_822, 222_823, 1_000_000, 10_000_000] {
            let each = Table::<V4>::bytes_for(capacity) as f64 / capacity as f64;
            println!("{capacity}: {each:.1} bytes per connection");
            assert!(each <= 128.0, "{capacity}: {each}");
        }
    }

    #[test]
    fn an_ipv6_connection_costs_at_most_192_bytes_everything_included() {
        for capacity in [1_000, 100_000, 222_822, 222_823, 1_000_000, 10_000_000] {
            let each = Table::<V6>::bytes_for(capacity) as f64 / capacity as f64;
            assert!(each <= 192.0, "{capacity}: {each}");
        }
    }

    /// How many records are compared with `tuple` until the table says what it knows of it. That is what crafted tuples
    /// could drive up, and the same on every machine, as time is not. (Buckets are two at most, whatever lies in them.)
    fn comparisons(table: &Table<V4>, tuple: &Tuple<V4>) -> usize {
        let (hash, mut compared) = (table.hash(tuple), 0);
        table.index.find(hash, |entry| {
            compared += 1;
            table.is_it(tuple, entry.into())
        });
        compared
    }

    /// Who knows the secret can name tuples that share both their buckets: so many fit and no more, and an operation
    /// compares them all, but no others. Under any other secret the same tuples are like any others: each is compared
    /// with itself, and with hardly another one, be it looked for, added or removed.
    #[test]
    #[cfg_attr(miri, ignore = "hours, and nothing that shorter tests do not touch")]
    fn crafted_collisions_fill_a_table_whose_secret_is_known_and_no_other() {
        const KNOWN: [u64; 2] = [1, 2];
        const CAPACITY: usize = 32;
        let crafted: Vec<_> = {
            let table = Table::<V4>::new(CAPACITY, KNOWN).unwrap();
            // The bits that choose among eight buckets, the lowest of the hash, and the whole tag.
            let bits = |conn: &Conn<V4>| table.hash(&conn.request()).0 & 0xffff_0000_0000_0007;
            let alike = |conn: &Conn<V4>| bits(conn) == 0x0001_0000_0000_0000;
            let tuples = (0..).map(|i| conn(i, Mode::Dr, 100));
            tuples.filter(alike).take(25).collect()
        };
        let absent = conn(0xffff, Mode::Fullnat, 100).request();
        let fill = |secret| {
            let mut table = Table::<V4>::new(CAPACITY, secret).unwrap();
            let mut most_to_add = 0;
            let mut taken = Vec::new();
            for conn in &crafted {
                most_to_add = most_to_add.max(comparisons(&table, &conn.request()));
                taken.extend(table.insert(*conn, Ticks(0)));
            }
            let most = crafted.iter().map(|conn| comparisons(&table, &conn.request())).max().unwrap();
            let in_vain = comparisons(&table, &absent);
            let count = taken.len();
            taken.into_iter().for_each(|id| _ = table.remove(id));
            assert!(table.is_empty() && table.index.load() == 0.0);
            (count, most_to_add, most, in_vain)
        };
        let (taken, to_add, most, in_vain) = fill(KNOWN);
        assert_eq!((taken, to_add, most, in_vain), (20, 20, 20, 0), "two buckets full, and not one more");
        for secret in 0..1000 {
            let (taken, to_add, most, in_vain) = fill([secret, 99]);
            assert_eq!((taken, in_vain), (25, 0));
            assert!(to_add <= 1 && most <= 2, "{to_add} comparisons to add one of 25, {most} to find one");
        }
    }

    #[test]
    fn ipv6_connections_are_found_too() {
        let mut table = Table::<V6>::new(100, [1, 2]).unwrap();
        let endpoint = |last, port| Endpoint::new(V6([0x2001_0db8, 0, 0, last]), port);
        let conn = Conn {
            client: endpoint(1, 1000),
            vip: endpoint(2, 80),
            server: endpoint(3, 8080),
            peer: endpoint(4, 5000),
            timeout: Ticks(10),
            protocol: Protocol::Udp.number(),
            ..Conn::new_zeroed()
        };
        let id = table.insert(conn, Ticks(0)).unwrap();
        table.prefetch_record(id);
        let reply = conn.reply().unwrap();
        let hit = Hit { id, direction: Direction::Reply };
        assert_eq!(table.lookup(&reply, table.hash(&reply)), Some(hit));
    }

    #[test]
    #[cfg_attr(miri, ignore = "hours, and nothing that shorter tests do not touch")]
    fn an_idle_connection_goes_when_its_timeout_is_over_not_before_and_not_long_after() {
        let second = 1_000_000_000_u64.div_ceil(1 << Ticks::SHIFT) as u32;
        for timeout in [1, 10, second, 10 * second, 900 * second, 3000 * second] {
            let mut table = table(4);
            let start = 77_777;
            table.insert(conn(1, Mode::Nat, timeout), Ticks(start)).unwrap();
            let removed =
                (start..).find(|&now| table.expire(Ticks(now), 10, |_, _| ()).removed == 1).unwrap();
            let idle = removed - start;
            assert!(idle >= timeout && idle <= timeout + second / 2, "{timeout}: went after {idle}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "hours, and nothing that shorter tests do not touch")]
    fn a_busy_connection_stays_and_goes_one_timeout_after_its_last_packet() {
        let mut table = table(4);
        let id = table.insert(conn(1, Mode::Nat, 100), Ticks(0)).unwrap();
        let mut visits = 0;
        for now in 0..10_000 {
            if now % 90 == 0 {
                table.get_mut(id).last_seen = Ticks(now);
            }
            let expired = table.expire(Ticks(now), 10, |_, _| ());
            assert_eq!(expired.removed, 0);
            visits += expired.visited;
        }
        assert!(visits < 1200, "a wheel that moves per packet: {visits}");
        let last = table.get(id).last_seen.0;
        let removed = (10_000..).find(|&now| table.expire(Ticks(now), 10, |_, _| ()).removed == 1).unwrap();
        assert!((last + 100..=last + 107).contains(&removed));
    }

    #[test]
    fn a_shorter_timeout_counts_from_the_last_packet_and_a_longer_one_does_too() {
        let mut table = table(4);
        let closing = table.insert(conn(1, Mode::Nat, 13_000), Ticks(0)).unwrap();
        let growing = table.insert(conn(2, Mode::Nat, 100), Ticks(0)).unwrap();
        table.get_mut(closing).last_seen = Ticks(50);
        table.set_timeout(closing, Ticks(150));
        table.set_timeout(growing, Ticks(400));
        let mut gone = Vec::new();
        for now in 50..1000 {
            table.expire(Ticks(now), 10, |_, conn| gone.push((conn.client.port, now)));
        }
        assert_eq!(gone.iter().map(|&(port, _)| port).collect::<Vec<_>>(), [1025, 1026]);
        assert!((200..=207).contains(&gone[0].1) && (400..=407).contains(&gone[1].1), "{gone:?}");
    }

    #[test]
    fn one_call_looks_at_no_more_than_its_budget_and_the_next_goes_on() {
        let mut table = table(1000);
        for i in 0..1000 {
            table.insert(conn(i, Mode::Nat, 10), Ticks(0)).unwrap();
        }
        let mut calls = 0;
        while !table.is_empty() {
            let expired = table.expire(Ticks(1000), 64, |_, _| ());
            assert!(expired.visited <= 64 && expired.removed == expired.visited);
            calls += 1;
        }
        assert_eq!(calls, 1000_usize.div_ceil(64));
        assert_eq!(table.index.load(), 0.0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "hours, and nothing that shorter tests do not touch")]
    fn a_dump_in_steps_shows_every_connection_once() {
        let mut table = table(100);
        let ids: Vec<_> = (0..60).map(|i| table.insert(conn(i, Mode::Nat, 10), Ticks(0)).unwrap()).collect();
        for &id in ids.iter().step_by(3) {
            table.remove(id);
        }
        let (mut seen, mut steps, mut from) = (Vec::new(), 0, Some(0));
        while let Some(number) = from {
            from = table.scan(number, 7, |id, _| seen.push(id));
            steps += 1;
        }
        assert_eq!(steps, 60_usize.div_ceil(7), "records that were never used are not looked at");
        assert_eq!(seen.len(), 40);
        assert!(seen.is_sorted() && seen.iter().all(|id| ids.contains(id)));
    }

    #[test]
    fn a_table_of_no_size_or_of_an_impossible_one_is_refused() {
        assert!(Table::<V4>::new(0, [1, 2]).is_err());
        assert!(Table::<V4>::new(RECORDS_MAX + 1, [1, 2]).is_err());
    }
}
