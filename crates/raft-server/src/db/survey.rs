//! What a first look through a database finds: how far its history is whole, what of it is kept, and its numbers.

use std::collections::HashMap;

use raft::core::StateMachine as _;
use raft_kv::auth::AuthState;
use raft_kv::{LeaseRecord, Reader, Store};

use super::HashKv;
use super::read::{Stored, Wishes};
use crate::bbolt::ReadError;
use crate::etcd::hash;

/// What can be compared of two states.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Totals {
    /// The newest revision.
    pub(crate) revision: i64,
    /// The compacted one; -1 for none.
    pub(crate) compact_revision: i64,
    /// Keys that are there at the newest revision.
    pub(crate) keys: u64,
    /// etcd's HashKV of all of it.
    pub(crate) hash: u32,
    pub(crate) leases: usize,
    pub(crate) users: usize,
    pub(crate) roles: usize,
    /// Whether permissions are demanded.
    pub(crate) auth_enabled: bool,
}

impl Totals {
    /// Those of a store, which nobody changes meanwhile.
    pub(crate) fn of_store(store: &Store) -> Self {
        let (reader, picture) = (store.reader(), store.snapshot());
        let auth = picture.auth();
        let hash = hash::hash(&reader, 0);
        Self {
            revision: reader.revision(),
            compact_revision: reader.compact_revision(),
            keys: count(&reader),
            hash: hash.map_or(0, |hash| hash.hash),
            leases: picture.leases().len(),
            users: auth.users().count(),
            roles: auth.roles().count(),
            auth_enabled: auth.is_enabled(),
        }
    }
}

fn count(reader: &Reader) -> u64 {
    let everything = bytes::Bytes::from_static(b"\0");
    let request = raft_kv::proto::etcdserverpb::RangeRequest {
        key: everything.clone(),
        range_end: everything,
        count_only: true,
        ..Default::default()
    };
    let answer = reader.range(&request);
    answer.map_or(0, |answer| u64::try_from(answer.count).unwrap_or(0))
}

/// Where a key was written.
type Place = (i64, u32);

/// What is known of a key: the newest version of all, and of those that the compacted revision sees.
#[derive(Clone, Copy, Default)]
struct Newest {
    at: Place,
    deleted: bool,
    compacted: Place,
    compacted_deleted: bool,
}

/// The result of looking through all versions.
#[derive(Debug)]
pub(super) struct Survey {
    revision: i64,
    compact_revision: i64,
    /// By the database itself.
    said_compacted: i64,
    keys: u64,
    hash: u32,
    /// Versions before the compacted revision that nobody can read, in order.
    garbage: Vec<Place>,
}

/// Goes over all versions.
type Each<'a> = &'a mut dyn FnMut(
    &mut dyn FnMut(u64, u64),
    &mut dyn FnMut(&Stored<'_>),
) -> Result<(), ReadError>;

impl Survey {
    pub(super) fn of(
        each: Each<'_>,
        said_compacted: i64,
        wishes: Wishes,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, ReadError> {
        let mut order = Order { whole_from: said_compacted, last: None };
        let mut newest: HashMap<u128, Newest> = HashMap::new();
        // Half of the way each.
        each(&mut |at, of| progress(at / 2, of), &mut |stored| order.see(stored))?;
        let revision = order.last.map_or(1, |(main, _)| main).max(said_compacted).max(1);
        let revision = revision.saturating_add(wishes.bump_revision);
        let compact_revision = if wishes.bump_revision > 0 { revision } else { order.whole_from };
        if revision > i64::MAX >> 2 {
            return Err(ReadError::Refused(format!("the revision {revision} is too large")));
        }
        each(&mut |at, of| progress(at / 4 + of / 2, of), &mut |stored| {
            if stored.kv.key.is_empty() {
                return;
            }
            let known = newest.entry(xxhash_rust::xxh3::xxh3_128(&stored.kv.key)).or_default();
            (known.at, known.deleted) = ((stored.main, stored.sub), stored.deleted);
            if stored.main <= compact_revision {
                (known.compacted, known.compacted_deleted) = (known.at, known.deleted);
            }
        })?;
        let keys = newest.values().filter(|it| !it.deleted).count();
        let mut survey = Self {
            revision,
            compact_revision,
            said_compacted,
            keys: u64::try_from(keys).unwrap_or(u64::MAX),
            hash: 0,
            garbage: Vec::new(),
        };
        let mut hash = HashKv::new();
        each(&mut |at, of| progress(at / 4 + of / 4 * 3, of), &mut |stored| {
            let place = (stored.main, stored.sub);
            let known = newest.get(&xxhash_rust::xxh3::xxh3_128(&stored.kv.key));
            let known = known.copied().unwrap_or_default();
            let is_seen = known.compacted == place && !known.compacted_deleted;
            if stored.main < compact_revision && !is_seen {
                survey.garbage.push(place);
            }
            // As etcd: what the newest revision still sees of what is compacted, or all of it when that sees nothing.
            let is_covered = stored.main > compact_revision
                || !stored.deleted && if keys == 0 { is_seen } else { known.at == place };
            if is_covered && !stored.kv.key.is_empty() {
                hash.add(stored.raw_key, stored.raw_value);
            }
        })?;
        survey.hash = hash.get();
        Ok(survey)
    }

    pub(super) const fn revision(&self) -> i64 {
        self.revision
    }

    pub(super) const fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    pub(super) fn whole_from(&self) -> Option<i64> {
        let is_less = self.compact_revision > self.said_compacted;
        (is_less && self.compact_revision < self.revision).then_some(self.compact_revision)
    }

    /// Whether anybody can read this version. One without a key only marks a revision.
    pub(super) fn keeps(&self, stored: &Stored<'_>) -> bool {
        let place = (stored.main, stored.sub);
        !stored.kv.key.is_empty() && self.garbage.binary_search(&place).is_err()
    }

    pub(super) fn totals(&self, leases: &[LeaseRecord], auth: &AuthState) -> Totals {
        Totals {
            revision: self.revision,
            compact_revision: self.compact_revision,
            keys: self.keys,
            hash: self.hash,
            leases: leases.len(),
            users: auth.users().count(),
            roles: auth.roles().count(),
            auth_enabled: auth.is_enabled(),
        }
    }
}

/// Follows history: every revision leaves something, or it was not etcd that went from one to the next.
struct Order {
    /// From here on nothing is missing, as far as was seen.
    whole_from: i64,
    last: Option<Place>,
}

impl Order {
    fn see(&mut self, stored: &Stored<'_>) {
        let (main, sub) = (stored.main, stored.sub);
        let compacted = self.whole_from.max(1);
        if main > compacted {
            let (last_main, last_sub) = match self.last {
                Some(last) if last.0 > compacted => last,
                Some(_) | None => (compacted, u32::MAX),
            };
            let follows = if main == last_main {
                last_sub.checked_add(1) == Some(sub)
            } else {
                main == last_main + 1 && sub == 0
            };
            if !follows || stored.kv.key.is_empty() {
                self.whole_from = main;
            }
        }
        self.last = Some((main, sub));
    }
}
