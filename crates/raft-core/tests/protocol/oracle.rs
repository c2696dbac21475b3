//! What must hold after every step, whatever happened.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raft_core::invariants::Checker;
use raft_core::{
    AppendOutcome, Digest, Entry, EntryId, EntryKind, Envelope, Index, Membership, Message, NodeId,
    Raft, RoleKind, Term,
};

use crate::cluster::Node;
use crate::disk::Disk;

/// Remembers what the cluster promised and showed. The names I6, I8 and so on are those of
/// docs/testing.md.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// Figure 3.
    pub(crate) checker: Checker,
    /// Durable on a quorum up to here: checked when it was first committed (I6).
    pub(crate) committed: Index,
    /// Votes that left a node (I9).
    votes: BTreeMap<(NodeId, Term), NodeId>,
    /// What was applied anywhere (I5).
    applied: BTreeMap<Index, Digest>,
    /// Commands by position, for the client's checks.
    commands: BTreeMap<u64, EntryId>,
    /// Proposals whose outcome is open: who waits for which command at which position.
    waiting: BTreeMap<(NodeId, Index), (EntryId, u64)>,
    /// Commands that clients were told are applied (I18).
    pub(crate) acked: BTreeMap<u64, EntryId>,
    /// Highest position of those.
    acked_index: Index,
    /// Commands that clients were told are definitely not applied (I18).
    refused: BTreeSet<u64>,
    /// Membership requests that were definitely not applied.
    dropped: BTreeSet<u64>,
    /// Open reads, with what they must not miss (I13).
    reads: BTreeMap<(NodeId, u64), Index>,
    pub(crate) reads_answered: u64,
    /// The configuration of each member before its latest step.
    memberships: BTreeMap<NodeId, Arc<Membership>>,
}

impl Oracle {
    pub(crate) fn proposed(&mut self, node: NodeId, at: EntryId, command: u64) {
        self.waiting.insert((node, at.index), (at, command));
    }

    pub(crate) fn refused(&mut self, command: u64) {
        self.refused.insert(command);
    }

    pub(crate) fn change_dropped(&mut self, request: u64) {
        self.dropped.insert(request);
    }

    pub(crate) fn read_invoked(&mut self, node: NodeId, id: u64) {
        self.reads.insert((node, id), self.acked_index);
    }

    /// I13: a read sees whatever was acknowledged to anybody before it was asked for.
    pub(crate) fn read_answered(&mut self, node: NodeId, id: u64, index: Option<Index>) {
        let Some(floor) = self.reads.remove(&(node, id)) else {
            panic!("{node} answers read {id}, which nobody asked or which was answered before");
        };
        if let Some(index) = index {
            self.reads_answered += 1;
            assert!(
                index >= floor,
                "I13: {node} reads at {index}, but {floor} was acknowledged before the read"
            );
            assert!(
                index <= self.checker.committed_index(),
                "{node} reads at {index}, which is not committed"
            );
        }
    }

    /// The node forgot whom it owed answers.
    pub(crate) fn crashed(&mut self, node: NodeId) {
        self.waiting.retain(|(waits, _), _| *waits != node);
        self.reads.retain(|(asked, _), _| *asked != node);
        self.checker.restarted(node);
        self.memberships.remove(&node);
    }

    /// I5: every member applies the same sequence. Answers whoever waited for this position.
    pub(crate) fn applied(&mut self, node: NodeId, entry: &Entry) {
        let first = *self.applied.entry(entry.id.index).or_insert(entry.digest);
        assert!(first == entry.digest, "I5: {node} applies another {} than others did", entry.id);
        match entry.kind {
            EntryKind::Command => {
                let command = command_of(entry);
                let at = *self.commands.entry(command).or_insert(entry.id);
                assert!(at == entry.id, "command {command} is applied at {at} and at {}", entry.id);
                assert!(
                    !self.refused.contains(&command),
                    "I18: command {command} was refused and is applied at {}",
                    entry.id
                );
            }
            EntryKind::Membership => {
                let (_, context) =
                    Membership::decode(&entry.payload).expect("committed ones decode");
                if let Ok(request) = <[u8; 8]>::try_from(context.as_ref()) {
                    let request = u64::from_le_bytes(request);
                    assert!(!self.dropped.contains(&request), "I18: change {request} was dropped");
                }
            }
            EntryKind::Empty => {}
        }
        if let Some((at, command)) = self.waiting.remove(&(node, entry.id.index))
            && at == entry.id
        {
            assert_eq!(command, command_of(entry), "another command at {at}");
            self.acked.insert(command, at);
            self.acked_index = self.acked_index.max(at.index);
        }
    }

    /// I8, I9: whatever promise leaves a node is durable there at this moment.
    pub(crate) fn leaves(&mut self, disk: &Disk, leader: Option<&Raft>, envelope: &Envelope) {
        let node = envelope.from;
        let term = envelope.message.term();
        match &envelope.message {
            Message::RequestVoteReply(reply) if reply.vote_granted && !reply.pre_vote => {
                self.vote(disk, node, term, envelope.to);
            }
            // A candidate's request says that it voted for itself.
            Message::RequestVote(request) if !request.pre_vote => self.vote(disk, node, term, node),
            Message::AppendEntriesReply(reply) => {
                assert!(disk.hard_state.current_term >= term, "I8: {node} acts in term {term}");
                if let AppendOutcome::Accepted { match_index } = reply.outcome {
                    acknowledged(disk, leader, node, term, match_index);
                }
            }
            Message::InstallSnapshotReply(reply) => {
                acknowledged(disk, leader, node, term, reply.match_index);
            }
            Message::HeartbeatReply(_) | Message::AppendEntries(_) | Message::Heartbeat(_) => {
                assert!(disk.hard_state.current_term >= term, "I8: {node} acts in term {term}");
            }
            Message::RequestVote(_)
            | Message::RequestVoteReply(_)
            | Message::InstallSnapshot(_)
            | Message::TimeoutNow(_)
            | Message::ReadIndex(_)
            | Message::ReadIndexReply(_) => {}
        }
    }

    fn vote(&mut self, disk: &Disk, node: NodeId, term: Term, candidate: NodeId) {
        let first = *self.votes.entry((node, term)).or_insert(candidate);
        assert!(
            first == candidate,
            "I9: {node} votes for {candidate} in term {term} after voting for {first}"
        );
        let durable = disk.hard_state;
        assert!(
            durable.current_term > term
                || (durable.current_term == term && durable.voted_for == Some(candidate)),
            "I8: the vote of {node} for {candidate} in term {term} left, durable is {durable:?}"
        );
    }

    /// Everything that can be checked after `node` took a step.
    pub(crate) fn observe(&mut self, nodes: &BTreeMap<NodeId, Node>, node: NodeId) {
        let Some(raft) = nodes[&node].raft.as_ref() else {
            return;
        };
        self.checker.observe_one(raft);
        let before = self.memberships.insert(node, Arc::clone(raft.membership()));
        if raft.commit_index() > self.committed {
            let before = before.as_ref().unwrap_or_else(|| raft.membership());
            self.check_durable(nodes, raft, before);
        }
        if raft.role() == RoleKind::Leader {
            check_matches(nodes, raft);
        }
    }

    /// I6: what is committed first is durable on a quorum of every active configuration.
    fn check_durable(
        &mut self,
        nodes: &BTreeMap<NodeId, Node>,
        raft: &Raft,
        before: &Arc<Membership>,
    ) {
        let mut index = self.committed.next();
        while index <= raft.commit_index() {
            let digest = raft.digest_at(index).expect("a new commit is not compacted away yet");
            let holds = |voter: &NodeId| {
                nodes.get(voter).is_some_and(|node| node.disk.holds(index, digest))
            };
            let quorum = |membership: &Membership| {
                [membership.voters(), membership.outgoing()].into_iter().all(|half| {
                    half.is_empty() || 2 * half.iter().filter(|v| holds(v)).count() > half.len()
                })
            };
            // A commit may start the next configuration within the same step.
            assert!(
                quorum(before) || quorum(raft.membership()),
                "I6: {} commits {index}, which is not durable on a quorum of {before:?}",
                raft.node()
            );
            index = index.next();
        }
        self.committed = raft.commit_index();
    }
}

fn command_of(entry: &Entry) -> u64 {
    std::str::from_utf8(&entry.payload)
        .ok()
        .and_then(|text| text.split('-').next()?.parse().ok())
        .expect("commands are numbers")
}

fn acknowledged(disk: &Disk, leader: Option<&Raft>, node: NodeId, term: Term, match_index: Index) {
    assert!(disk.hard_state.current_term >= term, "I8: {node} acknowledges in term {term}");
    if disk.hard_state.current_term > term {
        // It accepted before it moved on, which is all that the old leader may conclude; by now a newer one
        // may have overwritten what could not be committed any more.
        return;
    }
    assert!(
        disk.last().index >= match_index,
        "I8: {node} acknowledges {match_index}, durable is {}",
        disk.last()
    );
    let of_leader = leader
        .filter(|leader| leader.current_term() == term)
        .and_then(|leader| leader.digest_at(match_index));
    if let Some(digest) = of_leader {
        assert!(
            disk.holds(match_index, digest),
            "I8: {node} acknowledges {match_index}, which differs from its leader's"
        );
    }
}

/// I10: what a leader believes of a follower's log is durably so.
fn check_matches(nodes: &BTreeMap<NodeId, Node>, leader: &Raft) {
    for (peer, progress) in leader.progress() {
        let at = progress.match_index();
        let (Some(node), Some(digest)) = (nodes.get(&peer), leader.digest_at(at)) else {
            continue;
        };
        if node.disk.hard_state.current_term <= leader.current_term() {
            assert!(
                node.disk.holds(at, digest),
                "I10: {} believes that {peer} matches up to {at}",
                leader.node()
            );
        }
    }
}
