//! `shunt cleanup`: remove what a daemon that crashed has left.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::bail;

use crate::addresses::{self, Ledger};
use crate::admin::socket::is_alive;
use crate::netlink::Netlink;
use crate::{guard, neighbours};

/// Removes addresses, neighbours and guard table. The kernel itself has removed XDP programs and the TUN device when
/// the daemon died.
pub(super) fn cleanup(socket: &Path) -> anyhow::Result<()> {
    super::runtime()?.block_on(async {
        if is_alive(socket).await {
            bail!("a daemon is running on {}; stop it instead, it cleans up by itself", socket.display());
        }
        let netlink = Netlink::open()?;
        let kernel = netlink.read().await?;
        let mut ledger = Ledger::open(socket)?;
        let left = ledger.ours().clone();
        // As at a polite stop: first the addresses, then the guard that kept the kernel from answering for them.
        addresses::remove(&BTreeSet::new(), &kernel, &netlink, &mut ledger).await?;
        neighbours::remove_all(&kernel, &netlink, &mut ledger).await?;
        guard::remove().await?;
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        println!(
            "removed {} addresses, {} neighbours and the guard table",
            left.addresses.len(),
            left.neighbours.len()
        );
        Ok(())
    })
}
