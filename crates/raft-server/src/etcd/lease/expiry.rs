//! The leases' clock at work: hears what the store says, ends leases while this member leads.

use std::time::Duration;

use raft::Node;
use raft::core::Term;
use raft::io::Clock as _;
use raft::node::BootClock;
use raft_kv::{Command, Expiry, LeaseChanges, LeaseClock, Store};
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

/// Runs the clock until the store is gone.
pub(in crate::etcd) async fn run(
    node: Node<Store>,
    changes: LeaseChanges,
    mut questions: mpsc::UnboundedReceiver<RemainingRequest>,
    election_timeout_max: Duration,
) {
    let mut keeper = Keeper { clock: LeaseClock::new(election_timeout_max), changes };
    let mut statuses = node.watch_status();
    let (mut led, mut known) = (None, None);
    let mut confirming = None;
    // One command at a time; what ends meanwhile goes into the next.
    let (settled_sender, mut settled) = mpsc::unbounded_channel::<Vec<Expiry>>();
    let mut busy = false;
    loop {
        let mut heard = Vec::new();
        let wait = keeper.wait();
        let ending = !busy && keeper.clock.leading().is_some();
        tokio::select! {
            alive = std::future::poll_fn(|context| keeper.changes.poll_changed(context, &mut heard)) => {
                let now = BootClock.now();
                for change in heard {
                    keeper.clock.hear(now, change);
                }
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
                keeper.catch_up();
                // Whoever asked may be gone.
                question.waiter.send(keeper.clock.remaining(BootClock.now(), question.id)).ok();
            }
            confirmed = confirmed(&mut confirming) => {
                keeper.catch_up();
                if let Some(term) = confirmed {
                    tracing::debug!("ends leases in term {term}");
                    keeper.clock.lead(BootClock.now(), term);
                } else {
                    // Asked again below, if this member still leads.
                    led = None;
                }
            }
            Some(leases) = settled.recv() => {
                busy = false;
                keeper.catch_up();
                keeper.clock.settle(&leases);
            }
            () = sleep(wait), if ending => {
                keeper.catch_up();
                let over = keeper.clock.over(BootClock.now());
                if let (Some(term), false) = (keeper.clock.leading(), over.is_empty()) {
                    busy = true;
                    tokio::spawn(end(node.clone(), term, over, settled_sender.clone()));
                }
            }
        }
        let status = node.status();
        let leads = status.is_leader().then_some(status.term);
        let reign = status.leader.map(|leader| (status.term, leader));
        if reign.is_some() && reign != known {
            known = reign;
            keeper.catch_up();
            keeper.clock.follow(BootClock.now());
            led = None;
        }
        if leads != led {
            led = leads;
            if leads.is_none() {
                keeper.clock.follow(BootClock.now());
            }
            // A read index is given out only after an own-term commit.
            confirming = leads.map(|term| {
                let (sender, answer) = oneshot::channel();
                tokio::spawn(confirm(node.clone(), term, sender));
                answer
            });
        }
    }
}

struct Keeper {
    clock: LeaseClock,
    changes: LeaseChanges,
}

impl Keeper {
    /// Hears everything that the store has said, so that nothing is decided on what has changed since.
    fn catch_up(&mut self) {
        let now = BootClock.now();
        while let Some(change) = self.changes.take() {
            self.clock.hear(now, change);
        }
    }

    /// How long until leases may have to end; `None` for ever.
    fn wait(&mut self) -> Option<Duration> {
        let now = BootClock.now();
        self.clock.deadline(now).map(|deadline| deadline.since(now))
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// The outcome of [`confirm`], once there is one.
async fn confirmed(confirming: &mut Option<oneshot::Receiver<Option<Term>>>) -> Option<Term> {
    let Some(answer) = confirming else { return std::future::pending().await };
    let outcome = answer.await.ok().flatten();
    *confirming = None;
    outcome
}

/// Waits until this member has committed something in the term that it leads.
async fn confirm(node: Node<Store>, term: Term, sender: oneshot::Sender<Option<Term>>) {
    let read = node.read_index().await;
    let status = node.status();
    let leads = read.is_ok() && status.is_leader() && status.term == term;
    if !leads {
        tokio::time::sleep(RETRY_WAIT).await;
    }
    // The clock's task may have ended.
    sender.send(leads.then_some(term)).ok();
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
    // The clock's task may have ended.
    settled.send(leases).ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_kv::{LeaseChange, LeaseRecord};

    #[test]
    fn a_keeper_hears_everything_before_it_decides() {
        let mut store = Store::new();
        let mut keeper = Keeper {
            clock: LeaseClock::new(Duration::from_millis(1)),
            changes: store.lease_changes(),
        };
        keeper.catch_up();
        assert_eq!(keeper.wait(), None);
        keeper
            .clock
            .hear(BootClock.now(), LeaseChange::Alive(LeaseRecord { id: 1, ttl: 60, renewals: 0 }));
        assert_eq!(keeper.wait(), None, "a follower waits for nothing");
        keeper.clock.lead(BootClock.now(), Term(1));
        assert!(keeper.wait().is_some_and(|wait| wait > Duration::from_secs(59)));
    }
}
