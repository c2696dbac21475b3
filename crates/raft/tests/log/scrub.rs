//! Damage under a log that is in use: found by reading everything again, and repaired in place.

use std::path::{Path, PathBuf};

use raft::io::Disk as _;
use raft::log::scrub::{Scrubber, Suspect};
use raft::log::snapshot::{SnapshotEffect, SnapshotRequest, SnapshotStore, SnapshotWorker};
use raft::log::{Log, Mend};
use raft_sim::{Crash, SimDisk};

use crate::damage::worth_flipping;
use crate::snapshot::Picture;
use crate::support::{Model, Script, dir, expect_formed, open, store_snapshot};

/// A log in use, with two segments and a snapshot that includes nothing that was compacted.
fn in_use() -> (SimDisk, Log<SimDisk>, Script) {
    let disk = SimDisk::new();
    let mut script = Script::new(3);
    let mut log = open(disk.clone(), &dir()).unwrap().log;
    log.form(&script.formed).unwrap();
    let persist = script.hard_state(1, Some(2));
    let persist = script.append(persist, &[0, 500, 900]);
    log.write(vec![persist]).unwrap();
    store_snapshot(disk.clone(), &script.meta_at(2)).unwrap();
    for sizes in [&[4500, 1700][..], &[4000], &[30, 40]] {
        let persist = script.empty();
        let persist = script.append(persist, sizes);
        log.write(vec![persist]).unwrap();
    }
    assert_eq!(log.status().segments, 2);
    (disk, log, script)
}

/// Reads everything once: what looks damaged.
fn pass(scrubber: &mut Scrubber<SimDisk>) -> Vec<Suspect> {
    let mut suspects = Vec::new();
    for _ in 0..1000 {
        let step = scrubber.step();
        suspects.extend(step.suspect);
        if step.pass_ended {
            return suspects;
        }
    }
    panic!("a pass has no end");
}

fn scrubber(disk: &SimDisk) -> Scrubber<SimDisk> {
    Scrubber::new(disk.clone(), dir())
}

fn content(disk: &SimDisk, path: &Path) -> Vec<u8> {
    disk.files().into_iter().find(|(found, _)| found == path).unwrap().1
}

#[test]
fn nothing_is_suspect_while_nothing_is_damaged() {
    let (disk, mut log, mut script) = in_use();
    let mut scrubber = scrubber(&disk);
    for round in 0..40 {
        assert_eq!(pass(&mut scrubber), [], "round {round}");
        let persist = script.empty();
        let mut persist = script.append(persist, &[700]);
        if round % 10 == 9 {
            persist = script.compact(persist, round);
        }
        log.write(vec![persist]).unwrap();
        log.housekeep().unwrap();
        log.seal_if_idle().unwrap();
    }
    let files = disk.files();
    for (path, bytes) in &files {
        assert_eq!(log.mend(path).unwrap(), Mend::Intact, "{}", path.display());
        assert!(content(&disk, path) == *bytes, "what is intact stays as it is");
    }
}

/// Bytes of every file, one at a time: found within one pass, and repaired without a restart. What is missing comes from
/// another member.
#[test]
fn every_damage_is_found_and_repaired_in_use() {
    let (disk, mut log, script) = in_use();
    let store = SnapshotStore::open(disk.clone(), &dir()).unwrap();
    let mut snapshots = SnapshotWorker::new(store, 1);
    let scrubbed = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.ends_with(".log")
            || name.starts_with("manifest-")
            || ["promises", "identity", "cluster"].contains(&name.as_str())
    };
    let (mut in_place, mut fetched) = (0, 0);
    for (path, bytes) in disk.files().into_iter().filter(|(path, _)| scrubbed(path)) {
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        // Between the copies of a header nothing is stored.
        let unread = |at: usize| is_log && at < 4096 && at % 2048 >= 512;
        let offsets = worth_flipping(&bytes).into_iter().filter(|at| !unread(*at));
        for offset in offsets.step_by(if is_log { 41 } else { 977 }) {
            let context = format!("{} at {offset}", path.display());
            assert!(disk.flip(&path, u64::try_from(offset).unwrap(), 1 << (offset % 8)));
            let mut scrubber = scrubber(&disk);
            let suspects = pass(&mut scrubber);
            let [suspect] = &suspects[..] else { panic!("{context}: {suspects:?}") };
            let mend = match suspect {
                Suspect::Log(found, _) => {
                    assert_eq!(*found, path, "{context}");
                    log.mend(found).unwrap()
                }
                Suspect::Snapshot(found, at) => {
                    let request = SnapshotRequest::<Picture>::Mend(found.clone(), *at);
                    let effects = snapshots.handle(request);
                    let [SnapshotEffect::Mended(_, _, mend)] = &effects[..] else {
                        panic!("{effects:?}")
                    };
                    mend.clone()
                }
            };
            match mend {
                Mend::Repaired => in_place += 1,
                Mend::Missing(missing) => {
                    for missing in missing {
                        assert_eq!(missing.path, path);
                        assert!(
                            log.fill(&script.entry(missing.id, missing.digest)).unwrap().is_none()
                        );
                        fetched += 1;
                    }
                }
                Mend::Intact | Mend::Beyond(_) => panic!("{context}: {mend:?}"),
            }
            assert_eq!(pass(&mut scrubber), [], "{context}");
            // Term and vote are written as at any time, with the next version.
            if !path.ends_with("promises") {
                assert!(content(&disk, &path) == bytes, "{context}: written otherwise");
            }
        }
    }
    assert!(in_place > 100 && fetched > 100, "{in_place} in place, {fetched} fetched");
    // It was durable, and nothing else has changed.
    drop(log);
    disk.crash(Crash::Power(1));
    let (_, state) = expect_formed(open(disk, &dir()).unwrap());
    assert_eq!(Model::of(&state), script.model);
    assert_eq!(state.report.repaired, []);
}

/// What is damaged in free space, in a segment to be, and in a blob.
#[test]
fn free_space_is_cleared_and_a_blob_is_set_aside() {
    let (disk, mut log, mut script) = in_use();
    let spare = |disk: &SimDisk| {
        let names = disk.list(&dir()).unwrap().into_iter();
        names.map(|name| dir().join(name)).find(|path| path.to_string_lossy().contains("spare-"))
    };
    while spare(&disk).is_none() {
        log.seal_if_idle().unwrap();
    }
    let spare = spare(&disk).unwrap();
    let last = dir().join("0000000002.log");
    let free = (4096..16 << 10)
        .step_by(512)
        .find(|at| content(&disk, &last)[*at..*at + 512].iter().all(|byte| *byte == 0));
    for (path, offset) in [(&last, u64::try_from(free.unwrap()).unwrap()), (&spare, 9000)] {
        disk.flip(path, offset, 8);
        assert_eq!(pass(&mut scrubber(&disk)), [Suspect::Log(path.clone(), offset / 512 * 512)]);
        assert_eq!(log.mend(path).unwrap(), Mend::Repaired);
        assert_eq!(content(&disk, path)[usize::try_from(offset).unwrap()], 0);
    }
    let persist = script.empty();
    let persist = script.append(persist, &[10]);
    log.write(vec![persist]).unwrap();

    let is_blob = |path: &PathBuf| path.to_string_lossy().contains("blob-");
    let blob = disk.files().into_iter().map(|(path, _)| path).find(is_blob).unwrap();
    disk.flip(&blob, 70, 1);
    let suspects = pass(&mut scrubber(&disk));
    assert!(matches!(&suspects[..], [Suspect::Snapshot(path, _)] if *path == blob), "{suspects:?}");
    let mut snapshots = SnapshotWorker::new(SnapshotStore::open(disk.clone(), &dir()).unwrap(), 1);
    let effects = snapshots.handle(SnapshotRequest::<Picture>::Mend(blob.clone(), 64));
    assert!(matches!(&effects[..], [SnapshotEffect::Mended(_, _, Mend::Beyond(_))]), "{effects:?}");
    assert!(!disk.exists(&blob).unwrap(), "set aside");
    assert_eq!(pass(&mut scrubber(&disk)), []);
}

/// Nobody has it: the log says so, and goes on. A header of which no copy is left is told, too.
#[test]
fn what_cannot_be_repaired_is_told() {
    let (disk, mut log, script) = in_use();
    let first = dir().join("0000000001.log");
    let intact = content(&disk, &first);
    for copy in [0, 2048] {
        disk.flip(&first, copy + 30, 1);
    }
    let suspects = pass(&mut scrubber(&disk));
    assert_eq!(suspects, [Suspect::Log(first.clone(), 0)]);
    assert!(matches!(log.mend(&first).unwrap(), Mend::Beyond(_)));
    disk.plant(&first, &intact);

    // An entry of the same place with other content is not taken.
    disk.flip(&first, 4096 + 700, 1);
    let Mend::Missing(missing) = log.mend(&first).unwrap() else { panic!("not missing") };
    let wanted = script.entry(missing[0].id, missing[0].digest);
    let wrong = raft_core::Entry {
        payload: bytes::Bytes::from(vec![1; wanted.payload.len()]),
        ..wanted.clone()
    };
    assert!(log.fill(&wrong).unwrap().is_none());
    assert!(content(&disk, &first) != intact);
    assert!(log.fill(&wanted).unwrap().is_none());
    assert!(content(&disk, &first) == intact);
}
