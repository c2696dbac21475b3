//! `snapshot save`, `status` and `restore`.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use raft_kv::proto::etcdserverpb::SnapshotRequest;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::dial::Cluster;
use super::json::Json;
use super::print::{Out, Printer, say};
use super::table::table;
use super::to::{Format, To};
use super::{Failure, go};
use crate::bbolt::{ReadError, Reader};
use crate::cli::progress::Bar;
use crate::cli::transfer;
use crate::exit::Exit;

/// Bytes of the checksum at the end of a snapshot.
const CHECKSUM_BYTES: usize = 32;
/// Pages of the file have a multiple of so many bytes.
const SECTOR_BYTES: u64 = 512;

#[derive(Clone, Debug, Subcommand)]
pub(in crate::cli) enum Snapshot {
    /// Write everything that a member holds to a file that etcd's tools check and restore.
    Save {
        /// The file; it appears once it is complete and durable.
        file: PathBuf,
    },
    /// Show hash, revision, number of keys and size of a snapshot.
    Status {
        /// The file.
        file: PathBuf,
    },
    /// Make of a snapshot, ours or etcd's, the data folder of a new member of a new cluster.
    Restore(Restore),
}

/// etcdctl's flags. Every member of the new cluster is restored from the same file, with the same --initial-cluster and
/// token.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Example:\n  rusty-raft snapshot restore backup.db --name n0 --data-dir n0.etcd \\\n    --initial-cluster n0=http://10.0.0.1:2380,n1=http://10.0.0.2:2380 \\\n    --initial-advertise-peer-urls http://10.0.0.1:2380\n  rusty-raft etcd --name n0 --data-dir n0.etcd …"
)]
pub(in crate::cli) struct Restore {
    /// The file.
    pub(in crate::cli) file: PathBuf,
    /// Where the member's data goes [default: NAME.etcd].
    #[arg(long, value_name = "FOLDER")]
    pub(in crate::cli) data_dir: Option<PathBuf>,
    /// Accepted for etcd's sake: the log is in the data folder.
    #[arg(long, value_name = "FOLDER", hide_short_help = true)]
    wal_dir: Option<PathBuf>,
    /// The member's name.
    #[arg(long, default_value = "default")]
    pub(in crate::cli) name: String,
    /// All members of the new cluster.
    #[arg(long, value_name = "NAME=URL,…", default_value = "default=http://localhost:2380")]
    pub(in crate::cli) initial_cluster: String,
    /// Tells this cluster from others that are restored from the same file.
    #[arg(long, value_name = "TEXT", default_value = "etcd-cluster")]
    pub(in crate::cli) initial_cluster_token: String,
    /// Where the other members dial this one.
    #[arg(long, value_name = "URL", default_value = "http://localhost:2380")]
    pub(in crate::cli) initial_advertise_peer_urls: String,
    #[command(flatten)]
    pub(in crate::cli) how: transfer::How,
}

impl Snapshot {
    pub(super) async fn run(&self, to: &To) -> Result<(), Failure> {
        match self {
            Self::Save { file } => save_one(&Cluster::find(to).await?, file).await,
            Self::Status { file } => status(&Printer::for_rows(&to.wishes()?)?, file),
            Self::Restore(restore) => {
                let exit = transfer::restore(restore);
                // It has said why.
                let failed = || Failure { exit, words: String::new() };
                (exit == Exit::Success).then_some(()).ok_or_else(failed)
            }
        }
    }
}

/// Writes what the member at `endpoint` holds to a file.
pub(in crate::cli) async fn fetch(
    to: &To,
    endpoint: &str,
    file: &Path,
) -> Result<(), (Exit, String)> {
    let fetching = async {
        let cluster = Cluster::find(&to.at(endpoint)).await?;
        save(&cluster, file).await
    };
    fetching.await.map_err(|failure: Failure| (failure.exit, failure.words))
}

async fn save_one(cluster: &Cluster, file: &Path) -> Result<(), Failure> {
    if cluster.wishes.endpoints.len() > 1 {
        return Err(Failure::bad(format!(
            "a snapshot is of one member, and {} endpoints are named\n\n  right  --endpoints={} snapshot save {}",
            cluster.targets.len(),
            cluster.targets.first().map_or("", |target| &*target.name),
            file.display()
        )));
    }
    let saving = save(cluster, file);
    if cluster.wishes.command_timeout_named {
        let limit = cluster.wishes.command_timeout;
        let late = |_| Err(Failure::failed("context deadline exceeded"));
        timeout(limit, saving).await.unwrap_or_else(late)?;
    } else {
        saving.await?;
    }
    say(format!("Snapshot saved at {}", file.display()));
    Ok(())
}

/// What `snapshot status` shows.
struct Numbers {
    hash: u32,
    revision: i64,
    keys: u64,
    bytes: u64,
}

/// As etcdctl does, without looking at the checksum at the end.
fn status(printer: &Printer, file: &Path) -> Result<(), Failure> {
    let refused = |error: ReadError| Failure {
        exit: Exit::DataRefused,
        words: format!("{}: {error}", file.display()),
    };
    let opened = File::open(file).map_err(|error| refused(error.into()))?;
    let numbers = numbers(&opened).map_err(refused)?;
    let Numbers { hash, revision, keys, bytes } = numbers;
    let size = go::size(i64::try_from(bytes).unwrap_or(i64::MAX));
    let mut out = Out::default();
    match printer.format {
        Format::Json => out.line(
            Json::object([
                ("hash", Json::number(hash)),
                ("revision", Json::number(revision)),
                ("totalKey", Json::number(keys)),
                ("totalSize", Json::number(bytes)),
            ])
            .to_string(),
        ),
        Format::Fields => {
            out.field("Hash", hash);
            out.field("Revision", revision);
            out.field("Keys", keys);
            out.field("Size", bytes);
        }
        Format::Table => {
            let row = vec![format!("{hash:x}"), revision.to_string(), keys.to_string(), size];
            let head = ["hash", "revision", "total keys", "total size"];
            out.line(table(&head, &[row]).trim_end());
        }
        Format::Simple | Format::Protobuf => {
            out.line(format!("{hash:x}, {revision}, {keys}, {size}"));
        }
    }
    out.print();
    Ok(())
}

fn numbers(file: &File) -> Result<Numbers, ReadError> {
    let reader = Reader::open(file)?;
    let total = reader.file_bytes();
    let mut bar = Bar::new("reading");
    let mut read = 0;
    let mut heard = |bytes: u64| {
        read += bytes;
        bar.at(read.min(total), total);
    };
    let (mut hash, mut revision, mut keys) = (0, 0, 0);
    for bucket in reader.buckets() {
        hash = crc32c::crc32c_append(hash, &bucket.name);
        let is_history = bucket.name == b"key";
        reader.each(bucket, &mut heard, &mut |key, value| {
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
            if let Some(main) =
                key.get(..8).and_then(|main| main.try_into().ok()).filter(|_| is_history)
            {
                revision = i64::from_be_bytes(main);
            }
            keys += 1;
            Ok(())
        })?;
    }
    Ok(Numbers { hash, revision, keys, bytes: total })
}

/// A file that is gone unless it was completed.
pub(in crate::cli) struct Part {
    path: PathBuf,
    pub(in crate::cli) file: File,
}

impl Part {
    pub(in crate::cli) fn create(target: &Path) -> io::Result<Self> {
        let mut path = OsString::from(target);
        path.push(".part");
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let path = PathBuf::from(path);
        Ok(Self { file: options.open(&path)?, path })
    }

    pub(in crate::cli) fn complete(self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        // The name is to be as durable as what it names.
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Gone already when it was completed.
        fs::remove_file(&self.path).ok();
    }
}

async fn save(cluster: &Cluster, target: &Path) -> Result<(), Failure> {
    let unwritable = |error: io::Error| {
        Failure::failed(format!("{} cannot be written: {error}", target.display()))
    };
    let link = cluster.any_link().await?;
    let mut part = Part::create(target).map_err(unwritable)?;
    let answers = link.maintenance().snapshot(link.by(SnapshotRequest {})).await?;
    let mut answers = answers.into_inner();
    let mut hasher = Sha256::new();
    // The last bytes received may be the checksum, which is not part of what it is of.
    let mut last: Vec<u8> = Vec::new();
    let mut length = 0u64;
    let mut bar = Bar::new("receiving");
    while let Some(answer) = answers.message().await? {
        part.file.write_all(&answer.blob).map_err(unwritable)?;
        length += u64::try_from(answer.blob.len()).unwrap_or(0);
        bar.at(length, length.saturating_add(answer.remaining_bytes));
        last.extend_from_slice(&answer.blob);
        let sure = last.len().saturating_sub(CHECKSUM_BYTES);
        hasher.update(&last[..sure]);
        last.drain(..sure);
    }
    if length % SECTOR_BYTES != 32 || last[..] != hasher.finalize()[..] {
        return Err(Failure::failed(format!(
            "the checksum of the snapshot is missing or wrong after {length} bytes: nothing was kept"
        )));
    }
    part.complete(target).map_err(unwritable)
}
