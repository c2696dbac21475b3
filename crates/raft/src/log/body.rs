//! The segments of an open log: where batches go, how segments follow each other, how they are read.

use std::collections::VecDeque;
use std::path::PathBuf;

use bytes::Bytes;
use raft_core::{Digest, Entry, EntryId, EntryKind, Fetch, Index, Persist};

use super::files::Files;
use super::record::{
    BatchSize, BatchWriter, RecordHeader, RecordKind, SECTOR_BYTES, SectorState, content,
    decode_record, inspect, record_extent, to_u32, to_u64, to_usize,
};
use super::recovery::Position;
use super::segment::{HEADER_COPY_OFFSET, Mark, Room, SegmentHeader, segment_name};
use super::spares::{Filling, Spare};
use super::{Formed, Identity, LatchError, LogOptions};
use crate::io::{Disk, DiskFile};

/// Bytes read at once, unless one entry has more.
const RUN_BYTES_MAX: u64 = 1 << 20;
/// Bytes between two neighbours that are read for nothing: less than another call costs.
const GAP_BYTES_MAX: u64 = 8 << 10;

/// One segment in use.
pub(super) struct Segment<F> {
    pub(super) id: u32,
    pub(super) path: PathBuf,
    pub(super) file: F,
    pub(super) bytes: u64,
}

/// The log of a formed node.
pub(super) struct Body<D: Disk> {
    pub(super) identity: Identity,
    pub(super) formed: Formed,
    pub(super) options: LogOptions,
    /// Oldest first, consecutive ids; the last one is written to.
    pub(super) segments: VecDeque<Segment<D::File>>,
    /// Free space of the last segment.
    pub(super) room: Room,
    /// Alignment of the last segment.
    pub(super) alignment: u64,
    /// Segments to be.
    pub(super) spares: Vec<Spare<D::File>>,
    /// The one that is being made.
    pub(super) filling: Option<Filling<D::File>>,
    /// The epoch of the last synced batch.
    pub(super) sync_epoch: u64,
    /// Higher than every epoch ever written; not always `sync_epoch + 1`, because a batch may be dropped.
    pub(super) epoch_next: u64,
    /// Entries up to here may be gone.
    pub(super) compacted: Mark,
    /// Where the log ends.
    pub(super) last: Mark,
    /// Where every entry after `compacted` stands.
    pub(super) positions: VecDeque<Position>,
    /// Nothing was written since the last seal.
    pub(super) sealed: bool,
    /// No space for a next segment.
    pub(super) full: bool,
    pub(super) writer: BatchWriter,
}

/// What became of the attempt to begin a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rolled {
    Yes,
    NoSpace,
}

impl<D: Disk> Body<D> {
    /// Room kept free for a seal and a roll.
    const fn reserve(&self) -> u64 {
        4 * self.alignment
    }

    /// How large `persist` is in the log; `size` is what stands before it in its batch.
    pub(super) fn measure(persist: &Persist, size: BatchSize) -> BatchSize {
        let mut size = size;
        if let Some(snapshot) = &persist.snapshot {
            size = size.with(snapshot.membership.encode(&[]).len());
        }
        if persist.truncate_from.is_some() {
            size = size.with(0);
        }
        size = persist.entries.iter().fold(size, |size, entry| size.with(entry.payload.len()));
        if persist.compact_to.is_some() { size.with(0) } else { size }
    }

    /// Whether a batch of this size fits into the last segment.
    pub(super) fn fits(&self, size: BatchSize) -> bool {
        self.room.fits(size, self.alignment, self.reserve())
    }

    /// Makes a batch durable: one write for each region, one sync for both.
    pub(super) fn write(
        &mut self,
        files: &mut Files<D>,
        batch: &[Persist],
    ) -> Result<(), LatchError> {
        if batch.iter().all(|persist| Self::measure(persist, BatchSize::EMPTY).is_empty()) {
            return Ok(());
        }
        self.begin();
        for persist in batch {
            self.encode(persist);
        }
        self.sealed = false;
        self.commit(files)
    }

    fn begin(&mut self) {
        let segment = self.segments.back().map_or(0, |segment| segment.id);
        self.writer.begin(segment, self.epoch_next, self.sync_epoch, self.room.front);
    }

    /// Writes and syncs what was encoded.
    fn commit(&mut self, files: &mut Files<D>) -> Result<(), LatchError> {
        let Some(segment) = self.segments.back() else { return Ok(()) };
        let (records, identifiers) = self.writer.finish(self.room.back);
        let identifiers_offset = self.room.back - to_u64(identifiers.len());
        files.write(&segment.path, &segment.file, self.room.front, records)?;
        files.write(&segment.path, &segment.file, identifiers_offset, identifiers)?;
        files.sync(&segment.path, &segment.file)?;
        self.room =
            self.room.after(to_u64(records.len()), to_u64(identifiers.len()), self.alignment);
        self.sync_epoch = self.epoch_next;
        self.epoch_next += 1;
        Ok(())
    }

    fn header(&self, kind: RecordKind, mark: Mark) -> RecordHeader {
        let group = self.formed.group;
        RecordHeader { kind, entry_kind: 0, group, id: mark.id, digest: mark.digest }
    }

    /// In the order that `Persist` promises. What the protocol may not ask for is a bug and stops the node
    /// before anything is written.
    fn encode(&mut self, persist: &Persist) {
        if let Some(snapshot) = &persist.snapshot {
            let mark = Mark { id: snapshot.last_included, digest: snapshot.digest };
            let header = self.header(RecordKind::Reset, mark);
            self.writer.record(&header, &snapshot.membership.encode(&[]));
            self.positions.clear();
            (self.compacted, self.last) = (mark, mark);
        }
        if let Some(from) = persist.truncate_from {
            let (begin, end) = (self.compacted.id.index, self.last.id.index);
            assert!(from > begin, "truncating from {from}, the log begins after {begin}");
            assert!(from <= end, "truncating from {from}, the log ends at {end}");
            let mark = self.mark_at(from.prev()).unwrap_or(self.compacted);
            self.writer.record(&self.header(RecordKind::Truncate, mark), &[]);
            self.positions.truncate(to_usize(mark.id.index.since(begin)));
            self.last = mark;
        }
        let segment = self.segments.back().map_or(0, |segment| segment.id);
        for entry in &persist.entries {
            let (id, end) = (entry.id, self.last.id);
            assert!(id.index == end.index.next(), "entry {id} cannot follow {end}");
            assert!(id.term >= end.term, "entry {id} cannot follow {end}");
            let mark = Mark { id, digest: entry.digest };
            let header = RecordHeader {
                entry_kind: entry.kind.as_u8(),
                ..self.header(RecordKind::Entry, mark)
            };
            let offset = self.writer.record(&header, &entry.payload);
            let len = to_u32(entry.payload.len());
            self.positions.push_back(Position { segment, offset, len, mark });
            self.last = mark;
        }
        if let Some(to) = persist.compact_to {
            let end = self.last.id.index;
            assert!(to <= end, "compacting to {to}, the log ends at {end}");
            let mark = self.mark_at(to).unwrap_or(self.compacted);
            self.writer.record(&self.header(RecordKind::Compact, mark), &[]);
            let count = to_usize(to.since(self.compacted.id.index));
            self.positions.drain(..count.min(self.positions.len()));
            self.compacted = mark;
        }
    }

    /// Id and digest of the log up to `index`, if it still holds that.
    pub(super) fn mark_at(&self, index: Index) -> Option<Mark> {
        if index == self.compacted.id.index {
            return Some(self.compacted);
        }
        let nth = index.0.checked_sub(self.compacted.id.index.0 + 1)?;
        self.positions.get(to_usize(nth)).map(|position| position.mark)
    }

    /// Proves that the last batch was synced, if that is not proven yet and there is room.
    pub(super) fn seal(&mut self, files: &mut Files<D>) -> Result<(), LatchError> {
        let size = BatchSize::EMPTY.with(0);
        if self.sealed || !self.room.fits(size, self.alignment, 2 * self.alignment) {
            return Ok(());
        }
        self.begin();
        self.writer.record(&self.header(RecordKind::Seal, self.last), &[]);
        self.commit(files)?;
        self.sealed = true;
        Ok(())
    }

    /// Goes on in the next segment, which is large enough for a batch of this size. The new segment is
    /// there, durable, before the old one names it.
    pub(super) fn roll(
        &mut self,
        files: &mut Files<D>,
        size: BatchSize,
        durable_epoch: u64,
    ) -> Result<Rolled, LatchError> {
        let Some(spare) = self.take_spare(files, size)? else { return Ok(Rolled::NoSpace) };
        let bytes = spare.bytes;
        let id = self.segments.back().map_or(0, |segment| segment.id) + 1;
        let segment = self.begin_segment(files, id, spare, durable_epoch)?;
        if !self.segments.is_empty() {
            self.begin();
            self.writer.record(&self.header(RecordKind::Roll, self.last), &id.to_le_bytes());
            self.commit(files)?;
        }
        self.room = Room::of(bytes);
        self.alignment = u64::from(self.options.batch_alignment);
        self.segments.push_back(segment);
        self.sealed = true;
        Ok(Rolled::Yes)
    }

    /// Turns a spare into segment `id`; durable on return.
    fn begin_segment(
        &self,
        files: &mut Files<D>,
        id: u32,
        spare: Spare<D::File>,
        durable_epoch: u64,
    ) -> Result<Segment<D::File>, LatchError> {
        let header = SegmentHeader {
            segment: id,
            group: self.formed.group,
            cluster: self.formed.cluster,
            node: self.identity,
            file_bytes: spare.bytes,
            batch_alignment: self.options.batch_alignment,
            durable_epoch,
            sync_epoch: self.sync_epoch,
            previous: self.last,
            compacted: self.compacted,
        };
        let Spare { path: spare, file, bytes } = spare;
        let encoded = header.encode();
        files.write(&spare, &file, 0, &encoded)?;
        files.write(&spare, &file, HEADER_COPY_OFFSET, &encoded)?;
        files.sync(&spare, &file)?;
        let path = files.path(&segment_name(id));
        files.rename(&spare, &path)?;
        files.sync_dir()?;
        Ok(Segment { id, path, file, bytes })
    }

    /// Reads entries back; `Err` names the first damaged byte.
    pub(super) fn read(&self, fetch: &Fetch) -> Result<Option<Vec<Entry>>, (PathBuf, u64)> {
        let begin = self.compacted.id.index;
        if fetch.from_index <= begin || fetch.from_index > self.last.id.index {
            return Ok(None);
        }
        let skip = to_usize(fetch.from_index.since(begin) - 1);
        let count = to_usize(fetch.to_index.next().since(fetch.from_index));
        let (mut entries, mut bytes) = (Vec::new(), 0usize);
        let mut wanted = Vec::new();
        for position in self.positions.iter().skip(skip).take(count) {
            let len = to_usize(u64::from(position.len));
            if !wanted.is_empty() && bytes.saturating_add(len) > fetch.bytes_max {
                break;
            }
            bytes = bytes.saturating_add(len);
            wanted.push(*position);
        }
        let mut rest = &wanted[..];
        while let Some(first) = rest.first() {
            let (run, later) = rest.split_at(run_length(rest));
            rest = later;
            let outcome = self.read_run(first.segment, run, &mut entries);
            match outcome {
                Ok(()) => {}
                // What came before it is of use.
                Err(_) if !entries.is_empty() => break,
                Err(damage) => return Err(damage),
            }
        }
        Ok((!entries.is_empty()).then_some(entries))
    }

    /// Reads neighbours with one call.
    fn read_run(
        &self,
        id: u32,
        run: &[Position],
        entries: &mut Vec<Entry>,
    ) -> Result<(), (PathBuf, u64)> {
        let first = self.segments.front().map_or(0, |segment| segment.id);
        let nth = id.saturating_sub(first);
        let Some(segment) = self.segments.get(to_usize(u64::from(nth))) else {
            return Err((PathBuf::from(segment_name(id)), 0));
        };
        let extents = run.iter().map(|position| record_extent(position.offset, position.len));
        let begin = extents.clone().map(|(begin, _)| begin).min().unwrap_or(0);
        let end = extents.map(|(begin, len)| begin + to_u64(len)).max().unwrap_or(0);
        let mut sectors = vec![0; to_usize(end - begin)];
        match (segment.file.read_at(begin, &mut sectors), run) {
            (Ok(()), _) => {}
            (Err(_), [] | [_]) => return Err((segment.path.clone(), begin)),
            // Only some of them cannot be read.
            (Err(_), several) => {
                return several
                    .iter()
                    .try_for_each(|one| self.read_run(id, std::slice::from_ref(one), entries));
            }
        }
        for position in run {
            let (own, len) = record_extent(position.offset, position.len);
            let skip = to_usize(own - begin);
            entries.push(decode_entry(segment, position, &sectors[skip..skip + len])?);
        }
        Ok(())
    }
}

/// How many positions from the first one on are read at once.
fn run_length(positions: &[Position]) -> usize {
    let extents = positions.iter().map(|it| (it.segment, record_extent(it.offset, it.len)));
    let mut run: Option<(u32, u64, u64)> = None;
    let neighbours = extents.take_while(|(segment, (own, len))| {
        let own_end = own + to_u64(*len);
        let (id, begin, end) = run.unwrap_or((*segment, *own, *own));
        let joins = *segment == id
            && (begin..=end + GAP_BYTES_MAX).contains(own)
            && own_end - begin <= RUN_BYTES_MAX;
        let joins = joins || run.is_none();
        run = Some((id, begin, own_end));
        joins
    });
    neighbours.count()
}

/// The entry at `position`, every byte of it checked; `sectors` are those it lies in.
fn decode_entry<F>(
    segment: &Segment<F>,
    position: &Position,
    sectors: &[u8],
) -> Result<Entry, (PathBuf, u64)> {
    let damaged = |offset: u64| (segment.path.clone(), offset);
    let (begin, _) = record_extent(position.offset, position.len);
    let mut epoch = None;
    for (sector, offset) in sectors.chunks_exact(SECTOR_BYTES).zip((begin..).step_by(SECTOR_BYTES))
    {
        match inspect(sector, offset) {
            SectorState::Written { segment, epoch: found }
                if segment == position.segment && epoch.is_none_or(|epoch| epoch == found) =>
            {
                epoch = Some(found);
            }
            SectorState::Written { .. } | SectorState::Zero | SectorState::Rotted => {
                return Err(damaged(offset));
            }
        }
    }
    let content = Bytes::from(content(sectors)).slice(to_usize(position.offset - begin)..);
    let epoch = epoch.unwrap_or_default();
    let Some((record, _)) = decode_record(&content, position.segment, epoch, position.offset)
    else {
        return Err(damaged(position.offset));
    };
    let found = Mark { id: record.header.id, digest: record.header.digest };
    match EntryKind::from_u8(record.header.entry_kind) {
        Some(kind) if found == position.mark && record.header.kind == RecordKind::Entry => {
            let digest = record.header.digest;
            Ok(Entry { id: found.id, kind, digest, payload: record.payload })
        }
        Some(_) | None => Err(damaged(position.offset)),
    }
}

/// Where a freshly formed log begins and ends.
pub(super) fn origin(formed: &Formed) -> Mark {
    let digest: Digest = formed.log_identity().origin(&formed.members.encode(&[]));
    Mark { id: EntryId::ZERO, digest }
}

impl<D: Disk> Body<D> {
    /// A log without segments, to be rolled into its first one.
    pub(super) fn empty(identity: Identity, formed: Formed, options: LogOptions) -> Self {
        let origin = origin(&formed);
        Self {
            identity,
            formed,
            options,
            segments: VecDeque::new(),
            room: Room::of(0),
            alignment: u64::from(options.batch_alignment),
            spares: Vec::new(),
            filling: None,
            sync_epoch: 0,
            epoch_next: 1,
            compacted: origin,
            last: origin,
            positions: VecDeque::new(),
            sealed: true,
            full: false,
            writer: BatchWriter::default(),
        }
    }
}
