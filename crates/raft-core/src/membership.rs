//! The configuration of a cluster (§6): who votes, who learns, and how to get from one to the next.
//!
//! A configuration takes effect as soon as it is in the log, committed or not, and is rolled back when
//! its entry is truncated. Changes of voters always go through a joint configuration.

use alloc::collections::BTreeMap;
use alloc::collections::BTreeSet;
use core::fmt;
use core::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::mutant;
use crate::types::{Incarnation, MemberId, NodeId};

/// Members of one configuration, voters and learners together.
pub const MEMBERS_MAX: usize = 64;
/// Bytes of one member's `info`.
pub const INFO_BYTES_MAX: usize = 4096;

/// A line in the configuration that is not about voting.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Member {
    /// Opaque to the protocol: name and addresses, encoded by the node.
    pub info: Bytes,
    /// A learner that the leader promotes to a voter once it has caught up.
    pub auto_promote: bool,
}

/// Lease reads, when the cluster has agreed to them (thesis §6.4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// How long a voter that heard the leader refuses others, on its own clock.
    pub length: Duration,
    /// Bound on the difference of two clocks' rates, in millionths.
    pub drift_ppm: u32,
}

/// One configuration: `C_old,new` while `outgoing` is not empty, else `C_new`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// Voters of the (new) configuration.
    voters: BTreeSet<NodeId>,
    /// Voters of the configuration that is being left; empty when not joint.
    outgoing: BTreeSet<NodeId>,
    /// Receive entries, count for nothing.
    learners: BTreeSet<NodeId>,
    /// Voters of `outgoing` that become learners when the joint configuration is left.
    learners_next: BTreeSet<NodeId>,
    /// What else is known of every node in the sets above.
    members: BTreeMap<NodeId, Member>,
    /// Nodes that once belonged and never may again.
    removed: BTreeSet<NodeId>,
    /// Lease reads; off unless the cluster committed to them.
    lease: Option<Lease>,
}

impl Membership {
    /// A configuration of voters alone: how a cluster begins.
    #[must_use]
    pub fn from_voters(voters: impl IntoIterator<Item = (NodeId, Bytes)>) -> Self {
        let mut membership = Self::default();
        for (node, info) in voters {
            membership.voters.insert(node);
            membership.members.insert(node, Member { info, auto_promote: false });
        }
        membership
    }

    /// Voters of the new (or only) configuration.
    #[must_use]
    pub const fn voters(&self) -> &BTreeSet<NodeId> {
        &self.voters
    }

    /// Voters of the configuration being left; empty when not joint.
    #[must_use]
    pub const fn outgoing(&self) -> &BTreeSet<NodeId> {
        &self.outgoing
    }

    /// Learners.
    #[must_use]
    pub const fn learners(&self) -> &BTreeSet<NodeId> {
        &self.learners
    }

    /// Voters that become learners when the joint configuration is left.
    #[must_use]
    pub const fn learners_next(&self) -> &BTreeSet<NodeId> {
        &self.learners_next
    }

    /// Everyone who receives entries, in order, with what is known of them.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.members.iter().map(|(node, member)| (*node, member))
    }

    /// What is known of `node`.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node)
    }

    /// Nodes that may never come back.
    #[must_use]
    pub const fn removed(&self) -> &BTreeSet<NodeId> {
        &self.removed
    }

    /// Lease reads, if the cluster has agreed to them.
    #[must_use]
    pub const fn lease(&self) -> Option<Lease> {
        self.lease
    }

    /// Whether this is `C_old,new`.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `node` votes in either half.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }

    /// Whether `node` receives entries at all.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.members.contains_key(&node)
    }

    /// Whether those for which `counts` holds are a majority of the voters, of both halves if this is `C_old,new`.
    pub fn is_quorum(&self, counts: impl Fn(NodeId) -> bool) -> bool {
        let is_majority = |voters: &BTreeSet<NodeId>| {
            let counted = voters.iter().filter(|node| counts(**node)).count();
            voters.is_empty() || counted > voters.len() / 2
        };
        is_majority(&self.voters) && is_majority(&self.outgoing)
    }

    /// Every voter of either half, once.
    pub fn all_voters(&self) -> impl Iterator<Item = NodeId> {
        self.voters.union(&self.outgoing).copied()
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "voters{:?}", self.voters)?;
        for (name, set) in [
            ("outgoing", &self.outgoing),
            ("learners", &self.learners),
            ("learners_next", &self.learners_next),
            ("removed", &self.removed),
        ] {
            if !set.is_empty() {
                write!(f, " {name}{set:?}")?;
            }
        }
        Ok(())
    }
}

/// One step of a membership change. Several make one change, applied together through one joint
/// configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MembershipStep {
    /// Add a node that receives entries and does not count. With `auto_promote` the leader makes it a
    /// voter once it has caught up.
    AddLearner {
        /// The new node; its (id, incarnation) must never have been removed.
        node: NodeId,
        /// What the protocol does not read.
        member: Member,
    },
    /// Make a learner a voter.
    Promote(NodeId),
    /// Make a voter a learner.
    Demote(NodeId),
    /// Remove a voter or learner for ever.
    Remove(NodeId),
    /// Replace what is known of a member.
    Update {
        /// The member.
        node: NodeId,
        /// Its new attributes.
        member: Member,
    },
    /// Switch lease reads on or off.
    SetLease(Option<Lease>),
}

/// Why a membership change is refused. Nothing was appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MembershipError {
    /// Only a leader changes the configuration.
    NotLeader,
    /// Too many changes wait already.
    QueueFull,
    /// The node is not part of the configuration.
    NotAMember(NodeId),
    /// The node is part of the configuration already, or another incarnation of the same member is.
    AlreadyAMember(NodeId),
    /// The node was removed; it needs a new identity.
    WasRemoved(NodeId),
    /// Only learners are promoted.
    NotALearner(NodeId),
    /// Only voters are demoted.
    NotAVoter(NodeId),
    /// The learner lacks too many entries.
    NotCaughtUp(NodeId),
    /// No voter would be left.
    NoVoters,
    /// More than [`MEMBERS_MAX`] members, or more than [`INFO_BYTES_MAX`] bytes of attributes.
    TooLarge,
    /// The change says nothing.
    Empty,
}

impl fmt::Display for MembershipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader => write!(f, "only the leader changes the configuration"),
            Self::QueueFull => {
                write!(f, "too many membership changes are waiting; try again later")
            }
            Self::NotAMember(node) => write!(f, "{node} is not a member"),
            Self::AlreadyAMember(node) => write!(f, "{node} is a member already"),
            Self::WasRemoved(node) => {
                write!(
                    f,
                    "{node} was removed and cannot return; start it with an empty data folder"
                )
            }
            Self::NotALearner(node) => {
                write!(f, "{node} is not a learner; only learners are promoted")
            }
            Self::NotAVoter(node) => write!(f, "{node} is not a voter; only voters are demoted"),
            Self::NotCaughtUp(node) => write!(f, "{node} has not caught up with the leader yet"),
            Self::NoVoters => write!(f, "no voter would be left"),
            Self::TooLarge => write!(
                f,
                "at most {MEMBERS_MAX} members with {INFO_BYTES_MAX} bytes of attributes each are allowed"
            ),
            Self::Empty => write!(f, "the change has no steps"),
        }
    }
}

impl core::error::Error for MembershipError {}

impl Membership {
    /// The configuration to append for `steps`: joint when voters change, simple otherwise.
    ///
    /// # Errors
    /// When a step does not fit; `self` is as it was.
    pub fn change(&self, steps: &[MembershipStep]) -> Result<Self, MembershipError> {
        assert!(!self.is_joint(), "a change starts only from a simple configuration");
        if steps.is_empty() {
            return Err(MembershipError::Empty);
        }
        let mut next = self.clone();
        for step in steps {
            next.apply_step(step)?;
        }
        if next.voters.is_empty() {
            return Err(MembershipError::NoVoters);
        }
        if next.members.len() > MEMBERS_MAX
            || next.members.values().any(|member| member.info.len() > INFO_BYTES_MAX)
        {
            return Err(MembershipError::TooLarge);
        }
        if next.voters != self.voters && mutant::is_active(17) {
            return Ok(next);
        }
        if next.voters != self.voters {
            // Whoever leaves goes on receiving entries until the joint configuration is left.
            next.outgoing.clone_from(&self.voters);
            for node in self.voters.difference(&next.voters) {
                if next.learners.remove(node) {
                    next.learners_next.insert(*node);
                }
                if let (Some(member), false) = (self.members.get(node), next.contains(*node)) {
                    next.members.insert(*node, member.clone());
                }
            }
        }
        Ok(next)
    }

    fn apply_step(&mut self, step: &MembershipStep) -> Result<(), MembershipError> {
        match step {
            MembershipStep::AddLearner { node, member } => {
                if self.removed.contains(node) {
                    return Err(MembershipError::WasRemoved(*node));
                }
                if self.members.keys().any(|known| known.member == node.member) {
                    return Err(MembershipError::AlreadyAMember(*node));
                }
                self.learners.insert(*node);
                self.members.insert(*node, member.clone());
            }
            MembershipStep::Promote(node) => {
                if !self.contains(*node) {
                    return Err(MembershipError::NotAMember(*node));
                }
                if !self.learners.remove(node) {
                    return Err(MembershipError::NotALearner(*node));
                }
                self.voters.insert(*node);
                if let Some(member) = self.members.get_mut(node) {
                    member.auto_promote = false;
                }
            }
            MembershipStep::Demote(node) => {
                if !self.contains(*node) {
                    return Err(MembershipError::NotAMember(*node));
                }
                if !self.voters.remove(node) {
                    return Err(MembershipError::NotAVoter(*node));
                }
                self.learners.insert(*node);
            }
            MembershipStep::Remove(node) => {
                if self.members.remove(node).is_none() {
                    return Err(MembershipError::NotAMember(*node));
                }
                self.voters.remove(node);
                self.learners.remove(node);
                self.removed.insert(*node);
            }
            MembershipStep::Update { node, member } => {
                let Some(known) = self.members.get_mut(node) else {
                    return Err(MembershipError::NotAMember(*node));
                };
                *known = member.clone();
            }
            MembershipStep::SetLease(lease) => self.lease = *lease,
        }
        Ok(())
    }

    /// `C_new`: what follows the joint configuration once that is committed.
    ///
    /// # Panics
    /// When this is not a joint configuration.
    #[must_use]
    pub fn leave_joint(&self) -> Self {
        assert!(self.is_joint(), "only a joint configuration is left");
        let mut next = self.clone();
        let outgoing = core::mem::take(&mut next.outgoing);
        for node in core::mem::take(&mut next.learners_next) {
            next.learners.insert(node);
        }
        for node in outgoing {
            if !next.voters.contains(&node) && !next.learners.contains(&node) {
                next.members.remove(&node);
            }
        }
        next
    }
}

/// Version of the encoding below.
const VERSION: u8 = 1;

impl Membership {
    /// Encodes the configuration followed by `context`, which is the proposer's and opaque here.
    #[must_use]
    pub fn encode(&self, context: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u16_le(count(self.members.len()));
        for (node, member) in &self.members {
            put_node(&mut out, *node);
            let mut roles = 0u8;
            for (bit, set) in [&self.voters, &self.outgoing, &self.learners, &self.learners_next]
                .iter()
                .enumerate()
            {
                roles |= u8::from(set.contains(node)) << bit;
            }
            out.put_u8(roles);
            out.put_u8(u8::from(member.auto_promote));
            out.put_u16_le(count(member.info.len()));
            out.put_slice(&member.info);
        }
        out.put_u32_le(u32::try_from(self.removed.len()).unwrap_or(u32::MAX));
        for node in &self.removed {
            put_node(&mut out, *node);
        }
        match self.lease {
            None => out.put_u8(0),
            Some(lease) => {
                out.put_u8(1);
                out.put_u64_le(u64::try_from(lease.length.as_micros()).unwrap_or(u64::MAX));
                out.put_u32_le(lease.drift_ppm);
            }
        }
        out.put_slice(context);
        out.freeze()
    }

    /// Decodes what [`encode`](Self::encode) made; the rest is the proposer's context. `None` when the
    /// bytes are anything else.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<(Self, Bytes)> {
        let mut input = bytes.clone();
        if input.try_get_u8().ok()? != VERSION {
            return None;
        }
        let mut membership = Self::default();
        let members = input.try_get_u16_le().ok()?;
        for _ in 0..members {
            let node = get_node(&mut input)?;
            let roles = input.try_get_u8().ok()?;
            let auto_promote = match input.try_get_u8().ok()? {
                0 => false,
                1 => true,
                _ => return None,
            };
            let info_bytes = usize::from(input.try_get_u16_le().ok()?);
            if input.remaining() < info_bytes || roles == 0 || roles > 0b1111 {
                return None;
            }
            let info = input.split_to(info_bytes);
            let sets = [
                &mut membership.voters,
                &mut membership.outgoing,
                &mut membership.learners,
                &mut membership.learners_next,
            ];
            for (bit, set) in sets.into_iter().enumerate() {
                if roles & (1 << bit) != 0 {
                    set.insert(node);
                }
            }
            if membership.members.insert(node, Member { info, auto_promote }).is_some() {
                return None;
            }
        }
        let removed = input.try_get_u32_le().ok()?;
        for _ in 0..removed {
            membership.removed.insert(get_node(&mut input)?);
        }
        membership.lease = match input.try_get_u8().ok()? {
            0 => None,
            1 => Some(Lease {
                length: Duration::from_micros(input.try_get_u64_le().ok()?),
                drift_ppm: input.try_get_u32_le().ok()?,
            }),
            _ => return None,
        };
        Some((membership, input))
    }
}

fn count(len: usize) -> u16 {
    // MEMBERS_MAX and INFO_BYTES_MAX are far below; `change` enforces them.
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn put_node(out: &mut BytesMut, node: NodeId) {
    out.put_u64_le(node.member.0);
    out.put_u128_le(node.incarnation.0);
}

fn get_node(input: &mut Bytes) -> Option<NodeId> {
    let member = MemberId(input.try_get_u64_le().ok()?);
    let incarnation = Incarnation(input.try_get_u128_le().ok()?);
    Some(NodeId { member, incarnation })
}
