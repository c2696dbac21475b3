//! The one decision: may this caller do that?

use bytes::Bytes;

use super::AuthState;
use super::rights::Rights;
use crate::error::KvError;
use crate::key_range::KeyRange;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
};
use crate::proto::raftkv::Caller;
use crate::proto::raftkv::command_v1::Kind;
use crate::store::lease::Leases;

/// What somebody wants to do: one variant for each RPC of the interface, with what of the request the decision needs.
/// Matched without a wildcard, so that a new one has to be decided about.
#[derive(Clone, Copy, Debug)]
pub enum Access<'a> {
    /// KV.Range, KV.RangeStream
    Range(&'a RangeRequest),
    /// KV.Put
    Put(&'a PutRequest),
    /// KV.DeleteRange
    DeleteRange(&'a DeleteRangeRequest),
    /// KV.Txn
    Txn(&'a TxnRequest),
    /// KV.Compact
    Compact,
    /// Watch.Watch: the stream as such. What it watches is a [`WatchCreate`](Self::WatchCreate) each.
    Watch,
    /// One watcher.
    WatchCreate(&'a WatchCreateRequest),
    /// Lease.LeaseGrant
    LeaseGrant,
    /// Lease.LeaseRevoke of this lease
    LeaseRevoke(i64),
    /// Lease.LeaseKeepAlive: the stream as such. What it renews is a [`LeaseRenew`](Self::LeaseRenew) each.
    LeaseKeepAlive,
    /// One renewal of this lease.
    LeaseRenew(i64),
    /// Lease.LeaseTimeToLive
    LeaseTimeToLive {
        /// The lease.
        id: i64,
        /// Whether its keys are wanted.
        keys: bool,
    },
    /// Lease.LeaseLeases
    LeaseLeases,
    /// Cluster.MemberAdd
    MemberAdd,
    /// Cluster.MemberRemove
    MemberRemove,
    /// Cluster.MemberUpdate
    MemberUpdate,
    /// Cluster.MemberList
    MemberList,
    /// Cluster.MemberPromote
    MemberPromote,
    /// Maintenance.Alarm
    Alarm(AlarmAction),
    /// Maintenance.Status
    Status,
    /// Maintenance.Defragment
    Defragment,
    /// Maintenance.Hash
    Hash,
    /// Maintenance.HashKV
    HashKv,
    /// Maintenance.Snapshot
    Snapshot,
    /// Maintenance.MoveLeader
    MoveLeader,
    /// Maintenance.Downgrade
    Downgrade,
    /// Auth.AuthEnable
    AuthEnable,
    /// Auth.AuthDisable
    AuthDisable,
    /// Auth.AuthStatus
    AuthStatus,
    /// Auth.Authenticate
    Authenticate,
    /// Auth.UserAdd
    UserAdd,
    /// Auth.UserGet of this user
    UserGet(&'a str),
    /// Auth.UserList
    UserList,
    /// Auth.UserDelete
    UserDelete,
    /// Auth.UserChangePassword
    UserChangePassword,
    /// Auth.UserGrantRole
    UserGrantRole,
    /// Auth.UserRevokeRole
    UserRevokeRole,
    /// Auth.RoleAdd
    RoleAdd,
    /// Auth.RoleGet of this role
    RoleGet(&'a str),
    /// Auth.RoleList
    RoleList,
    /// Auth.RoleDelete
    RoleDelete,
    /// Auth.RoleGrantPermission
    RoleGrantPermission,
    /// Auth.RoleRevokePermission
    RoleRevokePermission,
    /// Lock.Lock; what it does with keys and leases is decided one by one.
    Lock,
    /// Lock.Unlock, likewise.
    Unlock,
    /// Election.Campaign, likewise.
    Campaign,
    /// Election.Proclaim, likewise.
    Proclaim,
    /// Election.Leader and Election.Observe, likewise.
    Leader,
    /// Election.Resign, likewise.
    Resign,
    /// What members do by themselves: ending and renewing leases, raising alarms.
    Member,
}

impl<'a> Access<'a> {
    /// What a command does.
    pub(crate) fn of(kind: &'a Kind) -> Self {
        match kind {
            Kind::Put(request) => Self::Put(request),
            Kind::DeleteRange(request) => Self::DeleteRange(request),
            Kind::Txn(request) => Self::Txn(request),
            Kind::Compact(_) => Self::Compact,
            Kind::LeaseGrant(_) => Self::LeaseGrant,
            Kind::LeaseRevoke(request) => Self::LeaseRevoke(request.id),
            // A renewal was decided about before it went into a batch. Members raise alarms by themselves; those of
            // clients were decided about before.
            Kind::LeaseRenew(_) | Kind::LeaseExpire(_) | Kind::Alarm(_) | Kind::Quota(_) => {
                Self::Member
            }
            Kind::Downgrade(_) => Self::Downgrade,
            Kind::AuthEnable(_) => Self::AuthEnable,
            Kind::AuthDisable(_) => Self::AuthDisable,
            Kind::UserAdd(_) => Self::UserAdd,
            Kind::UserDelete(_) => Self::UserDelete,
            Kind::UserChangePassword(_) => Self::UserChangePassword,
            Kind::UserGrantRole(_) => Self::UserGrantRole,
            Kind::UserRevokeRole(_) => Self::UserRevokeRole,
            Kind::RoleAdd(_) => Self::RoleAdd,
            Kind::RoleDelete(_) => Self::RoleDelete,
            Kind::RoleGrantPermission(_) => Self::RoleGrantPermission,
            Kind::RoleRevokePermission(_) => Self::RoleRevokePermission,
        }
    }
}

impl AuthState {
    /// Whether `caller` may do `access`, as far as users, roles and the request itself decide it. What depends on the
    /// keys of leases is decided where they are known: by the store, which decides about every command and every
    /// question anew.
    ///
    /// # Errors
    /// In etcd's words: no caller ([`KvError::UserEmpty`]), a caller whose rights may have changed since
    /// ([`KvError::OldAuthRevision`]), one that may not ([`KvError::PermissionDenied`]).
    pub fn authorize(&self, caller: Option<&Caller>, access: &Access<'_>) -> Result<(), KvError> {
        self.authorize_with(caller, access, None)
    }

    /// As [`authorize`](Self::authorize), with all leases at hand.
    pub(crate) fn authorize_with(
        &self,
        caller: Option<&Caller>,
        access: &Access<'_>,
        leases: Option<&Leases>,
    ) -> Result<(), KvError> {
        if !self.enabled {
            return Ok(());
        }
        let check = Check { state: self, caller, leases };
        match *access {
            Access::Range(request) => {
                check.read(&request.key, &request.range_end)
            }
            Access::Put(request) => check.put(request),
            Access::DeleteRange(request) => check.delete_range(request),
            Access::Txn(request) => {
                check.known()?;
                check.txn(request)
            }
            Access::WatchCreate(request) => {
                check.keys(&watched(request), Rights::may_read)
            }
            Access::LeaseRevoke(id) | Access::LeaseRenew(id) => {
                check.known()?;
                check.write_attached(id)
            }
            Access::LeaseTimeToLive { id, keys: true } => {
                check.known()?;
                check.read_attached(id)
            }
            Access::LeaseLeases => {
                check.known()?;
                check.read_all_attached()
            }
            Access::UserGet(name) if check.caller.is_some_and(|caller| caller.user == name) => {
                check.known()
            }
            Access::RoleGet(role) if check.has_role(role) => check.known(),
            // The state of the cluster is no secret from those who may come in.
            Access::LeaseGrant
            | Access::LeaseTimeToLive { keys: false, .. }
            | Access::MemberList
            | Access::Status
            | Access::Alarm(AlarmAction::Get)
            // What these do with keys and leases is decided one by one.
            | Access::Lock
            | Access::Unlock
            | Access::Campaign
            | Access::Proclaim
            | Access::Leader
            | Access::Resign => check.known(),
            Access::Compact
            | Access::MemberAdd
            | Access::MemberRemove
            | Access::MemberUpdate
            | Access::MemberPromote
            | Access::Alarm(AlarmAction::Activate | AlarmAction::Deactivate)
            | Access::Defragment
            | Access::Hash
            | Access::HashKv
            | Access::Snapshot
            | Access::MoveLeader
            | Access::Downgrade
            | Access::AuthEnable
            | Access::AuthDisable
            | Access::UserAdd
            | Access::UserGet(_)
            | Access::UserList
            | Access::UserDelete
            | Access::UserChangePassword
            | Access::UserGrantRole
            | Access::UserRevokeRole
            | Access::RoleAdd
            | Access::RoleGet(_)
            | Access::RoleList
            | Access::RoleDelete
            | Access::RoleGrantPermission
            | Access::RoleRevokePermission => check.root(),
            // Streams say nothing by themselves; whoever wants to come in cannot be in yet; whether permissions are
            // demanded is for everybody to know.
            Access::Watch
            | Access::LeaseKeepAlive
            | Access::AuthStatus
            | Access::Authenticate
            | Access::Member => Ok(()),
        }
    }
}

/// The keys of a watcher. No key is the first one, as in the watch itself.
pub(crate) fn watched(request: &WatchCreateRequest) -> KeyRange {
    let first = Bytes::from_static(b"\0");
    let key = if request.key.is_empty() { &first } else { &request.key };
    KeyRange::new(key, &request.range_end)
}

/// One decision under way.
struct Check<'a> {
    state: &'a AuthState,
    caller: Option<&'a Caller>,
    leases: Option<&'a Leases>,
}

impl Check<'_> {
    /// Somebody, as the permissions are now.
    fn rights(&self) -> Result<&Rights, KvError> {
        let caller = self.caller.ok_or(KvError::UserEmpty)?;
        if caller.auth_revision < self.state.revision {
            return Err(KvError::OldAuthRevision);
        }
        self.state.rights.get(&caller.user).map(AsRef::as_ref).ok_or(KvError::PermissionDenied)
    }

    /// Anybody who came in. The revision does not matter, as in etcd: changes made side by side by those who may make
    /// them must not refuse each other.
    fn known(&self) -> Result<(), KvError> {
        let caller = self.caller.ok_or(KvError::UserEmpty)?;
        if self.state.users.contains_key(&caller.user) {
            Ok(())
        } else {
            Err(KvError::PermissionDenied)
        }
    }

    /// As [`known`](Self::known), and with the role root.
    fn root(&self) -> Result<(), KvError> {
        let caller = self.caller.ok_or(KvError::UserEmpty)?;
        match self.state.rights.get(&caller.user) {
            Some(rights) if rights.is_root() => Ok(()),
            Some(_) => Err(KvError::PermissionDenied),
            None => Err(KvError::UserNotFound),
        }
    }

    fn has_role(&self, role: &str) -> bool {
        let user = self.caller.and_then(|caller| self.state.users.get(&caller.user));
        user.is_some_and(|user| user.roles.contains(role))
    }

    fn keys(
        &self,
        range: &KeyRange,
        may: impl FnOnce(&Rights, &KeyRange) -> bool,
    ) -> Result<(), KvError> {
        if may(self.rights()?, range) { Ok(()) } else { Err(KvError::PermissionDenied) }
    }

    fn read(&self, key: &Bytes, range_end: &Bytes) -> Result<(), KvError> {
        self.keys(&KeyRange::new(key, range_end), Rights::may_read)
    }

    fn write(&self, key: &Bytes, range_end: &Bytes) -> Result<(), KvError> {
        self.keys(&KeyRange::new(key, range_end), Rights::may_write)
    }

    fn put(&self, request: &PutRequest) -> Result<(), KvError> {
        let one_key = Bytes::new();
        self.write(&request.key, &one_key)?;
        // A lease may end and take its keys along: whoever could not delete those must not tie a key to it.
        self.write_attached(request.lease)?;
        if request.prev_kv { self.read(&request.key, &one_key) } else { Ok(()) }
    }

    fn delete_range(&self, request: &DeleteRangeRequest) -> Result<(), KvError> {
        self.write(&request.key, &request.range_end)?;
        if request.prev_kv { self.read(&request.key, &request.range_end) } else { Ok(()) }
    }

    /// Both branches count: which one runs tells something about the keys compared, and is not known before.
    fn txn(&self, request: &TxnRequest) -> Result<(), KvError> {
        for compare in &request.compare {
            self.read(&compare.key, &compare.range_end)?;
        }
        request.success.iter().chain(&request.failure).try_for_each(|op| self.op(op))
    }

    fn op(&self, op: &RequestOp) -> Result<(), KvError> {
        match &op.request {
            Some(Request::RequestRange(request)) => self.read(&request.key, &request.range_end),
            Some(Request::RequestPut(request)) => self.put(request),
            Some(Request::RequestDeleteRange(request)) => self.delete_range(request),
            Some(Request::RequestTxn(request)) => self.txn(request),
            None => Ok(()),
        }
    }

    fn write_attached(&self, lease: i64) -> Result<(), KvError> {
        self.attached(lease, Rights::may_write)
    }

    fn read_attached(&self, lease: i64) -> Result<(), KvError> {
        self.attached(lease, Rights::may_read)
    }

    /// Every key of a lease. Nothing to decide about when there is no such lease.
    fn attached(
        &self,
        lease: i64,
        may: impl Fn(&Rights, &KeyRange) -> bool,
    ) -> Result<(), KvError> {
        let found = self.leases.and_then(|leases| leases.table.get(&lease));
        let Some(lease) = found else { return Ok(()) };
        lease.keys.iter().try_for_each(|key| self.keys(&one(key), &may))
    }

    fn read_all_attached(&self) -> Result<(), KvError> {
        let Some(leases) = self.leases else { return Ok(()) };
        let mut keys = leases.table.values().flat_map(|lease| &lease.keys);
        keys.try_for_each(|key| self.keys(&one(key), Rights::may_read))
    }
}

fn one(key: &Bytes) -> KeyRange {
    KeyRange::new(key, &Bytes::new())
}
