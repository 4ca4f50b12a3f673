//! From intent and the kernel's view to the one value workers read.

use std::collections::BTreeSet;
use std::net::IpAddr;

use shunt_dataplane::neigh::NextHop;
use shunt_dataplane::route::Hops;
use shunt_dataplane::server::Server;
use shunt_dataplane::service::{Listen, Local, Service, ServiceId};
use shunt_dataplane::snapshot::{Builder, PortInfo, Snapshot};
use shunt_engine::PortId;
use shunt_engine::steer::Prefix;

use crate::config::{self, AddressPorts, Config, OnDown, ServerPort, ServerState};
use crate::drain;
use crate::health::Standing;
use crate::kernel::{Address, Kernel, Route, Way};
use crate::state::{HopKey, Numbers, NumbersError};

/// An open port, as far as the snapshot needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPort {
    /// Its number.
    pub id: PortId,
    /// The kernel's number of the interface.
    pub link: u32,
    /// What workers know of it.
    pub info: PortInfo,
}

/// Builds the snapshot that follows `before`, which was built with `numbers` as they are now. `numbers` is changed; use a
/// clone until the snapshot is in force.
///
/// # Errors
/// When there are more services, servers or hops than numbers.
pub fn compile(
    config: &Config,
    kernel: &Kernel,
    ports: &[OpenPort],
    numbers: &mut Numbers,
    before: &Snapshot,
) -> Result<Snapshot, NumbersError> {
    let changed = numbers.assign(config)?;
    let view = View { config, kernel, ports };
    let routes = view.routes();
    let keys = routes.iter().flat_map(|route| &route.keys).map(|&(key, _)| key).collect();
    numbers.assign_hops(&keys)?;
    let mut builder = Builder::after(before);
    for port in ports {
        builder.port(port.info.clone());
    }
    for Towards { prefix, keys } in routes {
        let number = |&(key, weight): &(HopKey, u32)| {
            (numbers.hop(key).expect("every key was given a number just now"), weight)
        };
        let hops: Hops = keys.iter().map(number).collect();
        for (key, (id, _)) in keys.iter().zip(hops.iter()) {
            builder.hop(id, view.hop(key.0));
        }
        builder.route(prefix, hops);
    }
    let own = kernel.addresses.iter().flat_map(|own| [Some(own.address), own.broadcast()]).flatten();
    own.chain(config.floating()).for_each(|address| _ = builder.own_address(address));
    for service in &config.services {
        let id = number_of(service, numbers);
        if !changed.contains(&id) && builder.keep(id) {
            continue;
        }
        let Servers { staying, leaving, absent } = servers(service, numbers);
        let locals: Vec<_> = service.local_leaving.iter().map(|leaving| local(&leaving.local)).collect();
        let service = self::service(service, numbers);
        builder.service(service, staying).leaving(id, leaving, &locals).absent(id, absent);
    }
    Ok(builder.build())
}

/// The stations whose link addresses workers need: gateways, and servers on attached networks.
pub fn stations(config: &Config, kernel: &Kernel, ports: &[OpenPort]) -> BTreeSet<(u32, IpAddr)> {
    let view = View { config, kernel, ports };
    let paths = kernel.routes.iter().flat_map(|route| &route.paths);
    let gateways = paths.filter_map(|path| match path.way {
        Way::Gateway(link, gateway) => Some((link, gateway)),
        Way::Attached(_) | Way::Nowhere => None,
    });
    let servers = view.server_addresses().filter_map(|address| kernel.next_station(address));
    gateways.chain(servers).filter(|(link, _)| view.exit(*link).is_some()).collect()
}

/// The port and VLAN through which frames of `link` leave; `None` when the link is not ours.
pub fn exit(kernel: &Kernel, ports: &[OpenPort], link: u32) -> Option<(PortId, Option<u16>)> {
    let port_of = |link: u32| ports.iter().find(|port| port.link == link).map(|port| port.id);
    if let Some(port) = port_of(link) {
        return Some((port, None));
    }
    let (below, vid) = kernel.link(link)?.vlan?;
    Some((port_of(below)?, Some(vid)))
}

/// A route as workers shall have it.
struct Towards {
    prefix: Prefix,
    /// The next hops, with their weights; at least one.
    keys: Vec<(HopKey, u32)>,
}

struct View<'a> {
    config: &'a Config,
    kernel: &'a Kernel,
    ports: &'a [OpenPort],
}

impl View<'_> {
    fn exit(&self, link: u32) -> Option<(PortId, Option<u16>)> {
        exit(self.kernel, self.ports, link)
    }

    fn server_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let servers = self.config.services.iter().flat_map(|service| &service.servers);
        servers.map(|server| server.address)
    }

    /// All routes workers know. A server on an attached network has one of its own, to its station.
    fn routes(&self) -> Vec<Towards> {
        let mut servers: Vec<_> = self
            .server_addresses()
            .filter_map(|address| {
                let route = self.kernel.route_to(address)?;
                let Way::Attached(link) = route.way() else { return None };
                self.exit(link)?;
                let keys = vec![(HopKey::Station(link, address, route.mtu), 1)];
                Some(Towards { prefix: Prefix::host(address), keys })
            })
            .collect();
        servers.sort_by_key(|towards| towards.prefix);
        servers.dedup_by_key(|towards| towards.prefix);
        servers.extend(self.kernel.routes.iter().filter_map(|route| self.route(route)));
        servers
    }

    fn route(&self, route: &Route) -> Option<Towards> {
        let prefix = route.prefix;
        let keys: Vec<_> =
            route.paths.iter().filter_map(|path| Some((self.key(route, path.way)?, path.weight))).collect();
        if keys.is_empty() {
            // It leaves by an interface that is no port. The packets must not take a wider route of ours instead.
            return (!prefix.is_empty()).then(|| Towards { prefix, keys: vec![(HopKey::Nowhere, 1)] });
        }
        // A path whose station does not answer is no path, as long as there is another.
        let alive: Vec<_> = keys.iter().copied().filter(|&(key, _)| self.is_reachable(key)).collect();
        Some(Towards { prefix, keys: if alive.is_empty() { keys } else { alive } })
    }

    fn key(&self, &Route { prefix, mtu, .. }: &Route, way: Way) -> Option<HopKey> {
        self.exit(way.link()?)?;
        match way {
            Way::Attached(link) => Some(HopKey::Attached(link, prefix, mtu)),
            Way::Gateway(link, gateway) => Some(HopKey::Station(link, gateway, mtu)),
            Way::Nowhere => None,
        }
    }

    fn is_reachable(&self, key: HopKey) -> bool {
        match key {
            HopKey::Attached(..) => true,
            HopKey::Station(link, address, _) => {
                self.kernel.neighbour(link, address).is_some_and(|station| station.mac.is_some())
            }
            HopKey::Nowhere => false,
        }
    }

    fn hop(&self, key: HopKey) -> NextHop {
        let (link, station, own, route_mtu) = match key {
            HopKey::Attached(link, network, mtu) => {
                (link, None, self.own_address(link, network.address()), mtu)
            }
            HopKey::Station(link, address, mtu) => {
                (link, Some(address), self.own_address(link, address), mtu)
            }
            HopKey::Nowhere => (0, None, None, None),
        };
        let neighbour = station.and_then(|address| self.kernel.neighbour(link, address));
        let known = self.kernel.link(link);
        let mtu = known.map_or(0, |link| link.mtu).min(route_mtu.unwrap_or(u32::MAX));
        let (port, vid) = self.exit(link).unwrap_or((PortId(0), None));
        NextHop {
            port,
            vid,
            source: known.map(|link| link.mac).unwrap_or_default(),
            destination: neighbour.and_then(|neighbour| neighbour.mac),
            attached: matches!(key, HopKey::Attached(..)),
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            address: own,
        }
    }

    /// The director's own address towards `station` on `link`; a VIP or local address only when there is no other. An
    /// IPv6 link may have none but a link-local one, which means nothing to hosts elsewhere: then another link's is
    /// taken.
    fn own_address(&self, link: u32, station: IpAddr) -> Option<IpAddr> {
        let usable = |own: &&Address| match (own.address, station) {
            (IpAddr::V4(_), IpAddr::V4(_)) => own.link == link,
            (IpAddr::V6(_), IpAddr::V6(_)) => self.exit(own.link).is_some(),
            _ => false,
        };
        // The first of equals, as the kernel orders them, is the primary one.
        let found = self.kernel.addresses.iter().filter(usable).min_by_key(|own| {
            let link_local = matches!(own.address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            (link_local, self.config.is_floating(own.address), own.link != link)
        });
        found.map(|own| own.address)
    }
}

/// The servers of a service.
#[derive(Default)]
struct Servers {
    /// Those that new connections may go to.
    staying: Vec<Server>,
    /// Those that keep the connections they have: a reload has left them out and they still drain, or their checks say so.
    leaving: Vec<Server>,
    /// Those that are dead and keep nothing.
    absent: Vec<Server>,
}

fn servers(typed: &config::Service, numbers: &Numbers) -> Servers {
    let mut servers = Servers::default();
    for server in &typed.servers {
        let left_out = server.draining.is_some_and(|draining| draining.left_out);
        let place = match (server.standing, server.health.on_down) {
            _ if left_out => &mut servers.leaving,
            (Standing::Whole | Standing::Weighing(_), _) | (Standing::Out(_), OnDown::Inhibit) => {
                &mut servers.staying
            }
            (Standing::Out(_), OnDown::Remove) if server.drain.is_none() => &mut servers.absent,
            (Standing::Aside, _) | (Standing::Out(_), OnDown::Remove) => &mut servers.leaving,
        };
        place.push(self::server(typed, server, numbers));
    }
    servers
}

fn server(service: &config::Service, typed: &config::Server, numbers: &Numbers) -> Server {
    Server {
        id: numbers.server(&service.name, typed).expect("every server was given a number"),
        service: number_of(service, numbers),
        address: typed.address,
        port: match typed.port {
            ServerPort::Same => None,
            ServerPort::Mapped(port) => Some(port),
        },
        mode: typed.mode,
        weight: weight(typed),
        drain_at: drain::deadline(typed),
        down: matches!(typed.standing, Standing::Out(_)) || typed.state == ServerState::Disabled,
        thresholds: typed.thresholds,
        hop: None,
    }
}

/// The weight that new connections go by at this moment.
pub fn weight(server: &config::Server) -> u32 {
    match server.standing {
        Standing::Whole => server.weight,
        // One that drains does whatever its checks say.
        Standing::Weighing(_) if server.weight == 0 => 0,
        Standing::Weighing(weight) => weight,
        Standing::Aside | Standing::Out(_) => 0,
    }
}

fn number_of(service: &config::Service, numbers: &Numbers) -> ServiceId {
    numbers.service(&service.name).expect("every service was given a number")
}

fn local(entry: &AddressPorts) -> Local {
    Local { address: entry.address, ports: entry.ports() }
}

fn service(typed: &config::Service, numbers: &Numbers) -> Service {
    let listen = |entry: &config::Listen| Listen { prefix: entry.prefix, ports: entry.ports() };
    Service {
        id: number_of(typed, numbers),
        name: typed.name.clone(),
        protocol: typed.protocol,
        listen: typed.listen.iter().map(listen).collect(),
        scheduler: typed.scheduler,
        locals: typed.local.iter().map(local).collect(),
        out_of_state: typed.out_of_state,
        timeouts: typed.timeouts,
        persistence: typed.persistence,
        one_packet: typed.one_packet,
        server_gone: typed.server_gone,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shunt_dataplane::tuple::{Protocol, V4};
    use shunt_engine::port::MacAddr;

    use super::*;
    use crate::kernel::Link;
    use crate::kernel::tests::{director, ip, link, route};

    const FILE: &str = r#"
        [[port]]
        interface = "eth0"
        [[port]]
        interface = "eth1"
        [[service]]
        name = "web"
        listen = ["203.0.113.10:80"]
        protocol = "tcp"
        local = ["10.0.0.200"]
        [[service.server]]
        address = "10.0.0.11:8080"
        [[service.server]]
        address = "198.51.100.12:80"
    "#;

    fn config(text: &str) -> Config {
        Config::parse("test", text, false).unwrap_or_else(|error| panic!("{error}")).config
    }

    fn ports(kernel: &Kernel) -> Vec<OpenPort> {
        let open = |(number, name): (u8, &str)| {
            let link = kernel.link_named(name).unwrap();
            OpenPort {
                id: PortId(number),
                link: link.index,
                info: PortInfo { name: name.to_owned(), mac: link.mac },
            }
        };
        [(0, "eth0"), (1, "eth1")].map(open).into()
    }

    #[test]
    fn a_server_on_an_attached_network_is_its_own_hop_and_a_far_one_is_its_gateways() {
        let kernel = director();
        let snapshot =
            compile(&config(FILE), &kernel, &ports(&kernel), &mut Numbers::default(), &Snapshot::default())
                .unwrap();
        let hop = |address: &str| snapshot.hop(snapshot.route(ip(address)).unwrap()).unwrap();
        let near = hop("10.0.0.11");
        assert_eq!(near.destination, Some(MacAddr([2, 0, 0, 0, 1, 11])));
        assert_eq!((near.port, near.address, near.attached), (PortId(1), Some(ip("10.0.0.1")), false));
        assert_eq!(hop("198.51.100.12").destination, Some(MacAddr([2, 0, 0, 0, 1, 254])));
        assert!(hop("203.0.113.77").attached);
        assert!(snapshot.servers().all(|server| server.hop.is_some()));
    }

    #[test]
    fn stations_are_gateways_and_near_servers() {
        let kernel = director();
        let found = stations(&config(FILE), &kernel, &ports(&kernel));
        assert_eq!(found, [(2, ip("203.0.113.254")), (3, ip("10.0.0.11"))].into());
    }

    #[test]
    fn a_vlan_link_is_its_port_and_number() {
        let mut kernel = director();
        kernel.links.push(Link { vlan: Some((3, 42)), ..link(7, "eth1.42") });
        kernel.routes.insert(0, route("10.9.0.0/24", Way::Gateway(7, ip("10.9.0.1"))));
        let snapshot =
            compile(&config(FILE), &kernel, &ports(&kernel), &mut Numbers::default(), &Snapshot::default())
                .unwrap();
        let hop = snapshot.hop(snapshot.route(ip("10.9.0.5")).unwrap()).unwrap();
        assert_eq!((hop.port, hop.vid, hop.destination), (PortId(1), Some(42), None));
    }

    #[test]
    fn a_route_by_another_interface_does_not_fall_back_on_a_wider_one() {
        let mut kernel = director();
        kernel.links.push(link(9, "mgmt"));
        kernel.routes.insert(0, route("192.0.2.0/24", Way::Attached(9)));
        let snapshot =
            compile(&config(FILE), &kernel, &ports(&kernel), &mut Numbers::default(), &Snapshot::default())
                .unwrap();
        let hop = snapshot.hop(snapshot.route(ip("192.0.2.5")).unwrap()).unwrap();
        assert_eq!((hop.destination, hop.attached), (None, false));
    }

    #[test]
    fn a_multipath_route_has_the_next_hops_that_answer() {
        let mut kernel = director();
        let gateways = [(2, "203.0.113.251", 1), (2, "203.0.113.252", 3)];
        let path = |&(link, gateway, weight): &(u32, &str, u32)| crate::kernel::Path {
            way: Way::Gateway(link, ip(gateway)),
            weight,
        };
        let both =
            Route { paths: gateways.iter().map(path).collect(), ..route("192.0.2.0/24", Way::Nowhere) };
        kernel.routes.insert(0, both);
        let mut numbers = Numbers::default();
        let mut hops = |kernel: &Kernel| {
            let snapshot =
                compile(&config(FILE), kernel, &ports(kernel), &mut numbers, &Snapshot::default()).unwrap();
            let hops = snapshot.hops(ip("192.0.2.5")).unwrap();
            let known = |(id, weight)| (snapshot.hop(id).unwrap().destination.map(|mac| mac.0[5]), weight);
            (hops.iter().map(known).collect::<Vec<_>>(), snapshot.generation())
        };
        let (none, first) = hops(&kernel);
        assert_eq!(none, [(None, 1), (None, 3)], "nobody answers yet");
        let station = |address: &str, last| crate::kernel::Neighbour {
            address: ip(address),
            mac: Some(MacAddr([2, 0, 0, 0, 1, last])),
            ..kernel.neighbours[0].clone()
        };
        let (one, other) = (station("203.0.113.251", 51), station("203.0.113.252", 52));
        kernel.neighbours.push(one);
        let (some, second) = hops(&kernel);
        assert_eq!(some, [(Some(51), 1)]);
        kernel.neighbours.push(other);
        let (all, third) = hops(&kernel);
        assert_eq!(all, [(Some(51), 1), (Some(52), 3)]);
        assert!(first != second && second != third, "flows look again");
    }

    #[test]
    fn the_mtu_of_one_route_is_not_that_of_others_by_the_same_gateway() {
        for narrow_first in [false, true] {
            let mut kernel = director();
            let gateway = Way::Gateway(2, ip("203.0.113.254"));
            let narrow = Route { mtu: Some(1400), ..route("192.0.2.0/24", gateway) };
            kernel.routes.insert(if narrow_first { 0 } else { kernel.routes.len() }, narrow);
            let mut numbers = Numbers::default();
            let snapshot =
                compile(&config(FILE), &kernel, &ports(&kernel), &mut numbers, &Snapshot::default()).unwrap();
            let hop = |address: &str| snapshot.hop(snapshot.route(ip(address)).unwrap()).unwrap();
            let (narrow, wide) = (hop("192.0.2.5"), hop("198.51.100.200"));
            assert_eq!((narrow.mtu, wide.mtu), (1400, 1500));
            assert!(narrow.destination.is_some() && narrow.destination == wide.destination);
        }
    }

    #[test]
    fn a_floating_address_is_no_source_while_there_is_another() {
        let mut kernel = director();
        let vip = crate::kernel::Address { link: 2, address: ip("203.0.113.10"), prefix_len: 32 };
        kernel.addresses.insert(0, vip);
        let snapshot =
            compile(&config(FILE), &kernel, &ports(&kernel), &mut Numbers::default(), &Snapshot::default())
                .unwrap();
        let hop = snapshot.hop(snapshot.route(ip("198.51.100.1")).unwrap()).unwrap();
        assert_eq!(hop.address, Some(ip("203.0.113.1")));
    }

    #[test]
    fn a_prefix_leaves_the_broadcast_addresses_of_attached_networks_alone() {
        let kernel = director();
        let text = "[[port]]\ninterface = \"eth0\"\n[[port]]\ninterface = \"eth1\"\n[[service]]\nname = \"all\"\n\
            protocol = \"udp\"\nmode = \"dr\"\nlisten = [\"0.0.0.0/0:0\"]\n";
        let (mut numbers, empty) = (Numbers::default(), Snapshot::default());
        let snapshot = compile(&config(text), &kernel, &ports(&kernel), &mut numbers, &empty).unwrap();
        let rules = snapshot.steering();
        let taken = |address: &str| {
            let found = snapshot.index().lookup_prefix(ip(address), 67, Protocol::Udp).is_some();
            assert_eq!(found, rules.iter().any(|rule| rule.prefix.contains(ip(address))), "{address}");
            found
        };
        assert!(!taken("10.0.0.255") && !taken("203.0.113.255") && !taken("255.255.255.255"));
        assert!(!taken("224.0.0.251") && !taken("10.0.0.1"), "multicast, and its own");
        assert!(taken("10.0.0.254") && taken("198.51.100.255"), "of a network elsewhere nobody knows");
    }

    const FILE_V6: &str = r#"
        [[port]]
        interface = "eth0"
        [[port]]
        interface = "eth1"
        [[service]]
        name = "web"
        listen = ["203.0.113.10:80", "[2001:db8:cb::10]:80"]
        protocol = "tcp"
        local = ["10.0.0.200", "fd00::200"]
        [[service.server]]
        address = "10.0.0.11:8080"
        [[service.server]]
        address = "[fd00::11]:8080"
    "#;

    /// The director on both families; its gateway in IPv6 is known by a link-local address, as routers announce it.
    fn dual() -> Kernel {
        let mut kernel = director();
        let address = |link, address: &str, prefix_len| Address { link, address: ip(address), prefix_len };
        kernel.addresses.extend([
            address(2, "fe80::2", 64),
            address(2, "2001:db8:cb::10", 128),
            address(3, "fe80::3", 64),
            address(3, "fd00::200", 128),
            address(3, "fd00::1", 64),
        ]);
        kernel.routes.extend([
            route("::/0", Way::Gateway(2, ip("fe80::fe"))),
            route("fe80::/64", Way::Attached(2)),
            route("fe80::/64", Way::Attached(3)),
            route("fd00::/64", Way::Attached(3)),
        ]);
        kernel
    }

    #[test]
    fn ipv6_hops_have_ipv6_addresses_that_others_can_answer_to() {
        let kernel = dual();
        let snapshot = compile(
            &config(FILE_V6),
            &kernel,
            &ports(&kernel),
            &mut Numbers::default(),
            &Snapshot::default(),
        )
        .unwrap();
        let hop = |address: &str| snapshot.hop(snapshot.route(ip(address)).unwrap()).unwrap();
        assert_eq!(hop("fd00::11").address, Some(ip("fd00::1")));
        assert_eq!(hop("10.0.0.11").address, Some(ip("10.0.0.1")));
        let gateway = hop("2001:db8:64::7");
        assert_eq!((gateway.port, gateway.attached), (PortId(0), false));
        assert_eq!(gateway.address, Some(ip("fd00::1")), "neither eth0's link-local one nor the VIP");
        assert_eq!(hop("198.51.100.12").address, Some(ip("203.0.113.1")));
        assert!(hop("fd00::77").attached && hop("10.0.0.77").attached);
        assert_eq!(hop("10.0.0.77").address, Some(ip("10.0.0.1")));
    }

    #[test]
    fn a_link_local_gateway_is_a_station_of_its_link() {
        let kernel = dual();
        let found = stations(&config(FILE_V6), &kernel, &ports(&kernel));
        assert!(found.contains(&(2, ip("fe80::fe"))) && found.contains(&(3, ip("fd00::11"))), "{found:?}");
    }

    #[test]
    fn a_server_that_a_reload_leaves_out_keeps_its_number_and_no_scheduler_knows_it() {
        let kernel = director();
        let mut numbers = Numbers::default();
        let text = FILE.replace("protocol = \"tcp\"", "protocol = \"tcp\"\ndrain = \"30s\"");
        let first = config(&text);
        let empty = Snapshot::default();
        let before = compile(&first, &kernel, &ports(&kernel), &mut numbers, &empty).unwrap();
        let mut second = first.clone();
        Arc::make_mut(&mut second.services[0]).servers.remove(0);
        let now = shunt_engine::Instant::ZERO + shunt_engine::Duration::from_secs(100);
        drain::carry_over(Some(&first), &mut second, now);
        let after = compile(&second, &kernel, &ports(&kernel), &mut numbers, &before).unwrap();
        let left = before.servers().find(|server| server.address == ip("10.0.0.11")).unwrap();
        let leaving = after.server(left.id).unwrap();
        assert_eq!(leaving.drain_at, Some(now + shunt_engine::Duration::from_secs(30)));
        let pool = after.pools(leaving.service).unwrap().of::<V4>();
        assert!(pool.candidates().len() == 1 && pool.candidates()[0].id != left.id);
    }

    #[test]
    fn what_is_kept_is_as_if_it_were_compiled_anew() {
        let file = |servers: &[(&str, &[(u8, u32)])]| {
            let mut text = "[[port]]\ninterface = \"eth0\"\n[[port]]\ninterface = \"eth1\"\n".to_owned();
            for (name, servers) in servers {
                let last = name.as_bytes()[0];
                text += &format!(
                    "[[service]]\nname = {name:?}\nprotocol = \"tcp\"\nmode = \"nat\"\ndrain = \"30s\"\nlisten = [\"203.0.113.{last}:80\"]\n"
                );
                for (server, weight) in *servers {
                    text +=
                        &format!("[[service.server]]\naddress = \"10.0.0.{server}:80\"\nweight = {weight}\n");
                }
            }
            config(&text)
        };
        let mut gateway_away = director();
        gateway_away.routes.retain(|route| !route.prefix.is_empty());
        let steps = [
            (file(&[("a", &[(11, 1), (12, 1)]), ("b", &[(13, 1)]), ("c", &[(14, 2)])]), director()),
            (file(&[("a", &[(11, 1), (12, 1)]), ("b", &[(13, 5)]), ("c", &[(14, 2)])]), director()),
            (file(&[("c", &[(14, 2)]), ("a", &[(11, 1), (12, 1)]), ("b", &[(15, 0), (13, 5)])]), director()),
            (file(&[("c", &[(14, 2)]), ("a", &[(12, 1)]), ("b", &[(15, 0), (13, 5)])]), gateway_away),
            (file(&[("d", &[(14, 2)]), ("b", &[(15, 0), (13, 5)])]), director()),
        ];
        let (mut before, mut numbers, mut last) = (Snapshot::default(), Numbers::default(), None);
        for (mut config, kernel) in steps {
            drain::carry_over(last.as_ref(), &mut config, shunt_engine::Instant::ZERO);
            // The same values, of which none is the very same as before.
            let mut anew = config.clone();
            anew.services.iter_mut().for_each(|service| *service = Arc::new((**service).clone()));
            let [kept, anew] = [&config, &anew].map(|config| {
                let mut numbers = numbers.clone();
                (compile(config, &kernel, &ports(&kernel), &mut numbers, &before).unwrap(), numbers)
            });
            let parts = |snapshot: &Snapshot| {
                let services: Vec<_> = snapshot.services().cloned().collect();
                let pools = services.iter().map(|service| snapshot.pools(service.id).unwrap());
                let candidates: Vec<Vec<_>> =
                    pools.map(|pools| pools.candidates().copied().collect()).collect();
                let calls: Vec<_> = services.iter().map(|service| snapshot.calls(service.id)).collect();
                let servers: Vec<_> = snapshot.servers().cloned().collect();
                let drain = snapshot.next_drain(shunt_engine::Instant::ZERO);
                (services, servers, candidates, calls, snapshot.steering(), drain)
            };
            assert_eq!(parts(&kept.0), parts(&anew.0));
            assert!(kept.0.locals() == anew.0.locals() && kept.0.nat_servers() == anew.0.nat_servers());
            assert!(kept.0.index() == anew.0.index());
            assert_eq!(
                kept.0.generation() == before.generation(),
                anew.0.generation() == before.generation()
            );
            (before, numbers, last) = (kept.0, kept.1, Some(config));
        }
        let names: Vec<_> = before.services().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d"], "what was left out drains");
    }

    #[test]
    fn a_reload_keeps_numbers_and_changes_weights() {
        let kernel = director();
        let mut numbers = Numbers::default();
        let before =
            compile(&config(FILE), &kernel, &ports(&kernel), &mut numbers, &Snapshot::default()).unwrap();
        let other = FILE.replace(
            "address = \"10.0.0.11:8080\"",
            "address = \"10.0.0.13:80\"\n[[service.server]]\naddress = \"10.0.0.11:8080\"\nweight = 7",
        );
        let after = compile(&config(&other), &kernel, &ports(&kernel), &mut numbers, &before).unwrap();
        let find = |snapshot: &Snapshot, address: &str| {
            let server = snapshot.servers().find(|server| server.address == ip(address)).unwrap();
            (server.id, server.weight)
        };
        assert_eq!(find(&before, "10.0.0.11").0, find(&after, "10.0.0.11").0);
        assert_eq!(find(&after, "10.0.0.11").1, 7);
        assert_eq!(find(&before, "198.51.100.12"), find(&after, "198.51.100.12"));
    }
}
