//! One client uses the same thirty thousand ports twice in a row, while the director still remembers the first time.

use std::time::{Duration, Instant};

use crate::capture::Load;
use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{Cables, Lab, PLAIN};

const PORTS: usize = 30_000;

/// Ports per run of the client: what is done within the minute that a program has.
const PIECE: usize = 5_000;

/// One request on a connection from each port, a hundred at a time. The server closes first, so that its side of the
/// connection is the one in TIME_WAIT.
const CLIENT: &str = "
import select, socket, sys
host, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
poll, socks, answers, served, port = select.epoll(), {}, {}, 0, first
while port < first + count or socks:
    while port < first + count and len(socks) < 100:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(('', port))
        sock.connect_ex((host, 80))
        socks[sock.fileno()], answers[sock.fileno()] = sock, b''
        poll.register(sock.fileno(), select.EPOLLOUT)
        port += 1
    for fd, event in poll.poll():
        sock = socks[fd]
        if event == select.EPOLLOUT:
            sock.send(b'GET / HTTP/1.0\\r\\n\\r\\n')
            poll.modify(fd, select.EPOLLIN)
            continue
        part = sock.recv(4096)
        answers[fd] += part
        if not part:
            served += answers[fd].startswith(b'HTTP/1.1 200')
            poll.unregister(fd)
            sock.close()
            del socks[fd], answers[fd]
print(served)";

#[test]
fn thirty_thousand_ports_twice_in_a_row_through_fullnat() {
    twice("203.0.113.10");
}

#[test]
fn thirty_thousand_ports_twice_in_a_row_through_nat() {
    twice("203.0.113.20");
}

fn twice(vip: &str) {
    let mut lab = Lab::new("port-reuse", Cables { load: Load::Crowd, ..PLAIN });
    Daemon::start(&mut lab, &Config::new(Driver::Native));
    let started = Instant::now();
    for round in ["first", "second"] {
        for first in (20_000..20_000 + PORTS).step_by(PIECE) {
            let script = format!("/usr/bin/python3 -c \"{CLIENT}\" {vip} {first} {PIECE}");
            let served = lab.sh("client", &script);
            assert_eq!(served.trim(), PIECE.to_string(), "the {round} time, from port {first} on");
        }
        println!("the {round} time: {:?} since the start", started.elapsed());
    }
    let counter = |name: &str| lab.daemon.as_ref().unwrap().event(name);
    let reused = counter("connections_reused") as usize;
    // Records stay for LVS's 120 seconds of TIME_WAIT; a round takes a fraction of that.
    if started.elapsed() < Duration::from_secs(110) {
        assert_eq!(reused, PORTS, "every port of the second round was remembered from the first");
    }
    assert!(reused > 0 && counter("ports_reused") == 0);
    // A dropped or misled first SYN costs its client a second, and is sent again. A busy machine loses
    // some in its queues; a director that does not take new connections for old ones loses all of a round.
    let again: usize = lab
        .sh(
            "client",
            "awk '/^TcpExt/ { for (i = 2; i <= NF; i++) if (head[i] == \"TCPSynRetrans\") print $i; \
             for (i = 2; i <= NF; i++) head[i] = $i }' /proc/net/netstat",
        )
        .trim()
        .parse()
        .unwrap();
    assert!(again <= PORTS / 20, "{again} SYNs were sent again");
}
