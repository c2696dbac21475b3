//! `RUSTFLAGS="--cfg mutants" cargo test -p rusty-raft --test log mutants`: every deliberate bug of the log
//! fails the tests that are named here.

use std::process::{Command, Stdio};

/// The bug's number in docs/testing.md, and a test that fails with it.
const KILLS: &[(u32, &str)] = &[
    (21, "damage::mutation_21_a_truncation_below_the_beginning_counts"),
    (22, "crash::crash_at_every_operation"),
    (25, "damage::an_acknowledged_tail_that_is_gone_comes_back"),
    (28, "damage::a_misdirected_write_is_no_record_of_another_place"),
    (29, "damage::damaged_entries_that_a_snapshot_includes_are_left_out"),
    (26, "crash::the_first_failed_sync_latches"),
    (27, "crash::crash_at_every_operation"),
];

#[test]
fn every_deliberate_bug_is_found() {
    for (number, test) in [(0, "crash::crash_at_every_operation")].iter().chain(KILLS) {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env("MUTANT", number.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.success(), *number == 0, "mutant {number}, {test}");
    }
}
