//! A key-value store as simple as it can be: what the answers of the real one are compared with.

use std::collections::BTreeMap;

use bytes::Bytes;

/// One operation of a client. Every value is unique.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// Writes a key.
    Put { key: u64, value: Bytes },
    /// Writes a key if it was last changed at this revision; else reads it.
    Swap { key: u64, mod_revision: i64, value: Bytes },
    /// Removes a key.
    Delete { key: u64 },
    /// Reads a key.
    Read { key: u64 },
}

/// What is stored of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Value {
    pub(crate) value: Bytes,
    pub(crate) mod_revision: i64,
    pub(crate) create_revision: i64,
    pub(crate) version: i64,
}

/// What a client is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// Written at this revision.
    Put { revision: i64 },
    /// Whether it was swapped; if not, what is there. At this revision.
    Swap { revision: i64, swapped: bool, found: Option<Value> },
    /// How many keys were deleted, at this revision.
    Delete { revision: i64, deleted: i64 },
    /// What is there at this revision.
    Read { revision: i64, found: Option<Value> },
}

/// The store after every revision.
#[derive(Debug)]
pub(crate) struct Model {
    revision: i64,
    keys: BTreeMap<u64, Value>,
    /// Each key's value from a revision on.
    history: BTreeMap<u64, BTreeMap<i64, Option<Value>>>,
}

impl Default for Model {
    fn default() -> Self {
        Self { revision: 1, keys: BTreeMap::new(), history: BTreeMap::new() }
    }
}

impl Model {
    pub(crate) const fn revision(&self) -> i64 {
        self.revision
    }

    /// Applies a committed operation and says what the client must be told.
    pub(crate) fn apply(&mut self, op: &Op) -> Answer {
        match op {
            Op::Put { key, value } => {
                self.revision += 1;
                self.put(*key, value.clone());
                Answer::Put { revision: self.revision }
            }
            Op::Swap { key, mod_revision, value } => {
                let found = self.keys.get(key).cloned();
                let swapped = found.as_ref().map_or(0, |found| found.mod_revision) == *mod_revision;
                if swapped {
                    self.revision += 1;
                    self.put(*key, value.clone());
                }
                let found = if swapped { None } else { found };
                Answer::Swap { revision: self.revision, swapped, found }
            }
            Op::Delete { key } => {
                let deleted = self.keys.remove(key).is_some();
                if deleted {
                    self.revision += 1;
                    self.history.entry(*key).or_default().insert(self.revision, None);
                }
                Answer::Delete { revision: self.revision, deleted: i64::from(deleted) }
            }
            Op::Read { key } => {
                Answer::Read { revision: self.revision, found: self.keys.get(key).cloned() }
            }
        }
    }

    fn put(&mut self, key: u64, value: Bytes) {
        let before = self.keys.get(&key);
        let value = Value {
            value,
            mod_revision: self.revision,
            create_revision: before.map_or(self.revision, |before| before.create_revision),
            version: before.map_or(0, |before| before.version) + 1,
        };
        self.history.entry(key).or_default().insert(self.revision, Some(value.clone()));
        self.keys.insert(key, value);
    }

    /// What `key` held at `revision`.
    pub(crate) fn at(&self, key: u64, revision: i64) -> Option<&Value> {
        self.history.get(&key)?.range(..=revision).next_back()?.1.as_ref()
    }
}
