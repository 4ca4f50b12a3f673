//! The command `shunt`: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use shunt_control::cli::{self, Arguments};

fn main() -> ExitCode {
    cli::run(Arguments::parse())
}
