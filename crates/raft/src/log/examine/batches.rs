//! Batches that are damaged, and of which every record is known by name: what of them is lost, and to whom it matters.

use std::collections::BTreeSet;
use std::path::PathBuf;

use raft_core::{EntryId, EntryKind, Index, Membership, SnapshotMeta};

use super::segments::Replayed;
use super::{Effect, Examiner};
use crate::io::Disk;
use crate::log::record::{SECTOR_BYTES, SectorState, inspect, record_extent, to_u64};
use crate::log::recovery::{self, range};
use crate::log::segment::Mark;
use crate::log::{Formed, Identity};

/// What is wrong with a batch, without its payloads.
pub(super) struct DamagedBatch {
    path: PathBuf,
    /// Neighbouring bad sectors: offset, bytes, and the entries whose payload is lost with them.
    runs: Vec<(u64, u64, Vec<Mark>)>,
}

impl DamagedBatch {
    pub(super) fn of(damage: &recovery::Damage, image: &[u8]) -> Self {
        let (salvage, size) = (&damage.salvage, to_u64(SECTOR_BYTES));
        let intact = SectorState::Written { segment: salvage.segment, epoch: salvage.epoch };
        let mut runs: Vec<(u64, u64, Vec<Mark>)> = Vec::new();
        for (begin, len) in salvage.ranges() {
            for offset in (begin..begin + len).step_by(SECTOR_BYTES) {
                if inspect(range(image, (offset, size)), offset) == intact {
                    continue;
                }
                match runs.last_mut() {
                    Some((first, bytes, _)) if *first + *bytes == offset => *bytes += size,
                    Some(_) | None => runs.push((offset, size, Vec::new())),
                }
            }
        }
        for piece in damage.holes() {
            let (begin, len) = record_extent(piece.offset, piece.len);
            let end = begin + to_u64(len);
            let mark = Mark { id: piece.header.id, digest: piece.header.digest };
            for (first, bytes, marks) in &mut runs {
                if *first < end && begin < *first + *bytes {
                    marks.push(mark);
                }
            }
        }
        Self { path: damage.path.clone(), runs }
    }

    fn holes(&self) -> impl Iterator<Item = &Mark> {
        self.runs.iter().flat_map(|(_, _, marks)| marks)
    }
}

impl<D: Disk> Examiner<'_, D> {
    /// Lists damaged batches, and what a start makes of them. `intact` are the snapshots that are whole, newest first.
    pub(super) fn batches(
        &mut self,
        log: &Replayed,
        intact: &[SnapshotMeta],
        owner: Option<(Identity, Formed)>,
    ) {
        let replay = &log.replay;
        let usable = intact.iter().find(|meta| replay.accepts(meta));
        let included = usable.map_or(Index::ZERO, |meta| meta.last_included.index);
        // As in recovery: what one snapshot includes, or one beyond the end of the log, is not needed.
        let beyond = intact.iter().any(|meta| meta.last_included.index > replay.last.id.index);
        let needed: BTreeSet<Index> =
            replay.holes.iter().copied().filter(|index| *index > included && !beyond).collect();
        let lost = |mark: &Mark| {
            needed.contains(&mark.id.index) && replay.mark_at(mark.id.index) == Some(*mark)
        };
        let effect = if is_alone(log, usable, owner) { Effect::Needed } else { Effect::Fetched };
        for batch in &log.damaged {
            let open = batch.holes().any(lost);
            for (offset, bytes, marks) in &batch.runs {
                let ids: Vec<String> = marks.iter().map(|mark| name(mark.id)).collect();
                let ids = ids.join(", ");
                let (problem, effect) = match (marks.is_empty(), open) {
                    (true, _) => {
                        let problem = "sectors of a batch are damaged; what is left of it says what stood there";
                        (problem.to_owned(), Effect::Covered)
                    }
                    (false, true) => (format!("the payload of {ids} is damaged"), effect),
                    (false, false) => {
                        let problem =
                            format!("the payload of {ids} is damaged; a snapshot includes it");
                        (problem, Effect::Covered)
                    }
                };
                self.damage(&batch.path, (*offset, *bytes), effect, &problem);
            }
        }
    }
}

fn name(id: EntryId) -> String {
    format!("entry {id}")
}

/// Whether no configuration that is known has another member.
fn is_alone(
    log: &Replayed,
    usable: Option<&SnapshotMeta>,
    owner: Option<(Identity, Formed)>,
) -> bool {
    let Some((identity, formed)) = owner else { return false };
    let base = usable.map_or(formed.members, |meta| meta.membership.clone());
    let entries = log.replay.entries.iter().map(|(_, entry)| entry);
    let later = entries.filter(|entry| entry.kind == EntryKind::Membership);
    let later = later.filter_map(|entry| Membership::decode(&entry.payload));
    let all = std::iter::once(base).chain(later.map(|(membership, _)| membership));
    all.into_iter().all(|membership| membership.members().all(|(node, _)| node == identity.node()))
}
