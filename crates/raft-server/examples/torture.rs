//! Kills real processes under load and checks that no acknowledged write is lost and no refused one appears.
//!
//! ```text
//! cargo run --release --example torture -- leader-kill --rounds 50 --seconds 6
//! cargo run --release --example torture -- all-kill --rounds 5 --seconds 5
//! cargo run --release --example torture -- catch-up --writes 100000
//! cargo run --release --example torture -- synced      # needs strace
//! ```
//!
//! Uses `target/release/rusty-raft` (build it first) and keeps its data under `target/torture`. Exits non-zero on
//! the first violation and says which.

#![expect(clippy::print_stdout, reason = "its output is for people")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use raft_kv::proto::etcdserverpb::{
    HashRequest, PutRequest, RangeRequest, RangeResponse, StatusRequest, StatusResponse,
};
use raft_server::proto::etcdserverpb::kv_client::KvClient;
use raft_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::transport::{Channel, Endpoint};

const MEMBERS: usize = 3;

/// Kills members under load.
#[derive(Parser)]
struct Options {
    /// What to do.
    scenario: Scenario,
    /// How often.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of load a round; the kill comes after half of it.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Writers, each with one write in flight.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Writes that the stopped member misses (catch-up).
    #[arg(long, default_value_t = 20_000)]
    writes: u64,
    /// First of three ports.
    #[arg(long, default_value_t = 26_000)]
    port: u16,
    /// The program.
    #[arg(long, default_value = "target/release/rusty-raft")]
    program: PathBuf,
    /// Where data goes; removed first.
    #[arg(long, default_value = "target/torture")]
    dir: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scenario {
    /// kill -9 of the leader.
    LeaderKill,
    /// kill -9 of every member at once.
    AllKill,
    /// A stopped member misses writes and catches up while the others serve.
    CatchUp,
    /// With strace attached: a quorum completes an fdatasync before each of 100 answers to one client.
    Synced,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut cluster = Cluster::new(&options)?;
    for member in 0..MEMBERS {
        cluster.start(member)?;
    }
    let began = Instant::now();
    cluster.wait_for_leader().await?;
    println!("a leader after {} ms", began.elapsed().as_millis());
    match options.scenario {
        Scenario::LeaderKill => kill_rounds(&mut cluster, &options, false).await,
        Scenario::AllKill => kill_rounds(&mut cluster, &options, true).await,
        Scenario::CatchUp => catch_up(&mut cluster, &options).await,
        Scenario::Synced => synced(&cluster).await,
    }
}

/// Three members, each a process of its own.
struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    config: PathBuf,
    addresses: Vec<String>,
    children: Vec<Option<Child>>,
}

impl Cluster {
    fn new(options: &Options) -> Result<Self> {
        let dir = options.dir.clone();
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        std::fs::create_dir_all(&dir)?;
        let dir = dir.canonicalize()?;
        let state = dir.join("data.raft");
        let port = usize::from(options.port);
        let addresses: Vec<String> =
            (0..MEMBERS).map(|member| format!("127.0.0.1:{}", port + member)).collect();
        let config = dir.join("config.ron");
        std::fs::write(
            &config,
            format!(
                "(\n    persistent_state_file: {state:?},\n    cluster_members: {addresses:?},\n    \
                 election_timeout_interval: RangeInclusive(start: 300.0, end: 500.0),\n    \
                 heartbeat_interval: 100,\n)\n"
            ),
        )?;
        let children = (0..MEMBERS).map(|_| None).collect();
        Ok(Self { program: options.program.clone(), dir, config, addresses, children })
    }

    fn start(&mut self, member: usize) -> Result<()> {
        let log = self.dir.join(format!("node_{member}.log"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = Command::new(&self.program)
            .arg("node")
            .arg(&self.config)
            .arg(member.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        if let Some(slot) = self.children.get_mut(member) {
            *slot = Some(child);
        }
        Ok(())
    }

    /// kill -9, and no more of it.
    fn kill(&mut self, member: usize) -> Result<()> {
        if let Some(mut child) = self.children.get_mut(member).and_then(Option::take) {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    async fn status(&self, member: usize) -> Result<StatusResponse> {
        let channel = channel(&self.addresses[member]).await?;
        Ok(MaintenanceClient::new(channel).status(StatusRequest {}).await?.into_inner())
    }

    /// The member that leads, as it says itself.
    async fn leader(&self) -> Option<usize> {
        for member in 0..MEMBERS {
            if self.children[member].is_some()
                && let Ok(status) = self.status(member).await
                && status.header.is_some_and(|header| header.member_id == status.leader)
            {
                return Some(member);
            }
        }
        None
    }

    async fn wait_for_leader(&self) -> Result<usize> {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            if let Some(leader) = self.leader().await {
                return Ok(leader);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("no leader after 30 s; see the logs in {}", self.dir.display())
    }

    /// Waits until every member has applied the same, and compares the digests of their whole state.
    async fn compare_members(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let mut states = Vec::new();
            for member in 0..MEMBERS {
                let mut client = MaintenanceClient::new(channel(&self.addresses[member]).await?);
                let status = client.status(StatusRequest {}).await?.into_inner();
                let hash = client.hash(HashRequest {}).await?.into_inner();
                let revision = hash.header.map_or(0, |header| header.revision);
                states.push((status.raft_applied_index, revision, hash.hash));
            }
            if states.iter().all(|state| *state == states[0]) {
                let (applied, revision, hash) = states[0];
                println!(
                    "equal on all members: applied {applied}, revision {revision}, {hash:08x}"
                );
                return Ok(());
            }
            ensure!(began.elapsed() < Duration::from_secs(30), "members differ: {states:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let stopped = child.kill().and_then(|()| child.wait());
            if let Err(error) = stopped {
                println!("a member could not be stopped: {error}");
            }
        }
    }
}

async fn channel(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_secs(1))
        .timeout(Duration::from_secs(10));
    Ok(endpoint.connect().await?)
}

/// What a client knows of one write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Acknowledged,
    Refused,
    Unknown,
}

/// Every write of a run by key; no key is written twice.
type Ledger = BTreeMap<String, Fate>;

/// What writers share.
struct Load {
    addresses: Vec<String>,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    /// When the kill came, in microseconds since `began`; never, before it.
    killed_at: AtomicU64,
    /// When the first write succeeded that was begun after the kill.
    first_success: AtomicU64,
    began: Instant,
}

impl Load {
    fn on(addresses: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            addresses,
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            killed_at: AtomicU64::new(u64::MAX),
            first_success: AtomicU64::new(u64::MAX),
            began: Instant::now(),
        })
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Writes one key after the other through changing members until told to stop.
async fn write(load: Arc<Load>, run: String, client: usize) -> Ledger {
    let mut ledger = Ledger::new();
    let mut member = client % MEMBERS;
    let mut connection: Option<KvClient<Channel>> = None;
    let mut number = 0u64;
    while !load.stop.load(Ordering::Relaxed) {
        let Some(kv) = &mut connection else {
            connection = channel(&load.addresses[member]).await.ok().map(KvClient::new);
            if connection.is_none() {
                member = (member + 1) % MEMBERS;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            continue;
        };
        number += 1;
        let key = format!("{run}/{client}/{number}");
        let put = PutRequest {
            key: Bytes::from(key.clone()),
            value: value_of(&key),
            ..PutRequest::default()
        };
        let asked = load.micros();
        let answer = tokio::time::timeout(Duration::from_secs(10), kv.put(put)).await;
        let fate = match answer {
            Ok(Ok(_)) => {
                load.acknowledged.fetch_add(1, Ordering::Relaxed);
                if asked >= load.killed_at.load(Ordering::Relaxed) {
                    load.first_success.fetch_min(load.micros(), Ordering::Relaxed);
                }
                Fate::Acknowledged
            }
            Ok(Err(status)) => fate_of(&status),
            Err(_) => Fate::Unknown,
        };
        if fate != Fate::Acknowledged {
            connection = None;
            member = (member + 1) % MEMBERS;
        }
        ledger.insert(key, fate);
    }
    ledger
}

fn value_of(key: &str) -> Bytes {
    Bytes::from(format!("value of {key} {}", "x".repeat(64)))
}

/// The server promises that whatever is not "request timed out" was not and will not be applied. What the
/// connection itself reports is unknown.
fn fate_of(status: &tonic::Status) -> Fate {
    let words = status.message();
    if words.starts_with("etcdserver: ") && !words.starts_with("etcdserver: request timed out") {
        Fate::Refused
    } else {
        Fate::Unknown
    }
}

async fn kill_rounds(cluster: &mut Cluster, options: &Options, all: bool) -> Result<()> {
    let mut gaps = Vec::new();
    let mut ledger = Ledger::new();
    for round in 0..options.rounds {
        let load = Load::on(cluster.addresses.clone());
        let writers: Vec<_> = (0..options.clients)
            .map(|client| {
                let run = format!("r{round}");
                tokio::spawn(write(Arc::clone(&load), run, client))
            })
            .collect();
        let half = Duration::from_millis(options.seconds * 500);
        tokio::time::sleep(half).await;
        let leader = cluster.wait_for_leader().await?;
        let victims: Vec<usize> = if all { (0..MEMBERS).collect() } else { vec![leader] };
        for victim in &victims {
            cluster.kill(*victim)?;
        }
        let killed_at = load.micros();
        load.killed_at.store(killed_at, Ordering::Relaxed);
        if all {
            for victim in &victims {
                cluster.start(*victim)?;
            }
        }
        while load.first_success.load(Ordering::Relaxed) == u64::MAX {
            ensure!(
                load.micros() - killed_at < 30_000_000,
                "round {round}: no write succeeds for 30 s after the kill"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let gap = load.first_success.load(Ordering::Relaxed).saturating_sub(killed_at) / 1000;
        gaps.push(gap);
        tokio::time::sleep(half).await;
        if !all {
            cluster.start(leader)?;
        }
        load.stop.store(true, Ordering::Relaxed);
        for writer in writers {
            ledger.extend(writer.await?);
        }
        cluster.wait_for_leader().await?;
        let count = |fate| ledger.values().filter(|f| **f == fate).count();
        println!(
            "round {round}: member {leader} led; first write {gap} ms after the kill; so far {} acknowledged, {} \
             refused, {} unknown",
            count(Fate::Acknowledged),
            count(Fate::Refused),
            count(Fate::Unknown)
        );
    }
    cluster.compare_members().await?;
    for member in 0..MEMBERS {
        check_ledger(&cluster.addresses[member], &ledger).await?;
        println!("member {member}: every acknowledged write is there, no refused one");
    }
    gaps.sort_unstable();
    println!("gaps in ms: median {}, max {}", gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    Ok(())
}

/// Reads everything through one member and compares it with what the writers know.
async fn check_ledger(address: &str, ledger: &Ledger) -> Result<()> {
    let stored = read_all(address).await?;
    for (key, fate) in ledger {
        match (fate, stored.get(key.as_bytes())) {
            (Fate::Acknowledged, None) => bail!("{address}: the acknowledged write {key} is lost"),
            (Fate::Refused, Some(_)) => bail!("{address}: the refused write {key} was applied"),
            (_, Some(value)) => {
                ensure!(*value == value_of(key), "{address}: {key} has a wrong value");
            }
            (_, None) => {}
        }
    }
    for key in stored.keys() {
        let known = std::str::from_utf8(key).is_ok_and(|key| ledger.contains_key(key));
        ensure!(known, "{address}: {key:?} was never written");
    }
    Ok(())
}

async fn read_all(address: &str) -> Result<BTreeMap<Bytes, Bytes>> {
    let mut kv = KvClient::new(channel(address).await?).max_decoding_message_size(256 << 20);
    let mut stored = BTreeMap::new();
    let mut from = Bytes::from_static(b"\0");
    loop {
        let range = RangeRequest {
            key: from.clone(),
            range_end: Bytes::from_static(b"\0"),
            limit: 10_000,
            ..RangeRequest::default()
        };
        let answer: RangeResponse = kv.range(range).await?.into_inner();
        for pair in answer.kvs {
            from = Bytes::from([&pair.key[..], b"\0"].concat());
            stored.insert(pair.key, pair.value);
        }
        if !answer.more {
            return Ok(stored);
        }
    }
}

/// One member is down while the others take many writes, then returns.
async fn catch_up(cluster: &mut Cluster, options: &Options) -> Result<()> {
    let leader = cluster.wait_for_leader().await?;
    let lagging = (leader + 1) % MEMBERS;
    cluster.kill(lagging)?;
    let served_by = (0..MEMBERS)
        .map(|member| cluster.addresses[if member == lagging { leader } else { member }].clone());
    let load = Load::on(served_by.collect());
    let writers: Vec<_> = (0..options.clients.max(64))
        .map(|client| tokio::spawn(write(Arc::clone(&load), "c".to_owned(), client)))
        .collect();
    while load.acknowledged.load(Ordering::Relaxed) < options.writes {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let missed = load.acknowledged.load(Ordering::Relaxed);
    println!("{missed} writes while member {lagging} was down, {} ms", load.micros() / 1000);
    cluster.start(lagging)?;
    let began = Instant::now();
    let mut target = None;
    loop {
        ensure!(began.elapsed() < Duration::from_secs(120), "it does not catch up within 120 s");
        if target.is_none() {
            target = cluster.status(leader).await.ok().map(|status| status.raft_index);
        }
        if let (Ok(status), Some(target)) = (cluster.status(lagging).await, target)
            && status.raft_applied_index >= target
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let served = load.acknowledged.load(Ordering::Relaxed) - missed;
    println!(
        "caught up {} ms after its start, while the others took {served} more writes",
        began.elapsed().as_millis()
    );
    load.stop.store(true, Ordering::Relaxed);
    let mut ledger = Ledger::new();
    for writer in writers {
        ledger.extend(writer.await?);
    }
    cluster.compare_members().await?;
    check_ledger(&cluster.addresses[lagging], &ledger).await?;
    println!("member {lagging} has every acknowledged write");
    report_log(&cluster.dir.join(format!("node_{lagging}.log")))
}

/// What the member itself says about how it caught up.
fn report_log(path: &Path) -> Result<()> {
    for line in std::fs::read_to_string(path)?.lines().filter(|line| line.contains("snapshot")) {
        println!("  {line}");
    }
    Ok(())
}

/// Attaches strace to every member and writes 100 keys, one at a time.
async fn synced(cluster: &Cluster) -> Result<()> {
    let mut tracers = Vec::new();
    for (member, child) in cluster.children.iter().enumerate() {
        let pid = child.as_ref().context("every member runs")?.id();
        let trace = cluster.dir.join(format!("node_{member}.strace"));
        let tracer = Command::new("strace")
            .args([
                "-f",
                "-ttt",
                "-T",
                "-q",
                "-e",
                "trace=fdatasync,fsync",
                "-p",
                &pid.to_string(),
                "-o",
            ])
            .arg(&trace)
            .stderr(Stdio::null())
            .spawn()
            .context("starting strace")?;
        tracers.push((trace, tracer));
        wait_until_traced(pid).await?;
    }
    let mut kv = KvClient::new(channel(&cluster.addresses[0]).await?);
    let mut writes = Vec::new();
    for number in 0..100 {
        let key = Bytes::from(format!("synced/{number}"));
        let asked = seconds();
        kv.put(PutRequest { key: key.clone(), value: key, ..PutRequest::default() }).await?;
        writes.push((asked, seconds()));
    }
    let mut completed = Vec::new();
    for (trace, mut tracer) in tracers {
        // A member that is killed takes its tracer with it; this one is only asked to let go.
        Command::new("kill").args(["-INT", &tracer.id().to_string()]).status()?;
        tracer.wait()?;
        completed.push(completions(&std::fs::read_to_string(trace)?));
    }
    for (number, (asked, answered)) in writes.iter().enumerate() {
        let members = completed
            .iter()
            .filter(|times| times.iter().any(|at| asked <= at && at <= answered))
            .count();
        ensure!(members > MEMBERS / 2, "write {number} was answered with {members} members synced");
    }
    println!("100 answers, each after a completed fdatasync on a quorum");
    Ok(())
}

/// Waits until the kernel says that the process and all its threads have a tracer.
async fn wait_until_traced(pid: u32) -> Result<()> {
    let began = Instant::now();
    loop {
        let mut traced = true;
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = std::fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
            traced &= !status.contains("TracerPid:\t0\n");
        }
        if traced {
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(10), "strace does not attach to {pid}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The wall clock, as strace prints it.
fn seconds() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// When successful syncs completed: a call printed whole at its time plus its duration, one that was
/// interrupted in the output at the time at which it is resumed.
fn completions(trace: &str) -> Vec<f64> {
    trace
        .lines()
        .filter_map(|line| {
            let (call, duration) = line.trim_end().strip_suffix('>')?.rsplit_once(" = 0 <")?;
            let at: f64 = call.split_whitespace().nth(1)?.parse().ok()?;
            let duration: f64 = duration.parse().ok()?;
            Some(if call.contains("resumed>") { at } else { at + duration })
        })
        .collect()
}
