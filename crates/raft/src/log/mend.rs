//! Damage that shows while the log is in use: the owner of the files looks, and writes again what is known.
//!
//! Only this thread writes to these files, so that what is not intact when it looks is damage. Whatever can be told from
//! what is left, or from memory, is written in place at once. Payloads that are missing are fetched from others, as at a
//! start ([`salvage`](super::salvage)), while the log goes on being used: nothing is appended to a damaged batch.

use std::path::{Path, PathBuf};

use raft_core::{Entry, Index};

use super::body::Body;
use super::files::{Files, read_file};
use super::hard_state::{Promises, SLOT_BYTES, SLOTS};
use super::identity::{CLUSTER_MAGIC, IDENTITY_MAGIC, encode_cluster, seal_twice};
use super::record::{SECTOR_BYTES, SectorState, inspect, to_u64, to_usize};
use super::recovery::{self, Damage, Replay, Witness};
use super::segment::{HEADER_BYTES, HEADER_COPY_OFFSET, Mark};
use super::{LatchError, Log, Missing};
use crate::error::DataError;
use crate::io::{Disk, OpenMode};

/// What became of a file that looked damaged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mend {
    /// Nothing is wrong with it, or it is gone, or nothing depends on what is damaged.
    Intact,
    /// What was damaged was written again, durably.
    Repaired,
    /// These entries are to be fetched from others ([`Log::fill`]); the rest was written again.
    Missing(Vec<Missing>),
    /// It cannot be repaired here; the text says why. A start would refuse it, or set the folder aside.
    Beyond(String),
}

/// The sectors at which `found` is not `wanted`, written so.
fn write_again<D: Disk>(
    files: &mut Files<D>,
    path: &Path,
    found: &[u8],
    wanted: &[u8],
) -> Result<Mend, LatchError> {
    if found == wanted {
        return Ok(Mend::Intact);
    }
    let file = files.open(path, OpenMode::ReadWrite)?;
    for (nth, sector) in wanted.chunks(SECTOR_BYTES).enumerate() {
        let at = nth * SECTOR_BYTES;
        if found.get(at..at + sector.len()) != Some(sector) {
            files.write(path, &file, to_u64(at), sector)?;
        }
    }
    files.sync(path, &file)?;
    Ok(Mend::Repaired)
}

impl<D: Disk> Log<D> {
    /// Looks at a file that looked damaged to somebody else, and repairs what can be repaired; durable on return. Costs
    /// the reading of the whole file.
    ///
    /// # Errors
    /// The disk failed, now or earlier; the log is latched for good. Damage is none.
    pub fn mend(&mut self, path: &Path) -> Result<Mend, LatchError> {
        self.files.check()?;
        let Some(body) = &self.body else { return Ok(Mend::Intact) };
        let image = match read_file(&self.files.disk, path) {
            Ok(Some(image)) => image,
            // It was renamed or removed since.
            Ok(None) => return Ok(Mend::Intact),
            Err(error) => return Ok(Mend::Beyond(error.to_string())),
        };
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        match &*name {
            "promises" => {
                let intact = |slot| Promises::decode(slot).is_ok();
                if image.len() == SLOT_BYTES * SLOTS && image.chunks(SLOT_BYTES).all(intact) {
                    return Ok(Mend::Intact);
                }
                self.write_promises(self.promises.clone(), false)?;
                Ok(Mend::Repaired)
            }
            "identity" => {
                let wanted = seal_twice(IDENTITY_MAGIC, &self.identity.encode());
                write_again(&mut self.files, path, &image, &wanted)
            }
            "cluster" => {
                let text = encode_cluster(self.identity, &body.formed);
                write_again(&mut self.files, path, &image, &seal_twice(CLUSTER_MAGIC, &text))
            }
            _ if body.segments.iter().any(|segment| segment.path == path) => {
                self.mend_segment(path, &image)
            }
            _ if body.spares.iter().any(|spare| spare.path == path) => {
                let mut wanted = image.clone();
                // Its header is that of its former life, and nobody reads it.
                for (nth, sector) in wanted.chunks_exact_mut(SECTOR_BYTES).enumerate() {
                    let at = to_u64(nth * SECTOR_BYTES);
                    if at >= HEADER_BYTES && inspect(sector, at) == SectorState::Rotted {
                        sector.fill(0);
                    }
                }
                write_again(&mut self.files, path, &image, &wanted)
            }
            _ => Ok(Mend::Intact),
        }
    }

    fn mend_segment(&mut self, path: &Path, image: &[u8]) -> Result<Mend, LatchError> {
        let Some(body) = &self.body else { return Ok(Mend::Intact) };
        let Some(id) = body.segments.iter().find(|it| it.path == path).map(|it| it.id) else {
            return Ok(Mend::Intact);
        };
        let is_last = body.segments.back().is_some_and(|last| last.id == id);
        let formed = body.formed.clone();
        let header = match recovery::read_header(path, image, id, self.identity, &formed) {
            Ok(header) => header,
            Err(error) => return Ok(Mend::Beyond(error.to_string())),
        };
        let mut wanted = image.to_vec();
        for copy in [0, HEADER_COPY_OFFSET].map(to_usize) {
            wanted[copy..copy + SECTOR_BYTES].copy_from_slice(&header.encode());
        }
        // As a start would read it that knows what this process knows: what was synced, and that nothing came after.
        let mut replay =
            replay_before(&self.files, body, id).unwrap_or_else(|| Replay::begin(&formed, &header));
        let witness = Witness {
            epoch: body.sync_epoch,
            clean: true,
            later_segment: !is_last,
            oldest: replay.batches == 0,
            base: &formed.members,
        };
        let scan = match recovery::scan(path, image, &header, &mut replay, &witness) {
            Ok(scan) => scan,
            Err(DataError::Damaged { offset, problem, .. }) => {
                let problem = problem.split(". Nothing was changed").next().unwrap_or_default();
                return Ok(Mend::Beyond(format!("at byte {}: {problem}", offset.unwrap_or(0))));
            }
            Err(error) => return Ok(Mend::Beyond(error.to_string())),
        };
        let mut missing = Vec::new();
        for damage in scan.damages {
            match &damage.sectors {
                Some(sectors) => {
                    for (offset, sector) in sectors {
                        let at = to_usize(*offset);
                        wanted[at..at + sector.len()].copy_from_slice(sector);
                    }
                }
                // What a snapshot includes goes with the segment.
                None if !is_needed(body, &damage) => {}
                None => {
                    missing.extend(damage.missing());
                    self.mending
                        .retain(|it| (&it.path, it.offset) != (&damage.path, damage.offset));
                    self.mending.push(damage);
                }
            }
        }
        if is_last {
            // Nothing is stored there, and a power loss right now would make it look like a batch.
            for at in scan.dirty.into_iter().map(to_usize) {
                wanted[at..at + SECTOR_BYTES].fill(0);
            }
        }
        let outcome = write_again(&mut self.files, path, image, &wanted)?;
        Ok(if missing.is_empty() { outcome } else { Mend::Missing(missing) })
    }

    /// Takes in an entry that is missing while the log is in use. What is not missing, or not what it should be, is
    /// ignored.
    pub(super) fn mend_with(&mut self, entry: &Entry) -> Result<(), DataError> {
        let Some(body) = &self.body else { return Ok(()) };
        let is_here = |path: &PathBuf| body.segments.iter().any(|segment| segment.path == *path);
        self.mending.retain(|damage| is_here(&damage.path) && is_needed(body, damage));
        let mark = Mark { id: entry.id, digest: entry.digest };
        let before = body.mark_at(Index(entry.id.index.0.saturating_sub(1)));
        let chains = before.is_some_and(|before| {
            let log = body.formed.log_identity();
            log.chain(before.digest, entry.id, entry.kind, &entry.payload) == entry.digest
        });
        // What was replaced later has lost its place in the chain; its digest is checked by the sectors around it only.
        if body.mark_at(entry.id.index) == Some(mark) && !chains {
            return Ok(());
        }
        let mut mending = std::mem::take(&mut self.mending);
        let mut outcome = Ok(());
        mending.retain_mut(|damage| {
            let complete = damage.take(entry);
            if complete && outcome.is_ok() {
                outcome = damage.complete(&mut self.files, entry);
            }
            !complete
        });
        self.mending = mending;
        outcome
    }
}

/// The log at the end of the segment before `id`, if there is one: the epoch of the batch with its roll record stands
/// there alone, and the first batch of the next segment names it.
fn replay_before<D: Disk>(files: &Files<D>, body: &Body<D>, id: u32) -> Option<Replay> {
    let before = body.segments.iter().find(|segment| segment.id.checked_add(1) == Some(id))?;
    let image = read_file(&files.disk, &before.path).ok()??;
    let (path, formed) = (&before.path, &body.formed);
    let header = recovery::read_header(path, &image, before.id, body.identity, formed).ok()?;
    let mut replay = Replay::begin(formed, &header);
    let witness = Witness {
        epoch: body.sync_epoch,
        clean: true,
        later_segment: true,
        oldest: true,
        base: &formed.members,
    };
    recovery::scan(path, &image, &header, &mut replay, &witness).ok()?;
    Some(replay)
}

/// Whether the log still needs an entry of which the payload is missing.
fn is_needed<D: Disk>(body: &Body<D>, damage: &Damage) -> bool {
    damage.holes().any(|piece| {
        let mark = Mark { id: piece.header.id, digest: piece.header.digest };
        mark.id.index > body.compacted.id.index && body.mark_at(mark.id.index) == Some(mark)
    })
}
