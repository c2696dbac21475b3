//! Following: hearing a leader, accepting its entries, voting (§5.2-§5.4, §7).

use alloc::collections::BTreeSet;
use core::time::Duration;

use crate::membership::Membership;
use crate::message::{
    AppendEntries, AppendEntriesReply, AppendOutcome, Heartbeat, HeartbeatReply,
    InstallSnapshotReply, Message, ReadIndexReply, RequestVote, RequestVoteReply,
};
use crate::mutant;
use crate::raft::{POSITION_MAX, Raft, Role};
use crate::ready::{Contradiction, Event, ReadState};
use crate::types::{Entry, EntryId, EntryKind, Index, NodeId, SnapshotMeta, Term, Time};

/// What a follower knows.
#[derive(Debug)]
pub(crate) struct Follower {
    /// The leader of the current term, once it was heard.
    pub(crate) leader: Option<NodeId>,
    /// When it was last heard.
    pub(crate) heard_at: Option<Time>,
    /// When to start an election unless it is heard again.
    pub(crate) election_deadline: Time,
    /// Reads asked of the leader and not answered yet.
    pub(crate) reads: BTreeSet<u64>,
}

impl Follower {
    pub(crate) const fn new(leader: Option<NodeId>, election_deadline: Time) -> Self {
        Self { leader, heard_at: None, election_deadline, reads: BTreeSet::new() }
    }
}

impl Raft {
    /// Follows in `term`, which is not below the current one. The election deadline stays as it was: an
    /// unelectable candidate that keeps raising the term must not keep others from campaigning (B53).
    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<NodeId>) {
        let deadline = match &self.role {
            Role::Follower(follower) => follower.election_deadline,
            Role::Candidate(candidate) => candidate.election_deadline,
            Role::Leader(_) => {
                let timeout = self.random_election_timeout();
                self.now().after(timeout)
            }
        };
        self.leave_role();
        if term > self.current_term() {
            self.set_hard_state(term, None);
        }
        self.role = Role::Follower(Follower::new(leader, deadline));
        self.out.events.push(Event::BecameFollower { term, leader });
    }

    /// Whatever waits for the present leader, or for this node as the leader, is told that it waits in vain.
    pub(crate) fn leave_role(&mut self) {
        match &mut self.role {
            Role::Follower(follower) => {
                let reads = core::mem::take(&mut follower.reads);
                self.out.reads.extend(reads.into_iter().map(|id| ReadState { id, index: None }));
            }
            Role::Candidate(_) => {}
            Role::Leader(_) => self.abandon_leadership(),
        }
    }

    /// A leader of the current term spoke. False when that cannot be.
    pub(crate) fn hear_leader(&mut self, from: NodeId) -> bool {
        match &self.role {
            Role::Leader(_) => {
                self.contradiction(from, Contradiction::TwoLeaders);
                return false;
            }
            Role::Candidate(_) => self.become_follower(self.current_term(), Some(from)),
            Role::Follower(Follower { leader: Some(leader), .. }) if *leader != from => {
                self.contradiction(from, Contradiction::TwoLeaders);
                return false;
            }
            Role::Follower(Follower { leader: Some(_), .. }) => {}
            Role::Follower(_) => self.become_follower(self.current_term(), Some(from)),
        }
        if self.gone_leader() == Some(from) {
            self.forget_gone_leader();
        }
        let now = self.now();
        if let Role::Follower(follower) = &mut self.role {
            follower.heard_at = Some(now);
        }
        self.seeks_until = now;
        self.promise_lease(from);
        self.reset_election_deadline();
        true
    }

    pub(crate) fn reset_election_deadline(&mut self) {
        let timeout = self.random_election_timeout();
        let deadline = self.now().after(timeout);
        match &mut self.role {
            Role::Follower(follower) => follower.election_deadline = deadline,
            Role::Candidate(candidate) => candidate.election_deadline = deadline,
            Role::Leader(_) => {}
        }
    }

    /// There seems to be no leader: ask for votes after `delay`, which differs from member to member.
    pub(crate) fn hasten_election(&mut self, delay: Duration) {
        let soon = self.now().after(delay);
        if let Role::Follower(follower) = &mut self.role {
            follower.election_deadline = follower.election_deadline.min(soon);
        }
    }

    /// Whether this node refuses to help `candidate` against a leader that it believes to be alive
    /// (thesis §4.2.3). The leader itself is never refused on its own account: it has restarted (B51).
    pub(crate) fn defends_leader(&self, candidate: NodeId) -> bool {
        if mutant::is_active(41) {
            return false;
        }
        if self.is_promised_against(candidate) {
            return true;
        }
        match &self.role {
            Role::Leader(_) => true,
            Role::Candidate(_) => false,
            Role::Follower(Follower { leader: Some(leader), heard_at: Some(heard_at), .. }) => {
                let defended = self.config.election_timeout_min;
                let seems_gone =
                    self.gone_leader() == Some(*leader) && self.membership().lease().is_none();
                *leader != candidate && !seems_gone && self.now().since(*heard_at) < defended
            }
            Role::Follower(_) => false,
        }
    }

    /// Would you vote for me? (thesis §9.6) Answering changes nothing here: neither the term nor a timer
    /// (hashicorp#609).
    pub(crate) fn on_pre_vote(&mut self, from: NodeId, m: &RequestVote) {
        let vote_granted = m.term > self.current_term()
            && m.last_log.is_up_to_date_with(self.log.last())
            && !self.defends_leader(from);
        // A refusal carries this node's own term, which may be news to the candidate.
        let term = if vote_granted { m.term } else { self.current_term() };
        let reply = RequestVoteReply { term, vote_granted, pre_vote: true };
        self.send_when_term_durable(from, Message::RequestVoteReply(reply));
    }

    /// Vote for me (Figure 2). Whether this node counts itself as a voter does not matter: it may not have
    /// learned of its promotion yet (etcd#10998, B34).
    pub(crate) fn on_request_vote(&mut self, from: NodeId, m: &RequestVote) {
        let free = self.voted_for().is_none_or(|voted_for| voted_for == from)
            || mutant::is_active(6) && self.voted_for() != Some(self.node());
        let vote_granted = free && m.last_log.is_up_to_date_with(self.log.last());
        let term = self.current_term();
        if vote_granted {
            if matches!(self.role, Role::Candidate(_)) {
                self.become_follower(term, None);
            }
            self.set_hard_state(term, Some(from));
            self.reset_election_deadline();
        }
        let reply = RequestVoteReply { term, vote_granted, pre_vote: false };
        self.send_promise(from, Message::RequestVoteReply(reply));
    }

    /// Receiver implementation of AppendEntries (Figure 2).
    pub(crate) fn on_append_entries(&mut self, from: NodeId, m: AppendEntries) {
        if let Some(what) = malformed(&m) {
            self.contradiction(from, what);
            return;
        }
        let Some(m) = self.beyond_commit(from, m) else {
            return;
        };
        let prev = m.prev_log;
        if self.log.term_at(prev.index) != Some(prev.term) {
            let hint = self.log.last_not_above(prev);
            let outcome = AppendOutcome::Rejected { prev_log_index: prev.index, hint };
            let reply = AppendEntriesReply { term: self.current_term(), outcome };
            self.send_promise(from, Message::AppendEntriesReply(reply));
            return;
        }
        if self.log.digest_at(prev.index) != Some(m.prev_digest) {
            self.contradiction(from, Contradiction::DigestMismatch(prev));
            return;
        }
        let last = m.last();
        let leader_commit = m.leader_commit;
        if !self.append_from_leader(from, m.entries) {
            return;
        }
        self.verified = self.verified.max(last.index);
        self.follow_commit(leader_commit);
        self.accept(from, last.index);
    }

    /// What is committed matches every later leader, and may be compacted away here: no conflict (openraft
    /// 71a290cd, B44). `None` when the message holds nothing else.
    fn beyond_commit(&mut self, from: NodeId, mut m: AppendEntries) -> Option<AppendEntries> {
        let commit_index = self.commit_index;
        if m.prev_log.index >= commit_index {
            return Some(m);
        }
        let known = m.entries.iter().take_while(|entry| entry.id.index <= commit_index).count();
        let last_known = m.entries.drain(..known).next_back();
        let Some(last_known) = last_known.filter(|entry| entry.id.index == commit_index) else {
            self.accept(from, commit_index);
            return None;
        };
        if self.log.term_at(commit_index) != Some(last_known.id.term) {
            self.contradiction(from, Contradiction::ConflictBelowCommit(last_known.id));
            return None;
        }
        m.prev_log = last_known.id;
        m.prev_digest = last_known.digest;
        Some(m)
    }

    fn accept(&mut self, from: NodeId, match_index: Index) {
        let outcome = AppendOutcome::Accepted { match_index };
        let reply = AppendEntriesReply { term: self.current_term(), outcome };
        self.send_promise(from, Message::AppendEntriesReply(reply));
    }

    /// Appends what is new and replaces what conflicts; a matching entry is never removed (B2).
    fn append_from_leader(&mut self, from: NodeId, entries: alloc::vec::Vec<Entry>) -> bool {
        let mut new = entries.into_iter().peekable();
        while let Some(entry) = new.peek() {
            let id = entry.id;
            match self.log.term_at(id.index) {
                None => break,
                Some(term) if term == id.term && !mutant::is_active(8) => {
                    if self.log.digest_at(id.index) != Some(entry.digest) {
                        self.contradiction(from, Contradiction::DigestMismatch(id));
                        return false;
                    }
                    new.next();
                }
                Some(_) if id.index <= self.commit_index => {
                    self.contradiction(from, Contradiction::ConflictBelowCommit(id));
                    return false;
                }
                Some(term) => {
                    self.truncate_from(EntryId { index: id.index, term });
                    break;
                }
            }
        }
        for entry in new {
            if entry.kind == EntryKind::Membership {
                let Some((membership, _)) = Membership::decode(&entry.payload) else {
                    self.contradiction(from, Contradiction::BadMembership(entry.id));
                    return false;
                };
                self.configurations.append(entry.id.index, membership);
                self.log.append(entry);
                self.announce_membership();
            } else {
                self.log.append(entry);
            }
        }
        true
    }

    fn truncate_from(&mut self, first: EntryId) {
        self.log.truncate_from(first.index);
        self.writes.truncated_from(first.index);
        self.out.events.push(Event::Truncated { from: first });
        if self.configurations.truncate_from(first.index) {
            self.announce_membership();
        }
    }

    /// Commits what the leader has committed, but nothing that was not verified against its log: an older
    /// suffix of our own may follow (B3).
    fn follow_commit(&mut self, leader_commit: Index) {
        let limit = if mutant::is_active(9) { self.log.last().index } else { self.verified };
        let to = leader_commit.min(limit);
        if to > self.commit_index {
            self.advance_commit_index(to);
        }
    }

    pub(crate) fn on_heartbeat(&mut self, from: NodeId, m: &Heartbeat) {
        self.follow_commit(m.leader_commit);
        if m.round == 0 {
            return;
        }
        let reply =
            HeartbeatReply { term: self.current_term(), round: m.round, verified: self.verified };
        self.send_when_term_durable(from, Message::HeartbeatReply(reply));
    }

    /// A snapshot is complete on disk (§7).
    pub(crate) fn on_install_snapshot(&mut self, from: NodeId, snapshot: SnapshotMeta) {
        let at = snapshot.last_included;
        if at.index > self.commit_index {
            if self.log.term_at(at.index) == Some(at.term) {
                if self.log.digest_at(at.index) != Some(snapshot.digest) {
                    self.contradiction(from, Contradiction::DigestMismatch(at));
                    return;
                }
                // The log has it already: keep what follows it (Figure 13, rule 6).
                self.verified = self.verified.max(at.index);
                self.advance_commit_index(at.index);
            } else {
                // Whatever the log holds conflicts or ends before: all of it goes (rule 7; B42, B45').
                self.reset_to_snapshot(snapshot);
                self.verified = at.index;
            }
        }
        let reply =
            InstallSnapshotReply { term: self.current_term(), match_index: self.commit_index };
        self.send_promise(from, Message::InstallSnapshotReply(reply));
    }

    /// The leader wants this node to take over (thesis §3.10): no pre-vote, and voters do not defend it (B54).
    pub(crate) fn on_timeout_now(&mut self, from: NodeId) {
        let is_leader = self.leader() == Some(from);
        // A learner made leader through a transfer (ra#435) cannot be: only voters may campaign.
        if is_leader && self.may_campaign() {
            self.start_election(true);
        }
    }

    pub(crate) fn on_read_index_reply(&mut self, m: &ReadIndexReply) {
        if let Role::Follower(follower) = &mut self.role
            && follower.reads.remove(&m.id)
        {
            self.out.reads.push(ReadState { id: m.id, index: m.index });
        }
    }
}

/// What is wrong with a message whatever the receiver's state.
fn malformed(m: &AppendEntries) -> Option<Contradiction> {
    let mut previous = m.prev_log;
    if previous.index.0 > POSITION_MAX {
        return Some(Contradiction::Absurd);
    }
    for entry in &m.entries {
        if entry.id.index != previous.index.next() || entry.id.term < previous.term {
            return Some(Contradiction::NotContiguous);
        }
        previous = entry.id;
    }
    (previous.term > m.term).then_some(Contradiction::NotContiguous)
}
