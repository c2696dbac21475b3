//! Who watches which keys: found by key without looking at everybody.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::{Filters, Mailbox};
use crate::key_range::{KeyRange, RangeEnd};

/// What one watcher wants of the hub.
#[derive(Clone, Debug)]
pub struct Interest {
    /// Its number within its stream.
    pub(super) watcher: u64,
    pub(super) range: KeyRange,
    pub(super) filters: Filters,
    /// The first revision that it wants.
    pub(super) from: i64,
}

/// One watcher of a group.
#[derive(Debug)]
pub(super) struct Member {
    /// The first revision that it wants.
    pub(super) from: i64,
    pub(super) mailbox: Mailbox,
}

/// Those who watch one range with the same filters, by stream and watcher.
pub(super) type Group = BTreeMap<(u64, u64), Member>;

/// All who watch one range.
pub(super) type Watchers = BTreeMap<Filters, Group>;

/// Every range that is watched.
///
/// Single keys and prefixes, which are nearly all there are, cost a look-up for each event; so does "from this key on"
/// for those whom it concerns. Any other range is looked at for every event.
#[derive(Debug, Default)]
pub(super) struct Interests {
    single: BTreeMap<Bytes, Watchers>,
    /// By the length of the prefix.
    prefix: BTreeMap<usize, BTreeMap<Bytes, Watchers>>,
    unbounded: BTreeMap<Bytes, Watchers>,
    /// By start and end.
    other: BTreeMap<(Bytes, Bytes), Watchers>,
}

/// The first key after all that begin with `prefix`; `None` when there is none.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

impl Interests {
    pub(super) fn is_empty(&self) -> bool {
        self.single.is_empty()
            && self.prefix.is_empty()
            && self.unbounded.is_empty()
            && self.other.is_empty()
    }

    pub(super) fn insert(&mut self, stream: u64, interest: &Interest, mailbox: Mailbox) {
        let Interest { watcher, range, filters, from } = interest;
        let KeyRange { start, end } = range;
        let watchers = match end {
            RangeEnd::Single => self.single.entry(start.clone()).or_default(),
            RangeEnd::Unbounded => self.unbounded.entry(start.clone()).or_default(),
            RangeEnd::Before(end) if prefix_end(start).as_deref() == Some(end) => {
                self.prefix.entry(start.len()).or_default().entry(start.clone()).or_default()
            }
            RangeEnd::Before(end) => self.other.entry((start.clone(), end.clone())).or_default(),
        };
        let group = watchers.entry(*filters).or_default();
        group.insert((stream, *watcher), Member { from: *from, mailbox });
    }

    pub(super) fn remove(&mut self, stream: u64, watcher: u64, range: &KeyRange, filters: Filters) {
        fn remove<K: Ord>(
            map: &mut BTreeMap<K, Watchers>,
            key: &K,
            (filters, member): (Filters, (u64, u64)),
        ) {
            let Some(watchers) = map.get_mut(key) else { return };
            if let Some(group) = watchers.get_mut(&filters) {
                group.remove(&member);
                if group.is_empty() {
                    watchers.remove(&filters);
                }
            }
            if watchers.is_empty() {
                map.remove(key);
            }
        }
        let who = (filters, (stream, watcher));
        let KeyRange { start, end } = range;
        match end {
            RangeEnd::Single => remove(&mut self.single, start, who),
            RangeEnd::Unbounded => remove(&mut self.unbounded, start, who),
            RangeEnd::Before(end) if prefix_end(start).as_deref() == Some(end) => {
                if let Some(prefixes) = self.prefix.get_mut(&start.len()) {
                    remove(prefixes, start, who);
                    if prefixes.is_empty() {
                        self.prefix.remove(&start.len());
                    }
                }
            }
            RangeEnd::Before(end) => remove(&mut self.other, &(start.clone(), end.clone()), who),
        }
    }

    /// Visits everybody who watches `key`, each with a name that is the same for every key of the range.
    pub(super) fn visit<'a>(
        &'a self,
        key: &[u8],
        mut visit: impl FnMut(RangeName<'a>, &'a Watchers),
    ) {
        if let Some((start, watchers)) = self.single.get_key_value(key) {
            visit(RangeName(0, start, &[]), watchers);
        }
        for (length, prefixes) in self.prefix.range(..=key.len()) {
            if let Some((start, watchers)) = prefixes.get_key_value(&key[..*length]) {
                visit(RangeName(1, start, &[]), watchers);
            }
        }
        for (start, watchers) in
            self.unbounded.range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
        {
            visit(RangeName(2, start, &[]), watchers);
        }
        for ((start, end), watchers) in &self.other {
            if start.as_ref() <= key && key < end.as_ref() {
                visit(RangeName(3, start, end), watchers);
            }
        }
    }
}

/// Tells watched ranges apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct RangeName<'a>(u8, &'a [u8], &'a [u8]);

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::mailbox;
    use super::*;

    proptest! {
        #[test]
        fn a_look_up_finds_whom_a_search_through_everybody_finds(
            ranges in vec(("[ab\u{7f}]{1,3}", prop_oneof![Just(String::new()), Just("\0".to_owned()), "[abc]{1,3}"]), 1..30),
            gone in vec(any::<prop::sample::Index>(), 0..10),
            keys in vec("[abc]{1,4}", 1..10),
        ) {
            let mut interests = Interests::default();
            let mut all = BTreeMap::new();
            for (watcher, (start, end)) in (0..).zip(ranges) {
                let start = Bytes::from(start);
                let mut end = Bytes::from(end);
                if watcher % 3 == 0 {
                    end = prefix_end(&start).unwrap().into();
                }
                let range = KeyRange::new(&start, &end);
                let filters = Filters { no_put: watcher % 2 == 0, no_delete: false };
                let interest = Interest { watcher, range: range.clone(), filters, from: 0 };
                interests.insert(1, &interest, mailbox().0);
                all.insert(watcher, (range, filters));
            }
            for index in gone {
                let watcher = index.index(all.len().max(1)) as u64;
                if let Some((range, filters)) = all.remove(&watcher) {
                    interests.remove(1, watcher, &range, filters);
                }
            }
            for key in keys {
                let mut found = Vec::new();
                interests.visit(key.as_bytes(), |_, watchers| {
                    found.extend(watchers.values().flat_map(Group::keys).map(|key| key.1));
                });
                found.sort_unstable();
                let covers = |range: &KeyRange| {
                    range.start.as_ref() <= key.as_bytes() && range.is_before_end(key.as_bytes())
                };
                let expected: Vec<u64> =
                    all.iter().filter(|(_, (range, _))| covers(range)).map(|(watcher, _)| *watcher).collect();
                prop_assert_eq!(found, expected);
            }
            for (watcher, (range, filters)) in all {
                interests.remove(1, watcher, &range, filters);
            }
            prop_assert!(interests.is_empty());
        }
    }
}
