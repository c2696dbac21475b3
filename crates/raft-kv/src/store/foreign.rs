//! A snapshot of what another program has stored, written version by version without a store.

use bytes::Bytes;
use raft_core::{SnapshotError, SnapshotSink};

use super::segment::{BLOB_LEASES_MAX, Cut, Head, SegmentWriter, encode_leases, undecodable};
use super::snapshot::{finish, put};
use super::{PicturedVersion, SEGMENT_BYTES};
use crate::auth::{self, AuthState};
use crate::store::lease::LeaseRecord;
use crate::store::notices::Notices;
use crate::store::version::{Key, Live, Revision, Version};

/// Everything of a snapshot beside its versions.
#[derive(Clone, PartialEq, Debug)]
pub struct ForeignState {
    /// The newest revision.
    pub revision: i64,
    /// The compacted one; -1 for none.
    pub compact_revision: i64,
    /// In any order, each once.
    pub leases: Vec<LeaseRecord>,
    /// Users and roles.
    pub auth: AuthState,
    /// Alarms.
    pub notices: Notices,
}

/// Writes a snapshot of versions that come in the order of their revisions. Holds one segment of them.
///
/// What was written is a snapshot like any other: whether a store takes it is said by a store that is
/// [restored](raft_core::StateMachine::restore) from it.
pub struct SnapshotBuilder<'a> {
    sink: &'a mut dyn SnapshotSink,
    writer: SegmentWriter,
    head: Head,
    last: Revision,
}

impl std::fmt::Debug for SnapshotBuilder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotBuilder").field("last", &self.last).finish_non_exhaustive()
    }
}

impl<'a> SnapshotBuilder<'a> {
    /// Begins a snapshot.
    #[must_use]
    pub fn new(sink: &'a mut dyn SnapshotSink) -> Self {
        let head = Head {
            revision: 0,
            compact_revision: 0,
            logical_size: 0,
            segments: 0,
            versions: 0,
            lease_blobs: 0,
            leases: 0,
            auth_blobs: 0,
            notices: Notices::default(),
        };
        Self { sink, writer: SegmentWriter::default(), head, last: Revision::ZERO }
    }

    /// Adds a version that is kept: one from the compacted revision on, or one that was present there.
    ///
    /// # Errors
    /// A version that cannot be, or is not behind the one before it; those of the sink.
    pub fn version(&mut self, version: PicturedVersion) -> Result<(), SnapshotError> {
        let PicturedVersion { main, sub, kv, deleted } = version;
        let revision = Revision { main, sub };
        let impossible = |what: &str| undecodable(&format!("revision {main}.{sub}: {what}"));
        if revision <= self.last || !(1..=i64::MAX >> 2).contains(&main) {
            return Err(impossible("it is out of order"));
        }
        if kv.key.is_empty() {
            return Err(impossible("the key is empty"));
        }
        let live = Live {
            value: &kv.value,
            create_revision: kv.create_revision,
            version: kv.version,
            lease: kv.lease,
        };
        let is_possible = kv.mod_revision == main
            && (1..=main).contains(&live.create_revision)
            && live.version > 0;
        if !deleted && !is_possible {
            return Err(impossible("its numbers contradict each other"));
        }
        let version = Version::new(revision, Key::new(&kv.key), (!deleted).then_some(live));
        self.last = revision;
        self.head.logical_size = self.head.logical_size.saturating_add(version.weight());
        self.writer.push(&version);
        let cut = Cut { average: SEGMENT_BYTES };
        if cut.is_after(&version, self.writer.bytes) {
            finish(&self.writer, &mut self.head, self.sink)?;
            self.writer.clear();
        }
        Ok(())
    }

    /// Writes the rest, and the head.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn end(mut self, state: ForeignState) -> Result<(), SnapshotError> {
        if self.writer.versions > 0 {
            finish(&self.writer, &mut self.head, self.sink)?;
        }
        let mut leases = state.leases;
        leases.sort_by_key(|lease| lease.id);
        for leases in leases.chunks(BLOB_LEASES_MAX) {
            self.head.lease_blobs += 1;
            put(&encode_leases(leases), self.sink)?;
        }
        for blob in auth::encode(&state.auth) {
            self.head.auth_blobs += 1;
            put(&blob, self.sink)?;
        }
        let head = Head {
            revision: state.revision,
            compact_revision: state.compact_revision,
            leases: u64::try_from(leases.len()).unwrap_or(u64::MAX),
            notices: state.notices,
            ..self.head
        };
        put(&head.encode(), self.sink)?;
        Ok(())
    }
}

impl AuthState {
    /// Users and roles as another program has stored them. All passwords are as old as this state: whatever proved who
    /// somebody is does so no longer.
    ///
    /// # Errors
    /// A name that is no text or there twice, a permission of no known kind.
    pub fn of_records(
        (enabled, revision): (bool, u64),
        token_secret: Bytes,
        users: Vec<crate::proto::authpb::User>,
        roles: Vec<crate::proto::authpb::Role>,
    ) -> Result<Self, SnapshotError> {
        auth::of_records((enabled, revision), token_secret, users, roles)
    }
}
