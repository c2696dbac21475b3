//! The quota: what happens when the store has become too large.
//!
//! What counts is the logical size, which is equal on all members. The member that would exceed its quota, or finds that
//! it has, raises NOSPACE through the log; from that entry on all members refuse what makes the store larger. Deleting and
//! compacting goes on and makes space; the alarm ends when somebody disarms it, as in etcd.

use std::time::Duration;

use raft::Node;
use raft_kv::proto::etcdserverpb::alarm_request::AlarmAction;
use raft_kv::proto::etcdserverpb::{AlarmRequest, AlarmType};
use raft_kv::{Command, Reader, Store};
use tokio::time::MissedTickBehavior;

use super::Etcd;

/// How often a member compares the size with its own quota: those of the others may be larger.
const INTERVAL: Duration = Duration::from_secs(1);

impl Etcd {
    /// Whether the store may grow by this command; if not, the alarm is raised.
    pub(super) async fn has_space(&self, command: &Command) -> bool {
        let growth = command.growth();
        if growth == 0
            || self.reader.logical_size().saturating_add(growth) <= self.settings.quota_bytes
        {
            return true;
        }
        raise(&self.node, &self.reader).await;
        false
    }
}

/// Raises the alarm whenever the store has outgrown `quota_bytes`.
pub(super) async fn watch(node: Node<Store>, reader: Reader, quota_bytes: u64) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if reader.logical_size() > quota_bytes {
            raise(&node, &reader).await;
        }
    }
}

/// Raises the alarm for this member, unless it is.
async fn raise(node: &Node<Store>, reader: &Reader) {
    let status = node.status();
    let member_id = status.known_as(status.node.member).0;
    let nospace = i32::from(AlarmType::Nospace);
    if reader.notices().alarms.contains(&(nospace, member_id)) {
        return;
    }
    tracing::warn!(
        "the store has {} bytes and has reached the quota: refusing what makes it larger until keys are deleted, \
         history is compacted and the alarm is disarmed",
        reader.logical_size()
    );
    let action = AlarmAction::Activate.into();
    let alarm = Command::alarm(AlarmRequest { action, member_id, alarm: nospace });
    if let Err(error) = node.propose(alarm).await {
        // Whatever grows the store next tries again.
        tracing::debug!("the alarm was not raised: {error}");
    }
}
