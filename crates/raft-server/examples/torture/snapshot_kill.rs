//! A snapshot on its way while its receiver, then its sender is killed: what has arrived is not sent again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use raft_kv::proto::etcdserverpb::PutRequest;
use raft_server::proto::etcdserverpb::kv_client::KvClient;

use crate::cluster::{Cluster, channel};
use crate::{MEMBERS, Options};

const MEBIBYTE: u64 = 1 << 20;
/// The file of a blob (docs/disk-format.md): a header, then blocks of so many bytes with a header each.
const HEADER_BYTES: u64 = 64;
const BLOCK_BYTES: u64 = 64 << 10;
const BLOCK_HEADER_BYTES: u64 = 8;

/// Runs the scenario.
pub(crate) async fn snapshot_kill(cluster: &mut Cluster, options: &Options) -> Result<()> {
    let leader = cluster.wait_for_leader().await?;
    let receiver = (leader + 1) % MEMBERS;
    cluster.kill(receiver)?;
    fill(&cluster.addresses[leader], options.megabytes).await?;
    let folder = cluster.data_dir(receiver).join("snapshot");
    let log = cluster.log_path(receiver);

    cluster.start(receiver)?;
    wait_for_bytes(&folder, options.megabytes * MEBIBYTE / 4).await?;
    cluster.kill(receiver)?;
    let first = bytes_in(&folder)?;

    cluster.start(receiver)?;
    wait_for_bytes(&folder, options.megabytes * MEBIBYTE / 2).await?;
    let sender = cluster.wait_for_leader().await?;
    let second = bytes_in(&folder)?;
    cluster.kill(sender)?;
    // Back before the two others agree, the same member would lead and send again.
    cluster.wait_for_leader().await?;
    cluster.start(sender)?;
    cluster.compare_members().await?;

    let transfers = transfers(&log)?;
    for transfer in &transfers {
        println!("  {transfer:?}");
    }
    let begun = transfers.iter().find(|it| it.life == 2).context("nothing was offered")?;
    ensure!(begun.here < first / 2, "{} bytes were there from the beginning", begun.here);
    let mut last_life = transfers.iter().filter(|it| it.life == 3);
    let resumed = last_life.next().context("nothing was offered after the receiver's death")?;
    let taken_over = last_life.find(|it| it.sender != resumed.sender);
    let taken_over = taken_over.context("the sender's death came too late")?;
    // The last, incomplete block on disk is sent again; only one blob at a time is incomplete.
    for (transfer, there) in [(resumed, first), (taken_over, second)] {
        ensure!(
            transfer.here + BLOCK_BYTES >= there,
            "{there} bytes lay on the receiver's disk, and only {} counted",
            transfer.here
        );
    }
    let last = transfers.last().context("checked above")?;
    let received = last.received.context("the last transfer came to no end")?;
    ensure!(
        last.here + received == last.bytes,
        "{received} bytes came although {} of {} were there",
        last.here,
        last.bytes
    );
    println!(
        "a snapshot of {} bytes: {first} on disk when the receiver died, {} of them counted; {second} when the \
         sender died, {} counted; {received} came after that",
        last.bytes, resumed.here, taken_over.here
    );
    Ok(())
}

/// Writes that many values of one mebibyte, none like the other.
async fn fill(address: &str, megabytes: u64) -> Result<()> {
    let began = Instant::now();
    let mut kv = KvClient::new(channel(address).await?);
    for number in 0..megabytes {
        let value: Vec<u8> =
            (0..MEBIBYTE / 8).flat_map(|n| (n ^ number << 32).to_le_bytes()).collect();
        let key = Bytes::from(format!("large/{number}"));
        kv.put(PutRequest { key, value: Bytes::from(value), ..PutRequest::default() }).await?;
    }
    println!("{megabytes} MiB written in {} ms", began.elapsed().as_millis());
    Ok(())
}

/// Content of blobs in a snapshot folder, whole ones and beginnings.
fn bytes_in(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("blob-") {
            continue;
        }
        match entry.metadata() {
            Ok(metadata) => {
                let blocks = metadata.len().saturating_sub(HEADER_BYTES);
                let headers = blocks.div_ceil(BLOCK_BYTES + BLOCK_HEADER_BYTES);
                bytes += blocks.saturating_sub(headers * BLOCK_HEADER_BYTES);
            }
            // Renamed meanwhile: counted next time.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

async fn wait_for_bytes(folder: &Path, bytes: u64) -> Result<()> {
    let began = Instant::now();
    while bytes_in(folder)? < bytes {
        ensure!(began.elapsed() < Duration::from_secs(60), "no snapshot arrives within 60 s");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// What the receiver says of one transfer.
#[derive(Debug)]
struct Transfer {
    /// In which life of the receiver, from one.
    life: usize,
    sender: String,
    /// Content of the snapshot.
    bytes: u64,
    /// How much of it was on the receiver's disk when it was offered.
    here: u64,
    /// How much came, when it came to its end.
    received: Option<u64>,
}

/// The transfers in a member's log.
fn transfers(log: &Path) -> Result<Vec<Transfer>> {
    let mut life = 0;
    let mut transfers: Vec<Transfer> = Vec::new();
    for line in std::fs::read_to_string(log)?.lines() {
        if line.contains(" serves clients at ") {
            life += 1;
        } else if line.contains("a snapshot arrives") {
            transfers.push(Transfer {
                life,
                sender: field(line, "from")?.to_owned(),
                bytes: field(line, "bytes")?.parse()?,
                here: field(line, "here")?.parse()?,
                received: None,
            });
        } else if line.contains("a snapshot has arrived")
            && let Some(last) = transfers.last_mut()
        {
            last.received = Some(field(line, "bytes")?.parse()?);
        }
    }
    Ok(transfers)
}

fn field<'a>(line: &'a str, name: &str) -> Result<&'a str> {
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.with_context(|| format!("no {name} in: {line}"))
}
