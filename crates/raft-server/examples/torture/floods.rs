//! Hostile clients beside one that behaves: what that one sees of them.
//!
//! The one that behaves writes and reads at a fixed rate, and its latency counts from the moment at which a request was
//! due. First alone, then beside each flood in turn. Those who flood are threads of the lowest priority: on a machine of
//! their own they would not take the members' processors either. What a flood does it does each time, and a busy machine
//! now and then: the best of a few rounds counts.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use raft_kv::proto::etcdserverpb::{PutRequest, RangeRequest};
use raft_server::proto::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::Options;
use crate::cluster::{self, Cluster};
use crate::hostile::{FLOODS, Target};

/// Threads that flood at once.
const THREADS: usize = 2;
/// Requests a second of the client that behaves.
const RATE: u32 = 200;
/// How often a flood may be tried again.
const ROUNDS_MAX: usize = 3;
/// By how much a flood may lengthen the latency that 99 of 100 requests stay below.
const FACTOR_MAX: u64 = 5;
/// A lower normal latency counts as this one: on two processors that the threads of a flood share with three members, a few
/// turns of the scheduler are longer than that.
const NORMAL_MIN: Duration = Duration::from_millis(5);
/// What a flood may make a member take in memory.
const MEMORY_BYTES_MAX: u64 = 256 << 20;

/// Floods the leader and compares.
pub(crate) async fn floods(cluster: &Cluster, options: &Options) -> Result<()> {
    let leader = cluster.wait_for_leader().await?;
    let address = &cluster.addresses[leader];
    let pid = cluster.children[leader].as_ref().context("the leader has ended")?.id();
    let time = Duration::from_secs(options.seconds);
    let channel = cluster::channel(address).await?;
    // What is new at first is not normal yet.
    behave(&channel, time / 4).await?;
    let normal = behave(&channel, time).await?;
    println!("alone: {normal:?}");
    let limit = normal.max(NORMAL_MIN) * u32::try_from(FACTOR_MAX)?;
    let memory = memory_bytes(pid)?;
    let mut failed = Vec::new();
    for (name, flood) in FLOODS {
        let mut best = Duration::MAX;
        for _ in 0..ROUNDS_MAX {
            let target = Arc::new(Target::new(address));
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    let target = Arc::clone(&target);
                    std::thread::spawn(move || target.attack(*flood))
                })
                .collect();
            let seen = behave(&channel, time).await;
            target.stop();
            for thread in threads {
                ensure!(thread.join().is_ok(), "a thread that floods has died");
            }
            best = best.min(seen?);
            let grown = memory_bytes(pid)?.saturating_sub(memory);
            println!("{name}: {best:?}, {} sent, {} MiB more", target.sent(), grown >> 20);
            ensure!(grown < MEMORY_BYTES_MAX, "{name} made the member take {grown} bytes more");
            if best <= limit {
                break;
            }
        }
        if best > limit {
            failed.push(*name);
        }
    }
    ensure!(failed.is_empty(), "above {FACTOR_MAX} times the normal: {}", failed.join(", "));
    println!("none took more than {FACTOR_MAX} times the normal");
    cluster.compare_members().await
}

/// Writes and reads for a while; the latency that 99 of 100 requests stayed below.
async fn behave(channel: &Channel, time: Duration) -> Result<Duration> {
    let mut latencies = Histogram::<u64>::new(3)?;
    let mut requests = JoinSet::new();
    let mut due = tokio::time::interval(Duration::from_secs(1) / RATE);
    let began = Instant::now();
    for number in 0_u64.. {
        let intended = due.tick().await.into_std();
        if began.elapsed() >= time {
            break;
        }
        let client = KvClient::new(channel.clone());
        requests.spawn(one(client, number, intended));
        while let Some(answered) = requests.try_join_next() {
            latencies.record(answered??)?;
        }
    }
    while let Some(answered) = requests.join_next().await {
        latencies.record(answered??)?;
    }
    Ok(Duration::from_micros(latencies.value_at_quantile(0.99)))
}

/// One request, and how many microseconds after the moment it was due the answer came.
async fn one(mut client: KvClient<Channel>, number: u64, due: Instant) -> Result<u64> {
    let key = format!("good/{}", number % 100);
    if number.is_multiple_of(2) {
        let value = number.to_string().into();
        client.put(PutRequest { key: key.into(), value, ..PutRequest::default() }).await?;
    } else {
        client.range(RangeRequest { key: key.into(), ..RangeRequest::default() }).await?;
    }
    Ok(u64::try_from(due.elapsed().as_micros())?)
}

/// What a process has in memory.
fn memory_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmRSS")?;
    Ok(number.trim().parse::<u64>()? << 10)
}
