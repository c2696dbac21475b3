//! A cluster that begins with what another program has stored: its members' directories, written before any is started.

use std::fs;
use std::path::{Path, PathBuf};

use raft_core::{ClusterId, GroupId, Incarnation, MemberId, Membership, Rng, SnapshotError};
use raft_core::{NodeId, SnapshotSink};

use crate::disk::StdDisk;
use crate::error::{DataError, NodeError};
use crate::log::examine::examine;
use crate::log::{Formed, Identity, SeedError, seed};
use crate::node::MemberInfo;
use crate::node::formation_message::{FormationState, Founding};
use crate::node::recover::{beside, sync_parent};

/// How the cluster begins. Members that are written on different machines agree when these are equal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seed {
    /// All identities follow from this number: that of the content and of whatever tells this cluster from others.
    pub number: u128,
    /// All members, in the same order everywhere.
    pub members: Vec<MemberInfo>,
}

impl Seed {
    /// The new cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        ClusterId::drawn(self.draw(0, "").next_u64())
    }

    /// Who the member at this place is.
    fn identity(&self, member: &MemberInfo) -> Identity {
        let mut rng = self.draw(1, &member.peer_address);
        let incarnation = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
        Identity {
            member: MemberId::drawn(rng.next_u64()),
            incarnation: Incarnation(incarnation.max(1)),
        }
    }

    fn draw(&self, kind: u8, what: &str) -> Rng {
        let text = [&self.number.to_le_bytes()[..], &[kind], what.as_bytes()].concat();
        Rng::new(xxhash_rust::xxh3::xxh3_64(&text))
    }

    fn formed(&self) -> Formed {
        let voters = self.members.iter().map(|member| {
            let Identity { member: id, incarnation } = self.identity(member);
            (NodeId { member: id, incarnation }, member.encode())
        });
        let members = Membership::from_voters(voters);
        Formed { cluster: self.cluster(), group: GroupId::FIRST, members }
    }

    /// Writes the directory of the member at place `index`: whole, or not at all. Durable on return. `write` puts the
    /// snapshot into the sink, the same for all members; `check` looks at what was written before it gets its name.
    ///
    /// # Errors
    /// When something is in the directory already, those of `write` and `check`, and when the disk refuses.
    pub fn write(
        &self,
        index: usize,
        dir: &Path,
        write: impl FnOnce(&mut dyn SnapshotSink) -> Result<(), SnapshotError>,
        check: impl FnOnce(&dyn raft_core::SnapshotSource) -> Result<(), SnapshotError>,
    ) -> Result<MemberId, NodeError> {
        let dir: PathBuf = dir.components().collect();
        let failed = |action: &'static str| {
            let path = dir.clone();
            move |source| NodeError::Data(DataError::Io { path, action, source })
        };
        let Some(member) = self.members.get(index) else { return Err(NodeError::Removed) };
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(failed("create the parent of"))?;
        }
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("use for a new member, because it is not empty,")(error));
            }
            Ok(()) | Err(_) => {}
        }
        let draft = beside(&dir, ".importing");
        if draft.exists() {
            // What an import left that was interrupted.
            fs::remove_dir_all(&draft)
                .map_err(failed("remove what an interrupted import left of"))?;
        }
        let formed = self.formed();
        let founding = Founding {
            cluster: formed.cluster,
            configured: self.members.iter().map(|member| member.peer_address.clone()).collect(),
            members: formed.members.clone(),
        };
        let state = FormationState { chosen: Some(founding), ..FormationState::default() }.encode();
        let identity = self.identity(member);
        let written = seed(StdDisk, &draft, (identity, &formed), &state, write)
            .map_err(|error| match error {
                SeedError::Data(error) => NodeError::Data(error),
                SeedError::Snapshot(error) => NodeError::Snapshot(error),
            })
            .and_then(|()| read_back(&draft, check));
        if let Err(error) = written {
            // What is left of it would only be in the way.
            fs::remove_dir_all(&draft).ok();
            return Err(error);
        }
        fs::rename(&draft, &dir)
            .and_then(|()| sync_parent(&dir))
            .map_err(failed("put in its place"))?;
        Ok(identity.member)
    }
}

/// Looks at every checksum before anything rests on what was written.
fn read_back(
    draft: &Path,
    check: impl FnOnce(&dyn raft_core::SnapshotSource) -> Result<(), SnapshotError>,
) -> Result<(), NodeError> {
    let found = examine(&StdDisk, draft, &mut |_, _| {}).map_err(NodeError::Data)?;
    if let Some(damage) = found.damages.first() {
        return Err(NodeError::Data(DataError::Damaged {
            path: damage.path.clone(),
            offset: Some(damage.offset),
            problem: format!("what was just written is damaged: {}", damage.problem),
        }));
    }
    let survivor = crate::log::Survivor::open(StdDisk, draft).map_err(NodeError::Data)?;
    let source = survivor.snapshot_source().map_err(NodeError::Data)?;
    source.map_or(Ok(()), |source| check(&source).map_err(NodeError::Snapshot))
}
