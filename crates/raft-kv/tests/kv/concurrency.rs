//! Readers beside the writer, compactions and restores.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;

use raft_core::{ApplyContext, EntryId, StateMachine};
use raft_kv::proto::etcdserverpb::request_op::Request;
use raft_kv::proto::etcdserverpb::*;
use raft_kv::{Command, KvError, Reader, Store};

use crate::common::{compact, everything, restored};

const ACCOUNTS: usize = 20;
const REVISIONS: i64 = 4_000;

/// Writes `round` into every account, in one transaction.
fn transfer(round: i64) -> Command {
    let put = |account: usize| {
        Request::RequestPut(PutRequest {
            key: format!("account{account:02}").into(),
            value: round.to_string().into(),
            ..PutRequest::default()
        })
    };
    let success = (0..ACCOUNTS).map(|account| RequestOp { request: Some(put(account)) }).collect();
    Command::txn(TxnRequest { compare: Vec::new(), success, failure: Vec::new() })
}

/// What a reader may see of the accounts: all of one round.
fn check_round(response: &RangeResponse) -> i64 {
    assert_eq!(response.kvs.len(), ACCOUNTS, "{response:?}");
    let first = &response.kvs[0];
    for kv in &response.kvs {
        assert_eq!((&kv.value, kv.mod_revision), (&first.value, first.mod_revision));
    }
    first.mod_revision
}

fn read_on(reader: &Reader, done: &AtomicBool, newest_answered: &AtomicI64) {
    let mut last_seen = 2;
    let mut reads = 0;
    while !done.load(Ordering::SeqCst) || reads == 0 {
        reads += 1;
        // A read that begins after an answer sees at least what was answered.
        let answered = newest_answered.load(Ordering::SeqCst);
        let seen =
            check_round(&reader.range(&everything(0)).expect("the newest is never compacted"));
        assert!(seen >= answered.max(last_seen), "{seen} after {answered} and {last_seen}");
        last_seen = seen;
        // The past is either whole or compacted.
        for back in [1, 7, 60] {
            match reader.range(&everything((seen - back).max(2))) {
                Ok(response) => assert_eq!(check_round(&response), (seen - back).max(2)),
                Err(error) => assert_eq!(error, KvError::Compacted),
            }
        }
        match reader.events((seen - 5).max(2), 3 * ACCOUNTS, usize::MAX) {
            Ok(events) => {
                assert_eq!(events.events.len() % ACCOUNTS, 0, "a revision comes whole");
                assert!(events.events.len() <= 3 * ACCOUNTS);
            }
            Err(error) => assert_eq!(error, KvError::Compacted),
        }
    }
}

#[test]
fn readers_see_whole_revisions_while_the_writer_writes_compacts_and_restores() {
    let mut store = Store::with_segment_bytes(4_096);
    let context = ApplyContext::at(EntryId::new(1, 1));
    store.apply(context, transfer(2)).unwrap();
    store.flush();
    let reader = store.reader();
    let done = AtomicBool::new(false);
    let answered = AtomicI64::new(2);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| read_on(&reader, &done, &answered));
        }
        let finished = Finish(&done);
        for round in 3..REVISIONS {
            store.apply(context, transfer(round)).unwrap();
            if round % 3 == 0 {
                // Also at the newest revision, which readers are about to read.
                let back = if round % 2 == 0 { 0 } else { 20 };
                store.apply(context, compact(store.revision() - back)).ok();
            }
            if round % 5 != 0 {
                store.flush();
                answered.store(round, Ordering::SeqCst);
            }
            if round % 500 == 0 {
                store.flush();
                let other = restored(&store, 4_096);
                assert_eq!(other.digest(), store.digest());
                let mut snapshot = raft_core::MemorySnapshot::default();
                raft_core::Snapshot::write(store.snapshot(), &mut snapshot).unwrap();
                store.restore(&snapshot).unwrap();
            }
        }
        store.flush();
        drop(finished);
    });
    let expected = restored(&store, 4_096);
    while store.compact_slice(usize::MAX) {}
    assert_eq!(store.versions_in_memory(), expected.versions_in_memory());
}

/// Lets the readers end, also when the writer fails.
struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_snapshot_is_of_its_moment_whatever_is_applied_while_it_is_written() {
    let context = ApplyContext::at(EntryId::new(1, 1));
    let mut store = Store::with_segment_bytes(1_024);
    for round in 2..200 {
        store.apply(context, transfer(round)).unwrap();
    }
    store.apply(context, compact(100)).unwrap();
    store.flush();
    let digest = store.digest();
    let picture = store.snapshot();
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let mut sink = raft_core::MemorySnapshot::default();
            raft_core::Snapshot::write(picture, &mut sink).map(|()| sink)
        });
        for round in 200..400 {
            store.apply(context, transfer(round)).unwrap();
            store.apply(context, compact(round)).unwrap();
            store.flush();
        }
        let sink = writer.join().unwrap().unwrap();
        let mut other = Store::with_segment_bytes(1_024);
        other.restore(&sink).unwrap();
        assert_eq!(other.digest(), digest);
    });
}

#[test]
fn a_pinned_revision_stays_readable_until_the_pin_is_dropped() {
    let context = ApplyContext::at(EntryId::new(1, 1));
    let mut store = Store::new();
    for round in 2..50 {
        store.apply(context, transfer(round)).unwrap();
    }
    store.flush();
    let pinned = store.reader().pin(20).unwrap();
    store.apply(context, compact(40)).unwrap();
    store.flush();
    while store.compact_slice(usize::MAX) {}
    assert_eq!(check_round(&pinned.range(&everything(0)).unwrap()), 20);
    assert_eq!(store.reader().range(&everything(20)), Err(KvError::Compacted));
    assert_eq!(store.reader().pin(20).err(), Some(KvError::Compacted));
    let held_back = store.versions_in_memory();
    drop(pinned);
    while store.compact_slice(usize::MAX) {}
    assert!(store.versions_in_memory() < held_back);
    assert_eq!(store.versions_in_memory(), restored(&store, 1_024).versions_in_memory());
}
