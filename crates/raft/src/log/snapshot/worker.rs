//! Sender and receiver of snapshots: requests in, effects out.

use raft_core::{EntryId, NodeId, SendSnapshot, Snapshot, SnapshotError, SnapshotMeta, Term};

use super::SnapshotStore;
use crate::io::Disk;
use crate::message::SnapshotMessage;

/// What the snapshot thread can be asked for.
#[derive(Debug)]
pub enum SnapshotRequest<S> {
    /// Write the picture of the own state at `meta`.
    Write(SnapshotMeta, S),
    /// Stream the newest snapshot to a follower.
    Send(SendSnapshot),
    /// A peer said this on the bulk stream.
    Message(NodeId, SnapshotMessage),
    /// The bulk connection to a peer broke: its transfers end; what has arrived is kept.
    Disconnected(NodeId),
    /// The log now durably begins at or after this position: forget older snapshots.
    Prune(EntryId),
}

/// What the snapshot thread wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotEffect {
    /// Send this on the bulk stream.
    Send(NodeId, SnapshotMessage),
    /// The own snapshot is durable: `Raft::snapshot_taken`.
    Written(SnapshotMeta),
    /// The own snapshot could not be written; the older one stays.
    WriteFailed(SnapshotMeta, SnapshotError),
    /// A peer's snapshot is complete and durable here: step `InstallSnapshot { term, snapshot }`.
    Received {
        /// The sender.
        from: NodeId,
        /// The term of its offer.
        term: Term,
        /// What it stands for.
        snapshot: SnapshotMeta,
    },
    /// The follower has everything.
    Sent(NodeId, EntryId),
    /// The transfer broke: `Raft::snapshot_failed`. The text is for the operator.
    SendFailed(NodeId, String),
}

/// What travelled, in bytes of blob content.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SnapshotCounters {
    /// Sent in chunks.
    pub sent_bytes: u64,
    /// Received in chunks and written.
    pub received_bytes: u64,
    /// Not sent because the receiver had it.
    pub skipped_bytes: u64,
}

/// Owns the [`SnapshotStore`] on its thread.
#[derive(Debug)]
pub struct SnapshotWorker<D: Disk> {
    store: SnapshotStore<D>,
    counters: SnapshotCounters,
}

impl<D: Disk> SnapshotWorker<D> {
    /// A worker for an open store.
    #[must_use]
    pub fn new(store: SnapshotStore<D>) -> Self {
        Self { store, counters: SnapshotCounters::default() }
    }

    /// Handles one request.
    pub fn handle<S: Snapshot>(&mut self, request: SnapshotRequest<S>) -> Vec<SnapshotEffect> {
        let _ = (request, &mut self.store);
        Vec::new()
    }

    /// What travelled so far.
    #[must_use]
    pub const fn counters(&self) -> SnapshotCounters {
        self.counters
    }

    /// The files, for restoring.
    #[must_use]
    pub const fn store(&self) -> &SnapshotStore<D> {
        &self.store
    }
}
