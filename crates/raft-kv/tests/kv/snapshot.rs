//! Pictures of the store: written, loaded, compared.

use std::collections::BTreeSet;

use raft_core::{BlobId, MemorySnapshot, Snapshot, SnapshotError, SnapshotSink, StateMachine};
use raft_kv::Store;
use raft_kv::proto::etcdserverpb::AuthRoleAddRequest;

use crate::common::{apply, compact, delete, everything, put, restored};

const SEGMENT_BYTES: u64 = 2_048;

/// A disk that keeps every blob it ever got.
#[derive(Default)]
struct Disk {
    blobs: BTreeSet<BlobId>,
    /// Of the snapshot that is being written.
    names: Vec<BlobId>,
    /// How many of them had to be written.
    written: usize,
}

impl Disk {
    fn checkpoint(&mut self, store: &Store) -> Vec<BlobId> {
        self.names.clear();
        self.written = 0;
        store.snapshot().write(self).unwrap();
        self.names.clone()
    }
}

impl SnapshotSink for Disk {
    fn put(&mut self, content: &[u8]) -> Result<BlobId, SnapshotError> {
        let id = BlobId::of(content);
        self.blobs.insert(id);
        self.names.push(id);
        self.written += 1;
        Ok(id)
    }

    fn reuse(&mut self, id: BlobId) -> Result<bool, SnapshotError> {
        let known = self.blobs.contains(&id);
        if known {
            self.names.push(id);
        }
        Ok(known)
    }
}

/// 2,000 keys; many are never written again.
fn large_store() -> Store {
    let mut store = Store::with_segment_bytes(SEGMENT_BYTES);
    for i in 0..2_000 {
        apply(&mut store, put(&format!("key{i:04}"), "value")).unwrap();
    }
    store
}

#[test]
fn a_restored_store_has_the_same_digest_and_answers_reads_of_history() {
    let mut store = Store::with_segment_bytes(512);
    for i in 0..200 {
        apply(&mut store, put(&format!("key{}", i % 17), &format!("value{i}"))).unwrap();
    }
    apply(&mut store, delete("key3")).unwrap();
    apply(&mut store, compact(60)).unwrap();
    let other = restored(&store, 512);
    assert_eq!(store.digest(), other.digest());
    assert_eq!(store.logical_size(), other.logical_size());
    assert_eq!(store.revision(), other.revision());
    for revision in 60..=store.revision() {
        let all = everything(revision);
        assert_eq!(store.reader().range(&all), other.reader().range(&all));
    }
}

#[test]
fn a_reader_goes_on_with_the_restored_state() {
    let mut store = Store::new();
    let reader = store.reader();
    let mut source = MemorySnapshot::default();
    large_store().snapshot().write(&mut source).unwrap();
    store.restore(&source).unwrap();
    assert_eq!(reader.range(&everything(0)).unwrap().count, 2_000);
    apply(&mut store, put("new", "")).unwrap();
    assert_eq!(reader.range(&everything(0)).unwrap().count, 2_001);
}

#[test]
fn a_checkpoint_writes_only_what_is_new_since_the_last_one() {
    let mut store = large_store();
    let mut disk = Disk::default();
    let first = disk.checkpoint(&store);
    assert!(first.len() > 50, "{} segments", first.len());
    assert_eq!(disk.written, first.len());

    apply(&mut store, put("one", "more")).unwrap();
    let second = disk.checkpoint(&store);
    assert!(disk.written <= 3, "{} blobs for one new key", disk.written);
    assert_eq!(second[..first.len() - 2], first[..first.len() - 2]);
}

#[test]
fn a_compaction_changes_only_the_segments_that_it_takes_something_from() {
    let mut store = large_store();
    let mut disk = Disk::default();
    disk.checkpoint(&store);
    // What replaces them stands at the end of history.
    for i in [300, 301, 1_200] {
        apply(&mut store, put(&format!("key{i:04}"), "again")).unwrap();
    }
    disk.checkpoint(&store);
    let revision = store.revision();
    apply(&mut store, compact(revision)).unwrap();
    let names = disk.checkpoint(&store);
    assert!(disk.written < 10, "{} of {} blobs are new", disk.written, names.len());
    assert_eq!(names, Disk::default().checkpoint(&restored(&store, SEGMENT_BYTES)));
}

#[test]
fn members_write_the_same_blobs_whatever_they_did_before() {
    let mut often = Store::with_segment_bytes(SEGMENT_BYTES);
    let mut never = Store::with_segment_bytes(SEGMENT_BYTES);
    let mut disk = Disk::default();
    for i in 0..1_000_i64 {
        let mut commands = vec![put(&format!("key{}", i % 300), &i.to_string())];
        if i % 150 == 0 {
            commands.push(delete(&format!("key{}", i % 7)));
            commands.push(compact(i / 2));
        }
        for command in commands {
            let answers = (apply(&mut often, command.clone()), apply(&mut never, command));
            assert_eq!(answers.0, answers.1);
        }
        if i % 90 == 0 {
            disk.checkpoint(&often);
            often = restored(&often, SEGMENT_BYTES);
        }
        if i % 40 == 0 {
            disk.checkpoint(&often);
        }
    }
    assert_eq!(disk.checkpoint(&often), Disk::default().checkpoint(&never));
    assert_eq!(often.digest(), never.digest());
}

#[test]
fn every_change_of_the_state_changes_the_digest() {
    let user = |name: &str, hash: &'static str| {
        raft_kv::Command::user_add(name.to_owned(), Some(hash.into()))
    };
    let role =
        |name: &str| raft_kv::Command::role_add(AuthRoleAddRequest { name: name.to_owned() });
    let digest = |commands: Vec<raft_kv::Command>| {
        let mut store = Store::new();
        for command in commands {
            apply(&mut store, command).unwrap();
        }
        store.digest().0
    };
    let digests = BTreeSet::from([
        digest(vec![]),
        digest(vec![put("a", "1")]),
        digest(vec![put("a", "2")]),
        digest(vec![put("b", "1")]),
        digest(vec![put("a", "1"), put("a", "1")]),
        digest(vec![put("a", "1"), delete("a")]),
        digest(vec![put("a", "1"), compact(1)]),
        digest(vec![put("a", "1"), compact(2)]),
        digest(vec![user("a", "1")]),
        digest(vec![user("a", "2")]),
        digest(vec![user("b", "1")]),
        digest(vec![role("a")]),
    ]);
    assert_eq!(digests.len(), 12);
}
