//! Damage: never a panic, never wrong bytes; recovered honestly, or refused naming the file.

use std::path::PathBuf;

use raft::error::DataError;
use raft::log::{DataState, Identity, Log};
use raft_core::{ClusterId, Incarnation, MemberId};
use raft_sim::{Crash, SimDisk};

use crate::support::{Model, Script, dir, expect_formed, identity, open, options, store_snapshot};

/// A directory with two segments, a snapshot, and batches that were acknowledged and sealed.
pub(crate) fn directory(voters: u64, seal: bool) -> (SimDisk, Script) {
    let disk = SimDisk::new();
    let mut script = Script::new(voters);
    let mut log = open(disk.clone(), &dir()).unwrap().log;
    log.form(&script.formed).unwrap();
    let persist = script.hard_state(1, Some(2));
    let persist = script.append(persist, &[0, 500, 900]);
    log.write(vec![persist]).unwrap();
    store_snapshot(disk.clone(), &script.meta_at(2)).unwrap();
    let persist = script.empty();
    let persist = script.append(persist, &[4500, 1700]);
    log.write(vec![persist]).unwrap();
    let persist = script.empty();
    let persist = script.append(persist, &[4000]);
    log.write(vec![persist]).unwrap();
    if seal {
        log.seal_if_idle().unwrap();
    }
    assert_eq!(log.status().segments, 2);
    drop(log);
    disk.crash(Crash::Process);
    (disk, script)
}

fn segment(number: u32) -> PathBuf {
    dir().join(format!("{number:010}.log"))
}

/// The bytes of a file that were ever written: free space is left out, except a little of it.
pub(crate) fn worth_flipping(bytes: &[u8]) -> Vec<usize> {
    let chunk = |n: usize| &bytes[n..bytes.len().min(n + 512)];
    let chunks = (0..bytes.len()).step_by(512);
    let used = chunks.filter(|n| *n < 1024 || chunk(*n).iter().any(|byte| *byte != 0));
    used.flat_map(|n| n..bytes.len().min(n + 512)).collect()
}

/// Every byte of every file, one at a time: mutations 25, 28; etcd's silent repair.
#[test]
fn flip_every_byte() {
    let (disk, script) = directory(3, true);
    let (mut recovered, mut refused) = (0, 0);
    for (path, bytes) in disk.files() {
        let offsets = worth_flipping(&bytes);
        let stride = if offsets.len() > 3000 { 7 } else { 3 };
        for offset in offsets.into_iter().step_by(stride) {
            let flipped = disk.fork();
            let bit = 1u8 << (offset % 8);
            assert!(flipped.flip(&path, u64::try_from(offset).unwrap(), bit));
            let context = format!("{} at {offset}", path.display());
            match open(flipped, &dir()) {
                Ok(opened) => {
                    recovered += 1;
                    let (_, state) = expect_formed(opened);
                    assert_eq!(Model::of(&state), script.model, "{context}");
                }
                Err(DataError::Damaged { path: named, .. }) => {
                    refused += 1;
                    assert_eq!(named, path, "{context}");
                }
                Err(DataError::Amnesic { .. }) => panic!("{context}: one flip in three good slots"),
                Err(error) => panic!("{context}: {error}"),
            }
        }
    }
    assert!(recovered > 1000 && refused > 1000, "{recovered} recovered, {refused} refused");
}

/// Zeros where acknowledged bytes were, as `truncate` or a lost write leaves them.
#[test]
fn an_acknowledged_tail_that_is_gone_is_refused() {
    let (disk, _) = directory(3, true);
    let bytes = disk.files().into_iter().find(|(path, _)| *path == segment(2)).unwrap().1;
    let used: Vec<usize> =
        (4096..bytes.len()).step_by(512).filter(|n| bytes[n + 496..n + 512] != [0; 16]).collect();
    assert!(used.len() > 8);
    for from in used {
        let lost = disk.fork();
        lost.overwrite(&segment(2), u64::try_from(from).unwrap(), &[0; 512]);
        match open(lost, &dir()) {
            Err(DataError::Damaged { path, offset, .. }) => {
                assert_eq!(path, segment(2));
                assert!(offset.is_some());
            }
            Ok(opened) => {
                // Only the seal itself proves nothing about itself.
                let (_, state) = expect_formed(opened);
                assert_eq!(state.report.torn_epoch.is_some(), state.unclean, "{from}");
                assert_eq!(state.recovered.entries.len(), 6, "sector {from}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The last batch without a seal: unwritten sectors are a torn write, a rotted one may be an acknowledged
/// batch, which only a lone voter may drop (decision 9).
#[test]
fn the_last_batch_is_torn_or_refused() {
    for (voters, dropped) in [(1, true), (3, false)] {
        let (disk, script) = directory(voters, false);
        let at = 4096 + 512;
        let zero = disk.fork();
        zero.overwrite(&segment(2), at, &[0; 512]);
        let (_, state) = expect_formed(open(zero, &dir()).unwrap());
        assert!(state.report.torn_epoch.is_some());
        assert_eq!(state.recovered.entries.len(), 5);
        let rotted = disk.fork();
        assert!(rotted.flip(&segment(2), at + 9, 4));
        match open(rotted, &dir()) {
            Ok(opened) => {
                assert!(dropped);
                let (_, state) = expect_formed(opened);
                assert_eq!(state.recovered.entries, script.model.entries[..5]);
            }
            Err(DataError::Damaged { path, offset, .. }) => {
                assert!(!dropped);
                assert_eq!((path, offset), (segment(2), Some(at)));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A clean stop is a witness too.
#[test]
fn after_a_clean_stop_nothing_may_be_missing() {
    let (disk, _) = directory(3, false);
    let (log, _) = expect_formed(open(disk.clone(), &dir()).unwrap());
    log.close().unwrap();
    let (log, state) = expect_formed(open(disk.clone(), &dir()).unwrap());
    assert!(!state.unclean && state.report.rewritten_bytes == 0);
    log.close().unwrap();
    let bytes = disk.files().into_iter().find(|(path, _)| *path == segment(2)).unwrap().1;
    disk.overwrite(&segment(2), 4096, &vec![0; bytes.len() - 4096]);
    assert!(matches!(open(disk, &dir()), Err(DataError::Damaged { .. })));
}

#[test]
fn lost_files_are_noticed() {
    let (disk, _) = directory(3, true);
    for (name, expected) in [
        ("identity", "identity"),
        ("cluster", "cluster"),
        ("0000000001.log", "0000000002.log"),
        ("0000000002.log", "0000000002.log"),
    ] {
        let lost = disk.fork();
        lost.lose(&dir().join(name));
        let files = lost.files();
        match open(lost.clone(), &dir()) {
            Err(DataError::Damaged { path, .. }) => assert_eq!(path, dir().join(expected)),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(lost.files(), files, "{name}: nothing may be changed");
    }
    let lost = disk.fork();
    lost.lose(&dir().join("promises"));
    assert!(matches!(open(lost, &dir()), Err(DataError::Amnesic { node, .. })
        if node == identity().node()));
}

/// PB-2 of the traps: damaged promises are never read as "no promise".
#[test]
fn slots_that_disagree_are_amnesia() {
    let (disk, _) = directory(3, true);
    for slot in 0..3u64 {
        assert!(disk.flip(&dir().join("promises"), slot * 4096 + 40, 1));
        match open(disk.fork(), &dir()) {
            Ok(_) => assert!(slot < 2),
            Err(DataError::Amnesic { .. }) => assert_eq!(slot, 2),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn other_clusters_members_and_versions_are_refused() {
    let (disk, _) = directory(3, true);
    let (other, _) = {
        let disk = SimDisk::new();
        let mut script = Script::new(3);
        script.formed.cluster = ClusterId(5);
        let mut log = open(disk.clone(), &dir()).unwrap().log;
        log.form(&script.formed).unwrap();
        (disk, script)
    };
    let take = |disk: &SimDisk, name: &str| {
        disk.files().into_iter().find(|(path, _)| path.ends_with(name)).unwrap().1
    };
    let mixed = disk.fork();
    mixed.plant(&segment(1), &take(&other, "0000000001.log"));
    assert!(matches!(open(mixed, &dir()), Err(DataError::OtherCluster { found, .. })
        if found == ClusterId(5)));

    let stranger = SimDisk::new();
    let identity = Identity { member: MemberId(9), incarnation: Incarnation(9) };
    let mut log = Log::open(stranger.clone(), &dir(), options(), identity).unwrap().log;
    log.form(&Script::new(3).formed).unwrap();
    let mixed = disk.fork();
    mixed.plant(&dir().join("cluster"), &take(&stranger, "cluster"));
    assert!(matches!(open(mixed, &dir()), Err(DataError::OtherMember { member, .. })
        if member == MemberId(9)));
    let mixed = disk.fork();
    mixed.plant(&segment(1), &take(&stranger, "0000000001.log"));
    assert!(matches!(open(mixed, &dir()), Err(DataError::OtherMember { .. })));

    // A stale segment under another's name.
    let mixed = disk.fork();
    mixed.plant(&segment(2), &take(&disk, "0000000001.log"));
    assert!(
        matches!(open(mixed, &dir()), Err(DataError::Damaged { path, .. }) if path == segment(2))
    );

    let newer = disk.fork();
    let mut bytes = take(&disk, "identity");
    for copy in [0, 4096] {
        bytes[copy + 8] = 2;
        let checksum = crc32c::crc32c(&bytes[copy..copy + 48]);
        bytes[copy + 48..copy + 52].copy_from_slice(&checksum.to_le_bytes());
    }
    newer.plant(&dir().join("identity"), &bytes);
    let files = newer.files();
    assert!(matches!(open(newer.clone(), &dir()), Err(DataError::NewerFormat { found: 2, .. })));
    assert_eq!(newer.files(), files);
}

/// Without power-safe overwrite, batches on pages of their own lose nothing that was acknowledged.
#[test]
fn aligned_batches_need_no_power_safe_overwrite() {
    let aligned = raft::log::LogOptions { batch_alignment: 4096, ..options() };
    for seed in 0..60 {
        let disk = SimDisk::new();
        disk.set_power_safe_overwrite(false);
        let mut script = Script::new(3);
        let mut log = Log::open(disk.clone(), &dir(), aligned, identity()).unwrap().log;
        log.form(&script.formed).unwrap();
        let persist = script.hard_state(1, None);
        let persist = script.append(persist, &[100]);
        log.write(vec![persist]).unwrap();
        let acknowledged = script.model.clone();
        disk.set_fuse(Some(seed % 3));
        let persist = script.empty();
        let persist = script.append(persist, &[600, 50]);
        assert!(log.write(vec![persist]).is_err());
        disk.crash(Crash::Power(seed));
        match Log::open(disk, &dir(), aligned, identity()) {
            Ok(opened) => match opened.state {
                DataState::Formed(state) => {
                    assert!(Model::of(&state).entries.starts_with(&acknowledged.entries));
                }
                DataState::Empty { .. } => panic!("forgotten"),
            },
            // The unacknowledged batch may look rotted, which only a peer could judge.
            Err(DataError::Damaged { offset, .. }) => assert!(offset >= Some(8192), "{offset:?}"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Mutation 21 (etcd#22442): a truncation that reaches back to the log's beginning is replayed.
#[test]
fn mutation_21_a_truncation_below_the_beginning_counts() {
    let disk = SimDisk::new();
    let mut script = Script::new(3);
    let mut log = open(disk.clone(), &dir()).unwrap().log;
    log.form(&script.formed).unwrap();
    let persist = script.hard_state(1, None);
    let persist = script.append(persist, &[10, 10, 10, 10]);
    log.write(vec![persist]).unwrap();
    store_snapshot(disk.clone(), &script.meta_at(2)).unwrap();
    let persist = script.empty();
    let persist = script.compact(persist, 2);
    log.write(vec![persist]).unwrap();
    let persist = script.hard_state(2, None);
    let persist = script.truncate(persist, 3);
    log.write(vec![persist]).unwrap();
    disk.crash(Crash::Process);
    let (_, state) = expect_formed(open(disk, &dir()).unwrap());
    assert_eq!(Model::of(&state), script.model);
}
