//! Sectors, batches, records and identifiers: what stands in a segment behind its header.
//!
//! A batch is what one sync makes durable. It begins on fresh sectors in both regions of the segment: its
//! records grow from the front, its identifiers from the back. Every sector carries the batch's epoch and
//! a checksum that covers segment and offset, so that recovery can tell, sector by sector, what was written
//! by whom, what was never written, and what has rotted.

use bytes::{Buf, BufMut, Bytes};
use raft_core::{Digest, EntryId, GroupId, Index, Term, mutant};

/// Bytes that a disk writes whole or not at all.
pub(super) const SECTOR_BYTES: usize = 512;
/// Content of a sector; the rest is its stamp: epoch (8), segment (4), CRC-32C (4).
pub(super) const SECTOR_DATA_BYTES: usize = 496;
/// Bytes of a batch header.
const BATCH_HEADER_BYTES: usize = 64;
/// Bytes of a record header.
pub(super) const RECORD_HEADER_BYTES: usize = 60;
/// Bytes of an identifier; eight fill a sector.
const IDENTIFIER_BYTES: usize = 62;
/// Identifiers of a full sector.
pub(super) const IDENTIFIERS_PER_SECTOR: usize = SECTOR_DATA_BYTES / IDENTIFIER_BYTES;
/// Where in a batch's content its first record begins.
pub(super) const FIRST_RECORD: usize = BATCH_HEADER_BYTES;
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"RBAT");
/// Version of batch, record and identifier.
const VERSION: u8 = 1;

/// Lossless on every supported target.
pub(super) fn to_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Positions in memory; larger ones than memory can hold become too large for any check to pass.
pub(super) fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// Lengths that a limit keeps below 4 GiB.
pub(super) fn to_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RecordKind {
    /// An entry; the payload is the entry's.
    Entry,
    /// The log now ends at this position; entries after it are void.
    Truncate,
    /// The log is empty and begins after this position; the payload is the configuration there.
    Reset,
    /// Entries up to this position may be gone.
    Compact,
    /// Proof that the batch before was synced.
    Seal,
    /// The log goes on in the segment whose number is the payload.
    Roll,
}

impl RecordKind {
    const fn as_u8(self) -> u8 {
        match self {
            Self::Entry => 1,
            Self::Truncate => 2,
            Self::Reset => 3,
            Self::Compact => 4,
            Self::Seal => 5,
            Self::Roll => 6,
        }
    }

    const fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(Self::Entry),
            2 => Some(Self::Truncate),
            3 => Some(Self::Reset),
            4 => Some(Self::Compact),
            5 => Some(Self::Seal),
            6 => Some(Self::Roll),
            _ => None,
        }
    }
}

/// One record, its payload apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RecordHeader {
    pub(super) kind: RecordKind,
    /// Number of the entry's kind; zero for other records. Not interpreted here.
    pub(super) entry_kind: u8,
    pub(super) group: GroupId,
    pub(super) id: EntryId,
    pub(super) digest: Digest,
}

/// One record as found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) header: RecordHeader,
    pub(super) payload: Bytes,
    /// Where in the file its header begins.
    pub(super) offset: u64,
}

/// What a sector's stamp says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SectorState {
    /// All zero: never written.
    Zero,
    /// Written whole, here, for this segment, by this batch.
    Written { segment: u32, epoch: u64 },
    /// Neither.
    Rotted,
}

fn position_checksum(bytes: &[u8], offset: u64) -> u32 {
    // Where the bytes stand is part of what they say: a misdirected or stale sector never validates.
    let offset = if mutant::is_active(28) { 0 } else { offset };
    crc32c::crc32c_append(crc32c::crc32c(bytes), &offset.to_le_bytes())
}

/// Stamps whole sectors that stand at `offset` of a segment.
pub(super) fn stamp(sectors: &mut [u8], segment: u32, epoch: u64, offset: u64) {
    let mut offset = offset;
    for sector in sectors.chunks_exact_mut(SECTOR_BYTES) {
        sector[496..504].copy_from_slice(&epoch.to_le_bytes());
        sector[504..508].copy_from_slice(&segment.to_le_bytes());
        let checksum = position_checksum(&sector[..508], offset);
        sector[508..512].copy_from_slice(&checksum.to_le_bytes());
        offset += to_u64(SECTOR_BYTES);
    }
}

/// Reads the stamp of one sector that stands at `offset`.
pub(super) fn inspect(sector: &[u8], offset: u64) -> SectorState {
    let mut stamp = &sector[SECTOR_DATA_BYTES..];
    let (epoch, segment, checksum) = (stamp.get_u64_le(), stamp.get_u32_le(), stamp.get_u32_le());
    if checksum == position_checksum(&sector[..508], offset) {
        return SectorState::Written { segment, epoch };
    }
    if sector.iter().all(|byte| *byte == 0) { SectorState::Zero } else { SectorState::Rotted }
}

/// How many sectors `bytes` of content fill.
pub(super) const fn sectors_of(bytes: usize) -> usize {
    bytes.div_ceil(SECTOR_DATA_BYTES)
}

/// How large a batch is going to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchSize {
    bytes: usize,
    records: usize,
}

impl BatchSize {
    /// Without records.
    pub(super) const EMPTY: Self = Self { bytes: BATCH_HEADER_BYTES, records: 0 };

    /// With one more record.
    pub(super) const fn with(self, payload_bytes: usize) -> Self {
        Self { bytes: self.bytes + RECORD_HEADER_BYTES + payload_bytes, records: self.records + 1 }
    }

    /// Whether it has no records.
    pub(super) const fn is_empty(self) -> bool {
        self.records == 0
    }

    /// Bytes of its sectors in each region.
    pub(super) fn region_bytes(self) -> (u64, u64) {
        let identifiers = sectors_of(self.records * IDENTIFIER_BYTES);
        (to_u64(sectors_of(self.bytes) * SECTOR_BYTES), to_u64(identifiers * SECTOR_BYTES))
    }
}

/// Encodes one batch after another into the same two buffers.
#[derive(Debug, Default)]
pub(super) struct BatchWriter {
    records: Vec<u8>,
    identifiers: Vec<u8>,
    segment: u32,
    epoch: u64,
    previous_epoch: u64,
    offset: u64,
    count: u32,
    bytes: usize,
}

impl BatchWriter {
    /// Begins a batch whose records stand at `offset` of `segment`.
    pub(super) fn begin(&mut self, segment: u32, epoch: u64, previous_epoch: u64, offset: u64) {
        self.records.clear();
        self.identifiers.clear();
        (self.segment, self.epoch, self.previous_epoch) = (segment, epoch, previous_epoch);
        (self.offset, self.count, self.bytes) = (offset, 0, 0);
        self.put(&[0; BATCH_HEADER_BYTES]);
    }

    /// Adds a record; returns where in the file its header begins.
    pub(super) fn record(&mut self, header: &RecordHeader, payload: &[u8]) -> u64 {
        let offset = self.offset + to_u64(self.records.len());
        let mut bytes = [0; RECORD_HEADER_BYTES];
        let mut out = &mut bytes[..];
        out.put_u32_le(to_u32(payload.len()));
        out.put_u16_le(60);
        out.put_u8(VERSION);
        out.put_u8(header.kind.as_u8());
        out.put_u32_le(header.group.0);
        out.put_u8(header.entry_kind);
        // Compression (none) and two reserved bytes.
        out.put_slice(&[0; 3]);
        out.put_u64_le(header.id.index.0);
        out.put_u64_le(header.id.term.0);
        out.put_u64_le(self.epoch);
        out.put_u128_le(header.digest.0);
        let checksum = record_checksum(&bytes, payload, self.segment, offset);
        bytes[56..60].copy_from_slice(&checksum.to_le_bytes());
        self.put(&bytes);
        self.put(payload);
        self.identify(header, offset, payload.len());
        self.count += 1;
        offset
    }

    fn identify(&mut self, header: &RecordHeader, offset: u64, len: usize) {
        let mut bytes = [0; IDENTIFIER_BYTES];
        let mut out = &mut bytes[..];
        out.put_u64_le(header.id.index.0);
        out.put_u64_le(header.id.term.0);
        out.put_u128_le(header.digest.0);
        out.put_u64_le(self.epoch);
        out.put_u64_le(offset);
        out.put_u32_le(to_u32(len));
        out.put_u32_le(header.group.0);
        out.put_u8(header.kind.as_u8());
        out.put_u8(header.entry_kind);
        let checksum = record_checksum(&bytes[..58], &[], self.segment, offset);
        bytes[58..62].copy_from_slice(&checksum.to_le_bytes());
        self.identifiers.extend_from_slice(&bytes);
        if self.identifiers.len() % SECTOR_BYTES == SECTOR_DATA_BYTES {
            self.identifiers.extend_from_slice(&[0; SECTOR_BYTES - SECTOR_DATA_BYTES]);
        }
    }

    /// Ends the batch and returns the sectors of its records, to be written at its offset, and of its
    /// identifiers, which end at `identifiers_end`.
    pub(super) fn finish(&mut self, identifiers_end: u64) -> (&[u8], &[u8]) {
        pad(&mut self.records);
        pad(&mut self.identifiers);
        let header = BatchHeader {
            epoch: self.epoch,
            previous_epoch: self.previous_epoch,
            bytes: to_u32(self.bytes),
            records: self.count,
            identifier_sectors: to_u32(self.identifiers.len() / SECTOR_BYTES),
        };
        let encoded = header.encode(self.segment, self.offset);
        self.records[..BATCH_HEADER_BYTES].copy_from_slice(&encoded);
        stamp(&mut self.records, self.segment, self.epoch, self.offset);
        let identifiers_offset = identifiers_end - to_u64(self.identifiers.len());
        stamp(&mut self.identifiers, self.segment, self.epoch, identifiers_offset);
        (&self.records, &self.identifiers)
    }

    fn put(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len();
        while !bytes.is_empty() {
            let room = SECTOR_DATA_BYTES - self.records.len() % SECTOR_BYTES;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.records.extend_from_slice(now);
            if now.len() == room {
                self.records.extend_from_slice(&[0; SECTOR_BYTES - SECTOR_DATA_BYTES]);
            }
            bytes = rest;
        }
    }
}

fn pad(sectors: &mut Vec<u8>) {
    sectors.resize(sectors.len().next_multiple_of(SECTOR_BYTES), 0);
}

/// Over a header without its own last four bytes, a payload, and where both stand.
fn record_checksum(header: &[u8], payload: &[u8], segment: u32, offset: u64) -> u32 {
    let header = if header.len() == RECORD_HEADER_BYTES { &header[..56] } else { header };
    let checksum = crc32c::crc32c_append(crc32c::crc32c(header), payload);
    let (segment, offset) = if mutant::is_active(28) { (0, 0) } else { (segment, offset) };
    let checksum = crc32c::crc32c_append(checksum, &segment.to_le_bytes());
    crc32c::crc32c_append(checksum, &offset.to_le_bytes())
}

/// The first bytes of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BatchHeader {
    /// The sync epoch: one more than the last one written, also when that batch was dropped.
    pub(super) epoch: u64,
    /// The epoch of the batch before it: proves that none is missing.
    pub(super) previous_epoch: u64,
    /// Bytes of content, header included.
    bytes: u32,
    records: u32,
    identifier_sectors: u32,
}

impl BatchHeader {
    fn encode(&self, segment: u32, offset: u64) -> [u8; BATCH_HEADER_BYTES] {
        let mut bytes = [0; BATCH_HEADER_BYTES];
        let mut out = &mut bytes[..];
        out.put_u32_le(BATCH_MAGIC);
        out.put_u8(VERSION);
        out.put_u8(64);
        out.put_u16_le(0);
        out.put_u64_le(self.epoch);
        out.put_u64_le(self.previous_epoch);
        out.put_u32_le(self.bytes);
        out.put_u32_le(self.records);
        out.put_u32_le(self.identifier_sectors);
        let checksum = record_checksum(&bytes[..60], &[], segment, offset);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header in the first sector of a batch that stands at `offset`.
    pub(super) fn decode(sector: &[u8], segment: u32, offset: u64) -> Option<Self> {
        let bytes = sector.get(..BATCH_HEADER_BYTES)?;
        let mut input = bytes;
        if input.get_u32_le() != BATCH_MAGIC || input.get_u8() != VERSION || input.get_u8() != 64 {
            return None;
        }
        input.advance(2);
        let header = Self {
            epoch: input.get_u64_le(),
            previous_epoch: input.get_u64_le(),
            bytes: input.get_u32_le(),
            records: input.get_u32_le(),
            identifier_sectors: input.get_u32_le(),
        };
        input.advance(60 - 36);
        let checksum = record_checksum(&bytes[..60], &[], segment, offset);
        (input.get_u32_le() == checksum).then_some(header)
    }

    /// How many records it has.
    pub(super) fn records(&self) -> usize {
        to_usize(u64::from(self.records))
    }

    /// Bytes of its content, header included.
    pub(super) fn content_bytes(&self) -> usize {
        to_usize(u64::from(self.bytes))
    }

    /// Bytes of the batch in the record region.
    pub(super) fn record_bytes(&self) -> u64 {
        to_u64(sectors_of(to_usize(u64::from(self.bytes))) * SECTOR_BYTES)
    }

    /// Bytes of the batch in the identifier region.
    pub(super) fn identifier_bytes(&self) -> u64 {
        u64::from(self.identifier_sectors) * to_u64(SECTOR_BYTES)
    }
}

/// Takes the content of whole sectors, the stamps left out.
pub(super) fn content(sectors: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(sectors.len() / SECTOR_BYTES * SECTOR_DATA_BYTES);
    for sector in sectors.chunks_exact(SECTOR_BYTES) {
        content.extend_from_slice(&sector[..SECTOR_DATA_BYTES]);
    }
    content
}

/// Where in the file the byte at `position` of a batch's content stands.
pub(super) fn file_offset(batch_offset: u64, position: usize) -> u64 {
    let sector = position / SECTOR_DATA_BYTES * SECTOR_BYTES;
    batch_offset + to_u64(sector + position % SECTOR_DATA_BYTES)
}

/// The records of a batch whose sectors were found intact, checked against its identifiers. `Err` names
/// the offset of what makes no sense.
pub(super) fn decode_batch(
    header: &BatchHeader,
    segment: u32,
    offset: u64,
    sectors: &[u8],
    identifiers: &[u8],
) -> Result<Vec<Record>, u64> {
    let content = Bytes::from(content(sectors));
    let end = to_usize(u64::from(header.bytes));
    let mut records = Vec::with_capacity(to_usize(u64::from(header.records)).min(1 << 16));
    let mut position = BATCH_HEADER_BYTES;
    while position < end {
        let at = file_offset(offset, position);
        let (record, len) =
            decode_record(&content.slice(position..), segment, header.epoch, at).ok_or(at)?;
        records.push(record);
        position += len;
    }
    let counted = to_u32(records.len()) == header.records;
    if position != end || !counted || !identified(&records, segment, header.epoch, identifiers) {
        return Err(offset);
    }
    Ok(records)
}

/// Decodes the record whose header begins `content` and stands at `offset`; with the bytes that it takes.
pub(super) fn decode_record(
    content: &Bytes,
    segment: u32,
    epoch: u64,
    offset: u64,
) -> Option<(Record, usize)> {
    let bytes = content.get(..RECORD_HEADER_BYTES)?;
    let mut input = bytes;
    let len = to_usize(u64::from(input.get_u32_le()));
    if input.get_u16_le() != 60 || input.get_u8() != VERSION {
        return None;
    }
    let kind = RecordKind::from_u8(input.get_u8())?;
    let group = GroupId(input.get_u32_le());
    let entry_kind = input.get_u8();
    input.advance(3);
    let id = EntryId { index: Index(input.get_u64_le()), term: Term(input.get_u64_le()) };
    let found_epoch = input.get_u64_le();
    let digest = Digest(input.get_u128_le());
    let checksum = input.get_u32_le();
    let total = RECORD_HEADER_BYTES.checked_add(len)?;
    if found_epoch != epoch || content.len() < total {
        return None;
    }
    let payload = content.slice(RECORD_HEADER_BYTES..total);
    if checksum != record_checksum(bytes, &payload, segment, offset) {
        return None;
    }
    let header = RecordHeader { kind, entry_kind, group, id, digest };
    Some((Record { header, payload, offset }, total))
}

/// Decodes the identifier in slot `nth` of a sector: the record's header, where it begins, and the length of its
/// payload.
pub(super) fn decode_identifier(
    sector: &[u8],
    nth: usize,
    segment: u32,
    epoch: u64,
) -> Option<(RecordHeader, u64, u32)> {
    let bytes = sector.get(nth * IDENTIFIER_BYTES..(nth + 1) * IDENTIFIER_BYTES)?;
    let mut input = bytes;
    let id = EntryId { index: Index(input.get_u64_le()), term: Term(input.get_u64_le()) };
    let digest = Digest(input.get_u128_le());
    let found_epoch = input.get_u64_le();
    let (offset, len) = (input.get_u64_le(), input.get_u32_le());
    let group = GroupId(input.get_u32_le());
    let kind = RecordKind::from_u8(input.get_u8())?;
    let entry_kind = input.get_u8();
    let whole = input.get_u32_le() == record_checksum(&bytes[..58], &[], segment, offset);
    let header = RecordHeader { kind, entry_kind, group, id, digest };
    (whole && found_epoch == epoch).then_some((header, offset, len))
}

/// Whether the identifiers name exactly these records.
fn identified(records: &[Record], segment: u32, epoch: u64, sectors: &[u8]) -> bool {
    let mut expected = BatchWriter { segment, epoch, ..BatchWriter::default() };
    for record in records {
        expected.identify(&record.header, record.offset, record.payload.len());
    }
    pad(&mut expected.identifiers);
    expected.identifiers.len() == sectors.len()
        && content(&expected.identifiers) == content(sectors)
}

/// Bytes of the sectors that hold a record with a payload of `len` bytes whose header begins at `offset`:
/// where they begin, and how many they are.
pub(super) fn record_extent(offset: u64, len: u32) -> (u64, usize) {
    let sector = to_u64(SECTOR_BYTES);
    let begin = offset / sector * sector;
    let within = to_usize(offset - begin);
    let bytes = within + RECORD_HEADER_BYTES + to_usize(u64::from(len));
    (begin, sectors_of(bytes) * SECTOR_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(kind: RecordKind, index: u64) -> RecordHeader {
        RecordHeader {
            kind,
            entry_kind: 1,
            group: GroupId(1),
            id: EntryId::new(index, 3),
            digest: Digest(u128::from(index) * 77),
        }
    }

    fn encode(payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
        let mut writer = BatchWriter::default();
        writer.begin(7, 42, 41, 4096);
        for (index, payload) in (1..).zip(payloads) {
            writer.record(&header(RecordKind::Entry, index), payload);
        }
        let (records, identifiers) = writer.finish(1 << 20);
        (records.to_vec(), identifiers.to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_batch_decodes_to_what_was_encoded(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1500), 1..20),
        ) {
            let (records, identifiers) = encode(&payloads);
            let batch = BatchHeader::decode(&records, 7, 4096).unwrap();
            prop_assert_eq!((batch.epoch, batch.previous_epoch), (42, 41));
            prop_assert_eq!(batch.record_bytes(), to_u64(records.len()));
            prop_assert_eq!(batch.identifier_bytes(), to_u64(identifiers.len()));
            let size = payloads.iter().fold(BatchSize::EMPTY, |size, payload| size.with(payload.len()));
            let found = (to_u64(records.len()), to_u64(identifiers.len()));
            prop_assert_eq!(size.region_bytes(), found);
            let decoded = decode_batch(&batch, 7, 4096, &records, &identifiers).unwrap();
            prop_assert_eq!(decoded.len(), payloads.len());
            for (record, payload) in decoded.iter().zip(&payloads) {
                prop_assert_eq!(&record.payload[..], &payload[..]);
                // The way that `read` takes.
                let (begin, len) = record_extent(record.offset, to_u32(payload.len()));
                let from = to_usize(begin - 4096);
                let data = Bytes::from(content(&records[from..from + len]));
                let within = to_usize(record.offset - begin);
                let (again, _) = decode_record(&data.slice(within..), 7, 42, record.offset).unwrap();
                prop_assert_eq!(&again, record);
            }
        }

        #[test]
        fn no_flipped_bit_passes(position in 0usize..4096, bit in 0u8..8) {
            let (mut records, _) = encode(&[vec![5; 3000], vec![6; 600]]);
            records[position] ^= 1 << bit;
            let sector = position / SECTOR_BYTES * SECTOR_BYTES;
            let state = inspect(&records[sector..sector + SECTOR_BYTES], to_u64(4096 + sector));
            prop_assert_eq!(state, SectorState::Rotted);
        }
    }

    /// Mutation 28: a sector, a batch header or a record that stands elsewhere is not believed.
    #[test]
    fn a_misdirected_write_never_validates() {
        let (records, identifiers) = encode(&[vec![9; 700]]);
        let first = &records[..SECTOR_BYTES];
        assert_eq!(inspect(first, 4096), SectorState::Written { segment: 7, epoch: 42 });
        assert_eq!(inspect(first, 4608), SectorState::Rotted);
        assert!(BatchHeader::decode(first, 7, 4608).is_none());
        assert!(BatchHeader::decode(first, 8, 4096).is_none());
        let batch = BatchHeader::decode(first, 7, 4096).unwrap();
        assert!(decode_batch(&batch, 7, 4096, &records, &identifiers).is_ok());
        assert!(decode_batch(&batch, 8, 4096, &records, &identifiers).is_err());
        assert!(decode_batch(&batch, 7, 8192, &records, &identifiers).is_err());
    }

    #[test]
    fn a_missing_identifier_is_noticed() {
        let (records, identifiers) = encode(&vec![vec![1; 10]; 9]);
        let batch = BatchHeader::decode(&records, 7, 4096).unwrap();
        assert!(decode_batch(&batch, 7, 4096, &records, &identifiers[..SECTOR_BYTES]).is_err());
    }
}
