//! A damaged data directory of one member of several: set aside, and everything fetched from the others.
//!
//! Nothing is deleted. The directory is renamed to `<name>.damaged`, and the member starts with an empty one, as a new
//! node that never forms a cluster: it waits until the others, who must be a quorum without it, take it in
//! (decision 3). While a renamed directory stands there, an empty one is what this made, however often the process
//! starts. A further damage is set aside beside it, as `<name>.damaged-2` and so on: the others may go on without this
//! member for as long as nobody looks, but not for ever, for what is kept takes space.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::error::{DataError, NodeError};
use crate::log::DataState;
use crate::node::Settings;

/// Fewer configured members than this have no quorum without one of them.
const MEMBERS_MIN: usize = 3;
/// Directories that are kept aside. One more is refused: a disk that does so this often wants to be looked at, and what
/// is kept takes space.
const ASIDE_MAX: u32 = 4;

/// Where a directory is set aside for the `nth` time, counted from 1.
fn aside(dir: &Path, nth: u32) -> PathBuf {
    let mut name = OsString::from(dir);
    name.push(".damaged");
    if nth > 1 {
        name.push(format!("-{nth}"));
    }
    PathBuf::from(name)
}

/// The directories of this member that stand aside, oldest first as long as nobody has moved one away.
#[must_use]
pub fn set_aside_folders(dir: &Path) -> Vec<PathBuf> {
    (1..=ASIDE_MAX).map(|nth| aside(dir, nth)).filter(|path| path.exists()).collect()
}

fn list(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Sets the directory aside when what is wrong with it can be fetched from others.
///
/// # Errors
/// `error` itself when not; with the reason when that is that it was done before, or the system refuses.
pub(super) fn set_aside(settings: &Settings, error: NodeError) -> Result<(), NodeError> {
    if !may_rebuild(settings) || !is_rebuilt_from(&error) {
        return Err(error);
    }
    let dir = &settings.data_dir;
    let before = set_aside_folders(dir);
    let Some(aside) = (1..=ASIDE_MAX).map(|nth| aside(dir, nth)).find(|path| !path.exists()) else {
        let problem = format!(
            "{error}. This member was rebuilt {} times before: see what became of the disk, move {} away, then start \
             again",
            before.len(),
            list(&before)
        );
        let path = dir.clone();
        return Err(NodeError::Data(DataError::Damaged { path, offset: None, problem }));
    };
    let moved = fs::rename(dir, &aside).and_then(|()| sync_parent(dir));
    moved.map_err(|source| {
        NodeError::Data(DataError::Io { path: dir.clone(), action: "set aside", source })
    })?;
    settings.meters.damage.set_folders_aside(before.len() + 1);
    warn!(
        "{}. The folder is now {}; this member starts empty and waits until the others, if they are a quorum, take it \
         in as a new member. Delete the old folder when that is done",
        error,
        aside.display()
    );
    if !before.is_empty() {
        warn!(
            "this member was rebuilt before: {} still there, and after {ASIDE_MAX} in all it is not rebuilt any more. \
             Look at the disk, and delete what is not needed",
            list(&before)
        );
    }
    Ok(())
}

/// Whether the others could be a quorum without this member, and it is wanted that they take it in anew.
pub(super) fn may_rebuild(settings: &Settings) -> bool {
    let members = if settings.join.is_empty() { settings.peers.len() } else { MEMBERS_MIN };
    settings.rebuild_damaged && members >= MEMBERS_MIN
}

/// Damage, or promises that cannot be proven: what a new node in this one's place does not have.
const fn is_rebuilt_from(error: &NodeError) -> bool {
    matches!(error, NodeError::Data(DataError::Damaged { .. } | DataError::Amnesic { .. }))
}

/// How a node ends that found out while it ran that it has to be rebuilt: the directory is set aside, and the next
/// start begins anew. Everything else ends as it did.
pub(super) fn after_end(
    settings: &Settings,
    outcome: Result<(), NodeError>,
) -> Result<(), NodeError> {
    let error = match outcome {
        Err(error) if is_rebuilt_from(&error) && may_rebuild(settings) => error,
        outcome => return outcome,
    };
    let what = error.to_string();
    set_aside(settings, error)?;
    let folders = set_aside_folders(&settings.data_dir);
    Err(NodeError::SetAside(format!("{what}. Set aside: {}", list(&folders))))
}

fn sync_parent(dir: &Path) -> io::Result<()> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// Sees to it that an empty directory in place of a damaged one never founds a cluster: it held data once.
pub(super) fn join_after(settings: &mut Settings, state: &DataState) {
    if matches!(state, DataState::Empty { .. })
        && settings.join.is_empty()
        && !set_aside_folders(&settings.data_dir).is_empty()
    {
        let others = settings.peers.iter().filter(|address| **address != settings.address);
        settings.join = others.cloned().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_core::Incarnation;

    fn settings(members: usize) -> (tempfile::TempDir, Settings) {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("data");
        fs::create_dir(&data_dir).unwrap();
        fs::write(data_dir.join("file"), "content").unwrap();
        let peers = (0..members).map(|number| format!("m{number}")).collect();
        let address = String::from("m0");
        (folder, Settings { data_dir, peers, address, ..Settings::default() })
    }

    fn damage() -> NodeError {
        let (path, problem) = (PathBuf::from("file"), String::from("rotten"));
        NodeError::Data(DataError::Damaged { path, offset: Some(3), problem })
    }

    /// Each time beside what was set aside before, a bounded number of times.
    #[test]
    fn one_of_three_is_set_aside_again_and_nothing_is_deleted() {
        let (_folder, settings) = settings(3);
        let dir = &settings.data_dir;
        for nth in 1..=ASIDE_MAX {
            fs::write(dir.join("file"), nth.to_string()).unwrap();
            set_aside(&settings, damage()).unwrap();
            assert!(!dir.exists());
            fs::create_dir(dir).unwrap();
        }
        for nth in 1..=ASIDE_MAX {
            assert_eq!(fs::read_to_string(aside(dir, nth).join("file")).unwrap(), nth.to_string());
        }
        let again = set_aside(&settings, damage()).unwrap_err().to_string();
        assert!(again.contains("rebuilt 4 times before"), "{again}");
        assert!(again.contains("rotten") && again.contains("data.damaged-3"), "{again}");
        assert!(dir.exists());
        // Somebody has looked.
        fs::remove_dir_all(aside(dir, 2)).unwrap();
        set_aside(&settings, damage()).unwrap();
        assert!(aside(dir, 2).exists() && !dir.exists());
    }

    /// Which one is left does not matter: an empty directory in its place held data once.
    #[test]
    fn an_empty_one_beside_any_that_was_set_aside_founds_nothing() {
        let (_folder, mut settings) = settings(3);
        let identity =
            crate::log::Identity { member: raft_core::MemberId(1), incarnation: Incarnation(2) };
        let empty = DataState::Empty { identity, formation: bytes::Bytes::new() };
        join_after(&mut settings, &empty);
        assert!(settings.join.is_empty());
        fs::create_dir(aside(&settings.data_dir, 3)).unwrap();
        join_after(&mut settings, &empty);
        assert_eq!(settings.join, ["m1", "m2"]);
    }

    /// A folder whose promises cannot be proven is no better than a damaged one, also when that shows while it runs.
    #[test]
    fn an_amnesic_member_is_rebuilt_when_it_has_ended() {
        let amnesic = || {
            let node = raft_core::NodeId::new(1, 2);
            NodeError::Data(DataError::Amnesic { node, reason: String::from("rolled back") })
        };
        let (_folder, settings) = settings(3);
        assert!(after_end(&settings, Ok(())).is_ok());
        let other = after_end(&settings, Err(NodeError::Removed));
        assert!(matches!(other, Err(NodeError::Removed)));
        assert!(settings.data_dir.exists());
        let ended = after_end(&settings, Err(amnesic()));
        assert!(matches!(ended, Err(NodeError::SetAside(_))), "{ended:?}");
        assert!(!settings.data_dir.exists() && aside(&settings.data_dir, 1).exists());
        let unwanted = Settings { rebuild_damaged: false, ..settings };
        let ended = after_end(&unwanted, Err(amnesic()));
        assert!(matches!(ended, Err(NodeError::Data(DataError::Amnesic { .. }))), "{ended:?}");
    }

    #[test]
    fn whoever_has_no_quorum_of_others_keeps_what_there_is() {
        for members in [1, 2] {
            let (_folder, settings) = settings(members);
            assert!(set_aside(&settings, damage()).is_err());
            assert!(settings.data_dir.join("file").exists());
        }
        let (_folder, settings) = settings(3);
        let unwanted = Settings { rebuild_damaged: false, ..settings.clone() };
        assert!(set_aside(&unwanted, damage()).is_err());
        assert!(set_aside(&settings, NodeError::Removed).is_err(), "something else is wrong");
        assert!(settings.data_dir.join("file").exists());
    }
}
