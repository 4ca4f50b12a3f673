//! Two hundred connections open at the same time in each mode, all of them served.

use crate::daemon::{Config, Daemon, Driver, over_every_driver};
use crate::lab::{Lab, MODES, PLAIN};

/// Opens all connections before the first request, and closes none before the last answer.
const CLIENT: &str = "
import collections, socket, sys
socks = [socket.create_connection((sys.argv[1], 80), 10) for _ in range(200)]
for sock in socks:
    sock.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
names = collections.Counter()
for sock in socks:
    answer = b''
    while part := sock.recv(4096):
        answer += part
    names[answer.split(b'\\r\\n\\r\\n')[1].decode().strip()] += 1
print(*sorted(names), *sorted(names.values()))";

over_every_driver!(two_hundred_connections_at_once_are_all_served);

fn two_hundred_connections_at_once_are_all_served(driver: Driver) {
    let mut lab = Lab::new("concurrent", PLAIN);
    Daemon::start(&mut lab, &Config::new(driver));
    for (mode, vip) in MODES {
        let answers = lab.sh("client", &format!("/usr/bin/python3 -c \"{CLIENT}\" {vip}"));
        assert_eq!(answers.trim(), "rs1 rs2 rs3 66 67 67", "{mode}");
    }
}
