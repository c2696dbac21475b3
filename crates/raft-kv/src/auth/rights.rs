//! What a user may do with keys: the union of what the roles say.

use bytes::Bytes;

use crate::key_range::{KeyRange, RangeEnd};
use crate::proto::authpb::permission::Type as PermissionType;

/// A stretch of keys. `end` is not included; `None` is no end.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Span {
    start: Bytes,
    end: Option<Bytes>,
}

/// Stretches in order with gaps between them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Spans(Vec<Span>);

impl Spans {
    fn new(mut spans: Vec<Span>) -> Self {
        // Empty ones allow nothing, and must not seem to fill a gap.
        spans.retain(|span| span.end.as_ref().is_none_or(|end| span.start < *end));
        spans.sort_by(|one, other| one.start.cmp(&other.start));
        let mut merged: Vec<Span> = Vec::new();
        for span in spans {
            match merged.last_mut() {
                Some(last) if last.end.as_ref().is_none_or(|end| span.start <= *end) => {
                    last.end = match (last.end.take(), span.end) {
                        (Some(one), Some(other)) => Some(one.max(other)),
                        (None, _) | (_, None) => None,
                    };
                }
                _ => merged.push(span),
            }
        }
        Self(merged)
    }

    /// Whether every key of `wanted` is inside. The stretches have gaps between them, so it must be inside one.
    fn contain(&self, wanted: &Span) -> bool {
        let after = self.0.partition_point(|span| span.start <= wanted.start);
        let Some(span) = after.checked_sub(1).and_then(|place| self.0.get(place)) else {
            return false;
        };
        match (&span.end, &wanted.end) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(end), Some(wanted_end)) => wanted_end <= end && wanted.start < *end,
        }
    }
}

/// The keys of a range. An inverted or empty range has none, but whoever asks for one names its first key, and must
/// have a right to that.
fn span(range: &KeyRange) -> Span {
    let end = match &range.end {
        RangeEnd::Single => Some(successor(&range.start)),
        RangeEnd::Before(end) if *end <= range.start => Some(successor(&range.start)),
        RangeEnd::Before(end) => Some(end.clone()),
        RangeEnd::Unbounded => None,
    };
    Span { start: range.start.clone(), end }
}

/// The first key after `key`.
fn successor(key: &Bytes) -> Bytes {
    [key, &b"\0"[..]].concat().into()
}

/// What a user may do with keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Rights {
    is_root: bool,
    read: Spans,
    write: Spans,
}

impl Rights {
    pub(super) fn new(
        is_root: bool,
        permissions: impl Iterator<Item = (KeyRange, PermissionType)>,
    ) -> Self {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for (range, kind) in permissions {
            let is_empty = matches!(&range.end, RangeEnd::Before(end) if *end <= range.start);
            if is_empty {
                continue;
            }
            let span = span(&range);
            match kind {
                PermissionType::Read => read.push(span),
                PermissionType::Write => write.push(span),
                PermissionType::Readwrite => {
                    read.push(span.clone());
                    write.push(span);
                }
            }
        }
        Self { is_root, read: Spans::new(read), write: Spans::new(write) }
    }

    pub(super) const fn is_root(&self) -> bool {
        self.is_root
    }

    pub(super) fn may_read(&self, range: &KeyRange) -> bool {
        self.is_root || self.read.contain(&span(range))
    }

    pub(super) fn may_write(&self, range: &KeyRange) -> bool {
        self.is_root || self.write.contain(&span(range))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Short keys over a small alphabet, so that they meet; the zero byte is the special one.
    fn key() -> impl Strategy<Value = Bytes> {
        vec(prop_oneof![Just(0_u8), Just(b'a'), Just(b'b')], 1..3).prop_map(Bytes::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (key(), prop_oneof![Just(Bytes::new()), Just(Bytes::from_static(b"\0")), key()])
            .prop_map(|(key, end)| KeyRange::new(&key, &end))
    }

    fn holds(range: &KeyRange, key: &[u8]) -> bool {
        range.start.as_ref() <= key && range.is_before_end(key)
    }

    /// By points, without merging: a gap in what is granted begins where the wanted range begins, or where
    /// something granted ends.
    fn naive(granted: &[KeyRange], wanted: &KeyRange) -> bool {
        let mut points = vec![wanted.start.clone()];
        for range in granted {
            match &range.end {
                RangeEnd::Single => points.push(successor(&range.start)),
                RangeEnd::Before(end) => points.push(end.clone()),
                RangeEnd::Unbounded => {}
            }
        }
        // Of an empty range, its first key.
        points.retain(|point| *point == wanted.start || holds(wanted, point));
        points.iter().all(|point| granted.iter().any(|range| holds(range, point)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn a_range_is_allowed_when_no_key_of_it_is_missing(
            granted in vec(range(), 0..6),
            wanted in range(),
        ) {
            let all = granted.iter().map(|range| (range.clone(), PermissionType::Read));
            let rights = Rights::new(false, all);
            prop_assert_eq!(rights.may_read(&wanted), naive(&granted, &wanted));
            prop_assert!(!rights.may_write(&wanted));
        }
    }

    fn rights(granted: &[(&str, &str)]) -> Rights {
        let granted = granted.iter().map(|(key, end)| {
            let range = KeyRange::new(&key.to_string().into(), &end.to_string().into());
            (range, PermissionType::Readwrite)
        });
        Rights::new(false, granted)
    }

    fn allows(rights: &Rights, key: &str, end: &str) -> bool {
        let range = KeyRange::new(&key.to_owned().into(), &end.to_owned().into());
        assert_eq!(rights.may_read(&range), rights.may_write(&range));
        rights.may_read(&range)
    }

    #[test]
    fn what_touches_is_joined_and_what_does_not_is_not() {
        let joined = rights(&[("a", "b"), ("b", "c")]);
        assert!(allows(&joined, "a", "c") && allows(&joined, "ab", "b5"));
        assert!(!allows(&joined, "a", "c\0") && !allows(&joined, "c", ""));
        let apart = rights(&[("a", "b"), ("b\0", "c")]);
        assert!(!allows(&apart, "a", "c") && !allows(&apart, "b", "") && allows(&apart, "bb", ""));
        let with_point = rights(&[("a", "b"), ("b\0", "c"), ("b", "")]);
        assert!(allows(&with_point, "a", "c"));
    }

    #[test]
    fn only_what_has_no_end_allows_what_has_none() {
        let bounded = rights(&[("a", "\u{7f}")]);
        assert!(!allows(&bounded, "a", "\0") && !allows(&bounded, "z", "\0"));
        let one_key = rights(&[("a", "")]);
        assert!(allows(&one_key, "a", "") && !allows(&one_key, "a", "\0"));
        let unbounded = rights(&[("m", "\0")]);
        assert!(allows(&unbounded, "m", "\0") && allows(&unbounded, "z", ""));
        assert!(!allows(&unbounded, "a", "\0") && !allows(&unbounded, "l", "n"));
        let everything = rights(&[("\0", "\0")]);
        assert!(allows(&everything, "\0", "\0") && allows(&everything, "x", "y"));
    }
}
