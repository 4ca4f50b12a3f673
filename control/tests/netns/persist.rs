//! Persistence: all of one client's connections, to every port of the service, on whatever worker, reach one server.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{Cables, Lab, PLAIN};

/// Opens as many connections as there are ports named, all before the first request is sent; keeps all of them until
/// the last is answered, and prints who answered each.
const CLIENTS: &str = "
import asyncio, sys
async def all(vip, ports):
    pairs = await asyncio.gather(*(asyncio.open_connection(vip, port) for port in ports))
    async def ask(reader, writer):
        writer.write(b'GET / HTTP/1.0\\r\\n\\r\\n')
        return (await reader.read()).decode().split()[-1]
    for name in await asyncio.gather(*(ask(*pair) for pair in pairs)): print(name)
asyncio.run(asyncio.wait_for(all(sys.argv[1], [int(port) for port in sys.argv[2:]]), 30))";

const VIP: &str = "203.0.113.50";

fn shop(persistence: &str) -> String {
    let servers: String =
        [11, 12, 13].map(|server| format!("[[service.server]]\naddress = \"10.2.0.{server}\"\n")).concat();
    format!(
        "[[service]]\nname = \"shop\"\nlisten = [\"{VIP}:80\", \"{VIP}:443\"]\nprotocol = \"tcp\"\n\
         mode = \"fullnat\"\nlocal = [\"10.2.0.201\"]\nscheduler = \"rr\"\n{persistence}{servers}"
    )
}

fn fifty(lab: &Lab) -> BTreeSet<String> {
    let ports: Vec<_> = (0..50).map(|number| if number % 2 == 0 { "80" } else { "443" }).collect();
    let mut clients = lab.command("client", "/usr/bin/python3");
    let output = crate::lab::succeed(clients.args(["-c", CLIENTS, VIP]).args(ports));
    let answers = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(answers.lines().count(), 50, "{answers}");
    answers.lines().map(str::to_owned).collect()
}

fn event(lab: &mut Lab, name: &str) -> u64 {
    let counters: Value = serde_json::from_slice(&lab.shunt().shunt(&["counters", "--json"]).stdout).unwrap();
    let events = counters["events"].as_array().unwrap();
    events.iter().find(|event| event["name"] == name).unwrap()["value"].as_u64().unwrap()
}

#[test]
fn fifty_simultaneous_connections_to_two_ports_on_two_workers_reach_one_server() {
    let mut lab = Lab::new("persist", Cables { queues: 2, ..PLAIN });
    let forgetful = Config { workers: 2, more: shop(""), ..Config::new(Driver::Native) };
    Daemon::start(&mut lab, &forgetful);
    assert_eq!(fifty(&lab).len(), 3, "without persistence every server gets some");
    let mindful = Config { more: shop("persistence = \"1h\"\n"), ..forgetful };
    lab.shunt().reload(&mindful);
    let before = lab.shunt().worker_counter("handoff_in");
    let first = fifty(&lab);
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(event(&mut lab, "templates_followed"), 49);
    assert!(lab.shunt().worker_counter("handoff_in") > before, "both workers had connections of the client");
    assert_eq!(fifty(&lab), first, "the client is remembered after its connections have ended");
    let shown = String::from_utf8_lossy(&lab.shunt().shunt(&["status"]).stdout).into_owned();
    assert!(shown.contains("rr (shop) persistent 3600"), "{shown}");
    // The server leaves: the client gets another one, again one for all its connections.
    let gone = first.first().unwrap().trim_start_matches("rs");
    let left = format!("[[service.server]]\naddress = \"10.2.0.1{gone}\"\n");
    let smaller = Config { more: mindful.more.replace(&left, ""), ..mindful };
    assert_eq!(smaller.more.matches("service.server").count(), 2);
    lab.shunt().reload(&smaller);
    let second = fifty(&lab);
    assert_eq!((second.len(), second == first), (1, false), "{first:?}, then {second:?}");
}
