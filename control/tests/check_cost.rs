//! What checks cost: CPU time of ten thousand TCP checks per second beside that of a loop that does no more than open
//! and close as many connections with epoll.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::time::{ClockId, Timespec, clock_gettime};
use shunt_control::config::Config;
use shunt_control::health::driver::Driver;

/// Checks, each asked once a second.
const CHECKS: usize = 10_000;

/// A stretch that is measured, if the machine has time for it.
const STRETCH: Duration = Duration::from_secs(1);

/// How long so many checks may take all the same.
const STRETCH_MAX: Duration = Duration::from_secs(30);

const ROUNDS: usize = 3;

/// So many times what the bare loop takes.
const COST_MAX: f64 = 2.0;

#[test]
fn ten_thousand_checks_per_second_cost_at_most_twice_a_bare_epoll_loop() {
    let (port, accepted) = server();
    // One warm-up round, then the two in turn. The best of each: other work on the machine only ever adds.
    let rounds: Vec<_> = (0..=ROUNDS).map(|_| (bare(port), checks(port, &accepted))).skip(1).collect();
    let best = |of: fn(&(f64, f64)) -> f64| rounds.iter().map(of).fold(f64::INFINITY, f64::min);
    let (bare, checks) = (best(|round| round.0), best(|round| round.1));
    println!(
        "CPU time per connection: bare {bare:.2} µs, checked {checks:.2} µs, {:.2} times",
        checks / bare
    );
    assert!(checks <= COST_MAX * bare, "{rounds:?}");
}

/// Accepts connections on every address of 127.0.0.0/8 and drops them. Returns the port and how many there were.
fn server() -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    // Room for all that is on its way while this thread has to wait for a core.
    rustix::net::listen(&listener, 4096).unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepted = Arc::new(AtomicU64::new(0));
    let count = accepted.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    (port, accepted)
}

fn address(number: usize) -> Ipv4Addr {
    let [_, high, low] = [0, number / 200, number % 200 + 1].map(|part| u8::try_from(part).unwrap());
    Ipv4Addr::new(127, 1, high, low)
}

fn cpu() -> f64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ThreadCPUTime);
    tv_sec as f64 * 1e6 + tv_nsec as f64 / 1e3
}

/// Opens and closes connections at the pace of the checks. Returns the CPU time of each, in microseconds.
fn bare(port: u16) -> f64 {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let mut open: HashMap<u64, OwnedFd> = HashMap::new();
    let mut events = Vec::with_capacity(256);
    let (started, began) = (Instant::now(), cpu());
    let (mut asked, mut connected) = (0, 0);
    while started.elapsed() < STRETCH || !open.is_empty() {
        let due = (started.elapsed().min(STRETCH).as_secs_f64() * CHECKS as f64) as usize;
        while asked < due {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket =
                rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
            sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
            let to = SocketAddr::new(IpAddr::V4(address(asked % CHECKS)), port);
            match rustix::net::connect(&socket, &to) {
                Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
                Err(error) => panic!("{error}"),
            }
            let key = socket.as_raw_fd() as u64;
            epoll::add(&poll, &socket, epoll::EventData::new_u64(key), epoll::EventFlags::OUT).unwrap();
            open.insert(key, socket);
            asked += 1;
        }
        events.clear();
        let nap = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&nap)).unwrap();
        for event in &events {
            let socket = open.remove(&event.data.u64()).unwrap();
            sockopt::socket_error(&socket).unwrap().unwrap();
            connected += 1;
        }
        if open.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    (cpu() - began) / f64::from(connected)
}

/// Lets the daemon's checks run as long. Returns the CPU time of each, in microseconds.
fn checks(port: u16, accepted: &AtomicU64) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = config(port);
    runtime.block_on(async {
        let driver = Driver::new(1);
        driver.alter(|watch, now| watch.configure(&config, now));
        let running = tokio::spawn(driver.clone().run(|_| ()));
        // In the first second every check begins.
        tokio::time::sleep(STRETCH).await;
        let (started, began, before) = (Instant::now(), cpu(), accepted.load(Ordering::Relaxed));
        let made = || accepted.load(Ordering::Relaxed) - before;
        while made() < CHECKS as u64 {
            assert!(started.elapsed() < STRETCH_MAX, "only {} checks in {STRETCH_MAX:?}", made());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (took, made) = (cpu() - began, made());
        running.abort();
        took / made as f64
    })
}

/// A service of that many servers. Addresses of this host are no servers to a file, so they are put in afterwards.
fn config(port: u16) -> Config {
    let servers: String = (0..CHECKS)
        .map(|n| format!("[[service.server]]\naddress = \"10.1.{}.{}:80\"\n", n / 200, n % 200 + 1))
        .collect();
    let text = format!(
        "[[port]]\ninterface = \"eth0\"\n[[service]]\nname = \"web\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
         listen = [\"203.0.113.10:80\"]\n[[service.check]]\nkind = \"tcp\"\nport = {port}\ninterval = \"1s\"\n\
         jitter = \"10ms\"\n{servers}"
    );
    let mut config = Config::parse("test", &text, false).unwrap().config;
    let servers = &mut Arc::make_mut(&mut config.services[0]).servers;
    servers.iter_mut().enumerate().for_each(|(n, server)| server.address = IpAddr::V4(address(n)));
    config
}
