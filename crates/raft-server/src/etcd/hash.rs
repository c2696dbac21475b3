//! One number for everything that is stored, equal on all members that have applied the same.
//!
//! It is CRC-32C over what can be read: the keys that were present at the compacted revision, then every event
//! since, in order. How a member keeps it in memory or on disk makes no difference. Not etcd's number.

use bytes::Bytes;
use raft_kv::proto::etcdserverpb::RangeRequest;
use raft_kv::proto::mvccpb::KeyValue;
use raft_kv::{KvError, Reader};

/// Keys or events looked at in one go.
const SLICE: usize = 1024;
/// How often a compaction may overtake the work before it is given up.
const TRIES: usize = 16;

/// The number and what it covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hash {
    pub(super) hash: u32,
    /// Everything up to here.
    pub(super) revision: i64,
    /// From here on; -1 before the first compaction.
    pub(super) compact_revision: i64,
}

/// Hashes everything up to `revision`, or up to the present one when that is not positive. Takes time
/// proportional to the store: not for an async task.
///
/// # Errors
/// A revision that is compacted or not there yet.
pub(super) fn hash(reader: &Reader, revision: i64) -> Result<Hash, KvError> {
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
    let compact_revision = reader.compact_revision();
    let present = reader.revision();
    let revision = if revision <= 0 { present } else { revision };
    if revision > present {
        return Err(KvError::FutureRevision);
    }
    if revision < compact_revision {
        return Err(KvError::Compacted);
    }
    let mut hash = 0;
    let mut next = 0;
    if compact_revision > 0 {
        hash = hash_keys(reader, compact_revision)?;
        next = compact_revision + 1;
    }
    while next <= revision {
        let slice = reader.events(next, SLICE, usize::MAX)?;
        for event in &slice.events {
            let Some(kv) = &event.kv else { continue };
            if kv.mod_revision > revision {
                break;
            }
            hash = append(hash, event.r#type, kv);
        }
        if slice.next <= next {
            break;
        }
        next = slice.next;
    }
    Ok(Hash { hash, revision, compact_revision })
}

/// Hashes the keys that are present at `revision`.
fn hash_keys(reader: &Reader, revision: i64) -> Result<u32, KvError> {
    let pinned = reader.pin(revision)?;
    let mut hash = 0;
    let mut from = Bytes::from_static(b"\0");
    loop {
        let request = RangeRequest {
            key: from.clone(),
            range_end: Bytes::from_static(b"\0"),
            limit: i64::try_from(SLICE).unwrap_or(i64::MAX),
            ..RangeRequest::default()
        };
        let answer = pinned.range(&request)?;
        for kv in &answer.kvs {
            hash = append(hash, -1, kv);
        }
        let Some(last) = answer.kvs.last().filter(|_| answer.more) else {
            return Ok(hash);
        };
        // The first key after it.
        from = [&last.key[..], b"\0"].concat().into();
    }
}

fn append(mut hash: u32, kind: i32, kv: &KeyValue) -> u32 {
    hash = crc32c::crc32c_append(hash, &kind.to_le_bytes());
    for number in [kv.mod_revision, kv.create_revision, kv.version, kv.lease] {
        hash = crc32c::crc32c_append(hash, &number.to_le_bytes());
    }
    for bytes in [&kv.key, &kv.value] {
        hash = crc32c::crc32c_append(hash, &bytes.len().to_le_bytes());
        hash = crc32c::crc32c_append(hash, bytes);
    }
    hash
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
