//! The workload for state machines in sessions: clients that try again until they know, and what was applied once.
//!
//! What must be answered is told by a model of sessions written apart from [`raft::Sessions`], from its documentation, around
//! one more instance of the state machine inside, which knows neither faults nor retries.

mod counter;
mod model;

use std::collections::BTreeMap;
use std::fmt::Debug;

use raft::sessions::{CachedResponse, SessionCommand, SessionResponse, Sessions};
use raft_core::{Digest, EntryId, Index, NodeId, Rng, Session, StateMachine};

use crate::marks::Marks;
use crate::reference::{Draw, Readings};
use crate::workload::{Ask, Call, Workload};
pub(crate) use counter::counter;
use model::Model;

/// States that are remembered for being compared with those of members that lag.
const STATES_MAX: usize = 1000;

/// A workload of clients in sessions: what each asks for is applied once, however often they have to ask.
///
/// Each client opens a session, and proposes its next command only when it knows what became of the last one: what it
/// hears nothing of it asks for again, of any member. Now and then it gives up instead, or ends its session. Questions
/// are asked without sessions. The answers to [`Ask::Stale`] are not looked at. All answers that sessions remember must take
/// less than 64 MiB.
pub struct ExactlyOnce<S: StateMachine> {
    empty: Box<dyn Fn() -> S>,
    draw: Draw<S>,
    sessions_max: u32,
    model: Model<S>,
    /// By client.
    clients: BTreeMap<usize, Client<S::Command>>,
    /// In which session each request that is not committed yet was asked.
    asked: BTreeMap<u64, Option<Session>>,
    /// What clients must be told of their committed commands.
    expected: BTreeMap<u64, SessionResponse<S::Response>>,
    readings: Readings<S>,
    /// After which entry the state machine inside has which digest.
    states: BTreeMap<Index, Digest>,
    tally: BTreeMap<&'static str, u64>,
}

/// What one client remembers.
struct Client<C> {
    session: Option<u64>,
    /// Of its last command.
    sequence: u64,
    /// The last command, as long as nothing is known of it.
    pending: Option<C>,
}

impl<S: StateMachine> Debug for ExactlyOnce<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExactlyOnce").finish_non_exhaustive()
    }
}

impl<S: StateMachine> ExactlyOnce<S> {
    /// `empty` makes the state machine that each process begins with, `draw` what a client asks: its commands are proposed
    /// in the client's session. The closures are called in an order that follows from the seed.
    pub fn new(
        empty: impl Fn() -> S + 'static,
        draw: impl FnMut(&mut Rng) -> Ask<S> + 'static,
    ) -> Self {
        Self {
            model: Model::new(empty()),
            empty: Box::new(empty),
            draw: Box::new(draw),
            sessions_max: 1000,
            clients: BTreeMap::new(),
            asked: BTreeMap::new(),
            expected: BTreeMap::new(),
            readings: Readings::default(),
            states: BTreeMap::new(),
            tally: BTreeMap::new(),
        }
    }

    /// How many sessions may be open, from 1 on; 1000 by default. With fewer than clients they end each other's.
    #[must_use]
    pub const fn sessions_max(mut self, sessions_max: u32) -> Self {
        self.sessions_max = sessions_max;
        self
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn client(&mut self, client: usize) -> &mut Client<S::Command> {
        let unknown = || Client { session: None, sequence: 0, pending: None };
        self.clients.entry(client).or_insert_with(unknown)
    }
}

impl<S> ExactlyOnce<S>
where
    S: StateMachine<Command: Clone, Response: CachedResponse>,
{
    /// What this client does in its session, if it is to propose `next`.
    fn propose(&mut self, call: &Call, rng: &mut Rng, next: S::Command) -> Ask<Sessions<S>> {
        let sessions_max = self.sessions_max;
        let client = self.client(call.client);
        let Some(id) = client.session else {
            return Ask::Command(SessionCommand::Open { sessions_max });
        };
        match rng.below(100) {
            0 => return Ask::Command(SessionCommand::Close { session: id }),
            1 => {
                let silent_since = Index(call.floor.0.saturating_sub(rng.below(1000)));
                return Ask::Command(SessionCommand::Expire { silent_since });
            }
            // It gives up what it knows nothing of, and goes on.
            2..=6 => client.pending = None,
            _ => {}
        }
        let command = match client.pending.clone() {
            Some(command) => command,
            None => {
                client.sequence += 1;
                client.pending = Some(next.clone());
                next
            }
        };
        let session = Session { id, sequence: client.sequence };
        self.asked.insert(call.number, Some(session));
        Ask::InSession(SessionCommand::Command(command), session)
    }
}

impl<S> Workload for ExactlyOnce<S>
where
    S: StateMachine<Command: Clone>,
    S::Query: Clone + Debug,
    S::Response: CachedResponse + Clone + PartialEq + Debug,
    S::Answer: PartialEq + Debug,
{
    type Machine = Sessions<S>;

    fn machine(&self) -> Sessions<S> {
        Sessions::new((self.empty)())
    }

    fn ask(&mut self, call: &Call, rng: &mut Rng) -> Ask<Sessions<S>> {
        // Without an answer to the last command there is nothing else to ask.
        let pending = self.client(call.client).pending.clone();
        let ask = pending.map_or_else(|| (self.draw)(rng), Ask::Command);
        match ask {
            Ask::Command(command) | Ask::InSession(command, _) => self.propose(call, rng, command),
            Ask::Query(query) => {
                self.readings.ask(call, query.clone(), self.model.machine());
                Ask::Query(query)
            }
            Ask::Stale(query) => Ask::Stale(query),
            Ask::Barrier => Ask::Barrier,
        }
    }

    fn command(&mut self, _: &Call, _: &mut Rng) -> SessionCommand<S::Command> {
        SessionCommand::Open { sessions_max: self.sessions_max }
    }

    fn applied(&mut self, call: &Call, at: EntryId, command: SessionCommand<S::Command>) {
        let session = self.asked.remove(&call.number).flatten();
        let told = self.model.apply(at, session, command);
        if let Some(what) = told.what {
            self.count(what);
        }
        self.expected.insert(call.number, told.response);
        self.readings.changed(self.model.machine());
        self.states.insert(at.index, self.model.machine().digest());
        if self.states.len() > STATES_MAX {
            self.states.pop_first();
        }
    }

    fn responded(&mut self, call: &Call, _: u64, response: SessionResponse<S::Response>) {
        let expected = self.expected.remove(&call.number);
        assert!(
            expected.as_ref() == Some(&response),
            "I17: {call:?} is answered {response:?}, not {expected:?}"
        );
        let client = self.client(call.client);
        match response {
            SessionResponse::Opened(id) => {
                (client.session, client.sequence, client.pending) = (Some(id), 0, None);
            }
            SessionResponse::Applied(_) | SessionResponse::Outdated { .. } => client.pending = None,
            SessionResponse::NoSession | SessionResponse::Ended(_) => {
                (client.session, client.pending) = (None, None);
            }
            SessionResponse::Forgotten => panic!("I17: {call:?} is forgotten by its own version"),
        }
    }

    fn refused(&mut self, call: &Call) {
        self.asked.remove(&call.number);
    }

    fn answered(&mut self, call: &Call, _: u64, answer: S::Answer) -> Index {
        self.readings.judge(call, &answer);
        Index::ZERO
    }

    fn look(&mut self, node: NodeId, applied: Index, machine: &Sessions<S>) {
        let known = self.states.range(..=applied).next_back();
        if let Some((index, digest)) = known {
            assert!(
                machine.machine().digest() == *digest,
                "I17: the state of {node} at {index} is not what comes of applying each command once"
            );
        }
    }

    fn end(&mut self, marks: &mut Marks) {
        for (name, count) in std::mem::take(&mut self.tally) {
            marks.hit_often(name, count);
        }
    }
}

#[cfg(test)]
mod tests;
