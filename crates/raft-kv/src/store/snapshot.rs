//! Pictures of the store as blobs, and back.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use raft_core::{BlobId, Digest, Snapshot, SnapshotError, SnapshotSink, SnapshotSource};

use crate::auth::{self, AuthState};
use crate::proto::mvccpb::KeyValue;
use crate::store::Store;
use crate::store::compact::Garbage;
use crate::store::data::{Data, FIRST_REVISION, Pin};
use crate::store::lease::{Lease, LeaseRecord};
use crate::store::notices::Notices;
use crate::store::segment::{
    BLOB_LEASES_MAX, Cut, Head, SegmentWriter, decode_leases, decode_segment, encode_leases,
    undecodable,
};
use crate::store::version::{Revision, Version};

/// The store at one applied index. Nothing that it needs is removed from memory while it lives.
#[derive(Debug)]
pub struct Picture {
    data: Arc<Data>,
    /// Held, not read.
    _pin: Pin,
    revision: i64,
    compact_revision: i64,
    logical_size: u64,
    leases: Vec<LeaseRecord>,
    auth: Arc<AuthState>,
    notices: Arc<Notices>,
    cut: Cut,
    layout: Arc<ArcSwapOption<Layout>>,
}

/// The closed segments of a snapshot by their first revision.
#[derive(Debug)]
pub(super) struct Layout {
    compact_revision: i64,
    segments: BTreeMap<Revision, Segment>,
}

/// A segment that no later revision changes.
#[derive(Clone, Copy, Debug)]
struct Segment {
    last: Revision,
    versions: u64,
    id: BlobId,
}

impl Picture {
    pub(super) fn take(store: &Store, layout: Arc<ArcSwapOption<Layout>>) -> Self {
        Self {
            data: store.data.clone(),
            _pin: store.data.pin_all(),
            revision: store.revision,
            compact_revision: store.compact_revision,
            logical_size: store.logical_size,
            leases: store.leases.records(),
            auth: Arc::clone(&store.auth),
            notices: store.notices.load_full(),
            cut: Cut { average: store.segment_bytes },
            layout,
        }
    }

    /// Two pictures have equal digests exactly when they write equal blobs.
    pub(super) fn digest(self) -> Digest {
        let mut names = Names(Vec::new());
        // The sink below refuses nothing.
        let written = self.write(&mut names);
        debug_assert!(written.is_ok(), "{written:?}");
        Digest(xxhash_rust::xxh3::xxh3_128(&names.0))
    }

    /// The segment that an earlier snapshot cut from `first` on, if this one would cut the same: nothing
    /// has been compacted since, or nothing from there on.
    fn known(&self, layout: Option<&Layout>, first: Revision) -> Option<Segment> {
        let layout = layout?;
        let unchanged = layout.compact_revision == self.compact_revision
            || first.main >= layout.compact_revision.max(self.compact_revision);
        layout.segments.get(&first).filter(|_| unchanged).copied()
    }

    /// Versions that the snapshot holds, from `from` on, in order.
    fn retained_from(&self, from: Revision) -> impl Iterator<Item = Version> + '_ {
        self.data
            .history_from(from)
            .take_while(|version| version.revision().main <= self.revision)
            .filter(|version| self.data.is_retained(version, self.compact_revision))
    }
}

/// A version in a [`Picture`].
#[derive(Clone, PartialEq, Debug)]
pub struct PicturedVersion {
    /// The revision that wrote it.
    pub main: i64,
    /// Its place among what that revision wrote.
    pub sub: u32,
    /// What was written; of a deleted key only the key.
    pub kv: KeyValue,
    /// The key was deleted.
    pub deleted: bool,
}

impl Picture {
    /// The newest revision.
    #[must_use]
    pub const fn revision(&self) -> i64 {
        self.revision
    }

    /// The compacted one; -1 before the first compaction.
    #[must_use]
    pub const fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    /// Every version that is kept, in the order in which they were written; the same each time.
    pub fn versions(&self) -> impl Iterator<Item = PicturedVersion> + '_ {
        self.retained_from(Revision::ZERO).map(|version| {
            let mut kv = version.key_value();
            let Revision { main, sub } = version.revision();
            if !version.is_live() {
                kv.mod_revision = 0;
            }
            PicturedVersion { main, sub, kv, deleted: !version.is_live() }
        })
    }

    /// The leases.
    #[must_use]
    pub fn leases(&self) -> &[LeaseRecord] {
        &self.leases
    }

    /// Users and roles.
    #[must_use]
    pub fn auth(&self) -> &AuthState {
        &self.auth
    }

    /// Alarms.
    #[must_use]
    pub fn notices(&self) -> &Notices {
        &self.notices
    }
}

/// As far as can be said without reading all of it: of one store, whether they show the same moment.
impl PartialEq for Picture {
    fn eq(&self, other: &Self) -> bool {
        let numbers = |it: &Self| (it.revision, it.compact_revision, it.logical_size);
        numbers(self) == numbers(other)
            && self.leases == other.leases
            && self.auth == other.auth
            && self.notices == other.notices
    }
}

impl Snapshot for Picture {
    fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        let known = self.layout.load_full();
        let mut layout =
            Layout { compact_revision: self.compact_revision, segments: BTreeMap::new() };
        let mut head = Head {
            revision: self.revision,
            compact_revision: self.compact_revision,
            logical_size: self.logical_size,
            segments: 0,
            versions: 0,
            lease_blobs: 0,
            leases: u64::try_from(self.leases.len()).unwrap_or(u64::MAX),
            auth_blobs: 0,
            notices: Notices::clone(&self.notices),
        };
        let mut writer = SegmentWriter::default();
        let mut first = Revision::ZERO;
        let mut versions = self.retained_from(Revision::ZERO);
        while let Some(version) = versions.next() {
            if writer.versions == 0 {
                first = version.revision();
                if let Some(segment) = self.known(known.as_deref(), first)
                    && segment.last.main <= self.revision
                    && sink.reuse(segment.id)?
                {
                    layout.segments.insert(first, segment);
                    head.segments += 1;
                    head.versions += segment.versions;
                    versions =
                        self.retained_from(Revision { sub: segment.last.sub + 1, ..segment.last });
                    continue;
                }
            }
            writer.push(&version);
            if self.cut.is_after(&version, writer.bytes) {
                let id = finish(&writer, &mut head, sink)?;
                let (last, versions) = (version.revision(), writer.versions);
                layout.segments.insert(first, Segment { last, versions, id });
                writer.clear();
            }
        }
        if writer.versions > 0 {
            finish(&writer, &mut head, sink)?;
        }
        for leases in self.leases.chunks(BLOB_LEASES_MAX) {
            head.lease_blobs += 1;
            put(&encode_leases(leases), sink)?;
        }
        for blob in auth::encode(&self.auth) {
            head.auth_blobs += 1;
            put(&blob, sink)?;
        }
        sink.put(&head.encode())?;
        drop(versions);
        self.layout.store(Some(Arc::new(layout)));
        Ok(())
    }
}

/// Puts the segment into the sink.
fn finish(
    writer: &SegmentWriter,
    head: &mut Head,
    sink: &mut dyn SnapshotSink,
) -> Result<BlobId, SnapshotError> {
    head.segments += 1;
    head.versions += writer.versions;
    put(writer.content(), sink)
}

/// Puts a blob into the sink, unless it is there from an earlier snapshot.
fn put(content: &[u8], sink: &mut dyn SnapshotSink) -> Result<BlobId, SnapshotError> {
    let id = BlobId::of(content);
    if sink.reuse(id)? { Ok(id) } else { sink.put(content) }
}

/// Keeps the names of the blobs only.
struct Names(Vec<u8>);

impl SnapshotSink for Names {
    fn put(&mut self, content: &[u8]) -> Result<BlobId, SnapshotError> {
        let id = BlobId::of(content);
        self.0.extend_from_slice(&id.digest.0.to_le_bytes());
        Ok(id)
    }

    fn reuse(&mut self, _id: BlobId) -> Result<bool, SnapshotError> {
        Ok(false)
    }
}

/// What a snapshot holds.
pub(super) struct Restored {
    pub(super) data: Data,
    pub(super) revision: i64,
    pub(super) compact_revision: i64,
    pub(super) logical_size: u64,
    pub(super) garbage: Garbage,
    pub(super) leases: BTreeMap<i64, Lease>,
    pub(super) auth: AuthState,
    pub(super) notices: Notices,
}

/// Less than this is read sooner than threads start.
const PARALLEL_BYTES_MIN: u64 = 1 << 20;

/// Reads a whole snapshot, its segments in parallel.
pub(super) fn load(source: &dyn SnapshotSource) -> Result<Restored, SnapshotError> {
    let Some(last) = source.blobs().len().checked_sub(1) else {
        return Err(undecodable("the snapshot is empty"));
    };
    let head = Head::decode(&source.read(last)?)?;
    let blobs = u64::try_from(last).unwrap_or(u64::MAX);
    let others = head.lease_blobs.checked_add(head.auth_blobs);
    if others.and_then(|others| head.segments.checked_add(others)) != Some(blobs) {
        return Err(undecodable("the number of segments is not what the head says"));
    }
    let auth_blobs = usize::try_from(head.auth_blobs).unwrap_or(usize::MAX);
    let lease_blobs = usize::try_from(head.lease_blobs).unwrap_or(usize::MAX);
    let auth_first = last.saturating_sub(auth_blobs);
    let segments = auth_first.saturating_sub(lease_blobs);
    let data = Data::new();
    let next = AtomicUsize::new(0);
    let worker = || -> Result<Vec<Loaded>, SnapshotError> {
        let mut loaded = Vec::new();
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            if position >= segments {
                return Ok(loaded);
            }
            loaded.push(load_segment(source, position, &data)?);
        }
    };
    let bytes: u64 = source.blobs().iter().take(segments).map(|blob| blob.len).sum();
    let workers = if bytes < PARALLEL_BYTES_MIN {
        1
    } else {
        std::thread::available_parallelism().map_or(1, NonZero::get).min(segments)
    };
    let loaded = std::thread::scope(|scope| {
        // This thread is one of the workers.
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(worker)).collect();
        let mut all = worker()?;
        for other in others {
            let loaded = other.join().map_err(|_| undecodable("a loading thread panicked"))?;
            all.extend(loaded?);
        }
        Ok::<_, SnapshotError>(all)
    })?;
    check_order(loaded, &head)?;
    let leases = load_leases(source, segments..auth_first, &head)?;
    let auth = auth::decode((auth_first..last).map(|position| source.read(position)))?;
    let (logical_size, garbage, leases) = account(&data, &head, leases)?;
    if logical_size != head.logical_size {
        return Err(undecodable("the logical size is not what the head says"));
    }
    Ok(Restored {
        data,
        revision: head.revision,
        compact_revision: head.compact_revision,
        logical_size,
        garbage,
        leases,
        auth,
        notices: head.notices,
    })
}

fn load_leases(
    source: &dyn SnapshotSource,
    positions: std::ops::Range<usize>,
    head: &Head,
) -> Result<BTreeMap<i64, Lease>, SnapshotError> {
    let mut leases = BTreeMap::new();
    let mut last = None;
    for position in positions {
        for LeaseRecord { id, ttl, renewals } in decode_leases(&source.read(position)?)? {
            if id == 0 || last.is_some_and(|last| last >= id) {
                return Err(undecodable("the leases' ids do not ascend"));
            }
            last = Some(id);
            leases.insert(id, Lease { ttl, renewals, ..Lease::default() });
        }
    }
    if u64::try_from(leases.len()) != Ok(head.leases) {
        return Err(undecodable("the number of leases is not what the head says"));
    }
    Ok(leases)
}

/// A segment whose versions are in the maps.
struct Loaded {
    position: usize,
    first: Revision,
    last: Revision,
    versions: u64,
}

fn load_segment(
    source: &dyn SnapshotSource,
    position: usize,
    data: &Data,
) -> Result<Loaded, SnapshotError> {
    let versions = decode_segment(&source.read(position)?)?;
    let (Some(first), Some(last)) = (versions.first(), versions.last()) else {
        return Err(undecodable("a segment is empty"));
    };
    let loaded = Loaded {
        position,
        first: first.revision(),
        last: last.revision(),
        versions: u64::try_from(versions.len()).unwrap_or(u64::MAX),
    };
    data.insert_all(versions);
    Ok(loaded)
}

/// Checks that the segments follow each other and end where the head says.
fn check_order(mut loaded: Vec<Loaded>, head: &Head) -> Result<(), SnapshotError> {
    loaded.sort_by_key(|segment| segment.position);
    let mut last = Revision::ZERO;
    let mut versions = 0_u64;
    for segment in loaded {
        if segment.first <= last {
            return Err(undecodable("the segments overlap"));
        }
        last = segment.last;
        versions = versions.saturating_add(segment.versions);
    }
    if versions != head.versions {
        return Err(undecodable("the number of versions is not what the head says"));
    }
    if last.main > head.revision {
        return Err(undecodable("a segment is newer than the head"));
    }
    Ok(())
}

/// Derives the logical size, what future compactions will free of it, and the keys of the leases.
fn account(
    data: &Data,
    head: &Head,
    mut leases: BTreeMap<i64, Lease>,
) -> Result<(u64, Garbage, BTreeMap<i64, Lease>), SnapshotError> {
    check_whole(data, head)?;
    let mut garbage = Garbage::new(head.compact_revision);
    let mut logical_size = 0_u64;
    for (version, newer) in data.versions() {
        let main = version.revision().main;
        if main < head.compact_revision
            && !version.is_present_at(head.compact_revision, newer.as_ref())
        {
            return Err(undecodable("a segment holds a version that the compaction dropped"));
        }
        logical_size = logical_size.saturating_add(version.weight());
        garbage.add_version(&version, newer.as_ref());
        let lease = version.lease();
        if newer.is_none() && lease != 0 {
            let Some(lease) = leases.get_mut(&lease) else {
                return Err(undecodable("a key belongs to a lease that does not exist"));
            };
            lease.keys.insert(Bytes::copy_from_slice(version.key()));
        }
    }
    Ok((logical_size, garbage, leases))
}

/// Checks that history has no hole: from the compact revision on every revision left something.
fn check_whole(data: &Data, head: &Head) -> Result<(), SnapshotError> {
    let first = head.compact_revision.max(FIRST_REVISION);
    let mut previous = Revision::last_of(first);
    for version in data.history_from(Revision::first_of(first + 1)) {
        let Revision { main, sub } = version.revision();
        let follows = if main == previous.main {
            sub.checked_sub(1) == Some(previous.sub)
        } else {
            main - 1 == previous.main && sub == 0
        };
        if !follows {
            return Err(undecodable("a part of history is missing"));
        }
        previous = version.revision();
    }
    if previous.main == head.revision {
        Ok(())
    } else {
        Err(undecodable("the newest revisions are missing"))
    }
}
