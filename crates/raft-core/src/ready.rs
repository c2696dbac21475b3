//! What the protocol wants done: the only output of [`Raft`](crate::Raft).
//!
//! The order "durable, then sent, then applied, then answered" is carried by types. `messages` may leave
//! at once. Whatever depends on the disk (votes, acknowledgements, requests for votes, a leader's own
//! acknowledgement of its entries) is *not in here at all*: the protocol keeps it until the [`Ticket`]
//! of the write is handed back to [`Raft::persisted`](crate::Raft::persisted), and a ticket cannot be
//! copied, made up, or handed back twice.

use alloc::vec::Vec;

use crate::message::Envelope;
use crate::types::{Entry, EntryId, HardState, Index, NodeId, SnapshotMeta, Term};

/// One turn's work for the driver.
#[derive(Debug, Default)]
pub struct Ready {
    /// May leave at once, in any order relative to the write.
    pub messages: Vec<Envelope>,
    /// To be made durable, in the order in which these are handed out.
    pub persist: Option<Persist>,
    /// Restore the state machine from this snapshot before applying `committed`. The snapshot's blobs are
    /// already durable; this node's log may not yet be reset.
    pub restore: Option<SnapshotMeta>,
    /// Committed entries, contiguous with the last ones handed out, each handed out once.
    pub committed: Vec<Entry>,
    /// Reads that got their index, or cannot have one here and now.
    pub reads: Vec<ReadState>,
    /// Old entries that a lagging follower needs and that are no longer in memory: read them from the log
    /// and hand them to [`Raft::entries_read`](crate::Raft::entries_read).
    pub fetches: Vec<Fetch>,
    /// Followers that need the newest snapshot. Answer with
    /// [`Raft::snapshot_failed`](crate::Raft::snapshot_failed) when the transfer breaks.
    pub snapshots: Vec<SendSnapshot>,
    /// What happened, for logs, metrics and waiters.
    pub events: Vec<Event>,
}

impl Ready {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.persist.is_none()
            && self.restore.is_none()
            && self.committed.is_empty()
            && self.reads.is_empty()
            && self.fetches.is_empty()
            && self.snapshots.is_empty()
            && self.events.is_empty()
    }
}

/// One write to the log, atomic in this order: hard state, snapshot, truncation, entries, compaction.
///
/// The *hard state comes first*: an entry of a term must never be durable before the term is (openraft's
/// `io_ordering`, B6 in the tests).
#[derive(Debug)]
pub struct Persist {
    /// Term and vote, when they changed.
    pub hard_state: Option<HardState>,
    /// Reset the whole log to begin after this snapshot, whose blobs are already durable.
    pub snapshot: Option<SnapshotMeta>,
    /// Remove the entries at and after this index: they conflict with the leader's.
    pub truncate_from: Option<Index>,
    /// Append these; contiguous with what is left after the truncation.
    pub entries: Vec<Entry>,
    /// Entries up to and including this index may be forgotten; they are covered by a durable snapshot.
    pub compact_to: Option<Index>,
    /// Hand this back when everything above is durable.
    pub ticket: Ticket,
}

/// Proof that a write was asked for. Handing it back says that it, and every one before it, is durable.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a write whose ticket is dropped is never acknowledged"]
pub struct Ticket {
    pub(crate) sequence: u64,
}

impl Ticket {
    /// A ticket for tests of logs, which have no protocol instance to ask for a write.
    #[doc(hidden)]
    pub const fn for_tests(sequence: u64) -> Self {
        Self { sequence }
    }

    /// A ticket for a log that is copied while nothing of the protocol runs. It proves nothing: writes are counted
    /// from 1, and handing this one back acknowledges none.
    #[doc(hidden)]
    pub const fn for_copies() -> Self {
        Self { sequence: 0 }
    }

    /// Counts the writes of this process from 1; later writes have higher numbers.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// The fate of one [`Raft::read_index`](crate::Raft::read_index).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadState {
    /// The number given with the request.
    pub id: u64,
    /// Serve the read from a state at or after this index. `None`: no leader confirmed it; ask again.
    pub index: Option<Index>,
}

/// A request for old entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// The follower that needs them.
    pub to: NodeId,
    /// The first index wanted.
    pub from_index: Index,
    /// The last index wanted, inclusive; fewer may be delivered.
    pub to_index: Index,
    /// Stop after about this many payload bytes; always deliver at least one entry.
    pub bytes_max: usize,
    /// The term in which it was asked; a later one makes the answer void.
    pub term: Term,
}

/// A request to stream the newest snapshot to a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendSnapshot {
    /// The follower.
    pub to: NodeId,
    /// The leader's term, for the stream's header.
    pub term: Term,
    /// The snapshot must reach at least this index to be of use.
    pub index_min: Index,
}

/// Something worth telling. Never needed for correctness.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A pre-vote began.
    BecamePreCandidate {
        /// The term that it would campaign in.
        term: Term,
    },
    /// An election began (§5.2).
    BecameCandidate {
        /// Its term.
        term: Term,
    },
    /// This node leads.
    BecameLeader {
        /// Its term.
        term: Term,
    },
    /// The leader's first entry of its own term is committed: reads and membership changes go ahead.
    LeadershipEstablished {
        /// Its term.
        term: Term,
    },
    /// This node follows; `leader` when known.
    BecameFollower {
        /// The term.
        term: Term,
        /// Whom.
        leader: Option<NodeId>,
    },
    /// A leader gave up leadership by itself.
    SteppedDown {
        /// The term that it led.
        term: Term,
        /// Why.
        reason: StepDownReason,
    },
    /// A configuration took effect (on append) or was rolled back (on truncation).
    MembershipChanged {
        /// Where in the log it stands.
        index: Index,
        /// The one in force now.
        membership: crate::Membership,
    },
    /// A configuration is committed.
    MembershipCommitted {
        /// Where in the log it stands.
        index: Index,
    },
    /// A membership change that waited was dropped before anything was appended: definitely not applied.
    MembershipDropped {
        /// The number given with it.
        request: u64,
        /// Why.
        reason: crate::MembershipError,
    },
    /// Conflicting entries were removed from the log.
    Truncated {
        /// The first one.
        from: EntryId,
    },
    /// A leadership transfer ended.
    TransferEnded {
        /// Its target.
        target: NodeId,
        /// Why it failed; `None` when this node stepped down for a newer term.
        aborted: bool,
    },
    /// A peer said something that cannot be: report it and close its connection.
    Contradiction {
        /// Who.
        from: NodeId,
        /// What.
        what: Contradiction,
    },
    /// A message came from or for a node that the configuration does not know.
    UnknownPeer {
        /// Who.
        from: NodeId,
        /// It is known to have been removed.
        removed: bool,
    },
}

/// Why a leader stepped down without seeing a newer term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StepDownReason {
    /// No contact with a quorum for an election timeout (thesis §6.2).
    NoQuorum,
    /// Its own disk did not answer in time.
    DiskStalled,
    /// It is no longer a voter of the committed configuration (§6).
    Removed,
}

/// What a faulty peer can say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contradiction {
    /// Another leader in the same term.
    TwoLeaders,
    /// Same position, other digest.
    DigestMismatch(EntryId),
    /// A conflict below this node's commit index.
    ConflictBelowCommit(EntryId),
    /// An acknowledgement beyond the leader's log.
    AckBeyondLog(Index),
    /// Entries that are not contiguous with their previous position.
    NotContiguous,
    /// A membership entry that does not decode.
    BadMembership(EntryId),
    /// A term or an index that nobody can have reached.
    Absurd,
}
