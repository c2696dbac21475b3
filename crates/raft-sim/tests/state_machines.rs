//! A state machine of a library user in the simulator, and what happens to those that are wrong.

mod counter;

use std::sync::atomic::{AtomicU64, Ordering};

use counter::{Add, Counter};
use raft_core::{ApplyContext, Digest, SnapshotError, SnapshotSource, StateMachine};
use raft_sim::{Ask, ExactlyOnce, Failure, Options, Reference, run_with, survive};

#[test]
fn a_counter_is_run_through_faults() {
    let report = survive(0..8, |_| {
        Reference::new(Counter::default, |rng| match rng.below(4) {
            0 => Ask::Query(()),
            add => Ask::Command(Add(add)),
        })
    });
    assert!(report.crashes > 0 && report.acked > 100 && report.reads > 100);
}

#[test]
fn a_counter_in_sessions_counts_each_command_once() {
    let report = survive(0..4, |_| {
        ExactlyOnce::new(Counter::default, |rng| match rng.below(4) {
            0 => Ask::Query(()),
            add => Ask::Command(Add(add)),
        })
    });
    assert!(report.marks.count("session: a retry is not applied again") > 0, "{report:?}");
}

/// What a user's state machine may do wrong.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    /// What is restored is not what was pictured.
    Forgets,
    /// It depends on something other than the log: here, on which process it is.
    DependsOnTheProcess,
    /// As that, and what it answers is right: only its state is not.
    DiffersInSecret,
    /// It shows what was so before the last command.
    Stale,
}

struct Flawed {
    flaw: Flaw,
    counter: Counter,
    before: u64,
    process: u64,
}

impl Flawed {
    fn new(flaw: Flaw) -> Self {
        static PROCESSES: AtomicU64 = AtomicU64::new(0);
        let process = PROCESSES.fetch_add(1, Ordering::Relaxed);
        Self { flaw, counter: Counter::default(), before: 0, process }
    }
}

impl StateMachine for Flawed {
    type Command = Add;
    type Response = u64;
    type Query = ();
    type Answer = u64;
    type Snapshot = Counter;

    fn apply(&mut self, context: ApplyContext, add: Add) -> u64 {
        self.before = self.counter.0;
        let odd = if self.flaw == Flaw::DependsOnTheProcess { self.process % 2 } else { 0 };
        self.counter.apply(context, Add(add.0 + odd))
    }

    fn query(&self, (): ()) -> u64 {
        let stale = self.flaw == Flaw::Stale && self.process % 2 == 1;
        if stale { self.before } else { self.counter.0 }
    }

    fn snapshot(&self) -> Counter {
        self.counter.snapshot()
    }

    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        self.counter.restore(source)?;
        self.before = self.counter.0;
        self.counter.0 -= u64::from(self.flaw == Flaw::Forgets);
        Ok(())
    }

    fn digest(&self) -> Digest {
        let secret = if self.flaw == Flaw::DiffersInSecret { self.process } else { 0 };
        Digest(u128::from(self.counter.0) + u128::from(secret))
    }
}

fn first_failure(load: impl Fn() -> Reference<Flawed>) -> Failure {
    let mut runs = (0..20).map(|seed| run_with(seed, &Options::default(), |_| load()));
    *runs.find_map(Result::err).expect("nothing is noticed in twenty seeds")
}

fn flawed(flaw: Flaw) -> Reference<Flawed> {
    Reference::new(
        move || Flawed::new(flaw),
        |rng| match rng.below(4) {
            0 => Ask::Query(()),
            add => Ask::Command(Add(add)),
        },
    )
}

#[test]
fn a_state_that_is_not_restored_as_it_was_is_noticed() {
    let failure = first_failure(|| flawed(Flaw::Forgets));
    assert!(failure.what.starts_with("I1"), "{failure}");
}

#[test]
fn a_state_that_depends_on_more_than_the_log_is_noticed() {
    let failure = first_failure(|| flawed(Flaw::DependsOnTheProcess));
    assert!(failure.what.starts_with("I1"), "{failure}");
    let failure = first_failure(|| flawed(Flaw::DiffersInSecret));
    assert!(failure.what.starts_with("I19"), "{failure}");
}

#[test]
fn a_stale_answer_is_noticed() {
    let failure = first_failure(|| flawed(Flaw::Stale));
    assert!(failure.what.starts_with("I13"), "{failure}");
    assert!(failure.to_string().contains("run_with("), "{failure}");
}

#[test]
fn what_must_always_hold_is_asked_of_every_state() {
    let failure = first_failure(|| {
        flawed(Flaw::Forgets).always(|state| assert!(state.counter.0 < 50, "half a hundred"))
    });
    assert_eq!(failure.what, "half a hundred");
}
