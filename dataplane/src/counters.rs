//! What a worker counts: events by name, and traffic by server slot.

use crate::verdict::{DropReason, named};

named! {
    /// Things that happen on the packet path and are not drops.
    Event {
        PacketsIn = "packets_in": "frames classified as ours",
        NotOurs = "not_ours": "frames given back to the kernel",
        ConnectionsOpened = "connections_opened": "connections created",
        ConnectionsExpired = "connections_expired": "connections removed by their timeout",
        ConnectionsReused = "connections_reused": "connections replaced by a new SYN on the same tuple",
        ResetsSent = "resets_sent": "TCP RST originated for packets without a connection",
        ResetsSuppressed = "resets_suppressed": "TCP RST not sent because of the rate limit",
        IcmpSent = "icmp_sent": "ICMP errors originated",
        IcmpSuppressed = "icmp_suppressed": "ICMP errors not sent because of the rate limit or a lack of buffers",
        PacketsFragmented = "packets_fragmented": "packets cut into fragments for the next hop",
        FragmentsSent = "fragments_sent": "fragments originated",
        FragmentsFollowed = "fragments_followed": "later fragments forwarded like their first",
        FragmentsHeld = "fragments_held": "later fragments kept until their first arrived",
        HandedOff = "handed_off": "packets handed to the worker that owns their flow",
        PortProbes = "port_probes": "extra tries to find a free local port",
    }
}

/// Number of event and drop counters together.
pub const GLOBAL: usize = Event::ALL.len() + DropReason::ALL.len();

/// Index of an event in a worker's counters.
pub const fn event(event: Event) -> usize {
    event as usize
}

/// Index of a drop reason in a worker's counters.
pub const fn drop_reason(reason: DropReason) -> usize {
    Event::ALL.len() + reason as usize
}

named! {
    /// What is counted per server.
    ServerField {
        Active = "active": "live connections in an active state (LVS: ActiveConn)",
        Inactive = "inactive": "live connections in any other state (LVS: InActConn)",
        Connections = "connections": "connections opened so far",
        PacketsIn = "packets_in": "packets sent to the server",
        BytesIn = "bytes_in": "bytes sent to the server, layer 3",
        PacketsOut = "packets_out": "packets from the server to clients",
        BytesOut = "bytes_out": "bytes from the server to clients, layer 3",
    }
}

/// Counters per server slot.
pub const PER_SERVER: usize = ServerField::ALL.len();

/// Index of a server's counter in a worker's counters.
#[inline]
pub const fn server(slot: u32, field: ServerField) -> usize {
    GLOBAL + slot as usize * PER_SERVER + field as usize
}

/// Length of a worker's counters for `servers` slots.
pub const fn len(servers: usize) -> usize {
    GLOBAL + servers * PER_SERVER
}
