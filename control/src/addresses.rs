//! VIPs and local addresses on the director's interfaces: which belong where, which are ours to remove.
//!
//! What we add is written beside the socket *before* it is added, so that after a crash the next start or `shunt
//! cleanup` knows what to remove. An address that was there before us is never removed.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::compile::{OpenPort, exit};
use crate::config::{Config, Listen, Misfit, Service};
use crate::kernel::{Kernel, Way};
use crate::netlink::{Netlink, NetlinkError, Tables};

/// What we changed in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ours {
    /// Addresses by interface name.
    pub addresses: BTreeSet<(String, IpAddr)>,
    /// Managed neighbours by interface name.
    pub neighbours: BTreeSet<(String, IpAddr)>,
    /// Receive offloads that were on before us, by interface name and the offload's name in ethtool(8).
    #[serde(default)]
    pub offloads: BTreeSet<(String, String)>,
}

/// The file that remembers what is ours.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    ours: Ours,
}

/// Why the ledger could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub struct LedgerError {
    action: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

impl Ledger {
    /// The ledger that belongs to the socket at `socket`, with what an earlier daemon left there.
    ///
    /// # Errors
    /// When the file is there and cannot be read. A file that makes no sense counts as empty.
    pub fn open(socket: &Path) -> Result<Self, LedgerError> {
        let path = socket.with_extension("state");
        let ours = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ours::default(),
            Err(source) => return Err(LedgerError { action: "read", path, source }),
        };
        Ok(Self { path, ours })
    }

    /// What is ours.
    pub fn ours(&self) -> &Ours {
        &self.ours
    }

    /// Changes what is ours and writes it down.
    ///
    /// # Errors
    /// When it cannot be written; nothing is changed then.
    pub fn update(&mut self, change: impl FnOnce(&mut Ours)) -> Result<(), LedgerError> {
        let mut ours = self.ours.clone();
        change(&mut ours);
        if ours == self.ours {
            return Ok(());
        }
        self.write(&ours).map_err(|source| LedgerError {
            action: "write",
            path: self.path.clone(),
            source,
        })?;
        self.ours = ours;
        Ok(())
    }

    fn write(&self, ours: &Ours) -> std::io::Result<()> {
        if *ours == Ours::default() {
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        // Written aside and renamed: a crash leaves the old or the new one, whole.
        let aside = self.path.with_extension("state.new");
        std::fs::write(&aside, serde_json::to_vec(ours)?)?;
        std::fs::rename(&aside, &self.path)
    }
}

/// Where every VIP and local address belongs: (link, address).
pub fn wanted(config: &Config, kernel: &Kernel, ports: &[OpenPort]) -> BTreeSet<(u32, IpAddr)> {
    if !config.engine.manage_addresses {
        return BTreeSet::new();
    }
    let Some(first) = ports.first() else { return BTreeSet::new() };
    let mut wanted = BTreeSet::new();
    for service in &config.services {
        // A prefix is no address: what is for it comes because the network routes it here.
        for address in service.listen.iter().filter_map(Listen::vip) {
            let link = attached(kernel, ports, address).unwrap_or(first.link);
            wanted.insert((link, address));
        }
        let leaving = service.local_leaving.iter().map(|leaving| &leaving.local);
        for local in service.local.iter().chain(leaving) {
            let address = local.address;
            let link = attached(kernel, ports, address);
            let link =
                link.or_else(|| towards_servers(service, address, kernel, ports)).unwrap_or(first.link);
            wanted.insert((link, address));
        }
    }
    wanted
}

/// The link of ours whose network `address` lies in.
fn attached(kernel: &Kernel, ports: &[OpenPort], address: IpAddr) -> Option<u32> {
    let Way::Attached(link) = kernel.route_to(address)?.way() else { return None };
    exit(kernel, ports, link).map(|_| link)
}

/// The link of ours through which the service's first server of the family of `local` is reached.
fn towards_servers(service: &Service, local: IpAddr, kernel: &Kernel, ports: &[OpenPort]) -> Option<u32> {
    let server = service.servers.iter().find(|server| server.address.is_ipv4() == local.is_ipv4())?;
    let (link, _) = kernel.next_station(server.address)?;
    exit(kernel, ports, link).map(|_| link)
}

/// Local addresses that the director's own connections use too: an interface's own address whose ports are the
/// kernel's to give (`ip_local_port_range`).
pub fn conflicts(
    config: &Config,
    kernel: &Kernel,
    ours: &Ours,
    kernel_ports: &RangeInclusive<u16>,
) -> Vec<Misfit> {
    let mut found = Vec::new();
    for service in &config.services {
        for local in &service.local {
            let address = local.address;
            let own = kernel.addresses.iter().find(|own| own.address == address);
            let Some(link) = own.and_then(|own| kernel.link(own.link)) else { continue };
            let overlap = local.first <= *kernel_ports.end() && *kernel_ports.start() <= local.last;
            if overlap && !ours.addresses.iter().any(|(_, added)| *added == address) {
                found.push(Misfit {
                    service: service.name.clone(),
                    address,
                    message: format!("{address} is {}'s own address", link.name),
                    label: format!(
                        "its ports {}-{} overlap the kernel's {}-{} (net.ipv4.ip_local_port_range)",
                        local.first,
                        local.last,
                        kernel_ports.start(),
                        kernel_ports.end()
                    ),
                    help: "use an address of its own, or a local_port_range outside".to_owned(),
                });
            }
        }
    }
    found
}

/// The ports the kernel gives to connections of its own.
pub fn kernel_ports() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|number| number.parse().ok());
    // The kernel's own default, where /proc is not to be had.
    numbers.next().unwrap_or(32_768)..=numbers.next().unwrap_or(60_999)
}

/// Adds what is wanted and missing, and returns it. Addresses that are there already, whoever added them, are left
/// alone.
///
/// # Errors
/// When the ledger or the kernel refuses. What was added until then is in the ledger.
pub async fn add(
    wanted: &BTreeSet<(u32, IpAddr)>,
    kernel: &Kernel,
    netlink: &Netlink,
    ledger: &mut Ledger,
) -> Result<Vec<(u32, IpAddr)>, AddressError> {
    // An address that has just been removed, because it belongs on another link now, is missing here.
    let mut kernel = kernel.clone();
    netlink.reread(&mut kernel, Tables { addresses: true, ..Tables::default() }).await?;
    let missing = wanted.iter().filter(|(_, address)| !kernel.has_address(*address));
    let named = missing.filter_map(|&(link, address)| Some((link, kernel.link(link)?.name.clone(), address)));
    let missing: Vec<_> = named.collect();
    ledger.update(|ours| {
        ours.addresses.extend(missing.iter().map(|(_, name, address)| (name.clone(), *address)));
    })?;
    let mut added = Vec::new();
    let mut refused = None;
    for (link, name, address) in &missing {
        match netlink.add_address(*link, *address).await {
            Ok(()) => added.push((*link, *address)),
            // Somebody was faster; it is theirs.
            Err(error) if error.errno() == Some(EEXIST) => {}
            Err(error) => {
                refused = Some(AddressError::of(error, name, *address));
                break;
            }
        }
    }
    if added.len() < missing.len() {
        ledger.update(|ours| {
            let not_added = missing.iter().filter(|(link, _, address)| !added.contains(&(*link, *address)));
            not_added.for_each(|(_, name, address)| {
                ours.addresses.remove(&(name.clone(), *address));
            });
        })?;
    }
    match refused {
        Some(error) => Err(error),
        None => Ok(added),
    }
}

/// Puts those of our addresses back that are gone from links that are up, and returns them: the kernel takes an IPv6
/// address away when its link goes down, and people remove what they do not know.
pub async fn put_back(kernel: &Kernel, netlink: &Netlink, ledger: &Ledger) -> Vec<(u32, IpAddr)> {
    let mut back = Vec::new();
    for (name, address) in &ledger.ours().addresses {
        let Some(link) = kernel.link_named(name).filter(|link| link.up) else { continue };
        if kernel.has_address(*address) {
            continue;
        }
        match netlink.add_address(link.index, *address).await {
            Ok(()) => {
                tracing::warn!("address {address} was gone from {name} and is back");
                back.push((link.index, *address));
            }
            // The kernel has it, and has not been read again yet.
            Err(error) if error.errno() == Some(EEXIST) => {}
            Err(error) => tracing::warn!("{}", AddressError::of(error, name, *address)),
        }
    }
    back
}

/// Removes those of our addresses that `keep` does not name.
///
/// # Errors
/// When the ledger or the kernel refuses.
pub async fn remove(
    keep: &BTreeSet<(u32, IpAddr)>,
    kernel: &Kernel,
    netlink: &Netlink,
    ledger: &mut Ledger,
) -> Result<(), AddressError> {
    let mut gone = BTreeSet::new();
    let mut refused = None;
    for (name, address) in &ledger.ours().addresses {
        let link = kernel.link_named(name).map(|link| link.index);
        if link.is_some_and(|link| keep.contains(&(link, *address))) {
            continue;
        }
        if let Some(link) = link
            && let Err(error) = netlink.remove_address(link, *address).await
            && error.errno() != Some(EADDRNOTAVAIL)
        {
            refused = Some(error);
            break;
        }
        gone.insert((name.clone(), *address));
    }
    ledger.update(|ours| ours.addresses.retain(|entry| !gone.contains(entry)))?;
    match refused {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Why addresses could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// It takes no IPv6 addresses there, and says "permission denied".
    #[error(
        "cannot add address {address}: IPv6 is disabled on {interface}; \
         `sysctl -w net.ipv6.conf.{interface}.disable_ipv6=0` enables it"
    )]
    Ipv6Disabled {
        /// The interface.
        interface: String,
        /// The address.
        address: IpAddr,
    },
}

impl AddressError {
    /// Why `address` could not be added to `interface`. The kernel's word for an interface without IPv6 is the one for a
    /// user who may not: EACCES, while that would be EPERM.
    fn of(error: NetlinkError, interface: &str, address: IpAddr) -> Self {
        if address.is_ipv6() && error.errno() == Some(EACCES) {
            return Self::Ipv6Disabled { interface: interface.to_owned(), address };
        }
        error.into()
    }
}

/// errno(3)
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const EADDRNOTAVAIL: i32 = 99;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_address_that_is_an_interfaces_own_is_refused_where_it_stands() {
        let kernel = crate::kernel::tests::director();
        let own = kernel.addresses.iter().find(|own| own.address.is_ipv4()).unwrap();
        let text = format!(
            "[[port]]\ninterface = \"eth0\"\n[[service]]\nname = \"web\"\nprotocol = \"tcp\"\n\
             listen = [\"203.0.113.10:80\"]\nlocal = [\"10.0.0.200\", \"{}\"]\n\
             [[service.server]]\naddress = \"10.0.0.11:80\"\n",
            own.address
        );
        let loaded = Config::parse("shunt.toml", &text, false).unwrap();
        let told =
            |ours: &Ours, ports| loaded.render(&conflicts(&loaded.config, &kernel, ours, &ports), false);
        let said = told(&Ours::default(), 32_768..=60_999);
        for part in
            ["shunt.toml:7:24", "service \"web\": local:", "'s own address", "1025-65535 overlap", "help: "]
        {
            assert!(said.contains(part), "{part} is not in\n{said}");
        }
        assert_eq!(told(&Ours::default(), 500..=999), "");
        let mut ours = Ours::default();
        ours.addresses.insert(("eth0".to_owned(), own.address));
        assert_eq!(told(&ours, 32_768..=60_999), "", "we have added it ourselves");
    }
}
