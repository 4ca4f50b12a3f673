//! Which connection gives way when the table is full: half-open ones first, then closing ones, then idle datagram flows.
//! An established TCP connection never does: what asks for room is a first packet, which anybody can send.

use super::{Conn, ConnFlags, ConnId, State, Table, Ticks};
use crate::tuple::Address;

/// Why a connection may give way. In this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GivesWay {
    /// Nobody has shown yet that somebody is there: a handshake under way, a single datagram.
    HalfOpen,
    /// It is over and kept for what may still come; or one side has closed, and nothing has come for [`IDLE`].
    Closing,
    /// Datagrams that have not come for [`IDLE`].
    Idle,
}

/// How long nothing must have come for a flow of datagrams, or a half-closed connection, to give way: 10 s.
pub const IDLE: Ticks = Ticks::from_nanos(10_000_000_000);

impl GivesWay {
    /// Why `conn` may give way at `now`; `None` when it may not.
    pub fn of<A: Address>(conn: &Conn<A>, now: Ticks) -> Option<Self> {
        // The record is how its packets find the worker they belong to.
        if conn.flags.has(ConnFlags::MOVED) {
            return None;
        }
        let idle = now.since(conn.last_seen) >= IDLE.0;
        match State::from_number(conn.state) {
            State::Established => None,
            State::None | State::SynSent | State::SynRecv | State::SynAck => Some(Self::HalfOpen),
            State::TimeWait | State::Close | State::LastAck | State::Listen => Some(Self::Closing),
            // The other direction may be a long download.
            State::FinWait | State::CloseWait => idle.then_some(Self::Closing),
            State::Udp if !conn.flags.has(ConnFlags::AGAIN) => Some(Self::HalfOpen),
            State::Udp => idle.then_some(Self::Idle),
        }
    }
}

/// Goes round a full table in search of room.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hand {
    /// The record looked at next.
    at: u32,
}

/// Neighbouring records compared with each other: enough to find a good one, few enough to be read at once.
const SAMPLE: u32 = 32;

/// Samples looked at in one search. Where one connection in twenty may give way, one search in seven hundred fails.
const SAMPLES_MAX: u32 = 4;

impl Hand {
    /// Which connection of `table` gives way at `now`: of the next sample that has any, the one of the first class, and
    /// among those the one idle for longest. `None` when a bounded number of samples has none.
    pub fn find<A: Address>(&mut self, table: &Table<A>, now: Ticks) -> Option<(GivesWay, ConnId)> {
        (0..SAMPLES_MAX).find_map(|_| {
            let mut best = None;
            let next = table.scan(self.at, SAMPLE, |id, conn| {
                if let Some(why) = GivesWay::of(conn, now) {
                    let rank = (why, u32::MAX - now.since(conn.last_seen));
                    if best.is_none_or(|(best, _)| rank < best) {
                        best = Some((rank, id));
                    }
                }
            });
            self.at = next.unwrap_or(0);
            best.map(|((why, _), id)| (why, id))
        })
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::tuple::{Endpoint, Protocol, V4};

    const NOW: Ticks = Ticks(100_000);

    /// Connection number `i` in `state`, silent for `idle` ticks.
    fn conn(i: u32, state: State, idle: u32) -> Conn<V4> {
        let protocol = if state == State::Udp { Protocol::Udp } else { Protocol::Tcp };
        Conn {
            client: Endpoint::new(V4(0x0a00_0000 + i), 1000),
            vip: Endpoint::new(V4(0xcb00_710a), 80),
            server: Endpoint::new(V4(0xc0a8_0001), 8080),
            peer: Endpoint::new(V4(0x0a00_0000 + i), 1000),
            timeout: Ticks(1 << 20),
            last_seen: Ticks(NOW.0 - idle),
            state: state as u8,
            protocol: protocol.number(),
            ..Conn::new_zeroed()
        }
    }

    fn table(conns: impl IntoIterator<Item = Conn<V4>>) -> Table<V4> {
        let conns: Vec<_> = conns.into_iter().collect();
        let mut table = Table::new(conns.len(), [1, 2]).unwrap();
        for conn in conns {
            table.insert(conn, conn.last_seen).unwrap();
        }
        table
    }

    #[test]
    fn half_open_ones_go_before_closing_ones_before_idle_ones_and_established_ones_never() {
        let again = |mut conn: Conn<V4>| {
            conn.flags.set(ConnFlags::AGAIN, true);
            conn
        };
        let mut table = table([
            conn(0, State::Established, 90_000),
            again(conn(1, State::Udp, 5_000)),
            conn(2, State::TimeWait, 100),
            conn(3, State::SynRecv, 1),
            conn(4, State::Udp, 0),
            conn(5, State::FinWait, 500),
            again(conn(6, State::Udp, IDLE.0 - 1)),
        ]);
        let mut hand = Hand::default();
        let mut order = Vec::new();
        while let Some((why, id)) = hand.find(&table, NOW) {
            order.push((why, table.remove(id).client.address.0 & 0xff));
        }
        use GivesWay::{Closing, HalfOpen, Idle};
        assert_eq!(order, [(HalfOpen, 3), (HalfOpen, 4), (Closing, 5), (Closing, 2), (Idle, 1)]);
        assert_eq!(table.len(), 2, "an established connection and a live flow stay");
    }

    #[test]
    fn every_state_but_established_gives_way() {
        for state in State::ALL {
            let expected = state != State::Established;
            assert_eq!(GivesWay::of(&conn(0, state, IDLE.0), NOW).is_some(), expected, "{state}");
        }
        for state in [State::FinWait, State::CloseWait] {
            assert_eq!(GivesWay::of(&conn(0, state, IDLE.0 - 1), NOW), None, "{state}: half of it is alive");
        }
        let mut moved = conn(0, State::SynRecv, 0);
        moved.flags.set(ConnFlags::MOVED, true);
        assert_eq!(GivesWay::of(&moved, NOW), None);
    }

    #[test]
    fn the_hand_goes_round_and_looks_at_a_bounded_number_of_records() {
        let records = 10 * SAMPLE;
        let half_open = 7 * SAMPLE + 3;
        let state = |i| if i == half_open { State::SynRecv } else { State::Established };
        let table = table((0..records).map(|i| conn(i, state(i), 0)));
        let mut hand = Hand::default();
        let found: Vec<_> = (0..10).map(|_| hand.find(&table, NOW).map(|(_, id)| id.0)).collect();
        // Four samples per search: the one that has it is the eighth, and then the eighteenth and twenty-eighth.
        let hit = Some(half_open);
        assert_eq!(found[..2], [None, hit]);
        assert_eq!(found.iter().filter(|found| **found == hit).count(), 3, "{found:?}");
    }

    #[test]
    fn where_one_connection_in_eight_may_go_every_search_finds_one() {
        // Spread as a table in use spreads them, by a fixed pseudo-random order.
        let state = |i: u32| match i.wrapping_mul(0x9e37_79b1) >> 28 {
            0 | 1 => State::SynRecv,
            _ => State::Established,
        };
        let table = table((0..10_000).map(|i| conn(i, state(i), i % 100)));
        let mut hand = Hand::default();
        assert!((0..1000).all(|_| hand.find(&table, NOW).is_some()));
    }
}
