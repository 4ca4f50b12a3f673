//! Servers that take no new connections, and until when they keep those they have.
//!
//! A server with a `drain` time drains from the moment its weight becomes 0, or a reload leaves it out of its service.
//! When the time is over, workers reset what is left. One that was left out stays in the configuration in force, with
//! weight 0, until that is done. Without a `drain` time a server of weight 0 keeps its connections until they end, and
//! one that is left out loses them at once; so does every server of a service that is left out, and one whose address
//! becomes a VIP or a local address.

use std::collections::HashSet;
use std::net::IpAddr;

use shunt_engine::{Duration, Instant};

use crate::config::{Config, Server, Service};
use crate::state::server_key;

/// A server that takes no new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draining {
    /// Since when.
    pub since: Instant,
    /// Whether the file no longer names it.
    pub left_out: bool,
}

/// How long after its deadline a server that was left out stays: workers reset the idle connections of a server more than
/// once, for a RST may be lost, and hold a record for LVS's 10 seconds of CLOSE.
pub const AFTERWARDS: Duration = Duration::from_secs(15);

/// When the connections of `server` are reset, if it drains and has a deadline.
pub fn deadline(server: &Server) -> Option<Instant> {
    Some(server.draining?.since + server.drain?)
}

/// Notes in `config` which of its servers drain at `now`, and since when, given what was in force `before`. Servers that
/// were in force and are not in `config` are added, as long as they drain.
pub fn carry_over(before: Option<&Config>, config: &mut Config, now: Instant) {
    let floating: HashSet<IpAddr> = config.floating().collect();
    for service in &mut config.services {
        let before = before.and_then(|before| before.services.iter().find(|old| old.name == service.name));
        carry_over_service(before, service, &floating, now);
    }
}

fn carry_over_service(
    before: Option<&Service>,
    service: &mut Service,
    floating: &HashSet<IpAddr>,
    now: Instant,
) {
    let before = before.map_or(&[][..], |before| &before.servers);
    let key = |server: &Server| server_key("", server);
    for server in service.servers.iter_mut().filter(|server| server.weight == 0) {
        let old = before.iter().find(|old| key(old) == key(server));
        let since = old.and_then(|old| old.draining).map_or(now, |draining| draining.since);
        server.draining = Some(Draining { since, left_out: false });
    }
    // An address that is a VIP or local from now on leads to no server any more.
    for old in before.iter().filter(|old| old.drain.is_some() && !floating.contains(&old.address)) {
        let stays = service.servers.iter().any(|server| key(server) == key(old));
        let since = old.draining.map_or(now, |draining| draining.since);
        let leaving = Server { weight: 0, draining: Some(Draining { since, left_out: true }), ..old.clone() };
        if !stays && !has_left(&leaving, now) {
            service.servers.push(leaving);
        }
    }
}

/// Takes servers that were left out and have drained at `now` from `config`. Returns them, by service and name.
pub fn take_drained(config: &mut Config, now: Instant) -> Vec<(String, String)> {
    let mut gone = Vec::new();
    for service in &mut config.services {
        let name = &service.name;
        service.servers.retain(|server| {
            let leaves = has_left(server, now);
            if leaves {
                gone.push((name.clone(), server.name.clone()));
            }
            !leaves
        });
    }
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
        assert_eq!(take_drained(&mut second, at(130)), []);
        let gone = ("web".to_owned(), "10.0.0.11:80".to_owned());
        assert_eq!(take_drained(&mut second, at(130) + AFTERWARDS), [gone]);
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
        second.services[0].listen[0].prefix = Prefix::host("10.0.0.11".parse().unwrap());
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
        assert_eq!(take_drained(&mut config, at(7000)), [], "the file names them");
    }
}
