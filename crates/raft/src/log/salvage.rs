//! A damaged batch, put together again from what is left of it.
//!
//! Records and identifiers stand in different places and say the same, so that damage to one of them leaves the
//! other: what a record was is known even when its payload is not. A record without payload is known completely by
//! its identifier; the payload of an entry is what its digest says, wherever it comes from. A batch whose records are
//! all known has exactly one encoding, so that what is written in place of its bad sectors is what stood there.

use bytes::Bytes;

use super::record::{
    BatchHeader, BatchWriter, FIRST_RECORD, IDENTIFIERS_PER_SECTOR, RECORD_HEADER_BYTES,
    RecordHeader, RecordKind, SECTOR_BYTES, SectorState, content, decode_identifier, decode_record,
    file_offset, inspect, to_u32, to_u64, to_usize,
};
use super::segment::Room;

/// A record of a damaged batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) header: RecordHeader,
    /// Where in the file its header begins.
    pub(super) offset: u64,
    /// Bytes of its payload.
    pub(super) len: u32,
    /// `None`: damaged, and what it was cannot be told from its identifier.
    pub(super) payload: Option<Bytes>,
}

/// A damaged batch of which every record is known by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Salvage {
    pub(super) segment: u32,
    /// Where its records begin and its identifiers end.
    pub(super) room: Room,
    pub(super) epoch: u64,
    /// As its header says, if that is left.
    pub(super) previous_epoch: Option<u64>,
    pub(super) pieces: Vec<Piece>,
    /// Bytes in the record region and in that of the identifiers.
    pub(super) region_bytes: (u64, u64),
}

/// What stands in one slot of the identifier region.
type Identifier = Option<(RecordHeader, u64, u32)>;

fn slice(image: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let offset = to_usize(offset);
    image.get(offset..offset.checked_add(to_usize(len))?)
}

/// Where the identifiers of a batch without a header begin, and its epoch: sectors of one epoch down from `back`.
fn identifier_sectors(
    image: &[u8],
    segment: u32,
    room: Room,
    accepted: u64,
) -> Option<(u64, usize)> {
    let size = to_u64(SECTOR_BYTES);
    let mut batch = None;
    let mut begin = room.back;
    while let Some(offset) = begin.checked_sub(size).filter(|offset| *offset >= room.front) {
        let SectorState::Written { segment: found, epoch } =
            inspect(slice(image, offset, size)?, offset)
        else {
            break;
        };
        if found != segment || epoch <= accepted || batch.is_some_and(|batch| batch != epoch) {
            break;
        }
        batch = Some(epoch);
        begin = offset;
    }
    Some((batch?, to_usize((room.back - begin) / size)))
}

/// All identifiers of so many sectors that end at `back`. `count` is as the batch's header says.
fn identifiers(
    image: &[u8],
    (segment, epoch): (u32, u64),
    back: u64,
    sectors: usize,
    count: Option<usize>,
) -> Option<Vec<Identifier>> {
    let begin = back.checked_sub(to_u64(sectors * SECTOR_BYTES))?;
    let slots = sectors.checked_mul(IDENTIFIERS_PER_SECTOR)?;
    let slot = |n: usize| {
        let sector = n / IDENTIFIERS_PER_SECTOR * SECTOR_BYTES;
        let sector = slice(image, begin + to_u64(sector), to_u64(SECTOR_BYTES))?;
        decode_identifier(sector, n % IDENTIFIERS_PER_SECTOR, segment, epoch)
    };
    match count {
        Some(count) => (count.div_ceil(IDENTIFIERS_PER_SECTOR) == sectors)
            .then(|| (0..count).map(slot).collect()),
        // The last sector may hold fewer; nothing may be missing before that.
        None => {
            let found: Vec<Identifier> = (0..slots).map(slot).collect();
            let count = found.iter().take_while(|slot| slot.is_some()).count();
            let full = slots - count < IDENTIFIERS_PER_SECTOR;
            let none_later = found[count..].iter().all(Option::is_none);
            (full && none_later).then(|| found[..count].to_vec())
        }
    }
}

impl Salvage {
    /// The batch of which something is left where the next one begins; `None` when too little is.
    pub(super) fn of(image: &[u8], segment: u32, room: Room, accepted: u64) -> Option<Self> {
        let first = slice(image, room.front, to_u64(SECTOR_BYTES))?;
        let header = BatchHeader::decode(first, segment, room.front)
            .filter(|header| header.epoch > accepted);
        let (epoch, sectors) = match &header {
            Some(header) => (header.epoch, to_usize(header.identifier_bytes()) / SECTOR_BYTES),
            None => identifier_sectors(image, segment, room, accepted)?,
        };
        let count = header.as_ref().map(BatchHeader::records);
        let identifiers = identifiers(image, (segment, epoch), room.back, sectors, count)?;
        let free = room.back.checked_sub(room.front)?;
        let identifier_bytes = to_u64(sectors * SECTOR_BYTES);
        let record_bytes = match (&header, identifiers.last()) {
            (Some(header), _) => header.record_bytes(),
            (None, Some(Some((_, offset, len)))) => {
                let bytes = offset.checked_sub(room.front)?.checked_add(u64::from(*len))?;
                // Stamps stand between; what is too much is not looked at.
                (bytes + bytes / 16 + 2 * to_u64(SECTOR_BYTES))
                    .next_multiple_of(to_u64(SECTOR_BYTES))
                    .min(free - identifier_bytes)
            }
            (None, _) => return None,
        };
        if record_bytes.checked_add(identifier_bytes)? > free {
            return None;
        }
        let content = Bytes::from(content(slice(image, room.front, record_bytes)?));
        let mut position = FIRST_RECORD;
        let mut pieces = Vec::with_capacity(identifiers.len());
        for identifier in identifiers {
            let at = file_offset(room.front, position);
            let rest = content.slice(position.min(content.len())..);
            let piece = match (decode_record(&rest, segment, epoch, at), identifier) {
                (Some((record, _)), identifier) => {
                    let len = to_u32(record.payload.len());
                    if identifier.is_some_and(|found| found != (record.header, at, len)) {
                        return None;
                    }
                    Piece { header: record.header, offset: at, len, payload: Some(record.payload) }
                }
                (None, Some((header, offset, len))) if offset == at => {
                    let payload = implied(&header, len, segment);
                    Piece { header, offset, len, payload }
                }
                (None, _) => return None,
            };
            position = position
                .checked_add(RECORD_HEADER_BYTES)?
                .checked_add(to_usize(u64::from(piece.len)))?;
            pieces.push(piece);
        }
        let end = to_u64(super::record::sectors_of(position) * SECTOR_BYTES);
        let whole = match &header {
            Some(header) => header.content_bytes() == position && header.record_bytes() == end,
            None => end + identifier_bytes <= free,
        };
        (whole && !pieces.is_empty()).then_some(Self {
            segment,
            room,
            epoch,
            previous_epoch: header.map(|header| header.previous_epoch),
            pieces,
            region_bytes: (end, identifier_bytes),
        })
    }

    /// Whether every record is known completely.
    pub(super) fn is_complete(&self) -> bool {
        self.pieces.iter().all(|piece| piece.payload.is_some())
    }

    /// Where its records and its identifiers stand.
    pub(super) const fn ranges(&self) -> [(u64, u64); 2] {
        let (records, identifiers) = self.region_bytes;
        [(self.room.front, records), (self.room.back - identifiers, identifiers)]
    }

    /// The sectors to be written, each with its place, so that the batch stands whole where it stood. `found` is what
    /// stands in both ranges now; `accepted` the epoch of the batch before. `None` when a record is not known, or an
    /// intact sector holds something else: then this is not that batch.
    pub(super) fn restored(&self, found: [&[u8]; 2], accepted: u64) -> Option<Vec<(u64, Vec<u8>)>> {
        let mut writer = BatchWriter::default();
        let previous = self.previous_epoch.unwrap_or(accepted);
        writer.begin(self.segment, self.epoch, previous, self.room.front);
        for piece in &self.pieces {
            writer.record(&piece.header, piece.payload.as_ref()?);
        }
        let (records, identifiers) = writer.finish(self.room.back);
        let mut sectors = Vec::new();
        for ((begin, len), (found, whole)) in
            self.ranges().into_iter().zip(found.into_iter().zip([records, identifiers]))
        {
            if to_u64(whole.len()) != len || found.len() != whole.len() {
                return None;
            }
            let offsets = (begin..).step_by(SECTOR_BYTES);
            let pairs = found.chunks_exact(SECTOR_BYTES).zip(whole.chunks_exact(SECTOR_BYTES));
            for (offset, (found, whole)) in offsets.zip(pairs) {
                if found == whole {
                    continue;
                }
                let intact = SectorState::Written { segment: self.segment, epoch: self.epoch };
                if inspect(found, offset) == intact {
                    return None;
                }
                sectors.push((offset, whole.to_vec()));
            }
        }
        Some(sectors)
    }
}

/// The payload of a record of which the identifier says everything.
fn implied(header: &RecordHeader, len: u32, segment: u32) -> Option<Bytes> {
    match header.kind {
        _ if len == 0 => Some(Bytes::new()),
        RecordKind::Roll => {
            let next = segment.checked_add(1)?.to_le_bytes();
            (len == 4).then(|| Bytes::copy_from_slice(&next))
        }
        RecordKind::Entry
        | RecordKind::Truncate
        | RecordKind::Reset
        | RecordKind::Compact
        | RecordKind::Seal => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use raft_core::{Digest, EntryId, GroupId};

    const SEGMENT: u32 = 3;
    const EPOCH: u64 = 9;

    /// A segment's image with one batch of these payloads, and where it stands.
    fn image(payloads: &[usize]) -> (Vec<u8>, Room, [(u64, u64); 2]) {
        let room = Room { front: 4096, back: 64 << 10 };
        let mut writer = BatchWriter::default();
        writer.begin(SEGMENT, EPOCH, EPOCH - 1, room.front);
        for (index, len) in (1u64..).zip(payloads) {
            let header = RecordHeader {
                kind: RecordKind::Entry,
                entry_kind: 1,
                group: GroupId(1),
                id: EntryId::new(index, 2),
                digest: Digest(u128::from(index)),
            };
            writer.record(&header, &vec![u8::try_from(index % 251).unwrap(); *len]);
        }
        let (records, identifiers) = writer.finish(room.back);
        let mut image = vec![0; to_usize(room.back)];
        let at = to_usize(room.front);
        image[at..at + records.len()].copy_from_slice(records);
        let begin = image.len() - identifiers.len();
        image[begin..].copy_from_slice(identifiers);
        let ranges =
            [(room.front, to_u64(records.len())), (to_u64(begin), to_u64(identifiers.len()))];
        (image, room, ranges)
    }

    fn regions(image: &[u8], ranges: [(u64, u64); 2]) -> [&[u8]; 2] {
        ranges.map(|(offset, len)| slice(image, offset, len).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        /// One bad sector anywhere: every record is still known by name, and with the payloads that are missing the
        /// batch is what it was, byte by byte.
        #[test]
        fn one_bad_sector_is_restored_exactly(
            payloads in prop::collection::vec(0usize..1500, 1..20),
            at: prop::sample::Index,
            zero: bool,
        ) {
            let (image, room, ranges) = image(&payloads);
            let sectors: Vec<u64> = ranges
                .iter()
                .flat_map(|(begin, len)| (*begin..begin + len).step_by(SECTOR_BYTES))
                .collect();
            let bad = to_usize(*at.get(&sectors));
            let mut damaged = image.clone();
            if zero {
                damaged[bad..bad + SECTOR_BYTES].fill(0);
            } else {
                damaged[bad + 100] ^= 4;
            }
            let mut salvage = Salvage::of(&damaged, SEGMENT, room, EPOCH - 1).unwrap();
            prop_assert_eq!(salvage.ranges(), ranges);
            prop_assert_eq!(salvage.pieces.len(), payloads.len());
            for (piece, len) in salvage.pieces.iter_mut().zip(&payloads) {
                prop_assert_eq!(to_usize(u64::from(piece.len)), *len);
                let index = piece.header.id.index.0;
                let payload = Bytes::from(vec![u8::try_from(index % 251).unwrap(); *len]);
                let whole = piece.payload.get_or_insert_with(|| payload.clone());
                prop_assert_eq!(&*whole, &payload);
            }
            let sectors = salvage.restored(regions(&damaged, ranges), EPOCH - 1).unwrap();
            for (offset, bytes) in sectors {
                damaged[to_usize(offset)..to_usize(offset) + SECTOR_BYTES].copy_from_slice(&bytes);
            }
            prop_assert!(damaged == image);
        }
    }

    /// Another payload does not fit to the sectors that are left.
    #[test]
    fn a_wrong_payload_is_not_written_over_intact_sectors() {
        let (mut damaged, room, ranges) = image(&[10, 2000, 10]);
        damaged[4096 + 1024] ^= 1;
        let mut salvage = Salvage::of(&damaged, SEGMENT, room, EPOCH - 1).unwrap();
        assert!(!salvage.is_complete());
        assert_eq!(salvage.restored(regions(&damaged, ranges), EPOCH - 1), None);
        salvage.pieces[1].payload = Some(Bytes::from(vec![7; 2000]));
        assert_eq!(salvage.restored(regions(&damaged, ranges), EPOCH - 1), None);
        salvage.pieces[1].payload = Some(Bytes::from(vec![2; 2000]));
        assert_eq!(salvage.restored(regions(&damaged, ranges), EPOCH - 1).unwrap().len(), 1);
    }

    #[test]
    fn an_older_batch_and_nothing_are_not_salvaged() {
        let (damaged, room, _) = image(&[10]);
        assert_eq!(Salvage::of(&damaged, SEGMENT, room, EPOCH), None);
        assert_eq!(Salvage::of(&damaged, SEGMENT + 1, room, EPOCH - 1), None);
        let nothing = vec![0; damaged.len()];
        assert_eq!(Salvage::of(&nothing, SEGMENT, room, 0), None);
    }
}
