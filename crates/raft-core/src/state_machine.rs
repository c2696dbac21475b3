//! The state machine: what users of the library write.
//!
//! Commands are applied in log order on every member, each exactly once for one life of the state
//! (restored from a snapshot, then fed with the log after it). `apply` must be deterministic: no clock, no
//! randomness, no iteration in hash order, nothing but the state and the command.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use bytes::{Bytes, BytesMut};

use crate::digest::Digest;
use crate::types::EntryId;

/// The longest blob of a snapshot, in bytes.
pub const BLOB_BYTES_MAX: usize = 16 << 20;

/// A replicated state machine (§2).
pub trait StateMachine: Send + Sized + 'static {
    /// What is replicated.
    type Command: Command;
    /// What applying a command answers to the proposer; never leaves the proposer's process.
    type Response: Send + 'static;
    /// A question that changes nothing.
    type Query: Send + 'static;
    /// Its answer.
    type Answer: Send + 'static;
    /// A consistent picture of the state, taken without stopping it.
    type Snapshot: Snapshot;

    /// The newest [`Command::feature_level`] that this program applies. Raise it with every release that brings
    /// commands which the one before cannot apply.
    const FEATURE_LEVEL: u16 = 1;

    /// Applies one committed command. A command that makes no sense must be answered, not panicked about.
    fn apply(&mut self, context: ApplyContext, command: Self::Command) -> Self::Response;

    /// Called after a batch of [`apply`](Self::apply), before any of its responses is delivered: the moment
    /// to make the batch visible to concurrent readers.
    fn flush(&mut self) {}

    /// Answers a question about the state as it is.
    fn query(&self, query: Self::Query) -> Self::Answer;

    /// Takes a picture of the state as it is. Must be fast; the work belongs into [`Snapshot::write`], which
    /// runs on another thread while further commands are applied.
    fn snapshot(&self) -> Self::Snapshot;

    /// Replaces the state by the one that `source` holds.
    ///
    /// # Errors
    /// When a blob cannot be read or does not decode; the state is then unspecified and the node stops.
    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError>;

    /// A digest over the whole replicated state, equal on all members at equal applied indexes. May cost
    /// time proportional to the state.
    fn digest(&self) -> Digest;
}

/// A command that can be written into the log. The encoding must stay decodable for ever.
pub trait Command: Send + Sized + 'static {
    /// Appends the encoded command to `out`.
    fn encode(&self, out: &mut BytesMut);

    /// Decodes one command from exactly `bytes`.
    ///
    /// # Errors
    /// When the bytes are no command of this version. The node then stops rather than skip an entry.
    fn decode(bytes: Bytes) -> Result<Self, DecodeError>;

    /// What every member of the cluster must know before this command may stand in the log: with a lower level it is
    /// refused where it is proposed. From 1 on.
    fn feature_level(&self) -> u16 {
        1
    }

    /// Whether it may make the state larger: such commands are refused while the disk has no space for the log's next
    /// segment. What the last one has left is for the others.
    fn needs_space(&self) -> bool {
        true
    }
}

/// Where in the log a command stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApplyContext {
    /// The entry.
    pub id: EntryId,
    /// The client's session, when the command was proposed in one.
    pub session: Option<Session>,
}

impl ApplyContext {
    /// A command at this position, proposed without a session.
    #[must_use]
    pub const fn at(id: EntryId) -> Self {
        Self { id, session: None }
    }
}

/// A command's place in its client's session: one that is proposed again with the same numbers is the same command,
/// and a state machine that keeps sessions applies it once (thesis §6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    /// The session.
    pub id: u64,
    /// Counts the session's commands.
    pub sequence: u64,
}

/// Bytes in the log that this version does not understand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DecodeError(pub String);

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the command does not decode: {}", self.0)
    }
}

impl core::error::Error for DecodeError {}

/// Names a blob by its content: XXH3-128 of the bytes, and how many they are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlobId {
    /// XXH3-128 of the content.
    pub digest: Digest,
    /// Length in bytes.
    pub len: u64,
}

impl BlobId {
    /// The name of `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        // A usize is at most 64 bits on every supported target.
        let len = u64::try_from(content.len()).unwrap_or(u64::MAX);
        Self { digest: Digest(xxhash_rust::xxh3::xxh3_128(content)), len }
    }

    /// One number for a whole snapshot: XXH3-128 of the names of its blobs, in order.
    #[must_use]
    pub fn digest_of(blobs: &[Self]) -> Digest {
        let mut names = Vec::with_capacity(blobs.len() * 24);
        for Self { digest, len } in blobs {
            names.extend_from_slice(&digest.0.to_le_bytes());
            names.extend_from_slice(&len.to_le_bytes());
        }
        Digest(xxhash_rust::xxh3::xxh3_128(&names))
    }
}

/// A picture of the state at one index, on its way to disk.
pub trait Snapshot: Send + 'static {
    /// Writes the picture as a sequence of blobs. Blobs that an earlier snapshot of this node already wrote
    /// are named again by [`SnapshotSink::reuse`] and cost nothing. Two members that write the snapshot of
    /// one index must name the same blobs: one whose blobs are not those of a quorum is taken for damaged and rebuilt. A
    /// program that writes other blobs of the same state has a higher [`StateMachine::FEATURE_LEVEL`]; levels are not
    /// compared with each other.
    ///
    /// # Errors
    /// What the sink says. The snapshot is then given up; the older one stays.
    fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError>;
}

/// Where a snapshot is written to.
pub trait SnapshotSink {
    /// Appends a new blob of at most [`BLOB_BYTES_MAX`] bytes. Durable when the whole snapshot is.
    ///
    /// # Errors
    /// When the disk refuses.
    fn put(&mut self, content: &[u8]) -> Result<BlobId, SnapshotError>;

    /// Appends a blob that is already on disk; false when it is not and must be [`put`](Self::put).
    ///
    /// # Errors
    /// When the disk refuses.
    fn reuse(&mut self, id: BlobId) -> Result<bool, SnapshotError>;
}

/// Where a snapshot is read from. Every byte was checked before it is returned.
pub trait SnapshotSource: Sync {
    /// The blobs in the order in which they were written.
    fn blobs(&self) -> &[BlobId];

    /// The content of the blob at `position`.
    ///
    /// # Errors
    /// When it is missing or damaged.
    fn read(&self, position: usize) -> Result<Bytes, SnapshotError>;
}

/// Why a snapshot cannot be written or read.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The disk refused; the text names the file and the error.
    Disk(String),
    /// A blob is not what its name says.
    Damaged(BlobId),
    /// A blob is not there.
    Missing(BlobId),
    /// The blobs are intact and still make no sense to this version.
    Undecodable(String),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(what) => write!(f, "disk: {what}"),
            Self::Damaged(id) => write!(f, "snapshot blob {} is damaged", id.digest),
            Self::Missing(id) => write!(f, "snapshot blob {} is missing", id.digest),
            Self::Undecodable(what) => write!(f, "the snapshot does not decode: {what}"),
        }
    }
}

impl core::error::Error for SnapshotError {}

/// A snapshot in memory: for tests and for state machines that copy theirs.
#[derive(Clone, Debug, Default)]
pub struct MemorySnapshot {
    blobs: Vec<(BlobId, Bytes)>,
    ids: Vec<BlobId>,
}

impl SnapshotSink for MemorySnapshot {
    fn put(&mut self, content: &[u8]) -> Result<BlobId, SnapshotError> {
        let id = BlobId::of(content);
        self.blobs.push((id, Bytes::copy_from_slice(content)));
        self.ids.push(id);
        Ok(id)
    }

    fn reuse(&mut self, id: BlobId) -> Result<bool, SnapshotError> {
        let Some(known) = self.blobs.iter().find(|blob| blob.0 == id).cloned() else {
            return Ok(false);
        };
        self.blobs.push(known);
        self.ids.push(id);
        Ok(true)
    }
}

impl SnapshotSource for MemorySnapshot {
    fn blobs(&self) -> &[BlobId] {
        &self.ids
    }

    fn read(&self, position: usize) -> Result<Bytes, SnapshotError> {
        match self.blobs.get(position) {
            Some((_, content)) => Ok(content.clone()),
            None => Err(SnapshotError::Undecodable(String::from("no such blob"))),
        }
    }
}
