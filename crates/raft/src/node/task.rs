//! The tokio shell: threads, channels, timers. Nothing is decided here.
//!
//! Four threads, each owned, named and joined: the raft thread (the driver and all peer connections, on a
//! current-thread runtime), the log's, the apply thread and the snapshot thread. They talk through channels; the only
//! thing shared is what the handle reads, and that is atomic. Batching falls out of "a turn handles whatever waited":
//! while the log's thread syncs one batch, the next one gathers in its queue.

use std::fs::File;
use std::io::Read as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use raft_core::{Incarnation, Index, MemberId, Rng, SnapshotError, StateMachine, Time};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, Sleep};
use tracing::{info, warn};

use crate::apply::{ApplyCompletion, ApplyWorker};
use crate::disk::StdDisk;
use crate::entry_header::HEADER_BYTES;
use crate::error::{DataError, NodeError};
use crate::io::Clock;
use crate::log::snapshot::{SnapshotStore, SnapshotWorker};
use crate::log::{
    Belongs, DataState, Identity, Log, LogOptions, LogWorker, Opened, RecoveryReport,
};
use crate::node::applied::AppliedSignal;
use crate::node::belonging;
use crate::node::busy_poll::BusyPoll;
use crate::node::driver::{Configurations, Driver, Input, Outputs, Start};
use crate::node::request::{Budget, Request, first_request};
use crate::node::workers::{Heard, Workers};
use crate::node::{Ended, Node, Settings, Shared, Status, rebuild};
use crate::transport::{self, Credit, Event, Local, TcpNetwork, Transport};

/// Inputs of one turn; the others wait for the next one.
const TURN_INPUTS_MAX: usize = 4096;
/// `CLOCK_BOOTTIME`: monotonic, and it goes on while the machine sleeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Time {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let micros = u64::try_from(now.tv_nsec).unwrap_or(0) / 1000;
        Time::from_micros(seconds.saturating_mul(1_000_000).saturating_add(micros))
    }
}

/// Tells everyone how the node ended; that it died when nobody said so before.
struct EndGuard {
    ended: watch::Sender<Option<Ended>>,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.ended.send_if_modified(|ended| {
            let died = ended.is_none();
            if died {
                *ended = Some(Err(Arc::new(NodeError::Panicked("the raft thread"))));
            }
            died
        });
    }
}

/// Starts the threads of a node; returns once its data is recovered and it listens.
pub(crate) async fn start<S: StateMachine>(
    machine: S,
    settings: Settings,
) -> Result<Node<S>, NodeError> {
    let (started, answer) = oneshot::channel();
    let (ended, watch_ended) = watch::channel(None);
    let spawned = std::thread::Builder::new().name(String::from("raft")).spawn(move || {
        let guard = EndGuard { ended };
        let outcome = raft_thread(machine, settings, started, watch_ended);
        guard.ended.send_replace(Some(outcome.map_err(Arc::new)));
    });
    if let Err(source) = spawned {
        let path = std::path::PathBuf::from("raft");
        return Err(NodeError::Data(DataError::Io { path, action: "start the thread", source }));
    }
    answer.await.unwrap_or(Err(NodeError::Panicked("the raft thread")))
}

/// Everything that the raft thread runs on.
struct Opening<S: StateMachine> {
    driver: Driver<S>,
    log: LogWorker<StdDisk>,
    apply: ApplyWorker<S>,
    snapshots: SnapshotWorker<StdDisk>,
    local: Local,
    peer_epochs: Vec<(raft_core::NodeId, u64)>,
}

fn open_log(
    settings: &Settings,
    rng: &mut Rng,
    incarnation: Incarnation,
) -> Result<Opened<StdDisk>, NodeError> {
    let member = MemberId::drawn(rng.next_u64());
    let fresh = Identity { member, incarnation };
    let check = |data: &Belongs<'_>| belonging::check(settings, data);
    let options = LogOptions { segment_bytes: settings.log_segment_bytes, ..LogOptions::default() };
    Log::open_if(StdDisk, &settings.data_dir, options, fresh, check).map_err(NodeError::Data)
}

fn open<S: StateMachine>(machine: S, settings: &mut Settings) -> Result<Opening<S>, NodeError> {
    let (random, incarnation) = fresh_numbers()?;
    let mut rng = Rng::new(random);
    let began = BootClock.now();
    let Opened { log, state } = match open_log(settings, &mut rng, incarnation) {
        Ok(opened) => opened,
        Err(error) => {
            rebuild::set_aside(settings, error)?;
            open_log(settings, &mut rng, incarnation)?
        }
    };
    rebuild::join_after(settings, &state);
    note_damage(settings, &state);
    let dir = &settings.data_dir;
    let store = SnapshotStore::open(StdDisk, dir).map_err(NodeError::Snapshot)?;
    let mut local =
        Local { epoch: log.epoch(), last_durable: log.status().last, ..Local::default() };
    let mut peer_epochs = Vec::new();
    let mut apply = None;
    let read = BootClock.now();
    let member = match &state {
        DataState::Formed(it) => Some((&it.formed, &it.peer_epochs, &it.recovered.snapshot)),
        DataState::Damaged(it) => Some((&it.formed, &it.peer_epochs, &it.snapshot)),
        DataState::Empty { .. } => None,
    };
    if let Some((formed, epochs, snapshot)) = member {
        local.cluster = Some(formed.cluster);
        peer_epochs.extend(epochs.iter().map(|(node, epoch)| (*node, *epoch)));
        if snapshot.last_included.index.0 > 0 {
            let Some(source) = store.source(snapshot.last_included) else {
                let what = format!("snapshot {} is not there", snapshot.last_included);
                return Err(NodeError::Snapshot(SnapshotError::Undecodable(what)));
            };
            apply = Some((snapshot.clone(), source));
        }
    }
    let apply = match apply {
        Some((snapshot, source)) => {
            ApplyWorker::restored(machine, &snapshot, &source).map_err(damaged_snapshot)?
        }
        None => ApplyWorker::new(machine),
    };
    if let DataState::Formed(formed) = &state {
        let restored = BootClock.now();
        info!(
            entries = formed.recovered.entries.len(),
            segments = formed.report.segments,
            unclean = formed.unclean,
            log_ms = read.since(began).as_millis(),
            snapshot = %formed.recovered.snapshot.last_included,
            state_ms = restored.since(read).as_millis(),
            "recovered"
        );
    }
    let start = Start { state, formation: log.formation_state(), epoch: log.epoch() };
    let driver = Driver::new(settings.clone(), start, rng.split(0), BootClock.now())?;
    let snapshots = SnapshotWorker::new(store, first_request(log.epoch()));
    let log = LogWorker::new(log);
    Ok(Opening { driver, log, apply, snapshots, local, peer_epochs })
}

/// Counts what recovery has found damaged, and what became of it.
fn note_damage(settings: &Settings, state: &DataState) {
    let damage = &settings.meters.damage;
    damage.set_folders_aside(rebuild::set_aside_folders(&settings.data_dir).len());
    let DataState::Formed(formed) = state else { return };
    let RecoveryReport { repaired, superseded, damaged_manifests, .. } = &formed.report;
    for (path, offset) in repaired {
        damage.found(path, *offset, "a batch of the log");
        damage.repaired(path, *offset);
    }
    let manifests = damaged_manifests.iter().map(|path| (path, &0));
    for (path, offset) in superseded.iter().map(|(path, offset)| (path, offset)).chain(manifests) {
        warn!(path = %path.display(), offset, "what is damaged there is not needed");
        damage.found(path, *offset, "covered by a snapshot");
        damage.close(|it| it.path == *path && it.offset == *offset);
    }
}

/// A damaged blob was set aside when it was read: the next start takes an older snapshot, or finds that none is left.
fn damaged_snapshot(error: NodeError) -> NodeError {
    if let NodeError::Snapshot(damage @ (SnapshotError::Damaged(_) | SnapshotError::Missing(_))) =
        error
    {
        return NodeError::SetAside(format!("{damage}; it is set aside"));
    }
    error
}

/// Numbers that no other node has: from the operating system.
pub(super) fn fresh_numbers() -> Result<(u64, Incarnation), NodeError> {
    let mut bytes = [0u8; 24];
    let path = std::path::Path::new("/dev/urandom");
    File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(|source| {
        NodeError::Data(DataError::Io { path: path.to_path_buf(), action: "read", source })
    })?;
    let (mut seed, mut incarnation) = ([0u8; 8], [0u8; 16]);
    seed.copy_from_slice(&bytes[..8]);
    incarnation.copy_from_slice(&bytes[8..]);
    Ok((u64::from_le_bytes(seed), Incarnation(u128::from_le_bytes(incarnation))))
}

fn raft_thread<S: StateMachine>(
    machine: S,
    mut settings: Settings,
    started: oneshot::Sender<Result<Node<S>, NodeError>>,
    ended: watch::Receiver<Option<Ended>>,
) -> Result<(), NodeError> {
    // A failure to start is told to whoever starts; who only watches the end sees a node that ended well.
    let fail = |started: oneshot::Sender<_>, error| {
        drop(started.send(Err(error)));
        Ok(())
    };
    let opening = match open(machine, &mut settings) {
        Ok(opening) => opening,
        Err(error) => return fail(started, error),
    };
    // Tasks that wake each other on a `LocalRuntime` cost no system call; those of a `LocalSet` do.
    let options = LocalOptions::default();
    let runtime = match Builder::new_current_thread().enable_all().build_local(options) {
        Ok(runtime) => runtime,
        Err(source) => {
            let path = settings.data_dir;
            let error = DataError::Io { path, action: "start the runtime for", source };
            return fail(started, NodeError::Data(error));
        }
    };
    // A task of its own, for the same reason: whatever wakes the outermost future wakes the whole thread.
    let task = runtime.spawn_local(run(opening, settings.clone(), started, ended));
    let outcome = runtime.block_on(task);
    let outcome = outcome.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()));
    rebuild::after_end(&settings, outcome)
}

/// What the raft thread's loop listens to.
struct Ears<S: StateMachine> {
    requests: UnboundedReceiver<Request<S>>,
    heard: UnboundedReceiver<Heard<S>>,
    events: UnboundedReceiver<Event>,
    applied: AppliedSignal,
    /// As the driver was told last.
    known_applied: Index,
    alarm: Alarm,
    poll: BusyPoll,
    /// The last handle is gone: shut down, once.
    abandoned: bool,
}

/// One turn's inputs.
struct Batch<S: StateMachine> {
    inputs: Vec<Input<S>>,
    /// Returned when the messages have been processed.
    credits: Vec<Credit>,
    panicked: Option<&'static str>,
}

impl<S: StateMachine> Batch<S> {
    fn heard(&mut self, heard: Heard<S>) {
        match heard {
            Ok(input) => self.inputs.push(input),
            Err(name) => self.panicked = Some(name),
        }
    }

    fn event(&mut self, event: Event) {
        self.inputs.push(match event {
            Event::Connected { hello, address, stream } => {
                Input::Connected { hello, address, stream }
            }
            Event::Disconnected { node, stream, hint } => {
                Input::Disconnected { node, stream, hint }
            }
            Event::Accepted { hello, .. } => Input::Accepted(hello),
            Event::Message { from, epoch, message, credit, .. } => {
                self.credits.push(credit);
                Input::Message { from, epoch, message }
            }
            Event::Refused { address, refused } => Input::Refused(address, refused),
        });
    }
}

/// When to wake without any input. Moving a timer costs a system call: one that was put off keeps ringing at the
/// earlier time, and then there is nothing to do.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    rings_at: Option<Time>,
}

impl Alarm {
    fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), rings_at: None }
    }

    fn ring_by(&mut self, deadline: Time, now: Time) {
        // One that rang while the machine slept, by its own clock, comes too late.
        if self.rings_at.is_none_or(|at| deadline < at || at <= now) {
            self.sleep.as_mut().reset(Instant::now() + deadline.since(now));
            self.rings_at = Some(deadline);
        }
    }
}

/// Until when the next turn can wait.
struct Patience {
    deadline: Option<Time>,
    /// Not beyond the application of another entry.
    waits_for_apply: bool,
}

impl Patience {
    const fn of<S: StateMachine>(out: &Outputs<S>) -> Self {
        Self { deadline: out.deadline, waits_for_apply: out.waits_for_apply }
    }
}

impl<S: StateMachine> Ears<S> {
    /// Whether [`listen`](Self::listen) would return at once.
    fn something_waits(&self) -> bool {
        !self.heard.is_empty() || !self.events.is_empty() || !self.requests.is_empty()
    }

    /// Waits until something happens or the deadline comes, then takes everything that waits.
    async fn listen(&mut self, patience: &Patience, batch: &mut Batch<S>) {
        let waits_for_apply = patience.waits_for_apply;
        let mut waits = !self.applied.wait_for_more_than(self.known_applied, waits_for_apply);
        if let Some(deadline) = patience.deadline {
            let now = BootClock.now();
            waits &= now < deadline;
            self.alarm.ring_by(deadline, now);
        }
        if waits && !self.something_waits() {
            self.poll.begin();
            let in_time = || patience.deadline.is_none_or(|deadline| BootClock.now() < deadline);
            while self.poll.stays_awake() && in_time() && !self.something_waits() {
                // Looks at the sockets, too.
                tokio::task::yield_now().await;
            }
            self.wait(batch).await;
            self.poll.end();
        } else {
            // Something always waits under load: the connections' tasks on this thread get their turn too.
            tokio::task::yield_now().await;
        }
        let applied = self.applied.applied();
        if applied > self.known_applied {
            self.known_applied = applied;
            // Before a request, which may be refused for what waits to be applied.
            batch.inputs.insert(0, Input::Apply(ApplyCompletion::Applied(applied)));
        }
        while batch.inputs.len() < TURN_INPUTS_MAX {
            let before = batch.inputs.len();
            if let Ok(heard) = self.heard.try_recv() {
                batch.heard(heard);
            }
            if let Ok(event) = self.events.try_recv() {
                batch.event(event);
            }
            match self.requests.try_recv() {
                Ok(request) => batch.inputs.push(Input::Request(request)),
                Err(TryRecvError::Disconnected) => self.abandon(batch),
                Err(TryRecvError::Empty) => {}
            }
            if batch.inputs.len() == before {
                break;
            }
        }
    }

    /// The last handle is gone.
    fn abandon(&mut self, batch: &mut Batch<S>) {
        if !std::mem::replace(&mut self.abandoned, true) {
            batch.inputs.push(Input::Request(Request::Shutdown));
        }
    }

    async fn wait(&mut self, batch: &mut Batch<S>) {
        tokio::select! {
            Some(heard) = self.heard.recv() => batch.heard(heard),
            Some(event) = self.events.recv() => batch.event(event),
            request = self.requests.recv(), if !self.abandoned => match request {
                Some(request) => batch.inputs.push(Input::Request(request)),
                None => self.abandon(batch),
            },
            () = &mut self.alarm.sleep, if self.alarm.rings_at.is_some() => self.alarm.rings_at = None,
        }
    }
}

async fn run<S: StateMachine>(
    opening: Opening<S>,
    settings: Settings,
    started: oneshot::Sender<Result<Node<S>, NodeError>>,
    ended: watch::Receiver<Option<Ended>>,
) -> Result<(), NodeError> {
    let Opening { mut driver, log, apply, snapshots, local, peer_epochs } = opening;
    let node = driver.node();
    let epoch = local.epoch;
    let transport_settings = transport::Settings {
        node,
        group: raft_core::GroupId::FIRST,
        address: settings.address.clone(),
        listen: (!settings.external_listener).then(|| settings.address.clone()),
        cluster_secret: settings.cluster_secret.clone(),
        security: settings.security.clone(),
        meters: Arc::clone(&settings.meters),
    };
    let (mut transport, mut network, events) =
        match Transport::start(transport_settings, local).await {
            Ok(parts) => parts,
            Err(error) => {
                drop(started.send(Err(error)));
                return Ok(());
            }
        };
    for (peer, epoch) in peer_epochs {
        network.set_epoch_seen(peer, epoch);
    }
    let (heard_sender, heard) = unbounded_channel();
    let applied = AppliedSignal::default();
    let workers =
        match Workers::spawn(log, apply, snapshots, &heard_sender, applied.clone(), &settings) {
            Ok(workers) => workers,
            Err(source) => {
                let path = settings.data_dir;
                let error = DataError::Io { path, action: "start the threads for", source };
                drop(started.send(Err(NodeError::Data(error))));
                return Ok(());
            }
        };
    let (requests_sender, requests) = unbounded_channel();
    let first_status = Arc::new(Status::empty(node));
    let status = Arc::new(ArcSwap::new(Arc::clone(&first_status)));
    let (watch_sender, watch) = watch::channel(first_status);
    let handle = Node::from_shared(Shared {
        requests: requests_sender,
        acceptor: transport.acceptor(),
        budget: Budget::new(settings.queue_bytes_max),
        payload_bytes_max: settings.command_bytes_max + HEADER_BYTES,
        node,
        next_request: AtomicU64::new(first_request(epoch)),
        status: Arc::clone(&status),
        watch,
        ended,
    });
    let mut shown =
        Shown { status, watch: watch_sender, epoch, last_durable: raft_core::EntryId::ZERO };
    // The first turn publishes the recovered state before anybody can look.
    let mut out = driver.turn(BootClock.now(), [], &mut network);
    let mut patience = Patience::of(&out);
    let mut end = carry_out(&mut out, &mut transport, &network, &workers, &mut shown);
    drop(started.send(Ok(handle)));

    let mut ears = Ears {
        requests,
        heard,
        events,
        applied,
        known_applied: Index::ZERO,
        alarm: Alarm::new(),
        poll: BusyPoll::new(settings.busy_poll),
        abandoned: false,
    };
    let mut batch = Batch { inputs: Vec::new(), credits: Vec::new(), panicked: None };
    let outcome = loop {
        if let Some(outcome) = end.take() {
            break outcome;
        }
        ears.listen(&patience, &mut batch).await;
        if let Some(name) = batch.panicked {
            break Err(NodeError::Panicked(name));
        }
        let mut out = driver.turn(BootClock.now(), batch.inputs.drain(..), &mut network);
        batch.credits.clear();
        patience = Patience::of(&out);
        end = carry_out(&mut out, &mut transport, &network, &workers, &mut shown);
    };
    // In this order: nobody asks any more, peers are told, what was given to the threads is finished, the log closed.
    drop(ears);
    transport.shutdown().await;
    let joined = workers.join();
    outcome.and(joined)
}

/// What the outside sees.
struct Shown {
    status: Arc<ArcSwap<Status>>,
    watch: watch::Sender<Arc<Status>>,
    epoch: u64,
    last_durable: raft_core::EntryId,
}

impl Shown {
    fn publish(&self, status: Arc<Status>) {
        self.status.store(Arc::clone(&status));
        self.watch.send_if_modified(|shown| {
            let differs = shown.differs_beyond_positions(&status);
            if differs {
                *shown = status;
            }
            differs
        });
    }
}

/// Hands everything that a turn wants to whoever does it. The outcome, when the node has ended.
fn carry_out<S: StateMachine>(
    out: &mut Outputs<S>,
    transport: &mut Transport,
    network: &TcpNetwork,
    workers: &Workers<S>,
    shown: &mut Shown,
) -> Option<Result<(), NodeError>> {
    // A thread that is gone has reported its death; the next turn deals with it.
    for request in out.log.drain(..) {
        drop(workers.log.send(request));
    }
    network.flush();
    for request in out.apply.drain(..) {
        drop(workers.apply.send(request));
    }
    for job in out.snapshot.drain(..) {
        drop(workers.snapshot.send(job));
    }
    if let Some(cluster) = out.formed.take() {
        network.set_cluster(cluster);
    }
    if let Some(Configurations { in_force, committed }) = out.membership.take() {
        network.set_membership(&in_force, &committed);
    }
    for node in out.disconnect.drain(..) {
        network.disconnect(node);
    }
    if out.epoch != shown.epoch {
        shown.epoch = out.epoch;
        network.set_epoch(out.epoch);
    }
    if out.last_durable != shown.last_durable {
        shown.last_durable = out.last_durable;
        network.set_last_durable(out.last_durable);
    }
    for (peer, epoch) in out.peer_epochs.drain(..) {
        network.set_epoch_seen(peer, epoch);
    }
    if let Some(dial) = out.dial.take() {
        transport.set_peers(dial);
    }
    if let Some(status) = out.status.take() {
        shown.publish(status);
    }
    out.end.take()
}
