//! Sessions as their documentation describes them, around a state machine that is only shown what is new.

use std::collections::BTreeMap;

use raft::sessions::{SessionCommand, SessionResponse};
use raft_core::{ApplyContext, EntryId, Index, Session, StateMachine};

/// One open session.
struct Open<R> {
    /// The last entry that was its.
    used: Index,
    /// The newest applied command, and what it was answered.
    newest: Option<(u64, R)>,
}

/// The state, and who has asked for what.
pub(super) struct Model<S: StateMachine> {
    machine: S,
    open: BTreeMap<u64, Open<S::Response>>,
}

/// What an entry does.
pub(super) struct Told<R> {
    pub(super) response: SessionResponse<R>,
    /// What is worth counting.
    pub(super) what: Option<&'static str>,
}

impl<R> Told<R> {
    const fn plainly(response: SessionResponse<R>) -> Self {
        Self { response, what: None }
    }

    const fn as_a(what: &'static str, response: SessionResponse<R>) -> Self {
        Self { response, what: Some(what) }
    }
}

impl<S: StateMachine> Model<S> {
    pub(super) const fn new(machine: S) -> Self {
        Self { machine, open: BTreeMap::new() }
    }

    pub(super) const fn machine(&self) -> &S {
        &self.machine
    }
}

impl<S: StateMachine<Response: Clone>> Model<S> {
    pub(super) fn apply(
        &mut self,
        at: EntryId,
        session: Option<Session>,
        command: SessionCommand<S::Command>,
    ) -> Told<S::Response> {
        match command {
            SessionCommand::Open { sessions_max } => {
                let others = usize::try_from(sessions_max).unwrap_or(usize::MAX).saturating_sub(1);
                while self.open.len() > others {
                    self.end_silent();
                }
                self.open.insert(at.index.0, Open { used: at.index, newest: None });
                Told::plainly(SessionResponse::Opened(at.index.0))
            }
            SessionCommand::Close { session } => {
                let ended = self.open.remove(&session).is_some();
                Told::as_a("session: closed", SessionResponse::Ended(u64::from(ended)))
            }
            SessionCommand::Expire { silent_since } => {
                let before = self.open.len();
                self.open.retain(|_, open| open.used >= silent_since);
                let ended = u64::try_from(before - self.open.len()).unwrap_or(u64::MAX);
                Told::as_a("session: silent ones end", SessionResponse::Ended(ended))
            }
            SessionCommand::Command(command) => self.command(at, session, command),
        }
    }

    fn command(
        &mut self,
        at: EntryId,
        session: Option<Session>,
        command: S::Command,
    ) -> Told<S::Response> {
        let Some(Session { id, sequence }) = session else {
            return Told::plainly(SessionResponse::Applied(self.run(at, command)));
        };
        let Some(open) = self.open.get_mut(&id) else {
            return Told::as_a("session: ended before a command", SessionResponse::NoSession);
        };
        open.used = at.index;
        match &open.newest {
            Some((newest, response)) if *newest == sequence => {
                let response = SessionResponse::Applied(response.clone());
                Told::as_a("session: a retry is not applied again", response)
            }
            Some((newest, _)) if sequence < *newest => {
                let newest = *newest;
                Told::as_a(
                    "session: what was given up comes late",
                    SessionResponse::Outdated { newest },
                )
            }
            _ => {
                let response = self.run(at, command);
                if let Some(open) = self.open.get_mut(&id) {
                    open.newest = Some((sequence, response.clone()));
                }
                Told::plainly(SessionResponse::Applied(response))
            }
        }
    }

    fn run(&mut self, at: EntryId, command: S::Command) -> S::Response {
        let response = self.machine.apply(ApplyContext::at(at), command);
        self.machine.flush();
        response
    }

    /// The session that has been silent longest ends.
    fn end_silent(&mut self) {
        let silent = self.open.iter().min_by_key(|(_, open)| open.used).map(|(id, _)| *id);
        if let Some(silent) = silent {
            self.open.remove(&silent);
        }
    }
}
