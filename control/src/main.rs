//! The command `shunt`: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    shunt_control::cli::run()
}
