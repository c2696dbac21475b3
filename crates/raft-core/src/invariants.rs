//! Figure 3 as executable checks, run after every command of a script and every event of a simulation.

use alloc::collections::BTreeMap;

use crate::digest::Digest;
use crate::raft::{Raft, RoleKind};
use crate::types::{EntryId, EntryKind, Index, NodeId, Term};

impl Raft {
    /// What must hold on one member at any time.
    ///
    /// # Panics
    /// When it does not.
    pub fn check(&self) {
        let last = self.last_log();
        let durable = self.durable_hard_state();
        assert!(
            self.log_start().index <= self.snapshot().last_included.index,
            "log after snapshot"
        );
        assert!(
            self.snapshot().last_included.index <= self.commit_index(),
            "snapshot above commit"
        );
        assert!(self.last_applied() <= self.commit_index(), "applied above commit");
        assert!(self.commit_index() <= last.index, "commit beyond the log");
        assert!(self.durable_index() <= last.index, "durable beyond the log");
        assert!(last.term <= self.current_term(), "an entry newer than the term");
        assert!(durable.current_term <= self.current_term(), "durable term above the term");
        assert!(self.membership_index() <= last.index, "a configuration beyond the log");
        let membership_index = self.membership_index();
        assert!(
            membership_index <= self.snapshot().last_included.index
                || self.log.kind_at(membership_index) == Some(EntryKind::Membership),
            "I12: the configuration in force is not the one at {membership_index}"
        );
        if self.role() == RoleKind::Leader {
            assert!(self.voted_for() == Some(self.node()), "a leader that did not vote for itself");
            for (peer, progress) in self.progress() {
                assert!(progress.match_index() <= last.index, "{peer} matches beyond the log");
                assert!(
                    progress.match_index() < progress.next_index(),
                    "{peer}: match not below next"
                );
                assert!(self.membership().contains(peer), "{peer} is tracked but no member");
            }
        }
    }
}

/// Remembers what all members of a cluster have shown, and checks each new state against it.
#[derive(Debug, Default)]
pub struct Checker {
    /// Election Safety: at most one leader a term (§5.2).
    leaders: BTreeMap<Term, NodeId>,
    /// Everything ever known to be committed: id and digest by index (State Machine Safety, §5.4.3).
    committed: BTreeMap<Index, (EntryId, Digest)>,
    /// What each member showed last; forgotten when it restarts.
    last: BTreeMap<NodeId, Shown>,
}

#[derive(Clone, Copy, Debug)]
struct Shown {
    term: Term,
    commit_index: Index,
    /// The last entry while it led, for Leader Append-Only.
    led: Option<(Term, EntryId, Digest)>,
}

impl Checker {
    /// Checks all members after a step.
    ///
    /// # Panics
    /// When a property of Figure 3 is violated; the message names it.
    pub fn observe<'a>(&mut self, members: impl IntoIterator<Item = &'a Raft> + Clone) {
        for raft in members.clone() {
            self.observe_one(raft);
        }
        let mut earlier: alloc::vec::Vec<&Raft> = alloc::vec::Vec::new();
        for raft in members {
            for other in &earlier {
                check_log_matching(other, raft);
            }
            earlier.push(raft);
        }
    }

    /// The highest committed index seen anywhere.
    #[must_use]
    pub fn committed_index(&self) -> Index {
        self.committed.last_key_value().map_or(Index::ZERO, |(index, _)| *index)
    }

    /// The member restarted: what it only had in memory may be gone.
    pub fn restarted(&mut self, node: NodeId) {
        self.last.remove(&node);
    }

    /// As [`observe`](Self::observe), for the one member that took the step: cheaper, without the pairwise
    /// Log Matching check.
    ///
    /// # Panics
    /// When a property of Figure 3 is violated; the message names it.
    pub fn observe_one(&mut self, raft: &Raft) {
        raft.check();
        let node = raft.node();
        let term = raft.current_term();
        if raft.role() == RoleKind::Leader {
            let leader = *self.leaders.entry(term).or_insert(node);
            assert!(
                leader == node,
                "Election Safety: {leader} and {node} both lead in term {term}"
            );
        }
        let before = self.last.get(&node).copied();
        if let Some(before) = before {
            assert!(term >= before.term, "the term of {node} fell from {} to {term}", before.term);
            assert!(
                raft.commit_index() >= before.commit_index,
                "the commit index of {node} fell from {} to {}",
                before.commit_index,
                raft.commit_index()
            );
            if let (Some((led_term, id, digest)), RoleKind::Leader) = (before.led, raft.role())
                && led_term == term
                && id.index >= raft.log_start().index
            {
                assert!(
                    raft.digest_at(id.index) == Some(digest),
                    "Leader Append-Only: {node} removed or changed {id} while leading term {term}"
                );
            }
        }
        self.check_committed(raft, before.map_or(Index::ZERO, |before| before.commit_index));
        // One change at a time (§6). Not judged by what this member knows to be committed: a new leader may
        // hold a joint configuration, committed by its predecessor, and the one after it, and know of neither.
        assert!(
            raft.memberships_after(self.committed_index()) <= 1,
            "the log of {node} holds two uncommitted configurations"
        );
        let newly_leads =
            raft.role() == RoleKind::Leader && before.is_none_or(|before| before.led.is_none());
        if newly_leads {
            self.check_leader_completeness(raft);
        }
        let led = (raft.role() == RoleKind::Leader)
            .then(|| raft.digest_at(raft.last_log().index))
            .flatten()
            .map(|digest| (term, raft.last_log(), digest));
        self.last.insert(node, Shown { term, commit_index: raft.commit_index(), led });
    }

    fn check_committed(&mut self, raft: &Raft, known_to: Index) {
        let mut index = known_to.max(raft.log_start().index).max(Index(1));
        while index <= raft.commit_index() {
            if let (Some(term), Some(digest)) = (raft.term_at(index), raft.digest_at(index)) {
                let shown = (EntryId { index, term }, digest);
                let first = *self.committed.entry(index).or_insert(shown);
                assert!(
                    first == shown,
                    "State Machine Safety: {} committed {} where {} had been committed",
                    raft.node(),
                    shown.0,
                    first.0
                );
            }
            index = index.next();
        }
    }

    fn check_leader_completeness(&self, raft: &Raft) {
        for (index, (id, digest)) in &self.committed {
            // An entry committed in this very term may be committed by its leader alone.
            if id.term < raft.current_term() && *index >= raft.log_start().index {
                assert!(
                    raft.digest_at(*index) == Some(*digest),
                    "Leader Completeness: {} leads term {} without the committed {id}",
                    raft.node(),
                    raft.current_term()
                );
            }
        }
    }
}

/// Log Matching: equal ids mean equal logs up to there (§5.3).
fn check_log_matching(a: &Raft, b: &Raft) {
    let low = a.log_start().index.max(b.log_start().index);
    let mut index = a.last_log().index.min(b.last_log().index);
    let mut matched = false;
    while index > low {
        let equal_terms = a.term_at(index) == b.term_at(index);
        let equal_digests = a.digest_at(index) == b.digest_at(index);
        assert!(
            equal_terms || !matched,
            "Log Matching: {} and {} agree after {index} but not there",
            a.node(),
            b.node()
        );
        assert!(
            equal_terms == equal_digests,
            "Log Matching: {} and {} have different entries {index} of one term",
            a.node(),
            b.node()
        );
        matched |= equal_terms;
        index = index.prev();
    }
}
