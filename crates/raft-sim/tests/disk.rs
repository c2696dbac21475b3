//! The simulated disk keeps its own promises.
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::io::ErrorKind;
use std::path::Path;

use raft::io::{Disk, DiskFile, OpenMode};
use raft_sim::{Crash, SimDisk};

fn disk() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir(Path::new("/d")).unwrap();
    disk
}

fn read(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    disk.files().into_iter().find(|(name, _)| name == Path::new(path)).map(|(_, bytes)| bytes)
}

#[test]
fn what_is_synced_survives_and_what_is_not_survives_in_any_subset() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let disk = disk();
        let file = disk.open(Path::new("/d/a"), OpenMode::CreateNew).unwrap();
        file.write_at(0, &[1; 2048]).unwrap();
        file.sync().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        file.write_at(0, &[2; 2048]).unwrap();
        disk.crash(Crash::Power(seed));
        assert!(file.sync().is_err(), "a handle of the process before");
        let bytes = read(&disk, "/d/a").unwrap();
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        for (sector, first) in bytes.chunks(512).zip(&sectors) {
            assert!(sector.iter().all(|byte| byte == first), "a sector is torn");
        }
        match sectors[..] {
            [1, 1, 1, 1] => lost += 1,
            [2, 2, 2, 2] => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(kept > 20 && lost > 20 && torn > 20, "{kept} {lost} {torn}");
}

#[test]
fn a_process_crash_keeps_the_cache() {
    let disk = disk();
    let file = disk.open(Path::new("/d/a"), OpenMode::CreateNew).unwrap();
    file.write_at(0, b"hello").unwrap();
    disk.crash(Crash::Process);
    assert_eq!(read(&disk, "/d/a").unwrap(), b"hello");
}

#[test]
fn names_are_pending_until_the_directory_is_synced() {
    let mut outcomes = [0; 3];
    for seed in 0..100 {
        let disk = disk();
        let (a, b) = (Path::new("/d/a"), Path::new("/d/b"));
        disk.open(a, OpenMode::CreateNew).unwrap();
        disk.rename(a, b).unwrap();
        disk.crash(Crash::Power(seed));
        match (disk.exists(a).unwrap(), disk.exists(b).unwrap()) {
            (false, false) => outcomes[0] += 1,
            (true, false) => outcomes[1] += 1,
            (false, true) => outcomes[2] += 1,
            (true, true) => panic!("a rename is one step"),
        }
    }
    assert!(outcomes.iter().all(|count| *count > 10), "{outcomes:?}");
}

#[test]
fn a_failed_sync_drops_what_it_should_have_written() {
    let disk = disk();
    let file = disk.open(Path::new("/d/a"), OpenMode::CreateNew).unwrap();
    file.write_at(0, b"old").unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    file.write_at(0, b"new").unwrap();
    disk.fail_sync("/d/a", 0);
    assert!(file.sync().is_err());
    file.sync().unwrap();
    assert_eq!(read(&disk, "/d/a").unwrap(), b"new", "the cache shows it");
    disk.crash(Crash::Power(1));
    assert_eq!(read(&disk, "/d/a").unwrap(), b"old", "the medium never had it");
}

#[test]
fn a_write_that_was_acknowledged_is_lost_or_goes_elsewhere_but_never_the_last_one() {
    let (mut lost, mut elsewhere) = (0, 0);
    for seed in 0..50 {
        let disk = disk();
        disk.remember_writes();
        let file = disk.open(Path::new("/d/a.log"), OpenMode::CreateNew).unwrap();
        let other = disk.open(Path::new("/d/b"), OpenMode::CreateNew).unwrap();
        for (sector, byte) in (0..4).zip(1..) {
            file.write_at(sector * 512, &[byte; 512]).unwrap();
            other.write_at(sector * 512, &[byte; 512]).unwrap();
            file.sync().unwrap();
            other.sync().unwrap();
        }
        disk.sync_dir(Path::new("/d")).unwrap();
        let mut rng = raft_core::Rng::new(seed);
        let misplaced = seed % 2 == 1;
        assert!(disk.lose_write(&mut rng, &[".log"], misplaced).is_some());
        disk.crash(Crash::Power(seed));
        let sectors = |path| {
            let bytes = read(&disk, path).unwrap();
            bytes.chunks(512).map(|sector| sector[0]).collect::<Vec<u8>>()
        };
        assert_eq!(sectors("/d/b"), [1, 2, 3, 4], "another file");
        let found = sectors("/d/a.log");
        let zeros = found.iter().filter(|byte| **byte == 0).count();
        if misplaced {
            elsewhere += usize::from(found != [1, 2, 3, 4] && zeros <= 1);
        } else {
            lost += usize::from(zeros == 1 && found[3] == 4);
        }
    }
    assert!(lost == 25 && elsewhere > 10, "{lost} {elsewhere}");
}

#[test]
fn fuse_capacity_and_trace() {
    let run = || {
        let disk = disk();
        disk.set_capacity(Some(10));
        let file = disk.open(Path::new("/d/a"), OpenMode::CreateNew).unwrap();
        file.write_at(0, &[1; 10]).unwrap();
        assert_eq!(file.write_at(5, &[1; 10]).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(file.allocate(11).unwrap_err().kind(), ErrorKind::StorageFull);
        disk.set_fuse(Some(1));
        file.write_at(0, &[2; 10]).unwrap();
        assert!(file.sync().is_err() && file.sync().is_err() && disk.is_blown());
        disk.crash(Crash::Power(3));
        disk.trace()
    };
    assert_eq!(run(), run());
}
