//! The Raft protocol: decides, touches nothing.
//!
//! [`Raft`] is a function of its inputs (messages, proposals, reads, completed writes, the present time)
//! to a [`Ready`]. There is no clock, socket, file, thread or randomly ordered map here; the crate is
//! `no_std` so that the compiler refuses them. "§" cites the Raft paper, "thesis §" Ongaro's thesis; "B12"
//! and the like are the scenarios of docs/testing.md, bugs that other implementations shipped.

#![no_std]

extern crate alloc;

mod candidate;
mod commit;
mod config;
mod configurations;
mod digest;
mod follower;
pub mod invariants;
mod leader;
mod log_view;
mod membership;
mod membership_change;
mod message;
pub mod mutant;
mod progress;
mod quorum;
mod raft;
mod read;
mod ready;
mod rng;
mod state_machine;
mod transfer;
mod types;
mod writes;

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
pub use progress::{Progress, ProgressState};
pub use raft::{ProposeError, Raft, RoleKind, Standing};
pub use ready::{
    Contradiction, Event, Fetch, Persist, ReadState, Ready, SendSnapshot, StepDownReason, Ticket,
};
pub use rng::Rng;
pub use state_machine::{
    ApplyContext, BLOB_BYTES_MAX, BlobId, Command, DecodeError, MemorySnapshot, Session, Snapshot,
    SnapshotError, SnapshotSink, SnapshotSource, StateMachine,
};
pub use transfer::TransferError;
pub use types::{
    ClusterId, Entry, EntryId, EntryKind, GroupId, HardState, Incarnation, Index, MemberId, NodeId,
    Recovered, SnapshotMeta, Term, Time,
};
