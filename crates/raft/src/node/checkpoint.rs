//! When a checkpoint is due, and how much of the log stays behind it.
//!
//! The points are a function of the committed log alone, counted from the last snapshot's index, so that all
//! members take theirs at the same indexes and write the same blobs (decision 20). A point that passes while the
//! checkpoint before it is still being written is left out; the next one comes. No peer has a say in it: one that
//! is away for long gets a snapshot (B62 in the tests).

use std::collections::VecDeque;

use raft_core::{EntryId, Index};

/// Parts into which the trailing bytes are divided for counting.
const MARKS: u64 = 16;

/// Limits of one checkpoint interval and of what trails it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckpointLimits {
    /// A checkpoint after so many entries.
    pub entries: u64,
    /// A checkpoint after so many payload bytes.
    pub bytes: u64,
    /// Entries kept behind a checkpoint.
    pub trailing_entries: u64,
    /// Payload bytes kept behind a checkpoint.
    pub trailing_bytes: u64,
}

/// Counts the committed log.
#[derive(Debug)]
pub struct Checkpoints {
    limits: CheckpointLimits,
    /// Entries since the last point.
    entries: u64,
    /// Payload bytes since the last point.
    bytes: u64,
    /// Positions with the bytes counted up to them, sparse: how far back the trailing bytes reach.
    marks: VecDeque<(Index, u64)>,
    /// All payload bytes counted.
    total: u64,
    /// A checkpoint is being written.
    pub busy: bool,
}

impl Checkpoints {
    /// Counts from a snapshot.
    #[must_use]
    pub fn new(limits: CheckpointLimits) -> Self {
        Self { limits, entries: 0, bytes: 0, marks: VecDeque::new(), total: 0, busy: false }
    }

    /// Counts a committed entry; true when it is a point.
    pub fn count(&mut self, id: EntryId, payload_bytes: usize) -> bool {
        let bytes = u64::try_from(payload_bytes).unwrap_or(u64::MAX);
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.total = self.total.saturating_add(bytes);
        let step = (self.limits.trailing_bytes / MARKS).max(1);
        if self.marks.back().is_none_or(|(_, at)| self.total - at >= step) {
            self.marks.push_back((id.index, self.total));
            let (total, keep) = (self.total, self.limits.trailing_bytes);
            while self.marks.get(1).is_some_and(|(_, at)| total - at > keep) {
                self.marks.pop_front();
            }
        }
        let due = self.entries >= self.limits.entries || self.bytes >= self.limits.bytes;
        if due {
            self.restart();
        }
        due
    }

    /// The next entry is a point: a blob of the newest snapshot is lost.
    pub const fn hasten(&mut self) {
        self.entries = self.limits.entries;
    }

    /// A snapshot from elsewhere took the place of the log: the next interval begins there.
    pub const fn restart(&mut self) {
        self.entries = 0;
        self.bytes = 0;
    }

    /// Up to where the log may be forgotten behind a checkpoint at `index`.
    #[must_use]
    pub fn compact_to(&self, index: Index) -> Index {
        let by_entries = index.since(Index(self.limits.trailing_entries));
        let (total, keep) = (self.total, self.limits.trailing_bytes);
        let by_bytes = self.marks.iter().take_while(|(_, at)| total - at > keep).last();
        Index(by_entries).max(by_bytes.map_or(Index::ZERO, |(at, _)| *at)).min(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CheckpointLimits =
        CheckpointLimits { entries: 10, bytes: 1000, trailing_entries: 4, trailing_bytes: 160 };

    fn points(limits: CheckpointLimits, sizes: impl Iterator<Item = usize>) -> Vec<u64> {
        let mut checkpoints = Checkpoints::new(limits);
        let ids = (1..).map(|index| EntryId::new(index, 1));
        ids.zip(sizes)
            .filter(|(id, size)| checkpoints.count(*id, *size))
            .map(|(id, _)| id.index.0)
            .collect()
    }

    #[test]
    fn points_come_by_entries_and_by_bytes() {
        assert_eq!(points(LIMITS, [1; 35].into_iter()), [10, 20, 30]);
        assert_eq!(points(LIMITS, [400; 9].into_iter()), [3, 6, 9]);
    }

    #[test]
    fn the_log_trails_a_checkpoint_by_entries_or_bytes_whichever_is_less() {
        let mut small = Checkpoints::new(LIMITS);
        for index in 1..=20 {
            small.count(EntryId::new(index, 1), 1);
        }
        assert_eq!(small.compact_to(Index(20)), Index(16));
        assert_eq!(small.compact_to(Index(3)), Index(0));
        let mut large = Checkpoints::new(CheckpointLimits { trailing_entries: 100, ..LIMITS });
        for index in 1..=20 {
            large.count(EntryId::new(index, 1), 80);
        }
        let kept = Index(20).since(large.compact_to(Index(20)));
        assert!((1..=3).contains(&kept), "{kept} entries of 80 bytes are kept for 160 bytes");
    }
}
