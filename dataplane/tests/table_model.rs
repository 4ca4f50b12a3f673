//! The connection table against a naive model: a list of connections, searched from end to end.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use shunt_dataplane::conn::{Conn, ConnId, Direction, Hit, InsertError, State, Table, Ticks};
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Endpoint, Protocol, Tuple, V4};
use zerocopy::FromZeros;

/// So small that records, tuples and slots run out and are used again.
const CAPACITY: usize = 24;

/// How much later than its timeout a connection may go: half a second.
const LATE_TICKS_MAX: u32 = 8;

#[derive(Clone, Debug)]
enum Op {
    Insert { client: u8, local: u8, mode: Mode, protocol: Protocol, timeout: u32 },
    Remove(usize),
    Packet(usize),
    Timeout(usize, u32),
    State(usize, State),
    Pass(u32),
    Expire { budget: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let mode = prop::sample::select(&Mode::ALL[..]);
    let protocol = prop::sample::select(&[Protocol::Tcp, Protocol::Udp][..]);
    let timeout = prop_oneof![3 => 1u32..200, 1 => 1000u32..40_000];
    let insert = (0u8..30, 0u8..30, mode, protocol, timeout.clone());
    prop_oneof![
        6 => insert.prop_map(|(client, local, mode, protocol, timeout)| {
            Op::Insert { client, local, mode, protocol, timeout }
        }),
        1 => any::<usize>().prop_map(Op::Remove),
        4 => any::<usize>().prop_map(Op::Packet),
        2 => (any::<usize>(), timeout).prop_map(|(which, timeout)| Op::Timeout(which, timeout)),
        4 => (any::<usize>(), prop::sample::select(&State::ALL[..]))
            .prop_map(|(which, state)| Op::State(which, state)),
        3 => prop_oneof![3 => 0u32..50, 1 => 0u32..50_000].prop_map(Op::Pass),
        1 => (0usize..4).prop_map(|budget| Op::Expire { budget }),
    ]
}

/// The model: live connections with their ids.
struct Model {
    table: Table<V4>,
    live: Vec<(ConnId, Conn<V4>)>,
    now: Ticks,
}

impl Model {
    fn new(start: Ticks) -> Self {
        Self { table: Table::new(CAPACITY, [3, 4]).unwrap(), live: Vec::new(), now: start }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Insert { client, local, mode, protocol, timeout } => {
                self.insert(conn(client, local, mode, protocol, timeout));
            }
            Op::Remove(which) => {
                if let Some((id, conn)) = self.choose(which).map(|place| self.live.remove(place)) {
                    assert_same(&self.table.remove(id), &conn);
                }
            }
            Op::Packet(which) => {
                self.hear(which, None);
            }
            Op::Timeout(which, timeout) => {
                if let Some(id) = self.hear(which, None) {
                    self.live.last_mut().unwrap().1.timeout = Ticks(timeout);
                    self.table.set_timeout(id, Ticks(timeout));
                }
            }
            Op::State(which, state) => {
                self.hear(which, Some(state));
            }
            Op::Pass(ticks) => {
                self.now = Ticks(self.now.0.wrapping_add(ticks));
                self.expire(usize::MAX);
                let late =
                    self.live.iter().find(|(_, conn)| self.idle(conn) >= conn.timeout.0 + LATE_TICKS_MAX);
                assert!(late.is_none(), "too late at {:?}: {late:?}", self.now);
            }
            Op::Expire { budget } => self.expire(budget),
        }
    }

    /// A packet of a connection, which moves it to `state`. Of those of one tick the one heard of last is the last.
    fn hear(&mut self, which: usize, state: Option<State>) -> Option<ConnId> {
        let (id, mut conn) = self.live.remove(self.choose(which)?);
        let state = state.unwrap_or(State::from_number(conn.state));
        (conn.last_seen, conn.state) = (self.now, state as u8);
        self.table.get_mut(id).last_seen = self.now;
        self.table.set_state(id, state);
        self.live.push((id, conn));
        Some(id)
    }

    fn insert(&mut self, conn: Conn<V4>) {
        let tuples = [Some(conn.request()), conn.reply()];
        let exists = tuples.into_iter().flatten().any(|tuple| self.find(&tuple).is_some())
            || conn.reply() == Some(conn.request());
        match self.table.insert(conn, self.now) {
            Ok(id) => {
                assert!(!exists && self.live.len() < CAPACITY);
                assert!(self.live.iter().all(|&(other, _)| other != id), "{id:?} is used twice");
                self.live.push((id, Conn { last_seen: self.now, ..conn }));
            }
            Err(InsertError::Exists) => assert!(exists),
            Err(InsertError::Full) => assert!(!exists && self.live.len() == CAPACITY),
        }
    }

    fn expire(&mut self, budget: usize) {
        let mut gone = Vec::new();
        let expired = self.table.expire(self.now, budget, |_, conn| gone.push(*conn));
        assert!(expired.visited <= budget && expired.removed == gone.len());
        for conn in gone {
            let place = self.live.iter().position(|(_, live)| live.request() == conn.request());
            let (_, live) = self.live.remove(place.expect("only live connections expire"));
            assert_same(&conn, &live);
            assert!(self.idle(&live) >= live.timeout.0, "too early at {:?}: {live:?}", self.now);
        }
    }

    fn check(&self) {
        assert_eq!(self.table.len(), self.live.len());
        for (id, conn) in &self.live {
            assert_same(self.table.get(*id), conn);
        }
        for client in 0..30 {
            for tuple in [Protocol::Tcp, Protocol::Udp]
                .map(|protocol| conn(client, client, Mode::Fullnat, protocol, 1))
                .iter()
                .flat_map(|conn| {
                    [conn.request(), conn.reply().unwrap(), conn.request().reversed(), nat_reply(conn)]
                })
            {
                let hash = self.table.hash(&tuple);
                assert_eq!(self.table.lookup(&tuple, hash), self.find(&tuple), "{tuple:?}");
                assert!(self.find(&tuple).is_none() || self.table.candidate(hash).is_some());
            }
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let local = conn(0, 0, Mode::Fullnat, protocol, 1);
            let over: Vec<_> =
                self.table.over(local.server, local.peer.address, protocol).map(|(id, _)| id).collect();
            assert_eq!(over, self.over(protocol));
        }
        let mut dumped = Vec::new();
        assert_eq!(self.table.scan(0, u32::MAX, |id, _| dumped.push(id)), None);
        let mut ids: Vec<_> = self.live.iter().map(|&(id, _)| id).collect();
        ids.sort_unstable();
        assert_eq!(dumped, ids);
    }

    fn find(&self, tuple: &Tuple<V4>) -> Option<Hit> {
        self.live.iter().find_map(|&(id, conn)| {
            let request = (conn.request() == *tuple).then_some(Direction::Request);
            let direction = request.or((conn.reply() == Some(*tuple)).then_some(Direction::Reply));
            direction.map(|direction| Hit { id, direction })
        })
    }

    /// FULLNAT connections that are over, the longest silent first.
    fn over(&self, protocol: Protocol) -> Vec<ConnId> {
        let over = |conn: &Conn<V4>| {
            let state = State::from_number(conn.state);
            (conn.mode(), conn.protocol(), state.is_over()) == (Mode::Fullnat, protocol, true)
        };
        let mut over: Vec<_> = self.live.iter().filter(|(_, conn)| over(conn)).collect();
        over.sort_by_key(|(_, conn)| std::cmp::Reverse(self.idle(conn)));
        over.into_iter().map(|&(id, _)| id).collect()
    }

    fn choose(&self, which: usize) -> Option<usize> {
        which.checked_rem(self.live.len())
    }

    fn idle(&self, conn: &Conn<V4>) -> u32 {
        self.now.since(conn.last_seen)
    }
}

fn conn(client: u8, local: u8, mode: Mode, protocol: Protocol, timeout: u32) -> Conn<V4> {
    let client = Endpoint::new(V4(0x0a00_0001), 1000 + u16::from(client));
    let local = Endpoint::new(V4(0x0a00_00c8), 2000 + u16::from(local));
    Conn {
        client,
        vip: Endpoint::new(V4(0xcb00_710a), 80),
        server: Endpoint::new(V4(0xc0a8_0001), 8080),
        peer: if mode == Mode::Fullnat { local } else { client },
        timeout: Ticks(timeout),
        mode: mode as u8,
        protocol: protocol.number(),
        ..Conn::new_zeroed()
    }
}

/// What the server sends to the client of `conn` in NAT.
fn nat_reply(conn: &Conn<V4>) -> Tuple<V4> {
    Tuple { src: conn.server, dst: conn.client, protocol: conn.protocol() }
}

fn assert_same(one: &Conn<V4>, other: &Conn<V4>) {
    assert_eq!((one.request(), one.reply()), (other.request(), other.reply()));
    assert_eq!((one.last_seen, one.timeout, one.mode), (other.last_seen, other.timeout, other.mode));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_does_what_a_list_of_connections_does(
        // Also shortly before ticks wrap.
        start in prop_oneof![any::<u32>(), Just(u32::MAX - 20_000), Just(0)],
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let mut model = Model::new(Ticks(start));
        for op in ops {
            model.apply(op);
            model.check();
        }
    }
}
