//! What `inspect` and `verify` show agrees with what a start says.

use std::path::Path;

use raft::error::DataError;
use raft::log::examine::{Effect, Examination, examine};
use raft::log::{DataState, Opened};
use raft_sim::SimDisk;

use crate::damage::{directory, worth_flipping};
use crate::support::{dir, open};

fn look(disk: &SimDisk) -> Result<Examination, DataError> {
    examine(disk, &dir(), &mut |read, total| assert!(read <= total, "{read} of {total}"))
}

#[test]
fn a_sound_directory_is_described_and_not_changed() {
    let (disk, script) = directory(3, true);
    let before = disk.files();
    let found = look(&disk).unwrap();
    assert_eq!(disk.files(), before);
    assert_eq!(found.damages, []);
    let log = found.log.unwrap();
    assert_eq!(log.last, script.model.last().0);
    assert_eq!(log.membership, script.formed.members);
    assert_eq!(found.formed.as_ref(), Some(&script.formed));
    let numbers: Vec<u32> = found.segments.iter().map(|segment| segment.number).collect();
    assert_eq!(numbers, [1, 2]);
    let entries: Vec<_> = found.segments.iter().filter_map(|segment| segment.indexes).collect();
    assert_eq!(entries.first().map(|range| range.0.0), Some(1));
    assert_eq!(entries.last().map(|range| range.1), Some(log.last.index));
    assert!(found.snapshots.iter().all(|snapshot| snapshot.whole) && !found.snapshots.is_empty());
    assert_eq!(found.slots.iter().flatten().count(), 4);
}

/// Every byte that a checksum covers: damage is named by its file, and weighed exactly as a start does.
#[test]
fn every_flipped_byte_is_found_and_weighed_as_a_start_does() {
    let (disk, _) = directory(3, true);
    let (mut fetched, mut covered) = (0, 0);
    for (path, bytes) in disk.files() {
        let offsets = worth_flipping(&bytes);
        let stride = if offsets.len() > 3000 { 61 } else { 17 };
        for offset in offsets.into_iter().step_by(stride) {
            let flipped = disk.fork();
            assert!(flipped.flip(&path, u64::try_from(offset).unwrap(), 1u8 << (offset % 8)));
            let context = format!("{} at {offset}", path.display());
            let found = look(&flipped).unwrap();
            let named: Vec<&Path> = found.damages.iter().map(|it| it.path.as_path()).collect();
            // Between the header's copies stands nothing that anybody reads.
            let in_between = path.extension().is_some_and(|it| it == "log")
                && (512..4096).contains(&offset)
                && !(2048..2560).contains(&offset);
            let is_spare = path.to_string_lossy().contains("spare-");
            if !in_between && !is_spare {
                assert!(named.contains(&path.as_path()), "{context}: {:?}", found.damages);
            }
            let opened = open(flipped, &dir()).unwrap();
            assert!(!found.is_unusable(), "{context}: {:?}", found.damages);
            let Opened { state: DataState::Damaged(damaged), .. } = opened else {
                covered += 1;
                assert!(!found.needs_others(), "{context}: {:?}", found.damages);
                continue;
            };
            fetched += 1;
            let problems: Vec<&str> = found
                .damages
                .iter()
                .filter(|damage| damage.effect == Effect::Fetched)
                .map(|damage| damage.problem.as_str())
                .collect();
            for missing in damaged.missing {
                let name = format!("entry {}", missing.id);
                let named = problems.iter().any(|problem| problem.contains(&name));
                assert!(named, "{context}: {name} is not in {problems:?}");
            }
        }
    }
    assert!(fetched > 50 && covered > 100, "{fetched} fetched, {covered} covered");
}

/// Of a damaged batch whose records are not even known, and of an entry that nobody else can have: a start refuses.
#[test]
fn what_nobody_can_restore_is_needed() {
    let (disk, _) = directory(3, true);
    let second = dir().join("0000000002.log");
    let len =
        u64::try_from(disk.files().iter().find(|it| it.0 == second).unwrap().1.len()).unwrap();
    for offset in [4096 + 40, len - 512 + 40] {
        assert!(disk.flip(&second, offset, 1));
    }
    assert!(look(&disk).unwrap().is_unusable());
    assert!(open(disk, &dir()).is_err());

    let (disk, _) = directory(1, true);
    assert!(disk.flip(&second, 4096 + 1024, 1));
    assert!(look(&disk).unwrap().is_unusable());
    assert!(open(disk, &dir()).is_err());
}

/// Every file that is missing: the same.
#[test]
fn every_missing_file_is_weighed_as_a_start_does() {
    let (disk, _) = directory(3, true);
    for (path, _) in disk.files() {
        let without = disk.fork();
        without.lose(&path);
        let found = look(&without).unwrap();
        let refused = open(without, &dir()).is_err();
        assert_eq!(found.is_unusable(), refused, "{}: {:?}", path.display(), found.damages);
    }
}

/// Two damages in one segment and one in the next: all are found, each once.
#[test]
fn damage_does_not_end_the_reading() {
    let (disk, _) = directory(3, true);
    let (first, second) = (dir().join("0000000001.log"), dir().join("0000000002.log"));
    for (path, offset) in [(&first, 4096 + 40), (&first, 4096 + 1024), (&second, 4096 + 40)] {
        assert!(disk.flip(path, offset, 1));
    }
    let found = look(&disk).unwrap();
    let places: Vec<(&Path, u64, Effect)> = found
        .damages
        .iter()
        .map(|damage| (damage.path.as_path(), damage.offset, damage.effect))
        .collect();
    // The header of a batch follows from its records, and of the entries whose payload is gone each is named.
    assert_eq!(
        places,
        [
            (first.as_path(), 4096, Effect::Covered),
            (&first, 5120, Effect::Fetched),
            (&second, 4096, Effect::Covered),
        ],
        "{:?}",
        found.damages
    );
}

#[test]
fn a_folder_in_use_and_one_without_data_are_refused() {
    let (disk, _) = directory(3, true);
    let opened = open(disk.clone(), &dir()).unwrap();
    disk.plant(&dir().join("lock"), &[]);
    assert!(matches!(look(&disk), Err(DataError::Locked { .. })));
    drop(opened);
    assert!(look(&disk).is_ok());
    let nothing = examine(&SimDisk::new(), Path::new("/nothing"), &mut |_, _| {});
    assert!(matches!(nothing, Err(DataError::NoData { .. })), "{nothing:?}");
}
