//! What becomes of a packet, and why it was dropped if it was. Every reason has a counter of its own and a row in the
//! packet fixtures.

use shunt_engine::{PortId, Verdict, WorkerId};

/// What becomes of a packet: engine's [`Verdict`] with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It leaves by this port.
    Forward(PortId),
    /// It is the kernel's.
    Punt,
    /// Its flow lives on this worker.
    Handoff(WorkerId),
    /// It waits for something and is kept.
    Hold,
    /// Other frames have left in its place: its fragments.
    Replaced,
    /// It goes no further.
    Drop(DropReason),
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Forward(port) => Self::Forward(port),
            Decision::Punt => Self::Punt,
            Decision::Handoff(worker) => Self::Handoff(worker),
            Decision::Hold => Self::Hold,
            Decision::Replaced | Decision::Drop(_) => Self::Drop,
        }
    }
}

/// Defines an enum with a stable name and a sentence per variant.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal: $sentence:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $(#[doc = $sentence] $variant,)* }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in counters and output.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// What it means, in a sentence.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => $sentence),* }
            }
        }
    };
}
pub(crate) use named;

named! {
    /// Why a packet that was ours went no further.
    DropReason {
        BadIpChecksum = "bad_ip_checksum": "the IPv4 header checksum is wrong",
        BadLength = "bad_length": "a length in the headers contradicts the frame or another header",
        TooManyHeaders = "too_many_headers": "more IPv6 extension headers than are walked over",
        Truncated = "truncated": "the transport header is cut off",
        TtlExceeded = "ttl_exceeded": "the TTL ran out here; an ICMP time exceeded went back",
        MtuExceeded = "mtu_exceeded": "too big for the next hop and not to be fragmented; an ICMP fragmentation needed went back",
        BadSource = "bad_source": "the source of a packet that would open a connection is no host's address, or one of ours",
        OutOfState = "out_of_state": "no connection, and the packet cannot open one",
        NoServer = "no_server": "the service has no server to give; an ICMP port unreachable went back",
        ServerGone = "server_gone": "the connection's server is no longer configured",
        Drained = "drained": "its server's time to drain is over; the connection is being reset on both sides",
        TableFull = "table_full": "the connection table is full, and nothing in it gives way",
        TupleTaken = "tuple_taken": "the server's answers could not be told from those of another connection (NAT: one client port, two VIPs, one server)",
        NoLocalPort = "no_local_port": "no local address and port is free towards the server",
        NoRoute = "no_route": "no route to the next hop",
        NoNeighbour = "no_neighbour": "the next hop's link address is not known (yet)",
        NoBuffer = "no_buffer": "no free buffer for a packet that had to be originated or kept",
        NoHeadroom = "no_headroom": "no room in the buffer to encapsulate",
        FragmentsFull = "fragments_full": "a later fragment came before its first and the store of waiting ones is full",
        HandoffLoop = "handoff_loop": "two workers disagree about who owns the flow",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit_a_metric() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }

    #[test]
    fn numbers_follow_the_order() {
        assert!(DropReason::ALL.iter().enumerate().all(|(number, &reason)| reason as usize == number));
    }
}
