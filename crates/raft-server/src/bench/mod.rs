//! A load generator for any server that speaks etcd v3: what `rusty-raft bench` and `rusty-raft check perf` run.
//!
//! It shares the machine with what it measures more often than not, so it is built to be cheap: a few threads with a
//! runtime and connections of their own, gRPC on `h2` directly, answers counted and not decoded. What it costs itself
//! is in every report.
//!
//! Closed loop: each client sends its next request when the last one is answered. Open loop (a rate): requests are due at
//! fixed times, and a latency counts from when the request was due, not from when somebody was free to send it. A server
//! that stalls is charged for everything that would have been sent meanwhile ("coordinated omission" is not omitted).

mod board;
mod link;
mod pace;
mod perf;
mod report;
mod tally;
mod watchers;
mod worker;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, watch};

pub use board::{Board, Shown};
pub use perf::{LOADS, PerfLoad, Verdict};
pub use report::Report;
pub use tally::Tally;

use board::Phase;

/// What is sent.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Load {
    /// Puts of random keys.
    Put,
    /// Reads of one key.
    Get,
    /// Reads, so many in a hundred, and puts.
    Mixed {
        /// 0 to 100.
        read_percent: u8,
    },
    /// Transactions: a comparison and a put in either branch.
    Txn,
    /// Reads of some keys in a row.
    Range {
        /// How many.
        count: u32,
    },
    /// Puts of one key, with watchers who hear of each.
    Watch {
        /// How many watch.
        watchers: usize,
        /// How many streams they share.
        streams: usize,
    },
}

impl Load {
    /// Whether it asks for keys, which then must be there.
    #[must_use]
    pub const fn reads(self) -> bool {
        matches!(self, Self::Get | Self::Mixed { .. } | Self::Range { .. })
    }
}

/// When it is over.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Extent {
    /// After so long, the warm-up not included.
    Time(Duration),
    /// After so many requests, the warm-up included (there is none).
    Total(u64),
}

/// One run, completely described.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The members that are spoken to, as host:port; connections go to them in turn.
    pub endpoints: Vec<String>,
    /// Where authentication is on.
    pub token: Option<String>,
    /// What is sent.
    pub load: Load,
    /// Reads may be answered by a member that lags.
    pub serializable: bool,
    /// Writes go through the keys in order, instead of to random ones.
    pub sequential: bool,
    /// What keys begin with.
    pub prefix: String,
    /// Bytes of a key, its prefix not included.
    pub key_bytes: usize,
    /// How many different keys.
    pub keys: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Requests under way at once, at most.
    pub clients: usize,
    /// TCP connections that they share.
    pub connections: usize,
    /// Threads that the connections are spread over.
    pub threads: usize,
    /// Requests a second, for an open loop.
    pub rate: Option<f64>,
    /// When it is over.
    pub extent: Extent,
    /// Requests that are due in this time at the beginning do not count.
    pub warmup: Duration,
    /// A request that takes longer has failed.
    pub timeout: Duration,
}

/// Processor time that this process has used.
fn processor_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(used.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(used.tv_nsec).unwrap_or(0))
}

/// Carries out a plan. `shown` is called several times a second with how far it has come. A change of `stop` ends it
/// early; what was measured until then is reported ([`Report::interrupted`]).
///
/// # Errors
/// In words: why it could not even begin. A stop while it still prepares is one of the reasons.
pub async fn run(
    plan: Plan,
    mut stop: watch::Receiver<bool>,
    mut shown: impl FnMut(Shown),
) -> Result<Report, String> {
    let plan = Arc::new(plan);
    let board = Arc::new(Board::new(&plan));
    let (phase, phases) = watch::channel(Phase::Preparing);
    let (ready, mut readies) = mpsc::unbounded_channel();
    let (tallies, mut results) = mpsc::unbounded_channel();
    for number in 0..plan.threads {
        let seat = worker::Seat {
            number,
            plan: Arc::clone(&plan),
            board: Arc::clone(&board),
            phases: phases.clone(),
            ready: ready.clone(),
        };
        let tallies = tallies.clone();
        let spawned = std::thread::Builder::new().name(format!("load {number}")).spawn(move || {
            // Nobody waits for the result only where this run has been given up.
            drop(tallies.send(worker::run(seat)));
        });
        spawned.map_err(|error| format!("cannot start a thread: {error}"))?;
    }
    drop((ready, tallies));
    let mut stop_known = true;
    let mut prepared = 0;
    while prepared < plan.threads {
        tokio::select! {
            ready = readies.recv() => {
                ready.ok_or("a thread of the load generator has died")??;
                prepared += 1;
            }
            changed = stop.changed(), if stop_known => {
                stop_known = changed.is_ok();
                if *stop.borrow() {
                    // The threads end when they notice that nobody tells them to begin.
                    return Err(String::from("interrupted while it prepared"));
                }
            }
        }
    }
    let used = processor_time();
    board.start();
    phase.send_replace(Phase::Running);
    let mut merged = Tally::new();
    let mut running = plan.threads;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut used_by_end = None;
    while running > 0 {
        tokio::select! {
            result = results.recv() => {
                merged.add(&result.ok_or("a thread of the load generator has died")??);
                running -= 1;
            }
            _ = tick.tick() => {
                shown(board.shown());
                if used_by_end.is_none() && board.is_over() {
                    used_by_end = Some(processor_time());
                }
                if board.nothing_is_to_come() {
                    phase.send_replace(Phase::Over);
                }
            }
            changed = stop.changed(), if stop_known => {
                stop_known = changed.is_ok();
                if *stop.borrow() {
                    board.stop();
                }
            }
        }
    }
    shown(board.shown());
    let used = used_by_end.unwrap_or_else(processor_time).saturating_sub(used);
    Ok(Report::new(Arc::unwrap_or_clone(plan), &board, merged, used))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Reads from a server that takes connections and never says a word.
    fn mute(timeout: Duration) -> (TcpListener, Plan) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let endpoints = vec![listener.local_addr().unwrap().to_string()];
        (listener, Plan { endpoints, load: Load::Get, timeout, ..plan() })
    }

    #[tokio::test]
    async fn preparing_takes_no_longer_than_the_timeout() {
        let (_listener, plan) = mute(Duration::from_millis(50));
        let (_stop, stopped) = watch::channel(false);
        let refused = run(plan, stopped, |_| ()).await.unwrap_err();
        assert_eq!(refused, "no answer within 50ms");
    }

    #[tokio::test]
    async fn preparing_can_be_interrupted() {
        let (_listener, plan) = mute(Duration::from_secs(3600));
        let (stop, stopped) = watch::channel(false);
        stop.send_replace(true);
        let refused = run(plan, stopped, |_| ()).await.unwrap_err();
        assert_eq!(refused, "interrupted while it prepared");
    }

    /// Puts, one second.
    pub(super) fn plan() -> Plan {
        Plan {
            endpoints: vec![String::from("127.0.0.1:1")],
            token: None,
            load: Load::Put,
            serializable: false,
            sequential: false,
            prefix: String::from("/p/"),
            key_bytes: 16,
            keys: 1000,
            value_bytes: 256,
            clients: 4,
            connections: 2,
            threads: 1,
            rate: None,
            extent: Extent::Time(Duration::from_secs(1)),
            warmup: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
        }
    }
}
