//! The states of a connection and how packets move it between them.

/// Where a connection stands. LVS's states (include/net/ip_vs.h), and one for UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// Nothing seen yet.
    None,
    /// Data may flow.
    Established,
    /// A SYN from the server's side.
    SynSent,
    /// A SYN from the client, unanswered or unacknowledged.
    SynRecv,
    /// One side has closed.
    FinWait,
    /// Both sides have closed.
    TimeWait,
    /// Reset.
    Close,
    /// The client has closed, the server has not.
    CloseWait,
    /// Waiting for the last ACK.
    LastAck,
    /// Unused by packets; kept because LVS has it.
    Listen,
    /// SYN cookies: answered on behalf of the server.
    SynAck,
    /// Not TCP.
    Udp,
}

impl State {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::None,
        Self::Established,
        Self::SynSent,
        Self::SynRecv,
        Self::FinWait,
        Self::TimeWait,
        Self::Close,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::SynAck,
        Self::Udp,
    ];
}
