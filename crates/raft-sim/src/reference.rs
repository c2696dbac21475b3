//! The workload for any deterministic state machine: what one instance of it would have answered, with the committed log
//! and no faults.

use std::collections::BTreeMap;
use std::fmt::Debug;

use raft_core::{ApplyContext, EntryId, Index, NodeId, Rng, StateMachine};

use crate::workload::{Ask, Call, Workload};

/// What a client asks.
pub(crate) type Draw<S> = Box<dyn FnMut(&mut Rng) -> Ask<S>>;
/// What must hold of a state.
type Check<S> = Box<dyn Fn(&S)>;

/// A question that a client waits for an answer to, and what may be answered.
struct Reading<S: StateMachine> {
    number: u64,
    query: S::Query,
    /// The answers of all states since it was asked.
    answers: Vec<S::Answer>,
}

/// The last linearizable question of each client.
pub(crate) struct Readings<S: StateMachine>(BTreeMap<usize, Reading<S>>);

impl<S: StateMachine> Default for Readings<S> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<S> Readings<S>
where
    S: StateMachine<Answer: PartialEq + Debug, Query: Clone + Debug>,
{
    /// A client asks, and this is the state.
    pub(crate) fn ask(&mut self, call: &Call, query: S::Query, state: &S) {
        let answers = vec![state.query(query.clone())];
        self.0.insert(call.client, Reading { number: call.number, query, answers });
    }

    /// This is the state now.
    pub(crate) fn changed(&mut self, state: &S) {
        for Reading { query, answers, .. } in self.0.values_mut() {
            let answer = state.query(query.clone());
            if answers.last() != Some(&answer) {
                answers.push(answer);
            }
        }
    }

    /// The client is told this (I13).
    pub(crate) fn judge(&mut self, call: &Call, answer: &S::Answer) {
        let reading = self.0.remove(&call.client);
        let Some(Reading { query, answers, .. }) = reading.filter(|r| r.number == call.number)
        else {
            panic!("{call:?} was never asked, and is answered {answer:?}");
        };
        assert!(
            answers.contains(answer),
            "I13: {query:?} is answered {answer:?}; since it was asked, it would have been one of {answers:?}"
        );
    }
}

/// Clients that ask for what a closure draws, of a state machine of which one more instance is kept as the reference. It
/// applies each command when the first member does; every answer must be the one that it gave, and a linearizable
/// question must be answered from a state that it had between the question and the answer.
///
/// What the reference itself does wrong, all members do wrong alike: say by [`always`](Self::always) what must hold. The
/// answers to [`Ask::Stale`] are not looked at.
pub struct Reference<S: StateMachine> {
    empty: Box<dyn Fn() -> S>,
    draw: Draw<S>,
    always: Vec<Check<S>>,
    state: S,
    /// What clients must be told of their committed commands.
    expected: BTreeMap<u64, S::Response>,
    readings: Readings<S>,
}

impl<S: StateMachine> Debug for Reference<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reference").finish_non_exhaustive()
    }
}

impl<S: StateMachine> Reference<S> {
    /// `empty` makes the state machine that each process begins with, `draw` what a client asks. The closures are called
    /// in an order that follows from the seed.
    pub fn new(
        empty: impl Fn() -> S + 'static,
        draw: impl FnMut(&mut Rng) -> Ask<S> + 'static,
    ) -> Self {
        Self {
            state: empty(),
            empty: Box::new(empty),
            draw: Box::new(draw),
            always: Vec::new(),
            expected: BTreeMap::new(),
            readings: Readings::default(),
        }
    }

    /// Calls `check` with the reference after every command, and with the state of each member after every batch that
    /// it applied. It panics (`assert!`) if what it sees must not be.
    #[must_use]
    pub fn always(mut self, check: impl Fn(&S) + 'static) -> Self {
        self.always.push(Box::new(check));
        self
    }
}

impl<S> Workload for Reference<S>
where
    S: StateMachine,
    S::Query: Clone + Debug,
    S::Response: PartialEq + Debug,
    S::Answer: PartialEq + Debug,
{
    type Machine = S;

    fn machine(&self) -> S {
        (self.empty)()
    }

    fn ask(&mut self, call: &Call, rng: &mut Rng) -> Ask<S> {
        let ask = (self.draw)(rng);
        if let Ask::Query(query) = &ask {
            self.readings.ask(call, query.clone(), &self.state);
        }
        ask
    }

    fn applied(&mut self, call: &Call, at: EntryId, command: S::Command) {
        let response = self.state.apply(ApplyContext::at(at), command);
        self.state.flush();
        self.expected.insert(call.number, response);
        self.always.iter().for_each(|check| check(&self.state));
        self.readings.changed(&self.state);
    }

    fn responded(&mut self, call: &Call, _: u64, response: S::Response) {
        let expected = self.expected.remove(&call.number);
        assert!(
            expected.as_ref() == Some(&response),
            "I18: {call:?} is answered {response:?}, not {expected:?}"
        );
    }

    fn answered(&mut self, call: &Call, _: u64, answer: S::Answer) -> Index {
        self.readings.judge(call, &answer);
        Index::ZERO
    }

    fn look(&mut self, _: NodeId, _: Index, machine: &S) {
        self.always.iter().for_each(|check| check(machine));
    }
}
