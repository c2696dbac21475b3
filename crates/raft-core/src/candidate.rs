//! Campaigning: asking first, then gathering votes (§5.2, thesis §9.6).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use crate::message::{Message, RequestVote, RequestVoteReply};
use crate::quorum::{self, VoteResult};
use crate::raft::{Raft, Role, Standing};
use crate::ready::Event;
use crate::types::{NodeId, Time};

/// What a candidate knows.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// Only asking whether an election could be won.
    pub(crate) pre_vote: bool,
    /// Answers so far. The own vote counts like any other, once it is durable.
    votes: BTreeMap<NodeId, bool>,
    /// When to try again.
    pub(crate) election_deadline: Time,
}

impl Raft {
    /// Whether this node may start an election: it votes in a configuration that may still turn out to be the
    /// committed one. Looking at the newest alone would leave a cluster leaderless whose only up-to-date
    /// member has removed itself in an uncommitted entry (openraft#2091, B33).
    pub(crate) fn may_campaign(&self) -> bool {
        self.standing() == Standing::Full
            && self
                .configurations
                .not_superseded(self.commit_index)
                .any(|membership| membership.is_voter(self.node()))
    }

    /// Nobody was heard for an election timeout.
    pub(crate) fn election_timeout(&mut self) {
        if !self.may_campaign() {
            return;
        }
        if self.is_disk_stalled() || self.is_promised_against(self.node()) {
            // It could not vote for itself, or should not.
            self.reset_election_deadline();
            return;
        }
        self.leave_role();
        self.role = Role::Candidate(Candidate {
            pre_vote: true,
            votes: BTreeMap::from([(self.node(), true)]),
            election_deadline: self.now(),
        });
        self.reset_election_deadline();
        if self.now() < self.seeks_until {
            let wait = self.config.heartbeat_interval / 2 + self.own_turn();
            self.ask_again_after(wait);
        }
        let term = self.current_term().next();
        self.out.events.push(Event::BecamePreCandidate { term });
        for voter in self.other_voters() {
            let request = RequestVote {
                term,
                last_log: self.log.last(),
                pre_vote: true,
                leader_transfer: false,
            };
            self.send(voter, Message::RequestVote(request));
        }
        self.count_votes();
    }

    /// The others may not be able to answer yet: they begin, too.
    fn ask_again_after(&mut self, wait: Duration) {
        let soon = self.now().after(wait);
        if let Role::Candidate(candidate) = &mut self.role {
            candidate.election_deadline = candidate.election_deadline.min(soon);
        }
    }

    /// Starts an election (Figure 2, rules for candidates). Neither the requests nor the own vote count before
    /// the vote is durable (SOFAJRaft#1241, B22).
    pub(crate) fn start_election(&mut self, leader_transfer: bool) {
        self.leave_role();
        let term = self.current_term().next();
        self.set_hard_state(term, Some(self.node()));
        self.role = Role::Candidate(Candidate {
            pre_vote: false,
            votes: BTreeMap::new(),
            election_deadline: self.now(),
        });
        self.reset_election_deadline();
        self.out.events.push(Event::BecameCandidate { term });
        for voter in self.other_voters() {
            let request =
                RequestVote { term, last_log: self.log.last(), pre_vote: false, leader_transfer };
            self.send_promise(voter, Message::RequestVote(request));
        }
    }

    fn other_voters(&self) -> Vec<NodeId> {
        self.membership().all_voters().filter(|voter| *voter != self.node()).collect()
    }

    /// A write became durable: perhaps the vote for itself.
    pub(crate) fn count_own_vote(&mut self) {
        let durable = self.writes.durable_hard_state();
        let node = self.node();
        let is_own = durable.current_term == self.current_term() && durable.voted_for == Some(node);
        if let Role::Candidate(candidate) = &mut self.role
            && !candidate.pre_vote
            && is_own
            && candidate.votes.insert(node, true).is_none()
        {
            self.count_votes();
        }
    }

    pub(crate) fn on_vote_reply(&mut self, from: NodeId, m: &RequestVoteReply) {
        let asked_term = self.current_term().next();
        let Role::Candidate(candidate) = &mut self.role else {
            return;
        };
        // An answer to an earlier question: a late pre-vote after the election began (B57), or a grant for
        // another term.
        if candidate.pre_vote != m.pre_vote
            || (m.pre_vote && m.vote_granted && m.term != asked_term)
        {
            return;
        }
        // The first answer counts: a voter does not change its mind within a term.
        candidate.votes.entry(from).or_insert(m.vote_granted);
        self.count_votes();
    }

    fn count_votes(&mut self) {
        let Role::Candidate(candidate) = &self.role else {
            return;
        };
        let pre_vote = candidate.pre_vote;
        let result =
            quorum::vote_result(self.membership(), |node| candidate.votes.get(&node).copied());
        match result {
            VoteResult::Won if pre_vote => self.start_election(false),
            VoteResult::Won => self.become_leader(),
            VoteResult::Lost => self.become_follower(self.current_term(), None),
            VoteResult::Pending => {}
        }
    }
}
