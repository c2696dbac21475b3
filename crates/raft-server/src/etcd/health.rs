//! grpc.health.v1: whether this member serves.

use std::pin::Pin;

use raft::Node;
use raft::node::RoleName;
use raft_kv::Store;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::Etcd;
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::health_server::Health;
use crate::proto::health::{HealthCheckRequest, HealthCheckResponse};

/// Names that are asked for: the whole server, and services of ours.
const KNOWN: [&str; 10] = [
    "",
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "v3lockpb.Lock",
    "v3electionpb.Election",
    "grpc.health.v1.Health",
];

#[expect(clippy::disallowed_methods, reason = "whether anybody serves is for everybody to know")]
fn is_known(request: &Request<HealthCheckRequest>) -> bool {
    KNOWN.contains(&request.get_ref().service.as_str())
}

/// Serving means: a leader is known, and this member is neither a learner nor about to stop.
fn serving(node: &Node<Store>, stop: &watch::Receiver<bool>) -> ServingStatus {
    let status = node.status();
    if status.leader.is_some() && status.role != RoleName::Learner && !*stop.borrow() {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

const fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

#[async_trait]
impl Health for Etcd {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !is_known(&request) {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(answer(serving(&self.node, &self.stop))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = is_known(&request);
        let (answers, stream) = mpsc::channel(1);
        // Ends with the client's stream, or with the node.
        tokio::spawn(watch_health(self.node.clone(), self.stop.clone(), known, answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

async fn watch_health(
    node: Node<Store>,
    mut stop: watch::Receiver<bool>,
    known: bool,
    answers: mpsc::Sender<Result<HealthCheckResponse, Status>>,
) {
    let mut changes = node.watch_status();
    let mut told = None;
    loop {
        let now = if known { serving(&node, &stop) } else { ServingStatus::ServiceUnknown };
        if told != Some(now) {
            if answers.send(Ok(answer(now))).await.is_err() {
                return;
            }
            told = Some(now);
        }
        let alive = tokio::select! {
            changed = changes.changed() => changed.is_ok(),
            changed = stop.changed() => changed.is_ok() && !*stop.borrow(),
            () = answers.closed() => false,
        };
        if !alive {
            return;
        }
    }
}
