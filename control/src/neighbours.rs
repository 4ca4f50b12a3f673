//! Next hops as neighbours that the kernel keeps fresh for us.
//!
//! Bypassed traffic never refreshes the kernel's entries, so every gateway and near server is a *managed* neighbour.
//! The kernel would still believe a station for half a minute after its address changed silently; therefore each is
//! asked every [`PROBE_INTERVAL`], and looked for anew as soon as the kernel gives up on it. A link that loses its
//! carrier takes its neighbours along, managed or not; therefore what should be there is compared with what is, again
//! and again: news of a change that was undone before it was read looks like no news.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::addresses::{Ledger, LedgerError};
use crate::kernel::Kernel;
use crate::netlink::{Netlink, NetlinkError};

/// How often each station is asked whether it is still there. The kernel gives up three seconds after a change
/// (ucast_solicit × retrans_time_ms), so the new address is known after five at most.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// Has the kernel manage every station of `wanted`, look by broadcast for those it gave up on, and forget those we had
/// it manage before. Stations that somebody has configured for good are left alone. Returns what the kernel refused:
/// the next call tries again.
///
/// # Errors
/// When the ledger cannot be written.
pub async fn adjust(
    wanted: &BTreeSet<(u32, IpAddr)>,
    kernel: &Kernel,
    netlink: &Netlink,
    ledger: &mut Ledger,
) -> Result<Option<Refused>, LedgerError> {
    let mut gone = Vec::new();
    for (name, address) in &ledger.ours().neighbours {
        let link = kernel.link_named(name).map(|link| link.index);
        if !link.is_some_and(|link| wanted.contains(&(link, *address))) {
            gone.push((link, name.clone(), *address));
        }
    }
    for (link, _, address) in &gone {
        forget(*link, *address, netlink).await;
    }
    let mut missing = Vec::new();
    for &(link, address) in wanted {
        let Some(name) = kernel.link(link).map(|link| link.name.clone()) else { continue };
        let managed = ledger.ours().neighbours.contains(&(name.clone(), address));
        match kernel.neighbour(link, address) {
            Some(known) if known.fixed => {}
            Some(known) if managed && known.failed => seek(link, address, netlink).await,
            Some(_) if managed => {}
            Some(_) | None => missing.push((link, name, address)),
        }
    }
    // Written once, and before they are made: a crash in between leaves none that nobody remembers.
    ledger.update(|ours| {
        for (_, name, address) in &gone {
            ours.neighbours.remove(&(name.clone(), *address));
        }
        ours.neighbours.extend(missing.iter().map(|(_, name, address)| (name.clone(), *address)));
    })?;
    let mut refused = None;
    for (number, (link, _, address)) in missing.iter().enumerate() {
        let Err(error) = netlink.manage_neighbour(*link, *address).await else { continue };
        let is_full = error.errno() == Some(ENOBUFS);
        let refused = refused.get_or_insert(Refused { count: 0, address: *address, first: error });
        refused.count += 1;
        if is_full {
            // No more than this one.
            refused.count += missing.len() - number - 1;
            break;
        }
    }
    Ok(refused)
}

/// Stations that the kernel does not manage for us.
#[derive(Debug)]
pub struct Refused {
    /// How many.
    pub count: usize,
    /// The first of them.
    pub address: IpAddr,
    /// Why it was refused.
    pub first: NetlinkError,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} next hops are not kept fresh: {}", self.count, self.first)?;
        match self.first.errno() {
            Some(ENOBUFS) => {
                let family = if self.address.is_ipv4() { "ipv4" } else { "ipv6" };
                write!(out, " (raise net.{family}.neigh.default.gc_thresh3)")
            }
            _ => Ok(()),
        }
    }
}

/// Forgets every neighbour we had the kernel manage.
///
/// # Errors
/// When the ledger cannot be written.
pub async fn remove_all(kernel: &Kernel, netlink: &Netlink, ledger: &mut Ledger) -> Result<(), LedgerError> {
    adjust(&BTreeSet::new(), kernel, netlink, ledger).await.map(drop)
}

async fn forget(link: Option<u32>, address: IpAddr, netlink: &Netlink) {
    // The interface is gone, and its neighbours with it.
    let Some(link) = link else { return };
    match netlink.remove_neighbour(link, address).await {
        Err(error) if error.errno() != Some(ENOENT) => tracing::warn!("{error}"),
        _ => {}
    }
}

async fn seek(link: u32, address: IpAddr, netlink: &Netlink) {
    if let Err(error) = netlink.seek_neighbour(link, address).await {
        tracing::debug!("{error}");
    }
}

/// errno(3)
const ENOENT: i32 = 2;
const ENOBUFS: i32 = 105;

/// Asks every station that the kernel knows whether it is still there.
pub async fn probe(stations: &BTreeSet<(u32, IpAddr)>, kernel: &Kernel, netlink: &Netlink) {
    for &(link, address) in stations {
        let known = kernel.neighbour(link, address);
        if known.is_some_and(|known| known.mac.is_some() && !known.fixed)
            && let Err(error) = netlink.probe_neighbour(link, address).await
        {
            tracing::debug!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_is_told_with_how_many_and_what_helps() {
        let refused = |errno| {
            let source = std::io::Error::from_raw_os_error(errno);
            let first =
                NetlinkError::Refused { action: "cannot manage neighbour 10.0.0.1".to_owned(), source };
            Refused { count: 3, address: [10, 0, 0, 1].into(), first }.to_string()
        };
        let full = refused(ENOBUFS);
        assert!(
            full.starts_with("3 next hops are not kept fresh: cannot manage neighbour 10.0.0.1"),
            "{full}"
        );
        assert!(full.contains("ipv4.neigh.default.gc_thresh3") && !refused(ENOENT).contains("gc_thresh3"));
    }
}
