//! A network namespace for one test, and questions asked in it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use shunt_control::health::probe::{Failure, Layer, Passed, Probe, Target};

/// How long a probe has that is not about time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `test` on a thread that has a network of its own, with nothing in it but `lo`. Whatever it starts is there too.
pub(crate) fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (are you root?)");
        sh("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `script`, which must succeed, and returns what it prints.
pub(crate) fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-euc", script]).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}\n{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Asks, and returns the answer with the time it took.
pub(crate) async fn ask(
    probe: &Probe,
    address: &str,
    timeout: Duration,
) -> (Result<Passed, Failure>, Duration) {
    let target = Target { address: address.parse::<SocketAddr>().unwrap() };
    let started = Instant::now();
    let answer = probe.run(&target, timeout).await;
    (answer, started.elapsed())
}

/// Asks, and expects a good answer.
pub(crate) async fn passes(probe: &Probe, address: &str) -> Passed {
    let (answer, took) = ask(probe, address, PATIENCE).await;
    let passed = answer.unwrap_or_else(|failure| panic!("{probe:?} of {address}: {failure}"));
    assert!(passed.latency <= took, "{:?} of {took:?}", passed.latency);
    passed
}

/// Asks, and returns what is wrong.
pub(crate) async fn fails(probe: &Probe, address: &str) -> (Layer, String) {
    let (answer, _) = ask(probe, address, PATIENCE).await;
    said(answer.expect_err("it should not pass"))
}

/// Asks a server that keeps us waiting, and returns what is wrong: neither earlier nor much later than there was time.
pub(crate) async fn waits(probe: &Probe, address: &str) -> (Layer, String) {
    let timeout = Duration::from_millis(1500);
    let (answer, took) = ask(probe, address, timeout).await;
    assert!(took >= timeout && took < timeout + Duration::from_secs(5), "{took:?} of {timeout:?}");
    said(answer.expect_err("it should not pass"))
}

fn said(failure: Failure) -> (Layer, String) {
    (failure.layer(), failure.to_string())
}

/// A folder that goes when the test is over.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("shunt-probes-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
