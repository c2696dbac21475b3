//! One member's protocol: its state, its inputs, its output.
//!
//! Inputs change the state and note what is to be done; [`Raft::ready`] hands it out, once a turn, so that
//! everything that arrived together leaves together. What a role does with its messages stands in
//! `follower`, `candidate` and `leader`; here is what holds for all of them, the term rules above all.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::candidate::Candidate;
use crate::config::{Config, ConfigError};
use crate::configurations::Configurations;
use crate::digest::{Digest, LogIdentity};
use crate::follower::Follower;
use crate::leader::Leader;
use crate::log_view::LogView;
use crate::membership::Membership;
use crate::message::{
    AppendEntriesReply, AppendOutcome, Envelope, HeartbeatReply, InstallSnapshotReply, Message,
    ReadIndexReply, RequestVote, RequestVoteReply,
};
use crate::mutant;
use crate::progress::Progress;
use crate::ready::{Contradiction, Event, Ready, Ticket};
use crate::rng::Rng;
use crate::types::{
    EntryId, EntryKind, HardState, Index, NodeId, Recovered, SnapshotMeta, Term, Time,
};
use crate::writes::Writes;

/// Payload bytes handed to the state machine and not yet reported as applied.
const APPLY_BYTES_MAX: usize = 32 << 20;
/// Entries handed to the state machine and not yet reported as applied.
const APPLY_ENTRIES_MAX: u64 = 64 << 10;

/// Whether this node may make promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It may have forgotten promises, or cannot tell yet: no vote, no acknowledgement, no campaign.
    Silent,
    /// It takes part.
    Full,
}

/// What a node is at present, without what only it knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoleKind {
    /// Follows, or waits for a leader (§5.2).
    Follower,
    /// Asks whether it could win an election (thesis §9.6).
    PreCandidate,
    /// Campaigns (§5.2).
    Candidate,
    /// Leads.
    Leader,
}

/// A role with its own data: a leader's knowledge exists only in a leader.
#[derive(Debug)]
pub(crate) enum Role {
    Follower(Follower),
    Candidate(Candidate),
    Leader(Leader),
}

/// The longest lease that some leader may rely on: of every configuration that may be the committed one.
fn longest_lease(configurations: &Configurations, commit_index: Index) -> Duration {
    configurations
        .not_superseded(commit_index)
        .filter_map(|membership| membership.lease())
        .map(|lease| lease.length)
        .max()
        .unwrap_or(Duration::ZERO)
}

/// Terms and indexes in messages are below this: nobody counts that far, and arithmetic on them cannot overflow.
pub(crate) const POSITION_MAX: u64 = 1 << 62;

/// Why proposals are refused. Nothing was appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProposeError {
    /// Only the leader takes proposals; this is the one known here.
    NotLeader {
        /// The leader, if known.
        leader: Option<NodeId>,
    },
    /// `uncommitted_bytes_max` is reached.
    Overloaded,
    /// Leadership is being handed over.
    Transferring,
}

/// The Raft protocol of one member.
#[derive(Debug)]
pub struct Raft {
    pub(crate) config: Config,
    standing: Standing,
    rng: Rng,
    /// The latest time seen; never goes back, whatever the clock does.
    now: Time,
    /// Term and vote as decided; durable only when [`Writes::durable_hard_state`] says so. Its only writer is
    /// [`set_hard_state`](Self::set_hard_state).
    hard_state: HardState,
    pub(crate) log: LogView,
    pub(crate) configurations: Configurations,
    /// The newest durable snapshot. `log.start() <= snapshot <= commit_index`.
    snapshot: SnapshotMeta,
    /// Highest index known to be committed (Figure 2). Monotonic. Its only writer is
    /// [`advance_commit_index`](Self::advance_commit_index).
    pub(crate) commit_index: Index,
    /// Highest index handed out to be applied. `last_applied <= delivered <= commit_index`.
    delivered: Index,
    /// Highest index reported as applied (Figure 2). Monotonic. Its only writer is
    /// [`applied`](Self::applied).
    last_applied: Index,
    /// Highest index at which the log is verified to equal that of the leader of `current_term`, since this
    /// process started. Not durable.
    pub(crate) verified: Index,
    pub(crate) role: Role,
    pub(crate) writes: Writes,
    /// The leader whose process seems to be gone: stickiness is waived for it (decision 15).
    gone_leader: Option<NodeId>,
    /// Until when this node helps nobody, itself included, to depose the leader named; whoever it is after a
    /// restart. The promise on which lease reads rest: it outlives roles and terms, and a restart renews it
    /// (decision 14).
    lease_promise: (Option<NodeId>, Time),
    /// Until then, unless a leader is heard, this node asks for votes in quick succession
    /// ([`seek_leader`](Self::seek_leader)).
    pub(crate) seeks_until: Time,
    /// The last tick came so late that the timers were restarted instead of fired.
    gap_forgiven: bool,
    /// What the next [`ready`](Self::ready) hands out.
    pub(crate) out: Ready,
    /// What followers had when this node led last, for deliberate bug 12.
    #[cfg(mutants)]
    pub(crate) matched_before: alloc::collections::BTreeMap<NodeId, Index>,
}

impl Raft {
    /// A member as recovery found it: a silent follower. [`set_standing`](Self::set_standing) lets it take
    /// part once it is known to remember its promises.
    ///
    /// # Errors
    /// When a setting cannot work.
    ///
    /// # Panics
    /// When `recovered` contradicts itself; recovery has checked it.
    pub fn new(
        config: Config,
        identity: LogIdentity,
        recovered: Recovered,
        rng: Rng,
        now: Time,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let Recovered { hard_state, snapshot, log_start, log_start_digest, entries } = recovered;
        let mut log = LogView::new(identity, log_start, log_start_digest);
        let mut configurations =
            Configurations::new(snapshot.last_included.index, snapshot.membership.clone());
        for entry in entries {
            if entry.kind == EntryKind::Membership && entry.id.index > snapshot.last_included.index
            {
                let Some((membership, _)) = Membership::decode(&entry.payload) else {
                    panic!("recovery hands out only decodable configurations, not {}", entry.id);
                };
                configurations.append(entry.id.index, membership);
            }
            log.append(entry);
        }
        let at = snapshot.last_included;
        assert!(log.start().index <= at.index, "the log begins after the snapshot {at}");
        assert!(
            log.term_at(at.index) == Some(at.term),
            "the log does not contain the snapshot {at}"
        );
        assert!(
            log.last().term <= hard_state.current_term,
            "an entry is newer than the current term"
        );
        let lease = longest_lease(&configurations, at.index);
        let mut raft = Self {
            standing: Standing::Silent,
            rng,
            now,
            hard_state,
            writes: Writes::new(log.last().index, hard_state),
            log,
            configurations,
            commit_index: at.index,
            delivered: at.index,
            last_applied: at.index,
            verified: Index::ZERO,
            snapshot,
            role: Role::Follower(Follower::new(None, now)),
            gone_leader: None,
            lease_promise: (None, now.after(lease)),
            seeks_until: now,
            gap_forgiven: false,
            out: Ready::default(),
            #[cfg(mutants)]
            matched_before: alloc::collections::BTreeMap::new(),
            config,
        };
        raft.reset_election_deadline();
        Ok(raft)
    }

    /// Lets this node make promises, or stops it from making any.
    pub fn set_standing(&mut self, now: Time, standing: Standing) {
        self.observe(now);
        if standing == self.standing {
            return;
        }
        self.standing = standing;
        match standing {
            Standing::Silent => self.become_follower(self.hard_state.current_term, None),
            Standing::Full => {
                self.reset_election_deadline();
                // Nobody else can lead a cluster of one: there is nothing to wait for.
                if self.is_only_voter() {
                    self.start_election(false);
                }
            }
        }
    }

    /// Nobody was heard to lead since this process began: ask for votes soon rather than after an election timeout, and
    /// again soon when that comes to nothing, for the longest election timeout at most. Only the asking is early
    /// (thesis §9.6): whoever hears a live leader refuses, and an election that has begun runs its full time.
    pub fn seek_leader(&mut self, now: Time) {
        self.observe(now);
        if self.leader().is_some() || !self.may_campaign() {
            return;
        }
        self.seeks_until = self.now.after(self.config.election_timeout_max);
        if let Role::Follower(_) = self.role {
            let turn = self.own_turn();
            self.hasten_election(turn);
        }
    }

    fn is_only_voter(&self) -> bool {
        let membership = self.membership();
        !membership.is_joint()
            && membership.voters().len() == 1
            && membership.voters().contains(&self.config.node)
    }

    /// Takes in a message. Any message at any time is fine, however late, often or wrong.
    pub fn step(&mut self, now: Time, envelope: Envelope) {
        self.observe(now);
        let Envelope { from, to, message } = envelope;
        if self.standing == Standing::Silent || to != self.config.node || from == to {
            return;
        }
        if self.is_removed(from) && matches!(message, Message::RequestVote(_)) {
            self.out.events.push(Event::UnknownPeer { from, removed: true });
            return;
        }
        if message.term().0 > POSITION_MAX {
            self.contradiction(from, Contradiction::Absurd);
            return;
        }
        if message.term() > self.current_term() {
            if !self.adopt_term(from, &message) {
                return;
            }
        } else if message.term() < self.current_term() {
            self.answer_stale(from, &message);
            return;
        }
        self.dispatch(from, message);
    }

    /// Whether `node` left the committed configuration for ever.
    fn is_removed(&self, node: NodeId) -> bool {
        let committed = self.committed_membership();
        committed.removed().contains(&node)
            && !committed.contains(node)
            && !self.membership().contains(node)
    }

    /// A message of a newer term arrived (Figure 2, rules for all servers). True when it is to be handled.
    fn adopt_term(&mut self, from: NodeId, message: &Message) -> bool {
        match message {
            Message::RequestVote(RequestVote { pre_vote: true, .. }) if mutant::is_active(34) => {
                self.become_follower(message.term(), None);
                true
            }
            // Asking promises nothing, and neither does an answer about a term that nobody is in yet.
            Message::RequestVote(RequestVote { pre_vote: true, .. })
            | Message::RequestVoteReply(RequestVoteReply {
                pre_vote: true,
                vote_granted: true,
                ..
            }) => true,
            Message::RequestVoteReply(RequestVoteReply { pre_vote: true, .. })
                if mutant::is_active(35) =>
            {
                false
            }
            // A live leader is not deposed by someone who merely cannot hear it (thesis §4.2.3).
            Message::RequestVote(RequestVote { leader_transfer: false, .. })
                if self.defends_leader(from) =>
            {
                false
            }
            Message::AppendEntries(_) | Message::Heartbeat(_) | Message::InstallSnapshot(_) => {
                self.become_follower(message.term(), Some(from));
                true
            }
            Message::RequestVote(_)
            | Message::RequestVoteReply(_)
            | Message::AppendEntriesReply(_)
            | Message::HeartbeatReply(_)
            | Message::InstallSnapshotReply(_)
            | Message::TimeoutNow(_)
            | Message::ReadIndex(_)
            | Message::ReadIndexReply(_) => {
                self.become_follower(message.term(), None);
                true
            }
        }
    }

    /// A message of an older term arrived: whoever acts on that term is told the newer one.
    fn answer_stale(&mut self, from: NodeId, message: &Message) {
        let term = self.current_term();
        if mutant::is_active(11)
            && let Message::AppendEntriesReply(AppendEntriesReply {
                outcome: AppendOutcome::Accepted { match_index },
                ..
            }) = message
        {
            return self.on_accepted(from, *match_index);
        }
        match message {
            Message::RequestVote(m) => {
                // Also to a pre-vote: a candidate that is ahead in log and behind in term must learn the term,
                // or nobody ever wins (etcd#8501, B50).
                let pre_vote = m.pre_vote;
                self.send_promise(
                    from,
                    Message::RequestVoteReply(RequestVoteReply {
                        term,
                        vote_granted: false,
                        pre_vote,
                    }),
                );
            }
            Message::AppendEntries(_) | Message::Heartbeat(_) | Message::InstallSnapshot(_) => {
                let reply = HeartbeatReply { term, round: 0, verified: Index::ZERO };
                self.send_promise(from, Message::HeartbeatReply(reply));
            }
            Message::ReadIndex(m) => {
                let reply = ReadIndexReply { term, id: m.id, index: None };
                self.send_promise(from, Message::ReadIndexReply(reply));
            }
            Message::RequestVoteReply(_)
            | Message::AppendEntriesReply(_)
            | Message::HeartbeatReply(_)
            | Message::InstallSnapshotReply(_)
            | Message::TimeoutNow(_)
            | Message::ReadIndexReply(_) => {}
        }
    }

    /// A message of the current term, or a pre-vote about a later one.
    fn dispatch(&mut self, from: NodeId, message: Message) {
        match message {
            Message::RequestVote(m) if m.pre_vote => self.on_pre_vote(from, &m),
            Message::RequestVote(m) => self.on_request_vote(from, &m),
            Message::RequestVoteReply(m) => self.on_vote_reply(from, &m),
            Message::AppendEntries(m) => {
                if self.hear_leader(from) {
                    self.on_append_entries(from, m);
                }
            }
            Message::Heartbeat(m) => {
                if self.hear_leader(from) {
                    self.on_heartbeat(from, &m);
                }
            }
            Message::InstallSnapshot(m) => {
                if self.hear_leader(from) {
                    self.on_install_snapshot(from, m.snapshot);
                }
            }
            Message::AppendEntriesReply(AppendEntriesReply { outcome, .. }) => match outcome {
                AppendOutcome::Accepted { match_index } => self.on_accepted(from, match_index),
                AppendOutcome::Rejected { prev_log_index, hint } => {
                    self.on_rejected(from, prev_log_index, hint);
                }
            },
            Message::HeartbeatReply(m) => self.on_heartbeat_reply(from, &m),
            Message::InstallSnapshotReply(InstallSnapshotReply { match_index, .. }) => {
                self.on_accepted(from, match_index);
            }
            Message::TimeoutNow(_) => self.on_timeout_now(from),
            Message::ReadIndex(m) => self.on_read_index(from, m.id),
            Message::ReadIndexReply(m) => self.on_read_index_reply(&m),
        }
    }

    /// Says that the write with this ticket, and every one handed out before it, is durable.
    pub fn persisted(&mut self, now: Time, ticket: Ticket) {
        self.observe(now);
        let messages = self.writes.persisted(ticket);
        self.out.messages.extend(messages);
        match self.role {
            Role::Follower(_) => {}
            Role::Candidate(_) => self.count_own_vote(),
            Role::Leader(_) => self.maybe_commit(),
        }
    }

    /// Says that the state machine has applied everything up to `index`.
    ///
    /// # Panics
    /// When `index` was not handed out yet.
    pub fn applied(&mut self, now: Time, index: Index) {
        self.observe(now);
        assert!(index <= self.delivered, "{index} was applied, only {} handed out", self.delivered);
        self.last_applied = self.last_applied.max(index);
        // What is applied and not durable here can be had from memory only.
        let evictable = self.last_applied.min(self.writes.durable_index());
        self.log.evict(evictable, self.config.cache_bytes_max);
    }

    /// Says that `snapshot` is durable, and lets go of the log up to `compact_to`.
    ///
    /// # Panics
    /// When the snapshot lies beyond what is committed and durable here.
    pub fn snapshot_taken(&mut self, now: Time, snapshot: SnapshotMeta, compact_to: Index) {
        self.observe(now);
        let at = snapshot.last_included;
        if at.index <= self.snapshot.last_included.index {
            return;
        }
        assert!(at.index <= self.commit_index, "a snapshot of uncommitted entries: {at}");
        assert!(at.index <= self.writes.durable_index(), "a snapshot beyond the durable log: {at}");
        assert!(self.log.term_at(at.index) == Some(at.term), "a snapshot of another log: {at}");
        self.configurations.compact_to(at.index);
        self.snapshot = snapshot;
        let compact_to = compact_to.min(at.index).min(self.last_applied);
        if compact_to > self.log.start().index {
            self.log.compact_to(compact_to);
            self.writes.compacted_to(compact_to);
        }
    }

    /// A connection to `node` exists (again): what was in flight to it may be lost.
    pub fn peer_connected(&mut self, now: Time, node: NodeId) {
        self.observe(now);
        if self.gone_leader == Some(node) {
            self.gone_leader = None;
        }
        self.restart_replication(node);
    }

    /// The connection to `node` broke. `hint`: it was reset and a reconnect was refused, so its process is
    /// probably gone (decision 15).
    pub fn peer_disconnected(&mut self, now: Time, node: NodeId, hint: bool) {
        self.observe(now);
        self.restart_replication(node);
        if hint && self.leader() == Some(node) && self.membership().lease().is_none() {
            self.gone_leader = Some(node);
            let jitter = self.jitter();
            self.hasten_election(jitter);
        }
    }

    /// Starts an election now if this node may, without asking beforehand.
    pub fn campaign(&mut self, now: Time) {
        self.observe(now);
        let bound = self.is_promised_against(self.config.node);
        if self.may_campaign() && !bound && !matches!(self.role, Role::Leader(_)) {
            self.start_election(false);
        }
    }

    /// Does whatever [`deadline`](Self::deadline) has come for. Feed the inputs that arrived before first.
    pub fn tick(&mut self, now: Time) {
        self.observe(now);
        let Some(deadline) = self.deadline() else {
            return;
        };
        if self.now < deadline {
            return;
        }
        // This process was paused or starved: what it would conclude from silence is void (decision 13).
        let gap = self.now.since(deadline) > self.config.election_timeout_min / 2;
        if gap && !self.gap_forgiven {
            self.gap_forgiven = true;
            self.restart_timers();
            return;
        }
        self.gap_forgiven = false;
        match self.role {
            Role::Follower(_) | Role::Candidate(_) => self.election_timeout(),
            Role::Leader(_) => self.leader_tick(),
        }
    }

    /// When [`tick`](Self::tick) wants to be called; `None` when only an input can change anything.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        match &self.role {
            _ if self.standing == Standing::Silent => None,
            Role::Follower(follower) => self.may_campaign().then_some(follower.election_deadline),
            Role::Candidate(candidate) => Some(candidate.election_deadline),
            Role::Leader(leader) => self.leader_deadline(leader),
        }
    }

    fn restart_timers(&mut self) {
        match self.role {
            Role::Follower(_) | Role::Candidate(_) => self.reset_election_deadline(),
            Role::Leader(_) => self.restart_leader_timers(),
        }
    }

    /// Hands out everything to be done now. The parts may be worked on in parallel, except that `restore`
    /// comes before `committed`.
    pub fn ready(&mut self) -> Ready {
        if matches!(self.role, Role::Leader(_)) {
            self.flush_replication();
        }
        let mut ready = core::mem::take(&mut self.out);
        let first_new = self.writes.issued_last().next();
        let last = self.log.last().index;
        let entries = match self.log.entries(first_new, last, usize::MAX, usize::MAX) {
            Ok(entries) => entries,
            Err(reason) => panic!("new entries {first_new}..={last} are not in memory: {reason:?}"),
        };
        ready.persist = self.writes.issue(self.now, self.hard_state, entries, &mut ready.messages);
        ready.committed = self.take_committed();
        ready
    }

    fn take_committed(&mut self) -> Vec<crate::types::Entry> {
        let room = APPLY_ENTRIES_MAX.saturating_sub(self.delivered.since(self.last_applied));
        if self.delivered == self.commit_index || room == 0 {
            return Vec::new();
        }
        let from = self.delivered.next();
        let entries_max = usize::try_from(room).unwrap_or(usize::MAX);
        let entries = match self.log.entries(from, self.commit_index, APPLY_BYTES_MAX, entries_max)
        {
            Ok(entries) => entries,
            Err(reason) => panic!("committed entries from {from} are not in memory: {reason:?}"),
        };
        if let Some(last) = entries.last() {
            self.delivered = last.id.index;
        }
        entries
    }

    // What the roles share.

    pub(crate) fn observe(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// The latest time seen.
    #[must_use]
    pub const fn now(&self) -> Time {
        self.now
    }

    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        self.out.messages.push(Envelope { from: self.config.node, to, message });
    }

    /// Sends what others will rely on: only when all that was decided so far is durable.
    pub(crate) fn send_promise(&mut self, to: NodeId, message: Message) {
        let is_vote = matches!(message, Message::RequestVoteReply(_));
        let is_ack = matches!(message, Message::AppendEntriesReply(_));
        if (is_vote && mutant::is_active(2)) || (is_ack && mutant::is_active(3)) {
            self.send(to, message);
            return;
        }
        self.writes.send_when_durable(Envelope { from: self.config.node, to, message });
    }

    /// Sends what relies on nothing but term and vote.
    pub(crate) fn send_when_term_durable(&mut self, to: NodeId, message: Message) {
        if self.writes.durable_hard_state() == self.hard_state {
            self.send(to, message);
        } else {
            self.send_promise(to, message);
        }
    }

    pub(crate) fn contradiction(&mut self, from: NodeId, what: Contradiction) {
        self.out.events.push(Event::Contradiction { from, what });
    }

    /// The only writer of `current_term` and `voted_for`. The term never falls; within a term the vote is
    /// given once (§5.2). A step-down within a term keeps the vote (etcd 9d2a465, B21).
    pub(crate) fn set_hard_state(&mut self, term: Term, vote: Option<NodeId>) {
        let old = self.hard_state;
        assert!(
            term >= old.current_term,
            "the term would fall from {} to {term}",
            old.current_term
        );
        if term == old.current_term {
            assert!(
                old.voted_for.is_none() || old.voted_for == vote || mutant::is_active(6),
                "a second vote in term {term}: {vote:?} after {:?}",
                old.voted_for
            );
        } else {
            self.verified = Index::ZERO;
        }
        self.hard_state = HardState { current_term: term, voted_for: vote };
        if self.hard_state != old {
            let vote_only = term == old.current_term;
            if !(vote_only && mutant::is_active(5)) {
                self.writes.hard_state_changed();
            }
        }
    }

    /// The only writer of `commit_index`.
    pub(crate) fn advance_commit_index(&mut self, to: Index) {
        let last = self.log.last().index;
        assert!(to <= last, "commit index {to} would lie beyond the log's end {last}");
        assert!(
            to > self.commit_index,
            "commit index would fall from {} to {to}",
            self.commit_index
        );
        let from = self.commit_index;
        self.commit_index = to;
        let mut index = from;
        // Configurations are rare; without an uncommitted one there is nothing to look for.
        if self.configurations.current_index() > from {
            while index < to {
                index = index.next();
                if self.log.kind_at(index) == Some(EntryKind::Membership) {
                    self.out.events.push(Event::MembershipCommitted { index });
                }
            }
        }
    }

    /// The log begins anew with a snapshot, which is applied by restoring it.
    pub(crate) fn reset_to_snapshot(&mut self, snapshot: SnapshotMeta) {
        let at = snapshot.last_included;
        self.log.reset(at, snapshot.digest);
        self.configurations = Configurations::new(at.index, snapshot.membership.clone());
        self.writes.reset(snapshot.clone());
        self.advance_commit_index(at.index);
        self.delivered = at.index;
        self.out.restore = Some(snapshot.clone());
        self.announce_membership();
        self.snapshot = snapshot;
    }

    pub(crate) fn announce_membership(&mut self) {
        let index = self.configurations.current_index();
        let membership = Membership::clone(self.configurations.current());
        self.out.events.push(Event::MembershipChanged { index, membership });
    }

    pub(crate) fn random_election_timeout(&mut self) -> Duration {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let low = micros(self.config.election_timeout_min);
        let high = micros(self.config.election_timeout_max);
        Duration::from_micros(self.rng.between(low, high))
    }

    /// A short random delay that keeps members that saw the same event from acting at the same moment.
    pub(crate) fn jitter(&mut self) -> Duration {
        let micros = u64::try_from(self.config.heartbeat_interval.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.below(micros / 4 + 1))
    }

    /// A short delay that differs from member to member: those that begin together, after all have ended together, ask
    /// one after the other, and the first with a log that will do is elected before the next one asks.
    pub(crate) fn own_turn(&mut self) -> Duration {
        let node = self.config.node;
        let position = self.membership().all_voters().position(|voter| voter == node).unwrap_or(0);
        let slot = self.config.heartbeat_interval / 8;
        let micros = u64::try_from(slot.as_micros()).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.rng.below(micros + 1));
        slot.saturating_mul(u32::try_from(position).unwrap_or(u32::MAX)) + jitter
    }

    pub(crate) const fn gone_leader(&self) -> Option<NodeId> {
        self.gone_leader
    }

    pub(crate) const fn forget_gone_leader(&mut self) {
        self.gone_leader = None;
    }

    /// A leader was heard: it may rely on a lease from now on.
    pub(crate) fn promise_lease(&mut self, leader: NodeId) {
        let until = self.now().after(longest_lease(&self.configurations, self.commit_index));
        // A promise to an earlier leader is kept to its end.
        if until >= self.lease_promise.1 {
            self.lease_promise = (Some(leader), until);
        }
    }

    /// Whether a promise forbids to help `candidate` now.
    pub(crate) fn is_promised_against(&self, candidate: NodeId) -> bool {
        let (leader, until) = self.lease_promise;
        self.now() < until && leader != Some(candidate)
    }

    // Views.

    /// This node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.config.node
    }

    /// Its settings.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Whether it may make promises.
    #[must_use]
    pub const fn standing(&self) -> Standing {
        self.standing
    }

    /// Latest term it has seen.
    #[must_use]
    pub const fn current_term(&self) -> Term {
        self.hard_state.current_term
    }

    /// Whom it voted for in that term.
    #[must_use]
    pub const fn voted_for(&self) -> Option<NodeId> {
        self.hard_state.voted_for
    }

    /// What it is.
    #[must_use]
    pub const fn role(&self) -> RoleKind {
        match &self.role {
            Role::Follower(_) => RoleKind::Follower,
            Role::Candidate(candidate) if candidate.pre_vote => RoleKind::PreCandidate,
            Role::Candidate(_) => RoleKind::Candidate,
            Role::Leader(_) => RoleKind::Leader,
        }
    }

    /// The leader of the current term, if known; itself when it leads.
    #[must_use]
    pub const fn leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Follower(follower) => follower.leader,
            Role::Candidate(_) => None,
            Role::Leader(_) => Some(self.config.node),
        }
    }

    /// Whether it leads and has committed an entry of its own term: only then are reads and membership
    /// changes possible.
    #[must_use]
    pub const fn is_established(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.established)
    }

    /// Highest index known to be committed.
    #[must_use]
    pub const fn commit_index(&self) -> Index {
        self.commit_index
    }

    /// Highest index reported as applied.
    #[must_use]
    pub const fn last_applied(&self) -> Index {
        self.last_applied
    }

    /// The last entry.
    #[must_use]
    pub fn last_log(&self) -> EntryId {
        self.log.last()
    }

    /// The entry before the first one that is not compacted away.
    #[must_use]
    pub const fn log_start(&self) -> EntryId {
        self.log.start()
    }

    /// The log is durable up to here.
    #[must_use]
    pub const fn durable_index(&self) -> Index {
        self.writes.durable_index()
    }

    /// Term and vote as they are durable.
    #[must_use]
    pub const fn durable_hard_state(&self) -> HardState {
        self.writes.durable_hard_state()
    }

    /// The term of the entry at `index`, unless it is compacted away or not there.
    #[must_use]
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// The digest of the log up to `index`, unless it is compacted away or not there.
    #[must_use]
    pub fn digest_at(&self, index: Index) -> Option<Digest> {
        self.log.digest_at(index)
    }

    /// The configuration that counts now, committed or not.
    #[must_use]
    pub fn membership(&self) -> &Arc<Membership> {
        self.configurations.current()
    }

    /// Where the configuration that counts now stands in the log.
    #[must_use]
    pub fn membership_index(&self) -> Index {
        self.configurations.current_index()
    }

    /// The last committed configuration known here.
    #[must_use]
    pub fn committed_membership(&self) -> &Arc<Membership> {
        self.configurations.at(self.commit_index)
    }

    /// What a snapshot at `index` contains besides the state. `None` when `index` is compacted away, not
    /// committed, or not durable here yet.
    #[must_use]
    pub fn snapshot_meta(&self, index: Index) -> Option<SnapshotMeta> {
        let too_early = index > self.commit_index || index > self.writes.durable_index();
        if too_early && !mutant::is_active(23) {
            return None;
        }
        let newest = self.configurations.current_index();
        let of = if mutant::is_active(24) { newest.max(index) } else { index };
        Some(SnapshotMeta {
            last_included: EntryId { index, term: self.log.term_at(index)? },
            digest: self.log.digest_at(index)?,
            membership: Membership::clone(self.configurations.at(of)),
        })
    }

    /// The newest durable snapshot.
    #[must_use]
    pub const fn snapshot(&self) -> &SnapshotMeta {
        &self.snapshot
    }

    /// What a leader knows of its followers, in order; nothing when this node does not lead.
    pub fn progress(&self) -> impl Iterator<Item = (NodeId, &Progress)> {
        let progress = match &self.role {
            Role::Leader(leader) => Some(&leader.progress),
            Role::Follower(_) | Role::Candidate(_) => None,
        };
        progress.into_iter().flatten().map(|(node, progress)| (*node, progress))
    }

    /// Payload bytes that this leader has appended and not yet committed.
    #[must_use]
    pub const fn uncommitted_bytes(&self) -> usize {
        match &self.role {
            Role::Leader(leader) => leader.uncommitted_bytes,
            Role::Follower(_) | Role::Candidate(_) => 0,
        }
    }

    /// Which log this is.
    #[must_use]
    pub const fn identity(&self) -> LogIdentity {
        self.log.identity()
    }

    /// Payload bytes held in memory.
    #[must_use]
    pub const fn cached_bytes(&self) -> usize {
        self.log.cached_bytes()
    }
}
