//! What many idle watchers and leases cost a member, and what one watcher that never reads costs the others.
//!
//! `cargo run --release --example scale -- 127.0.0.1:54000 --pid $(pgrep …)` speaks to any etcd v3 server on this machine that
//! has nothing else to do; memory and processor time are what the system says of its process.

#![expect(clippy::print_stdout, reason = "a command line tool prints its findings")]

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use hdrhistogram::Histogram;
use raft_kv::proto::etcdserverpb::watch_request::RequestUnion;
use raft_kv::proto::etcdserverpb::{
    LeaseGrantRequest, PutRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use raft_server::proto::etcdserverpb::kv_client::KvClient;
use raft_server::proto::etcdserverpb::lease_client::LeaseClient;
use raft_server::proto::etcdserverpb::watch_client::WatchClient;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Watchers on one stream, as many clients have them.
const WATCHERS_PER_STREAM: usize = 100;
/// Streams that share one connection.
const STREAMS_PER_CONNECTION: usize = 50;
/// Requests that are under way at once.
const CLIENTS: usize = 64;
/// Longer than anybody measures.
const TTL_SECONDS: i64 = 36_000;
/// Watchers that keep up with what is written, each on a connection of its own.
const READERS: usize = 10;
const VALUE_BYTES: usize = 4096;
/// What the system counts processor time in.
const TICKS_PER_SECOND: f64 = 100.0;
const HEAVY: &[u8] = b"heavy";

/// Measures a member.
#[derive(Parser)]
struct Options {
    /// The member, as host:port.
    address: String,
    /// Its process.
    #[arg(long)]
    pid: u32,
    /// Idle watchers, each of a key of its own.
    #[arg(long, default_value_t = 10_000)]
    watchers: usize,
    /// Leases.
    #[arg(long, default_value_t = 100_000)]
    leases: usize,
    /// How long processor time is looked at.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// What is written beside a watcher that never reads.
    #[arg(long, default_value_t = 200)]
    megabytes: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let time = Duration::from_secs(options.seconds);
    let nothing = idle("nothing", options.pid, time, None, 0).await?;

    let mut idlers = JoinSet::new();
    watch_idly(&options.address, options.watchers, &mut idlers).await?;
    let name = format!("{} idle watchers", options.watchers);
    let watched = idle(&name, options.pid, time, Some(&nothing), options.watchers).await?;

    grant(&options.address, options.leases).await?;
    let name = format!("and {} leases", options.leases);
    idle(&name, options.pid, time, Some(&watched), options.leases).await?;
    idlers.abort_all();

    let puts = (options.megabytes << 20) / VALUE_BYTES;
    spread("all read", &options, puts).await?;
    let mut deaf = open(&connect(&options.address).await?, [HEAVY]).await?;
    spread("one never reads", &options, puts).await?;
    // It is told in the end: everything, or from where on it is too late.
    deaf.message().await?.context("the stream that was not read has ended")?;
    Ok(())
}

/// What a process takes.
struct Figures {
    memory_bytes: f64,
    processor_seconds: f64,
}

fn figures(pid: u32) -> Result<Figures> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in brackets, which may hold anything; the times are the 14th and the 15th.
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let times = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    let ticks = times.sum::<Result<f64, _>>()?;
    Ok(Figures {
        memory_bytes: memory.context("no VmRSS")?.trim().parse::<f64>()? * 1024.0,
        processor_seconds: ticks / TICKS_PER_SECOND,
    })
}

/// Lets the member be for a while, and says what it takes, and what each of `count` new things takes.
async fn idle(
    name: &str,
    pid: u32,
    time: Duration,
    before: Option<&Figures>,
    count: usize,
) -> Result<Figures> {
    let first = figures(pid)?;
    tokio::time::sleep(time).await;
    let last = figures(pid)?;
    let used = last.processor_seconds - first.processor_seconds;
    let more = before.map_or(0.0, |before| last.memory_bytes - before.memory_bytes);
    println!(
        "{name}: {used:.2} s of processor time in {time:?}, {:.1} MiB, {:.0} bytes for each",
        last.memory_bytes / f64::from(1 << 20),
        more / f64::from(u32::try_from(count.max(1))?),
    );
    Ok(last)
}

async fn connect(address: &str) -> Result<Channel> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?)
}

/// A stream that watches keys, once all of these watchers are there. The stream stays open as long as it is held.
async fn open<K: Into<bytes::Bytes>>(
    channel: &Channel,
    keys: impl IntoIterator<Item = K>,
) -> Result<Streaming<WatchResponse>> {
    let (requests, stream) = mpsc::unbounded_channel();
    let mut watchers = 0;
    for key in keys {
        let create = WatchCreateRequest { key: key.into(), ..WatchCreateRequest::default() };
        requests.send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })?;
        watchers += 1;
    }
    let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let requests = tokio_stream::StreamExt::chain(
        UnboundedReceiverStream::new(stream),
        tokio_stream::pending(),
    );
    let mut answers = client.watch(requests).await?.into_inner();
    for _ in 0..watchers {
        let answer = answers.message().await?.context("the stream has ended")?;
        if !answer.created || answer.canceled {
            bail!("a watch was refused: {}", answer.cancel_reason);
        }
    }
    Ok(answers)
}

/// Watchers that will hear nothing.
async fn watch_idly(address: &str, count: usize, idlers: &mut JoinSet<Result<()>>) -> Result<()> {
    let mut channel = connect(address).await?;
    for first in (0..count).step_by(WATCHERS_PER_STREAM) {
        if first % (WATCHERS_PER_STREAM * STREAMS_PER_CONNECTION) == 0 {
            channel = connect(address).await?;
        }
        let keys = (first..count.min(first + WATCHERS_PER_STREAM)).map(|key| format!("idle/{key}"));
        let mut answers = open(&channel, keys).await?;
        idlers.spawn(async move {
            answers.message().await?;
            bail!("an idle watcher has heard something")
        });
    }
    Ok(())
}

/// Runs `count` requests, some at once.
async fn each<F>(count: usize, request: impl Fn(usize) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut running = JoinSet::new();
    for number in 0..count {
        if running.len() >= CLIENTS
            && let Some(done) = running.join_next().await
        {
            done??;
        }
        running.spawn(request(number));
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

async fn grant(address: &str, count: usize) -> Result<()> {
    let channel = connect(address).await?;
    each(count, |_| {
        let mut client = LeaseClient::new(channel.clone());
        async move {
            client.lease_grant(LeaseGrantRequest { ttl: TTL_SECONDS, id: 0 }).await?;
            Ok(())
        }
    })
    .await
}

/// Writes beside watchers that keep up, and says how long they took to hear of it.
async fn spread(name: &str, options: &Options, puts: usize) -> Result<()> {
    let (address, pid) = (&options.address, options.pid);
    let before = figures(pid)?;
    let began = Instant::now();
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let answers = open(&connect(address).await?, [HEAVY]).await?;
        readers.spawn(hear(answers, puts, began));
    }
    let since = Instant::now();
    let channel = connect(address).await?;
    each(puts, |_| {
        let mut client = KvClient::new(channel.clone());
        async move {
            // When it was written, in as many bytes as are wanted.
            let mut value = began.elapsed().as_nanos().to_string().into_bytes();
            value.resize(VALUE_BYTES, b' ');
            let (key, value) = (HEAVY.into(), value.into());
            client.put(PutRequest { key, value, ..PutRequest::default() }).await?;
            Ok(())
        }
    })
    .await?;
    let written = since.elapsed();
    let mut delays = Histogram::<u64>::new(3)?;
    while let Some(heard) = readers.join_next().await {
        delays.add(heard??)?;
    }
    let after = figures(pid)?;
    println!(
        "{name}: {puts} puts of {VALUE_BYTES} bytes in {written:.1?}, delay p50 {:?} p99 {:?} max {:?}, {:.0} MiB more",
        Duration::from_micros(delays.value_at_quantile(0.5)),
        Duration::from_micros(delays.value_at_quantile(0.99)),
        Duration::from_micros(delays.max()),
        (after.memory_bytes - before.memory_bytes) / f64::from(1 << 20),
    );
    Ok(())
}

/// Reads `count` events; how old each was, in microseconds.
async fn hear(
    mut answers: Streaming<WatchResponse>,
    count: usize,
    began: Instant,
) -> Result<Histogram<u64>> {
    let mut delays = Histogram::<u64>::new(3)?;
    let mut heard = 0;
    while heard < count {
        let answer = answers.message().await?.context("the stream has ended")?;
        let now = began.elapsed();
        for event in answer.events {
            let kv = event.kv.context("an event without a key")?;
            let text = std::str::from_utf8(&kv.value)?.trim_end();
            let age = now.saturating_sub(Duration::from_nanos(text.parse()?));
            delays.record(u64::try_from(age.as_micros())?)?;
            heard += 1;
        }
    }
    Ok(delays)
}
