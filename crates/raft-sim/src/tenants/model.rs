//! What the store must hold, as simple as it can be: keys, their history as events, leases and what compaction leaves.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft_core::Term;
use raft_kv::proto::mvccpb::{Event, KeyValue, event::EventType};
use raft_kv::{Expiry, KvError};

/// One operation that is committed.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Op {
    /// Writes a key, for as long as the lease lives; 0 for none.
    Put {
        key: u64,
        value: Bytes,
        lease: i64,
    },
    /// Writes several keys in one revision.
    Several {
        keys: Vec<u64>,
        value: Bytes,
    },
    /// Removes the keys from the first to before the second, in one revision.
    Delete {
        from: u64,
        to: u64,
    },
    /// Forgets what was before this revision.
    Compact {
        revision: i64,
        physical: bool,
    },
    /// Begins a lease of so many seconds.
    Grant {
        id: i64,
        ttl: i64,
    },
    Renew {
        id: i64,
    },
    Revoke {
        id: i64,
    },
    /// A leader of this term finds that these leases are over.
    Expire {
        term: Term,
        leases: Vec<Expiry>,
    },
}

/// What whoever asked is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Done {
    /// The revision is now this.
    Wrote(i64),
    /// So many keys are gone, at this revision.
    Deleted(i64, i64),
    /// A lease of this id has so many seconds.
    Granted(i64, i64),
    /// It has so many seconds from now on, 0 when it is gone.
    Renewed(i64),
    /// These ended.
    Expired(Vec<i64>),
}

#[derive(Debug, Default)]
struct Lease {
    ttl: i64,
    renewals: u64,
    keys: BTreeSet<Bytes>,
}

/// The store after everything that is committed.
#[derive(Debug)]
pub(super) struct Model {
    revision: i64,
    compacted: i64,
    keys: BTreeMap<Bytes, KeyValue>,
    /// Each key from a revision on.
    history: BTreeMap<Bytes, BTreeMap<i64, Option<KeyValue>>>,
    /// Everything that happened, with what was there before; those of one revision stand together.
    events: Vec<Event>,
    leases: BTreeMap<i64, Lease>,
}

/// A key's name: those of higher numbers come later.
pub(super) fn name(key: u64) -> Bytes {
    Bytes::from(format!("k{key:03}"))
}

/// The revision that an event belongs to.
pub(super) fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

impl Model {
    pub(super) const fn new() -> Self {
        Self {
            revision: 1,
            compacted: -1,
            keys: BTreeMap::new(),
            history: BTreeMap::new(),
            events: Vec::new(),
            leases: BTreeMap::new(),
        }
    }

    pub(super) const fn revision(&self) -> i64 {
        self.revision
    }

    /// Below this, history is forgotten; -1 before the first time.
    pub(super) const fn compacted(&self) -> i64 {
        self.compacted
    }

    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    pub(super) fn has_lease(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// All leases that there are.
    pub(super) fn leases(&self) -> impl Iterator<Item = i64> {
        self.leases.keys().copied()
    }

    /// All keys as they were at this revision.
    pub(super) fn at(&self, revision: i64) -> Vec<KeyValue> {
        let newest = self.history.values().filter_map(|versions| {
            versions.range(..=revision).next_back().and_then(|(_, found)| found.clone())
        });
        newest.collect()
    }

    /// Applies what is committed in this term.
    pub(super) fn apply(&mut self, op: &Op, term: Term) -> Result<Done, KvError> {
        match op {
            Op::Put { lease, .. } if *lease != 0 && !self.has_lease(*lease) => {
                Err(KvError::LeaseNotFound)
            }
            Op::Put { key, value, lease } => {
                self.revision += 1;
                self.put(name(*key), value.clone(), *lease);
                Ok(Done::Wrote(self.revision))
            }
            Op::Several { keys, value } => {
                self.revision += 1;
                for key in keys {
                    self.put(name(*key), value.clone(), 0);
                }
                Ok(Done::Wrote(self.revision))
            }
            Op::Delete { from, to } => {
                let found: Vec<Bytes> =
                    self.keys.range(name(*from)..name(*to)).map(|(key, _)| key.clone()).collect();
                self.delete(&found);
                Ok(Done::Deleted(self.revision, i64::try_from(found.len()).unwrap_or(i64::MAX)))
            }
            Op::Compact { revision, .. } if *revision <= self.compacted => Err(KvError::Compacted),
            Op::Compact { revision, .. } if *revision > self.revision => {
                Err(KvError::FutureRevision)
            }
            Op::Compact { revision, .. } => {
                self.compacted = *revision;
                Ok(Done::Wrote(self.revision))
            }
            Op::Grant { id, .. } if self.has_lease(*id) => Err(KvError::LeaseExists),
            Op::Grant { id, ttl } => {
                self.leases.insert(*id, Lease { ttl: *ttl, ..Lease::default() });
                Ok(Done::Granted(*id, *ttl))
            }
            Op::Renew { id } => {
                let lease = self.leases.get_mut(id);
                Ok(Done::Renewed(lease.map_or(0, |lease| {
                    lease.renewals += 1;
                    lease.ttl
                })))
            }
            Op::Revoke { id } if !self.has_lease(*id) => Err(KvError::LeaseNotFound),
            Op::Revoke { id } => {
                self.end(*id);
                Ok(Done::Wrote(self.revision))
            }
            Op::Expire { term: of, leases } => {
                // What a deposed leader or one that knows of too few renewals says is void.
                let is_over = |over: &&Expiry| {
                    let lease = self.leases.get(&over.id).filter(|_| *of == term);
                    lease.is_some_and(|lease| lease.renewals == over.renewals)
                };
                let ended: Vec<i64> = leases.iter().filter(is_over).map(|over| over.id).collect();
                for id in &ended {
                    self.end(*id);
                }
                Ok(Done::Expired(ended))
            }
        }
    }

    fn put(&mut self, key: Bytes, value: Bytes, lease: i64) {
        let before = self.keys.get(&key).cloned();
        let kv = KeyValue {
            key: key.clone(),
            create_revision: before.as_ref().map_or(self.revision, |kv| kv.create_revision),
            mod_revision: self.revision,
            version: before.as_ref().map_or(0, |kv| kv.version) + 1,
            value,
            lease,
        };
        self.detach(before.as_ref());
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.keys.insert(key.clone());
        }
        self.history.entry(key.clone()).or_default().insert(self.revision, Some(kv.clone()));
        self.keys.insert(key, kv.clone());
        self.happens(EventType::Put, kv, before);
    }

    /// All at one revision, if there are any.
    fn delete(&mut self, keys: &[Bytes]) {
        if !keys.is_empty() {
            self.revision += 1;
        }
        for key in keys {
            let before = self.keys.remove(key);
            self.detach(before.as_ref());
            self.history.entry(key.clone()).or_default().insert(self.revision, None);
            let (key, mod_revision) = (key.clone(), self.revision);
            let kv = KeyValue { key, mod_revision, ..KeyValue::default() };
            self.happens(EventType::Delete, kv, before);
        }
    }

    fn detach(&mut self, before: Option<&KeyValue>) {
        if let Some(before) = before
            && let Some(lease) = self.leases.get_mut(&before.lease)
        {
            lease.keys.remove(&before.key);
        }
    }

    fn end(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            let keys: Vec<Bytes> = lease.keys.into_iter().collect();
            self.delete(&keys);
        }
    }

    fn happens(&mut self, kind: EventType, kv: KeyValue, prev_kv: Option<KeyValue>) {
        self.events.push(Event { r#type: i32::from(kind), kv: Some(kv), prev_kv });
    }
}
