//! Runs seeds: `cargo run -p rusty-raft-sim --example sim -- --seeds 0..1000`, or `--seeds 17` for one. `--twice`
//! runs each two times and compares, `--marks` tells what happened and demands what tests/marks.txt lists. Built with `--cfg mutants`, `MUTANT=3` turns deliberate bug 3 on. With `RUST_LOG=raft=debug` the members tell what they do.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use raft_sim::{Options, Report, run};

/// What a thousand seeds must do at least once.
const REQUIRED: &str = include_str!("../tests/marks.txt");

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(seeds) = parse(&arguments) else {
        let usage = "usage: sim --seeds A..B | --seeds N   [--twice] [--marks]";
        drop(writeln!(std::io::stderr(), "{usage}"));
        return ExitCode::from(2);
    };
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
    }
    let twice = arguments.iter().any(|argument| argument == "--twice");
    #[cfg(mutants)]
    if let Some(number) = std::env::var("MUTANT").ok().and_then(|text| text.parse().ok()) {
        raft_core::mutant::activate(number);
    }
    let next = AtomicU64::new(seeds.start);
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut total = Report::default();
    let mut failed = 0;
    std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..workers).map(|_| scope.spawn(|| work(&next, seeds.end, twice))).collect();
        for worker in running {
            // A seed's own panic is its failure; one of the worker's is a bug here.
            let Ok((report, failures)) = worker.join() else { continue };
            total.add(&report);
            failed += failures;
        }
    });
    let missing = report(&total, failed, arguments.iter().any(|argument| argument == "--marks"));
    if failed == 0 && missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs seeds until there are none left.
fn work(next: &AtomicU64, end: u64, twice: bool) -> (Report, u64) {
    let options = Options::default();
    let mut total = Report::default();
    let mut failed = 0;
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return (total, failed);
        }
        match run(seed, &options) {
            Ok(report) => {
                if twice && run(seed, &options).ok().as_ref() != Some(&report) {
                    drop(writeln!(std::io::stdout(), "seed {seed} is not deterministic"));
                    failed += 1;
                }
                total.add(&report);
            }
            Err(failure) => {
                drop(writeln!(std::io::stdout(), "{failure}"));
                failed += 1;
            }
        }
    }
}

/// Sums up; with `marks` what happened how often, and the number of what should have and did not.
fn report(total: &Report, failed: u64, marks: bool) -> usize {
    let mut out = std::io::stdout();
    let Report { events, acked, reads, unknown, crashes, micros, .. } = total;
    let seconds = micros / 1_000_000;
    drop(writeln!(
        out,
        "{failed} failed; {events} events in {seconds} simulated seconds, {acked} writes acknowledged, {reads} reads, \
         {unknown} unknown, {crashes} crashes"
    ));
    if !marks {
        return 0;
    }
    for (name, count) in total.marks.iter() {
        drop(writeln!(out, "{count:>10} {name}"));
    }
    let required = REQUIRED.lines().filter(|line| !line.starts_with('#'));
    let missing: Vec<&str> = required.filter(|name| total.marks.count(name) == 0).collect();
    for name in &missing {
        drop(writeln!(out, "     never {name}"));
    }
    missing.len()
}

fn parse(arguments: &[String]) -> Option<std::ops::Range<u64>> {
    let position = arguments.iter().position(|argument| argument == "--seeds")?;
    let text = arguments.get(position + 1)?;
    match text.split_once("..") {
        Some((from, to)) => Some(from.parse().ok()?..to.parse().ok()?),
        None => text.parse().ok().map(|seed: u64| seed..seed + 1),
    }
}
