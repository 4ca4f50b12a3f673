//! Configuration files, good and bad: every file of `configs/` loads, every file of `tests/bad/` is refused with the
//! diagnostics written beside it.
//!
//! `EXPECT=write cargo test -p shunt-control --test config` writes the expectations anew; read the difference.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};

use shunt_control::config::{Config, ConfigError, ServerPort};
use shunt_dataplane::server::Mode;
use shunt_dataplane::service::OutOfState;

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    assert!(!files.is_empty(), "{} has no files", folder.display());
    files
}

#[test]
fn every_bad_file_is_refused_with_the_diagnostics_beside_it() {
    let mut wrong = Vec::new();
    for path in files("tests/bad") {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let Err(ConfigError::Wrong(found)) = Config::parse(&name, &text, false) else {
            wrong.push(format!("{name}: accepted"));
            continue;
        };
        let beside = path.with_extension("stderr");
        if std::env::var("EXPECT").is_ok_and(|what| what == "write") {
            std::fs::write(&beside, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&beside).unwrap_or_default();
        if expected != found {
            wrong.push(format!("{name}:\n{found}expected:\n{expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_example_loads_without_a_warning() {
    for path in files("../configs") {
        match Config::load(&path, false) {
            Ok(loaded) => assert_eq!(loaded.warnings, "", "{}", path.display()),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_family_without_servers_or_without_a_listener_is_a_warning() {
    let service = |listen: &str, servers: &[&str]| {
        let servers: String =
            servers.iter().map(|server| format!("[[service.server]]\naddress = \"{server}\"\n")).collect();
        let text = format!(
            "[[port]]\ninterface = \"eth0\"\n[[service]]\nname = \"web\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
             listen = [{listen}]\n{servers}"
        );
        let loaded = Config::parse("families", &text, false).unwrap();
        loaded
            .warnings
            .lines()
            .filter(|line| line.starts_with("warning:"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let both = "\"203.0.113.10:80\", \"[2001:db8::10]:80\"";
    assert!(service(both, &["10.0.0.11:80", "[fd00::11]:80"]).is_empty());
    let warnings = service(both, &["10.0.0.11:80"]);
    assert_eq!(
        warnings,
        [
            "warning: service \"web\": listens on [2001:db8::10]:80 and has no IPv6 server: every connection will be \
          refused"
        ]
    );
    let warnings = service("\"203.0.113.10:80\"", &["10.0.0.11:80", "[fd00::11]:80"]);
    assert_eq!(
        warnings,
        ["warning: service \"web\": server \"[fd00::11]:80\": the service does not listen in IPv6"]
    );
}

#[test]
fn what_is_unusual_but_right_loads_and_a_service_without_servers_is_a_warning() {
    let text = "[[port]]\ninterface = \"eth0\"\n\
        [[service]]\nname = \"all\"\nprotocol = \"tcp\"\nmode = \"nat\"\nlisten = [\"203.0.113.10:0\"]\n\
        [[service]]\nname = \"some\"\nprotocol = \"tcp\"\nmode = \"dr\"\nlisten = [\"203.0.113.10:80\"]\n\
        [[service.server]]\naddress = \"10.0.0.11:80\"\nweight = 0\n\
        [[service.server]]\naddress = \"10.0.0.12\"\nmode = \"nat\"\n\
        [[service]]\nname = \"same-port-udp\"\nprotocol = \"udp\"\nmode = \"tun\"\n\
        listen = [\"203.0.113.10:80\"]\n[[service.server]]\naddress = \"10.0.0.11\"\n";
    let loaded = Config::parse("unusual", text, false).unwrap();
    assert!(
        loaded.warnings.starts_with("warning: service \"all\": no [[service.server]]"),
        "{}",
        loaded.warnings
    );
    assert_eq!(loaded.warnings.matches("warning:").count(), 1);
    let [all, some, udp] = &loaded.config.services[..] else { panic!("three services") };
    assert_eq!(all.out_of_state, OutOfState::Reset);
    assert_eq!(some.out_of_state, OutOfState::Drop, "a DR server's answers are not seen");
    assert_eq!(some.servers[0].port, ServerPort::Same);
    assert_eq!((some.servers[1].mode, udp.servers[0].mode), (Mode::Nat, Mode::Tun));
}
