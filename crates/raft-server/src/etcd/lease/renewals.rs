//! Renewals in batches: one round through the log at a time, for everything that waited.

use std::time::Duration;

use raft::Node;
use raft_kv::{Command, LeaseSlack, Store};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Status;

use crate::etcd::errors;
use crate::etcd::kv::mismatch;

/// The most renewals of one command.
const BATCH_MAX: usize = 8192;
/// Renewals that wait for the next batch; whoever comes then waits to be let in.
const QUEUE_MAX: usize = 4 * BATCH_MAX;

/// One renewal and who waits for it.
struct Renewal {
    id: i64,
    waiter: oneshot::Sender<Result<i64, Status>>,
}

/// Where renewals are handed in.
#[derive(Clone)]
pub(in crate::etcd) struct Renewals {
    queue: mpsc::Sender<Renewal>,
}

/// Takes what was handed in.
pub(in crate::etcd) struct Batches {
    queue: mpsc::Receiver<Renewal>,
}

/// Both ends of the queue.
pub(in crate::etcd) fn queue() -> (Renewals, Batches) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (Renewals { queue: sender }, Batches { queue: receiver })
}

impl Renewals {
    /// Renews a lease. The seconds that it has from now on, fewer than it was granted when this took long; 0 when there is
    /// none of this id.
    pub(super) async fn renew(&self, id: i64) -> Result<i64, Status> {
        let stopped = || Status::unavailable(errors::STOPPED);
        let (waiter, answer) = oneshot::channel();
        self.queue.send(Renewal { id, waiter }).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl Batches {
    /// Proposes batches until nobody can hand in any more.
    pub(in crate::etcd) async fn run(mut self, node: Node<Store>, election_timeout_max: Duration) {
        let slack = LeaseSlack::of(election_timeout_max);
        let mut batch = Vec::new();
        while self.queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
            let ids: Vec<i64> = batch.iter().map(|renewal| renewal.id).collect();
            let outcome = loop {
                let asked = Instant::now();
                let outcome = match propose(&node, &ids).await {
                    Ok(ttls) => {
                        let elapsed = asked.elapsed();
                        let promise = |ttl| slack.promise(ttl, elapsed);
                        ttls.into_iter().map(promise).collect::<Option<Vec<i64>>>().map(Ok)
                    }
                    Err(status) => Some(Err(status)),
                };
                // Of one that lasts hardly longer than this took nothing is left to promise: ask again.
                if let Some(outcome) = outcome {
                    break outcome;
                }
            };
            for (place, renewal) in batch.drain(..).enumerate() {
                let answer = match &outcome {
                    Ok(ttls) => ttls.get(place).copied().ok_or_else(mismatch),
                    Err(status) => Err(status.clone()),
                };
                // Whoever asked may be gone.
                renewal.waiter.send(answer).ok();
            }
        }
    }
}

async fn propose(node: &Node<Store>, ids: &[i64]) -> Result<Vec<i64>, Status> {
    match node.propose(Command::lease_renew(ids.to_vec())).await {
        Ok(Ok(raft_kv::Response::LeaseRenew(ttls))) => Ok(ttls),
        Ok(Ok(_)) => Err(mismatch()),
        Ok(Err(error)) => Err(errors::of_kv(error)),
        Err(error) => Err(errors::of_propose(&error)),
    }
}
