//! What the clients of a run saw, on the clock of this process, and whether one store would have shown it.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use raft_kv::proto::etcdserverpb::RangeResponse;
use raft_sim::linearizability::{
    Answer, History, Key, Operation, Request, Response, Stored, Value, Verdict, by_revisions,
};

/// What one client saw.
#[derive(Default)]
pub(crate) struct Seen(pub(crate) Vec<Operation>);

/// The values that a client writes are unlike those of the others.
pub(crate) fn value_number(client: usize, number: u64) -> u64 {
    u64::try_from(client + 1).unwrap_or(0) << 32 | number
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

impl Seen {
    /// A client has asked, at `called`.
    pub(crate) fn called(&mut self, client: usize, called: u64, request: Request) {
        let client = u32::try_from(client).unwrap_or(u32::MAX);
        self.0.push(Operation { client, called, request, answer: None });
    }

    /// What it asked for last is done.
    pub(crate) fn written(&mut self, returned: u64, revision: i64) {
        if let Some(operation) = self.0.last_mut() {
            let (revision, response) = (unsigned(revision), Response::Put);
            operation.answer = Some(Answer { returned, revision, response });
        }
    }

    /// What it asked for last is answered.
    pub(crate) fn read(&mut self, returned: u64, found: &RangeResponse) {
        let stored = found.kvs.first().map(|pair| Stored {
            value: Value(std::str::from_utf8(&pair.value).map_or(0, |v| v.parse().unwrap_or(0))),
            mod_revision: unsigned(pair.mod_revision),
        });
        if let Some(operation) = self.0.last_mut() {
            let revision = unsigned(found.header.as_ref().map_or(0, |header| header.revision));
            let response = Response::Get(stored);
            operation.answer = Some(Answer { returned, revision, response });
        }
    }

    /// What it asked for last was refused, or only a question: it changes nothing.
    pub(crate) fn forget(&mut self) {
        self.0.pop();
    }
}

/// Checks what was seen from a revision of the store on, of which all keys were unwritten then. `late` is what nobody
/// knows of that was asked for before: it may still happen; what nobody knows of this history joins it.
pub(crate) fn check(first: i64, seen: Vec<Operation>, late: &mut Vec<Operation>) -> Result<()> {
    let began = Instant::now();
    let unanswered: Vec<Operation> =
        seen.iter().filter(|operation| operation.answer.is_none()).cloned().collect();
    let mut operations = seen;
    operations.append(&mut late.clone());
    late.extend(unanswered.iter().map(|operation| Operation { called: 0, ..operation.clone() }));
    let history = History { operations, first_revision: unsigned(first) };
    match by_revisions(&history) {
        Verdict::Linearizable => {}
        Verdict::Violation(violation) => bail!("{}", violation.explain(&history)),
        Verdict::Undecided { configurations } => {
            bail!("the history is not decided after {configurations} orders")
        }
    }
    let millis = began.elapsed().as_millis();
    let Some(stale) = history.with_a_stale_read() else {
        bail!("nothing was read twice");
    };
    let found = matches!(by_revisions(&stale), Verdict::Violation(_));
    ensure!(found, "a stale read in this history would not be found");
    let reads =
        history.operations.iter().filter(|operation| matches!(operation.request, Request::Get(_)));
    println!(
        "a linearizable history, as {millis} ms show: {} operations, {} of them reads, {} without an answer; one stale \
         read in it is found",
        history.operations.len(),
        reads.count(),
        unanswered.len()
    );
    Ok(())
}

/// The number of a key that only one client writes, once.
pub(crate) fn own_key(client: usize, number: u64) -> Key {
    let client = u32::try_from(client + 1).unwrap_or(u32::MAX);
    Key((client << 20) | (u32::try_from(number).unwrap_or(u32::MAX) & 0xF_FFFF))
}
