//! What is stored: every version of every key, by key and by revision.
//!
//! Both maps are lock-free. The apply thread writes; readers choose a revision and ignore what is newer,
//! so they need no lock and see no half of anything. What a reader at revision R may see is removed only
//! after [`Data::horizon`] has moved beyond R.

use std::ops::Bound;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};

use crossbeam_skiplist::SkipMap;
use crossbeam_skiplist::map::Entry;

use crate::key_range::{KeyRange, RangeEnd};
use crate::store::version::{ByKey, Key, Live, Place, Revision, Version};

/// The compact revision of a store that was never compacted, as etcd has it.
pub(crate) const NEVER_COMPACTED: i64 = -1;

/// The revision of an empty store.
pub(crate) const FIRST_REVISION: i64 = 1;

/// How many versions in a row a range steps over before it searches for the next one that it wants.
const STEPS_MAX: u32 = 8;

/// The version under `entry`, if it is one of `key`.
fn of_key(entry: Option<Entry<'_, ByKey, Version>>, key: &[u8]) -> Option<Version> {
    entry.filter(|entry| **entry.key().key() == *key).map(|entry| entry.value().clone())
}

/// The maps, and what is published to readers.
#[derive(Debug)]
pub(crate) struct Data {
    versions: SkipMap<ByKey, Version>,
    history: SkipMap<Revision, Version>,
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
    pub(crate) fn insert(&self, version: Version) {
        self.versions.insert(ByKey::of(&version), version.clone());
        self.history.insert(version.revision(), version);
    }

    /// Adds versions in the order of their revisions, as [`insert`](Self::insert) does. Each map gets them in its own
    /// order: where one belongs is then found near the one before it, which takes half the time.
    pub(crate) fn insert_all(&self, versions: Vec<Version>) {
        let mut by_key: Vec<_> = versions.iter().map(|it| (ByKey::of(it), it.clone())).collect();
        for version in versions {
            self.history.insert(version.revision(), version);
        }
        by_key.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (place, version) in by_key {
            self.versions.insert(place, version);
        }
    }

    /// Removes a version from both maps.
    pub(crate) fn remove(&self, version: &Version) {
        self.history.remove(&version.revision());
        self.versions.remove(&ByKey::of(version));
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

    /// From the newest version of `key` that revision `at` sees on, or from what comes after the key.
    fn seek(&self, key: &[u8], at: i64) -> Option<Entry<'_, ByKey, Version>> {
        let from: &dyn Place = &(key, Revision::last_of(at));
        self.versions.lower_bound(Bound::Included(from))
    }

    /// The newest version of `key` that revision `at` sees; may be a tombstone.
    pub(crate) fn newest(&self, key: &[u8], at: i64) -> Option<Version> {
        of_key(self.seek(key, at), key)
    }

    /// The version of the same key that was written just before `version`.
    pub(crate) fn older(&self, version: &Version) -> Option<Version> {
        let from: &dyn Place = &ByKey::of(version);
        of_key(self.versions.lower_bound(Bound::Excluded(from)), version.key())
    }

    /// The version of the same key that was written just after `version`.
    fn newer(&self, version: &Version) -> Option<Version> {
        let from: &dyn Place = &ByKey::of(version);
        of_key(self.versions.upper_bound(Bound::Excluded(from)), version.key())
    }

    /// Whether a store compacted at `compact_revision` keeps `version`: everything from there on, and
    /// before it what was present there. A tombstone says no more than nothing does.
    pub(crate) fn is_retained(&self, version: &Version, compact_revision: i64) -> bool {
        version.revision().main >= compact_revision
            || version.is_present_at(compact_revision, self.newer(version).as_ref())
    }

    /// Visits, in the order of the keys, what is present in `range` at revision `at`.
    pub(crate) fn walk(
        &self,
        range: &KeyRange,
        at: i64,
        mut visit: impl FnMut(&Version, Live<'_>) -> ControlFlow<()>,
    ) {
        if range.end == RangeEnd::Single {
            if let Some(version) = self.newest(&range.start, at)
                && let Some(live) = version.live()
            {
                // There is nothing after it to break off from.
                let _only: ControlFlow<()> = visit(&version, live);
            }
            return;
        }
        let mut next = self.seek(&range.start, at);
        let mut visited: Option<Key> = None;
        let mut steps = 0;
        while let Some(entry) = next {
            let key = entry.key().key();
            let is_older = visited.as_ref().is_some_and(|visited| visited == key);
            if !is_older && !range.is_before_end(key) {
                break;
            }
            if is_older || entry.key().revision().main > at {
                // Not what we look for; after a few of them it pays to jump over the rest of the key.
                steps += 1;
                next = if steps <= STEPS_MAX {
                    entry.next()
                } else if is_older {
                    let end: &dyn Place = &(&key[..], Revision::ZERO);
                    self.versions.lower_bound(Bound::Excluded(end))
                } else {
                    self.seek(key, at)
                };
                continue;
            }
            steps = 0;
            visited = Some(key.clone());
            if let Some(live) = entry.value().live()
                && visit(entry.value(), live).is_break()
            {
                break;
            }
            next = entry.next();
        }
    }

    /// What was written from `from` on, in order.
    pub(crate) fn history_from(&self, from: Revision) -> impl Iterator<Item = Version> + '_ {
        self.history.range(from..).map(|entry| entry.value().clone())
    }

    /// Every version with the one of the same key that replaced it, in the order of the keys and of one key
    /// the newest first.
    pub(crate) fn versions(&self) -> impl Iterator<Item = (Version, Option<Version>)> + '_ {
        let mut previous: Option<Version> = None;
        self.versions.iter().map(move |entry| {
            let version = entry.value().clone();
            let newer =
                previous.replace(version.clone()).filter(|newer| newer.key() == version.key());
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
    use bytes::Bytes;

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
                let live = Live { value: b"", create_revision: 2, version: main - 1, lease: 0 };
                let revision = Revision { main, sub };
                data.insert(Version::new(revision, Key::new(key.as_bytes()), Some(live)));
            }
        }
        let all = KeyRange::new(&Bytes::from_static(b"\0"), &Bytes::from_static(b"\0"));
        for at in [2, 50, 92, 100] {
            let mut seen = Vec::new();
            data.walk(&all, at, |version, _| {
                seen.push((Bytes::copy_from_slice(version.key()), version.revision().main));
                ControlFlow::Continue(())
            });
            assert_eq!(seen, [(Bytes::from("a"), at), (Bytes::from("b"), at)]);
        }
    }
}
