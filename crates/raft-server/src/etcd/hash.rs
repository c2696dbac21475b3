//! One number for everything that is stored, equal on all members that have applied the same.
//!
//! It is etcd's HashKV: CRC-32C over the versions as etcd's database has them. So a member and an etcd that hold the same
//! history, compacted at the same revision, have the same number, and snapshots can be compared with either.

use prost::Message as _;
use raft_kv::{KvError, Reader};

use crate::db::{HashKv, revision_key};

/// How often a compaction may overtake the work before it is given up.
const TRIES: usize = 16;

/// The number and what it covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hash {
    pub(crate) hash: u32,
    /// Everything up to here.
    pub(crate) revision: i64,
    /// From here on; -1 before the first compaction.
    pub(crate) compact_revision: i64,
}

/// Hashes everything up to `revision`, or up to the present one when that is not positive. Takes time
/// proportional to the store: not for an async task.
///
/// # Errors
/// A revision that is compacted or not there yet.
pub(crate) fn hash(reader: &Reader, revision: i64) -> Result<Hash, KvError> {
    for _ in 1..TRIES {
        match hash_once(reader, revision) {
            // Overtaken, unless it is about the revision that was asked for.
            Err(KvError::Compacted) if revision <= 0 || revision >= reader.compact_revision() => {}
            result => return result,
        }
    }
    hash_once(reader, revision)
}

fn hash_once(reader: &Reader, revision: i64) -> Result<Hash, KvError> {
    let revision = if revision <= 0 { reader.revision() } else { revision };
    let mut hash = HashKv::new();
    let compact_revision = reader.visit_hashed(revision, |version| {
        let key = revision_key(version.main, version.sub, version.deleted);
        hash.add(&key, &version.kv.encode_to_vec());
    })?;
    Ok(Hash { hash: hash.get(), revision, compact_revision })
}

#[cfg(test)]
mod tests {
    use raft::core::{ApplyContext, EntryId, StateMachine as _};
    use raft_kv::proto::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest};
    use raft_kv::{Command, Store};

    use super::*;

    fn store(commands: impl IntoIterator<Item = Command>) -> Store {
        let mut store = Store::new();
        for (index, command) in (1..).zip(commands) {
            store.apply(ApplyContext::at(EntryId::new(1, index)), command).unwrap();
            store.flush();
        }
        store
    }

    fn put(key: &str, value: &str) -> Command {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        Command::put(PutRequest { key, value, ..PutRequest::default() })
    }

    fn delete(key: &str) -> Command {
        let key = key.to_owned().into();
        Command::delete_range(DeleteRangeRequest { key, ..DeleteRangeRequest::default() })
    }

    fn compact(revision: i64) -> Command {
        Command::compact(CompactionRequest { revision, physical: false })
    }

    #[test]
    fn the_same_history_has_the_same_number_and_another_has_not() {
        let history = || [put("a", "1"), put("b", "2"), delete("a"), put("a", "3")];
        let (one, two) = (store(history()), store(history()));
        let first = hash(&one.reader(), 0).unwrap();
        assert_eq!(hash(&two.reader(), 0), Ok(first));
        assert_eq!((first.revision, first.compact_revision), (5, -1));
        let mut other = history();
        other[3] = put("a", "4");
        assert_ne!(hash(&store(other).reader(), 0).unwrap().hash, first.hash);
        // A number of the past does not change when history goes on.
        let longer = store(history().into_iter().chain([put("c", "5")]));
        assert_eq!(hash(&longer.reader(), 5), Ok(first));
    }

    #[test]
    fn compaction_counts_from_its_own_revision_on() {
        let many = (0..3000).map(|n| put(&format!("key-{n:05}"), "v"));
        let compacted = store(many.chain([put("key-00000", "w"), compact(3001)]));
        let found = hash(&compacted.reader(), 0).unwrap();
        assert_eq!((found.revision, found.compact_revision), (3002, 3001));
        assert_eq!(hash(&compacted.reader(), 3000), Err(KvError::Compacted));
        assert_eq!(hash(&compacted.reader(), 3003), Err(KvError::FutureRevision));
        assert_ne!(hash(&compacted.reader(), 3001).unwrap().hash, found.hash);
    }
}
