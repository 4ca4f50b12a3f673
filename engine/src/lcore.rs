//! Worker threads: one per worker, pinned to a core of its own where there are enough.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::program::{Program, WorkerId};
use crate::report::WorkerView;
use crate::waker::Wakers;
use crate::worker::Worker;

/// Where a worker runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The worker.
    pub worker: WorkerId,
    /// The only core its thread may run on, as the kernel confirmed; `None` when it is not pinned.
    pub core: Option<usize>,
    /// Why it is not on the core it was meant for.
    pub warning: Option<String>,
}

/// Running workers. Dropping stops them.
pub struct Workers<P: Program> {
    threads: Vec<JoinHandle<Worker<P>>>,
    ids: Vec<WorkerId>,
    views: Vec<WorkerView>,
    placements: Vec<Placement>,
    wakers: Wakers,
    stop: Arc<AtomicBool>,
}

/// What is left when the workers have stopped. The frames they still held are freed when this is dropped.
pub struct Stopped<P: Program> {
    /// Those that ended as they should.
    pub workers: Vec<Worker<P>>,
    /// Those that panicked.
    pub panicked: Vec<WorkerId>,
}

impl<P: Program + 'static> Workers<P> {
    /// Starts each worker on a thread of its own, named `shunt-w0`, `shunt-w1`, …, and waits until all are placed.
    ///
    /// With `cores`, worker `i` is pinned to `cores[i]`; workers beyond the list are not pinned. Without, workers are
    /// spread over the cores this thread may run on if there are enough for all, and not pinned otherwise. A core
    /// that cannot be had is a warning in [`Self::placements`], no error.
    ///
    /// # Errors
    /// When a thread cannot be started; those that were are stopped.
    pub fn start(workers: Vec<Worker<P>>, cores: Option<&[usize]>) -> std::io::Result<Self> {
        let plan = cores_for(workers.len(), cores);
        let mut running = Self {
            threads: Vec::with_capacity(workers.len()),
            ids: workers.iter().map(Worker::id).collect(),
            views: workers.iter().map(Worker::view).collect(),
            placements: Vec::with_capacity(workers.len()),
            wakers: Wakers::new(workers.iter().map(|worker| worker.waker().clone())),
            stop: Arc::new(AtomicBool::new(false)),
        };
        let (placed, placements) = mpsc::channel();
        for (mut worker, core) in workers.into_iter().zip(plan) {
            let (stop, placed) = (running.stop.clone(), placed.clone());
            let thread = std::thread::Builder::new().name(format!("shunt-w{}", worker.id().0));
            running.threads.push(thread.spawn(move || {
                // Nobody listens only when a later thread could not be started, and then we stop at once.
                let _ = placed.send(place(worker.id(), core));
                drop(placed);
                worker.run(&stop);
                worker
            })?);
        }
        drop(placed);
        running.placements.extend(placements);
        running.placements.sort_by_key(|placement| placement.worker);
        Ok(running)
    }

    /// Stops all workers and waits for them.
    pub fn stop(mut self) -> Stopped<P> {
        self.join()
    }
}

impl<P: Program> Workers<P> {
    /// Where each worker runs.
    pub fn placements(&self) -> &[Placement] {
        &self.placements
    }

    /// What each worker counts.
    pub fn views(&self) -> &[WorkerView] {
        &self.views
    }

    /// Wakes the workers: call it after publishing something they shall adopt at once.
    pub fn wakers(&self) -> &Wakers {
        &self.wakers
    }

    /// A worker that ended although nobody stopped it: it panicked.
    pub fn failed(&self) -> Option<WorkerId> {
        let ended = self.threads.iter().position(JoinHandle::is_finished)?;
        Some(self.ids[ended])
    }

    fn join(&mut self) -> Stopped<P> {
        self.stop.store(true, Ordering::Relaxed);
        self.wakers.wake_all();
        let mut stopped = Stopped { workers: Vec::with_capacity(self.ids.len()), panicked: Vec::new() };
        for (thread, id) in self.threads.drain(..).zip(&self.ids) {
            match thread.join() {
                Ok(worker) => stopped.workers.push(worker),
                Err(_) => stopped.panicked.push(*id),
            }
        }
        stopped
    }
}

impl<P: Program> Drop for Workers<P> {
    fn drop(&mut self) {
        self.join();
    }
}

/// The cores that this thread may run on.
pub fn allowed() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// The core that each of `workers` workers gets from [`Workers::start`] with `cores`, if any.
pub fn cores_for(workers: usize, cores: Option<&[usize]>) -> Vec<Option<usize>> {
    plan(workers, cores, &allowed())
}

/// Does `work` on `core`, if one is named and may be used: memory that it is the first to touch is then, on a machine
/// with several NUMA nodes, of that core's node.
pub fn on<T: Send>(core: Option<usize>, work: impl FnOnce() -> T + Send) -> T {
    let Some(core) = core else { return work() };
    let pinned = move || {
        core_affinity::set_for_current(core_affinity::CoreId { id: core });
        work()
    };
    std::thread::scope(|scope| match scope.spawn(pinned).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Which core each of `workers` workers gets.
fn plan(workers: usize, cores: Option<&[usize]>, allowed: &[usize]) -> Vec<Option<usize>> {
    match cores {
        Some(cores) => (0..workers).map(|index| cores.get(index).copied()).collect(),
        None if workers > allowed.len() => vec![None; workers],
        None => (0..workers).map(|index| Some(allowed[index * allowed.len() / workers])).collect(),
    }
}

/// Pins the calling thread to `core`, and asks the kernel whether it is.
fn place(worker: WorkerId, core: Option<usize>) -> Placement {
    let Some(core) = core else { return Placement { worker, core: None, warning: None } };
    let asked = core_affinity::set_for_current(core_affinity::CoreId { id: core });
    let pinned = asked
        && rustix::thread::sched_getaffinity(None).is_ok_and(|mask| mask.count() == 1 && mask.is_set(core));
    match pinned {
        true => Placement { worker, core: Some(core), warning: None },
        false => {
            let warning = format!("core {core} cannot be had: it does not exist or is not allowed");
            Placement { worker, core: None, warning: Some(warning) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_spread_over_the_cores_that_are_allowed() {
        assert_eq!(plan(2, None, &[1, 3, 5, 7]), [Some(1), Some(5)]);
        assert_eq!(plan(3, None, &[2, 4, 6]), [Some(2), Some(4), Some(6)]);
        assert_eq!(plan(3, None, &[2, 4]), [None, None, None]);
        assert_eq!(plan(3, Some(&[9, 8]), &[2]), [Some(9), Some(8), None]);
    }

    #[test]
    fn work_for_a_core_is_done_there_and_leaves_the_caller_where_it_was() {
        let mask = || rustix::thread::sched_getaffinity(None).unwrap();
        let before = mask();
        for core in allowed() {
            let there = on(Some(core), mask);
            assert_eq!((there.count(), there.is_set(core)), (1, true));
        }
        assert_eq!(on(None, mask), before);
        assert_eq!(mask(), before);
        assert_eq!(
            on(Some(1_000), || 7),
            7,
            "a core that is not there does not keep the work from being done"
        );
    }

    #[test]
    fn a_core_that_does_not_exist_is_a_warning() {
        let placement = std::thread::spawn(|| place(WorkerId(1), Some(1_000))).join().unwrap();
        assert_eq!((placement.worker, placement.core), (WorkerId(1), None));
        assert!(placement.warning.unwrap().contains("1000"));
    }
}
