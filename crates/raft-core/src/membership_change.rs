//! Changing the configuration (§6): one change at a time, through a joint configuration, only by a leader
//! that knows what is committed (Ongaro's 2015 correction, B26).

use alloc::vec::Vec;

use bytes::Bytes;

use crate::membership::{Membership, MembershipError, MembershipStep};
use crate::mutant;
use crate::raft::{Raft, Role};
use crate::ready::Event;
use crate::types::{EntryKind, Index, NodeId, Time};

/// A change that waits for its turn.
#[derive(Debug)]
pub(crate) struct QueuedChange {
    pub(crate) request: u64,
    steps: Vec<MembershipStep>,
    context: Bytes,
}

impl Raft {
    /// Changes the configuration. Requests that come while another change is under way wait for their turn
    /// (etcd drops them silently). `context` is written into the first entry of the change for whoever applies
    /// it; a change that is never appended ends in [`Event::MembershipDropped`] with `request`.
    ///
    /// # Errors
    /// When it is refused at once; nothing was appended and no event follows.
    pub fn change_membership(
        &mut self,
        now: Time,
        request: u64,
        steps: Vec<MembershipStep>,
        context: Bytes,
    ) -> Result<(), MembershipError> {
        self.observe(now);
        let may_start = self.may_start_change();
        let queue_max = self.config.membership_queue_max;
        let Some(leader) = self.leader_mut() else {
            return Err(MembershipError::NotLeader);
        };
        if leader.changes.len() >= queue_max {
            return Err(MembershipError::QueueFull);
        }
        if may_start && leader.changes.is_empty() {
            return self.start_change(&steps, &context);
        }
        leader.changes.push_back(QueuedChange { request, steps, context });
        Ok(())
    }

    /// Nothing else is under way, and this leader knows the last committed configuration.
    fn may_start_change(&self) -> bool {
        let Role::Leader(leader) = &self.role else {
            return false;
        };
        (leader.established || mutant::is_active(18))
            && leader.transfer.is_none()
            && !self.membership().is_joint()
            && self.configurations.current_index() <= self.commit_index
    }

    /// Starts the first waiting change that is still possible.
    pub(crate) fn start_next_change(&mut self) {
        while self.may_start_change() {
            let Some(change) = self.leader_mut().and_then(|leader| leader.changes.pop_front())
            else {
                return;
            };
            if let Err(reason) = self.start_change(&change.steps, &change.context) {
                self.out.events.push(Event::MembershipDropped { request: change.request, reason });
            }
        }
    }

    fn start_change(
        &mut self,
        steps: &[MembershipStep],
        context: &Bytes,
    ) -> Result<(), MembershipError> {
        let next = self.membership().change(steps)?;
        for step in steps {
            if let MembershipStep::Promote(node) = step
                && !self.is_caught_up(*node)
            {
                return Err(MembershipError::NotCaughtUp(*node));
            }
        }
        self.append_membership(next, context);
        Ok(())
    }

    /// Whether making `node` a voter now would not make the cluster wait for it: it holds the configuration in
    /// which it is a learner, lags little behind the end of the log and was heard a moment ago. In a short log
    /// one that has never been heard lags little, too, and may not even run.
    fn is_caught_up(&self, node: NodeId) -> bool {
        let lag_max = self.config.promotion_lag_max;
        let last = self.log.last().index;
        let added = self.configurations.current_index().max(Index::ZERO.next());
        let recent = self.config.election_timeout_max;
        let now = self.now();
        self.progress().any(|(peer, progress)| {
            peer == node
                && progress.match_index() >= added
                && progress.match_index().plus(lag_max) >= last
                && now.since(progress.last_contact()) <= recent
        })
    }

    /// A learner that was added to become a voter has caught up: make it one.
    pub(crate) fn promote_caught_up_learner(&mut self) {
        if !self.may_start_change() {
            return;
        }
        let membership = self.membership();
        let ready: Option<NodeId> = membership
            .learners()
            .iter()
            .copied()
            .filter(|node| membership.member(*node).is_some_and(|member| member.auto_promote))
            .find(|node| self.is_caught_up(*node));
        if let Some(node) = ready
            && let Ok(next) = self.membership().change(&[MembershipStep::Promote(node)])
        {
            self.append_membership(next, &Bytes::new());
        }
    }

    /// `C_old,new` is committed: go on to `C_new`.
    pub(crate) fn leave_joint(&mut self) {
        let next = self.membership().leave_joint();
        self.append_membership(next, &Bytes::new());
    }

    /// Appends a configuration; it counts from this moment on.
    fn append_membership(&mut self, membership: Membership, context: &Bytes) {
        let payload = membership.encode(context);
        let id = self.append_as_leader(EntryKind::Membership, payload);
        self.configurations.append(id.index, membership);
        self.track_members();
        self.announce_membership();
    }

    /// How many configurations the log holds after `index`.
    pub(crate) fn memberships_after(&self, index: Index) -> usize {
        self.configurations.count_after(index)
    }
}
