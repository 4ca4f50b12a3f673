//! `shunt unprivileged UID GID -- PROGRAM ARGS…`, which only the daemon runs: becomes the program of a check, as somebody
//! who can do nothing else.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::{clear_ambient_capability_set, set_no_new_privs};

/// How shells say that there was nothing to run.
const NOT_RUN: i32 = 127;

/// Becomes `program`, or says on stderr why not.
pub(super) fn become_program(uid: u32, gid: u32, program: &[OsString]) -> ! {
    let (program, arguments) = program.split_first().expect("the command line demands a program");
    let error = match give_up() {
        Ok(()) => Command::new(program).args(arguments).uid(uid).gid(gid).exec(),
        Err(error) => error,
    };
    eprintln!("{}: {error}", program.display());
    std::process::exit(NOT_RUN)
}

/// Other capabilities go with the user (capabilities(7)), but for what the daemon was given to hand on.
fn give_up() -> io::Result<()> {
    clear_ambient_capability_set()?;
    Ok(set_no_new_privs(true)?)
}
