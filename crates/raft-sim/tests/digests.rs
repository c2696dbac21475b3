//! The same seeds are the same runs on every machine, in debug and in release builds: their digests are written down in
//! `digests.txt`. A digest is of everything that happened and of every byte that any disk was given, so that it changes with
//! whatever changes what members send, write or draw. If that was meant, write them anew, after every merge of two
//! such changes, too:
//!
//! ```text
//! UPDATE_GOLDENFILES=1 cargo test -p rusty-raft-sim --test digests
//! ```

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use raft_sim::{Options, run};

/// Seeds of all workloads, and the simulated time of each under faults: as much as takes a debug build a second.
const SEEDS: std::ops::Range<u64> = 0..12;
const FAULTY: Duration = Duration::from_secs(1);

#[test]
fn digests_are_those_that_were_written_down() {
    let options = Options { faulty: FAULTY, ..Options::default() };
    let mut found = String::from("# seed, digest of the run, events: see digests.rs\n");
    for seed in SEEDS {
        let report = run(seed, &options).unwrap_or_else(|failure| panic!("{failure}"));
        let (digest, events) = (report.trace, report.events);
        writeln!(found, "{seed} {digest:016x} {events}").expect("strings take everything");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/digests.txt");
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(&path, &found).expect("the file can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == found,
        "written down is\n{written}and found\n{found}If members are meant to do something else than before: \
         UPDATE_GOLDENFILES=1 cargo test -p rusty-raft-sim --test digests"
    );
}
