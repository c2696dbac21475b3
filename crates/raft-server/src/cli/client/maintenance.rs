//! `alarm`, `move-leader` and `snapshot save`.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use raft_kv::proto::etcdserverpb::alarm_request::AlarmAction;
use raft_kv::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, MoveLeaderRequest, SnapshotRequest,
    StatusRequest,
};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::Failure;
use super::dial::{Cluster, Link};
use super::print::{Printer, say};
use super::words::member_id;

/// Bytes of the checksum at the end of a snapshot.
const CHECKSUM_BYTES: usize = 32;
/// Pages of the file have a multiple of so many bytes.
const SECTOR_BYTES: u64 = 512;

#[derive(Clone, Copy, Debug, Subcommand)]
pub(in crate::cli) enum Alarm {
    /// Take all alarms back.
    Disarm,
    /// List all alarms.
    List,
}

/// Makes another member the leader.
#[derive(Clone, Copy, Debug, Args)]
pub(in crate::cli) struct MoveLeader {
    /// The member that is to lead, in hexadecimal digits.
    #[arg(value_name = "MEMBER_ID", value_parser = member_id)]
    target: u64,
}

#[derive(Clone, Debug, Subcommand)]
pub(in crate::cli) enum Snapshot {
    /// Write everything that a member holds to a file that etcd's tools check and restore.
    Save {
        /// The file; it appears once it is complete and durable.
        file: PathBuf,
    },
}

impl Alarm {
    pub(super) async fn run(self, cluster: &Cluster) -> Result<(), Failure> {
        let printer = Printer::for_messages(&cluster.wishes)?;
        let mut answer = ask(cluster, AlarmRequest::default()).await?;
        if matches!(self, Self::Disarm) {
            for alarm in std::mem::take(&mut answer.alarms) {
                let request = AlarmRequest {
                    action: AlarmAction::Deactivate.into(),
                    member_id: alarm.member_id,
                    alarm: alarm.alarm,
                };
                answer.alarms.extend(ask(cluster, request).await?.alarms);
            }
        }
        printer.show(
            "AlarmResponse",
            &answer,
            |out| answer.alarms.iter().for_each(|alarm| out.line(shown(alarm))),
            |out| {
                out.header(answer.header.as_ref());
                for alarm in &answer.alarms {
                    out.field("MemberID", alarm.member_id);
                    out.field("AlarmType", name(alarm));
                    out.line("");
                }
            },
        );
        Ok(())
    }
}

async fn ask(cluster: &Cluster, request: AlarmRequest) -> Result<AlarmResponse, Failure> {
    cluster
        .write(request, async |link, request| link.maintenance().alarm(link.by(request)).await)
        .await
}

fn name(alarm: &AlarmMember) -> &'static str {
    AlarmType::try_from(alarm.alarm).unwrap_or(AlarmType::None).as_str_name()
}

/// As Go prints this message, with the space at its end.
fn shown(alarm: &AlarmMember) -> String {
    let member =
        if alarm.member_id == 0 { String::new() } else { format!("memberID:{} ", alarm.member_id) };
    let kind = if alarm.alarm == 0 { String::new() } else { format!("alarm:{} ", name(alarm)) };
    member + &kind
}

impl MoveLeader {
    pub(super) async fn run(self, cluster: &Cluster) -> Result<(), Failure> {
        let printer = Printer::for_messages(&cluster.wishes)?;
        let limit = cluster.wishes.command_timeout;
        let leader = timeout(limit, leader(cluster)).await;
        let (id, link) =
            leader.unwrap_or_else(|_| Err(Failure::failed("context deadline exceeded")))?;
        let request = MoveLeaderRequest { target_id: self.target };
        let moved = async {
            let answer = link.maintenance().move_leader(link.by(request)).await?;
            Ok::<_, Failure>(answer.into_inner())
        };
        let moved = timeout(limit, moved).await;
        let answer = moved.unwrap_or_else(|_| Err(Failure::failed("context deadline exceeded")))?;
        let target = self.target;
        printer.show(
            "MoveLeaderResponse",
            &answer,
            |out| out.line(format!("Leadership transferred from {id:x} to {target:x}")),
            |out| out.header(answer.header.as_ref()),
        );
        Ok(())
    }
}

/// The leader, among the endpoints that were named.
async fn leader(cluster: &Cluster) -> Result<(u64, Link), Failure> {
    let mut reasons = Vec::new();
    for target in &cluster.targets {
        let link = match cluster.link(target).await? {
            Ok(link) => link,
            Err(reason) => {
                reasons.push(format!("{}: {reason}", target.name));
                continue;
            }
        };
        let status = link.maintenance().status(link.by(StatusRequest {})).await?.into_inner();
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            return Ok((status.leader, link));
        }
        reasons.push(format!("{}: it does not lead", target.name));
    }
    Err(Failure::failed(format!(
        "no leader among the endpoints\n\n  {}\n\n  right  all members in --endpoints",
        reasons.join("\n  ")
    )))
}

impl Snapshot {
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        let Self::Save { file } = self;
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
}

/// A file that is gone unless it was completed.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    fn create(target: &Path) -> io::Result<Self> {
        let mut path = OsString::from(target);
        path.push(".part");
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let path = PathBuf::from(path);
        Ok(Self { file: options.open(&path)?, path })
    }

    fn complete(self, target: &Path) -> io::Result<()> {
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
    while let Some(answer) = answers.message().await? {
        part.file.write_all(&answer.blob).map_err(unwritable)?;
        length += u64::try_from(answer.blob.len()).unwrap_or(0);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_shown_as_go_shows_messages() {
        let alarm = AlarmMember { member_id: 7, alarm: AlarmType::Nospace.into() };
        assert_eq!(shown(&alarm), "memberID:7 alarm:NOSPACE ");
        assert_eq!(shown(&AlarmMember::default()), "");
    }
}
