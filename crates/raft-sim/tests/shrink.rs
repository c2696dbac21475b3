//! A failing run is made small. Only with the deliberate bugs is there one:
//! `RUSTFLAGS="--cfg mutants" cargo test -p rusty-raft-sim --test shrink --target-dir target/mutants`.
#![cfg(mutants)]

use std::time::Duration;

use raft_core::mutant;
use raft_sim::{Options, run, shrink};

#[test]
fn a_run_that_fails_is_made_small_and_fails_in_the_same_way() {
    std::panic::set_hook(Box::new(|_| {}));
    // What the members of a failing run need: a crash at the right moment, a change of the membership, a disk's fault.
    for number in [4, 17, 25] {
        mutant::activate(number);
        let failing = (0..500).find_map(|seed| run(seed, &Options::default()).err());
        let Some(failure) = failing else { panic!("no seed finds deliberate bug {number}") };
        let shrunk = shrink(&failure, Duration::from_secs(20), run);
        let small = &shrunk.failure;
        assert!(
            small.faults.len() < failure.faults.len() && small.faults.len() < 50,
            "bug {number}: {} faults of {} are left",
            small.faults.len(),
            failure.faults.len()
        );
        let again = run(small.seed, &small.options).err();
        let again = again.unwrap_or_else(|| panic!("bug {number}: the small run does not fail"));
        assert_eq!((again.rule(), &again.what), (failure.rule(), &small.what));
        assert_eq!(again.faults, small.faults);
    }
}
