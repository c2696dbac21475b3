//! With strace attached: a quorum completes an fdatasync before each answer.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use raft_kv::proto::etcdserverpb::PutRequest;
use raft_server::proto::etcdserverpb::kv_client::KvClient;

use crate::MEMBERS;
use crate::cluster::{Cluster, channel};

/// Attaches strace to every member and writes 100 keys, one at a time.
pub(crate) async fn synced(cluster: &Cluster) -> Result<()> {
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
pub(crate) async fn wait_until_traced(pid: u32) -> Result<()> {
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
