//! From the file as typed to what it means: types beyond TOML's, defaults, bounds. Services are [`super::service`]'s,
//! what must not overlap is [`super::overlap`]'s.

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::sync::Arc;

use shunt_dataplane::conn::Timeouts;
use shunt_dataplane::scheduler::Pool;
use toml::Spanned;

use super::diagnostic::{Diagnostics, shift};
use super::parse::{self, nearest};
use super::raw::{self, Number, Typed};
use super::service::Placed;
use super::sources::Sources;
use super::timeouts::timeouts;
use super::words::{Driver, Idle, Word, XdpMode};
use super::{Api, Config, Engine, Port, Queues, SOCKET, overlap, service, shape};
use crate::state::{SERVERS_MAX, SERVICES_MAX};

/// The configuration in `sources`, and its services with their places. `None` when one of them is not even TOML of the
/// right shape; otherwise the value is good exactly if `diagnostics` has no errors.
pub(super) fn resolve(
    sources: &Sources,
    diagnostics: &mut Diagnostics,
) -> Option<(Config, Vec<Arc<Placed>>)> {
    let file: Option<raw::File> = shape::read(sources.main().text(), diagnostics);
    let mut included = Vec::new();
    for (base, source) in sources.iter().skip(1) {
        diagnostics.in_file_at(base);
        included
            .push(shape::read::<raw::Included>(source.text(), diagnostics).map(|file| (base, file.service)));
    }
    diagnostics.in_file_at(0);
    let mut file = file?;
    let own = std::mem::take(&mut file.service);
    let typed: Vec<(usize, Vec<_>)> =
        std::iter::once(Some((0, own))).chain(included).collect::<Option<_>>()?;
    let timeouts = timeouts("timeouts", &file.timeouts, Timeouts::default(), diagnostics);
    let mut services = Vec::new();
    for (base, typed) in &typed {
        diagnostics.in_file_at(*base);
        let place = |typed| service::service(typed, &timeouts, diagnostics).at(*base);
        services.extend(typed.iter().map(place).map(Arc::new));
    }
    diagnostics.in_file_at(0);
    let config = config(&file, &services, diagnostics);
    too_many(&typed, diagnostics);
    Some((config, services))
}

/// What `file` means with `services`, which have been understood one by one.
pub(super) fn config(file: &raw::File, services: &[Arc<Placed>], diagnostics: &mut Diagnostics) -> Config {
    overlap::names(services, diagnostics);
    overlap::listens(services, diagnostics);
    overlap::locals(services, diagnostics);
    overlap::loops(services, diagnostics);
    Config {
        engine: engine(&file.engine, diagnostics),
        api: api(&file.api, diagnostics),
        metrics: metrics(&file.metrics, diagnostics),
        ports: ports(&file.port, diagnostics),
        services: services.iter().map(|placed| placed.service.clone()).collect(),
    }
}

/// Services and servers beyond those there are numbers for.
fn too_many(files: &[(usize, Vec<Spanned<raw::Service>>)], diagnostics: &mut Diagnostics) {
    let services =
        || files.iter().flat_map(|(base, services)| services.iter().map(move |typed| (base, typed)));
    if let Some((base, first)) = services().nth(SERVICES_MAX) {
        let message = format!("{} services; {SERVICES_MAX} are possible", services().count());
        diagnostics.error(shift(first.span(), *base), message, "the first too many");
    }
    for (base, service) in services() {
        let servers = &service.as_ref().server;
        if let Some(first) = servers.get(Pool::MEMBERS_MAX) {
            let message =
                format!("{} servers in a service; {} are possible", servers.len(), Pool::MEMBERS_MAX);
            diagnostics.error(shift(first.span(), *base), message, "the first too many");
        }
    }
    let servers = || {
        services().flat_map(|(base, service)| service.as_ref().server.iter().map(move |typed| (base, typed)))
    };
    if let Some((base, first)) = servers().nth(SERVERS_MAX) {
        let message = format!("{} servers in all services; {SERVERS_MAX} are possible", servers().count());
        diagnostics.error(shift(first.span(), *base), message, "the first too many");
    }
}

/// `a, b and c`, each in backquotes.
pub(super) fn list<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, first)) => format!("{} and {last}", first.join(", ")),
        None => String::new(),
    }
}

/// A word of a closed set, or `default` when none was typed.
pub(super) fn word<W: Word>(
    key: &str,
    typed: &Typed<String>,
    default: W,
    diagnostics: &mut Diagnostics,
) -> W {
    let Some(typed) = typed else { return default };
    let Some(word) = W::from_word(typed.as_ref()) else {
        let all = || W::ALL.iter().map(|word| word.word());
        let label = format!("unknown {}", W::KIND);
        let message = format!("{key}: unknown {} {:?}", W::KIND, typed.as_ref());
        let diagnostic = diagnostics.error(typed.span(), message, label);
        let known = format!("known are {}", list(all()));
        diagnostic.help(match nearest(typed.as_ref(), all()) {
            Some(near) => format!("did you mean `{near}`? {known}"),
            None => known,
        });
        return default;
    };
    word
}

/// A whole number within `bounds`, or `default` when none was typed.
pub(super) fn integer<T>(
    key: &str,
    typed: &Typed<Number>,
    default: T,
    bounds: RangeInclusive<i64>,
    diagnostics: &mut Diagnostics,
) -> T
where
    T: TryFrom<i64>,
{
    let Some(spanned) = typed else { return default };
    let (first, last) = (*bounds.start(), *bounds.end());
    let value = match number(key, typed, diagnostics) {
        Some(value) => value,
        None => return default,
    };
    match T::try_from(value) {
        Ok(number) if bounds.contains(&value) => number,
        _ => {
            let message = format!("{key}: {} is out of range", spanned.as_ref());
            diagnostics.error(spanned.span(), message, format!("must be {first} to {last}"));
            default
        }
    }
}

/// A whole number, if one was typed.
pub(super) fn number(key: &str, typed: &Typed<Number>, diagnostics: &mut Diagnostics) -> Option<i64> {
    let typed = typed.as_ref()?;
    let text = match typed.as_ref() {
        Number::Plain(number) => return Some(*number),
        Number::Text(text) => text,
    };
    let number = parse::count(text);
    if let Err(why) = &number {
        diagnostics.error(typed.span(), format!("{key}: {text:?} is not possible"), why.as_str()).help(
            "write it as 10000 or \"10k\"; k, M and G are thousands, millions and thousands of millions",
        );
    }
    number.ok()
}

/// A length of time, if one was typed.
pub(super) fn duration(
    key: &str,
    typed: &Typed<String>,
    diagnostics: &mut Diagnostics,
) -> Option<shunt_engine::Duration> {
    let typed = typed.as_ref()?;
    match parse::duration(typed.as_ref()) {
        Ok(duration) => Some(duration.into()),
        Err(why) => {
            diagnostics
                .error(typed.span(), format!("{key}: {:?} is not possible", typed.as_ref()), why)
                .help("write it as \"900s\", \"15m\" or \"500ms\"");
            None
        }
    }
}

fn engine(typed: &raw::Engine, diagnostics: &mut Diagnostics) -> Engine {
    let workers = integer("engine.workers", &typed.workers, 1, 1..=64, diagnostics);
    let buffer_size = integer("engine.buffer_size", &typed.buffer_size, 2048, 2048..=4096, diagnostics);
    if let Some(odd) = typed.buffer_size.as_ref().filter(|_| !matches!(buffer_size, 2048 | 4096)) {
        let message = format!("engine.buffer_size: {} is not possible", odd.as_ref());
        diagnostics.error(odd.span(), message, "must be 2048 or 4096");
    }
    Engine {
        workers,
        cores: cores(typed, workers, diagnostics),
        idle: word("engine.idle", &typed.idle, Idle::Adaptive, diagnostics),
        buffer_size,
        buffers: integer("engine.buffers", &typed.buffers, 16_384, 512..=1 << 20, diagnostics),
        max_connections: integer(
            "engine.max_connections",
            &typed.max_connections,
            262_144,
            1_024..=1 << 28,
            diagnostics,
        ),
        max_templates: integer(
            "engine.max_templates",
            &typed.max_templates,
            65_536,
            1_024..=1 << 24,
            diagnostics,
        ),
        manage_addresses: typed.manage_addresses.unwrap_or(true),
    }
}

fn cores(typed: &raw::Engine, workers: u16, diagnostics: &mut Diagnostics) -> Vec<usize> {
    let Some(typed) = &typed.cores else { return Vec::new() };
    let cores = match typed.as_ref() {
        raw::Cores::Text(text) => parse::cores(text),
        raw::Cores::List(list) => {
            let core = |&number: &i64| {
                usize::try_from(number)
                    .ok()
                    .filter(|&core| core < parse::CORES_MAX)
                    .ok_or_else(|| format!("{number} is not a core"))
            };
            list.iter().map(core).collect()
        }
    };
    let cores = match cores {
        Ok(cores) => cores,
        Err(why) => {
            diagnostics
                .error(typed.span(), format!("engine.cores: {why}"), "not a list of cores")
                .help("write it as \"2-5,8\" or [2, 3, 4, 5, 8]");
            return Vec::new();
        }
    };
    let mut sorted = cores.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        diagnostics.error(typed.span(), "engine.cores: a core is named twice", "each core runs one worker");
    } else if cores.len() < usize::from(workers) {
        let message = format!("engine.cores: {} cores for {workers} workers", cores.len());
        diagnostics.error(typed.span(), message, "every worker needs a core of its own");
    }
    cores
}

fn api(typed: &raw::Api, diagnostics: &mut Diagnostics) -> Api {
    let group = typed.group.as_ref().map(|group| group.as_ref().clone());
    let Some(socket) = &typed.socket else { return Api { socket: SOCKET.into(), group } };
    let path = PathBuf::from(socket.as_ref());
    if !path.is_absolute() {
        diagnostics.error(socket.span(), "api.socket: not an absolute path", "must begin with /");
    } else if socket.as_ref().len() > SOCKET_LEN_MAX {
        let label = format!("the kernel allows {SOCKET_LEN_MAX} bytes");
        diagnostics.error(socket.span(), "api.socket: the path is too long", label);
    }
    Api { socket: path, group }
}

fn metrics(typed: &raw::Metrics, diagnostics: &mut Diagnostics) -> Option<SocketAddr> {
    let typed = typed.listen.as_ref()?;
    let listen: Option<SocketAddr> =
        typed.as_ref().parse().ok().filter(|listen: &SocketAddr| listen.port() > 0);
    if listen.is_none() {
        let message = format!("metrics.listen: {:?} is not possible", typed.as_ref());
        diagnostics
            .error(typed.span(), message, "not an address with a port")
            .help("write it as \"127.0.0.1:9110\" or \"[::1]:9110\"");
    }
    listen
}

/// sun_path of unix(7) has 108 bytes, the last of them zero.
const SOCKET_LEN_MAX: usize = 107;

fn ports(typed: &[Spanned<raw::Port>], diagnostics: &mut Diagnostics) -> Vec<Port> {
    if typed.is_empty() {
        diagnostics
            .error(0..0, "no [[port]]: there is nothing to receive packets from", "in this file")
            .help("add [[port]] with interface = \"eth0\"");
    } else if typed.len() > PORTS_MAX {
        let place = typed[PORTS_MAX].span();
        diagnostics.error(place, format!("more than {PORTS_MAX} ports"), "too many");
    }
    let mut seen: Vec<(&str, Range<usize>)> = Vec::new();
    let mut ports = Vec::new();
    for spanned in typed {
        let port = spanned.as_ref();
        let Some(interface) = &port.interface else {
            diagnostics.error(spanned.span(), "port: `interface` is missing", "of this port");
            continue;
        };
        let name = interface.as_ref().as_str();
        if let Err(why) = interface_name(name) {
            diagnostics.error(interface.span(), format!("port.interface: {why}"), "not an interface name");
        }
        match seen.iter().find(|(other, _)| *other == name) {
            Some((_, first)) => {
                let message = format!("port.interface: {name:?} is a port already");
                diagnostics.error(interface.span(), message, "again").related(first.clone(), "first here");
            }
            None => seen.push((name, interface.span())),
        }
        ports.push(resolve_port(name, port, diagnostics));
    }
    ports
}

/// Ports are numbered in eight bits.
const PORTS_MAX: usize = 64;

fn resolve_port(name: &str, port: &raw::Port, diagnostics: &mut Diagnostics) -> Port {
    let driver = word("port.driver", &port.driver, Driver::AfXdp, diagnostics);
    if let Some(xdp) = port.xdp.as_ref().filter(|_| driver == Driver::AfPacket) {
        let message = format!("port.xdp: {name:?} does not use XDP");
        let label = "only possible with driver = \"af_xdp\"";
        diagnostics.error(xdp.span(), message, label);
    }
    let queues = match &port.queues {
        None => Queues::All,
        typed => Queues::First(integer("port.queues", typed, 1, 1..=256, diagnostics)),
    };
    Port {
        interface: name.to_owned(),
        driver,
        xdp: word("port.xdp", &port.xdp, XdpMode::Auto, diagnostics),
        queues,
    }
}

/// What the kernel accepts as a name (net/core/dev.c, dev_valid_name).
fn interface_name(name: &str) -> Result<(), String> {
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace();
    match name {
        "" => Err("the name is empty".to_owned()),
        "lo" => Err("frames cannot be taken from \"lo\"".to_owned()),
        _ if name.len() > 15 => Err(format!("{name:?} is longer than 15 bytes")),
        "." | ".." => Err(format!("{name:?} is no name")),
        _ if name.contains(odd) => Err(format!("{name:?} has a character that names do not have")),
        _ => Ok(()),
    }
}
