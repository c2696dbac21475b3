//! What clients do in a run: the seam at which a user of the library puts their own state machine into the simulator.
//!
//! A [`Workload`] says what is asked next, and judges what comes back. Whatever does not depend on the state machine is
//! checked without its help: that all members apply the same bytes in the same order, each once, that what is answered
//! was committed and what was refused was not, that equal positions mean equal digests, that nothing durable is lost,
//! and that everybody is answered in the end (docs/testing.md). Most state machines need no workload of their own: see
//! [`Reference`](crate::Reference).

use std::fmt;

use raft_core::{EntryId, Index, NodeId, Rng, Session, StateMachine, Term, Time};

use crate::marks::Marks;

/// How often a workload is asked for something else until it is a command.
const DRAWS_MAX: u32 = 10_000;

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask<S: StateMachine> {
    /// Proposes this command.
    Command(S::Command),
    /// Proposes this command in a client's session: asked again with the same numbers, it is the same command.
    InSession(S::Command, Session),
    /// Asks this question, linearizably: with everything that was answered to anybody before.
    Query(S::Query),
    /// Asks this question of one member as it is: the answer may be as old as that member is behind.
    Stale(S::Query),
    /// Asks for nothing but an index behind everything that was answered to anybody before.
    Barrier,
}

/// One request of one client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// Counts the requests of a run, from 0.
    pub number: u64,
    /// Whose it is. Clients are numbered from 0, and each has one request at a time. Behind them come the members
    /// themselves, with what they ask in [`Workload::attend`].
    pub client: usize,
    /// When it was asked, in microseconds of virtual time.
    pub asked: u64,
    /// The highest position of a command that had been answered to anybody by then.
    pub floor: Index,
}

/// A member whose process does something beside its state machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attendant {
    /// The member.
    pub node: NodeId,
    /// What its clock shows: clocks run apart.
    pub now: Time,
    /// Its term.
    pub term: Term,
    /// Who leads in that term, if it knows.
    pub leader: Option<NodeId>,
    /// What it asked last is answered or will not be: it may ask again.
    pub is_idle: bool,
}

impl Attendant {
    /// Whether it believes that it leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leader == Some(self.node)
    }
}

/// What a member does next beside its state machine.
pub struct Attention<S: StateMachine> {
    /// It asks this of its own node; only if it is idle.
    pub ask: Option<Ask<S>>,
    /// There is more to do at once.
    pub busy: bool,
    /// When its clock shows this, there will be.
    pub deadline: Option<Time>,
}

impl<S: StateMachine> fmt::Debug for Attention<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ask, busy, deadline } = self;
        let asks = ask.is_some();
        write!(f, "Attention {{ asks: {asks}, busy: {busy}, deadline: {deadline:?} }}")
    }
}

impl<S: StateMachine> Default for Attention<S> {
    fn default() -> Self {
        Self { ask: None, busy: false, deadline: None }
    }
}

/// What clients ask of a state machine in one run, and what they must be told. Equal seeds must give equal runs: draw
/// only from the generator that is passed in, and iterate over nothing in the order of its hashes.
///
/// Whatever must hold is demanded by `assert!`: a panic ends the run and is reported with its seed.
pub trait Workload {
    /// What runs on every member.
    type Machine: StateMachine;

    /// An empty state machine: what each process begins with.
    fn machine(&self) -> Self::Machine;

    /// What this client asks now.
    fn ask(&mut self, call: &Call, rng: &mut Rng) -> Ask<Self::Machine>;

    /// A command for this client: asked for when the faults are over, to see that one goes through.
    ///
    /// # Panics
    /// If [`ask`](Self::ask) never asks for a command.
    fn command(&mut self, call: &Call, rng: &mut Rng) -> <Self::Machine as StateMachine>::Command {
        for _ in 0..DRAWS_MAX {
            if let Ask::Command(command) = self.ask(call, rng) {
                return command;
            }
        }
        panic!("{DRAWS_MAX} requests, and no command among them")
    }

    /// This command, which `call` asked for, is committed. Called for each command once, in the order of the log, before
    /// any answer to it arrives.
    fn applied(
        &mut self,
        call: &Call,
        at: EntryId,
        command: <Self::Machine as StateMachine>::Command,
    );

    /// The client is told this of the command that it asked for, at `now` in virtual time.
    fn responded(
        &mut self,
        call: &Call,
        now: u64,
        response: <Self::Machine as StateMachine>::Response,
    );

    /// The client is told for certain that its command was not and will never be applied.
    fn refused(&mut self, call: &Call) {
        let _ = call;
    }

    /// The client is told this in answer to a linearizable question. Returns a position up to which this shows that
    /// everything has happened, [`Index::ZERO`] if that is not known: whoever asks later must not see less.
    fn answered(
        &mut self,
        call: &Call,
        now: u64,
        answer: <Self::Machine as StateMachine>::Answer,
    ) -> Index;

    /// The client is told this in answer to [`Ask::Stale`].
    fn answered_stale(
        &mut self,
        call: &Call,
        now: u64,
        answer: <Self::Machine as StateMachine>::Answer,
    ) {
        let _ = (call, now, answer);
    }

    /// A barrier that the client asked for is answered with this position.
    fn passed(&mut self, call: &Call, index: Index) {
        let _ = (call, index);
    }

    /// A process begins on this member, with this state machine, which is empty: it may be restored before anything else
    /// happens, or not even start.
    fn starts(&mut self, node: NodeId, machine: &mut Self::Machine) {
        let _ = (node, machine);
    }

    /// The process on this member is gone, with whatever it had beside its state machine.
    fn stops(&mut self, node: NodeId) {
        let _ = node;
    }

    /// Whether members do anything beside their state machines: whether [`attend`](Self::attend) is called.
    fn attends(&self) -> bool {
        false
    }

    /// A member does some of what it does beside its state machine. Called soon after it has applied something, knows
    /// something else of who leads, or has an answer, and when it wanted to be called; `call` is what it would ask.
    fn attend(
        &mut self,
        call: &Call,
        member: &Attendant,
        rng: &mut Rng,
    ) -> Attention<Self::Machine> {
        let _ = (call, member, rng);
        Attention::default()
    }

    /// What should have happened by itself, since clients ask for nothing any more, and has not.
    fn unsettled(&self) -> Option<String> {
        None
    }

    /// A member has applied everything up to `applied`, and this is its state. Called after each batch.
    fn look(&mut self, node: NodeId, applied: Index, machine: &Self::Machine) {
        let _ = (node, applied, machine);
    }

    /// The run is over, and all members are equal. What is worth counting goes into the marks.
    fn end(&mut self, marks: &mut Marks) {
        let _ = marks;
    }
}
