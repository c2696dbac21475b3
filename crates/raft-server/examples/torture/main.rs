//! Kills real processes under load and checks that no acknowledged write is lost, no refused one appears, and that what
//! all clients saw is linearizable.
//!
//! ```text
//! cargo run --release --example torture -- leader-kill --rounds 50 --seconds 6
//! cargo run --release --example torture -- all-kill --rounds 5 --seconds 5
//! cargo run --release --example torture -- catch-up --writes 100000
//! cargo run --release --example torture -- snapshot-kill --megabytes 256
//! cargo run --release --example torture -- floods --seconds 2
//! cargo run --release --example torture -- synced      # needs strace
//! cargo run --release --example torture -- sync-error  # needs strace
//! unshare --map-root-user --mount target/release/examples/torture full-disk
//! cargo run --release --example torture -- damage --rounds 40 --seed 1
//! cargo run --release --example torture -- damage-everywhere --rounds 3
//! ```
//!
//! Uses `target/release/rusty-raft` (build it first) and keeps its data under `target/torture`. Exits non-zero on
//! the first violation and says which.

#![expect(clippy::print_stdout, reason = "its output is for people")]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum};

mod catch_up;
mod cluster;
mod damage;
mod everywhere;
mod failing_disk;
mod floods;
mod harm;
mod history;
mod hostile;
mod kill;
mod load;
mod snapshot_kill;
mod synced;

use cluster::Cluster;

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
    /// Check each round at once, then delete everything: long runs need no more memory than one round
    #[arg(long)]
    sweep: bool,
    /// Writers, each with one write in flight.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Writes that the stopped member misses (catch-up).
    #[arg(long, default_value_t = 20_000)]
    writes: u64,
    /// The state that a snapshot has to carry (snapshot-kill).
    #[arg(long, default_value_t = 256)]
    megabytes: u64,
    /// What a run of `damage` draws from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
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
    /// A snapshot goes on where it stopped when its receiver, then its sender is killed.
    SnapshotKill,
    /// Hostile clients of many kinds beside one that behaves.
    Floods,
    /// With strace attached: a quorum completes an fdatasync before each of 100 answers to one client.
    Synced,
    /// The folder of one stopped member after the other is damaged; it must come back whole.
    Damage,
    /// All members are stopped and all logs damaged: different entries, then the same.
    DamageEverywhere,
    /// With strace attached: one fdatasync of the leader, then of a follower fails.
    SyncError,
    /// The file system under one member, then under all is full.
    FullDisk,
}

impl Scenario {
    /// What stands in the configuration file beside the usual.
    const fn settings(self) -> &'static str {
        match self {
            // So small that every folder has segments, snapshots and a log that begins somewhere.
            Self::Damage | Self::DamageEverywhere | Self::FullDisk | Self::SyncError => {
                "log_segment_bytes: 1048576, checkpoint_entries: 1500, trailing_entries: 500,"
            }
            Self::LeaderKill
            | Self::AllKill
            | Self::CatchUp
            | Self::SnapshotKill
            | Self::Floods
            | Self::Synced => "",
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut cluster = Cluster::new(&options)?;
    if matches!(options.scenario, Scenario::FullDisk) {
        failing_disk::mount(&cluster)?;
    }
    for member in 0..MEMBERS {
        cluster.start(member)?;
    }
    let began = Instant::now();
    cluster.wait_for_leader().await?;
    println!("a leader after {} ms", began.elapsed().as_millis());
    match options.scenario {
        Scenario::LeaderKill => kill::kill_rounds(&mut cluster, &options, false).await,
        Scenario::AllKill => kill::kill_rounds(&mut cluster, &options, true).await,
        Scenario::CatchUp => catch_up::catch_up(&mut cluster, &options).await,
        Scenario::SnapshotKill => snapshot_kill::snapshot_kill(&mut cluster, &options).await,
        Scenario::Floods => floods::floods(&cluster, &options).await,
        Scenario::Synced => synced::synced(&cluster).await,
        Scenario::SyncError => failing_disk::sync_error(&mut cluster, &options).await,
        Scenario::FullDisk => failing_disk::full_disk(&mut cluster, &options).await,
        Scenario::Damage => damage::damage(&mut cluster, &options).await,
        Scenario::DamageEverywhere => everywhere::everywhere(&mut cluster, &options).await,
    }
}
