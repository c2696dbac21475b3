//! Whether a restarted node still is who it was (decision 10). Sans-IO.
//!
//! A data directory can be older than it looks: an image restored from a backup, a disk that lost what it had
//! synced. Its epoch, which every promise carried, is then lower than the one its peers saw. A starting member
//! therefore promises nothing until a quorum, itself included, has confirmed that none of them knows a higher
//! epoch or a later acknowledged position of it. Only a leader knows positions: as long as one of those who answer
//! follows a leader, that one has to answer as well. docs/disk-format.md states the window that remains.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft_core::{Index, Membership, NodeId, Time};

/// How often the others are asked again. An answer is lost when the peer cannot reach this node yet, and the whole
/// cluster may wait for it.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// What is known about the own standing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not enough have answered.
    Open,
    /// A quorum has confirmed.
    Confirmed,
    /// Somebody knows of promises that this directory does not. The text says which.
    Amnesic(String),
}

/// A peer's answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The epoch at which this node called itself in the question.
    pub asked: u64,
    /// The highest epoch of this node that the peer has seen.
    pub epoch_seen: u64,
    /// The highest position that this node has acknowledged to the peer, when it leads.
    pub acknowledged: Index,
    /// Whom the peer follows; itself when it leads.
    pub leader: Option<NodeId>,
    /// The peer's commit index.
    pub commit_index: Index,
    /// The configuration committed there.
    pub committed: &'a Membership,
}

/// Collects the answers.
#[derive(Debug)]
pub struct Gate {
    /// The epoch at which this process began: no earlier one reached it.
    began: u64,
    /// The epoch that the directory has reached: nothing that this process said carried a higher one.
    epoch: u64,
    /// This node.
    node: NodeId,
    /// Where the log ended when this process began.
    last_log: Index,
    confirmed: BTreeSet<NodeId>,
    /// Whom those that have answered follow, as each said last.
    leaders: BTreeMap<NodeId, NodeId>,
    /// Whose quorum counts: the newest configuration known.
    membership: Membership,
    /// Where that one is known to be committed; zero for the own.
    told_at: Index,
    next_ask: Time,
    verdict: Verdict,
}

impl Gate {
    /// A node that starts with what recovery found.
    #[must_use]
    pub fn new(
        node: NodeId,
        epoch: u64,
        last_log: Index,
        membership: Membership,
        now: Time,
    ) -> Self {
        let mut gate = Self {
            node,
            began: epoch,
            epoch,
            last_log,
            confirmed: BTreeSet::from([node]),
            leaders: BTreeMap::new(),
            membership,
            told_at: Index::ZERO,
            next_ask: now,
            verdict: Verdict::Open,
        };
        gate.decide();
        gate
    }

    /// The directory has reached a higher epoch.
    pub fn advance(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
    }

    /// The state of the question.
    #[must_use]
    pub const fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Whom to ask now; nobody before the time for it. `connected` are asked besides the members known here: all of
    /// those may be gone, and whoever is there knows who came after them.
    pub fn ask(&mut self, now: Time, connected: impl Iterator<Item = NodeId>) -> Vec<NodeId> {
        if now < self.next_ask || self.verdict != Verdict::Open {
            return Vec::new();
        }
        self.next_ask = now.after(ASK_INTERVAL);
        // Also those that have answered: the configuration that they knew then may have been changed since.
        let mut known: BTreeSet<NodeId> =
            self.membership.members().map(|(node, _)| node).chain(connected).collect();
        known.remove(&self.node);
        known.into_iter().collect()
    }

    /// A connection from or to a peer exists: what was asked before went nowhere, or the answer did.
    pub const fn ask_at_once(&mut self, now: Time) {
        self.next_ask = now;
    }

    /// When [`ask`](Self::ask) wants to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        (self.verdict == Verdict::Open).then_some(self.next_ask)
    }

    /// A peer has answered.
    pub fn answer(&mut self, from: NodeId, answer: &Answer<'_>) {
        let Answer { asked, epoch_seen, acknowledged, leader, commit_index, committed } = *answer;
        // An answer to an earlier life knows nothing of what that one promised after it.
        if self.verdict != Verdict::Open || asked < self.began {
            return;
        }
        if epoch_seen > self.epoch || acknowledged > self.last_log {
            self.verdict = Verdict::Amnesic(format!(
                "{from} has seen epoch {epoch_seen} and position {acknowledged} of this node, whose data folder \
                 ends at epoch {} and position {}: an older state of the folder was restored, or the disk lost \
                 what it had acknowledged",
                self.epoch, self.last_log
            ));
            return;
        }
        // A configuration committed at or after the end of the own log is at least as new as any in it.
        if commit_index >= self.last_log && commit_index > self.told_at {
            self.told_at = commit_index;
            self.membership = committed.clone();
        }
        self.confirmed.insert(from);
        // What this node itself knew as the leader of an earlier life, nobody knows any more.
        match leader.filter(|leader| *leader != self.node) {
            Some(leader) => self.leaders.insert(from, leader),
            None => self.leaders.remove(&from),
        };
        self.decide();
    }

    /// A peer is not reached any more: whom it followed when it last answered, it may follow no longer, and it might
    /// never say so. What it says when it is there again counts again.
    pub fn gone(&mut self, peer: NodeId) {
        if self.verdict != Verdict::Open {
            return;
        }
        self.confirmed.remove(&peer);
        self.leaders.remove(&peer);
        self.decide();
    }

    fn decide(&mut self) {
        let leaders_have_answered =
            self.leaders.values().all(|leader| self.confirmed.contains(leader));
        if leaders_have_answered && self.membership.is_quorum(|node| self.confirmed.contains(&node))
        {
            self.verdict = Verdict::Confirmed;
        }
    }

    /// The epoch that is to be confirmed.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn members(count: u64) -> Membership {
        Membership::from_voters((1..=count).map(|n| (NodeId::new(n, 1), Bytes::new())))
    }

    fn says<'a>(
        [asked, epoch_seen, acknowledged, commit_index]: [u64; 4],
        committed: &'a Membership,
    ) -> Answer<'a> {
        Answer {
            asked,
            epoch_seen,
            acknowledged: Index(acknowledged),
            leader: None,
            commit_index: Index(commit_index),
            committed,
        }
    }

    fn gate(count: u64) -> Gate {
        Gate::new(NodeId::new(1, 1), 5, Index(10), members(count), Time::ZERO)
    }

    #[test]
    fn a_cluster_of_one_is_confirmed_at_once() {
        assert_eq!(*gate(1).verdict(), Verdict::Confirmed);
    }

    #[test]
    fn a_quorum_with_the_node_itself_confirms() {
        let mut gate = gate(5);
        for (peer, verdict) in [(2, Verdict::Open), (2, Verdict::Open), (3, Verdict::Confirmed)] {
            gate.answer(NodeId::new(peer, 1), &says([5, 5, 10, 3], &members(5)));
            assert_eq!(*gate.verdict(), verdict);
        }
    }

    #[test]
    fn a_higher_epoch_or_a_later_position_makes_amnesic() {
        for (epoch, acknowledged) in [(6, 10), (5, 11)] {
            let mut gate = gate(3);
            gate.answer(NodeId::new(2, 1), &says([5, epoch, acknowledged, 3], &members(3)));
            assert!(matches!(gate.verdict(), Verdict::Amnesic(_)));
            // Nothing that is said later makes it well again.
            gate.answer(NodeId::new(3, 1), &says([5, 0, 0, 3], &members(3)));
            assert!(matches!(gate.verdict(), Verdict::Amnesic(_)));
        }
    }

    /// Found by the simulator (seed 299): the only other one had answered while the old configuration was in force
    /// there, was never asked again, and what it knew by then stayed unknown.
    #[test]
    fn who_has_answered_is_asked_again_and_may_know_a_newer_configuration() {
        let (other, away) = (NodeId::new(2, 1), NodeId::new(9, 1));
        let old = Membership::from_voters([(away, Bytes::new())]);
        let mut gate = Gate::new(NodeId::new(1, 1), 5, Index(10), old.clone(), Time::ZERO);
        gate.answer(other, &says([5, 5, 0, 10], &old));
        assert_eq!(*gate.verdict(), Verdict::Open);
        let asked = gate.ask(Time::from_micros(1_000_000), [other].into_iter());
        assert_eq!(asked, [other, away]);
        let new = Membership::from_voters([(other, Bytes::new())]);
        gate.answer(other, &says([5, 5, 0, 11], &new));
        assert_eq!(*gate.verdict(), Verdict::Confirmed);
    }

    /// Three members that were killed together waited 200 ms each time for the second question.
    #[test]
    fn a_new_connection_is_asked_at_once() {
        let mut gate = gate(3);
        assert_eq!(gate.ask(Time::ZERO, std::iter::empty()).len(), 2);
        let soon = Time::from_micros(1000);
        assert_eq!(gate.ask(soon, std::iter::empty()), []);
        gate.ask_at_once(soon);
        assert_eq!(gate.deadline(), Some(soon));
        assert_eq!(gate.ask(soon, std::iter::empty()).len(), 2);
    }

    /// A copy of the folder from just before the last start reaches the same epoch as the life that was lost. Only the
    /// leader knows what that one acknowledged, and a follower answered first.
    #[test]
    fn a_leader_that_is_followed_has_to_answer_too() {
        let (follower, leader) = (NodeId::new(2, 1), NodeId::new(3, 1));
        let members = members(3);
        let following = Answer { leader: Some(leader), ..says([5, 5, 0, 9], &members) };
        let mut gate = gate(3);
        gate.answer(follower, &following);
        assert_eq!(*gate.verdict(), Verdict::Open);
        gate.answer(leader, &Answer { leader: Some(leader), ..says([5, 5, 11, 12], &members) });
        assert!(matches!(gate.verdict(), Verdict::Amnesic(_)), "{gate:?}");

        let mut gate = self::gate(3);
        gate.answer(follower, &following);
        gate.answer(leader, &Answer { leader: Some(leader), ..says([5, 5, 10, 12], &members) });
        assert_eq!(*gate.verdict(), Verdict::Confirmed);

        // It died: the follower notices, and says so when it is asked again. Nobody waits for this node itself.
        for nobody in [None, Some(NodeId::new(1, 1))] {
            let mut gate = self::gate(3);
            gate.answer(follower, &following);
            gate.answer(follower, &Answer { leader: nobody, ..following });
            assert_eq!(*gate.verdict(), Verdict::Confirmed);
        }
    }

    /// Found by the simulator (seed 286 with five members and 20 requests a second): a follower had said whom it follows,
    /// and both died. The other three, a quorum, waited for the leader for ever.
    #[test]
    fn whom_a_member_that_is_gone_followed_is_not_waited_for() {
        let [gone, leader, third, fourth] = [2, 3, 4, 5].map(|n| NodeId::new(n, 1));
        let members = members(5);
        let following = Answer { leader: Some(leader), ..says([5, 5, 0, 9], &members) };
        let silent = says([5, 5, 0, 9], &members);
        let mut gate = gate(5);
        gate.answer(gone, &following);
        gate.answer(third, &silent);
        gate.answer(fourth, &silent);
        assert_eq!(*gate.verdict(), Verdict::Open);
        gate.gone(gone);
        assert_eq!(*gate.verdict(), Verdict::Confirmed);

        // It does not count as one that has answered either.
        let mut gate = self::gate(5);
        gate.answer(gone, &silent);
        gate.gone(gone);
        gate.answer(third, &silent);
        assert_eq!(*gate.verdict(), Verdict::Open);
        gate.answer(third, &says([5, 6, 0, 9], &members));
        gate.gone(third);
        assert!(matches!(gate.verdict(), Verdict::Amnesic(_)));
    }

    #[test]
    fn an_answer_to_an_earlier_life_says_nothing() {
        let mut gate = gate(3);
        gate.answer(NodeId::new(2, 1), &says([4, 4, 3, 3], &members(3)));
        assert_eq!(*gate.verdict(), Verdict::Open);
    }

    #[test]
    fn voters_that_are_gone_are_not_waited_for_once_a_newer_configuration_is_known() {
        let mut gate = gate(3);
        let newer = Membership::from_voters([1, 8, 9].map(|n| (NodeId::new(n, 1), Bytes::new())));
        gate.answer(NodeId::new(8, 1), &says([5, 0, 0, 20], &newer));
        assert_eq!(*gate.verdict(), Verdict::Confirmed);
    }
}
