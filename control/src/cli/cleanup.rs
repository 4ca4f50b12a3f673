//! `shunt cleanup`: remove what a daemon that crashed has left.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::bail;

use super::output::print;
use crate::addresses::{self, Ledger, Ours};
use crate::admin::socket::is_alive;
use crate::devices::PUNT_DEVICE;
use crate::kernel::Kernel;
use crate::netlink::Netlink;
use crate::{capabilities, guard, neighbours, offloads};

/// Removes addresses, neighbours and guard table, and restores receive offloads. The kernel itself has removed XDP
/// programs and the TUN device when the daemon died.
pub(super) fn cleanup(socket: &Path) -> anyhow::Result<()> {
    capabilities::to_clean_up()?;
    super::runtime()?.block_on(async {
        if is_alive(socket).await {
            bail!("a daemon is running on {}; stop it instead, it cleans up by itself", socket.display());
        }
        let netlink = Netlink::open()?;
        let kernel = netlink.read().await?;
        // The device is gone with its daemon; whose socket has another name shares the guard table all the same.
        if kernel.link_named(PUNT_DEVICE).is_some() {
            bail!("a daemon is running in this network namespace ({PUNT_DEVICE} is its device); name its --socket");
        }
        let mut ledger = Ledger::open(socket)?;
        let left = ledger.ours().clone();
        if is_elsewhere(&left, &kernel) {
            bail!(
                "nothing was removed: no interface that the daemon of {} used is here; run this in its network namespace",
                socket.display()
            );
        }
        // As at a polite stop: first the addresses, then the guard that kept the kernel from answering for them.
        addresses::remove(&BTreeSet::new(), &kernel, &netlink, &mut ledger).await?;
        neighbours::remove_all(&kernel, &netlink, &mut ledger).await?;
        offloads::restore(&[], &mut ledger)?;
        guard::remove().await?;
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        print(&format!(
            "removed {} addresses, {} neighbours and the guard table if there was one, restored {} receive offloads\n",
            left.addresses.len(),
            left.neighbours.len(),
            left.offloads.len()
        ))
    })
}

/// Whether what was left is in another network namespace, as far as names of interfaces tell.
fn is_elsewhere(left: &Ours, kernel: &Kernel) -> bool {
    let mut names = left.addresses.iter().map(|(name, _)| name).peekable();
    names.peek().is_some() && names.all(|name| kernel.link_named(name).is_none())
}
