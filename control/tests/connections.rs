//! `GET /v1/connections` over a real Unix socket and a real worker with 100 000 connections.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shunt_control::admin::Ask;
use shunt_control::admin::client::{ClientError, lines, query_value};
use shunt_control::admin::connections::{Access, Dumps};
use shunt_control::admin::server::{ASKS_MAX, serve};
use shunt_control::admin::socket::claim;
use shunt_control::admin::view::Connection;
use shunt_control::events::Events;
use shunt_dataplane::agreed::Agreed;
use shunt_dataplane::conn::Timeouts;
use shunt_dataplane::neigh::{HopId, NextHop};
use shunt_dataplane::pipeline::{Config, Pipeline};
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::{Mode, Server, ServerId};
use shunt_dataplane::service::{Listen, OutOfState, ServerGone, Service, ServiceId};
use shunt_dataplane::snapshot::{Builder, PortInfo, Snapshot};
use shunt_dataplane::tuple::{Endpoint, Protocol, Tuple, V4};
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::tcp::flags::SYN;
use shunt_engine::clock::Clock;
use shunt_engine::idle::IdleConfig;
use shunt_engine::lcore::Workers;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::port::MacAddr;
use shunt_engine::program::{EmitBuffer, Verdicts};
use shunt_engine::publish::{self, Publisher};
use shunt_engine::steer::Prefix;
use shunt_engine::worker::{Setup, Worker};
use shunt_engine::{BURST, Burst, Emit, Mempool, Origin, PortId, Program, WorkerId, ring};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Connections in the worker's table.
const LEN: u32 = 100_000;
const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const VIP: Endpoint<V4> = Endpoint::new(V4(0xcb00_710a), 80);

fn ip(bits: u32) -> IpAddr {
    Ipv4Addr::from_bits(bits).into()
}

/// A DR service with two servers, taken in turn.
fn snapshot() -> Snapshot {
    let mut builder = Builder::new();
    builder.port(PortInfo { name: "port".into(), mac: US });
    let hop = NextHop {
        port: PortId(0),
        vid: None,
        source: US,
        destination: Some(MacAddr([2, 0, 0, 0, 0, 2])),
        attached: false,
        mtu: 1500,
        address: None,
    };
    builder.hop(HopId(0), hop).route(Prefix::new(ip(0), 0).unwrap(), HopId(0));
    let server = |slot: u32| Server {
        id: ServerId { slot, generation: 0 },
        service: ServiceId(0),
        address: ip(0x0a00_000b + slot),
        port: None,
        mode: Mode::Dr,
        weight: 1,
        hop: None,
        drain_at: None,
        down: false,
        thresholds: None,
    };
    let servers = vec![server(0), server(1)];
    let service = Service {
        id: ServiceId(0),
        name: "web".into(),
        protocol: Protocol::Tcp,
        listen: vec![Listen { prefix: Prefix::host(ip(VIP.address.0)), ports: VIP.port..=VIP.port }],
        scheduler: SchedulerKind::Rr.into(),
        locals: Vec::new(),
        out_of_state: OutOfState::Drop,
        timeouts: Timeouts::default(),
        persistence: None,
        one_packet: false,
        server_gone: ServerGone::Reset,
    };
    builder.service(service, servers);
    builder.build()
}

/// Client number `number`: 500 ports per address from 198.18.0.0 on.
fn client(number: u32) -> Endpoint<V4> {
    Endpoint::new(V4(0xc612_0000 + number / 500), 1024 + (number % 500) as u16)
}

/// Opens every client's connection.
fn fill(pipeline: &mut Pipeline, clock: &Clock) {
    let pool = PoolConfig { chunks: 4 * BURST as u32, ..PoolConfig::default() };
    let mut pool = Mempool::single(pool).unwrap();
    pipeline.refresh(clock.now());
    for first in (0..LEN).step_by(BURST) {
        let (mut frames, mut verdicts, mut staged) = (Burst::new(), Verdicts::new(), EmitBuffer::new());
        for number in first..(first + BURST as u32).min(LEN) {
            let tuple = Tuple { src: client(number), dst: VIP, protocol: Protocol::Tcp };
            let mut frame = pool.alloc().unwrap();
            assert!(frame.fill(&PacketBuilder::tuple(&tuple).link(MacAddr([2; 6]), US).flags(SYN).build()));
            frames.push(frame);
        }
        let mut emit = Emit::new(&mut pool, &mut staged);
        pipeline.on_burst(clock.now(), Origin::Port, &mut frames, &mut verdicts, &mut emit);
        pool.free_all(frames.drain(..));
    }
}

/// A daemon's worker and API.
struct Director {
    folder: PathBuf,
    workers: Workers<Pipeline>,
    publisher: Publisher<Snapshot>,
    _claim: shunt_control::admin::socket::Claim,
}

impl Director {
    async fn start(label: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("shunt-dump-{}-{label}", std::process::id()));
        let clock = Clock::System;
        let (publisher, mut readers) = publish::channel(snapshot(), 1);
        let config = Config {
            worker: WorkerId(0),
            workers: 1,
            secret: [1, 2],
            max_connections: 2 * LEN,
            max_services: 4,
            max_servers: 4,
        };
        let mut pipeline =
            Pipeline::new(config, Agreed::new(64, config.max_servers, config.secret), readers.remove(0))
                .unwrap();
        let inquiries = vec![pipeline.inquiries()];
        fill(&mut pipeline, &clock);
        let worker = Worker::new(Setup {
            program: pipeline,
            clock,
            pool: Mempool::single(PoolConfig { chunks: 64, ..PoolConfig::default() }).unwrap(),
            links: ring::mesh(1).unwrap().remove(0),
            rx: Vec::new(),
            ports: Vec::new(),
            punt: None,
            idle: IdleConfig::default(),
        });
        let workers = Workers::start(vec![worker], None).unwrap();
        let names = [(0, "rs1"), (1, "rs2")]
            .map(|(slot, name)| (ServerId { slot, generation: 0 }, ("web".to_owned(), name.to_owned())));
        let names = HashMap::from(names);
        let access = Access { dumps: Dumps::new(inquiries, workers.wakers().clone()), names };
        let (listener, claim) = claim(&folder.join("shunt.sock"), None).await.unwrap();
        let (asks, mut asked) = mpsc::channel(ASKS_MAX);
        tokio::spawn(serve(listener, asks, Events::default()));
        tokio::spawn(async move {
            while let Some(ask) = asked.recv().await {
                if let Ask::Connections(answer) = ask {
                    let _ = answer.send(access.clone());
                }
            }
        });
        Self { folder, workers, publisher, _claim: claim }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("shunt.sock")
    }

    /// A client that has asked for everything and reads nothing.
    async fn idle_reader(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        stream.write_all(b"GET /v1/connections HTTP/1.1\r\nhost: shunt\r\n\r\n").await.unwrap();
        stream
    }
}

impl Drop for Director {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// All connections that a query shows.
async fn shown(socket: &Path, query: &str) -> Result<Vec<Connection>, ClientError> {
    let mut shown = Vec::new();
    let read = |line: &[u8]| {
        shown.push(serde_json::from_slice(line).unwrap());
        ControlFlow::Continue(())
    };
    let path = format!("/v1/connections?{query}");
    tokio::time::timeout(Duration::from_secs(25), lines(socket, &path, read)).await.expect("a dump ends")?;
    Ok(shown)
}

fn clients(shown: &[Connection]) -> BTreeSet<&str> {
    shown.iter().map(|connection| connection.client.as_str()).collect()
}

#[tokio::test]
async fn a_dump_of_100_000_connections_shows_each_once() {
    let director = Director::start("whole").await;
    let started = std::time::Instant::now();
    let all = shown(&director.socket(), "").await.unwrap();
    println!("{} connections in {:?}", all.len(), started.elapsed());
    assert_eq!((all.len(), clients(&all).len()), (LEN as usize, LEN as usize));
    let one = all.iter().find(|connection| connection.client == "198.18.0.3:1030").unwrap();
    let expected = Connection {
        protocol: "tcp".into(),
        expires_seconds: one.expires_seconds,
        state: "SYN_RECV".into(),
        client: "198.18.0.3:1030".into(),
        virtual_address: "203.0.113.10:80".into(),
        server: one.server.clone(),
        local: None,
        mode: "dr".into(),
        worker: 0,
        service: Some("web".into()),
        server_name: one.server_name.clone(),
    };
    assert_eq!(*one, expected);
    assert!((30..=61).contains(&one.expires_seconds), "{}", one.expires_seconds);
    let names = [("10.0.0.11:80", "rs1"), ("10.0.0.12:80", "rs2")];
    assert!(names.contains(&(&one.server, one.server_name.as_deref().unwrap())));
}

#[tokio::test]
async fn filters_choose_by_client_server_and_state() {
    let director = Director::start("filters").await;
    let socket = director.socket();
    let count = async |query: &str| shown(&socket, query).await.unwrap().len();
    assert_eq!(count("client=198.18.0.3").await, 500);
    assert_eq!(count(&format!("client={}", query_value("198.18.0.0/30"))).await, 2000);
    assert_eq!(count(&format!("client={}", query_value("198.18.0.3:1030"))).await, 1);
    assert_eq!(count(&format!("client={}", query_value("198.18.0.0/16:1030"))).await, 200);
    assert_eq!(count("client=192.0.2.1").await, 0);
    assert_eq!(count("server=rs1").await, 50_000);
    assert_eq!(count("server=10.0.0.12").await, 50_000);
    assert_eq!(count(&format!("server={}", query_value("10.0.0.12:81"))).await, 0);
    assert_eq!(count("state=syn_recv&client=198.18.0.3").await, 500);
    assert_eq!(count("state=ESTABLISHED").await, 0);
}

#[tokio::test]
async fn a_filter_that_makes_no_sense_is_refused_with_a_reason() {
    let director = Director::start("refused").await;
    for (query, reason) in [
        ("client=web", "client: \"web\" is no address"),
        ("client=10.0.0.0%2F33", "client: \"10.0.0.0/33\" is no address"),
        ("server=rs7", "server: \"rs7\" is neither an address nor the name of a server"),
        ("state=open", "state: \"open\" is no state; known are NONE, ESTABLISHED"),
        ("port=80", "unknown field `port`"),
    ] {
        let error = shown(&director.socket(), query).await.unwrap_err();
        assert!(matches!(error, ClientError::Refused(_)) && error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn readers_that_are_slow_or_gone_hold_up_neither_the_worker_nor_other_readers() {
    let mut director = Director::start("slow").await;
    // More than there are dumps at a time, each gone in the middle.
    for _ in 0..8 {
        let mut stream = director.idle_reader().await;
        let mut some = [0; 4096];
        stream.read_exact(&mut some).await.unwrap();
        assert!(some.starts_with(b"HTTP/1.1 200 OK"));
    }
    let slow = director.idle_reader().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(shown(&director.socket(), "").await.unwrap().len(), LEN as usize);
    // The worker adopts what is published meanwhile, and the slow reader gets the whole after all.
    let generation = director.publisher.publish(snapshot());
    director.workers.wakers().wake_all();
    let adopted = async {
        while director.publisher.in_force() < generation {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), adopted).await.expect("the worker is not held up");
    let mut answer = Vec::new();
    let mut slow = slow;
    tokio::time::timeout(Duration::from_secs(25), slow.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer.windows(11).filter(|piece| piece == b"\"protocol\":").count(), LEN as usize);
    // Nobody reads any more: the worker sleeps again.
    let loops = || director.workers.views()[0].get(shunt_engine::report::WorkerCounter::Sleeps);
    let before = loops();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(loops() > before, "the worker sleeps");
}
