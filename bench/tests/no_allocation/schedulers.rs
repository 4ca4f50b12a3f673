//! No scheduler calls the allocator for a pick, whatever it has to look up or to remember.

use shunt_bench::alloc;
use shunt_bench::schedule::{pool, request};
use shunt_dataplane::scheduler::{SchedulerKind, SchedulerState};
use shunt_dataplane::service::ServiceId;
use shunt_engine::{Duration, Instant};

#[test]
fn no_scheduler_allocates_for_a_pick() {
    for kind in SchedulerKind::ALL {
        let (pool, mut state) = (pool(kind, 20), SchedulerState::new(1, 20, 7));
        state.prepare([kind].into_iter());
        let calls = alloc::calls();
        for client in 0..100_000 {
            let now = Instant::ZERO + Duration::from_secs(1 + u64::from(client));
            let picked = state.pick(ServiceId(0), &pool, &request(client, now)).unwrap();
            // Half of the connections end: servers fill up, and schedulers that look at that have to think again.
            state.opened(picked, true);
            if client % 2 == 0 {
                state.closed(picked, true);
            }
        }
        assert_eq!(alloc::calls() - calls, 0, "{kind:?}");
    }
}
