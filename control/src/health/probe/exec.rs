//! `exec`: a program says how a server is, by its exit code. It runs as somebody who may do nothing, cannot become more,
//! and is killed with everything that it started (but for what made itself a session of its own) when its time is over.
//! A program that does not die is not started again.
//!
//! The daemon is not forked: workers would have to copy every page that they write to. What is spawned is the command
//! `shunt` once more (vfork(2), by posix_spawn(3)), which gives up what it may do and then becomes the program.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use super::{Failure, Target};

/// A program, and how its answer is read.
#[derive(Clone, Debug)]
pub struct Exec {
    /// Its path, and its arguments.
    pub command: Vec<String>,
    /// Whom it runs as.
    pub account: Account,
    /// Where the server's weight comes from.
    pub weight: WeightFrom,
    /// The command `shunt`.
    pub launcher: PathBuf,
    /// Targets whose program runs.
    pub running: Running,
}

/// A user and a group, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// The user.
    pub uid: u32,
    /// The only group.
    pub gid: u32,
}

/// Where a program says which weight its server is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WeightFrom {
    /// Nowhere.
    Nothing,
    /// In its exit code, as with keepalived's `misc_dynamic`: 0 leaves it alone, 2 to 255 stand for 0 to 253. 126 and 127,
    /// by which shells say that there was nothing to run, are failures.
    Code,
    /// In the first line of its output.
    Output,
}

/// Which targets have a program that runs, so that none has two.
#[derive(Clone, Debug, Default)]
pub struct Running(Arc<Mutex<HashSet<Target>>>);

/// The program says no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// By its exit code; with the first line of its output.
    #[error("exit code {}{}", .0, behind_colon(.1))]
    Code(i32, String),
    /// It was killed, not by us.
    #[error("killed by signal {}{}", .0, behind_colon(.1))]
    Signal(i32, String),
    /// It could not be started.
    #[error("cannot be run{}", behind_colon(.0))]
    NotRun(String),
    /// Its output does not begin with a weight.
    #[error("no weight from 0 to 65535 in its output{}", behind_colon(.0))]
    NoWeight(String),
}

fn behind_colon(line: &str) -> String {
    if line.is_empty() { String::new() } else { format!(": {line}") }
}

/// Bytes of a program's output that are kept.
const OUTPUT_MAX: usize = 4096;

/// Letters of its first line that are shown.
const LINE_MAX: usize = 120;

/// What a pipe holds at most, in pieces as they are read (pipe(7)).
const PIECES_MAX: usize = 16;

/// Where programs find others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Exec {
    pub(super) async fn ask(&self, target: Target) -> Result<Option<u16>, Failure> {
        let turn = self.running.enter(target);
        let turn = turn.ok_or_else(|| Failure::CannotAsk("its program still runs".to_owned()))?;
        let (output, pipe) = io::pipe().map_err(Failure::local)?;
        let mut output = Receiver::from_owned_fd(output.into()).map_err(Failure::local)?;
        let mut run = Run::start(self.command(target, pipe).map_err(Failure::local)?, turn)?;
        let mut said = Vec::new();
        let status = run.end(&mut output, &mut said).await.map_err(Failure::local)?;
        Ok(self.judge(status, &said)?)
    }

    fn command(&self, target: Target, pipe: io::PipeWriter) -> io::Result<Command> {
        let mut command = Command::new(&self.launcher);
        command
            .arg("unprivileged")
            .args([self.account.uid.to_string(), self.account.gid.to_string()])
            .arg("--")
            .args(&self.command)
            .env_clear()
            .env("PATH", PATH)
            .env("SHUNT_ADDRESS", target.address.ip().to_string())
            .env("SHUNT_PORT", target.address.port().to_string())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(pipe.try_clone()?)
            .stderr(pipe)
            .process_group(0);
        Ok(command)
    }

    fn judge(&self, status: ExitStatus, said: &[u8]) -> Result<Option<u16>, Wrong> {
        let line = first_line(said);
        let Some(code) = status.code() else {
            return Err(Wrong::Signal(status.signal().unwrap_or_default(), line));
        };
        match (self.weight, code) {
            (_, 126 | 127) => Err(Wrong::NotRun(line)),
            (WeightFrom::Nothing | WeightFrom::Code, 0) => Ok(None),
            (WeightFrom::Output, 0) => match line.parse() {
                Ok(weight) => Ok(Some(weight)),
                Err(_) => Err(Wrong::NoWeight(line)),
            },
            (WeightFrom::Code, 2..=255) => Ok(u16::try_from(code - 2).ok()),
            (_, code) => Err(Wrong::Code(code, line)),
        }
    }
}

impl PartialEq for Exec {
    fn eq(&self, other: &Self) -> bool {
        (&self.command, self.account, self.weight) == (&other.command, other.account, other.weight)
    }
}

impl Eq for Exec {}

impl Hash for Exec {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.command, self.account, self.weight).hash(state);
    }
}

fn first_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().next().unwrap_or_default().trim();
    line.chars().filter(|c| !c.is_control()).take(LINE_MAX).collect()
}

/// The right to have a target's program run.
struct Turn {
    running: Running,
    target: Target,
}

impl Running {
    fn enter(&self, target: Target) -> Option<Turn> {
        let mut targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        targets.insert(target).then(|| Turn { running: self.clone(), target })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.running.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.target);
    }
}

/// A program that runs, and whatever it starts.
struct Run {
    /// Until it has been waited for.
    process: Option<(Child, Turn)>,
    group: Pid,
}

impl Run {
    fn start(mut command: Command, turn: Turn) -> Result<Self, Failure> {
        let child = command.spawn().map_err(Failure::local)?;
        // It leads a group of its own, which has its number.
        let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let group = id.ok_or_else(|| Failure::CannotAsk("a process without a number".to_owned()))?;
        Ok(Self { process: Some((child, turn)), group })
    }

    /// Waits for the end, collecting what is `said` until then.
    async fn end(&mut self, output: &mut Receiver, said: &mut Vec<u8>) -> io::Result<ExitStatus> {
        let (child, _) = self.process.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let mut open = true;
        let status = loop {
            tokio::select! {
                biased;
                status = child.wait() => break status?,
                ready = output.readable(), if open => {
                    ready?;
                    open = read(output, said);
                }
            }
        };
        for _ in 0..PIECES_MAX {
            if !open || !read(output, said) {
                break;
            }
        }
        self.process = None;
        Ok(status)
    }
}

/// Reads a piece. Returns whether there may be more; what there is no room for is thrown away, so that nobody waits for us.
fn read(output: &Receiver, said: &mut Vec<u8>) -> bool {
    let mut piece = [0; OUTPUT_MAX];
    match output.try_read(&mut piece) {
        Ok(0) => false,
        Ok(len) => {
            let room = OUTPUT_MAX - said.len();
            said.extend_from_slice(&piece[..len.min(room)]);
            true
        }
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

impl Drop for Run {
    /// Kills what is left. The turn ends when the program has.
    fn drop(&mut self) {
        // There may be nobody.
        let _ = kill_process_group(self.group, Signal::KILL);
        if let (Some((mut child, turn)), Ok(runtime)) = (self.process.take(), Handle::try_current()) {
            runtime.spawn(async move {
                let _ = child.wait().await;
                drop(turn);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(weight: WeightFrom, status: i32, said: &str) -> Result<Option<u16>, String> {
        let exec = Exec {
            command: Vec::new(),
            account: Account { uid: 0, gid: 0 },
            weight,
            launcher: PathBuf::new(),
            running: Running::default(),
        };
        exec.judge(ExitStatus::from_raw(status), said.as_bytes()).map_err(|wrong| wrong.to_string())
    }

    const fn code(code: i32) -> i32 {
        code << 8
    }

    #[test]
    fn an_exit_code_is_yes_no_or_a_weight() {
        assert_eq!(judged(WeightFrom::Nothing, code(0), "7\n"), Ok(None));
        assert_eq!(
            judged(WeightFrom::Nothing, code(1), "disk\u{7} full\nmore"),
            Err("exit code 1: disk full".into())
        );
        assert_eq!(judged(WeightFrom::Nothing, code(2), ""), Err("exit code 2".into()));
        assert_eq!(judged(WeightFrom::Code, code(0), ""), Ok(None));
        assert_eq!(judged(WeightFrom::Code, code(1), ""), Err("exit code 1".into()));
        assert_eq!(judged(WeightFrom::Code, code(2), ""), Ok(Some(0)));
        assert_eq!(judged(WeightFrom::Code, code(255), ""), Ok(Some(253)));
        assert_eq!(
            judged(WeightFrom::Code, code(127), "x: not found"),
            Err("cannot be run: x: not found".into())
        );
        assert_eq!(judged(WeightFrom::Output, code(0), " 65535\n"), Ok(Some(65535)));
        assert_eq!(
            judged(WeightFrom::Output, code(0), "65536\n"),
            Err("no weight from 0 to 65535 in its output: 65536".into())
        );
        assert_eq!(judged(WeightFrom::Output, code(2), "7\n"), Err("exit code 2: 7".into()));
        assert_eq!(judged(WeightFrom::Code, 9, ""), Err("killed by signal 9".into()));
    }

    #[test]
    fn a_target_has_one_turn_at_a_time() {
        let running = Running::default();
        let target = |port| Target { address: ([10, 0, 0, 1], port).into() };
        let turn = running.enter(target(1)).unwrap();
        assert!(running.clone().enter(target(1)).is_none());
        assert!(running.enter(target(2)).is_some());
        drop(turn);
        assert!(running.enter(target(1)).is_some());
    }
}
