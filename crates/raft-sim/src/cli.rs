//! `rusty-raft sim`: seeds, their failures made small, pictures of them. Also what the example `sim` is.

mod ledger;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::campaign::{Campaign, Totals, campaign, quiet_panics};
use crate::{Failure, FaultClass, Options, picture, run, shrink, virtual_time};

/// How many failing seeds are made small.
const SHRUNK_MAX: usize = 3;
/// After so many failing seeds enough is known.
const FAILURES_MAX: usize = 10;
/// Without `--twice`, one seed of so many runs two times.
const TWICE_EVERY: u64 = 64;
/// Without any seeds on the command line.
const USUAL_SEEDS: Range<u64> = 0..100;

const EXAMPLES: &str = "\
Examples:
  rusty-raft sim --minutes 10               fresh seeds on all processors
  rusty-raft sim --seeds 0..1000 --marks    the same thousand seeds as always
  rusty-raft sim --seed 17 --trace          one seed, and what its members say
  rusty-raft sim --seed 17 --picture 17.html

The same seed is the same run, byte for byte. A seed that fails is made small: the faults that it needs are listed,
with one command that runs it again with just these. Exit code 1 when a seed fails.";

/// Run whole clusters in one thread under one seed each, with faults, and check everything.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// One seed.
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "minutes"])]
    seed: Option<u64>,
    /// These seeds, the last one excluded.
    #[arg(long, value_name = "A..B", value_parser = seeds, conflicts_with = "minutes")]
    seeds: Option<Range<u64>>,
    /// Fresh seeds until the time is up.
    #[arg(long, value_name = "M", value_parser = minutes)]
    minutes: Option<Duration>,
    /// Members of the cluster, 1 to 7; drawn by each seed when not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=7))]
    nodes: Option<u64>,
    /// Simulated seconds under faults, 1 to 3600.
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Requests a second of all clients together, about; drawn by each seed when not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: Option<u64>,
    /// Exactly these classes of faults, or `none`; drawn by each seed when not given. They are loss, duplication,
    /// reordering, replay, reset, partition, crash, power, blackout, pause, clock, stall, sync, journal, full, wipe, rot,
    /// tear, membership and transfer.
    #[arg(long, value_name = "CLASS,…", value_parser = classes)]
    faults: Option<Classes>,
    /// Only these of the faults that the seed draws, by their numbers, or `none`.
    #[arg(long, value_name = "NUMBER,…", value_parser = only, requires = "seed")]
    only: Option<Only>,
    /// Print every fault, and what the members log (RUST_LOG, else raft=debug) with the virtual time. For one seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Run every seed two times, and demand that both do the same. Without it one in 64 is.
    #[arg(long)]
    twice: bool,
    /// Print what happened how often, and fail when something that is required never did.
    #[arg(long)]
    marks: bool,
    /// Draw a page of HTML: the seed, or the first one that fails.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// How long to make a failing seed smaller, in seconds of real time; 0 for not at all.
    #[arg(long, value_name = "S", default_value_t = 30)]
    shrink: u64,
    /// Append a line on these seeds to this file: commit, date, seeds, simulated hours, events, failures.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Turn a deliberate bug on.
    #[cfg(mutants)]
    #[arg(long, value_name = "N")]
    mutant: Option<u32>,
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// No seed failed, and whatever was demanded besides was so.
    Fine,
    /// A seed failed, or with `--marks` something never happened.
    Failed,
    /// A file could not be written.
    BadArguments,
}

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        match end {
            End::Fine => Self::SUCCESS,
            End::Failed => Self::FAILURE,
            End::BadArguments => Self::from(2),
        }
    }
}

/// What `--faults` says.
#[derive(Clone, Debug)]
struct Classes(BTreeSet<FaultClass>);

/// What `--only` says.
#[derive(Clone, Debug)]
struct Only(BTreeSet<u64>);

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("\"{text}\" is no range of seeds, such as 0..1000");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let (from, to) = (from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?);
    if from < to { Ok(from..to) } else { Err(format!("there are no seeds in {text}")) }
}

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| format!("\"{text}\" is no number of minutes"))?;
    let seconds = Duration::try_from_secs_f64(minutes * 60.0).ok();
    let seconds = seconds.filter(|seconds| !seconds.is_zero());
    seconds.ok_or_else(|| "more than no minutes, please, such as 10 or 0.5".to_owned())
}

fn classes(text: &str) -> Result<Classes, String> {
    if text == "none" {
        return Ok(Classes(BTreeSet::new()));
    }
    let names = text.split(',').map(|name| name.trim().parse::<FaultClass>());
    names.collect::<Result<_, _>>().map(Classes).map_err(|error| error.to_string())
}

fn only(text: &str) -> Result<Only, String> {
    if text == "none" {
        return Ok(Only(BTreeSet::new()));
    }
    let numbers = text.split(',').map(|number| number.trim().parse());
    let wrong = "numbers of faults as a failing seed lists them, such as 3,17,20, or none";
    numbers.collect::<Result<_, _>>().map(Only).map_err(|_| wrong.to_owned())
}

/// Runs what the arguments say. `program` is how to call this again.
#[must_use]
pub fn main(arguments: &Arguments, program: &str) -> End {
    #[cfg(mutants)]
    raft_core::mutant::activate(arguments.mutant.unwrap_or_default());
    let options = Options {
        members: arguments.nodes,
        rate: arguments.rate,
        faulty: Duration::from_secs(arguments.seconds),
        faults: arguments.faults.clone().map(|classes| classes.0),
        only: arguments.only.clone().map(|only| only.0),
        ..Options::default()
    };
    let command = Command { arguments, program };
    if arguments.trace {
        log();
    }
    quiet_panics();
    match arguments.seed {
        Some(seed) if !arguments.twice && arguments.ledger.is_none() => command.one(seed, &options),
        _ => command.many(&options),
    }
}

struct Command<'a> {
    arguments: &'a Arguments,
    program: &'a str,
}

impl Command<'_> {
    /// One seed: what it did, or how it fails.
    fn one(&self, seed: u64, options: &Options) -> End {
        let outcome = run(seed, options);
        let mut totals = Totals { seeds: 1, ..Totals::default() };
        match outcome {
            Ok(report) => {
                if self.arguments.trace {
                    self.tell_faults(seed, options);
                }
                totals.report = report;
                if let Some(path) = &self.arguments.picture {
                    self.draw(path, seed, options);
                }
            }
            Err(failure) => {
                if self.arguments.trace {
                    failure.faults.iter().for_each(|fault| say(&format!("{fault}")));
                }
                self.tell(&failure);
                totals.report = failure.report.clone();
                totals.failures.push(*failure);
            }
        }
        self.end(&totals, None)
    }

    fn tell_faults(&self, seed: u64, options: &Options) {
        for fault in crate::faults_of(seed, options) {
            say(&format!("{fault}"));
        }
    }

    /// Seeds one after the other, with a progress bar.
    fn many(&self, options: &Options) -> End {
        let Arguments { seed, seeds, minutes, twice, .. } = self.arguments;
        let range = match (seed, seeds, minutes) {
            (Some(seed), ..) => *seed..seed.saturating_add(1),
            (None, Some(seeds), _) => seeds.clone(),
            (None, None, Some(_)) => {
                let from = fresh();
                say(&format!("seeds from {from}"));
                from..u64::MAX
            }
            (None, None, None) => USUAL_SEEDS,
        };
        let began = Instant::now();
        let bar = Bar::new(&range, *minutes, began);
        let plan = Campaign {
            seeds: range.clone(),
            until: minutes.map(|minutes| began + minutes),
            twice_every: if *twice { 1 } else { TWICE_EVERY },
            failures_max: FAILURES_MAX,
            options: options.clone(),
        };
        let told = AtomicUsize::new(0);
        let totals = campaign(&plan, &|totals| {
            // Whoever stops a long campaign, or loses it, has what it found: nothing waits for the end.
            let before = told.swap(totals.failures.len(), Ordering::Relaxed);
            for failure in &totals.failures[before..] {
                bar.aside(|| self.tell(failure));
            }
            bar.show(totals);
        });
        bar.end();
        let ledger = self.arguments.ledger.as_deref();
        if let Some(path) = ledger
            && let Err(error) = ledger::append(path, &totals)
        {
            complain(&format!("rusty-raft: {}: {error}", path.display()));
            return End::BadArguments;
        }
        if let Some(path) = &self.arguments.picture
            && totals.failures.is_empty()
        {
            self.draw(path, range.start, options);
        }
        self.end(&totals, Some(began.elapsed()))
    }

    /// A seed has failed.
    fn tell(&self, failure: &Failure) {
        say(&told(failure));
        say(&format!("    again with: {}", self.again(failure)));
    }

    /// Failures made small, what happened how often, sums.
    fn end(&self, totals: &Totals, took: Option<Duration>) -> End {
        for (nth, failure) in totals.failures.iter().enumerate() {
            let shrinks = nth < SHRUNK_MAX && self.arguments.shrink > 0 && failure.shrinks();
            let small = shrinks.then(|| self.shrink(failure));
            let small = small.as_deref().unwrap_or(failure);
            if nth == 0
                && let Some(path) = &self.arguments.picture
            {
                self.draw(path, small.seed, &small.options);
            }
        }
        let (missing, required) = totals.missing_marks();
        if self.arguments.marks {
            for (name, count) in totals.report.marks.iter() {
                say(&format!("{count:>10} {name}"));
            }
            for name in &missing {
                say(&format!("     never {name}"));
            }
        }
        say(&summary(totals, took));
        if took.is_some() {
            let hit = required - missing.len();
            let share = 100 * hit / required.max(1);
            say(&format!("{hit} of {required} required marks hit ({share} %)"));
        }
        let bad = !totals.failures.is_empty() || self.arguments.marks && !missing.is_empty();
        if bad { End::Failed } else { End::Fine }
    }

    /// Tells with how few faults a seed fails.
    fn shrink(&self, failure: &Failure) -> Box<Failure> {
        let shrunk = shrink(failure, Duration::from_secs(self.arguments.shrink), run);
        let small = shrunk.failure;
        let (count, runs) = (small.faults.len(), shrunk.runs);
        let minimal = if shrunk.minimal { ", none of which can be left out" } else { "" };
        let (seed, before) = (failure.seed, shrunk.before);
        say(&format!(
            "seed {seed} fails with {count} of {before} faults{minimal} ({runs} runs tried):"
        ));
        for fault in &small.faults {
            say(&format!("    {fault}"));
        }
        let (at, what) = (Seconds(small.report.micros), first_line(&small.what));
        say(&format!("            {at}  fails: {what}"));
        say(&format!("    again with: {}", self.again(&small)));
        small
    }

    fn again(&self, failure: &Failure) -> String {
        let mut text = format!("{} {}", self.program, failure.arguments());
        #[cfg(mutants)]
        if let Some(mutant) = self.arguments.mutant {
            text += &format!(" --mutant {mutant}");
        }
        if !failure.shrinks() {
            text += " --twice";
        }
        text
    }

    fn draw(&self, path: &Path, seed: u64, options: &Options) {
        let failure = run(seed, options).err();
        let arguments = failure.map_or_else(|| format!("--seed {seed}"), |f| f.arguments());
        let page = picture(seed, options, &format!("{} {arguments}", self.program));
        match fs::write(path, page) {
            Ok(()) => say(&format!("    picture: {}", path.display())),
            Err(error) => complain(&format!("rusty-raft: {}: {error}", path.display())),
        }
    }
}

/// What a failing seed did, in full.
fn told(failure: &Failure) -> String {
    let Failure { seed, what, faults, profile, report, .. } = failure;
    let (at, count) = (Seconds(report.micros), faults.len());
    format!("seed {seed} fails at {at} after {count} faults: {what}\n    {profile:?}")
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Seeds that nobody has tried: they begin with the microsecond of now.
fn fresh() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or_default()
}

fn summary(totals: &Totals, took: Option<Duration>) -> String {
    let Totals { seeds, report, failures } = totals;
    let crate::Report { events, acked, reads, unknown, crashes, faults, micros, .. } = report;
    let failed = failures.len();
    let mut text = format!(
        "{seeds} seeds, {failed} failed; {events} events in {} simulated, {acked} writes acknowledged, {reads} reads, \
         {unknown} unknown, {faults} faults, {crashes} crashes",
        Seconds(*micros)
    );
    if let Some(took) = took {
        let real = took.as_secs_f64().max(0.001);
        let (rate, times) = (rate(*events, took), hours(*micros) * 3600.0 / real);
        text += &format!("; {real:.1} s real, {rate} events/s, {times:.0} times real time");
    }
    text
}

fn hours(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64() / 3600.0
}

fn rate(events: u64, took: Duration) -> HumanCount {
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    HumanCount(events.saturating_mul(1000) / millis)
}

/// A virtual time for people.
struct Seconds(u64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:06} s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// The progress bar; nothing where standard error is no terminal.
struct Bar {
    bar: ProgressBar,
    by_time: Option<Duration>,
    began: Instant,
}

impl Bar {
    fn new(seeds: &Range<u64>, by_time: Option<Duration>, began: Instant) -> Self {
        let length = match by_time {
            Some(time) => u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            None => seeds.end - seeds.start,
        };
        let bar = if io::stderr().is_terminal() {
            ProgressBar::new(length)
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{bar:30} {elapsed_precise} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, by_time, began }
    }

    fn show(&self, totals: &Totals) {
        if self.bar.is_hidden() {
            return;
        }
        let took = self.began.elapsed();
        let done = match self.by_time {
            Some(_) => u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            None => totals.seeds,
        };
        self.bar.set_position(done);
        let (missing, required) = totals.missing_marks();
        let crate::Report { events, faults, micros, .. } = &totals.report;
        self.bar.set_message(format!(
            "{} seeds, {} events/s, {:.2} h simulated, {} faults, {} of {required} marks, {} failed",
            totals.seeds,
            rate(*events, took),
            hours(*micros),
            HumanCount(*faults),
            required - missing.len(),
            totals.failures.len()
        ));
    }

    /// Prints without tearing the bar.
    fn aside(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// What the members log goes to standard error, with the virtual time.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("raft=debug"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(Virtual)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

struct Virtual;

impl FormatTime for Virtual {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        match virtual_time() {
            Some(now) => write!(writer, "{}", Seconds(now)),
            None => Ok(()),
        }
    }
}

/// Prints to standard output; what cannot be printed is lost.
fn say(text: &str) {
    writeln!(io::stdout().lock(), "{text}").ok();
}

/// Prints to standard error; what cannot be printed is lost.
fn complain(text: &str) {
    writeln!(io::stderr().lock(), "{text}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type() {
        assert_eq!(seeds("0..1000"), Ok(0..1000));
        for bad in ["", "7", "3..3", "9..1", "a..b", "-1..4"] {
            assert!(seeds(bad).is_err(), "{bad}");
        }
        assert_eq!(minutes("0.5"), Ok(Duration::from_secs(30)));
        for bad in ["", "0", "-3", "ten", "nan", "inf"] {
            assert!(minutes(bad).is_err(), "{bad}");
        }
        assert_eq!(only("3, 17,20").unwrap().0, BTreeSet::from([3, 17, 20]));
        assert!(only("none").unwrap().0.is_empty() && only("x").is_err() && only("").is_err());
        let two = BTreeSet::from([FaultClass::Crash, FaultClass::Partition]);
        assert_eq!(classes("partition,crash").unwrap().0, two);
        let error = classes("crash,earthquake").unwrap_err();
        assert!(error.contains("\"earthquake\"") && error.contains("blackout"), "{error}");
    }
}
