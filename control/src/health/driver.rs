//! Gives [`Watch`] what it does not have: the time, sockets and chance. One task starts questions as they are due; each
//! is a task of its own until its answer is in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shunt_engine::Instant;
use shunt_engine::clock::Clock;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use super::watch::{CheckId, Notice, Question, Watch};

/// Questions at a time; more wait until one is answered.
const QUESTIONS_MAX: usize = 4096;

/// How long changes are gathered before the workers are told: servers often fail together.
const GATHERING: std::time::Duration = std::time::Duration::from_millis(10);

/// The daemon's hold of the checks. All clones are the same.
#[derive(Clone, Debug)]
pub struct Driver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    watch: Mutex<Watch>,
    /// There may be something to ask earlier than was known.
    hurry: Notify,
    /// Servers have another standing.
    changed: Notify,
    room: Arc<Semaphore>,
    chance: Mutex<u64>,
}

impl Driver {
    /// Nothing to check yet. `seed` is for chance.
    pub fn new(seed: u64) -> Self {
        let shared = Shared {
            watch: Mutex::default(),
            hurry: Notify::new(),
            changed: Notify::new(),
            room: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            chance: Mutex::new(seed | 1),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The state of everything; to be held for a moment only.
    pub fn watch(&self) -> MutexGuard<'_, Watch> {
        self.shared.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is watched.
    pub fn alter<T>(&self, change: impl FnOnce(&mut Watch, Instant) -> T) -> T {
        let mut watch = self.watch();
        let done = change(&mut watch, Clock::System.now());
        if watch.has_changed() {
            self.shared.changed.notify_one();
        }
        drop(watch);
        self.shared.hurry.notify_one();
        done
    }

    /// Tells when servers have another standing than the configuration in force says. Those that changed at about the
    /// same moment are told together; one message waits at most.
    pub fn changes(&self) -> mpsc::Receiver<()> {
        let (tell, changes) = mpsc::channel(1);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            loop {
                shared.changed.notified().await;
                tokio::time::sleep(GATHERING).await;
                if tell.send(()).await.is_err() {
                    return;
                }
            }
        });
        changes
    }

    /// Has the kernel allow as many sockets at a time as this process may ever have. It goes on with fewer: what cannot
    /// be asked is no failure.
    pub fn make_room() {
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }

    /// Asks for ever, and shows `tell` what comes of it.
    pub async fn run(self, tell: impl Fn(Notice) + Clone + Send + 'static) {
        loop {
            self.start_due(&tell);
            let next = self.watch().next_deadline();
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.shared.hurry.notified() => {}
            }
            if self.shared.room.available_permits() == 0 {
                // The next answer makes room.
                drop(self.shared.room.acquire().await);
            }
        }
    }

    fn start_due(&self, tell: &(impl Fn(Notice) + Clone + Send + 'static)) {
        let now = Clock::System.now();
        let mut watch = self.watch();
        watch.grow(now);
        let begun = watch.begin(now, self.shared.room.available_permits());
        self.spread(watch, tell);
        for (id, question) in begun {
            let permit = self.shared.room.clone().try_acquire_owned().expect("no more were begun than fit");
            tokio::spawn(self.clone().ask(id, question, permit, tell.clone()));
        }
    }

    async fn ask(
        self,
        id: CheckId,
        question: Arc<Question>,
        permit: OwnedSemaphorePermit,
        tell: impl Fn(Notice),
    ) {
        let result = question.probe.run(&question.target, question.rhythm.timeout.into()).await;
        drop(permit);
        let chance = self.chance();
        let mut watch = self.watch();
        let before = watch.next_deadline();
        watch.answered(id, result, Clock::System.now(), chance);
        let earlier = watch.next_deadline() < before || before.is_none();
        self.spread(watch, &tell);
        if earlier {
            self.shared.hurry.notify_one();
        }
    }

    /// Tells everybody what has changed in `watch`.
    fn spread(&self, mut watch: MutexGuard<'_, Watch>, tell: &impl Fn(Notice)) {
        let (notices, changed) = (watch.take_notices(), watch.has_changed());
        drop(watch);
        notices.into_iter().for_each(tell);
        if changed {
            self.shared.changed.notify_one();
        }
    }

    /// A number by chance (xorshift64*, Vigna 2016): enough to keep checks apart.
    fn chance(&self) -> u32 {
        let mut state = self.shared.chance.lock().unwrap_or_else(PoisonError::into_inner);
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep((deadline - Clock::System.now()).into()).await,
        None => std::future::pending().await,
    }
}
