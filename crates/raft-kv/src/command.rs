//! What stands in the log, and what applying it answers.
//!
//! ```text
//! version 1:  01 | CommandV1 (protobuf, crates/raft-kv/proto/raftkv.proto)
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use raft_core::{DecodeError, Term};

use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, CompactionRequest, CompactionResponse, DeleteRangeRequest,
    DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest,
    TxnResponse,
};
use crate::proto::raftkv::command_v1::Kind;
use crate::proto::raftkv::{CommandV1, Downgrade, Expiry, LeaseExpire, LeaseRenew};
use crate::store::lease::LeaseState;
use crate::store::notices;

/// The first byte of every command.
const VERSION: u8 = 1;

/// A change of the store. Check the request before proposing it (see [`check_put`](crate::check_put) and
/// its neighbours): the answer then comes without a round through the log.
#[derive(Clone, PartialEq, Debug)]
pub struct Command {
    pub(crate) kind: Kind,
}

impl Command {
    /// Writes a key.
    #[must_use]
    pub const fn put(request: PutRequest) -> Self {
        Self { kind: Kind::Put(request) }
    }

    /// Deletes a key or a range.
    #[must_use]
    pub const fn delete_range(request: DeleteRangeRequest) -> Self {
        Self { kind: Kind::DeleteRange(request) }
    }

    /// Runs a transaction.
    #[must_use]
    pub const fn txn(request: TxnRequest) -> Self {
        Self { kind: Kind::Txn(request) }
    }

    /// Forgets history.
    #[must_use]
    pub const fn compact(request: CompactionRequest) -> Self {
        Self { kind: Kind::Compact(request) }
    }

    /// Makes a lease of the id and the seconds that the request names; whoever proposes chooses both.
    #[must_use]
    pub const fn lease_grant(request: LeaseGrantRequest) -> Self {
        Self { kind: Kind::LeaseGrant(request) }
    }

    /// Ends a lease and deletes its keys.
    #[must_use]
    pub const fn lease_revoke(request: LeaseRevokeRequest) -> Self {
        Self { kind: Kind::LeaseRevoke(request) }
    }

    /// Renews leases.
    #[must_use]
    pub const fn lease_renew(ids: Vec<i64>) -> Self {
        Self { kind: Kind::LeaseRenew(LeaseRenew { ids }) }
    }

    /// Ends leases whose time ran out while this member led in `term`: what
    /// [`LeaseClock::over`](crate::LeaseClock::over) says.
    #[must_use]
    pub const fn lease_expire(term: Term, leases: Vec<Expiry>) -> Self {
        Self { kind: Kind::LeaseExpire(LeaseExpire { term: term.0, leases }) }
    }

    /// Raises or clears an alarm.
    #[must_use]
    pub const fn alarm(request: AlarmRequest) -> Self {
        Self { kind: Kind::Alarm(request) }
    }

    /// Announces that the cluster is to go back to `target_version`; an empty one takes that back.
    #[must_use]
    pub const fn downgrade(target_version: String) -> Self {
        Self { kind: Kind::Downgrade(Downgrade { target_version }) }
    }

    /// What applying it may add to the logical size, in bytes. 0 for what is allowed when there is no space.
    #[must_use]
    pub fn growth(&self) -> u64 {
        notices::growth(&self.kind)
    }
}

impl raft_core::Command for Command {
    fn encode(&self, out: &mut BytesMut) {
        out.reserve(1 + self.kind.encoded_len());
        out.put_u8(VERSION);
        self.kind.encode(out);
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        match bytes.first() {
            Some(&VERSION) => {}
            Some(version) => {
                return Err(DecodeError(format!(
                    "the key-value command has version {version}; this program knows {VERSION}"
                )));
            }
            None => return Err(DecodeError(String::from("the key-value command is empty"))),
        }
        match CommandV1::decode(bytes.slice(1..)) {
            Ok(CommandV1 { kind: Some(kind) }) => Ok(Self { kind }),
            Ok(CommandV1 { kind: None }) => Err(DecodeError(String::from(
                "the key-value command is of a kind that this program does not know",
            ))),
            Err(error) => Err(DecodeError(format!("the key-value command is damaged: {error}"))),
        }
    }
}

/// What applying a [`Command`] answers. Headers carry the revision only; who answered is for the server
/// to fill in.
#[derive(Clone, PartialEq, Debug)]
pub enum Response {
    /// To [`Command::put`].
    Put(PutResponse),
    /// To [`Command::delete_range`].
    DeleteRange(DeleteRangeResponse),
    /// To [`Command::txn`].
    Txn(TxnResponse),
    /// To [`Command::compact`].
    Compact(CompactionResponse),
    /// To [`Command::lease_grant`].
    LeaseGrant(LeaseGrantResponse),
    /// To [`Command::lease_revoke`].
    LeaseRevoke(LeaseRevokeResponse),
    /// To [`Command::lease_renew`]: the seconds of each, 0 for one that does not exist.
    LeaseRenew(Vec<i64>),
    /// To [`Command::lease_expire`]: those that ended.
    LeaseExpire(Vec<i64>),
    /// To [`Command::alarm`]: what was raised, cleared or asked for.
    Alarm(AlarmResponse),
    /// To [`Command::downgrade`].
    Downgrade,
}

/// A question about the state.
#[derive(Clone, PartialEq, Debug)]
pub enum Query {
    /// Read a range.
    Range(RangeRequest),
    /// What is known of a lease.
    Lease(i64),
    /// Which leases there are.
    Leases,
}

/// The answer to a [`Query`].
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// To [`Query::Range`].
    Range(RangeResponse),
    /// To [`Query::Lease`]; `None` when there is no such lease.
    Lease(Option<LeaseState>),
    /// To [`Query::Leases`]: their ids in order.
    Leases(Vec<i64>),
}
