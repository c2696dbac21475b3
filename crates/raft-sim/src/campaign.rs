//! Many seeds, on all processors.

use std::ops::Range;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::marks::Marks;
use crate::profile::Options;
use crate::run::{Failure, Report, run};

/// What a thousand seeds must do at least once, one name a line, `#` before a comment.
const REQUIRED: &str = include_str!("../tests/marks.txt");

/// Which seeds to run, and how.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The seeds, in order.
    pub seeds: Range<u64>,
    /// No seed begins after this moment.
    pub until: Option<Instant>,
    /// Every so many seeds run two times and must do the same (I20); zero for none.
    pub twice_every: u64,
    /// After so many failures no further seed begins.
    pub failures_max: usize,
    /// What is fixed besides the seed.
    pub options: Options,
}

/// What the seeds did so far.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Seeds that ran to their end.
    pub seeds: u64,
    /// All of them together, those that fail included.
    pub report: Report,
    /// Those that failed, in the order in which they ended.
    pub failures: Vec<Failure>,
}

impl Totals {
    /// Which of the required marks were never hit, and how many there are in all.
    #[must_use]
    pub fn missing_marks(&self) -> (Vec<&'static str>, usize) {
        missing(&self.report.marks)
    }

    /// Virtual time in hours.
    #[must_use]
    pub fn hours(&self) -> f64 {
        std::time::Duration::from_micros(self.report.micros).as_secs_f64() / 3600.0
    }
}

fn missing(marks: &Marks) -> (Vec<&'static str>, usize) {
    let required = REQUIRED.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let count = required.clone().count();
    (required.filter(|name| marks.count(name) == 0).collect(), count)
}

/// Runs seeds on all processors, each run in one thread, and tells `progress` after each.
pub fn campaign(campaign: &Campaign, progress: &(dyn Fn(&Totals) + Sync)) -> Totals {
    let next = AtomicU64::new(campaign.seeds.start);
    let stop = AtomicBool::new(false);
    let totals = Mutex::new(Totals::default());
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed)
                    && campaign.until.is_none_or(|until| Instant::now() < until)
                {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= campaign.seeds.end {
                        return;
                    }
                    let outcome = one(seed, campaign);
                    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                    totals.seeds += 1;
                    match outcome {
                        Ok(report) => totals.report.add(&report),
                        Err(failure) => {
                            totals.report.add(&failure.report);
                            totals.failures.push(*failure);
                        }
                    }
                    if totals.failures.len() >= campaign.failures_max {
                        stop.store(true, Ordering::Relaxed);
                    }
                    progress(&totals);
                }
            });
        }
    });
    totals.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn one(seed: u64, campaign: &Campaign) -> Result<Report, Box<Failure>> {
    let Campaign { options, twice_every, .. } = campaign;
    let report = run(seed, options)?;
    if *twice_every > 0 && seed.is_multiple_of(*twice_every) {
        let again = run(seed, options)?;
        if again != report {
            return Err(Box::new(Failure {
                seed,
                options: options.clone(),
                what: format!("I20: the seed is not deterministic: {report:?}, then {again:?}"),
                faults: Vec::new(),
                profile: crate::Profile::of(seed, options),
                report: again,
                again: format!("cargo run --release --bin rusty-raft -- sim --seed {seed} --twice"),
            }));
        }
    }
    Ok(report)
}

/// Keeps the panics of failing seeds, which are told as failures, off standard error. What panics outside a run is
/// told as always.
pub fn quiet_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        if crate::run::virtual_time().is_none() {
            usual(panic);
        }
    }));
}
