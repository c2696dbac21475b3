//! What goes into the log and comes out of it, apart from entries.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use raft_core::{
    ClusterId, Digest, Entry, EntryId, GroupId, HardState, Incarnation, LogIdentity, MemberId,
    Membership, NodeId, Recovered, SnapshotMeta,
};

use crate::error::NodeError;

/// Limits of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogOptions {
    /// Bytes of one segment file. A single write that is larger gets a segment of its own size. Larger
    /// segments are rolled less often and free their space later.
    pub segment_bytes: u64,
    /// Every batch begins at a multiple of this many bytes, itself a multiple of 512. 512 relies on
    /// power-safe overwrite (docs/disk-format.md); 4096 does not, for up to eight times the space.
    pub batch_alignment: u32,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, batch_alignment: 512 }
    }
}

/// Who a data directory makes promises for. Minted at its first open, durable from then on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The member.
    pub member: MemberId,
    /// The directory.
    pub incarnation: Incarnation,
}

impl Identity {
    /// The pair as the protocol knows it.
    #[must_use]
    pub const fn node(self) -> NodeId {
        NodeId { member: self.member, incarnation: self.incarnation }
    }
}

/// Which cluster a data directory belongs to. Written once, when the cluster forms or the node joins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Formed {
    /// The cluster.
    pub cluster: ClusterId,
    /// The group.
    pub group: GroupId,
    /// The first configuration, in force at index 0. Equal on all members.
    pub members: Membership,
}

impl Formed {
    /// The pair that every digest of the log is chained over.
    #[must_use]
    pub const fn log_identity(&self) -> LogIdentity {
        LogIdentity { cluster: self.cluster, group: self.group }
    }
}

/// What a directory of a cluster says of itself before anything in it is changed.
#[derive(Debug)]
pub struct Belongs<'a> {
    /// The file that names the cluster.
    pub path: PathBuf,
    /// Whose directory it is.
    pub node: NodeId,
    /// Of which cluster.
    pub formed: &'a Formed,
    /// As [`Log::formation_state`](super::Log::formation_state).
    pub formation: &'a Bytes,
    /// The configurations known, the newest last; never empty.
    pub memberships: Vec<Membership>,
}

/// An open data directory. Its lock is held by `log`.
pub struct Opened<D: crate::io::Disk> {
    /// The only writer.
    pub log: super::Log<D>,
    /// What was found.
    pub state: DataState,
}

impl<D: crate::io::Disk> fmt::Debug for Opened<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("state", &self.state).finish_non_exhaustive()
    }
}

/// What a data directory holds.
#[derive(Debug)]
pub enum DataState {
    /// A node that belongs to no cluster yet.
    Empty {
        /// Who it is.
        identity: Identity,
        /// What [`Log::set_formation_state`](super::Log::set_formation_state) stored last; empty when nothing.
        formation: Bytes,
    },
    /// A member of a cluster.
    Formed(Box<FormedState>),
    /// A member of a cluster whose log is known entry by entry, and some of whose payloads are damaged: it takes part
    /// again once they were fetched from others ([`Log::fill`](super::Log::fill)). Until then nothing may be promised.
    Damaged(Box<DamagedState>),
}

/// An entry of which term and digest are known, and whose payload is damaged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// Where in the log.
    pub id: EntryId,
    /// The digest of the log up to and including it: whoever has an entry with it has this one.
    pub digest: Digest,
    /// The file.
    pub path: PathBuf,
    /// Where in it its record begins, in bytes.
    pub offset: u64,
}

/// What recovery found in a damaged directory. Nothing was changed but the durable epoch.
#[derive(Clone, Debug)]
pub struct DamagedState {
    /// Who it is.
    pub identity: Identity,
    /// Its cluster.
    pub formed: Formed,
    /// The configurations that are known, the newest last; never empty.
    pub memberships: Vec<Membership>,
    /// The durable epoch (decision 10), already advanced for this start.
    pub epoch: u64,
    /// The highest durable epoch seen of every peer.
    pub peer_epochs: BTreeMap<NodeId, u64>,
    /// Where the log ends.
    pub last: EntryId,
    /// The newest usable snapshot.
    pub snapshot: SnapshotMeta,
    /// What is needed, in the order of the log; never empty.
    pub missing: Vec<Missing>,
}

/// What a log has of an entry that a peer asks for by index, term and digest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Supply {
    /// The entry, every byte checked.
    Have(Entry),
    /// It was here, and is damaged here, too.
    Damaged,
    /// It is included in a snapshot, and may be gone.
    Compacted,
    /// It never was here, or was replaced by another one.
    NeverHad,
}

/// What recovery found; all of it is durable.
#[derive(Clone, Debug)]
pub struct FormedState {
    /// Who it is.
    pub identity: Identity,
    /// Its cluster.
    pub formed: Formed,
    /// Term, vote, newest usable snapshot, entries after it.
    pub recovered: Recovered,
    /// The durable epoch (decision 10), already advanced for this start.
    pub epoch: u64,
    /// The highest durable epoch seen of every peer.
    pub peer_epochs: BTreeMap<NodeId, u64>,
    /// The last process did not stop cleanly.
    pub unclean: bool,
    /// For the operator and the tests.
    pub report: RecoveryReport,
}

/// What recovery had to do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    /// Segments read.
    pub segments: usize,
    /// Batches accepted.
    pub batches: u64,
    /// A last batch that was never acknowledged was dropped: its sync epoch.
    pub torn_epoch: Option<u64>,
    /// Bytes written again and synced because they may have been only in the page cache.
    pub rewritten_bytes: u64,
    /// Snapshot manifests that were damaged and passed over.
    pub damaged_manifests: Vec<PathBuf>,
    /// Damage that was repaired from what is known here: files and offsets of the first bad byte.
    pub repaired: Vec<(PathBuf, u64)>,
    /// Damage to entries that a snapshot includes, so that they are not needed here.
    pub superseded: Vec<(PathBuf, u64)>,
}

/// The first failed write or sync. The log refuses everything from then on: nothing that was not synced
/// may be believed, and a sync is never retried.
#[derive(Clone, Debug)]
pub struct LatchError {
    /// The file or directory.
    pub path: PathBuf,
    /// What the system said.
    pub source: Arc<io::Error>,
}

impl fmt::Display for LatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "writing {} failed: {}", self.path.display(), self.source)
    }
}

impl std::error::Error for LatchError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

impl From<LatchError> for NodeError {
    fn from(latch: LatchError) -> Self {
        let source = io::Error::new(latch.source.kind(), latch.source.to_string());
        Self::DiskLatched { path: latch.path, source }
    }
}

/// The log's condition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogStatus {
    /// Where the log begins: entries up to here are forgotten.
    pub compacted: EntryId,
    /// The last durable entry.
    pub last: EntryId,
    /// Term and vote as they are durable.
    pub hard_state: HardState,
    /// The durable epoch (decision 10): advances at start, segment roll and hard-state write.
    pub durable_epoch: u64,
    /// The number of the last synced batch.
    pub sync_epoch: u64,
    /// Segments in use.
    pub segments: usize,
    /// No space for the next segment: proposals must be refused until this is false again.
    pub full: bool,
    /// Writes that wait for space; their tickets come with a later write.
    pub stalled: usize,
    /// The log latched; see [`LatchError`].
    pub latched: bool,
    /// The first damage that a read met, if any.
    pub damage: Option<(PathBuf, u64)>,
}
