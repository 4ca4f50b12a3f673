//! What a worker counts: events and gauges by name, and traffic by server slot.

use shunt_engine::counters::Counters;

use crate::server::ServerId;
use crate::verdict::{DropReason, named};

named! {
    /// Things that happen on the packet path and are not drops.
    Event {
        Forwarded = "forwarded": "packets sent on to a server or client",
        NotOurs = "not_ours": "frames given back to the kernel",
        ConnectionsOpened = "connections_opened": "connections created",
        ConnectionsExpired = "connections_expired": "connections removed by their timeout",
        ConnectionsReused = "connections_reused": "connections replaced by a new SYN on the same tuple",
        ConnectionsRescheduled = "connections_rescheduled": "connections whose server was gone or down, opened anew by their next packet",
        DatagramsScheduled = "datagrams_scheduled": "datagrams scheduled alone, without a connection (one_packet)",
        TemplatesFollowed = "templates_followed": "connections sent to the server that persistence remembers for their client",
        TemplatesMoved = "templates_moved": "clients remembered with another server from now on, because theirs is gone, down or drained",
        TemplatesOverflowed = "templates_overflowed": "connections of a remembered client sent elsewhere because its server was full",
        TemplatesRefused = "templates_refused": "connections whose client could not be remembered for lack of room",
        ConnectionsDrained = "connections_drained": "connections ended because their server's time to drain was over",
        DrainProbes = "drain_probes": "segments sent to silent sides of such connections, so that they say what RST they accept",
        HalfOpenEvicted = "half_open_evicted": "half-open connections that gave way to new ones because the table was full",
        ClosingEvicted = "closing_evicted": "closing connections that gave way to new ones because the table was full",
        IdleEvicted = "idle_evicted": "idle flows of datagrams that gave way to new ones because the table was full",
        PortsReused = "ports_reused": "local ports taken from closing or half-open connections because none was free",
        ResetsSent = "resets_sent": "TCP RST originated for packets without a connection, or for both sides of a drained one",
        ResetsSuppressed = "resets_suppressed": "TCP RST not sent because of the rate limit, a lack of buffers, or a sender that is no single host",
        IcmpSent = "icmp_sent": "ICMP errors originated",
        IcmpSuppressed = "icmp_suppressed": "ICMP errors not sent because of the rate limit, a lack of buffers, or a sender that is no single host",
        PacketsFragmented = "packets_fragmented": "packets cut into fragments for the next hop",
        FragmentsSent = "fragments_sent": "fragments originated",
        FragmentsFollowed = "fragments_followed": "later fragments forwarded like their first",
        FragmentsHeld = "fragments_held": "later fragments kept until their first arrives",
        FragmentsUnknown = "fragments_unknown": "held fragments given to the kernel because their first did not come",
        IcmpForwarded = "icmp_forwarded": "ICMP errors about our flows passed on, translated",
        PathMtusLearnt = "path_mtus_learnt": "packets to servers in IPv6 tunnels found too big on the way, though every link must carry what is inside: such are cut from then on",
        HandedOff = "handed_off": "packets handed to the worker that owns their flow",
        DestinationsEvicted = "destinations_evicted": "destinations that lblc and lblcr forgot for lack of room",
        PortProbes = "port_probes": "extra tries to find a free local port",
    }
}

named! {
    /// What goes up and down.
    Gauge {
        ConnectionsV4 = "connections_ipv4": "records in use in the table of IPv4 connections",
        ConnectionsV6 = "connections_ipv6": "records in use in the table of IPv6 connections",
    }
}

/// Number of events, drop reasons and gauges together.
pub const GLOBAL: usize = Event::ALL.len() + DropReason::ALL.len() + Gauge::ALL.len();

/// Index of an event in a worker's counters.
pub const fn event(event: Event) -> usize {
    event as usize
}

/// Index of a drop reason in a worker's counters.
pub const fn drop_reason(reason: DropReason) -> usize {
    Event::ALL.len() + reason as usize
}

/// Index of a gauge in a worker's counters.
pub const fn gauge(gauge: Gauge) -> usize {
    Event::ALL.len() + DropReason::ALL.len() + gauge as usize
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
        Failures = "failures": "connections the server refused (RST) or did not answer, and datagrams answered with ICMP unreachable, in modes whose answers pass here",
    }
}

/// Counters per server slot.
pub const PER_SERVER: usize = ServerField::ALL.len();

// A packet and its bytes are counted side by side.
const _: () = {
    assert!(ServerField::BytesIn as usize == ServerField::PacketsIn as usize + 1);
    assert!(ServerField::BytesOut as usize == ServerField::PacketsOut as usize + 1);
};

/// Index of a server's counter in a worker's counters.
#[inline]
pub const fn server(slot: u32, field: ServerField) -> usize {
    GLOBAL + slot as usize * PER_SERVER + field as usize
}

/// Length of a worker's counters for `servers` slots.
pub const fn len(servers: usize) -> usize {
    GLOBAL + servers * PER_SERVER
}

/// Counters of one worker with the tenant of each server slot: what is left of an older tenant is not added to the
/// newer one's.
#[derive(Debug)]
pub struct WorkerCounters {
    counters: Counters,
    generations: Box<[u32]>,
    /// Slots that ever had a tenant are below.
    slots: usize,
}

impl WorkerCounters {
    /// Counters for `servers` slots, at zero.
    pub fn new(servers: usize) -> Self {
        Self { counters: Counters::new(len(servers)), generations: vec![0; servers].into(), slots: 0 }
    }

    /// The counters themselves.
    pub fn raw(&self) -> &Counters {
        &self.counters
    }

    /// How many of them there are without those of server slots that never had a tenant.
    pub fn in_use(&self) -> usize {
        len(self.slots)
    }

    /// Counts an event.
    #[inline]
    pub fn event(&mut self, which: Event) {
        self.counters.bump(event(which));
    }

    /// Counts `amount` events.
    pub fn events(&mut self, which: Event, amount: u64) {
        self.counters.add(event(which), amount);
    }

    /// Sets a gauge.
    #[inline]
    pub fn gauge(&mut self, which: Gauge, value: usize) {
        self.counters.set(gauge(which), value as u64);
    }

    /// Counts a drop.
    #[inline]
    pub fn drop(&mut self, reason: DropReason) {
        self.counters.bump(drop_reason(reason));
    }

    /// Makes `id` the tenant of its slot; a new tenant starts at zero. Returns whether it is new.
    pub fn tenant(&mut self, id: ServerId) -> bool {
        // The first tenants' generation is that of empty slots.
        self.slots = self.slots.max(id.slot as usize + 1);
        let generation = &mut self.generations[id.slot as usize];
        let is_new = *generation != id.generation;
        if is_new {
            *generation = id.generation;
            for &field in ServerField::ALL {
                self.counters.set(server(id.slot, field), 0);
            }
        }
        is_new
    }

    /// Adds to a counter of server `id`, if it is still its slot's tenant.
    #[inline]
    pub fn server_add(&mut self, id: ServerId, field: ServerField, amount: u64) {
        if self.generations[id.slot as usize] == id.generation {
            self.counters.add(server(id.slot, field), amount);
        }
    }

    /// Counts a packet of `bytes` to (or else from) server `id`, if it is still its slot's tenant.
    #[inline]
    pub fn server_packet(&mut self, id: ServerId, to_server: bool, bytes: u64) {
        if self.generations[id.slot as usize] == id.generation {
            let packets = if to_server { ServerField::PacketsIn } else { ServerField::PacketsOut };
            self.counters.add_pair(server(id.slot, packets), [1, bytes]);
        }
    }

    /// The same for a server that is known to be its slot's tenant.
    #[inline]
    pub fn packet_of_known(&mut self, id: ServerId, to_server: bool, bytes: u64) {
        debug_assert_eq!(self.generations[id.slot as usize], id.generation);
        let packets = if to_server { ServerField::PacketsIn } else { ServerField::PacketsOut };
        self.counters.add_pair(server(id.slot, packets), [1, bytes]);
    }

    /// Takes from a counter of server `id`, if it is still its slot's tenant.
    #[inline]
    pub fn server_sub(&mut self, id: ServerId, field: ServerField, amount: u64) {
        if self.generations[id.slot as usize] == id.generation {
            self.counters.sub(server(id.slot, field), amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_tenant_of_a_slot_starts_at_zero_and_the_old_one_no_longer_counts() {
        let mut counters = WorkerCounters::new(2);
        let (old, new) = (ServerId { slot: 1, generation: 1 }, ServerId { slot: 1, generation: 2 });
        assert!(counters.tenant(old) && !counters.tenant(old));
        counters.server_add(old, ServerField::Active, 3);
        assert!(counters.tenant(new));
        counters.server_sub(old, ServerField::Active, 3);
        counters.server_add(new, ServerField::Active, 1);
        assert_eq!(counters.raw().get(server(1, ServerField::Active)), 1);
    }
}
