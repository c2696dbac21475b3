//! Segments to be: made ready off the path of a write, by zero-filling new files and by recycling old ones.

use std::io::{Error, ErrorKind};
use std::path::PathBuf;

use rustix::io::Errno;

use super::body::Body;
use super::files::Files;
use super::record::{BatchSize, to_usize};
use super::segment::Room;
use super::{LatchError, LogOptions};
use crate::io::{Disk, DiskFile, OpenMode};

/// Spare segments that are kept: as many as a checkpoint frees at once, so that a steady load allocates nothing.
const SPARES_MAX: usize = 16;
/// Bytes of spare segments that are kept.
const SPARE_BYTES_MAX: u64 = 256 << 20;
/// Zeros that are written and synced at once between two batches.
const FILL_BYTES: u64 = 512 << 10;

/// A segment to be. Its file stays open: becoming a segment needs no new descriptor.
pub(super) struct Spare<F> {
    pub(super) path: PathBuf,
    pub(super) file: F,
    pub(super) bytes: u64,
}

/// A spare that is being filled with zeros.
pub(super) struct Filling<F> {
    /// Its name when it is whole; until then it ends with `.new`.
    path: PathBuf,
    new: PathBuf,
    file: F,
    bytes: u64,
    filled: u64,
}

/// Whether one more spare of this size is kept.
pub(super) fn keeps<F>(spares: &[Spare<F>], bytes: u64, options: LogOptions) -> bool {
    let kept: u64 = spares.iter().map(|spare| spare.bytes).sum();
    bytes == options.segment_bytes && spares.len() < SPARES_MAX && kept + bytes <= SPARE_BYTES_MAX
}

/// Whether a file could not be opened, created or grown because something has run out that may come back.
pub(super) fn has_run_out(error: &Error) -> bool {
    let out_of = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory
    ) || out_of(Errno::MFILE)
        || out_of(Errno::NFILE)
}

impl<D: Disk> Body<D> {
    /// One bounded step towards the next segment: recycles an old one, or fills a part of a new one. To be
    /// called between batches, when nobody waits for the batch before any more.
    pub(super) fn housekeep(&mut self, files: &mut Files<D>) -> Result<(), LatchError> {
        if !self.recycle_one(files)? && self.spares.is_empty() && !self.full {
            // Twice as fast as the segment in use fills up.
            let bytes = self.segments.back().map_or(0, |segment| segment.bytes);
            let used = bytes.saturating_sub(self.room.back.saturating_sub(self.room.front));
            if self.filling.as_ref().is_none_or(|filling| filling.filled <= 2 * used) {
                let bytes = self.segment_bytes(BatchSize::EMPTY);
                self.fill(files, bytes, FILL_BYTES)?;
            }
        }
        if !self.spares.is_empty() {
            self.full = false;
        }
        Ok(())
    }

    /// To be called when nothing waits. A full disk is no failure: proposals are refused until there is space.
    pub(super) fn prepare(&mut self, files: &mut Files<D>) -> Result<(), LatchError> {
        while self.recycle_one(files)? {}
        if self.full && self.spares.is_empty() {
            let bytes = self.segment_bytes(BatchSize::EMPTY);
            self.allocate(files, bytes)?;
        }
        self.housekeep(files)
    }

    /// Bytes of a segment into which a batch of this size fits.
    pub(super) fn segment_bytes(&self, size: BatchSize) -> u64 {
        let alignment = u64::from(self.options.batch_alignment);
        let (records, identifiers) = size.region_bytes();
        let needed = records + identifiers + 6 * alignment + Room::of(0).front;
        self.options.segment_bytes.max(needed).next_multiple_of(alignment)
    }

    /// A spare for a batch of this size, now; `None` when there is no space.
    pub(super) fn take_spare(
        &mut self,
        files: &mut Files<D>,
        size: BatchSize,
    ) -> Result<Option<Spare<D::File>>, LatchError> {
        let bytes = self.segment_bytes(size);
        let fitting = |body: &Self| body.spares.iter().position(|spare| spare.bytes >= bytes);
        while fitting(self).is_none() && self.recycle_one(files)? {}
        if fitting(self).is_none() {
            self.allocate(files, bytes)?;
        }
        Ok(fitting(self).map(|nth| self.spares.remove(nth)))
    }

    /// Makes a whole spare, if there is space.
    fn allocate(&mut self, files: &mut Files<D>, bytes: u64) -> Result<(), LatchError> {
        if self.filling.as_ref().is_some_and(|filling| filling.bytes < bytes) {
            self.abandon(files)?;
        }
        self.fill(files, bytes, u64::MAX)
    }

    fn abandon(&mut self, files: &mut Files<D>) -> Result<(), LatchError> {
        self.filling.take().map_or(Ok(()), |filling| files.remove(&filling.new))
    }

    /// Fills up to `step` further bytes of the spare under way, or begins one; when it is whole, it counts.
    fn fill(&mut self, files: &mut Files<D>, bytes: u64, step: u64) -> Result<(), LatchError> {
        files.check()?;
        if self.filling.is_none() {
            let path = free_spare_name(files, &self.spares);
            let new = path.with_extension("new");
            match files.disk.open(&new, OpenMode::CreateNew) {
                Ok(file) => self.filling = Some(Filling { path, new, file, bytes, filled: 0 }),
                Err(error) if has_run_out(&error) => {
                    self.note_full(&error);
                    return Ok(());
                }
                Err(error) => return files.guard(&new, Err(error)),
            }
        }
        let Some(filling) = &mut self.filling else { return Ok(()) };
        let count = step.min(filling.bytes - filling.filled);
        let outcome = if count == filling.bytes {
            filling.file.allocate(count)
        } else {
            filling.file.write_at(filling.filled, &vec![0; to_usize(count)])
        };
        match outcome {
            Ok(()) => {}
            Err(error) if has_run_out(&error) => {
                self.note_full(&error);
                return self.abandon(files);
            }
            Err(error) => return files.guard(&filling.new, Err(error)),
        }
        files.sync(&filling.new, &filling.file)?;
        filling.filled += count;
        if filling.filled == filling.bytes
            && let Some(Filling { path, new, file, bytes, .. }) = self.filling.take()
        {
            files.rename(&new, &path)?;
            files.sync_dir()?;
            self.spares.push(Spare { path, file, bytes });
            self.full = false;
        }
        Ok(())
    }

    fn note_full(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.full, true) {
            tracing::warn!(%error, "no space for the next log segment");
        }
    }

    /// Gives up the oldest segment when nothing in it is needed any more: it becomes a spare or goes; false when
    /// there is none. Its old bytes never validate again, because every checksum covers the segment's id.
    fn recycle_one(&mut self, files: &mut Files<D>) -> Result<bool, LatchError> {
        let active = self.segments.back().map_or(0, |segment| segment.id);
        // The slots may count the roll record as synced. Until another batch follows it, it stands in the segment before
        // only: without that, the log would seem to have lost its end.
        let begun = self.room.front > Room::of(0).front;
        let active = if begun { active } else { active.saturating_sub(1) };
        let needed = self.positions.front().map_or(active, |position| position.segment);
        if self.segments.front().is_none_or(|segment| segment.id >= needed.min(active)) {
            return Ok(false);
        }
        let Some(segment) = self.segments.pop_front() else { return Ok(false) };
        if keeps(&self.spares, segment.bytes, self.options) {
            let path = free_spare_name(files, &self.spares);
            files.rename(&segment.path, &path)?;
            self.spares.push(Spare { path, file: segment.file, bytes: segment.bytes });
        } else {
            files.remove(&segment.path)?;
        }
        // One by one, so that a power loss never leaves a gap.
        files.sync_dir()?;
        Ok(true)
    }
}

/// A name for a spare that no file has.
fn free_spare_name<D: Disk>(files: &Files<D>, spares: &[Spare<D::File>]) -> PathBuf {
    let taken = |path: &PathBuf| {
        spares.iter().any(|spare| spare.path == *path) || files.disk.exists(path).unwrap_or(true)
    };
    let mut number = 0u64;
    loop {
        let path = files.path(&format!("spare-{number}"));
        if !taken(&path) || number > 1000 {
            return path;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What passes: a full disk, and too many open files in this process or on this machine.
    #[test]
    fn what_has_run_out_comes_back() {
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            assert!(has_run_out(&Error::from(errno)), "{errno}");
        }
        for errno in [Errno::IO, Errno::ROFS, Errno::ACCESS] {
            assert!(!has_run_out(&Error::from(errno)), "{errno}");
        }
    }
}
