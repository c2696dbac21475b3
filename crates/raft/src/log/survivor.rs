//! A data directory that is read as a start would read it, and copied as that of another node in another cluster: what is
//! left when a quorum is lost for ever.
//!
//! The directory itself is not changed. Every entry of its log counts as committed in the copy, because nobody is left who
//! could say otherwise; entries that were configurations are empty there, at the same index and term.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft_core::{
    BlobId, Entry, EntryId, EntryKind, HardState, Membership, Persist, SnapshotError, SnapshotMeta,
    SnapshotSink as _, SnapshotSource, Ticket,
};

use super::body::origin;
use super::examine;
use super::files::Files;
use super::open::{Found, Recovery};
use super::snapshot::{SnapshotStore, check_blob, list_manifests};
use super::{Formed, Identity, Log, LogOptions, Opened};
use crate::error::DataError;
use crate::io::Disk;

/// Payload bytes that are written with one sync.
const BATCH_BYTES: usize = 4 << 20;

/// Damaged entries that a message names.
const NAMED_MAX: usize = 10;

/// A member's data directory, locked while this lives.
pub struct Survivor<D: Disk> {
    disk: D,
    dir: PathBuf,
    identity: Identity,
    formed: Formed,
    formation: Bytes,
    hard_state: HardState,
    recovery: Recovery,
    /// Held, never looked at.
    _lock: Option<D::Lock>,
}

impl<D: Disk> Survivor<D> {
    /// Reads the directory; changes nothing.
    ///
    /// # Errors
    /// Those of a start; [`DataError::NoData`] when it belongs to no member of a cluster; and [`DataError::Damaged`] when
    /// payloads are missing that a start would ask other members for, with the entries.
    pub fn open(disk: D, dir: &Path) -> Result<Self, DataError> {
        let (lock, names) = examine::open(&disk, dir)?;
        let files = Files::new(disk.clone(), dir.to_path_buf());
        let found = Found::look(&files, &names)?;
        let (Some(identity), Some(formed)) = found.judge(found.case(), &files)? else {
            return Err(DataError::NoData { path: dir.to_path_buf() });
        };
        let recovery = Recovery::read(&files, identity, formed.clone(), &found)?;
        if let Some(first) = recovery.missing.first() {
            let ids: Vec<String> =
                recovery.missing.iter().take(NAMED_MAX).map(|it| it.id.to_string()).collect();
            let more = recovery.missing.len() - ids.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            return Err(DataError::Damaged {
                path: first.path.clone(),
                offset: Some(first.offset),
                problem: format!(
                    "the payloads of these entries are damaged, and other members may have them: {}{more}",
                    ids.join(", ")
                ),
            });
        }
        Ok(Self {
            disk,
            dir: dir.to_path_buf(),
            identity,
            formed,
            formation: found.formation.1.clone(),
            hard_state: found.promises.hard_state,
            recovery,
            _lock: lock,
        })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whose it is.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// Of which cluster.
    #[must_use]
    pub const fn formed(&self) -> &Formed {
        &self.formed
    }

    /// What formation stored there last; empty when nothing.
    #[must_use]
    pub const fn formation(&self) -> &Bytes {
        &self.formation
    }

    /// Term and vote.
    #[must_use]
    pub const fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Where its log ends. Of several members, the one whose term, then whose index is higher has more (§5.4.1).
    #[must_use]
    pub const fn last(&self) -> EntryId {
        if self.recovery.superseded { self.snapshot() } else { self.recovery.replay.last.id }
    }

    /// The newest snapshot: up to here it is known to be committed.
    #[must_use]
    pub const fn snapshot(&self) -> EntryId {
        self.recovery.snapshot.last_included
    }

    /// The newest configuration in its log, committed or not.
    #[must_use]
    pub fn membership(&self) -> Membership {
        self.recovery.memberships().pop().unwrap_or_default()
    }

    /// What the newest snapshot stands for.
    #[must_use]
    pub fn snapshot_meta(&self) -> SnapshotMeta {
        self.recovery.snapshot.clone()
    }

    /// The newest snapshot's blobs; `None` when there is none.
    ///
    /// # Errors
    /// When its list is missing.
    pub fn snapshot_source(&self) -> Result<Option<SurvivorSnapshot<D>>, DataError> {
        if self.snapshot() == EntryId::ZERO {
            return Ok(None);
        }
        let dir = self.dir.join("snapshot");
        let manifests = list_manifests(&self.disk, &self.dir)?.intact;
        let manifest = manifests.into_iter().find(|(it, _)| *it == self.recovery.snapshot);
        let Some((_, blobs)) = manifest else {
            return Err(damaged(&dir, format!("no snapshot at {} is there", self.snapshot())));
        };
        Ok(Some(SurvivorSnapshot { disk: self.disk.clone(), dir, blobs }))
    }

    /// The entries of its log, in order; the snapshot may hold the first of them already.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let superseded = self.recovery.superseded;
        self.recovery.replay.entries.iter().map(|(_, entry)| entry).filter(move |_| !superseded)
    }

    /// Writes its state and its whole log into the new directory `to`, as those of node `identity` in the cluster
    /// `formed`. Durable on return; counts as stopped cleanly.
    ///
    /// # Errors
    /// When a blob is damaged or the disk refuses. What was written until then is to be removed.
    pub fn copy_as(
        &self,
        to: &Path,
        options: LogOptions,
        (identity, formed): (Identity, &Formed),
        formation: &[u8],
    ) -> Result<(), DataError> {
        let Opened { mut log, .. } = Log::open(self.disk.clone(), to, options, identity)?;
        log.set_formation_state(formation)?;
        let at = self.recovery.snapshot.last_included;
        let snapshot = (at != EntryId::ZERO).then(|| SnapshotMeta {
            last_included: at,
            // Where the chain of the new cluster's digests begins: nobody else has one of it.
            digest: formed.log_identity().chain(
                self.recovery.snapshot.digest,
                at,
                EntryKind::Empty,
                &[],
            ),
            membership: formed.members.clone(),
        });
        if let Some(meta) = &snapshot {
            self.copy_snapshot(to, meta)?;
        }
        log.form(formed)?;
        let mut digest =
            snapshot.as_ref().map_or_else(|| origin(formed).digest, |meta| meta.digest);
        let hard_state = HardState { voted_for: None, ..self.hard_state };
        let empty = || Persist {
            hard_state: None,
            snapshot: None,
            truncate_from: None,
            entries: Vec::new(),
            compact_to: None,
            ticket: Ticket::for_copies(),
        };
        let mut persist = Persist { hard_state: Some(hard_state), snapshot, ..empty() };
        let mut bytes = 0;
        let entries = self.recovery.replay.entries.iter().map(|(_, entry)| entry);
        for entry in entries.filter(|entry| entry.id.index > at.index) {
            let (kind, payload) = match entry.kind {
                EntryKind::Membership => (EntryKind::Empty, Bytes::new()),
                EntryKind::Empty | EntryKind::Command => (entry.kind, entry.payload.clone()),
            };
            digest = formed.log_identity().chain(digest, entry.id, kind, &payload);
            bytes += payload.len();
            persist.entries.push(Entry { id: entry.id, kind, digest, payload });
            if bytes >= BATCH_BYTES {
                write(&mut log, to, std::mem::replace(&mut persist, empty()))?;
                bytes = 0;
            }
        }
        write(&mut log, to, persist)?;
        log.close()?;
        Ok(())
    }

    /// Copies every blob, each checked, and lists them in a manifest of `meta`.
    fn copy_snapshot(&self, to: &Path, meta: &SnapshotMeta) -> Result<(), DataError> {
        let new = to.join("snapshot");
        let failed = |problem: SnapshotError| damaged(&new, problem.to_string());
        let Some(source) = self.snapshot_source()? else { return Ok(()) };
        let mut store = SnapshotStore::open(self.disk.clone(), to).map_err(failed)?;
        let mut writer = store.begin(meta.clone());
        for id in &source.blobs {
            writer.put(&source.check(*id)?).map_err(failed)?;
        }
        writer.commit().map_err(failed)?;
        Ok(())
    }
}

/// The newest snapshot of a [`Survivor`]. Changes nothing, damage or not.
pub struct SurvivorSnapshot<D: Disk> {
    disk: D,
    dir: PathBuf,
    blobs: Vec<BlobId>,
}

impl<D: Disk> SurvivorSnapshot<D> {
    fn check(&self, id: BlobId) -> Result<Bytes, DataError> {
        check_blob(&self.disk, &self.dir, id).map(Bytes::from).map_err(|fault| {
            let (path, offset) = (fault.path, Some(fault.offset));
            DataError::Damaged { path, offset, problem: fault.problem }
        })
    }
}

impl<D: Disk> SnapshotSource for SurvivorSnapshot<D> {
    fn blobs(&self) -> &[BlobId] {
        &self.blobs
    }

    fn read(&self, position: usize) -> Result<Bytes, SnapshotError> {
        let Some(id) = self.blobs.get(position) else {
            return Err(SnapshotError::Undecodable("no such blob".to_owned()));
        };
        self.check(*id).map_err(|error| SnapshotError::Undecodable(error.to_string()))
    }
}

fn damaged(path: &Path, problem: String) -> DataError {
    DataError::Damaged { path: path.to_path_buf(), offset: None, problem }
}

fn write<D: Disk>(log: &mut Log<D>, to: &Path, persist: Persist) -> Result<(), DataError> {
    if log.write(vec![persist])?.is_empty() {
        let source = std::io::ErrorKind::StorageFull.into();
        return Err(DataError::Io { path: to.to_path_buf(), action: "write", source });
    }
    Ok(())
}
