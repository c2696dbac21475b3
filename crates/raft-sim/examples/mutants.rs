//! Deliberate bugs that the seeds must kill, under the same profiles as every other run (docs/testing.md):
//! `RUSTFLAGS="--cfg mutants" cargo run --release -p rusty-raft-sim --example mutants --target-dir target/mutants`, with
//! the numbers of the bugs as arguments, all without. `--runs N`: each so many times, with other seeds each time;
//! `--limit SECONDS`: the time in which each must be found, 60 without. Time is that of the processors divided by their
//! number, so that whatever else runs on the machine does not count.
//!
//! It fails when a bug that is expected to be found is not. Those that no seed finds yet are listed with the reason;
//! they run for a shorter time, and one that is found after all is reported, so that the list stays true.

use std::process::ExitCode;

fn main() -> ExitCode {
    real::main()
}

#[cfg(not(mutants))]
mod real {
    use std::io::Write as _;
    use std::process::ExitCode;

    pub(super) fn main() -> ExitCode {
        drop(writeln!(std::io::stderr(), "build with RUSTFLAGS=\"--cfg mutants\""));
        ExitCode::from(2)
    }
}

#[cfg(mutants)]
mod real {
    use std::io::Write as _;
    use std::process::ExitCode;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::Duration;

    use raft_core::mutant;
    use raft_sim::{Failure, Options, run};

    /// Within this many seconds, on all processors, each must be found.
    const LIMIT: u64 = 60;

    /// Those that nothing is expected of get at most this many.
    const SHORT_LIMIT: u64 = 10;

    /// Number, what it breaks.
    const ALL: [(u32, &str); 42] = [
        (1, "replicas of older terms counted"),
        (2, "vote sent before it is synced"),
        (3, "acknowledgement sent before it is synced"),
        (4, "the leader counts itself before its own sync"),
        (5, "vote not persisted"),
        (6, "second vote in a term"),
        (7, "up-to-date by index before term"),
        (8, "any AppendEntries truncates"),
        (9, "commit index told and taken without regard to the match"),
        (10, "quorum index of unsorted positions"),
        (11, "acknowledgement of an earlier term accepted"),
        (12, "match index not reset on election"),
        (13, "read before an own-term commit"),
        (14, "read confirmed by an older round"),
        (15, "read without a round"),
        (16, "lease survives a handover"),
        (17, "voters changed without a joint configuration"),
        (18, "configuration changed before an own-term commit"),
        (19, "learners counted"),
        (20, "configuration not rolled back"),
        (21, "replay keeps what was truncated at a snapshot"),
        (22, "an installed snapshot keeps the suffix"),
        (23, "snapshot before the log is synced"),
        (24, "snapshot with the newest configuration"),
        (25, "damaged tail dropped silently"),
        (26, "sync error ignored"),
        (27, "directory not synced after create"),
        (28, "checksum omits the place"),
        (29, "damaged answered as \"never had\""),
        (30, "a wiped member returns with its old identity"),
        (31, "a checkpoint's picture taken before the entries that it names"),
        (32, "keys deleted in the order of their hashes"),
        (33, "sessions not in the snapshot"),
        (34, "a pre-vote's term is adopted"),
        (35, "a refused pre-vote's term is not adopted"),
        (36, "no snapshot for whom the log was compacted away"),
        (37, "window not emptied when replication begins anew, nor by later answers"),
        (38, "a leader that hears nobody stays"),
        (
            39,
            "leases end by what a leader knew that has slept, or leads no more (three guards off)",
        ),
        (40, "watchers hear of progress ahead of the events"),
        (41, "a live leader is not defended (the other half of 34)"),
        (42, "compaction drops the tombstones of its own revision (the other half of 40)"),
    ];

    /// Those that no seed finds, and why.
    const NOT_FOUND: [(u32, &str); 2] = [
        (28, "not by the misplaced writes that are drawn; crates/raft/tests/log finds it"),
        (29, "not by the rot that is drawn; crates/raft/tests/log finds it"),
    ];

    struct Kill {
        failure: Box<Failure>,
        after: Duration,
    }

    /// Processor time of this process, of each processor.
    fn worked(workers: u32) -> Duration {
        let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::try_from(spent).unwrap_or_default() / workers
    }

    /// Runs seeds on all processors until one fails.
    fn kill(from: u64, limit: Duration) -> Option<Kill> {
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let share = u32::try_from(workers).unwrap_or(1);
        let began = worked(share);
        let elapsed = || worked(share).saturating_sub(began);
        let (next, done) = (AtomicU64::new(from), AtomicBool::new(false));
        let found: Mutex<Option<Kill>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) && elapsed() < limit {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if let Err(failure) = run(seed, &Options::default()) {
                            done.store(true, Ordering::Relaxed);
                            let kill = Kill { failure, after: elapsed() };
                            let mut found =
                                found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                            found.get_or_insert(kill);
                        }
                    }
                });
            }
        });
        found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn argument(name: &str) -> Option<u64> {
        let arguments: Vec<String> = std::env::args().collect();
        let position = arguments.iter().position(|argument| argument == name)?;
        arguments.get(position + 1)?.parse().ok()
    }

    pub(super) fn main() -> ExitCode {
        let runs = argument("--runs").unwrap_or(1);
        let mut arguments = std::env::args().skip(1);
        let mut chosen: Vec<u32> = Vec::new();
        while let Some(argument) = arguments.next() {
            match argument.parse() {
                Ok(number) => chosen.push(number),
                Err(_) => drop(arguments.next()),
            }
        }
        std::panic::set_hook(Box::new(|_| {}));
        let mut out = std::io::stdout();
        let limit = argument("--limit").unwrap_or(LIMIT);
        let mut survivors = 0;
        drop(writeln!(
            out,
            "| # | bug | killed | median s | first seed | by |\n|---|---|---|---|---|---|"
        ));
        for (number, what) in ALL {
            if !chosen.is_empty() && !chosen.contains(&number) {
                continue;
            }
            mutant::activate(number);
            let excuse = NOT_FOUND.iter().find(|(excused, _)| *excused == number);
            let limit =
                Duration::from_secs(if excuse.is_some() { limit.min(SHORT_LIMIT) } else { limit });
            let mut kills: Vec<Kill> =
                (0..runs).filter_map(|turn| kill(1_000_000 * turn, limit)).collect();
            let count = u64::try_from(kills.len()).unwrap_or(u64::MAX);
            let first = kills.first().map(|kill| {
                let line = kill.failure.what.lines().next().unwrap_or_default();
                let line: String = line.chars().take(90).collect();
                format!("{} | {line}", kill.failure.seed)
            });
            kills.sort_by_key(|kill| kill.after);
            let median = kills.get(kills.len() / 2).map_or(limit, |kill| kill.after);
            let by = match (first, excuse) {
                (Some(first), None) => first,
                (Some(first), Some(_)) => format!("{first}; FOUND, though listed as not found"),
                (None, Some((_, why))) => format!("| not expected: {why}"),
                (None, None) => String::from("| "),
            };
            survivors += u32::from(excuse.is_none() && 20 * count < 19 * runs);
            drop(writeln!(
                out,
                "| {number} | {what} | {count}/{runs} | {:.1} | {by} |",
                median.as_secs_f64(),
            ));
        }
        if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
