//! Reading everything again while the node runs, slowly: damage is found while others still have what is damaged.
//!
//! The scrubber only suspects. It reads beside the threads that write, and may see half of what they write just now;
//! what looks damaged twice is told to the owner of the file, who looks again and decides ([`Log::mend`](super::Log::mend),
//! [`SnapshotRequest::Mend`](super::snapshot::SnapshotRequest::Mend)). Sans-IO but for reading: who calls it decides
//! how fast it goes.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::hard_state::{Promises, SLOT_BYTES};
use super::identity::{CLUSTER_MAGIC, IDENTITY_MAGIC, MANIFEST_MAGIC, are_both_intact};
use super::record::{SECTOR_BYTES, SectorState, inspect, to_u64, to_usize};
use super::segment::{
    HEADER_BYTES, HEADER_COPY_OFFSET, SegmentHeader, is_spare_name, parse_segment_name,
};
use super::snapshot::{blob_step_end, first_bad_block, parse_blob_name};
use crate::io::{Disk, DiskFile, OpenMode};

/// Bytes read in one step, unless a small file or a block has more.
const STEP_BYTES: u64 = 128 << 10;

/// What looks damaged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Suspect {
    /// A file of the log's, or one of the small ones: to be judged by [`Log::mend`](super::Log::mend).
    Log(PathBuf, u64),
    /// A manifest or a blob: to be judged by the owner of the snapshots.
    Snapshot(PathBuf, u64),
}

/// What a step did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Step {
    /// Bytes that it read.
    pub bytes: u64,
    /// What looked damaged twice.
    pub suspect: Option<Suspect>,
    /// Everything has been read once: the next step begins anew.
    pub pass_ended: bool,
}

/// Where the reading is.
#[derive(Debug)]
pub struct Scrubber<D: Disk> {
    disk: D,
    dir: PathBuf,
    /// Files still to be read in this pass.
    waiting: VecDeque<PathBuf>,
    /// The one that is being read, and up to where.
    current: Option<(PathBuf, u64)>,
    /// What looked damaged once.
    doubtful: Option<(PathBuf, u64)>,
}

/// What a look at a part of a file found.
struct Look {
    bytes: u64,
    /// Where it looks damaged.
    bad: Option<u64>,
    /// Where to go on; `None`: the file is at its end, or gone.
    next: Option<u64>,
}

const GONE: Look = Look { bytes: 0, bad: None, next: None };

impl<D: Disk> Scrubber<D> {
    /// A scrubber of the data directory `dir`, about to begin its first pass.
    pub const fn new(disk: D, dir: PathBuf) -> Self {
        Self { disk, dir, waiting: VecDeque::new(), current: None, doubtful: None }
    }

    /// Reads a bounded part. What cannot be read is suspect, too; a file that is gone is not.
    pub fn step(&mut self) -> Step {
        let (path, offset) = match self.current.take() {
            Some(current) => current,
            None => {
                if self.waiting.is_empty() {
                    self.waiting = self.files();
                }
                let Some(path) = self.waiting.pop_front() else {
                    return Step { pass_ended: true, ..Step::default() };
                };
                (path, 0)
            }
        };
        let Look { bytes, bad, next } = self.look(&path, offset);
        let mut step = Step { bytes, ..Step::default() };
        match bad {
            Some(bad) if self.doubtful.take() != Some((path.clone(), bad)) => {
                // Perhaps it was just being written: the same again.
                self.doubtful = Some((path.clone(), bad));
                self.current = Some((path, offset));
                return step;
            }
            Some(bad) => {
                let in_snapshot = path.parent() != Some(self.dir.as_path());
                let suspect = if in_snapshot { Suspect::Snapshot } else { Suspect::Log };
                step.suspect = Some(suspect(path.clone(), bad));
            }
            None => {}
        }
        self.current = next.map(|next| (path, next));
        step.pass_ended = self.current.is_none() && self.waiting.is_empty();
        step
    }

    /// Everything that a start may need, and what the log will use next.
    fn files(&self) -> VecDeque<PathBuf> {
        let names = |dir: &Path| self.disk.list(dir).unwrap_or_default();
        let small = |name: &String| ["promises", "identity", "cluster"].contains(&name.as_str());
        let log = |name: &String| parse_segment_name(name).is_some() || is_spare_name(name);
        let own = names(&self.dir).into_iter().filter(|name| small(name) || log(name));
        let own = own.map(|name| self.dir.join(name));
        let snapshot = self.dir.join("snapshot");
        let stored = names(&snapshot).into_iter().filter(|name| {
            name.starts_with("manifest-") && !name.ends_with(".new")
                || parse_blob_name(name).is_some()
        });
        own.chain(stored.map(|name| snapshot.join(name))).collect()
    }

    fn look(&self, path: &Path, offset: u64) -> Look {
        let Ok(file) = self.disk.open(path, OpenMode::Read) else { return GONE };
        let Ok(len) = file.len() else { return GONE };
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let read = |from: u64, to: u64| {
            let mut bytes = vec![0; to_usize(to.saturating_sub(from))];
            file.read_at(from, &mut bytes).ok().map(|()| bytes)
        };
        let sectors = parse_segment_name(&name).is_some() || is_spare_name(&name);
        if let Some(blob) = parse_blob_name(&name) {
            let to = blob_step_end(offset).min(len);
            let bad = match read(offset, to) {
                Some(bytes) => first_bad_block(blob, (offset, len), &bytes),
                None => Some(offset),
            };
            return Look { bytes: to - offset, bad, next: (to < len).then_some(to) };
        }
        if !sectors {
            let bad = match read(0, len) {
                Some(bytes) => bad_small_file(&name, &bytes),
                None => Some(0),
            };
            return Look { bytes: len, bad, next: None };
        }
        let to = (offset + STEP_BYTES).min(len);
        let bad = match read(offset, to) {
            Some(bytes) => bad_sector(&name, offset, &bytes),
            None => Some(offset),
        };
        Look { bytes: to - offset, bad, next: (to < len).then_some(to) }
    }
}

/// The first rotted sector of a part of a segment.
fn bad_sector(name: &str, offset: u64, bytes: &[u8]) -> Option<u64> {
    let header =
        |at: u64| bytes.get(to_usize(at)..to_usize(at) + SECTOR_BYTES).map(SegmentHeader::decode);
    if offset == 0 && parse_segment_name(name).is_some() {
        let copies = [0, HEADER_COPY_OFFSET];
        let bad = copies.into_iter().find(|at| !matches!(header(*at), Some(Ok(_))));
        if bad.is_some() {
            return bad;
        }
    }
    let offsets = (offset..).step_by(SECTOR_BYTES);
    let sectors = bytes.chunks(SECTOR_BYTES).zip(offsets);
    let mut sectors = sectors.skip_while(|(_, at)| *at < HEADER_BYTES);
    let bad = |(sector, at): &(&[u8], u64)| {
        sector.len() < SECTOR_BYTES || inspect(sector, *at) == SectorState::Rotted
    };
    sectors.find(bad).map(|(_, at)| at)
}

/// Where a file of which there are several copies has one that is not intact.
fn bad_small_file(name: &str, bytes: &[u8]) -> Option<u64> {
    if name == "promises" {
        let slots = bytes.chunks(SLOT_BYTES).map(Promises::decode);
        let bad = slots.enumerate().find(|(_, slot)| slot.is_err());
        return bad.map(|(nth, _)| to_u64(nth * SLOT_BYTES));
    }
    let magic = match name {
        "identity" => IDENTITY_MAGIC,
        "cluster" => CLUSTER_MAGIC,
        _ => MANIFEST_MAGIC,
    };
    (!are_both_intact(magic, bytes)).then_some(0)
}
