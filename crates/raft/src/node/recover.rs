//! A quorum that is lost for ever: what one member holds becomes a cluster of its own.
//!
//! The new cluster has an id of its own, and so has its one member: nothing that is left of the old cluster can ever
//! mix with it. The addresses that the old one was formed with are *vacant* in the new one: an empty node that appears
//! at one of them is admitted by itself. The old directory is kept beside the new one.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft_core::{ClusterId, MemberId, Membership, NodeId, Rng};

use crate::disk::StdDisk;
use crate::error::{DataError, NodeError};
use crate::log::examine::examine;
use crate::log::{Formed, Identity, LogOptions, Survivor};
use crate::node::formation_message::{FormationState, Founding};
use crate::node::task::fresh_numbers;

/// Who the one member is, and where everything went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// The new cluster.
    pub cluster: ClusterId,
    /// Its one member.
    pub member: MemberId,
    /// The old directory.
    pub kept: PathBuf,
}

pub(super) fn beside(dir: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(dir);
    name.push(ending);
    PathBuf::from(name)
}

/// Replaces a directory by one of a new cluster of one member that holds everything the old one holds; every entry in its
/// log counts as committed. Durable on return. Until the very end the old directory stands where it stood; then it is
/// `<name>.before-recovery`.
///
/// # Errors
/// When a name that is needed is taken, something that is needed is damaged, or the disk refuses. The old directory is
/// then where it was, except when the second of two renames fails, which the message says.
pub fn recover(survivor: &Survivor<StdDisk>) -> Result<Recovered, NodeError> {
    // Without a slash at its end, behind which a name would lie inside of it.
    let dir: &Path = &survivor.dir().components().collect::<PathBuf>();
    let (new, kept) = (beside(dir, ".recovering"), beside(dir, ".before-recovery"));
    for taken in [&new, &kept] {
        if taken.exists() {
            let path = taken.clone();
            let action = "use for the recovery, because it is there already,";
            let source = Error::from(ErrorKind::AlreadyExists);
            return Err(NodeError::Data(DataError::Io { path, action, source }));
        }
    }
    let (random, incarnation) = fresh_numbers()?;
    let mut rng = Rng::new(random);
    let identity = Identity { member: MemberId::drawn(rng.next_u64()), incarnation };
    let cluster = ClusterId::drawn(rng.next_u64());
    let (formed, formation) = founding(survivor, identity.node(), cluster)?;
    let copied = survivor
        .copy_as(&new, LogOptions::default(), (identity, &formed), &formation)
        .and_then(|()| check(survivor, &new));
    if let Err(error) = copied {
        // What is left of it would only be in the way.
        fs::remove_dir_all(&new).ok();
        return Err(NodeError::Data(error));
    }
    let rename = |from: &Path, to: &Path| {
        fs::rename(from, to).and_then(|()| sync_parent(dir)).map_err(|source| {
            NodeError::Data(DataError::Io { path: from.to_path_buf(), action: "rename", source })
        })
    };
    rename(dir, &kept)?;
    rename(&new, dir)?;
    Ok(Recovered { cluster: formed.cluster, member: identity.member, kept })
}

/// How the new cluster begins: with one voter that has the old one's attributes.
fn founding(
    survivor: &Survivor<StdDisk>,
    node: NodeId,
    cluster: ClusterId,
) -> Result<(Formed, Bytes), NodeError> {
    let old = survivor.identity().node();
    let membership = survivor.membership();
    // Whoever was removed knows only what the cluster was then.
    let Some(member) = membership.member(old) else { return Err(NodeError::Removed) };
    let members = Membership::from_voters([(node, member.info.clone())]);
    let chosen = FormationState::decode(survivor.formation()).and_then(|state| state.chosen);
    let configured = chosen.map(|founding| founding.configured).unwrap_or_default();
    let founding = Founding { cluster, configured, members: members.clone() };
    let state = FormationState { chosen: Some(founding), ..FormationState::default() };
    let group = survivor.formed().group;
    Ok((Formed { cluster, group, members }, state.encode()))
}

/// Reads the copy back before anything rests on it.
fn check(survivor: &Survivor<StdDisk>, new: &Path) -> Result<(), DataError> {
    let found = examine(&StdDisk, new, &mut |_, _| {})?;
    let last = found.log.as_ref().map(|log| log.last);
    match found.damages.first() {
        None if last == Some(survivor.last()) => Ok(()),
        None => Err(DataError::Damaged {
            path: new.to_path_buf(),
            offset: None,
            problem: format!("the copy's log ends at {last:?}, not at {}", survivor.last()),
        }),
        Some(damage) => Err(DataError::Damaged {
            path: damage.path.clone(),
            offset: Some(damage.offset),
            problem: format!("the copy is damaged: {}", damage.problem),
        }),
    }
}

pub(super) fn sync_parent(dir: &Path) -> Result<(), Error> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
}
