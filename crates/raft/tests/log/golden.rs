//! The directory of version 1, committed, decoded for ever; and the production disk.

use std::path::{Path, PathBuf};

use raft::disk::StdDisk;
use raft::io::{Disk, DiskFile, OpenMode};
use raft::log::Log;
use raft::log::snapshot::SnapshotStore;
use raft_core::{BlobId, EntryId, NodeId, SnapshotSource};
use raft_sim::SimDisk;

use crate::support::{Model, Script, dir, expect_formed, identity, open, options, store_snapshot};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data-v1")
}

/// The script whose directory is committed: every kind of record, two segments, one snapshot.
fn build(disk: &SimDisk) -> Script {
    let mut script = Script::new(3);
    let mut log = open(disk.clone(), &dir()).unwrap().log;
    log.set_formation_state(b"formation").unwrap();
    log.form(&script.formed).unwrap();
    log.note_peer_epoch(NodeId::new(1, 1), 17);
    let persist = script.hard_state(2, Some(1));
    let persist = script.append(persist, &[0, 5, 600]);
    log.write(vec![persist]).unwrap();
    log.seal_if_idle().unwrap();
    let persist = script.hard_state(3, None);
    let persist = script.truncate(persist, 3);
    let persist = script.append(persist, &[7, 11_000]);
    log.write(vec![persist]).unwrap();
    let persist = script.empty();
    let persist = script.append(persist, &[30; 12]);
    log.write(vec![persist]).unwrap();
    store_snapshot(disk.clone(), &script.meta_at(3)).unwrap();
    let persist = script.empty();
    let persist = script.compact(persist, 2);
    log.write(vec![persist]).unwrap();
    log.housekeep().unwrap();
    log.close().unwrap();
    script
}

fn plant() -> SimDisk {
    let disk = SimDisk::new();
    for within in ["", "snapshot"] {
        let from = folder().join(within);
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                let name = entry.file_name();
                disk.plant(&dir().join(within).join(name), &std::fs::read(entry.path()).unwrap());
            }
        }
    }
    disk
}

#[test]
fn version_1_is_written_as_ever() {
    let disk = SimDisk::new();
    build(&disk);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        for (path, bytes) in disk.files() {
            let path = folder().join(path.strip_prefix(dir()).unwrap());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
    let expected = plant().files();
    let found = disk.files();
    let names = |files: &[(PathBuf, Vec<u8>)]| {
        files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&found), names(&expected));
    for ((path, found), (_, expected)) in found.iter().zip(&expected) {
        let first = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!((found.len(), first), (expected.len(), None), "{}", path.display());
    }
}

#[test]
fn version_1_is_read_for_ever() {
    let disk = plant();
    let (log, state) = expect_formed(open(disk.clone(), &dir()).unwrap());
    let expected = build(&SimDisk::new());
    assert_eq!(Model::of(&state), expected.model);
    assert_eq!(state.identity, identity());
    assert_eq!(state.formed, expected.formed);
    assert_eq!(state.recovered.snapshot.last_included, EntryId::new(3, 3));
    assert_eq!(state.peer_epochs.get(&NodeId::new(1, 1)), Some(&17));
    assert_eq!(&log.formation_state()[..], b"formation");
    assert!(!state.unclean);
    let store = SnapshotStore::open(disk, &dir()).unwrap();
    let source = store.source(EntryId::new(3, 3)).unwrap();
    assert_eq!(source.blobs()[0], BlobId::of(b"always the same"));
    assert_eq!(&source.read(0).unwrap()[..], b"always the same");
}

/// The production disk does what the simulated one does.
#[test]
fn the_production_disk() {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = tempfile::tempdir_in(base).unwrap();
    let dir = folder.path().join("a/b");
    let disk = StdDisk;
    let opened = Log::open(disk, &dir, options(), identity()).unwrap();
    let mut script = Script::new(3);
    let mut log = opened.log;
    assert!(Log::open(disk, &dir, options(), identity()).is_err(), "locked");
    log.form(&script.formed).unwrap();
    for n in 1..20 {
        let persist = script.hard_state(n, None);
        let persist = script.append(persist, &[900, 900]);
        assert_eq!(log.write(vec![persist]).unwrap().len(), 1);
        log.seal_if_idle().unwrap();
    }
    drop(log);
    let (log, state) = expect_formed(Log::open(disk, &dir, options(), identity()).unwrap());
    assert_eq!(Model::of(&state), script.model);
    assert!(state.unclean && state.report.segments > 1);
    log.close().unwrap();
    let (_, state) = expect_formed(Log::open(disk, &dir, options(), identity()).unwrap());
    assert!(!state.unclean);
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for name in disk.list(&dir).unwrap() {
        assert_eq!(mode(&dir.join(&name)), 0o600, "{name}");
    }
    let path = dir.join("new");
    let file = disk.open(&path, OpenMode::CreateNew).unwrap();
    file.allocate(10_000).unwrap();
    assert_eq!(file.len().unwrap(), 10_000);
    assert!(disk.open(&path, OpenMode::CreateNew).is_err());
    let mut byte = [1];
    file.read_at(9_999, &mut byte).unwrap();
    assert_eq!(byte, [0]);
    assert!(file.read_at(10_000, &mut byte).is_err());
}
