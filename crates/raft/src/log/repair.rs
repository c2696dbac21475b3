//! Payloads that come back: what is damaged here is intact elsewhere.
//!
//! An entry is asked for, and answered about, by index, term and digest. The digest covers the whole log up to the
//! entry, so that whoever has an entry with it has this one, whatever became of either since. Nothing here promises
//! anything: what is written is what stood there when it was acknowledged.

use raft_core::{Digest, Entry, EntryId, Fetch, Index, NodeId, Term, mutant};

use super::files::Files;
use super::record::{RecordKind, to_u64};
use super::recovery::{Damage, Replay};
use super::salvage::Piece;
use super::segment::Mark;
use super::{DataState, LatchError, Log, Missing, Supply};
use crate::error::DataError;
use crate::io::{Disk, DiskFile, OpenMode};

impl Damage {
    /// Entries whose payload is not known.
    pub(super) fn holes(&self) -> impl Iterator<Item = &Piece> {
        self.salvage.pieces.iter().filter(|piece| piece.payload.is_none())
    }

    /// The same, as it is asked for.
    pub(super) fn missing(&self) -> impl Iterator<Item = Missing> {
        self.holes().map(|piece| Missing {
            id: piece.header.id,
            digest: piece.header.digest,
            path: self.path.clone(),
            offset: piece.offset,
        })
    }

    /// Writes what stood there; durable on return.
    pub(super) fn repair<D: Disk>(&self, files: &mut Files<D>) -> Result<(), LatchError> {
        let Some(sectors) = &self.sectors else { return Ok(()) };
        let file = files.open(&self.path, OpenMode::ReadWrite)?;
        for (offset, bytes) in sectors {
            files.write(&self.path, &file, *offset, bytes)?;
        }
        files.sync(&self.path, &file)
    }

    /// Writes the batch again as it was, now that `entry` has completed it; durable on return.
    ///
    /// # Errors
    /// The disk failed, or what is intact of the batch is of another one.
    pub(super) fn complete<D: Disk>(
        &mut self,
        files: &mut Files<D>,
        entry: &Entry,
    ) -> Result<(), DataError> {
        let file = files.open(&self.path, OpenMode::ReadWrite)?;
        let mut found = self.salvage.ranges().map(|(_, len)| vec![0; super::record::to_usize(len)]);
        for ((offset, _), bytes) in self.salvage.ranges().into_iter().zip(&mut found) {
            // What cannot be read is written again.
            if file.read_at(offset, bytes).is_err() {
                bytes.fill(0);
            }
        }
        self.sectors = self.salvage.restored([&found[0], &found[1]], self.accepted);
        if self.sectors.is_none() {
            return Err(DataError::Damaged {
                path: self.path.clone(),
                offset: Some(self.offset),
                problem: format!("entry {} is not what stands around it", entry.id),
            });
        }
        Ok(self.repair(files)?)
    }

    /// Takes in an entry; true when every record is known now.
    pub(super) fn take(&mut self, entry: &Entry) -> bool {
        let wanted = self.salvage.pieces.iter_mut().find(|piece| {
            piece.payload.is_none()
                && piece.header.kind == RecordKind::Entry
                && piece.header.id == entry.id
                && piece.header.digest == entry.digest
                && piece.header.entry_kind == entry.kind.as_u8()
                && u64::from(piece.len) == to_u64(entry.payload.len())
        });
        let Some(piece) = wanted else { return false };
        piece.payload = Some(entry.payload.clone());
        self.salvage.is_complete()
    }
}

/// What a log of which only `replay` is known has of an entry.
fn known(replay: &Replay, id: EntryId, digest: Digest) -> Supply {
    if id.index <= replay.compacted.id.index {
        return Supply::Compacted;
    }
    if replay.mark_at(id.index) != Some(Mark { id, digest }) {
        return Supply::NeverHad;
    }
    if replay.holes.contains(&id.index) {
        return Supply::Damaged;
    }
    let entry = replay.entries.iter().find(|(_, entry)| entry.id == id);
    entry.map_or(Supply::Compacted, |(_, entry)| Supply::Have(entry.clone()))
}

impl<D: Disk> Log<D> {
    /// What this log has, durably, of the entry of this index, term and digest.
    #[must_use]
    pub fn supply(&self, id: EntryId, digest: Digest) -> Supply {
        if let Some(recovery) = &self.broken {
            return known(&recovery.replay, id, digest);
        }
        let Some(body) = &self.body else { return Supply::NeverHad };
        if id.index <= body.compacted.id.index {
            return Supply::Compacted;
        }
        if body.mark_at(id.index) != Some(Mark { id, digest }) {
            return Supply::NeverHad;
        }
        let fetch = Fetch {
            to: NodeId::default(),
            from_index: id.index,
            to_index: id.index,
            bytes_max: 0,
            term: Term(0),
        };
        let entry = self.read(&fetch).and_then(|mut entries| entries.pop());
        let damaged = if mutant::is_active(29) { Supply::NeverHad } else { Supply::Damaged };
        entry.map_or(damaged, Supply::Have)
    }

    /// What is still missing.
    pub(super) fn missing(&self) -> Vec<Missing> {
        match &self.broken {
            Some(recovery) => recovery.missing.clone(),
            None => self.mending.iter().flat_map(Damage::missing).collect(),
        }
    }

    /// The first failure of the disk, if there was one.
    pub(super) fn check(&self) -> Result<(), LatchError> {
        self.files.check()
    }

    /// Recovers a damaged log once more, because something beside it has changed.
    ///
    /// # Errors
    /// As those of [`open`](Self::open).
    pub fn look_again(&mut self) -> Result<Option<DataState>, DataError> {
        self.files.check()?;
        if self.broken.is_some() { self.reopen().map(Some) } else { Ok(None) }
    }

    /// Takes in an entry that was damaged here. Once nothing is missing any more, what recovery says of the whole.
    ///
    /// # Errors
    /// The disk failed, or the log is damaged beyond this. What is not the entry that is missing is ignored.
    pub fn fill(&mut self, entry: &Entry) -> Result<Option<DataState>, DataError> {
        self.files.check()?;
        let Some(recovery) = &mut self.broken else {
            self.mend_with(entry)?;
            return Ok(None);
        };
        let replay = &recovery.replay;
        let previous = Index(entry.id.index.0.saturating_sub(1));
        let chains = |previous: Mark| {
            let log = recovery.formed.log_identity();
            log.chain(previous.digest, entry.id, entry.kind, &entry.payload) == entry.digest
        };
        // What was replaced later has lost its place in the chain; its digest is checked by the sectors around it only.
        let placed =
            replay.mark_at(entry.id.index) == Some(Mark { id: entry.id, digest: entry.digest });
        if placed && !replay.mark_at(previous).is_some_and(chains) {
            return Ok(None);
        }
        for damage in &mut recovery.damages {
            if damage.take(entry) {
                damage.complete(&mut self.files, entry)?;
            }
        }
        recovery.missing.retain(|missing| missing.id != entry.id || missing.digest != entry.digest);
        if recovery.missing.is_empty() { self.reopen().map(Some) } else { Ok(None) }
    }
}
