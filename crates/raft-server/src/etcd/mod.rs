//! Being etcd: the gRPC services, one file each, and what they share. Steps 1 and 9 in the life of a write.
//!
//! Any member takes any request. Writes are checked, encoded once and proposed through the node's handle, which
//! forwards them to the leader; reads wait for a read index and then look into the store on the handler's own
//! task. Deliberately absent here: anything about Raft, and anything about connections.

mod cluster;
mod errors;
mod hash;
mod health;
mod http;
mod kv;
mod maintenance;
mod polish;

use std::sync::Arc;

use axum::Router;
use prost::Message;
use raft::Node;
use raft::node::RoleName;
use raft_kv::proto::etcdserverpb::ResponseHeader;
use raft_kv::{Reader, Store};
use tokio::sync::watch;
use tonic::{Request, Status};

pub(crate) use self::polish::polish;
use crate::proto::etcdserverpb::cluster_server::ClusterServer;
use crate::proto::etcdserverpb::kv_server::KvServer;
use crate::proto::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::proto::health::health_server::HealthServer;

/// The version of etcd whose interface this is. Digits only: clients split it at the dots.
pub const ETCD_VERSION: &str = "3.7.0";
/// What a message may exceed the limit on requests by: room for the refusal to be ours, as in etcd.
const MESSAGE_ROOM_BYTES: usize = 512 << 10;

/// What all services share.
pub struct Etcd {
    node: Node<Store>,
    reader: Reader,
    /// Bytes of one encoded request.
    request_bytes_max: usize,
    /// True once this member is shutting down.
    stop: watch::Receiver<bool>,
}

impl Etcd {
    /// The services of `node`, whose store `reader` reads.
    #[must_use]
    pub fn new(
        node: Node<Store>,
        reader: Reader,
        request_bytes_max: usize,
        stop: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Self { node, reader, request_bytes_max, stop })
    }

    /// Every route of the port: gRPC by path, then plain HTTP.
    pub fn router(self: &Arc<Self>) -> Router {
        let message_bytes_max = self.request_bytes_max.saturating_add(MESSAGE_ROOM_BYTES);
        let kv = KvServer::from_arc(Arc::clone(self))
            .max_decoding_message_size(message_bytes_max)
            .max_encoding_message_size(usize::MAX);
        let cluster = ClusterServer::from_arc(Arc::clone(self));
        let maintenance = MaintenanceServer::from_arc(Arc::clone(self));
        let health = HealthServer::from_arc(Arc::clone(self));
        Router::new()
            .route_service("/etcdserverpb.KV/{method}", kv)
            .route_service("/etcdserverpb.Cluster/{method}", cluster)
            .route_service("/etcdserverpb.Maintenance/{method}", maintenance)
            .route_service("/grpc.health.v1.Health/{method}", health)
            .merge(http::router(Arc::clone(self)))
    }

    /// What every answer begins with.
    fn header(&self, revision: i64) -> ResponseHeader {
        let status = self.node.status();
        ResponseHeader {
            cluster_id: status.cluster_id.map_or(0, |cluster| cluster.0),
            member_id: status.node.member.0,
            revision,
            raft_term: status.term.0,
        }
    }

    /// Completes a header that came from the store: it knows only the revision.
    fn complete(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.header(revision));
    }

    /// Checks the metadata that etcd's clients send with any request.
    fn check_metadata<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let metadata = request.metadata();
        let needs_leader = metadata.get("hasleader").is_some_and(|value| value == "true");
        if needs_leader && self.node.status().leader.is_none() {
            return Err(Status::unavailable(errors::NO_LEADER));
        }
        if let Some(version) = metadata.get("client-api-version")
            && std::str::from_utf8(version.as_encoded_bytes()).is_err()
        {
            return Err(Status::invalid_argument("etcdserver: invalid client api version"));
        }
        Ok(())
    }

    /// As [`check_metadata`](Self::check_metadata), for what learners do not serve.
    fn check_voter<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.check_metadata(request)?;
        if self.is_learner() {
            return Err(Status::failed_precondition("etcdserver: rpc not supported for learner"));
        }
        Ok(())
    }

    fn is_learner(&self) -> bool {
        self.node.status().role == RoleName::Learner
    }

    /// Refuses a write that is over the limit, as it is encoded.
    fn check_size(&self, request: &impl Message) -> Result<(), Status> {
        if request.encoded_len() > self.request_bytes_max {
            return Err(errors::too_large());
        }
        Ok(())
    }

    /// Waits until a read here sees every write that was acknowledged before.
    async fn linearize(&self) -> Result<(), Status> {
        self.node.read_index().await.map(drop).map_err(|error| errors::of_read(&error))
    }
}
