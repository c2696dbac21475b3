//! What a node tells about itself: one value, swapped atomically, read without a lock.

use std::sync::Arc;

use raft_core::{ClusterId, EntryId, Index, MemberId, Membership, NodeId, Term};

use crate::node::member_info::{MemberInfo, is_awaited};

/// How far a node is on its way into the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Phase {
    /// Empty; talks with the configured members about forming the cluster.
    Forming,
    /// Empty; waits until a running cluster admits it. The text says what for.
    Waiting(String),
    /// Has data and asks a quorum whether anything of it was lost (decision 10); promises nothing until then.
    Confirming,
    /// Entries of its log are damaged and fetched from others; it takes no part until then. The text names the first
    /// one, its file and what the others say.
    Repairing(String),
    /// Takes part.
    Active,
    /// What it once promised cannot be proven: idle until re-admitted (decision 3). The text says why.
    Amnesic(String),
    /// Shutting down.
    Stopping,
}

/// What a node is within the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoleName {
    /// Receives entries, does not vote.
    Learner,
    /// Follows, or waits for a leader.
    Follower,
    /// Campaigns, or asks whether it should.
    Candidate,
    /// Leads.
    Leader,
}

impl RoleName {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Learner => "learner",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
        }
    }
}

/// One member as this node sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberStatus {
    /// Who.
    pub node: NodeId,
    /// Name and addresses.
    pub info: Arc<MemberInfo>,
    /// Votes; else it is a learner.
    pub voter: bool,
    /// A learner that will be promoted once it has caught up.
    pub auto_promote: bool,
    /// Whether there is a connection to it. True for the node itself.
    pub connected: bool,
    /// How far its log is known to equal the leader's: only a leader knows.
    pub match_index: Option<Index>,
}

impl MemberStatus {
    /// The id by which administrators know it.
    #[must_use]
    pub fn known_as(&self) -> MemberId {
        self.info.known_as.unwrap_or(self.node.member)
    }

    /// Whether it was added and has yet to start.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        is_awaited(self.node)
    }
}

/// A node's state at the end of a turn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// How far the node is on its way into the cluster.
    pub phase: Phase,
    /// The cluster; `None` before formation.
    pub cluster_id: Option<ClusterId>,
    /// This node.
    pub node: NodeId,
    /// What it is within the protocol.
    pub role: RoleName,
    /// Its current term.
    pub term: Term,
    /// The leader of that term, when known.
    pub leader: Option<MemberId>,
    /// The highest index known to be committed.
    pub commit_index: Index,
    /// The highest index that the state machine has applied. At most `commit_index`.
    pub last_applied: Index,
    /// The last entry of the log, durable or not.
    pub last_log: EntryId,
    /// The highest index that is durable here.
    pub durable_index: Index,
    /// The first index that the log still holds.
    pub first_index: Index,
    /// What the newest snapshot includes.
    pub snapshot: EntryId,
    /// What every member knows, as of the last committed configuration (decision 18): commands of a higher level are
    /// refused.
    pub feature_level: u16,
    /// The disk has no space for the log's next segment: what makes the state larger is refused here.
    pub disk_full: bool,
    /// The configuration in force.
    pub membership: Arc<Membership>,
    /// Every member of the last configuration that is known to be committed, in order of id.
    pub members: Arc<Vec<MemberStatus>>,
}

impl Status {
    /// A node that knows nothing yet.
    pub(crate) fn empty(node: NodeId) -> Self {
        Self {
            phase: Phase::Forming,
            cluster_id: None,
            node,
            role: RoleName::Follower,
            term: Term(0),
            leader: None,
            commit_index: Index::ZERO,
            last_applied: Index::ZERO,
            last_log: EntryId::ZERO,
            durable_index: Index::ZERO,
            first_index: Index(1),
            snapshot: EntryId::ZERO,
            feature_level: 1,
            disk_full: false,
            membership: Arc::new(Membership::default()),
            members: Arc::new(Vec::new()),
        }
    }

    /// Whether more than positions differ: what watchers are woken for.
    pub(crate) fn differs_beyond_positions(&self, other: &Self) -> bool {
        self.phase != other.phase
            || self.cluster_id != other.cluster_id
            || self.role != other.role
            || self.term != other.term
            || self.leader != other.leader
            || self.disk_full != other.disk_full
            || self.membership != other.membership
    }

    /// The member that administrators know by this id, or whose own it is.
    #[must_use]
    pub fn find(&self, member: MemberId) -> Option<NodeId> {
        let known = self.members.iter().find(|known| known.known_as() == member);
        let found = known.or_else(|| self.members.iter().find(|own| own.node.member == member));
        found.map(|member| member.node)
    }

    /// The id by which administrators know the member with this one.
    #[must_use]
    pub fn known_as(&self, member: MemberId) -> MemberId {
        let known = self.members.iter().find(|known| known.node.member == member);
        known.map_or(member, MemberStatus::known_as)
    }

    /// Whether this node leads.
    #[must_use]
    pub const fn is_leader(&self) -> bool {
        matches!(self.role, RoleName::Leader)
    }
}
