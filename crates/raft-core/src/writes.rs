//! What was given to the disk, what is durable, and what waits for it.
//!
//! This is where "durable, then sent" is kept: a message that depends on the disk is held here until the
//! ticket of its write comes back.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::message::Envelope;
use crate::ready::{Persist, Ticket};
use crate::types::{Entry, HardState, Index, SnapshotMeta, Time};

/// The write that the next [`Ready`](crate::Ready) will carry.
#[derive(Debug, Default)]
struct Building {
    hard_state: bool,
    snapshot: Option<SnapshotMeta>,
    truncate_from: Option<Index>,
    compact_to: Option<Index>,
    /// Leave when this write, or without one the last outstanding write, is durable.
    messages: Vec<Envelope>,
}

/// A write on its way to the disk.
#[derive(Debug)]
struct Outstanding {
    sequence: u64,
    /// The log is durable up to here once this write is. Clipped by later truncations, so that a late
    /// completion never vouches for the entries that took the place of those it wrote (etcd's ABA race, B12).
    last: Index,
    hard_state: HardState,
    messages: Vec<Envelope>,
    issued_at: Time,
}

/// Bookkeeping of writes.
#[derive(Debug)]
pub(crate) struct Writes {
    building: Building,
    outstanding: VecDeque<Outstanding>,
    next_sequence: u64,
    /// What the log on disk will end with when all outstanding writes are done.
    issued_last: Index,
    /// The log is durable and as in memory up to here.
    durable_index: Index,
    /// Term and vote as they are durable.
    durable_hard_state: HardState,
}

impl Writes {
    /// Everything up to `last` and `hard_state` were read from the disk.
    pub(crate) fn new(last: Index, hard_state: HardState) -> Self {
        Self {
            building: Building::default(),
            outstanding: VecDeque::new(),
            next_sequence: 1,
            issued_last: last,
            durable_index: last,
            durable_hard_state: hard_state,
        }
    }

    pub(crate) const fn durable_index(&self) -> Index {
        self.durable_index
    }

    pub(crate) const fn durable_hard_state(&self) -> HardState {
        self.durable_hard_state
    }

    /// When the oldest write that is not durable was handed out.
    pub(crate) fn oldest_outstanding(&self) -> Option<Time> {
        self.outstanding.front().map(|write| write.issued_at)
    }

    /// Term or vote changed.
    pub(crate) const fn hard_state_changed(&mut self) {
        self.building.hard_state = true;
    }

    /// The entries at and after `index` left the log.
    pub(crate) fn truncated_from(&mut self, index: Index) {
        let keep = index.prev();
        if index <= self.issued_last {
            let from = self.building.truncate_from.map_or(index, |from| from.min(index));
            self.building.truncate_from = Some(from);
            self.issued_last = keep;
        }
        self.clip(keep);
    }

    /// The log begins anew after `snapshot`.
    pub(crate) fn reset(&mut self, snapshot: SnapshotMeta) {
        self.clip(Index::ZERO);
        self.issued_last = snapshot.last_included.index;
        self.building.truncate_from = None;
        self.building.snapshot = Some(snapshot);
    }

    fn clip(&mut self, keep: Index) {
        self.durable_index = self.durable_index.min(keep);
        for write in &mut self.outstanding {
            write.last = write.last.min(keep);
        }
    }

    /// Entries up to `index` may be forgotten.
    pub(crate) fn compacted_to(&mut self, index: Index) {
        self.building.compact_to = Some(index);
    }

    /// `message` leaves once everything decided so far is durable.
    pub(crate) fn send_when_durable(&mut self, message: Envelope) {
        self.building.messages.push(message);
    }

    /// The last entry already handed to the disk.
    pub(crate) const fn issued_last(&self) -> Index {
        self.issued_last
    }

    /// Hands out the write with the given new `entries`, if there is anything to write; messages that wait for
    /// nothing go to `free`.
    pub(crate) fn issue(
        &mut self,
        now: Time,
        hard_state: HardState,
        entries: Vec<Entry>,
        free: &mut Vec<Envelope>,
    ) -> Option<Persist> {
        let building = core::mem::take(&mut self.building);
        let anything = building.hard_state
            || building.snapshot.is_some()
            || building.truncate_from.is_some()
            || building.compact_to.is_some()
            || !entries.is_empty();
        if !anything {
            match self.outstanding.back_mut() {
                Some(write) => write.messages.extend(building.messages),
                None => free.extend(building.messages),
            }
            return None;
        }
        if let Some(last) = entries.last() {
            self.issued_last = last.id.index;
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.outstanding.push_back(Outstanding {
            sequence,
            last: self.issued_last,
            hard_state,
            messages: building.messages,
            issued_at: now,
        });
        Some(Persist {
            hard_state: building.hard_state.then_some(hard_state),
            snapshot: building.snapshot,
            truncate_from: building.truncate_from,
            entries,
            compact_to: building.compact_to,
            ticket: Ticket { sequence },
        })
    }

    /// The write with this ticket and all before it are durable: returns what may be sent now.
    pub(crate) fn persisted(&mut self, ticket: Ticket) -> Vec<Envelope> {
        let Ticket { sequence } = ticket;
        let mut messages = Vec::new();
        while self.outstanding.front().is_some_and(|write| write.sequence <= sequence) {
            if let Some(write) = self.outstanding.pop_front() {
                self.durable_index = self.durable_index.max(write.last);
                self.durable_hard_state = write.hard_state;
                messages.extend(write.messages);
            }
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::types::{EntryId, EntryKind, Term};
    use bytes::Bytes;

    fn entry(index: u64, term: u64) -> Entry {
        Entry {
            id: EntryId::new(index, term),
            kind: EntryKind::Command,
            digest: Digest::default(),
            payload: Bytes::new(),
        }
    }

    /// etcd's append ABA race (B12): 5:t1 is being written, is overwritten by 5:t2; the late completion of the
    /// first write must not make the second durable.
    #[test]
    fn a_late_completion_does_not_vouch_for_what_replaced_it() {
        let mut writes = Writes::new(Index(4), HardState::default());
        let mut free = Vec::new();
        let first =
            writes.issue(Time::ZERO, HardState::default(), Vec::from([entry(5, 1)]), &mut free);
        writes.truncated_from(Index(5));
        let newer = HardState { current_term: Term(2), voted_for: None };
        writes.hard_state_changed();
        let second = writes.issue(Time::ZERO, newer, Vec::from([entry(5, 2)]), &mut free);
        let (Some(first), Some(second)) = (first, second) else { panic!("two writes") };
        assert_eq!(second.truncate_from, Some(Index(5)));
        writes.persisted(first.ticket);
        assert_eq!(writes.durable_index(), Index(4));
        assert_eq!(writes.durable_hard_state().current_term, Term(0));
        writes.persisted(second.ticket);
        assert_eq!(writes.durable_index(), Index(5));
        assert_eq!(writes.durable_hard_state().current_term, Term(2));
    }

    /// An entry appended and truncated before it was handed out never reaches the disk.
    #[test]
    fn what_was_never_issued_is_not_truncated_on_disk() {
        let mut writes = Writes::new(Index(4), HardState::default());
        writes.truncated_from(Index(6));
        assert!(
            writes.issue(Time::ZERO, HardState::default(), Vec::new(), &mut Vec::new()).is_none()
        );
    }
}
