//! kill -9 under load: of the leader, or of every member at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::Cluster;
use crate::history::check;
use crate::load::{Fate, Ledger, Load, check_ledger, revision, write};
use crate::{MEMBERS, Options};

pub(crate) async fn kill_rounds(cluster: &mut Cluster, options: &Options, all: bool) -> Result<()> {
    let mut gaps = Vec::new();
    let mut ledger = Ledger::new();
    let mut late = Vec::new();
    for round in 0..options.rounds {
        let first = revision(&cluster.addresses[cluster.wait_for_leader().await?]).await?;
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
        let mut seen = Vec::new();
        for writer in writers {
            let record = writer.await?;
            ledger.extend(record.ledger);
            seen.extend(record.seen.0);
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
        check(first, seen, &mut late)?;
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
