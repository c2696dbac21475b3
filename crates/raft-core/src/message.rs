//! What nodes say to each other: one struct per RPC, with the paper's field names.
//!
//! RPCs are one-way messages here; a reply is a message of its own. docs/divergence.md lists the fields
//! that the paper does not have.

use alloc::vec::Vec;
use core::fmt;

use crate::digest::Digest;
use crate::types::{Entry, EntryId, Index, NodeId, SnapshotMeta, Term};

/// A message with its two ends. Both ends include the incarnation: a message for or from another
/// incarnation is dropped at the gate.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Who says it.
    pub from: NodeId,
    /// Whom it is for.
    pub to: NodeId,
    /// What is said.
    pub message: Message,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {} {:?}", self.from, self.to, self.message)
    }
}

/// Everything that one node's protocol says to another's.
#[derive(Clone, PartialEq, Eq)]
pub enum Message {
    /// A candidate gathers votes (§5.2), or asks beforehand whether it would get them (thesis §9.6).
    RequestVote(RequestVote),
    /// The answer.
    RequestVoteReply(RequestVoteReply),
    /// A leader replicates entries (§5.3).
    AppendEntries(AppendEntries),
    /// The answer, sent once the entries are durable at the follower.
    AppendEntriesReply(AppendEntriesReply),
    /// A leader asserts itself, and confirms reads by a round number (§8, thesis §6.4).
    Heartbeat(Heartbeat),
    /// The answer.
    HeartbeatReply(HeartbeatReply),
    /// A complete, verified snapshot has arrived by the snapshot stream (§7). The chunks of Figure 13 are
    /// the transport's affair; this is their end, delivered by the receiving node to itself.
    InstallSnapshot(InstallSnapshot),
    /// The answer, sent once the snapshot is durable and the log reset.
    InstallSnapshotReply(InstallSnapshotReply),
    /// The leader tells its chosen successor to start an election at once (thesis §3.10).
    TimeoutNow(TimeoutNow),
    /// A follower asks for an index at which reads are linearizable (thesis §6.4).
    ReadIndex(ReadIndex),
    /// The answer.
    ReadIndexReply(ReadIndexReply),
}

impl Message {
    /// The sender's term when it said this.
    #[must_use]
    pub const fn term(&self) -> Term {
        match self {
            Self::RequestVote(m) => m.term,
            Self::RequestVoteReply(m) => m.term,
            Self::AppendEntries(m) => m.term,
            Self::AppendEntriesReply(m) => m.term,
            Self::Heartbeat(m) => m.term,
            Self::HeartbeatReply(m) => m.term,
            Self::InstallSnapshot(m) => m.term,
            Self::InstallSnapshotReply(m) => m.term,
            Self::TimeoutNow(m) => m.term,
            Self::ReadIndex(m) => m.term,
            Self::ReadIndexReply(m) => m.term,
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RequestVote(m) => m.fmt(f),
            Self::RequestVoteReply(m) => m.fmt(f),
            Self::AppendEntries(m) => m.fmt(f),
            Self::AppendEntriesReply(m) => m.fmt(f),
            Self::Heartbeat(m) => m.fmt(f),
            Self::HeartbeatReply(m) => m.fmt(f),
            Self::InstallSnapshot(m) => m.fmt(f),
            Self::InstallSnapshotReply(m) => m.fmt(f),
            Self::TimeoutNow(m) => m.fmt(f),
            Self::ReadIndex(m) => m.fmt(f),
            Self::ReadIndexReply(m) => m.fmt(f),
        }
    }
}

/// RequestVote (Figure 2). The candidate's id is the envelope's `from`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestVote {
    /// Candidate's term; in a pre-vote the term it would campaign in.
    pub term: Term,
    /// `last_log_index` and `last_log_term`: the candidate's last entry.
    pub last_log: EntryId,
    /// Only asks: the voter promises nothing and its term stays (thesis §9.6).
    pub pre_vote: bool,
    /// The present leader asked for this election: voters do not defend it (thesis §4.2.3).
    pub leader_transfer: bool,
}

/// Answer to [`RequestVote`]. A granted vote is sent only once the vote is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestVoteReply {
    /// The voter's `current_term`, for the candidate to update itself; in a granted pre-vote the term asked
    /// about.
    pub term: Term,
    /// Whether the candidate has this voter's (pre-)vote.
    pub vote_granted: bool,
    /// Whether this answers a pre-vote.
    pub pre_vote: bool,
}

/// AppendEntries (Figure 2), never empty of purpose: heartbeats are [`Heartbeat`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppendEntries {
    /// Leader's term.
    pub term: Term,
    /// `prev_log_index` and `prev_log_term`: the entry immediately before the new ones.
    pub prev_log: EntryId,
    /// Digest of the leader's log up to `prev_log`.
    pub prev_digest: Digest,
    /// Contiguous entries after `prev_log`; may be empty in a probe.
    pub entries: Vec<Entry>,
    /// The leader's `commit_index`. The follower commits no further than the last entry it has verified.
    pub leader_commit: Index,
}

impl AppendEntries {
    /// The last position that this message lets the follower verify.
    #[must_use]
    pub fn last(&self) -> EntryId {
        self.entries.last().map_or(self.prev_log, |entry| entry.id)
    }
}

/// Answer to [`AppendEntries`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppendEntriesReply {
    /// The follower's `current_term`.
    pub term: Term,
    /// What became of the entries.
    pub outcome: AppendOutcome,
}

/// What a follower says of an AppendEntries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AppendOutcome {
    /// The follower's log equals that of the leader of this term up to `match_index`, durably. Stays true
    /// for the whole term, however late or often the message arrives.
    Accepted {
        /// Highest index known to match and durable.
        match_index: Index,
    },
    /// The follower's log has no entry equal to `prev_log`.
    Rejected {
        /// `prev_log.index` of the refused message.
        prev_log_index: Index,
        /// The follower's own entry with the highest index not above `prev_log_index` whose term is not above
        /// `prev_log.term`: everything after it conflicts (§5.3, fast back-off).
        hint: EntryId,
    },
}

/// A leader's sign of life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heartbeat {
    /// Leader's term.
    pub term: Term,
    /// No further than what this follower has acknowledged as matching.
    pub leader_commit: Index,
    /// Counts the leader's rounds: an answer to round r proves leadership at some time after r began.
    /// Zero wants no answer: it only tells the commit index.
    pub round: u64,
}

/// Answer to [`Heartbeat`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeartbeatReply {
    /// The follower's `current_term`.
    pub term: Term,
    /// The round answered; zero when this only tells a deposed leader the newer term.
    pub round: u64,
    /// Highest index at which this follower has verified, since it last started, that its log equals that of
    /// the leader of this term. Says nothing about durability. The leader probes when it is behind.
    pub verified: Index,
}

/// The end of a snapshot transfer (Figure 13 without the bytes).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InstallSnapshot {
    /// Leader's term.
    pub term: Term,
    /// What the snapshot contains. Its blobs are already durable here.
    pub snapshot: SnapshotMeta,
}

/// Answer to [`InstallSnapshot`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InstallSnapshotReply {
    /// The follower's `current_term`.
    pub term: Term,
    /// Highest index at which the follower's durable state equals the leader's log.
    pub match_index: Index,
}

/// Start an election now (thesis §3.10).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimeoutNow {
    /// Leader's term.
    pub term: Term,
}

/// A follower asks the leader for a read index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadIndex {
    /// The follower's term.
    pub term: Term,
    /// The asker's own number for this request, unique in its lifetime.
    pub id: u64,
}

/// The leader's answer, after a round that began later than the request arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadIndexReply {
    /// Leader's term.
    pub term: Term,
    /// The asker's number.
    pub id: u64,
    /// A state at or after this index reflects every write acknowledged before the request; `None` when
    /// this node is not (or no longer) the leader and the asker must ask again elsewhere.
    pub index: Option<Index>,
}
