//! What the clients saw, on one clock. The list that the members replicate is one key whose revision is its length: a
//! write puts its number there, a read sees the last one.

use std::cell::RefCell;
use std::time::Instant;

use raft_sim::linearizability::{
    self, History, Key, Operation, Request, Response, Stored, Value, Verdict, by_revisions,
};

/// The only key.
const LIST: Key = Key(0);

/// Who asked what when, and what came back.
pub(crate) struct Recorder {
    began: Instant,
    /// `None`: it changed nothing, and never will.
    operations: RefCell<Vec<Option<Operation>>>,
}

/// A request that is under way.
pub(crate) struct Called(usize);

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), operations: RefCell::new(Vec::new()) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn called(&self, client: u32, request: Request) -> Called {
        let mut operations = self.operations.borrow_mut();
        operations.push(Some(Operation { client, called: self.now(), request, answer: None }));
        Called(operations.len() - 1)
    }

    /// A client is about to write a number.
    pub(crate) fn writes(&self, client: u32, number: u64) -> Called {
        self.called(client, Request::Put(LIST, Value(number)))
    }

    /// A client is about to read the last number.
    pub(crate) fn reads(&self, client: u32) -> Called {
        self.called(client, Request::Get(LIST))
    }

    fn answered(&self, called: &Called, revision: u64, response: Response) {
        let returned = self.now();
        if let Some(Some(operation)) = self.operations.borrow_mut().get_mut(called.0) {
            operation.answer = Some(linearizability::Answer { returned, revision, response });
        }
    }

    /// The list was that long after the write.
    pub(crate) fn written(&self, called: &Called, length: u64) {
        self.answered(called, length, Response::Put);
    }

    /// The list was that long, and this its last number.
    pub(crate) fn read(&self, called: &Called, length: u64, last: Option<u64>) {
        let stored = last.map(|last| Stored { value: Value(last), mod_revision: length });
        self.answered(called, length, Response::Get(stored));
    }

    /// It did not happen, and never will; or it was a question that nobody answered.
    pub(crate) fn refused(&self, called: &Called) {
        if let Some(operation) = self.operations.borrow_mut().get_mut(called.0) {
            *operation = None;
        }
    }

    /// All that was seen is what one list would have shown. And one stale read in it would have been found.
    pub(crate) fn check(&self) {
        let operations: Vec<Operation> =
            self.operations.borrow().iter().flatten().cloned().collect();
        let history = History { operations, first_revision: 0 };
        match by_revisions(&history) {
            Verdict::Linearizable => {}
            Verdict::Violation(violation) => panic!("{}", violation.explain(&history)),
            Verdict::Undecided { configurations } => {
                panic!("the history is not decided after {configurations} orders")
            }
        }
        let stale = history.with_a_stale_read().expect("the list was read more than once");
        let found = by_revisions(&stale);
        assert!(
            matches!(found, Verdict::Violation(_)),
            "a stale read would not be found: {found:?}"
        );
        let count = |which: fn(&Operation) -> bool| {
            history.operations.iter().filter(|operation| which(operation)).count()
        };
        println!(
            "a linearizable history: {} writes, {} reads, {} without an answer",
            count(|operation| matches!(operation.request, Request::Put(..))),
            count(|operation| matches!(operation.request, Request::Get(_))),
            count(|operation| operation.answer.is_none()),
        );
    }
}
