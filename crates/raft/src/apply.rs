//! Step 8 in the life of a write: committed entries meet the state machine.
//!
//! [`ApplyWorker`] owns the [`StateMachine`] on its thread and handles requests strictly in order: batches of
//! entries, queries, pictures for checkpoints, restores. That one queue is what keeps a restore from overtaking
//! entries or the other way round (B43 in the tests).
//!
//! Deliberately absent: any decision about what is committed, and any file.

use raft_core::{
    ApplyContext, Command as _, Digest, EntryId, EntryKind, Index, SnapshotMeta, SnapshotSource,
    StateMachine, mutant,
};
use raft_core::{Entry, Membership};

use crate::entry_header::EntryHeader;
use crate::error::NodeError;
use crate::waiter::{ProposeWaiter, QueryWaiter};

/// What the apply thread can be asked for.
pub enum ApplyRequest<S: StateMachine> {
    /// Apply these; contiguous with the last ones.
    Entries {
        /// In order.
        entries: Vec<Entry>,
        /// Who is to be answered, in order of index.
        waiters: Vec<(Index, ProposeWaiter<S>)>,
    },
    /// Answer this from the state as it is when the request's turn comes.
    Query(S::Query, QueryWaiter<S>),
    /// Take a picture of the state, which is the one after this entry.
    Picture(EntryId),
    /// Replace the state.
    Restore(SnapshotMeta, Box<dyn SnapshotSource + Send>),
}

impl<S: StateMachine> std::fmt::Debug for ApplyRequest<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Entries { entries, .. } => write!(f, "apply {entries:?}"),
            Self::Query(..) => write!(f, "query"),
            Self::Picture(id) => write!(f, "picture at {id}"),
            Self::Restore(meta, _) => write!(f, "restore {}", meta.last_included),
        }
    }
}

/// What the apply thread answers.
pub enum ApplyCompletion<S: StateMachine> {
    /// Everything up to here is applied and answered.
    Applied(Index),
    /// The picture asked for.
    Picture(EntryId, S::Snapshot),
    /// The state is that of this snapshot.
    Restored(SnapshotMeta),
    /// The state machine cannot go on.
    Failed(NodeError),
}

impl<S: StateMachine> std::fmt::Debug for ApplyCompletion<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Applied(index) => write!(f, "applied {index}"),
            Self::Picture(id, _) => write!(f, "picture at {id}"),
            Self::Restored(meta) => write!(f, "restored {}", meta.last_included),
            Self::Failed(error) => write!(f, "apply failed: {error}"),
        }
    }
}

/// Owns the state machine on its thread.
#[derive(Debug)]
pub struct ApplyWorker<S> {
    machine: S,
    /// The state is that after this entry. The only writer is this worker.
    applied: Index,
    /// A completion said [`ApplyCompletion::Failed`]; nothing is handled any more.
    failed: bool,
}

impl<S: StateMachine> ApplyWorker<S> {
    /// A worker whose state is empty: that before the first entry.
    #[must_use]
    pub const fn new(machine: S) -> Self {
        Self { machine, applied: Index::ZERO, failed: false }
    }

    /// A worker whose state is restored from a snapshot.
    ///
    /// # Errors
    /// When a blob cannot be read or does not decode.
    pub fn restored(
        mut machine: S,
        snapshot: &SnapshotMeta,
        source: &dyn SnapshotSource,
    ) -> Result<Self, NodeError> {
        machine.restore(source).map_err(NodeError::Snapshot)?;
        Ok(Self { machine, applied: snapshot.last_included.index, failed: false })
    }

    /// The state is that after this entry.
    #[must_use]
    pub const fn applied(&self) -> Index {
        self.applied
    }

    /// The state machine's digest; may take a while.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.machine.digest()
    }

    /// The state machine, for checks.
    #[must_use]
    pub const fn machine(&self) -> &S {
        &self.machine
    }

    /// The state machine, when nothing more is to be applied.
    #[must_use]
    pub fn into_machine(self) -> S {
        self.machine
    }

    /// Handles what waited, in order; batches of entries are made visible together.
    pub fn handle(&mut self, requests: Vec<ApplyRequest<S>>) -> Vec<ApplyCompletion<S>> {
        let mut completions = Vec::new();
        let mut requests = requests.into_iter().peekable();
        while let Some(request) = requests.next() {
            if self.failed {
                break;
            }
            match request {
                ApplyRequest::Entries { entries, waiters } => {
                    if mutant::is_active(31)
                        && let Some(ApplyRequest::Picture(id)) = requests.peek()
                    {
                        let picture = ApplyCompletion::Picture(*id, self.machine.snapshot());
                        completions.push(picture);
                        requests.next();
                    }
                    completions.push(self.apply(entries, waiters));
                }
                ApplyRequest::Query(query, waiter) => {
                    // Whoever asked may be gone; then nobody misses the answer.
                    drop(waiter.send(Ok(self.machine.query(query))));
                }
                ApplyRequest::Picture(id) => {
                    assert_eq!(id.index, self.applied, "a picture of another state");
                    completions.push(ApplyCompletion::Picture(id, self.machine.snapshot()));
                }
                ApplyRequest::Restore(meta, source) => {
                    completions.push(self.restore(meta, &*source))
                }
            }
            self.failed = matches!(completions.last(), Some(ApplyCompletion::Failed(_)));
        }
        completions
    }

    fn apply(
        &mut self,
        entries: Vec<Entry>,
        waiters: Vec<(Index, ProposeWaiter<S>)>,
    ) -> ApplyCompletion<S> {
        let mut waiters = waiters.into_iter().peekable();
        let mut answers = Vec::new();
        for entry in entries {
            assert_eq!(
                entry.id.index,
                self.applied.next(),
                "entries are applied in order, each once"
            );
            match self.apply_one(&entry) {
                Ok(Some(response)) => {
                    if let Some((_, waiter)) =
                        waiters.next_if(|(index, _)| *index == entry.id.index)
                    {
                        answers.push((waiter, response));
                    }
                }
                Ok(None) => {}
                Err(problem) => {
                    let what = format!("entry {}: {problem}", entry.id);
                    return ApplyCompletion::Failed(NodeError::UnknownEntry(what));
                }
            }
            self.applied = entry.id.index;
        }
        self.machine.flush();
        for (waiter, response) in answers {
            // Whoever proposed may be gone; the command stands all the same.
            drop(waiter.send(Ok(response)));
        }
        ApplyCompletion::Applied(self.applied)
    }

    fn apply_one(&mut self, entry: &Entry) -> Result<Option<S::Response>, String> {
        match entry.kind {
            EntryKind::Empty => Ok(None),
            EntryKind::Membership => match Membership::decode(&entry.payload) {
                Some(_) => Ok(None),
                None => Err(String::from("a membership that does not decode")),
            },
            EntryKind::Command => {
                let decoded = EntryHeader::decode(&entry.payload).and_then(|(header, command)| {
                    Ok((header.session, S::Command::decode(command)?))
                });
                let (session, command) = decoded.map_err(|error| error.to_string())?;
                Ok(Some(self.machine.apply(ApplyContext { id: entry.id, session }, command)))
            }
        }
    }

    fn restore(&mut self, meta: SnapshotMeta, source: &dyn SnapshotSource) -> ApplyCompletion<S> {
        let EntryId { index, .. } = meta.last_included;
        assert!(
            index >= self.applied,
            "the state never goes back from {} to {index}",
            self.applied
        );
        match self.machine.restore(source) {
            Ok(()) => {
                self.machine.flush();
                self.applied = index;
                ApplyCompletion::Restored(meta)
            }
            Err(error) => ApplyCompletion::Failed(NodeError::Snapshot(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use raft_core::{DecodeError, MemorySnapshot, NodeId, Snapshot, SnapshotError, SnapshotSink};
    use tokio::sync::oneshot;

    use super::*;

    /// Keeps the bytes of each command; shows them only after a flush.
    #[derive(Default)]
    struct Letters {
        all: Vec<u8>,
        visible: usize,
    }

    struct Letter(u8);

    impl raft_core::Command for Letter {
        fn encode(&self, out: &mut BytesMut) {
            out.extend_from_slice(&[self.0]);
        }

        fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
            match bytes.as_ref() {
                [letter @ b'a'..=b'z'] => Ok(Self(*letter)),
                other => Err(DecodeError(format!("{other:?}"))),
            }
        }
    }

    struct Picture(Vec<u8>);

    impl Snapshot for Picture {
        fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
            sink.put(&self.0).map(|_| ())
        }
    }

    impl StateMachine for Letters {
        type Command = Letter;
        type Response = String;
        type Query = ();
        type Answer = String;
        type Snapshot = Picture;

        fn apply(&mut self, context: ApplyContext, command: Letter) -> String {
            self.all.push(command.0);
            format!("{}", context.id)
        }

        fn flush(&mut self) {
            self.visible = self.all.len();
        }

        fn query(&self, (): ()) -> String {
            String::from_utf8_lossy(&self.all[..self.visible]).into_owned()
        }

        fn snapshot(&self) -> Picture {
            Picture(self.all.clone())
        }

        fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
            self.all = source.read(0)?.to_vec();
            Ok(())
        }

        fn digest(&self) -> Digest {
            Digest(0)
        }
    }

    fn entry(index: u64, kind: EntryKind, command: &[u8]) -> Entry {
        let header = EntryHeader { proposer: NodeId::new(1, 1), request: index, session: None };
        let mut payload = BytesMut::new();
        header.encode(&mut payload);
        payload.extend_from_slice(command);
        Entry { id: EntryId::new(index, 1), kind, digest: Digest(0), payload: payload.freeze() }
    }

    fn ask(worker: &mut ApplyWorker<Letters>) -> String {
        let (waiter, mut answer) = oneshot::channel();
        worker.handle(vec![ApplyRequest::Query((), waiter)]);
        answer.try_recv().unwrap().unwrap()
    }

    #[test]
    fn a_batch_is_applied_made_visible_and_answered_together() {
        let mut worker = ApplyWorker::new(Letters::default());
        let entries = vec![
            entry(1, EntryKind::Empty, b""),
            entry(2, EntryKind::Command, b"a"),
            entry(3, EntryKind::Command, b"b"),
        ];
        let (waiter, mut answer) = oneshot::channel();
        let request = ApplyRequest::Entries { entries, waiters: vec![(Index(3), waiter)] };
        let done = worker.handle(vec![request]);
        assert!(matches!(done[..], [ApplyCompletion::Applied(Index(3))]));
        assert_eq!(answer.try_recv().unwrap().unwrap(), "3:1");
        assert_eq!(ask(&mut worker), "ab");
    }

    #[test]
    fn an_entry_that_is_not_understood_stops_everything_behind_it() {
        let mut worker = ApplyWorker::new(Letters::default());
        let entries = vec![entry(1, EntryKind::Command, b"a"), entry(2, EntryKind::Command, b"A")];
        let (waiter, mut answer) = oneshot::channel();
        let done = worker.handle(vec![
            ApplyRequest::Entries { entries, waiters: Vec::new() },
            ApplyRequest::Entries {
                entries: vec![entry(2, EntryKind::Command, b"c")],
                waiters: vec![(Index(2), waiter)],
            },
        ]);
        assert!(
            matches!(done[..], [ApplyCompletion::Failed(NodeError::UnknownEntry(_))]),
            "{done:?}"
        );
        assert!(answer.try_recv().is_err());
        assert_eq!(worker.applied(), Index(1));
    }

    #[test]
    fn b43_a_restore_stands_in_one_queue_with_the_entries() {
        let mut worker = ApplyWorker::new(Letters::default());
        let mut source = MemorySnapshot::default();
        source.put(b"abc").unwrap();
        let meta = SnapshotMeta {
            last_included: EntryId::new(3, 1),
            digest: Digest(0),
            membership: Membership::default(),
        };
        let done = worker.handle(vec![
            ApplyRequest::Entries {
                entries: vec![entry(1, EntryKind::Command, b"a")],
                waiters: Vec::new(),
            },
            ApplyRequest::Restore(meta, Box::new(source)),
            ApplyRequest::Entries {
                entries: vec![entry(4, EntryKind::Command, b"d")],
                waiters: Vec::new(),
            },
            ApplyRequest::Picture(EntryId::new(4, 1)),
        ]);
        assert_eq!(done.len(), 4);
        assert!(
            matches!(&done[3], ApplyCompletion::Picture(id, Picture(all)) if id.index.0 == 4 && all == b"abcd")
        );
        assert_eq!(ask(&mut worker), "abcd");
    }
}
