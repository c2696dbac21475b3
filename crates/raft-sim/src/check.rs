//! What must hold after every event. The names I6, I8 and so on are those of docs/testing.md.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::log::{DataState, FormedState};
use raft::message::PeerMessage;
use raft::node::entry_header::EntryHeader;
use raft_core::invariants::Checker;
use raft_core::{
    AppendOutcome, ClusterId, Command as _, Digest, Entry, EntryKind, HardState, Index, Membership,
    Message, NodeId, Raft, RoleKind, SnapshotMeta, StateMachine, Term,
};

use crate::workload::{Call, Workload};

/// Who asked which number.
pub(crate) type RequestId = (NodeId, u64);

/// Promises of one member that have left it.
#[derive(Debug, Default)]
struct Promised {
    /// It acts in this term.
    term: Term,
    /// The vote of each term.
    votes: BTreeMap<Term, NodeId>,
    /// Its log is durable up to here; forgotten when a newer leader's entries take the place.
    log: Option<(Index, Digest)>,
}

/// Everything that the cluster has shown and said so far.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// Figure 3.
    checker: Checker,
    cluster: Option<ClusterId>,
    promised: BTreeMap<NodeId, Promised>,
    /// Applied anywhere: what everybody else must apply, too (I5).
    entries: BTreeMap<Index, Digest>,
    /// Proposed and not yet decided: whose, and what exactly.
    proposed: BTreeMap<RequestId, (Call, Bytes)>,
    /// Committed, and where.
    decided: BTreeMap<RequestId, Index>,
    /// Clients were told: definitely not applied (I18).
    refused: BTreeSet<RequestId>,
    /// Highest position of an operation whose client has its answer.
    answered: Index,
    pub(crate) acked: u64,
    pub(crate) reads: u64,
    pub(crate) unknown: u64,
    /// Committed configurations by position; the first one is the founders'.
    memberships: BTreeMap<Index, Membership>,
    /// What each member has acknowledged to whom, in the newest term of such an answer.
    acknowledged: BTreeMap<(NodeId, NodeId), (Term, Index)>,
    /// When each leader was seen last: its term and commit index.
    led: BTreeMap<NodeId, (Term, Index)>,
    /// The snapshot that each member had when it was seen last.
    snapshots: BTreeMap<NodeId, Index>,
    /// Digests of the state by position (I19).
    states: BTreeMap<Index, Digest>,
}

impl Oracle {
    pub(crate) fn committed(&self) -> Index {
        self.checker.committed_index()
    }

    pub(crate) fn term(&self) -> Term {
        self.promised.values().map(|promised| promised.term).max().unwrap_or_default()
    }

    // The protocol.

    /// After a turn of a member.
    pub(crate) fn observe(&mut self, raft: &Raft) {
        self.checker.observe_one(raft);
        self.observe_rules(raft);
        let promised = self.promised.entry(raft.node()).or_default();
        if let Some((index, digest)) = promised.log {
            let kept = index < raft.log_start().index || raft.digest_at(index) == Some(digest);
            if !kept {
                promised.log = None;
            }
        }
    }

    /// What a leader may commit (§5.4.2), when it may change the configuration (B26), and what a snapshot contains
    /// (I15).
    fn observe_rules(&mut self, raft: &Raft) {
        if self.memberships.is_empty() && raft.membership_index() == Index::ZERO {
            self.memberships.insert(Index::ZERO, Membership::clone(raft.membership()));
        }
        let (node, term, commit_index) = (raft.node(), raft.current_term(), raft.commit_index());
        if raft.role() == RoleKind::Leader {
            let before = self.led.insert(node, (term, commit_index));
            if before.is_some_and(|(led, before)| led == term && before < commit_index) {
                let committed = raft.term_at(commit_index);
                assert!(
                    committed.is_none_or(|committed| committed == term),
                    "I4: {node} leads term {term} and commits by counting replicas of an entry of {committed:?}"
                );
            }
            let changed = raft.membership_index();
            assert!(
                raft.is_established() || raft.term_at(changed) != Some(term),
                "I12: {node} changes the configuration at {changed}, before it has committed in its term {term}"
            );
        }
        let snapshot = raft.snapshot();
        if self.snapshots.insert(node, snapshot.last_included.index)
            != Some(snapshot.last_included.index)
        {
            self.snapshot(node, snapshot);
        }
    }

    /// A snapshot is of what was committed, with the configuration that was in force there (I15).
    pub(crate) fn snapshot(&self, node: NodeId, snapshot: &SnapshotMeta) {
        let at = snapshot.last_included.index;
        if let Some(digest) = self.entries.get(&at) {
            assert!(*digest == snapshot.digest, "I15: {node} has another snapshot at {at}");
        }
        if let Some((_, membership)) = self.memberships.range(..=at).next_back() {
            assert!(
                *membership == snapshot.membership,
                "I15: the snapshot of {node} at {at} has the configuration {:?}, not {membership:?}",
                snapshot.membership
            );
        }
    }

    /// A checkpoint is about to be written: of nothing that the own log does not hold durably (I15).
    pub(crate) fn checkpoint(&self, raft: &Raft, snapshot: &SnapshotMeta) {
        let at = snapshot.last_included.index;
        let (durable, committed) = (raft.durable_index(), raft.commit_index());
        assert!(
            at <= durable && at <= committed,
            "I15: {} takes a snapshot at {at}, its log is durable up to {durable} and committed up to {committed}",
            raft.node()
        );
        self.snapshot(raft.node(), snapshot);
    }

    /// One change at a time, and voters change only by way of a joint configuration (§6, I12).
    fn reconfigured(&mut self, index: Index, next: Membership) {
        if let Some((_, before)) = self.memberships.last_key_value() {
            let joint = next.outgoing() == before.voters() && !before.is_joint();
            let left = before.is_joint() && next.voters() == before.voters() && !next.is_joint();
            assert!(
                joint || left || next.voters() == before.voters() && !next.is_joint(),
                "I12: the configuration at {index} is {next:?} after {before:?}"
            );
        }
        self.memberships.insert(index, next);
    }

    /// Log Matching among all.
    pub(crate) fn observe_all<'a>(&mut self, members: impl Iterator<Item = &'a Raft> + Clone) {
        self.checker.observe(members);
    }

    pub(crate) fn crashed(&mut self, node: NodeId) {
        self.checker.restarted(node);
        self.led.remove(&node);
    }

    pub(crate) fn formed(&mut self, cluster: ClusterId) {
        let first = *self.cluster.get_or_insert(cluster);
        assert!(first == cluster, "two clusters formed: {first} and {cluster}");
    }

    /// A message leaves a member: what it promises is remembered (I8, I9).
    pub(crate) fn leaves(
        &mut self,
        from: NodeId,
        to: NodeId,
        message: &PeerMessage,
        raft: &Raft,
        durable: HardState,
    ) {
        let PeerMessage::Raft(message) = message else {
            return;
        };
        let promised = self.promised.entry(from).or_default();
        let term = message.term();
        let vote = match message {
            Message::RequestVote(m) if m.pre_vote => return,
            Message::RequestVoteReply(m) if m.pre_vote => return,
            // A question promises nothing, not even its term.
            Message::ReadIndex(_) => return,
            Message::RequestVote(_) => Some(from),
            Message::RequestVoteReply(m) => m.vote_granted.then_some(to),
            Message::AppendEntriesReply(m) => {
                if let AppendOutcome::Accepted { match_index } = m.outcome {
                    promise_log(promised, term, match_index, raft);
                    acknowledge(&mut self.acknowledged, (from, to), (term, match_index));
                }
                None
            }
            Message::InstallSnapshotReply(m) => {
                promise_log(promised, term, m.match_index, raft);
                acknowledge(&mut self.acknowledged, (from, to), (term, m.match_index));
                None
            }
            Message::AppendEntries(_)
            | Message::Heartbeat(_)
            | Message::HeartbeatReply(_)
            | Message::InstallSnapshot(_)
            | Message::TimeoutNow(_)
            | Message::ReadIndexReply(_) => None,
        };
        promised.term = promised.term.max(term);
        if let Some(candidate) = vote {
            assert!(
                term < durable.current_term
                    || durable == HardState { current_term: term, voted_for: vote },
                "I8: the vote of {from} for {candidate} in term {term} leaves, and durable is {durable:?}"
            );
            let first = *promised.votes.entry(term).or_insert(candidate);
            assert!(
                first == candidate,
                "I9: {from} votes for {candidate} in term {term} after voting for {first}"
            );
        }
    }

    /// What a leader believes of a follower rests on what that follower has said in this very term: what it said in
    /// earlier ones may have been overwritten since (Figure 2; I10).
    pub(crate) fn check_match(&self, leader: NodeId, term: Term, peer: NodeId, index: Index) {
        let said = self.acknowledged.get(&(peer, leader));
        assert!(
            index == Index::ZERO || said.is_some_and(|(at, said)| *at == term && index <= *said),
            "I10: {leader} leads term {term} and believes that {peer} has {index}, which has acknowledged {said:?}"
        );
    }

    /// What recovery finds must honour every promise that ever left (I8, I16).
    pub(crate) fn recovered(&self, state: &DataState) {
        let DataState::Formed(formed) = state else {
            return;
        };
        let FormedState { identity, recovered, .. } = &**formed;
        let node = identity.node();
        let log = (recovered.log_start.index, recovered.log_start_digest);
        self.honours(node, recovered.hard_state, log, &recovered.entries);
    }

    /// As [`recovered`](Self::recovered), of a member that has just started.
    pub(crate) fn started(&self, raft: &Raft) {
        let node = raft.node();
        let Some(promised) = self.promised.get(&node) else {
            return;
        };
        let state = HardState { current_term: raft.current_term(), voted_for: raft.voted_for() };
        honours_votes(node, promised, state);
        if let Some((index, digest)) = promised.log {
            let kept = index < raft.log_start().index || raft.digest_at(index) == Some(digest);
            assert!(kept, "I8: {node} acknowledged {index} and does not have it after a restart");
        }
    }

    fn honours(
        &self,
        node: NodeId,
        hard_state: HardState,
        (start, start_digest): (Index, Digest),
        entries: &[Entry],
    ) {
        let Some(promised) = self.promised.get(&node) else {
            return;
        };
        honours_votes(node, promised, hard_state);
        if let Some((index, digest)) = promised.log {
            let found = entries.iter().find(|entry| entry.id.index == index);
            let kept = index < start
                || (index == start && digest == start_digest)
                || found.is_some_and(|entry| entry.digest == digest);
            assert!(kept, "I8: {node} acknowledged {index}, which a power loss would take from it");
        }
    }

    // The state machine.

    /// A member hands these to its state machine (I5).
    pub(crate) fn applies<W: Workload>(&mut self, node: NodeId, entries: &[Entry], load: &mut W) {
        for entry in entries {
            let known = self.entries.get(&entry.id.index).copied();
            match known {
                Some(digest) => assert!(
                    digest == entry.digest,
                    "I5: {node} applies another {} than others did",
                    entry.id
                ),
                None => self.decide(entry, load),
            }
        }
    }

    /// The first time that an entry is applied anywhere.
    fn decide<W: Workload>(&mut self, entry: &Entry, load: &mut W) {
        let last = self.entries.last_key_value().map_or(Index::ZERO, |(index, _)| *index);
        assert!(entry.id.index == last.next(), "{} is applied first after {last}", entry.id);
        self.entries.insert(entry.id.index, entry.digest);
        if entry.kind == EntryKind::Command {
            let (header, command) =
                EntryHeader::decode(&entry.payload).expect("committed ones decode");
            let id = (header.proposer, header.request);
            assert!(!self.refused.contains(&id), "I18: {id:?} was refused and is applied");
            assert!(!self.decided.contains_key(&id), "I17: {id:?} is applied twice");
            let asked = self.proposed.remove(&id);
            let (call, payload) = asked.unwrap_or_else(|| panic!("nobody asked {id:?}"));
            assert!(
                payload == entry.payload,
                "{id:?} is committed with other bytes than were asked"
            );
            let command = <W::Machine as StateMachine>::Command::decode(command);
            let command = command.expect("committed ones decode");
            load.applied(&call, entry.id, command);
            self.decided.insert(id, entry.id.index);
        }
        if entry.kind == EntryKind::Membership {
            let (next, _) = Membership::decode(&entry.payload).expect("committed ones decode");
            self.reconfigured(entry.id.index, next);
        }
    }

    /// The digest of a member's state (I19).
    pub(crate) fn state(&mut self, node: NodeId, index: Index, digest: Digest) {
        let first = *self.states.entry(index).or_insert(digest);
        assert!(first == digest, "I19: the state of {node} at {index} differs from that of others");
    }

    // Clients.

    /// What whatever is asked from now on must not miss.
    pub(crate) const fn floor(&self) -> Index {
        self.answered
    }

    pub(crate) fn proposed(&mut self, id: RequestId, call: Call, payload: Bytes) {
        self.proposed.insert(id, (call, payload));
    }

    /// A client got an answer (I18, linearizability of writes).
    pub(crate) fn answered(&mut self, id: RequestId, floor: Index) {
        let Some(index) = self.decided.get(&id).copied() else {
            panic!("I18: {id:?} is answered and was never committed");
        };
        assert!(
            index > floor,
            "{id:?} takes effect at {index}, before {floor}, which came earlier"
        );
        self.answered = self.answered.max(index);
        self.acked += 1;
    }

    /// A client was told that it is certain that nothing happened.
    pub(crate) fn refused(&mut self, id: RequestId) {
        assert!(!self.decided.contains_key(&id), "I18: {id:?} is refused and was committed");
        self.proposed.remove(&id);
        self.refused.insert(id);
    }

    /// A linearizable read was answered, with what is known to have happened by this index: whoever asks next must not
    /// see less (I13).
    pub(crate) fn read(&mut self, seen: Index) {
        assert!(seen <= self.committed(), "a read sees {seen}, which is not committed");
        self.answered = self.answered.max(seen);
        self.reads += 1;
    }

    /// A read barrier.
    pub(crate) fn barrier(&mut self, floor: Index, index: Index) {
        assert!(index >= floor, "I13: a barrier at {index}, but {floor} was answered before it");
        assert!(index <= self.committed(), "a barrier at {index}, which is not committed");
        self.reads += 1;
    }
}

/// Whether a recovered log holds the entry with this digest (I6).
pub(crate) fn holds(state: &DataState, index: Index, digest: Digest) -> bool {
    let formed = match state {
        DataState::Formed(formed) => formed,
        // What it holds is known entry by entry, and the others have what is damaged.
        DataState::Damaged(damaged) => return index <= damaged.last.index,
        DataState::Empty { .. } => return false,
    };
    let recovered = &formed.recovered;
    index < recovered.log_start.index
        || (index == recovered.log_start.index && digest == recovered.log_start_digest)
        || recovered
            .entries
            .binary_search_by_key(&index, |entry| entry.id.index)
            .is_ok_and(|nth| recovered.entries[nth].digest == digest)
}

fn acknowledge(
    acknowledged: &mut BTreeMap<(NodeId, NodeId), (Term, Index)>,
    who: (NodeId, NodeId),
    (term, index): (Term, Index),
) {
    let (newest, highest) = acknowledged.entry(who).or_insert((term, index));
    if *newest < term {
        (*newest, *highest) = (term, index);
    } else if *newest == term {
        *highest = (*highest).max(index);
    }
}

fn promise_log(promised: &mut Promised, term: Term, index: Index, raft: &Raft) {
    // An acknowledgement of an older term says what was so then; only the present term's binds.
    if term == raft.current_term()
        && let Some(digest) = raft.digest_at(index)
        && promised.log.is_none_or(|(before, _)| before < index)
    {
        promised.log = Some((index, digest));
    }
}

fn honours_votes(node: NodeId, promised: &Promised, state: HardState) {
    assert!(
        state.current_term >= promised.term,
        "I8: {node} acted in term {} and restarts in {}",
        promised.term,
        state.current_term
    );
    if let Some(candidate) = promised.votes.get(&state.current_term) {
        assert!(
            state.voted_for == Some(*candidate),
            "I8: {node} voted for {candidate} in term {} and recovers {:?}",
            state.current_term,
            state.voted_for
        );
    }
}
