//! The store as its clients are promised it: one operation at a time.

use std::collections::BTreeMap;

use super::{Compare, Key, Request, Response, Stored, Value};

/// Keys and the revision that counts changes.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub(super) revision: u64,
    stored: BTreeMap<Key, Stored>,
    /// What the keys held that were changed since [`record`](Self::record), oldest first.
    undo: Option<Vec<(Key, Option<Stored>)>>,
    /// Changes with every change and back with its undoing.
    pub(super) fingerprint: u128,
}

impl Store {
    pub(super) fn new(revision: u64) -> Self {
        Self { revision, stored: BTreeMap::new(), undo: None, fingerprint: 0 }
    }

    /// From now on changes can be undone.
    pub(super) fn record(&mut self) {
        self.undo.get_or_insert_default();
    }

    /// How many changes can be undone.
    pub(super) fn recorded(&self) -> usize {
        self.undo.as_ref().map_or(0, Vec::len)
    }

    /// Goes back to when `recorded` was that long and `revision` the revision.
    pub(super) fn rewind(&mut self, recorded: usize, revision: u64) {
        while self.recorded() > recorded {
            if let Some((key, old)) = self.undo.as_mut().and_then(Vec::pop) {
                self.set(key, old);
            }
        }
        self.revision = revision;
    }

    /// What exists, without revisions.
    pub(super) fn values(&self) -> Vec<(Key, Value)> {
        self.stored.iter().map(|(key, stored)| (*key, stored.value)).collect()
    }

    /// What would be answered; nothing changes.
    pub(super) fn answer(&self, request: &Request) -> Response {
        match request {
            Request::Get(key) => Response::Get(self.stored.get(key).copied()),
            Request::Put(..) => Response::Put,
            Request::Delete(key) => Response::Delete(self.stored.contains_key(key)),
            Request::Txn(..) => self.clone().apply(request),
        }
    }

    fn set(&mut self, key: Key, new: Option<Stored>) -> Option<Stored> {
        let old = match new {
            Some(stored) => self.stored.insert(key, stored),
            None => self.stored.remove(&key),
        };
        if self.undo.is_some() {
            for stored in [old, new].into_iter().flatten() {
                self.fingerprint ^=
                    fingerprint([u64::from(key.0), stored.value.0, stored.mod_revision]);
            }
        }
        old
    }

    fn change(&mut self, key: Key, new: Option<Stored>) -> Option<Stored> {
        let old = self.set(key, new);
        if let Some(undo) = &mut self.undo {
            undo.push((key, old));
        }
        old
    }

    /// Does what was asked. Makes a revision if that changes anything.
    pub(super) fn apply(&mut self, request: &Request) -> Response {
        let next = self.revision + 1;
        let response = self.execute(request, next);
        if response.changed() {
            self.revision = next;
        }
        response
    }

    fn execute(&mut self, request: &Request, revision: u64) -> Response {
        match request {
            Request::Get(key) => Response::Get(self.stored.get(key).copied()),
            Request::Put(key, value) => {
                self.change(*key, Some(Stored { value: *value, mod_revision: revision }));
                Response::Put
            }
            Request::Delete(key) => {
                let existed = self.stored.contains_key(key);
                if existed {
                    self.change(*key, None);
                }
                Response::Delete(existed)
            }
            Request::Txn(compares, then, otherwise) => {
                let holds = compares.iter().all(|compare| self.holds(compare));
                let list = if holds { then } else { otherwise };
                Response::Txn(holds, list.iter().map(|r| self.execute(r, revision)).collect())
            }
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Value(key, value) => self.stored.get(key).map(|s| s.value) == *value,
            Compare::ModRevision(key, revision) => {
                self.stored.get(key).map_or(0, |s| s.mod_revision) == *revision
            }
        }
    }
}

/// 128 bits in which words leave a trace that no other words leave, but by an accident that does not happen.
pub(super) fn fingerprint<const N: usize>(words: [u64; N]) -> u128 {
    let mix = |seed: u64| {
        words.iter().fold(seed, |hash, word| {
            let mut z = (hash ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        })
    };
    (u128::from(mix(0x243F_6A88_85A3_08D3)) << 64) | u128::from(mix(0x1319_8A2E_0370_7344))
}
