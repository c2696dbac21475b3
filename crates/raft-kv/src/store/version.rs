//! One version of one key, and the order of versions by key.

use std::borrow::Borrow;
use std::cmp::{Ordering, Reverse};
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use triomphe::ThinArc;

use crate::proto::mvccpb::KeyValue;

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

/// What a put wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Live<'a> {
    pub(crate) value: &'a [u8],
    /// The revision that began this life of the key; at most the version's own.
    pub(crate) create_revision: i64,
    /// From 1, one more with every put in this life of the key.
    pub(crate) version: i64,
    /// 0: none.
    pub(crate) lease: i64,
}

/// The bytes of a key in memory of their own, shared by its versions and by the places where they are kept. A map of keys
/// is searched from one to the next: they lie closer together without the values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Key(ThinArc<(), u8>);

impl Key {
    /// A copy: a slice of a log entry would keep the whole entry, or the batch that it came in, in memory.
    pub(crate) fn new(key: &[u8]) -> Self {
        Self(ThinArc::from_header_and_slice((), key))
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.slice
    }
}

/// One version of one key; never changed after it was written. A clone is the same piece of memory: a count, these
/// numbers, and the bytes of the value.
#[derive(Clone)]
pub(crate) struct Version(ThinArc<Header, u8>);

/// Every byte here is paid once for each version of each key.
struct Header {
    key: Key,
    revision: Revision,
    create_revision: i64,
    /// 0: the key was deleted.
    version: i64,
    lease: i64,
}

impl Version {
    /// Of a `key` that is not empty; `live` is `None` when it was deleted.
    pub(crate) fn new(revision: Revision, key: Key, live: Option<Live<'_>>) -> Self {
        let (value, create_revision, version, lease) = live
            .map_or((&[][..], 0, 0, 0), |it| (it.value, it.create_revision, it.version, it.lease));
        debug_assert_eq!(live.is_none(), version == 0, "the first version of a key is 1");
        let header = Header { key, revision, create_revision, version, lease };
        Self(ThinArc::from_header_and_slice(header, value))
    }

    fn header(&self) -> &Header {
        &self.0.header.header
    }

    pub(crate) fn revision(&self) -> Revision {
        self.header().revision
    }

    /// Never empty.
    pub(crate) fn key(&self) -> &Key {
        &self.header().key
    }

    /// Whether a put wrote it; otherwise the key was deleted.
    pub(crate) fn is_live(&self) -> bool {
        self.header().version > 0
    }

    /// What was written; `None` when the key was deleted.
    pub(crate) fn live(&self) -> Option<Live<'_>> {
        let &Header { create_revision, version, lease, .. } = self.header();
        let value = &self.0.slice;
        self.is_live().then_some(Live { value, create_revision, version, lease })
    }

    /// The lease that the key belongs to since; 0: none.
    pub(crate) fn lease(&self) -> i64 {
        self.header().lease
    }

    /// The message of a version that is no tombstone; of a tombstone key and revision only, as in events. The value is
    /// the version's own, not a copy.
    pub(crate) fn key_value(&self) -> KeyValue {
        let &Header { ref key, revision, create_revision, version, lease } = self.header();
        KeyValue {
            key: Bytes::copy_from_slice(key),
            value: Bytes::from_owner(self.clone()),
            create_revision,
            mod_revision: revision.main,
            version,
            lease,
        }
    }

    /// Whether a read at `at`, which is not before the version, finds it, when `newer` replaced it.
    pub(crate) fn is_present_at(&self, at: i64, newer: Option<&Self>) -> bool {
        self.is_live() && newer.is_none_or(|newer| newer.revision().main > at)
    }

    /// The bytes of key and value.
    pub(crate) fn len(&self) -> usize {
        self.key().len() + self.0.slice.len()
    }

    /// What the version adds to the logical size.
    pub(crate) fn weight(&self) -> u64 {
        VERSION_BYTES + u64::try_from(self.len()).unwrap_or(u64::MAX)
    }
}

/// The bytes of the value.
impl AsRef<[u8]> for Version {
    fn as_ref(&self) -> &[u8] {
        &self.0.slice
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Version")
            .field("revision", &self.revision())
            .field("key", self.key())
            .field("live", &self.live())
            .finish()
    }
}

/// Where a version stands among those of all keys: keys ascending, and of one key the newest first.
#[derive(Clone, Debug)]
pub(crate) struct ByKey(Key, Revision);

impl ByKey {
    pub(crate) fn of(version: &Version) -> Self {
        Self(version.key().clone(), version.revision())
    }

    pub(crate) fn key(&self) -> &Key {
        &self.0
    }

    pub(crate) const fn revision(&self) -> Revision {
        self.1
    }
}

/// What can be sought among them: with a key of its own or a borrowed one.
pub(crate) trait Place {
    fn place(&self) -> (&[u8], Reverse<Revision>);
}

impl Place for ByKey {
    fn place(&self) -> (&[u8], Reverse<Revision>) {
        (&self.0, Reverse(self.1))
    }
}

impl Place for (&[u8], Revision) {
    fn place(&self) -> (&[u8], Reverse<Revision>) {
        (self.0, Reverse(self.1))
    }
}

impl Ord for dyn Place + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for dyn Place + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Place + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for dyn Place + '_ {}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for ByKey {}

impl<'a> Borrow<dyn Place + 'a> for ByKey {
    fn borrow(&self) -> &(dyn Place + 'a) {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_gives_back_what_it_was_made_of() {
        let revision = Revision { main: 7, sub: 3 };
        let live = Live { value: b"value", create_revision: 5, version: 2, lease: 9 };
        let version = Version::new(revision, Key::new(b"key"), Some(live));
        assert_eq!((version.revision(), &version.key()[..]), (revision, &b"key"[..]));
        assert_eq!((version.live(), version.weight()), (Some(live), 64 + 8));
        let kv = version.key_value();
        assert_eq!((&kv.key[..], &kv.value[..]), (&b"key"[..], &b"value"[..]));
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (5, 7, 2, 9));
        assert_eq!(kv.value.as_ptr(), version.as_ref().as_ptr(), "not a copy");
    }

    #[test]
    fn a_tombstone_is_a_key_and_a_revision() {
        let version = Version::new(Revision::first_of(7), Key::new(b"key"), None);
        assert_eq!((version.live(), version.lease(), version.len()), (None, 0, 3));
        let expected = KeyValue { key: Bytes::from("key"), mod_revision: 7, ..KeyValue::default() };
        assert_eq!(version.key_value(), expected);
    }

    #[test]
    fn of_one_key_the_newest_comes_first() {
        let at =
            |key: &'static str, main| ByKey(Key::new(key.as_bytes()), Revision::first_of(main));
        let mut places = [at("b", 1), at("a", 2), at("a", 4), at("ab", 3)];
        places.sort();
        let order: Vec<_> = places.iter().map(|it| (&it.key()[..], it.revision().main)).collect();
        let expected: [(&[u8], i64); 4] = [(b"a", 4), (b"a", 2), (b"ab", 3), (b"b", 1)];
        assert_eq!(order, expected);
    }
}
