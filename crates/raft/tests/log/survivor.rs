//! What one member holds, copied as the beginning of another cluster.

use std::path::{Path, PathBuf};

use raft::error::DataError;
use raft::log::examine::examine;
use raft::log::{Formed, Identity, Log, Survivor};
use raft_core::{ClusterId, EntryId, GroupId, Incarnation, MemberId, Membership};
use raft_sim::{Crash, SimDisk};

use crate::damage::directory;
use crate::support::{dir, expect_formed, identity, open, options};

fn copy_dir() -> PathBuf {
    PathBuf::from("/copy")
}

fn fresh() -> (Identity, Formed) {
    let identity = Identity { member: MemberId(0x77), incarnation: Incarnation(0x78) };
    let members = Membership::from_voters([(identity.node(), bytes::Bytes::from_static(b"me"))]);
    (identity, Formed { cluster: ClusterId(99), group: GroupId::FIRST, members })
}

/// The copy holds every entry at its index and term, and the snapshot, in a configuration of one; it survives a power
/// loss, and the original is as it was.
#[test]
fn everything_is_copied_into_a_cluster_of_one() {
    let (disk, script) = directory(3, true);
    let before = disk.files();
    let survivor = Survivor::open(disk.clone(), &dir()).unwrap();
    assert_eq!(survivor.last(), script.model.last().0);
    assert_eq!(survivor.identity(), identity());
    assert_eq!(survivor.membership(), script.formed.members);
    assert_eq!(disk.files(), before, "looking changed something");
    let (identity, formed) = fresh();
    survivor.copy_as(&copy_dir(), options(), (identity, &formed), b"formation").unwrap();
    drop(survivor);
    disk.crash(Crash::Power(5));
    let old: Vec<_> =
        disk.files().into_iter().filter(|(path, _)| path.starts_with(dir())).collect();
    assert_eq!(old, before, "the original changed");

    let found = examine(&disk, &copy_dir(), &mut |_, _| {}).unwrap();
    assert_eq!(found.damages, []);
    assert_eq!(found.formation.as_ref(), b"formation");
    let opened = Log::open(disk, &copy_dir(), options(), identity).unwrap();
    let (log, state) = expect_formed(opened);
    assert!(!state.unclean);
    assert_eq!((state.identity, &state.formed), (identity, &formed));
    assert_eq!(state.recovered.hard_state.current_term, script.model.hard_state.current_term);
    assert_eq!(state.recovered.hard_state.voted_for, None);
    let snapshot = &state.recovered.snapshot;
    assert_eq!(snapshot.last_included.index.0, 2);
    assert_eq!(snapshot.membership, formed.members);
    let entries = |entries: &[raft_core::Entry]| -> Vec<(EntryId, bytes::Bytes)> {
        let later = entries.iter().filter(|entry| entry.id.index.0 > 2);
        later.map(|entry| (entry.id, entry.payload.clone())).collect()
    };
    assert_eq!(entries(&state.recovered.entries), entries(&script.model.entries));
    assert_eq!(log.status().last, script.model.last().0);
}

#[test]
fn whoever_is_damaged_or_runs_or_is_nobody_survives_nothing() {
    let (disk, _) = directory(3, true);
    // What is left of the batch says what stood there.
    assert!(disk.flip(&dir().join("0000000001.log"), 4096 + 40, 1));
    let before = disk.files();
    let survivor = Survivor::open(disk.clone(), &dir()).unwrap();
    let (identity, formed) = fresh();
    survivor.copy_as(&copy_dir(), options(), (identity, &formed), b"formation").unwrap();
    drop(survivor);
    let old: Vec<_> =
        disk.files().into_iter().filter(|(path, _)| path.starts_with(dir())).collect();
    assert_eq!(old, before, "the original changed");

    // An entry whose payload only others have is named.
    let (disk, script) = directory(3, true);
    assert!(disk.flip(&dir().join("0000000001.log"), 4096 + 1024, 1));
    let damaged = Survivor::open(disk, &dir()).map(|_| ());
    let Err(DataError::Damaged { problem, .. }) = damaged else { panic!("{damaged:?}") };
    assert!(problem.ends_with(&format!(": {}", script.model.entries[2].id)), "{problem}");

    let (disk, _) = directory(3, true);
    disk.plant(&dir().join("lock"), &[]);
    let running = open(disk.clone(), &dir()).unwrap();
    assert!(matches!(Survivor::open(disk, &dir()), Err(DataError::Locked { .. })));
    drop(running);

    let disk = SimDisk::new();
    assert!(matches!(
        Survivor::open(disk.clone(), Path::new("/nothing")),
        Err(DataError::NoData { .. })
    ));
    drop(open(disk.clone(), &dir()).unwrap());
    // A node of no cluster.
    assert!(matches!(Survivor::open(disk, &dir()), Err(DataError::NoData { .. })));
}
