//! The segments of the log, one after the other, as recovery reads them, and further when it would stop.

use bytes::Bytes;
use raft_core::{EntryKind, Membership};

use super::batches::DamagedBatch;
use super::snapshots::Manifest;
use super::{Effect, Examiner, LogSummary, SegmentSummary};
use crate::error::DataError;
use crate::io::Disk;
use crate::log::body::origin;
use crate::log::files::read_file;
use crate::log::open::Found;
use crate::log::record::{self, SECTOR_BYTES, SectorState, to_u64};
use crate::log::recovery::{self, Replay, Scan, Witness};
use crate::log::segment::{HEADER_BYTES, HEADER_COPY_OFFSET, Room, SegmentHeader, segment_name};
use crate::log::{Formed, Identity};

/// The log as far as it was understood.
pub(super) struct Replayed {
    pub(super) replay: Replay,
    pub(super) summary: LogSummary,
    /// Everything since `compacted` was understood, and where the log began is known.
    pub(super) unbroken: bool,
    /// A log that begins where the cluster began needs no snapshot.
    pub(super) from_origin: bool,
    /// Damaged batches of which every record is known by name.
    pub(super) damaged: Vec<DamagedBatch>,
}

/// The segments, and what follows from them.
pub(super) struct Segments {
    pub(super) summaries: Vec<SegmentSummary>,
    pub(super) replayed: Option<Replayed>,
}

/// The log since the last place at which it could not be followed.
struct Chain {
    replay: Replay,
    scan: Scan,
}

impl<D: Disk> Examiner<'_, D> {
    pub(super) fn segments(
        &mut self,
        found: &Found,
        manifests: &[Manifest],
    ) -> Result<Segments, DataError> {
        let mut summaries: Vec<SegmentSummary> = Vec::new();
        let mut chain: Option<Chain> = None;
        let mut unbroken = true;
        let mut owner: Option<(Identity, Formed)> = found.owner();
        let mut damaged: Vec<DamagedBatch> = Vec::new();
        let mut next: Option<Vec<u8>> = None;
        for (nth, number) in found.segments.iter().copied().enumerate() {
            let path = self.dir.join(segment_name(number));
            let image = match next.take() {
                Some(image) => image,
                None => self.read_segment(number)?,
            };
            self.advance(to_u64(image.len()));
            let following = found.segments.get(nth + 1).copied();
            if let Some(following) = following {
                next = Some(self.read_segment(following)?);
            }
            let later = following
                .zip(next.as_ref())
                .is_some_and(|(following, image)| recovery::is_used(image, following));
            let mut summary = SegmentSummary {
                number,
                bytes: to_u64(image.len()),
                positions: None,
                indexes: None,
                terms: None,
                batches: 0,
                sync_epochs: (0, 0),
                durable_epoch: 0,
                free_bytes: 0,
                unused: !recovery::is_used(&image, number),
            };
            let rolled_to = chain.as_ref().map(|chain| chain.scan.rolled_to);
            match rolled_to {
                None => {}
                Some(Some(expected)) if expected == number => {}
                // About to be begun when the process ended.
                Some(None) if summary.unused => {
                    summaries.push(summary);
                    continue;
                }
                Some(expected) => {
                    let lost = segment_name(expected.unwrap_or(number - 1));
                    self.damage(
                        &self.dir.join(lost),
                        (0, 0),
                        Effect::Needed,
                        "this segment of the log is missing, or the end of the one before it",
                    );
                    unbroken = false;
                    if let Some(chain) = chain.take() {
                        note_entries(&mut summaries, &chain.replay);
                    }
                }
            }
            // A header that says whose segment it is will do where the files that say so are lost.
            let headers = [0, HEADER_COPY_OFFSET].map(|offset| header_at(&image, offset));
            if owner.is_none() {
                owner = headers.iter().flatten().next().map(owner_by);
            }
            let header = owner.as_ref().map(|(identity, formed)| {
                (recovery::read_header(&path, &image, number, *identity, formed), formed)
            });
            let (header, formed) = match header {
                Some((Ok(header), formed)) => (header, formed),
                Some((Err(error), _)) => {
                    self.note(error, &path)?;
                    self.rotted_sectors(&path, &image, (HEADER_BYTES, summary.bytes), None);
                    (unbroken, chain) = (false, self.broken(chain, &mut summaries));
                    summaries.push(summary);
                    continue;
                }
                None => {
                    let problem = "no copy of the segment's header is intact";
                    self.damage(&path, (0, 0), Effect::Needed, problem);
                    self.rotted_sectors(&path, &image, (HEADER_BYTES, summary.bytes), None);
                    summaries.push(summary);
                    unbroken = false;
                    continue;
                }
            };
            for (copy, offset) in headers.iter().zip([0, HEADER_COPY_OFFSET]) {
                if copy.is_none() {
                    let problem = "one of two copies of the segment's header is damaged";
                    self.damage(&path, (offset, to_u64(SECTOR_BYTES)), Effect::Covered, problem);
                }
            }
            let newest = manifests.iter().rev().find_map(|manifest| manifest.meta());
            let base =
                newest.map_or_else(|| formed.members.clone(), |meta| meta.membership.clone());
            let oldest = chain.is_none();
            let mut replay =
                chain.take().map_or_else(|| Replay::begin(formed, &header), |chain| chain.replay);
            let before = (replay.batches, replay.epoch);
            let witness = Witness {
                epoch: if unbroken { found.promises.sync_epoch } else { 0 },
                clean: unbroken && found.promises.clean,
                later_segment: later,
                oldest,
                base: &base,
            };
            let outcome = recovery::scan(&path, &image, &header, &mut replay, &witness);
            summary.positions = Some((header.previous.id, replay.last.id));
            summary.batches = replay.batches - before.0;
            summary.sync_epochs = (before.1, replay.epoch);
            summary.durable_epoch = header.durable_epoch;
            match outcome {
                Ok(mut scan) => {
                    let found = scan.damages.drain(..);
                    damaged.extend(found.map(|damage| DamagedBatch::of(&damage, &image)));
                    summary.free_bytes = scan.room.back.saturating_sub(scan.room.front);
                    let free = (scan.room.front, scan.room.back);
                    // Recovery looks only at the free space of the last segment.
                    self.rotted_sectors(&path, &image, free, Some(Effect::Unused));
                    drop_payloads(&mut replay);
                    summaries.push(summary);
                    chain = Some(Chain { replay, scan });
                }
                Err(error) => {
                    self.note(error, &path)?;
                    let room = Room::of(summary.bytes);
                    self.rotted_sectors(&path, &image, (room.front, room.back), None);
                    summaries.push(summary);
                    note_entries(&mut summaries, &replay);
                    unbroken = false;
                }
            }
        }
        let Some(Chain { replay, scan }) = chain else {
            return Ok(Segments { summaries, replayed: None });
        };
        note_entries(&mut summaries, &replay);
        if let Some(expected) = scan.rolled_to {
            let problem = "this segment of the log is missing";
            let path = self.dir.join(segment_name(expected));
            self.damage(&path, (0, 0), Effect::Needed, problem);
        }
        if unbroken && let Some(end) = recovery::gap(&replay) {
            let first = summaries.first().map_or(1, |summary| summary.number);
            let problem = format!("the segment before it is missing: entries after {end} are gone");
            self.damage(&self.dir.join(segment_name(first)), (0, 0), Effect::Needed, &problem);
        }
        let newest = replay.entries.iter().rev().find_map(|(_, entry)| {
            let is_membership = entry.kind == EntryKind::Membership;
            is_membership.then(|| Membership::decode(&entry.payload)).flatten()
        });
        let base = manifests.iter().rev().filter_map(Manifest::meta);
        let base = base.map(|meta| meta.membership.clone()).next();
        let formed = owner.as_ref().map(|(_, formed)| formed);
        let membership = newest.map(|(membership, _)| membership).or(base);
        let membership = membership.or_else(|| formed.map(|formed| formed.members.clone()));
        let summary = LogSummary {
            compacted: replay.compacted.id,
            last: replay.last.id,
            sync_epoch: replay.epoch,
            torn_epoch: scan.dropped,
            membership: membership.unwrap_or_default(),
        };
        let from_origin = formed.is_some_and(|formed| replay.compacted == origin(formed));
        let replayed = Some(Replayed { replay, summary, unbroken, from_origin, damaged });
        Ok(Segments { summaries, replayed })
    }

    fn read_segment(&mut self, number: u32) -> Result<Vec<u8>, DataError> {
        let path = self.dir.join(segment_name(number));
        match read_file(self.disk, &path) {
            Ok(image) => Ok(image.unwrap_or_default()),
            Err(DataError::Io { source, .. }) => {
                let problem = format!("it cannot be read: {source}");
                self.damage(&path, (0, 0), Effect::Needed, &problem);
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Nothing can be said of how the log goes on from here.
    fn broken(&self, chain: Option<Chain>, summaries: &mut [SegmentSummary]) -> Option<Chain> {
        if let Some(chain) = chain {
            note_entries(summaries, &chain.replay);
        }
        None
    }

    /// Lists what is rotted between two offsets, neighbours as one. `effect` is `None` where recovery did not get to:
    /// then it depends on what stood there.
    fn rotted_sectors(
        &mut self,
        path: &std::path::Path,
        image: &[u8],
        (from, to): (u64, u64),
        effect: Option<Effect>,
    ) {
        let sector = to_u64(SECTOR_BYTES);
        let mut begin: Option<u64> = None;
        let mut offset = from;
        while offset <= to {
            let at = record::to_usize(offset);
            let bytes = image.get(at..at.saturating_add(SECTOR_BYTES)).unwrap_or(&[]);
            let whole = bytes.len() == SECTOR_BYTES;
            let rotted =
                offset < to && (!whole || record::inspect(bytes, offset) == SectorState::Rotted);
            match (begin, rotted) {
                (None, true) => begin = Some(offset),
                (Some(first), false) => {
                    begin = None;
                    let known = self
                        .damages
                        .iter()
                        .any(|damage| damage.path == path && damage.offset == first);
                    if !known || effect.is_some() {
                        let problem = match effect {
                            Some(_) => "free space is damaged: nothing is stored there",
                            None => "sectors of the log are damaged",
                        };
                        let effect = effect.unwrap_or(Effect::Needed);
                        self.damage(path, (first, offset - first), effect, problem);
                    }
                }
                (Some(_), true) | (None, false) => {}
            }
            offset += sector;
        }
    }
}

fn header_at(image: &[u8], offset: u64) -> Option<SegmentHeader> {
    let bytes = image.get(record::to_usize(offset)..)?;
    SegmentHeader::decode(bytes).ok()
}

/// Whose segment this is, by its own header. The first configuration is not told there.
fn owner_by(header: &SegmentHeader) -> (Identity, Formed) {
    let (cluster, group) = (header.cluster, header.group);
    (header.node, Formed { cluster, group, members: Membership::default() })
}

/// Adds the entries that the log needs to the segments that hold them.
fn note_entries(summaries: &mut [SegmentSummary], replay: &Replay) {
    let mut summaries = summaries.iter_mut();
    let mut current = summaries.next();
    for (position, entry) in &replay.entries {
        while current.as_ref().is_some_and(|summary| summary.number < position.segment) {
            current = summaries.next();
        }
        let Some(summary) = &mut current else { return };
        let (index, term) = (entry.id.index, entry.id.term);
        summary.indexes = Some(summary.indexes.map_or((index, index), |(first, _)| (first, index)));
        summary.terms = Some(summary.terms.map_or((term, term), |(first, _)| (first, term)));
    }
}

/// They are checked, and all that is needed of them from here on are configurations.
fn drop_payloads(replay: &mut Replay) {
    for (_, entry) in &mut replay.entries {
        if entry.kind == EntryKind::Membership {
            // Not a part of the segment's content, which it would keep in memory.
            entry.payload = Bytes::copy_from_slice(&entry.payload);
        } else {
            entry.payload = Bytes::new();
        }
    }
}
