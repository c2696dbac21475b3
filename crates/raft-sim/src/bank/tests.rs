//! The bank's checks see what they are there for: one answer of a sound run is tampered with.

use raft_core::{EntryId, Index, NodeId, Rng};
use raft_kv::proto::etcdserverpb::RangeResponse;
use raft_kv::{Answer, Command, KvError, Response, Store};

use super::Bank;
use crate::marks::Marks;
use crate::profile::{Options, Profile};
use crate::run::run_with;
use crate::workload::{Ask, Call, Workload};

/// The same clients, of whom one is told something else once.
struct Tampered {
    bank: Bank,
    /// Changes an answer; false, if it cannot be changed in this way.
    tamper: fn(&mut RangeResponse, first: &RangeResponse) -> bool,
    /// The first answer with accounts.
    first: Option<RangeResponse>,
    done: bool,
}

impl Workload for Tampered {
    type Machine = Store;

    fn machine(&self) -> Store {
        self.bank.machine()
    }

    fn ask(&mut self, call: &Call, rng: &mut Rng) -> Ask<Store> {
        self.bank.ask(call, rng)
    }

    fn command(&mut self, call: &Call, rng: &mut Rng) -> Command {
        self.bank.command(call, rng)
    }

    fn applied(&mut self, call: &Call, at: EntryId, command: Command) {
        self.bank.applied(call, at, command);
    }

    fn responded(&mut self, call: &Call, now: u64, response: Result<Response, KvError>) {
        self.bank.responded(call, now, response);
    }

    fn refused(&mut self, call: &Call) {
        self.bank.refused(call);
    }

    fn answered(&mut self, call: &Call, now: u64, mut answer: Result<Answer, KvError>) -> Index {
        if let Ok(Answer::Range(response)) = &mut answer
            && response.kvs.iter().any(|pair| pair.key.starts_with(b"account/"))
        {
            let first = self.first.get_or_insert_with(|| response.clone());
            if !self.done {
                self.done = (self.tamper)(response, first);
            }
        }
        self.bank.answered(call, now, answer)
    }

    fn answered_stale(&mut self, call: &Call, now: u64, answer: Result<Answer, KvError>) {
        self.bank.answered_stale(call, now, answer);
    }

    fn look(&mut self, node: NodeId, applied: Index, machine: &Store) {
        self.bank.look(node, applied, machine);
    }

    fn end(&mut self, marks: &mut Marks) {
        assert!(self.done, "{UNTOUCHED}");
        self.bank.end(marks);
    }
}

/// A run in which nothing could be tampered with.
const UNTOUCHED: &str = "nothing was tampered with";

/// What the first seed says in which something could be tampered with.
fn seen(tamper: fn(&mut RangeResponse, &RangeResponse) -> bool) -> String {
    let load = |profile: &Profile| {
        let bank = Bank::new(profile);
        Tampered { bank, tamper, first: None, done: false }
    };
    let mut runs = (0..40).map(|seed| {
        let run = run_with(seed, &Options::default(), load);
        run.expect_err("it is seen").what
    });
    runs.find(|what| what != UNTOUCHED).expect("a seed with many answers")
}

fn revision(response: &RangeResponse) -> i64 {
    response.header.as_ref().map_or(0, |header| header.revision)
}

#[test]
fn a_stale_answer_is_seen() {
    let what = seen(|response, first| {
        let late = revision(response) > revision(first) + 20;
        if late {
            *response = first.clone();
        }
        late
    });
    assert!(what.contains("had been answered before"), "{what}");
}

#[test]
fn money_that_comes_from_nowhere_is_seen() {
    let what = seen(|response, _| {
        let Some(pair) = response.kvs.first_mut() else { return false };
        pair.value = [&b"1"[..], &pair.value].concat().into();
        true
    });
    assert!(what.contains("accounts hold"), "{what}");
}

#[test]
fn a_lost_account_is_seen() {
    let what = seen(|response, _| response.kvs.pop().is_some());
    assert!(what.contains("accounts hold"), "{what}");
}

#[test]
fn another_past_is_seen() {
    let what = seen(|response, first| {
        let late = revision(response) > revision(first);
        // The sum is right, and the revision that of the present: the accounts are those of the past.
        if late {
            response.kvs.clone_from(&first.kvs);
        }
        late
    });
    assert!(what.contains("acknowledged") || what.contains("showed"), "{what}");
}

#[test]
fn sound_runs_move_money() {
    let mut marks = Marks::default();
    for seed in 0..4 {
        let run = run_with(seed, &Options::default(), Bank::new);
        marks.add(&run.unwrap_or_else(|failure| panic!("{failure}")).marks);
    }
    assert!(marks.count("bank: transfer") > 10);
    assert!(marks.count("bank: all accounts") > 10);
}
