//! Which keys a request means.

use bytes::Bytes;

/// The keys from `start` on, up to an end that is not included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KeyRange {
    pub(crate) start: Bytes,
    pub(crate) end: RangeEnd,
}

/// Where a range of keys ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum RangeEnd {
    /// After the first key: a request without a range end.
    Single,
    /// Before this key.
    Before(Bytes),
    /// Never: a range end of one zero byte.
    Unbounded,
}

impl KeyRange {
    /// The range of a request.
    pub(crate) fn new(key: &Bytes, range_end: &Bytes) -> Self {
        let end = match range_end.as_ref() {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Unbounded,
            _ => RangeEnd::Before(range_end.clone()),
        };
        Self { start: key.clone(), end }
    }

    /// Whether `key`, which is not before the start, is before the end.
    pub(crate) fn is_before_end(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start.as_ref(),
            RangeEnd::Before(end) => key < end.as_ref(),
            RangeEnd::Unbounded => true,
        }
    }
}
