//! How long a Maglev table takes, as control builds one at a reload.

use shunt_bench::pipeline::thread_cpu_ns;
use shunt_bench::schedule::pool;
use shunt_dataplane::scheduler::SchedulerKind;

#[test]
fn a_table_of_65537_slots_for_a_thousand_servers_is_built_in_three_milliseconds() {
    let built = (0..30).map(|_| {
        let start = thread_cpu_ns();
        std::hint::black_box(pool(SchedulerKind::Mh, 1000));
        thread_cpu_ns() - start
    });
    let best = built.min().expect("it was built");
    println!("{:.2} ms", best as f64 / 1e6);
    assert!((100_000..=3_000_000).contains(&best), "{best} ns");
}
