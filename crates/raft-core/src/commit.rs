//! The commit rule (§5.3, §5.4.2), and what a leader does once something is committed.

use crate::mutant;
use crate::quorum;
use crate::raft::{Raft, Role};
use crate::ready::{Event, StepDownReason};
use crate::types::NodeId;

impl Raft {
    /// Commits what a quorum of every active configuration holds durably, if the last of it is of this
    /// leader's own term: counting replicas of older entries is not enough (§5.4.2, Figure 8, B7).
    pub(crate) fn maybe_commit(&mut self) {
        // Each commit may change the configuration, and with it what is committed.
        while self.commit_once() {}
    }

    fn commit_once(&mut self) -> bool {
        let node = self.node();
        // The leader's own disk counts like any other: only what it holds durably (thesis §10.2.1, B4).
        let own =
            if mutant::is_active(4) { self.log.last().index } else { self.writes.durable_index() };
        let Role::Leader(leader) = &self.role else {
            return false;
        };
        let index = quorum::reached(self.membership(), |voter| {
            if voter == node {
                return own;
            }
            leader
                .progress
                .get(&voter)
                .map_or_else(Default::default, |progress| progress.match_index)
        });
        let own_term = self.log.term_at(index) == Some(self.current_term()) || mutant::is_active(1);
        if index <= self.commit_index || !own_term {
            return false;
        }
        let committed_bytes = self.log.bytes_between(self.commit_index, index);
        self.advance_commit_index(index);
        let term = self.current_term();
        if let Some(leader) = self.leader_mut() {
            leader.uncommitted_bytes = leader.uncommitted_bytes.saturating_sub(committed_bytes);
            if !leader.established && index >= leader.term_start {
                leader.established = true;
                self.out.events.push(Event::LeadershipEstablished { term });
                self.release_early_reads();
            }
        }
        self.after_commit();
        true
    }

    /// Moves on with whatever waited for a commit: leaving a joint configuration, stepping down when removed,
    /// the next membership change.
    fn after_commit(&mut self) {
        if !self.is_established() || self.configurations.current_index() > self.commit_index {
            return;
        }
        if self.membership().is_joint() {
            // Whichever leader sees the joint configuration committed leaves it, not only the one that entered
            // it (etcd#12136, B32).
            self.leave_joint();
        } else if self.membership().is_voter(self.node()) {
            self.start_next_change();
        } else {
            // It managed the cluster without counting itself until here (§6); now the others take over.
            let now = self.now();
            if let Some(leader) = self.leader_mut() {
                leader.notice_due = Some(now);
            }
            self.flush_replication();
            self.nominate_successor();
            self.step_down(StepDownReason::Removed);
        }
    }

    /// The voter whose log reaches furthest, among those heard of lately.
    pub(crate) fn best_successor(&self) -> Option<NodeId> {
        let membership = self.membership();
        self.progress()
            .filter(|(peer, progress)| {
                membership.voters().contains(peer)
                    && self.now().since(progress.last_contact()) <= self.config.election_timeout_max
            })
            .max_by_key(|(_, progress)| progress.match_index())
            .map(|(peer, _)| peer)
    }
}
