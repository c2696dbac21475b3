//! A data directory that begins with a snapshot: that of a member of a cluster which never had an empty log.

use std::path::Path;

use raft_core::{
    EntryId, EntryKind, HardState, Persist, SnapshotError, SnapshotMeta, SnapshotSink, Ticket,
};

use super::body::origin;
use super::snapshot::SnapshotStore;
use super::{Formed, Identity, Log, LogOptions, Opened};
use crate::error::DataError;
use crate::io::Disk;

/// The entry that the snapshot stands for. Nobody has ever had it.
const FIRST: EntryId = EntryId::new(1, 1);

/// Writes the new directory `to`: that of the member `identity` of the cluster `formed`, whose log begins behind the
/// snapshot that `write` puts into the sink. All members of the cluster must begin with the same one. Durable on return;
/// counts as stopped cleanly.
///
/// # Errors
/// Those of `write`, and when the disk refuses. What was written until then is to be removed.
pub fn seed<D: Disk>(
    disk: D,
    to: &Path,
    (identity, formed): (Identity, &Formed),
    formation: &[u8],
    write: impl FnOnce(&mut dyn SnapshotSink) -> Result<(), SnapshotError>,
) -> Result<(), SeedError> {
    let Opened { mut log, .. } = Log::open(disk.clone(), to, LogOptions::default(), identity)?;
    log.set_formation_state(formation).map_err(DataError::from)?;
    let origin = origin(formed).digest;
    let meta = SnapshotMeta {
        last_included: FIRST,
        digest: formed.log_identity().chain(origin, FIRST, EntryKind::Empty, &[]),
        membership: formed.members.clone(),
    };
    let mut store = SnapshotStore::open(disk, to).map_err(SeedError::Snapshot)?;
    let mut writer = store.begin(meta.clone());
    write(&mut writer).map_err(SeedError::Snapshot)?;
    writer.commit().map_err(SeedError::Snapshot)?;
    log.form(formed).map_err(DataError::from)?;
    let persist = Persist {
        hard_state: Some(HardState { current_term: FIRST.term, voted_for: None }),
        snapshot: Some(meta),
        truncate_from: None,
        entries: Vec::new(),
        compact_to: None,
        ticket: Ticket::for_copies(),
    };
    let written = log.write(vec![persist]).map_err(DataError::from)?;
    if written.is_empty() {
        let source = std::io::ErrorKind::StorageFull.into();
        return Err(DataError::Io { path: to.to_path_buf(), action: "write", source }.into());
    }
    log.close().map_err(DataError::from)?;
    Ok(())
}

/// Why a directory was not written.
#[derive(Debug)]
#[non_exhaustive]
pub enum SeedError {
    /// The directory cannot be used.
    Data(DataError),
    /// The snapshot cannot be written, or is none.
    Snapshot(SnapshotError),
}

impl From<DataError> for SeedError {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}
