//! What clients saw, and whether one store that does one thing at a time could have shown it. Knows nothing of the
//! model, and of the log only where the answers leave too many orders to try.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::model::{Answer, Op, Value};
use crate::linearizability::{
    self, Compare, History, Key, Operation, Request, Response, Stored, Verdict,
};
use crate::marks::Marks;
use crate::workload::Call;

/// Orders that are tried where answers are missing, before the log is asked.
const CONFIGURATIONS_MAX: u64 = 20_000;

/// The history of a run.
#[derive(Debug)]
pub(super) struct Recorder {
    history: History,
    /// Where each request stands in it.
    positions: BTreeMap<u64, usize>,
    /// Those that were refused: they never happened.
    refused: BTreeSet<usize>,
    /// Which request made each revision, as the log has it.
    witness: BTreeMap<u64, usize>,
}

fn key(key: u64) -> Key {
    Key(u32::try_from(key).unwrap_or(u32::MAX))
}

/// Values begin with a number of their own.
fn value(value: &Bytes) -> linearizability::Value {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let number = text.trim_end_matches('.').parse();
    linearizability::Value(number.unwrap_or(u64::MAX))
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

fn stored(found: Option<&Value>) -> Option<Stored> {
    found.map(|found| Stored {
        value: value(&found.value),
        mod_revision: unsigned(found.mod_revision),
    })
}

impl Recorder {
    pub(super) const fn new() -> Self {
        Self {
            history: History::new(),
            positions: BTreeMap::new(),
            refused: BTreeSet::new(),
            witness: BTreeMap::new(),
        }
    }

    /// A client asks.
    pub(super) fn called(&mut self, call: &Call, op: &Op) {
        let request = match op {
            Op::Put { key: k, value: v } => Request::Put(key(*k), value(v)),
            Op::Swap { key: k, mod_revision, value: v } => Request::Txn(
                vec![Compare::ModRevision(key(*k), unsigned(*mod_revision))],
                vec![Request::Put(key(*k), value(v))],
                vec![Request::Get(key(*k))],
            ),
            Op::Delete { key: k } => Request::Delete(key(*k)),
            Op::Read { key: k } => Request::Get(key(*k)),
        };
        self.positions.insert(call.number, self.history.operations.len());
        let client = u32::try_from(call.client).unwrap_or(u32::MAX);
        let operation = Operation { client, called: call.asked, request, answer: None };
        self.history.operations.push(operation);
    }

    fn answered(&mut self, call: &Call, now: u64, revision: i64, response: Response) {
        let operation = self.positions.get(&call.number);
        if let Some(operation) = operation.and_then(|at| self.history.operations.get_mut(*at)) {
            let revision = unsigned(revision);
            operation.answer = Some(linearizability::Answer { returned: now, revision, response });
        }
    }

    /// A write is answered.
    pub(super) fn wrote(&mut self, call: &Call, now: u64, answer: &Answer) {
        let (revision, response) = match answer {
            Answer::Put { revision } => (revision, Response::Put),
            Answer::Swap { revision, swapped: true, .. } => {
                (revision, Response::Txn(true, vec![Response::Put]))
            }
            Answer::Swap { revision, swapped: false, found } => {
                (revision, Response::Txn(false, vec![Response::Get(stored(found.as_ref()))]))
            }
            Answer::Delete { revision, deleted } => (revision, Response::Delete(*deleted > 0)),
        };
        self.answered(call, now, *revision, response);
    }

    /// A read is answered.
    pub(super) fn read(&mut self, call: &Call, now: u64, revision: i64, found: Option<&Value>) {
        self.answered(call, now, revision, Response::Get(stored(found)));
    }

    /// A request is refused: it never happened, and never will.
    pub(super) fn refused(&mut self, call: &Call) {
        self.refused.extend(self.positions.get(&call.number));
    }

    /// The log says which request made this revision.
    pub(super) fn committed(&mut self, call: &Call, revision: i64) {
        if let Some(position) = self.positions.get(&call.number) {
            self.witness.entry(unsigned(revision)).or_insert(*position);
        }
    }

    /// Whether everything that clients saw can be put in an order.
    ///
    /// # Panics
    /// When it cannot.
    pub(super) fn check(&mut self, marks: &mut Marks) {
        // A revision that was made by what had been refused is one that nothing explains.
        for position in std::mem::take(&mut self.refused) {
            let operation = &mut self.history.operations[position];
            operation.request = Request::Txn(Vec::new(), Vec::new(), Vec::new());
        }
        let mut verdict = linearizability::by_revisions_within(&self.history, CONFIGURATIONS_MAX);
        if let Verdict::Undecided { .. } = verdict {
            marks.hit("history: decided by the log");
            verdict = linearizability::by_witness(&self.history, &self.witness);
        }
        match verdict {
            Verdict::Linearizable => marks.hit("history: linearizable"),
            Verdict::Violation(violation) => {
                panic!("I13: the history is {}", violation.explain(&self.history))
            }
            Verdict::Undecided { configurations } => {
                panic!("the log leaves {configurations} orders of the history")
            }
        }
    }
}
