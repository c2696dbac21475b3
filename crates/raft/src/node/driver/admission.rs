//! Empty nodes that are wanted in the cluster: configured members that were not there when it formed, and those that
//! stand where a member has lost its disk.

use std::collections::BTreeSet;

use raft_core::{Member, Membership, MembershipStep, NodeId, Raft, StateMachine, Time};
use tracing::{debug, info, warn};

use super::Driver;
use crate::node::admin::Origin;
use crate::node::feature_level;
use crate::node::formation_message::Founding;
use crate::node::member_info::{MemberInfo, is_awaited};

/// Whether the configured `address` still waits for the member that did not take part in the founding. A founder's
/// or an admitted member's former address is none of that kind: who appears there is nobody that was meant.
fn is_vacant(founding: &Founding, membership: &Membership, address: &str) -> bool {
    let address_of =
        |member: &Member| MemberInfo::decode(&member.info).map(|info| info.peer_address);
    let founders: BTreeSet<String> =
        founding.members.members().filter_map(|(_, member)| address_of(member)).collect();
    let slots: BTreeSet<&str> = founding
        .configured
        .iter()
        .map(String::as_str)
        .filter(|configured| !founders.contains(*configured))
        .collect();
    // Every later member may have come in through one of the slots and moved since, unless it was told an id first.
    let is_invited = |node: NodeId, member: &Member| {
        is_awaited(node)
            || MemberInfo::decode(&member.info).is_some_and(|info| info.known_as.is_some())
    };
    let later = membership
        .members()
        .filter(|(node, member)| !founding.members.contains(*node) && !is_invited(*node, member))
        .count();
    // Whoever never started has left nothing vacant: its place was taken.
    let nobody_left = membership.removed().iter().copied().all(is_awaited);
    slots.contains(address) && later < slots.len() && nobody_left
}

/// Another node answers where a member should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StandIn {
    pub(super) node: NodeId,
    since: Time,
}

impl<S: StateMachine> Driver<S> {
    /// An empty node wants to know about the cluster: it may be wanted here.
    pub(super) fn on_empty_node(&mut self, now: Time, from: NodeId, info: MemberInfo) {
        self.consider_admission(now, from, &info);
        if !self.consider_arrival(now, from, &info) {
            self.consider_readmission(now, from, &info);
        }
        self.admins.seen_empty(from, info);
    }

    /// The leader admits a member that was configured from the beginning and has never been seen (decision 2).
    /// Once any member was removed, an address may be vacant on purpose, and only an administrator fills it.
    fn consider_admission(&mut self, now: Time, node: NodeId, info: &MemberInfo) {
        let (Some(raft), Some(founding)) = (&mut self.raft, &self.founding) else { return };
        let membership = raft.membership();
        let address = &info.peer_address;
        let known = membership.members().any(|(known, member)| {
            known.member == node.member
                || MemberInfo::decode(&member.info)
                    .is_some_and(|info| info.peer_address == *address)
        });
        let vacant = !known && is_vacant(founding, membership, address);
        if !vacant || !raft.is_established() || self.admins.is_admitting(node) {
            return;
        }
        info!(%node, address, "admits a configured member that was not there when the cluster formed");
        let member = Member { info: info.encode(), auto_promote: true };
        self.admit(now, node, vec![MembershipStep::AddLearner { node, member }]);
    }

    /// The leader puts an empty node in the place of the member that was added at its address and has yet to start, under
    /// the id that administrators were told. False when nobody is awaited there.
    fn consider_arrival(&mut self, now: Time, node: NodeId, info: &MemberInfo) -> bool {
        let Some(raft) = &self.raft else { return false };
        let found = member_at(raft.membership(), &info.peer_address);
        let Some((awaited, member)) = found.filter(|(member, _)| is_awaited(*member)) else {
            return false;
        };
        let answers_there = self.connected.get(&node) == Some(&info.peer_address);
        let settled =
            !raft.membership().is_joint() && raft.membership_index() <= raft.commit_index();
        if answers_there && settled && raft.is_established() && !self.admins.is_admitting(node) {
            info!(%node, address = info.peer_address, known_as = %awaited.member, "a member that was awaited has come");
            let info = MemberInfo { known_as: Some(awaited.member), ..info.clone() };
            let member = Member { info: info.encode(), auto_promote: member.auto_promote };
            let steps =
                vec![MembershipStep::Remove(awaited), MembershipStep::AddLearner { node, member }];
            self.admit(now, node, steps);
        }
        true
    }

    /// The leader puts an empty node in the place of the member whose disk is lost: out with the one and in with the other
    /// as a learner, in one joint change, and a vote once it has caught up (decision 3). What the lost disk had promised
    /// counts no more from then on, because every quorum is one of the others.
    ///
    /// Only when that node answers at the member's own address and the member has not been heard of meanwhile, when
    /// the others are a quorum without it, and one at a time: what could not be committed would only stand in the way.
    fn consider_readmission(&mut self, now: Time, node: NodeId, info: &MemberInfo) {
        let (Some(raft), Some(grace)) = (&self.raft, self.settings.readmit_after) else { return };
        let lost = member_at(raft.membership(), &info.peer_address);
        let Some((lost, member)) = lost.filter(|(lost, _)| *lost != node) else { return };
        let answers_there = self.connected.get(&node) == Some(&info.peer_address);
        if !answers_there || lost == self.node || self.connected.contains_key(&lost) {
            self.stand_ins.remove(&lost);
            return;
        }
        self.stand_ins.retain(|lost, _| raft.membership().contains(*lost));
        let stand_in = self.stand_ins.entry(lost).or_insert(StandIn { node, since: now });
        if stand_in.node != node {
            *stand_in = StandIn { node, since: now };
        }
        let since = stand_in.since;
        if now.since(since) < grace
            || !raft.is_established()
            || self.admins.is_admitting(node)
            || !self.may_replace(raft, lost)
        {
            return;
        }
        warn!(
            %lost, %node, address = info.peer_address,
            "the member at this address has lost its data: it is removed, and the empty node there takes its place"
        );
        let auto_promote = raft.membership().is_voter(lost) || member.auto_promote;
        let member = Member { info: info.encode(), auto_promote };
        let steps = vec![MembershipStep::Remove(lost), MembershipStep::AddLearner { node, member }];
        self.admit(now, node, steps);
    }

    /// Whether the change would be committed by the others that are there, and nothing else is under way.
    fn may_replace(&self, raft: &Raft, lost: NodeId) -> bool {
        let membership = raft.membership();
        let settled = !membership.is_joint() && raft.membership_index() <= raft.commit_index();
        let arriving = membership.members().any(|(node, member)| {
            node != lost && member.auto_promote && !membership.is_voter(node) && !is_awaited(node)
        });
        let there = membership.voters().iter().filter(|voter| {
            **voter != lost && (**voter == self.node || self.connected.contains_key(voter))
        });
        settled && !arriving && there.count() > membership.voters().len() / 2
    }

    /// As the leader's own change.
    fn admit(&mut self, now: Time, node: NodeId, steps: Vec<MembershipStep>) {
        let Some(raft) = &mut self.raft else { return };
        let membership = raft.membership();
        if let Err(refusal) = feature_level::check(membership, &steps) {
            return debug!(%node, refusal, "not admitted");
        }
        let change = self.admins.begin_change(raft.current_term(), Origin::Own(node));
        if let Err(error) = raft.change_membership(now, change, steps, bytes::Bytes::new()) {
            debug!(%node, %error, "not admitted now");
            self.admins.end_change(change);
        }
    }
}

fn member_at<'a>(membership: &'a Membership, address: &str) -> Option<(NodeId, &'a Member)> {
    membership.members().find(|(_, member)| {
        MemberInfo::decode(&member.info).is_some_and(|info| info.peer_address == address)
    })
}
