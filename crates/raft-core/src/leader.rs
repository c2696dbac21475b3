//! Leading: proposals, replication, heartbeats, stepping down (§5.3, thesis §6.2, §10.2.1).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use bytes::Bytes;

use crate::log_view::Unavailable;
use crate::membership_change::QueuedChange;
use crate::message::{AppendEntries, Heartbeat, HeartbeatReply, Message};
use crate::progress::{Progress, ProgressState};
use crate::quorum;
use crate::raft::{ProposeError, Raft, Role};
use crate::read::Reads;
use crate::ready::{Contradiction, Event, Fetch, SendSnapshot, StepDownReason};
use crate::transfer::Transfer;
use crate::types::{Entry, EntryId, EntryKind, Index, NodeId, Time};

/// What a leader knows; gone with its leadership.
#[derive(Debug)]
pub(crate) struct Leader {
    /// The index of the entry with which the term began.
    pub(crate) term_start: Index,
    /// `commit_index >= term_start`: this leader knows what is committed.
    pub(crate) established: bool,
    /// The other members.
    pub(crate) progress: BTreeMap<NodeId, Progress>,
    /// Reads and the rounds that confirm them.
    pub(crate) reads: Reads,
    /// When the next heartbeat is due.
    pub(crate) heartbeat_due: Time,
    /// When those who do not know the commit index are told in a message of its own.
    pub(crate) notice_due: Option<Time>,
    /// Leadership is being handed over.
    pub(crate) transfer: Option<Transfer>,
    /// Somebody was told to campaign: the lease is void for the rest of the term (openraft#1747, B40).
    pub(crate) timeout_now_sent: bool,
    /// Membership changes that wait.
    pub(crate) changes: VecDeque<QueuedChange>,
    /// Payload bytes after `commit_index`.
    pub(crate) uncommitted_bytes: usize,
}

impl Raft {
    pub(crate) fn become_leader(&mut self) {
        let term = self.current_term();
        let last = self.log.last();
        let now = self.now();
        self.role = Role::Leader(Leader {
            term_start: last.index.next(),
            established: false,
            progress: BTreeMap::new(),
            reads: Reads::default(),
            heartbeat_due: now,
            notice_due: None,
            transfer: None,
            timeout_now_sent: false,
            changes: VecDeque::new(),
            uncommitted_bytes: self.log.bytes_between(self.commit_index, last.index),
        });
        self.out.events.push(Event::BecameLeader { term });
        self.track_members();
        self.append_as_leader(EntryKind::Empty, Bytes::new());
        self.verified = self.log.last().index;
    }

    /// Progress for exactly the other members of the current configuration. A new one counts as heard of just
    /// now (B35).
    pub(crate) fn track_members(&mut self) {
        let membership = self.membership().clone();
        let node = self.node();
        let now = self.now();
        let next_index = self.log.last().index.next();
        if let Role::Leader(leader) = &mut self.role {
            leader.progress.retain(|peer, _| membership.contains(*peer));
            for progress in leader.progress.values_mut() {
                progress.config_round = u64::MAX;
            }
            for (peer, _) in membership.members().filter(|(peer, _)| *peer != node) {
                leader.progress.entry(peer).or_insert_with(|| Progress::new(next_index, now));
                #[cfg(mutants)]
                if crate::mutant::is_active(12)
                    && let Some(before) = self.matched_before.remove(&peer)
                    && let Some(progress) = leader.progress.get_mut(&peer)
                {
                    progress.match_index = before.min(next_index.prev());
                }
            }
        }
    }

    /// Appends commands to the leader's log, in order. They leave with the next [`ready`](Self::ready).
    ///
    /// Returns the position of the first; the others follow it.
    ///
    /// # Errors
    /// When nothing was appended.
    pub fn propose(&mut self, now: Time, payloads: Vec<Bytes>) -> Result<EntryId, ProposeError> {
        self.observe(now);
        let leader_known = self.leader();
        let uncommitted_bytes_max = self.config.uncommitted_bytes_max;
        let Role::Leader(leader) = &mut self.role else {
            return Err(ProposeError::NotLeader { leader: leader_known });
        };
        if leader.transfer.is_some() {
            return Err(ProposeError::Transferring);
        }
        let bytes: usize = payloads.iter().map(Bytes::len).sum();
        // One batch always fits, or a large one could never be proposed.
        if leader.uncommitted_bytes > 0 && leader.uncommitted_bytes + bytes > uncommitted_bytes_max
        {
            return Err(ProposeError::Overloaded);
        }
        let first = EntryId { index: self.log.last().index.next(), term: self.current_term() };
        for payload in payloads {
            self.append_as_leader(EntryKind::Command, payload);
        }
        Ok(first)
    }

    /// Appends one entry of this term (Figure 2, rules for leaders).
    pub(crate) fn append_as_leader(&mut self, kind: EntryKind, payload: Bytes) -> EntryId {
        let bytes = payload.len();
        let id = self.log.append_new(self.current_term(), kind, payload);
        self.verified = id.index;
        if let Role::Leader(leader) = &mut self.role {
            leader.uncommitted_bytes += bytes;
        }
        id
    }

    pub(crate) fn leader_mut(&mut self) -> Option<&mut Leader> {
        match &mut self.role {
            Role::Leader(leader) => Some(leader),
            Role::Follower(_) | Role::Candidate(_) => None,
        }
    }

    pub(crate) fn progress_mut(&mut self, node: NodeId) -> Option<&mut Progress> {
        self.leader_mut()?.progress.get_mut(&node)
    }

    /// Sends what each follower has room for, then what must be said besides.
    pub(crate) fn flush_replication(&mut self) {
        let peers: Vec<NodeId> = self.progress().map(|(peer, _)| peer).collect();
        for peer in &peers {
            while self.send_append(*peer) {}
        }
        self.hand_over_if_ready();
        let heartbeat = self.begin_round_if_wanted();
        let now = self.now();
        let delay = self.config.commit_notice_delay;
        let due = self.leader_mut().and_then(|leader| leader.notice_due.take());
        let due = due.unwrap_or_else(|| now.after(delay));
        let mut untold = false;
        for peer in peers {
            untold |= !self.send_heartbeat(peer, heartbeat.unwrap_or(0), due <= now);
        }
        if let Some(leader) = self.leader_mut()
            && untold
        {
            leader.notice_due = Some(due);
        }
    }

    /// `node` waits for the commit of what this leader has appended so far, and is told of it at once. Without
    /// this it may learn of it [`Config::commit_notice_delay`](crate::Config::commit_notice_delay) later.
    pub fn hasten_commit(&mut self, node: NodeId) {
        let last = self.log.last().index;
        if let Some(progress) = self.progress_mut(node) {
            progress.commit_awaited = last;
        }
    }

    /// A heartbeat of `round`; without a round only to tell a newer commit index, when that `is_due` or awaited. False
    /// when there is one that was not told.
    fn send_heartbeat(&mut self, to: NodeId, round: u64, is_due: bool) -> bool {
        let term = self.current_term();
        let commit_index = self.commit_index;
        let Some(progress) = self.progress_mut(to) else {
            return true;
        };
        let matched = if crate::mutant::is_active(9) { commit_index } else { progress.match_index };
        let leader_commit = matched.min(commit_index);
        if round == 0 && leader_commit <= progress.commit_sent {
            return true;
        }
        if round == 0 && !is_due && progress.commit_awaited <= progress.commit_sent {
            return false;
        }
        progress.commit_sent = progress.commit_sent.max(leader_commit);
        self.send(to, Message::Heartbeat(Heartbeat { term, leader_commit, round }));
        true
    }

    /// Sends one AppendEntries if there is room and reason; true when there may be more to send.
    fn send_append(&mut self, to: NodeId) -> bool {
        let now = self.now();
        let term = self.current_term();
        let last = self.log.last();
        let commit_index = self.commit_index;
        let (bytes_max, entries_max) =
            (self.config.append_bytes_max, self.config.append_entries_max);
        let (messages_max, inflight_max) =
            (self.config.inflight_messages_max, self.config.inflight_bytes_max);
        let Some(progress) = self.progress_mut(to) else {
            return false;
        };
        let is_probe = matches!(progress.state, ProgressState::Probe { .. });
        let from = progress.next_index;
        if !progress.has_room(messages_max, inflight_max) || (!is_probe && from > last.index) {
            return false;
        }
        let prev = from.prev();
        let (Some(prev_term), Some(prev_digest)) =
            (self.log.term_at(prev), self.log.digest_at(prev))
        else {
            if crate::mutant::is_active(36) {
                return false;
            }
            self.send_snapshot(to);
            return false;
        };
        let entries = match self.log.entries(from, last.index, bytes_max, entries_max) {
            Ok(entries) => entries,
            Err(Unavailable::Compacted) => {
                self.send_snapshot(to);
                return false;
            }
            Err(Unavailable::NotCached) => {
                self.fetch_for(to, from);
                return false;
            }
        };
        let prev_log = EntryId { index: prev, term: prev_term };
        self.send_entries(to, prev_log, prev_digest, entries, commit_index, now);
        debug_assert!(term == self.current_term());
        !is_probe
    }

    fn send_entries(
        &mut self,
        to: NodeId,
        prev_log: EntryId,
        prev_digest: crate::Digest,
        entries: Vec<Entry>,
        leader_commit: Index,
        now: Time,
    ) {
        let message = AppendEntries {
            term: self.current_term(),
            prev_log,
            prev_digest,
            entries,
            leader_commit,
        };
        let last = message.last().index;
        let bytes = message.entries.iter().map(|entry| entry.payload.len()).sum();
        let round = self.current_round();
        if let Some(progress) = self.progress_mut(to) {
            progress.sent(last, bytes, round, now);
            progress.commit_sent = progress.commit_sent.max(leader_commit.min(last));
        }
        self.send(to, Message::AppendEntries(message));
    }

    fn fetch_for(&mut self, to: NodeId, from_index: Index) {
        let term = self.current_term();
        let to_index = self.log.last().index;
        let bytes_max = self.config.append_bytes_max;
        if let Some(progress) = self.progress_mut(to) {
            progress.fetching = Some(from_index);
        }
        self.out.fetches.push(Fetch { to, from_index, to_index, bytes_max, term });
    }

    /// Old entries were read from the log; `None` when they are no longer there.
    pub fn entries_read(&mut self, now: Time, fetch: Fetch, entries: Option<Vec<Entry>>) {
        self.observe(now);
        let commit_index = self.commit_index;
        if fetch.term != self.current_term() {
            return;
        }
        let Some(progress) = self.progress_mut(fetch.to) else {
            return;
        };
        // Replication began anew in the meantime, and asked for something else.
        if progress.fetching != Some(fetch.from_index) {
            return;
        }
        progress.fetching = None;
        // A late acknowledgement made these entries needless; the next turn asks for those after them.
        if progress.next_index != fetch.from_index {
            return;
        }
        let entries = entries.unwrap_or_default();
        // What was read must be what this leader's log holds now.
        let holds = !entries.is_empty()
            && entries.iter().zip(fetch.from_index.0..).all(|(entry, index)| {
                entry.id.index.0 == index
                    && self.log.digest_at(entry.id.index) == Some(entry.digest)
            });
        let prev = fetch.from_index.prev();
        match (holds, self.log.term_at(prev), self.log.digest_at(prev)) {
            (true, Some(term), Some(digest)) => {
                let prev_log = EntryId { index: prev, term };
                self.send_entries(fetch.to, prev_log, digest, entries, commit_index, now);
            }
            _ => self.send_snapshot(fetch.to),
        }
    }

    fn send_snapshot(&mut self, to: NodeId) {
        let index_min = self.log.start().index;
        let term = self.current_term();
        let now = self.now();
        if let Some(progress) = self.progress_mut(to) {
            progress.become_snapshot(index_min, now);
        }
        self.out.snapshots.push(SendSnapshot { to, term, index_min });
    }

    /// The transfer of a snapshot to `to` broke. It is tried again at the next heartbeat.
    pub fn snapshot_failed(&mut self, now: Time, to: NodeId) {
        self.observe(now);
        let now = self.now();
        if let Some(progress) = self.progress_mut(to)
            && matches!(progress.state, ProgressState::Snapshot { .. })
        {
            let next_index = progress.next_index;
            progress.become_probe(next_index, now);
            progress.state = ProgressState::Probe { sent_at: Some(now) };
        }
    }

    /// What was in flight to `node` may be lost.
    pub(crate) fn restart_replication(&mut self, node: NodeId) {
        let now = self.now();
        if let Some(progress) = self.progress_mut(node) {
            let next_index = match progress.state {
                ProgressState::Replicate => progress.match_index.next(),
                ProgressState::Probe { .. } | ProgressState::Snapshot { .. } => progress.next_index,
            };
            progress.become_probe(next_index, now);
        }
    }

    /// A follower's log is durable and equal to this leader's up to `match_index`.
    pub(crate) fn on_accepted(&mut self, from: NodeId, match_index: Index) {
        let now = self.now();
        let membership_index = self.configurations.current_index();
        let next_round = self.current_round() + 1;
        let start = self.log.start().index;
        if match_index > self.log.last().index {
            if matches!(self.role, Role::Leader(_)) {
                self.contradiction(from, Contradiction::AckBeyondLog(match_index));
            }
            return;
        }
        let Some(progress) = self.progress_mut(from) else {
            return;
        };
        progress.last_contact = now;
        let news = progress.matched(match_index, now);
        if progress.match_index >= membership_index && progress.config_round == u64::MAX {
            progress.config_round = next_round;
        }
        match progress.state {
            ProgressState::Probe { .. } => progress.become_replicate(now),
            // Any acknowledgement that makes entries useful again ends the wait (etcd-io/raft#52, B47).
            ProgressState::Snapshot { .. } if match_index >= start => {
                progress.become_replicate(now);
            }
            // The snapshot arrived, but the log was compacted beyond it meanwhile: on with the next one.
            ProgressState::Snapshot { index_min } if match_index >= index_min => {
                progress.become_probe(match_index.next(), now);
            }
            ProgressState::Replicate | ProgressState::Snapshot { .. } => {}
        }
        if news {
            self.maybe_commit();
            self.promote_caught_up_learner();
        }
    }

    /// A follower's log does not contain `prev_log_index` as this leader's does (§5.3).
    pub(crate) fn on_rejected(&mut self, from: NodeId, prev_log_index: Index, hint: EntryId) {
        let now = self.now();
        let limit = EntryId { index: hint.index.min(prev_log_index), term: hint.term };
        let start = self.log.start();
        let candidate =
            if limit.index < start.index { limit } else { self.log.last_not_above(limit) };
        let Some(progress) = self.progress_mut(from) else {
            return;
        };
        progress.last_contact = now;
        // A late refusal of something that has matched since says nothing (B15).
        if prev_log_index <= progress.match_index {
            return;
        }
        match progress.state {
            ProgressState::Probe { .. } if prev_log_index == progress.next_index.prev() => {}
            ProgressState::Replicate if prev_log_index < progress.next_index => {}
            ProgressState::Probe { .. }
            | ProgressState::Replicate
            | ProgressState::Snapshot { .. } => return,
        }
        // Each refusal moves strictly back, whole terms at a time, so that this ends (B45', B58).
        let next_index = candidate.index.next().min(prev_log_index);
        progress.become_probe(next_index, now);
    }

    pub(crate) fn on_heartbeat_reply(&mut self, from: NodeId, m: &HeartbeatReply) {
        let now = self.now();
        if m.verified > self.log.last().index {
            if matches!(self.role, Role::Leader(_)) {
                self.contradiction(from, Contradiction::AckBeyondLog(m.verified));
            }
            return;
        }
        let began = self.round_began(m.round);
        let Some(progress) = self.progress_mut(from) else {
            return;
        };
        progress.last_contact = now;
        if m.round > progress.acked_round {
            progress.acked_round = m.round;
            progress.acked_round_began = began.or(progress.acked_round_began);
        }
        // It answered a round that began after the last entries left, and has not seen them: they are lost.
        let is_lossy = m.round > progress.sent_round
            && progress.state == ProgressState::Replicate
            && m.verified < progress.next_index.prev();
        if is_lossy {
            let next_index = progress.match_index.next();
            progress.become_probe(next_index, now);
        }
        // The snapshot is there; its acknowledgement was lost.
        if let ProgressState::Snapshot { index_min } = progress.state
            && m.verified >= index_min
        {
            progress.become_probe(m.verified.next(), now);
        }
        self.confirm_reads();
    }

    // Time.

    pub(crate) fn leader_deadline(&self, leader: &Leader) -> Option<Time> {
        let stall =
            self.writes.oldest_outstanding().map(|at| at.after(self.config.disk_stall_timeout));
        let transfer = leader.transfer.as_ref().map(|transfer| transfer.deadline);
        let heartbeat = (!leader.progress.is_empty()).then_some(leader.heartbeat_due);
        let notice = leader.notice_due;
        [Some(self.quorum_lapse(leader)), stall, transfer, heartbeat, notice]
            .into_iter()
            .flatten()
            .min()
    }

    /// When this leader will have been without a quorum for too long.
    fn quorum_lapse(&self, leader: &Leader) -> Time {
        if crate::mutant::is_active(38) {
            return Time::MAX;
        }
        let node = self.node();
        let contact = quorum::reached(self.membership(), |voter| {
            if voter == node {
                return Time::MAX;
            }
            leader.progress.get(&voter).map_or(Time::ZERO, |progress| progress.last_contact)
        });
        contact.after(self.config.election_timeout_max)
    }

    pub(crate) fn is_disk_stalled(&self) -> bool {
        self.writes
            .oldest_outstanding()
            .is_some_and(|at| self.now().since(at) >= self.config.disk_stall_timeout)
    }

    pub(crate) fn leader_tick(&mut self) {
        let now = self.now();
        let Role::Leader(leader) = &self.role else {
            return;
        };
        let heartbeat_due = leader.heartbeat_due;
        let transfer_over =
            leader.transfer.as_ref().is_some_and(|transfer| transfer.deadline <= now);
        if self.quorum_lapse(leader) <= now {
            self.step_down(StepDownReason::NoQuorum);
            return;
        }
        if self.is_disk_stalled() {
            self.nominate_successor();
            self.step_down(StepDownReason::DiskStalled);
            return;
        }
        if transfer_over {
            self.end_transfer(true);
        }
        if heartbeat_due <= now {
            self.heartbeat();
        }
    }

    fn heartbeat(&mut self) {
        let now = self.now();
        let interval = self.config.heartbeat_interval;
        let stuck = self.config.election_timeout_min;
        if let Some(leader) = self.leader_mut() {
            leader.heartbeat_due = now.after(interval);
            leader.reads.round_wanted = true;
            for progress in leader.progress.values_mut() {
                match &mut progress.state {
                    // The probe or its answer was lost.
                    ProgressState::Probe { sent_at } => {
                        if sent_at.is_some_and(|at| now.since(at) >= interval) {
                            *sent_at = None;
                        }
                    }
                    // Entries or their acknowledgements were lost, or the follower's disk is slow.
                    ProgressState::Replicate => {
                        let waits = progress.match_index.next() < progress.next_index;
                        if waits && now.since(progress.progressed_at) >= stuck {
                            let next_index = progress.match_index.next();
                            progress.become_probe(next_index, now);
                        }
                    }
                    ProgressState::Snapshot { .. } => {}
                }
            }
        }
        self.promote_caught_up_learner();
    }

    /// The process was paused: nobody is blamed for the silence, and no lease survives it.
    pub(crate) fn restart_leader_timers(&mut self) {
        let now = self.now();
        if let Some(leader) = self.leader_mut() {
            leader.heartbeat_due = now;
            for progress in leader.progress.values_mut() {
                progress.last_contact = now;
                progress.acked_round_began = None;
            }
        }
        self.heartbeat();
    }

    pub(crate) fn step_down(&mut self, reason: StepDownReason) {
        // Nobody is known to have taken over.
        self.end_transfer(true);
        let term = self.current_term();
        self.out.events.push(Event::SteppedDown { term, reason });
        self.become_follower(term, None);
    }
}
