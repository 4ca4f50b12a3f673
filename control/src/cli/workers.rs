//! `shunt status --workers` for people: what each worker does, how full it is, and where its packets come from.

use std::collections::BTreeMap;
use std::iter;

use super::table::{Table, bytes};
use crate::admin::view::{Load, Queue, Worker, Workers};

pub(super) fn text(workers: &Workers) -> String {
    let list = &workers.workers;
    let tables = [work(list), room(list), bursts(list), queues(list)].map(|table| table.text());
    format!("{}\n\n{}", workers.handoff, tables.join("\n"))
}

fn work(workers: &[Worker]) -> Table {
    let seconds = workers.iter().map(|worker| worker.recent.seconds.round()).fold(0.0, f64::max);
    let head = [
        "Worker",
        "Core",
        "Packets",
        "Rate/s",
        "Burst",
        &format!("Busy {seconds} s"),
        "Busy",
        "HandOut",
        "HandIn",
        "Drops",
    ];
    let mut table = Table::new(2, &head);
    for worker in workers {
        let core = worker.core.map_or_else(|| "any".to_owned(), |core| core.to_string());
        let [packets, drops] =
            ["rx_packets", "program_drops"].map(|name| value(&worker.counters, name).to_string());
        table.row([
            worker.id.to_string(),
            core,
            packets,
            format!("{:.0}", worker.recent.packets_per_second),
            worker.burst_mean.map_or_else(none, |mean| format!("{mean:.1}")),
            percent(worker.recent.busy),
            percent(worker.busy),
            worker.handed_out_share.map_or_else(none, percent),
            worker.handed_in_share.map_or_else(none, percent),
            drops,
        ]);
    }
    table
}

fn room(workers: &[Worker]) -> Table {
    let head = ["Worker", "IPv4Conns", "IPv6Conns", "BuffersFree", "LoopP50", "LoopP99", "LoopMax"];
    let mut table = Table::new(1, &head);
    let load = |load: Load| format!("{}/{}", load.used, load.capacity);
    for worker in workers {
        let Load { used, capacity } = worker.buffers;
        let turns = &worker.turns;
        let max = turns.p50_nanos.map(|_| turns.recent_max_nanos);
        let times = [turns.p50_nanos, turns.p99_nanos, max].map(|nanos| nanos.map_or_else(none, time));
        let free = format!("{}/{capacity}", capacity - used);
        let cells =
            [worker.id.to_string(), load(worker.connections_ipv4), load(worker.connections_ipv6), free];
        table.row(cells.into_iter().chain(times));
    }
    table
}

/// Shares of the received bursts by size.
fn bursts(workers: &[Worker]) -> Table {
    let sizes = ["Worker", "Bursts", "of1", "of2-3", "of4-7", "of8-15", "of16-31", "of32"];
    let mut table = Table::new(1, &sizes);
    for worker in workers {
        let all: u64 = worker.burst_sizes.iter().sum();
        let share = |count: &u64| if all == 0 { none() } else { percent(*count as f64 / all as f64) };
        let cells = iter::once(worker.id.to_string()).chain(iter::once(all.to_string()));
        table.row(cells.chain(worker.burst_sizes.iter().map(share)));
    }
    table
}

fn queues(workers: &[Worker]) -> Table {
    let head = ["Queue", "Way", "Worker", "Packets", "Bytes", "Oversize", "NoBuffer", "Missed", "Errors"];
    let mut table = Table::new(3, &head);
    for worker in workers {
        for (way, list) in [("rx", &worker.rx), ("tx", &worker.tx)] {
            for Queue { interface, queue, counters } in list {
                let count = |name| value(counters, name).to_string();
                let name = format!("{interface}/{queue}");
                let first = [name, way.to_owned(), worker.id.to_string()];
                let traffic = [count("packets"), bytes(value(counters, "bytes"))];
                let lost = ["oversize", "no_buffer", "missed", "errors"].map(count);
                table.row(first.into_iter().chain(traffic).chain(lost));
            }
        }
    }
    table
}

fn value(counters: &BTreeMap<String, u64>, name: &str) -> u64 {
    counters.get(name).copied().unwrap_or(0)
}

fn none() -> String {
    "-".to_owned()
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

fn time(nanos: u64) -> String {
    match nanos {
        0..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{:.1}us", nanos as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}ms", nanos as f64 / 1e6),
        1_000_000_000.. => format!("{:.1}s", nanos as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::{Recent, Turns};

    fn counters(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
        counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect()
    }

    fn worker() -> Worker {
        Worker {
            core: Some(2),
            counters: counters(&[("rx_packets", 1200), ("program_drops", 7)]),
            recent: Recent { seconds: 4.98, packets_per_second: 240.4, busy: 0.125 },
            busy: 0.5,
            burst_sizes: vec![50, 25, 25, 0, 0, 0],
            burst_mean: Some(12.0),
            handed_out_share: Some(0.498),
            connections_ipv4: Load { used: 10, capacity: 131_072 },
            connections_ipv6: Load { used: 0, capacity: 131_072 },
            buffers: Load { used: 384, capacity: 16_384 },
            turns: Turns {
                p50_nanos: Some(2048),
                p99_nanos: Some(65_536),
                max_nanos: 9_000_000,
                recent_max_nanos: 1_500_000,
                ..Turns::default()
            },
            ..Worker::default()
        }
    }

    #[test]
    fn each_worker_has_a_line_of_work_of_room_and_of_bursts() {
        let idle = Worker { id: 1, burst_sizes: vec![0; 6], ..Worker::default() };
        let handoff = "eth0 does not say how it spreads flows: 49.8 % handed off".to_owned();
        let workers = Workers { handoff, handed_off_share: Some(0.498), workers: vec![worker(), idle] };
        let text = text(&workers);
        let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(text.lines().next(), Some(workers.handoff.as_str()));
        assert_eq!(lines[2][5..8], ["Busy", "5", "s"]);
        assert_eq!(lines[3], ["0", "2", "1200", "240", "12.0", "12.5%", "50.0%", "49.8%", "-", "7"]);
        assert_eq!(lines[4], ["1", "any", "0", "0", "-", "0.0%", "0.0%", "-", "-", "0"]);
        assert_eq!(lines[7], ["0", "10/131072", "0/131072", "16000/16384", "2.0us", "65.5us", "1.5ms"]);
        assert_eq!(lines[8], ["1", "0/0", "0/0", "0/0", "-", "-", "-"]);
        assert_eq!(lines[11], ["0", "100", "50.0%", "25.0%", "25.0%", "0.0%", "0.0%", "0.0%"]);
        assert_eq!(lines[12], ["1", "0", "-", "-", "-", "-", "-", "-"]);
    }

    #[test]
    fn after_a_year_of_ten_million_packets_per_second_it_still_fits_a_hundred_columns() {
        let year = 10_000_000 * 86_400 * 365;
        let packets = [("rx_packets", year), ("program_drops", 99_999_999_999)];
        let queue = Queue {
            interface: "enp129s0f1np1.x".to_owned(),
            queue: 63,
            counters: counters(&[("packets", year), ("bytes", year * 1500), ("missed", year / 1000)]),
        };
        let full = Load { used: 100_000_000, capacity: 100_000_000 };
        let workers = (0..64).map(|id| Worker {
            id,
            core: Some(127),
            counters: counters(&packets),
            recent: Recent { seconds: 5.0, packets_per_second: 1e7, busy: 1.0 },
            busy: 1.0,
            burst_sizes: vec![year / 32; 6],
            burst_mean: Some(32.0),
            handed_out_share: Some(1.0),
            handed_in_share: Some(1.0),
            connections_ipv4: full,
            connections_ipv6: full,
            buffers: Load { used: 0, capacity: 1 << 20 },
            turns: Turns {
                p50_nanos: Some(1 << 20),
                p99_nanos: Some(1 << 30),
                max_nanos: 1 << 40,
                recent_max_nanos: 1 << 40,
                ..Turns::default()
            },
            rx: vec![queue.clone()],
            tx: vec![queue.clone()],
        });
        let text = text(&Workers { workers: workers.collect(), ..Workers::default() });
        let widest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
        assert!(widest.chars().count() <= 100, "{}: {widest}", widest.chars().count());
    }

    #[test]
    fn times_have_the_unit_that_keeps_them_short() {
        let shown = [0, 999, 1_000, 2_048, 1_000_000, 1_500_000_000].map(time);
        assert_eq!(shown, ["0ns", "999ns", "1.0us", "2.0us", "1.0ms", "1.5s"]);
    }
}
