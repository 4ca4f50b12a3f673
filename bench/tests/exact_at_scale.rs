//! A director with 1 000 services of 100 servers each goes on exactly where it was when its configuration is replaced.

use shunt_bench::rig::Rig;
use shunt_bench::world::{Plan, World};
use shunt_bench::{connections, director};
use shunt_dataplane::counters::{self, ServerField};
use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::scheduler::SchedulerKind;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::V4;
use shunt_engine::clock::Clock;

const SERVERS: u32 = 100;

struct Bench {
    world: World,
    rig: Rig<Pipeline>,
    file: std::path::PathBuf,
    plan: Plan,
    clients: u32,
}

impl Bench {
    fn new(scheduler: SchedulerKind) -> Self {
        let plan = Plan { mode: Mode::Dr, scheduler, services: 1000, servers: SERVERS };
        let (world, mut pipelines) = World::new(1, director::capacity(0)).expect("there is memory");
        let rig = Rig::new(pipelines.remove(0), Clock::System).expect("there is memory");
        let file =
            std::env::temp_dir().join(format!("shunt-exact-{}-{}", std::process::id(), scheduler.name()));
        let mut bench = Self { world, rig, file, plan, clients: 0 };
        bench.reload(1);
        bench
    }

    /// The file, with `weight` for the first server, is put in force.
    fn reload(&mut self, weight: u32) {
        std::fs::write(&self.file, self.plan.file(weight)).expect("the folder can be written");
        let config = self.world.read(&self.file).expect("the file is good");
        let compiled = self.world.compile(config).expect("there are numbers for all");
        let generation = self.world.publish(compiled);
        // The worker is at it for many turns; connections may be opened at any time.
        self.rig.turn();
        assert!(self.world.is_in_force(generation));
        self.world.reclaim();
    }

    fn open(&mut self, connections: u32) {
        let clients = self.clients..self.clients + connections;
        connections::open::<V4>(&mut self.rig, Mode::Dr, clients).expect("all are opened");
        self.clients += connections;
    }

    /// Live connections of each server of the first service, once all have been made public.
    fn loads(&mut self) -> Vec<u64> {
        let published = self.rig.worker().program().counters();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            self.rig.turn();
            let load = |slot| published.get(counters::server(slot, ServerField::Active));
            let loads: Vec<_> = (0..SERVERS).map(load).collect();
            if loads.iter().sum::<u64>() == u64::from(self.clients) || std::time::Instant::now() > until {
                return loads;
            }
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

#[test]
fn the_turn_of_rr_goes_on_where_it_was() {
    let mut bench = Bench::new(SchedulerKind::Rr);
    bench.open(150);
    let once_or_twice = bench.loads();
    assert_eq!(once_or_twice.iter().filter(|&&load| load == 2).count(), 50, "{once_or_twice:?}");
    bench.reload(2);
    bench.open(25);
    bench.reload(1);
    bench.open(25);
    assert_eq!(bench.loads(), vec![2; SERVERS as usize]);
}

#[test]
fn wlc_knows_the_connections_from_before() {
    let mut bench = Bench::new(SchedulerKind::Wlc);
    bench.open(150);
    bench.reload(2);
    bench.open(26);
    bench.reload(2);
    bench.open(26);
    let loads = bench.loads();
    assert_eq!((loads[0], &loads[1..]), (4, &vec![2; SERVERS as usize - 1][..]), "twice the weight");
}
