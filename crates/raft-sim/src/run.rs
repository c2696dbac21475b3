//! One seed from beginning to end.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bank::Bank;
use crate::kv::KeyValue;
use crate::marks::Marks;
use crate::profile::{Load, Options, Profile};
use crate::sessions;
use crate::story::Fault;
use crate::tape::Tape;
use crate::tenants::Tenants;
use crate::workload::Workload;
use crate::world::World;

/// What a run did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Digest of everything that happened: equal for equal seeds.
    pub trace: u64,
    /// Happenings.
    pub events: u64,
    /// Faults that befell it, what disturbs single messages counted once for each half of a second.
    pub faults: u64,
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
        self.faults += other.faults;
        self.acked += other.acked;
        self.reads += other.reads;
        self.unknown += other.unknown;
        self.crashes += other.crashes;
        self.terms += other.terms;
        self.micros += other.micros;
        self.marks.add(&other.marks);
    }

    fn of<W: Workload>(world: &World<W>) -> Self {
        Self {
            trace: world.digest(),
            events: world.events,
            faults: world.story.len() as u64,
            acked: world.oracle.acked,
            reads: world.oracle.reads,
            unknown: world.oracle.unknown,
            crashes: world.crashes,
            terms: world.oracle.term().0,
            micros: world.now,
            marks: world.marks.clone(),
        }
    }
}

/// A seed that fails.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What was fixed besides it.
    pub options: Options,
    /// What was violated.
    pub what: String,
    /// The faults that befell it until then, in order.
    pub faults: Vec<Fault>,
    /// What the seed drew.
    pub profile: Profile,
    /// What had happened until then.
    pub report: Report,
    /// How to see it again.
    pub again: String,
}

impl Failure {
    /// What was violated, without what differs from run to run: `I10`, `L1`, or a few words.
    #[must_use]
    pub fn rule(&self) -> String {
        let first = self.what.lines().next().unwrap_or_default();
        let name = first.split(':').next().unwrap_or_default();
        let says = |word: &&str| !word.contains(|c: char| c.is_ascii_digit());
        if name.len() <= 3 {
            return name.to_owned();
        }
        let words: Vec<&str> = name.split_whitespace().filter(says).take(6).collect();
        words.join(" ")
    }

    /// Whether it can be made small. Not that two runs of one seed differ (I20): a single run does not show that.
    #[must_use]
    pub fn shrinks(&self) -> bool {
        self.rule() != "I20"
    }

    /// The arguments of `rusty-raft sim` that run it again, with the same faults.
    #[must_use]
    pub fn arguments(&self) -> String {
        arguments(self.seed, &self.options)
    }
}

fn arguments(seed: u64, options: &Options) -> String {
    let mut text = format!("--seed {seed}");
    if let Some(members) = options.members {
        text += &format!(" --nodes {members}");
    }
    if options.faulty != Options::default().faulty {
        text += &format!(" --seconds {}", options.faulty.as_secs());
    }
    if let Some(rate) = options.rate {
        text += &format!(" --rate {rate}");
    }
    if let Some(faults) = &options.faults {
        let names: Vec<&str> = faults.iter().map(|class| class.name()).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(",") };
        text += &format!(" --faults {names}");
    }
    if let Some(only) = &options.only {
        text += &format!(" --only {}", numbers(only));
    }
    text
}

/// Numbers of faults as `--only` takes them.
fn numbers(only: &BTreeSet<u64>) -> String {
    if only.is_empty() {
        return "none".to_owned();
    }
    only.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, what, profile, report, faults, again, .. } = self;
        let (seconds, micros) = (report.micros / 1_000_000, report.micros % 1_000_000);
        let count = faults.len();
        write!(
            f,
            "seed {seed} fails at {seconds}.{micros:06} s, after {count} faults: {what}\n    {profile:?}\n    again \
             with: {again}"
        )
    }
}

impl std::error::Error for Failure {}

/// Runs one seed with the key-value store and the clients that the seed draws: some seconds of virtual time under
/// faults, then none, and progress is demanded.
///
/// # Errors
/// What was violated, with the command to see it again.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Failure>> {
    let report = match Profile::of(seed, options).load {
        Load::Keys => run_with(seed, options, KeyValue::new),
        Load::Bank => run_with(seed, options, Bank::new),
        Load::Sessions => run_with(seed, options, sessions::counter),
        Load::Tenants => run_with(seed, options, Tenants::new),
    };
    report.map_err(|failure| {
        let arguments = failure.arguments();
        let again = format!("cargo run --release --bin rusty-raft -- sim {arguments}");
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
    let (mut world, outcome) = watch(seed, options, load);
    let report = Report::of(&world);
    let Err(what) = outcome else { return Ok(report) };
    Err(Box::new(Failure {
        seed,
        options: options.clone(),
        what,
        faults: std::mem::take(&mut world.story),
        profile: world.profile.clone(),
        report,
        again: format!("raft_sim::run_with({seed}, ...)"),
    }))
}

/// Runs one seed and keeps its world as it is at the end or where it failed.
fn watch<W: Workload>(
    seed: u64,
    options: &Options,
    load: impl FnOnce(&Profile) -> W,
) -> (World<W>, Result<(), String>) {
    let mut world = World::new(seed, options, load);
    let outcome = catch_unwind(AssertUnwindSafe(|| run_to_the_end(&mut world)));
    NOW.set(None);
    let outcome = outcome.map_err(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without text");
        what.to_owned()
    });
    (world, outcome)
}

/// The faults of a run, in order, whether it fails or not.
#[must_use]
pub fn faults_of(seed: u64, options: &Options) -> Vec<Fault> {
    Watched::run(seed, options).story
}

/// What is left of a run that somebody looks at, whoever its clients were.
pub(crate) struct Watched {
    pub(crate) outcome: Result<(), String>,
    /// When it ended.
    pub(crate) now: u64,
    /// Its faults, in order.
    pub(crate) story: Vec<Fault>,
    pub(crate) tape: Option<Box<Tape>>,
}

impl Watched {
    /// Runs one seed with the clients that it draws.
    pub(crate) fn run(seed: u64, options: &Options) -> Self {
        match Profile::of(seed, options).load {
            Load::Keys => Self::of(watch(seed, options, KeyValue::new)),
            Load::Bank => Self::of(watch(seed, options, Bank::new)),
            Load::Sessions => Self::of(watch(seed, options, sessions::counter)),
            Load::Tenants => Self::of(watch(seed, options, Tenants::new)),
        }
    }

    fn of<W: Workload>((world, outcome): (World<W>, Result<(), String>)) -> Self {
        Self { outcome, now: world.now, story: world.story, tape: world.tape }
    }
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

fn run_to_the_end<W: Workload>(world: &mut World<W>) {
    let faulty = u64::try_from(world.options.faulty.as_micros()).unwrap_or(u64::MAX);
    let mut at = 0;
    while at < faulty {
        at = (at + 500_000).min(faulty);
        world.run_until(at);
        world.match_logs();
    }
    world.demand_progress();
    world.load.end(&mut world.marks);
}

thread_local! {
    /// The virtual time of the run of this thread, for what its members log.
    pub(crate) static NOW: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The virtual time, in microseconds, of the run that goes on in this thread.
#[must_use]
pub fn virtual_time() -> Option<u64> {
    NOW.get()
}
