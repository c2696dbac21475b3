//! One seed from beginning to end.

use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::kv::KeyValue;
use crate::marks::Marks;
use crate::profile::{Options, Profile};
use crate::workload::Workload;
use crate::world::World;

/// What a run did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Digest of everything that happened: equal for equal seeds.
    pub trace: u64,
    /// Happenings.
    pub events: u64,
    /// Writes that clients were told are done.
    pub acked: u64,
    /// Linearizable reads and barriers that were answered.
    pub reads: u64,
    /// Requests whose outcome clients were not told.
    pub unknown: u64,
    /// Processes and machines that stopped.
    pub crashes: u64,
    /// The last term.
    pub terms: u64,
    /// Virtual time, in microseconds.
    pub micros: u64,
    /// What happened.
    pub marks: Marks,
}

impl Report {
    /// Adds another run.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.acked += other.acked;
        self.reads += other.reads;
        self.unknown += other.unknown;
        self.crashes += other.crashes;
        self.terms += other.terms;
        self.micros += other.micros;
        self.marks.add(&other.marks);
    }
}

/// A seed that fails.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What was violated.
    pub what: String,
    /// What the seed drew.
    pub profile: Profile,
    /// How to see it again.
    pub again: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, what, profile, again } = self;
        write!(f, "seed {seed} fails: {what}\n    {profile:?}\n    again with: {again}")
    }
}

impl std::error::Error for Failure {}

/// Runs one seed with the key-value store: some seconds of virtual time under faults, then none, and progress is
/// demanded.
///
/// # Errors
/// What was violated, with the command to see it again.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Failure>> {
    run_with(seed, options, KeyValue::new).map_err(|failure| {
        let again = format!("cargo run -p rusty-raft-sim --example sim -- --seeds {seed}");
        Box::new(Failure { again, ..*failure })
    })
}

/// Runs one seed as [`run`] does, with clients and a state machine of the caller's. `load` is told what the seed has
/// drawn. Equal seeds give equal reports, as long as `load` makes equal workloads.
///
/// # Errors
/// What was violated.
pub fn run_with<W: Workload>(
    seed: u64,
    options: &Options,
    load: impl FnOnce(&Profile) -> W,
) -> Result<Report, Box<Failure>> {
    let run = || run_to_the_end(World::new(seed, options, load));
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without text");
        let profile = Profile::of(seed, options);
        let again = format!("raft_sim::run_with({seed}, ...)");
        Box::new(Failure { seed, what: what.to_owned(), profile, again })
    })
}

/// Runs these seeds as [`run_with`] does, on all processors, the first one twice: equal seeds must be equal runs.
///
/// # Panics
/// On the first seed that fails, with what was violated and how to see it again.
pub fn survive<W: Workload>(seeds: Range<u64>, load: impl Fn(&Profile) -> W + Sync) -> Report {
    let (options, next) = (Options::default(), AtomicU64::new(seeds.start));
    let one = |seed| run_with(seed, &options, &load).unwrap_or_else(|failure| panic!("{failure}"));
    let work = || {
        let mut total = Report::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return total;
            }
            let report = one(seed);
            if seed == seeds.start {
                assert!(report == one(seed), "seed {seed} is not the same run twice");
            }
            total.add(&report);
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut total = Report::default();
        for worker in running {
            total.add(&worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        total
    })
}

fn run_to_the_end<W: Workload>(mut world: World<W>) -> Report {
    let faulty = u64::try_from(world.options.faulty.as_micros()).unwrap_or(u64::MAX);
    let mut at = 0;
    while at < faulty {
        at = (at + 500_000).min(faulty);
        world.run_until(at);
        world.match_logs();
    }
    world.demand_progress();
    world.load.end(&mut world.marks);
    Report {
        trace: world.digest(),
        events: world.events,
        acked: world.oracle.acked,
        reads: world.oracle.reads,
        unknown: world.oracle.unknown,
        crashes: world.crashes,
        terms: world.oracle.term().0,
        micros: world.now,
        marks: world.marks,
    }
}
