//! Segment files: names, header, and where the next batch goes.

use bytes::{Buf, BufMut};
use raft_core::{ClusterId, Digest, EntryId, GroupId, Incarnation, Index, MemberId, Term};

use super::record::{BatchSize, SECTOR_BYTES};
use super::{Formed, Identity};

/// Where the record region begins. The header stands in the first sector and once more at 2048.
pub(super) const HEADER_BYTES: u64 = 4096;
/// Where the header's second copy stands.
pub(super) const HEADER_COPY_OFFSET: u64 = 2048;
const MAGIC: [u8; 8] = *b"RRAFTSEG";
/// The format that is written here, and the newest that is understood.
pub(super) const FORMAT_VERSION: u32 = 1;

/// A position together with the digest of the log up to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub(super) id: EntryId,
    pub(super) digest: Digest,
}

/// What a segment says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    pub(super) segment: u32,
    pub(super) group: GroupId,
    pub(super) cluster: ClusterId,
    pub(super) node: Identity,
    pub(super) file_bytes: u64,
    pub(super) batch_alignment: u32,
    /// The durable epoch that began with this segment.
    pub(super) durable_epoch: u64,
    /// The last sync epoch before this segment was created.
    pub(super) sync_epoch: u64,
    /// Where the log ended when this segment was created; the first index here is the next one.
    pub(super) previous: Mark,
    /// Where the log began then.
    pub(super) compacted: Mark,
}

/// Why a header is not believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HeaderProblem {
    /// Its checksum is wrong.
    Damaged,
    /// Intact, of a newer format.
    Newer(u32),
}

fn put_mark(out: &mut &mut [u8], mark: &Mark) {
    out.put_u64_le(mark.id.index.0);
    out.put_u64_le(mark.id.term.0);
    out.put_u128_le(mark.digest.0);
}

fn get_mark(input: &mut &[u8]) -> Mark {
    let id = EntryId { index: Index(input.get_u64_le()), term: Term(input.get_u64_le()) };
    Mark { id, digest: Digest(input.get_u128_le()) }
}

impl SegmentHeader {
    /// One sector.
    pub(super) fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        let mut out = &mut bytes[..];
        out.put_slice(&MAGIC);
        out.put_u32_le(FORMAT_VERSION);
        out.put_u32_le(self.segment);
        out.put_u64_le(self.cluster.0);
        out.put_u32_le(self.group.0);
        out.put_u64_le(self.node.member.0);
        out.put_u128_le(self.node.incarnation.0);
        out.put_u64_le(self.file_bytes);
        out.put_u32_le(self.batch_alignment);
        // Digest chain: XXH3-128. Checksum: CRC-32C. Compression: none. Flags.
        out.put_slice(&[1, 1, 0, 0]);
        out.put_u64_le(self.durable_epoch);
        out.put_u64_le(self.sync_epoch);
        put_mark(&mut out, &self.previous);
        put_mark(&mut out, &self.compacted);
        let checksum = crc32c::crc32c(&bytes[..508]);
        bytes[508..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes one copy. Magic, version and checksum stand where they stand in every version.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderProblem> {
        let Some(bytes) = bytes.get(..SECTOR_BYTES) else { return Err(HeaderProblem::Damaged) };
        let checksum = (&bytes[508..]).get_u32_le();
        if bytes[..8] != MAGIC || checksum != crc32c::crc32c(&bytes[..508]) {
            return Err(HeaderProblem::Damaged);
        }
        let mut input = &bytes[8..];
        let version = input.get_u32_le();
        if version != FORMAT_VERSION {
            return Err(HeaderProblem::Newer(version));
        }
        let segment = input.get_u32_le();
        let cluster = ClusterId(input.get_u64_le());
        let group = GroupId(input.get_u32_le());
        let member = MemberId(input.get_u64_le());
        let incarnation = Incarnation(input.get_u128_le());
        let file_bytes = input.get_u64_le();
        let batch_alignment = input.get_u32_le();
        if input.get_u32_le() != u32::from_le_bytes([1, 1, 0, 0]) {
            // Other algorithms come only with a newer version.
            return Err(HeaderProblem::Damaged);
        }
        Ok(Self {
            segment,
            group,
            cluster,
            node: Identity { member, incarnation },
            file_bytes,
            batch_alignment,
            durable_epoch: input.get_u64_le(),
            sync_epoch: input.get_u64_le(),
            previous: get_mark(&mut input),
            compacted: get_mark(&mut input),
        })
    }

    /// Whether it belongs to this cluster.
    pub(super) fn is_of(&self, formed: &Formed) -> bool {
        self.cluster == formed.cluster
    }
}

/// The name of a segment's file.
pub(super) fn segment_name(segment: u32) -> String {
    format!("{segment:010}.log")
}

/// The segment that a file name names.
pub(super) fn parse_segment_name(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 10 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

/// Whether a file is a segment to be: allocated, or compacted away and kept for its space.
pub(super) fn is_spare_name(name: &str) -> bool {
    name.starts_with("spare-") && !name.ends_with(".new")
}

/// The free space of a segment: the next batch's records begin at or after `front`, its identifiers end at
/// or before `back`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Room {
    pub(super) front: u64,
    pub(super) back: u64,
}

impl Room {
    /// All of a fresh segment.
    pub(super) const fn of(file_bytes: u64) -> Self {
        Self { front: HEADER_BYTES, back: file_bytes }
    }

    /// Whether a batch of this size still fits and leaves `reserve` bytes.
    pub(super) fn fits(&self, size: BatchSize, alignment: u64, reserve: u64) -> bool {
        let (records, identifiers) = size.region_bytes();
        let left = self.after(records, identifiers, alignment);
        identifiers <= self.back && left.front.saturating_add(reserve) <= left.back
    }

    /// What is left behind a batch of so many bytes in each region.
    pub(super) const fn after(&self, records: u64, identifiers: u64, alignment: u64) -> Self {
        Self {
            front: (self.front + records).next_multiple_of(alignment),
            back: self.back.saturating_sub(identifiers) / alignment * alignment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        let mark = |index| Mark { id: EntryId::new(index, 4), digest: Digest(99) };
        SegmentHeader {
            segment: 3,
            group: GroupId(1),
            cluster: ClusterId(5),
            node: Identity { member: MemberId(6), incarnation: Incarnation(7) },
            file_bytes: 1 << 16,
            batch_alignment: 512,
            durable_epoch: 8,
            sync_epoch: 9,
            previous: mark(20),
            compacted: mark(10),
        }
    }

    #[test]
    fn a_header_decodes_to_what_was_encoded_and_every_flip_is_noticed() {
        let bytes = header().encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header()));
        for position in 0..SECTOR_BYTES {
            let mut flipped = bytes;
            flipped[position] ^= 0x10;
            assert_eq!(SegmentHeader::decode(&flipped), Err(HeaderProblem::Damaged));
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = header().encode();
        bytes[8] = 2;
        let checksum = crc32c::crc32c(&bytes[..508]);
        bytes[508..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Err(HeaderProblem::Newer(2)));
    }

    #[test]
    fn names_are_parsed_as_they_are_made() {
        assert_eq!(parse_segment_name(&segment_name(17)), Some(17));
        for name in ["17.log", "0000000017", "00000000x7.log", "spare-1", "99999999999.log"] {
            assert_eq!(parse_segment_name(name), None, "{name}");
        }
    }
}
