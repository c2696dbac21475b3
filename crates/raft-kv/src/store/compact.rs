//! Forgetting history: at once for whoever asks, in slices for the memory.

use std::collections::VecDeque;

use crate::error::KvError;
use crate::proto::etcdserverpb::{CompactionRequest, CompactionResponse};
use crate::store::Store;
use crate::store::read::header;
use crate::store::version::{Revision, Version};

/// How many versions one flush looks at, beside two for each revision that it publishes, so that removal
/// keeps up with any load and never takes more than a few milliseconds of an idle one.
const SLICE: usize = 256;

impl Store {
    /// Moves the compact revision: from now on nothing below it can be read.
    pub(super) fn compact(
        &mut self,
        request: &CompactionRequest,
    ) -> Result<CompactionResponse, KvError> {
        if request.revision <= self.compact_revision {
            return Err(KvError::Compacted);
        }
        if request.revision > self.revision {
            return Err(KvError::FutureRevision);
        }
        self.compact_revision = request.revision;
        self.logical_size -= self.garbage.collect(request.revision);
        self.sweep.unbounded |= request.physical;
        Ok(CompactionResponse { header: header(self.revision) })
    }

    /// Removes from memory what no readable revision sees, looking at no more than `budget` versions;
    /// false when nothing is left to do for now. Has no effect that a reader, a snapshot or a digest
    /// could see.
    ///
    /// [`flush`](raft_core::StateMachine::flush) calls this with a small budget.
    pub fn compact_slice(&mut self, budget: usize) -> bool {
        let target = match self.sweep.target {
            Some(target) => target,
            // Only what is published: below it somebody may be about to read.
            None => self.data.compact_revision(),
        };
        if self.sweep.done >= target {
            return false;
        }
        let allowed = self.data.advance_horizon(target);
        if allowed < target && (self.sweep.target.is_some() || allowed <= self.sweep.done) {
            // Somebody reads below; later.
            return false;
        }
        let target = target.min(allowed);
        self.sweep.target = Some(target);
        let from = self.sweep.next.max(Revision::first_of(self.sweep.done.max(0)));
        let data = self.data.clone();
        let mut history =
            data.history_from(from).take_while(|version| version.revision().main <= target);
        for version in history.by_ref().take(budget) {
            // What this version replaced is seen by no revision from its own on.
            let mut older = data.older(&version);
            while let Some(replaced) = older {
                if replaced.revision().main < target {
                    data.remove(&replaced);
                }
                older = data.older(&replaced);
            }
            if !version.is_live() && version.revision().main < target {
                data.remove(&version);
            }
            let Revision { main, sub } = version.revision();
            self.sweep.next = Revision { main, sub: sub + 1 };
        }
        if history.next().is_some() {
            return true;
        }
        self.sweep.done = target;
        self.sweep.target = None;
        self.sweep.next = Revision::ZERO;
        target < self.data.compact_revision()
    }

    /// The share of sweeping of a flush that published `revisions`.
    pub(super) fn compact_some(&mut self, revisions: i64) {
        if self.sweep.unbounded {
            // Somebody waits for the memory; a reader that holds it back is not waited for.
            while self.compact_slice(usize::MAX) {}
            self.sweep.unbounded = false;
        } else {
            let revisions = usize::try_from(revisions).unwrap_or(0);
            self.compact_slice(SLICE + 2 * revisions);
        }
    }
}

/// How far removal has come. Differs between members.
#[derive(Debug)]
pub(super) struct Sweep {
    /// Everything that a compaction at this revision drops is gone.
    done: i64,
    /// The compaction that is being carried out.
    target: Option<i64>,
    /// Where to go on with it; zero before the first slice.
    next: Revision,
    /// Finish with the next flush.
    unbounded: bool,
}

impl Sweep {
    /// For a store from which everything that `done` drops is missing.
    pub(super) const fn new(done: i64) -> Self {
        Self { done, target: None, next: Revision::ZERO, unbounded: false }
    }
}

/// How many bytes each future compaction will free. Follows from the versions; kept so that a compaction
/// knows the new logical size at once.
#[derive(Debug)]
pub(super) struct Garbage {
    /// The compact revision; `freed[i]` is what moving it to `compact_revision + 1 + i` frees in addition.
    compact_revision: i64,
    freed: VecDeque<u64>,
}

impl Garbage {
    pub(super) const fn new(compact_revision: i64) -> Self {
        Self { compact_revision, freed: VecDeque::new() }
    }

    /// A compaction at `revision` or later drops `bytes`. What the present compact revision drops already is
    /// not counted.
    fn add(&mut self, revision: i64, bytes: u64) {
        let Ok(place) = usize::try_from(revision - self.compact_revision - 1) else { return };
        if place >= self.freed.len() {
            self.freed.resize(place + 1, 0);
        }
        self.freed[place] += bytes;
    }

    /// Counts a version that `newer` replaced: a tombstone is of use only to its own revision, a value also to
    /// those up to its replacement.
    pub(super) fn add_version(&mut self, version: &Version, newer: Option<&Version>) {
        let after = version.revision().main + 1;
        if !version.is_live() {
            self.add(after, version.weight());
        } else if let Some(newer) = newer {
            self.add(newer.revision().main.max(after), version.weight());
        }
    }

    /// Moves the compact revision; returns what that frees.
    fn collect(&mut self, compact_revision: i64) -> u64 {
        let count = usize::try_from(compact_revision - self.compact_revision).unwrap_or(0);
        self.compact_revision = compact_revision;
        self.freed.drain(..count.min(self.freed.len())).sum()
    }
}
