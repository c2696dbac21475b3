//! What the history is good for: a stale read that the model never hears of.

use raft_core::{EntryId, Index, Rng};
use raft_kv::{Command, KvError, Response, Store};

use super::KeyValue;
use super::translate;
use crate::marks::Marks;
use crate::profile::{Options, Profile};
use crate::run::run_with;
use crate::workload::{Ask, Call, Workload};

/// The same clients, of whom one is told once what was so at the beginning, and only the recorder hears of it.
struct StaleOnce {
    clients: KeyValue,
    /// The first answer to any read.
    first: Option<raft_kv::Answer>,
    reads: u64,
}

/// Which read is the stale one.
const STALE: u64 = 40;
/// A run that does not get that far.
const FEW_READS: &str = "too few reads for a stale one";

impl Workload for StaleOnce {
    type Machine = Store;

    fn machine(&self) -> Store {
        self.clients.machine()
    }

    fn ask(&mut self, call: &Call, rng: &mut Rng) -> Ask<Store> {
        self.clients.ask(call, rng)
    }

    fn applied(&mut self, call: &Call, at: EntryId, command: Command) {
        self.clients.applied(call, at, command);
    }

    fn responded(&mut self, call: &Call, now: u64, response: Result<Response, KvError>) {
        self.clients.responded(call, now, response);
    }

    fn refused(&mut self, call: &Call) {
        self.clients.refused(call);
    }

    fn answered(
        &mut self,
        call: &Call,
        now: u64,
        answer: Result<raft_kv::Answer, KvError>,
    ) -> Index {
        self.reads += 1;
        if let (Ok(answer), None) = (&answer, &self.first) {
            self.first = Some(answer.clone());
        }
        match &self.first {
            Some(raft_kv::Answer::Range(stale)) if self.reads == STALE => {
                let (revision, found) = translate::read_answer(stale);
                self.clients.recorder.read(call, now, revision, found.as_ref());
                Index::ZERO
            }
            _ => self.clients.answered(call, now, answer),
        }
    }

    fn end(&mut self, marks: &mut Marks) {
        assert!(self.reads >= STALE, "{FEW_READS}");
        self.clients.end(marks);
    }
}

#[test]
fn a_single_stale_read_is_found_in_the_history() {
    let load = |profile: &Profile| {
        let mut profile = profile.clone();
        // One key: whatever was read first is another state of the one that is read later.
        profile.keys = 1;
        StaleOnce { clients: KeyValue::new(&profile), first: None, reads: 0 }
    };
    let mut runs = (0..40).map(|seed| {
        let run = run_with(seed, &Options::default(), load);
        run.expect_err("it is found").what
    });
    let what = runs.find(|what| what != FEW_READS).expect("a seed with many reads");
    assert!(what.starts_with("I13: the history is not linearizable"), "{what}");
}

#[test]
fn without_one_there_is_nothing_to_find() {
    let report = run_with(0, &Options::default(), KeyValue::new).expect("a sound seed");
    assert_eq!(report.marks.count("history: linearizable"), 1);
}
