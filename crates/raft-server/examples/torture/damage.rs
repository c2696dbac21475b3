//! One member after the other is stopped, damaged and started again while the others serve.
//!
//! Repaired is a member that, within 30 s, serves everything again and votes: equal digests of the state at one revision,
//! every acknowledged write, also once it leads. Refused is one that ends with a message that names a file and a place
//! in it; it then gets an empty folder, as its operator would give it. Anything else is a failure, and any wrong byte ends
//! the run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use raft::core::Rng;
use raft_kv::proto::etcdserverpb::{
    HashKvRequest, MemberListRequest, MoveLeaderRequest, RangeRequest,
};
use raft_server::proto::etcdserverpb::cluster_client::ClusterClient;
use raft_server::proto::etcdserverpb::kv_client::KvClient;
use raft_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, channel};
use crate::harm::{self, Harm};
use crate::load::{Ledger, Load, check_ledger, value_of, write};
use crate::{MEMBERS, Options};

/// How long a repair may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// Between a writer's writes, so that the machine has time for everything else.
const PAUSE: Duration = Duration::from_millis(8);
/// How long the others serve alone.
const ALONE: Duration = Duration::from_millis(400);

/// Writes before the first damage.
const WRITES_BEFORE: u64 = 5000;

/// The exit code of a member that wants to be started again.
const RESTART_ME: i32 = 75;

/// How a round ended.
#[derive(PartialEq, Eq)]
enum Outcome {
    Repaired(&'static str),
    Refused(String),
    Failed(String),
}

/// Runs the scenario.
pub(crate) async fn damage(cluster: &mut Cluster, options: &Options) -> Result<()> {
    let mut rng = Rng::new(options.seed);
    let mut plan = Vec::new();
    while plan.len() < options.rounds {
        plan.extend(Harm::ALL);
    }
    plan.truncate(options.rounds);
    for last in (1..plan.len()).rev() {
        let other = usize::try_from(rng.below(u64::try_from(last)? + 1))?;
        plan.swap(last, other);
    }
    let load = Load::with_pause(cluster.addresses.clone(), PAUSE);
    let writers: Vec<_> = (0..options.clients)
        .map(|client| tokio::spawn(write(Arc::clone(&load), "d".to_owned(), client)))
        .collect();
    let wrong = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn(read(Arc::clone(&load), Arc::clone(&wrong), rng.next_u64()));
    // Every folder has segments, checkpoints and a log that does not begin at the beginning.
    let began = Instant::now();
    while load.acknowledged.load(Ordering::Relaxed) < WRITES_BEFORE {
        ensure!(began.elapsed() < 4 * LIMIT, "no {WRITES_BEFORE} writes within {:?}", 4 * LIMIT);
        tokio::time::sleep(PAUSE).await;
    }
    println!("seed {}", options.seed);
    println!("{:>5}  {:<16} {:<52} {:>6}  outcome", "round", "harm", "what", "ms");
    let mut outcomes = Vec::new();
    for (round, harm) in plan.into_iter().enumerate() {
        let victim = usize::try_from(rng.below(u64::try_from(MEMBERS)?))?;
        let (what, millis, outcome) = one_round(cluster, &load, &mut rng, harm, victim).await?;
        let text = match &outcome {
            Outcome::Repaired(how) => (*how).to_owned(),
            Outcome::Refused(message) => format!("refused: {message}"),
            Outcome::Failed(reason) => format!("FAILED: {reason}"),
        };
        let what = format!("{victim} {what}");
        println!("{round:>5}  {:<16} {what:<52} {millis:>6}  {text}", format!("{harm:?}"));
        if !matches!(outcome, Outcome::Repaired(_)) {
            replace(cluster, victim).await?;
        }
        outcomes.push(outcome);
        ensure!(!wrong.load(Ordering::Relaxed), "a read returned what was never written");
    }
    load.stop.store(true, Ordering::Relaxed);
    let mut ledger = Ledger::new();
    for writer in writers {
        ledger.extend(writer.await?.ledger);
    }
    let reads: JoinHandle<Result<u64>> = reader;
    let reads = reads.await??;
    cluster.compare_members().await?;
    for address in &cluster.addresses {
        check_ledger(address, &ledger).await?;
    }
    let count = |f: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| f(outcome)).count();
    let repaired = count(|outcome| matches!(outcome, Outcome::Repaired(_)));
    let refused = count(|outcome| matches!(outcome, Outcome::Refused(_)));
    println!(
        "{repaired} of {} damages repaired, {refused} refused; {} writes, every acknowledged one on every member; \
         {reads} reads, none of them wrong",
        outcomes.len(),
        ledger.len()
    );
    ensure!(repaired + refused == outcomes.len(), "some members neither came back nor said why");
    // As promised: at least 38 of 40.
    ensure!(repaired * 20 >= outcomes.len() * 19, "too few were repaired");
    Ok(())
}

async fn one_round(
    cluster: &mut Cluster,
    load: &Load,
    rng: &mut Rng,
    harm: Harm,
    victim: usize,
) -> Result<(String, u128, Outcome)> {
    let folder = cluster.data_dir(victim);
    let old = cluster.dir.join("yesterday");
    if harm == Harm::OldCopy {
        cluster.kill(victim)?;
        if old.exists() {
            std::fs::remove_dir_all(&old)?;
        }
        harm::copy(&folder, &old)?;
        cluster.start(victim)?;
        whole(cluster, load, victim, Instant::now(), None).await?;
        tokio::time::sleep(ALONE).await;
    }
    if rng.chance(1, 2) {
        cluster.kill(victim)?;
    } else {
        cluster.stop(victim)?;
    }
    let what = harm.inflict(rng, &folder, &old)?;
    tokio::time::sleep(ALONE).await;
    let log = cluster.log_path(victim);
    let printed = std::fs::metadata(&log)?.len();
    let began = Instant::now();
    cluster.start(victim)?;
    let outcome = match whole(cluster, load, victim, began, Some(LIMIT)).await {
        Ok(()) => {
            let millis = began.elapsed().as_millis();
            let how = how(&since(&log, printed)?);
            lead(cluster, victim).await.context("the repaired member does not lead")?;
            check_acknowledged(cluster, load, victim, rng).await?;
            look_after(&folder)?;
            return Ok((what, millis, Outcome::Repaired(how)));
        }
        Err(error) => {
            let text = since(&log, printed)?;
            let ended = cluster.has_ended(victim)?;
            let says = text.lines().find(|line| line.contains("is damaged at byte"));
            match (ended, says) {
                (true, Some(line)) => Outcome::Refused(line.trim().to_owned()),
                (true, None) => {
                    Outcome::Failed(format!("ended: {}", text.lines().last().unwrap_or_default()))
                }
                (false, _) => Outcome::Failed(format!(
                    "{error:#}; it says: {}",
                    text.lines().rfind(|line| line.contains("idle")).unwrap_or_default()
                )),
            }
        }
    };
    Ok((what, began.elapsed().as_millis(), outcome))
}

/// What the member has printed since.
pub(crate) fn since(log: &Path, printed: u64) -> Result<String> {
    let bytes = std::fs::read(log)?;
    Ok(String::from_utf8_lossy(&bytes[usize::try_from(printed)?..]).into_owned())
}

/// How a member came back, by its own words.
fn how(text: &str) -> &'static str {
    let says = |part: &str| text.contains(part);
    if says("this member starts empty") {
        "set aside, taken in anew"
    } else if says("has no data") || says("a snapshot has arrived") {
        "taken in anew"
    } else if says("is repaired") || says("repaired") {
        "repaired in place"
    } else if says("damaged") {
        "another copy was used"
    } else {
        "not needed at the start"
    }
}

/// Waits until the member serves everything and votes: the digest of its state at a revision of now is that of another.
async fn whole(
    cluster: &mut Cluster,
    load: &Load,
    victim: usize,
    began: Instant,
    limit: Option<Duration>,
) -> Result<()> {
    let other = (victim + 1) % MEMBERS;
    let limit = limit.unwrap_or(LIMIT);
    let acknowledged = load.acknowledged.load(Ordering::Relaxed);
    loop {
        let equal = is_whole(cluster, victim, other).await;
        // As `cluster` and service managers do.
        if cluster.has_ended(victim)? && cluster.exit_code(victim)? == Some(RESTART_ME) {
            cluster.start(victim)?;
            continue;
        }
        let served = load.acknowledged.load(Ordering::Relaxed) > acknowledged;
        match equal {
            Ok(()) if served => return Ok(()),
            _ if cluster.has_ended(victim)? => bail!("it ended"),
            Err(error) if began.elapsed() > limit => return Err(error),
            Ok(()) if began.elapsed() > limit => bail!("nobody was served meanwhile"),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

pub(crate) async fn is_whole(cluster: &Cluster, victim: usize, other: usize) -> Result<()> {
    let status = cluster.status(victim).await.context("it does not answer")?;
    ensure!(status.errors.is_empty(), "it says {:?}", status.errors);
    ensure!(!status.is_learner, "it is a learner");
    let mut members = ClusterClient::new(channel(&cluster.addresses[victim]).await?);
    let list = members.member_list(MemberListRequest { linearizable: true }).await?.into_inner();
    let voters = list.members.iter().filter(|member| !member.is_learner).count();
    ensure!(voters == MEMBERS, "{voters} members vote");
    let mut hashes = Vec::new();
    let mut revision = 0;
    for member in [other, victim] {
        // A linearizable read first: the member has everything up to now.
        let address = &cluster.addresses[member];
        let key = Bytes::from_static(b"d/shared/0");
        let get = RangeRequest { key, ..RangeRequest::default() };
        let answer = KvClient::new(channel(address).await?).range(get).await?.into_inner();
        if revision == 0 {
            revision = answer.header.map_or(0, |header| header.revision);
        }
        let mut client = MaintenanceClient::new(channel(address).await?);
        hashes.push(client.hash_kv(HashKvRequest { revision }).await?.into_inner().hash);
    }
    ensure!(hashes[0] == hashes[1], "wrong state: {hashes:?} at revision {revision}");
    Ok(())
}

/// Moves leadership to the member.
async fn lead(cluster: &Cluster, victim: usize) -> Result<()> {
    let began = Instant::now();
    loop {
        let leader = cluster.wait_for_leader().await?;
        if leader == victim {
            return Ok(());
        }
        let status = cluster.status(victim).await?;
        let target_id = status.header.map_or(0, |header| header.member_id);
        let mut client = MaintenanceClient::new(channel(&cluster.addresses[leader]).await?);
        let moved = client.move_leader(MoveLeaderRequest { target_id }).await;
        if let Err(error) = moved {
            ensure!(began.elapsed() < LIMIT, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Reads a thousand acknowledged writes through the member.
async fn check_acknowledged(
    cluster: &Cluster,
    load: &Load,
    victim: usize,
    rng: &mut Rng,
) -> Result<()> {
    let mut kv = KvClient::new(channel(&cluster.addresses[victim]).await?);
    for _ in 0..200 {
        let Some(key) = load.any_acknowledged(rng.next_u64()) else { return Ok(()) };
        check_one(&mut kv, &key).await?.context("the member does not answer")?;
    }
    Ok(())
}

/// One read; the inner error is that of a member that does not answer, the outer one that of a lie.
async fn check_one(kv: &mut KvClient<tonic::transport::Channel>, key: &str) -> Result<Result<()>> {
    let get = RangeRequest { key: Bytes::from(key.to_owned()), ..RangeRequest::default() };
    match kv.range(get).await {
        Ok(answer) => {
            let kvs = answer.into_inner().kvs;
            let value = kvs.first().map(|pair| &pair.value);
            ensure!(value.is_some(), "the acknowledged write {key} is lost");
            ensure!(value == Some(&value_of(key)), "{key} has a wrong value: {value:?}");
            Ok(Ok(()))
        }
        Err(status) => Ok(Err(status.into())),
    }
}

/// Reads acknowledged writes through every member, all the time.
async fn read(load: Arc<Load>, wrong: Arc<AtomicBool>, seed: u64) -> Result<u64> {
    let (mut rng, mut reads) = (Rng::new(seed), 0);
    let mut member = 0;
    while !load.stop.load(Ordering::Relaxed) {
        member = (member + 1) % MEMBERS;
        let Ok(channel) = channel(&load.addresses[member]).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let mut kv = KvClient::new(channel);
        for _ in 0..20 {
            let Some(key) = load.any_acknowledged(rng.next_u64()) else { break };
            match check_one(&mut kv, &key).await {
                Ok(Ok(())) => reads += 1,
                Ok(Err(_)) => break,
                Err(lie) => {
                    println!("{}: {lie:#}", load.addresses[member]);
                    wrong.store(true, Ordering::Relaxed);
                    return Err(lie);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(reads)
}

/// What an operator does who looks seldom: only when three folders of a member stand aside they are deleted.
fn look_after(folder: &Path) -> Result<()> {
    let aside = raft::node::set_aside_folders(folder);
    if aside.len() >= 3 {
        for path in aside {
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// What an operator does with a member that does not come back: an empty folder.
async fn replace(cluster: &mut Cluster, victim: usize) -> Result<()> {
    cluster.kill(victim)?;
    let folder = cluster.data_dir(victim);
    for path in raft::node::set_aside_folders(&folder).into_iter().chain([folder]) {
        if path.exists() {
            std::fs::remove_dir_all(path)?;
        }
    }
    cluster.start(victim)?;
    let began = Instant::now();
    loop {
        match is_whole(cluster, victim, (victim + 1) % MEMBERS).await {
            Ok(()) => return Ok(()),
            Err(error) if began.elapsed() > 2 * LIMIT => {
                return Err(error.context("an empty folder is not taken in"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
