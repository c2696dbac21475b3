//! What goes into a driver's turn and what comes out of it.

use std::sync::Arc;

use raft_core::{EntryId, Membership, NodeId, SnapshotMeta, SnapshotSource, StateMachine, Time};

use crate::apply::{ApplyCompletion, ApplyRequest};
use crate::error::NodeError;
use crate::io::Stream;
use crate::log::snapshot::{SnapshotEffect, SnapshotRequest, SnapshotWorker};
use crate::log::{LogCompletion, LogRequest};
use crate::message::{Hello, PeerMessage};
use crate::node::request::Request;
use crate::node::status::Status;
use crate::transport::{PeerAddress, Refused};

/// Something that happened.
pub enum Input<S: StateMachine> {
    /// A peer's message, with its durable epoch when it sent this.
    Message {
        /// Who.
        from: NodeId,
        /// Its epoch.
        epoch: u64,
        /// What.
        message: PeerMessage,
    },
    /// What is sent to this peer on `stream` travels from now on. Reported for each stream: without the one for
    /// [`Stream::Bulk`] no snapshot message leaves.
    Connected {
        /// What it said of itself.
        hello: Hello,
        /// The address at which it was dialled.
        address: String,
        /// Which stream.
        stream: Stream,
    },
    /// A peer has dialled this node.
    Accepted(Hello),
    /// What was sent to this peer on `stream` may be lost.
    Disconnected {
        /// Who.
        node: NodeId,
        /// Which stream.
        stream: Stream,
        /// Its process is probably dead (decision 15).
        hint: bool,
    },
    /// A connection did not come about.
    Refused(String, Refused),
    /// A client's request.
    Request(Request<S>),
    /// The log's thread answers, at this durable epoch.
    Log(u64, LogCompletion),
    /// The apply thread answers.
    Apply(ApplyCompletion<S>),
    /// The snapshot thread answers.
    Snapshot(SnapshotDone),
}

/// Commands and queries need not be printable.
impl<S: StateMachine> std::fmt::Debug for Input<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Message { from, epoch, message } => {
                write!(f, "{from} (epoch {epoch}): {message:?}")
            }
            Self::Connected { hello, address, stream } => {
                write!(f, "connected to {} at {address}, {stream:?}", hello.node)
            }
            Self::Accepted(hello) => write!(f, "accepted {} of {}", hello.node, hello.address),
            Self::Disconnected { node, stream, hint } => {
                write!(f, "disconnected from {node}, {stream:?}, hint: {hint}")
            }
            Self::Refused(address, refused) => write!(f, "no connection to {address}: {refused}"),
            Self::Request(request) => request.fmt(f),
            Self::Log(epoch, completion) => write!(f, "log at epoch {epoch}: {completion:?}"),
            Self::Apply(completion) => completion.fmt(f),
            Self::Snapshot(done) => done.fmt(f),
        }
    }
}

/// Work for the snapshot thread.
#[derive(Debug)]
pub enum SnapshotJob<P> {
    /// For its worker.
    Work(SnapshotRequest<P>),
    /// Open this snapshot for restoring.
    Open(SnapshotMeta),
}

/// What the snapshot thread answers.
pub enum SnapshotDone {
    /// The worker wants this.
    Effect(SnapshotEffect),
    /// The snapshot that was to be opened; `None` when it is not there.
    Opened(SnapshotMeta, Option<Box<dyn SnapshotSource + Send>>),
}

impl std::fmt::Debug for SnapshotDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Effect(effect) => write!(f, "{effect:?}"),
            Self::Opened(meta, source) => {
                write!(f, "opened {}: {}", meta.last_included, source.is_some())
            }
        }
    }
}

/// What the snapshot thread does with one job.
pub fn run_snapshot_job<D, P>(
    worker: &mut SnapshotWorker<D>,
    job: SnapshotJob<P>,
) -> Vec<SnapshotDone>
where
    D: crate::io::Disk,
    P: raft_core::Snapshot,
{
    match job {
        SnapshotJob::Work(request) => {
            worker.handle(request).into_iter().map(SnapshotDone::Effect).collect()
        }
        SnapshotJob::Open(meta) => {
            let source = worker.store().source(meta.last_included);
            let source = source.map(|source| Box::new(source) as Box<dyn SnapshotSource + Send>);
            vec![SnapshotDone::Opened(meta, source)]
        }
    }
}

/// Who belongs to the cluster. A configuration counts for the protocol as soon as it is appended, but nobody is turned
/// away for one that may still be undone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Configurations {
    /// The latest one in the log.
    pub in_force: Arc<Membership>,
    /// The latest one that is committed.
    pub committed: Arc<Membership>,
}

/// Everything to be done after a turn. The lists are in order, each for its own thread.
#[derive(Debug)]
pub struct Outputs<S: StateMachine> {
    /// For the log's thread.
    pub log: Vec<LogRequest>,
    /// For the apply thread.
    pub apply: Vec<ApplyRequest<S>>,
    /// For the snapshot thread.
    pub snapshot: Vec<SnapshotJob<S::Snapshot>>,
    /// When the next turn is due without any input.
    pub deadline: Option<Time>,
    /// Something waits for entries to be applied: the next [`ApplyCompletion::Applied`] must not be kept until another
    /// input comes.
    pub waits_for_apply: bool,
    /// The node's state, when it changed.
    pub status: Option<Arc<Status>>,
    /// Whom to dial from now on, when that changed.
    pub dial: Option<Vec<PeerAddress>>,
    /// The configurations, when one of them changed: who may connect.
    pub membership: Option<Configurations>,
    /// Peers that said what cannot be: their connections are to be closed (decision 12).
    pub disconnect: Vec<NodeId>,
    /// The cluster formed or was joined.
    pub formed: Option<raft_core::ClusterId>,
    /// The own durable epoch, for every frame.
    pub epoch: u64,
    /// The last durable position, for handshakes.
    pub last_durable: EntryId,
    /// Higher epochs seen of peers.
    pub peer_epochs: Vec<(NodeId, u64)>,
    /// The node has ended: well, or of this. Nothing is to be fed any more.
    pub end: Option<Result<(), NodeError>>,
}

impl<S: StateMachine> Default for Outputs<S> {
    fn default() -> Self {
        Self {
            log: Vec::new(),
            apply: Vec::new(),
            snapshot: Vec::new(),
            deadline: None,
            waits_for_apply: false,
            status: None,
            dial: None,
            membership: None,
            disconnect: Vec::new(),
            formed: None,
            epoch: 0,
            last_durable: EntryId::ZERO,
            peer_epochs: Vec::new(),
            end: None,
        }
    }
}
