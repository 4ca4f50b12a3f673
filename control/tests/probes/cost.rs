//! What a connection of a check costs, beside the same done with nothing but system calls.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::epoll;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use shunt_control::health::probe::{Probe, Target};

use crate::world::alone;

/// Connections of one round, and how many are under way at once.
const CONNECTIONS: u32 = 2_000;
const AT_ONCE: usize = 100;

const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 80);

/// Time that this thread has had a processor, in nanoseconds.
fn spent() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Opens and resets so many connections with epoll.
fn bare() {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let mut sockets: Vec<Option<OwnedFd>> = (0..AT_ONCE).map(|_| None).collect();
    let mut begun = 0;
    let mut begin = |place: usize| {
        if begun == CONNECTIONS {
            return None;
        }
        begun += 1;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
        let started = net::connect(&socket, &ADDRESS);
        assert!(matches!(started, Ok(()) | Err(rustix::io::Errno::INPROGRESS)), "{started:?}");
        let data = epoll::EventData::new_u64(place as u64);
        epoll::add(&epoll, &socket, data, epoll::EventFlags::OUT | epoll::EventFlags::ET).unwrap();
        Some(socket)
    };
    for (place, socket) in sockets.iter_mut().enumerate() {
        *socket = begin(place);
    }
    let mut ended = 0;
    while ended < CONNECTIONS {
        let mut events = Vec::with_capacity(AT_ONCE);
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        for event in events {
            let place = usize::try_from(event.data.u64()).unwrap();
            let socket = sockets[place].take().unwrap();
            sockopt::socket_error(&socket).unwrap().unwrap();
            drop(socket);
            ended += 1;
            sockets[place] = begin(place);
        }
    }
}

/// The same as checks.
async fn checks() {
    let left = AtomicU32::new(CONNECTIONS);
    let target = Target { address: ADDRESS.into() };
    let one = async || {
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            Probe::Tcp.run(&target, Duration::from_secs(20)).await.unwrap();
        }
    };
    futures_util::future::join_all((0..AT_ONCE).map(|_| one())).await;
}

/// Listens with room for a round that nobody accepts: the standard library's queue is shorter.
fn listener() -> TcpListener {
    let socket = net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    net::bind(&socket, &ADDRESS).unwrap();
    net::listen(&socket, 2 * CONNECTIONS.cast_signed()).unwrap();
    socket.into()
}

#[test]
fn a_tcp_check_costs_at_most_twice_a_bare_connection() {
    alone(async || {
        let listener = listener();
        let accepted = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&accepted);
        std::thread::spawn(move || {
            for _ in listener.incoming() {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut rounds = 0;
        // The accept queue is empty before each round: a full one would drop SYNs.
        let mut settled = async || {
            rounds += 1;
            while accepted.load(Ordering::Relaxed) < rounds * CONNECTIONS {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let (mut bare_ns, mut checks_ns) = (u64::MAX, u64::MAX);
        for _ in 0..7 {
            let start = spent();
            bare();
            bare_ns = bare_ns.min(spent() - start);
            settled().await;
            let start = spent();
            checks().await;
            checks_ns = checks_ns.min(spent() - start);
            settled().await;
        }
        let each = |ns: u64| ns / u64::from(CONNECTIONS);
        println!("a bare connection {} ns, a check {} ns", each(bare_ns), each(checks_ns));
        assert!(
            checks_ns <= 2 * bare_ns,
            "a bare connection {} ns, a check {} ns",
            each(bare_ns),
            each(checks_ns)
        );
        assert!(
            checks_ns * 2 >= bare_ns,
            "a check cannot cost less than half of its system calls: {checks_ns} {bare_ns}"
        );
    });
}
