//! `shunt run` and `shunt reload`.

use std::io::IsTerminal;
use std::path::Path;

use hyper::Method;
use tracing_subscriber::EnvFilter;

use super::output::print;
use crate::admin::client::ask;
use crate::admin::view::Reloaded;
use crate::supervisor;

/// Runs the daemon in the foreground. Its log goes to stderr; `RUST_LOG` says how much.
pub(super) fn run(file: &Path) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,netlink_proto=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    super::runtime()?.block_on(supervisor::run(file))?;
    Ok(())
}

/// Has the daemon read its file again, and waits until that is in force.
pub(super) fn reload(socket: &Path) -> anyhow::Result<()> {
    let reloaded: Reloaded = super::runtime()?.block_on(ask(socket, Method::POST, "/v1/reload"))?;
    if !reloaded.warnings.is_empty() {
        eprintln!("{}", reloaded.warnings.trim_end());
    }
    print(&format!("in force: generation {}\n", reloaded.generation))
}
