//! Damage: never a panic, never wrong bytes; recovered honestly, or refused naming the file.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft::error::DataError;
use raft::log::{DataState, FormedState, Identity, Log, Opened, Supply};
use raft_core::{ClusterId, Entry, Incarnation, Index, MemberId, Rng};
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

/// Fetches what is missing from a member that has everything.
fn repair(opened: Opened<SimDisk>, script: &Script) -> (FormedState, usize) {
    let Opened { mut log, mut state } = opened;
    let mut fetched = 0;
    loop {
        match state {
            DataState::Formed(state) => return (*state, fetched),
            DataState::Damaged(damaged) => {
                let mut next = None;
                for missing in damaged.missing {
                    assert!(next.is_none(), "recovered although something is missing");
                    let entry = script.entry(missing.id, missing.digest);
                    // What others say by mistake changes nothing.
                    let wrong = Entry { payload: Bytes::from_static(b"wrong"), ..entry.clone() };
                    assert!(log.fill(&wrong).unwrap().is_none());
                    next = log.fill(&entry).unwrap();
                    fetched += 1;
                }
                state = next.expect("nothing is missing any more");
            }
            DataState::Empty { .. } => panic!("not formed"),
        }
    }
}

/// Every byte of every file, one at a time: mutations 25, 28; etcd's silent repair. One flip in the log is always
/// repaired, byte by byte.
#[test]
fn flip_every_byte() {
    let (disk, script) = directory(3, true);
    let (mut recovered, mut repaired) = (0, 0);
    for (path, bytes) in disk.files() {
        let offsets = worth_flipping(&bytes);
        let stride = if offsets.len() > 3000 { 7 } else { 3 };
        for offset in offsets.into_iter().step_by(stride) {
            let flipped = disk.fork();
            let bit = 1u8 << (offset % 8);
            assert!(flipped.flip(&path, u64::try_from(offset).unwrap(), bit));
            let context = format!("{} at {offset}", path.display());
            let opened = open(flipped.clone(), &dir());
            let opened = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
            let (state, fetched) = repair(opened, &script);
            assert!(holds(&state, &script.model), "{context}: {state:?}");
            recovered += 1;
            let needed = state.report.superseded.is_empty();
            let batches = segment_of(&path).is_some() && (4096..13 << 10).contains(&offset);
            if batches && needed && bytes[offset / 512 * 512..][..512] != [0; 512] {
                let now = flipped.files().into_iter().find(|(found, _)| *found == path).unwrap().1;
                assert_eq!(now[offset], bytes[offset], "{context}");
                repaired += 1;
                assert_eq!(state.report.repaired.len(), usize::from(fetched == 0), "{context}");
            }
        }
    }
    assert!(recovered > 2000 && repaired > 1000, "{recovered} recovered, {repaired} repaired");
}

/// Whether this is what was there, but for damaged entries that the snapshot at 2 includes.
fn holds(state: &FormedState, model: &Model) -> bool {
    let found = Model::of(state);
    if state.report.superseded.is_empty() {
        return found == *model;
    }
    let begin = usize::try_from(found.log_start.index.0).unwrap();
    begin <= 2
        && found.hard_state == model.hard_state
        && found.log_start_digest == model.entries[begin - 1].digest
        && found.entries == model.entries[begin..]
}

fn segment_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_suffix(".log")?.parse().ok()
}

/// Several bad sectors, anywhere in the log: everything comes back, or the log is refused, and never is anything else
/// found than what was there.
#[test]
fn many_bad_sectors_are_repaired_or_refused() {
    let (disk, script) = directory(3, true);
    let (mut repaired, mut refused) = (0, 0);
    let mut rng = Rng::new(7);
    for round in 0..600 {
        let damaged = disk.fork();
        for _ in 0..1 + rng.below(6) {
            let number = 1 + u32::try_from(rng.below(2)).unwrap();
            let bytes = disk.files().into_iter().find(|(path, _)| *path == segment(number));
            let bytes = bytes.unwrap().1;
            let offsets = worth_flipping(&bytes);
            let offsets: Vec<usize> = offsets.into_iter().filter(|at| *at >= 4096).collect();
            let nth = usize::try_from(rng.below(offsets.len() as u64)).unwrap();
            let sector = u64::try_from(offsets[nth] / 512 * 512).unwrap();
            let garbage = if rng.chance(1, 2) { [0xAA; 512] } else { [0; 512] };
            damaged.overwrite(&segment(number), sector, &garbage);
        }
        match open(damaged, &dir()) {
            Ok(opened) => {
                let (state, _) = repair(opened, &script);
                // An unsealed end that is unwritten again proves nothing about itself.
                let whole = holds(&state, &script.model);
                assert!(whole || state.report.torn_epoch.is_some(), "round {round}");
                repaired += 1;
            }
            Err(DataError::Damaged { .. }) => refused += 1,
            Err(error) => panic!("round {round}: {error}"),
        }
    }
    assert!(repaired > 200, "{repaired} repaired, {refused} refused");
}

/// Damage that a snapshot includes needs nobody.
#[test]
fn damaged_entries_that_a_snapshot_includes_are_left_out() {
    let (disk, script) = directory(3, true);
    // The second entry has 500 bytes of payload and begins after the first one's 60.
    assert!(disk.flip(&segment(1), 4096 + 64 + 60 + 60 + 100, 1));
    let (mut log, state) = expect_formed(open(disk.clone(), &dir()).unwrap());
    assert_eq!(state.recovered.log_start.index, Index(2));
    assert_eq!(state.recovered.entries, script.model.entries[2..]);
    assert_eq!(state.report.superseded.len(), 1);
    assert_eq!(
        log.supply(script.model.entries[1].id, script.model.entries[1].digest),
        Supply::Damaged
    );
    // The log goes on as ever.
    let mut script = script;
    let persist = script.empty();
    let persist = script.append(persist, &[77]);
    log.write(vec![persist]).unwrap();
    let persist = script.empty();
    let persist = script.compact(persist, 2);
    log.write(vec![persist]).unwrap();
    drop(log);
    disk.crash(Crash::Process);
    let (_, state) = expect_formed(open(disk, &dir()).unwrap());
    assert_eq!(Model::of(&state), script.model);
}

/// Mutation 28: a sector that was meant for another place is as good as a rotted one.
#[test]
fn a_misdirected_write_is_no_record_of_another_place() {
    let (disk, script) = directory(3, true);
    let bytes = disk.files().into_iter().find(|(path, _)| *path == segment(1)).unwrap().1;
    // Inside the payloads of the fourth and the fifth entry, which were written by one batch.
    let sector = |payload: u8| {
        let filled = |at: &usize| bytes[*at..*at + 496].iter().all(|byte| *byte == payload);
        (4096..12 << 10).step_by(512).find(filled).unwrap()
    };
    let (from, to) = (sector(5), sector(4));
    disk.overwrite(&segment(1), u64::try_from(to).unwrap(), &bytes[from..from + 512]);
    let (state, fetched) = repair(open(disk.clone(), &dir()).unwrap(), &script);
    assert_eq!((fetched, Model::of(&state)), (1, script.model));
    let now = disk.files().into_iter().find(|(path, _)| *path == segment(1)).unwrap().1;
    assert_eq!(now[to..to + 512], bytes[to..to + 512]);
}

/// A member alone has nobody to ask.
#[test]
fn a_damaged_payload_of_a_lone_voter_is_refused() {
    let (disk, _) = directory(1, true);
    assert!(disk.flip(&segment(2), 4096 + 1024, 1));
    let files = disk.files();
    match open(disk.clone(), &dir()) {
        Err(DataError::Damaged { path, offset, problem }) => {
            assert_eq!(path, segment(2));
            assert!(offset.is_some() && problem.contains("entry 6"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.files(), files, "nothing may be changed");
}

/// Power fails at every operation of a repair: it is begun again, and ends well.
#[test]
fn a_repair_is_interrupted_at_every_operation() {
    let (disk, script) = directory(3, true);
    for at in [4096 + 64 + 60 + 60 + 560 + 60, 4096 + 5000] {
        assert!(disk.flip(&segment(1), at, 1));
    }
    for seed in 0..60 {
        let broken = disk.fork();
        broken.set_fuse(Some(seed));
        if let Ok(mut opened) = open(broken.clone(), &dir())
            && let DataState::Damaged(damaged) = &opened.state
        {
            for missing in &damaged.missing {
                let entry = script.entry(missing.id, missing.digest);
                if opened.log.fill(&entry).is_err() {
                    break;
                }
            }
        }
        broken.crash(Crash::Power(seed));
        let (state, _) = repair(open(broken, &dir()).unwrap(), &script);
        assert_eq!(Model::of(&state), script.model, "after {seed} operations");
    }
}

/// The others have gone on and compacted what is damaged here: their snapshot takes the place of the whole log, whatever
/// interrupts that. Without damage the log stays as it is.
#[test]
fn a_snapshot_beyond_a_damaged_log_takes_its_place() {
    let (disk, script) = directory(3, true);
    let mut later = script.clone();
    let persist = later.hard_state(4, None);
    later.append(persist, &[10, 20]);
    let meta = later.meta_at(8);
    let beyond = disk.fork();
    store_snapshot(beyond.clone(), &meta).unwrap();
    let (_, state) = expect_formed(open(beyond, &dir()).unwrap());
    assert_eq!(Model::of(&state), script.model);

    assert!(disk.flip(&segment(1), 4096 + 1024, 1));
    let check = |state: &FormedState| {
        assert_eq!(
            (state.recovered.log_start, state.recovered.log_start_digest),
            later.model.last()
        );
        assert_eq!(state.recovered.snapshot, meta);
        assert_eq!(state.recovered.entries, []);
        assert_eq!(state.recovered.hard_state, later.model.hard_state);
    };
    let Opened { mut log, state } = open(disk.fork(), &dir()).unwrap();
    assert!(matches!(state, DataState::Damaged(_)));
    assert!(matches!(log.look_again().unwrap(), Some(DataState::Damaged(_))));
    drop(log);
    for seed in 0..80 {
        let broken = disk.fork();
        let Opened { mut log, .. } = open(broken.clone(), &dir()).unwrap();
        store_snapshot(broken.clone(), &meta).unwrap();
        broken.set_fuse(Some(seed));
        if let Ok(Some(state)) = log.look_again() {
            let DataState::Formed(state) = state else { panic!("{state:?}") };
            check(&state);
        }
        broken.crash(if seed % 2 == 0 { Crash::Process } else { Crash::Power(seed) });
        let (mut log, state) = expect_formed(open(broken.clone(), &dir()).unwrap());
        check(&state);
        // It goes on as after any other snapshot.
        let mut script = later.clone();
        let persist = script.empty();
        let persist = script.append(persist, &[77]);
        log.write(vec![persist]).unwrap();
        broken.crash(Crash::Power(seed));
        let (_, state) = expect_formed(open(broken, &dir()).unwrap());
        assert_eq!(state.recovered.entries, script.model.entries[8..]);
    }
}

/// Zeros where acknowledged bytes were, as `truncate` or a lost write leaves them.
#[test]
fn an_acknowledged_tail_that_is_gone_comes_back() {
    let (disk, script) = directory(3, true);
    let bytes = disk.files().into_iter().find(|(path, _)| *path == segment(2)).unwrap().1;
    let used: Vec<usize> =
        (4096..bytes.len()).step_by(512).filter(|n| bytes[n + 496..n + 512] != [0; 16]).collect();
    assert!(used.len() > 8);
    for from in used {
        let lost = disk.fork();
        lost.overwrite(&segment(2), u64::try_from(from).unwrap(), &[0; 512]);
        match open(lost, &dir()) {
            Ok(opened) => {
                let (state, _) = repair(opened, &script);
                assert_eq!(Model::of(&state), script.model, "sector {from}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The last batch without a seal: unwritten sectors are a torn write, a rotted one may be an acknowledged
/// batch, which only a lone voter may drop (decision 9); in a cluster it is completed.
#[test]
fn the_last_batch_is_torn_or_completed() {
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
                let (state, fetched) = repair(opened, &script);
                assert_eq!(fetched, usize::from(!dropped));
                let kept = if dropped { 5 } else { 6 };
                assert_eq!(state.recovered.entries, script.model.entries[..kept]);
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

/// Rot where the next batch would begin: nobody can tell it from one that was acknowledged, unless a clean stop says that
/// nothing was written there. Then it is cleared, so that no later power loss makes it look like a batch.
#[test]
fn rot_behind_a_clean_stop_is_no_batch() {
    for clean in [true, false] {
        let disk = SimDisk::new();
        let mut script = Script::new(3);
        let mut log = open(disk.clone(), &dir()).unwrap().log;
        log.form(&script.formed).unwrap();
        let persist = script.hard_state(1, None);
        let persist = script.append(persist, &[100]);
        log.write(vec![persist]).unwrap();
        log.seal_if_idle().unwrap();
        if clean {
            log.close().unwrap();
        } else {
            drop(log);
        }
        disk.crash(Crash::Process);
        let image = disk.files().into_iter().find(|(path, _)| *path == segment(1)).unwrap().1;
        let free: Vec<usize> = (4096..image.len())
            .step_by(512)
            .filter(|at| image[*at..*at + 512].iter().all(|byte| *byte == 0))
            .collect();
        for sector in [free[0], free[free.len() - 1], free[free.len() / 2]] {
            let rotted = disk.fork();
            let edge = sector != free[free.len() / 2];
            rotted.flip(&segment(1), u64::try_from(sector + 77).unwrap(), 4);
            match open(rotted.clone(), &dir()) {
                Ok(opened) => {
                    assert!(clean || !edge, "an unclean stop proves nothing");
                    let (_, state) = expect_formed(opened);
                    assert_eq!(Model::of(&state), script.model);
                    let files = rotted.files();
                    let now = &files.iter().find(|(path, _)| *path == segment(1)).unwrap().1;
                    assert_eq!(now[sector + 77], 0, "cleared");
                }
                Err(DataError::Damaged { offset, .. }) => {
                    assert!(!clean && edge);
                    // The first sector of what may have been a batch.
                    assert!(offset.is_some());
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
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
                // The last batch, which was never acknowledged.
                DataState::Damaged(state) => {
                    let first = &state.missing[0];
                    assert!(first.id.index > acknowledged.last().0.index, "{first:?}");
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
