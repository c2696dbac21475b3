//! Some seeds in every `cargo test`; CI runs a thousand with the example `sim`.

use raft_sim::{Options, Report, run};

/// Seeds that failed once, with a word on why.
const FIXED: &str = include_str!("seeds.txt");

fn check(seed: u64) -> Report {
    run(seed, &Options::default()).unwrap_or_else(|failure| panic!("{failure}"))
}

#[test]
fn a_hundred_seeds() {
    let mut acked = 0;
    for seed in 0..100 {
        let report = check(seed);
        acked += report.acked;
        // The same seed is the same run.
        if seed % 20 == 0 {
            assert_eq!(report, check(seed), "seed {seed} is not deterministic");
        }
    }
    assert!(acked > 1000, "only {acked} writes in a hundred seeds");
}

#[test]
fn seeds_that_failed_once() {
    for line in FIXED.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let seed = line.split_whitespace().next().and_then(|seed| seed.parse().ok());
        check(seed.expect("each line begins with a seed"));
    }
}
