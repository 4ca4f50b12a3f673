//! The daemon's answers to questions about it.

use std::collections::BTreeMap;

use shunt_dataplane::counters::{Event, Gauge, ServerField, drop_reason, event, gauge, server};
use shunt_dataplane::server::{Mode, ServerId};
use shunt_dataplane::verdict::DropReason;
use shunt_engine::clock::Clock;
use shunt_engine::port::{PortCaps, RxStats, TxStats};
use shunt_engine::report::{WorkerCounter, WorkerView};
use shunt_engine::turn_times::TurnTimes;
use shunt_engine::{Duration, PortId};

use super::Ask;
use super::connections::Access;
use super::metrics::Scrape;
use super::view::{
    Counter, Counters, Load, Persistence, Port, Queue, Recent, Server, Service, Status, Thresholds, Traffic,
    Turns, Worker, Workers,
};
use crate::compile::weight;
use crate::config::{self, Word};
use crate::drain;
use crate::handoff::{self, Facts, PortFacts};
use crate::health::passive::Seen;
use crate::health::watch::Watch;
use crate::recent::{Counts, Stretch};
use crate::rss::RssMatch;
use crate::supervisor::Daemon;

impl Daemon {
    pub(crate) async fn answer(&mut self, ask: Ask) {
        // Who has hung up meanwhile does not want the answer any more.
        match ask {
            Ask::Status(answer) => drop(answer.send(self.status())),
            Ask::Workers(answer) => drop(answer.send(self.workers_view())),
            Ask::Counters(answer) => drop(answer.send(self.counters_view())),
            Ask::Metrics(answer) => drop(answer.send(self.scrape())),
            Ask::Connections(answer) => drop(answer.send(self.connections_access())),
            Ask::Config(answer) => drop(answer.send(self.config_text())),
            Ask::Diff(sources, answer) => drop(answer.send(self.diff(sources))),
            Ask::Reload(answer) => drop(answer.send(self.reload().await)),
            Ask::RollBack(answer) => drop(answer.send(self.roll_back().await)),
            Ask::Edit(edit, save, answer) => drop(answer.send(self.edit(&edit, save).await)),
            Ask::Save(answer) => drop(answer.send(self.save())),
        }
    }

    pub(crate) fn status(&self) -> Status {
        let port = |caps: &PortCaps| Port {
            interface: caps.name.clone(),
            kind: caps.kind.to_owned(),
            mac: caps.mac.to_string(),
            mtu: caps.mtu,
            queues: caps.queues,
        };
        let watch = self.health.watch();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            file: self.file.display().to_string(),
            generation: self.publisher.in_force().0,
            workers: self.config.engine.workers,
            ports: self.devices.iter().map(|device| port(device.caps())).collect(),
            services: self.config.services.iter().map(|service| self.service(service, &watch)).collect(),
        }
    }

    fn scrape(&self) -> Scrape {
        Scrape { status: self.status(), workers: self.workers_view(), counters: self.counters_view() }
    }

    fn service(&self, service: &config::Service, watch: &Watch) -> Service {
        let state = watch.service(&service.name);
        Service {
            name: service.name.clone(),
            protocol: service.protocol.to_string(),
            listen: service.listen.iter().map(ToString::to_string).collect(),
            mode: service.mode.name().to_owned(),
            scheduler: config::describe_scheduler(&service.scheduler),
            persistence: service.persistence.map(|persistence| Persistence {
                timeout_ms: persistence.timeout.as_nanos() / 1_000_000,
                mask_ipv4: persistence.mask_v4,
                mask_ipv6: persistence.mask_v6,
            }),
            one_packet: service.one_packet,
            left_out: service.left_out,
            local: service.local.iter().map(|local| local.address.to_string()).collect(),
            has_quorum: state.has_quorum(),
            using: state.choice().word().to_owned(),
            servers: service.servers.iter().map(|server| self.server(&service.name, server, watch)).collect(),
        }
    }

    fn server(&self, service: &str, typed: &config::Server, watch: &Watch) -> Server {
        let id = self.numbers.server(service, typed);
        let snapshot = self.publisher.current();
        let hops = id.and_then(|id| snapshot.server(id)?.hop.as_ref());
        let hop = hops.and_then(|hops| snapshot.hop(hops.first()));
        Server {
            name: typed.name.clone(),
            address: config::server_address(typed),
            mode: typed.mode.name().to_owned(),
            weight: typed.weight,
            effective_weight: weight(typed),
            sorry: typed.sorry,
            health: watch.health(service, typed, Clock::System.now()),
            state: typed.state.word().to_owned(),
            left_out: typed.draining.is_some_and(|draining| draining.left_out),
            drains_for_seconds: drain::deadline(typed)
                .map(|deadline| deadline.since(Clock::System.now()).as_millis().div_ceil(1000)),
            thresholds: typed.thresholds.map(|thresholds| Thresholds {
                max_connections: thresholds.upper,
                resume_connections: thresholds.lower,
                full: id.is_some_and(|id| !self.occupancy.is_open(id, thresholds)),
            }),
            next_hop: hop.and_then(|hop| hop.destination).map(|mac| mac.to_string()),
            traffic: id.map(|id| self.traffic(id)).unwrap_or_default(),
        }
    }

    pub(crate) fn traffic(&self, id: ServerId) -> Traffic {
        let sum = |field| self.counters.iter().map(|counters| counters.get(server(id.slot, field))).sum();
        Traffic {
            active: sum(ServerField::Active),
            inactive: sum(ServerField::Inactive),
            connections: sum(ServerField::Connections),
            packets_in: sum(ServerField::PacketsIn),
            bytes_in: sum(ServerField::BytesIn),
            packets_out: sum(ServerField::PacketsOut),
            bytes_out: sum(ServerField::BytesOut),
            failures: sum(ServerField::Failures),
        }
    }

    /// Shows what the workers have counted to the checks that look at nothing else.
    pub(crate) fn tell_passive_checks(&self) {
        let services = self.config.services.iter();
        let servers = services.flat_map(|service| service.servers.iter().map(move |one| (service, one)));
        for (service, typed) in servers.filter(|(_, server)| server.health.passive.is_some()) {
            let Some(id) = self.numbers.server(&service.name, typed) else { continue };
            let Traffic { connections, failures, .. } = self.traffic(id);
            let seen = Seen { opened: connections, failed: failures };
            self.health.alter(|watch, now| watch.seen(&service.name, typed, seen, now));
        }
    }

    pub(crate) fn workers_view(&self) -> Workers {
        let facts = self.handoff_facts();
        let views = self.workers.views().iter().enumerate();
        Workers {
            handoff: handoff::words(&facts),
            handed_off_share: handoff::share(&facts),
            workers: views.map(|(number, view)| self.worker(number, view)).collect(),
        }
    }

    fn handoff_facts(&self) -> Facts {
        let sum = |counter| self.workers.views().iter().map(|view| view.get(counter)).sum();
        let mut servers = self.config.services.iter().flat_map(|service| &service.servers);
        let ports = self.devices.iter().zip(&self.rss);
        Facts {
            workers: self.config.engine.workers,
            ports: ports.map(|(device, rss)| port_facts(device.caps(), *rss)).collect(),
            nat: servers.any(|server| server.mode == Mode::Nat),
            received: sum(WorkerCounter::RxPackets),
            handed: sum(WorkerCounter::HandoffOut),
        }
    }

    fn worker(&self, number: usize, view: &WorkerView) -> Worker {
        let placement = self.workers.placements().iter().find(|placement| placement.worker == view.id());
        let counters =
            WorkerCounter::ALL.iter().map(|&counter| (counter.name().to_owned(), view.get(counter)));
        let (now, counts) = (Clock::System.now(), Counts::of(view));
        let recent = self.recent.stretch(number, now, counts);
        let lived = Stretch::between(Counts::default(), counts, now.since(self.workers_started).as_nanos());
        let [received, bursts, handed_out, handed_in, free] = [
            WorkerCounter::RxPackets,
            WorkerCounter::RxBursts,
            WorkerCounter::HandoffOut,
            WorkerCounter::HandoffIn,
            WorkerCounter::PoolFree,
        ]
        .map(|counter| view.get(counter));
        let engine = &self.config.engine;
        let table = |which| Load {
            used: self.counters[number].get(gauge(which)),
            capacity: engine.connections_per_worker().into(),
        };
        Worker {
            id: view.id().0,
            core: placement.and_then(|placement| placement.core),
            counters: counters.collect(),
            recent: Recent {
                seconds: recent.seconds,
                packets_per_second: recent.packets_per_second,
                busy: recent.busy,
            },
            busy: lived.busy,
            burst_sizes: view.burst_sizes().to_vec(),
            burst_mean: ratio(received, bursts),
            handed_out_share: ratio(handed_out, received),
            handed_in_share: ratio(handed_in, received + handed_in),
            connections_ipv4: table(Gauge::ConnectionsV4),
            connections_ipv6: table(Gauge::ConnectionsV6),
            buffers: Load {
                used: u64::from(engine.buffers).saturating_sub(free),
                capacity: engine.buffers.into(),
            },
            turns: turns(&view.turn_times()),
            rx: view.rx().map(|(port, queue, stats)| self.queue(port, queue, &rx_fields(&stats))).collect(),
            tx: view.tx().map(|(port, queue, stats)| self.queue(port, queue, &tx_fields(&stats))).collect(),
        }
    }

    fn queue(&self, port: PortId, queue: u16, fields: &[(&str, &str, u64)]) -> Queue {
        let interface = self.ports.iter().find(|open| open.id == port);
        Queue {
            interface: interface.map(|open| open.info.name.clone()).unwrap_or_default(),
            queue,
            counters: fields.iter().map(|&(name, _, value)| (name.to_owned(), value)).collect(),
        }
    }

    pub(crate) fn connections_access(&self) -> Access {
        let services = self.config.services.iter();
        let servers =
            services.flat_map(|service| service.servers.iter().map(move |server| (service, server)));
        let named = servers.filter_map(|(service, server)| {
            let id = self.numbers.server(&service.name, server)?;
            Some((id, (service.name.clone(), server.name.clone())))
        });
        Access { dumps: self.dumps.clone(), names: named.collect() }
    }

    pub(crate) fn counters_view(&self) -> Counters {
        let sum = |index| self.counters.iter().map(|counters| counters.get(index)).sum();
        let counter = |name: &str, meaning: &str, value| Counter {
            name: name.to_owned(),
            value,
            meaning: meaning.to_owned(),
        };
        let drops = DropReason::ALL.iter();
        let drops = drops.map(|&reason| counter(reason.name(), reason.describe(), sum(drop_reason(reason))));
        let events = Event::ALL.iter();
        let events = events.map(|&which| counter(which.name(), which.describe(), sum(event(which))));
        let views = self.workers.views();
        let worker = |&which: &WorkerCounter| {
            counter(which.name(), "", views.iter().map(|view| view.get(which)).sum())
        };
        Counters {
            drops: drops.collect(),
            events: events.collect(),
            workers: WorkerCounter::ALL.iter().map(worker).collect(),
            ports: self.port_counters(),
        }
    }

    /// Queues' counts added up by interface.
    fn port_counters(&self) -> Vec<Counter> {
        let mut sums: BTreeMap<String, Counter> = BTreeMap::new();
        let mut add = |port: PortId, way: &str, fields: &[(&str, &str, u64)]| {
            let interface = self.ports.iter().find(|open| open.id == port).map(|open| &open.info.name);
            for &(name, meaning, value) in fields {
                let name = format!("{}.{way}_{name}", interface.map_or("?", String::as_str));
                let sum = sums.entry(name.clone()).or_default();
                *sum = Counter { name, value: sum.value + value, meaning: meaning.to_owned() };
            }
        };
        for view in self.workers.views() {
            view.rx().for_each(|(port, _, stats)| add(port, "rx", &rx_fields(&stats)));
            view.tx().for_each(|(port, _, stats)| add(port, "tx", &tx_fields(&stats)));
        }
        sums.into_values().collect()
    }
}

fn port_facts(caps: &PortCaps, rss: RssMatch) -> PortFacts {
    PortFacts { interface: caps.name.clone(), queues: caps.queues, rss }
}

fn turns(times: &TurnTimes) -> Turns {
    let quantile = |share| times.quantile(share).map(Duration::as_nanos);
    Turns {
        histogram: times.buckets.to_vec(),
        p50_nanos: quantile(0.5),
        p99_nanos: quantile(0.99),
        max_nanos: times.longest.as_nanos(),
        recent_max_nanos: times.longest_lately.as_nanos(),
    }
}

fn ratio(part: u64, of: u64) -> Option<f64> {
    (of > 0).then(|| part as f64 / of as f64)
}

fn rx_fields(stats: &RxStats) -> [(&'static str, &'static str, u64); 6] {
    [
        ("packets", "frames received", stats.packets),
        ("bytes", "their bytes", stats.bytes),
        (
            "oversize",
            "frames longer than the MTU, dropped: a receive offload (LRO, GRO) is on",
            stats.oversize,
        ),
        ("no_buffer", "frames that found no free buffer", stats.no_buffer),
        ("missed", "frames the device or kernel dropped because the queue was full", stats.missed),
        ("checksum_completed", "frames whose partial checksum was completed", stats.checksum_completed),
    ]
}

fn tx_fields(stats: &TxStats) -> [(&'static str, &'static str, u64); 4] {
    [
        ("packets", "frames sent", stats.packets),
        ("bytes", "their bytes", stats.bytes),
        ("oversize", "frames longer than the MTU allows, dropped", stats.oversize),
        ("errors", "frames the device or kernel refused", stats.errors),
    ]
}
