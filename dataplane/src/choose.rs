//! Which server a new connection gets: the one its client had, if the service remembers clients; else the one that is
//! next by the scheduler, if it has not all the connections it may have.

use crate::counters::Event;
use crate::flow::Context;
use crate::ip::Ip;
use crate::persist::{Key, Persistence, Template};
use crate::scheduler::Request;
use crate::server::{Server, ServerId};
use crate::service::Service;
use crate::thresholds::Visitor;
use crate::tuple::Tuple;

/// A server with a place for the connection that is about to open. Whoever does not open it gives both back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) server: &'a Server,
    /// What remembers the client, held for the connection.
    pub(crate) template: Option<Template>,
}

impl Choice<'_> {
    /// The connection does not open.
    pub(crate) fn give_back(self, cx: &mut Context<'_, '_>) {
        cx.shared.doors.leave(self.server.id, &mut cx.shared.schedulers);
        if let Some(template) = self.template {
            cx.shared.agreed.templates.release(template, false, None, cx.ticks);
        }
    }
}

/// The server for a connection of `tuple`; `None` when none takes any.
pub(crate) fn choose<'a, A: Ip>(
    cx: &mut Context<'a, '_>,
    service: &Service,
    tuple: &Tuple<A>,
) -> Option<Choice<'a>> {
    let Some(persistence) = &service.persistence else {
        return Some(Choice { server: schedule(cx, service, tuple)?, template: None });
    };
    let key = Key::new(service.id, tuple.src.address.to_ip(), persistence);
    match cx.shared.agreed.templates.find(&key, persistence, cx.ticks) {
        Some(template) => follow(cx, service, tuple, template),
        None => remember(cx, service, tuple, &key, persistence),
    }
}

/// A server for a client that nobody remembers.
fn remember<'a, A: Ip>(
    cx: &mut Context<'a, '_>,
    service: &Service,
    tuple: &Tuple<A>,
    key: &Key,
    persistence: &Persistence,
) -> Option<Choice<'a>> {
    let server = schedule(cx, service, tuple)?;
    let templates = &cx.shared.agreed.templates;
    let Some(template) = templates.find_or_insert(key, server.id, persistence, cx.ticks) else {
        cx.counters.event(Event::TemplatesRefused);
        return Some(Choice { server, template: None });
    };
    if templates.server(template) == server.id {
        return Some(Choice { server, template: Some(template) });
    }
    // Another worker was first.
    cx.shared.doors.leave(server.id, &mut cx.shared.schedulers);
    follow(cx, service, tuple, template)
}

/// The server that `template` names; another one when that takes no connections.
fn follow<'a, A: Ip>(
    cx: &mut Context<'a, '_>,
    service: &Service,
    tuple: &Tuple<A>,
    template: Template,
) -> Option<Choice<'a>> {
    let named = cx.shared.agreed.templates.server(template);
    if let Some(server) = taking(cx, service, named) {
        if cx.shared.doors.enter(server, Visitor::Returning, &mut cx.shared.schedulers) {
            cx.counters.event(Event::TemplatesFollowed);
            return Some(Choice { server, template: Some(template) });
        }
        // Full. The client keeps its server for the next time.
        cx.counters.event(Event::TemplatesOverflowed);
        cx.shared.agreed.templates.release(template, false, None, cx.ticks);
        return Some(Choice { server: schedule(cx, service, tuple)?, template: None });
    }
    let Some(server) = schedule(cx, service, tuple) else {
        cx.shared.agreed.templates.release(template, false, None, cx.ticks);
        return None;
    };
    let now_named = cx.shared.agreed.templates.repoint(template, named, server.id);
    if now_named == server.id {
        cx.counters.event(Event::TemplatesMoved);
        return Some(Choice { server, template: Some(template) });
    }
    // Another worker was first.
    match taking(cx, service, now_named) {
        Some(first) if cx.shared.doors.enter(first, Visitor::Returning, &mut cx.shared.schedulers) => {
            cx.shared.doors.leave(server.id, &mut cx.shared.schedulers);
            cx.counters.event(Event::TemplatesFollowed);
            Some(Choice { server: first, template: Some(template) })
        }
        _ => {
            cx.shared.agreed.templates.release(template, false, None, cx.ticks);
            Some(Choice { server, template: None })
        }
    }
}

/// The server `id`, if it is the service's and takes connections. A drained one takes none, not even of a client that
/// is remembered there: LVS lets those go on, and the server never empties.
fn taking<'a>(cx: &Context<'a, '_>, service: &Service, id: ServerId) -> Option<&'a Server> {
    cx.snapshot.server(id).filter(|server| server.service == service.id && server.weight > 0 && !server.down)
}

/// The server that is next by the scheduler, with a place taken there.
fn schedule<'a, A: Ip>(cx: &mut Context<'a, '_>, service: &Service, tuple: &Tuple<A>) -> Option<&'a Server> {
    let snapshot = cx.snapshot;
    let pools = snapshot.pools(service.id)?;
    let (pool, request) = (pools.of::<A>(), Request::new(tuple, cx.now));
    let candidates = || pools.candidates().filter_map(|candidate| snapshot.server(candidate.id));
    cx.shared.doors.look(service.id, candidates, &mut cx.shared.schedulers);
    // Another worker may take the last place of the one picked; so often at most.
    for _ in pool.candidates() {
        let server = snapshot.server(cx.shared.schedulers.pick(service.id, pool, &request)?)?;
        if cx.shared.doors.enter(server, Visitor::New, &mut cx.shared.schedulers) {
            return Some(server);
        }
    }
    None
}
