//! Deliberate bugs that the seeds must kill, under the same profiles as every other run (docs/testing.md):
//! `RUSTFLAGS="--cfg mutants" cargo run -p rusty-raft-sim --example mutants --target-dir target/mutants`, with the
//! numbers of the bugs as arguments, all of the list without.

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

    use raft_core::mutant;
    use raft_sim::{Options, run};

    /// Within so many seeds each must be found.
    const SEEDS: u64 = 1_000;
    /// Those that this world must kill; the others have the tests that docs/testing.md names.
    const ALL: [u32; 7] = [2, 3, 4, 5, 8, 26, 27];

    pub(super) fn main() -> ExitCode {
        let chosen: Vec<u32> =
            std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
        let chosen = if chosen.is_empty() { ALL.to_vec() } else { chosen };
        std::panic::set_hook(Box::new(|_| {}));
        let mut out = std::io::stdout();
        let mut survivors = 0;
        for number in chosen {
            mutant::activate(number);
            let killed = (0..SEEDS).find_map(|seed| run(seed, &Options::default()).err());
            let verdict = match killed {
                Some(failure) => {
                    let line = failure.what.lines().next().unwrap_or_default().to_owned();
                    format!("killed by seed {}: {line}", failure.seed)
                }
                None => {
                    survivors += 1;
                    format!("survives {SEEDS} seeds")
                }
            };
            drop(writeln!(out, "mutant {number:2} {verdict}"));
        }
        if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
