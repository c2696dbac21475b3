//! The same workload on several Raft libraries, in one process: three members, logs in memory, nothing on the network.
//!
//! `peers <library> <payload bytes> <clients> <batch> [seconds]` prints one line of JSON. Libraries: `rusty-raft`,
//! `rusty-raft-tcp`, `openraft`, `raft-rs`. `run.py` beside this runs all of them in turn and prints a table.
//!
//! The conditions are those of openraft's own benchmark: one runtime with two worker threads for the members, another
//! one with one thread for the clients, each of which proposes to the leader and waits until that has applied; a client
//! with a batch proposes so many at once and waits for all of them. Every library gets its own best way to take a batch.
//! The state machine counts; the log is compacted by the library's own rules, or by ours where it has none.

mod openraft_group;
mod rusty;
mod tikv_group;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};

/// Threads for the members.
const MEMBER_THREADS: usize = 2;
/// Threads for the clients.
const CLIENT_THREADS: usize = 1;
/// Before anything counts.
const WARM_UP: Duration = Duration::from_millis(700);

/// A group of three, spoken to through its leader.
trait Group: Clone + Send + Sync + 'static {
    /// Returns when the leader has applied it.
    fn propose(&self, payload: Bytes) -> impl Future<Output = ()> + Send;

    /// Returns when the leader has applied all of them.
    fn propose_many(&self, payloads: Vec<Bytes>) -> impl Future<Output = ()> + Send;
}

struct Load {
    library: String,
    payload: usize,
    clients: usize,
    batch: usize,
    seconds: f64,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, payload, clients, batch, rest @ ..] = &arguments[..] else {
        anyhow::bail!("peers <library> <payload bytes> <clients> <batch> [seconds]");
    };
    let load = Load {
        library: library.clone(),
        payload: payload.parse()?,
        clients: clients.parse()?,
        batch: batch.parse()?,
        seconds: rest.first().map_or(Ok(3.0), |text| text.parse())?,
    };
    let threads = |count, name| {
        Builder::new_multi_thread().worker_threads(count).thread_name(name).enable_all().build()
    };
    let (members, clients) =
        (threads(MEMBER_THREADS, "members")?, threads(CLIENT_THREADS, "clients")?);
    match library.as_str() {
        "rusty-raft" => run(&load, &clients, members.block_on(rusty::start())?),
        "rusty-raft-tcp" => run(&load, &clients, members.block_on(rusty::start_nodes())?),
        "openraft" => run(&load, &clients, members.block_on(openraft_group::start())?),
        "raft-rs" => run(&load, &clients, members.block_on(tikv_group::start())?),
        _ => anyhow::bail!("libraries: rusty-raft, rusty-raft-tcp, openraft, raft-rs"),
    }
    // Members need not be told that it is over.
    members.shutdown_background();
    clients.shutdown_background();
    Ok(())
}

fn processor_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// Loads a group and prints what came out.
fn run<G: Group>(load: &Load, runtime: &Runtime, group: G) {
    let done = Arc::new(AtomicU64::new(0));
    for _ in 0..load.clients {
        let (group, done) = (group.clone(), Arc::clone(&done));
        let (payload, batch) = (Bytes::from(vec![7u8; load.payload]), load.batch);
        runtime.spawn(async move {
            loop {
                if batch == 1 {
                    group.propose(payload.clone()).await;
                    done.fetch_add(1, Ordering::Relaxed);
                } else {
                    group.propose_many(vec![payload.clone(); batch]).await;
                    done.fetch_add(batch as u64, Ordering::Relaxed);
                }
            }
        });
    }
    std::thread::sleep(WARM_UP);
    let (since, before, used) = (Instant::now(), done.load(Ordering::Relaxed), processor_time());
    std::thread::sleep(Duration::from_secs_f64(load.seconds));
    let (time, count) = (since.elapsed(), done.load(Ordering::Relaxed) - before);
    let used = processor_time() - used;
    println!(
        "{{\"library\": \"{}\", \"payload\": {}, \"clients\": {}, \"batch\": {}, \"entries_per_sec\": {:.0}, \
         \"cpu_ns_per_entry\": {:.0}}}",
        load.library,
        load.payload,
        load.clients,
        load.batch,
        count as f64 / time.as_secs_f64(),
        used.as_secs_f64() * 1e9 / count.max(1) as f64,
    );
}
