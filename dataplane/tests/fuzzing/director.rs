//! A director of two workers with services of every mode, protocol and IP version, whose every step is checked.

use std::collections::VecDeque;
use std::net::IpAddr;

use shunt_dataplane::agreed::Agreed;
use shunt_dataplane::conn::Timeouts;
use shunt_dataplane::counters::{self, ServerField};
use shunt_dataplane::neigh::{HopId, NextHop};
use shunt_dataplane::persist::Persistence;
use shunt_dataplane::pipeline::{Config, Pipeline};
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::{Mode, Server, ServerId};
use shunt_dataplane::service::{Listen, Local, OutOfState, ServerGone, Service, ServiceId};
use shunt_dataplane::snapshot::{Builder, PortInfo, Snapshot};
use shunt_dataplane::thresholds::Thresholds;
use shunt_dataplane::tuple::Protocol;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::port::MacAddr;
use shunt_engine::program::{EmitBuffer, Verdicts};
use shunt_engine::publish::{self, Publisher};
use shunt_engine::steer::Prefix;
use shunt_engine::{Burst, Duration, Emit, Instant, Mempool, Origin, PortId, Program, Verdict, WorkerId};

/// The director's link address.
pub(crate) const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
/// The link address of everybody else.
pub(crate) const THEM: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const WORKERS: u16 = 2;
const CHUNKS: u32 = 64;
/// So few that tables fill.
const CONNECTIONS: u32 = 24;
/// Servers of each service and IP version.
const PER_SERVICE: u32 = 2;
const SERVICES: u32 = 8;
const SLOTS: u32 = SERVICES * PER_SERVICE * 2;

/// What a reload changes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Setup {
    /// Bit n: the server in slot n is gone.
    pub(crate) gone: u32,
    /// Bit n: the server in slot n has weight 0.
    pub(crate) quiesced: u32,
    /// Bit n: the connections of the server in slot n are reset from this time on.
    pub(crate) drained: u32,
    /// The time of the last reload.
    pub(crate) at: Instant,
    /// Which of the fourteen schedulers the first service has; the others have the following.
    pub(crate) scheduler: u8,
    /// Counts up: every server is another then. Slots never get an old generation again.
    pub(crate) generation: u32,
}

/// A service's VIP and port.
pub(crate) fn vip(service: u32, v6: bool) -> (IpAddr, u16) {
    (ip("203.0.113.10", "2001:db8::10", v6), 8000 + service as u16)
}

/// The server in `slot`, and its port.
pub(crate) fn server(slot: u32) -> (IpAddr, u16) {
    let v6 = slot % 2 == 1;
    let address = match ip("10.0.0.0", "2001:db8:1::", v6) {
        IpAddr::V4(net) => (net.to_bits() + 10 + slot).to_be_bytes().into(),
        IpAddr::V6(net) => (net.to_bits() + 10 + u128::from(slot)).to_be_bytes().into(),
    };
    (address, 9000)
}

/// The local address of the FULLNAT services.
pub(crate) fn local(v6: bool) -> IpAddr {
    ip("10.0.0.200", "2001:db8:1::c8", v6)
}

/// Of every next hop.
pub(crate) const MTU: u16 = 1400;

/// The first of the local ports.
pub(crate) const LOCAL_PORT: u16 = 20_000;

/// A client's address.
pub(crate) fn client(number: u8, v6: bool) -> IpAddr {
    match ip("198.51.100.0", "2001:db8:2::", v6) {
        IpAddr::V4(net) => (net.to_bits() + u32::from(number)).to_be_bytes().into(),
        IpAddr::V6(net) => (net.to_bits() + u128::from(number)).to_be_bytes().into(),
    }
}

/// The mode and protocol of a service.
pub(crate) fn kind(service: u32) -> (Mode, Protocol) {
    let mode = Mode::ALL[service as usize / 2];
    (mode, if service.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp })
}

fn ip(v4: &str, v6: &str, want_v6: bool) -> IpAddr {
    if want_v6 { v6 } else { v4 }.parse().unwrap()
}

/// The director, and the time.
pub(crate) struct Director {
    now: Instant,
    pipelines: Vec<Pipeline>,
    pools: Vec<Mempool>,
    publisher: Publisher<Snapshot>,
}

impl Default for Director {
    fn default() -> Self {
        let (publisher, readers) = publish::channel(Setup::default().snapshot(), usize::from(WORKERS));
        let config = |worker| Config {
            worker: WorkerId(worker),
            workers: WORKERS,
            secret: [11, 13],
            max_connections: CONNECTIONS,
            max_services: SERVICES,
            max_servers: SLOTS,
        };
        let agreed = Agreed::new(16, SLOTS, [11, 13]);
        let pipelines = (0..)
            .zip(readers)
            .map(|(worker, reader)| Pipeline::new(config(worker), agreed.clone(), reader).unwrap());
        let pool = PoolConfig { chunks: CHUNKS, ..PoolConfig::default() };
        Self {
            now: Instant::from_nanos(1 << 40),
            pipelines: pipelines.collect(),
            pools: Mempool::split(pool, usize::from(WORKERS)).unwrap(),
            publisher,
        }
    }
}

impl Director {
    /// Worker `worker` receives `bytes`. Returns the frames that leave by the port.
    ///
    /// # Panics
    /// When a buffer, a verdict or a frame is lost, or a frame goes round among the workers.
    pub(crate) fn receive(&mut self, worker: u16, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        let mut waiting = VecDeque::from([(worker % WORKERS, Origin::Port, bytes.to_vec(), 0)]);
        while let Some((worker, origin, bytes, handoffs)) = waiting.pop_front() {
            assert!(handoffs <= 3, "a frame goes round among workers");
            for (verdict, bytes) in self.burst(worker, origin, &bytes) {
                match verdict {
                    Verdict::Forward(_) => sent.push(bytes),
                    Verdict::Handoff(next) => {
                        let origin = Origin::Handoff(WorkerId(worker));
                        waiting.push_back((next.0, origin, bytes, handoffs + 1));
                    }
                    Verdict::Punt | Verdict::Hold | Verdict::Drop => {}
                }
            }
        }
        sent
    }

    fn burst(&mut self, worker: u16, origin: Origin, bytes: &[u8]) -> Vec<(Verdict, Vec<u8>)> {
        let number = usize::from(worker);
        let (pipeline, pool) = (&mut self.pipelines[number], &mut self.pools[number]);
        let (mut burst, mut verdicts, mut staged) = (Burst::new(), Verdicts::new(), EmitBuffer::new());
        let mut frame = pool.alloc().expect("a buffer is free");
        assert!(frame.fill(bytes), "it fits a buffer");
        frame.set_source(PortId(0), 0);
        burst.push(frame);
        pipeline.refresh(self.now);
        pipeline.on_burst(self.now, origin, &mut burst, &mut verdicts, &mut Emit::new(pool, &mut staged));
        assert_eq!((burst.len(), verdicts.len()), (1, 1), "one verdict per frame");
        let decided = staged.drain(..).chain(verdicts.drain(..).zip(burst.drain(..)));
        let mut gone = Vec::new();
        for (verdict, frame) in decided {
            gone.push((verdict, frame.data().to_vec()));
            pool.free(frame);
        }
        gone
    }

    /// Lets time pass.
    pub(crate) fn wait(&mut self, duration: Duration) {
        self.now += duration;
        for (pipeline, pool) in self.pipelines.iter_mut().zip(&mut self.pools) {
            let mut staged = EmitBuffer::new();
            pipeline.refresh(self.now);
            pipeline.tick(self.now, &mut Emit::new(pool, &mut staged));
            pool.free_all(staged.drain(..).map(|(_, frame)| frame));
        }
    }

    /// Publishes another configuration.
    pub(crate) fn reload(&mut self, setup: Setup) {
        self.publisher.publish(Setup { at: self.now, ..setup }.snapshot());
    }

    /// What must hold at every moment, and when everything is over.
    ///
    /// # Panics
    /// When a server's connections are counted below zero, or a buffer is missing in the end.
    pub(crate) fn end(mut self) {
        for _ in 0..20 {
            self.wait(Duration::from_secs(200));
        }
        for (pipeline, pool) in self.pipelines.iter().zip(&self.pools) {
            assert_eq!(pool.available(), CHUNKS as usize, "every buffer is home");
            let counters = pipeline.counters();
            for slot in 0..SLOTS {
                for field in [ServerField::Active, ServerField::Inactive] {
                    assert_eq!(counters.get(counters::server(slot, field)), 0, "slot {slot}: {field:?}");
                }
            }
        }
    }
}

impl Setup {
    fn snapshot(self) -> Snapshot {
        let mut builder = Builder::new();
        builder.port(PortInfo { name: "port".into(), mac: US });
        for (number, v6) in [(0, false), (1, true)] {
            let hop = NextHop {
                port: PortId(0),
                vid: None,
                source: US,
                destination: Some(THEM),
                attached: false,
                mtu: MTU,
                address: Some(ip("10.0.0.1", "2001:db8:1::1", v6)),
            };
            builder.hop(HopId(number), hop);
            builder.route(Prefix::new(ip("0.0.0.0", "::", v6), 0).unwrap(), HopId(number));
        }
        for number in 0..SERVICES {
            let (service, servers) = self.service(number);
            builder.service(service, servers);
        }
        builder.build()
    }

    fn service(self, number: u32) -> (Service, Vec<Server>) {
        let (mode, protocol) = kind(number);
        let slots = number * PER_SERVICE * 2..(number + 1) * PER_SERVICE * 2;
        let one = |slot: u32| Server {
            id: ServerId { slot, generation: 1 + self.generation },
            service: ServiceId(number),
            address: server(slot).0,
            port: mode.sees_replies().then_some(server(slot).1),
            mode,
            weight: u32::from((self.quiesced | self.drained) >> slot & 1 == 0) * (1 + slot % 3),
            drain_at: (self.drained >> slot & 1 != 0).then_some(self.at),
            down: self.quiesced >> slot & 1 != 0 && slot.is_multiple_of(3),
            thresholds: (slot % 5 == 4).then_some(Thresholds { upper: 3, lower: 2 }),
            hop: None,
        };
        let servers: Vec<_> = slots.filter(|slot| self.gone >> slot & 1 == 0).map(one).collect();
        let listen = |v6| {
            let (address, port) = vip(number, v6);
            Listen { prefix: Prefix::host(address), ports: port..=port }
        };
        let local = |v6| Local { address: local(v6), ports: LOCAL_PORT..=LOCAL_PORT + 7 };
        let service = Service {
            id: ServiceId(number),
            name: format!("service{number}"),
            protocol,
            listen: vec![listen(false), listen(true)],
            scheduler: SchedulerKind::ALL[(usize::from(self.scheduler) + number as usize) % 14].into(),
            locals: if mode == Mode::Fullnat { vec![local(false), local(true)] } else { Vec::new() },
            out_of_state: if number.is_multiple_of(3) { OutOfState::Schedule } else { OutOfState::Reset },
            timeouts: Timeouts::default(),
            persistence: number.is_multiple_of(3).then_some(Persistence {
                timeout: Duration::from_secs(30),
                mask_v4: 31,
                mask_v6: 64,
            }),
            one_packet: protocol == Protocol::Udp && mode == Mode::Dr,
            server_gone: [ServerGone::Reset, ServerGone::Reschedule, ServerGone::Drop][number as usize % 3],
        };
        (service, servers)
    }
}
