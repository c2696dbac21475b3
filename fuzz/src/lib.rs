//! What the fuzzer calls: everything that reads what a peer, a client or a disk says. Nothing may panic, and what is taken in
//! must come out the same again. How to run it: docs/testing.md.

use std::path::Path;
use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use raft::entry_header::EntryHeader;
use raft::log::snapshot::SnapshotStore;
use raft::log::{Identity, Log, LogOptions, inspect};
use raft::message::PeerMessage;
use raft::node::MemberInfo;
use raft::node::formation_message::FormationMessage;
use raft::sessions::{SessionCommand, Sessions};
use raft::transport::codec;
use raft_core::{
    ApplyContext, ClusterId, Command as _, DecodeError, Digest, EntryId, GroupId, Incarnation,
    LogIdentity, MemberId, Membership, MemorySnapshot, SnapshotError, SnapshotSink, SnapshotSource,
    StateMachine,
};
use raft_kv::{Command, Store};
use raft_sim::SimDisk;

/// Whatever a peer sends: frames of every kind, and what formation puts into them.
pub fn frames(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    let _ = codec::frame_len(data, 1 << 20);
    let log = LogIdentity { cluster: ClusterId(7), group: GroupId(0) };
    for log in [None, Some(log)] {
        let Ok(decoded) = codec::decode(&frame, log) else { continue };
        if let codec::Content::Message(PeerMessage::Formation(bytes)) = &decoded.content {
            let _ = FormationMessage::decode(bytes);
        }
    }
    let _ = FormationMessage::decode(&frame);
}

/// What stands in entries: headers, commands, configurations, members' descriptions.
pub fn payloads(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok((header, command)) = EntryHeader::decode(&bytes) {
        let again = header.to_bytes();
        assert_eq!(EntryHeader::decode(&again).map(|(header, _)| header), Ok(header));
        let _ = SessionCommand::<Command>::decode(command);
    }
    if let Ok(command) = Command::decode(bytes.clone()) {
        let mut again = BytesMut::new();
        command.encode(&mut again);
        assert_eq!(Command::decode(again.freeze()), Ok(command));
    }
    let _ = MemberInfo::decode(&bytes);
    let _ = Membership::decode(&bytes);
}

/// Committed commands, whatever they ask for, do the same to two stores; a snapshot of the one is the other.
pub fn commands(mut data: &[u8]) {
    let (mut store, mut other) = (Store::new(), Store::new());
    let mut index = 0;
    while let Some((len, rest)) = data.split_first() {
        let (command, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        data = rest;
        let Ok(command) = Command::decode(Bytes::copy_from_slice(command)) else { continue };
        index += 1;
        let context = ApplyContext::at(EntryId::new(index, 1));
        let first = store.apply(context, command.clone());
        assert_eq!(first, other.apply(context, command));
        store.flush();
    }
    other.flush();
    assert_eq!(store.digest(), other.digest());
    let mut restored = Store::new();
    restored.restore(&picture(&store)).expect("what was pictured is restored");
    assert_eq!(restored.digest(), store.digest());
}

fn picture<S: StateMachine>(machine: &S) -> MemorySnapshot {
    let mut snapshot = MemorySnapshot::default();
    raft_core::Snapshot::write(machine.snapshot(), &mut snapshot).expect("memory takes everything");
    snapshot
}

/// Blobs of a snapshot, cut where the input says; then a real one with a few bytes changed.
pub fn snapshots(data: &[u8]) {
    let mut blobs = MemorySnapshot::default();
    let mut rest = data;
    while let Some((len, tail)) = rest.split_first() {
        let (blob, tail) = tail.split_at(usize::from(*len).min(tail.len()));
        blobs.put(blob).expect("memory takes everything");
        rest = tail;
    }
    restore(&blobs);
    static REAL: OnceLock<MemorySnapshot> = OnceLock::new();
    let real = REAL.get_or_init(|| {
        let mut store = Store::new();
        for index in 1..40_u64 {
            let put = raft_kv::proto::etcdserverpb::PutRequest {
                key: format!("key {}", index % 7).into(),
                value: format!("value {index}").into(),
                ..Default::default()
            };
            let _ = store.apply(ApplyContext::at(EntryId::new(index, 1)), Command::put(put));
        }
        store.flush();
        picture(&store)
    });
    let mut changed = MemorySnapshot::default();
    for position in 0..real.blobs().len() {
        let mut blob = real.read(position).expect("memory holds everything").to_vec();
        edit(data, position, &mut blob);
        changed.put(&blob).expect("memory takes everything");
    }
    restore(&changed);
}

fn restore(snapshot: &MemorySnapshot) {
    let mut store = Store::new();
    if store.restore(snapshot).is_ok() {
        let mut again = Store::new();
        again.restore(&picture(&store)).expect("what was pictured is restored");
        assert_eq!(again.digest(), store.digest());
    }
    let mut sessions = Sessions::new(Letters::default());
    let _ = sessions.restore(snapshot);
}

/// Changes in one of several files: each four bytes of the input say which file, where, and to what.
fn edit(data: &[u8], number: usize, bytes: &mut [u8]) {
    for change in data.chunks_exact(4) {
        let [file, high, low, value] = change else { continue };
        let at = usize::from(*high) << 8 | usize::from(*low);
        if usize::from(*file) == number
            && let Some(byte) = bytes.get_mut(at)
        {
            *byte = *value;
        }
    }
}

/// The folder of a stopped member, changed: it starts, or it says why not.
pub fn data_dirs(data: &[u8]) {
    static REAL: OnceLock<Vec<(std::path::PathBuf, Vec<u8>)>> = OnceLock::new();
    let real = REAL.get_or_init(stopped_member);
    let disk = SimDisk::new();
    for (number, (path, bytes)) in real.iter().enumerate() {
        let mut bytes = bytes.clone();
        edit(data, number, &mut bytes);
        disk.plant(path, &bytes);
    }
    let dir = Path::new(DIR);
    let _ = inspect(&disk, dir);
    let fresh = Identity { member: MemberId(1), incarnation: Incarnation(1) };
    let options = LogOptions { segment_bytes: SEGMENT_BYTES, batch_alignment: 512 };
    let _ = Log::open(disk.copy(), dir, options, fresh);
    let _ = SnapshotStore::open(disk, dir);
}

const DIR: &str = "/data";
const SEGMENT_BYTES: u64 = 16 << 10;

/// The files of a member that ran by itself for a while, took checkpoints and stopped.
fn stopped_member() -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let dir = std::env::temp_dir().join(format!("rusty-raft-fuzz-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(async {
        let builder = raft::Node::builder(Letters::default()).data_dir(&dir).address("127.0.0.1:0");
        let builder = builder.settings(|settings| {
            settings.checkpoint_entries = 10;
            settings.log_segment_bytes = SEGMENT_BYTES;
        });
        let node = builder.start().await.expect("a node starts");
        for letter in 0..25 {
            node.propose(Letter(letter)).await.expect("one member is a quorum");
        }
        drop(node.shutdown().await);
    });
    let mut files = Vec::new();
    let mut dirs = vec![dir.clone()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).expect("the folder is there") {
            let path = entry.expect("the folder is there").path();
            if path.is_dir() {
                dirs.push(path);
            } else if let (Ok(name), Ok(bytes)) = (path.strip_prefix(&dir), std::fs::read(&path)) {
                files.push((Path::new(DIR).join(name), bytes));
            }
        }
    }
    drop(std::fs::remove_dir_all(&dir));
    files.sort();
    assert!(files.len() > 3, "{} files", files.len());
    files
}

/// Remembers letters.
#[derive(Clone, Debug, Default)]
struct Letters(Vec<u8>);

struct Letter(u8);

impl raft_core::Command for Letter {
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&[self.0]);
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        match bytes.as_ref() {
            [letter] => Ok(Self(*letter)),
            _ => Err(DecodeError("one byte expected".into())),
        }
    }
}

impl raft_core::Snapshot for Letters {
    fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        sink.put(&self.0).map(|_| ())
    }
}

impl StateMachine for Letters {
    type Command = Letter;
    type Response = ();
    type Query = ();
    type Answer = ();
    type Snapshot = Self;

    fn apply(&mut self, _: ApplyContext, letter: Letter) {
        self.0.push(letter.0);
    }

    fn query(&self, (): ()) {}

    fn snapshot(&self) -> Self {
        self.clone()
    }

    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        if source.blobs().is_empty() {
            return Err(SnapshotError::Undecodable("nothing".into()));
        }
        self.0 = source.read(0)?.to_vec();
        Ok(())
    }

    fn digest(&self) -> Digest {
        raft_core::BlobId::of(&self.0).digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each target takes noise of every length without a fuzzer, too: a target that fails at once finds nothing.
    #[test]
    fn targets_take_noise() {
        let mut rng = raft_core::Rng::new(1);
        for target in [frames, payloads, commands, snapshots, data_dirs] {
            for len in 0..200 {
                let noise: Vec<u8> = (0..len).map(|_| rng.next_u64().to_le_bytes()[0]).collect();
                target(&noise);
            }
        }
    }
}
