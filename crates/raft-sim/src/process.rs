//! One member: a disk that outlives its processes, and the process that runs on it now: the production driver and
//! its three workers, whose work is done when the world says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use raft::apply::{ApplyRequest, ApplyWorker};
use raft::io::{Network, Stream};
use raft::log::snapshot::{SnapshotStore, SnapshotWorker};
use raft::log::{
    DataState, Identity, Log, LogOptions, LogRequest, LogWorker, Opened, RecoveryReport,
};
use raft::message::{Hello, PeerMessage};
use raft::node::Settings;
use raft::node::driver::{Driver, Input, SnapshotJob, Start};
use raft::node::first_request;
use raft::transport::{Facts, PeerAddress, RefusedReason};
use raft_core::{
    EntryId, Incarnation, MemberId, Membership, NodeId, Rng, StateMachine, Time, mutant,
};

use crate::attend::Services;
use crate::audit::AtRest;
use crate::clock::Clock;
use crate::disk::SimDisk;
use crate::profile::Profile;

/// Where every member keeps its data, each on a disk of its own.
pub(crate) const DIR: &str = "/data";

/// A member and its disk.
pub(crate) struct Machine<S: StateMachine> {
    pub(crate) address: String,
    pub(crate) disk: SimDisk,
    pub(crate) settings: Settings,
    pub(crate) process: Option<Process<S>>,
    /// Counts its processes: what was meant for an earlier one is void.
    pub(crate) life: u64,
    pub(crate) paused: bool,
    pub(crate) clock: Clock,
    /// The identity of its present disk's directory: a directory keeps its first one.
    fresh: Identity,
    pub(crate) rng: Rng,
    /// The configuration in force here after its last turn.
    pub(crate) membership: Option<Arc<Membership>>,
    /// What its log holds while no process runs, once somebody has looked.
    pub(crate) at_rest: Option<AtRest>,
    /// Digests of the disks that it had before this one.
    traces: u64,
}

/// A running process.
pub(crate) struct Process<S: StateMachine> {
    pub(crate) driver: Driver<S>,
    pub(crate) log: LogWorker<SimDisk>,
    pub(crate) apply: ApplyWorker<S>,
    pub(crate) snapshots: SnapshotWorker<SimDisk>,
    pub(crate) inbox: Vec<Input<S>>,
    /// How far the state machine is, while the driver does not want to be woken for that.
    pub(crate) unheard: Option<Input<S>>,
    pub(crate) waits_for_apply: bool,
    pub(crate) log_queue: Vec<LogRequest>,
    pub(crate) apply_queue: Vec<ApplyRequest<S>>,
    pub(crate) snapshot_queue: VecDeque<SnapshotJob<S::Snapshot>>,
    /// A worker has been told to work.
    pub(crate) log_busy: bool,
    pub(crate) apply_busy: bool,
    pub(crate) snapshot_busy: bool,
    /// When the driver wants to be called.
    pub(crate) deadline: Option<Time>,
    /// When the world will next look at that, in its own time.
    pub(crate) planned: Option<u64>,
    /// When its log will have been idle long enough to be looked after, and whether somebody will look then.
    pub(crate) log_idle_from: u64,
    pub(crate) log_idle_planned: bool,
    /// Whom it dials.
    pub(crate) dial: Vec<PeerAddress>,
    /// It will dial again.
    pub(crate) dial_planned: bool,
    /// Why it has no connection to whom, as it was told last.
    pub(crate) refused: BTreeMap<String, (RefusedReason, bool)>,
    /// What it knows when somebody connects.
    pub(crate) facts: Facts,
    pub(crate) epoch: u64,
    pub(crate) last_durable: EntryId,
    pub(crate) next_request: u64,
    pub(crate) services: Services,
}

/// What a turn sends.
#[derive(Default)]
pub(crate) struct Sent(pub(crate) Vec<(NodeId, Stream, PeerMessage)>);

impl Network for Sent {
    fn send(&mut self, to: NodeId, stream: Stream, message: PeerMessage) {
        self.0.push((to, stream, message));
    }
}

impl<S: StateMachine> Machine<S> {
    pub(crate) fn new(number: u64, profile: &Profile, rng: &mut Rng) -> Self {
        let millis = Duration::from_millis;
        let address = address(number);
        let members = (1..=profile.members).map(self::address).collect();
        let first = number <= profile.members;
        let (peers, join) = if first { (members, Vec::new()) } else { (Vec::new(), members) };
        let nth = usize::try_from(number).unwrap_or_default() % profile.checkpoints.len();
        let (checkpoint_entries, trailing_entries) = profile.checkpoints[nth];
        let settings = Settings {
            data_dir: DIR.into(),
            address: address.clone(),
            peers,
            join,
            election_timeout_min: millis(150),
            election_timeout_max: millis(300),
            heartbeat_interval: millis(50),
            request_timeout: Some(Duration::from_secs(3)),
            checkpoint_entries,
            trailing_entries,
            append_entries_max: profile.append_entries,
            append_bytes_max: profile.append_bytes,
            inflight_messages_max: profile.inflight_messages,
            // Else the operator sees to it.
            readmit_after: rng.chance(1, 2).then(|| millis(100 + rng.below(1000))),
            ..Settings::default()
        };
        let fresh = mint(rng);
        let drift = profile.drift_ppm;
        let disk = SimDisk::new();
        if profile.misplaced > 0 {
            disk.remember_writes();
        }
        Self {
            address,
            disk,
            settings,
            process: None,
            life: 0,
            paused: false,
            clock: Clock::new(1_000_000 - drift / 2 + rng.below(drift), rng.below(1 << 40)),
            fresh,
            rng: rng.split(number),
            membership: None,
            at_rest: None,
            traces: 0,
        }
    }

    /// Its disk is lost; it gets an empty one. With `joins` whoever runs it says that it waits to be added.
    pub(crate) fn wipe(&mut self, joins: bool) {
        assert!(self.process.is_none(), "{} runs on its disk", self.address);
        self.traces = self.trace();
        self.disk = self.disk.replacement();
        self.at_rest = None;
        if !mutant::is_active(30) {
            self.fresh = mint(&mut self.rng);
        }
        let Settings { peers, join, .. } = &mut self.settings;
        if joins {
            join.append(peers);
        } else {
            peers.append(join);
        }
    }

    /// The digest of everything that its disks were given.
    pub(crate) fn trace(&self) -> u64 {
        (self.traces ^ self.disk.trace()).wrapping_mul(0x0000_0100_0000_01B3)
    }

    pub(crate) fn log_options(profile: &Profile) -> LogOptions {
        // Whole pages for each batch where a power loss tears whole pages.
        let batch_alignment = if profile.page_tears { 4096 } else { 512 };
        LogOptions { segment_bytes: profile.segment_bytes, batch_alignment }
    }

    /// Starts a process on what the disk holds, as the shell does, with an empty state machine. What recovery had to
    /// do, if it is a member.
    ///
    /// # Errors
    /// What recovery says; also when the machine stops in the middle of it.
    pub(crate) fn start(
        &mut self,
        profile: &Profile,
        now: u64,
        machine: S,
    ) -> Result<Option<RecoveryReport>, String> {
        assert!(self.process.is_none(), "{} runs already", self.address);
        self.life += 1;
        self.membership = None;
        self.at_rest = None;
        let dir = Path::new(DIR);
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let options = Self::log_options(profile);
        let Opened { log, state } =
            Log::open(self.disk.clone(), dir, options, self.fresh).map_err(|error| text(&error))?;
        let store = SnapshotStore::open(self.disk.clone(), dir).map_err(|error| text(&error))?;
        let mut facts = Facts {
            node: self.node(),
            cluster: None,
            members: BTreeSet::new(),
            removed: BTreeSet::new(),
            epochs_seen: BTreeMap::new(),
        };
        let mut report = None;
        let mut source = None;
        let member = match &state {
            DataState::Formed(it) => {
                report = Some(it.report.clone());
                Some((&it.formed, &it.peer_epochs, &it.recovered.snapshot))
            }
            DataState::Damaged(it) => {
                report = Some(RecoveryReport::default());
                Some((&it.formed, &it.peer_epochs, &it.snapshot))
            }
            DataState::Empty { .. } => None,
        };
        if let Some((formed, epochs, snapshot)) = member {
            facts.cluster = Some(formed.cluster);
            facts.epochs_seen.clone_from(epochs);
            if snapshot.last_included.index.0 > 0 {
                let found = store
                    .source(snapshot.last_included)
                    .ok_or_else(|| format!("snapshot {} is not there", snapshot.last_included))?;
                source = Some((snapshot.clone(), found));
            }
        }
        let apply = match source {
            Some((snapshot, source)) => {
                ApplyWorker::restored(machine, &snapshot, &source).map_err(|error| text(&error))?
            }
            None => ApplyWorker::new(machine),
        };
        let epoch = log.epoch();
        let last_durable = log.status().last;
        let start = Start { state, formation: log.formation_state(), epoch };
        let rng = self.rng.split(epoch);
        let driver = Driver::new(self.settings.clone(), start, rng, self.clock.local(now))
            .map_err(|error| text(&error))?;
        self.process = Some(Process {
            driver,
            log: LogWorker::new(log),
            apply,
            snapshots: SnapshotWorker::new(store, first_request(epoch)),
            inbox: Vec::new(),
            unheard: None,
            waits_for_apply: false,
            log_queue: Vec::new(),
            apply_queue: Vec::new(),
            snapshot_queue: VecDeque::new(),
            log_busy: false,
            apply_busy: false,
            snapshot_busy: false,
            deadline: None,
            planned: None,
            log_idle_from: 0,
            log_idle_planned: false,
            dial: Vec::new(),
            dial_planned: false,
            refused: BTreeMap::new(),
            facts,
            epoch,
            last_durable,
            next_request: first_request(epoch),
            services: Services::default(),
        });
        Ok(report)
    }

    /// What a power loss now would leave: recovered on a copy of the disk, by the production code.
    pub(crate) fn audit(&self, profile: &Profile, seed: u64) -> Result<Opened<SimDisk>, String> {
        let disk = self.disk.fork();
        disk.crash(crate::disk::Crash::Power(seed));
        let options = Self::log_options(profile);
        Log::open(disk, Path::new(DIR), options, self.fresh).map_err(|error| error.to_string())
    }

    /// The limits of its log.
    pub(crate) fn options(&self, profile: &Profile) -> LogOptions {
        Self::log_options(profile)
    }

    /// The identity of its present disk's directory.
    pub(crate) const fn identity(&self) -> Identity {
        self.fresh
    }

    /// Who it is, with its present disk.
    pub(crate) const fn node(&self) -> NodeId {
        self.fresh.node()
    }
}

impl<S: StateMachine> Process<S> {
    /// What it says of itself when a connection begins.
    pub(crate) fn hello(&self, address: &str, to: Option<NodeId>) -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            cluster: self.facts.cluster,
            node: self.driver.node(),
            address: address.to_owned(),
            epoch: self.epoch,
            last_durable: self.last_durable,
            epoch_seen: to.and_then(|to| self.facts.epochs_seen.get(&to)).copied().unwrap_or(0),
        }
    }

    pub(crate) fn digest(&self) -> raft_core::Digest {
        self.apply.machine().digest()
    }
}

fn mint(rng: &mut Rng) -> Identity {
    let member = MemberId(rng.next_u64().max(1));
    let incarnation = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
    Identity { member, incarnation: Incarnation(incarnation) }
}

pub(crate) fn address(number: u64) -> String {
    format!("n{number}")
}
