//! Maintenance: how this member is doing, and looking after it.

use raft::core::MemberId;
use raft::node::Phase;
use raft_kv::proto::etcdserverpb::alarm_request::AlarmAction;
use raft_kv::proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use tonic::{Request, Response, Status, async_trait};

use super::hash::{self, Hash};
use super::{ETCD_VERSION, Etcd, errors};
use crate::proto::etcdserverpb::maintenance_server::Maintenance;

fn not_built(method: &str) -> Status {
    Status::unimplemented(format!("unknown method {method} for service etcdserverpb.Maintenance"))
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
        self.check_metadata(&request)?;
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
            Phase::Active | Phase::Stopping | _ => {}
        }
        Ok(Response::new(StatusResponse {
            header: Some(self.header(self.reader.revision())),
            version: ETCD_VERSION.to_owned(),
            db_size: size,
            leader: status.leader.map_or(0, |leader| leader.0),
            raft_index: status.commit_index.0,
            raft_term: status.term.0,
            raft_applied_index: status.last_applied.0,
            errors: problems,
            db_size_in_use: size,
            is_learner: self.is_learner(),
            storage_version: ETCD_VERSION.to_owned(),
            db_size_quota: 0,
            downgrade_info: None,
        }))
    }

    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        self.check_voter(&request)?;
        match request.get_ref().action() {
            // Nothing raises one yet.
            AlarmAction::Get | AlarmAction::Deactivate => Ok(Response::new(AlarmResponse {
                header: Some(self.header(self.reader.revision())),
                alarms: Vec::new(),
            })),
            AlarmAction::Activate => Err(not_built("Alarm")),
        }
    }

    /// There is nothing to defragment, ever. The answer has no header, as in etcd.
    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.check_metadata(&request)?;
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    /// Over the store and the membership: everything that is replicated.
    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.check_metadata(&request)?;
        let found = self.hash_up_to(0).await?;
        let membership = self.node.status().membership.encode(&[]);
        let hash = crc32c::crc32c_append(found.hash, &membership);
        Ok(Response::new(HashResponse { header: Some(self.header(found.revision)), hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        self.check_metadata(&request)?;
        let found = self.hash_up_to(request.get_ref().revision).await?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.header(self.reader.revision())),
            hash: found.hash,
            compact_revision: found.compact_revision,
            hash_revision: found.revision,
        }))
    }

    type SnapshotStream = tokio_stream::Empty<Result<SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(not_built("Snapshot"))
    }

    /// Only the leader takes it. The answer has no header, as in etcd.
    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        self.check_voter(&request)?;
        let status = self.node.status();
        if !status.is_leader() {
            return Err(Status::failed_precondition("etcdserver: not leader"));
        }
        let target = MemberId(request.get_ref().target_id);
        if !status.members.iter().any(|member| member.node.member == target && member.voter) {
            return Err(Status::failed_precondition("etcdserver: bad leader transferee"));
        }
        let moved = self.node.transfer_leadership(Some(target)).await;
        moved.map_err(|error| errors::of_admin(&error))?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        _request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        Err(not_built("Downgrade"))
    }
}
