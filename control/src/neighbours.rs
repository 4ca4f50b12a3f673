//! Next hops as neighbours that the kernel keeps fresh for us.
//!
//! Bypassed traffic never refreshes the kernel's entries, so every gateway and near server is a *managed* neighbour.
//! The kernel would still believe a station for half a minute after its address changed silently; therefore each is
//! asked every [`PROBE_INTERVAL`], and looked for anew as soon as the kernel gives up on it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::addresses::{Ledger, LedgerError};
use crate::kernel::Kernel;
use crate::netlink::Netlink;

/// How often each station is asked whether it is still there. The kernel gives up three seconds after a change
/// (ucast_solicit × retrans_time_ms), so the new address is known after five at most.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// Has the kernel manage every station of `wanted`, and forgets those we had it manage before. Stations that somebody
/// has configured for good are left alone. A refusal is logged: the next reading tries again.
///
/// # Errors
/// When the ledger cannot be written.
pub async fn adjust(
    wanted: &BTreeSet<(u32, IpAddr)>,
    kernel: &Kernel,
    netlink: &Netlink,
    ledger: &mut Ledger,
) -> Result<(), LedgerError> {
    let named = |link: u32| kernel.link(link).map(|link| link.name.clone());
    for (name, address) in ledger.ours().neighbours.clone() {
        let link = kernel.link_named(&name).map(|link| link.index);
        if link.is_some_and(|link| wanted.contains(&(link, address))) {
            continue;
        }
        forget(link, address, netlink).await;
        ledger.update(|ours| {
            ours.neighbours.remove(&(name.clone(), address));
        })?;
    }
    for &(link, address) in wanted {
        let Some(name) = named(link) else { continue };
        let known = kernel.neighbour(link, address);
        let managed = ledger.ours().neighbours.contains(&(name.clone(), address));
        if known.is_some_and(|known| known.fixed) || (managed && known.is_some()) {
            continue;
        }
        ledger.update(|ours| {
            ours.neighbours.insert((name.clone(), address));
        })?;
        if let Err(error) = netlink.manage_neighbour(link, address).await {
            tracing::warn!("{name}: {error}");
        }
    }
    Ok(())
}

/// Forgets every neighbour we had the kernel manage.
///
/// # Errors
/// When the ledger cannot be written.
pub async fn remove_all(kernel: &Kernel, netlink: &Netlink, ledger: &mut Ledger) -> Result<(), LedgerError> {
    adjust(&BTreeSet::new(), kernel, netlink, ledger).await
}

async fn forget(link: Option<u32>, address: IpAddr, netlink: &Netlink) {
    // The interface is gone, and its neighbours with it.
    let Some(link) = link else { return };
    match netlink.remove_neighbour(link, address).await {
        Err(error) if error.errno() != Some(ENOENT) => tracing::warn!("{error}"),
        _ => {}
    }
}

/// errno(3)
const ENOENT: i32 = 2;

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

/// Has the kernel look by broadcast for every station it gave up on.
pub async fn seek(stations: &BTreeSet<(u32, IpAddr)>, kernel: &Kernel, netlink: &Netlink) {
    for &(link, address) in stations {
        if kernel.neighbour(link, address).is_some_and(|known| known.failed)
            && let Err(error) = netlink.seek_neighbour(link, address).await
        {
            tracing::debug!("{error}");
        }
    }
}
