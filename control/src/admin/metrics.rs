//! `GET /metrics`: what the API tells, as OpenMetrics. Nothing is counted here: at every scrape the workers' counters are
//! added up as they are for people. docs/metrics.md lists the names.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use shunt_engine::report::WorkerCounter;

use super::view::{Counters, Queue, Server, Service, Status, Worker, Workers};
use crate::config::{ServerState, Word};
use crate::health::check::State;

/// The content type of [`Scrape::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What one scrape sees.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// Services, servers and ports.
    pub status: Status,
    /// Workers and queues.
    pub workers: Workers,
    /// Drops and events.
    pub counters: Counters,
}

impl Scrape {
    /// The text in OpenMetrics' format.
    pub fn text(self) -> String {
        let mut registry = Registry::with_prefix("shunt");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("strings take everything");
        text
    }
}

type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

/// Writes families of metrics.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn one(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        write: impl FnOnce(MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        write(self.0.encode_descriptor(name, help, None, kind)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.one(name, help, MetricType::Gauge, |mut family| family.encode_gauge(&value))
    }

    fn gauges<'b, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'b, N>, u64)>,
    ) -> fmt::Result {
        self.one(name, help, MetricType::Gauge, |mut family| {
            samples
                .into_iter()
                .try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
        })
    }

    fn counters<'b, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'b, N>, u64)>,
    ) -> fmt::Result {
        self.one(name, help, MetricType::Counter, |mut family| {
            samples.into_iter().try_for_each(|(labels, value)| {
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
            })
        })
    }

    fn infos<'b, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Labels<'b, N>>,
    ) -> fmt::Result {
        self.one(name, help, MetricType::Info, |mut family| {
            samples.into_iter().try_for_each(|labels| family.encode_info(&labels))
        })
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        self.daemon(&mut families)?;
        self.services(&mut families)?;
        self.servers(&mut families)?;
        self.reasons(&mut families)?;
        self.work(&mut families)?;
        self.turns(&mut families)?;
        self.queues(&mut families)
    }
}

impl Scrape {
    fn daemon(&self, families: &mut Families<'_>) -> fmt::Result {
        let Status { version, uptime_seconds, generation, ports, .. } = &self.status;
        families.infos("build", "The daemon", [[("version", version.as_str())]])?;
        families.gauge("uptime_seconds", "Seconds since the daemon started", *uptime_seconds)?;
        let help = "Number of the snapshot every worker works with";
        families.gauge("generation", help, *generation)?;
        let labels = ports.iter().map(|port| [("interface", &*port.interface), ("kind", &*port.kind)]);
        families.infos("port", "A port, and how frames travel", labels)?;
        let mtus = ports.iter().map(|port| ([("interface", &*port.interface)], port.mtu.into()));
        families.gauges("port_mtu_bytes", "Largest layer-3 packet of a port", mtus)
    }

    fn services(&self, families: &mut Families<'_>) -> fmt::Result {
        let services = || self.status.services.iter();
        let labels = services().map(|service| {
            let Service { name, protocol, mode, scheduler, .. } = service;
            [("service", &**name), ("protocol", protocol), ("mode", mode), ("scheduler", scheduler)]
        });
        families.infos("service", "A service", labels)?;
        let servers = services().map(|service| ([("service", &*service.name)], service.servers.len() as u64));
        families.gauges("service_servers", "Servers of a service, those that drain included", servers)?;
        let quorum = services().map(|service| ([("service", &*service.name)], service.has_quorum.into()));
        families.gauges("service_quorum", "Whether enough servers of a service are up", quorum)
    }

    /// Both labels of each server, with a value.
    fn of_servers(&self, value: impl Fn(&Server) -> u64) -> impl Iterator<Item = (Labels<'_, 2>, u64)> {
        self.status
            .services
            .iter()
            .flat_map(|service| service.servers.iter().map(move |server| (service, server)))
            .map(move |(service, server)| {
                ([("service", &*service.name), ("server", &*server.name)], value(server))
            })
    }

    fn servers(&self, families: &mut Families<'_>) -> fmt::Result {
        let weights = self.of_servers(|server| server.weight.into());
        families.gauges("server_weight", "Share of new connections", weights)?;
        let effective = self.of_servers(|server| server.effective_weight.into());
        families.gauges(
            "server_effective_weight",
            "The same at this moment, as checks have it",
            effective,
        )?;
        let up = self.of_servers(|server| {
            server.health.as_ref().is_none_or(|health| health.state == State::Up.word()).into()
        });
        families.gauges("server_up", "Whether its checks find the server well; 1 without checks", up)?;
        let enabled = self.of_servers(|server| (server.state == ServerState::Enabled.word()).into());
        families.gauges("server_enabled", "Whether the configuration has the server in use", enabled)?;
        let full =
            self.of_servers(|server| server.thresholds.is_some_and(|thresholds| thresholds.full).into());
        families.gauges("server_full", "Whether max_connections keeps new clients away", full)?;
        let active = self.of_servers(|server| server.traffic.active);
        families.gauges("server_active_connections", "Live connections in an active state", active)?;
        let inactive = self.of_servers(|server| server.traffic.inactive);
        families.gauges("server_inactive_connections", "Live connections in any other state", inactive)?;
        let opened = self.of_servers(|server| server.traffic.connections);
        families.counters("server_connections", "Connections opened", opened)?;
        let packets = self.of_servers(|server| server.traffic.packets_in);
        families.counters("server_packets_in", "Packets sent to the server", packets)?;
        let bytes = self.of_servers(|server| server.traffic.bytes_in);
        families.counters("server_bytes_in", "Bytes sent to the server, layer 3", bytes)?;
        let packets = self.of_servers(|server| server.traffic.packets_out);
        families.counters(
            "server_packets_out",
            "Packets the server answered with, where they pass here",
            packets,
        )?;
        let bytes = self.of_servers(|server| server.traffic.bytes_out);
        families.counters("server_bytes_out", "Bytes of these, layer 3", bytes)
    }

    fn reasons(&self, families: &mut Families<'_>) -> fmt::Result {
        let Counters { drops, events, .. } = &self.counters;
        let drops = drops.iter().map(|counter| ([("reason", &*counter.name)], counter.value));
        families.counters(
            "drops",
            "Dropped packets by reason; `shunt counters` says what each means",
            drops,
        )?;
        let events = events.iter().map(|counter| ([("event", &*counter.name)], counter.value));
        families.counters("events", "What else happened to packets and connections", events)
    }

    fn work(&self, families: &mut Families<'_>) -> fmt::Result {
        let numbered = numbered(&self.workers.workers);
        let of = |value: fn(&Worker) -> u64| {
            numbered.iter().map(move |(number, worker)| ([("worker", number.as_str())], value(worker)))
        };
        for counter in WorkerCounter::ALL {
            let Some((name, help)) = described(*counter) else { continue };
            let values = numbered.iter().map(|(number, worker)| {
                ([("worker", number.as_str())], worker.counters.get(counter.name()).copied().unwrap_or(0))
            });
            families.counters(name, help, values)?;
        }
        let tables = numbered.iter().flat_map(|(number, worker)| {
            let labels = |version| [("worker", number.as_str()), ("version", version)];
            [(labels("ipv4"), worker.connections_ipv4), (labels("ipv6"), worker.connections_ipv6)]
        });
        let tables: Vec<_> = tables.collect();
        let used = tables.iter().map(|(labels, load)| (*labels, load.used));
        families.gauges("worker_connections", "Records in use in a worker's table of connections", used)?;
        let capacity = tables.iter().map(|(labels, load)| (*labels, load.capacity));
        families.gauges("worker_connections_max", "Records that such a table has room for", capacity)?;
        families.gauges("worker_buffers_used", "Packet buffers in use", of(|worker| worker.buffers.used))?;
        families.gauges(
            "worker_buffers_max",
            "Packet buffers there are",
            of(|worker| worker.buffers.capacity),
        )
    }

    fn turns(&self, families: &mut Families<'_>) -> fmt::Result {
        let numbered = numbered(&self.workers.workers);
        let help = "Turns of a worker's loop that moved a packet, by how long they took";
        families.one("worker_turn_seconds", help, MetricType::Histogram, |mut family| {
            for (number, worker) in &numbered {
                // Bucket n ends at 2^(n+1) nanoseconds; the last one has no end.
                let counts = worker.turns.histogram.iter().enumerate();
                let ends: Vec<_> = counts
                    .map(|(power, count)| match power + 1 == worker.turns.histogram.len() {
                        true => (f64::INFINITY, *count),
                        false => ((2_u64 << power) as f64 / 1e9, *count),
                    })
                    .collect();
                let busy = worker.counters.get(WorkerCounter::BusyNanos.name()).copied().unwrap_or(0);
                let count = ends.iter().map(|(_, count)| count).sum();
                let labels = [("worker", number.as_str())];
                family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                    busy as f64 / 1e9,
                    count,
                    &ends,
                    None,
                )?;
            }
            Ok(())
        })
    }

    fn queues(&self, families: &mut Families<'_>) -> fmt::Result {
        let numbered = numbered(&self.workers.workers);
        let mut of = |way: &str, name: &str, help: &str, queues: fn(&Worker) -> &[Queue], key: &str| {
            let queues: Vec<_> = numbered
                .iter()
                .flat_map(|(number, worker)| queues(worker).iter().map(move |queue| (number, queue)))
                .map(|(worker, queue)| (worker, queue.queue.to_string(), queue))
                .collect();
            let values = queues.iter().map(|(worker, number, queue)| {
                let labels = [
                    ("interface", &*queue.interface),
                    ("queue", number.as_str()),
                    ("worker", worker.as_str()),
                ];
                (labels, queue.counters.get(key).copied().unwrap_or(0))
            });
            families.counters(&format!("queue_{way}_{name}"), help, values)
        };
        for (key, help) in RX {
            of("rx", key, help, |worker| &worker.rx, key)?;
        }
        for (key, help) in TX {
            of("tx", key, help, |worker| &worker.tx, key)?;
        }
        Ok(())
    }
}

const RX: [(&str, &str); 6] = [
    ("packets", "Frames received"),
    ("bytes", "Bytes of these"),
    ("oversize", "Frames longer than the MTU, dropped: a receive offload (LRO, GRO) is on"),
    ("no_buffer", "Frames that found no free buffer"),
    ("missed", "Frames the device or kernel dropped because the queue was full"),
    ("checksum_completed", "Frames whose partial checksum was completed"),
];

const TX: [(&str, &str); 4] = [
    ("packets", "Frames sent"),
    ("bytes", "Bytes of these"),
    ("oversize", "Frames longer than the MTU allows, dropped"),
    ("errors", "Frames the device or kernel refused"),
];

fn numbered(workers: &[Worker]) -> Vec<(String, &Worker)> {
    workers.iter().map(|worker| (worker.id.to_string(), worker)).collect()
}

/// What a worker's counter is called and means; `None` for what is told otherwise.
const fn described(counter: WorkerCounter) -> Option<(&'static str, &'static str)> {
    match counter {
        WorkerCounter::Loops => Some(("worker_loops", "Turns of the loop")),
        WorkerCounter::RxPackets => Some(("worker_rx_packets", "Frames received from ports")),
        WorkerCounter::RxBursts => Some(("worker_rx_bursts", "Bursts received from ports")),
        WorkerCounter::TxPackets => Some(("worker_tx_packets", "Frames that left by this worker's queues")),
        WorkerCounter::Emitted => Some(("worker_emitted", "Frames originated, or kept and released")),
        WorkerCounter::Punted => Some(("worker_punted", "Frames given to the kernel")),
        WorkerCounter::PuntSeen => Some(("worker_punt_seen", "Frames for the kernel that it has already")),
        WorkerCounter::PuntRefused => Some(("worker_punt_refused", "Frames the kernel did not take")),
        WorkerCounter::HandoffOut => Some(("worker_handoff_out", "Frames handed to other workers")),
        WorkerCounter::HandoffIn => Some(("worker_handoff_in", "Frames handed over by other workers")),
        WorkerCounter::HandoffFull => {
            Some(("worker_handoff_full", "Frames lost as the way to a worker was full"))
        }
        WorkerCounter::TxViaOther => Some(("worker_tx_via_other", "Frames given to other workers to send")),
        WorkerCounter::TxForOther => Some(("worker_tx_for_other", "Frames sent for other workers")),
        WorkerCounter::TxFull => Some(("worker_tx_full", "Frames lost as a transmit queue did not keep up")),
        WorkerCounter::Misrouted => {
            Some(("worker_misrouted", "Frames for a port that is not there: a defect"))
        }
        WorkerCounter::ProgramDrops => Some(("worker_drops", "Frames dropped, whatever the reason")),
        WorkerCounter::Held => Some(("worker_held", "Frames kept for a while")),
        WorkerCounter::Sleeps => Some(("worker_sleeps", "Times the worker slept")),
        WorkerCounter::Wakes => Some(("worker_wakes", "Sleeps that another thread ended")),
        WorkerCounter::PoolEmpty => Some(("worker_pool_empty", "Times there was no packet buffer")),
        WorkerCounter::BusyNanos | WorkerCounter::PoolFree => None,
    }
}
