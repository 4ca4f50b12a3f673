//! `persistence` and its masks: how a service remembers its clients.

use shunt_dataplane::persist::Persistence;

use super::diagnostic::Diagnostics;
use super::raw;
use super::resolve::{duration, integer};

/// How the service `name` remembers its clients.
pub(super) fn persistence(
    name: &str,
    typed: &raw::Service,
    diagnostics: &mut Diagnostics,
) -> Option<Persistence> {
    let key = |key: &str| format!("service {name:?}: {key}");
    let (mask_ipv4, mask_ipv6) = (&typed.persistence_mask_ipv4, &typed.persistence_mask_ipv6);
    let mask_v4 = integer(&key("persistence_mask_ipv4"), mask_ipv4, 32, 1..=32, diagnostics);
    let mask_v6 = integer(&key("persistence_mask_ipv6"), mask_ipv6, 128, 1..=128, diagnostics);
    if typed.persistence.is_none() {
        for (word, mask) in [("persistence_mask_ipv4", mask_ipv4), ("persistence_mask_ipv6", mask_ipv6)] {
            if let Some(mask) = mask {
                let message = key(&format!("{word} without `persistence`"));
                diagnostics
                    .error(mask.span(), message, "clients of this service are not remembered")
                    .help("add persistence = \"300s\", or leave the mask out");
            }
        }
    }
    let timeout = duration(&key("persistence"), &typed.persistence, diagnostics)?;
    Some(Persistence { timeout, mask_v4, mask_v6 })
}
