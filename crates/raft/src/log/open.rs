//! Opening a data directory: look at everything, decide, and only then change something.

use std::collections::{BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft_core::{
    EntryKind, HardState, Index, Membership, Persist, Recovered, SnapshotMeta, Ticket,
};
use tracing::warn;

use super::body::{Body, Segment, origin};
use super::files::{Files, read_file};
use super::hard_state::{Promises, SLOT_BYTES, SLOTS, SlotsFound, choose};
use super::identity::{
    CLUSTER_MAGIC, FORMATION_COPY_BYTES, IDENTITY_MAGIC, SealProblem, decode_cluster,
    newest_formation, seal_twice, unseal_either,
};
use super::record::{BatchWriter, SECTOR_BYTES, to_usize};
use super::recovery::{self, Damage, Replay, Scan, Witness};
use super::segment::{
    FORMAT_VERSION, Mark, Room, SegmentHeader, is_spare_name, parse_segment_name, segment_name,
};
use super::snapshot::{has_blobs, list_manifests};
use super::spares::{Spare, keeps};
use super::store::Log;
use super::tables::{START, StartCase, decide};
use super::{
    Belongs, DamagedState, DataState, Formed, FormedState, Identity, LatchError, LogOptions,
    Missing, Opened, RecoveryReport,
};
use crate::error::DataError;
use crate::io::{Disk, DiskFile, OpenMode};

impl<D: Disk> Log<D> {
    /// Opens or creates a data directory, recovers it and makes what was recovered durable. `fresh` becomes
    /// the identity of a directory that has none.
    ///
    /// # Errors
    /// When the directory cannot be used; nothing was changed then, unless the disk itself failed.
    pub fn open(
        disk: D,
        dir: &Path,
        options: LogOptions,
        fresh: Identity,
    ) -> Result<Opened<D>, DataError> {
        Self::open_if(disk, dir, options, fresh, |_| Ok(()))
    }

    /// As [`open`](Self::open), unless `check` refuses what a directory of a cluster says of itself.
    ///
    /// # Errors
    /// As those of `open`, and those of `check`: before anything is changed.
    pub fn open_if(
        disk: D,
        dir: &Path,
        options: LogOptions,
        fresh: Identity,
        check: impl FnOnce(&Belongs<'_>) -> Result<(), DataError>,
    ) -> Result<Opened<D>, DataError> {
        let refused =
            |action| move |source| DataError::Io { path: dir.to_path_buf(), action, source };
        let options = options.rounded();
        disk.create_dir(dir).map_err(refused("create"))?;
        let lock = match disk.lock(dir) {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(DataError::Locked { path: dir.to_path_buf() });
            }
            Err(error) => return Err(refused("lock")(error)),
        };
        // Whoever made the directory may have crashed before its name was durable.
        match disk.sync_dir(parent_of(dir)) {
            // Then somebody else made it.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            outcome => outcome.map_err(refused("sync the parent of"))?,
        }
        let names = disk.list(dir).map_err(refused("list"))?;
        let mut files = Files::new(disk, dir.to_path_buf());
        let mut found = Found::look(&files, &names)?;
        let case = found.case();
        tracing::debug!(dir = %dir.display(), ?case, "opening the data directory");
        let (identity, formed) = found.judge(case, &files)?;
        // The log is read before anything is changed, so that a refusal changes nothing.
        let recovery = match (identity, formed) {
            (Some(identity), Some(formed)) => {
                Some(Recovery::read(&files, identity, formed, &found)?)
            }
            (_, None) | (None, _) => None,
        };
        if let (Some(recovery), Some(identity)) = (&recovery, identity) {
            check(&Belongs {
                path: files.path("cluster"),
                node: identity.node(),
                formed: &recovery.formed,
                formation: &found.formation.1,
                memberships: recovery.memberships(),
            })?;
        }
        for name in names.iter().filter(|name| name.ends_with(".new")) {
            let path = files.path(name);
            files.remove(&path)?;
        }
        if recovery.is_some() && !names.iter().any(|name| name == "formation") {
            // A member needs nothing of it any more.
            files.create("formation", &vec![0; 2 * FORMATION_COPY_BYTES])?;
        }
        let identity = match identity {
            Some(identity) => identity,
            None => {
                found.promises = create(&mut files, fresh)?;
                fresh
            }
        };
        let slots = files.path("promises");
        let slots = (slots.clone(), files.open(&slots, OpenMode::ReadWrite)?);
        let formation_file = files.path("formation");
        let formation_file =
            (formation_file.clone(), files.open(&formation_file, OpenMode::ReadWrite)?);
        let clean = found.promises.clean;
        let mut log = Self {
            files,
            identity,
            options,
            slots,
            promises: found.promises,
            formation_file,
            formation: found.formation,
            body: None,
            broken: None,
            mending: Vec::new(),
            stalled: VecDeque::new(),
            damage: std::cell::RefCell::new(None),
            lock,
        };
        let state = match recovery {
            Some(recovery) => log.settle(recovery, &names, clean)?,
            None => {
                for name in names.iter().filter(|name| parse_segment_name(name).is_some()) {
                    let path = log.files.path(name);
                    log.files.remove(&path)?;
                }
                log.begin_life(clean)?;
                DataState::Empty { identity, formation: log.formation.1.clone() }
            }
        };
        Ok(Opened { log, state })
    }

    /// Recovers once more, after what was missing has been written.
    ///
    /// # Errors
    /// As those of [`open`](Self::open).
    pub(super) fn reopen(&mut self) -> Result<DataState, DataError> {
        let dir = self.files.dir.clone();
        let names = self.files.disk.list(&dir).map_err(|source| DataError::Io {
            path: dir,
            action: "list",
            source,
        })?;
        let found = Found::look(&self.files, &names)?;
        let (identity, formed) = found.judge(found.case(), &self.files)?;
        let (Some(identity), Some(formed)) = (identity, formed) else {
            return Err(lost_segment(&self.files, 1));
        };
        let recovery = Recovery::read(&self.files, identity, formed, &found)?;
        self.broken = None;
        self.settle(recovery, &names, false)
    }

    /// Goes on with what recovery decided: a member, or one that needs payloads from others first.
    fn settle(
        &mut self,
        recovery: Recovery,
        names: &[String],
        clean: bool,
    ) -> Result<DataState, DataError> {
        let newest = recovery.segments.last().map_or(0, |(header, _)| header.durable_epoch);
        self.promises.durable_epoch = self.promises.durable_epoch.max(newest);
        if recovery.missing.is_empty() {
            let superseded = recovery.superseded;
            let mut state = self.adopt(recovery, names)?;
            self.begin_life(clean)?;
            if superseded {
                self.begin_after(&mut state)?;
            }
            if let Some(body) = &mut self.body {
                body.seal(&mut self.files)?;
            }
            state.epoch = self.promises.durable_epoch;
            return Ok(DataState::Formed(Box::new(state)));
        }
        // What this process says must be told from what the one before said, also now.
        self.begin_life(clean)?;
        let state = DamagedState {
            identity: self.identity,
            formed: recovery.formed.clone(),
            memberships: recovery.memberships(),
            epoch: self.promises.durable_epoch,
            peer_epochs: self.promises.peer_epochs.clone(),
            last: recovery.replay.last.id,
            snapshot: recovery.snapshot.clone(),
            missing: recovery.missing.clone(),
        };
        self.broken = Some(Box::new(recovery));
        Ok(DataState::Damaged(Box::new(state)))
    }

    /// Begins the log anew behind the snapshot, as when a leader sends one; durable on return.
    fn begin_after(&mut self, state: &mut FormedState) -> Result<(), DataError> {
        let snapshot = state.recovered.snapshot.clone();
        let at = snapshot.last_included;
        warn!(%at, "what is damaged is included in a snapshot that reaches beyond the log: the log begins after it");
        let mut hard_state = self.promises.hard_state;
        if hard_state.current_term < at.term {
            hard_state = HardState { current_term: at.term, voted_for: None };
        }
        let persist = Persist {
            hard_state: Some(hard_state),
            snapshot: Some(snapshot),
            truncate_from: None,
            entries: Vec::new(),
            compact_to: None,
            ticket: Ticket::for_copies(),
        };
        if self.write(vec![persist])?.is_empty() {
            self.stalled.clear();
            let path = self.files.dir.clone();
            let source = ErrorKind::StorageFull.into();
            return Err(DataError::Io { path, action: "write", source });
        }
        state.recovered.hard_state = hard_state;
        Ok(())
    }

    /// Makes durable that a process has begun.
    fn begin_life(&mut self, clean: bool) -> Result<(), DataError> {
        if !clean && self.formation.0 > 0 {
            self.write_formation()?;
        }
        // A start is a hard-state write: the epoch advances, the slots agree again, the clean mark goes.
        self.write_promises(self.promises.clone(), false)?;
        self.files.sync_dir()?;
        let snapshots = self.files.path("snapshot");
        let exists = self.files.disk.exists(&snapshots);
        if self.files.guard(&snapshots, exists)? {
            let outcome = self.files.disk.sync_dir(&snapshots);
            self.files.guard(&snapshots, outcome)?;
        }
        Ok(())
    }

    /// Repairs what recovery decided to repair and makes durable what was only read (decision 6).
    fn adopt(&mut self, recovery: Recovery, names: &[String]) -> Result<FormedState, DataError> {
        let Recovery {
            formed,
            replay,
            scan,
            tail,
            segments,
            unused,
            snapshot,
            mut report,
            unclean,
            damages,
            missing: _,
            superseded,
        } = recovery;
        for damage in damages {
            let at = (damage.path.clone(), damage.offset);
            if damage.sectors.is_none() {
                report.superseded.push(at);
                continue;
            }
            warn!(path = %at.0.display(), offset = at.1, "a damaged batch of the log is repaired");
            damage.repair(&mut self.files)?;
            report.repaired.push(at);
        }
        let mut open = VecDeque::new();
        for (header, path) in &segments {
            let file = self.files.open(path, OpenMode::ReadWrite)?;
            let (path, bytes) = (path.clone(), header.file_bytes);
            open.push_back(Segment { id: header.segment, path, file, bytes });
        }
        if unclean
            && let Some((nth, ranges)) = tail
            && let Some(segment) = open.get(nth)
        {
            report.rewritten_bytes = rewrite(&mut self.files, segment, ranges)?;
        }
        // Rot in free space would be taken for a batch after a power loss right before it.
        if (unclean || !scan.dirty.is_empty())
            && let Some(segment) = open.back()
        {
            clear(&mut self.files, segment, &scan.dirty)?;
        }
        for path in unused {
            self.files.remove(&path)?;
        }
        let mut spares = Vec::new();
        for name in names.iter().filter(|name| is_spare_name(name)) {
            let path = self.files.path(name);
            let file = self.files.open(&path, OpenMode::ReadWrite)?;
            let len = file.len();
            let len = self.files.guard(&path, len)?;
            // Another length is that of other options.
            if keeps(&spares, len, self.options) {
                spares.push(Spare { path, file, bytes: len });
            } else {
                self.files.remove(&path)?;
            }
        }
        let newest = segments.last().map(|(header, _)| *header);
        // What is damaged and included in a snapshot is left out, with everything before it.
        let begins = replay.holes.last().and_then(|last| replay.mark_at(*last));
        let begins = begins.unwrap_or(replay.compacted);
        let beyond = Mark { id: snapshot.last_included, digest: snapshot.digest };
        let begins = if superseded { beyond } else { begins };
        self.body = Some(Body {
            identity: self.identity,
            formed: formed.clone(),
            options: self.options,
            segments: open,
            room: scan.room,
            alignment: newest.map_or(512, |header| u64::from(header.batch_alignment)),
            spares,
            filling: None,
            sync_epoch: replay.epoch,
            epoch_next: scan.epoch_seen.max(self.promises.sync_epoch) + 1,
            compacted: replay.compacted,
            last: replay.last,
            positions: replay.entries.iter().map(|(position, _)| *position).collect(),
            sealed: !unclean || scan.sealed && scan.dropped.is_none(),
            full: false,
            writer: BatchWriter::default(),
        });
        let recovered = Recovered {
            hard_state: self.promises.hard_state,
            snapshot,
            log_start: begins.id,
            log_start_digest: begins.digest,
            entries: replay
                .entries
                .into_iter()
                .map(|(_, entry)| entry)
                .skip_while(|entry| entry.id.index <= begins.id.index)
                .collect(),
        };
        Ok(FormedState {
            identity: self.identity,
            formed,
            recovered,
            epoch: self.promises.durable_epoch,
            peer_epochs: self.promises.peer_epochs.clone(),
            unclean,
            report,
        })
    }
}

/// The directory in which `dir` has its name.
fn parent_of(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

/// Writes the last accepted batch once more and syncs it, because it may have been only in the page cache.
fn rewrite<D: Disk>(
    files: &mut Files<D>,
    segment: &Segment<D::File>,
    ranges: [(u64, u64); 2],
) -> Result<u64, LatchError> {
    let mut rewritten = 0;
    for (offset, len) in ranges {
        let mut bytes = vec![0; to_usize(len)];
        let outcome = segment.file.read_at(offset, &mut bytes);
        files.guard(&segment.path, outcome)?;
        files.write(&segment.path, &segment.file, offset, &bytes)?;
        rewritten += len;
    }
    files.sync(&segment.path, &segment.file)?;
    Ok(rewritten)
}

/// Clears what is left of a dropped batch, so that it is never taken for a later one.
fn clear<D: Disk>(
    files: &mut Files<D>,
    segment: &Segment<D::File>,
    sectors: &[u64],
) -> Result<(), LatchError> {
    for offset in sectors {
        files.write(&segment.path, &segment.file, *offset, &[0; SECTOR_BYTES])?;
    }
    files.sync(&segment.path, &segment.file)
}

/// Creates the files of a node that is new; the identity comes last and says that the rest is there.
fn create<D: Disk>(files: &mut Files<D>, identity: Identity) -> Result<Promises, LatchError> {
    let promises = Promises { version: 1, ..Promises::default() };
    files.create("promises", &promises.encode().repeat(SLOTS))?;
    files.create("formation", &vec![0; 2 * FORMATION_COPY_BYTES])?;
    files.sync_dir()?;
    files.create("identity", &seal_twice(IDENTITY_MAGIC, &identity.encode()))?;
    files.sync_dir()?;
    Ok(promises)
}

/// What the small files say.
pub(super) struct Found {
    pub(super) identity: Option<Result<Identity, SealProblem>>,
    pub(super) cluster: Option<Result<(Identity, Formed), SealProblem>>,
    slots: Option<SlotsFound>,
    pub(super) promises: Promises,
    pub(super) formation: (u64, Bytes),
    formation_exists: bool,
    pub(super) segments: Vec<u32>,
    segments_used: bool,
}

fn read_sealed<D: Disk, T>(
    files: &Files<D>,
    name: &str,
    magic: [u8; 8],
    decode: impl Fn(&Bytes) -> Option<T>,
) -> Result<Option<Result<T, SealProblem>>, DataError> {
    let bytes = files.read(name)?;
    Ok(bytes.map(|bytes| {
        unseal_either(magic, &bytes).and_then(|text| decode(&text).ok_or(SealProblem::Damaged))
    }))
}

const fn newer<T>(found: Option<&Result<T, SealProblem>>) -> Option<u32> {
    match found {
        Some(Err(SealProblem::Newer(version))) => Some(*version),
        Some(Ok(_) | Err(SealProblem::Damaged)) | None => None,
    }
}

impl Found {
    pub(super) fn look<D: Disk>(files: &Files<D>, names: &[String]) -> Result<Self, DataError> {
        let slots = files.read("promises")?.map(|bytes| choose(&bytes));
        let promises = match &slots {
            Some(SlotsFound::Agree(promises)) => promises.clone(),
            Some(SlotsFound::Disagree | SlotsFound::Newer(_)) | None => Promises::default(),
        };
        let formation = files.read("formation")?.and_then(|bytes| newest_formation(&bytes));
        let segments: Vec<u32> = names.iter().filter_map(|name| parse_segment_name(name)).collect();
        let mut segments_used = segments.len() > 1;
        if let [segment] = segments[..] {
            let image = files.read(&segment_name(segment))?.unwrap_or_default();
            segments_used = segment != 1 || recovery::is_used(&image, segment);
        }
        Ok(Self {
            identity: read_sealed(files, "identity", IDENTITY_MAGIC, Identity::decode)?,
            cluster: read_sealed(files, "cluster", CLUSTER_MAGIC, decode_cluster)?,
            slots,
            promises,
            formation: formation.unwrap_or_default(),
            formation_exists: names.iter().any(|name| name == "formation"),
            segments,
            segments_used,
        })
    }

    /// What two slots agree on.
    pub(super) const fn agreed(&self) -> Option<&Promises> {
        match &self.slots {
            Some(SlotsFound::Agree(promises)) => Some(promises),
            Some(SlotsFound::Disagree | SlotsFound::Newer(_)) | None => None,
        }
    }

    /// Whose log this is, if both files that say so are intact.
    pub(super) fn owner(&self) -> Option<(Identity, Formed)> {
        match (&self.identity, &self.cluster) {
            (Some(Ok(identity)), Some(Ok((_, formed)))) => Some((*identity, formed.clone())),
            _ => None,
        }
    }

    /// A file of a format that this program does not know, and which.
    pub(super) fn newer(&self) -> Option<(&'static str, u32)> {
        if let Some(version) = newer(self.identity.as_ref()) {
            return Some(("identity", version));
        }
        if let Some(version) = newer(self.cluster.as_ref()) {
            return Some(("cluster", version));
        }
        match self.slots {
            Some(SlotsFound::Newer(version)) => Some(("promises", version)),
            Some(SlotsFound::Agree(_) | SlotsFound::Disagree) | None => None,
        }
    }

    /// The row of the table that applies.
    pub(super) fn case(&self) -> StartCase {
        let identity = self.identity.as_ref().and_then(|found| found.as_ref().ok());
        let cluster = self.cluster.as_ref().and_then(|found| found.as_ref().ok());
        let agree = matches!(self.slots, Some(SlotsFound::Agree(_)));
        let unused = self.promises.hard_state == HardState::default()
            && (self.slots.is_none() || agree)
            && (self.identity.is_none() && self.formation.0 == 0 || identity.is_some())
            && (self.cluster.is_none() || cluster.is_some());
        let facts = [
            self.newer().is_some(),
            identity.is_some(),
            agree,
            unused,
            cluster.is_some(),
            cluster.is_some_and(|(joined, _)| Some(joined) == identity),
            !self.segments.is_empty(),
            self.segments_used,
        ];
        decide(START, facts, StartCase::IdentityLost)
    }

    /// Who this is and what it belongs to, or why it is refused.
    pub(super) fn judge<D: Disk>(
        &self,
        case: StartCase,
        files: &Files<D>,
    ) -> Result<(Option<Identity>, Option<Formed>), DataError> {
        let damaged = |name: &str, problem: &str| {
            Err(DataError::Damaged {
                path: files.path(name),
                offset: Some(0),
                problem: format!("{problem}. Nothing was changed"),
            })
        };
        let identity = match &self.identity {
            Some(Ok(identity)) => Some(*identity),
            Some(Err(_)) | None => None,
        };
        match (case, identity, &self.cluster) {
            (StartCase::Fresh, ..) => Ok((None, None)),
            (StartCase::Empty, Some(_), _) if !self.formation_exists => {
                damaged("formation", "what this node promised while its cluster formed is missing")
            }
            (StartCase::Empty, Some(identity), _) => Ok((Some(identity), None)),
            (StartCase::Formed, Some(identity), Some(Ok((_, formed)))) => {
                Ok((Some(identity), Some(formed.clone())))
            }
            (StartCase::Newer, ..) => {
                let (name, found) = self.newer().unwrap_or(("identity", u32::MAX));
                Err(DataError::NewerFormat {
                    path: files.path(name),
                    found,
                    supported: FORMAT_VERSION,
                })
            }
            (StartCase::Amnesic, Some(identity), _) => Err(DataError::Amnesic {
                node: identity.node(),
                reason: format!(
                    "no two copies of term and vote agree in {}",
                    files.path("promises").display()
                ),
            }),
            (StartCase::OtherNode, Some(identity), Some(Ok((joined, _)))) => {
                Err(DataError::OtherMember {
                    path: files.path("cluster"),
                    expected: identity.node().to_string(),
                    found: joined.node().to_string(),
                    member: joined.member,
                })
            }
            (StartCase::LogLost, ..) => {
                damaged(&segment_name(1), "a member's log has no segment left")
            }
            (StartCase::ClusterLost, ..) => {
                damaged("cluster", "the record of the cluster is missing or damaged")
            }
            _ => damaged("identity", "the record of the member's identity is missing or damaged"),
        }
    }
}

/// Everything that recovery decided; nothing is changed yet.
pub(super) struct Recovery {
    pub(super) formed: Formed,
    pub(super) replay: Replay,
    scan: Scan,
    /// The segment that holds the last accepted batch, and where in it that stands.
    tail: Option<(usize, [(u64, u64); 2])>,
    segments: Vec<(SegmentHeader, PathBuf)>,
    /// Segments that were about to be begun.
    unused: Vec<PathBuf>,
    pub(super) snapshot: SnapshotMeta,
    report: RecoveryReport,
    unclean: bool,
    /// Damaged batches that were accepted.
    pub(super) damages: Vec<Damage>,
    /// Entries without payload that are needed, in the order of the log.
    pub(super) missing: Vec<Missing>,
    /// The snapshot reaches beyond the log and includes what is damaged: the log is to begin after it.
    pub(super) superseded: bool,
}

impl Recovery {
    /// The configurations that are known, oldest first.
    pub(super) fn memberships(&self) -> Vec<Membership> {
        let at = self.snapshot.last_included.index;
        let entries = self.replay.entries.iter().map(|(_, entry)| entry);
        let later = entries.filter(|entry| entry.id.index > at);
        let later = later.filter(|entry| entry.kind == EntryKind::Membership);
        let later = later.filter_map(|entry| Membership::decode(&entry.payload));
        let snapshot = self.snapshot.membership.clone();
        std::iter::once(snapshot).chain(later.map(|(membership, _)| membership)).collect()
    }

    /// Reads the log and decides; changes nothing.
    pub(super) fn read<D: Disk>(
        files: &Files<D>,
        identity: Identity,
        formed: Formed,
        found: &Found,
    ) -> Result<Self, DataError> {
        let manifests = list_manifests(&files.disk, &files.dir)?;
        let base = manifests
            .intact
            .last()
            .map_or_else(|| formed.members.clone(), |(meta, _)| meta.membership.clone());
        let mut report =
            RecoveryReport { damaged_manifests: manifests.damaged, ..RecoveryReport::default() };
        let mut segments = Vec::new();
        let mut unused = Vec::new();
        let mut log: Option<(Replay, Scan)> = None;
        let mut next: Option<Vec<u8>> = None;
        let mut tail = None;
        let mut damages = Vec::new();
        for (nth, id) in found.segments.iter().copied().enumerate() {
            let path = files.path(&segment_name(id));
            let image = match next.take() {
                Some(image) => image,
                None => read_file(&files.disk, &path)?.unwrap_or_default(),
            };
            let following = found.segments.get(nth + 1).copied();
            if let Some(following) = following {
                next = read_file(&files.disk, &files.path(&segment_name(following)))?;
            }
            let later = following
                .zip(next.as_ref())
                .is_some_and(|(following, image)| recovery::is_used(image, following));
            if let Some((_, scan)) = &log {
                match scan.rolled_to {
                    Some(expected) if expected == id => {}
                    Some(expected) => return Err(lost_segment(files, expected)),
                    None if recovery::is_used(&image, id) => return Err(lost_segment(files, id)),
                    None => {
                        unused.push(path);
                        continue;
                    }
                }
            }
            let header = recovery::read_header(&path, &image, id, identity, &formed)?;
            let oldest = log.is_none();
            let mut replay = match log.take() {
                Some((replay, _)) => replay,
                None => Replay::begin(&formed, &header),
            };
            let (epoch, clean) = (found.promises.sync_epoch, found.promises.clean);
            let later_segment = later;
            let witness = Witness { epoch, clean, later_segment, oldest, base: &base };
            let mut scan = recovery::scan(&path, &image, &header, &mut replay, &witness)?;
            damages.append(&mut scan.damages);
            if let Some(ranges) = scan.last_batch {
                // Often, but right after a roll not, in the last segment.
                tail = Some((segments.len(), ranges));
            }
            segments.push((header, path));
            log = Some((replay, scan));
        }
        let Some((replay, scan)) = log else { return Err(lost_segment(files, 1)) };
        if let Some(expected) = scan.rolled_to {
            return Err(lost_segment(files, expected));
        }
        if let Some(end) = recovery::gap(&replay) {
            return Err(DataError::Damaged {
                path: files.path(&segment_name(segments.first().map_or(1, |s| s.0.segment))),
                offset: None,
                problem: format!("the segment before it is missing: entries after {end} are gone"),
            });
        }
        let term = found.promises.hard_state.current_term;
        if replay.last.id.term > term && replay.batches > 0 {
            return Err(DataError::Amnesic {
                node: identity.node(),
                reason: format!("its log ends at {}, its term is {term}", replay.last.id),
            });
        }
        // A damaged blob was set aside: an older snapshot will do when the log reaches back to it.
        let usable = manifests.intact.iter().rev().find(|(meta, blobs)| {
            replay.accepts(meta) && has_blobs(&files.disk, &files.dir, blobs)
        });
        let snapshot = match usable {
            Some((meta, _)) => meta.clone(),
            None if replay.compacted == origin(&formed) => SnapshotMeta {
                last_included: replay.compacted.id,
                digest: replay.compacted.digest,
                membership: formed.members.clone(),
            },
            None => {
                return Err(DataError::Damaged {
                    path: files.path("snapshot"),
                    offset: None,
                    problem: format!(
                        "no intact snapshot covers the log's beginning at {}",
                        replay.compacted.id
                    ),
                });
            }
        };
        check_memberships(files, &replay)?;
        report.segments = segments.len();
        report.batches = replay.batches;
        report.torn_epoch = scan.dropped;
        let clean = found.promises.clean
            && found.promises.sync_epoch == replay.epoch
            && scan.dropped.is_none()
            && unused.is_empty();
        let unclean = !clean;
        let mut missing = missing(&replay, &damages, snapshot.last_included.index);
        // What a snapshot holds was committed: whatever this log held up to there, and is not in it, never was.
        let beyond = manifests.intact.iter().rev().find(|(meta, blobs)| {
            meta.last_included.index > replay.last.id.index
                && has_blobs(&files.disk, &files.dir, blobs)
        });
        let superseded = !missing.is_empty() && beyond.is_some();
        let snapshot = match beyond {
            Some((meta, _)) if superseded => {
                missing.clear();
                meta.clone()
            }
            Some(_) | None => snapshot,
        };
        let recovery = Self {
            formed,
            replay,
            scan,
            tail,
            segments,
            unused,
            snapshot,
            report,
            unclean,
            damages,
            missing,
            superseded,
        };
        recovery.check_helpers(identity)?;
        Ok(recovery)
    }

    /// What is damaged can be fetched only from others.
    fn check_helpers(&self, identity: Identity) -> Result<(), DataError> {
        let Some(first) = self.missing.first() else { return Ok(()) };
        let memberships = self.memberships();
        let mut members = memberships.iter().flat_map(Membership::members);
        if members.any(|(node, _)| node != identity.node()) {
            return Ok(());
        }
        Err(DataError::Damaged {
            path: first.path.clone(),
            offset: Some(first.offset),
            problem: format!("entry {} is damaged, and no other member has it", first.id),
        })
    }
}

/// The entries to be fetched: those that no snapshot includes, and with them what else is damaged in the same batches,
/// which are written again as a whole or not at all.
fn missing(replay: &Replay, damages: &[Damage], snapshot: Index) -> Vec<Missing> {
    let needed: BTreeSet<Index> =
        replay.holes.iter().copied().filter(|index| *index > snapshot).collect();
    let open = damages.iter().filter(|damage| {
        damage.holes().any(|piece| {
            let mark = replay.mark_at(piece.header.id.index);
            needed.contains(&piece.header.id.index)
                && mark.is_some_and(|mark| mark.id == piece.header.id)
        })
    });
    open.flat_map(Damage::missing).collect()
}

fn lost_segment<D: Disk>(files: &Files<D>, segment: u32) -> DataError {
    DataError::Damaged {
        path: files.path(&segment_name(segment)),
        offset: Some(0),
        problem: "this segment of the log, or the one before it, is missing. Nothing was changed"
            .to_owned(),
    }
}

/// A configuration that does not decode would change who votes.
fn check_memberships<D: Disk>(files: &Files<D>, replay: &Replay) -> Result<(), DataError> {
    for (position, entry) in &replay.entries {
        let known = !replay.holes.contains(&entry.id.index);
        if entry.kind == EntryKind::Membership
            && known
            && Membership::decode(&entry.payload).is_none()
        {
            return Err(DataError::Damaged {
                path: files.path(&segment_name(position.segment)),
                offset: Some(position.offset),
                problem: format!("the configuration in entry {} is not understood", entry.id),
            });
        }
    }
    Ok(())
}

impl LogOptions {
    /// Sizes that the format can hold.
    fn rounded(self) -> Self {
        let alignment = self.batch_alignment.clamp(512, 4096).next_power_of_two();
        let bytes = self.segment_bytes.clamp(16 << 10, 1 << 31);
        Self {
            segment_bytes: bytes.next_multiple_of(u64::from(alignment)),
            batch_alignment: alignment,
        }
    }
}

const _: () = assert!(SLOT_BYTES * SLOTS == 16 << 10 && Room::of(0).front == 4096);
