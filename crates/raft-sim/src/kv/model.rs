//! A key-value store as simple as it can be: what the answers of the real one are compared with.

use std::collections::BTreeMap;

use bytes::Bytes;

/// One operation of a client. Every value is unique.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Op {
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
pub(super) struct Value {
    pub(super) value: Bytes,
    pub(super) mod_revision: i64,
    pub(super) create_revision: i64,
    pub(super) version: i64,
}

/// What a client is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// Written at this revision.
    Put { revision: i64 },
    /// Whether it was swapped; if not, what is there. At this revision.
    Swap { revision: i64, swapped: bool, found: Option<Value> },
    /// How many keys were deleted, at this revision.
    Delete { revision: i64, deleted: i64 },
}

/// The store after every revision.
#[derive(Debug)]
pub(super) struct Model {
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
    pub(super) const fn revision(&self) -> i64 {
        self.revision
    }

    /// When this key was last changed; 0 if it does not exist.
    pub(super) fn mod_revision(&self, key: u64) -> i64 {
        self.keys.get(&key).map_or(0, |value| value.mod_revision)
    }

    /// Applies a committed operation and says what the client must be told.
    ///
    /// # Panics
    /// On a read, which is never committed.
    pub(super) fn apply(&mut self, op: &Op) -> Answer {
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
            Op::Read { key } => panic!("a read of key {key} was committed"),
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
    pub(super) fn at(&self, key: u64, revision: i64) -> Option<&Value> {
        self.history.get(&key)?.range(..=revision).next_back()?.1.as_ref()
    }
}
