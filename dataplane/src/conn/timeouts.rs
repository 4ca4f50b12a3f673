//! Idle timeouts per state, LVS's defaults.

use shunt_engine::Duration;

use super::{State, Ticks};

/// How long a connection may be idle in each state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    by_state: [Duration; State::ALL.len()],
}

impl Default for Timeouts {
    /// The kernel's TCP timeouts and UDP's 300 s (net/netfilter/ipvs/ip_vs_proto_tcp.c, ip_vs_proto_udp.c).
    fn default() -> Self {
        let seconds = |state| match state {
            State::None => 2,
            State::Established => 900,
            State::SynSent | State::FinWait | State::TimeWait | State::Listen | State::SynAck => 120,
            State::SynRecv | State::CloseWait => 60,
            State::Close => 10,
            State::LastAck => 30,
            State::Udp => 300,
        };
        Self { by_state: State::ALL.map(|state| Duration::from_secs(seconds(state))) }
    }
}

impl Timeouts {
    /// The idle timeout in `state`.
    pub const fn get(&self, state: State) -> Duration {
        self.by_state[state as usize]
    }

    /// Changes the idle timeout in `state`.
    pub const fn set(&mut self, state: State, timeout: Duration) {
        self.by_state[state as usize] = timeout;
    }

    /// The idle timeout in `state`, in ticks: one more than it fills, because a record's `last_seen` is rounded down and
    /// a connection must not go early.
    #[inline]
    pub fn ticks(&self, state: State) -> Ticks {
        Ticks(Ticks::from_nanos(self.get(state).as_nanos()).0 + 1)
    }
}
