//! What a group can be told, and what it refuses.

use alloc::string::String;
use alloc::string::ToString as _;
use core::fmt;
use core::time::Duration;

use crate::types::NodeId;

/// Long enough that under load nearly every commit index travels with entries; short enough that whoever watches a
/// follower of an idle cluster does not notice.
const COMMIT_NOTICE_DELAY: Duration = Duration::from_millis(2);

/// Settings of one member of one group. Every limit names its unit and what it costs.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Shortest time without a leader after which an election starts (§5.2). Also how long a voter that
    /// hears a leader refuses to vote against it (thesis §4.2.3).
    pub election_timeout_min: Duration,
    /// Longest such time, inclusive. A leader without contact to a quorum for this long steps down.
    pub election_timeout_max: Duration,
    /// How often a leader that has nothing to say says so. Less than `election_timeout_min`.
    pub heartbeat_interval: Duration,
    /// How long a leader waits for the next AppendEntries to carry a newer commit index along, before it says so in a
    /// message of its own. Followers that are known to wait for it are told at once. At most `heartbeat_interval`.
    pub commit_notice_delay: Duration,
    /// Payload bytes of one AppendEntries, as long as it holds more than one entry.
    pub append_bytes_max: usize,
    /// Entries of one AppendEntries.
    pub append_entries_max: usize,
    /// AppendEntries in flight to one follower.
    pub inflight_messages_max: usize,
    /// Payload bytes in flight to one follower: memory that a slow peer can pin.
    pub inflight_bytes_max: usize,
    /// Payload bytes appended by a leader and not yet committed; beyond it proposals are refused.
    pub uncommitted_bytes_max: usize,
    /// Payload bytes of applied entries kept in memory for followers that lag a little.
    pub cache_bytes_max: usize,
    /// Membership changes that wait behind the one under way; beyond it they are refused.
    pub membership_queue_max: usize,
    /// A learner is promoted when it lacks at most this many entries. More than what is in flight under load,
    /// or a busy cluster would never find one caught up.
    pub promotion_lag_max: u64,
    /// A leader whose oldest write is not durable after this long steps down.
    pub disk_stall_timeout: Duration,
}

impl Config {
    /// Settings for `node` with the given timings and the default limits.
    #[must_use]
    pub fn new(
        node: NodeId,
        election_timeout_min: Duration,
        election_timeout_max: Duration,
        heartbeat_interval: Duration,
    ) -> Self {
        Self {
            node,
            election_timeout_min,
            election_timeout_max,
            heartbeat_interval,
            commit_notice_delay: COMMIT_NOTICE_DELAY.min(heartbeat_interval / 2),
            append_bytes_max: 1 << 20,
            append_entries_max: 4096,
            inflight_messages_max: 256,
            inflight_bytes_max: 16 << 20,
            uncommitted_bytes_max: 256 << 20,
            cache_bytes_max: 64 << 20,
            membership_queue_max: 64,
            promotion_lag_max: 1024,
            disk_stall_timeout: election_timeout_max * 4,
        }
    }

    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// The first setting that does not, with what would be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse =
            |field, problem: &str| Err(ConfigError { field, problem: problem.to_string() });
        if self.node.member.0 == 0 {
            return refuse("node", "member id 0 is reserved; use a random one");
        }
        if self.heartbeat_interval.is_zero() {
            return refuse("heartbeat_interval", "must be longer than zero");
        }
        if self.election_timeout_min > self.election_timeout_max {
            return refuse(
                "election_timeout",
                "the interval is reversed: its start lies after its end",
            );
        }
        if self.heartbeat_interval >= self.election_timeout_min {
            return refuse(
                "heartbeat_interval",
                "must be shorter than the shortest election timeout, or followers will not wait for it",
            );
        }
        if self.commit_notice_delay > self.heartbeat_interval {
            return refuse(
                "commit_notice_delay",
                "must not be longer than the heartbeat interval: heartbeats tell the commit index anyway",
            );
        }
        let counts = [
            ("append_bytes_max", self.append_bytes_max),
            ("append_entries_max", self.append_entries_max),
            ("inflight_messages_max", self.inflight_messages_max),
            ("inflight_bytes_max", self.inflight_bytes_max),
            ("uncommitted_bytes_max", self.uncommitted_bytes_max),
            ("membership_queue_max", self.membership_queue_max),
        ];
        for (field, count) in counts {
            if count == 0 {
                return refuse(field, "must be at least 1");
            }
        }
        if self.disk_stall_timeout < self.election_timeout_max {
            return refuse(
                "disk_stall_timeout",
                "must not be shorter than the longest election timeout",
            );
        }
        Ok(())
    }
}

/// A setting that cannot work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// The setting's name.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl core::error::Error for ConfigError {}
