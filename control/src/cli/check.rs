//! `shunt check FILE`: what would `run` and `reload` say?

use std::io::IsTerminal;
use std::path::Path;

use anyhow::bail;
use shunt_engine::lcore;

use super::output::print;
use crate::addresses::{self, Ours};
use crate::admin::socket::group;
use crate::config::{Config, Misfit};
use crate::devices;
use crate::netlink::Netlink;

/// Reads the file and looks at the kernel it would meet.
///
/// # Errors
/// With everything that is wrong.
pub(super) fn check(file: &Path) -> anyhow::Result<()> {
    let loaded = Config::load(file, std::io::stderr().is_terminal())?;
    eprint!("{}", loaded.warnings);
    let misfits = super::runtime()?.block_on(against_kernel(&loaded.config))?;
    if !misfits.is_empty() {
        bail!("{}", loaded.render(&misfits, std::io::stderr().is_terminal()));
    }
    let Config { ports, services, .. } = &loaded.config;
    let servers = services.iter().map(|service| service.servers.len()).sum();
    let counts = [count(ports.len(), "port"), count(services.len(), "service"), count(servers, "server")];
    print(&format!("{}: good: {}\n", file.display(), counts.join(", ")))
}

fn count(many: usize, what: &str) -> String {
    format!("{many} {what}{}", if many == 1 { "" } else { "s" })
}

async fn against_kernel(config: &Config) -> anyhow::Result<Vec<Misfit>> {
    let kernel = Netlink::open()?.read().await?;
    let ours =
        addresses::Ledger::open(&config.api.socket).map_or_else(|_| Ours::default(), |l| l.ours().clone());
    for port in &config.ports {
        if kernel.link_named(&port.interface).is_none() {
            eprintln!("warning: interface {:?} does not exist on this machine", port.interface);
        }
    }
    if let Some(Err(error)) = config.api.group.as_deref().map(group) {
        eprintln!("warning: {error}");
    }
    if let Some(missing) = devices::missing_cores(&config.engine, &lcore::allowed()) {
        eprintln!("warning: {missing}");
    }
    Ok(addresses::conflicts(config, &kernel, &ours, &addresses::kernel_ports()))
}
