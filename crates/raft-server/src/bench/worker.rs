//! One thread of the load generator: a runtime, a few connections, its share of the clients.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::board::{Board, Phase};
use super::link::Link;
use super::pace::pace;
use super::tally::Tally;
use super::workload::{Prepared, Workload};
use super::{Load, Plan, watchers};

/// After a failed request its client waits so long. Failures can come at once, and clients that do nothing but fail would
/// take the processors from the server that is to recover.
const PAUSE: Duration = Duration::from_millis(10);

/// What a thread is given.
pub(super) struct Seat {
    pub(super) number: usize,
    pub(super) plan: Arc<Plan>,
    pub(super) board: Arc<Board>,
    pub(super) phases: watch::Receiver<Phase>,
    /// Told when everything is prepared, or why it cannot be.
    pub(super) ready: UnboundedSender<Result<(), String>>,
}

/// How many of `count` things fall to a thread, when all share them.
pub(super) fn share(count: usize, number: usize, threads: usize) -> usize {
    count / threads + usize::from(number < count % threads)
}

/// Everything that the tasks of one thread use.
pub(super) struct Desk {
    pub(super) plan: Arc<Plan>,
    pub(super) board: Arc<Board>,
    pub(super) links: Vec<Rc<Link>>,
    pub(super) workload: RefCell<Workload>,
    pub(super) tally: RefCell<Tally>,
}

/// Runs one thread's share to its end.
///
/// # Errors
/// In words: why it could not begin, or that it died.
pub(super) fn run(seat: Seat) -> Result<Tally, String> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    let task = runtime.spawn_local(work(seat));
    runtime
        .block_on(task)
        .unwrap_or_else(|_| Err(String::from("a thread of the load generator has died")))
}

async fn work(seat: Seat) -> Result<Tally, String> {
    let Seat { number, plan, board, mut phases, ready } = seat;
    let threads = plan.threads;
    let prepared = prepare(number, &plan, &board, &phases).await;
    let (desk, watching) = match prepared {
        Ok(prepared) => prepared,
        Err(reason) => {
            drop(ready.send(Err(reason)));
            return Ok(Tally::new());
        }
    };
    drop(ready.send(Ok(())));
    if phases.wait_for(|phase| *phase != Phase::Preparing).await.is_err() {
        // Another thread could not prepare.
        return Ok(Tally::new());
    }
    let clients = share(plan.clients, number, threads);
    match plan.rate {
        Some(rate) => {
            let due = pace(Arc::clone(&board), rate, (number, threads))
                .map_err(|error| format!("cannot start a thread: {error}"))?;
            open_loop(&desk, due, clients).await;
            board.finished();
        }
        None => closed_loop(&desk, clients).await,
    }
    watching.join_all().await;
    // All tasks have ended: what they measured is here.
    let tally = desk.tally.replace(Tally::new());
    Ok(tally)
}

/// Connects, writes the keys that will be read, begins to watch.
async fn prepare(
    number: usize,
    plan: &Arc<Plan>,
    board: &Arc<Board>,
    phases: &watch::Receiver<Phase>,
) -> Result<(Rc<Desk>, JoinSet<()>), String> {
    let mut links = Vec::new();
    for place in (number..plan.connections).step_by(plan.threads) {
        let endpoint = &plan.endpoints[place % plan.endpoints.len()];
        let opened =
            tokio::time::timeout(plan.timeout, Link::open(endpoint, plan.token.as_deref()));
        links.push(opened.await.map_err(|_| format!("{endpoint} does not answer"))??);
    }
    let mut workload = Workload::new(plan, number);
    if plan.load.reads() {
        let (first, step) = (as_u64(number), as_u64(plan.threads));
        workload.fill(&links[0], (first, step), plan.timeout).await?;
    }
    let desk = Rc::new(Desk {
        plan: Arc::clone(plan),
        board: Arc::clone(board),
        links,
        workload: RefCell::new(workload),
        tally: RefCell::new(Tally::new()),
    });
    let mut watching = JoinSet::new();
    if let Load::Watch { watchers, streams } = plan.load {
        for stream in (number..streams).step_by(plan.threads) {
            let place = stream / plan.threads;
            let watchers = share(watchers, stream, streams);
            let begun = watchers::begin(&desk, place, watchers).await?;
            watching.spawn_local(watchers::listen(Rc::clone(&desk), begun, phases.clone()));
        }
    }
    Ok((desk, watching))
}

fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Every client sends its next request when the last one is answered.
async fn closed_loop(desk: &Rc<Desk>, clients: usize) {
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let desk = Rc::clone(desk);
        tasks.spawn_local(async move {
            loop {
                let due = desk.board.now();
                if !desk.board.claim(due) {
                    break;
                }
                if !desk.request(client, due).await {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            desk.board.finished();
        });
    }
    tasks.join_all().await;
}

/// Requests are sent when they are due, or as soon after that as one of the clients is free.
async fn open_loop(
    desk: &Rc<Desk>,
    mut due: tokio::sync::mpsc::UnboundedReceiver<u64>,
    clients: usize,
) {
    let free = Arc::new(Semaphore::new(clients));
    let mut tasks = JoinSet::new();
    let mut sent: usize = 0;
    while let Some(time) = due.recv().await {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { break };
        if desk.board.is_over() && desk.board.now() > time + desk.late_max() {
            desk.tally.borrow_mut().unsent += 1;
            continue;
        }
        let desk = Rc::clone(desk);
        let client = sent;
        sent = sent.wrapping_add(1);
        tasks.spawn_local(async move {
            desk.request(client, time).await;
            drop(permit);
        });
        while tasks.try_join_next().is_some() {}
    }
    tasks.join_all().await;
}

impl Desk {
    /// A request that is still not sent so long after it was due, when all is over, is given up.
    fn late_max(&self) -> u64 {
        u64::try_from(self.plan.timeout.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Sends one request and counts what becomes of it. Says whether it succeeded.
    async fn request(&self, client: usize, due: u64) -> bool {
        let number = self.plan.sequential.then(|| self.board.next_key());
        let Prepared { rpc, frame, reads } = self.workload.borrow_mut().next(due, number);
        let link = &self.links[client % self.links.len()];
        let mut received = 0;
        let call = link.call(rpc, frame, |chunk| received += chunk.len());
        let outcome = tokio::time::timeout(self.plan.timeout, call).await;
        let now = self.board.now();
        let counts = self.board.counts(due);
        let tally = &mut *self.tally.borrow_mut();
        match outcome {
            Ok(Ok(())) => {
                self.board.succeeded(now);
                if !counts {
                    return true;
                }
                let latency = now.saturating_sub(due);
                tally.latency.saturating_record(latency);
                if let Load::Mixed { .. } = self.plan.load {
                    let kind = if reads { &mut tally.reads } else { &mut tally.writes };
                    kind.saturating_record(latency);
                }
                tally.in_window += u64::from(self.board.in_window(now));
                tally.received += as_u64(received);
                tally.empty += u64::from(reads && received < self.plan.value_bytes);
                return true;
            }
            Ok(Err(reason)) => {
                self.board.failed(now);
                tally.fail(reason);
            }
            Err(_) => {
                self.board.failed(now);
                tally.fail(format!("no answer within {:?}", self.plan.timeout));
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (count, threads) in [(10, 3), (2, 3), (0, 1), (64, 1)] {
            let sum: usize = (0..threads).map(|number| share(count, number, threads)).sum();
            assert_eq!(sum, count);
        }
    }
}
