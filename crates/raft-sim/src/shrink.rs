//! Makes a failing run small: which of its faults does it need?
//!
//! Zeller and Hildebrandt's delta debugging (ddmin, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 2002) over
//! the faults' numbers. What counts is that the same rule is violated, whenever and however.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::profile::Options;
use crate::run::{Failure, Report};

/// A failing run with fewer faults.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest run that was found; its options name its faults.
    pub failure: Box<Failure>,
    /// The faults of the run that this was made of.
    pub before: usize,
    /// How many runs were tried.
    pub runs: u64,
    /// No single one of its faults can be left out. False when time was up before that was known.
    pub minimal: bool,
}

/// Leaves faults out of a failing run for as long as it fails in the same way, for at most about `limit` of real time.
/// `again` runs a seed: [`run`](crate::run()), or [`run_with`](crate::run_with) of whatever failed. What does not shrink
/// ([`Failure::shrinks`]) is returned as it is.
pub fn shrink(
    failure: &Failure,
    limit: Duration,
    again: impl Fn(u64, &Options) -> Result<Report, Box<Failure>>,
) -> Shrunk {
    let mut search = Search {
        again,
        rule: failure.rule(),
        seed: failure.seed,
        options: failure.options.clone(),
        began: Instant::now(),
        limit,
        runs: 0,
    };
    let before = failure.faults.len();
    let mut best = Box::new(failure.clone());
    if !failure.shrinks() {
        return Shrunk { failure: best, before, runs: 0, minimal: false };
    }
    let mut kept: Vec<u64> = failure.faults.iter().map(|fault| fault.number).collect();
    best.options.only = Some(kept.iter().copied().collect());
    let mut parts = 1;
    let mut minimal = true;
    while !kept.is_empty() {
        if search.is_over() {
            minimal = false;
            break;
        }
        let size = kept.len().div_ceil(parts);
        let found = kept.chunks(size).enumerate().find_map(|(nth, _)| {
            let rest = kept.chunks(size).enumerate().filter(|(other, _)| *other != nth);
            search.fails(rest.flat_map(|(_, chunk)| chunk.iter().copied()).collect())
        });
        match found {
            Some(smaller) => {
                // Some of those that were left may not have happened any more.
                let happened = smaller.faults.iter().map(|fault| fault.number);
                kept = happened.collect();
                best = smaller;
                parts = (parts - 1).max(2).min(kept.len().max(1));
            }
            None if parts >= kept.len() => {
                minimal = !search.is_over();
                break;
            }
            None => parts = (2 * parts).min(kept.len()),
        }
    }
    best.options.only = Some(kept.into_iter().collect());
    Shrunk { failure: best, before, runs: search.runs, minimal }
}

struct Search<R> {
    again: R,
    rule: String,
    seed: u64,
    options: Options,
    began: Instant,
    limit: Duration,
    runs: u64,
}

impl<R: Fn(u64, &Options) -> Result<Report, Box<Failure>>> Search<R> {
    fn is_over(&self) -> bool {
        self.began.elapsed() >= self.limit
    }

    /// The run with only these faults, if it violates the same rule; `None` also when time is up.
    fn fails(&mut self, only: BTreeSet<u64>) -> Option<Box<Failure>> {
        if self.is_over() {
            return None;
        }
        self.runs += 1;
        let options = Options { only: Some(only), ..self.options.clone() };
        let failure = (self.again)(self.seed, &options).err()?;
        (failure.rule() == self.rule).then_some(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;

    #[test]
    fn two_runs_that_differ_are_not_made_small() {
        let options = Options::default();
        let failure = Failure {
            seed: 3,
            what: "I20: the seed is not deterministic".to_owned(),
            faults: Vec::new(),
            profile: Profile::of(3, &options),
            options,
            report: Report::default(),
            again: String::new(),
        };
        let shrunk =
            shrink(&failure, Duration::from_secs(60), |_, _| panic!("one run shows nothing"));
        assert_eq!((shrunk.runs, shrunk.minimal), (0, false));
        assert_eq!(shrunk.failure.arguments(), "--seed 3");
    }
}
