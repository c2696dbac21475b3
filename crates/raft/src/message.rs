//! Everything that travels between two nodes: the protocol's messages and what the node itself says.

use bytes::Bytes;
use raft_core::{
    BlobId, ClusterId, EntryId, Index, MembershipStep, Message, NodeId, SnapshotMeta, Term,
};

/// One frame's content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerMessage {
    /// The protocol's own.
    Raft(Message),
    /// A follower hands proposals of its clients to the leader.
    Forward(Forward),
    /// The leader refuses some of them: definitely not appended.
    ForwardRefused(ForwardRefused),
    /// A follower hands a membership change or a leadership transfer to the leader.
    ForwardAdmin(ForwardAdmin),
    /// What became of it, when that is not a membership entry.
    ForwardAdminReply(ForwardAdminReply),
    /// How a cluster forms and how a node joins it; encoded by `node::formation`.
    Formation(Bytes),
    /// A snapshot on its way; only on [`Stream::Bulk`](crate::io::Stream::Bulk).
    Snapshot(SnapshotMessage),
    /// The sender closes on purpose: no hint that it died.
    Goodbye,
}

/// Proposals on their way to the leader, each as it will stand in the log (header and command).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forward {
    /// The follower's term; a leader of another term refuses.
    pub term: Term,
    /// Which time these leave: each time has a higher number, so that an answer and a frame delivered twice are
    /// told from those of another time.
    pub attempt: u64,
    /// The receiver's epoch as the sender knew it: one from before its last start means that an earlier life of
    /// it may have appended these, and nobody can tell.
    pub epoch: u64,
    /// Entry payloads in order.
    pub payloads: Vec<Bytes>,
}

/// Why a forwarded request was not appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Not the leader, or of another term.
    NotLeader,
    /// Too much is waiting already.
    Overloaded,
    /// Leadership is being handed over.
    Transferring,
    /// The disks of a quorum are full.
    NoSpace,
}

/// Definitely not appended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForwardRefused {
    /// The term of the [`Forward`] that is answered.
    pub term: Term,
    /// Its attempt, so that a late answer to an earlier one is not taken for one to the present one.
    pub attempt: u64,
    /// Request ids from the payloads' headers.
    pub requests: Vec<u64>,
    /// Why.
    pub refusal: Refusal,
}

/// An administrator's request on its way to the leader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForwardAdmin {
    /// The asker's number.
    pub request: u64,
    /// What is asked.
    pub admin: Admin,
}

/// What an administrator can ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Admin {
    /// Change the membership; answered when the change is committed and the configuration simple again.
    Membership(Vec<MembershipStep>),
    /// Hand leadership to this voter, or to the best one.
    Transfer(Option<NodeId>),
}

/// The leader's answer to [`ForwardAdmin`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForwardAdminReply {
    /// The asker's number.
    pub request: u64,
    /// The log index of the committed change, or what went wrong in words of the operator.
    pub outcome: Result<Index, String>,
}

/// How a snapshot travels. The receiver asks for what it lacks, so that a transfer broken on either side
/// goes on where it stopped. Every message carries the number that the sender gave to the transfer; it never gives
/// one twice, in no life of its, so that what is said of an earlier transfer is told from the present one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotMessage {
    /// Sender → receiver: what there is.
    Offer {
        /// The transfer that begins.
        transfer: u64,
        /// Leader's term.
        term: Term,
        /// Position, digest and configuration.
        snapshot: SnapshotMeta,
        /// Its blobs in order.
        blobs: Vec<BlobId>,
    },
    /// Receiver → sender: for each blob of the offer, how many bytes of it are already durable here.
    Have {
        /// Which transfer.
        transfer: u64,
        /// One number a blob, in the order of the offer.
        bytes: Vec<u64>,
    },
    /// Sender → receiver: the next bytes of a blob.
    Chunk {
        /// Which transfer.
        transfer: u64,
        /// Position in the offer's list of blobs.
        blob: u32,
        /// Where in the blob.
        offset: u64,
        /// At most [`CHUNK_BYTES_MAX`] bytes.
        bytes: Bytes,
    },
    /// Receiver → sender: everything up to here is written; send more.
    Ack {
        /// Which transfer.
        transfer: u64,
        /// Position in the offer's list of blobs.
        blob: u32,
        /// Bytes of that blob written.
        offset: u64,
    },
    /// Either way: not wanted, or it failed; the text is for the log.
    Abort {
        /// Which transfer.
        transfer: u64,
        /// Why.
        reason: String,
    },
}

/// Bytes of one snapshot chunk.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// What two nodes tell each other when a connection begins, before anything else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest protocol version that the sender speaks.
    pub version_min: u16,
    /// Newest protocol version that the sender speaks.
    pub version_max: u16,
    /// The cluster that the sender belongs to; `None` before formation.
    pub cluster: Option<ClusterId>,
    /// Who it is.
    pub node: NodeId,
    /// The address at which it can be dialled.
    pub address: String,
    /// Its durable epoch (decision 10).
    pub epoch: u64,
    /// The last position it has acknowledged or knows to be durable.
    pub last_durable: EntryId,
    /// The highest epoch that the sender has ever seen of the receiver's identity; zero when none, or when
    /// the receiver is not known yet.
    pub epoch_seen: u64,
}
