//! Some seeds in every `cargo test`; CI runs a thousand with the example `sim`.

use raft_sim::{Options, Report, run};

/// Seeds that failed once, with a word on why.
const FIXED: &str = include_str!("seeds.txt");

fn check(seed: u64) -> Report {
    run(seed, &Options::default()).unwrap_or_else(|failure| panic!("{failure}"))
}

/// Sixteen seeds on all processors; each run is one thread's.
#[test]
fn sixteen_seeds() {
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let acked: u64 = std::thread::scope(|scope| {
        let work = move |worker: usize| {
            let mut acked = 0;
            for seed in (0..16).skip(worker).step_by(workers) {
                let report = check(seed);
                acked += report.acked;
                // The same seed is the same run.
                if seed % 20 == 0 {
                    assert_eq!(report, check(seed), "seed {seed} is not deterministic");
                }
            }
            acked
        };
        let running: Vec<_> =
            (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        running.into_iter().map(|worker| worker.join().expect("a seed failed")).sum()
    });
    assert!(acked > 1000, "only {acked} writes in sixteen seeds");
}

#[test]
fn seeds_that_failed_once() {
    for line in FIXED.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let seed = line.split_whitespace().next().and_then(|seed| seed.parse().ok());
        check(seed.expect("each line begins with a seed"));
    }
}
