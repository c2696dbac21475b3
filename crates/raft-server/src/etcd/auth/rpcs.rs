//! What each request needs: one entry for each message that a client can send.

use raft_kv::auth::Access;
use raft_kv::proto::etcdserverpb::*;
use raft_kv::proto::v3electionpb::*;
use raft_kv::proto::v3lockpb::*;
use raft_kv::{KvError, check_compact, check_delete, check_put, check_range, check_txn};
use tonic::Streaming;

use crate::etcd::watch::Requests;

/// Who can serve a request, and how fresh the permissions have to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::etcd) enum Reach {
    /// Any member from what it has: learners too, and with the permissions that it knows.
    Local,
    /// Voters. Whatever this member does not know yet is found out when the request is carried out.
    Cluster,
    /// Voters; with everything that was agreed before the request came, since nobody decides about it later.
    Agreed,
}

/// Something that a client asks.
pub(in crate::etcd) trait Governed: Send + Sync {
    /// What it would do.
    fn access(&self) -> Access<'_>;

    /// What makes no sense, whoever asks. A transaction may have `txn_ops_max` operations.
    fn check(&self, _txn_ops_max: usize) -> Result<(), KvError> {
        Ok(())
    }

    /// Who can serve it.
    fn reach(&self) -> Reach {
        Reach::Cluster
    }
}

/// One entry for each kind of message: what it would do, then where that is not as usual, who can serve it.
macro_rules! governed {
    ($($message:ty => |$it:pat_param| $access:expr $(, $reach:ident)?;)*) => {
        $(impl Governed for $message {
            fn access(&self) -> Access<'_> {
                let $it = self;
                $access
            }
            $(fn reach(&self) -> Reach {
                Reach::$reach
            })?
        })*
    };
}

/// As [`governed`], for messages that can make no sense.
macro_rules! checked {
    ($($message:ty => |$it:pat_param| $access:expr, $check:expr;)*) => {
        $(impl Governed for $message {
            fn access(&self) -> Access<'_> {
                let $it = self;
                $access
            }
            fn check(&self, _txn_ops_max: usize) -> Result<(), KvError> {
                $check(self)
            }
        })*
    };
}

checked! {
    PutRequest => |it| Access::Put(it), check_put;
    DeleteRangeRequest => |it| Access::DeleteRange(it), check_delete;
    CompactionRequest => |_| Access::Compact, check_compact;
}

governed! {
    LeaseGrantRequest => |_| Access::LeaseGrant;
    LeaseRevokeRequest => |it| Access::LeaseRevoke(it.id);
    LeaseTimeToLiveRequest => |it| Access::LeaseTimeToLive { id: it.id, keys: it.keys };
    LeaseLeasesRequest => |_| Access::LeaseLeases;

    MemberAddRequest => |_| Access::MemberAdd, Agreed;
    MemberRemoveRequest => |_| Access::MemberRemove, Agreed;
    MemberUpdateRequest => |_| Access::MemberUpdate, Agreed;
    MemberPromoteRequest => |_| Access::MemberPromote, Agreed;

    AlarmRequest => |it| Access::Alarm(it.action()), Agreed;
    StatusRequest => |_| Access::Status, Local;
    DefragmentRequest => |_| Access::Defragment, Local;
    HashRequest => |_| Access::Hash, Local;
    HashKvRequest => |_| Access::HashKv, Local;
    SnapshotRequest => |_| Access::Snapshot, Local;
    MoveLeaderRequest => |_| Access::MoveLeader;
    DowngradeRequest => |_| Access::Downgrade;

    AuthEnableRequest => |_| Access::AuthEnable;
    AuthDisableRequest => |_| Access::AuthDisable;
    AuthStatusRequest => |_| Access::AuthStatus;
    AuthenticateRequest => |_| Access::Authenticate;
    AuthUserAddRequest => |_| Access::UserAdd;
    AuthUserGetRequest => |it| Access::UserGet(&it.name);
    AuthUserListRequest => |_| Access::UserList;
    AuthUserDeleteRequest => |_| Access::UserDelete;
    AuthUserChangePasswordRequest => |_| Access::UserChangePassword;
    AuthUserGrantRoleRequest => |_| Access::UserGrantRole;
    AuthUserRevokeRoleRequest => |_| Access::UserRevokeRole;
    AuthRoleAddRequest => |_| Access::RoleAdd;
    AuthRoleGetRequest => |it| Access::RoleGet(&it.role);
    AuthRoleListRequest => |_| Access::RoleList;
    AuthRoleDeleteRequest => |_| Access::RoleDelete;
    AuthRoleGrantPermissionRequest => |_| Access::RoleGrantPermission;
    AuthRoleRevokePermissionRequest => |_| Access::RoleRevokePermission;

    LockRequest => |_| Access::Lock;
    UnlockRequest => |_| Access::Unlock;
    CampaignRequest => |_| Access::Campaign;
    ProclaimRequest => |_| Access::Proclaim;
    LeaderRequest => |_| Access::Leader;
    ResignRequest => |_| Access::Resign;

}

impl Governed for TxnRequest {
    fn access(&self) -> Access<'_> {
        Access::Txn(self)
    }

    fn check(&self, txn_ops_max: usize) -> Result<(), KvError> {
        check_txn(self, txn_ops_max)
    }
}

impl Governed for RangeRequest {
    fn access(&self) -> Access<'_> {
        Access::Range(self)
    }

    fn check(&self, _txn_ops_max: usize) -> Result<(), KvError> {
        check_range(self)
    }

    fn reach(&self) -> Reach {
        if self.serializable { Reach::Local } else { Reach::Cluster }
    }
}

impl Governed for MemberListRequest {
    fn access(&self) -> Access<'_> {
        Access::MemberList
    }

    fn reach(&self) -> Reach {
        if self.linearizable { Reach::Agreed } else { Reach::Local }
    }
}

/// The gateway's, which renews once: a stream of one.
impl Governed for LeaseKeepAliveRequest {
    fn access(&self) -> Access<'_> {
        Access::LeaseKeepAlive
    }
}

/// A stream of questions, which says nothing by itself: whatever is asked in it is decided about one by one.
pub(in crate::etcd) trait GovernedStream {
    /// What opening it is.
    const ACCESS: Access<'static>;
}

impl GovernedStream for Streaming<LeaseKeepAliveRequest> {
    const ACCESS: Access<'static> = Access::LeaseKeepAlive;
}

impl GovernedStream for Requests {
    const ACCESS: Access<'static> = Access::Watch;
}
