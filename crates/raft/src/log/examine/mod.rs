//! A whole data directory, read and checked and not changed: what `rusty-raft inspect` and `verify` show.
//!
//! The decoders are those of recovery, and so are the decisions. What differs: damage does not end the reading, so that
//! all of it is found, and payloads are dropped once they are checked, so that memory is bounded by two segments and one
//! blob, whatever the directory holds.
//!
//! Deliberately absent: any repair, and any word on what the state machine makes of its own bytes.

mod batches;
mod segments;
mod small;
mod snapshots;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft_core::{EntryId, HardState, Index, Membership, Term};

use super::files::Files;
use super::hard_state::Promises;
use super::open::Found;
use super::segment::{is_spare_name, parse_segment_name};
use super::{Formed, Identity};
use crate::error::DataError;
use crate::io::{Disk, DiskFile, OpenMode};

/// Damages that are listed; the others are counted.
const DAMAGES_MAX: usize = 10_000;

/// What depends on damaged bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Effect {
    /// Nothing is stored there.
    Unused,
    /// Another copy, what is left of the same batch, or a snapshot and the log, stands in for it.
    Covered,
    /// The payload of an entry that is known by index, term and digest: a member takes part again once another one has
    /// handed it out.
    Fetched,
    /// A start needs it: the member refuses.
    Needed,
}

/// Bytes that are not what was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The file, or the folder when a file is missing from it.
    pub path: PathBuf,
    /// Where in it the damage begins.
    pub offset: u64,
    /// How far it is known to reach; 0 when only its beginning is known.
    pub bytes: u64,
    /// What is wrong.
    pub problem: String,
    /// What depends on it.
    pub effect: Effect,
}

/// One of the four slots of the file `promises`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Counts the writes.
    pub version: u64,
    /// Term and vote.
    pub hard_state: HardState,
    /// The durable epoch (decision 10).
    pub durable_epoch: u64,
    /// Batches up to this one were synced when it was written.
    pub sync_epoch: u64,
    /// Where the log ended then.
    pub last: EntryId,
    /// It was the last write before a clean stop.
    pub clean: bool,
}

impl From<&Promises> for Slot {
    fn from(promises: &Promises) -> Self {
        Self {
            version: promises.version,
            hard_state: promises.hard_state,
            durable_epoch: promises.durable_epoch,
            sync_epoch: promises.sync_epoch,
            last: promises.last,
            clean: promises.clean,
        }
    }
}

/// One segment of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentSummary {
    /// Its number, as in its name.
    pub number: u32,
    /// Bytes of the file.
    pub bytes: u64,
    /// Where the log ended when it was begun, and where it ends at its end; `None` when its header is damaged.
    pub positions: Option<(EntryId, EntryId)>,
    /// First and last index of the entries in it that the log still needs.
    pub indexes: Option<(Index, Index)>,
    /// Lowest and highest term among them.
    pub terms: Option<(Term, Term)>,
    /// Batches that are intact, up to the first that is not.
    pub batches: u64,
    /// The sync epoch before it, and the last one in it.
    pub sync_epochs: (u64, u64),
    /// The durable epoch that began with it.
    pub durable_epoch: u64,
    /// Bytes between its last record and its last identifier.
    pub free_bytes: u64,
    /// It was made ready and never used.
    pub unused: bool,
}

/// The log as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSummary {
    /// Entries up to here are gone or may go.
    pub compacted: EntryId,
    /// Where it ends.
    pub last: EntryId,
    /// The last batch.
    pub sync_epoch: u64,
    /// A batch that was never acknowledged stands at its end; the next start drops it.
    pub torn_epoch: Option<u64>,
    /// The newest configuration, committed or not.
    pub membership: Membership,
}

/// One snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotSummary {
    /// The last entry that it stands for.
    pub at: EntryId,
    /// Voters and learners there.
    pub membership: Membership,
    /// Its blobs.
    pub blobs: usize,
    /// Their content.
    pub bytes: u64,
    /// All of them are here and intact.
    pub whole: bool,
}

/// Everything that a data directory holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Examination {
    /// The directory.
    pub dir: PathBuf,
    /// Whose it is; `None` when that is lost.
    pub identity: Option<Identity>,
    /// Of which cluster; `None` when it belongs to none, or that is lost.
    pub formed: Option<Formed>,
    /// What formation stored there last; empty when nothing.
    pub formation: Bytes,
    /// The slots of the file `promises` in order; `None` for a damaged one.
    pub slots: Vec<Option<Slot>>,
    /// What two slots agree on.
    pub promises: Option<Slot>,
    /// In order of their numbers.
    pub segments: Vec<SegmentSummary>,
    /// `None` when there is no segment, or none that can be understood.
    pub log: Option<LogSummary>,
    /// Oldest first.
    pub snapshots: Vec<SnapshotSummary>,
    /// Segments to be, with their lengths.
    pub spares: Vec<(String, u64)>,
    /// Beginnings of files and whatever else lies around, with lengths.
    pub others: Vec<(String, u64)>,
    /// In order of path and offset.
    pub damages: Vec<Damage>,
    /// Damages beyond those that are listed.
    pub damages_unlisted: u64,
    /// Bytes that were read and checked.
    pub bytes_read: u64,
}

impl Examination {
    /// Whether a start needs something that is damaged, and not even known.
    #[must_use]
    pub fn is_unusable(&self) -> bool {
        self.damages.iter().any(|damage| damage.effect == Effect::Needed)
    }

    /// Whether a start has to wait for what other members have of damaged entries.
    #[must_use]
    pub fn needs_others(&self) -> bool {
        self.damages.iter().any(|damage| damage.effect == Effect::Fetched)
    }
}

/// Is told how many bytes have been read, and of how many.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Reads everything in a data directory and checks every checksum in it. Changes nothing. `progress` is called now and
/// then.
///
/// # Errors
/// [`DataError::NoData`] when there is nothing of a node there, [`DataError::Locked`] when one runs on it,
/// [`DataError::NewerFormat`], and what the disk refuses. Damage is no error.
pub fn examine<D: Disk>(
    disk: &D,
    dir: &Path,
    progress: Progress<'_>,
) -> Result<Examination, DataError> {
    let (_lock, names) = open(disk, dir)?;
    let files = Files::new(disk.clone(), dir.to_path_buf());
    let found = Found::look(&files, &names)?;
    let mut examiner = Examiner {
        disk,
        dir,
        bytes_total: total_bytes(disk, dir, &names)?,
        bytes_read: 0,
        damages: Vec::new(),
        damages_unlisted: 0,
        progress,
    };
    if let Some((name, version)) = found.newer() {
        return Err(DataError::NewerFormat {
            path: files.path(name),
            found: version,
            supported: super::segment::FORMAT_VERSION,
        });
    }
    let slots = examiner.small_files(&found, &files)?;
    let snapshots = examiner.manifests()?;
    let log = examiner.segments(&found, &snapshots)?;
    let (segments, log) = (log.summaries, log.replayed);
    let (snapshots, intact) = examiner.blobs(snapshots, log.as_ref(), &found)?;
    if let Some(log) = &log {
        examiner.batches(log, &intact, found.owner());
    }
    let others = examiner.others(&names)?;
    let identity = found.identity.as_ref().and_then(|found| found.as_ref().ok()).copied();
    let formed = found.cluster.as_ref().and_then(|found| found.as_ref().ok());
    let spares = names.iter().filter(|name| is_spare_name(name));
    let spares = spares.map(|name| Ok((name.clone(), examiner.length(&dir.join(name))?)));
    let spares = spares.collect::<Result<_, DataError>>()?;
    let Examiner { mut damages, damages_unlisted, bytes_read, .. } = examiner;
    damages.sort_by(|a, b| (&a.path, a.offset).cmp(&(&b.path, b.offset)));
    Ok(Examination {
        dir: dir.to_path_buf(),
        identity,
        formed: formed.map(|(_, formed)| formed.clone()),
        formation: found.formation.1.clone(),
        promises: found.agreed().map(Slot::from),
        slots,
        segments,
        log: log.map(|log| log.summary),
        snapshots,
        spares,
        others,
        damages,
        damages_unlisted,
        bytes_read,
    })
}

/// Takes the lock of a data directory that is there, without making any file; the names in it.
pub(super) fn open<D: Disk>(
    disk: &D,
    dir: &Path,
) -> Result<(Option<D::Lock>, Vec<String>), DataError> {
    let no_data = || DataError::NoData { path: dir.to_path_buf() };
    let refused = |action| {
        move |source: std::io::Error| {
            let path = dir.to_path_buf();
            if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) {
                return DataError::NoData { path };
            }
            DataError::Io { path, action, source }
        }
    };
    let names = disk.list(dir).map_err(refused("list"))?;
    let ours = |name: &String| {
        ["identity", "promises", "formation", "cluster"].contains(&name.as_str())
            || parse_segment_name(name).is_some()
    };
    if !names.iter().any(ours) {
        return Err(no_data());
    }
    if !names.iter().any(|name| name == "lock") {
        return Ok((None, names));
    }
    match disk.lock(dir) {
        Ok(lock) => Ok((Some(lock), names)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(DataError::Locked { path: dir.to_path_buf() })
        }
        // Then nobody writes to it either.
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => Ok((None, names)),
        Err(error) => Err(refused("lock")(error)),
    }
}

fn total_bytes<D: Disk>(disk: &D, dir: &Path, names: &[String]) -> Result<u64, DataError> {
    let snapshot = dir.join("snapshot");
    let blobs = if names.iter().any(|name| name == "snapshot") {
        disk.list(&snapshot).map_err(|source| DataError::Io {
            path: snapshot.clone(),
            action: "list",
            source,
        })?
    } else {
        Vec::new()
    };
    let read = |name: &&String| name.ends_with(".log");
    let segments = names.iter().filter(read).map(|name| dir.join(name));
    let paths = segments.chain(blobs.iter().map(|name| snapshot.join(name)));
    paths.map(|path| length(disk, &path)).sum()
}

fn length<D: Disk>(disk: &D, path: &Path) -> Result<u64, DataError> {
    let length = disk.open(path, OpenMode::Read).and_then(|file| file.len());
    length.map_err(|source| DataError::Io { path: path.to_path_buf(), action: "open", source })
}

/// What has been read so far.
struct Examiner<'a, D: Disk> {
    disk: &'a D,
    dir: &'a Path,
    bytes_total: u64,
    bytes_read: u64,
    damages: Vec<Damage>,
    damages_unlisted: u64,
    progress: Progress<'a>,
}

impl<D: Disk> Examiner<'_, D> {
    fn damage(&mut self, path: &Path, (offset, bytes): (u64, u64), effect: Effect, problem: &str) {
        if self.damages.len() < DAMAGES_MAX {
            // What a start says about changes and peers is for whoever starts.
            let problem = problem.split(". Nothing was changed").next().unwrap_or(problem);
            let path = path.to_path_buf();
            self.damages.push(Damage { path, offset, bytes, problem: problem.to_owned(), effect });
        } else {
            self.damages_unlisted += 1;
        }
    }

    /// What recovery says about a file, as a damage; whatever is none is passed on.
    fn note(&mut self, error: DataError, path: &Path) -> Result<(), DataError> {
        if let DataError::Damaged { path, offset, problem } = error {
            self.damage(&path, (offset.unwrap_or(0), 0), Effect::Needed, &problem);
        } else if matches!(
            error,
            DataError::Amnesic { .. }
                | DataError::OtherCluster { .. }
                | DataError::OtherMember { .. }
        ) {
            self.damage(path, (0, 0), Effect::Needed, &error.to_string());
        } else {
            return Err(error);
        }
        Ok(())
    }

    /// Counts bytes that were read and tells whoever waits.
    fn advance(&mut self, bytes: u64) {
        self.bytes_read += bytes;
        (self.progress)(self.bytes_read, self.bytes_total.max(self.bytes_read));
    }

    fn length(&self, path: &Path) -> Result<u64, DataError> {
        length(self.disk, path)
    }

    /// Whatever lies around: beginnings of files, and what this program does not know.
    fn others(&self, names: &[String]) -> Result<Vec<(String, u64)>, DataError> {
        let known = ["lock", "identity", "promises", "formation", "cluster", "snapshot"];
        let unknown = |name: &&String| {
            !known.contains(&name.as_str())
                && parse_segment_name(name).is_none()
                && !is_spare_name(name)
        };
        let others = names.iter().filter(unknown);
        others.map(|name| Ok((name.clone(), self.length(&self.dir.join(name))?))).collect()
    }
}
