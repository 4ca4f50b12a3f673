//! `shunt run`.

use std::io::IsTerminal;
use std::path::Path;

use tracing_subscriber::EnvFilter;

use crate::supervisor;

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Log {
    /// For people
    Text,
    /// An object per line
    Json,
}

/// Runs the daemon in the foreground. Its log goes to stderr; `RUST_LOG` says how much.
pub(super) fn run(file: &Path, log: Log) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,netlink_proto=warn"));
    let logger =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match log {
        Log::Text => logger.with_ansi(std::io::stderr().is_terminal()).init(),
        Log::Json => logger.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
    }
    super::runtime()?.block_on(supervisor::run(file))?;
    Ok(())
}
