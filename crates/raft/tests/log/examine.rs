//! What `inspect` and `verify` show agrees with what a start says.

use std::path::Path;

use raft::error::DataError;
use raft::log::examine::{Effect, Examination, examine};
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

/// Every byte that a checksum covers: damage is named by its file, and called needed exactly when a start says so.
#[test]
fn every_flipped_byte_is_found_and_weighed_as_a_start_does() {
    let (disk, _) = directory(3, true);
    let (mut needed, mut covered) = (0, 0);
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
            match open(flipped, &dir()) {
                Ok(_) => {
                    covered += 1;
                    assert!(!found.is_unusable(), "{context}: {:?}", found.damages);
                }
                Err(error) => {
                    needed += 1;
                    assert!(found.is_unusable(), "{context}: {error}");
                }
            }
        }
    }
    assert!(needed > 100 && covered > 100, "{needed} needed, {covered} covered");
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
    let needed = found.damages.iter().filter(|damage| damage.effect == Effect::Needed);
    let places: Vec<(&Path, u64)> =
        needed.map(|damage| (damage.path.as_path(), damage.offset)).collect();
    for place in [(&first, 4096), (&first, 5120), (&second, 4096)] {
        let count = places.iter().filter(|it| **it == (place.0.as_path(), place.1)).count();
        assert_eq!(count, 1, "{place:?} in {places:?}");
    }
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
