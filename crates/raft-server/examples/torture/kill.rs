//! kill -9 under load: of the leader, or of every member at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use raft_kv::proto::etcdserverpb::{CompactionRequest, DeleteRangeRequest};
use raft_server::proto::etcdserverpb::kv_client::KvClient;

use crate::cluster::{Cluster, channel};
use crate::history::check;
use crate::load::{Fate, Ledger, Load, check_ledger, revision, write};
use crate::{MEMBERS, Options};

pub(crate) async fn kill_rounds(cluster: &mut Cluster, options: &Options, all: bool) -> Result<()> {
    let mut gaps = Vec::new();
    let mut ledger = Ledger::new();
    let mut late = Vec::new();
    // What was checked and deleted already, as [acknowledged, refused, unknown].
    let mut swept = [0; 3];
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
        let [acknowledged, refused, unknown] = totals(&ledger, swept);
        println!(
            "round {round}: member {leader} led; first write {gap} ms after the kill; so far {acknowledged} \
             acknowledged, {refused} refused, {unknown} unknown"
        );
        check(first, seen, &mut late)?;
        if options.sweep {
            check_members(cluster, &ledger).await?;
            swept = totals(&ledger, swept);
            ledger.clear();
            delete_everything(&cluster.addresses[0]).await?;
        }
    }
    cluster.compare_members().await?;
    check_members(cluster, &ledger).await?;
    println!("through every member: every acknowledged write is there, no refused one");
    gaps.sort_unstable();
    println!("gaps in ms: median {}, max {}", gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    Ok(())
}

fn totals(ledger: &Ledger, swept: [usize; 3]) -> [usize; 3] {
    let mut totals = swept;
    for fate in ledger.values() {
        let place = match fate {
            Fate::Acknowledged => 0,
            Fate::Refused => 1,
            Fate::Unknown => 2,
        };
        totals[place] += 1;
    }
    totals
}

async fn check_members(cluster: &Cluster, ledger: &Ledger) -> Result<()> {
    for address in &cluster.addresses {
        check_ledger(address, ledger).await?;
    }
    Ok(())
}

/// Deletes every key, and the history with it.
async fn delete_everything(address: &str) -> Result<()> {
    let mut kv = KvClient::new(channel(address).await?);
    let all = DeleteRangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..DeleteRangeRequest::default()
    };
    let header = kv.delete_range(all).await?.into_inner().header;
    let revision = header.map_or(0, |header| header.revision);
    let compaction = CompactionRequest { revision, ..CompactionRequest::default() };
    kv.compact(compaction).await?;
    Ok(())
}
