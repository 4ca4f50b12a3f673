//! Servers that fail and return under load: who is checked takes part, who is not well does not, and nobody notices but
//! those whose request was on its way.

use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use shunt_engine::clock::Clock;

use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{Lab, MODES, PLAIN, within};

/// How often the stories check, and how many failures they believe.
const INTERVAL_MS: u64 = 100;
const FALL: u64 = 2;
const TIMEOUT_MS: u64 = 200;

/// No server is believed dead later than this after it died, with what a busy machine adds.
const NOTICED_MS: u64 = FALL * (INTERVAL_MS + INTERVAL_MS / 10) + TIMEOUT_MS + 600;

/// Long enough for some requests to every server, however busy the machine.
const A_WHILE: Duration = Duration::from_secs(1);

/// Asks every VIP in turn, each request on a connection of its own. A line for each: when it began and ended, whom it
/// asked, and who answered.
const LOAD: &str = "
import socket, sys, time
while True:
    for vip in sys.argv[1:]:
        began = time.monotonic_ns()
        try:
            with socket.create_connection((vip, 443), 2) as sock:
                sock.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
                answer = b''
                while part := sock.recv(4096):
                    answer += part
            name = answer.split(b'\\r\\n\\r\\n')[1].decode().strip()
            if name not in ('rs1', 'rs2', 'rs3'):
                name = 'failed:' + repr(answer).replace(' ', '_')
        except (OSError, IndexError) as error:
            name = 'failed:' + type(error).__name__
        print(began, time.monotonic_ns(), vip, name, flush=True)
        time.sleep(0.002)";

/// A service of every mode on port 443, whose servers are checked with `check`.
fn services(check: &str, of_service: &str) -> String {
    let service = |(mode, vip): (&str, &str)| {
        let local = if mode == "fullnat" { "local = [\"10.2.0.200\"]\n" } else { "" };
        let servers: String = [11, 12, 13]
            .map(|last| format!("[[service.server]]\naddress = \"10.2.0.{last}:443\"\n"))
            .concat();
        format!(
            "[[service]]\nname = \"{mode}\"\nlisten = [\"{vip}:443\"]\nprotocol = \"tcp\"\nmode = \"{mode}\"\n\
             scheduler = \"rr\"\n{local}{of_service}[[service.check]]\n{check}\ninterval = \"{INTERVAL_MS}ms\"\n\
             timeout = \"{TIMEOUT_MS}ms\"\nfall = {FALL}\nrise = 2\n{servers}"
        )
    };
    MODES.map(service).concat()
}

/// The daemon with nothing but `services`.
fn start(lab: &mut Lab, services: String) {
    let config = Config { servers: vec![11], more: services, ..Config::new(Driver::Native) };
    Daemon::start(lab, &config);
}

/// What a server of a service is said to be.
fn state(lab: &mut Lab, service: &str, server: usize) -> String {
    let status = lab.shunt().status();
    let service =
        status["services"].as_array().unwrap().iter().find(|one| one["name"] == service).unwrap().clone();
    service["servers"][server]["health"]["state"].as_str().unwrap().to_owned()
}

fn await_states(lab: &mut Lab, states: [&str; 3]) {
    within(Duration::from_secs(10), "every check has its verdict", || {
        MODES.iter().all(|(mode, _)| (0..3).all(|number| state(lab, mode, number) == states[number]))
    });
}

fn nginx(lab: &Lab, server: &str, doing: &str) {
    let root = lab.folder_of(server);
    let root = root.display();
    match doing {
        "dies" => {
            lab.sh(server, &format!("kill -9 $(cat {root}/nginx.pid) $(pgrep -P $(cat {root}/nginx.pid))"))
        }
        _ => lab.sh(server, &format!("nginx -e {root}/error.log -p {root} -c {root}/nginx.conf")),
    };
}

/// A request: when it began and ended, in nanoseconds of the monotonic clock, and who answered.
#[derive(Debug)]
struct Request {
    began: u64,
    ended: u64,
    vip: String,
    by: String,
}

fn load(lab: &Lab) -> Child {
    let mut python = lab.command("client", "/usr/bin/python3");
    python.args(["-c", LOAD]).args(MODES.map(|(_, vip)| vip)).stdout(Stdio::piped());
    python.spawn().unwrap()
}

fn end(load: Child) -> Vec<Request> {
    // `timeout` passes it on.
    kill_process(Pid::from_child(&load), Signal::TERM).unwrap();
    let said = load.wait_with_output().unwrap().stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    let request = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let [began, ended, vip, by] = words[..] else { panic!("{line}") };
        let nanos = |text: &str| text.parse().unwrap();
        Request { began: nanos(began), ended: nanos(ended), vip: vip.to_owned(), by: by.to_owned() }
    };
    // It may have been stopped in the middle of a line.
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    whole.lines().map(request).collect()
}

fn now() -> u64 {
    Clock::System.now().as_nanos()
}

#[test]
fn a_server_that_dies_is_out_soon_and_one_that_returns_is_in_without_a_failed_request() {
    let mut lab = Lab::new("health", PLAIN);
    start(&mut lab, services("kind = \"tcp\"", ""));
    await_states(&mut lab, ["up"; 3]);
    let load = load(&lab);
    std::thread::sleep(A_WHILE);
    let died = now();
    nginx(&lab, "rs2", "dies");
    await_states(&mut lab, ["up", "down", "up"]);
    std::thread::sleep(Duration::from_millis(NOTICED_MS) + A_WHILE);
    let noticed = died + NOTICED_MS * 1_000_000;
    let returns = now();
    nginx(&lab, "rs2", "returns");
    await_states(&mut lab, ["up"; 3]);
    let returned = now();
    std::thread::sleep(A_WHILE);
    let requests = end(load);

    for request in requests.iter().filter(|request| request.by.starts_with("failed")) {
        assert!(request.ended >= died && request.began <= noticed, "{request:?}, died {died}");
    }
    for (_, vip) in MODES {
        let by = |server: &str, from: u64, to: u64| {
            let of_vip = requests.iter().filter(|request| request.vip == vip && request.by == server);
            of_vip.filter(|request| (from..to).contains(&request.began)).count()
        };
        for server in ["rs1", "rs2", "rs3"] {
            assert!(by(server, 0, died) > 0, "{vip}: {server} has part at first");
            assert!(by(server, returned, u64::MAX) > 0, "{vip}: {server} has part at last");
        }
        assert_eq!(by("rs2", noticed, returns), 0, "{vip}: nobody answers for rs2");
        assert!(by("rs1", noticed, returns) > 0 && by("rs3", noticed, returns) > 0, "{vip}: the others do");
    }
    let lines = lab.shunt().log();
    assert!(lines.contains("server 10.2.0.12:443 is down: tcp 10.2.0.12:443: connection refused"), "{lines}");
}

#[test]
fn a_program_that_runs_as_nobody_says_who_takes_part() {
    let mut lab = Lab::new("health-exec", PLAIN);
    let ill = std::env::temp_dir().join(format!("shunt-ill-{}", std::process::id()));
    std::fs::create_dir(&ill).unwrap();
    let program = format!("test $(id -u) = 65534 && test ! -e {}/$SHUNT_ADDRESS", ill.display());
    let check = format!("kind = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"{program}\"]");
    // A program takes longer than a connection.
    let patient = services(&check, "").replace(&format!("timeout = \"{TIMEOUT_MS}ms\""), "timeout = \"5s\"");
    start(&mut lab, patient);
    await_states(&mut lab, ["up"; 3]);
    std::fs::write(ill.join("10.2.0.12"), "").unwrap();
    await_states(&mut lab, ["up", "down", "up"]);
    for (_, vip) in MODES.iter().cycle().take(12) {
        let answer = lab.sh("client", &format!("curl -fsS --max-time 5 http://{vip}:443/"));
        assert!(matches!(answer.trim(), "rs1" | "rs3"), "{answer}");
    }
    std::fs::remove_dir_all(&ill).unwrap();
    await_states(&mut lab, ["up"; 3]);
}

#[test]
fn without_quorum_a_sorry_server_answers_in_a_mode_of_its_own_and_every_change_is_an_event() {
    let mut lab = Lab::new("sorry", PLAIN);
    // A DR service; what is left when its servers are gone is rewritten.
    let service = format!(
        "[[service]]\nname = \"web\"\nlisten = [\"203.0.113.30:443\"]\nprotocol = \"tcp\"\nmode = \"dr\"\n\
         scheduler = \"rr\"\nlocal = [\"10.2.0.200\"]\nquorum = 2\n\
         [[service.check]]\nkind = \"http\"\npath = \"/64k\"\ninterval = \"{INTERVAL_MS}ms\"\nfall = {FALL}\nrise = 1\n\
         timeout = \"2s\"\n[[service.server]]\naddress = \"10.2.0.11\"\n[[service.server]]\naddress = \"10.2.0.12\"\n\
         [service.sorry_server]\naddress = \"10.2.0.13:8080\"\nmode = \"fullnat\"\n"
    );
    start(&mut lab, service);
    let events = lab.folder().join("events");
    let socket = lab.folder().join("shunt.sock");
    let mut follow = lab.command("director", env!("CARGO_BIN_EXE_shunt"));
    follow.args(["events", "--follow", "--json", "--socket"]).arg(socket);
    let follow = follow.stdout(std::fs::File::create(&events).unwrap()).spawn().unwrap();
    let url = "http://203.0.113.30:443/";
    within(Duration::from_secs(10), "both are up", || (0..2).all(|n| state(&mut lab, "web", n) == "up"));
    assert_eq!(lab.shares(url, 4), [2, 2, 0]);
    nginx(&lab, "rs1", "dies");
    within(Duration::from_secs(10), "the first is down", || state(&mut lab, "web", 0) == "down");
    let status = lab.shunt().status();
    let web = status["services"].as_array().unwrap().iter().find(|one| one["name"] == "web").unwrap();
    let health = &web["servers"][0]["health"];
    assert_eq!([&health["l3"], &health["l4"], &health["l7"]], ["ok", "failed", "unknown"], "{health}");
    assert_eq!(health["checks"][0]["error"]["text"], "connection refused");
    assert!(web["servers"][1]["health"]["checks"][0]["latency_micros"].as_u64().unwrap() > 0);
    let text = String::from_utf8(lab.shunt().shunt(&["status"]).stdout).unwrap();
    assert!(text.contains("L3 ok, L4 failed, L7 unknown; http 10.2.0.11:443: connection refused"), "{text}");
    within(Duration::from_secs(5), "the sorry server answers alone", || lab.shares(url, 3) == [0, 0, 3]);
    nginx(&lab, "rs1", "returns");
    within(Duration::from_secs(10), "the first is up", || state(&mut lab, "web", 0) == "up");
    within(Duration::from_secs(5), "the servers answer again", || lab.shares(url, 4) == [2, 2, 0]);

    let told = || -> Vec<String> {
        let text = std::fs::read_to_string(&events).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let word = |event: &serde_json::Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        events
            .map(|event| ["event", "server", "state", "using"].map(|key| word(&event, key)).join(" "))
            .collect()
    };
    let expected = [
        "server 10.2.0.11 down ",
        "quorum  lost ",
        "servers   sorry",
        "server 10.2.0.11 up ",
        "quorum  gained ",
        "servers   healthy",
    ];
    within(Duration::from_secs(5), "the follower has heard of all", || told().len() == 2 + expected.len());
    assert_eq!(told()[2..], expected);
    kill_process(Pid::from_child(&follow), Signal::TERM).unwrap();
    follow.wait_with_output().unwrap();
}

#[test]
fn a_server_that_refuses_clients_is_out_without_being_asked_and_tried_again_later() {
    let mut lab = Lab::new("passive", PLAIN);
    let servers =
        [11, 12].map(|last| format!("[[service.server]]\naddress = \"10.2.0.{last}:443\"\n")).concat();
    let service = format!(
        "[[service]]\nname = \"web\"\nlisten = [\"203.0.113.10:443\"]\nprotocol = \"tcp\"\nscheduler = \"rr\"\n\
         local = [\"10.2.0.200\"]\n[[service.check]]\nkind = \"passive\"\nfailures = 3\ninterval = \"20s\"\n\
         hold = \"3s\"\n{servers}"
    );
    start(&mut lab, service);
    let url = "http://203.0.113.10:443/";
    assert_eq!(lab.shares(url, 4), [2, 2, 0]);
    nginx(&lab, "rs2", "dies");
    let tries = format!("for _ in $(seq 8); do curl -sS --max-time 5 {url} || true; done");
    let answers = lab.sh("client", &tries);
    assert_eq!(answers.lines().count(), 4, "every other one fails: {answers}");
    within(Duration::from_secs(10), "rs2 is out", || state(&mut lab, "web", 1) == "down");
    assert!(lab.shunt().log().contains("server 10.2.0.12:443 is down: passive"), "{}", lab.shunt().log());
    nginx(&lab, "rs2", "returns");
    within(Duration::from_secs(10), "rs2 is tried again", || state(&mut lab, "web", 1) == "up");
    within(Duration::from_secs(5), "rs2 takes part", || lab.shares(url, 4) == [2, 2, 0]);
}
