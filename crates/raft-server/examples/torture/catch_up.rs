//! A stopped member misses writes and catches up while the others serve.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::cluster::Cluster;
use crate::history::check;
use crate::load::{Ledger, Load, check_ledger, revision, write};
use crate::{MEMBERS, Options};

/// One member is down while the others take many writes, then returns.
pub(crate) async fn catch_up(cluster: &mut Cluster, options: &Options) -> Result<()> {
    let leader = cluster.wait_for_leader().await?;
    let lagging = (leader + 1) % MEMBERS;
    let first = revision(&cluster.addresses[leader]).await?;
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
    let mut seen = Vec::new();
    for writer in writers {
        let record = writer.await?;
        ledger.extend(record.ledger);
        seen.extend(record.seen.0);
    }
    check(first, seen, &mut Vec::new())?;
    cluster.compare_members().await?;
    check_ledger(&cluster.addresses[lagging], &ledger).await?;
    println!("member {lagging} has every acknowledged write");
    report_log(&cluster.log_path(lagging))
}

/// What the member itself says about how it caught up.
fn report_log(path: &Path) -> Result<()> {
    for line in std::fs::read_to_string(path)?.lines().filter(|line| line.contains("snapshot")) {
        println!("  {line}");
    }
    Ok(())
}
