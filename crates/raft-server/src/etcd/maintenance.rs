//! Maintenance: how this member is doing, and looking after it.

use raft::core::MemberId;
use raft::meters::OpenDamage;
use raft::node::Phase;
use raft_kv::proto::etcdserverpb::downgrade_request::DowngradeAction;
use raft_kv::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeInfo, DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse,
    StatusRequest, StatusResponse,
};
use raft_kv::{Command, KvError};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::hash::{self, Hash};
use super::kv::mismatch;
use super::{ETCD_VERSION, Etcd, errors};
use crate::proto::etcdserverpb::maintenance_server::Maintenance;

/// Ends by itself, unlike the alarm.
const DISK_FULL: &str = "NOSPACE: this member's disk is full; what needs no space is taken";

/// The version to go back to, as three numbers: one minor version below this one.
fn downgrade_target(version: &str) -> Result<String, Status> {
    let malformed =
        || Status::invalid_argument("etcdserver: wrong downgrade target version format");
    let number = |part: Option<&str>| part.and_then(|part| part.parse::<u64>().ok());
    let mut parts = version.split('.');
    let (Some(major), Some(minor)) = (number(parts.next()), number(parts.next())) else {
        return Err(malformed());
    };
    if parts.next().is_some_and(|patch| number(Some(patch)).is_none()) || parts.next().is_some() {
        return Err(malformed());
    }
    let mut own = ETCD_VERSION.split('.');
    let (own_major, own_minor) = (number(own.next()), number(own.next()));
    if own_major != Some(major) || own_minor != Some(minor + 1) {
        return Err(Status::invalid_argument("etcdserver: invalid downgrade target version"));
    }
    Ok(format!("{major}.{minor}.0"))
}

impl Etcd {
    /// Hashes the store on a thread that may take its time.
    async fn hash_up_to(&self, revision: i64) -> Result<Hash, Status> {
        let reader = self.reader.clone();
        match tokio::task::spawn_blocking(move || hash::hash(&reader, revision)).await {
            Ok(found) => found.map_err(errors::of_kv),
            Err(error) => Err(Status::internal(format!("etcdserver: the hash failed: {error}"))),
        }
    }
}

#[async_trait]
impl Maintenance for Etcd {
    /// Local; never waits for the cluster.
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.admit(request).await?;
        let status = self.node.status();
        let size = i64::try_from(self.reader.logical_size()).unwrap_or(i64::MAX);
        let mut problems = Vec::new();
        if status.leader.is_none() {
            problems.push(errors::NO_LEADER.to_owned());
        }
        match &status.phase {
            Phase::Amnesic(why) => problems.push(format!("waits to be re-admitted: {why}")),
            Phase::Waiting(what) => problems.push(format!("waits: {what}")),
            Phase::Forming => problems.push("the cluster is forming".to_owned()),
            Phase::Confirming => problems.push("asks a quorum whether its log is whole".to_owned()),
            Phase::Repairing(what) => problems.push(format!("waits: {what}")),
            Phase::Active | Phase::Stopping | _ => {}
        }
        if status.disk_full {
            problems.push(DISK_FULL.to_owned());
        }
        for OpenDamage { path, offset, problem } in self.metrics.open_damage().iter() {
            let path = path.display();
            problems.push(format!("damage: {path} at byte {offset}, not repaired yet: {problem}"));
        }
        let notices = self.reader.notices();
        for AlarmMember { member_id, alarm } in notices.of_type(AlarmType::None) {
            let alarm = AlarmType::try_from(alarm).map_or("UNKNOWN", |alarm| alarm.as_str_name());
            problems.push(format!("memberID:{member_id} alarm:{alarm} "));
        }
        Ok(Response::new(StatusResponse {
            header: Some(self.header(self.reader.revision())),
            version: ETCD_VERSION.to_owned(),
            db_size: size,
            leader: status.leader.map_or(0, |leader| status.known_as(leader).0),
            raft_index: status.commit_index.0,
            raft_term: status.term.0,
            raft_applied_index: status.last_applied.0,
            errors: problems,
            db_size_in_use: size,
            is_learner: self.is_learner(),
            storage_version: ETCD_VERSION.to_owned(),
            db_size_quota: i64::try_from(self.quota_bytes()).unwrap_or(i64::MAX),
            downgrade_info: Some(DowngradeInfo {
                enabled: notices.downgrade.is_some(),
                target_version: notices.downgrade.clone().unwrap_or_default(),
            }),
        }))
    }

    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let command = Command::alarm(request);
        let raft_kv::Response::Alarm(mut response) = self.propose(&admission, command).await?
        else {
            return Err(mismatch());
        };
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    /// There is nothing to defragment, ever. The answer has no header, as in etcd.
    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.admit(request).await?;
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    /// Over the store, users and roles, and the membership: everything that is replicated.
    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.admit(request).await?;
        let found = self.hash_up_to(0).await?;
        let membership = self.node.status().membership.encode(&[]);
        let hash = crc32c::crc32c_append(found.hash, &membership);
        let users = self.auth.state().digest();
        let hash = crc32c::crc32c_append(hash, &users.0.to_le_bytes());
        Ok(Response::new(HashResponse { header: Some(self.header(found.revision)), hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        let (request, _) = self.admit(request).await?;
        let found = self.hash_up_to(request.revision).await?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.header(self.reader.revision())),
            hash: found.hash,
            compact_revision: found.compact_revision,
            hash_revision: found.revision,
        }))
    }

    type SnapshotStream = ReceiverStream<Result<SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let (_, admission) = self.admit(request).await?;
        let parts = self.snapshot_parts(admission.caller()).await?;
        Ok(Response::new(ReceiverStream::new(parts)))
    }

    /// Only the leader takes it. The answer has no header, as in etcd.
    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let (request, _) = self.admit(request).await?;
        let status = self.node.status();
        if !status.is_leader() {
            return Err(Status::failed_precondition("etcdserver: not leader"));
        }
        let target = status.find(MemberId(request.target_id));
        let is_voter =
            |node| status.members.iter().any(|member| member.node == node && member.voter);
        let Some(target) = target.filter(|target| is_voter(*target)) else {
            return Err(Status::failed_precondition("etcdserver: bad leader transferee"));
        };
        if status.node == target {
            return Ok(Response::new(MoveLeaderResponse { header: None }));
        }
        let moved = self.node.transfer_leadership(Some(target.member)).await;
        moved.map_err(|error| errors::of_admin(&error))?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let announced = match DowngradeAction::try_from(request.action) {
            Ok(DowngradeAction::Validate) => {
                downgrade_target(&request.version)?;
                self.linearize().await?;
                if self.reader.notices().downgrade.is_some() {
                    return Err(errors::of_kv(KvError::DowngradeInProgress));
                }
                None
            }
            Ok(DowngradeAction::Enable) => Some(downgrade_target(&request.version)?),
            Ok(DowngradeAction::Cancel) => Some(String::new()),
            Err(_) => return Err(Status::unknown("etcdserver: unknown method")),
        };
        if let Some(target) = announced {
            self.propose(&admission, Command::downgrade(target)).await?;
        }
        Ok(Response::new(DowngradeResponse {
            header: Some(self.header(self.reader.revision())),
            version: ETCD_VERSION.to_owned(),
        }))
    }
}
