//! The command line: what can be asked, and who answers.

mod check;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A layer-4 load balancer: packets in, servers out.
#[derive(Debug, Parser)]
#[command(name = "shunt", version, about)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a configuration file: every error at once, with its place
    Check {
        /// The configuration file
        file: PathBuf,
    },
}

/// Does what was asked. Errors go to stderr.
pub fn run(arguments: Arguments) -> ExitCode {
    let done = match arguments.command {
        Command::Check { file } => check::check(&file),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", format!("{error:#}").trim_end());
            ExitCode::FAILURE
        }
    }
}

/// The runtime of a command: one thread.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
