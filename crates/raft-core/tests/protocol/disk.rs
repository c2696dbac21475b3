//! A member's durable state: what a restart finds.

use raft_core::{
    Digest, Entry, EntryId, HardState, Index, LogIdentity, Membership, Persist, Recovered,
    SnapshotMeta,
};

/// Changed only by completed writes, so that a crash loses exactly the others.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    pub(crate) snapshot: SnapshotMeta,
    pub(crate) log_start: EntryId,
    pub(crate) log_start_digest: Digest,
    pub(crate) entries: Vec<Entry>,
}

/// How far a write came before the crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cut {
    /// All of it is durable.
    Whole,
    /// Only the hard state is.
    HardStateOnly,
    /// Everything up to this many entries is, but not the compaction.
    Entries(usize),
}

impl Disk {
    /// A freshly formed member with the cluster's first configuration.
    pub(crate) fn formed(identity: LogIdentity, members: Membership) -> Self {
        let digest = identity.origin(&members.encode(b""));
        Self {
            hard_state: HardState::default(),
            snapshot: SnapshotMeta { last_included: EntryId::ZERO, digest, membership: members },
            log_start: EntryId::ZERO,
            log_start_digest: digest,
            entries: Vec::new(),
        }
    }

    /// Makes `write` durable, as far as it came, in the order that [`Persist`] documents.
    pub(crate) fn apply(&mut self, write: &Persist, cut: Cut) {
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
        let entries_max = match cut {
            Cut::HardStateOnly => return,
            Cut::Entries(count) => count,
            Cut::Whole => usize::MAX,
        };
        if let Some(snapshot) = &write.snapshot {
            self.log_start = snapshot.last_included;
            self.log_start_digest = snapshot.digest;
            self.entries.clear();
            self.snapshot = snapshot.clone();
        }
        if let Some(from) = write.truncate_from {
            assert!(from > self.log_start.index, "a truncation of what is compacted away");
            assert!(from <= self.last().index, "a truncation beyond the log's end");
            self.entries.retain(|entry| entry.id.index < from);
        }
        for entry in write.entries.iter().take(entries_max) {
            assert!(entry.id.index == self.last().index.next(), "a hole before {}", entry.id);
            assert!(entry.id.term <= self.hard_state.current_term, "{} before its term", entry.id);
            self.entries.push(entry.clone());
        }
        if let (Some(to), Cut::Whole) = (write.compact_to, cut)
            && to > self.log_start.index
        {
            assert!(to <= self.snapshot.last_included.index, "compaction beyond the snapshot");
            let digest = self.digest_at(to).expect("what is compacted is in the log");
            let term = self.id_at(to).expect("what is compacted is in the log").term;
            self.entries.retain(|entry| entry.id.index > to);
            self.log_start = EntryId { index: to, term };
            self.log_start_digest = digest;
        }
    }

    /// A snapshot of this member's own state became durable.
    pub(crate) fn take_snapshot(&mut self, snapshot: &SnapshotMeta) {
        let at = snapshot.last_included;
        // One that the log does not reach (a reset is under way) is of no use to recovery.
        if at.index > self.snapshot.last_included.index
            && self.digest_at(at.index) == Some(snapshot.digest)
        {
            self.snapshot = snapshot.clone();
        }
    }

    pub(crate) fn recovered(&self) -> Recovered {
        Recovered {
            hard_state: self.hard_state,
            snapshot: self.snapshot.clone(),
            log_start: self.log_start,
            log_start_digest: self.log_start_digest,
            entries: self.entries.clone(),
        }
    }

    pub(crate) fn last(&self) -> EntryId {
        self.entries.last().map_or(self.log_start, |entry| entry.id)
    }

    fn entry(&self, index: Index) -> Option<&Entry> {
        let offset = index.0.checked_sub(self.log_start.index.0 + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    pub(crate) fn id_at(&self, index: Index) -> Option<EntryId> {
        if index == self.log_start.index {
            return Some(self.log_start);
        }
        self.entry(index).map(|entry| entry.id)
    }

    pub(crate) fn digest_at(&self, index: Index) -> Option<Digest> {
        if index == self.log_start.index {
            return Some(self.log_start_digest);
        }
        self.entry(index).map(|entry| entry.digest)
    }

    /// Whether the log durably holds the entry with this digest, or a snapshot that covers it.
    pub(crate) fn holds(&self, index: Index, digest: Digest) -> bool {
        index < self.log_start.index || self.digest_at(index) == Some(digest)
    }

    /// Entries for a lagging follower, as the log would read them.
    pub(crate) fn read(&self, from: Index, to: Index, bytes_max: usize) -> Option<Vec<Entry>> {
        let mut bytes = 0;
        let mut entries = Vec::new();
        let mut index = from;
        while index <= to
            && let Some(entry) = self.entry(index)
        {
            bytes += entry.payload.len();
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
            index = index.next();
        }
        (!entries.is_empty()).then_some(entries)
    }
}
