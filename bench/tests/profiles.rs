//! The profiles for traffic generators: they compile, what they do beside the generator is right, and they mean the same
//! addresses as configuration and manual do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use shunt_control::config::{Config, Service};

const MODES: [&str; 4] = ["fullnat", "nat", "dr", "tun"];
const LUA: &str = "bench/pktgen/throughput.lua";
const PYTHON: [&str; 2] = ["bench/trex/requests.py", "bench/trex/connections.py"];
const MANUAL: &str = "docs/benchmarking.md";
const CONFIG: &str = "configs/benchmark.toml";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn config() -> Config {
    Config::load(&root().join(CONFIG), false).unwrap_or_else(|error| panic!("{error}")).config
}

fn run(command: &mut Command) -> Output {
    let output = command.current_dir(root()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The addresses that a text names, without the lengths of prefixes.
fn addresses(text: &str) -> BTreeSet<Ipv4Addr> {
    let words = text.split(|c: char| !c.is_ascii_digit() && c != '.');
    words.filter_map(|word| word.trim_matches('.').parse().ok()).collect()
}

/// The VIP and port of a service, and the address of its server.
fn ends(service: &Service) -> (String, u16, IpAddr) {
    let listen = service.listen[0].to_string();
    let (vip, port) = listen.rsplit_once(':').unwrap();
    (vip.to_owned(), port.parse().unwrap(), service.servers[0].address)
}

#[test]
fn every_profile_compiles() {
    run(Command::new("luac5.3").args(["-p", LUA]));
    for profile in PYTHON {
        let compile = "import sys; compile(open(sys.argv[1]).read(), sys.argv[1], 'exec')";
        run(Command::new("/usr/bin/python3").args(["-c", compile, profile]));
    }
}

#[test]
fn profiles_and_manual_name_the_addresses_of_the_configuration() {
    let config = config();
    let (lua, manual) = (read(LUA), read(MANUAL));
    let [requests, connections] = PYTHON.map(read);
    for mode in MODES {
        let named =
            |what: &str| config.services.iter().find(|service| service.name == format!("{mode}-{what}"));
        let service = named("packets").unwrap();
        assert_eq!(service.mode.name(), mode);
        let (vip, port, server) = ends(service);
        assert!(lua.contains(&format!("{mode} = \"{vip}\"")), "{mode}: {vip} in {LUA}");
        assert!(lua.contains(&format!("local service_port = {port}\n")), "{port} in {LUA}");
        assert!(requests.contains(&format!("\"{mode}\": \"{vip}\"")), "{mode}: {vip} in requests.py");
        assert!(
            requests.contains(&format!("SERVICE_PORT = {port}\n"))
                && manual.contains(&format!("port {port}"))
        );
        assert!(requests.contains(&format!("SERVER = \"{server}\"")), "{server} in requests.py");
        assert!(
            manual.contains(&format!("`{vip}` in\n{}", mode.to_uppercase()))
                || manual.contains(&format!("`{vip}` in {}", mode.to_uppercase())),
            "{vip} in {MANUAL}"
        );
        assert_eq!(
            named("connections").is_some(),
            connections.contains(&format!("\"{mode}\": \"{vip}\"")),
            "{mode}"
        );
        if let Some(service) = named("connections") {
            let (also, port, _) = ends(service);
            assert_eq!(also, vip);
            assert!(connections.contains(&format!("SERVICE_PORT = {port}\n")), "{port} in connections.py");
        }
    }
}

#[test]
fn no_address_is_outside_of_the_networks_that_the_manual_wires() {
    let manual = read(MANUAL);
    let networks = ["10.1.0.", "10.2.0.", "198.18.", "198.19.", "203.0.113."];
    assert!(networks.iter().all(|network| manual.contains(network)));
    assert!(manual.contains("ip route add 198.18.0.0/16 via 10.1.0.2"));
    assert!(manual.contains("ip route add 198.19.0.0/16 via 10.2.0.2"));
    for path in [LUA, PYTHON[0], PYTHON[1], MANUAL, CONFIG] {
        for address in addresses(&read(path)) {
            let known = networks.iter().any(|network| address.to_string().starts_with(network));
            assert!(
                known || address.is_unspecified() || address == Ipv4Addr::new(0, 0, 0, 1),
                "{path}: {address}"
            );
        }
    }
    // Clients and servers are behind the generator, local addresses are the director's neighbours there.
    for service in &config().services {
        assert!(ends(service).2.to_string().starts_with("198.19."));
        assert!(service.local.iter().all(|local| local.address.to_string().starts_with("10.2.0.")));
    }
    for path in [LUA, PYTHON[0], PYTHON[1]] {
        let clients = addresses(&read(path)).into_iter().filter(|address| address.octets()[..2] == [198, 18]);
        assert_eq!(clients.count(), 2, "{path} has a first and a last client");
    }
}

#[test]
fn the_manuals_files_are_there() {
    let manual = read(MANUAL);
    let links = manual.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    let links: Vec<_> = links.filter(|link| !link.starts_with("http")).collect();
    assert!(links.len() >= 5, "{links:?}");
    for link in links {
        assert!(root().join("docs").join(link).exists(), "{link}");
    }
    for path in [LUA, PYTHON[0], PYTHON[1], CONFIG] {
        assert!(manual.contains(path), "{MANUAL} does not name {path}");
    }
}

/// The search itself, on a Pktgen that forwards what `limit` percent of the line rate are of 10 000 frames per second.
fn search(limit: f64, environment: &[(&str, &str)]) -> String {
    let folder = std::env::temp_dir().join(format!("shunt-profiles-{}-{limit}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (stand_in, result) = (folder.join("pktgen.lua"), folder.join("result"));
    let text = format!(
        "local rate, seconds, sent, arrived, vip = 0, 0, 0, 0, ''\n\
         local function ignore() end\n\
         local range = setmetatable({{ dst_ip = function(_, what, value) if what == 'start' then vip = value end end }},\n\
             {{ __index = function() return ignore end }})\n\
         pktgen = setmetatable({{\n\
             range = range,\n\
             set = function(_, what, value) if what == 'rate' then rate = value end end,\n\
             clr = function() sent, arrived = 0, 0 end,\n\
             start = function() seconds = 0 end,\n\
             delay = function(milliseconds) seconds = seconds + milliseconds / 1000 end,\n\
             stop = function() sent = rate * 100 * seconds; arrived = math.min(sent, {limit} * 100 * seconds) end,\n\
             portStats = function(port, ...) assert(select('#', ...) == 0, 'one argument')\n\
                 return {{ [0] = {{ opackets = sent }}, [1] = {{ ipackets = arrived }} }} end,\n\
         }}, {{ __index = function() return ignore end }})\n\
         dofile('{LUA}')\n\
         print('called ' .. vip)\n"
    );
    std::fs::write(&stand_in, text).unwrap();
    let mut lua = Command::new("lua5.3");
    lua.arg(&stand_in).env("SHUNT_RESULT", &result).env("SHUNT_MAC", "02:00:00:00:01:01");
    let output = run(lua.envs(environment.iter().copied()));
    let printed = String::from_utf8(output.stdout).unwrap();
    let written = std::fs::read_to_string(&result).unwrap();
    assert!(printed.starts_with(&written), "what is printed is written:\n{printed}\n{written}");
    std::fs::remove_dir_all(&folder).unwrap();
    printed
}

#[test]
fn the_search_finds_the_rate_within_a_half_of_a_percent() {
    let few = [("SHUNT_SIZES", "64"), ("SHUNT_MODE", "tun"), ("SHUNT_SECONDS", "1")];
    for limit in [3.0, 37.2, 99.0, 100.0] {
        let printed = search(limit, &few);
        let line = printed.lines().find(|line| line.contains("bytes:")).unwrap();
        let rate = line.split_whitespace().nth(2).unwrap().parse::<f64>().unwrap();
        assert!(rate <= limit && rate >= limit - 0.5, "{limit}: {printed}");
        assert!(printed.ends_with("called 203.0.113.40\n"), "{printed}");
    }
    let all = search(50.0, &[]);
    assert_eq!(all.lines().filter(|line| line.contains("bytes:")).count(), 7, "{all}");
    assert!(all.starts_with("shunt, mode fullnat, 10040 flows to 203.0.113.10:9000\n"), "{all}");
}
