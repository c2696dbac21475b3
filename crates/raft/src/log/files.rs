//! Writing, syncing and naming files, with the latch that the first failure closes for good.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_core::mutant;

use super::LatchError;
use crate::error::DataError;
use crate::io::{Disk, DiskFile, OpenMode};

/// The data directory's files.
pub(super) struct Files<D: Disk> {
    pub(super) disk: D,
    pub(super) dir: PathBuf,
    latched: Option<LatchError>,
}

impl<D: Disk> Files<D> {
    pub(super) const fn new(disk: D, dir: PathBuf) -> Self {
        Self { disk, dir, latched: None }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The first failure, if there was one.
    pub(super) const fn latched(&self) -> Option<&LatchError> {
        self.latched.as_ref()
    }

    pub(super) fn check(&self) -> Result<(), LatchError> {
        self.latched.clone().map_or(Ok(()), Err)
    }

    /// Closes the latch when an operation on `path` failed.
    pub(super) fn guard<T>(
        &mut self,
        path: &Path,
        outcome: io::Result<T>,
    ) -> Result<T, LatchError> {
        outcome.map_err(|error| {
            let latch = LatchError { path: path.to_path_buf(), source: Arc::new(error) };
            self.latched.get_or_insert(latch).clone()
        })
    }

    pub(super) fn write(
        &mut self,
        path: &Path,
        file: &D::File,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), LatchError> {
        self.check()?;
        self.guard(path, file.write_at(offset, bytes))
    }

    /// One sync, never retried: after a failure the system may have dropped the bytes and call them clean.
    pub(super) fn sync(&mut self, path: &Path, file: &D::File) -> Result<(), LatchError> {
        self.check()?;
        let outcome = file.sync();
        if mutant::is_active(26) && outcome.is_err() {
            return Ok(());
        }
        self.guard(path, outcome)
    }

    pub(super) fn sync_dir(&mut self) -> Result<(), LatchError> {
        self.check()?;
        if mutant::is_active(27) {
            return Ok(());
        }
        let outcome = self.disk.sync_dir(&self.dir);
        let dir = self.dir.clone();
        self.guard(&dir, outcome)
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), LatchError> {
        self.check()?;
        let outcome = self.disk.rename(from, to);
        self.guard(to, outcome)
    }

    pub(super) fn remove(&mut self, path: &Path) -> Result<(), LatchError> {
        self.check()?;
        let outcome = self.disk.remove(path);
        self.guard(path, outcome)
    }

    pub(super) fn open(&mut self, path: &Path, mode: OpenMode) -> Result<D::File, LatchError> {
        self.check()?;
        let outcome = self.disk.open(path, mode);
        self.guard(path, outcome)
    }

    /// Writes a whole file beside its name and renames it there: it is there whole or not at all. Durable
    /// once the directory is synced.
    pub(super) fn create(&mut self, name: &str, bytes: &[u8]) -> Result<(), LatchError> {
        let (path, new) = (self.path(name), self.path(&format!("{name}.new")));
        let exists = self.disk.exists(&new);
        if self.guard(&new, exists)? {
            self.remove(&new)?;
        }
        let file = self.open(&new, OpenMode::CreateNew)?;
        self.write(&new, &file, 0, bytes)?;
        self.sync(&new, &file)?;
        self.rename(&new, &path)
    }

    /// A file's content; `None` when there is no such file.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DataError> {
        read_file(&self.disk, &self.path(name))
    }
}

/// A file's content; `None` when there is no such file.
pub(super) fn read_file<D: Disk>(disk: &D, path: &Path) -> Result<Option<Vec<u8>>, DataError> {
    let refused = |source| DataError::Io { path: path.to_path_buf(), action: "read", source };
    let file = match disk.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(error)),
    };
    let len = file.len().map_err(refused)?;
    let mut bytes = vec![0; super::record::to_usize(len)];
    file.read_at(0, &mut bytes).map_err(refused)?;
    Ok(Some(bytes))
}

impl From<LatchError> for DataError {
    fn from(latch: LatchError) -> Self {
        let source = io::Error::new(latch.source.kind(), latch.source.to_string());
        Self::Io { path: latch.path, action: "write", source }
    }
}
