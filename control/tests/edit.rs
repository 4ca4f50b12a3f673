//! Edits of configuration files, and the one text that stands for all of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use shunt_control::config::{Config, Edit, Server, Source, Sources};

const MAIN: &str = "\
# The machine.
include = [\"*.d\"] # more

[[port]]
interface = \"eth0\"

# Web.
[[service]]
name = \"web\"
protocol = \"tcp\"
mode = \"nat\"
listen = [\"203.0.113.10:80\"]
[[service.server]] # the first
address = \"10.0.0.11:80\"
weight = 1 # one
[[service.server]]
name = \"rs2\"
address = \"10.0.0.12:80\"
[service.timeouts]
established = \"60s\"

# Mail.
[[service]]
name = \"mail\"
protocol = \"tcp\"
mode = \"dr\"
listen = [\"203.0.113.10:25\"]
server = [{ address = \"10.0.0.21\" }, { name = \"second\", address = \"10.0.0.22\" }]
";

const INCLUDED: &str =
    "service = [{ name = \"dns\", protocol = \"udp\", mode = \"dr\", listen = [\"203.0.113.10:53\"] }]";

fn sources() -> Sources {
    Sources::new(Source::new("main".into(), MAIN), [Source::new("dns".into(), INCLUDED)])
}

fn meaning(sources: &Sources) -> Config {
    Config::of(sources.clone(), false).unwrap_or_else(|error| panic!("{error}")).config
}

fn keys(keys: Value) -> Map<String, Value> {
    keys.as_object().unwrap().clone()
}

/// Lines that an edit takes away and adds, with - and + before them.
fn difference(edit: &Edit) -> Vec<String> {
    let (before, after) = (sources(), edit.apply(&sources()).unwrap());
    meaning(&after);
    let lines = |sources: &Sources| -> Vec<String> {
        sources
            .iter()
            .flat_map(|(_, source)| source.text().lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    };
    let (before, after) = (lines(&before), lines(&after));
    let gone = before.iter().filter(|line| !after.contains(line)).map(|line| format!("-{line}"));
    let new = after.iter().filter(|line| !before.contains(line)).map(|line| format!("+{line}"));
    gone.chain(new).collect()
}

fn set(service: &str, server: &str, key: &str, value: Value) -> Edit {
    let keys = Map::from_iter([(key.to_owned(), value)]);
    Edit::SetServer { service: service.into(), server: server.into(), keys }
}

#[test]
fn a_key_is_changed_added_and_taken_away_and_comments_stay() {
    let changed = difference(&set("web", "10.0.0.11:80", "weight", json!(7)));
    assert_eq!(changed, ["-weight = 1 # one", "+weight = 7 # one"]);
    assert_eq!(difference(&set("web", "rs2", "state", json!("draining"))), ["+state = \"draining\""]);
    assert_eq!(difference(&set("web", "10.0.0.11:80", "weight", Value::Null)), ["-weight = 1 # one"]);
    let [gone, new] = &difference(&set("mail", "second", "weight", json!(7)))[..] else { panic!("one line") };
    assert!(
        gone.starts_with("-server = [")
            && new.contains("{ name = \"second\", address = \"10.0.0.22\" , weight = 7 }")
            || new.contains("address = \"10.0.0.22\", weight = 7"),
        "{new}"
    );
}

#[test]
fn servers_and_services_come_and_go_in_the_file_they_are_in() {
    let add = Edit::AddServer {
        service: "web".into(),
        keys: keys(json!({"address": "10.0.0.13:80", "weight": 3})),
    };
    assert_eq!(difference(&add), ["+address = \"10.0.0.13:80\"", "+weight = 3"]);
    let web = &meaning(&add.apply(&sources()).unwrap()).services[0];
    let names: Vec<_> = web.servers.iter().map(|server| server.name.as_str()).collect();
    assert_eq!(names, ["10.0.0.11:80", "rs2", "10.0.0.13:80"], "at the end of its service, not of the file");
    let remove = Edit::RemoveServer { service: "web".into(), server: "10.0.0.11:80".into() };
    let gone = ["-[[service.server]] # the first", "-address = \"10.0.0.11:80\"", "-weight = 1 # one"];
    assert_eq!(difference(&remove), gone);
    let add = Edit::AddServer { service: "dns".into(), keys: keys(json!({"address": "10.0.0.53"})) };
    assert_eq!(meaning(&add.apply(&sources()).unwrap()).services[2].servers.len(), 1);
    let service = json!({"name": "new", "protocol": "tcp", "mode": "dr", "listen": ["203.0.113.10:1", "203.0.113.10:2"]});
    let add = Edit::AddService { keys: keys(service) }.apply(&sources()).unwrap();
    let names: Vec<_> = meaning(&add).services.into_iter().map(|service| service.name.clone()).collect();
    assert_eq!(names, ["web", "mail", "new", "dns"]);
    for name in ["web", "mail", "dns"] {
        let without = Edit::RemoveService { service: name.into() }.apply(&sources()).unwrap();
        assert!(meaning(&without).services.iter().all(|service| service.name != name));
        assert_eq!(meaning(&without).services.len(), 2);
    }
    let web = difference(&Edit::RemoveService { service: "web".into() });
    assert!(
        web.iter().all(|line| line.starts_with('-')) && !web.iter().any(|line| line.contains("Mail")),
        "{web:?}"
    );
}

#[test]
fn what_is_not_there_cannot_be_edited() {
    let error = |edit: Edit| edit.apply(&sources()).unwrap_err();
    assert_eq!(error(Edit::RemoveService { service: "www".into() }), "there is no service \"www\"");
    assert!(
        error(set("web", "10.0.0.99:80", "weight", json!(1))).starts_with("service \"web\" has no server")
    );
}

#[test]
fn the_one_text_has_no_include_and_keeps_comments() {
    let merged = sources().merged();
    assert!(
        merged.contains("# Web.") && merged.contains("weight = 1 # one") && !merged.contains("include"),
        "{merged}"
    );
    assert_eq!(Config::parse("merged", &merged, false).unwrap().config, meaning(&sources()));
}

/// A server's text: number, and keys that it may have.
fn server(number: usize) -> impl Strategy<Value = String> {
    let name = proptest::option::of(Just(format!("name = \"s-{number}\"")));
    let weight = proptest::option::of((0u32..9).prop_map(|weight| format!("weight = {weight}")));
    let state = proptest::option::of(
        prop_oneof!["enabled", "draining", "disabled"].prop_map(|state| format!("state = \"{state}\"")),
    );
    let drain = proptest::option::of((1u32..99).prop_map(|seconds| format!("drain = \"{seconds}s\"")));
    let most = proptest::option::of((1u32..99).prop_map(|most| format!("max_connections = \"{most}k\"")));
    let mode =
        proptest::option::of(prop_oneof!["nat", "dr", "tun"].prop_map(|mode| format!("mode = \"{mode}\"")));
    (name, weight, state, drain, most, mode).prop_map(move |(name, weight, state, drain, most, mode)| {
        let address = format!("address = \"10.0.0.{}\"", number + 1);
        let keys = [Some(address), name, weight, state, drain, most, mode];
        keys.into_iter().flatten().collect::<Vec<_>>().join("\n")
    })
}

/// A service's text in either form of TOML: number, keys, servers.
fn service(number: usize) -> impl Strategy<Value = (String, bool)> {
    let scheduler = proptest::option::of(
        prop_oneof!["rr", "wlc", "sh", "mh", "lblc"].prop_map(|word| format!("scheduler = \"{word}\"")),
    );
    let persistence = proptest::option::of((1u32..99).prop_map(|time| format!("persistence = \"{time}m\"")));
    let gone = proptest::option::of(
        prop_oneof!["reset", "drop"].prop_map(|word| format!("server_gone = \"{word}\"")),
    );
    let timeouts =
        proptest::option::of((1u32..99).prop_map(|time| format!("timeouts.fin_wait = \"{time}ms\"")));
    let servers = (0usize..4).prop_flat_map(|count| (0..count).map(server).collect::<Vec<_>>());
    let options = (scheduler, persistence, gone, timeouts);
    (options, servers, any::<bool>()).prop_map(
        move |((scheduler, persistence, gone, timeouts), servers, inline)| {
            let own = [
                Some(format!("name = \"web{number}\"")),
                Some(format!("listen = [\"203.0.113.10:{}\"]", 8000 + number)),
                Some("protocol = \"tcp\"\nmode = \"nat\"".to_owned()),
                scheduler,
                persistence,
                gone,
                timeouts,
            ];
            let own: Vec<_> = own.into_iter().flatten().collect();
            if inline {
                let line = |text: &str| format!("{{ {} }}", text.replace('\n', ", "));
                let servers: Vec<_> = servers.iter().map(|server| line(server)).collect();
                (line(&format!("{}\nserver = [{}]", own.join("\n"), servers.join(", "))), true)
            } else {
                let servers: String =
                    servers.iter().map(|server| format!("[[service.server]] # one\n{server}\n")).collect();
                (format!("# service {number}\n[[service]]\n{}\n{servers}", own.join("\n")), false)
            }
        },
    )
}

/// Up to three files with up to six services.
fn files() -> impl Strategy<Value = Sources> {
    let services = (0usize..7)
        .prop_flat_map(|count| (0..count).map(|number| (service(number), 0usize..3)).collect::<Vec<_>>());
    (services, any::<bool>()).prop_map(|(services, established)| {
        let mut texts = vec!["include = [\"x/*\"]\n".to_owned(), String::new(), String::new()];
        let end = if established { "[timeouts]\nestablished = \"7m\"\n" } else { "" };
        for (file, text) in texts.iter_mut().enumerate() {
            let of = |inline: bool| {
                let own = services.iter().filter(move |((_, is), at)| *at == file && *is == inline);
                own.map(|((text, _), _)| text.as_str()).collect::<Vec<_>>()
            };
            // One file has one of the two forms.
            let (inline, tables) = (of(true), of(false));
            if inline.is_empty() || !tables.is_empty() {
                *text += &tables.concat();
            } else {
                *text += &format!("service = [{}]\n", inline.join(", "));
            }
        }
        texts[0] += &format!("[[port]]\ninterface = \"eth0\"\n{end}");
        let source = |(number, text): (usize, String)| Source::new(format!("f{number}").into(), text);
        let mut files = texts.into_iter().enumerate().map(source);
        Sources::new(files.next().unwrap(), files)
    })
}

fn edits(service: usize, server: usize) -> Vec<Edit> {
    let (service, server) = (format!("web{service}"), format!("10.0.0.{}", server + 1));
    vec![
        set(&service, &server, "weight", json!(3)),
        set(&service, &server, "state", json!("disabled")),
        set(&service, &server, "state", Value::Null),
        Edit::AddServer { service: service.clone(), keys: keys(json!({"address": "10.0.9.9", "weight": 2})) },
        Edit::RemoveServer { service: service.clone(), server },
        Edit::RemoveService { service },
        Edit::AddService {
            keys: keys(
                json!({"name": "new", "protocol": "udp", "mode": "dr", "listen": ["203.0.113.10:53"]}),
            ),
        },
    ]
}

fn names(servers: &[Server]) -> Vec<&str> {
    servers.iter().map(|server| server.name.as_str()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn what_is_shown_means_what_is_in_force_also_after_edits(
        sources in files(),
        chosen in proptest::collection::vec((0usize..6, 0usize..4, 0usize..7), 0..6),
    ) {
        let mut sources = sources;
        for (service, server, which) in chosen {
            let edit = &edits(service, server)[which];
            // Some name what is not there, or add what is there already: those change nothing.
            let Ok(edited) = edit.apply(&sources) else { continue };
            let Ok(loaded) = Config::of(edited.clone(), false) else { continue };
            let before = meaning(&sources);
            let others = |config: &Config| {
                let name = format!("web{service}");
                config.services.iter().filter(|other| other.name != name && other.name != "new").cloned().collect::<Vec<_>>()
            };
            prop_assert_eq!(others(&before), others(&loaded.config), "{:?} leaves others alone", edit);
            if let Edit::AddServer { service, .. } = edit {
                let of = |config: &Config| config.services.iter().find(|s| s.name == *service).unwrap().clone();
                let (before, after) = (of(&before), of(&loaded.config));
                let mut expected = names(&before.servers);
                expected.push("10.0.9.9");
                prop_assert_eq!(names(&after.servers), expected);
            }
            sources = edited;
        }
        let merged = sources.merged();
        let shown = Config::parse("shown", &merged, false);
        let shown = shown.map_err(|error| TestCaseError::fail(format!("{error}\n{merged}")))?;
        prop_assert_eq!(shown.config, meaning(&sources));
    }
}
