//! Configuration files, good and bad: every file of `configs/` loads, every file of `tests/bad/` is refused with the
//! diagnostics written beside it.
//!
//! `EXPECT=write cargo test -p shunt-control --test config` writes the expectations anew; read the difference.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};

use shunt_control::config::{Config, ConfigError, Loaded, Reader, ServerPort};
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
fn a_file_means_the_same_whatever_was_read_before_it() {
    let mut reader = Reader::default();
    let outcome = |result: Result<Loaded, ConfigError>| {
        result.map(|loaded| (loaded.config, loaded.warnings)).map_err(|error| error.to_string())
    };
    for path in files("../configs").into_iter().chain(files("tests/bad")) {
        let whole = outcome(Config::load(&path, false));
        for _ in 0..2 {
            assert_eq!(outcome(reader.load(&path, false)), whole, "{}", path.display());
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

#[test]
fn more_services_or_servers_than_there_are_numbers_for_are_an_error_where_there_are_too_many() {
    let port = "[[port]]\ninterface = \"eth0\"\n";
    let service = |number: usize| {
        let (high, low) = (number / 250, number % 250);
        format!(
            "[[service]]\nname = \"s{number}\"\nprotocol = \"tcp\"\nmode = \"dr\"\nlisten = [\"203.0.{high}.{low}:80\"]\n"
        )
    };
    let server = |number: usize| {
        format!(
            "[[service.server]]\naddress = \"{}\"\n",
            std::net::Ipv4Addr::from_bits(0x0a00_0000 + number as u32)
        )
    };
    let said = |text: &str| match Config::parse("many", text, false) {
        Ok(loaded) => loaded.config.services.len().to_string(),
        Err(error) => error.to_string(),
    };
    let services = |many: usize| port.to_owned() + &(1..=many).map(service).collect::<String>();
    assert_eq!(said(&services(1024)), "1024");
    let place = services(1024).lines().count() + 1;
    let error = said(&services(1025));
    assert!(error.contains("error: 1025 services; 1024 are possible"), "{error}");
    assert!(error.contains(&format!("many:{place}:1")), "line {place} is not in {error}");
    // Three services, so that none has more than there are places in one.
    let service_with =
        |number: usize, many: usize| service(number) + &(1..=many).map(server).collect::<String>();
    let servers =
        |many| port.to_owned() + &service_with(1, 65_535) + &service_with(2, 65_535) + &service_with(3, many);
    assert_eq!(said(&servers(2)), "3");
    let place = servers(2).lines().count() + 1;
    let error = said(&servers(3));
    assert!(error.contains("error: 131073 servers in all services; 131072 are possible"), "{error}");
    assert!(error.contains(&format!("many:{place}:1")), "line {place} is not in {error}");
    let error = said(&(port.to_owned() + &service_with(1, 65_536)));
    assert!(error.contains("error: 65536 servers in a service; 65535 are possible"), "{error}");
}

#[test]
fn local_addresses_that_no_server_uses_are_a_warning() {
    let warnings = |mode: &str, servers: &str| {
        let text = format!(
            "[[port]]\ninterface = \"eth0\"\n[[service]]\nname = \"web\"\nprotocol = \"tcp\"\nmode = \"{mode}\"\n\
             listen = [\"203.0.113.10:80\"]\nlocal = [\"10.0.0.200\"]\n{servers}"
        );
        Config::parse("local", &text, false).unwrap().warnings
    };
    let unused = "warning: service \"web\": local: no server has mode fullnat";
    let server = "[[service.server]]\naddress = \"10.0.0.11:80\"\n";
    assert_eq!(warnings("fullnat", server), "");
    assert!(!warnings("fullnat", "").contains(unused));
    assert!(warnings("nat", server).contains(unused) && warnings("nat", "").contains(unused));
    assert!(warnings("fullnat", &format!("{server}mode = \"nat\"\n")).contains(unused));
    assert_eq!(warnings("nat", &format!("{server}mode = \"fullnat\"\n")), "");
}

/// A folder with files, gone when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(label: &str, files: &[(&str, &str)]) -> Self {
        let folder = std::env::temp_dir().join(format!("shunt-config-{}-{label}", std::process::id()));
        std::fs::create_dir_all(folder.join("services.d")).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        Self(folder)
    }

    /// The names of the services, or what is wrong, with the files' names alone.
    fn load(&self) -> Result<Vec<String>, String> {
        match Config::load(&self.0.join("main.toml"), false) {
            Ok(loaded) => {
                Ok(loaded.config.services.into_iter().map(|service| service.name.clone()).collect())
            }
            Err(error) => Err(error.to_string().replace(&format!("{}/", self.0.display()), "")),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const MAIN: &str = "include = [\"services.d/*.toml\", \"last.toml\"]\n[[port]]\ninterface = \"eth0\"\n";

fn service(name: &str, last: u8) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\nprotocol = \"tcp\"\nmode = \"dr\"\nlisten = [\"203.0.113.{last}:80\"]\n\
         [[service.server]]\naddress = \"203.0.113.99\"\n"
    )
}

#[test]
fn included_files_count_in_the_order_of_include_and_of_their_names() {
    let main = MAIN.to_owned() + &service("own", 1);
    let [b, a, last, hidden] = [("b", 2), ("a", 3), ("last", 4), ("hidden", 5)].map(|(n, l)| service(n, l));
    let files = [
        ("main.toml", main.as_str()),
        ("services.d/20-b.toml", &b),
        ("services.d/10-a.toml", &a),
        ("services.d/.hidden.toml", &hidden),
        ("services.d/other.txt", "neither TOML"),
        ("last.toml", &last),
    ];
    assert_eq!(Folder::new("order", &files).load().unwrap(), ["own", "a", "b", "last"]);
    // A file that two patterns name counts once; the file itself is not among those that a pattern finds.
    let main = main.replace("\"last.toml\"", "\"last.toml\", \"*.toml\"");
    let files = [("main.toml", main.as_str()), ("last.toml", &last)];
    assert_eq!(
        Folder::new("twice", &files).load().unwrap(),
        ["own", "last"],
        "and nothing in services.d is no error"
    );
}

#[test]
fn what_is_wrong_in_an_included_file_is_told_with_that_files_name_and_line() {
    let wrong = service("one", 1).replace("\"dr\"", "\"drr\"");
    let files = [
        ("main.toml", MAIN),
        ("services.d/a.toml", wrong.as_str()),
        ("services.d/b.toml", "[engine]\nworkers = 2\n"),
        ("services.d/c.toml", "[[service]]\nnam = \"c\"\n"),
        ("last.toml", &service("two", 1)),
    ];
    let said = Folder::new("wrong", &files).load().unwrap_err();
    assert!(said.contains("--> services.d/b.toml:1:2") && said.contains("unknown key `engine`"), "{said}");
    assert!(said.contains("--> services.d/c.toml:2:1") && said.contains("did you mean `name`?"), "{said}");
    let files = [("main.toml", MAIN), ("services.d/a.toml", &wrong), ("last.toml", &service("two", 1))];
    let said = Folder::new("both", &files).load().unwrap_err();
    assert!(said.contains("--> services.d/a.toml:4:8") && said.contains("did you mean `dr`?"), "{said}");
    // A collision names both places, each in its own file.
    let collision = &said[said.find("collides").unwrap()..];
    assert!(
        collision.contains("--> last.toml:5:11") && collision.contains("::: services.d/a.toml:5:11"),
        "{said}"
    );
}

#[test]
fn an_include_that_leads_nowhere_is_an_error_at_its_place() {
    for (include, why) in [
        ("\"missing.toml\"", "there is no such file"),
        ("\"main.toml\"", "this is the file itself"),
        ("\"services.d\"", "there is no such file"),
        ("\"a[.toml\"", "invalid range pattern"),
    ] {
        let main = format!("include = [{include}]\n[[port]]\ninterface = \"eth0\"\n");
        let said = Folder::new("nowhere", &[("main.toml", &main)]).load().unwrap_err();
        assert!(said.contains("--> main.toml:1:12") && said.contains(why), "{include}: {said}");
    }
    let recursive = "include = [\"../main.toml\"]\n";
    let files = [("main.toml", MAIN), ("last.toml", recursive)];
    let said = Folder::new("recursive", &files).load().unwrap_err();
    assert!(said.contains("unknown key `include`") && said.contains("--> last.toml:1:1"), "{said}");
}

#[test]
fn numbers_and_times_may_have_units() {
    let text = "[engine]\nmax_connections = \"2M\"\nbuffers = \"20k\"\n[timeouts]\nudp = \"1500ms\"\nlisten = \"2h\"\n\
        [[port]]\ninterface = \"eth0\"\n";
    let loaded = Config::parse("units", text, false).unwrap();
    assert_eq!((loaded.config.engine.max_connections, loaded.config.engine.buffers), (2_000_000, 20_000));
    let wrong = |value: &str| {
        let text = format!("[engine]\nbuffers = {value}\n[[port]]\ninterface = \"eth0\"\n");
        Config::parse("units", &text, false).unwrap_err().to_string()
    };
    for (value, why) in [
        ("\"20K\"", "\"K\" is not a unit"),
        ("\"k\"", "not a whole number"),
        ("\"-1k\"", "not a whole number"),
        ("\"10000000000G\"", "too large"),
        ("\"1G\"", "must be 512 to 1048576"),
        ("1.5", "expected a whole number"),
    ] {
        let said = wrong(value);
        assert!(said.contains("units:2:11") && said.contains(why), "{value}: {said}");
    }
}
