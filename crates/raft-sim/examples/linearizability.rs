//! Measures the linearizability checker: many operations of 60 clients on one store, right, with some answers lost, and
//! with one stale read.
//!
//! ```text
//! cargo run --release -p rusty-raft-sim --example linearizability -- 1000000
//! ```

#![expect(clippy::print_stdout, reason = "its output is for people")]

use std::collections::BTreeMap;
use std::time::Instant;

use raft_core::Rng;
use raft_sim::linearizability::{
    Answer, History, Key, Operation, Request, Response, Stored, Value, Verdict, by_keys,
    by_revisions,
};

const CLIENTS: u64 = 60;
const KEYS: u64 = 1000;

fn main() {
    let count = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let history = history(count);
    report("by revisions", &history, by_revisions);
    report("by keys", &history, by_keys);

    let mut lost = history.clone();
    let step = (lost.operations.len() / 48).max(1);
    for operation in lost.operations.iter_mut().step_by(step) {
        operation.answer = None;
    }
    report("by revisions, 48 answers lost", &lost, by_revisions);

    let mut stale = history;
    let middle = stale.operations.len() / 2;
    let read = stale.operations[middle..].iter_mut().find_map(|operation| {
        match operation.answer.as_mut()? {
            Answer { revision, response: Response::Get(Some(_)), .. } => Some(revision),
            Answer { .. } => None,
        }
    });
    if let Some(revision) = read {
        *revision -= CLIENTS * 4;
    }
    report("by revisions, one stale read", &stale, by_revisions);
}

fn report(what: &str, history: &History, check: impl Fn(&History) -> Verdict) {
    let began = Instant::now();
    let verdict = check(history);
    let millis = began.elapsed().as_millis();
    let verdict = match verdict {
        Verdict::Violation(violation) => violation.explain(history),
        Verdict::Linearizable => "linearizable".to_owned(),
        Verdict::Undecided { configurations } => format!("undecided after {configurations}"),
    };
    println!("{what}: {} operations in {millis} ms: {verdict}", history.operations.len());
}

/// Half puts, half reads; every client always has one operation under way, and each takes effect at a random moment of
/// its time.
fn history(count: u64) -> History {
    let mut rng = Rng::new(1);
    let mut planned: Vec<(u64, u64, u64, u32)> = Vec::new();
    let mut free = vec![0u64; usize::try_from(CLIENTS).unwrap_or(1)];
    for number in 0..count {
        let client = number % CLIENTS;
        let Some(at) = usize::try_from(client).ok().and_then(|client| free.get_mut(client)) else {
            continue;
        };
        let called = *at + 1 + rng.below(100);
        let effect = called + rng.below(1000);
        let returned = effect + rng.below(1000);
        *at = returned;
        planned.push((effect, called, returned, u32::try_from(client).unwrap_or(0)));
    }
    planned.sort_unstable();
    let mut history = History::new();
    let mut store: BTreeMap<Key, Stored> = BTreeMap::new();
    let mut revision = history.first_revision;
    for (_, called, returned, client) in planned {
        let key = Key(u32::try_from(rng.below(KEYS)).unwrap_or(0));
        let (request, response) = if rng.chance(1, 2) {
            revision += 1;
            let value = Value(revision);
            store.insert(key, Stored { value, mod_revision: revision });
            (Request::Put(key, value), Response::Put)
        } else {
            (Request::Get(key), Response::Get(store.get(&key).copied()))
        };
        let answer = Some(Answer { returned, revision, response });
        history.operations.push(Operation { client, called, request, answer });
    }
    history
}
