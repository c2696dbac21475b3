//! Pictures of the store: written, loaded, compared.

use crate::common::{apply, compact, delete, put, range};
use raft_core::{MemorySnapshot, Snapshot, StateMachine};
use raft_kv::Store;

fn restored(store: &Store) -> Store {
    let mut sink = MemorySnapshot::default();
    store.snapshot().write(&mut sink).expect("a sound snapshot");
    let mut other = Store::with_segment_bytes(512);
    other.restore(&sink).expect("a sound snapshot");
    other
}

#[test]
fn a_restored_store_has_the_same_digest_and_answers_reads_of_history() {
    let mut store = Store::with_segment_bytes(512);
    for i in 0..200 {
        apply(&mut store, put(&format!("key{}", i % 17), &format!("value{i}"))).unwrap();
    }
    apply(&mut store, delete("key3")).unwrap();
    apply(&mut store, compact(60)).unwrap();
    let other = restored(&store);
    assert_eq!(store.digest(), other.digest());
    assert_eq!(store.logical_size(), other.logical_size());
    assert_eq!(store.revision(), other.revision());
    for revision in 60..=store.revision() {
        let all = range("\0", "\0", revision);
        assert_eq!(store.reader().range(&all), other.reader().range(&all));
    }
}
