//! What is looked up when somebody asks: where this member stands, and what the node has measured.

use prometheus::{Histogram, IntGauge, IntGaugeVec, Opts, Registry};
use raft::Node;
use raft::node::RoleName;
use raft_kv::Store;

use super::{Facts, gauge, histogram, register};

/// Upper bounds of etcd's histograms of disk writes: from 1 ms, doubling.
const DISK_BUCKETS: usize = 14;

/// Gauges by name; all are set before the page is written.
pub(super) struct Page {
    has_leader: IntGauge,
    is_leader: IntGauge,
    is_learner: IntGauge,
    committed: IntGauge,
    applied: IntGauge,
    quota: IntGauge,
    size: IntGauge,
    size_in_use: IntGauge,
    revision: IntGauge,
    compact_revision: IntGauge,
    version: IntGaugeVec,
    cluster_version: IntGaugeVec,
    id: IntGaugeVec,
    active_peers: IntGaugeVec,
    term: IntGauge,
    durable: IntGauge,
    log_first: IntGauge,
    snapshot: IntGauge,
    members: IntGaugeVec,
    lag: IntGaugeVec,
    /// Never observed: there is no backend beside the log that commits.
    _backend_commit: Histogram,
}

impl Page {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| gauge(registry, name, help);
        let labelled = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        Ok(Self {
            has_leader: gauge(
                "etcd_server_has_leader",
                "Whether or not a leader exists. 1 is existence, 0 is not.",
            )?,
            is_leader: gauge(
                "etcd_server_is_leader",
                "Whether or not this member is a leader. 1 if is, 0 otherwise.",
            )?,
            is_learner: gauge(
                "etcd_server_is_learner",
                "Whether or not this member is a learner. 1 if is, 0 otherwise.",
            )?,
            committed: gauge(
                "etcd_server_proposals_committed_total",
                "The total number of consensus proposals committed.",
            )?,
            applied: gauge(
                "etcd_server_proposals_applied_total",
                "The total number of consensus proposals applied.",
            )?,
            quota: gauge(
                "etcd_server_quota_backend_bytes",
                "Current backend storage quota size in bytes.",
            )?,
            size: gauge(
                "etcd_mvcc_db_total_size_in_bytes",
                "Total size of the underlying database physically allocated in bytes.",
            )?,
            size_in_use: gauge(
                "etcd_mvcc_db_total_size_in_use_in_bytes",
                "Total size of the underlying database logically in use in bytes.",
            )?,
            revision: gauge(
                "etcd_debugging_mvcc_current_revision",
                "The current revision of store.",
            )?,
            compact_revision: gauge(
                "etcd_debugging_mvcc_compact_revision",
                "The revision of the last compaction in store.",
            )?,
            version: labelled(
                "etcd_server_version",
                "Which version is running. 1 for 'server_version' label with current version.",
                &["server_version"],
            )?,
            cluster_version: labelled(
                "etcd_cluster_version",
                "Which version is running. 1 for 'cluster_version' label with current cluster version",
                &["cluster_version"],
            )?,
            id: labelled(
                "etcd_server_id",
                "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
                &["server_id"],
            )?,
            active_peers: labelled(
                "etcd_network_active_peers",
                "The current number of active peer connections.",
                &["Local", "Remote"],
            )?,
            term: gauge("rusty_raft_term", "The current term of this member.")?,
            durable: gauge("rusty_raft_durable_index", "The highest index that is durable here.")?,
            log_first: gauge(
                "rusty_raft_log_first_index",
                "The first index that the log still holds.",
            )?,
            snapshot: gauge(
                "rusty_raft_snapshot_index",
                "The last index that the newest snapshot includes.",
            )?,
            members: labelled(
                "rusty_raft_members",
                "Members of the configuration in force.",
                &["role"],
            )?,
            lag: labelled(
                "rusty_raft_member_lag_entries",
                "Entries that a member's log lacks, as its leader knows.",
                &["member"],
            )?,
            _backend_commit: histogram(
                registry,
                "etcd_disk_backend_commit_duration_seconds",
                "The latency distributions of commit called by backend.",
                prometheus::exponential_buckets(0.001, 2.0, DISK_BUCKETS)?,
            )?,
        })
    }

    /// Sets everything to what is now.
    pub(super) fn update(&self, node: &Node<Store>, facts: &Facts) {
        let status = node.status();
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.has_leader.set(i64::from(status.leader.is_some()));
        self.is_leader.set(i64::from(status.is_leader()));
        self.is_learner.set(i64::from(status.role == RoleName::Learner));
        self.committed.set(number(status.commit_index.0));
        self.applied.set(number(status.last_applied.0));
        self.quota.set(number(facts.quota));
        self.size.set(number(facts.size));
        self.size_in_use.set(number(facts.size));
        self.revision.set(facts.revision);
        self.compact_revision.set(facts.compact_revision);
        self.version.with_label_values(&[facts.version]).set(1);
        let minor = facts.version.rsplit_once('.').map_or(facts.version, |(minor, _)| minor);
        self.cluster_version.with_label_values(&[minor]).set(1);
        let own = format!("{:x}", status.known_as(status.node.member).0);
        self.id.with_label_values(&[&own]).set(1);
        self.term.set(number(status.term.0));
        self.durable.set(number(status.durable_index.0));
        self.log_first.set(number(status.first_index.0));
        self.snapshot.set(number(status.snapshot.index.0));
        let voters = status.members.iter().filter(|member| member.voter).count();
        for (role, count) in [("voter", voters), ("learner", status.members.len() - voters)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.members.with_label_values(&[role]).set(count);
        }
        // Members come and go, and so do their lines.
        self.active_peers.reset();
        self.lag.reset();
        for member in status.members.iter().filter(|member| member.node != status.node) {
            let remote = format!("{:x}", member.known_as().0);
            let active = self.active_peers.with_label_values(&[&own, &remote]);
            active.set(i64::from(member.connected));
            if let Some(index) = member.match_index {
                let lag = status.last_log.index.0.saturating_sub(index.0);
                self.lag.with_label_values(&[&remote]).set(number(lag));
            }
        }
    }
}
