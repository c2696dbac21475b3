//! Runs seeds: `cargo run -p rusty-raft-sim --example sim -- --seeds 0..1000`, or `--seeds 17` for one. `--twice`
//! runs each two times and compares. Built with `--cfg mutants`, `MUTANT=3` turns deliberate bug 3 on. With `RUST_LOG=raft=debug` the members tell what they do.

use std::io::Write as _;
use std::process::ExitCode;

use raft_sim::{Options, Report, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(seeds) = parse(&arguments) else {
        let usage = "usage: sim --seeds A..B | --seeds N   [--twice]";
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
    let options = Options::default();
    let mut total = Report::default();
    let mut failed = 0;
    for seed in seeds {
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
    drop(writeln!(std::io::stdout(), "{total:?}, {failed} failed"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(arguments: &[String]) -> Option<std::ops::Range<u64>> {
    let position = arguments.iter().position(|argument| argument == "--seeds")?;
    let text = arguments.get(position + 1)?;
    match text.split_once("..") {
        Some((from, to)) => Some(from.parse().ok()?..to.parse().ok()?),
        None => text.parse().ok().map(|seed: u64| seed..seed + 1),
    }
}
