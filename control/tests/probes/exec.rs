//! `exec` with real programs, `file` with real files.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use shunt_control::health::probe::exec::{Account, Exec, Running, WeightFrom};
use shunt_control::health::probe::file::{File, Says};
use shunt_control::health::probe::{Layer, Probe};

use crate::world::{Folder, alone, ask, fails, passes, sh, waits};

/// The user nobody.
const NOBODY: Account = Account { uid: 65534, gid: 65534 };

fn shell(script: &str, weight: WeightFrom) -> Probe {
    Probe::Exec(Exec {
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        account: NOBODY,
        weight,
        launcher: env!("CARGO_BIN_EXE_shunt").into(),
        running: Running::default(),
    })
}

const SERVER: &str = "10.0.0.11:8080";

#[test]
fn a_program_says_yes_no_or_a_weight() {
    alone(async || {
        let weight = async |script, from| passes(&shell(script, from), SERVER).await.weight;
        assert_eq!(weight("exit 0", WeightFrom::Nothing).await, None);
        assert_eq!(weight("exit 52", WeightFrom::Code).await, Some(50));
        assert_eq!(weight("echo 700; echo more", WeightFrom::Output).await, Some(700));
        let told = async |script, from| fails(&shell(script, from), SERVER).await;
        assert_eq!(
            told("echo disk full >&2; exit 3", WeightFrom::Nothing).await,
            (Layer::Told, "exit code 3: disk full".into())
        );
        assert_eq!(told("exit 1", WeightFrom::Code).await, (Layer::Told, "exit code 1".into()));
        assert_eq!(told("kill -9 $$", WeightFrom::Code).await, (Layer::Told, "killed by signal 9".into()));
        let wrong = told("echo much", WeightFrom::Output).await;
        assert_eq!(wrong, (Layer::Told, "no weight from 0 to 65535 in its output: much".into()));
    });
}

#[test]
fn a_program_that_is_not_there_is_told() {
    alone(async || {
        let Probe::Exec(exec) = shell("", WeightFrom::Code) else { unreachable!() };
        let probe = Probe::Exec(Exec { command: vec!["/no/such".to_owned()], ..exec });
        let expected = "cannot be run: /no/such: No such file or directory (os error 2)";
        assert_eq!(fails(&probe, SERVER).await, (Layer::Told, expected.into()));
    });
}

#[test]
fn a_program_is_nobody_and_can_become_nobody_else() {
    alone(async || {
        let folder = Folder::new();
        sh(&format!("chmod 777 {}", folder.path().display()));
        let report = folder.path().join("report");
        let script = format!(
            "{{ id -u; id -g; id -G; grep -E '^(NoNewPrivs|CapEff|CapPrm|CapAmb):' /proc/self/status; pwd
            env | grep SHUNT | sort; cat; }} >{} 2>&1",
            report.display()
        );
        passes(&shell(&script, WeightFrom::Nothing), SERVER).await;
        let said = std::fs::read_to_string(report).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            lines,
            [
                "65534",
                "65534",
                "65534",
                "CapPrm:\t0000000000000000",
                "CapEff:\t0000000000000000",
                "CapAmb:\t0000000000000000",
                "NoNewPrivs:\t1",
                "/",
                "SHUNT_ADDRESS=10.0.0.11",
                "SHUNT_PORT=8080",
            ]
        );
    });
}

#[test]
fn a_program_that_takes_too_long_is_killed_with_what_it_has_started() {
    alone(async || {
        let folder = Folder::new();
        sh(&format!("chmod 777 {}", folder.path().display()));
        let numbers = folder.path().join("numbers");
        let script = format!("sleep 1000 & echo $! $$ >{}; wait", numbers.display());
        assert_eq!(
            waits(&shell(&script, WeightFrom::Nothing), SERVER).await,
            (Layer::Told, "no answer within 1.5s".into())
        );
        let numbers = std::fs::read_to_string(numbers).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        for number in numbers.split_whitespace() {
            let status = PathBuf::from(format!("/proc/{number}/status"));
            let alive = || std::fs::read_to_string(&status).is_ok_and(|text| !text.contains("State:\tZ"));
            while alive() {
                assert!(Instant::now() < deadline, "{number} is still there");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
}

#[test]
fn what_a_program_leaves_running_ends_with_it() {
    alone(async || {
        let started = Instant::now();
        passes(&shell("sleep 1000 & exit 0", WeightFrom::Nothing), SERVER).await;
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    });
}

#[test]
fn a_target_never_has_two_programs_at_once_and_two_targets_have() {
    alone(async || {
        let probe = shell("sleep 1", WeightFrom::Nothing);
        let second = Duration::from_secs(20);
        let (first, again, other) = tokio::join!(
            ask(&probe, SERVER, second),
            async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                ask(&probe.clone(), SERVER, second).await
            },
            ask(&probe, "10.0.0.12:8080", second)
        );
        assert!(first.0.is_ok() && other.0.is_ok(), "{first:?} {other:?}");
        let failure = again.0.unwrap_err();
        assert_eq!(failure.layer(), Layer::Local);
        assert_eq!(failure.to_string(), "cannot ask: its program still runs");
        passes(&probe, SERVER).await;
    });
}

#[test]
fn a_program_that_talks_without_end_is_neither_kept_waiting_nor_remembered() {
    alone(async || {
        let script = "head -c 100000000 /dev/zero | tr '\\0' x; exit 4";
        let (layer, text) = fails(&shell(script, WeightFrom::Nothing), SERVER).await;
        assert_eq!((layer, text), (Layer::Told, format!("exit code 4: {}", "x".repeat(120))));
    });
}

#[test]
fn a_file_says_how_a_server_is() {
    alone(async || {
        let folder = Folder::new();
        let path = folder.path().join("web");
        let shown = path.display().to_string();
        let file = |says| Probe::File(File { path: path.clone(), says });
        assert_eq!(fails(&file(Says::Exists), SERVER).await, (Layer::Told, format!("{shown} is not there")));
        passes(&file(Says::Status), SERVER).await;
        folder.write("web", "5\n");
        passes(&file(Says::Exists), SERVER).await;
        assert_eq!(fails(&file(Says::Status), SERVER).await, (Layer::Told, format!("{shown} says 5")));
        assert_eq!(passes(&file(Says::Weight), SERVER).await.weight, Some(5));
        folder.write("web", &"5".repeat(1 << 20));
        let wrong = (Layer::Told, format!("{shown} has no weight from 0 to 65535"));
        assert_eq!(fails(&file(Says::Weight), SERVER).await, wrong);
        std::fs::remove_file(&path).unwrap();
        sh(&format!("mkfifo {shown}"));
        assert_eq!(fails(&file(Says::Weight), SERVER).await, wrong);
    });
}
