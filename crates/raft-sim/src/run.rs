//! One seed from beginning to end.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::marks::Marks;
use crate::profile::{Options, Profile};
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
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, what, profile } = self;
        write!(
            f,
            "seed {seed} fails: {what}\n    {profile:?}\n    again with: cargo run -p rusty-raft-sim --example sim -- \
             --seeds {seed}"
        )
    }
}

impl std::error::Error for Failure {}

/// Runs one seed: some seconds of virtual time under faults, then none, and progress is demanded.
///
/// # Errors
/// What was violated, with the command to see it again.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Failure>> {
    catch_unwind(AssertUnwindSafe(|| run_to_the_end(seed, options))).map_err(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without text");
        let profile = World::new(seed, options).profile;
        Box::new(Failure { seed, what: what.to_owned(), profile })
    })
}

fn run_to_the_end(seed: u64, options: &Options) -> Report {
    let mut world = World::new(seed, options);
    let faulty = u64::try_from(options.faulty.as_micros()).unwrap_or(u64::MAX);
    let mut at = 0;
    while at < faulty {
        at = (at + 500_000).min(faulty);
        world.run_until(at);
        world.match_logs();
    }
    world.demand_progress();
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
