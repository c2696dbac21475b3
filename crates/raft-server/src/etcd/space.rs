//! The quota: what happens when the store has become too large.
//!
//! What counts is the logical size, which is equal on all members. Each says through the log how much it bears, by its
//! configuration or its memory; the least holds for all, and the store itself refuses what would exceed it. Whoever meets
//! such a command raises NOSPACE through the log; from that entry on all members refuse what makes the store larger.
//! Deleting and compacting goes on and makes space; the alarm ends when somebody disarms it, as in etcd.

use std::time::Duration;

use raft::Node;
use raft::node::Status;
use raft_kv::proto::etcdserverpb::alarm_request::AlarmAction;
use raft_kv::proto::etcdserverpb::{AlarmRequest, AlarmType};
use raft_kv::{Command, Notices, Reader, Store};
use tokio::time::MissedTickBehavior;

use super::Etcd;

/// How often a member looks whether the cluster knows what it bears, and whether that is exceeded.
const INTERVAL: Duration = Duration::from_secs(1);

impl Etcd {
    /// Whether the store may grow by this command; if not, the alarm is raised.
    pub(super) async fn has_space(&self, command: &Command) -> bool {
        let growth = command.growth();
        if growth == 0 || self.reader.logical_size().saturating_add(growth) <= self.quota_bytes() {
            return true;
        }
        self.report_no_space().await;
        false
    }

    /// The bytes that the store may take; what this member says until the cluster has agreed on anything.
    pub(super) fn quota_bytes(&self) -> u64 {
        self.reader.notices().quota().unwrap_or(self.settings.quota_bytes)
    }

    /// Raises the alarm, unless it is raised.
    pub(super) async fn report_no_space(&self) {
        raise(&self.node, &self.reader).await;
    }
}

/// What is to be said in the log by the member whose status this is: what it bears itself, and on the leader that those
/// who left the cluster bear nothing any more. `None` when all is said, or cannot be yet.
fn unsaid(status: &Status, notices: &Notices, quota_bytes: u64) -> Option<Command> {
    let own = status.known_as(status.node.member).0;
    let is_member = |id: u64| status.members.iter().any(|member| member.known_as().0 == id);
    if status.leader.is_none() || !is_member(own) {
        return None;
    }
    let gone = notices.quotas.keys().find(|member| status.is_leader() && !is_member(**member));
    let command = match gone {
        Some(member) => Command::quota(*member, 0),
        None if notices.quotas.get(&own) == Some(&quota_bytes) => return None,
        None => Command::quota(own, quota_bytes),
    };
    (raft::core::Command::feature_level(&command) <= status.feature_level).then_some(command)
}

/// Says what this member bears, `quota_bytes`, and on the leader raises the alarm when the store has outgrown what all
/// bear.
pub(super) async fn watch(node: Node<Store>, reader: Reader, quota_bytes: u64) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let status = node.status();
        if let Some(command) = unsaid(&status, &reader.notices(), quota_bytes)
            && let Err(error) = node.propose(command).await
        {
            // The next tick tries again.
            tracing::debug!("the quota was not said: {error}");
        }
        let quota = reader.notices().quota().unwrap_or(quota_bytes);
        if status.is_leader() && reader.logical_size() > quota {
            raise(&node, &reader).await;
        }
    }
}

/// Raises the alarm in this member's name, unless it is raised in anybody's.
async fn raise(node: &Node<Store>, reader: &Reader) {
    if reader.notices().has(AlarmType::Nospace) {
        return;
    }
    let status = node.status();
    let member_id = status.known_as(status.node.member).0;
    let nospace = i32::from(AlarmType::Nospace);
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
