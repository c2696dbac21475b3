//! Are the answers that clients got those of one store that did one thing at a time?
//!
//! A [`History`] says who asked what, when it was called, when it returned and what came back. It is
//! linearizable when some order of its operations explains every answer and never puts an operation after one that
//! was called only when it had returned. Three ways to find out, from the fastest to the one that needs the least:
//!
//! - [`by_witness`]: the committed log says which operation made which revision. One pass.
//! - [`by_revisions`]: the answers say it, as etcd's do. One pass as well, and a search only where a revision was made
//!   by one of the operations whose outcome nobody knows.
//! - [`by_keys`]: nobody says it. A search in the manner of Wing and Gong with the memory of Lowe, for each group of
//!   keys that some transaction touches together on its own. Exponential in the writers of one key at one time.
//!
//! An operation without an answer may have happened at any time after its call, or never. One that was refused is
//! left out of the history: if it happened after all, whoever sees it has an answer that nothing explains.

mod keys;
mod model;
mod revisions;

use std::fmt;

pub use keys::by_keys;
pub use revisions::{by_revisions, by_revisions_within, by_witness};

/// A key, as a number that the recorder gives it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key(pub u32);

/// A value, as a number that the recorder gives it. The more distinct the values, the stronger the check.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Value(pub u64);

/// What a client asked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Request {
    /// A linearizable read of one key.
    Get(Key),
    /// Sets a key.
    Put(Key, Value),
    /// Removes a key.
    Delete(Key),
    /// If all comparisons hold the first list, otherwise the second; all at one revision.
    Txn(Vec<Compare>, Vec<Self>, Vec<Self>),
}

/// A condition of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Compare {
    /// The key has this value; with `None`, it does not exist.
    Value(Key, Option<Value>),
    /// The key was last changed at this revision; 0, it does not exist. Unknown to [`by_keys`].
    ModRevision(Key, u64),
}

/// What a key holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stored {
    /// The value.
    pub value: Value,
    /// The revision at which it was written. Not looked at by [`by_keys`].
    pub mod_revision: u64,
}

/// What came back.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Response {
    /// What the key holds, if it exists.
    Get(Option<Stored>),
    /// It is set.
    Put,
    /// Whether the key existed.
    Delete(bool),
    /// Whether the comparisons held, and the answers of the list that was executed.
    Txn(bool, Vec<Self>),
}

impl Response {
    /// Whether an operation with this answer made a revision.
    fn changed(&self) -> bool {
        match self {
            Self::Get(_) => false,
            Self::Put => true,
            Self::Delete(existed) => *existed,
            Self::Txn(_, responses) => responses.iter().any(Self::changed),
        }
    }
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// When it arrived, in the unit and on the clock of the calls.
    pub returned: u64,
    /// The revision of the store right after the operation. Not looked at by [`by_keys`].
    pub revision: u64,
    /// What came back.
    pub response: Response,
}

/// One operation of one client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Who.
    pub client: u32,
    /// When it was called, on one clock for all clients.
    pub called: u64,
    /// What was asked.
    pub request: Request,
    /// What came back; `None` when nobody knows what became of it.
    pub answer: Option<Answer>,
}

impl Operation {
    /// When it was over; never, when nobody knows.
    fn returned(&self) -> u64 {
        self.answer.as_ref().map_or(u64::MAX, |answer| answer.returned)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} [{}, ", self.client, self.called)?;
        match &self.answer {
            Some(answer) => write!(
                f,
                "{}] {:?} -> {:?} at revision {}",
                answer.returned, self.request, answer.response, answer.revision
            ),
            None => write!(f, "?] {:?} -> unknown", self.request),
        }
    }
}

/// What clients did with one store that was empty in the beginning.
#[derive(Clone, Default, Debug)]
pub struct History {
    /// In any order.
    pub operations: Vec<Operation>,
    /// The revision of the empty store: 1 for etcd, whose first write makes revision 2.
    pub first_revision: u64,
}

impl History {
    /// The empty history of an etcd that was empty.
    #[must_use]
    pub const fn new() -> Self {
        Self { operations: Vec::new(), first_revision: 1 }
    }

    /// The same with one stale read: the last of a key that was read before answers as the first one did, which had
    /// seen an earlier revision. For tests of tests: a check that finds nothing in this finds nothing. `None` when
    /// there is no such read.
    #[must_use]
    pub fn with_a_stale_read(&self) -> Option<Self> {
        let reads = || {
            self.operations.iter().enumerate().filter_map(|(position, operation)| {
                let Request::Get(key) = operation.request else { return None };
                let answer = operation.answer.as_ref()?;
                Some((position, key, answer, operation.called))
            })
        };
        // Not only is it older: a write that it should have seen had been answered before it was called.
        let overwritten = |from: u64, called: u64| {
            self.operations.iter().any(|operation| {
                operation.answer.as_ref().is_some_and(|answer| {
                    answer.response.changed() && answer.revision > from && answer.returned < called
                })
            })
        };
        let mut late: Vec<_> = reads().collect();
        late.sort_by_key(|(_, _, _, called)| std::cmp::Reverse(*called));
        let (position, old) = late.iter().find_map(|(position, key, _, called)| {
            let first =
                reads().filter(|(_, k, _, _)| k == key).min_by_key(|(_, _, a, _)| a.returned)?;
            overwritten(first.2.revision, *called).then_some((*position, first.2))
        })?;
        let mut stale = self.clone();
        let answer = stale.operations.get_mut(position)?.answer.as_mut()?;
        *answer = Answer { returned: answer.returned, ..old.clone() };
        Some(stale)
    }

    /// What had been seen at `time`: later calls are not there, later answers not known.
    fn until(&self, time: u64) -> (Self, Vec<usize>) {
        let positions: Vec<usize> = (0..self.operations.len())
            .filter(|position| self.operations[*position].called <= time)
            .collect();
        let operations = positions.iter().map(|position| {
            let mut operation = self.operations[*position].clone();
            operation.answer = operation.answer.filter(|answer| answer.returned <= time);
            operation
        });
        let operations = operations.collect();
        (Self { operations, first_revision: self.first_revision }, positions)
    }

    /// All times at which something was answered, in order.
    fn answer_times(&self) -> Vec<u64> {
        let mut times: Vec<u64> =
            self.operations.iter().filter_map(|o| Some(o.answer.as_ref()?.returned)).collect();
        times.sort_unstable();
        times.dedup();
        times
    }
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// An order explains every answer.
    Linearizable,
    /// No order does.
    Violation(Violation),
    /// The search was given up: too many orders are possible. How many were tried.
    Undecided {
        /// Configurations looked at.
        configurations: u64,
    },
}

/// Why a history is not linearizable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What was seen until then is the shortest prefix that no order explains; without the answers of that moment
    /// there is one. Where only the witness contradicts the answers, when the last of the operations was answered.
    pub time: u64,
    /// Positions in the history of the operations that cannot be ordered, the latest answer first.
    pub operations: Vec<usize>,
    /// What is wrong with them, in words.
    pub reason: String,
}

impl Violation {
    /// The violation with the operations written out.
    #[must_use]
    pub fn explain(&self, history: &History) -> String {
        let mut text = format!("not linearizable at {}: {}", self.time, self.reason);
        for position in &self.operations {
            if let Some(operation) = history.operations.get(*position) {
                text.push_str(&format!("\n  {operation}"));
            }
        }
        text
    }
}

/// Configurations that a search looks at before it gives up: a few seconds.
const CONFIGURATIONS_MAX: u64 = 5_000_000;

#[cfg(test)]
mod tests;
