//! Where a database is: a file that was saved, or the folder of an etcd that is stopped.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::wal;
use crate::bbolt::{Bytes as _, ReadError};

/// Bytes of the checksum behind a snapshot.
pub(crate) const CHECKSUM_BYTES: u64 = 32;
/// Pages are a multiple of so many bytes long.
const SECTOR_BYTES: u64 = 512;
/// Bytes hashed in one go.
const SLICE_BYTES: usize = 1 << 20;

/// Why a database is refused: what is wrong, and what would be right.
#[derive(Debug)]
pub(crate) struct DbError {
    pub(crate) path: PathBuf,
    pub(crate) wrong: String,
    pub(crate) right: String,
}

impl DbError {
    pub(super) fn new(path: &Path, wrong: impl Into<String>, right: impl Into<String>) -> Self {
        Self { path: path.to_path_buf(), wrong: wrong.into(), right: right.into() }
    }

    pub(super) fn io(path: &Path, error: &io::Error) -> Self {
        Self::new(
            path,
            format!("it cannot be read: {error}"),
            "a file of `etcdctl snapshot save`, or the --data-dir of an etcd that is stopped",
        )
    }

    pub(super) fn read(path: &Path, error: &ReadError) -> Self {
        Self::new(path, error.to_string(), "a whole file, as `etcdctl snapshot save` writes it")
    }
}

impl std::fmt::Display for DbError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, wrong, right } = self;
        write!(f, "{} is refused\n\n  wrong  {wrong}\n  right  {right}", path.display())
    }
}

/// An opened database whose checksum, if it has one, was compared.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// SHA-256 over them.
    pub(crate) digest: [u8; 32],
    /// The folder of etcd's log, if this is one's data folder.
    wal: Option<PathBuf>,
}

impl Source {
    /// Opens a file, or the database in a data folder of etcd. `progress` hears how many bytes of how many were read.
    ///
    /// # Errors
    /// What is neither, is in use, or has another checksum; a file without one, unless `skip_hash_check`.
    pub(crate) fn open(
        path: &Path,
        skip_hash_check: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, DbError> {
        if path.is_dir() {
            return Self::open_folder(path, progress);
        }
        let file = File::open(path).map_err(|error| DbError::io(path, &error))?;
        let length = file.length().map_err(|error| DbError::io(path, &error))?;
        let has_checksum = length % SECTOR_BYTES == CHECKSUM_BYTES;
        if !has_checksum && !skip_hash_check {
            return Err(DbError::new(
                path,
                format!(
                    "it has no checksum at its end: it is cut off, or no snapshot ({length} bytes)"
                ),
                "a file of `etcdctl snapshot save`; of a database that was copied: --skip-hash-check",
            ));
        }
        let bytes = if has_checksum { length - CHECKSUM_BYTES } else { length };
        let digest = digest(&file, bytes, progress).map_err(|error| DbError::io(path, &error))?;
        if has_checksum && !skip_hash_check {
            let mut expected = [0u8; 32];
            file.read_at(bytes, &mut expected).map_err(|error| DbError::io(path, &error))?;
            if expected != digest {
                return Err(DbError::new(
                    path,
                    "its checksum does not hold: the file was changed, or bytes are missing",
                    "another copy; to look at this one all the same: --skip-hash-check",
                ));
            }
        }
        Ok(Self { path: path.to_path_buf(), file, digest, wal: None })
    }

    fn open_folder(folder: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Self, DbError> {
        let path = folder.join("member/snap/db");
        if !path.is_file() {
            return Err(DbError::new(
                folder,
                "it is a folder without member/snap/db",
                "the --data-dir of an etcd that is stopped, or a file of `etcdctl snapshot save`",
            ));
        }
        let file = File::open(&path).map_err(|error| DbError::io(&path, &error))?;
        // etcd holds it while it runs. Given back when the file is closed.
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DbError::new(
                    folder,
                    "an etcd runs on it",
                    "stop it first; or its address instead of its folder: http://127.0.0.1:2379",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(DbError::io(&path, &error)),
        }
        let bytes = file.length().map_err(|error| DbError::io(&path, &error))?;
        let digest = digest(&file, bytes, progress).map_err(|error| DbError::io(&path, &error))?;
        Ok(Self { path, file, digest, wal: Some(folder.join("member/wal")) })
    }

    /// Refuses a data folder whose log has changes that its database lacks: everything up to `index` it has.
    ///
    /// # Errors
    /// Those changes; a log that cannot be read.
    pub(crate) fn check_log(&self, index: u64) -> Result<(), DbError> {
        let Some(folder) = &self.wal else { return Ok(()) };
        let ahead =
            wal::changes_after(folder, index).map_err(|error| DbError::io(folder, &error))?;
        if let Some(last) = ahead {
            return Err(DbError::new(
                folder,
                format!(
                    "the log goes on to a change at index {last}, the database ends at {index}: etcd was not stopped \
                     in an orderly way"
                ),
                "start that etcd once more and stop it with SIGTERM; or start it and import from its address",
            ));
        }
        Ok(())
    }
}

fn digest(file: &File, bytes: u64, progress: &mut dyn FnMut(u64, u64)) -> io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut slice = vec![0; SLICE_BYTES];
    let mut at = 0;
    while at < bytes {
        let left = usize::try_from(bytes - at).unwrap_or(SLICE_BYTES).min(SLICE_BYTES);
        file.read_at(at, &mut slice[..left])?;
        hasher.update(&slice[..left]);
        at += u64::try_from(left).unwrap_or(u64::MAX);
        progress(at, bytes);
    }
    Ok(hasher.finalize().into())
}
