//! What stands in the log, and what applying it answers.
//!
//! ```text
//! version 1:  01 | CommandV1 (protobuf, crates/raft-kv/proto/raftkv.proto)
//! ```

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use raft_core::{DecodeError, Term};

use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, AuthDisableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest,
    AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserDeleteRequest,
    AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest, CompactionRequest, CompactionResponse,
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    ResponseHeader, TxnRequest, TxnResponse,
};
use crate::proto::raftkv::command_v1::Kind;
use crate::proto::raftkv::{
    AuthEnable, Caller, CommandV1, Downgrade, Expiry, LeaseExpire, LeaseRenew, Quota, UserAdd,
    UserChangePassword,
};
use crate::store::Picture;
use crate::store::lease::LeaseState;
use crate::store::notices;

/// The first byte of every command.
const VERSION: u8 = 1;

/// From this feature level on there are [`Command::quota`] and what it leaves in snapshots.
pub(crate) const FEATURE_LEVEL_WITH_QUOTA: u16 = 2;

/// A change of the store. Check the request before proposing it (see [`check_put`](crate::check_put) and
/// its neighbours): the answer then comes without a round through the log.
#[derive(Clone, PartialEq, Debug)]
pub struct Command {
    pub(crate) kind: Kind,
    /// Whose it is; nobody's while authentication is off.
    pub(crate) caller: Option<Caller>,
}

impl Command {
    const fn new(kind: Kind) -> Self {
        Self { kind, caller: None }
    }

    /// Says whose command it is: the store asks what they may do, if authentication is on when it applies it.
    #[must_use]
    pub fn by(self, caller: Option<Caller>) -> Self {
        Self { caller, ..self }
    }

    /// Writes a key.
    #[must_use]
    pub const fn put(request: PutRequest) -> Self {
        Self::new(Kind::Put(request))
    }

    /// Deletes a key or a range.
    #[must_use]
    pub const fn delete_range(request: DeleteRangeRequest) -> Self {
        Self::new(Kind::DeleteRange(request))
    }

    /// Runs a transaction.
    #[must_use]
    pub const fn txn(request: TxnRequest) -> Self {
        Self::new(Kind::Txn(request))
    }

    /// Forgets history.
    #[must_use]
    pub const fn compact(request: CompactionRequest) -> Self {
        Self::new(Kind::Compact(request))
    }

    /// Makes a lease of the id and the seconds that the request names; whoever proposes chooses both.
    #[must_use]
    pub const fn lease_grant(request: LeaseGrantRequest) -> Self {
        Self::new(Kind::LeaseGrant(request))
    }

    /// Ends a lease and deletes its keys.
    #[must_use]
    pub const fn lease_revoke(request: LeaseRevokeRequest) -> Self {
        Self::new(Kind::LeaseRevoke(request))
    }

    /// Renews leases.
    #[must_use]
    pub const fn lease_renew(ids: Vec<i64>) -> Self {
        Self::new(Kind::LeaseRenew(LeaseRenew { ids }))
    }

    /// Ends leases whose time ran out while this member led in `term`: what
    /// [`LeaseClock::over`](crate::LeaseClock::over) says.
    #[must_use]
    pub const fn lease_expire(term: Term, leases: Vec<Expiry>) -> Self {
        Self::new(Kind::LeaseExpire(LeaseExpire { term: term.0, leases }))
    }

    /// Raises or clears an alarm.
    #[must_use]
    pub const fn alarm(request: AlarmRequest) -> Self {
        Self::new(Kind::Alarm(request))
    }

    /// Announces that the cluster is to go back to `target_version`; an empty one takes that back.
    #[must_use]
    pub const fn downgrade(target_version: String) -> Self {
        Self::new(Kind::Downgrade(Downgrade { target_version }))
    }

    /// Says for one member how large the store may become there, in bytes ([`Notices::quota`](crate::Notices::quota));
    /// 0 forgets what that member said.
    #[must_use]
    pub const fn quota(member_id: u64, bytes: u64) -> Self {
        Self::new(Kind::Quota(Quota { member_id, bytes }))
    }

    /// What applying it may add to the logical size, in bytes. 0 for what is allowed when there is no space.
    #[must_use]
    pub fn growth(&self) -> u64 {
        notices::growth(&self.kind)
    }
}

/// Users, roles and permissions.
impl Command {
    /// Demands permissions. `token_secret` is what tokens will be made with: 32 bytes that nobody can guess.
    #[must_use]
    pub const fn auth_enable(token_secret: Bytes) -> Self {
        Self::new(Kind::AuthEnable(AuthEnable { token_secret }))
    }

    /// Demands permissions no more.
    #[must_use]
    pub const fn auth_disable() -> Self {
        Self::new(Kind::AuthDisable(AuthDisableRequest {}))
    }

    /// Adds a user with a password, of which this is the hash in the form of bcrypt, or without any.
    #[must_use]
    pub fn user_add(name: String, password_hash: Option<Bytes>) -> Self {
        let no_password = password_hash.is_none();
        let password_hash = password_hash.unwrap_or_default();
        Self::new(Kind::UserAdd(UserAdd { name, password_hash, no_password }))
    }

    /// Deletes a user.
    #[must_use]
    pub const fn user_delete(request: AuthUserDeleteRequest) -> Self {
        Self::new(Kind::UserDelete(request))
    }

    /// Replaces a password. The hash is in the form of bcrypt.
    #[must_use]
    pub const fn user_change_password(name: String, password_hash: Bytes) -> Self {
        Self::new(Kind::UserChangePassword(UserChangePassword { name, password_hash }))
    }

    /// Gives a role to a user.
    #[must_use]
    pub const fn user_grant_role(request: AuthUserGrantRoleRequest) -> Self {
        Self::new(Kind::UserGrantRole(request))
    }

    /// Takes a role from a user.
    #[must_use]
    pub const fn user_revoke_role(request: AuthUserRevokeRoleRequest) -> Self {
        Self::new(Kind::UserRevokeRole(request))
    }

    /// Adds a role.
    #[must_use]
    pub const fn role_add(request: AuthRoleAddRequest) -> Self {
        Self::new(Kind::RoleAdd(request))
    }

    /// Deletes a role.
    #[must_use]
    pub const fn role_delete(request: AuthRoleDeleteRequest) -> Self {
        Self::new(Kind::RoleDelete(request))
    }

    /// Gives a permission to a role.
    #[must_use]
    pub const fn role_grant_permission(request: AuthRoleGrantPermissionRequest) -> Self {
        Self::new(Kind::RoleGrantPermission(request))
    }

    /// Takes a permission from a role.
    #[must_use]
    pub const fn role_revoke_permission(request: AuthRoleRevokePermissionRequest) -> Self {
        Self::new(Kind::RoleRevokePermission(request))
    }
}

/// The field of [`CommandV1`] that says whose it is.
const CALLER_TAG: u32 = 40;

impl raft_core::Command for Command {
    fn encode(&self, out: &mut BytesMut) {
        let caller = self.caller.as_ref();
        let caller_len =
            caller.map_or(0, |caller| prost::encoding::message::encoded_len(CALLER_TAG, caller));
        out.reserve(1 + self.kind.encoded_len() + caller_len);
        out.put_u8(VERSION);
        self.kind.encode(out);
        if let Some(caller) = caller {
            prost::encoding::message::encode(CALLER_TAG, caller, out);
        }
    }

    fn feature_level(&self) -> u16 {
        if matches!(self.kind, Kind::Quota(_)) { FEATURE_LEVEL_WITH_QUOTA } else { 1 }
    }

    fn needs_space(&self) -> bool {
        self.growth() > 0
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
            Ok(CommandV1 { kind: Some(kind), caller }) => Ok(Self { kind, caller }),
            Ok(CommandV1 { kind: None, .. }) => Err(DecodeError(String::from(
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
    /// To every change of users, roles and permissions, and to enabling and disabling authentication.
    Auth(Option<ResponseHeader>),
    /// To [`Command::alarm`]: what was raised, cleared or asked for.
    Alarm(AlarmResponse),
    /// To [`Command::downgrade`].
    Downgrade,
    /// To [`Command::quota`].
    Quota,
}

/// A question about the state.
#[derive(Clone, PartialEq, Debug)]
pub enum Query {
    /// Read a range.
    Range(RangeRequest),
    /// What is known of a lease.
    Lease {
        /// Which one.
        id: i64,
        /// Its keys, too.
        keys: bool,
    },
    /// Which leases there are.
    Leases,
    /// Everything, to be read at leisure.
    Picture,
    /// Whether this lease may be renewed by whoever asks. There need not be one.
    MayRenew(i64),
    /// Whose question it is; nobody's otherwise.
    By(Caller, Box<Self>),
}

impl Query {
    /// Says whose question it is, if anybody's.
    #[must_use]
    pub fn by(self, caller: Option<Caller>) -> Self {
        match caller {
            Some(caller) => Self::By(caller, Box::new(self)),
            None => self,
        }
    }
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
    /// To [`Query::Picture`].
    Picture(Arc<Picture>),
    /// To [`Query::MayRenew`]: yes. What may not be is refused.
    MayRenew,
}
