//! A client's side of a session.

use std::fmt;
use std::time::Duration;

use raft_core::{Session, StateMachine};
use tokio::time::Instant;

use super::{CachedResponse, SessionCommand, SessionResponse, Sessions};
use crate::error::ProposeError;
use crate::node::Node;

/// How many sessions may be open when a client opens one more, unless it says otherwise.
pub const SESSIONS_MAX: u32 = 10_000;
/// For how long a command is tried again, unless the client says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries that fail at once.
const PAUSE: Duration = Duration::from_millis(20);

/// An open session: one command at a time, each applied at most once however often it is tried.
#[derive(Debug)]
pub struct SessionClient {
    id: u64,
    /// Of the newest command; none before the first.
    sequence: u64,
    /// Some try of the newest command may be on its way still, or applied.
    uncertain: bool,
    patience: Duration,
}

impl SessionClient {
    /// Opens a session; 10,000 may be open then, and those that have been silent longest end.
    ///
    /// # Errors
    /// As [`Node::propose`], after tries for 30 s. A try whose outcome is unknown may leave a session behind, which
    /// nobody uses and which ends like every silent one.
    pub async fn open<S>(node: &Node<Sessions<S>>) -> Result<Self, SessionError>
    where
        S: StateMachine<Response: CachedResponse>,
    {
        Self::open_among(node, SESSIONS_MAX).await
    }

    /// As [`open`](Self::open), with at most `sessions_max` open sessions afterwards, from 1 on: with 1, everybody else's
    /// end.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_among<S>(
        node: &Node<Sessions<S>>,
        sessions_max: u32,
    ) -> Result<Self, SessionError>
    where
        S: StateMachine<Response: CachedResponse>,
    {
        let end = Instant::now() + PATIENCE;
        loop {
            match node.propose(SessionCommand::Open { sessions_max }).await {
                Ok(SessionResponse::Opened(id)) => {
                    return Ok(Self { id, sequence: 0, uncertain: false, patience: PATIENCE });
                }
                Ok(_) => return Err(SessionError::Ended { uncertain: false }),
                Err(error) => {
                    pause(&error, end).await.map_err(|()| SessionError::Propose(error))?
                }
            }
        }
    }

    /// For how long a command is tried again before its outcome is given up as unknown; 30 s by default.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The session, equal on all members.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Has a command applied, exactly once, and returns what that answered. Tries again while that may help. Once a
    /// later command of the session is applied, one that was given up is never applied afterwards.
    ///
    /// # Errors
    /// [`SessionError::is_definite`] tells "certainly not applied" from "unknown".
    pub async fn propose<S>(
        &mut self,
        node: &Node<Sessions<S>>,
        command: S::Command,
    ) -> Result<S::Response, SessionError>
    where
        S: StateMachine<Command: Clone, Response: CachedResponse>,
    {
        self.sequence += 1;
        self.uncertain = false;
        self.retry(node, command).await
    }

    /// Tries the newest command again, which must be the same, perhaps through another member: after
    /// [`propose`](Self::propose) gave up.
    ///
    /// # Errors
    /// As [`propose`](Self::propose).
    pub async fn retry<S>(
        &mut self,
        node: &Node<Sessions<S>>,
        command: S::Command,
    ) -> Result<S::Response, SessionError>
    where
        S: StateMachine<Command: Clone, Response: CachedResponse>,
    {
        let session = Session { id: self.id, sequence: self.sequence };
        let end = Instant::now() + self.patience;
        loop {
            let again = SessionCommand::Command(command.clone());
            // Set before the await: whoever drops this future does not know the outcome.
            let certain_so_far = !std::mem::replace(&mut self.uncertain, true);
            match node.propose_in_session(again, session).await {
                Ok(SessionResponse::Applied(response)) => return Ok(response),
                Ok(SessionResponse::Outdated { newest }) => {
                    return Err(SessionError::Outdated { newest });
                }
                Ok(SessionResponse::Forgotten) => return Err(SessionError::Forgotten),
                Ok(_) => return Err(SessionError::Ended { uncertain: !certain_so_far }),
                Err(error) => {
                    self.uncertain = !(certain_so_far && error.is_definite());
                    let uncertain = self.uncertain;
                    pause(&error, end).await.map_err(|()| match uncertain {
                        true => SessionError::Unknown(error),
                        false => SessionError::Propose(error),
                    })?;
                }
            }
        }
    }

    /// Ends the session. One that is dropped instead stays until it has been silent longest.
    ///
    /// # Errors
    /// As [`Node::propose`]; the session may then be open or not.
    pub async fn close<S>(self, node: &Node<Sessions<S>>) -> Result<(), ProposeError>
    where
        S: StateMachine<Response: CachedResponse>,
    {
        node.propose(SessionCommand::Close { session: self.id }).await.map(drop)
    }
}

/// Waits before the next try, or says that there should be none.
async fn pause(error: &ProposeError, end: Instant) -> Result<(), ()> {
    let helps = match error {
        ProposeError::NoLeader
        | ProposeError::Overloaded
        | ProposeError::NoSpace
        | ProposeError::Superseded
        | ProposeError::Unknown
        | ProposeError::TimedOut => true,
        ProposeError::TooLarge { .. }
        | ProposeError::FeatureLevel { .. }
        | ProposeError::Stopped { .. } => false,
    };
    if !helps || Instant::now() >= end {
        return Err(());
    }
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

/// Why a command in a session has no response.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SessionError {
    /// Definitely not applied, by any of the tries.
    Propose(ProposeError),
    /// Unknown: some try may be applied now, later or never, but at most one. Trying again is safe.
    Unknown(ProposeError),
    /// The session has ended. The last try was not applied.
    Ended {
        /// An earlier try may have been, before the session ended.
        uncertain: bool,
    },
    /// Definitely not applied by this try: the session has applied a later command, because two clients use it.
    Outdated {
        /// The later command's number.
        newest: u64,
    },
    /// Applied, once; what it answered cannot be read by this version of the state machine.
    Forgotten,
}

impl SessionError {
    /// Whether it is certain that the command was not and will never be applied.
    #[must_use]
    pub const fn is_definite(&self) -> bool {
        match self {
            Self::Propose(_) => true,
            Self::Ended { uncertain } => !*uncertain,
            Self::Unknown(_) | Self::Outdated { .. } | Self::Forgotten => false,
        }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Propose(error) => write!(f, "{error}"),
            Self::Unknown(error) => {
                write!(f, "{error}; some try may still be applied, at most once")
            }
            Self::Ended { uncertain: false } => write!(f, "the session has ended; not applied"),
            Self::Ended { uncertain: true } => {
                write!(f, "the session has ended: outcome of an earlier try unknown")
            }
            Self::Forgotten => {
                write!(f, "applied; its answer is of another version and cannot be read")
            }
            Self::Outdated { newest } => write!(
                f,
                "command {newest} of the session is applied already, and this one comes before it: two clients use one session"
            ),
        }
    }
}

impl std::error::Error for SessionError {}
