//! The way to a TUN server that is too narrow for what every link carries, learnt from routers (RFC 8201, RFC 2473 §7.1).
//!
//! When a router finds a tunnelled packet too big, the client is told and sends less; nothing is kept here. But no IPv6
//! sender can be asked for less than 1280 bytes, which are 1320 around. So where the way has room for less than that, we
//! remember it, and cut what does not fit. IPv4 needs nothing of the kind: what may be cut inside may be cut outside, by
//! any router (RFC 2003 §5.1).
//!
//! Each worker learns for itself: a packet is lost for it, and the sender repeats it. Connections to such a server have
//! no short way ([`crate::way`]); those that had one lose it with an error of their own.

use crate::conn::Ticks;
use crate::server::ServerId;

/// How long what was learnt holds. Then the way may have become wider (RFC 8201 §4: ten minutes).
const AGE: Ticks = Ticks::from_nanos(600_000_000_000);

/// What one worker has learnt, by server slot.
#[derive(Debug)]
pub(crate) struct PathMtus(Box<[Learnt]>);

#[derive(Clone, Copy, Debug, Default)]
struct Learnt {
    generation: u32,
    at: Ticks,
    /// 0: nothing.
    mtu: u16,
}

impl PathMtus {
    /// For server slots below `servers_max`. Nothing is known yet.
    pub(crate) fn new(servers_max: usize) -> Self {
        Self(vec![Learnt::default(); servers_max].into())
    }

    /// The MTU of the way to `server`, if it is known to be narrow.
    pub(crate) fn of(&self, server: ServerId, now: Ticks) -> Option<u16> {
        let learnt = self.0.get(server.slot as usize)?;
        let holds = learnt.mtu > 0 && learnt.generation == server.generation;
        (holds && now.since(learnt.at) < AGE.0).then_some(learnt.mtu)
    }

    /// A router says that the way to `server` has room for packets of `mtu` bytes. A wider one than known is not news: it
    /// is of another way, or from nobody.
    pub(crate) fn learn(&mut self, server: ServerId, mtu: u16, now: Ticks) {
        if self.of(server, now).is_some_and(|known| known < mtu) {
            return;
        }
        if let Some(learnt) = self.0.get_mut(server.slot as usize) {
            *learnt = Learnt { generation: server.generation, at: now, mtu };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: ServerId = ServerId { slot: 1, generation: 7 };

    #[test]
    fn what_was_learnt_holds_for_ten_minutes_and_for_that_server_alone() {
        let mut mtus = PathMtus::new(2);
        let learnt = Ticks(u32::MAX - 100);
        let after = |seconds: u64| Ticks(learnt.0.wrapping_add(Ticks::from_nanos(seconds * 1_000_000_000).0));
        assert_eq!(mtus.of(SERVER, learnt), None);
        mtus.learn(SERVER, 1300, learnt);
        assert_eq!(mtus.of(SERVER, after(599)), Some(1300));
        assert_eq!(mtus.of(SERVER, after(600)), None);
        for other in [ServerId { slot: 0, ..SERVER }, ServerId { generation: 8, ..SERVER }] {
            assert_eq!(mtus.of(other, learnt), None);
        }
    }

    #[test]
    fn a_way_becomes_narrower_at_once_and_wider_only_with_time() {
        let mut mtus = PathMtus::new(2);
        mtus.learn(SERVER, 1300, Ticks(0));
        mtus.learn(SERVER, 1310, Ticks(1));
        assert_eq!(mtus.of(SERVER, Ticks(1)), Some(1300));
        mtus.learn(SERVER, 1280, Ticks(2));
        assert_eq!(mtus.of(SERVER, Ticks(2)), Some(1280));
        mtus.learn(SERVER, 1310, Ticks(2 + AGE.0));
        assert_eq!(mtus.of(SERVER, Ticks(2 + AGE.0)), Some(1310));
        mtus.learn(ServerId { slot: 2, generation: 1 }, 1280, Ticks(3));
    }
}
