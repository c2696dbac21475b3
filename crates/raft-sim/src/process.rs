//! One member: a disk that outlives its processes, and the process that runs on it now: the production driver and
//! its three workers, whose work is done when the world says so.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use raft::apply::{ApplyRequest, ApplyWorker};
use raft::io::{Network, Stream};
use raft::log::snapshot::{SnapshotStore, SnapshotWorker};
use raft::log::{DataState, Identity, Log, LogOptions, LogRequest, LogWorker, Opened};
use raft::message::{Hello, PeerMessage};
use raft::node::Settings;
use raft::node::driver::{Driver, Input, SnapshotJob, Start};
use raft::node::first_request;
use raft_core::{ClusterId, EntryId, Incarnation, MemberId, NodeId, Rng, StateMachine as _, Time};
use raft_kv::Store;

use crate::disk::SimDisk;
use crate::profile::Profile;

type Picture = <Store as raft_core::StateMachine>::Snapshot;

/// Where every member keeps its data, each on a disk of its own.
pub(crate) const DIR: &str = "/data";

/// A member and its disk.
pub(crate) struct Machine {
    pub(crate) address: String,
    pub(crate) disk: SimDisk,
    pub(crate) settings: Settings,
    pub(crate) process: Option<Process>,
    /// Counts its processes: what was meant for an earlier one is void.
    pub(crate) life: u64,
    pub(crate) paused: bool,
    /// Its clock: rate in millionths, and origin.
    pub(crate) clock: (u64, u64),
    /// Restarted without data it would have this identity; a directory keeps its first one.
    fresh: Identity,
    pub(crate) rng: Rng,
}

/// A running process.
pub(crate) struct Process {
    pub(crate) driver: Driver<Store>,
    pub(crate) log: LogWorker<SimDisk>,
    pub(crate) apply: ApplyWorker<Store>,
    pub(crate) snapshots: SnapshotWorker<SimDisk>,
    pub(crate) inbox: Vec<Input<Store>>,
    pub(crate) log_queue: Vec<LogRequest>,
    pub(crate) apply_queue: Vec<ApplyRequest<Store>>,
    pub(crate) snapshot_queue: VecDeque<SnapshotJob<Picture>>,
    /// A worker has been told to work.
    pub(crate) log_busy: bool,
    pub(crate) apply_busy: bool,
    pub(crate) snapshot_busy: bool,
    /// When the driver wants to be called.
    pub(crate) deadline: Option<Time>,
    /// When the world will next look at that, in its own time.
    pub(crate) planned: Option<u64>,
    /// Whom it dials.
    pub(crate) dial: Vec<String>,
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) epoch: u64,
    pub(crate) last_durable: EntryId,
    pub(crate) epochs_seen: BTreeMap<NodeId, u64>,
    pub(crate) next_request: u64,
}

/// What a turn sends.
#[derive(Default)]
pub(crate) struct Sent(pub(crate) Vec<(NodeId, Stream, PeerMessage)>);

impl Network for Sent {
    fn send(&mut self, to: NodeId, stream: Stream, message: PeerMessage) {
        self.0.push((to, stream, message));
    }
}

impl Machine {
    pub(crate) fn new(number: u64, profile: &Profile, rng: &mut Rng) -> Self {
        let millis = Duration::from_millis;
        let address = address(number);
        let settings = Settings {
            data_dir: DIR.into(),
            address: address.clone(),
            peers: (1..=profile.members).map(self::address).collect(),
            election_timeout_min: millis(150),
            election_timeout_max: millis(300),
            heartbeat_interval: millis(50),
            request_timeout: Some(Duration::from_secs(3)),
            checkpoint_entries: profile.checkpoint_entries,
            trailing_entries: profile.trailing_entries,
            ..Settings::default()
        };
        let disk = SimDisk::new();
        let fresh = Identity {
            member: MemberId(rng.next_u64().max(1)),
            incarnation: Incarnation(u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64())),
        };
        Self {
            address,
            disk,
            settings,
            process: None,
            life: 0,
            paused: false,
            clock: (995_000 + rng.below(10_000), rng.below(1 << 40)),
            fresh,
            rng: rng.split(number),
        }
    }

    /// This machine's time when the world's is `at`.
    pub(crate) const fn local(&self, at: u64) -> Time {
        let (rate, origin) = self.clock;
        Time::from_micros(origin + at * rate / 1_000_000)
    }

    /// The world's time at which this machine's clock shows `time`, or soon after.
    pub(crate) fn global(&self, time: Time) -> u64 {
        let (rate, origin) = self.clock;
        let passed = time.as_micros().saturating_sub(origin);
        (passed.saturating_mul(1_000_000) / rate).saturating_add(2)
    }

    pub(crate) fn log_options(profile: &Profile) -> LogOptions {
        LogOptions { segment_bytes: profile.segment_bytes, ..LogOptions::default() }
    }

    /// Starts a process on what the disk holds, as the shell does.
    ///
    /// # Errors
    /// What recovery says; also when the machine stops in the middle of it.
    pub(crate) fn start(&mut self, profile: &Profile, now: u64) -> Result<(), String> {
        assert!(self.process.is_none(), "{} runs already", self.address);
        self.life += 1;
        let dir = Path::new(DIR);
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let options = Self::log_options(profile);
        let Opened { log, state } =
            Log::open(self.disk.clone(), dir, options, self.fresh).map_err(|error| text(&error))?;
        let store = SnapshotStore::open(self.disk.clone(), dir).map_err(|error| text(&error))?;
        let machine = Store::with_segment_bytes(profile.store_segment_bytes);
        let mut cluster = None;
        let mut epochs_seen = BTreeMap::new();
        let mut apply = None;
        if let DataState::Formed(formed) = &state {
            cluster = Some(formed.formed.cluster);
            epochs_seen.clone_from(&formed.peer_epochs);
            let snapshot = &formed.recovered.snapshot;
            if snapshot.last_included.index.0 > 0 {
                let source = store
                    .source(snapshot.last_included)
                    .ok_or_else(|| format!("snapshot {} is not there", snapshot.last_included))?;
                let restored = ApplyWorker::restored(
                    Store::with_segment_bytes(profile.store_segment_bytes),
                    snapshot,
                    &source,
                );
                apply = Some(restored.map_err(|error| text(&error))?);
            }
        }
        let apply = apply.unwrap_or_else(|| ApplyWorker::new(machine));
        let epoch = log.epoch();
        let last_durable = log.status().last;
        let start = Start { state, formation: log.formation_state(), epoch };
        let rng = self.rng.split(epoch);
        let driver = Driver::new(self.settings.clone(), start, rng, self.local(now))
            .map_err(|error| text(&error))?;
        self.process = Some(Process {
            driver,
            log: LogWorker::new(log),
            apply,
            snapshots: SnapshotWorker::new(store, first_request(epoch)),
            inbox: Vec::new(),
            log_queue: Vec::new(),
            apply_queue: Vec::new(),
            snapshot_queue: VecDeque::new(),
            log_busy: false,
            apply_busy: false,
            snapshot_busy: false,
            deadline: None,
            planned: None,
            dial: Vec::new(),
            cluster,
            epoch,
            last_durable,
            epochs_seen,
            next_request: first_request(epoch),
        });
        Ok(())
    }

    /// What a power loss now would leave: recovered on a copy of the disk, by the production code.
    pub(crate) fn audit(&self, profile: &Profile, seed: u64) -> Result<Opened<SimDisk>, String> {
        let disk = self.disk.fork();
        disk.crash(crate::disk::Crash::Power(seed));
        let options = Self::log_options(profile);
        Log::open(disk, Path::new(DIR), options, self.fresh).map_err(|error| error.to_string())
    }

    /// Who it is; its directory keeps its first identity for ever.
    pub(crate) const fn node(&self) -> NodeId {
        self.fresh.node()
    }
}

impl Process {
    /// What it says of itself when a connection begins.
    pub(crate) fn hello(&self, address: &str, to: Option<NodeId>) -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            cluster: self.cluster,
            node: self.driver.node(),
            address: address.to_owned(),
            epoch: self.epoch,
            last_durable: self.last_durable,
            epoch_seen: to.and_then(|to| self.epochs_seen.get(&to)).copied().unwrap_or(0),
        }
    }

    pub(crate) fn digest(&self) -> raft_core::Digest {
        self.apply.machine().digest()
    }
}

pub(crate) fn address(number: u64) -> String {
    format!("n{number}")
}
