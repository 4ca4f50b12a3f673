//! A server drains with a deadline: its connections live until then, and end with a reset on both sides.

use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{BULK, Lab, within};

const DRAIN: Duration = Duration::from_secs(5);

/// How long after the deadline the last side may hear of it. A second round of questions comes a second after the first.
const LATE_MAX: Duration = Duration::from_secs(4);

/// How long curl may sleep over it: it keeps its rate by looking at its socket now and then.
const CURL_SLEEPS_MAX: Duration = Duration::from_secs(10);

/// The modes in which both sides pass the director, with their VIPs.
const BOTH_WAYS: [(&str, &str); 2] = [("fullnat", "203.0.113.10"), ("nat", "203.0.113.20")];

/// Opens connections one after the other, the even ones silent from the start, the odd ones in the middle of a request.
/// Says what becomes of each until five seconds after the first end.
const IDLE: &str = "
import select, socket, sys, time
socks = [socket.create_connection((sys.argv[1], 8100), 10) for _ in range(4)]
for sock in socks[1::2]:
    sock.sendall(b'GET / HTTP/1.1\\r\\nHost: ')
print('open', flush=True)
ends, until = {}, time.monotonic() + 40
while time.monotonic() < until and len(ends) < 4:
    for sock in select.select([s for s in socks if s not in ends], [], [], 0.1)[0]:
        try:
            ends[sock] = 'closed' if sock.recv(1) == b'' else 'answered'
        except ConnectionResetError:
            ends[sock] = 'reset'
        print(ends[sock], flush=True)
        until = min(until, time.monotonic() + 5)
print(4 - len(ends), 'live')";

#[test]
fn connections_of_a_draining_server_are_reset_at_its_deadline_and_not_before() {
    let mut lab = Lab::new("drain", BULK);
    // In one mode the server's weight becomes 0, in the other it is left out.
    let services = |first: [&str; 2]| -> String {
        BOTH_WAYS.iter().zip(first).map(|(&(mode, vip), first)| service(mode, vip, first)).collect()
    };
    let first = "[[service.server]]\naddress = \"10.2.0.11:80\"\n";
    let config = Config { more: services([first, first]), ..Config::new(Driver::Native) };
    Daemon::start(&mut lab, &config);
    let idle: Vec<_> = BOTH_WAYS.iter().map(|(_, vip)| idle(&lab, vip)).collect();
    let downloads: Vec<_> = BOTH_WAYS
        .iter()
        .flat_map(|(_, vip)| (0..4).map(|_| download(&lab, vip)).collect::<Vec<_>>())
        .collect();
    within(Duration::from_secs(20), "rs1 has half of all connections", || sockets(&lab, "rs1") == 8);

    let before = Instant::now();
    let quiet = format!("{first}weight = 0\n");
    lab.shunt().reload(&Config { more: services([&quiet, ""]), ..config });
    let after = Instant::now();
    while before.elapsed() < DRAIN - Duration::from_millis(500) {
        assert_eq!(sockets(&lab, "rs1"), 8, "a connection went {:?} after the reload", before.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }

    assert_eq!(established(&lab), 16, "all connections live until the deadline");
    within(DRAIN + LATE_MAX - before.elapsed(), "both kernels know of the reset", || {
        sockets(&lab, "rs1") == 0 && established(&lab) <= 8
    });

    for (client, (mode, _)) in idle.into_iter().zip(BOTH_WAYS) {
        let (said, _) = client.join().unwrap();
        assert_eq!(said.trim(), "open\nreset\nreset\n2 live", "{mode}: idle connections");
    }
    let mut ends = Vec::new();
    for client in downloads {
        let (said, ended) = client.join().unwrap();
        let words: Vec<_> = said.split_whitespace().map(str::to_owned).collect();
        let [server, exit, bytes] = &words[..] else { panic!("curl said {said:?}") };
        match server.as_str() {
            "rs1" => {
                assert_eq!(exit, "56", "curl's word for a reset: {said}");
                assert!(ended >= before + DRAIN, "{:?} too early", before + DRAIN - ended);
                let last = after + DRAIN + LATE_MAX + CURL_SLEEPS_MAX;
                assert!(ended <= last, "{:?} after the reload", ended - after);
            }
            _ => assert_eq!((exit.as_str(), bytes.as_str()), ("0", "52428800"), "{said}"),
        }
        ends.push(server.clone());
    }
    ends.sort();
    assert_eq!(ends, ["rs1", "rs1", "rs1", "rs1", "rs2", "rs2", "rs2", "rs2"]);
    let answers = lab.get("http://203.0.113.10:8100/");
    assert_eq!(answers, "rs2");
    let left_out =
        |lab: &mut Lab| lab.shunt().log().contains("10.2.0.11:80 of service drain-nat has drained");
    within(Duration::from_secs(25), "the server that was left out goes", || left_out(&mut lab));
}

#[test]
fn what_a_reload_leaves_out_keeps_its_connections_and_addresses_until_the_deadline() {
    let mut lab = Lab::new("leaves", BULK);
    let servers = ["10.2.0.11", "10.2.0.12"].map(|rs| format!("[[service.server]]\naddress = \"{rs}:80\"\n"));
    let fullnat = |local: &str, servers: &str| {
        format!(
            "[[service]]\nname = \"stays\"\nlisten = [\"203.0.113.10:8100\"]\nprotocol = \"tcp\"\nmode = \"fullnat\"\n\
             scheduler = \"rr\"\ndrain = \"5s\"\nlocal = [\"{local}\"]\n{servers}"
        )
    };
    let first = fullnat("10.2.0.201", &servers.concat()) + &service("nat", "203.0.113.20", &servers[0]);
    let config = Config { more: first, ..Config::new(Driver::Native) };
    Daemon::start(&mut lab, &config);
    let downloads: Vec<_> =
        BOTH_WAYS.iter().flat_map(|(_, vip)| [download(&lab, vip), download(&lab, vip)]).collect();
    within(Duration::from_secs(20), "all downloads run", || established(&lab) == 4);

    // One service loses a server and, with it, the local address of all its connections; the other goes as a whole.
    let before = Instant::now();
    lab.shunt().reload(&Config { more: fullnat("10.2.0.202", &servers[1]), ..config });
    let refused = lab.command("client", "curl").args(["-sS", "http://203.0.113.20:8100/"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(7), "a service that was left out takes no new connections");
    assert_eq!(lab.get("http://203.0.113.10:8100/"), "rs2");
    let addresses = |lab: &Lab| {
        let shown = lab.sh("director", "ip -4 -o addr");
        ["203.0.113.20", "10.2.0.201", "10.2.0.202"].map(|address| shown.contains(&format!(" {address}/32 ")))
    };
    assert_eq!(addresses(&lab), [true; 3]);

    let mut ends = Vec::new();
    for client in downloads {
        let (said, ended) = client.join().unwrap();
        let words: Vec<_> = said.split_whitespace().collect();
        let [server, exit, bytes] = words[..] else { panic!("curl said {said:?}") };
        let whole = bytes == "52428800";
        if !whole {
            assert_eq!(exit, "56", "curl's word for a reset: {said}");
            assert!(ended >= before + DRAIN, "{:?} too early", before + DRAIN - ended);
            // At 3 MB/s, from before the reload until the deadline.
            assert!(bytes.parse::<u64>().unwrap() > 9_000_000, "data went on until the deadline: {said}");
        }
        ends.push((server.to_owned(), whole));
    }
    ends[..2].sort();
    assert_eq!(ends[..2], [("rs1".to_owned(), false), ("rs2".to_owned(), true)], "the service that stays");
    assert!(ends[2..].iter().all(|(_, whole)| !whole), "the service that was left out: {ends:?}");
    let logged = |lab: &mut Lab, what: &str| lab.shunt().log().contains(what);
    within(Duration::from_secs(25), "the service goes", || {
        logged(&mut lab, "service drain-nat was left out")
    });
    within(Duration::from_secs(25), "the local address goes", || {
        logged(&mut lab, "local address 10.2.0.201 of service stays was left out")
    });
    assert_eq!(addresses(&lab), [true, false, true], "another service has the VIP still");
}

/// A service of rs1, as `first` says, and rs2.
fn service(mode: &str, vip: &str, first: &str) -> String {
    let local = if mode == "fullnat" { "local = [\"10.2.0.200\"]\n" } else { "" };
    format!(
        "[[service]]\nname = \"drain-{mode}\"\nlisten = [\"{vip}:8100\"]\nprotocol = \"tcp\"\nmode = \"{mode}\"\n\
         scheduler = \"rr\"\ndrain = \"{}s\"\n{local}{first}\
         [[service.server]]\naddress = \"10.2.0.12:80\"\n",
        DRAIN.as_secs()
    )
}

/// Four idle connections. Returns when they stand.
fn idle(lab: &Lab, vip: &str) -> JoinHandle<(String, Instant)> {
    let mut command = lab.command("client", "/usr/bin/python3");
    let mut child = command.args(["-c", IDLE, vip]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(&said, b"open\n");
    end_of(child, "open\n")
}

/// A download that takes 17 seconds.
fn download(lab: &Lab, vip: &str) -> JoinHandle<(String, Instant)> {
    let mut command = lab.command("client", "curl");
    command.args(["-s", "--limit-rate", "3M", "-o", "/dev/null", "-w"]);
    command.arg("%header{x-server} %{exitcode} %{size_download}").arg(format!("http://{vip}:8100/50m"));
    end_of(command.stdout(Stdio::piped()).spawn().unwrap(), "")
}

/// What a program says in all, and when it ends.
fn end_of(child: Child, said: &'static str) -> JoinHandle<(String, Instant)> {
    std::thread::spawn(move || {
        let output = child.wait_with_output().unwrap();
        (said.to_owned() + &String::from_utf8_lossy(&output.stdout), Instant::now())
    })
}

/// The client's live connections.
fn established(lab: &Lab) -> usize {
    lab.sh("client", "ss -Htan state established dport = :8100").lines().count()
}

/// TCP sockets of a server's nginx, in whatever state.
fn sockets(lab: &Lab, server: &str) -> usize {
    lab.sh(server, "ss -Htan state connected sport = :80").lines().count()
}
