//! A packet that opens a connection: to which server, from which local port, in which state.

use shunt_engine::Frame;

use crate::choose::{Choice, choose};
use crate::classify::{Fragmentation, Meta, Packet};
use crate::conn::{Conn, ConnFlags, Deltas, Direction, Hit, State};
use crate::counters::{Event, ServerField};
use crate::flow::{Context, Flows, load_fields, view};
use crate::ip::Ip;
use crate::scheduler::Pools;
use crate::server::{Mode, Server};
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::transmit;
use crate::tuple::{Endpoint, Protocol, Tuple};
use crate::verdict::{Decision, DropReason};

impl<A: Ip> Flows<A> {
    /// Opens a connection of `service` by its first packet, and sends that on.
    pub(crate) fn open(
        &mut self,
        cx: &mut Context<'_, '_>,
        service: &Service,
        packet: &Packet<A>,
        frame: &mut Frame,
    ) -> Decision {
        if !may_be_client(packet.tuple.src.address, cx.snapshot) {
            return Decision::Drop(DropReason::BadSource);
        }
        let Some(choice) = choose(cx, service, &packet.tuple) else {
            transmit::unreachable::<A>(cx, &packet.meta, frame);
            return Decision::Drop(DropReason::NoServer);
        };
        let server = choice.server;
        let opened = match self.new_conn(cx, service, server, packet) {
            Ok(mut conn) if service.one_packet && packet.meta.fragment == Fragmentation::Whole => {
                return alone(cx, &mut conn, service, choice, &packet.meta, frame);
            }
            Ok(mut conn) => {
                conn.flags.set(ConnFlags::TEMPLATE, choice.template.is_some());
                self.insert(cx, conn)
            }
            Err(reason) => Err(reason),
        };
        let id = match opened {
            Ok(id) => id,
            Err(reason) => {
                choice.give_back(cx);
                return Decision::Drop(reason);
            }
        };
        if let Some(template) = choice.template {
            self.held.hold(id, template);
        }
        cx.counters.tenant(server.id);
        cx.counters.event(Event::ConnectionsOpened);
        cx.counters.server_add(server.id, ServerField::Connections, 1);
        let active = self.table.get(id).flags.has(ConnFlags::ACTIVE);
        cx.counters.server_add(server.id, load_fields(active).0, 1);
        cx.shared.schedulers.opened(server.id, active);
        self.foresee(cx, service, &packet.tuple);
        self.pass(cx, Hit { id, direction: Direction::Request }, server, &packet.meta, frame)
    }

    /// Fetches the bucket where the reply of the service's next connection is going to be, for its local port is chosen
    /// too late for that. A guess: another service, or worker, may come first.
    #[inline]
    fn foresee(&mut self, cx: &mut Context<'_, '_>, service: &Service, tuple: &Tuple<A>) {
        let pool = cx.snapshot.pools(service.id).map(Pools::of::<A>);
        let next = pool.and_then(|pool| cx.shared.schedulers.favourite::<A>(service.id, pool));
        if let Some(server) = next.and_then(|id| cx.snapshot.server(id))
            && server.mode == Mode::Fullnat
            && let Some(src) = target(server, tuple)
            && let Some(dst) = self.local_ports.peek(&service.locals, src, tuple.protocol)
        {
            self.table.prefetch_bucket(self.table.hash(&Tuple { src, dst, protocol: tuple.protocol }));
        }
    }

    fn new_conn(
        &mut self,
        cx: &mut Context<'_, '_>,
        service: &Service,
        server: &Server,
        packet: &Packet<A>,
    ) -> Result<Conn<A>, DropReason> {
        let tuple = &packet.tuple;
        let target = target(server, tuple).ok_or(DropReason::NoServer)?;
        let peer = match server.mode {
            Mode::Fullnat => self.local_port(cx, service, target, tuple.protocol)?,
            Mode::Nat | Mode::Dr | Mode::Tun => tuple.src,
        };
        let state = match tuple.protocol {
            // With one_packet a datagram in pieces has a record, so that they stay together; it ends soon after.
            Protocol::Udp if !service.one_packet => State::Udp,
            // A SYN leads here at once, so that the wheel and the server's load see one state only.
            Protocol::Tcp if packet.opens() => {
                State::None.next(view(server.mode, Direction::Request), packet.meta.tcp_flags)
            }
            Protocol::Udp | Protocol::Tcp => State::None,
        };
        let mut flags = ConnFlags::default();
        flags.set(ConnFlags::ACTIVE, state.is_active());
        Ok(Conn {
            client: tuple.src,
            vip: tuple.dst,
            server: target,
            peer,
            server_id: server.id,
            last_seen: cx.ticks,
            timeout: service.timeouts.ticks(state),
            generation: 0,
            client_hop: Conn::<A>::NO_HOP,
            server_hop: Conn::<A>::NO_HOP,
            client_mac: [0; 6],
            state: state as u8,
            mode: server.mode as u8,
            protocol: tuple.protocol.number(),
            flags,
            deltas: Deltas::default(),
        })
    }
}

/// Sends a datagram that is scheduled alone. Its `conn` lives no longer than this, and takes no place at its server.
fn alone<A: Ip>(
    cx: &mut Context<'_, '_>,
    conn: &mut Conn<A>,
    service: &Service,
    choice: Choice<'_>,
    meta: &Meta,
    frame: &mut Frame,
) -> Decision {
    if let Some(template) = choice.template {
        cx.shared.agreed.templates.release(template, true, service.persistence.as_ref(), cx.ticks);
    }
    cx.shared.doors.leave(choice.server.id, &mut cx.shared.schedulers);
    cx.counters.tenant(choice.server.id);
    cx.counters.event(Event::DatagramsScheduled);
    cx.counters.server_packet(choice.server.id, true, meta.l3_len().into());
    transmit::request(cx, conn, choice.server, meta, frame)
}

/// Where at `server` a connection of `tuple` goes.
fn target<A: Ip>(server: &Server, tuple: &Tuple<A>) -> Option<Endpoint<A>> {
    let address = A::from_ip(server.address)?;
    Some(Endpoint::new(address, server.port.unwrap_or(tuple.dst.port)))
}

/// Whether an address may be a client's. Linux drops the others as martians; here answers to them would go in circles.
fn may_be_client<A: Ip>(address: A, snapshot: &Snapshot) -> bool {
    let ip = address.to_ip();
    address.is_host() && !snapshot.index().is_vip(ip) && !snapshot.locals().has_address(ip)
}
