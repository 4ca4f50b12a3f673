//! The states of a connection and how packets move it between them: LVS's tables, cell by cell.
//!
//! Read net/netfilter/ipvs/ip_vs_proto_tcp.c (`tcp_states`, `set_tcp_state`) beside this file.

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

/// Which of a connection's packets this director sees, and whose packet this one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// A client's packet, where both directions pass (NAT, FULLNAT).
    Input,
    /// A server's packet.
    Output,
    /// A client's packet, where answers go another way (DR, TUN): every step rests on the client's word.
    InputOnly,
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

    /// The state with this number (as stored in connection records); an unknown number is [`State::None`].
    #[inline]
    pub const fn from_number(number: u8) -> Self {
        if (number as usize) < Self::ALL.len() { Self::ALL[number as usize] } else { Self::None }
    }

    /// The name LVS prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::FinWait => "FIN_WAIT",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::SynAck => "SYNACK",
            Self::Udp => "UDP",
        }
    }

    /// Whether a connection in this state counts as active at its server (LVS: ActiveConn); all others are inactive.
    #[inline]
    pub const fn is_active(self) -> bool {
        match self {
            Self::Established | Self::SynSent | Self::SynRecv | Self::SynAck => true,
            Self::None
            | Self::FinWait
            | Self::TimeWait
            | Self::Close
            | Self::CloseWait
            | Self::LastAck
            | Self::Listen
            | Self::Udp => false,
        }
    }

    /// Whether nothing but late segments is to come.
    #[inline]
    pub const fn is_over(self) -> bool {
        match self {
            Self::TimeWait | Self::Close | Self::LastAck | Self::Listen => true,
            Self::None
            | Self::Established
            | Self::SynSent
            | Self::SynRecv
            | Self::FinWait
            | Self::CloseWait
            | Self::SynAck
            | Self::Udp => false,
        }
    }

    /// Whether the two sides have not agreed on a connection yet: one that ends like this never was.
    pub const fn is_half_open(self) -> bool {
        match self {
            Self::None | Self::SynSent | Self::SynRecv | Self::SynAck | Self::Listen => true,
            Self::Established
            | Self::FinWait
            | Self::TimeWait
            | Self::Close
            | Self::CloseWait
            | Self::LastAck
            | Self::Udp => false,
        }
    }

    /// The state after a packet with TCP `flags` (the byte of the header). RST counts before SYN, SYN before FIN, FIN
    /// before ACK; a segment with none of them closes, as in LVS. UDP has one state and stays in it.
    #[inline]
    #[must_use]
    pub const fn next(self, view: View, flags: u8) -> Self {
        if matches!(self, Self::Udp) {
            return self;
        }
        let row = if flags & RST != 0 {
            3
        } else if flags & SYN != 0 {
            0
        } else if flags & FIN != 0 {
            1
        } else if flags & ACK != 0 {
            2
        } else {
            return Self::Close;
        };
        let table = match view {
            View::Input => &INPUT,
            View::Output => &OUTPUT,
            View::InputOnly => &INPUT_ONLY,
        };
        table[row][self as usize]
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.pad(self.name())
    }
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Rows: what the packet says. Columns: the state before.
type Table = [[State; 11]; 4];

use State::{
    Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, Listen as LI, None as NO,
    SynAck as SA, SynRecv as SR, SynSent as SS, TimeWait as TW,
};

/// The columns: a state's number is its column.
const COLUMNS: [State; 11] = [NO, ES, SS, SR, FW, TW, CL, CW, LA, LI, SA];

const _: () = {
    let mut column = 0;
    while column < COLUMNS.len() {
        assert!(COLUMNS[column] as usize == column);
        column += 1;
    }
};

const INPUT: Table = [
    // NO ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR], // SYN
    [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW], // FIN
    [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES], // ACK
    [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR], // RST
];

const OUTPUT: Table = [
    // NO ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR], // SYN
    [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW], // FIN
    [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES], // ACK
    [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL], // RST
];

const INPUT_ONLY: Table = [
    // NO ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR], // SYN
    [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW], // FIN
    [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES], // ACK
    [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL], // RST
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The three tables as the kernel's documentation words them, typed a second time.
    const TEXT: &str = "
        INPUT      NO ES SS SR FW TW CL CW LA LI SA
        syn        SR ES ES SR SR SR SR SR SR SR SR
        fin        CL CW SS TW TW TW CL CW LA LI TW
        ack        ES ES SS ES FW TW CL CW CL LI ES
        rst        CL CL CL SR CL CL CL CL LA LI SR
        OUTPUT     NO ES SS SR FW TW CL CW LA LI SA
        syn        SS ES SS SR SS SS SS SS SS LI SR
        fin        TW FW SS TW FW TW CL TW LA LI TW
        ack        ES ES SS ES FW TW CL CW LA ES ES
        rst        CL CL SS CL CL TW CL CL CL CL CL
        INPUT-ONLY NO ES SS SR FW TW CL CW LA LI SA
        syn        SR ES ES SR SR SR SR SR SR SR SR
        fin        CL FW SS TW FW TW CL CW LA LI TW
        ack        ES ES SS ES FW TW CL CW CL LI ES
        rst        CL CL CL SR CL CL CL CL LA LI CL";

    fn state(word: &str) -> State {
        match word {
            "NO" => State::None,
            "ES" => State::Established,
            "SS" => State::SynSent,
            "SR" => State::SynRecv,
            "FW" => State::FinWait,
            "TW" => State::TimeWait,
            "CL" => State::Close,
            "CW" => State::CloseWait,
            "LA" => State::LastAck,
            "LI" => State::Listen,
            "SA" => State::SynAck,
            other => panic!("{other}"),
        }
    }

    /// The state after `packets`, each a view (`c` client, `s` server, `d` client in DR) and flag letters.
    fn after(packets: &str) -> State {
        packets.split_whitespace().fold(State::None, |state, packet| {
            let (view, flags) = packet.split_at(1);
            let view = match view {
                "c" => View::Input,
                "s" => View::Output,
                _ => View::InputOnly,
            };
            let flags = flags.chars().fold(0, |flags, letter| {
                flags
                    | match letter {
                        'S' => SYN,
                        'F' => FIN,
                        'R' => RST,
                        _ => ACK,
                    }
            });
            state.next(view, flags)
        })
    }

    #[test]
    fn every_cell_is_the_kernels() {
        let (mut view, mut columns, mut cells) = (View::Input, Vec::new(), 0);
        for line in TEXT.lines().skip(1) {
            let mut words = line.split_whitespace();
            let head = words.next().unwrap();
            let row: Vec<State> = words.map(state).collect();
            let flags = match head {
                "syn" => [SYN, SYN | ACK, SYN | FIN],
                "fin" => [FIN, FIN | ACK, FIN | ACK | 0x08],
                "ack" => [ACK, ACK | 0x08, ACK | 0xe0],
                "rst" => [RST, RST | ACK, RST | SYN | FIN | ACK],
                title => {
                    view = match title {
                        "INPUT" => View::Input,
                        "OUTPUT" => View::Output,
                        _ => View::InputOnly,
                    };
                    columns = row;
                    continue;
                }
            };
            for (&before, &expected) in columns.iter().zip(&row) {
                for flags in flags {
                    assert_eq!(before.next(view, flags), expected, "{view:?} {head} in {before}");
                    cells += 1;
                }
            }
        }
        assert_eq!(cells, 3 * 4 * 11 * 3);
    }

    #[test]
    fn a_segment_without_flags_closes_and_udp_has_one_state() {
        for view in [View::Input, View::Output, View::InputOnly] {
            assert_eq!(State::Established.next(view, 0), State::Close);
            assert_eq!(State::Established.next(view, 0x08 | 0x20), State::Close);
            assert_eq!(State::Udp.next(view, 0xff), State::Udp);
        }
    }

    #[test]
    fn a_handshake_establishes() {
        assert_eq!(after("cS"), State::SynRecv);
        assert_eq!(after("cS sSA"), State::SynRecv);
        assert_eq!(after("cS sSA cA"), State::Established);
        assert_eq!(after("cS sSA cA sA cA"), State::Established);
    }

    #[test]
    fn in_direct_mode_the_clients_ack_establishes() {
        assert_eq!(after("dS"), State::SynRecv);
        assert_eq!(after("dS dA"), State::Established);
    }

    #[test]
    fn a_close_by_either_side_ends_in_time_wait() {
        assert_eq!(after("cS sSA cA cFA"), State::CloseWait);
        assert_eq!(after("cS sSA cA cFA sA sFA"), State::TimeWait);
        assert_eq!(after("cS sSA cA cFA sA sFA cA"), State::TimeWait);
        assert_eq!(after("cS sSA cA sFA"), State::FinWait);
        assert_eq!(after("cS sSA cA sFA cA cFA"), State::TimeWait);
        assert_eq!(after("cS sSA cA sFA cA cFA sA"), State::TimeWait);
    }

    #[test]
    fn a_simultaneous_close_ends_in_time_wait() {
        assert_eq!(after("cS sSA cA cFA sFA"), State::TimeWait);
        assert_eq!(after("cS sSA cA sFA cFA"), State::TimeWait);
    }

    #[test]
    fn in_direct_mode_a_close_stays_in_fin_wait() {
        assert_eq!(after("dS dA dFA"), State::FinWait);
        assert_eq!(after("dS dA dFA dA"), State::FinWait);
    }

    #[test]
    fn a_reset_closes_but_a_client_cannot_reset_what_no_server_has_answered() {
        assert_eq!(after("cS sSA cA cR"), State::Close);
        assert_eq!(after("cS sSA cA sR"), State::Close);
        assert_eq!(after("cS sRA"), State::Close);
        assert_eq!(after("cS cR"), State::SynRecv);
        assert_eq!(after("dS dA dR"), State::Close);
    }

    #[test]
    fn a_new_syn_on_a_closed_connection_starts_again() {
        assert_eq!(after("cS sSA cA cFA sFA cS"), State::SynRecv);
        assert_eq!(after("cS sSA cA cR cS"), State::SynRecv);
    }

    #[test]
    fn active_is_what_lvs_calls_active() {
        let active: Vec<_> = State::ALL.into_iter().filter(|state| state.is_active()).collect();
        assert_eq!(active, [State::Established, State::SynSent, State::SynRecv, State::SynAck]);
    }

    #[test]
    fn states_survive_their_number_and_have_names_of_their_own() {
        assert!(State::ALL.into_iter().all(|state| State::from_number(state as u8) == state));
        assert_eq!(State::from_number(200), State::None);
        let mut names: Vec<_> = State::ALL.into_iter().map(State::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), State::ALL.len());
        assert_eq!(format!("{:<11}|", State::SynRecv), "SYN_RECV   |");
    }
}
