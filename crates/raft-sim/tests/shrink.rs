//! A failing run is made small. Only with the deliberate bugs is there one:
//! `RUSTFLAGS="--cfg mutants" cargo test -p rusty-raft-sim --test shrink --target-dir target/mutants`.
#![cfg(mutants)]

use std::time::Duration;

use raft_core::mutant;
use raft_sim::{Options, run, shrink};

#[test]
fn a_run_that_fails_is_made_small_and_fails_in_the_same_way() {
    // What the members of a failing run need: a crash at the right moment, a change of the membership, a disk's fault.
    for number in [4, 17, 26] {
        mutant::activate(number);
        // What a run dies of is told by the run; what this test finds wrong is not.
        std::panic::set_hook(Box::new(|_| {}));
        let fails = |seed| run(seed, &Options::default()).err().filter(|it| it.faults.len() > 4);
        let failing = (0..500).find_map(fails);
        let found = failing.map(|failure| {
            let shrunk = shrink(&failure, Duration::from_secs(20), run);
            let again = run(shrunk.failure.seed, &shrunk.failure.options).err();
            (failure, shrunk.failure, again)
        });
        drop(std::panic::take_hook());
        let Some((failure, small, again)) = found else {
            panic!("no seed finds deliberate bug {number}");
        };
        assert!(
            small.faults.len() < failure.faults.len() && small.faults.len() < 50,
            "bug {number}: {} faults of {} are left",
            small.faults.len(),
            failure.faults.len()
        );
        let again = again.unwrap_or_else(|| panic!("bug {number}: the small run does not fail"));
        assert_eq!((again.rule(), &again.what), (failure.rule(), &small.what));
        assert_eq!(again.faults, small.faults);
    }
}
