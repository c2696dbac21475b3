//! One turn of a node: everything that waited goes in as one batch, everything to be done comes out. Sans-IO.
//!
//! The driver owns the protocol and knows who waits for what. It never blocks and touches nothing: the tokio shell
//! (`node::task`) and the simulator run exactly this type, feed it with what happened and carry out what it wants.
//! `mod` holds the order of a turn, `ports` its inputs and outputs; `peers` what other nodes say; `requests` what
//! clients want; `ready` what the protocol wants.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft_core::{
    EntryId, Envelope, Index, Membership, NodeId, Raft, Rng, SnapshotMeta, StateMachine, Term, Time,
};
use tracing::{debug, error, trace};

use crate::apply::ApplyRequest;
use crate::error::{DataError, NodeError};
use crate::io::{Network, Stream};
use crate::log::snapshot::SnapshotRequest;
use crate::log::{DataState, LogCompletion};
use crate::message::{Hello, PeerMessage};
use crate::node::admin::Admins;
use crate::node::builder::Settings;
use crate::node::checkpoint::{CheckpointLimits, Checkpoints};
use crate::node::formation::Formation;
use crate::node::formation_message::{FormationMessage, FormationState, Founding};
use crate::node::member_info::MemberInfo;
use crate::node::pending::{Proposals, Reads};
use crate::node::request::first_request;
use crate::node::standing::Gate;
use crate::node::status::{Phase, Status};
use crate::transport::{PeerAddress, Refused, RefusedReason};

mod admission;
mod agreement;
mod forwards;
mod lifecycle;
mod mend;
mod peers;
mod ports;
mod ready;
mod repair;
mod requests;
mod silence;
mod snapshots;
mod space;
#[cfg(test)]
mod tests;
mod view;

pub use ports::{Configurations, Input, Outputs, SnapshotDone, SnapshotJob, run_snapshot_job};

/// Entries handed to the apply thread of which it need not be heard at once that they are applied.
const APPLIED_UNHEARD_MAX: u64 = 1024;
/// After this time the driver looks how far the state machine is when nothing else has made it look.
const APPLIED_HEARD_AFTER: Duration = Duration::from_millis(10);

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
    /// The own durable epoch at which this life began.
    began: u64,
    /// The highest epoch seen of every peer.
    peer_epochs: BTreeMap<NodeId, u64>,
    /// Peers to which what is sent on the control stream travels, and where they were dialled.
    connected: BTreeMap<NodeId, String>,
    /// Addresses of unknown nodes that have dialled this one: empty ones that want an answer.
    callers: BTreeMap<String, NodeId>,
    /// Counts the changes of `callers`.
    callers_changed: u64,
    phase: Phase,
    /// While the node is empty.
    formation: Option<Formation>,
    /// How the cluster began, once it has.
    founding: Option<Founding>,
    /// Once the log is formed.
    raft: Option<Raft>,
    /// While entries of the log are damaged.
    repair: Option<repair::Repair>,
    /// Damaged entries that were found while this node takes part.
    mending: mend::Mending,
    /// After a restart, until the standing is clear.
    gate: Option<Gate>,
    /// A snapshot that arrived before the standing was clear.
    arrived: Option<Envelope>,
    /// Handed to the apply thread; everything that is applied was. Monotonic.
    handed: Index,
    /// The state machine has applied this. `applied <= handed`. Monotonic.
    applied: Index,
    /// Where the log ended at the start: applying all that again is no backlog.
    recovered_to: Index,
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
    /// Disks without space for further segments.
    space: space::Space,
    agreement: agreement::Agreement,
    silence: silence::Silence,
    proposals: Proposals<S>,
    reads: Reads<S>,
    admins: Admins,
    /// Nothing is forwarded before this, after a leader has refused.
    forward_after: Option<Time>,
    /// The leader of this term refused as such; it is not asked again.
    not_leader: Option<(Term, NodeId)>,
    /// What others forwarded to this node.
    forwards: forwards::Forwards,
    /// The configured list is not the membership that this node knew at its start: whether it is the present one,
    /// the cluster tells.
    doubtful_list: Option<view::DoubtfulList>,
    /// Configured addresses whose members say that they belong to another cluster, and in which words.
    strangers: BTreeMap<String, String>,
    /// When a removed node was told so last.
    removed_told: BTreeMap<NodeId, Time>,
    /// Empty nodes at the addresses of members that are not heard of, by those members.
    stand_ins: BTreeMap<NodeId, admission::StandIn>,
    /// The own attributes are not as committed; announced last at this time.
    announced: Option<Time>,
    /// The committed configuration that was found to hold the own attributes as they are.
    attributes_in: Option<Arc<Membership>>,
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
            DataState::Damaged(damaged) => damaged.identity.node(),
        };
        let info = settings.member_info(S::FEATURE_LEVEL);
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
            began: start.epoch,
            peer_epochs: BTreeMap::new(),
            connected: BTreeMap::new(),
            callers: BTreeMap::new(),
            callers_changed: 0,
            phase: Phase::Forming,
            formation: None,
            founding: None,
            raft: None,
            repair: None,
            mending: mend::Mending::default(),
            gate: None,
            arrived: None,
            handed: Index::ZERO,
            applied: Index::ZERO,
            recovered_to: Index::ZERO,
            handed_term: Term(0),
            deferred: VecDeque::new(),
            checkpoints: Checkpoints::new(limits),
            picture: None,
            bulk: BTreeSet::new(),
            bulk_waiting: BTreeMap::new(),
            sending: BTreeMap::new(),
            compactions: VecDeque::new(),
            space: space::Space::default(),
            agreement: agreement::Agreement::default(),
            silence: silence::Silence::default(),
            proposals: Proposals::default(),
            reads: Reads::new(first_request(start.epoch)),
            admins: Admins::default(),
            forward_after: None,
            not_leader: None,
            forwards: forwards::Forwards::default(),
            doubtful_list: None,
            strangers: BTreeMap::new(),
            removed_told: BTreeMap::new(),
            stand_ins: BTreeMap::new(),
            announced: None,
            attributes_in: None,
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
            DataState::Damaged(damaged) => {
                let founding = state.chosen.unwrap_or_else(|| Founding {
                    cluster: damaged.formed.cluster,
                    configured: Vec::new(),
                    members: damaged.formed.members.clone(),
                });
                driver.peer_epochs.clone_from(&damaged.peer_epochs);
                driver.begin_repair(founding, *damaged, now);
            }
        }
        Ok(driver)
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
        self.progress_repair(now, network);
        self.progress_mending(now, network);
        self.confirm_standing(now, network);
        self.ask_in_silence(now, network);
        self.tell_space(now, network);
        self.dispatch(now, network);
        self.work_off_ready(now, network);
        self.answer_reads();
        self.write_checkpoint();
        self.announce_attributes(now);
        self.progress_shutdown(now, network);
        self.check_list(now);
        self.finish_turn(now)
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
                if let Some(gate) = &mut self.gate {
                    gate.ask_at_once(now);
                }
                // Of two nodes of which one is empty each must be able to answer the other.
                let strangers = hello.cluster.is_none() || self.formation.is_some();
                // A member that has moved is answered at its new address, or it could never announce that. One that was
                // added while this node was away may lead by now: without an answer it could never bring this one up
                // to date.
                if strangers || self.is_not_known_at(&hello) {
                    self.add_caller(hello.address, hello.node);
                } else {
                    self.forget_caller(&hello.address);
                }
            }
            Input::Disconnected { node, stream, hint } => {
                self.on_disconnected(now, node, stream, hint)
            }
            Input::Refused(address, refused) => self.on_refused(&address, &refused),
            Input::Request(request) => self.on_request(now, request),
            Input::Log(epoch, completion) => self.on_log(now, epoch, completion, network),
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
        self.give_up_reads_behind(now);
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
        self.strangers.remove(&address);
        if let Some(formation) = &mut self.formation {
            formation.connected(now, hello.node, &address);
        }
        if let Some(raft) = &mut self.raft {
            raft.peer_connected(now, hello.node);
        }
        if let Some(gate) = &mut self.gate {
            gate.ask_at_once(now);
        }
        self.stand_ins.remove(&hello.node);
        self.connected.insert(hello.node, address);
        self.connections_changed();
    }

    fn is_not_known_at(&self, hello: &Hello) -> bool {
        let Some(raft) = &self.raft else { return false };
        let member = raft.membership().member(hello.node);
        let info = member.and_then(|member| MemberInfo::decode(&member.info));
        info.is_none_or(|info| info.peer_address != hello.address)
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
        if let Some(gate) = &mut self.gate {
            gate.gone(node);
        }
        self.stand_ins.retain(|_, stand_in| stand_in.node != node);
        self.connected.remove(&node);
        self.admins.forget_empty(node);
        self.connections_changed();
    }

    const fn connections_changed(&mut self) {
        self.view.connections_changed();
        // Whom a caller's address is expected to lead to depends on who is reached there.
        self.callers_changed += 1;
    }

    fn on_refused(&mut self, address: &str, refused: &Refused) {
        if refused.reason == RefusedReason::Removed && refused.by_peer {
            self.end(Err(NodeError::Removed));
        } else if refused.reason == RefusedReason::OtherIncarnation && refused.by_peer {
            self.become_amnesic(format!(
                "{address} knows this member with another data folder ({refused}): the folder was wiped or \
                 replaced. Restore it, or remove the member and add it anew"
            ));
        } else if refused.reason == RefusedReason::OtherCluster {
            self.on_other_cluster(address, refused);
        } else {
            debug!(address, %refused, "no connection");
        }
    }

    /// A configured member belongs to another cluster: one of the two has a wrong folder. It is this one when most of
    /// the configured members say so and none of the own cluster was met since the start.
    fn on_other_cluster(&mut self, address: &str, refused: &Refused) {
        let Some(founding) = &self.founding else { return };
        if !self.settings.peers.iter().any(|peer| peer == address) || self.gate.is_none() {
            return;
        }
        self.strangers.insert(address.to_owned(), refused.to_string());
        if self.strangers.len() > self.settings.peers.len() / 2 && self.connected.is_empty() {
            let path = self.settings.data_dir.clone();
            let said = std::mem::take(&mut self.strangers).into_iter().collect();
            let found = founding.cluster;
            self.end(Err(NodeError::Data(DataError::Outvoted { path, found, said })));
        }
    }

    fn on_log(
        &mut self,
        now: Time,
        epoch: u64,
        completion: LogCompletion,
        network: &mut impl Network,
    ) {
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
            LogCompletion::Supplied(to, supplies, snapshot) => {
                self.on_supplied(now, to, supplies, snapshot, network);
            }
            LogCompletion::Filled(missing) => self.on_filled(now, missing),
            LogCompletion::Reopened(state) => self.on_reopened(now, state),
            LogCompletion::Mended(path, offset, mend) => self.on_mended(now, &path, offset, mend),
            LogCompletion::Unrepairable(error) => self.on_unrepairable(error),
            LogCompletion::Full(is_full) => self.on_full(now, is_full),
            LogCompletion::Latched(latch) => {
                error!("{latch}: this node stops");
                // A short while to hand leadership over; nothing of its own is acknowledged any more.
                self.begin_stopping(now, self.settings.election_timeout_min, Err(latch.into()));
            }
        }
    }

    fn finish_turn(&mut self, now: Time) -> Outputs<S> {
        self.publish(now);
        let mut out = std::mem::take(&mut self.out);
        // Nobody is woken for what is applied while nobody waits for it; what is shown must become true all the same.
        let unheard =
            (self.applied < self.handed && !self.ended).then(|| now.after(APPLIED_HEARD_AFTER));
        out.deadline = self.deadline().into_iter().chain(unheard).min();
        out.waits_for_apply = self.reads.any_confirmed()
            || self.stopping.is_some()
            || self.handed.since(self.applied) >= APPLIED_UNHEARD_MAX;
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
            self.repair.as_ref().map(repair::Repair::deadline),
            self.mending.deadline(),
            self.space.deadline(),
            self.reads_behind_deadline(),
            self.silence_deadline(),
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

fn send_formation(network: &mut impl Network, to: NodeId, message: &FormationMessage) {
    trace!(%to, ?message, "formation");
    network.send(to, Stream::Control, PeerMessage::Formation(message.encode()));
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
