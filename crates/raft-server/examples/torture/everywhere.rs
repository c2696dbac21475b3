//! All members are stopped, all of their logs damaged, and all started again: first different entries, then the same one.
//!
//! Of different entries each member gets back what another still has. Of an entry that none has, either a checkpoint has
//! what it did, or the cluster stands still and names it; it never serves without it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use raft::core::Rng;
use raft_kv::proto::etcdserverpb::RangeRequest;
use raft_server::proto::etcdserverpb::kv_client::KvClient;

use crate::cluster::{Cluster, channel};
use crate::damage::{LIMIT, is_whole, since};
use crate::harm;
use crate::load::{Fate, Ledger, Load, check_ledger, value_of, write};
use crate::{MEMBERS, Options};

/// Writes of one round.
const WRITES: u64 = 3000;
/// How long a cluster that stands still is watched.
const WATCHED: Duration = Duration::from_secs(5);
const VALUE: &[u8] = b"value of ";

/// Where the values of a key stand in a member's log.
type Places = BTreeMap<String, Vec<(PathBuf, u64)>>;

/// Runs the scenario.
pub(crate) async fn everywhere(cluster: &mut Cluster, options: &Options) -> Result<()> {
    let mut rng = Rng::new(options.seed);
    let mut ledger = Ledger::new();
    for round in 0..options.rounds {
        let names = write_some(cluster, options, &format!("e{round}"), &mut ledger).await?;
        end_all(cluster, &mut rng)?;
        let logs = logs(cluster)?;
        let mut damaged = [0; MEMBERS];
        for (nth, name) in names.iter().enumerate() {
            let member = nth % MEMBERS;
            if rng.chance(1, 10) {
                damaged[member] += overwrite(&logs[member], name)?;
            }
        }
        let began = Instant::now();
        ensure!(start_all(cluster).await?, "different damage on each is not repaired");
        check(cluster, &ledger).await?;
        println!(
            "round {round}: {damaged:?} values overwritten in the three logs; everything there after {} ms",
            began.elapsed().as_millis()
        );
    }
    for (round, newest) in [false, true].into_iter().enumerate() {
        let names = write_some(cluster, options, &format!("s{round}"), &mut ledger).await?;
        end_all(cluster, &mut rng)?;
        same_entry(cluster, &ledger, &names, newest).await?;
    }
    Ok(())
}

/// Load for a while; the names of the keys that were acknowledged, in no order of time.
async fn write_some(
    cluster: &Cluster,
    options: &Options,
    run: &str,
    ledger: &mut Ledger,
) -> Result<Vec<String>> {
    let load = Load::on(cluster.addresses.clone());
    let writers: Vec<_> = (0..options.clients)
        .map(|client| tokio::spawn(write(Arc::clone(&load), run.to_owned(), client)))
        .collect();
    let began = Instant::now();
    while load.acknowledged.load(Ordering::Relaxed) < WRITES {
        ensure!(began.elapsed() < LIMIT, "no {WRITES} writes within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    load.stop.store(true, Ordering::Relaxed);
    let mut names = Vec::new();
    for writer in writers {
        let written = writer.await?.ledger;
        let acknowledged = written.iter().filter(|(_, fate)| **fate == Fate::Acknowledged);
        names.extend(acknowledged.map(|(name, _)| name.clone()));
        ledger.extend(written);
    }
    Ok(names)
}

fn end_all(cluster: &mut Cluster, rng: &mut Rng) -> Result<()> {
    for member in 0..MEMBERS {
        if rng.chance(1, 2) { cluster.kill(member)? } else { cluster.stop(member)? }
    }
    Ok(())
}

/// Starts all; whether everybody was whole in time.
async fn start_all(cluster: &mut Cluster) -> Result<bool> {
    for member in 0..MEMBERS {
        cluster.start(member)?;
    }
    let began = Instant::now();
    loop {
        let mut whole = 0;
        for member in 0..MEMBERS {
            ensure!(!cluster.has_ended(member)?, "member {member} has ended");
            whole += usize::from(is_whole(cluster, member, (member + 1) % MEMBERS).await.is_ok());
        }
        if whole == MEMBERS || began.elapsed() > LIMIT {
            return Ok(whole == MEMBERS);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn check(cluster: &Cluster, ledger: &Ledger) -> Result<()> {
    cluster.compare_members().await?;
    for address in &cluster.addresses {
        check_ledger(address, ledger).await?;
    }
    Ok(())
}

/// Where values stand in the logs, not in what is recycled or in checkpoints.
fn logs(cluster: &Cluster) -> Result<Vec<Places>> {
    (0..MEMBERS).map(|member| places(&cluster.data_dir(member))).collect()
}

fn places(folder: &Path) -> Result<Places> {
    let mut places = Places::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let bytes = fs::read(&path)?;
        let mut from = 0;
        while let Some(at) = bytes[from..].windows(VALUE.len()).position(|it| it == VALUE) {
            from += at;
            let name = bytes[from + VALUE.len()..].iter();
            let name = name.take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'/');
            let name = name.map(|byte| char::from(*byte)).collect();
            places.entry(name).or_default().push((path.clone(), u64::try_from(from)?));
            from += VALUE.len();
        }
    }
    Ok(places)
}

/// Overwrites the value of a key wherever it stands; how many times that was.
fn overwrite(places: &Places, name: &str) -> Result<usize> {
    let Some(places) = places.get(name) else { return Ok(0) };
    for (path, offset) in places {
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(b"VALUE OF ", *offset)?;
    }
    Ok(places.len())
}

/// One entry, the oldest or the newest that all logs have, damaged in all of them.
async fn same_entry(
    cluster: &mut Cluster,
    ledger: &Ledger,
    names: &[String],
    newest: bool,
) -> Result<()> {
    let logs = logs(cluster)?;
    let everywhere =
        names.iter().filter(|name| logs.iter().all(|places| places.contains_key(*name)));
    // Where it stands in the first log: segments are numbered.
    let position = |name: &&String| logs[0][*name].last().cloned();
    let name =
        if newest { everywhere.max_by_key(position) } else { everywhere.min_by_key(position) };
    let name = name.context("no entry is in all logs")?;
    let copies: Vec<PathBuf> =
        (0..MEMBERS).map(|member| cluster.dir.join(format!("copy_{member}"))).collect();
    let mut printed = Vec::new();
    for (member, copy) in copies.iter().enumerate() {
        harm::copy(&cluster.data_dir(member), copy)?;
        overwrite(&logs[member], name)?;
        printed.push(fs::metadata(cluster.log_path(member))?.len());
    }
    if start_all(cluster).await? {
        check(cluster, ledger).await?;
        println!("{name} overwritten in all three logs: everything is there all the same");
    } else {
        let began = Instant::now();
        while began.elapsed() < WATCHED {
            for address in &cluster.addresses {
                let served = read(address, name).await;
                ensure!(served.is_none(), "served without {name}: {served:?}");
            }
        }
        let mut named = Vec::new();
        for (member, printed) in printed.into_iter().enumerate() {
            let text = since(&cluster.log_path(member), printed)?;
            let waits = text.lines().rfind(|line| line.contains("this member waits"));
            let waits =
                waits.with_context(|| format!("member {member} does not say why it waits"))?;
            named.push(waits.trim().to_owned());
        }
        println!("{name} overwritten in all three logs: the cluster stands still, {}", named[0]);
    }
    for (member, copy) in copies.iter().enumerate() {
        cluster.kill(member)?;
        fs::remove_dir_all(cluster.data_dir(member))?;
        fs::rename(copy, cluster.data_dir(member))?;
    }
    ensure!(start_all(cluster).await?, "with the undamaged folders it does not serve");
    check(cluster, ledger).await
}

/// What a linearizable read of the key answers, if anything.
async fn read(address: &str, name: &str) -> Option<bool> {
    let key = Bytes::from(name.to_owned());
    let get = RangeRequest { key, ..RangeRequest::default() };
    let answer = KvClient::new(channel(address).await.ok()?).range(get).await.ok()?.into_inner();
    Some(answer.kvs.first().is_some_and(|pair| pair.value == value_of(name)))
}
