//! Linearizable reads (§8, thesis §6.4): by rounds of heartbeats, or by a lease where the cluster agreed to it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::message::{Message, ReadIndex, ReadIndexReply};
use crate::mutant;
use crate::quorum;
use crate::raft::{Raft, Role};
use crate::ready::ReadState;
use crate::types::{Index, NodeId, Time};

/// A read that waits for a round.
#[derive(Debug)]
struct WaitingRead {
    /// Who asked; this node or a follower.
    from: NodeId,
    id: u64,
    /// The commit index when it arrived.
    index: Index,
    /// The first round that began after it arrived.
    round: u64,
}

/// A leader's reads.
///
/// A read is confirmed by the *number* of a round, never by bytes that the caller chose: two requests with
/// the same bytes let an old answer confirm a new read (etcd-io/raft#397, B38).
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// The last round begun.
    round: u64,
    /// Another round shall begin with the next flush.
    pub(crate) round_wanted: bool,
    /// When the rounds began that are not confirmed yet.
    began: VecDeque<(u64, Time)>,
    /// In the order of their rounds.
    waiting: VecDeque<WaitingRead>,
    /// Reads that came before the first commit of this term: until then the leader does not know what is
    /// committed (thesis §6.4, B37).
    early: Vec<(NodeId, u64)>,
}

/// Rounds whose beginning is remembered.
const ROUNDS_MAX: usize = 1024;

impl Raft {
    /// Asks for an index at which a read is linearizable. Answered in [`Ready::reads`](crate::Ready::reads),
    /// perhaps with "ask again". Reads of one turn share one round.
    pub fn read_index(&mut self, now: Time, id: u64) {
        self.observe(now);
        let node = self.node();
        let term = self.current_term();
        match &mut self.role {
            Role::Leader(_) => self.read_as_leader(node, id),
            Role::Follower(follower) => match follower.leader {
                Some(leader) => {
                    follower.reads.insert(id);
                    self.send(leader, Message::ReadIndex(ReadIndex { term, id }));
                }
                None => self.out.reads.push(ReadState { id, index: None }),
            },
            Role::Candidate(_) => self.out.reads.push(ReadState { id, index: None }),
        }
    }

    pub(crate) fn on_read_index(&mut self, from: NodeId, id: u64) {
        if matches!(self.role, Role::Leader(_)) {
            self.read_as_leader(from, id);
        } else {
            self.answer_read(from, id, None);
        }
    }

    fn read_as_leader(&mut self, from: NodeId, id: u64) {
        let index = self.commit_index;
        let lease = self.holds_lease(self.now());
        let Some(leader) = self.leader_mut() else {
            return;
        };
        if !leader.established && !mutant::is_active(13) {
            leader.reads.early.push((from, id));
            return;
        }
        if lease || mutant::is_active(15) {
            self.answer_read(from, id, Some(index));
            return;
        }
        let round = leader.reads.round + 1;
        leader.reads.round_wanted = true;
        leader.reads.waiting.push_back(WaitingRead { from, id, index, round });
    }

    fn answer_read(&mut self, from: NodeId, id: u64, index: Option<Index>) {
        if from == self.node() {
            self.out.reads.push(ReadState { id, index });
        } else {
            if let Some(index) = index
                && let Some(progress) = self.progress_mut(from)
            {
                progress.commit_awaited = progress.commit_awaited.max(index);
            }
            let reply = ReadIndexReply { term: self.current_term(), id, index };
            self.send_when_term_durable(from, Message::ReadIndexReply(reply));
        }
    }

    /// The leader's first own entry is committed: reads that waited for it may go on.
    pub(crate) fn release_early_reads(&mut self) {
        let early = match self.leader_mut() {
            Some(leader) => core::mem::take(&mut leader.reads.early),
            None => return,
        };
        for (from, id) in early {
            self.read_as_leader(from, id);
        }
    }

    /// The last round begun.
    pub(crate) const fn current_round(&self) -> u64 {
        match &self.role {
            Role::Leader(leader) => leader.reads.round,
            Role::Follower(_) | Role::Candidate(_) => 0,
        }
    }

    /// Begins a round if something waits for one; its number is to be sent to every member.
    pub(crate) fn begin_round_if_wanted(&mut self) -> Option<u64> {
        let now = self.now();
        let leader = self.leader_mut()?;
        if !core::mem::take(&mut leader.reads.round_wanted) {
            return None;
        }
        leader.reads.round += 1;
        let round = leader.reads.round;
        leader.reads.began.push_back((round, now));
        if leader.reads.began.len() > ROUNDS_MAX {
            leader.reads.began.pop_front();
        }
        // Without other voters the round is over as it begins.
        self.confirm_reads();
        Some(round)
    }

    /// When `round` began, if it is not long over.
    pub(crate) fn round_began(&self, round: u64) -> Option<Time> {
        let Role::Leader(leader) = &self.role else {
            return None;
        };
        let began = &leader.reads.began;
        let position = began.binary_search_by_key(&round, |(round, _)| *round).ok()?;
        began.get(position).map(|(_, at)| *at)
    }

    /// Answers the reads whose round a quorum has answered.
    pub(crate) fn confirm_reads(&mut self) {
        let node = self.node();
        let Role::Leader(leader) = &self.role else {
            return;
        };
        let mut confirmed = quorum::reached(self.membership(), |voter| {
            if voter == node {
                return leader.reads.round;
            }
            leader.progress.get(&voter).map_or(0, |progress| progress.acked_round)
        });
        if mutant::is_active(14) && confirmed > 0 {
            confirmed = u64::MAX;
        }
        let mut done = Vec::new();
        if let Some(leader) = self.leader_mut() {
            while leader.reads.waiting.front().is_some_and(|read| read.round <= confirmed) {
                done.extend(leader.reads.waiting.pop_front());
            }
        }
        for read in done {
            self.answer_read(read.from, read.id, Some(read.index));
        }
    }

    /// Whether this node leads and no other leader can have been elected by `now` (thesis §6.4.1). Measured from when a round *began*,
    /// shortened by the declared difference of clock rates, void while and after leadership is handed over.
    /// Only answers of voters count that held the configuration with this lease when the round began: the others
    /// may have promised less.
    #[must_use]
    pub fn holds_lease(&self, now: Time) -> bool {
        let now = self.now().max(now);
        let (Role::Leader(leader), Some(lease)) = (&self.role, self.membership().lease()) else {
            return false;
        };
        let settled = self.configurations.current_index() <= self.commit_index;
        let handed_over = leader.transfer.is_some() || leader.timeout_now_sent;
        if !settled || handed_over && !mutant::is_active(16) {
            return false;
        }
        let node = self.node();
        let began = quorum::reached(self.membership(), |voter| {
            if voter == node {
                return now;
            }
            leader
                .progress
                .get(&voter)
                .filter(|progress| progress.acked_round >= progress.config_round)
                .and_then(|progress| progress.acked_round_began)
                .unwrap_or(Time::ZERO)
        });
        let rate = 1_000_000u32.saturating_sub(lease.drift_ppm);
        began > Time::ZERO && now < began.after(lease.length * rate / 1_000_000)
    }

    /// Tells everyone who waits that this node no longer leads.
    pub(crate) fn refuse_reads(&mut self) {
        let Some(leader) = self.leader_mut() else {
            return;
        };
        let reads = core::mem::take(&mut leader.reads);
        let waiting = reads.waiting.into_iter().map(|read| (read.from, read.id));
        for (from, id) in reads.early.into_iter().chain(waiting) {
            self.answer_read(from, id, None);
        }
    }
}
