//! Receive offloads: ports switch them off, and whatever ends the daemon they come on again.
//!
//! A port restores what it found when it is closed. For a crash, what was on is written in the ledger before; the next
//! polite stop or `shunt cleanup` restores that.

use shunt_engine::port::offload::{self, Offload};

use crate::addresses::{Ledger, LedgerError};

/// Notes what is on at `interfaces` before ports are opened there. What a crashed daemon left off elsewhere comes on
/// again at once.
///
/// # Errors
/// When the ledger cannot be written; the ports must not be opened then.
pub fn note(interfaces: &[&str], ledger: &mut Ledger) -> Result<(), LedgerError> {
    restore(interfaces, ledger)?;
    let found = interfaces.iter().flat_map(|interface| {
        // An interface that is not there is the port's to complain about.
        let enabled = offload::enabled(interface).unwrap_or_default();
        enabled.into_iter().map(|offload| ((*interface).to_owned(), offload.name().to_owned()))
    });
    let found: Vec<_> = found.collect();
    ledger.update(|ours| ours.offloads.extend(found))
}

/// Switches on what is noted, except at the interfaces of `keep`, and forgets it.
///
/// # Errors
/// When the ledger cannot be written.
pub fn restore(keep: &[&str], ledger: &mut Ledger) -> Result<(), LedgerError> {
    for (interface, name) in &ledger.ours().offloads {
        let offload = Offload::ALL.into_iter().find(|offload| offload.name() == name);
        // An interface that has gone has nothing to restore.
        if let Some(offload) = offload
            && !keep.contains(&interface.as_str())
            && let Err(error) = offload::enable(interface, offload)
            && error.raw_os_error() != Some(ENODEV)
        {
            tracing::warn!("{interface}: {name} cannot be switched on again: {error}");
        }
    }
    ledger.update(|ours| ours.offloads.retain(|(interface, _)| keep.contains(&interface.as_str())))
}

/// errno(3)
const ENODEV: i32 = 19;
