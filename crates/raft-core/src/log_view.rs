//! The log as the protocol sees it: the identity of every entry that is not compacted away, and the
//! payloads of the recent ones.
//!
//! Older payloads live only on disk; a follower that needs them costs a [`Fetch`](crate::Fetch). Nothing
//! here knows what is durable: that is [`Writes`](crate::writes::Writes).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use bytes::Bytes;

use crate::digest::{Digest, LogIdentity};
use crate::types::{Entry, EntryId, EntryKind, Index, Term};

/// What is known of an entry without its payload.
#[derive(Clone, Copy, Debug)]
struct Link {
    term: Term,
    kind: EntryKind,
    digest: Digest,
    bytes: u32,
}

/// The entries after `start`, all identified, the last ones with payload.
#[derive(Debug)]
pub(crate) struct LogView {
    identity: LogIdentity,
    /// The entry before the first one held here; everything up to it is compacted away.
    start: EntryId,
    start_digest: Digest,
    /// One for each entry after `start`.
    links: VecDeque<Link>,
    /// Payloads of the last `payloads.len()` entries. At most as many as `links`.
    payloads: VecDeque<Bytes>,
    /// Sum of their lengths.
    payload_bytes: usize,
}

/// Why entries cannot be handed out from memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unavailable {
    /// They are on disk only.
    NotCached,
    /// They are gone: only a snapshot helps.
    Compacted,
}

impl LogView {
    /// An empty log that begins after `start`.
    pub(crate) const fn new(identity: LogIdentity, start: EntryId, start_digest: Digest) -> Self {
        Self {
            identity,
            start,
            start_digest,
            links: VecDeque::new(),
            payloads: VecDeque::new(),
            payload_bytes: 0,
        }
    }

    pub(crate) const fn identity(&self) -> LogIdentity {
        self.identity
    }

    /// The entry before the first one.
    pub(crate) const fn start(&self) -> EntryId {
        self.start
    }

    /// The last entry, or `start` when there is none.
    pub(crate) fn last(&self) -> EntryId {
        match self.links.back() {
            Some(link) => EntryId { index: self.last_index(), term: link.term },
            None => self.start,
        }
    }

    fn last_index(&self) -> Index {
        self.start.index.plus(len_u64(self.links.len()))
    }

    fn first_cached(&self) -> Index {
        Index(self.last_index().0 - len_u64(self.payloads.len()) + 1)
    }

    fn link(&self, index: Index) -> Option<&Link> {
        let offset = index.0.checked_sub(self.start.index.0 + 1)?;
        self.links.get(usize::try_from(offset).ok()?)
    }

    /// The term of the entry at `index`; known from `start` on.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.start.index {
            return Some(self.start.term);
        }
        self.link(index).map(|link| link.term)
    }

    /// The digest of the log up to `index`; known from `start` on.
    pub(crate) fn digest_at(&self, index: Index) -> Option<Digest> {
        if index == self.start.index {
            return Some(self.start_digest);
        }
        self.link(index).map(|link| link.digest)
    }

    /// The kind of the entry at `index`.
    pub(crate) fn kind_at(&self, index: Index) -> Option<EntryKind> {
        self.link(index).map(|link| link.kind)
    }

    /// Payload bytes of the entries after `from` up to and including `to`.
    pub(crate) fn bytes_between(&self, from: Index, to: Index) -> usize {
        let mut bytes = 0usize;
        let mut index = from;
        while index < to {
            index = index.next();
            bytes =
                bytes.saturating_add(self.link(index).map_or(0, |link| bytes_usize(link.bytes)));
        }
        bytes
    }

    /// The highest entry not above `limit.index` whose term is not above `limit.term`; terms never fall along
    /// a log, so this is a binary search. `start` when there is none.
    pub(crate) fn last_not_above(&self, limit: EntryId) -> EntryId {
        let within = usize::try_from(limit.index.since(self.start.index)).unwrap_or(usize::MAX);
        let count = self.links.partition_point(|link| link.term <= limit.term).min(within);
        match count.checked_sub(1).and_then(|position| self.links.get(position)) {
            Some(link) => EntryId { index: self.start.index.plus(len_u64(count)), term: link.term },
            None => self.start,
        }
    }

    /// Appends a new entry of this node's own, chaining its digest.
    pub(crate) fn append_new(&mut self, term: Term, kind: EntryKind, payload: Bytes) -> EntryId {
        let last = self.last();
        assert!(term >= last.term, "terms never fall along a log: {term} after {last}");
        let id = EntryId { index: last.index.next(), term };
        let previous = self.last_digest();
        let digest = self.identity.chain(previous, id, kind, &payload);
        self.push(Link { term, kind, digest, bytes: payload_len(&payload) }, payload);
        id
    }

    fn last_digest(&self) -> Digest {
        self.links.back().map_or(self.start_digest, |link| link.digest)
    }

    /// Appends an entry of a leader. Its digest was checked against the chain when it was decoded.
    pub(crate) fn append(&mut self, entry: Entry) {
        let last = self.last();
        assert!(entry.id.index == last.index.next(), "a hole: {} after {last}", entry.id);
        assert!(
            entry.id.term >= last.term,
            "terms never fall along a log: {} after {last}",
            entry.id
        );
        debug_assert_eq!(
            entry.digest,
            self.identity.chain(self.last_digest(), entry.id, entry.kind, &entry.payload),
            "the digest of {} does not continue the chain",
            entry.id
        );
        let bytes = payload_len(&entry.payload);
        let link = Link { term: entry.id.term, kind: entry.kind, digest: entry.digest, bytes };
        self.push(link, entry.payload);
    }

    fn push(&mut self, link: Link, payload: Bytes) {
        self.payload_bytes += payload.len();
        self.links.push_back(link);
        self.payloads.push_back(payload);
    }

    /// Removes the entries at and after `index`.
    pub(crate) fn truncate_from(&mut self, index: Index) {
        assert!(index > self.start.index, "only entries after {} can be truncated", self.start);
        while self.last_index() >= index {
            self.links.pop_back();
            if let Some(payload) = self.payloads.pop_back() {
                self.payload_bytes -= payload.len();
            }
        }
    }

    /// Forgets the entries up to and including `index`.
    pub(crate) fn compact_to(&mut self, index: Index) {
        let (Some(term), Some(digest)) = (self.term_at(index), self.digest_at(index)) else {
            return;
        };
        while self.start.index < index {
            self.drop_oldest_payload_at(self.start.index.next());
            self.links.pop_front();
            self.start.index = self.start.index.next();
        }
        self.start.term = term;
        self.start_digest = digest;
    }

    fn drop_oldest_payload_at(&mut self, index: Index) {
        if self.first_cached() == index
            && let Some(payload) = self.payloads.pop_front()
        {
            self.payload_bytes -= payload.len();
        }
    }

    /// Begins anew after `start`.
    pub(crate) fn reset(&mut self, start: EntryId, start_digest: Digest) {
        *self = Self::new(self.identity, start, start_digest);
    }

    /// Drops the oldest payloads of entries up to and including `applied` until at most `bytes_max` bytes
    /// are left.
    pub(crate) fn evict(&mut self, applied: Index, bytes_max: usize) {
        while self.payload_bytes > bytes_max && self.first_cached() <= applied {
            let Some(payload) = self.payloads.pop_front() else {
                return;
            };
            self.payload_bytes -= payload.len();
        }
    }

    /// The entries from `from` to `to` inclusive, cut after `bytes_max` payload bytes or `entries_max`
    /// entries but never before the first.
    pub(crate) fn entries(
        &self,
        from: Index,
        to: Index,
        bytes_max: usize,
        entries_max: usize,
    ) -> Result<Vec<Entry>, Unavailable> {
        if from <= self.start.index {
            return Err(Unavailable::Compacted);
        }
        let to = to.min(self.last_index());
        if from > to {
            return Ok(Vec::new());
        }
        if from < self.first_cached() {
            return Err(Unavailable::NotCached);
        }
        let first = usize::try_from(from.since(self.start.index) - 1).unwrap_or(usize::MAX);
        let first_payload = usize::try_from(from.since(self.first_cached())).unwrap_or(usize::MAX);
        let wanted =
            usize::try_from(to.since(from) + 1).unwrap_or(usize::MAX).min(entries_max.max(1));
        let mut bytes = 0usize;
        let mut entries = Vec::with_capacity(wanted.min(1024));
        let links = self.links.range(first..).zip(self.payloads.range(first_payload..));
        for (offset, (link, payload)) in links.take(wanted).enumerate() {
            bytes = bytes.saturating_add(payload.len());
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(Entry {
                id: EntryId { index: from.plus(len_u64(offset)), term: link.term },
                kind: link.kind,
                digest: link.digest,
                payload: payload.clone(),
            });
        }
        Ok(entries)
    }

    /// Payload bytes held in memory.
    pub(crate) const fn cached_bytes(&self) -> usize {
        self.payload_bytes
    }
}

fn len_u64(len: usize) -> u64 {
    // A usize has at most 64 bits on every target Rust supports.
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn bytes_usize(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn payload_len(payload: &Bytes) -> u32 {
    u32::try_from(payload.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClusterId, GroupId};

    fn log_of(terms: &[u64]) -> LogView {
        let identity = LogIdentity { cluster: ClusterId(1), group: GroupId::FIRST };
        let mut log = LogView::new(identity, EntryId::ZERO, Digest(1));
        for term in terms {
            log.append_new(Term(*term), EntryKind::Command, Bytes::from_static(b"four"));
        }
        log
    }

    #[test]
    fn last_not_above_finds_the_end_of_the_common_terms() {
        let log = log_of(&[1, 1, 2, 4, 4]);
        assert_eq!(log.last_not_above(EntryId::new(5, 3)), EntryId::new(3, 2));
        assert_eq!(log.last_not_above(EntryId::new(2, 9)), EntryId::new(2, 1));
        assert_eq!(log.last_not_above(EntryId::new(9, 9)), EntryId::new(5, 4));
        assert_eq!(log.last_not_above(EntryId::new(4, 0)), EntryId::ZERO);
    }

    #[test]
    fn eviction_never_takes_an_unapplied_entry() {
        let mut log = log_of(&[1, 1, 1, 1]);
        log.evict(Index(2), 0);
        assert_eq!(log.cached_bytes(), 8);
        assert_eq!(log.entries(Index(2), Index(4), 100, 100), Err(Unavailable::NotCached));
        assert_eq!(log.entries(Index(3), Index(4), 100, 100).map(|entries| entries.len()), Ok(2));
    }

    #[test]
    fn compaction_keeps_the_identity_of_the_last_forgotten_entry() {
        let mut log = log_of(&[1, 2, 3, 3]);
        let digest = log.digest_at(Index(2));
        log.compact_to(Index(2));
        assert_eq!(log.start(), EntryId::new(2, 2));
        assert_eq!(log.digest_at(Index(2)), digest);
        assert_eq!(log.term_at(Index(1)), None);
        assert_eq!(log.last(), EntryId::new(4, 3));
        assert_eq!(log.entries(Index(2), Index(4), 100, 100), Err(Unavailable::Compacted));
        log.compact_to(Index(4));
        assert_eq!(log.last(), EntryId::new(4, 3));
        assert_eq!(log.cached_bytes(), 0);
        let id = log.append_new(Term(4), EntryKind::Empty, Bytes::new());
        assert_eq!(id, EntryId::new(5, 4));
    }

    #[test]
    fn a_batch_holds_at_least_one_entry() {
        let log = log_of(&[1, 1, 1]);
        assert_eq!(log.entries(Index(1), Index(3), 1, 100).map(|entries| entries.len()), Ok(1));
        assert_eq!(log.entries(Index(1), Index(3), 8, 100).map(|entries| entries.len()), Ok(2));
        assert_eq!(log.entries(Index(4), Index(9), 8, 100), Ok(Vec::new()));
    }
}
