//! Exactly-once commands for clients that retry (§8, thesis §6.3).
//!
//! A client that hears nothing cannot know whether its command was applied, and a second try may apply it twice.
//! [`Sessions`] goes around any state machine and remembers for each client's session the number of its last command and what that
//! answered: a command that arrives again is answered from memory. The table is replicated state, part of
//! snapshots and of the digest.
//!
//! ```no_run
//! # async fn example<S>(machine: S, command: S::Command) -> Result<(), Box<dyn std::error::Error>>
//! # where S: raft::core::StateMachine<Response = u64>, S::Command: Clone {
//! let node = raft::Node::builder(raft::Sessions::new(machine)).start().await?;
//! let mut session = raft::SessionClient::open(&node).await?;
//! session.propose(&node, command).await?; // tries again by itself, is applied once
//! session.close(&node).await?;
//! # Ok(()) }
//! ```
//!
//! A session ends when it is closed, when [`SessionCommand::Expire`] says so, or when more are open than
//! [`SessionCommand::Open`] allows or all remembered responses take more than 64 MiB: then the one that has been silent
//! longest goes. All of it follows from the log, so that members agree; no clock is involved.
//!
//! Sessions are there from the first entry on, or never: a log that was written without them cannot be read with them.

mod client;
mod table;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use raft_core::{
    ApplyContext, BlobId, Command, DecodeError, Digest, Index, Snapshot, SnapshotError,
    SnapshotSink, SnapshotSource, StateMachine, mutant,
};

pub use client::{SESSIONS_MAX, SessionClient, SessionError};
use table::Table;

/// Begins every [`SessionCommand`], so that a log that was written without sessions is refused; fixed for ever, like the
/// kinds below.
const MAGIC: u8 = 0xa5;
const COMMAND: u8 = 1;
const OPEN: u8 = 2;
const CLOSE: u8 = 3;
const EXPIRE: u8 = 4;

/// A response that a session remembers, and therefore a snapshot holds. The encoding must stay decodable for ever.
pub trait CachedResponse: Sized + Send + 'static {
    /// Appends the encoded response to `out`.
    fn encode(&self, out: &mut BytesMut);

    /// Decodes one response from exactly `bytes`.
    ///
    /// # Errors
    /// When the bytes are no response of this version.
    fn decode(bytes: Bytes) -> Result<Self, DecodeError>;
}

impl CachedResponse for () {
    fn encode(&self, _: &mut BytesMut) {}

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        <[u8; 0]>::try_from(bytes.as_ref()).map(|_| ()).map_err(|_| wrong("nothing"))
    }
}

impl CachedResponse for u64 {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(*self);
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        bytes.as_ref().try_into().map(Self::from_le_bytes).map_err(|_| wrong("8 bytes"))
    }
}

impl CachedResponse for Bytes {
    fn encode(&self, out: &mut BytesMut) {
        out.put_slice(self);
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        Ok(bytes)
    }
}

/// A state machine that applies each command of a session once.
#[derive(Debug)]
pub struct Sessions<S: StateMachine> {
    machine: S,
    table: Table,
}

impl<S: StateMachine<Response: CachedResponse>> Sessions<S> {
    /// Goes around a state machine; no session is open.
    pub const fn new(machine: S) -> Self {
        Self { machine, table: Table::new() }
    }

    /// The state machine inside.
    pub const fn machine(&self) -> &S {
        &self.machine
    }
}

/// What is replicated by [`Sessions`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionCommand<C> {
    /// A command of the state machine inside; applied once when it was proposed in a session, else each time.
    Command(C),
    /// Opens a session, whose id is the index of this entry.
    Open {
        /// As many sessions may be open afterwards, from 1 on; those that have been silent longest are ended.
        sessions_max: u32,
    },
    /// Ends a session; nothing happens when it has ended.
    Close {
        /// The session.
        session: u64,
    },
    /// Ends every session that applied nothing at this index or later.
    Expire {
        /// The index.
        silent_since: Index,
    },
}

/// What [`Sessions`] answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionResponse<R> {
    /// The command is applied, by this entry or an earlier one; this is what it answered.
    Applied(R),
    /// A session with this id is open.
    Opened(u64),
    /// So many sessions ended.
    Ended(u64),
    /// This entry applied nothing, because the session has ended. Whether an earlier entry applied the same command
    /// cannot be known any more.
    NoSession,
    /// The command is applied, by an earlier entry; what it answered was written by another version of the state
    /// machine, and this one cannot read it.
    Forgotten,
    /// This entry applied nothing, because a later command of the session has been applied, of this number.
    Outdated {
        /// The newest applied command's number.
        newest: u64,
    },
}

impl<C: Command> Command for SessionCommand<C> {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(MAGIC);
        match self {
            Self::Command(command) => {
                out.put_u8(COMMAND);
                command.encode(out);
            }
            Self::Open { sessions_max } => {
                out.put_u8(OPEN);
                out.put_u32_le(*sessions_max);
            }
            Self::Close { session } => {
                out.put_u8(CLOSE);
                out.put_u64_le(*session);
            }
            Self::Expire { silent_since } => {
                out.put_u8(EXPIRE);
                out.put_u64_le(silent_since.0);
            }
        }
    }

    fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let short = |_| wrong("more bytes");
        if bytes.try_get_u8().map_err(short)? != MAGIC {
            return Err(wrong(
                "a command in a session: this log was written without sessions, and one",
            ));
        }
        let command = match bytes.try_get_u8().map_err(short)? {
            COMMAND => return C::decode(bytes).map(Self::Command),
            OPEN => Self::Open { sessions_max: bytes.try_get_u32_le().map_err(short)? },
            CLOSE => Self::Close { session: bytes.try_get_u64_le().map_err(short)? },
            EXPIRE => Self::Expire { silent_since: Index(bytes.try_get_u64_le().map_err(short)?) },
            other => return Err(DecodeError(format!("a session command of kind {other}"))),
        };
        if bytes.has_remaining() {
            return Err(wrong("fewer bytes"));
        }
        Ok(command)
    }

    fn feature_level(&self) -> u16 {
        match self {
            Self::Command(command) => command.feature_level(),
            Self::Open { .. } | Self::Close { .. } | Self::Expire { .. } => 1,
        }
    }

    fn needs_space(&self) -> bool {
        match self {
            Self::Command(command) => command.needs_space(),
            Self::Open { .. } => true,
            Self::Close { .. } | Self::Expire { .. } => false,
        }
    }
}

impl<S: StateMachine<Response: CachedResponse>> StateMachine for Sessions<S> {
    type Command = SessionCommand<S::Command>;
    type Response = SessionResponse<S::Response>;
    type Query = S::Query;
    type Answer = S::Answer;
    type Snapshot = Picture<S::Snapshot>;

    const FEATURE_LEVEL: u16 = S::FEATURE_LEVEL;

    fn apply(&mut self, context: ApplyContext, command: Self::Command) -> Self::Response {
        let index = context.id.index;
        match command {
            SessionCommand::Open { sessions_max } => {
                self.table.open(index, sessions_max);
                SessionResponse::Opened(index.0)
            }
            SessionCommand::Close { session } => SessionResponse::Ended(self.table.close(session)),
            SessionCommand::Expire { silent_since } => {
                SessionResponse::Ended(self.table.expire(silent_since))
            }
            SessionCommand::Command(command) => {
                let Some(session) = context.session else {
                    return SessionResponse::Applied(self.machine.apply(context, command));
                };
                let machine = &mut self.machine;
                self.table.once(index, session, || machine.apply(context, command))
            }
        }
    }

    fn flush(&mut self) {
        self.machine.flush();
    }

    fn query(&self, query: Self::Query) -> Self::Answer {
        self.machine.query(query)
    }

    fn snapshot(&self) -> Self::Snapshot {
        let table = if mutant::is_active(33) { Table::new() } else { self.table.clone() };
        Picture { table, machine: self.machine.snapshot() }
    }

    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        let (table, blobs) = Table::read(source)?;
        self.machine.restore(&Rest { source, skipped: blobs })?;
        self.table = table;
        Ok(())
    }

    fn digest(&self) -> Digest {
        let mut all = self.table.encode();
        all.put_u128_le(self.machine.digest().0);
        BlobId::of(&all).digest
    }
}

/// The table and the picture of the state machine inside, which share a snapshot: first the blobs of the one, then of the other.
#[derive(Debug)]
pub struct Picture<P> {
    table: Table,
    machine: P,
}

impl<P: Snapshot> Snapshot for Picture<P> {
    fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        self.table.write(sink)?;
        self.machine.write(sink)
    }
}

/// A snapshot without its first blobs.
struct Rest<'a> {
    source: &'a dyn SnapshotSource,
    skipped: usize,
}

impl SnapshotSource for Rest<'_> {
    fn blobs(&self) -> &[BlobId] {
        self.source.blobs().get(self.skipped..).unwrap_or_default()
    }

    fn read(&self, position: usize) -> Result<Bytes, SnapshotError> {
        self.source.read(self.skipped + position)
    }
}

fn wrong(wanted: &str) -> DecodeError {
    DecodeError(format!("{wanted} expected"))
}

#[cfg(test)]
mod tests;
