//! A disk that refuses: one failed `fdatasync`, injected by strace, and file systems without space.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use raft_kv::proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use raft_server::proto::etcdserverpb::kv_client::KvClient;

use crate::cluster::{Cluster, channel};
use crate::load::{Ledger, Load, Record, check_ledger, write};
use crate::synced::wait_until_traced;
use crate::{MEMBERS, Options};

/// How long whatever must happen may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Between a writer's writes.
const PAUSE: Duration = Duration::from_millis(4);
/// How long a cluster must go on in each state.
const WHILE: Duration = Duration::from_secs(2);
/// Bytes of the file system under a member.
const DISK_BYTES: u64 = 96 << 20;
/// The exit code of a disk that latched.
const LATCHED: i32 = 74;
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

type Writers = Vec<tokio::task::JoinHandle<Record>>;

fn begin(cluster: &Cluster, options: &Options, run: &str) -> (Arc<Load>, Writers) {
    let load = Load::with_pause(cluster.addresses.clone(), PAUSE);
    let writers = (0..options.clients)
        .map(|client| tokio::spawn(write(Arc::clone(&load), run.to_owned(), client)))
        .collect();
    (load, writers)
}

async fn end(load: &Load, writers: Writers, ledger: &mut Ledger) -> Result<()> {
    load.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        ledger.extend(writer.await?.ledger);
    }
    Ok(())
}

/// Waits until so many more writes are acknowledged.
async fn more_writes(load: &Load, count: u64) -> Result<Duration> {
    let (began, before) = (Instant::now(), load.acknowledged.load(Ordering::Relaxed));
    while load.acknowledged.load(Ordering::Relaxed) < before + count {
        ensure!(began.elapsed() < LIMIT, "no {count} writes within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(began.elapsed())
}

/// One `fdatasync` of the leader, then of a follower fails.
pub(crate) async fn sync_error(cluster: &mut Cluster, options: &Options) -> Result<()> {
    let mut ledger = Ledger::new();
    for leads in [true, false] {
        let (load, writers) = begin(cluster, options, if leads { "l" } else { "f" });
        more_writes(&load, 100).await?;
        let leader = cluster.wait_for_leader().await?;
        let victim = if leads { leader } else { (leader + 1) % MEMBERS };
        let term = cluster.status(leader).await?.raft_term;
        let pid = cluster.children[victim].as_ref().context("it runs")?.id();
        let printed = std::fs::metadata(cluster.log_path(victim))?.len();
        let mut tracer = Command::new("strace")
            .args(["-f", "-q", "-e", "trace=fdatasync", "-e"])
            .arg("inject=fdatasync:error=EIO:when=20")
            .args(["-p", &pid.to_string(), "-o"])
            .arg(cluster.dir.join("sync_error.strace"))
            .stderr(Stdio::null())
            .spawn()
            .context("starting strace")?;
        wait_until_traced(pid).await?;
        let began = Instant::now();
        while !cluster.has_ended(victim)? {
            ensure!(began.elapsed() < LIMIT, "the member goes on after a failed sync");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tracer.wait()?;
        let gap = more_writes(&load, 100).await?;
        let code = cluster.exit_code(victim)?;
        ensure!(code == Some(LATCHED), "it ended with {code:?}");
        let bytes = std::fs::read(cluster.log_path(victim))?;
        let text = String::from_utf8_lossy(&bytes[usize::try_from(printed)?..]).into_owned();
        let says =
            text.lines().find(|line| line.contains("failed: Input/output error (os error 5)"));
        let says = says.with_context(|| format!("no word on file and errno in\n{text}"))?;
        ensure!(says.contains("_data.raft/"), "no file in {says:?}");
        let next = cluster.wait_for_leader().await?;
        let now = cluster.status(next).await?.raft_term;
        ensure!(next != victim, "it still leads");
        if leads {
            ensure!(text.contains("hands leadership over"), "leadership was not handed over");
        } else {
            ensure!(now == term, "a follower's disk cost the leader its place");
        }
        cluster.start(victim)?;
        end(&load, writers, &mut ledger).await?;
        cluster.compare_members().await?;
        let bytes = std::fs::read(cluster.log_path(victim))?;
        let text = String::from_utf8_lossy(&bytes[usize::try_from(printed)?..]).into_owned();
        // What it only read back is not taken for durable: it writes and syncs its tail again.
        ensure!(text.contains("unclean=true"), "the restart trusts what was not synced");
        println!(
            "{} {victim}: exit {LATCHED}; 100 further writes took {} ms; term {term} before, {now} after; it says: {}",
            if leads { "leader" } else { "follower" },
            gap.as_millis(),
            says.trim()
        );
    }
    for address in &cluster.addresses {
        check_ledger(address, &ledger).await?;
    }
    println!("{} writes: every acknowledged one on every member, no refused one", ledger.len());
    Ok(())
}

/// A file that takes all the space that is left.
fn fill(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("ballast");
    let mut file = std::fs::File::create(&path)?;
    let block = vec![0xA5; 64 << 10];
    loop {
        match std::io::Write::write_all(&mut file, &block) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(path),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Puts a file system of its own under every member, before any of them starts.
pub(crate) fn mount(cluster: &Cluster) -> Result<()> {
    for member in 0..MEMBERS {
        let folder = cluster.dir.join(format!("disk_{member}"));
        std::fs::create_dir_all(&folder)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK_BYTES}"), "none"])
            .arg(&folder)
            .status()?;
        ensure!(
            mounted.success(),
            "mounting is not permitted: run this as `unshare --map-root-user --mount torture full-disk`"
        );
        let state = folder.join("state");
        std::fs::create_dir_all(&state)?;
        std::os::unix::fs::symlink(&state, cluster.data_dir(member))?;
    }
    Ok(())
}

/// No space under one member, then under all.
pub(crate) async fn full_disk(cluster: &mut Cluster, options: &Options) -> Result<()> {
    let mut ledger = Ledger::new();
    let disk = |cluster: &Cluster, member: usize| cluster.dir.join(format!("disk_{member}"));
    keep_for_later(cluster).await?;

    for leads in [false, true] {
        let (load, writers) = begin(cluster, options, if leads { "l" } else { "f" });
        more_writes(&load, 200).await?;
        let leader = cluster.wait_for_leader().await?;
        let victim = if leads { leader } else { (leader + 1) % MEMBERS };
        let ballast = fill(&disk(cluster, victim))?;
        let began = Instant::now();
        while began.elapsed() < WHILE {
            more_writes(&load, 50).await?;
        }
        ensure!(!cluster.has_ended(victim)?, "a full disk ended the member");
        std::fs::remove_file(ballast)?;
        end(&load, writers, &mut ledger).await?;
        cluster.compare_members().await?;
        println!(
            "no space under the {}: the cluster served on, and the member caught up",
            if leads { "leader" } else { "follower" }
        );
    }

    let (load, writers) = begin(cluster, options, "a");
    more_writes(&load, 200).await?;
    let ballast: Vec<PathBuf> =
        (0..MEMBERS).map(|member| fill(&disk(cluster, member))).collect::<Result<_>>()?;
    let began = Instant::now();
    let refused = loop {
        match put(cluster, "full/probe").await {
            Err(status) if status.message() == NO_SPACE => break began.elapsed(),
            Ok(()) | Err(_) => {}
        }
        ensure!(began.elapsed() < LIMIT, "writes are not refused for want of space");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let term = until_a_quorum_is_full(cluster).await?;
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < WHILE {
        let mut behind = 0;
        for member in 0..MEMBERS {
            ensure!(!cluster.has_ended(member)?, "a full disk ended member {member}");
            let mut kv = KvClient::new(channel(&cluster.addresses[member]).await?);
            let key = Bytes::from(format!("later/{number}"));
            let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
            let asked = Instant::now();
            let found = match kv.range(get.clone()).await {
                // Its disk was full before the others', who went on without it.
                Err(status) if status.message().contains("this member is behind") => {
                    ensure!(asked.elapsed() < 2 * WHILE, "a member that is behind lets one wait");
                    behind += 1;
                    continue;
                }
                found => found.context("reading without space")?,
            };
            ensure!(found.into_inner().count == 1, "{key:?} is gone");
            let delete = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
            kv.delete_range(delete).await.context("deleting without space")?;
            let found = kv.range(get).await.context("reading without space")?;
            ensure!(found.into_inner().count == 0, "what was deleted is still there");
            number += 1;
        }
        ensure!(behind <= MEMBERS / 2, "a quorum is behind");
        for member in 0..MEMBERS {
            match put_through(cluster, member, "full/probe").await {
                Err(status) => ensure!(status.message() == NO_SPACE, "refused with {status}"),
                Ok(()) => bail!("a write was taken without space"),
            }
        }
    }
    let now = cluster.status(cluster.wait_for_leader().await?).await?.raft_term;
    ensure!(now == term, "the term went from {term} to {now} while there was no space");
    for ballast in ballast {
        std::fs::remove_file(ballast)?;
    }
    let resumed = more_writes(&load, 100).await?;
    end(&load, writers, &mut ledger).await?;
    cluster.compare_members().await?;
    for address in &cluster.addresses {
        check_ledger_beside(address, &ledger).await?;
    }
    println!(
        "no space under all three: refused with {NO_SPACE:?} after {} ms, {number} keys read and deleted meanwhile, the \
         same leader; 100 writes within {} ms once there was space; {} writes, every acknowledged one on every member",
        refused.as_millis(),
        resumed.as_millis(),
        ledger.len()
    );
    Ok(())
}

/// Waits until a quorum says that it has no space, and leadership has come to rest. Returns the term. (The last one's log
/// may have some left for ever: no more is taken.)
async fn until_a_quorum_is_full(cluster: &Cluster) -> Result<u64> {
    let (began, mut since, mut known) = (Instant::now(), Instant::now(), 0);
    while since.elapsed() < WHILE {
        ensure!(began.elapsed() < LIMIT, "leadership goes round, or a full disk goes unnoticed");
        let (mut full, mut terms) = (0, BTreeSet::new());
        for member in 0..MEMBERS {
            let status = cluster.status(member).await?;
            full += usize::from(status.errors.iter().any(|error| error.starts_with("NOSPACE")));
            terms.insert(if status.leader == 0 { u64::MAX } else { status.raft_term });
        }
        let is_settled = full > MEMBERS / 2 && terms.len() == 1;
        let term = terms.last().copied().filter(|_| is_settled).unwrap_or(u64::MAX);
        if term != known || term == u64::MAX {
            (since, known) = (Instant::now(), term);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(known)
}

/// Keys to be read and deleted while there is no space.
async fn keep_for_later(cluster: &Cluster) -> Result<()> {
    for number in 0..3000 {
        put(cluster, &format!("later/{number}")).await?;
    }
    Ok(())
}

async fn put(cluster: &Cluster, key: &str) -> Result<(), tonic::Status> {
    put_through(cluster, 0, key).await
}

async fn put_through(cluster: &Cluster, member: usize, key: &str) -> Result<(), tonic::Status> {
    let unreachable = |error: anyhow::Error| tonic::Status::unavailable(error.to_string());
    let mut kv = KvClient::new(channel(&cluster.addresses[member]).await.map_err(unreachable)?);
    let key = Bytes::from(key.to_owned());
    kv.put(PutRequest { value: key.clone(), key, ..PutRequest::default() }).await.map(|_| ())
}

/// As [`check_ledger`], after the keys that are no writer's have been deleted.
async fn check_ledger_beside(address: &str, ledger: &Ledger) -> Result<()> {
    let mut kv = KvClient::new(channel(address).await?);
    for prefix in ["later/", "full/"] {
        let end = format!("{}0", prefix.trim_end_matches('/'));
        let (key, range_end) = (Bytes::from(prefix.to_owned()), Bytes::from(end));
        kv.delete_range(DeleteRangeRequest { key, range_end, ..DeleteRangeRequest::default() })
            .await?;
    }
    check_ledger(address, ledger).await
}
