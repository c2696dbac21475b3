//! Reading beside the apply thread.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::{ArcSwap, Guard};
use atomic_waker::AtomicWaker;
use bytes::Bytes;

use crate::check::{check_range, check_txn};
use crate::error::KvError;
use crate::key_range::KeyRange;
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use crate::proto::mvccpb::{Event, KeyValue, event::EventType};
use crate::store::data::{Data, Pin};
use crate::store::notices::{Notices, Published};
use crate::store::read::{View, range_of};
use crate::store::version::{Revision, Version};

/// Reads the store from any thread, without a lock and without holding up the writer.
///
/// Sees what [`flush`](raft_core::StateMachine::flush) published; goes on after a restore, with the restored state.
#[derive(Clone, Debug)]
pub struct Reader {
    published: Arc<ArcSwap<Data>>,
    notices: Published,
}

impl Reader {
    pub(crate) const fn new(published: Arc<ArcSwap<Data>>, notices: Published) -> Self {
        Self { published, notices }
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.data().revision()
    }

    /// The revision below which history is forgotten; -1 before the first compaction.
    #[must_use]
    pub fn compact_revision(&self) -> i64 {
        self.data().compact_revision()
    }

    /// See [`Store::logical_size`](crate::Store::logical_size).
    #[must_use]
    pub fn logical_size(&self) -> u64 {
        self.data().logical_size()
    }

    /// Alarms and the like, as this member has applied them.
    #[must_use]
    pub fn notices(&self) -> Arc<Notices> {
        self.notices.load_full()
    }

    /// Reads a range at the revision the request names, or at the newest. The header carries the newest
    /// revision and nothing else.
    ///
    /// # Errors
    /// What [`check_range`] says; a revision that is compacted or not there yet.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, KvError> {
        check_range(request)?;
        let data = self.data();
        let first = View::published(&data);
        let response = first.range(request)?;
        if data.horizon() <= first.at(request.revision)? {
            return Ok(response);
        }
        // A compaction overtook the read and something may be missing from it.
        if request.revision > 0 {
            return Err(KvError::Compacted);
        }
        self.pin_newest().range(request)
    }

    /// Runs a transaction for which [`is_read_only`] holds, at the newest revision.
    ///
    /// # Errors
    /// As [`range`](Self::range); [`KvError::KeyNotFound`] when something in it is no range. The number of
    /// operations is for the caller to check with [`check_txn`].
    pub fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, KvError> {
        if !is_read_only(request) {
            return Err(KvError::KeyNotFound);
        }
        check_txn(request, usize::MAX)?;
        let pinned = self.pin_newest();
        let data = &pinned.data;
        let view = View {
            data,
            revision: pinned.at,
            compact_revision: data.compact_revision().min(pinned.at),
        };
        let response = view.txn(request)?;
        let horizon = data.horizon().min(pinned.at);
        let ops = if response.succeeded { &request.success } else { &request.failure };
        let mut past = ops.iter().filter_map(range_of).map(|range| range.revision);
        if past.any(|at| at > 0 && at < horizon) {
            // A compaction overtook one of the reads of the past.
            return Err(KvError::Compacted);
        }
        Ok(response)
    }

    /// The version of `key` that revision `at` sees.
    ///
    /// # Errors
    /// A revision that is compacted or not there yet.
    pub fn get(&self, key: &Bytes, at: i64) -> Result<Option<KeyValue>, KvError> {
        let request = RangeRequest { key: key.clone(), revision: at, ..RangeRequest::default() };
        Ok(self.range(&request)?.kvs.pop())
    }

    /// The version that `kv`, which an event carries, replaced: `None` when there was none, or it is forgotten.
    #[must_use]
    pub fn previous(&self, kv: &KeyValue) -> Option<KeyValue> {
        if kv.create_revision == kv.mod_revision {
            // A tombstone has no revision of creation, so this is a key's first version.
            return None;
        }
        let data = self.data();
        let at = kv.mod_revision - 1;
        if at < data.compact_revision() {
            return None;
        }
        let found = data.newest(&kv.key, at).filter(Version::is_live);
        // What was read is whole only if no compaction has overtaken it.
        found.filter(|_| data.horizon() <= at).map(|version| version.key_value())
    }

    /// What happened from revision `from` on, oldest first, in whole revisions: as many as fit into
    /// `events_max` events and `bytes_max` bytes of keys and values, and at least one.
    ///
    /// # Errors
    /// [`KvError::Compacted`] when `from` is below the compact revision.
    pub fn events(
        &self,
        from: i64,
        events_max: usize,
        bytes_max: usize,
    ) -> Result<Events, KvError> {
        let data = self.data();
        let revision = data.revision();
        if from < data.compact_revision() {
            return Err(KvError::Compacted);
        }
        let mut events: Vec<Event> = Vec::new();
        let mut next = revision.saturating_add(1).max(from);
        let mut whole = 0;
        let mut bytes = 0_usize;
        for version in data.history_from(Revision::first_of(from.max(0))) {
            let main = version.revision().main;
            if main > revision {
                break;
            }
            let begins =
                events.last().and_then(|event| event.kv.as_ref()).map(|kv| kv.mod_revision)
                    != Some(main);
            if begins {
                whole = events.len();
            }
            bytes = bytes.saturating_add(version.len());
            if (events.len() >= events_max || bytes > bytes_max) && whole > 0 {
                // This revision does not fit any more.
                events.truncate(whole);
                next = main;
                break;
            }
            let kind = if version.is_live() { EventType::Put } else { EventType::Delete };
            events.push(Event {
                r#type: kind.into(),
                kv: Some(version.key_value()),
                prev_kv: None,
            });
        }
        if data.horizon() > from {
            return Err(KvError::Compacted);
        }
        Ok(Events { events, next })
    }

    /// Keeps revision `at` readable, whatever is compacted, until the pin is dropped: for long reads
    /// in slices.
    ///
    /// # Errors
    /// A revision that is compacted or not there yet.
    pub fn pin(&self, at: i64) -> Result<PinnedReader, KvError> {
        let data = Guard::into_inner(self.data());
        let at = View::published(&data).at(at)?;
        let pin = data.pin(at).ok_or(KvError::Compacted)?;
        Ok(PinnedReader { data, at, _pin: pin })
    }

    /// Fails only while compactions at the newest revision follow each other without a pause.
    fn pin_newest(&self) -> PinnedReader {
        loop {
            if let Ok(pinned) = self.pin(0) {
                return pinned;
            }
        }
    }

    fn data(&self) -> Guard<Arc<Data>> {
        self.published.load()
    }
}

/// Whether a transaction consists of ranges only, so that [`Reader::txn`] can run it.
#[must_use]
pub fn is_read_only(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| range_of(op).is_some())
}

/// A stretch of history.
#[derive(Clone, PartialEq, Debug)]
pub struct Events {
    /// In order; those of one revision stand together. Without `prev_kv`; [`Reader::get`] finds it one
    /// revision before.
    pub events: Vec<Event>,
    /// The revision to go on from: everything before it is in `events`.
    pub next: i64,
}

/// How many keys one stretch of a range goes over at most.
const STRETCH_KEYS_MAX: usize = 4096;

/// A part of a range.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Stretch {
    /// In the order of the keys.
    pub kvs: Vec<KeyValue>,
    /// How many keys were there, those included that were not wanted.
    pub seen: usize,
    /// The key to go on from; `None` at the end of the range.
    pub next: Option<Bytes>,
}

/// Reads one revision that stays readable.
#[derive(Debug)]
pub struct PinnedReader {
    data: Arc<Data>,
    at: i64,
    /// Held, not read.
    _pin: Pin,
}

impl PinnedReader {
    /// The revision.
    #[must_use]
    pub const fn revision(&self) -> i64 {
        self.at
    }

    /// Reads a range at the pinned revision, whatever revision the request names. The header carries the
    /// pinned revision.
    ///
    /// # Errors
    /// What [`check_range`] says.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, KvError> {
        check_range(request)?;
        let view = View { data: &self.data, revision: self.at, compact_revision: self.at };
        let mut request = request.clone();
        request.revision = 0;
        view.range(&request)
    }

    /// Reads the next keys of a range from `from` on, in their order: at most `keys_max` of them, and about as many
    /// as have `bytes_max` bytes. Sort order, limit and filters of the request are not looked at.
    #[must_use]
    pub fn stretch(
        &self,
        request: &RangeRequest,
        from: &Bytes,
        keys_max: usize,
        bytes_max: usize,
    ) -> Stretch {
        let mut stretch = Stretch::default();
        let mut bytes = 0_usize;
        self.data.walk(&KeyRange::new(from, &request.range_end), self.at, |version, _| {
            if stretch.seen >= STRETCH_KEYS_MAX || bytes >= bytes_max {
                stretch.next = Some(Bytes::copy_from_slice(version.key()));
                return ControlFlow::Break(());
            }
            stretch.seen += 1;
            if stretch.kvs.len() < keys_max {
                let mut kv = version.key_value();
                if request.keys_only {
                    kv.value.clear();
                }
                bytes = bytes.saturating_add(kv.key.len()).saturating_add(kv.value.len());
                stretch.kvs.push(kv);
            }
            ControlFlow::Continue(())
        });
        stretch
    }
}

/// Wakes one task when something was published. Made by [`Store::publications`](crate::Store::publications).
#[derive(Debug)]
pub struct Publications {
    reader: Reader,
    waker: Arc<AtomicWaker>,
}

impl Publications {
    pub(crate) const fn new(reader: Reader, waker: Arc<AtomicWaker>) -> Self {
        Self { reader, waker }
    }

    /// Ready once revision `revision` is published.
    pub fn poll(&mut self, context: &Context<'_>, revision: i64) -> Poll<()> {
        if self.reader.revision() >= revision {
            return Poll::Ready(());
        }
        // Registered before looking again, so that nothing slips between.
        self.waker.register(context.waker());
        if self.reader.revision() >= revision { Poll::Ready(()) } else { Poll::Pending }
    }
}
