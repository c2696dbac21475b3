//! What all members must know about the cluster beside the keys: alarms, a downgrade that was announced, and how large
//! the store may become.
//!
//! An alarm is raised and cleared through the log, so that all members refuse the same commands: NOSPACE those by which
//! the store would grow, CORRUPT all that change it. Each member says through the log how much its machine bears; the
//! least of that holds for all, so that they agree about every command, and none dies of its memory first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::error::KvError;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, PutRequest, RequestOp, TxnRequest,
};
use crate::proto::raftkv::command_v1::Kind;
use crate::proto::raftkv::{Downgrade, Quota};
use crate::store::Store;
use crate::store::read::header;
use crate::store::version::VERSION_BYTES;

/// What a lease counts against the quota, in bytes: as in etcd.
const LEASE_BYTES: u64 = 64;

/// What is known at one moment. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Notices {
    /// Raised alarms as (type, member), in order. The types are those of [`AlarmType`]; never 0.
    pub alarms: BTreeSet<(i32, u64)>,
    /// The version that the cluster is announced to go back to.
    pub downgrade: Option<String>,
    /// Member to the bytes that the store may take there; never 0. Empty in a cluster where some member does not know of
    /// it yet.
    pub quotas: BTreeMap<u64, u64>,
}

impl Notices {
    /// The bytes that the store may take before it accepts nothing that makes it larger; `None` when no member has said so.
    #[must_use]
    pub fn quota(&self) -> Option<u64> {
        self.quotas.values().copied().min()
    }

    /// Whether any member has raised this alarm.
    #[must_use]
    pub fn has(&self, alarm: AlarmType) -> bool {
        self.alarms.iter().any(|(kind, _)| *kind == i32::from(alarm))
    }

    /// The alarms as messages: those of one type, or all for [`AlarmType::None`].
    #[must_use]
    pub fn of_type(&self, alarm: AlarmType) -> Vec<AlarmMember> {
        let wanted = i32::from(alarm);
        let chosen = self.alarms.iter().filter(|(kind, _)| wanted == 0 || *kind == wanted);
        chosen
            .map(|(alarm, member_id)| AlarmMember { member_id: *member_id, alarm: *alarm })
            .collect()
    }
}

/// Where readers find the present ones.
pub(crate) type Published = Arc<ArcSwap<Notices>>;

impl Store {
    /// Refuses what a raised alarm forbids, and what would exceed the quota before the alarm could be raised.
    pub(super) fn check_alarms(&self, kind: &Kind) -> Result<(), KvError> {
        let notices = self.notices.load();
        let quota = notices.quota();
        if notices.alarms.is_empty() && quota.is_none() {
            return Ok(());
        }
        if notices.has(AlarmType::Corrupt) && changes_keys(kind) {
            return Err(KvError::Corrupt);
        }
        let growth = growth(kind);
        let room = quota.unwrap_or(u64::MAX).saturating_sub(self.logical_size);
        if growth > 0 && (growth > room || notices.has(AlarmType::Nospace)) {
            return Err(KvError::NoSpace);
        }
        Ok(())
    }

    /// Raises, clears or lists alarms. To clear one for member 0 clears it for all.
    pub(super) fn alarm(&self, request: &AlarmRequest) -> AlarmResponse {
        let kind = request.alarm();
        let mut notices = Notices::clone(&self.notices.load());
        let answer = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Activate) if kind != AlarmType::None => {
                notices.alarms.insert((kind.into(), request.member_id));
                vec![AlarmMember { member_id: request.member_id, alarm: kind.into() }]
            }
            Ok(AlarmAction::Deactivate) if kind != AlarmType::None => {
                let mut cleared = notices.of_type(kind);
                cleared
                    .retain(|alarm| request.member_id == 0 || alarm.member_id == request.member_id);
                for AlarmMember { member_id, alarm } in &cleared {
                    notices.alarms.remove(&(*alarm, *member_id));
                }
                cleared
            }
            Ok(AlarmAction::Get) => notices.of_type(kind),
            Ok(AlarmAction::Activate | AlarmAction::Deactivate) | Err(_) => Vec::new(),
        };
        self.notices.store(Arc::new(notices));
        AlarmResponse { header: header(self.revision), alarms: answer }
    }

    /// Announces a downgrade, or takes it back.
    pub(super) fn downgrade(&self, request: &Downgrade) -> Result<(), KvError> {
        let mut notices = Notices::clone(&self.notices.load());
        match (&notices.downgrade, request.target_version.is_empty()) {
            (None, true) => return Err(KvError::NoDowngrade),
            (Some(_), false) => return Err(KvError::DowngradeInProgress),
            (Some(_), true) => notices.downgrade = None,
            (None, false) => notices.downgrade = Some(request.target_version.clone()),
        }
        self.notices.store(Arc::new(notices));
        Ok(())
    }

    /// Notes what one member says about itself.
    pub(super) fn quota(&self, request: Quota) {
        let mut notices = Notices::clone(&self.notices.load());
        if request.bytes == 0 {
            notices.quotas.remove(&request.member_id);
        } else {
            notices.quotas.insert(request.member_id, request.bytes);
        }
        self.notices.store(Arc::new(notices));
    }
}

/// What a command may add to the logical size, in bytes; 0 for whatever is allowed when there is no space.
pub(crate) fn growth(kind: &Kind) -> u64 {
    match kind {
        Kind::Put(put) => of_put(put),
        Kind::Txn(txn) => of_txn(txn),
        Kind::LeaseGrant(_) => LEASE_BYTES,
        Kind::DeleteRange(_)
        | Kind::Compact(_)
        | Kind::LeaseRevoke(_)
        | Kind::LeaseRenew(_)
        | Kind::LeaseExpire(_)
        | Kind::Alarm(_)
        | Kind::Downgrade(_)
        | Kind::Quota(_)
        | Kind::AuthEnable(_)
        | Kind::AuthDisable(_)
        | Kind::UserAdd(_)
        | Kind::UserDelete(_)
        | Kind::UserChangePassword(_)
        | Kind::UserGrantRole(_)
        | Kind::UserRevokeRole(_)
        | Kind::RoleAdd(_)
        | Kind::RoleDelete(_)
        | Kind::RoleGrantPermission(_)
        | Kind::RoleRevokePermission(_) => 0,
    }
}

fn of_put(put: &PutRequest) -> u64 {
    let bytes = put.key.len().saturating_add(put.value.len());
    VERSION_BYTES.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// The larger of its branches.
fn of_txn(txn: &TxnRequest) -> u64 {
    let of_ops = |ops: &[RequestOp]| {
        ops.iter().fold(0_u64, |sum, op| {
            sum.saturating_add(match &op.request {
                Some(Request::RequestPut(put)) => of_put(put),
                Some(Request::RequestTxn(txn)) => of_txn(txn),
                Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => 0,
            })
        })
    };
    of_ops(&txn.success).max(of_ops(&txn.failure))
}

const fn changes_keys(kind: &Kind) -> bool {
    match kind {
        Kind::Put(_)
        | Kind::DeleteRange(_)
        | Kind::Txn(_)
        | Kind::Compact(_)
        | Kind::LeaseGrant(_)
        | Kind::LeaseRevoke(_) => true,
        Kind::LeaseRenew(_)
        | Kind::LeaseExpire(_)
        | Kind::Alarm(_)
        | Kind::Downgrade(_)
        | Kind::Quota(_)
        | Kind::AuthEnable(_)
        | Kind::AuthDisable(_)
        | Kind::UserAdd(_)
        | Kind::UserDelete(_)
        | Kind::UserChangePassword(_)
        | Kind::UserGrantRole(_)
        | Kind::UserRevokeRole(_)
        | Kind::RoleAdd(_)
        | Kind::RoleDelete(_)
        | Kind::RoleGrantPermission(_)
        | Kind::RoleRevokePermission(_) => false,
    }
}
