//! One turn of a node: everything that waited goes in as one batch, everything to be done comes out. Sans-IO.
//!
//! The driver owns the protocol and knows who waits for what. It never blocks and touches nothing: the tokio shell
//! (`node::task`) and the simulator run exactly this type, feed it with what happened and carry out what it wants.
//! `mod` holds the inputs, the outputs and the order of a turn; `peers` what other nodes say; `requests` what
//! clients want; `ready` what the protocol wants.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft_core::{
    EntryId, Envelope, Index, Membership, NodeId, Raft, Rng, SnapshotMeta, SnapshotSource,
    Standing, StateMachine, Term, Time,
};
use tracing::{debug, error, info, trace, warn};

use crate::apply::{ApplyCompletion, ApplyRequest};
use crate::error::NodeError;
use crate::io::{Network, Stream};
use crate::log::snapshot::{SnapshotEffect, SnapshotRequest, SnapshotWorker};
use crate::log::{DataState, Formed, LogCompletion, LogRequest};
use crate::message::{Hello, PeerMessage};
use crate::node::admin::Admins;
use crate::node::builder::Settings;
use crate::node::checkpoint::{CheckpointLimits, Checkpoints};
use crate::node::formation::{Formation, FormationEffect, FormationSettings};
use crate::node::formation_message::{FormationMessage, FormationState, Founding};
use crate::node::member_info::MemberInfo;
use crate::node::pending::{Proposals, Reads};
use crate::node::request::Request;
use crate::node::standing::{Gate, Verdict};
use crate::node::status::{Phase, Status};
use crate::transport::{PeerAddress, Refused, RefusedReason};

mod peers;
mod ready;
mod requests;
mod snapshots;
#[cfg(test)]
mod tests;
mod view;

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
    /// The node's state, when it changed.
    pub status: Option<Arc<Status>>,
    /// Whom to dial from now on, when that changed.
    pub dial: Option<Vec<PeerAddress>>,
    /// The configuration in force, when it changed: who may connect.
    pub membership: Option<Arc<Membership>>,
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
            status: None,
            dial: None,
            membership: None,
            formed: None,
            epoch: 0,
            last_durable: EntryId::ZERO,
            peer_epochs: Vec::new(),
            end: None,
        }
    }
}

/// Work for the apply thread that waits behind a snapshot being opened.
#[derive(Debug)]
enum Deferred<S: StateMachine> {
    Request(ApplyRequest<S>),
    Restore(SnapshotMeta),
}

/// A shutdown under way.
#[derive(Debug)]
struct Stopping {
    /// When it no longer waits for a hand-over or for answers.
    until: Time,
    outcome: Result<(), NodeError>,
}

/// A node without threads, files, sockets and clock.
#[derive(Debug)]
pub struct Driver<S: StateMachine> {
    settings: Settings,
    node: NodeId,
    info: MemberInfo,
    rng: Rng,
    /// The own durable epoch (decision 10).
    epoch: u64,
    /// The highest epoch seen of every peer.
    peer_epochs: BTreeMap<NodeId, u64>,
    /// Peers to which what is sent on the control stream travels, and where they were dialled.
    connected: BTreeMap<NodeId, String>,
    /// Addresses of unknown nodes that have dialled this one: empty ones that want an answer.
    callers: BTreeSet<String>,
    /// Counts the changes of `callers`.
    callers_changed: u64,
    phase: Phase,
    /// While the node is empty.
    formation: Option<Formation>,
    /// How the cluster began, once it has.
    founding: Option<Founding>,
    /// Once the log is formed.
    raft: Option<Raft>,
    /// After a restart, until the standing is clear.
    gate: Option<Gate>,
    /// A snapshot that arrived before the standing was clear.
    arrived: Option<Envelope>,
    /// Handed to the apply thread; everything that is applied was. Monotonic.
    handed: Index,
    /// The state machine has applied this. `applied <= handed`. Monotonic.
    applied: Index,
    /// The highest term of an entry handed to the apply thread.
    handed_term: Term,
    /// Not empty while a snapshot is being opened.
    deferred: VecDeque<Deferred<S>>,
    checkpoints: Checkpoints,
    /// A picture that waits until the log is durable up to it.
    picture: Option<(EntryId, S::Snapshot)>,
    /// Peers to which what is sent on the bulk stream travels.
    bulk: BTreeSet<NodeId>,
    /// Snapshot messages to the others.
    bulk_waiting: BTreeMap<NodeId, Vec<crate::message::SnapshotMessage>>,
    /// Followers that are being sent a snapshot, and when something last moved.
    sending: BTreeMap<NodeId, Time>,
    /// Compactions on their way to the disk, by the number of the write.
    compactions: VecDeque<(u64, EntryId)>,
    /// The disk has no space for further segments.
    log_full: bool,
    proposals: Proposals<S>,
    reads: Reads<S>,
    admins: Admins,
    /// Nothing is forwarded before this, after a leader has refused.
    forward_after: Option<Time>,
    /// The leader of this term refused as such; it is not asked again.
    not_leader: Option<(Term, NodeId)>,
    /// The term in which forwards were appended, and whose.
    forwards: (Term, BTreeMap<NodeId, BTreeSet<u64>>),
    /// When a removed node was told so last.
    removed_told: BTreeMap<NodeId, Time>,
    /// The own address is not as committed; announced last at this time.
    announced: Option<Time>,
    stopping: Option<Stopping>,
    ended: bool,
    out: Outputs<S>,
    status: Arc<Status>,
    view: view::View,
    dialled: Vec<PeerAddress>,
    last_leader: Option<NodeId>,
}

/// What the data directory held.
#[derive(Debug)]
pub struct Start {
    /// From `Log::open`.
    pub state: DataState,
    /// From `Log::formation_state`.
    pub formation: Bytes,
    /// From `Log::epoch`.
    pub epoch: u64,
}

impl<S: StateMachine> Driver<S> {
    /// A node as its data directory says. The state machine is restored from the recovered snapshot already.
    ///
    /// # Errors
    /// When the configuration and the data do not go together.
    pub fn new(
        settings: Settings,
        start: Start,
        mut rng: Rng,
        now: Time,
    ) -> Result<Self, NodeError> {
        let node = match &start.state {
            DataState::Empty { identity, .. } => identity.node(),
            DataState::Formed(formed) => formed.identity.node(),
        };
        let name = if settings.name.is_empty() { &settings.address } else { &settings.name };
        let info = MemberInfo {
            name: name.clone(),
            peer_address: settings.address.clone(),
            client_addresses: settings.client_addresses.clone(),
        };
        let limits = CheckpointLimits {
            entries: settings.checkpoint_entries,
            bytes: settings.checkpoint_bytes,
            trailing_entries: settings.trailing_entries,
            trailing_bytes: settings.trailing_bytes,
        };
        let mut driver = Self {
            node,
            info,
            rng: rng.split(1),
            epoch: start.epoch,
            peer_epochs: BTreeMap::new(),
            connected: BTreeMap::new(),
            callers: BTreeSet::new(),
            callers_changed: 0,
            phase: Phase::Forming,
            formation: None,
            founding: None,
            raft: None,
            gate: None,
            arrived: None,
            handed: Index::ZERO,
            applied: Index::ZERO,
            handed_term: Term(0),
            deferred: VecDeque::new(),
            checkpoints: Checkpoints::new(limits),
            picture: None,
            bulk: BTreeSet::new(),
            bulk_waiting: BTreeMap::new(),
            sending: BTreeMap::new(),
            compactions: VecDeque::new(),
            log_full: false,
            proposals: Proposals::default(),
            reads: Reads::default(),
            admins: Admins::default(),
            forward_after: None,
            not_leader: None,
            forwards: (Term(0), BTreeMap::new()),
            removed_told: BTreeMap::new(),
            announced: None,
            stopping: None,
            ended: false,
            out: Outputs::default(),
            status: Arc::new(Status::empty(node)),
            view: view::View::default(),
            dialled: Vec::new(),
            last_leader: None,
            settings,
        };
        let state = FormationState::decode(&start.formation).unwrap_or_default();
        match start.state {
            DataState::Empty { .. } => driver.begin_formation(state, now),
            DataState::Formed(formed) => {
                let founding = state.chosen.unwrap_or_else(|| Founding {
                    cluster: formed.formed.cluster,
                    configured: Vec::new(),
                    members: formed.formed.members.clone(),
                });
                driver.peer_epochs = formed.peer_epochs;
                driver.begin_recovered(founding, &formed.formed, formed.recovered, now)?;
            }
        }
        Ok(driver)
    }

    fn begin_formation(&mut self, state: FormationState, now: Time) {
        let joining = !self.settings.join.is_empty();
        let addresses =
            if joining { self.settings.join.clone() } else { self.settings.peers.clone() };
        let settings = FormationSettings {
            node: self.node,
            info: self.info.clone(),
            addresses,
            joining,
            requires_all: self.settings.form_requires_all,
            grace: self.settings.formation_grace,
        };
        let rng = self.rng.split(2);
        self.formation = Some(Formation::new(settings, state, rng, now));
    }

    fn begin_recovered(
        &mut self,
        founding: Founding,
        formed: &Formed,
        recovered: raft_core::Recovered,
        now: Time,
    ) -> Result<(), NodeError> {
        let applied = recovered.snapshot.last_included;
        let config = self.settings.core_config(self.node);
        let rng = self.rng.split(3);
        let raft = Raft::new(config, formed.log_identity(), recovered, rng, now)
            .map_err(NodeError::Config)?;
        self.check_configured(&founding, raft.membership())?;
        let membership = Membership::clone(raft.membership());
        let gate = Gate::new(self.node, self.epoch, raft.last_log().index, membership, now);
        self.begin_running(raft, founding, applied);
        self.gate = Some(gate);
        self.phase = Phase::Confirming;
        Ok(())
    }

    fn begin_running(&mut self, raft: Raft, founding: Founding, applied: EntryId) {
        self.applied = applied.index;
        self.handed = applied.index;
        self.handed_term = applied.term;
        self.out.formed = Some(founding.cluster);
        self.founding = Some(founding);
        self.raft = Some(raft);
        self.formation = None;
    }

    /// One turn. What arrived earlier is taken in before a deadline fires (decision 13). Total: any input, any
    /// time.
    pub fn turn(
        &mut self,
        now: Time,
        inputs: impl IntoIterator<Item = Input<S>>,
        network: &mut impl Network,
    ) -> Outputs<S> {
        for input in inputs {
            trace!(node = %self.node, ?input, "turn");
            self.input(now, input, network);
        }
        self.tick(now, network);
        self.confirm_standing(now, network);
        self.dispatch(now, network);
        self.work_off_ready(now, network);
        self.answer_reads();
        self.write_checkpoint();
        self.announce_address(now);
        self.progress_shutdown(now, network);
        self.finish_turn()
    }

    fn input(&mut self, now: Time, input: Input<S>, network: &mut impl Network) {
        match input {
            Input::Message { from, epoch, message } => {
                self.note_epoch(from, epoch);
                self.on_message(now, from, message, network);
            }
            Input::Connected { hello, stream: Stream::Bulk, .. } => {
                self.bulk_connected(hello.node, network);
            }
            Input::Connected { hello, address, stream: Stream::Control } => {
                self.on_connected(now, &hello, address);
            }
            Input::Accepted(hello) => {
                self.note_epoch(hello.node, hello.epoch);
                // Of two nodes of which one is empty each must be able to answer the other.
                let strangers = hello.cluster.is_none() || self.formation.is_some();
                if strangers {
                    self.add_caller(hello.address);
                }
            }
            Input::Disconnected { node, stream, hint } => {
                self.on_disconnected(now, node, stream, hint)
            }
            Input::Refused(address, refused) => self.on_refused(&address, &refused),
            Input::Request(request) => self.on_request(now, request),
            Input::Log(epoch, completion) => self.on_log(now, epoch, completion),
            Input::Apply(completion) => self.on_apply(now, completion),
            Input::Snapshot(done) => self.on_snapshot(now, done, network),
        }
    }

    fn tick(&mut self, now: Time, network: &mut impl Network) {
        if let Some(formation) = &mut self.formation {
            formation.tick(now);
        }
        self.work_off_formation(network);
        if let Some(raft) = &mut self.raft {
            raft.tick(now);
        }
        self.proposals.expire(now);
        self.reads.expire(now);
        self.reads.give_up(self.round_limit(now));
        self.admins.expire(now);
        self.break_stalled_transfers(now);
        if self.forward_after.is_some_and(|at| at <= now) {
            self.forward_after = None;
        }
    }

    /// Rounds of reads that began before this are repeated: their messages may be lost.
    fn round_limit(&self, now: Time) -> Time {
        let timeout = micros(self.settings.election_timeout_max);
        Time::from_micros(now.as_micros().saturating_sub(timeout))
    }

    fn on_connected(&mut self, now: Time, hello: &Hello, address: String) {
        self.note_epoch(hello.node, hello.epoch);
        debug!(peer = %hello.node, address, "connected");
        if let Some(formation) = &mut self.formation {
            formation.connected(now, hello.node, &address);
        }
        if let Some(raft) = &mut self.raft {
            raft.peer_connected(now, hello.node);
        }
        self.connected.insert(hello.node, address);
        self.view.connections_changed();
    }

    fn on_disconnected(&mut self, now: Time, node: NodeId, stream: Stream, hint: bool) {
        if stream == Stream::Bulk {
            return self.bulk_disconnected(node);
        }
        debug!(peer = %node, hint, "disconnected");
        if let Some(formation) = &mut self.formation {
            formation.disconnected(now, node);
        }
        if let Some(raft) = &mut self.raft {
            raft.peer_disconnected(now, node, hint);
        }
        if let Some(address) = self.connected.remove(&node) {
            self.remove_caller(&address);
        }
        self.admins.forget_empty(node);
        self.view.connections_changed();
    }

    fn on_refused(&mut self, address: &str, refused: &Refused) {
        if refused.reason == RefusedReason::Removed && refused.by_peer && self.raft.is_some() {
            self.end(Err(NodeError::Removed));
        } else if refused.reason == RefusedReason::OtherIncarnation && refused.by_peer {
            self.become_amnesic(format!(
                "{address} knows this member with another data folder ({refused}): the folder was wiped or \
                 replaced. Restore it, or remove the member and add it anew"
            ));
        } else {
            debug!(address, %refused, "no connection");
        }
    }

    fn become_amnesic(&mut self, reason: String) {
        if matches!(self.phase, Phase::Amnesic(_)) {
            return;
        }
        error!("this node stays idle: {reason}");
        self.phase = Phase::Amnesic(reason);
        self.gate = None;
        if let Some(raft) = &mut self.raft {
            let now = raft.now();
            raft.set_standing(now, Standing::Silent);
        }
    }

    fn on_log(&mut self, now: Time, epoch: u64, completion: LogCompletion) {
        self.epoch = self.epoch.max(epoch);
        match completion {
            LogCompletion::Persisted(tickets) => {
                let Some(raft) = &mut self.raft else { return };
                for ticket in tickets {
                    let sequence = ticket.sequence();
                    raft.persisted(now, ticket);
                    while self.compactions.front().is_some_and(|(write, _)| *write <= sequence) {
                        let Some((_, to)) = self.compactions.pop_front() else { break };
                        self.out.snapshot.push(SnapshotJob::Work(SnapshotRequest::Prune(to)));
                    }
                }
            }
            LogCompletion::Fetched(fetch, entries) => {
                if let Some(raft) = &mut self.raft {
                    raft.entries_read(now, fetch, entries);
                }
            }
            LogCompletion::FormationStateStored => {
                if let Some(formation) = &mut self.formation {
                    formation.stored(now);
                }
            }
            LogCompletion::FormedStored => self.on_formed_stored(now),
            LogCompletion::Full(full) => {
                if full {
                    warn!("the disk is full: proposals are refused until there is space");
                } else {
                    info!("the disk has space again");
                }
                self.log_full = full;
            }
            LogCompletion::Latched(latch) => {
                error!("{latch}: this node stops");
                // A short while to hand leadership over; nothing of its own is acknowledged any more.
                self.begin_stopping(now, self.settings.election_timeout_min, Err(latch.into()));
            }
        }
    }

    /// The log is formed: nothing was ever promised from this directory, so it may take part at once.
    fn on_formed_stored(&mut self, now: Time) {
        let Some(founding) = self.founding.take() else { return };
        let formed = formed_by(&founding);
        let identity = formed.log_identity();
        let digest = identity.origin(&formed.members.encode(&[]));
        let snapshot =
            SnapshotMeta { last_included: EntryId::ZERO, digest, membership: formed.members };
        let recovered = raft_core::Recovered {
            hard_state: raft_core::HardState::default(),
            snapshot,
            log_start: EntryId::ZERO,
            log_start_digest: digest,
            entries: Vec::new(),
        };
        let rng = self.rng.split(3);
        match Raft::new(self.settings.core_config(self.node), identity, recovered, rng, now) {
            Ok(mut raft) => {
                raft.set_standing(now, Standing::Full);
                for node in self.connected.keys() {
                    raft.peer_connected(now, *node);
                }
                self.begin_running(raft, founding, EntryId::ZERO);
                self.phase = Phase::Active;
            }
            Err(error) => self.end(Err(NodeError::Config(error))),
        }
    }

    fn work_off_formation(&mut self, network: &mut impl Network) {
        let Some(formation) = &mut self.formation else { return };
        for effect in formation.take_effects() {
            match effect {
                FormationEffect::Send(to, message) => send_formation(network, to, &message),
                FormationEffect::Persist(bytes) => {
                    self.out.log.push(LogRequest::FormationState(bytes))
                }
                FormationEffect::Form(founding) => {
                    if self.founding.is_none() {
                        self.out.log.push(LogRequest::Form(Box::new(formed_by(&founding))));
                        self.founding = Some(founding);
                    }
                }
                FormationEffect::Removed => return self.end(Err(NodeError::Removed)),
            }
        }
        if !matches!(self.phase, Phase::Amnesic(_) | Phase::Stopping)
            && let Some(formation) = &self.formation
        {
            self.phase = formation.phase().clone();
        }
    }

    /// Asks a quorum about the own standing, and takes part once it is clear.
    fn confirm_standing(&mut self, now: Time, network: &mut impl Network) {
        let Some(gate) = &mut self.gate else { return };
        gate.advance(self.epoch);
        match gate.verdict().clone() {
            Verdict::Open => {
                let epoch = gate.epoch();
                for node in gate.ask(now) {
                    send_formation(network, node, &FormationMessage::StandingAsk { epoch });
                }
            }
            Verdict::Confirmed => {
                debug!("a quorum confirms that nothing was lost");
                self.gate = None;
                self.phase = Phase::Active;
                if let Some(raft) = &mut self.raft {
                    raft.set_standing(now, Standing::Full);
                    if let Some(arrived) = self.arrived.take() {
                        raft.step(now, arrived);
                    }
                }
            }
            Verdict::Amnesic(reason) => self.become_amnesic(reason),
        }
    }

    fn begin_stopping(&mut self, now: Time, patience: Duration, outcome: Result<(), NodeError>) {
        if let Some(stopping) = &mut self.stopping {
            // The first failure is what the node ends of.
            if stopping.outcome.is_ok() {
                stopping.outcome = outcome;
            }
            return;
        }
        self.phase = Phase::Stopping;
        self.proposals.stop(true);
        self.reads.stop();
        self.admins.stop();
        if let Some(raft) = &mut self.raft
            && let Ok(target) = raft.transfer_leadership(now, None)
        {
            info!(%target, "hands leadership over before it stops");
        }
        self.stopping = Some(Stopping { until: now.after(patience), outcome });
    }

    fn progress_shutdown(&mut self, now: Time, network: &mut impl Network) {
        let Some(stopping) = &self.stopping else { return };
        let alone =
            self.raft.as_ref().is_none_or(|raft| raft.membership().all_voters().count() < 2);
        let leads = self.raft.as_ref().is_some_and(|raft| raft.leader() == Some(self.node));
        let done = (alone || !leads) && !self.proposals.any_left();
        if !done && now < stopping.until {
            return;
        }
        let outcome = self.stopping.take().map_or(Ok(()), |stopping| stopping.outcome);
        for node in self.connected.keys() {
            network.send(*node, Stream::Control, PeerMessage::Goodbye);
        }
        self.end(outcome);
    }

    fn end(&mut self, outcome: Result<(), NodeError>) {
        if self.ended {
            return;
        }
        match &outcome {
            Ok(()) => info!("stops"),
            Err(error) => error!("stops: {error}"),
        }
        self.ended = true;
        self.phase = Phase::Stopping;
        self.proposals.stop(false);
        self.reads.stop();
        self.admins.stop();
        self.out.end = Some(outcome);
    }

    fn finish_turn(&mut self) -> Outputs<S> {
        self.publish();
        let mut out = std::mem::take(&mut self.out);
        out.deadline = self.deadline();
        out.epoch = self.epoch;
        if let Some(raft) = &self.raft {
            let index = raft.durable_index();
            if let Some(term) = raft.term_at(index) {
                out.last_durable = EntryId { index, term };
            }
        }
        out
    }

    fn deadline(&self) -> Option<Time> {
        if self.ended {
            return None;
        }
        let round =
            self.reads.oldest_round().map(|asked| asked.after(self.settings.election_timeout_max));
        let held =
            self.proposals.any_held() || self.admins.any_held() || self.reads.any_gathering();
        [
            self.raft.as_ref().and_then(Raft::deadline),
            self.formation.as_ref().and_then(Formation::deadline),
            self.gate.as_ref().and_then(Gate::deadline),
            self.proposals.deadline(),
            self.reads.deadline(),
            self.admins.deadline(),
            self.stopping.as_ref().map(|stopping| stopping.until),
            self.transfer_deadline(),
            round,
            self.forward_after.filter(|_| held),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The protocol, for checks.
    #[must_use]
    pub const fn raft(&self) -> Option<&Raft> {
        self.raft.as_ref()
    }

    /// This node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// How far the node is.
    #[must_use]
    pub const fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Up to where the state machine has said that it has applied.
    #[must_use]
    pub const fn applied(&self) -> Index {
        self.applied
    }
}

fn formed_by(founding: &Founding) -> Formed {
    Formed {
        cluster: founding.cluster,
        group: raft_core::GroupId::FIRST,
        members: founding.members.clone(),
    }
}

fn send_formation(network: &mut impl Network, to: NodeId, message: &FormationMessage) {
    trace!(%to, ?message, "formation");
    network.send(to, Stream::Control, PeerMessage::Formation(message.encode()));
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
