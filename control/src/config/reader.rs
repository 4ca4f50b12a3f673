//! Reads one configuration after the other. A service whose text is what it was means what it meant: it is not read anew.
//!
//! Files are cut at the headers of their services. Each piece is TOML by itself, and so is what is left. If each makes
//! sense by itself, the files mean what the pieces mean together: a cut inside a string or a list leaves the piece before
//! it open, which makes no sense. Wherever there is anything to say about a piece, or about two, the files are read as a
//! whole, which finds the words and the place.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use shunt_dataplane::conn::Timeouts;
use shunt_dataplane::scheduler::Pool;
use toml::de::DeTable;

use super::diagnostic::Diagnostics;
use super::service::Placed;
use super::sources::Sources;
use super::timeouts::timeouts;
use super::{Config, ConfigError, Loaded, raw, resolve, service};
use crate::state::{SERVERS_MAX, SERVICES_MAX};

/// What the last configuration that was read consisted of.
#[derive(Debug, Default)]
pub struct Reader {
    /// What stood around the services. They depend on it.
    rest: String,
    known: HashMap<Box<str>, Arc<Placed>>,
}

impl Reader {
    /// Reads the file at `path` and those that it includes.
    ///
    /// # Errors
    /// When it cannot be read, or with every error in them.
    pub fn load(&mut self, path: &Path, colour: bool) -> Result<Loaded, ConfigError> {
        let mut diagnostics = Diagnostics::default();
        let sources = Sources::read(path, &mut diagnostics)?;
        if diagnostics.is_empty() { self.of(sources, colour) } else { Config::load(path, colour) }
    }

    /// What `sources` mean.
    ///
    /// # Errors
    /// With every error in them.
    pub fn of(&mut self, sources: Sources, colour: bool) -> Result<Loaded, ConfigError> {
        match self.in_pieces(&sources) {
            Some(config) => Ok(Loaded { config, sources, warnings: String::new() }),
            None => Config::of(sources, colour),
        }
    }

    /// What the pieces mean; `None` when there is anything to say about them.
    fn in_pieces(&mut self, sources: &Sources) -> Option<Config> {
        let (mut rest, mut texts) = cut(sources.main().text());
        let file: raw::File = around(&rest)?;
        for (_, source) in sources.iter().skip(1) {
            let (between, services) = cut(source.text());
            let _: raw::Included = around(&between)?;
            rest += &between;
            texts.extend(services);
        }
        if rest != self.rest {
            self.known.clear();
            self.rest = rest;
        }
        let mut diagnostics = Diagnostics::default();
        let timeouts = timeouts("timeouts", &file.timeouts, Timeouts::default(), &mut diagnostics);
        let mut services = Vec::with_capacity(texts.len());
        for text in texts {
            let placed = match self.known.get(text) {
                Some(known) => known.clone(),
                None => {
                    let typed: raw::Included = toml::from_str(text).ok()?;
                    let [typed] = &typed.service[..] else { return None };
                    Arc::new(service::service(typed, &timeouts, &mut diagnostics))
                }
            };
            if !diagnostics.is_empty() {
                return None;
            }
            services.push(placed.clone());
            self.known.entry(text.into()).or_insert(placed);
        }
        let config = resolve::config(&file, &services, &mut diagnostics);
        // Only those in `services` are held by anybody else.
        self.known.retain(|_, placed| Arc::strong_count(placed) > 1);
        (diagnostics.is_empty() && has_room_for(&config)).then_some(config)
    }
}

/// What of `text` is no service, and the services in it.
fn cut(text: &str) -> (String, Vec<&str>) {
    let (mut rest, mut services) = (String::new(), Vec::new());
    let (mut begin, mut in_service) = (0, false);
    let mut piece = |begin, end, in_service| match in_service {
        true => services.push(&text[begin..end]),
        false => rest += &text[begin..end],
    };
    for (at, _) in text.match_indices('[').filter(|&(at, _)| begins_line(text, at)) {
        let header = &text[at..];
        let begins_service = header.starts_with("[[service]]");
        let of_service = header.starts_with("[[service.") || header.starts_with("[service.");
        if begins_service || in_service && !of_service {
            piece(begin, at, in_service);
            (begin, in_service) = (at, begins_service);
        }
    }
    piece(begin, text.len(), in_service);
    (rest, services)
}

/// What stands around services, if there is none in it.
fn around<F: DeserializeOwned>(text: &str) -> Option<F> {
    let table = DeTable::parse(text).ok()?;
    if table.get_ref().contains_key("service") { None } else { toml::from_str(text).ok() }
}

fn begins_line(text: &str, at: usize) -> bool {
    let before = text[..at].trim_end_matches([' ', '\t']);
    before.is_empty() || before.ends_with('\n')
}

/// Whether there are numbers for all services and servers.
fn has_room_for(config: &Config) -> bool {
    let servers = || config.services.iter().map(|service| service.servers.len());
    config.services.len() <= SERVICES_MAX
        && servers().sum::<usize>() <= SERVERS_MAX
        && servers().all(|servers| servers <= Pool::MEMBERS_MAX)
}

#[cfg(test)]
mod tests {
    use super::super::sources::Source;
    use super::*;

    fn sources(text: &str) -> Sources {
        Sources::new(Source::new("test".into(), text), [])
    }

    fn service(name: &str, last: u8, weight: u32) -> String {
        format!(
            "[[service]]\nname = {name:?}\nprotocol = \"tcp\"\nmode = \"dr\"\nlisten = [\"203.0.113.{last}:80\"]\n\
             [service.timeouts]\nestablished = \"5m\"\n\
             [[service.server]]\naddress = \"10.0.0.{last}\"\nweight = {weight}\n"
        )
    }

    fn file(weight: u32) -> String {
        let services = [service("a", 1, 1), service("b", 2, weight), service("c", 3, 1)].concat();
        format!("[[port]]\ninterface = \"eth0\"\n{services}[timeouts]\nudp = \"1m\"\n")
    }

    /// What is read, or what is said.
    fn read(result: Result<Loaded, ConfigError>) -> Result<(Config, String), String> {
        result.map(|loaded| (loaded.config, loaded.warnings)).map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_differs_is_read_anew() {
        let mut reader = Reader::default();
        let first = reader.of(sources(&file(1)), false).unwrap().config;
        let second = reader.of(sources(&file(2)), false).unwrap().config;
        let kept = |before: &Config, after: &Config| -> Vec<_> {
            before.services.iter().zip(&after.services).map(|(a, b)| Arc::ptr_eq(a, b)).collect()
        };
        assert_eq!(kept(&first, &second), [true, false, true]);
        assert_eq!(second.services[1].servers[0].weight, 2);
        assert_eq!(reader.known.len(), 3, "what is gone is forgotten");
        let third = file(2).replace("1m", "2m");
        let third = reader.of(sources(&third), false).unwrap().config;
        assert_eq!(kept(&second, &third), [false; 3], "services depend on what stands around them");
        assert_eq!(third, Config::of(sources(&file(2).replace("1m", "2m")), false).unwrap().config);
    }

    #[test]
    fn whatever_stands_between_two_lines_means_what_it_means_in_the_whole_file() {
        let text = file(1);
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let snippets = [
            "# [[service]]\n",
            "\n[engine]\nworkers = 2\n",
            "[[ service ]]\n",
            "  [[service]]\nname = \"indented\"\nprotocol = \"udp\"\nmode = \"dr\"\nlisten = [\"203.0.113.9:80\"]\n",
            "[[\"service\"]]\nname = \"quoted\"\n",
            "[[service.server]]\naddress = \"10.0.0.77\"\n",
            "[service.timeouts]\nudp = \"7s\"\n",
            "[timeouts]\nudp = \"7s\"\n",
            "cores = \"\"\"\n",
            "x = '''\n[[service]]\n'''\n",
            "name = \"a\"\n",
            "listen = [\n[[service]]\n]\n",
            "[[service]]\n",
            "]\n",
            "\r\n",
            "[service]\nname = \"table\"\n",
            "service = []\n",
            "service.name = \"dotted\"\n",
        ];
        let mut reader = Reader::default();
        let mut good = 0;
        for place in 0..=lines.len() {
            for snippet in snippets {
                let text = [&lines[..place].concat(), snippet, &lines[place..].concat()].concat();
                let whole = read(Config::of(sources(&text), false));
                assert_eq!(read(reader.of(sources(&text), false)), whole, "{snippet:?} before line {place}");
                assert_eq!(read(reader.of(sources(&text), false)), whole, "and once more");
                good += usize::from(reader.in_pieces(&sources(&text)).is_some());
            }
        }
        assert!(good > lines.len(), "few of them go the short way: {good}");
    }
}
