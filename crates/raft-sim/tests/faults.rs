//! Faults that can be left out one by one, and the picture of a run.

use std::collections::BTreeSet;
use std::time::Duration;

use raft_sim::{FaultClass, Options, faults_of, picture, run};

/// A seed with many kinds of faults.
const SEED: u64 = 9;

fn only(numbers: impl IntoIterator<Item = u64>) -> Options {
    Options { only: Some(numbers.into_iter().collect()), ..Options::default() }
}

#[test]
fn leaving_a_fault_out_shifts_none_before_it_and_adds_none() {
    let all = faults_of(SEED, &Options::default());
    let numbers: BTreeSet<u64> = all.iter().map(|fault| fault.number).collect();
    assert!(all.len() > 20, "only {} faults", all.len());
    let whole = run(SEED, &Options::default()).unwrap_or_else(|failure| panic!("{failure}"));
    let named = run(SEED, &only(numbers.clone())).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(whole, named, "naming all of them is naming none");

    let (left_out, before) = (&all[all.len() / 2], &all[..all.len() / 2]);
    let rest = numbers.iter().copied().filter(|number| *number != left_out.number);
    let others = faults_of(SEED, &only(rest));
    assert_eq!(&others[..before.len()], before);
    assert!(others.iter().all(|fault| fault.number != left_out.number));
    assert!(others.iter().all(|fault| numbers.contains(&fault.number)));
}

#[test]
fn without_faults_nothing_fails() {
    for options in [only([]), Options { faults: Some(BTreeSet::new()), ..Options::default() }] {
        let report = run(SEED, &options).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!((report.crashes, report.faults), (0, 0));
    }
}

#[test]
fn nobody_dies_where_no_faults_are_wanted() {
    // Some of these seeds would end with no more than a quorum of the members.
    let options = Options {
        faults: Some(BTreeSet::new()),
        faulty: Duration::from_millis(500),
        ..Options::default()
    };
    for seed in 0..12 {
        let report = run(seed, &options).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!((report.crashes, report.faults), (0, 0), "seed {seed}");
    }
}

#[test]
fn the_classes_that_are_asked_for_happen_and_no_others() {
    let options = Options { faults: Some([FaultClass::Pause].into()), ..Options::default() };
    let faults: Vec<_> = (0..4).flat_map(|seed| faults_of(seed, &options)).collect();
    assert!(!faults.is_empty());
    assert!(faults.iter().all(|fault| fault.what.contains(" is paused for ")), "{faults:?}");
}

#[test]
fn a_picture_shows_every_machine_and_is_bounded() {
    let options = Options { members: Some(5), ..Options::default() };
    let page = picture(SEED, &options, "sim <again>");
    for name in ["n1", "n2", "n3", "n4", "n5"] {
        assert!(page.contains(&format!(">{name}</text>")), "{name} has no line");
    }
    assert!(page.contains("sim &lt;again&gt;") && page.contains("leads term"));
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
}
