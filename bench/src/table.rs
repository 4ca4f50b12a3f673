//! What finding, adding and removing a connection costs in the connection table, and in hashbrown in the same run.
//!
//! hashbrown holds two entries per connection, tuple → record, beside a plain slab of the same records: no timers, no free
//! list, the same hash function. It grows by doubling as it does anywhere, so it gets its full size from the start.

use std::hint::black_box;

use anyhow::ensure;
use hashbrown::HashTable;
use shunt_dataplane::conn::{Conn, ConnId, State, Table, Ticks};
use shunt_dataplane::hash::KeyedHash;
use shunt_dataplane::server::{Mode, ServerId};
use shunt_dataplane::tuple::{Address, Endpoint, Protocol, Tuple, V4, V6};

use crate::connections::shuffle;
use crate::pipeline::thread_cpu_ns;
use crate::report::{Costs, TableRun};

/// Measures a table of `connections` FULLNAT connections of each family.
///
/// # Errors
/// When there is no memory.
pub fn measure(connections: u32, rounds: u32) -> anyhow::Result<[TableRun; 2]> {
    Ok([
        family("ipv4", connections, rounds, |net, host| V4(net << 24 | host))?,
        family("ipv6", connections, rounds, |net, host| V6([0x2001_0db8, net, 0, host]))?,
    ])
}

fn family<A: Address>(
    family: &'static str,
    connections: u32,
    rounds: u32,
    address: impl Fn(u32, u32) -> A,
) -> anyhow::Result<TableRun> {
    // Odd numbers are in the table, even ones are not.
    let conns: Vec<_> = (0..connections).map(|i| conn(2 * i + 1, &address)).collect();
    let others: Vec<_> = (0..connections).map(|i| conn(2 * i, &address)).collect();
    let workload = Workload { hits: tuples(&conns), misses: tuples(&others), conns };
    let (mut ours, mut theirs) = (Costs::WORST, Costs::WORST);
    let mut hashbrown_bytes = 0;
    for _ in 0..rounds {
        ours = ours.best(run(&mut Ours::new(connections as usize)?, &workload)?);
        let mut other = Hashbrown::new(connections as usize);
        theirs = theirs.best(run(&mut other, &workload)?);
        hashbrown_bytes = other.bytes();
    }
    let each = |bytes: usize| bytes as f64 / f64::from(connections);
    Ok(TableRun {
        family,
        connections,
        bytes_per_connection: each(Table::<A>::bytes_for(connections as usize)),
        hashbrown_bytes_per_connection: each(hashbrown_bytes),
        table: ours,
        hashbrown: theirs,
        rounds,
    })
}

struct Workload<A: Address> {
    conns: Vec<Conn<A>>,
    /// Both tuples of every connection, in a pseudo-random order.
    hits: Vec<Tuple<A>>,
    /// As many that are not there.
    misses: Vec<Tuple<A>>,
}

/// What both tables can do.
trait Map<A: Address> {
    fn insert(&mut self, conn: Conn<A>) -> bool;
    fn find(&self, tuple: &Tuple<A>) -> Option<u32>;
    fn remove(&mut self, number: u32);
}

/// One round: fills the map, looks everything up, empties it. CPU time per connection, and per lookup.
fn run<A: Address>(map: &mut impl Map<A>, workload: &Workload<A>) -> anyhow::Result<Costs> {
    let per = |what: usize, work: &mut dyn FnMut() -> usize| {
        let start = thread_cpu_ns();
        let done = work();
        let cpu = thread_cpu_ns() - start;
        ensure!(done == what, "{done} of {what}");
        Ok(cpu as f64 / what as f64)
    };
    let (conns, lookups) = (workload.conns.len(), workload.hits.len());
    Ok(Costs {
        insert_ns: per(conns, &mut || workload.conns.iter().filter(|conn| map.insert(**conn)).count())?,
        hit_ns: per(lookups, &mut || workload.hits.iter().filter(|tuple| map.find(tuple).is_some()).count())?,
        miss_ns: per(lookups, &mut || {
            workload.misses.iter().filter(|tuple| map.find(tuple).is_none()).count()
        })?,
        delete_ns: per(conns, &mut || (0..conns as u32).map(|number| map.remove(number)).count())?,
    })
}

struct Ours<A: Address>(Table<A>);

impl<A: Address> Ours<A> {
    fn new(connections: usize) -> anyhow::Result<Self> {
        Ok(Self(Table::new(connections, SECRET)?))
    }
}

impl<A: Address> Map<A> for Ours<A> {
    fn insert(&mut self, conn: Conn<A>) -> bool {
        self.0.insert(conn, Ticks(1)).is_ok()
    }

    #[inline]
    fn find(&self, tuple: &Tuple<A>) -> Option<u32> {
        self.0.lookup(tuple, self.0.hash(tuple)).map(|hit| hit.id.0)
    }

    fn remove(&mut self, number: u32) {
        black_box(self.0.remove(ConnId(number)));
    }
}

struct Hashbrown<A: Address> {
    map: HashTable<(Tuple<A>, u32)>,
    records: Vec<Conn<A>>,
    hash: KeyedHash,
}

impl<A: Address> Hashbrown<A> {
    fn new(connections: usize) -> Self {
        let map = HashTable::with_capacity(2 * connections);
        Self { map, records: Vec::with_capacity(connections), hash: KeyedHash::new(SECRET, 1) }
    }

    fn bytes(&self) -> usize {
        self.map.allocation_size() + self.records.capacity() * size_of::<Conn<A>>()
    }

    fn both(conn: &Conn<A>) -> [Tuple<A>; 2] {
        [conn.request(), conn.reply().expect("FULLNAT sees replies")]
    }
}

impl<A: Address> Map<A> for Hashbrown<A> {
    fn insert(&mut self, conn: Conn<A>) -> bool {
        let number = self.records.len() as u32;
        let hash = &self.hash;
        let tuples = Self::both(&conn);
        if tuples.iter().any(|tuple| self.map.find(hash.tuple(tuple), |(key, _)| key == tuple).is_some()) {
            return false;
        }
        for tuple in tuples {
            self.map.insert_unique(hash.tuple(&tuple), (tuple, number), |(key, _)| hash.tuple(key));
        }
        self.records.push(conn);
        true
    }

    #[inline]
    fn find(&self, tuple: &Tuple<A>) -> Option<u32> {
        let (_, number) = self.map.find(self.hash.tuple(tuple), |(key, _)| key == tuple)?;
        // A lookup is for the record: it is read here too.
        black_box(self.records[*number as usize].protocol);
        Some(*number)
    }

    fn remove(&mut self, number: u32) {
        for tuple in Self::both(&self.records[number as usize]) {
            if let Ok(entry) = self.map.find_entry(self.hash.tuple(&tuple), |(key, _)| *key == tuple) {
                entry.remove();
            }
        }
    }
}

fn tuples<A: Address>(conns: &[Conn<A>]) -> Vec<Tuple<A>> {
    let mut tuples: Vec<_> = conns.iter().flat_map(Hashbrown::both).collect();
    shuffle(&mut tuples);
    tuples
}

/// Connection number `i`: a client and a local endpoint of its own.
fn conn<A: Address>(i: u32, address: &impl Fn(u32, u32) -> A) -> Conn<A> {
    let own = |net| Endpoint::new(address(net, i / 50_000), 1025 + (i % 50_000) as u16);
    Conn {
        client: own(10),
        vip: Endpoint::new(address(203, 1), 80),
        server: Endpoint::new(address(192, 1 + i % 4), 8080),
        peer: own(172),
        server_id: ServerId::default(),
        timeout: Ticks(10_000),
        state: State::Established as u8,
        mode: Mode::Fullnat as u8,
        protocol: Protocol::Tcp.number(),
        ..zerocopy::FromZeros::new_zeroed()
    }
}

/// Any will do: nobody attacks a benchmark.
const SECRET: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
