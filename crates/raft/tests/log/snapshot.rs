//! Snapshots on disk and on their way.

use bytes::Bytes;
use raft::log::snapshot::{SnapshotEffect, SnapshotRequest, SnapshotStore, SnapshotWorker};
use raft::message::SnapshotMessage;
use raft_core::{
    BlobId, Digest, EntryId, Index, MemorySnapshot, NodeId, SendSnapshot, Snapshot, SnapshotError,
    SnapshotMeta, SnapshotSink, SnapshotSource, Term,
};
use raft_sim::{Crash, SimDisk};

use crate::support::{dir, formed};

/// A picture that writes these blobs.
pub(crate) struct Picture(Vec<Vec<u8>>);

impl Snapshot for Picture {
    fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        for blob in self.0 {
            if !sink.reuse(BlobId::of(&blob))? {
                sink.put(&blob)?;
            }
        }
        Ok(())
    }
}

fn meta(index: u64) -> SnapshotMeta {
    let last_included = EntryId::new(index, 2);
    SnapshotMeta { last_included, digest: Digest(u128::from(index)), membership: formed(3).members }
}

fn blob(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 251).unwrap() ^ seed).collect()
}

fn worker(disk: &SimDisk) -> SnapshotWorker<SimDisk> {
    SnapshotWorker::new(SnapshotStore::open(disk.clone(), &dir()).unwrap(), 0)
}

fn leader() -> NodeId {
    NodeId::new(1, 1)
}

fn follower() -> NodeId {
    NodeId::new(2, 2)
}

type Request = SnapshotRequest<Picture>;

/// Delivers messages between the two until nothing is left, or `chunks` chunks were delivered.
fn deliver(
    sender: &mut SnapshotWorker<SimDisk>,
    receiver: &mut SnapshotWorker<SimDisk>,
    first: Vec<SnapshotEffect>,
    mut chunks: usize,
) -> Vec<SnapshotEffect> {
    let mut queue: std::collections::VecDeque<_> = first.into();
    let mut outcomes = Vec::new();
    while let Some(effect) = queue.pop_front() {
        let SnapshotEffect::Send(to, message) = effect else {
            outcomes.push(effect);
            continue;
        };
        if matches!(message, SnapshotMessage::Chunk { .. }) {
            if chunks == 0 {
                return outcomes;
            }
            chunks -= 1;
        }
        let more = if to == follower() {
            receiver.handle(Request::Message(leader(), message))
        } else {
            sender.handle(Request::Message(follower(), message))
        };
        queue.extend(more);
    }
    outcomes
}

fn send(term: u64) -> Request {
    SnapshotRequest::Send(SendSnapshot { to: follower(), term: Term(term), index_min: Index(1) })
}

fn check(disk: &SimDisk, id: EntryId, blobs: &[Vec<u8>]) {
    let store = SnapshotStore::open(disk.clone(), &dir()).unwrap();
    let source = store.source(id).unwrap();
    assert_eq!(source.blobs().len(), blobs.len());
    for (position, blob) in blobs.iter().enumerate() {
        assert_eq!(source.read(position).unwrap(), Bytes::copy_from_slice(blob));
    }
}

fn blobs() -> Vec<Vec<u8>> {
    vec![blob(1, 1_000_000), Vec::new(), blob(2, 64 << 10), blob(1, 1_000_000), blob(3, 700_001)]
}

#[test]
fn a_snapshot_travels() {
    let (from, to) = (SimDisk::new(), SimDisk::new());
    let (mut sender, mut receiver) = (worker(&from), worker(&to));
    let written = sender.handle(SnapshotRequest::Write(meta(9), Picture(blobs())));
    let ids: Vec<BlobId> = blobs().iter().map(|blob| BlobId::of(blob)).collect();
    assert_eq!(written, [SnapshotEffect::Written(meta(9), BlobId::digest_of(&ids))]);
    let offer = sender.handle(send(4));
    let outcomes = deliver(&mut sender, &mut receiver, offer, usize::MAX);
    let received = SnapshotEffect::Received {
        from: leader(),
        term: Term(4),
        snapshot: meta(9),
        bytes: receiver.counters().received_bytes,
    };
    assert!(outcomes.contains(&received), "{outcomes:?}");
    assert!(outcomes.contains(&SnapshotEffect::Sent(follower(), meta(9).last_included)));
    to.crash(Crash::Power(1));
    check(&to, meta(9).last_included, &blobs());
    // The next one shares blobs: only what is new travels.
    let mut next = blobs();
    next.push(blob(9, 1000));
    let before = sender.counters();
    sender.handle(SnapshotRequest::Write(meta(12), Picture(next.clone())));
    let mut receiver = worker(&to);
    let offer = sender.handle(send(4));
    deliver(&mut sender, &mut receiver, offer, usize::MAX);
    assert_eq!(sender.counters().sent_bytes - before.sent_bytes, 1000);
    check(&to, meta(12).last_included, &next);
}

/// Whatever is said of a transfer that was broken off does nothing to the next one of the same snapshot (B47): not
/// to the sender, which would think that everything had arrived or begin a third one, and not to the receiver.
#[test]
fn what_is_said_of_an_earlier_transfer_changes_nothing() {
    let (from, to) = (SimDisk::new(), SimDisk::new());
    let (mut sender, mut receiver) = (worker(&from), worker(&to));
    sender.handle(SnapshotRequest::Write(meta(9), Picture(blobs())));
    let offer = sender.handle(send(4));
    deliver(&mut sender, &mut receiver, offer, 2);
    sender.handle(Request::Disconnected(follower()));
    let stale = |transfer| {
        let reason = String::from("stale");
        [
            SnapshotMessage::Ack { transfer, blob: 0, offset: 1 << 18 },
            SnapshotMessage::Have { transfer, bytes: vec![1_000_000; 5] },
            SnapshotMessage::Abort { transfer, reason },
        ]
    };
    let offer = sender.handle(send(4));
    for message in stale(1) {
        assert_eq!(sender.handle(Request::Message(follower(), message)), []);
    }
    let [SnapshotEffect::Send(_, offer)] = &offer[..] else { panic!("{offer:?}") };
    let have = receiver.handle(Request::Message(leader(), offer.clone()));
    for message in stale(1) {
        assert_eq!(receiver.handle(Request::Message(leader(), message.clone())), []);
        assert_eq!(sender.handle(Request::Message(follower(), message)), []);
    }
    let bytes = Bytes::from(vec![0; 1 << 18]);
    let chunk = SnapshotMessage::Chunk { transfer: 1, blob: 0, offset: 2 << 18, bytes };
    let reason = String::from("no such transfer");
    let abort = SnapshotMessage::Abort { transfer: 1, reason };
    assert_eq!(
        receiver.handle(Request::Message(leader(), chunk)),
        [SnapshotEffect::Send(leader(), abort.clone())]
    );
    assert_eq!(sender.handle(Request::Message(follower(), abort)), []);
    let outcomes = deliver(&mut sender, &mut receiver, have, usize::MAX);
    let bytes = receiver.counters().received_bytes - (512 << 10);
    let received =
        SnapshotEffect::Received { from: leader(), term: Term(4), snapshot: meta(9), bytes };
    let sent = SnapshotEffect::Sent(follower(), meta(9).last_included);
    assert_eq!(outcomes, [received, sent], "this one runs to its end, and no other is begun");
    check(&to, meta(9).last_included, &blobs());
}

/// Killed after any number of chunks, on either side: what has arrived is not sent again.
#[test]
fn an_interrupted_transfer_goes_on() {
    let total: u64 = [1_000_000, 64 << 10, 700_001].iter().sum();
    for chunks in 0..9 {
        for kill_sender in [true, false] {
            let (from, to) = (SimDisk::new(), SimDisk::new());
            let (mut sender, mut receiver) = (worker(&from), worker(&to));
            sender.handle(SnapshotRequest::Write(meta(9), Picture(blobs())));
            let offer = sender.handle(send(4));
            deliver(&mut sender, &mut receiver, offer, chunks);
            let arrived = receiver.counters().received_bytes;
            if kill_sender {
                from.crash(Crash::Process);
                sender = worker(&from);
                receiver.handle(Request::Disconnected(leader()));
            } else {
                to.crash(Crash::Process);
                receiver = worker(&to);
                sender.handle(Request::Disconnected(follower()));
            }
            let before = (sender.counters(), receiver.counters());
            let offer = sender.handle(send(5));
            let outcomes = deliver(&mut sender, &mut receiver, offer, usize::MAX);
            assert!(outcomes.iter().any(|o| matches!(o, SnapshotEffect::Received { .. })));
            check(&to, meta(9).last_included, &blobs());
            let received = receiver.counters().received_bytes - before.1.received_bytes;
            assert_eq!(arrived + received, total, "after {chunks} chunks");
            // The blob that stands twice in the list is sent twice at most when it is not there at the offer.
            let sent = sender.counters().sent_bytes - before.0.sent_bytes;
            assert!(sent >= received, "after {chunks} chunks");
            let skipped = sender.counters().skipped_bytes - before.0.skipped_bytes;
            assert!(skipped >= arrived, "after {chunks} chunks: {skipped} of {arrived}");
        }
    }
}

/// A power loss may take what was not synced; the rest of the transfer still ends well.
#[test]
fn a_transfer_survives_power_loss_at_every_operation() {
    let small = vec![blob(1, 150_000), blob(2, 10), blob(3, 70_000)];
    for fuse in 0..60 {
        let (from, to) = (SimDisk::new(), SimDisk::new());
        let mut sender = worker(&from);
        sender.handle(SnapshotRequest::Write(meta(9), Picture(small.clone())));
        let mut receiver = worker(&to);
        to.set_fuse(Some(fuse));
        let offer = sender.handle(send(4));
        let outcomes = deliver(&mut sender, &mut receiver, offer, usize::MAX);
        let done = outcomes.iter().any(|o| matches!(o, SnapshotEffect::Received { .. }));
        to.crash(Crash::Power(fuse));
        if done {
            check(&to, meta(9).last_included, &small);
        }
        let mut receiver = worker(&to);
        let offer = sender.handle(send(5));
        let outcomes = deliver(&mut sender, &mut receiver, offer, usize::MAX);
        assert!(outcomes.iter().any(|o| matches!(o, SnapshotEffect::Received { .. })), "{fuse}");
        check(&to, meta(9).last_included, &small);
    }
}

/// Found by the simulator: a sync of the beginning of a blob failed, which drops what it should have written. The next
/// transfer went on with what could still be read, and wrote all of that once more, but for the header.
#[test]
fn a_transfer_after_a_failed_sync_rests_on_nothing_that_was_read() {
    let mut failed = 0;
    for skip in 0..12 {
        let (from, to) = (SimDisk::new(), SimDisk::new());
        let (mut sender, mut receiver) = (worker(&from), worker(&to));
        let blobs = vec![blob(1, 150_000), blob(2, 5000)];
        sender.handle(SnapshotRequest::Write(meta(9), Picture(blobs.clone())));
        to.fail_sync("snapshot/", skip);
        loop {
            let offer = sender.handle(send(4));
            let outcomes = deliver(&mut sender, &mut receiver, offer, usize::MAX);
            if outcomes.iter().any(|it| matches!(it, SnapshotEffect::Received { .. })) {
                break;
            }
            assert!(!to.will_fail(), "{outcomes:?}");
            failed += 1;
        }
        to.fail_no_more();
        to.crash(Crash::Power(skip));
        check(&to, meta(9).last_included, &blobs);
    }
    assert!(failed >= 4, "{failed}");
}

#[test]
fn damage_is_named_and_never_returned() {
    let disk = SimDisk::new();
    let mut worker = worker(&disk);
    worker.handle(SnapshotRequest::Write(meta(9), Picture(vec![blob(1, 100_000)])));
    let (path, bytes) = disk
        .files()
        .into_iter()
        .find(|(path, _)| path.to_string_lossy().contains("blob-"))
        .unwrap();
    for offset in (0..bytes.len()).step_by(997) {
        let flipped = disk.fork();
        assert!(flipped.flip(&path, u64::try_from(offset).unwrap(), 16));
        let store = SnapshotStore::open(flipped, &dir()).unwrap();
        let source = store.source(meta(9).last_included).unwrap();
        assert_eq!(source.read(0), Err(SnapshotError::Damaged(BlobId::of(&blob(1, 100_000)))));
    }
    disk.lose(&path);
    let store = SnapshotStore::open(disk, &dir()).unwrap();
    let source = store.source(meta(9).last_included).unwrap();
    assert!(matches!(source.read(0), Err(SnapshotError::Missing(_))));
    assert!(matches!(source.read(1), Err(SnapshotError::Undecodable(_))));
}

/// A rotted blob is written again by the next checkpoint, and fetched again by the next transfer.
#[test]
fn a_damaged_blob_is_replaced() {
    let contents = vec![blob(1, 100_000), blob(2, 70_000)];
    let (from, to) = (SimDisk::new(), SimDisk::new());
    for disk in [&from, &to] {
        worker(disk).handle(SnapshotRequest::Write(meta(9), Picture(contents.clone())));
        let named = |(path, _): &(std::path::PathBuf, _)| path.to_string_lossy().contains("blob-");
        let (path, _) = disk.files().into_iter().find(named).unwrap();
        assert!(disk.flip(&path, 5000, 4));
    }
    // The sender notices when it reads, says so, and has no whole snapshot until it has written one.
    let (mut sender, mut receiver) = (worker(&from), worker(&to));
    let offer = sender.handle(send(4));
    let failed = |outcomes: &[SnapshotEffect]| {
        outcomes.iter().any(|outcome| matches!(outcome, SnapshotEffect::SendFailed(..)))
    };
    // The receiver lacks what it found to be damaged.
    let outcomes = deliver(&mut sender, &mut receiver, offer, usize::MAX);
    assert!(failed(&outcomes), "{outcomes:?}");
    assert!(sender.store().newest().is_none());
    sender.handle(SnapshotRequest::Write(meta(12), Picture(contents.clone())));
    check(&from, meta(12).last_included, &contents);
    let offer = sender.handle(send(4));
    let outcomes = deliver(&mut sender, &mut receiver, offer, usize::MAX);
    assert!(!failed(&outcomes), "{outcomes:?}");
    check(&to, meta(12).last_included, &contents);
    receiver.handle(Request::Prune(EntryId::new(12, 2)));
    let leftover = |path: &std::path::Path| path.to_string_lossy().contains(".damaged");
    assert!(!to.files().iter().any(|(path, _)| leftover(path)));
}

/// What was given up goes, what is arriving stays.
#[test]
fn a_transfer_keeps_its_blobs_and_stops_no_pruning() {
    let (from, to) = (SimDisk::new(), SimDisk::new());
    let (mut sender, mut receiver) = (worker(&from), worker(&to));
    for index in 1..=4u8 {
        let picture = Picture(vec![blob(index, 100)]);
        receiver.handle(SnapshotRequest::Write(meta(u64::from(index)), picture));
    }
    let stray = "/data/snapshot/manifest-0000000000000001-0000000000000001.new";
    to.plant(std::path::Path::new(stray), b"begun");
    sender.handle(SnapshotRequest::Write(meta(9), Picture(blobs())));
    let offer = sender.handle(send(4));
    deliver(&mut sender, &mut receiver, offer, 2);
    let count = |what: &str| {
        to.files().iter().filter(|(path, _)| path.to_string_lossy().contains(what)).count()
    };
    assert_eq!((count("manifest-"), count(".part")), (5, 1));
    receiver.handle(Request::Prune(EntryId::new(4, 2)));
    assert_eq!((count("manifest-"), count(".part")), (2, 1));
    receiver.handle(Request::Disconnected(leader()));
    receiver.handle(Request::Prune(EntryId::new(4, 2)));
    assert_eq!((count("manifest-"), count(".part")), (2, 0));
}

/// The newest two are kept, and whatever the log still needs.
#[test]
fn old_snapshots_are_pruned() {
    let disk = SimDisk::new();
    let mut worker = worker(&disk);
    let shared = blob(7, 5000);
    for index in 1..=5u8 {
        let blobs = vec![shared.clone(), blob(index, 100)];
        worker.handle(SnapshotRequest::Write(meta(u64::from(index)), Picture(blobs)));
    }
    let count = |disk: &SimDisk, what: &str| {
        disk.files().iter().filter(|(path, _)| path.to_string_lossy().contains(what)).count()
    };
    worker.handle(Request::Prune(EntryId::new(2, 2)));
    assert_eq!((count(&disk, "manifest-"), count(&disk, "blob-")), (4, 5));
    worker.handle(Request::Prune(EntryId::new(5, 2)));
    assert_eq!((count(&disk, "manifest-"), count(&disk, "blob-")), (2, 3));
    check(&disk, EntryId::new(5, 2), &[shared.clone(), blob(5, 100)]);
    check(&disk, EntryId::new(4, 2), &[shared, blob(4, 100)]);
}

/// After the first time pruning looks at what goes, and through the folder only after something went wrong.
#[test]
fn pruning_looks_through_the_folder_once() {
    let disk = SimDisk::new();
    let mut first = worker(&disk);
    let plant = |name: &str| disk.plant(&dir().join("snapshot").join(name), b"left behind");
    let count = |what: &str| {
        disk.files().iter().filter(|(path, _)| path.to_string_lossy().contains(what)).count()
    };
    let write = |worker: &mut SnapshotWorker<SimDisk>, index: u64| {
        let blobs = vec![blob(7, 5000), blob(u8::try_from(index).unwrap(), 100)];
        worker.handle(SnapshotRequest::Write(meta(index), Picture(blobs)))
    };
    plant("blob-1-2.part");
    for index in 1..=3 {
        write(&mut first, index);
    }
    first.handle(Request::Prune(EntryId::new(3, 2)));
    assert_eq!((count("manifest-"), count("blob-")), (2, 3));
    plant("manifest-1-2.new");
    write(&mut first, 4);
    first.handle(Request::Prune(EntryId::new(4, 2)));
    assert_eq!((count("manifest-"), count("blob-")), (3, 3), "nobody has looked");
    // A checkpoint that fails leaves what it has begun.
    disk.fail_sync("manifest-", 0);
    let failed = write(&mut first, 5);
    assert!(matches!(failed[..], [SnapshotEffect::WriteFailed(..)]), "{failed:?}");
    assert_eq!((count(".new"), count("blob-")), (2, 4));
    first.handle(Request::Prune(EntryId::new(5, 2)));
    assert_eq!((count("manifest-"), count("blob-")), (2, 3));
    drop(first);
    plant("blob-1-2.damaged");
    let mut second = worker(&disk);
    second.handle(Request::Prune(EntryId::new(5, 2)));
    assert_eq!((count("manifest-"), count("blob-")), (2, 3));
    check(&disk, EntryId::new(4, 2), &[blob(7, 5000), blob(4, 100)]);
}

/// Nothing that a peer sends is believed or panics.
#[test]
fn nonsense_is_refused() {
    let disk = SimDisk::new();
    let mut worker = worker(&disk);
    let transfer = 9;
    let nonsense = [
        SnapshotMessage::Have { transfer, bytes: vec![1, 2] },
        SnapshotMessage::Ack { transfer, blob: 7, offset: u64::MAX },
        SnapshotMessage::Chunk {
            transfer,
            blob: 3,
            offset: u64::MAX,
            bytes: Bytes::from_static(b"x"),
        },
        SnapshotMessage::Abort { transfer, reason: String::new() },
        SnapshotMessage::Offer {
            transfer,
            term: Term(1),
            snapshot: meta(9),
            blobs: vec![BlobId { digest: Digest(1), len: u64::MAX }],
        },
        SnapshotMessage::Offer {
            transfer,
            term: Term(1),
            snapshot: meta(9),
            blobs: vec![BlobId { digest: Digest(1), len: 10 }],
        },
        SnapshotMessage::Chunk { transfer, blob: 0, offset: 5, bytes: Bytes::from_static(b"x") },
        SnapshotMessage::Offer {
            transfer,
            term: Term(1),
            snapshot: meta(9),
            blobs: vec![BlobId { digest: Digest(1), len: 10 }],
        },
        SnapshotMessage::Chunk { transfer, blob: 0, offset: 0, bytes: Bytes::from(vec![0; 10]) },
    ];
    for message in nonsense {
        let effects = worker.handle(Request::Message(leader(), message));
        assert!(!effects.iter().any(|e| matches!(e, SnapshotEffect::Received { .. })));
    }
    assert!(worker.store().newest().is_none());
    assert!(MemorySnapshot::default().blobs().is_empty());
}
