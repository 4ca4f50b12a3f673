//! Instructions per packet beside the accepted ones: a regression gate. Times move on a shared machine, counts do not.
//!
//! Each case runs twice under callgrind, with as many packets and with twice as many; the difference is the packets'.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, anyhow, ensure};

use crate::count::{Case, PACKETS};

/// Instructions per packet, by case.
pub type Figures = BTreeMap<String, f64>;

/// How far above the accepted figure is still accepted, and how far below is worth accepting, as a share. Another build of
/// the same code moves by less.
const TOLERANCE: f64 = 0.03;

/// Counts all cases, as many at a time as there are cores.
///
/// # Errors
/// When valgrind is not there or a run fails.
pub fn count(said: impl Fn(&str) + Sync) -> anyhow::Result<Figures> {
    let left = Mutex::new(Case::all().into_iter());
    let next = || left.lock().ok()?.next();
    let work = || -> anyhow::Result<Figures> {
        let mut figures = Figures::new();
        while let Some(case) = next() {
            said(&case.name());
            let more = instructions(case, 2)?.checked_sub(instructions(case, 1)?);
            let more = more
                .with_context(|| format!("{}: twice as many packets took fewer instructions", case.name()))?;
            // Nobody counts finer than that.
            figures.insert(case.name(), (more as f64 / PACKETS as f64 * 10.0).round() / 10.0);
        }
        Ok(figures)
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let parts = threads.into_iter().map(|thread| thread.join().expect("counting does not panic"));
        Ok(parts.collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect())
    })
}

/// What callgrind counts in the whole of this program with a case.
fn instructions(case: Case, times: u64) -> anyhow::Result<u64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(std::env::current_exe().context("finding this program")?);
    command.args(["count", "--case", &case.name(), "--times", &times.to_string()]);
    let output = command.output().context("starting valgrind (Debian's package valgrind)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} under valgrind: {}\n{said}", case.name(), output.status);
    collected(&said).with_context(|| format!("{}: valgrind says no count:\n{said}", case.name()))
}

/// The count in `==4711== Collected : 123456`.
fn collected(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.split_once("== Collected : ")?.1.trim().parse().ok())
}

/// Reads the accepted figures.
///
/// # Errors
/// When the file cannot be read or is none.
pub fn accepted(path: &Path) -> anyhow::Result<Figures> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    toml::from_str(&text).with_context(|| path.display().to_string())
}

/// Accepts `figures`.
///
/// # Errors
/// When the file cannot be written.
pub fn accept(path: &Path, figures: &Figures) -> anyhow::Result<()> {
    let mut text = String::from(HEAD);
    for (name, instructions) in figures {
        let _ = writeln!(text, "{name} = {instructions:.1}");
    }
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

const HEAD: &str = "\
# Instructions per packet, the in-memory port included: what `shunt-bench count` holds the packet path to.
# It writes this file with --accept. bench/README.md says what each line is.
";

/// The table for people, and an error when a figure is not accepted.
///
/// # Errors
/// When a figure is above the accepted one, or not in both.
pub fn judge(counted: &Figures, accepted: &Figures) -> (String, anyhow::Result<()>) {
    let mut table = format!("{:<18} {:>12} {:>9} {:>7}\n", "case", "instructions", "accepted", "change");
    let (mut worse, mut better) = (Vec::new(), Vec::new());
    for (name, &now) in counted {
        let Some(&before) = accepted.get(name) else {
            worse.push(format!("{name} has no accepted figure"));
            continue;
        };
        let change = now / before - 1.0;
        let _ = writeln!(table, "{name:<18} {now:>12.1} {before:>9.1} {:>+6.1}%", 100.0 * change);
        if change > TOLERANCE {
            worse.push(format!("{name} takes {now:.1} instructions per packet, accepted are {before:.1}"));
        } else if change < -TOLERANCE {
            better.push(name.as_str());
        }
    }
    worse.extend(
        accepted
            .keys()
            .filter(|name| !counted.contains_key(*name))
            .map(|name| format!("there is no case {name}")),
    );
    if !better.is_empty() {
        let _ = writeln!(table, "better than accepted: {}; accept it ({ACCEPT})", better.join(", "));
    }
    let verdict = match worse.is_empty() {
        true => Ok(()),
        false => Err(anyhow!("{}\nif that is meant: {ACCEPT}", worse.join("\n"))),
    };
    (table, verdict)
}

const ACCEPT: &str = "scripts/ci count --accept";

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(figures: &[(&str, f64)]) -> Figures {
        figures.iter().map(|&(name, count)| (name.to_owned(), count)).collect()
    }

    #[test]
    fn callgrinds_count_is_read() {
        assert_eq!(collected("==7== Events    : Ir\n==7== Collected : 1234567\n==7==\n"), Some(1_234_567));
        assert_eq!(collected("==7== Command: true\n"), None);
    }

    #[test]
    fn more_than_the_tolerance_above_is_refused_and_below_is_to_be_accepted() {
        let accepted = figures(&[("dr", 100.0), ("nat", 200.0)]);
        let judged = |dr| {
            let (table, verdict) = judge(&figures(&[("dr", dr), ("nat", 200.0)]), &accepted);
            (table.contains("better than accepted: dr;"), verdict.map_err(|error| error.to_string()))
        };
        assert_eq!(judged(102.9), (false, Ok(())));
        assert_eq!(judged(97.1), (false, Ok(())));
        assert_eq!(judged(96.0), (true, Ok(())));
        let error = judged(104.0).1.unwrap_err();
        assert!(
            error.contains("dr takes 104.0") && error.contains("--accept") && !error.contains("nat"),
            "{error}"
        );
    }

    #[test]
    fn a_case_without_accepted_figure_is_refused_and_so_is_a_figure_without_case() {
        let (one, both) = (figures(&[("dr", 100.0)]), figures(&[("dr", 100.0), ("nat", 1.0)]));
        assert!(judge(&both, &one).1.unwrap_err().to_string().contains("nat has no accepted figure"));
        assert!(judge(&one, &both).1.unwrap_err().to_string().contains("no case nat"));
    }

    #[test]
    fn accepted_figures_are_read_as_they_were_written() {
        let path = std::env::temp_dir().join(format!("shunt-bench-{}.toml", std::process::id()));
        let both = figures(&[("dr_ipv4", 100.0), ("nat_ipv6", 1.5)]);
        accept(&path, &both).unwrap();
        let read = accepted(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), both);
    }
}
