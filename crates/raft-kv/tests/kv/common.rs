//! What the tests of the store share.

use raft_core::{ApplyContext, EntryId, MemorySnapshot, Snapshot, StateMachine};
use raft_kv::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest,
};
use raft_kv::{Command, KvError, Response, Store};

/// Applies one command and publishes it.
pub(crate) fn apply(store: &mut Store, command: Command) -> Result<Response, KvError> {
    let answer = store.apply(ApplyContext::at(EntryId::new(1, 1)), command);
    store.flush();
    answer
}

pub(crate) fn put(key: &str, value: &str) -> Command {
    Command::put(PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    })
}

pub(crate) fn delete(key: &str) -> Command {
    Command::delete_range(DeleteRangeRequest {
        key: key.to_owned().into(),
        ..DeleteRangeRequest::default()
    })
}

pub(crate) fn compact(revision: i64) -> Command {
    Command::compact(CompactionRequest { revision, physical: false })
}

pub(crate) fn range(key: &str, range_end: &str, revision: i64) -> RangeRequest {
    RangeRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        revision,
        ..RangeRequest::default()
    }
}

/// Every key at a revision.
pub(crate) fn everything(revision: i64) -> RangeRequest {
    range("\0", "\0", revision)
}

/// A second store, from a snapshot of the first.
pub(crate) fn restored(store: &Store, segment_bytes: u64) -> Store {
    let mut sink = MemorySnapshot::default();
    store.snapshot().write(&mut sink).expect("a sink in memory");
    let mut other = Store::with_segment_bytes(segment_bytes);
    other.restore(&sink).expect("a sound snapshot");
    other
}
