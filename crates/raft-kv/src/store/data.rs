//! What is stored: every version of every key, by key and by revision.
//!
//! Both maps are lock-free. The apply thread writes; readers choose a revision and ignore what is newer,
//! so they need no lock and see no half of anything. What a reader at revision R may see is removed only
//! after [`Data::horizon`] has moved beyond R.

use std::cmp::Reverse;
use std::ops::Bound;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};

use bytes::Bytes;
use crossbeam_skiplist::SkipMap;

use crate::key_range::{KeyRange, RangeEnd};
use crate::proto::mvccpb::KeyValue;

/// The compact revision of a store that was never compacted, as etcd has it.
pub(crate) const NEVER_COMPACTED: i64 = -1;

/// The revision of an empty store.
pub(crate) const FIRST_REVISION: i64 = 1;

/// What a version costs beside its key and value. Part of the logical size, which is replicated: it never
/// changes.
pub(crate) const VERSION_BYTES: u64 = 64;

/// A place in history: what one command wrote has one `main`, and a `sub` each, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Revision {
    pub(crate) main: i64,
    pub(crate) sub: u32,
}

impl Revision {
    /// Before everything.
    pub(crate) const ZERO: Self = Self { main: 0, sub: 0 };

    pub(crate) const fn first_of(main: i64) -> Self {
        Self { main, sub: 0 }
    }

    pub(crate) const fn last_of(main: i64) -> Self {
        Self { main, sub: u32::MAX }
    }
}

/// One version of one key; never changed after it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Version {
    pub(crate) revision: Revision,
    /// Never empty.
    pub(crate) key: Bytes,
    /// What was written; `None` when the key was deleted.
    pub(crate) live: Option<Live>,
}

/// What a put wrote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Live {
    pub(crate) value: Bytes,
    /// The revision that began this life of the key; at most the version's own.
    pub(crate) create_revision: i64,
    /// From 1, one more with every put in this life of the key.
    pub(crate) version: i64,
    /// 0: none.
    pub(crate) lease: i64,
}

impl Version {
    /// The message of a version that is no tombstone; of a tombstone key and revision only, as in events.
    pub(crate) fn key_value(&self) -> KeyValue {
        let mut kv = KeyValue {
            key: self.key.clone(),
            mod_revision: self.revision.main,
            ..KeyValue::default()
        };
        if let Some(live) = &self.live {
            kv.value = live.value.clone();
            kv.create_revision = live.create_revision;
            kv.version = live.version;
            kv.lease = live.lease;
        }
        kv
    }

    /// Whether a read at `at`, which is not before the version, finds it, when `newer` replaced it.
    pub(crate) fn is_present_at(&self, at: i64, newer: Option<&Self>) -> bool {
        self.live.is_some() && newer.is_none_or(|newer| newer.revision.main > at)
    }

    /// The bytes of key and value.
    pub(crate) fn len(&self) -> usize {
        self.key.len() + self.live.as_ref().map_or(0, |live| live.value.len())
    }

    /// What the version adds to the logical size.
    pub(crate) fn weight(&self) -> u64 {
        let value = self.live.as_ref().map_or(0, |live| live.value.len());
        VERSION_BYTES + bytes_len(&self.key) + u64::try_from(value).unwrap_or(u64::MAX)
    }
}

fn bytes_len(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// How many versions in a row a range steps over before it searches for the next one that it wants.
const STEPS_MAX: u32 = 8;

/// Keys ascending, and of one key the newest version first.
type ByKey = (Bytes, Reverse<Revision>);

/// The maps, and what is published to readers.
#[derive(Debug)]
pub(crate) struct Data {
    versions: SkipMap<ByKey, Arc<Version>>,
    history: SkipMap<Revision, Arc<Version>>,
    /// The newest revision that readers may see. Moves forward, after all of a batch is in the maps.
    revision: AtomicI64,
    /// The published compact revision: at most `revision`, moves forward.
    compact_revision: AtomicI64,
    /// Versions that only revisions below it see may be removed at any moment. At most
    /// `compact_revision`, moves forward.
    horizon: AtomicI64,
    /// The published logical size.
    logical_size: AtomicU64,
    /// Revisions that somebody still reads at; the number keeps equal ones apart.
    pins: SkipMap<(i64, u64), ()>,
    next_pin: AtomicU64,
}

impl Data {
    /// Nothing, at [`FIRST_REVISION`].
    pub(crate) fn new() -> Self {
        Self {
            versions: SkipMap::new(),
            history: SkipMap::new(),
            revision: AtomicI64::new(FIRST_REVISION),
            compact_revision: AtomicI64::new(NEVER_COMPACTED),
            horizon: AtomicI64::new(NEVER_COMPACTED),
            logical_size: AtomicU64::new(0),
            pins: SkipMap::new(),
            next_pin: AtomicU64::new(0),
        }
    }

    /// Adds a version. Readers do not see it until its revision is published.
    pub(crate) fn insert(&self, version: Arc<Version>) {
        self.versions.insert((version.key.clone(), Reverse(version.revision)), version.clone());
        self.history.insert(version.revision, version);
    }

    /// Adds versions in the order of their revisions, as [`insert`](Self::insert) does. Each map gets them in its own
    /// order: where one belongs is then found near the one before it, which takes half the time.
    pub(crate) fn insert_all(&self, mut versions: Vec<Arc<Version>>) {
        for version in &versions {
            self.history.insert(version.revision, version.clone());
        }
        versions.sort_unstable_by(|a, b| {
            (&a.key, Reverse(a.revision)).cmp(&(&b.key, Reverse(b.revision)))
        });
        for version in versions {
            self.versions.insert((version.key.clone(), Reverse(version.revision)), version);
        }
    }

    /// Removes a version from both maps.
    pub(crate) fn remove(&self, version: &Version) {
        self.history.remove(&version.revision);
        self.versions.remove(&(version.key.clone(), Reverse(version.revision)));
    }

    /// Lets readers see everything up to `revision`.
    pub(crate) fn publish(&self, revision: i64, compact_revision: i64, logical_size: u64) {
        // The revision first, so that it is never below the compact revision.
        self.revision.store(revision, Ordering::SeqCst);
        self.compact_revision.store(compact_revision, Ordering::SeqCst);
        self.logical_size.store(logical_size, Ordering::Relaxed);
    }

    pub(crate) fn revision(&self) -> i64 {
        self.revision.load(Ordering::SeqCst)
    }

    pub(crate) fn compact_revision(&self) -> i64 {
        self.compact_revision.load(Ordering::SeqCst)
    }

    pub(crate) fn horizon(&self) -> i64 {
        // Whoever asks has read the maps and wants to know whether what it read was whole.
        fence(Ordering::SeqCst);
        self.horizon.load(Ordering::SeqCst)
    }

    pub(crate) fn logical_size(&self) -> u64 {
        self.logical_size.load(Ordering::Relaxed)
    }

    /// Announces that versions which only revisions below `revision` see will be removed; answers down
    /// to which revision they may be, because somebody who came before still reads.
    pub(crate) fn advance_horizon(&self, revision: i64) -> i64 {
        self.horizon.fetch_max(revision, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.pins.front().map_or(revision, |pin| pin.key().0.min(revision))
    }

    /// Keeps what `revision` sees until the pin is dropped; `None` when some of it may be gone already.
    pub(crate) fn pin(self: &Arc<Self>, revision: i64) -> Option<Pin> {
        let id = self.next_pin.fetch_add(1, Ordering::Relaxed);
        let pin = Pin { data: self.clone(), key: (revision, id) };
        self.pins.insert(pin.key, ());
        // Either this sees the horizon that a compaction announced, or the compaction sees the pin.
        (self.horizon() <= revision).then_some(pin)
    }

    /// Keeps everything that is there now until the pin is dropped. Only for the apply thread, between
    /// two slices of removal.
    pub(crate) fn pin_all(self: &Arc<Self>) -> Pin {
        let id = self.next_pin.fetch_add(1, Ordering::Relaxed);
        let pin = Pin { data: self.clone(), key: (i64::MIN, id) };
        self.pins.insert(pin.key, ());
        pin
    }

    /// The newest version of `key` that revision `at` sees; may be a tombstone.
    pub(crate) fn newest(&self, key: &Bytes, at: i64) -> Option<Arc<Version>> {
        let from = (key.clone(), Reverse(Revision::last_of(at)));
        let entry = self.versions.lower_bound(Bound::Included(&from))?;
        (entry.key().0 == *key).then(|| entry.value().clone())
    }

    /// The version of the same key that was written just before `version`.
    pub(crate) fn older(&self, version: &Version) -> Option<Arc<Version>> {
        let from = (version.key.clone(), Reverse(version.revision));
        let entry = self.versions.lower_bound(Bound::Excluded(&from))?;
        (entry.key().0 == version.key).then(|| entry.value().clone())
    }

    /// The version of the same key that was written just after `version`.
    fn newer(&self, version: &Version) -> Option<Arc<Version>> {
        let from = (version.key.clone(), Reverse(version.revision));
        let entry = self.versions.upper_bound(Bound::Excluded(&from))?;
        (entry.key().0 == version.key).then(|| entry.value().clone())
    }

    /// Whether a store compacted at `compact_revision` keeps `version`: everything from there on, and
    /// before it what was present there. A tombstone says no more than nothing does.
    pub(crate) fn is_retained(&self, version: &Version, compact_revision: i64) -> bool {
        version.revision.main >= compact_revision
            || version.is_present_at(compact_revision, self.newer(version).as_deref())
    }

    /// Visits, in the order of the keys, what is present in `range` at revision `at`.
    pub(crate) fn walk(
        &self,
        range: &KeyRange,
        at: i64,
        mut visit: impl FnMut(&Arc<Version>, &Live) -> ControlFlow<()>,
    ) {
        if range.end == RangeEnd::Single {
            if let Some(version) = self.newest(&range.start, at)
                && let Some(live) = &version.live
            {
                // There is nothing after it to break off from.
                let _only: ControlFlow<()> = visit(&version, live);
            }
            return;
        }
        let seek = |key: &Bytes| {
            let from = (key.clone(), Reverse(Revision::last_of(at)));
            self.versions.lower_bound(Bound::Included(&from))
        };
        let mut next = seek(&range.start);
        let mut visited = Bytes::new();
        let mut steps = 0;
        while let Some(entry) = next {
            let (key, Reverse(revision)) = entry.key();
            let is_older = *key == visited;
            if !is_older && !range.is_before_end(key) {
                break;
            }
            if is_older || revision.main > at {
                // Not what we look for; after a few of them it pays to jump over the rest of the key.
                steps += 1;
                next = if steps <= STEPS_MAX {
                    entry.next()
                } else if is_older {
                    let end = (key.clone(), Reverse(Revision::ZERO));
                    self.versions.lower_bound(Bound::Excluded(&end))
                } else {
                    seek(key)
                };
                continue;
            }
            steps = 0;
            visited = key.clone();
            if let Some(live) = &entry.value().live
                && visit(entry.value(), live).is_break()
            {
                break;
            }
            next = entry.next();
        }
    }

    /// What was written from `from` on, in order.
    pub(crate) fn history_from(&self, from: Revision) -> impl Iterator<Item = Arc<Version>> + '_ {
        self.history.range(from..).map(|entry| entry.value().clone())
    }

    /// Every version with the one of the same key that replaced it, in the order of the keys and of one key
    /// the newest first.
    pub(crate) fn versions(
        &self,
    ) -> impl Iterator<Item = (Arc<Version>, Option<Arc<Version>>)> + '_ {
        let mut previous: Option<Arc<Version>> = None;
        self.versions.iter().map(move |entry| {
            let version = entry.value().clone();
            let newer = previous.replace(version.clone()).filter(|newer| newer.key == version.key);
            (version, newer)
        })
    }

    /// How many versions there are, removable ones included.
    pub(crate) fn len(&self) -> usize {
        self.history.len()
    }
}

/// Keeps what a revision sees from being removed.
#[derive(Debug)]
pub(crate) struct Pin {
    data: Arc<Data>,
    key: (i64, u64),
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.data.pins.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_below_the_horizon_comes_too_late() {
        let data = Arc::new(Data::new());
        assert_eq!(data.advance_horizon(10), 10);
        assert!(data.pin(9).is_none());
        assert_eq!(data.advance_horizon(11), 11, "what was refused holds nothing back");
    }

    #[test]
    fn removal_goes_no_further_than_the_lowest_pin() {
        let data = Arc::new(Data::new());
        let low = data.pin(10);
        let high = data.pin(20);
        assert_eq!(data.advance_horizon(30), 10);
        drop(low);
        assert_eq!(data.advance_horizon(30), 20);
        let picture = data.pin_all();
        assert_eq!(data.advance_horizon(30), i64::MIN);
        drop((high, picture));
        assert_eq!(data.advance_horizon(30), 30);
    }

    #[test]
    fn a_walk_jumps_over_long_histories_on_both_sides_of_its_revision() {
        let data = Data::new();
        for main in 2..=100 {
            for (sub, key) in [(0, "a"), (1, "b")] {
                let live =
                    Live { value: Bytes::new(), create_revision: 2, version: main - 1, lease: 0 };
                let revision = Revision { main, sub };
                let version = Version { revision, key: Bytes::from(key), live: Some(live) };
                data.insert(Arc::new(version));
            }
        }
        let all = KeyRange::new(&Bytes::from_static(b"\0"), &Bytes::from_static(b"\0"));
        for at in [2, 50, 92, 100] {
            let mut seen = Vec::new();
            data.walk(&all, at, |version, _| {
                seen.push((version.key.clone(), version.revision.main));
                ControlFlow::Continue(())
            });
            assert_eq!(seen, [(Bytes::from("a"), at), (Bytes::from("b"), at)]);
        }
    }
}
