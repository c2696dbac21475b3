//! A log with a model of what it must hold.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft::error::DataError;
use raft::io::Disk;
use raft::log::snapshot::SnapshotStore;
use raft::log::{DataState, Formed, FormedState, Identity, LatchError, Log, LogOptions, Opened};
use raft_core::{
    ClusterId, Digest, Entry, EntryId, EntryKind, GroupId, HardState, Incarnation, Index, MemberId,
    Membership, NodeId, Persist, SnapshotMeta, SnapshotSink, Term, Ticket,
};

pub(crate) fn dir() -> PathBuf {
    PathBuf::from("/data")
}

pub(crate) fn options() -> LogOptions {
    LogOptions { segment_bytes: 16 << 10, batch_alignment: 512 }
}

pub(crate) fn identity() -> Identity {
    Identity { member: MemberId(0xA), incarnation: Incarnation(0xB) }
}

/// A cluster of so many voters.
pub(crate) fn formed(voters: u64) -> Formed {
    let others = (1..voters).map(|n| (NodeId::new(n, u128::from(n)), Bytes::new()));
    let voters = others.chain([(identity().node(), Bytes::from_static(b"me"))]);
    Formed {
        cluster: ClusterId(77),
        group: GroupId::FIRST,
        members: Membership::from_voters(voters),
    }
}

pub(crate) fn open<D: Disk>(disk: D, dir: &Path) -> Result<Opened<D>, DataError> {
    // Chosen by the environment, because a deliberate bug is one for the whole process.
    #[cfg(mutants)]
    raft_core::mutant::activate(
        std::env::var("MUTANT").ok().and_then(|number| number.parse().ok()).unwrap_or(0),
    );
    Log::open(disk, dir, options(), identity())
}

pub(crate) fn expect_formed<D: Disk>(opened: Opened<D>) -> (Log<D>, FormedState) {
    match opened.state {
        DataState::Formed(state) => (opened.log, *state),
        DataState::Damaged(state) => panic!("damaged: {:?}", state.missing),
        DataState::Empty { .. } => panic!("not formed"),
    }
}

/// What a log must hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Model {
    pub(crate) hard_state: HardState,
    pub(crate) log_start: EntryId,
    pub(crate) log_start_digest: Digest,
    pub(crate) entries: Vec<Entry>,
}

impl Model {
    pub(crate) fn of(state: &FormedState) -> Self {
        let recovered = &state.recovered;
        Self {
            hard_state: recovered.hard_state,
            log_start: recovered.log_start,
            log_start_digest: recovered.log_start_digest,
            entries: recovered.entries.clone(),
        }
    }

    pub(crate) fn new(formed: &Formed) -> Self {
        Self {
            hard_state: HardState::default(),
            log_start: EntryId::ZERO,
            log_start_digest: formed.log_identity().origin(&formed.members.encode(&[])),
            entries: Vec::new(),
        }
    }

    pub(crate) fn last(&self) -> (EntryId, Digest) {
        let start = (self.log_start, self.log_start_digest);
        self.entries.last().map_or(start, |entry| (entry.id, entry.digest))
    }

    fn digest_at(&self, index: u64) -> (EntryId, Digest) {
        if index == self.log_start.index.0 {
            return (self.log_start, self.log_start_digest);
        }
        let entry = self.entries.iter().find(|entry| entry.id.index.0 == index).unwrap();
        (entry.id, entry.digest)
    }
}

/// Builds writes and applies them to the model.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) formed: Formed,
    pub(crate) model: Model,
    tickets: u64,
    counter: u8,
}

impl Script {
    pub(crate) fn new(voters: u64) -> Self {
        let formed = formed(voters);
        Self { model: Model::new(&formed), formed, tickets: 0, counter: 0 }
    }

    pub(crate) fn empty(&mut self) -> Persist {
        self.tickets += 1;
        Persist {
            hard_state: None,
            snapshot: None,
            truncate_from: None,
            entries: Vec::new(),
            compact_to: None,
            ticket: Ticket::for_tests(self.tickets),
        }
    }

    pub(crate) fn hard_state(&mut self, term: u64, vote: Option<u64>) -> Persist {
        let voted_for = vote.map(|n| NodeId::new(n, u128::from(n)));
        let hard_state = HardState { current_term: Term(term), voted_for };
        self.model.hard_state = hard_state;
        Persist { hard_state: Some(hard_state), ..self.empty() }
    }

    /// Adds entries of the current term to a write.
    pub(crate) fn append(&mut self, mut persist: Persist, sizes: &[usize]) -> Persist {
        for size in sizes {
            self.counter = self.counter.wrapping_add(1);
            let (last, digest) = self.model.last();
            let id = EntryId { index: last.index.next(), term: self.model.hard_state.current_term };
            let payload = Bytes::from(vec![self.counter; *size]);
            let kind = EntryKind::Command;
            let digest = self.formed.log_identity().chain(digest, id, kind, &payload);
            let entry = Entry { id, kind, digest, payload };
            self.model.entries.push(entry.clone());
            persist.entries.push(entry);
        }
        persist
    }

    pub(crate) fn truncate(&mut self, mut persist: Persist, from: u64) -> Persist {
        self.model.entries.retain(|entry| entry.id.index.0 < from);
        persist.truncate_from = Some(Index(from));
        persist
    }

    pub(crate) fn compact(&mut self, mut persist: Persist, to: u64) -> Persist {
        (self.model.log_start, self.model.log_start_digest) = self.model.digest_at(to);
        self.model.entries.retain(|entry| entry.id.index.0 > to);
        persist.compact_to = Some(Index(to));
        persist
    }

    /// The entry with this digest, wherever in the history of the log it stood.
    pub(crate) fn entry(&self, id: EntryId, digest: Digest) -> Entry {
        let found = self.model.entries.iter().find(|it| it.id == id && it.digest == digest);
        found.cloned().unwrap_or_else(|| panic!("{id} is not in the log"))
    }

    /// The snapshot of the own log at `index`.
    pub(crate) fn meta_at(&self, index: u64) -> SnapshotMeta {
        let (last_included, digest) = self.model.digest_at(index);
        SnapshotMeta { last_included, digest, membership: self.formed.members.clone() }
    }

    pub(crate) fn reset(&mut self, mut persist: Persist, meta: &SnapshotMeta) -> Persist {
        (self.model.log_start, self.model.log_start_digest) = (meta.last_included, meta.digest);
        self.model.entries.clear();
        persist.snapshot = Some(meta.clone());
        persist
    }
}

/// Writes a snapshot with two blobs.
pub(crate) fn store_snapshot<D: Disk>(disk: D, meta: &SnapshotMeta) -> Result<(), LatchError> {
    let failed = |error: raft_core::SnapshotError| LatchError {
        path: dir(),
        source: std::sync::Arc::new(std::io::Error::other(error.to_string())),
    };
    let mut store = SnapshotStore::open(disk, &dir()).map_err(failed)?;
    let mut writer = store.begin(meta.clone());
    writer.put(b"always the same").map_err(failed)?;
    writer.put(&meta.digest.0.to_le_bytes()).map_err(failed)?;
    writer.commit().map_err(failed)?;
    Ok(())
}
