//! What a leader knows of one follower: how far its log matches, and how much may be in flight to it.

use alloc::collections::VecDeque;

use crate::types::{Index, Time};

/// How entries go to a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProgressState {
    /// The match is not known: one message at a time until an answer comes.
    Probe {
        /// When the unanswered probe was sent, if there is one.
        sent_at: Option<Time>,
    },
    /// The match is known: messages are pipelined up to the window.
    Replicate,
    /// The follower needs a snapshot; nothing else is sent but heartbeats.
    Snapshot {
        /// The transfer is of use only from here on.
        index_min: Index,
    },
}

/// A leader's knowledge of one follower.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The follower's log is durable and equal to the leader's up to here. Monotonic within a term.
    pub(crate) match_index: Index,
    /// The next entry to send; always above `match_index`.
    pub(crate) next_index: Index,
    pub(crate) state: ProgressState,
    /// Messages on their way: last index and payload bytes of each, in order.
    inflight: VecDeque<(Index, usize)>,
    /// Sum of their payload bytes.
    inflight_bytes: usize,
    /// A fetch of old entries from the leader's own disk is under way, from this index on.
    pub(crate) fetching: Option<Index>,
    /// When the follower last answered in this term.
    pub(crate) last_contact: Time,
    /// When `match_index` last rose, or the state last changed.
    pub(crate) progressed_at: Time,
    /// The highest read round that it has answered.
    pub(crate) acked_round: u64,
    /// When that round began.
    pub(crate) acked_round_began: Option<Time>,
    /// The first read round begun after it had acknowledged the current configuration: from then on it keeps the
    /// lease of that configuration. The largest number while it has not.
    pub(crate) config_round: u64,
    /// The read round under way when entries were last sent to it.
    pub(crate) sent_round: u64,
    /// The highest commit index told to it.
    pub(crate) commit_sent: Index,
    /// It waits for commits up to here, and is told of them at once.
    pub(crate) commit_awaited: Index,
}

impl Progress {
    /// A follower of which nothing is known but that it may need `next_index`.
    pub(crate) const fn new(next_index: Index, now: Time) -> Self {
        Self {
            match_index: Index::ZERO,
            next_index,
            state: ProgressState::Probe { sent_at: None },
            inflight: VecDeque::new(),
            inflight_bytes: 0,
            fetching: None,
            last_contact: now,
            progressed_at: now,
            acked_round: 0,
            acked_round_began: None,
            config_round: u64::MAX,
            sent_round: 0,
            commit_sent: Index::ZERO,
            commit_awaited: Index::ZERO,
        }
    }

    /// The follower's log is durable and equal to the leader's up to here.
    #[must_use]
    pub const fn match_index(&self) -> Index {
        self.match_index
    }

    /// The next entry to send.
    #[must_use]
    pub const fn next_index(&self) -> Index {
        self.next_index
    }

    /// How entries go to the follower.
    #[must_use]
    pub const fn state(&self) -> ProgressState {
        self.state
    }

    /// When the follower last answered in this term.
    #[must_use]
    pub const fn last_contact(&self) -> Time {
        self.last_contact
    }

    /// Payload bytes on their way.
    #[must_use]
    pub const fn inflight_bytes(&self) -> usize {
        self.inflight_bytes
    }

    /// Starts over, one message at a time, after the known match or at `next_index` if that is lower.
    pub(crate) fn become_probe(&mut self, next_index: Index, now: Time) {
        self.clear_inflight();
        self.next_index = next_index.max(self.match_index.next());
        self.state = ProgressState::Probe { sent_at: None };
        self.progressed_at = now;
    }

    pub(crate) fn become_replicate(&mut self, now: Time) {
        self.clear_inflight();
        self.next_index = self.match_index.next();
        self.state = ProgressState::Replicate;
        self.progressed_at = now;
    }

    pub(crate) fn become_snapshot(&mut self, index_min: Index, now: Time) {
        self.clear_inflight();
        self.state = ProgressState::Snapshot { index_min };
        self.progressed_at = now;
    }

    fn clear_inflight(&mut self) {
        if crate::mutant::is_active(37) {
            return;
        }
        self.inflight.clear();
        self.inflight_bytes = 0;
        self.fetching = None;
    }

    /// The follower's log is known to match up to `index`; true when that is news.
    pub(crate) fn matched(&mut self, index: Index, now: Time) -> bool {
        // Deliberate bug 37: each answer frees its own message only, so that a lost one holds its place for ever.
        let answered = |last: Index| {
            if crate::mutant::is_active(37) { last == index } else { last <= index }
        };
        while self.inflight.front().is_some_and(|(last, _)| answered(*last)) {
            if let Some((_, bytes)) = self.inflight.pop_front() {
                self.inflight_bytes -= bytes;
            }
        }
        self.next_index = self.next_index.max(index.next());
        if index <= self.match_index {
            return false;
        }
        self.match_index = index;
        self.progressed_at = now;
        true
    }

    /// Whether another message may be sent now.
    pub(crate) fn has_room(&self, messages_max: usize, bytes_max: usize) -> bool {
        match self.state {
            ProgressState::Probe { sent_at } => sent_at.is_none() && self.fetching.is_none(),
            ProgressState::Replicate => {
                self.fetching.is_none()
                    && self.inflight.len() < messages_max
                    && (self.inflight.is_empty() || self.inflight_bytes < bytes_max)
            }
            ProgressState::Snapshot { .. } => false,
        }
    }

    /// A message with entries up to `last` left.
    pub(crate) fn sent(&mut self, last: Index, bytes: usize, round: u64, now: Time) {
        self.sent_round = round;
        match &mut self.state {
            ProgressState::Probe { sent_at } => *sent_at = Some(now),
            ProgressState::Replicate => {
                if last >= self.next_index {
                    if self.inflight.is_empty() {
                        self.progressed_at = now;
                    }
                    self.inflight.push_back((last, bytes));
                    self.inflight_bytes += bytes;
                    self.next_index = last.next();
                }
            }
            ProgressState::Snapshot { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// etcd e419ba5 (B59): the in-flight counters return to zero, however acknowledgements arrive.
    #[test]
    fn in_flight_bytes_return_to_zero() {
        let mut progress = Progress::new(Index(1), Time::ZERO);
        progress.become_replicate(Time::ZERO);
        for last in 1..=10 {
            progress.sent(Index(last), 100, 0, Time::ZERO);
        }
        assert_eq!(progress.inflight_bytes(), 1000);
        assert!(progress.matched(Index(7), Time::ZERO));
        assert!(!progress.matched(Index(3), Time::ZERO), "a late acknowledgement is no news");
        assert_eq!(progress.inflight_bytes(), 300);
        assert!(progress.matched(Index(12), Time::ZERO));
        assert_eq!(progress.inflight_bytes(), 0);
        progress.sent(Index(13), 100, 0, Time::ZERO);
        progress.become_probe(Index(13), Time::ZERO);
        assert_eq!(progress.inflight_bytes(), 0);
    }

    /// One message larger than the window must still go.
    #[test]
    fn an_empty_window_always_has_room() {
        let mut progress = Progress::new(Index(1), Time::ZERO);
        progress.become_replicate(Time::ZERO);
        assert!(progress.has_room(1, 1));
        progress.sent(Index(1), 100, 0, Time::ZERO);
        assert!(!progress.has_room(1, 1));
        assert!(!progress.has_room(2, 50));
    }
}
