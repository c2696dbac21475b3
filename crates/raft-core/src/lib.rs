//! The Raft protocol: decides, touches nothing.
//!
//! [`Raft`] is a function of its inputs (messages, proposals, reads, completed writes, the present time)
//! to a [`Ready`]. There is no clock, socket, file, thread or randomly ordered map here; the crate is
//! `no_std` so that the compiler refuses them. "§" cites the Raft paper, "thesis §" Ongaro's thesis.

#![no_std]

extern crate alloc;

mod config;
mod digest;
mod membership;
mod message;
mod ready;
mod rng;
mod state_machine;
mod types;

pub use config::{Config, ConfigError};
pub use digest::{Digest, LogIdentity};
pub use membership::{
    INFO_BYTES_MAX, Lease, MEMBERS_MAX, Member, Membership, MembershipError, MembershipStep,
};
pub use message::{
    AppendEntries, AppendEntriesReply, AppendOutcome, Envelope, Heartbeat, HeartbeatReply,
    InstallSnapshot, InstallSnapshotReply, Message, ReadIndex, ReadIndexReply, RequestVote,
    RequestVoteReply, TimeoutNow,
};
pub use ready::{
    Contradiction, Event, Fetch, Persist, ReadState, Ready, SendSnapshot, StepDownReason, Ticket,
};
pub use rng::Rng;
pub use state_machine::{
    ApplyContext, BLOB_BYTES_MAX, BlobId, Command, DecodeError, MemorySnapshot, Snapshot,
    SnapshotError, SnapshotSink, SnapshotSource, StateMachine,
};
pub use types::{
    ClusterId, Entry, EntryId, EntryKind, GroupId, HardState, Incarnation, Index, MemberId, NodeId,
    Recovered, SnapshotMeta, Term, Time,
};
