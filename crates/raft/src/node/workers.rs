//! The threads beside the raft thread: each runs one worker, fed by a channel, and answers through another one.

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use raft_core::StateMachine;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{debug, error};

use crate::apply::{ApplyCompletion, ApplyRequest, ApplyWorker};
use crate::disk::StdDisk;
use crate::error::NodeError;
use crate::log::scrub::{Scrubber, Step, Suspect};
use crate::log::snapshot::{SnapshotRequest, SnapshotWorker};
use crate::log::{LatchError, LogRequest, LogWorker};
use crate::meters::Meters;
use crate::node::Settings;
use crate::node::applied::AppliedSignal;
use crate::node::busy_poll::BusyPoll;
use crate::node::driver::{Input, SnapshotJob, run_snapshot_job};

/// The log is sealed (decision 9) when nothing came for this long: a seal must not stand in the way of a write.
const LOG_IDLE: Duration = Duration::from_millis(150);
/// Between two steps of the scrubber, however fast it may go: what was just being written is written by then.
const SCRUB_PAUSE: Duration = Duration::from_millis(5);
/// Between two passes, however little there is to read.
const SCRUB_PASS_PAUSE: Duration = Duration::from_secs(1);
/// A full disk is looked at again after this long.
const SPACE_RETRY: Duration = Duration::from_millis(200);

/// What the raft thread hears from the others: an input, or that the thread of this name died of a bug.
pub(super) type Heard<S> = Result<Input<S>, &'static str>;

/// Reports its thread's death, when it dies of a panic.
struct Watchdog<S: StateMachine> {
    name: &'static str,
    heard: UnboundedSender<Heard<S>>,
}

impl<S: StateMachine> Drop for Watchdog<S> {
    fn drop(&mut self) {
        if std::thread::panicking() && self.heard.send(Err(self.name)).is_err() {
            error!("{} died of a bug while the node was stopping", self.name);
        }
    }
}

/// The worker threads and the ways to them.
pub(super) struct Workers<S: StateMachine> {
    pub(super) log: UnboundedSender<LogRequest>,
    pub(super) apply: UnboundedSender<ApplyRequest<S>>,
    pub(super) snapshot: UnboundedSender<SnapshotJob<S::Snapshot>>,
    log_thread: JoinHandle<Result<(), LatchError>>,
    apply_thread: JoinHandle<()>,
    snapshot_thread: JoinHandle<()>,
    scrub: Option<Scrub>,
}

/// The thread that reads everything again, and what ends it when it is gone.
struct Scrub {
    stop: std::sync::mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl<S: StateMachine> Workers<S> {
    /// Starts them.
    pub(super) fn spawn(
        log: LogWorker<StdDisk>,
        apply: ApplyWorker<S>,
        snapshots: SnapshotWorker<StdDisk>,
        heard: &UnboundedSender<Heard<S>>,
        applied: AppliedSignal,
        settings: &Settings,
    ) -> std::io::Result<Self> {
        let (busy_poll, meters) = (settings.busy_poll, Arc::clone(&settings.meters));
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let watchdog = |name| Watchdog { name, heard: heard.clone() };
        let idle = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (log_requests, receiver) = unbounded_channel();
        let dog = watchdog("the log's thread");
        let log_thread = thread("raft-log").spawn(move || {
            log_thread(log, &idle, receiver, BusyPoll::new(busy_poll), (&dog, &meters))
        })?;
        let (apply_requests, receiver) = unbounded_channel();
        let dog = watchdog("the apply thread");
        let apply_thread =
            thread("raft-apply").spawn(move || apply_thread(apply, receiver, &applied, &dog))?;
        let (snapshot_jobs, receiver) = unbounded_channel();
        let dog = watchdog("the snapshot thread");
        let snapshot_thread =
            thread("raft-snapshot").spawn(move || snapshot_thread(snapshots, receiver, &dog))?;
        let scrub = if settings.scrub_bytes_per_second > 0 {
            let (stop, stopped) = std::sync::mpsc::channel();
            let scrubber = Scrubber::new(StdDisk, settings.data_dir.clone());
            let (rate, meters) = (settings.scrub_bytes_per_second, Arc::clone(&settings.meters));
            let (log, snapshots) = (log_requests.clone(), snapshot_jobs.clone());
            let run =
                move || scrub_thread::<S>(scrubber, rate, &stopped, (&log, &snapshots), &meters);
            Some(Scrub { stop, thread: thread("raft-scrub").spawn(run)? })
        } else {
            None
        };
        Ok(Self {
            log: log_requests,
            apply: apply_requests,
            snapshot: snapshot_jobs,
            log_thread,
            apply_thread,
            snapshot_thread,
            scrub,
        })
    }

    /// Lets them finish what they were given, and waits for that. The log is closed cleanly.
    pub(super) fn join(self) -> Result<(), NodeError> {
        let Self { log, apply, snapshot, log_thread, apply_thread, snapshot_thread, scrub } = self;
        // First: it holds ways to the others, who end when nobody can ask them any more.
        let scrub = scrub.map(|Scrub { stop, thread }| {
            drop(stop);
            thread.join()
        });
        drop((log, apply, snapshot));
        let log = log_thread.join();
        let apply = apply_thread.join();
        let snapshot = snapshot_thread.join();
        log.map_err(|_| NodeError::Panicked("the log's thread"))??;
        apply.map_err(|_| NodeError::Panicked("the apply thread"))?;
        snapshot.map_err(|_| NodeError::Panicked("the snapshot thread"))?;
        scrub.unwrap_or(Ok(())).map_err(|_| NodeError::Panicked("the scrub thread"))
    }
}

/// Waits for one, then takes everything that waits with it; false when no more will come.
fn gather<T>(receiver: &mut UnboundedReceiver<T>, batch: &mut Vec<T>) -> bool {
    let Some(first) = receiver.blocking_recv() else { return false };
    batch.push(first);
    while let Ok(next) = receiver.try_recv() {
        batch.push(next);
    }
    true
}

/// How long the log's thread waits for a request before it looks after the log; `None`: until one comes. Nobody
/// tells when a full disk has space again, and proposals are refused until it is noticed: it is looked at again and
/// again.
const fn pause(sealed: bool, waits_for_space: bool) -> Option<Duration> {
    match (sealed, waits_for_space) {
        (false, _) => Some(LOG_IDLE),
        (true, true) => Some(SPACE_RETRY),
        (true, false) => None,
    }
}

fn log_thread<S: StateMachine>(
    mut worker: LogWorker<StdDisk>,
    idle: &Runtime,
    mut requests: UnboundedReceiver<LogRequest>,
    mut poll: BusyPoll,
    (dog, meters): (&Watchdog<S>, &Meters),
) -> Result<(), LatchError> {
    let mut sealed = true;
    loop {
        poll.begin();
        while poll.stays_awake() && requests.is_empty() {}
        let first = match pause(sealed, worker.waits_for_space()) {
            None => requests.blocking_recv(),
            Some(pause) => {
                match idle.block_on(async { tokio::time::timeout(pause, requests.recv()).await }) {
                    Ok(first) => first,
                    Err(_) => {
                        sealed = true;
                        deliver_log(worker.idle(), &worker, dog);
                        continue;
                    }
                }
            }
        };
        let Some(first) = first else { return worker.close() };
        poll.end();
        sealed = false;
        let mut batch = vec![first];
        while let Ok(next) = requests.try_recv() {
            batch.push(next);
        }
        while !batch.is_empty() {
            // What is durable is told before old entries are read.
            let fetch = batch.iter().skip(1).position(|it| matches!(it, LogRequest::Fetch(_)));
            let later = batch.split_off(fetch.map_or(batch.len(), |nth| nth + 1));
            let writes = batch.iter().any(|it| matches!(it, LogRequest::Write(_)));
            let begun = Instant::now();
            let completions = worker.handle(batch);
            if writes {
                meters.log_writes.observe(begun.elapsed());
            }
            deliver_log(completions, &worker, dog);
            batch = later;
        }
        deliver_log(worker.housekeep(), &worker, dog);
    }
}

fn deliver_log<S: StateMachine>(
    completions: Vec<crate::log::LogCompletion>,
    worker: &LogWorker<StdDisk>,
    dog: &Watchdog<S>,
) {
    let epoch = worker.log().epoch();
    for completion in completions {
        if dog.heard.send(Ok(Input::Log(epoch, completion))).is_err() {
            debug!("the node stopped before a write was reported");
        }
    }
}

fn apply_thread<S: StateMachine>(
    mut worker: ApplyWorker<S>,
    mut requests: UnboundedReceiver<ApplyRequest<S>>,
    applied: &AppliedSignal,
    dog: &Watchdog<S>,
) {
    let mut batch = Vec::new();
    while gather(&mut requests, &mut batch) {
        for completion in worker.handle(std::mem::take(&mut batch)) {
            if let ApplyCompletion::Applied(index) = completion
                && !applied.advance(index)
            {
                continue;
            }
            if dog.heard.send(Ok(Input::Apply(completion))).is_err() {
                debug!("the node stopped before applied entries were reported");
            }
        }
    }
}

fn snapshot_thread<S: StateMachine>(
    mut worker: SnapshotWorker<StdDisk>,
    mut jobs: UnboundedReceiver<SnapshotJob<S::Snapshot>>,
    dog: &Watchdog<S>,
) {
    while let Some(job) = jobs.blocking_recv() {
        for done in run_snapshot_job(&mut worker, job) {
            if dog.heard.send(Ok(Input::Snapshot(done))).is_err() {
                debug!("the node stopped before a snapshot was reported");
            }
        }
    }
}

/// Reads everything again and again, no faster than `rate` bytes a second. Ends when `stopped` has no sender any more.
fn scrub_thread<S: StateMachine>(
    mut scrubber: Scrubber<StdDisk>,
    rate: u64,
    stopped: &std::sync::mpsc::Receiver<()>,
    (log, snapshots): (&UnboundedSender<LogRequest>, &UnboundedSender<SnapshotJob<S::Snapshot>>),
    meters: &Meters,
) {
    loop {
        let Step { bytes, suspect, pass_ended } = scrubber.step();
        let told = match suspect {
            None => true,
            Some(Suspect::Log(path, offset)) => log.send(LogRequest::Mend(path, offset)).is_ok(),
            Some(Suspect::Snapshot(path, offset)) => {
                let request = SnapshotRequest::Mend(path, offset);
                snapshots.send(SnapshotJob::Work(request)).is_ok()
            }
        };
        if pass_ended {
            // Nothing depends on what is gone.
            meters.damage.close(|damage| !damage.path.exists());
        }
        let micros = bytes.saturating_mul(1_000_000) / rate;
        let pause = Duration::from_micros(micros).max(SCRUB_PAUSE);
        let pause = if pass_ended { pause.max(SCRUB_PASS_PAUSE) } else { pause };
        let stays = matches!(stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout));
        if !told || !stays {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_looked_at_again_without_any_request() {
        assert_eq!(pause(true, true), Some(SPACE_RETRY));
        assert_eq!(pause(false, true), Some(LOG_IDLE));
        assert_eq!(pause(true, false), None, "an idle node sleeps");
    }
}
