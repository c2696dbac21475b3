//! The [`LeaseKeeper`] at work: hears what the store says, ends leases while this member leads.

use std::time::Duration;

use raft::Node;
use raft::core::Term;
use raft::io::Clock as _;
use raft::node::BootClock;
use raft_kv::{Command, Expiry, LeaseChanges, LeaseKeeper, Standing, Store};
use tokio::sync::{mpsc, oneshot};

/// The wait before ending leases is tried again after it failed.
const RETRY_WAIT: Duration = Duration::from_millis(100);

/// Asks what is left of a lease's seconds.
pub(in crate::etcd) struct RemainingRequest {
    pub(super) id: i64,
    pub(super) waiter: oneshot::Sender<Option<Duration>>,
}

impl crate::etcd::Etcd {
    /// What is left of a lease's seconds, as far as this member knows.
    pub(super) async fn remaining(&self, id: i64) -> Option<Duration> {
        let (waiter, answer) = oneshot::channel();
        self.remaining.send(RemainingRequest { id, waiter }).ok()?;
        answer.await.ok().flatten()
    }
}

/// Runs the keeper until the store is gone.
pub(in crate::etcd) async fn run(
    node: Node<Store>,
    changes: LeaseChanges,
    mut questions: mpsc::UnboundedReceiver<RemainingRequest>,
    election_timeout_max: Duration,
) {
    let mut keeper = LeaseKeeper::new(changes, election_timeout_max);
    let mut statuses = node.watch_status();
    let mut confirming = None;
    let (settled_sender, mut settled) = mpsc::unbounded_channel::<Vec<Expiry>>();
    loop {
        let now = BootClock.now();
        let wait = keeper.deadline(now).map(|deadline| deadline.since(now));
        tokio::select! {
            alive = std::future::poll_fn(|context| keeper.poll_heard(context, || BootClock.now())) => {
                if !alive {
                    return;
                }
            }
            changed = statuses.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            Some(question) = questions.recv() => {
                // Whoever asked may be gone.
                question.waiter.send(keeper.remaining(BootClock.now(), question.id)).ok();
            }
            (term, holds) = confirmed(&mut confirming) => {
                keeper.confirmed(BootClock.now(), term, holds);
                if holds {
                    tracing::debug!("ends leases in term {term}");
                }
            }
            Some(leases) = settled.recv() => keeper.settled(BootClock.now(), &leases),
            () = sleep(wait) => {
                if let Some((term, over)) = keeper.over(BootClock.now()) {
                    tokio::spawn(end(node.clone(), term, over, settled_sender.clone()));
                }
            }
        }
        let status = node.status();
        let (term, leader, leads) = (status.term, status.leader, status.is_leader());
        if let Some(term) = keeper.look(BootClock.now(), Standing { term, leader, leads }) {
            let (sender, answer) = oneshot::channel();
            tokio::spawn(confirm(node.clone(), term, sender));
            confirming = Some((term, answer));
        }
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// The outcome of the last [`confirm`], once there is one: of which term, and whether this member leads in it.
async fn confirmed(confirming: &mut Option<(Term, oneshot::Receiver<bool>)>) -> (Term, bool) {
    let Some((term, answer)) = confirming else { return std::future::pending().await };
    let outcome = (*term, answer.await.unwrap_or(false));
    *confirming = None;
    outcome
}

/// Waits until this member has committed something in the term that it leads.
async fn confirm(node: Node<Store>, term: Term, sender: oneshot::Sender<bool>) {
    let read = node.read_index().await;
    let status = node.status();
    let leads = read.is_ok() && status.is_leader() && status.term == term;
    if !leads {
        tokio::time::sleep(RETRY_WAIT).await;
    }
    // The keeper's task may have ended.
    sender.send(leads).ok();
}

/// Has leases ended, then says that this was tried.
async fn end(
    node: Node<Store>,
    term: Term,
    leases: Vec<Expiry>,
    settled: mpsc::UnboundedSender<Vec<Expiry>>,
) {
    match node.propose(Command::lease_expire(term, leases.clone())).await {
        Ok(Ok(raft_kv::Response::LeaseExpire(ended))) => {
            tracing::debug!("{} of {} leases ended", ended.len(), leases.len());
        }
        Ok(other) => tracing::error!("the store answered the end of leases with {other:?}"),
        Err(error) => {
            tracing::debug!("leases could not be ended: {error}");
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }
    // The keeper's task may have ended.
    settled.send(leases).ok();
}
