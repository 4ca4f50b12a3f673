//! What takes no new connections, and until when it keeps those it has.
//!
//! A server with a `drain` time drains from the moment its weight becomes 0, or a reload leaves it out of its service.
//! When the time is over, workers reset what is left. One that was left out stays in the configuration in force, with
//! weight 0, until that is done. Without a `drain` time a server of weight 0 keeps its connections until they end, and
//! one that is left out loses them at once; so does one whose address becomes a VIP or a local address.
//!
//! A service that is left out as a whole stays as long as one of its servers does, and refuses new connections; what it
//! listened on is another's at once if the file says so. A local address that is left out takes no new connections and
//! stays until the servers that may have some over it have drained, for their answers come there; where one of these
//! servers stays, until no connection uses it ([`crate::census`]).

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::Protocol;
use shunt_engine::{Duration, Instant};

use crate::census::LocalOf;
use crate::config::{AddressPorts, Config, Listen, Server, Service};
use crate::health::Standing;
use crate::state::server_key;

/// A server that takes no new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draining {
    /// Since when.
    pub since: Instant,
    /// Whether the file no longer names it.
    pub left_out: bool,
}

/// A local address that no file names any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeavingLocal {
    /// The address with its ports.
    pub local: AddressPorts,
    /// When it goes; `None`: when no connection uses it any more.
    pub until: Option<Instant>,
}

/// How long after its deadline a server that was left out stays: workers reset the idle connections of a server more than
/// once, for a RST may be lost, and hold a record for LVS's 10 seconds of CLOSE.
pub const AFTERWARDS: Duration = Duration::from_secs(15);

/// When the connections of `server` are reset, if it drains and has a deadline. One that its checks found dead drains.
pub fn deadline(server: &Server) -> Option<Instant> {
    let since = match (server.draining, server.standing) {
        (Some(draining), _) => draining.since,
        (None, Standing::Out(since)) => since,
        (None, Standing::Whole | Standing::Weighing(_) | Standing::Aside) => return None,
    };
    Some(since + server.drain?)
}

/// Notes in `config` which of its servers drain at `now`, and since when, given what was in force `before`. Servers,
/// local addresses and services that were in force and are not in `config` are added, as long as they drain.
pub fn carry_over(before: Option<&Config>, config: &mut Config, now: Instant) {
    let old = before.map(Config::services_by_name).unwrap_or_default();
    before.into_iter().for_each(|before| config.share(before));
    let services = config.services.clone();
    let taken = Taken::by(&services);
    for service in &mut config.services {
        let old = old.get(service.name.as_str()).copied();
        // What is the very same has been carried over before.
        if !old.is_some_and(|old| Arc::ptr_eq(old, service)) {
            carry_over_service(old.map(Arc::as_ref), Arc::make_mut(service), &taken, now);
        }
    }
    let named: HashSet<_> = services.iter().map(|service| service.name.as_str()).collect();
    let gone = before.into_iter().flat_map(|before| &before.services);
    let gone = gone.filter(|old| !named.contains(old.name.as_str()));
    let left_out: Vec<_> = gone.filter_map(|old| left_out(old, config, &taken, now)).collect();
    config.services.extend(left_out.into_iter().map(Arc::new));
    before.into_iter().for_each(|before| config.share(before));
}

/// The addresses of a configuration, which nothing that was left out may have any more.
struct Taken<'a> {
    vips: HashSet<IpAddr>,
    locals: HashSet<IpAddr>,
    services: &'a [Arc<Service>],
    servers: OnceCell<HashSet<IpAddr>>,
}

impl<'a> Taken<'a> {
    fn by(services: &'a [Arc<Service>]) -> Self {
        let all = || services.iter();
        Self {
            vips: all().flat_map(|service| service.listen.iter().filter_map(Listen::vip)).collect(),
            locals: all().flat_map(|service| service.local.iter().map(|local| local.address)).collect(),
            services,
            servers: OnceCell::new(),
        }
    }

    /// Whether `address` is a server's. There may be very many, and few reloads leave out an address.
    fn is_server(&self, address: IpAddr) -> bool {
        let servers = || self.services.iter().flat_map(|service| &service.servers);
        self.servers.get_or_init(|| servers().map(|server| server.address).collect()).contains(&address)
    }
}

fn carry_over_service(old: Option<&Service>, service: &mut Service, taken: &Taken<'_>, now: Instant) {
    let before = old.map_or(&[][..], |old| &old.servers);
    let known: HashMap<_, _> = before.iter().map(|old| (server_key(old), old)).collect();
    for server in service.servers.iter_mut().filter(|server| server.weight == 0) {
        let old = known.get(&server_key(server));
        let since = old.and_then(|old| old.draining).map_or(now, |draining| draining.since);
        server.draining = Some(Draining { since, left_out: false });
    }
    let staying: HashSet<_> = service.servers.iter().map(server_key).collect();
    // An address that is a VIP or local from now on leads to no server any more.
    let directors = |address| taken.vips.contains(&address) || taken.locals.contains(&address);
    for old in before.iter().filter(|old| old.drain.is_some() && !directors(old.address)) {
        let stays = staying.contains(&server_key(old));
        let since = old.draining.map_or(now, |draining| draining.since);
        let leaving = Server { weight: 0, draining: Some(Draining { since, left_out: true }), ..old.clone() };
        if !stays && !has_left(&leaving, now) {
            service.servers.push(leaving);
        }
    }
    if let Some(old) = old {
        carry_over_locals(old, service, taken, now);
    }
}

fn carry_over_locals(old: &Service, service: &mut Service, taken: &Taken<'_>, now: Instant) {
    let others = |address| taken.vips.contains(&address) || taken.is_server(address);
    let stays = |local: &&AddressPorts| !service.local.contains(local) && !others(local.address);
    let left_before = old.local_leaving.iter().map(|leaving| &leaving.local);
    let leaving: Vec<_> = old.local.iter().chain(left_before).filter(stays).cloned().collect();
    if leaving.is_empty() {
        service.local_leaving = Vec::new();
        return;
    }
    let known: HashSet<_> = old.servers.iter().map(server_key).collect();
    let is_user = |server: &&Server| server.mode == Mode::Fullnat && known.contains(&server_key(server));
    let mut users = service.servers.iter().filter(is_user);
    // One that keeps its connections until they end outlasts every deadline.
    let until = users.try_fold(now, |last, server| Some(last.max(deadline(server)? + AFTERWARDS)));
    let leaving = leaving.into_iter().map(|local| LeavingLocal { local, until });
    service.local_leaving = leaving.filter(|leaving| leaving.until.is_none_or(|until| until > now)).collect();
}

/// What stays of a service that `config` does not name; `None` when nothing does.
fn left_out(old: &Service, config: &Config, taken: &Taken<'_>, now: Instant) -> Option<Service> {
    let free = |listen: &&Listen| {
        let others = |address| taken.locals.contains(&address) || taken.is_server(address);
        !listen.vip().is_some_and(others) && !is_listened_on(listen, old.protocol, config)
    };
    let mut service = Service {
        listen: old.listen.iter().filter(free).cloned().collect(),
        local: Vec::new(),
        servers: Vec::new(),
        left_out: true,
        ..old.clone()
    };
    carry_over_service(Some(old), &mut service, taken, now);
    (!service.servers.is_empty()).then_some(service)
}

/// Whether a service of `config` listens on some of the same.
fn is_listened_on(listen: &Listen, protocol: Protocol, config: &Config) -> bool {
    let services = config.services.iter().filter(|service| service.protocol == protocol);
    services.flat_map(|service| &service.listen).any(|other| {
        let addresses = other.prefix.covers(listen.prefix) || listen.prefix.covers(other.prefix);
        addresses && other.first <= listen.last && listen.first <= other.last
    })
}

/// The local addresses in `config` that go when no connection uses them any more.
pub fn locals_in_question(config: &Config) -> HashSet<LocalOf> {
    let services = config.services.iter();
    let leaving =
        services.flat_map(|service| service.local_leaving.iter().map(move |local| (service, local)));
    let used = leaving.filter(|(_, leaving)| leaving.until.is_none());
    used.map(|(service, leaving)| (service.name.clone(), leaving.local.clone())).collect()
}

/// Takes from `config` what was left out and has drained at `now`, and local addresses that were left out and are
/// `unused`. Returns what it is, in words.
pub fn take_drained(config: &mut Config, unused: &HashSet<LocalOf>, now: Instant) -> Vec<String> {
    let mut gone = Vec::new();
    let is_over = |service: &str, leaving: &LeavingLocal| match leaving.until {
        Some(until) => until <= now,
        None => unused.contains(&(service.to_owned(), leaving.local.clone())),
    };
    let leaves = |service: &Service| {
        let gone = |leaving: &LeavingLocal| is_over(&service.name, leaving);
        service.servers.iter().any(|server| has_left(server, now)) || service.local_leaving.iter().any(gone)
    };
    for service in config.services.iter_mut().filter(|service| leaves(service)) {
        let Service { name, servers, local_leaving, .. } = Arc::make_mut(service);
        servers.retain(|server| {
            let leaves = has_left(server, now);
            if leaves {
                gone.push(format!("server {} of service {name} has drained", server.name));
            }
            !leaves
        });
        local_leaving.retain(|leaving| {
            let leaves = is_over(name, leaving);
            if leaves {
                gone.push(format!("local address {} of service {name} was left out", leaving.local.address));
            }
            !leaves
        });
    }
    config.services.retain(|service| {
        let leaves = service.left_out && service.servers.is_empty();
        if leaves {
            gone.push(format!("service {} was left out", service.name));
        }
        !leaves
    });
    gone
}

/// Whether a server that was left out has done what it stayed for.
fn has_left(server: &Server, now: Instant) -> bool {
    let left_out = server.draining.is_some_and(|draining| draining.left_out);
    left_out && deadline(server).is_none_or(|deadline| now >= deadline + AFTERWARDS)
}

#[cfg(test)]
mod tests {
    use shunt_engine::steer::Prefix;

    use super::*;

    /// A service whose servers are (last byte of the address, weight, drain time).
    fn config(servers: &[(u8, u32, Option<&str>)]) -> Config {
        let mut text = "[[port]]\ninterface = \"eth0\"\n[[service]]\nname = \"web\"\nprotocol = \"tcp\"\n\
            mode = \"nat\"\nlisten = [\"203.0.113.10:80\"]\n"
            .to_owned();
        for (last, weight, drain) in servers {
            text += &format!("[[service.server]]\naddress = \"10.0.0.{last}:80\"\nweight = {weight}\n");
            text += &drain.map_or(String::new(), |drain| format!("drain = {drain:?}\n"));
        }
        Config::parse("test", &text, false).unwrap_or_else(|error| panic!("{error}")).config
    }

    /// The servers in force: last byte, weight, seconds until the deadline as seen from second 0.
    fn servers(config: &Config) -> Vec<(String, u32, Option<u64>)> {
        let seconds = |at: Instant| at.as_nanos() / 1_000_000_000;
        let server = |server: &Server| (server.name.clone(), server.weight, deadline(server).map(seconds));
        config.services[0].servers.iter().map(server).collect()
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn reload(before: &Config, servers: &[(u8, u32, Option<&str>)], seconds: u64) -> Config {
        let mut config = config(servers);
        carry_over(Some(before), &mut config, at(seconds));
        config
    }

    fn is(name: &str, weight: u32, deadline: Option<u64>) -> (String, u32, Option<u64>) {
        (format!("10.0.0.{name}:80"), weight, deadline)
    }

    /// What goes although every local address is in use.
    fn drained(config: &mut Config, now: Instant) -> Vec<String> {
        take_drained(config, &HashSet::new(), now)
    }

    #[test]
    fn a_server_drains_from_the_moment_its_weight_is_0_and_other_reloads_do_not_begin_anew() {
        let first = config(&[(11, 1, Some("30s")), (12, 1, Some("30s"))]);
        let second = reload(&first, &[(11, 0, Some("30s")), (12, 1, Some("30s"))], 100);
        assert_eq!(servers(&second), [is("11", 0, Some(130)), is("12", 1, None)]);
        let third = reload(&second, &[(12, 2, Some("30s")), (11, 0, Some("30s"))], 120);
        assert_eq!(servers(&third), [is("12", 2, None), is("11", 0, Some(130))]);
        // Another drain time counts from the same moment.
        let fourth = reload(&third, &[(11, 0, Some("1m")), (12, 2, None)], 125);
        assert_eq!(servers(&fourth), [is("11", 0, Some(160)), is("12", 2, None)]);
        let back = reload(&fourth, &[(11, 3, Some("1m"))], 126);
        assert_eq!(servers(&back), [is("11", 3, None)]);
        let again = reload(&back, &[(11, 0, Some("1m"))], 200);
        assert_eq!(servers(&again), [is("11", 0, Some(260))]);
    }

    #[test]
    fn without_a_drain_time_weight_0_has_no_deadline_and_a_server_left_out_is_gone() {
        let first = config(&[(11, 1, None), (12, 1, None)]);
        let second = reload(&first, &[(11, 0, None)], 100);
        assert_eq!(servers(&second), [is("11", 0, None)]);
        assert!(second.services[0].servers[0].draining.is_some());
    }

    #[test]
    fn a_server_left_out_stays_with_weight_0_until_its_connections_are_reset() {
        let first = config(&[(11, 5, Some("30s")), (12, 1, None)]);
        let mut second = reload(&first, &[(12, 1, None)], 100);
        assert_eq!(servers(&second), [is("12", 1, None), is("11", 0, Some(130))]);
        // A reload meanwhile changes nothing about it.
        let third = reload(&second, &[(12, 7, None)], 110);
        assert_eq!(servers(&third), [is("12", 7, None), is("11", 0, Some(130))]);
        assert!(drained(&mut second, at(130)).is_empty());
        let gone = drained(&mut second, at(130) + AFTERWARDS);
        assert_eq!(gone, ["server 10.0.0.11:80 of service web has drained"]);
        assert_eq!(servers(&second), [is("12", 1, None)]);
        let late = reload(&third, &[(12, 7, None)], 200);
        assert_eq!(servers(&late), [is("12", 7, None)]);
        // Named again in time, it is a server like any other.
        let back = reload(&third, &[(11, 2, Some("30s"))], 120);
        assert_eq!(servers(&back), [is("11", 2, None)]);
    }

    #[test]
    fn a_server_left_out_is_gone_at_once_when_its_address_becomes_the_directors() {
        let first = config(&[(11, 1, Some("30s")), (12, 1, Some("30s"))]);
        let mut second = config(&[]);
        Arc::make_mut(&mut second.services[0]).listen[0].prefix = Prefix::host("10.0.0.11".parse().unwrap());
        carry_over(Some(&first), &mut second, at(100));
        assert_eq!(servers(&second), [is("12", 0, Some(130))]);
    }

    #[test]
    fn a_server_already_draining_when_it_is_left_out_keeps_its_deadline() {
        let first = config(&[(11, 1, Some("30s"))]);
        let second = reload(&first, &[(11, 0, Some("30s"))], 100);
        let third = reload(&second, &[], 120);
        assert_eq!(servers(&third), [is("11", 0, Some(130))]);
    }

    #[test]
    fn at_the_start_a_server_of_weight_0_drains_already() {
        let mut config = config(&[(11, 0, Some("30s")), (12, 0, None), (13, 1, Some("30s"))]);
        carry_over(None, &mut config, at(7));
        assert_eq!(servers(&config), [is("11", 0, Some(37)), is("12", 0, None), is("13", 1, None)]);
        assert!(drained(&mut config, at(7000)).is_empty(), "the file names them");
    }

    /// Services of (name, listen, local addresses), each with one FULLNAT server 10.0.0.11 that drains for 30 seconds.
    fn services(services: &[(&str, &str, &[&str])]) -> Config {
        let mut text = "[[port]]\ninterface = \"eth0\"\n".to_owned();
        for (name, listen, local) in services {
            text += &format!(
                "[[service]]\nname = {name:?}\nprotocol = \"tcp\"\nlisten = [{listen:?}]\nlocal = {local:?}\n\
                 [[service.server]]\naddress = \"10.0.0.11:80\"\ndrain = \"30s\"\n"
            );
        }
        Config::parse("test", &text, false).unwrap_or_else(|error| panic!("{error}")).config
    }

    fn after(before: &Config, mut config: Config, seconds: u64) -> Config {
        carry_over(Some(before), &mut config, at(seconds));
        config
    }

    const WEB: (&str, &str, &[&str]) = ("web", "203.0.113.10:80", &["10.0.0.200"]);
    const MAIL: (&str, &str, &[&str]) = ("mail", "203.0.113.10:25", &["10.0.0.201"]);

    #[test]
    fn a_service_left_out_stays_until_its_servers_have_drained_with_its_addresses() {
        let first = services(&[WEB, MAIL]);
        let second = after(&first, services(&[MAIL]), 100);
        let [mail, web] = &second.services[..] else { panic!("{second:?}") };
        assert!(!mail.left_out && web.left_out);
        assert_eq!((&web.name[..], &web.listen, &web.local), ("web", &first.services[0].listen, &Vec::new()));
        assert_eq!((web.servers[0].weight, deadline(&web.servers[0])), (0, Some(at(130))));
        let floating: HashSet<_> = second.floating().map(|address| address.to_string()).collect();
        assert_eq!(floating, ["203.0.113.10", "10.0.0.200", "10.0.0.201"].map(str::to_owned).into());
        // A reload meanwhile changes nothing about it.
        let mut third = after(&second, services(&[MAIL]), 120);
        assert_eq!(third.services[1].servers, web.servers);
        assert!(drained(&mut third, at(144)).is_empty());
        let gone = drained(&mut third, at(145));
        let expected = [
            "server 10.0.0.11:80 of service web has drained",
            "local address 10.0.0.200 of service web was left out",
            "service web was left out",
        ];
        assert_eq!(gone, expected);
        assert_eq!(third, services(&[MAIL]));
        // Named again in time, it is a service like any other; too late, it begins anew.
        assert_eq!(after(&second, services(&[WEB, MAIL]), 120), first);
        assert_eq!(after(&second, services(&[MAIL]), 145), services(&[MAIL]));
    }

    #[test]
    fn what_a_service_left_out_listened_on_and_its_local_addresses_are_anothers_at_once() {
        let first = services(&[WEB]);
        let stays = |config: Config| {
            let config = after(&first, config, 100);
            let web = config.services.iter().find(|service| service.left_out).unwrap();
            (web.listen.len(), web.local_leaving.len())
        };
        assert_eq!(stays(services(&[("www", "203.0.113.10:80", &["10.0.0.200"])])), (0, 1));
        assert_eq!(stays(services(&[("all", "203.0.113.10:0", &["10.0.0.201"])])), (0, 1));
        assert_eq!(stays(services(&[("other", "203.0.113.10:81", &["10.0.0.201"])])), (1, 1));
        assert_eq!(stays(services(&[("other", "10.0.0.200:80", &["10.0.0.201"])])), (1, 0));
        assert_eq!(stays(services(&[("other", "203.0.113.11:80", &["203.0.113.10"])])), (0, 1));
        let mut moved = services(&[MAIL]);
        Arc::make_mut(&mut moved.services[0]).servers[0].address = IpAddr::from([10, 0, 0, 200]);
        assert_eq!(stays(moved), (1, 0));
    }

    #[test]
    fn without_a_drain_time_a_service_left_out_and_its_addresses_are_gone() {
        let mut first = services(&[WEB, MAIL]);
        Arc::make_mut(&mut first.services[0]).servers[0].drain = None;
        assert_eq!(after(&first, services(&[MAIL]), 100), services(&[MAIL]));
        // Of a server that stays, the connections and their local address do.
        first.services.truncate(1);
        let mut other = services(&[("web", "203.0.113.10:80", &["10.0.0.201"])]);
        Arc::make_mut(&mut other.services[0]).servers[0].drain = None;
        let stays = after(&first, other.clone(), 100);
        assert_eq!(locals_in_question(&stays).len(), 1);
        // A server that comes in its place has none.
        Arc::make_mut(&mut other.services[0]).servers[0].address = IpAddr::from([10, 0, 0, 12]);
        assert_eq!(after(&first, other.clone(), 100), other);
    }

    #[test]
    fn a_local_address_left_out_stays_until_its_servers_have_drained_or_no_connection_uses_it() {
        let first = services(&[WEB]);
        let other = || services(&[("web", "203.0.113.10:80", &["10.0.0.201"])]);
        let second = after(&first, other(), 100);
        let leaving = LeavingLocal { local: first.services[0].local[0].clone(), until: None };
        assert_eq!(second.services[0].local_leaving, std::slice::from_ref(&leaving));
        assert_eq!(second.services[0].local, other().services[0].local);
        // The server stays, and its connections with it, however long they last.
        let mut in_use = second.clone();
        assert!(drained(&mut in_use, at(1_000_000)).is_empty());
        let unused = locals_in_question(&in_use);
        assert_eq!(unused, [("web".to_owned(), leaving.local.clone())].into());
        let gone = take_drained(&mut in_use, &unused, at(101));
        assert_eq!(gone, ["local address 10.0.0.200 of service web was left out"]);
        assert_eq!(in_use, other());
        // The server is left out later, and needs it for longer.
        let mut without = other();
        Arc::make_mut(&mut without.services[0]).servers.clear();
        let third = after(&second, without.clone(), 120);
        assert_eq!(third.services[0].local_leaving, [LeavingLocal { until: Some(at(165)), ..leaving }]);
        assert!(locals_in_question(&third).is_empty());
        let mut last = third.clone();
        assert_eq!(drained(&mut last, at(165)).len(), 2);
        assert_eq!(last, without);
        // One that is back in time is like any other, and the one instead of it leaves.
        let back = after(&third, services(&[WEB]), 130);
        let leaving: Vec<_> = back.services[0].local_leaving.iter().map(|leaving| &leaving.local).collect();
        assert_eq!(leaving, [&other().services[0].local[0]]);
    }
}
