//! Showing a worker's connections to somebody outside, a few records per tick.
//!
//! The asker owns a [`Batch`] with room for what it will hold. Pushing it into the worker's ring is the question; the
//! worker fills it, [`STEP`] records per tick, and pushes it back; the asker empties it and asks on from where it ended.
//! So nobody waits for anybody: a slow asker merely does not ask, one that is gone leaves a batch that comes home by
//! itself, and the worker neither allocates nor frees. A connection keeps its record while it lives, so a dump from
//! the first record to the last shows each that lives all the while exactly once.

use std::net::SocketAddr;

use rtrb::{Consumer, Producer, RingBuffer};
use shunt_engine::Duration;

use crate::conn::{Conn, State, Table, Ticks};
use crate::server::{Mode, ServerId};
use crate::tuple::{Address, Endpoint, Protocol, V4, V6};

/// Records a worker looks at per tick.
pub const STEP: u32 = 64;

/// Dumps of one worker at a time.
pub const DUMPS_MAX: usize = 2;

/// Connections in a batch.
const BATCH_LEN: usize = 1024;

const _: () = assert!(BATCH_LEN >= STEP as usize, "a step's connections fit into an empty batch");

/// A connection as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it stands.
    pub state: State,
    /// How packets reach the server.
    pub mode: Mode,
    /// The client (CIP).
    pub client: SocketAddr,
    /// What it called (VIP).
    pub virtual_address: SocketAddr,
    /// Where its packets go (RIP).
    pub server: SocketAddr,
    /// From where, in FULLNAT.
    pub local: Option<SocketAddr>,
    /// The server's number.
    pub server_id: ServerId,
    /// How long it will stay if no packet comes.
    pub expires: Duration,
}

/// A piece of a dump.
#[derive(Debug)]
struct Batch {
    /// The record to go on from; `None` behind the last.
    next: Option<u32>,
    found: Vec<Shown>,
}

/// One end of a dump channel: who asks.
#[derive(Debug)]
pub struct Inquiry {
    questions: Producer<Box<Batch>>,
    answers: Consumer<Box<Batch>>,
    /// The batch, while the worker does not have it.
    batch: Option<Box<Batch>>,
}

/// The other end: the worker's.
#[derive(Debug)]
struct Desk {
    questions: Consumer<Box<Batch>>,
    answers: Producer<Box<Batch>>,
}

/// A worker's share of all dumps.
#[derive(Debug, Default)]
pub(crate) struct Dumps {
    desks: Vec<Desk>,
    /// The batch being filled, and whose it is.
    work: Option<(usize, Box<Batch>)>,
}

/// What an asker learns.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Nothing new yet: the worker is at it.
    Waiting,
    /// More connections; the worker looks for further ones meanwhile, unless these were the last.
    Found(&'a [Shown]),
}

impl Dumps {
    /// Opens the desks. Returns the askers' ends.
    pub(crate) fn open(&mut self) -> Vec<Inquiry> {
        let (desks, inquiries) = (0..DUMPS_MAX).map(|_| channel()).unzip();
        self.desks = desks;
        inquiries
    }

    /// Looks at the next records if somebody has asked: [`STEP`] at most. Returns whether there is more to do.
    #[inline]
    pub(crate) fn work(&mut self, scan: impl FnOnce(u32, u32, &mut Vec<Shown>) -> Option<u32>) -> bool {
        if self.work.is_none() {
            self.work = self.question();
        }
        self.work.is_some() && self.go_on(scan)
    }

    /// Whether there is something to do.
    #[inline]
    pub(crate) fn is_asked(&self) -> bool {
        self.work.is_some() || self.desks.iter().any(|desk| !desk.questions.is_empty())
    }

    #[inline]
    fn question(&mut self) -> Option<(usize, Box<Batch>)> {
        let mut desks = self.desks.iter_mut().enumerate();
        desks.find_map(|(number, desk)| Some((number, desk.questions.pop().ok()?)))
    }

    #[cold]
    fn go_on(&mut self, scan: impl FnOnce(u32, u32, &mut Vec<Shown>) -> Option<u32>) -> bool {
        let Some((number, mut batch)) = self.work.take() else { return false };
        batch.next = batch.next.and_then(|from| scan(from, STEP, &mut batch.found));
        let has_room = batch.found.capacity() - batch.found.len() >= STEP as usize;
        if has_room && batch.next.is_some() {
            self.work = Some((number, batch));
        } else {
            let pushed = self.desks[number].answers.push(batch);
            debug_assert!(pushed.is_ok(), "a desk has one batch, and its ring room for it");
        }
        true
    }
}

fn channel() -> (Desk, Inquiry) {
    let (ask, questions) = RingBuffer::new(1);
    let (answer, answers) = RingBuffer::new(1);
    let batch = Some(Box::new(Batch { next: None, found: Vec::new() }));
    (Desk { questions, answers: answer }, Inquiry { questions: ask, answers, batch })
}

impl Inquiry {
    /// Begins with the first record. Returns false while the batch of a dump that was given up is not back yet. Wake
    /// the worker afterwards.
    pub fn begin(&mut self) -> bool {
        self.collect();
        let Some(batch) = &mut self.batch else { return false };
        // Room is reserved on top of what the dump before has left.
        batch.found.clear();
        batch.found.reserve_exact(BATCH_LEN);
        self.ask(Some(0));
        true
    }

    /// Shows to `read` what the worker has found since, and asks on. Wake the worker afterwards. `None` at the end.
    pub fn next<T>(&mut self, read: impl FnOnce(Progress<'_>) -> T) -> Option<T> {
        if self.batch.is_some() {
            return None;
        }
        self.collect();
        let Some(batch) = &self.batch else { return Some(read(Progress::Waiting)) };
        let (next, answer) = (batch.next, read(Progress::Found(&batch.found)));
        if next.is_some() {
            self.ask(next);
        }
        Some(answer)
    }

    fn collect(&mut self) {
        if let Ok(batch) = self.answers.pop() {
            self.batch = Some(batch);
        }
    }

    fn ask(&mut self, next: Option<u32>) {
        let Some(mut batch) = self.batch.take() else { return };
        batch.found.clear();
        batch.next = next;
        let pushed = self.questions.push(batch);
        debug_assert!(pushed.is_ok(), "there is one batch, and the ring has room for it");
    }
}

/// Adds the connections among `limit` records from number `from` on to `found`. Returns where to go on. The records of
/// both tables are numbered as if they were one: IPv4's come first.
pub(crate) fn scan(
    (v4, v6): (&Table<V4>, &Table<V6>),
    from: u32,
    limit: u32,
    now: Ticks,
    found: &mut Vec<Shown>,
) -> Option<u32> {
    let first_v6 = v4.capacity() as u32;
    match from.checked_sub(first_v6) {
        None => scan_one(v4, from, limit, now, found).or(Some(first_v6)),
        Some(from) => scan_one(v6, from, limit, now, found).map(|next| first_v6 + next),
    }
}

fn scan_one<A: Address>(
    table: &Table<A>,
    from: u32,
    limit: u32,
    now: Ticks,
    found: &mut Vec<Shown>,
) -> Option<u32> {
    table.scan(from, limit, |_, conn| {
        // The worker a flow has moved to shows it.
        if conn.moved_to().is_none() {
            found.push(shown(conn, now));
        }
    })
}

fn shown<A: Address>(conn: &Conn<A>, now: Ticks) -> Shown {
    let socket = |endpoint: Endpoint<A>| SocketAddr::new(endpoint.address.to_ip(), endpoint.port);
    let left = conn.timeout.0.saturating_sub(now.since(conn.last_seen));
    Shown {
        protocol: conn.protocol(),
        state: State::from_number(conn.state),
        mode: conn.mode(),
        client: socket(conn.client),
        virtual_address: socket(conn.vip),
        server: socket(conn.server),
        local: (conn.mode() == Mode::Fullnat).then(|| socket(conn.peer)),
        server_id: conn.server_id,
        expires: Duration::from_nanos(u64::from(left) << Ticks::SHIFT),
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    /// A table with room for half as much again.
    fn table<A: Address>(len: u32, client: impl Fn(u32) -> A) -> Table<A> {
        let mut table = Table::new(len as usize * 3 / 2, [1, 2]).unwrap();
        for number in 0..len {
            let client = Endpoint::new(client(number), 40_000);
            let conn = Conn {
                client,
                peer: client,
                vip: Endpoint::new(A::default(), 80),
                timeout: Ticks(100),
                mode: Mode::Dr as u8,
                protocol: Protocol::Tcp.number(),
                state: State::Established as u8,
                ..Conn::new_zeroed()
            };
            table.insert(conn, Ticks(0)).unwrap();
        }
        table
    }

    fn tables(len: u32) -> (Table<V4>, Table<V6>) {
        let v6 = |number| V6([0x2001_0db8, 0, 0, number]);
        (table(len, |number| V4(0x0a00_0000 + number)), table(len, v6))
    }

    /// Asks to the end, the worker taking `ticks` ticks between two looks. Returns what was shown, and the ticks.
    fn dump(
        dumps: &mut Dumps,
        inquiry: &mut Inquiry,
        (v4, v6): &(Table<V4>, Table<V6>),
    ) -> (Vec<Shown>, usize) {
        assert!(inquiry.begin());
        let (mut all, mut ticks) = (Vec::new(), 0);
        loop {
            let mut looked_at = 0;
            dumps.work(|from, limit, found| {
                looked_at = limit;
                scan((v4, v6), from, limit, Ticks(40), found)
            });
            assert!(looked_at <= STEP, "a tick is bounded");
            ticks += 1;
            let more = inquiry.next(|progress| {
                if let Progress::Found(found) = progress {
                    all.extend_from_slice(found);
                }
            });
            if more.is_none() {
                return (all, ticks);
            }
        }
    }

    #[test]
    fn a_dump_shows_every_connection_once_in_bounded_steps() {
        const LEN: u32 = 50_000;
        let (tables, mut dumps) = (tables(LEN), Dumps::default());
        let mut inquiry = dumps.open().remove(0);
        for _ in 0..2 {
            let (shown, ticks) = dump(&mut dumps, &mut inquiry, &tables);
            let mut clients: Vec<_> = shown.iter().map(|shown| shown.client).collect();
            clients.sort();
            clients.dedup();
            assert_eq!((shown.len(), clients.len()), (2 * LEN as usize, 2 * LEN as usize));
            // The ends of both tables, and one more to hear that it was the last.
            assert!(ticks <= 3 * LEN as usize / STEP as usize + 3, "{ticks}");
        }
        assert!(!dumps.work(|_, _, _| panic!("nobody asks any more")));
    }

    #[test]
    fn a_connection_is_shown_as_it_is() {
        let (tables, mut dumps) = (tables(2), Dumps::default());
        let mut inquiry = dumps.open().remove(0);
        let (shown, _) = dump(&mut dumps, &mut inquiry, &tables);
        let expected = Shown {
            protocol: Protocol::Tcp,
            state: State::Established,
            mode: Mode::Dr,
            client: "10.0.0.0:40000".parse().unwrap(),
            virtual_address: "0.0.0.0:80".parse().unwrap(),
            server: "0.0.0.0:0".parse().unwrap(),
            local: None,
            server_id: ServerId::default(),
            expires: Duration::from_nanos(60 << Ticks::SHIFT),
        };
        assert_eq!(shown[0], expected);
        let clients: Vec<_> = shown.iter().map(|shown| shown.client.to_string()).collect();
        let expected = ["10.0.0.0:40000", "10.0.0.1:40000", "[2001:db8::]:40000", "[2001:db8::1]:40000"];
        assert_eq!(clients, expected);
    }

    #[test]
    fn dumps_that_are_given_up_one_after_the_other_need_no_more_memory() {
        let ((v4, v6), mut dumps) = (tables(5_000), Dumps::default());
        let mut inquiry = dumps.open().remove(0);
        for _ in 0..10 {
            assert!(inquiry.begin());
            while dumps.work(|from, limit, found| scan((&v4, &v6), from, limit, Ticks(0), found)) {}
            inquiry.collect();
            let room = inquiry.batch.as_ref().map(|batch| batch.found.capacity());
            assert!(room.is_some_and(|room| room < 2 * BATCH_LEN), "{room:?}");
        }
    }

    #[test]
    fn a_dump_that_is_given_up_does_not_disturb_the_next_nor_another_one() {
        let (tables, mut dumps) = (tables(5_000), Dumps::default());
        let mut inquiries = dumps.open();
        let mut other = inquiries.remove(1);
        let mut inquiry = inquiries.remove(0);
        let work = |dumps: &mut Dumps| {
            dumps.work(|from, limit, found| scan((&tables.0, &tables.1), from, limit, Ticks(0), found))
        };
        assert!(inquiry.begin());
        work(&mut dumps);
        assert!(!inquiry.begin(), "its batch is still with the worker");
        while work(&mut dumps) {}
        assert_eq!(dump(&mut dumps, &mut other, &tables).0.len(), 10_000);
        assert_eq!(dump(&mut dumps, &mut inquiry, &tables).0.len(), 10_000);
        // An asker that is gone for good leaves a ring that nobody reads.
        assert!(other.begin());
        drop(other);
        while work(&mut dumps) {}
        assert_eq!(dump(&mut dumps, &mut inquiry, &tables).0.len(), 10_000);
    }
}
