//! AF_XDP on real interfaces: veth pairs in namespaces of their own. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/raw.rs"]
mod raw;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Netns, Veth, veth_pair};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use raw::RawSocket;
use shunt_engine::mempool::PoolConfig;
use shunt_engine::port::af_xdp::{AfXdp, AfXdpConfig, Mode};
use shunt_engine::port::{Port, PortError, QueuePair};
use shunt_engine::rss::Unknown;
use shunt_engine::steer::{Prefix, Rule, Side};
use shunt_engine::{Burst, Mempool};

const NEAR: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FAR: [u8; 6] = [2, 0, 0, 0, 0, 2];
const VIP: [u8; 4] = [10, 0, 0, 1];
const CLIENT: [u8; 4] = [10, 0, 0, 2];
const BOTH: [Mode; 2] = [Mode::Native, Mode::Generic];
/// Nothing here takes longer unless it is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// `port` in one namespace, `peer` in another.
struct Lab {
    near: Netns,
    far: Netns,
}

impl Lab {
    fn new(mtu: u16, queues: u16) -> Self {
        let lab = Self { near: Netns::new("near"), far: Netns::new("far") };
        let near = Veth { netns: &lab.near, name: "port", mac: NEAR };
        let far = Veth { netns: &lab.far, name: "peer", mac: FAR };
        veth_pair(near, far, mtu, queues);
        lab
    }

    fn open(&self, mode: Mode, pool: &Mempool) -> AfXdp {
        self.try_open(mode, pool).unwrap()
    }

    fn try_open(&self, mode: Mode, pool: &Mempool) -> Result<AfXdp, PortError> {
        let config = AfXdpConfig { mode, port_sets: 8, ..AfXdpConfig::new("port") };
        self.near.enter(|| AfXdp::open(&config, pool.region()))
    }

    /// What `ip` says of the port.
    fn link(&self) -> String {
        self.near.run("ip", &["-d", "-o", "link", "show", "dev", "port"])
    }

    fn has_program(&self) -> bool {
        self.link().contains("prog/xdp")
    }

    fn peer(&self) -> RawSocket {
        self.far.enter(|| RawSocket::open("peer"))
    }
}

fn pool(chunks: u32) -> Mempool {
    Mempool::single(PoolConfig { chunks, ..PoolConfig::default() }).unwrap()
}

fn udp_rule(port: u16) -> Rule {
    Rule { side: Side::Destination, prefix: Prefix::host(VIP.into()), protocol: 17, ports: port..=port }
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(FAR, NEAR).ipv4(CLIENT, VIP, 64).udp(4000, port);
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// Polls the queue until `count` frames are there.
fn receive(queue: &mut QueuePair, pool: &mut Mempool, count: usize) -> Vec<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut frames = Vec::new();
    while frames.len() < count {
        assert!(Instant::now() < until, "{} of {count} frames came, {:?}", frames.len(), queue.0.stats());
        frames.extend(poll_once(queue, pool));
    }
    frames
}

fn poll_once(queue: &mut QueuePair, pool: &mut Mempool) -> Vec<Vec<u8>> {
    let mut burst = Burst::new();
    queue.0.rx_burst(pool, &mut burst);
    let frames = burst.iter().map(|frame| frame.data().to_vec()).collect();
    pool.free_all(burst.drain(..));
    frames
}

#[test]
fn frames_are_received_and_sent_in_order_in_both_modes() {
    for mode in BOTH {
        let lab = Lab::new(1500, 1);
        let mut pool = pool(4096);
        let mut port = lab.open(mode, &pool);
        let kind = if mode == Mode::Native { "af_xdp native" } else { "af_xdp generic" };
        assert_eq!((port.caps().kind, port.caps().queues, port.caps().mtu), (kind, 1, 1500));
        assert_eq!(port.caps().mac.0, NEAR);
        // veth has no hash of its own to tell.
        assert_eq!(port.caps().rss, Err(Unknown::NotTold));
        let mut queue = port.take_queue(0).unwrap();
        assert!(matches!(port.take_queue(0), Err(PortError::NoSuchQueue { queue: 0, .. })));
        assert!(matches!(port.take_queue(1), Err(PortError::NoSuchQueue { queue: 1, .. })));
        port.steer(&[udp_rule(53)]).unwrap();
        assert!(poll_once(&mut queue, &mut pool).is_empty());

        let peer = lab.peer();
        let sent: Vec<_> = (0..500u32).map(|n| udp(53, &n.to_be_bytes())).collect();
        sent.iter().for_each(|frame| peer.send(frame));
        let received = receive(&mut queue, &mut pool, sent.len());
        assert_eq!(received, sent, "{kind}");
        assert_eq!(queue.0.stats().packets, 500);

        for chunk in sent.chunks(32) {
            let mut burst = Burst::new();
            for bytes in chunk {
                let mut frame = pool.alloc().unwrap();
                assert!(frame.fill(bytes));
                burst.push(frame);
            }
            let until = Instant::now() + PATIENCE;
            while !burst.is_empty() {
                queue.1.tx_burst(&mut pool, &mut burst);
                assert!(Instant::now() < until, "{kind}: {} frames are stuck", burst.len());
            }
            // Chunk by chunk: the peer's socket buffer is small.
            for frame in chunk {
                assert_eq!(peer.receive(PATIENCE).as_ref(), Some(frame), "{kind}");
            }
        }
        assert_eq!(queue.1.stats().packets, 500);
    }
}

/// The UDP or TCP destination port of a frame of these tests.
fn port_of(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[36], frame[37]])
}

#[test]
fn rules_change_under_traffic_without_detaching() {
    for mode in BOTH {
        let lab = Lab::new(1500, 1);
        let mut pool = pool(4096);
        let mut port = lab.open(mode, &pool);
        let mut queue = port.take_queue(0).unwrap();
        let link = port.link_id().unwrap();
        let peer = lab.peer();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    peer.send(&udp(50 + number % 4, b"traffic"));
                    std::thread::sleep(Duration::from_micros(50));
                }
            });
            for wanted in [&[50u16][..], &[50, 51], &[51, 53], &[], &[52]] {
                let rules: Vec<_> = wanted.iter().map(|&port| udp_rule(port)).collect();
                port.steer(&rules).unwrap();
                // What was on its way when the rules changed: less than a burst each in the driver and in the ring.
                let settled = Instant::now() + Duration::from_millis(100);
                while Instant::now() < settled {
                    poll_once(&mut queue, &mut pool);
                }
                let mut seen = std::collections::BTreeSet::new();
                let until = Instant::now() + PATIENCE;
                let mut quiet = 0;
                while seen.len() < wanted.len() || quiet < 100 {
                    assert!(Instant::now() < until, "{mode:?}: {wanted:?} wanted, {seen:?} seen");
                    seen.extend(poll_once(&mut queue, &mut pool).iter().map(|frame| port_of(frame)));
                    std::thread::sleep(Duration::from_micros(200));
                    quiet += 1;
                }
                assert_eq!(seen, wanted.iter().copied().collect(), "{mode:?}");
                assert_eq!(port.link_id().unwrap(), link, "{mode:?}");
            }
        });
        assert_eq!(queue.0.stats().missed, 0);
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn partial_checksums_of_a_stack_on_this_host_arrive_completed() {
    for mode in BOTH {
        let lab = Lab::new(1500, 1);
        let mut pool = pool(4096);
        let mut port = lab.open(mode, &pool);
        let mut queue = port.take_queue(0).unwrap();
        poll_once(&mut queue, &mut pool);
        let tcp = Rule { protocol: 6, ..udp_rule(80) };
        port.steer(&[udp_rule(53), tcp]).unwrap();
        lab.far.ip("address add 10.0.0.2/24 dev peer");
        lab.far.ip("neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev peer");
        let socket = lab.far.enter(|| UdpSocket::bind("10.0.0.2:4000")).unwrap();
        for len in [0, 1, 999, 1472] {
            socket.send_to(&vec![0xa7; len], "10.0.0.1:53").unwrap();
        }
        let mut frames = receive(&mut queue, &mut pool, 4);
        // Nobody answers: the SYN is what matters.
        let connect =
            || TcpStream::connect_timeout(&"10.0.0.1:80".parse().unwrap(), Duration::from_millis(50));
        assert!(lab.far.enter(connect).is_err());
        frames.extend(receive(&mut queue, &mut pool, 1));
        for frame in &frames {
            verify(frame);
        }
        assert!(queue.0.stats().checksum_completed >= 5, "{mode:?}: {:?}", queue.0.stats());
    }
}

/// Compares the checksum with what another implementation computes.
fn verify(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("IPv4 is sent: {frame:02x?}") };
    let header = ip.header().to_header();
    let (found, computed) = match packet.transport.unwrap() {
        TransportSlice::Udp(udp) => {
            (udp.checksum(), udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap())
        }
        TransportSlice::Tcp(tcp) => {
            (tcp.checksum(), tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap())
        }
        other => panic!("UDP or TCP is sent: {other:?}"),
    };
    assert_eq!(found, computed, "{frame:02x?}");
}

/// One frame per flow, many flows.
fn flows() -> Vec<Vec<u8>> {
    (0..200u16)
        .map(|source| {
            let mut bytes = Vec::new();
            let builder = PacketBuilder::ethernet2(FAR, NEAR).ipv4(CLIENT, VIP, 64).udp(5000 + source, 53);
            builder.write(&mut bytes, &source.to_be_bytes()).unwrap();
            bytes
        })
        .collect()
}

#[test]
fn every_queue_receives_its_flows_and_one_without_a_socket_passes_to_the_kernel() {
    for mode in BOTH {
        // In generic mode veth shows transmit queue n of the peer as receive queue n - 1 (and 0 as 0).
        let lab = Lab::new(1500, 3);
        let mut pool = pool(4096);
        let mut port = lab.open(mode, &pool);
        assert_eq!(port.caps().queues, 3);
        port.steer(&[udp_rule(53)]).unwrap();
        let mut first = port.take_queue(0).unwrap();
        poll_once(&mut first, &mut pool);
        let kernel = lab.near.enter(|| RawSocket::open("port"));
        let peer = lab.peer();
        let flows = flows();

        flows.iter().for_each(|frame| peer.send(frame));
        let mut passed = 0;
        let mut taken = 0;
        let until = Instant::now() + PATIENCE;
        while taken + passed < flows.len() {
            assert!(Instant::now() < until, "{mode:?}: {taken} taken, {passed} passed");
            taken += poll_once(&mut first, &mut pool).len();
            passed += usize::from(kernel.receive(Duration::from_millis(1)).is_some());
        }
        assert!(taken > 0 && passed > 0, "{mode:?}: {taken} taken, {passed} passed");

        let mut others = [1, 2].map(|queue| port.take_queue(queue).unwrap());
        for queue in &mut others {
            poll_once(queue, &mut pool);
        }
        flows.iter().for_each(|frame| peer.send(frame));
        assert_eq!(receive(&mut first, &mut pool, taken).len(), taken, "{mode:?}");
        let mut rest = 0;
        while rest < passed {
            assert!(Instant::now() < until, "{mode:?}: {rest} of {passed}");
            rest += others.iter_mut().map(|queue| poll_once(queue, &mut pool).len()).sum::<usize>();
        }
        assert_eq!(rest, passed, "{mode:?}");
        assert_eq!(kernel.receive(Duration::from_millis(50)), None, "{mode:?}: nothing passes any more");
    }
}

#[test]
fn frames_above_the_mtu_are_dropped_and_counted_both_ways() {
    for mode in BOTH {
        let lab = Lab::new(1500, 1);
        let mut pool = pool(4096);
        let mut port = lab.open(mode, &pool);
        let mut queue = port.take_queue(0).unwrap();
        port.steer(&[udp_rule(53)]).unwrap();
        poll_once(&mut queue, &mut pool);
        // veth itself drops what is above the MTU, so it is raised behind the port's back.
        lab.near.ip("link set port mtu 3000");
        lab.far.ip("link set peer mtu 3000");
        let peer = lab.peer();
        for payload in [1472, 1477, 1700, 2500, 1476] {
            peer.send(&udp(53, &vec![1; payload]));
        }
        let frames = receive(&mut queue, &mut pool, 2);
        assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [1514, 1518], "{mode:?}");
        let stats = queue.0.stats();
        assert_eq!((stats.packets, stats.oversize, stats.missed), (2, 3, 0), "{mode:?}");

        let before = pool.available();
        let mut burst = Burst::new();
        for len in [1519, 1518, 13] {
            let mut frame = pool.alloc().unwrap();
            assert!(frame.fill(&vec![2; len]));
            burst.push(frame);
        }
        assert_eq!(queue.1.tx_burst(&mut pool, &mut burst), 3);
        assert_eq!(peer.receive(PATIENCE).unwrap().len(), 1518, "{mode:?}");
        let stats = queue.1.stats();
        assert_eq!((stats.packets, stats.oversize, stats.errors), (1, 1, 1), "{mode:?}");
        let until = Instant::now() + PATIENCE;
        while pool.available() < before {
            assert!(Instant::now() < until, "{mode:?}: the sent frame's buffer comes back");
            queue.1.reclaim(&mut pool);
        }
    }
}

#[test]
fn super_frames_of_a_segmenting_stack_count_as_oversize() {
    let lab = Lab::new(1500, 1);
    let mut pool = pool(4096);
    let mut port = lab.open(Mode::Generic, &pool);
    let mut queue = port.take_queue(0).unwrap();
    poll_once(&mut queue, &mut pool);
    lab.near.ip("address add 10.0.0.1/24 dev port");
    lab.far.ip("address add 10.0.0.2/24 dev peer");
    let listener = lab.near.enter(|| TcpListener::bind("10.0.0.1:80")).unwrap();
    let mut client = lab.far.enter(|| TcpStream::connect("10.0.0.1:80")).unwrap();
    let _server = listener.accept().unwrap();
    port.steer(&[Rule { protocol: 6, ..udp_rule(80) }]).unwrap();
    // Nothing is acknowledged from here on: only as much is written as the socket takes at once.
    client.set_nonblocking(true).unwrap();
    assert!(client.write(&[0; 100_000]).unwrap() > 5000);
    let until = Instant::now() + PATIENCE;
    while queue.0.stats().oversize == 0 {
        assert!(Instant::now() < until, "{:?}", queue.0.stats());
        poll_once(&mut queue, &mut pool);
    }
}

#[test]
fn an_mtu_that_does_not_fit_is_refused_before_anything_is_touched() {
    let lab = Lab::new(1775, 1);
    let pool = pool(64);
    match lab.try_open(Mode::Auto, &pool) {
        Err(PortError::MtuTooLarge { mtu: 1775, room: 1792, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(!lab.has_program());
    lab.near.ip("link set port mtu 1774");
    lab.open(Mode::Auto, &pool);
}

#[test]
fn what_cannot_be_opened_is_a_clear_error() {
    let lab = Lab::new(1500, 1);
    let pool = pool(64);
    let open = |config: AfXdpConfig| lab.near.enter(|| AfXdp::open(&config, pool.region()));
    let error = open(AfXdpConfig::new("absent")).unwrap_err().to_string();
    assert_eq!(error, "interface \"absent\" does not exist");
    let error = open(AfXdpConfig { queues: Some(2), ..AfXdpConfig::new("port") }).unwrap_err().to_string();
    assert_eq!(error, "port: 2 queues are configured and the device has 1");
    let _holder = lab.open(Mode::Generic, &pool);
    let error = lab.try_open(Mode::Generic, &pool).unwrap_err().to_string();
    assert!(error.contains("another XDP program is attached"), "{error}");
    // Native XDP of veth wants the peer's frames to fit a page; generic takes them as they come.
    let big = Lab::new(1500, 1);
    big.far.ip("link set peer mtu 9000");
    let error = big.try_open(Mode::Native, &pool).unwrap_err().to_string();
    assert!(error.contains("native XDP: the MTU is too large for the driver"), "{error}");
    assert_eq!(big.open(Mode::Auto, &pool).caps().kind, "af_xdp generic");
}

#[test]
fn a_closed_port_leaves_the_interface_as_it_was() {
    for mode in BOTH {
        let lab = Lab::new(1500, 1);
        let offloads = || lab.near.run("ethtool", &["-k", "port"]);
        lab.near.run("ethtool", &["-K", "port", "gro", "on"]);
        let before = offloads();
        assert!(before.contains("generic-receive-offload: on"), "{before}");
        let pool = pool(1024);
        for _ in 0..2 {
            // The second time right after the first: the kernel still holds the queue for a moment.
            let mut port = lab.open(mode, &pool);
            let _queue = port.take_queue(0).unwrap();
            assert!(lab.has_program());
            if mode == Mode::Generic {
                // (veth itself insists on it while a native program is attached; that runs before GRO.)
                assert!(offloads().contains("generic-receive-offload: off"), "{}", offloads());
            }
            assert!(lab.link().contains("promiscuity 0"), "{}", lab.link());
            drop(port);
            assert!(!lab.has_program(), "{mode:?}");
            assert_eq!(offloads(), before, "{mode:?}");
            assert!(lab.link().contains("promiscuity 0"), "{}", lab.link());
        }
    }
}

/// Set for the process that is going to be killed.
const HOLD: &str = "SHUNT_TEST_HOLD_PORT";

#[test]
fn a_killed_process_leaves_no_program_behind() {
    if std::env::var_os(HOLD).is_some() {
        let pool = pool(1024);
        let mut port = AfXdp::open(&AfXdpConfig::new("port"), pool.region()).unwrap();
        let _queue = port.take_queue(0).unwrap();
        println!("attached");
        std::thread::sleep(PATIENCE);
        return;
    }
    let lab = Lab::new(1500, 1);
    let test = std::env::current_exe().unwrap();
    let mut holder = Command::new("ip")
        .args(["netns", "exec", lab.near.name()])
        .arg(test)
        .args(["--exact", "a_killed_process_leaves_no_program_behind", "--nocapture"])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(holder.stdout.take().unwrap());
    let attached = output.lines().map_while(Result::ok).any(|line| line.contains("attached"));
    let before = lab.has_program();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(attached && before, "the process had the port");
    let until = Instant::now() + PATIENCE;
    while lab.has_program() {
        assert!(Instant::now() < until, "the program is still there: {}", lab.link());
        std::thread::sleep(Duration::from_millis(10));
    }
    // And the interface can be taken again.
    lab.open(Mode::Native, &pool(1024));
}

#[test]
fn queues_outlive_their_port_and_their_pool_without_harm() {
    let lab = Lab::new(1500, 1);
    let mut pool = pool(4096);
    let mut port = lab.open(Mode::Native, &pool);
    port.steer(&[udp_rule(53)]).unwrap();
    let mut queue = port.take_queue(0).unwrap();
    poll_once(&mut queue, &mut pool);
    drop(port);
    lab.peer().send(&udp(53, b"late"));
    assert!(poll_once(&mut queue, &mut pool).is_empty());
    drop(pool);
    drop(queue);
}
