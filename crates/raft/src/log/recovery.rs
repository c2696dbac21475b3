//! Reading a log back: what is accepted, what is dropped, what is refused.
//!
//! Nothing here writes. The facts are gathered sector by sector and decided by [`tables`](super::tables).

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft_core::{Entry, EntryId, EntryKind, Index, LogIdentity, Membership, SnapshotMeta, mutant};

use super::record::{
    self, BatchHeader, Record, RecordKind, SECTOR_BYTES, SectorState, to_u32, to_u64, to_usize,
};
use super::salvage::{Piece, Salvage};
use super::segment::{
    FORMAT_VERSION, HEADER_COPY_OFFSET, HeaderProblem, Mark, Room, SegmentHeader,
};
use super::tables::{HEADER, HeaderCase, TAIL, TailCase, decide};
use super::{Formed, Identity};
use crate::error::DataError;

/// Where an entry's record stands, and what names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Position {
    pub(super) segment: u32,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) mark: Mark,
}

/// The log as the records so far describe it.
#[derive(Debug)]
pub(super) struct Replay {
    log: LogIdentity,
    /// Entries after `compacted`, or after some later position when what lies between is gone.
    pub(super) entries: VecDeque<(Position, Entry)>,
    /// Those of `entries` whose payload is damaged; it is empty there.
    pub(super) holes: BTreeSet<Index>,
    /// Entries up to here may be gone.
    pub(super) compacted: Mark,
    /// Where the log ends.
    pub(super) last: Mark,
    /// The epoch of the last accepted batch.
    pub(super) epoch: u64,
    pub(super) batches: u64,
}

impl Replay {
    /// The state at the beginning of the oldest segment.
    pub(super) fn begin(formed: &Formed, header: &SegmentHeader) -> Self {
        Self {
            log: formed.log_identity(),
            entries: VecDeque::new(),
            holes: BTreeSet::new(),
            compacted: header.compacted,
            last: header.previous,
            epoch: header.sync_epoch,
            batches: 0,
        }
    }

    /// Applies the record of a damaged batch. An entry without payload stands in the log all the same: its place in the
    /// chain of digests is proven by the next one.
    fn apply_piece(&mut self, segment: u32, piece: &Piece) -> Result<(), String> {
        let Piece { header, offset, len, payload } = piece;
        if let Some(payload) = payload.clone() {
            return self.apply(segment, Record { header: *header, payload, offset: *offset });
        }
        let mark = Mark { id: header.id, digest: header.digest };
        let kind = EntryKind::from_u8(header.entry_kind);
        let (RecordKind::Entry, Some(kind)) = (header.kind, kind) else {
            return Err("a record that no entry's payload could replace".to_owned());
        };
        if header.group != self.log.group
            || mark.id.index != self.last.id.index.next()
            || mark.id.term < self.last.id.term
        {
            return Err(format!("entry {} follows {}", mark.id, self.last.id));
        }
        let position = Position { segment, offset: *offset, len: *len, mark };
        let entry = Entry { id: mark.id, kind, digest: mark.digest, payload: Bytes::new() };
        self.entries.push_back((position, entry));
        self.holes.insert(mark.id.index);
        self.last = mark;
        Ok(())
    }

    /// Applies a record; `Err` says what makes no sense about it.
    fn apply(&mut self, segment: u32, record: Record) -> Result<(), String> {
        let header = record.header;
        let mark = Mark { id: header.id, digest: header.digest };
        if header.group != self.log.group {
            return Err(format!("a record of group {}", header.group.0));
        }
        match header.kind {
            RecordKind::Entry => {
                let kind = EntryKind::from_u8(header.entry_kind).ok_or_else(|| {
                    let kind = header.entry_kind;
                    format!("entry kind {kind} is not understood; use a newer program")
                })?;
                if mark.id.index != self.last.id.index.next() || mark.id.term < self.last.id.term {
                    return Err(format!("entry {} follows {}", mark.id, self.last.id));
                }
                if mark.digest != self.log.chain(self.last.digest, mark.id, kind, &record.payload) {
                    return Err(format!("entry {} does not continue the digest chain", mark.id));
                }
                let len = to_u32(record.payload.len());
                let position = Position { segment, offset: record.offset, len, mark };
                let entry =
                    Entry { id: mark.id, kind, digest: mark.digest, payload: record.payload };
                self.entries.push_back((position, entry));
                self.last = mark;
            }
            RecordKind::Truncate => {
                if mark.id.index > self.last.id.index {
                    return Err(format!(
                        "the log ends at {}, cannot end at {}",
                        self.last.id, mark.id
                    ));
                }
                if mutant::is_active(21) && mark.id.index <= self.compacted.id.index {
                    return Ok(());
                }
                while self.entries.back().is_some_and(|(_, entry)| entry.id.index > mark.id.index) {
                    self.entries.pop_back();
                }
                if self.entries.back().is_some_and(|(position, _)| position.mark != mark) {
                    return Err(format!("entry {} is not the one that is meant", mark.id));
                }
                self.holes.split_off(&mark.id.index.next());
                self.last = mark;
            }
            RecordKind::Reset => {
                if !mutant::is_active(22) || mark.id.index > self.last.id.index {
                    self.entries.clear();
                    self.last = mark;
                } else {
                    self.entries.retain(|(_, entry)| entry.id.index > mark.id.index);
                }
                let first = self.entries.front().map(|(_, entry)| entry.id.index);
                self.holes.retain(|index| first.is_some_and(|first| *index >= first));
                self.compacted = mark;
            }
            RecordKind::Compact => {
                while self.entries.front().is_some_and(|(_, entry)| entry.id.index <= mark.id.index)
                {
                    self.entries.pop_front();
                }
                self.holes.retain(|index| *index > mark.id.index);
                self.compacted = mark;
            }
            RecordKind::Seal | RecordKind::Roll => {
                if mark != self.last {
                    return Err(format!("the log ends at {}, not at {}", self.last.id, mark.id));
                }
            }
        }
        Ok(())
    }

    /// The digest and id at `index`, if it is still known.
    pub(super) fn mark_at(&self, index: Index) -> Option<Mark> {
        if index == self.compacted.id.index {
            return Some(self.compacted);
        }
        if index == self.last.id.index {
            return Some(self.last);
        }
        let first = self.entries.front()?.1.id.index;
        let (position, _) = self.entries.get(to_usize(index.0.checked_sub(first.0)?))?;
        Some(position.mark)
    }

    /// Whether a snapshot can stand for the beginning of this log.
    pub(super) fn accepts(&self, snapshot: &SnapshotMeta) -> bool {
        let mark = Mark { id: snapshot.last_included, digest: snapshot.digest };
        mark.id.index >= self.compacted.id.index && self.mark_at(mark.id.index) == Some(mark)
    }

    /// Whether the configuration in force has one voter. `base` is the one where the log begins.
    fn has_single_voter(&self, base: &Membership) -> bool {
        let unknown = |(_, entry): &(Position, Entry)| {
            entry.kind == EntryKind::Membership && self.holes.contains(&entry.id.index)
        };
        if self.entries.iter().any(unknown) {
            return false;
        }
        let newest = self.entries.iter().rev().find_map(|(_, entry)| {
            let is_membership = entry.kind == EntryKind::Membership;
            is_membership.then(|| Membership::decode(&entry.payload)).flatten()
        });
        let newest = newest.map(|(membership, _)| membership);
        newest.as_ref().unwrap_or(base).all_voters().count() == 1
    }
}

/// What lies behind the accepted batches of a segment.
#[derive(Debug)]
pub(super) struct Scan {
    /// Free from here to there.
    pub(super) room: Room,
    /// Where the last accepted batch stands: ranges of its records and its identifiers.
    pub(super) last_batch: Option<[(u64, u64); 2]>,
    /// The segment that a roll record names.
    pub(super) rolled_to: Option<u32>,
    /// The epoch of a batch that was dropped.
    pub(super) dropped: Option<u64>,
    /// Sectors in the free space to be zeroed.
    pub(super) dirty: Vec<u64>,
    /// The last accepted batch holds nothing but proof of the one before.
    pub(super) sealed: bool,
    /// The highest epoch seen, accepted or not.
    pub(super) epoch_seen: u64,
    /// Batches that were accepted although they are damaged.
    pub(super) damages: Vec<Damage>,
}

/// A damaged batch that is to be put together again.
#[derive(Debug)]
pub(super) struct Damage {
    /// The segment's file.
    pub(super) path: PathBuf,
    /// The first bad byte.
    pub(super) offset: u64,
    /// The epoch of the batch before it.
    pub(super) accepted: u64,
    pub(super) salvage: Salvage,
    /// What is to be written where, once every record is known.
    pub(super) sectors: Option<Vec<(u64, Vec<u8>)>>,
}

/// What is known apart from the segment itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Witness<'a> {
    /// All batches up to this epoch were synced.
    pub(super) epoch: u64,
    /// And that was the last thing that the process before did: it has stopped cleanly.
    pub(super) clean: bool,
    /// A later segment holds records.
    pub(super) later_segment: bool,
    /// This is the oldest segment: what came before is gone.
    pub(super) oldest: bool,
    /// The configuration where the log begins.
    pub(super) base: &'a Membership,
}

/// Reads a segment's batches into `replay`.
pub(super) fn scan(
    path: &Path,
    image: &[u8],
    header: &SegmentHeader,
    replay: &mut Replay,
    witness: &Witness<'_>,
) -> Result<Scan, DataError> {
    let damaged = |offset: u64, problem: String| DataError::Damaged {
        path: path.to_path_buf(),
        offset: Some(offset),
        problem: format!("{problem}. Nothing was changed; restore this member from its peers"),
    };
    let alignment = u64::from(header.batch_alignment);
    let mut scan = Scan {
        room: Room::of(header.file_bytes),
        last_batch: None,
        rolled_to: None,
        dropped: None,
        dirty: Vec::new(),
        sealed: true,
        epoch_seen: replay.epoch,
        damages: Vec::new(),
    };
    loop {
        let survey = Survey::of(image, header.segment, scan.room, replay.epoch);
        let synced = replay.epoch < witness.epoch || witness.later_segment || survey.is_followed();
        let complete = survey.complete.is_some();
        let alone = !complete && survey.rotted && replay.has_single_voter(witness.base);
        let salvage = (!complete && (survey.rotted || synced))
            .then(|| Salvage::of(image, header.segment, scan.room, replay.epoch))
            .flatten();
        let known = salvage.is_some();
        // A later process would have taken the mark of the clean stop away before its first batch.
        let closed = witness.clean && replay.epoch == witness.epoch;
        let facts = [survey.epoch.is_some(), complete, survey.rotted, synced, alone, known, closed];
        let mut case = decide(TAIL, facts, TailCase::Damaged);
        if mutant::is_active(25) && case != TailCase::Complete && case != TailCase::End {
            case = TailCase::Torn;
        }
        let (first, begin) = (replay.batches == 0 && witness.oldest, scan.room.front);
        let misplaced = |epoch: u64, previous: u64, accepted: u64| {
            let problem = format!("batch {epoch} follows {previous}, found {accepted}");
            (previous != accepted && !first).then(|| damaged(begin, problem))
        };
        match (case, survey.complete, salvage) {
            (TailCase::Salvaged, _, Some(salvage)) => {
                if let Some(previous) = salvage.previous_epoch
                    && let Some(error) = misplaced(salvage.epoch, previous, replay.epoch)
                {
                    return Err(error);
                }
                scan.sealed = salvage.pieces.iter().all(|it| it.header.kind == RecordKind::Seal);
                for piece in &salvage.pieces {
                    if piece.header.kind == RecordKind::Roll {
                        scan.rolled_to = Some(header.segment.saturating_add(1));
                    }
                    replay
                        .apply_piece(header.segment, piece)
                        .map_err(|what| damaged(piece.offset, what))?;
                }
                let accepted = std::mem::replace(&mut replay.epoch, salvage.epoch);
                replay.batches += 1;
                scan.epoch_seen = scan.epoch_seen.max(salvage.epoch);
                scan.last_batch = Some(salvage.ranges());
                let (records, identifiers) = salvage.region_bytes;
                scan.room = scan.room.after(records, identifiers, alignment);
                let (path, offset) = (path.to_path_buf(), first_bad(image, &salvage));
                let mut sectors = None;
                if salvage.is_complete() {
                    let found = salvage.ranges().map(|at| range(image, at));
                    sectors = salvage.restored(found, accepted);
                    if sectors.is_none() {
                        let problem = "what is left of a batch contradicts itself".to_owned();
                        return Err(damaged(offset, problem));
                    }
                }
                scan.damages.push(Damage { path, offset, accepted, salvage, sectors });
                if scan.rolled_to.is_some() {
                    return Ok(scan);
                }
            }
            (TailCase::Complete, Some(batch), _) => {
                let records = (scan.room.front, batch.record_bytes());
                let identifiers =
                    (scan.room.back - batch.identifier_bytes(), batch.identifier_bytes());
                if let Some(error) = misplaced(batch.epoch, batch.previous_epoch, replay.epoch) {
                    return Err(error);
                }
                let decoded = record::decode_batch(
                    &batch,
                    header.segment,
                    records.0,
                    range(image, records),
                    range(image, identifiers),
                )
                .map_err(|offset| damaged(offset, "a record does not decode".to_owned()))?;
                scan.sealed = decoded.iter().all(|record| record.header.kind == RecordKind::Seal);
                for record in decoded {
                    let offset = record.offset;
                    if record.header.kind == RecordKind::Roll {
                        scan.rolled_to = Some(header.segment.saturating_add(1));
                    }
                    replay.apply(header.segment, record).map_err(|what| damaged(offset, what))?;
                }
                replay.epoch = batch.epoch;
                replay.batches += 1;
                scan.epoch_seen = scan.epoch_seen.max(batch.epoch);
                scan.last_batch = Some([records, identifiers]);
                scan.room = scan.room.after(records.1, identifiers.1, alignment);
                if scan.rolled_to.is_some() {
                    return Ok(scan);
                }
            }
            (TailCase::End | TailCase::Torn | TailCase::AmbiguousAlone, ..) => {
                scan.dropped = survey.epoch;
                scan.epoch_seen = scan.epoch_seen.max(survey.epoch_max);
                scan.dirty = survey.dirty;
                return Ok(scan);
            }
            (TailCase::Ambiguous, ..) => {
                let problem = "the last batch was never proven synced and is damaged, which only a \
                               peer can tell from an acknowledged one";
                return Err(damaged(survey.first_bad, problem.to_owned()));
            }
            (TailCase::Damaged | TailCase::Salvaged | TailCase::Complete, ..) => {
                let problem = format!("batch {} was acknowledged and is damaged", replay.epoch + 1);
                return Err(damaged(survey.first_bad, problem));
            }
            (TailCase::Lost, ..) => {
                let problem = format!(
                    "the log ends after batch {}; later ones were acknowledged and are gone",
                    replay.epoch
                );
                return Err(damaged(survey.first_bad, problem));
            }
        }
    }
}

/// The first sector of a damaged batch that is not as it was written.
fn first_bad(image: &[u8], salvage: &Salvage) -> u64 {
    let intact = SectorState::Written { segment: salvage.segment, epoch: salvage.epoch };
    let all = salvage.ranges();
    let all = all.into_iter().flat_map(|(begin, len)| sectors(image, begin, begin + len));
    let bad = all.filter(|(_, state)| *state != intact).map(|(offset, _)| offset);
    bad.min().unwrap_or(salvage.room.front)
}

pub(super) fn range(image: &[u8], (offset, len): (u64, u64)) -> &[u8] {
    let offset = to_usize(offset);
    image.get(offset..offset.saturating_add(to_usize(len))).unwrap_or(&[])
}

/// What the sectors behind the last accepted batch say.
#[derive(Debug, Default)]
struct Survey {
    /// The next batch, when all of it is intact.
    complete: Option<BatchHeader>,
    /// The lowest epoch found above the accepted one.
    epoch: Option<u64>,
    epoch_max: u64,
    /// A sector that belongs, or may belong, to the next batch is rotted.
    rotted: bool,
    first_bad: u64,
    dirty: Vec<u64>,
}

impl Survey {
    fn of(image: &[u8], segment: u32, room: Room, accepted: u64) -> Self {
        let mut survey = Self { first_bad: room.front, ..Self::default() };
        let batch = Self::header(image, segment, room, accepted);
        if let Some(batch) = batch {
            let regions = [
                (room.front, batch.record_bytes()),
                (room.back.saturating_sub(batch.identifier_bytes()), batch.identifier_bytes()),
            ];
            let fits = batch.record_bytes() + batch.identifier_bytes() <= room.back - room.front;
            let intact = |(offset, len): (u64, u64)| {
                sectors(image, offset, offset + len)
                    .all(|(_, state)| state == SectorState::Written { segment, epoch: batch.epoch })
            };
            if fits && regions.into_iter().all(intact) {
                survey.epoch = Some(batch.epoch);
                survey.complete = Some(batch);
                return survey;
            }
        }
        survey.look(image, segment, room, accepted, batch);
        survey
    }

    fn header(image: &[u8], segment: u32, room: Room, accepted: u64) -> Option<BatchHeader> {
        if room.front >= room.back {
            return None;
        }
        let sector = range(image, (room.front, to_u64(SECTOR_BYTES)));
        match record::inspect(sector, room.front) {
            SectorState::Written { segment: found, epoch }
                if found == segment && epoch > accepted =>
            {
                BatchHeader::decode(sector, segment, room.front)
                    .filter(|batch| batch.epoch == epoch)
            }
            SectorState::Written { .. } | SectorState::Zero | SectorState::Rotted => None,
        }
    }

    /// Looks at every free sector, for batches of which only a part is there.
    fn look(
        &mut self,
        image: &[u8],
        segment: u32,
        room: Room,
        accepted: u64,
        batch: Option<BatchHeader>,
    ) {
        let sector = to_u64(SECTOR_BYTES);
        let belongs = |offset: u64| {
            batch.is_some_and(|batch| {
                offset < room.front.saturating_add(batch.record_bytes())
                    || offset >= room.back.saturating_sub(batch.identifier_bytes())
            })
        };
        let (mut rotted_edge, mut rotted_within, mut rotted_any) = (false, false, false);
        let mut bad = None;
        for (offset, state) in sectors(image, room.front, room.back) {
            match state {
                SectorState::Written { segment: found, epoch }
                    if found == segment && epoch > accepted =>
                {
                    self.epoch = Some(self.epoch.map_or(epoch, |lowest| lowest.min(epoch)));
                    self.epoch_max = self.epoch_max.max(epoch);
                    self.dirty.push(offset);
                }
                SectorState::Written { segment: found, .. } if found <= segment => {
                    bad = bad.or_else(|| belongs(offset).then_some(offset));
                }
                SectorState::Zero => bad = bad.or_else(|| belongs(offset).then_some(offset)),
                SectorState::Written { .. } | SectorState::Rotted => {
                    rotted_any = true;
                    rotted_edge |= offset == room.front || offset + sector == room.back;
                    rotted_within |= belongs(offset);
                    bad = bad.or(Some(offset));
                    self.dirty.push(offset);
                }
            }
        }
        // With a batch header, its extent is known. Without one, any rotted sector may belong to the batch;
        // when nothing at all is left of a batch, only its first and last sector would be where they are.
        self.rotted = match (batch, self.epoch) {
            (Some(_), _) => rotted_within,
            (None, Some(_)) => rotted_any,
            (None, None) => rotted_edge,
        };
        self.first_bad = bad.unwrap_or(room.front);
    }

    /// Two epochs: the second was written only after the first was synced.
    fn is_followed(&self) -> bool {
        self.epoch.is_some_and(|lowest| self.epoch_max > lowest)
    }
}

fn sectors(image: &[u8], from: u64, to: u64) -> impl Iterator<Item = (u64, SectorState)> {
    let sector = to_u64(SECTOR_BYTES);
    let offsets = (0..).map(move |n| from + n * sector).take_while(move |offset| *offset < to);
    offsets.map(move |offset| {
        let bytes = range(image, (offset, sector));
        let whole = bytes.len() == SECTOR_BYTES;
        (offset, if whole { record::inspect(bytes, offset) } else { SectorState::Rotted })
    })
}

/// Whether a segment holds any batch, judged by where its first one would stand.
pub(super) fn is_used(image: &[u8], segment: u32) -> bool {
    let room = Room::of(to_u64(image.len()));
    let sector = to_u64(SECTOR_BYTES);
    [room.front, room.back.saturating_sub(sector)].into_iter().any(|offset| {
        let bytes = range(image, (offset, sector));
        bytes.len() == SECTOR_BYTES
            && matches!(record::inspect(bytes, offset),
                SectorState::Written { segment: found, .. } if found == segment)
    })
}

/// Reads the header of the segment file `path`, whose name says `segment`.
pub(super) fn read_header(
    path: &Path,
    image: &[u8],
    segment: u32,
    identity: Identity,
    formed: &Formed,
) -> Result<SegmentHeader, DataError> {
    let copies = [0, HEADER_COPY_OFFSET]
        .map(|offset| SegmentHeader::decode(range(image, (offset, to_u64(SECTOR_BYTES)))));
    let newer = copies.iter().find_map(|copy| match copy {
        Err(HeaderProblem::Newer(version)) => Some(*version),
        Err(HeaderProblem::Damaged) | Ok(_) => None,
    });
    let intact = copies.iter().find_map(|copy| copy.ok());
    let is = |f: &dyn Fn(&SegmentHeader) -> bool| intact.as_ref().is_some_and(f);
    let facts = [
        newer.is_some(),
        intact.is_some(),
        is(&|header| header.is_of(formed)),
        is(&|header| header.group == formed.group),
        is(&|header| header.node == identity),
        is(&|header| {
            header.segment == segment
                && header.file_bytes == to_u64(image.len())
                && header.batch_alignment >= 512
                && header.batch_alignment % 512 == 0
        }),
    ];
    let damaged = |problem: &str| DataError::Damaged {
        path: path.to_path_buf(),
        offset: Some(0),
        problem: problem.to_owned(),
    };
    let found = match (decide(HEADER, facts, HeaderCase::Damaged), intact) {
        (HeaderCase::Good, Some(header)) => return Ok(header),
        (HeaderCase::Newer, _) => {
            return Err(DataError::NewerFormat {
                path: path.to_path_buf(),
                found: newer.unwrap_or(u32::MAX),
                supported: FORMAT_VERSION,
            });
        }
        (_, None) | (HeaderCase::Damaged, _) => {
            return Err(damaged("no copy of the segment's header is intact"));
        }
        (HeaderCase::Misplaced, _) => {
            return Err(damaged("the file's name or length is not the one in its header"));
        }
        (case, Some(header)) => (case, header),
    };
    Err(match found {
        (HeaderCase::OtherCluster, header) => DataError::OtherCluster {
            path: path.to_path_buf(),
            expected: formed.cluster,
            found: header.cluster,
        },
        (HeaderCase::OtherNode, header) => DataError::OtherMember {
            path: path.to_path_buf(),
            expected: format!("member {}", identity.node()),
            found: format!("member {}", header.node.node()),
            member: header.node.member,
        },
        (_, header) => damaged(&format!("it belongs to group {}", header.group.0)),
    })
}

/// The entry whose index is the first one missing between `compacted` and the entries that are there.
pub(super) fn gap(replay: &Replay) -> Option<EntryId> {
    let first = replay
        .entries
        .front()
        .map_or_else(|| replay.last.id.index.next(), |(_, entry)| entry.id.index);
    (first > replay.compacted.id.index.next()).then_some(replay.compacted.id)
}
