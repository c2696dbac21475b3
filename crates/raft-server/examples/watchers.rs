//! How fast one key's changes reach many watchers.
//!
//! `cargo run --release --example watchers -- 127.0.0.1:54000 [watchers] [puts] [writers]` speaks to any etcd v3 server,
//! so that two can be compared: it watches a key from many streams, writes it, and prints deliveries per second and
//! how long they took. What idle watchers cost says the example `scale`.

#![expect(clippy::print_stdout, reason = "a command line tool prints its findings")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use raft_kv::proto::etcdserverpb::watch_request::RequestUnion;
use raft_kv::proto::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest};
use raft_server::proto::etcdserverpb::kv_client::KvClient;
use raft_server::proto::etcdserverpb::watch_client::WatchClient;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// Streams that share one connection.
const STREAMS_PER_CONNECTION: usize = 50;
const KEY: &[u8] = b"watched";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().context("the address of a member is missing")?;
    let mut number = |default: usize| -> anyhow::Result<usize> {
        arguments.next().map_or(Ok(default), |text| text.parse().context("not a number"))
    };
    let (watchers, puts, writers) = (number(1000)?, number(2000)?, number(1)?);
    let began = Instant::now();

    let mut tasks = JoinSet::new();
    let (ready, mut is_ready) = mpsc::unbounded_channel();
    let mut channel = connect(&address).await?;
    for number in 0..watchers {
        if number % STREAMS_PER_CONNECTION == 0 {
            channel = connect(&address).await?;
        }
        tasks.spawn(watch(channel.clone(), puts, began, ready.clone()));
    }
    for _ in 0..watchers {
        is_ready.recv().await.context("a watcher has died")?;
    }

    let since = Instant::now();
    let left = Arc::new(AtomicU64::new(u64::try_from(puts)?));
    let mut writing = JoinSet::new();
    for _ in 0..writers {
        writing.spawn(write(connect(&address).await?, Arc::clone(&left), began));
    }
    while let Some(written) = writing.join_next().await {
        written??;
    }
    let written = since.elapsed();
    let mut delays = Vec::new();
    while let Some(heard) = tasks.join_next().await {
        delays.extend(heard??);
    }
    let heard = since.elapsed();
    delays.sort_unstable();
    let at = |part: usize| delays.get((delays.len() * part / 1000).min(delays.len() - 1)).copied();
    println!(
        "{watchers} watchers, {puts} puts by {writers}: {:.0} puts/s, {:.0} deliveries/s, delay p50 {:?} p99 {:?} max {:?}",
        rate(puts, written),
        rate(delays.len(), heard),
        at(500).unwrap_or_default(),
        at(990).unwrap_or_default(),
        at(1000).unwrap_or_default(),
    );
    Ok(())
}

fn rate(count: usize, time: Duration) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from) / time.as_secs_f64()
}

async fn connect(address: &str) -> anyhow::Result<Channel> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?)
}

/// Watches until `count` events have come; answers how old each was.
async fn watch(
    channel: Channel,
    count: usize,
    began: Instant,
    ready: mpsc::UnboundedSender<()>,
) -> anyhow::Result<Vec<Duration>> {
    let (requests, stream) = mpsc::unbounded_channel();
    let create = WatchCreateRequest { key: KEY.into(), ..WatchCreateRequest::default() };
    requests.send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })?;
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut answers = client.watch(UnboundedReceiverStream::new(stream)).await?.into_inner();
    let mut delays = Vec::with_capacity(count);
    while delays.len() < count {
        let Some(answer) = answers.message().await? else { bail!("the stream ended") };
        if answer.created {
            ready.send(())?;
        }
        let now = began.elapsed();
        for event in answer.events {
            let kv = event.kv.context("an event without a key")?;
            let text = std::str::from_utf8(&kv.value)?;
            delays.push(now.saturating_sub(Duration::from_nanos(text.parse()?)));
        }
    }
    Ok(delays)
}

/// Writes the time into the key, as often as is left to do.
async fn write(channel: Channel, left: Arc<AtomicU64>, began: Instant) -> anyhow::Result<()> {
    let mut client = KvClient::new(channel);
    let take = |left: u64| left.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
        let value = began.elapsed().as_nanos().to_string();
        client
            .put(PutRequest { key: KEY.into(), value: value.into(), ..PutRequest::default() })
            .await?;
    }
    Ok(())
}
